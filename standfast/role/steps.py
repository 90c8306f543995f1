"""One function for each step of a plan. Each can be repeated; each has a deadline.

Invariant: nothing here decides. Whether a step is due was decided before; whether the node may
serve is asked by the guard and enforced by the fence.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from standfast.consul.records import HistoryEntry, LeaderState
from standfast.errors import ForeignValue, Refused, StandfastError, TimedOut, ours
from standfast.events import hooks
from standfast.lease import exports
from standfast.lease.files import LeaseStatus, note_end, save_claim, take_outage, was_never_open
from standfast.lease.protocol import Claim
from standfast.lease.surrender import OUTAGE_LIMIT_S
from standfast.node.node import Machine
from standfast.node.own_epoch import Intent, OwnEpoch, Stage
from standfast.node.ports import Jobs
from standfast.reasons import Reason
from standfast.role import copies, registration, volume
from standfast.role.decision import Action, Decision
from standfast.role.observation import LastHeartbeat
from standfast.role.plan import ON_THE_TREE, Do
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.local_socket import ask

log = logging.getLogger(__name__)

POLL_S = 0.05
RELEASE_TRIES = 3
UNDO_S = 120.0
# Stages in which nobody can have written anything yet.
UNBORN = (Stage.CLEARING, Stage.CREATING)
# From opening the port until the server answers over it: ganesha and nfsd take up to 2 s.
SERVING_TIMEOUT_S = 15.0


@dataclass(slots=True)
class Effects:
    """The steps of one plan on one machine."""

    machine: Machine
    decision: Decision | None = None
    last_heartbeat: LastHeartbeat | None = None
    operator: str | None = None
    note: str | None = None
    """The operator's --reason; goes to the history."""
    to: str | None = None
    gave_up: int = 0
    """The epoch that a step gave up."""
    deadline: Deadline = field(default_factory=lambda: Deadline.after(300.0))
    say: Callable[[str], None] = lambda _: None
    """Tells people how a step goes on."""

    def table(self) -> Mapping[Do, Callable[[], None]]:
        """Returns every step's function."""
        return {
            do: self._where_it_belongs(act) if do in ON_THE_TREE else act
            for do, act in self._functions().items()
        }

    def _where_it_belongs(self, act: Callable[[], None]) -> Callable[[], None]:
        def step() -> None:
            volume.check_place(self.machine)
            act()

        return step

    def _functions(self) -> Mapping[Do, Callable[[], None]]:
        return {
            Do.ASK_HOOKS: lambda: hooks.ask(self.machine.config, self.facts),
            Do.TELL_HOOKS: self.tell_hooks,
            Do.CLAIM_LEASE: self.claim_lease,
            Do.START_LEASE: self.start_lease,
            Do.PREPARE_VOLUME: self.prepare_volume,
            Do.EXPORT: self.export,
            Do.BIND: lambda: self.machine.bind.mount(self.deadline),
            Do.START_NFS: lambda: self.machine.nfs.start(self._server_deadline()),
            Do.OPEN_PORT: lambda: self._ask_lease({"cmd": "serve"}),
            Do.CHECK_SERVING: self.check_serving,
            Do.REGISTER: lambda: registration.register(self.machine, self.epoch()),
            Do.PREPARE_JOBS: self.prepare_jobs,
            Do.PRE_COPY: self.pre_copy,
            Do.RELEASE_JOBS: self.release_jobs,
            Do.DEREGISTER: self.deregister,
            Do.CLOSE_PORT: self.close_port,
            Do.SHUT_FENCE: self.machine.fence.ensure_closed,
            Do.STOP_LEASE: self.stop_lease,
            Do.STOP_NFS: self.stop_nfs,
            Do.UNEXPORT: self.machine.nfs.unexport,
            Do.UNBIND: lambda: self.machine.bind.unmount(self.deadline),
            Do.READ_ONLY: lambda: volume.freeze(self.machine),
            Do.READ_ONLY_IF_THERE: lambda: volume.freeze_if_there(self.machine),
            Do.NO_WRITERS: lambda: volume.check_no_writers(self.machine, self.deadline),
            Do.FINAL_SNAPSHOT: self.final_snapshot,
            Do.SALVAGE_SNAPSHOT: self.salvage_snapshot,
            Do.FINAL_COPY: self.final_copy,
            Do.RELEASE: self.release,
            Do.SURRENDER: self.surrender,
            Do.AWAIT_SUCCESSOR: self.await_successor,
            Do.KEEP_DIVERGED: lambda: volume.set_aside(self.machine, diverged=True),
            Do.RETIRE_TREE: lambda: volume.set_aside(self.machine, diverged=False),
            Do.FORGET: self.forget,
        }

    # Programs of the operator's

    def facts(self) -> dict[str, object]:
        """Returns what hooks are told of this change; None: not known."""
        decision = self.decision
        own = OwnEpoch.load(self.machine.config.state_dir)
        promoting = decision is not None and decision.action is Action.PROMOTE
        base = decision.base if decision is not None else None
        return {
            "epoch": decision.epoch + 1 if decision and promoting else own.epoch if own else None,
            "reason": Reason.OPERATOR if decision is None else decision.reason,
            "message": None if decision is None else decision.sentence,
            "snapshot": None if base is None else base.snapshot.name,
            "lost_seconds": None if decision is None else decision.lost_s,
            "to": self.to,
            "operator": self.operator,
            "note": self.note,
        }

    def tell_hooks(self) -> None:
        hooks.announce(self.machine.config, hooks.Occasion.PRE_DEMOTE, self.facts)

    # The lease

    def epoch(self) -> int:
        """Returns the epoch that this node's lease process holds."""
        status = LeaseStatus.load(self.machine.config.run_dir)
        if status is None or status.instance != self.machine.me.instance:
            raise Refused(Reason.LEASE_NOT_HELD, "this node's lease process holds nothing")
        return status.epoch

    def claim_lease(self) -> None:
        decision, last_heartbeat = self.decision, self.last_heartbeat
        if decision is None or last_heartbeat is None:
            raise StandfastError("a promotion needs a decision and what it was made on")
        epoch = decision.epoch  # not the last heartbeat's: its key may have been deleted
        base, content_id = self._base(decision)
        config = self.machine.config
        Intent(epoch + 1, base, content_id, decision.in_place).save(config.state_dir)
        reason = str(decision.reason) if self.note is None else f"{decision.reason}: {self.note}"
        save_claim(
            config.run_dir,
            Claim(
                epoch=epoch,
                seen=last_heartbeat.identity,
                first_seen=last_heartbeat.first_seen,
                base=base,
                reason=reason,
                operator=self.operator,
                lost_s=decision.lost_s,
                follows=decision.follows,
                witnessed=last_heartbeat.witnessed,
                unless_paused=decision.unless_paused,
            ),
        )
        self.start_lease()
        if self.epoch() != epoch + 1:
            raise Refused(Reason.LEASE_NOT_HELD, f"epoch {epoch + 1} went to another node")

    def _base(self, decision: Decision) -> tuple[str | None, str | None]:
        if decision.base is not None:
            return str(decision.base.snapshot.name), decision.base.snapshot.content_id
        # The tree goes on as it is; the snapshot marks where this epoch began.
        own = OwnEpoch.load(self.machine.config.state_dir)
        snapshot = volume.snapshot_of_epoch(self.machine, 0 if own is None else own.epoch)
        return str(snapshot.name), snapshot.content_id

    def start_lease(self) -> None:
        if self.deadline.remaining_s() < UNDO_S:  # an undo has time of its own
            self.deadline = Deadline.after(UNDO_S)
        if take_outage(self.machine.config.run_dir):
            # It may have used up its starts. Of a process that crashes they are not given back.
            unit = self.machine.lease_unit
            self.machine.units.reset_failed(unit, self.deadline.within(5.0))
        self.machine.units.start(self.machine.lease_unit, self.deadline.within(15.0))
        limit = self.deadline.within(10.0)
        while True:
            status = LeaseStatus.load(self.machine.config.run_dir)
            if status is not None and status.remaining_s(monotonic()) > 0:
                return
            if status is not None and status.state is LeaderState.DRAINING:
                # After a release of unknown outcome it waits for this word before it heartbeats.
                with contextlib.suppress(StandfastError):
                    self._ask_lease({"cmd": "hold"})
            if limit.expired:
                raise TimedOut(
                    f"{self.machine.lease_unit} started and holds no lease after 10 s; "
                    f"see `journalctl -u {self.machine.lease_unit}`"
                )
            sleep(POLL_S)

    def stop_lease(self) -> None:
        self.machine.units.stop(self.machine.lease_unit, self.deadline.within(15.0))

    def _ask_lease(self, request: Mapping[str, str | bool | None]) -> None:
        path = self.machine.config.run_dir / "lease.sock"
        reply = ask(path, request, self.deadline.within(10.0))
        if reply.get("ok") is not True:
            raise StandfastError(str(reply.get("error", "the lease process gave no reason")))

    def close_port(self) -> None:
        self._own().at(Stage.DRAINING).save(self.machine.config.state_dir)
        self._ask_lease({"cmd": "drain"})

    def release(self) -> None:
        self._note_epoch()
        final, final_id = self._released()
        request: dict[str, str | bool | None]
        request = {"cmd": "release", "to": self.to, "note": self.note}
        request |= {"final": final, "final_id": final_id, "operator": self.operator}
        # Without one nobody may take the next epoch for one that lacks nothing.
        self._give_up(request if final is not None else {**request, "surrendered": True})

    def surrender(self) -> None:
        """Gives the lease up as it is, without a final snapshot."""
        self._note_epoch()
        note = self.note or f"{self.machine.config.node} could not write its final snapshot"
        self._give_up({"cmd": "surrender", "to": self.to, "note": note, "operator": self.operator})

    def _note_epoch(self) -> None:
        """Of a release that is asked for again the lease process may be gone."""
        with contextlib.suppress(Refused):
            self.gave_up = self.epoch()

    def _give_up(self, request: Mapping[str, str | bool | None]) -> None:
        for left in reversed(range(RELEASE_TRIES)):
            try:
                self._ask_lease(request)
                return
            except StandfastError:
                if left == 0 or self.deadline.expired:
                    raise
                sleep(0.5)

    def _released(self) -> tuple[str | None, str | None]:
        """Returns name and content id of the snapshot that has all of this epoch; noted as
        released."""
        state_dir = self.machine.config.state_dir
        own = self._own_of_this_epoch()
        if own is None:
            intent = Intent.load(state_dir, self.epoch())
            if intent is None or intent.put_away:
                return None, None
            if volume.has_begun(self.machine, intent.epoch):
                return None, None
            # Cut off before it began: nothing is newer than what it was to start from.
            return intent.base, intent.base_content_id
        unborn = own.stage in UNBORN or self._never_served(own)
        own.at(Stage.RELEASED).save(state_dir)
        return (own.base, own.base_content_id) if unborn else (own.final, own.final_id)

    def _never_served(self, own: OwnEpoch) -> bool:
        """Tells whether nobody was served from the tree that was made for this epoch: its base has
        all of it."""
        return not own.in_place and was_never_open(self.machine.config.run_dir)

    # The volume and the server

    def _own(self) -> OwnEpoch:
        own = OwnEpoch.load(self.machine.config.state_dir)
        if own is None:
            raise StandfastError("this node has no role to give up")
        return own

    def _own_of_this_epoch(self) -> OwnEpoch | None:
        own = OwnEpoch.load(self.machine.config.state_dir)
        return own if own is not None and own.epoch == self.epoch() else None

    def prepare_volume(self) -> None:
        epoch = self.epoch()
        volume.prepare(self.machine, epoch, self._recorded_base(epoch))

    def _recorded_base(self, epoch: int) -> str | None:
        key = self.machine.config.key(f"history/{epoch}")
        entry = self.machine.consul.read([key])[key]
        with contextlib.suppress(ForeignValue):
            return None if entry is None else HistoryEntry.parse(entry.value, key).base
        return None

    def export(self) -> None:
        machine = self.machine
        exports.export(machine.config, machine.fence, machine.nfs, self.epoch(), self._own().fsid)

    def _server_deadline(self) -> Deadline:
        return self.deadline.within(self.machine.config.nfs.start_timeout)

    def check_serving(self) -> None:
        limit = self.deadline.within(SERVING_TIMEOUT_S)
        while True:
            sick = registration.ailment(self.machine)
            if sick is None:
                return
            if limit.expired:
                raise StandfastError(f"the server does not serve: {sick}")
            sleep(POLL_S)

    def forget(self) -> None:
        volume.forget(self.machine)
        exports.put_away(self.machine.config)
        note_end(self.machine.config)  # the lease process was told to stop, and couldn't know

    def stop_nfs(self) -> None:
        machine = self.machine
        if self.decision is not None and self.decision.action is Action.FINISH_DEMOTION:
            exports.put_away(machine.config)  # it was given up with its final snapshot
        exports.withdraw(machine.config, machine.fence, machine.nfs, self._server_deadline())

    def prepare_jobs(self) -> None:
        """It saves the jobs some seconds; without, they wait for the new primary's meta."""
        to = self.to
        assert to is not None
        half = self.deadline.within(self.deadline.remaining_s() / 2)
        self._for_jobs(lambda jobs: log.info("nomad: %s", jobs.prepare(to, self.epoch(), half)))

    def release_jobs(self) -> None:
        """Stops the jobs in order, while their files are still there."""
        self._for_jobs(lambda jobs: jobs.release(self.deadline.within(jobs.release_limit_s())))

    def _for_jobs(self, act: Callable[[Jobs], None]) -> None:
        """Does it without getting in the storage's way: what is left is seen to by whoever is
        primary then."""
        if self.machine.jobs is None:
            return
        try:
            act(self.machine.jobs)
        except StandfastError as error:
            log.warning("the jobs of the primary are left to the next one: %s", error)
        except Exception:
            log.exception("the jobs of the primary are left to the next one")

    def deregister(self) -> None:
        # From here on clients wait: a copy that hangs must not take all the time of a long one, and
        # a long one that is over takes nothing of this.
        self.deadline = Deadline.after(OUTAGE_LIMIT_S)
        registration.deregister(self.machine)

    # Copies

    def pre_copy(self) -> None:
        assert self.to is not None
        machine = self.machine
        over, limit = self._lease_is_over, self.deadline
        copies.copy_ahead(machine, self.to, self.epoch(), limit, over, self.say)
        # However long it took: the jobs have their time to end.
        self.deadline = Deadline.after(machine.config.replication.timeout)

    def _lease_is_over(self) -> str | None:
        """Says why a copy is to end: a long one keeps nobody from putting away an epoch that
        somebody else may have ended."""
        try:
            lease = LeaseStatus.load(self.machine.config.run_dir)
        except StandfastError:  # damaged: it is written again with the next heartbeat
            return None
        if lease is not None and monotonic() < lease.valid_until + self.machine.config.lease.wait:
            return None
        return "the lease is over for longer than a successor waits"

    def final_snapshot(self) -> None:
        volume.take_final_snapshot(self.machine, self._own())

    def salvage_snapshot(self) -> None:
        """Takes the final snapshot of an epoch that may not have got as far as having data."""
        own = self._own_of_this_epoch()
        if own is None or own.stage in UNBORN or self._never_served(own):
            return
        # One of an earlier attempt lacks what was written since: none is handed over, or a new one.
        volume.without_final(self.machine, own)
        if not volume.is_there(self.machine):
            return
        try:
            self.final_snapshot()
        except Exception as error:
            if not self.machine.store.is_read_only():
                raise
            # What is in it stays here, and the successor is told that it lacks that.
            log.error("there is no final snapshot: %s", ours(error))

    def final_copy(self) -> None:
        assert self.to is not None
        final = volume.find_final(self.machine, self._own())
        self.machine.sender.replicate(self.to, final, self.epoch(), self.deadline)

    def await_successor(self) -> None:
        limit = self.deadline.within(self.machine.config.lease.wait + SERVING_TIMEOUT_S + 15.0)
        assert self.to is not None
        registration.await_successor(self.machine, self.to, self.gave_up, limit)
