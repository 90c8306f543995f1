"""Every step of a plan on a modelled node: act.effects and act.volume with sleeps in between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from standfast.clock import monotonic, utc_now
from standfast.decision import Decision
from standfast.errors import Refused, StandfastError, StepFailed, TimedOut
from standfast.lease.files import LeaseStatus, save_claim
from standfast.lease.holding import LeaseKeys
from standfast.lease.protocol import Claim
from standfast.names import diverged_name, retired_name
from standfast.observe import Sighting
from standfast.reasons import Reason
from standfast.records import LeaderState, Reign
from standfast.reign import Intent, OwnReign, Stage
from tests.sim.clockwork import Routine
from tests.sim.machine import Tree

if TYPE_CHECKING:
    from tests.sim.node import Node


@dataclass(slots=True)
class Task:
    """What the steps of one plan work on."""

    decision: Decision | None = None
    sighting: Sighting | None = None
    to: str | None = None


@dataclass(slots=True)
class Steps:
    """`do_<step>` for each of plan.Do."""

    node: Node

    def _own(self) -> OwnReign:
        own = OwnReign.load(self.node.config.state_dir)
        if own is None:
            raise StandfastError("this node has no reign to end")
        return own

    def _lease(self) -> LeaseStatus:
        status = LeaseStatus.load(self.node.config.run_dir)
        if status is None or status.instance != self.node.holder.instance:
            raise Refused(Reason.LEASE_NOT_HELD, "this node's lease process holds nothing")
        return status

    def do_claim_lease(self, task: Task) -> Routine:
        decision, sighting = task.decision, task.sighting
        assert decision is not None and sighting is not None
        base = decision.base
        if base is None:
            own = OwnReign.load(self.node.config.state_dir)
            base = self.node.disk.snapshot("services", utc_now(), 0 if own is None else own.epoch)
        epoch = decision.epoch
        name, content_id = str(base.snapshot.name), base.snapshot.content_id
        Intent(epoch + 1, name, content_id, decision.in_place).save(self.node.config.state_dir)
        reason = str(decision.reason)
        claim = Claim(
            epoch, sighting.identity, sighting.first_seen, name, reason, None, decision.lost_s
        )
        save_claim(self.node.config.run_dir, claim)
        yield from self.do_start_lease(task)
        if self._lease().epoch != epoch + 1:
            raise Refused(Reason.LEASE_NOT_HELD, f"epoch {epoch + 1} went to another node")

    def do_start_lease(self, task: Task) -> Routine:
        self.node.start_keeper()
        for _ in range(100):
            status = LeaseStatus.load(self.node.config.run_dir)
            if status is not None and status.remaining_s(monotonic()) > 0:
                return
            if status is not None and status.state is LeaderState.DRAINING:
                try:
                    yield from self.node.ask_lease({"cmd": "hold"})
                except StandfastError:
                    yield 0.1
            if self.node.keeper_actor is None or self.node.keeper_actor.dead:
                raise StandfastError("the lease process ended at its start")
            yield 0.1
        raise TimedOut("the lease process holds no lease after 10 s")

    def do_prepare_volume(self, task: Task) -> Routine:
        epoch = self._lease().epoch
        state = self.node.config.state_dir
        own = OwnReign.load(state)
        if own is None or own.epoch != epoch:
            own = self._begin(epoch, own)
            own.save(state)
        yield 0.02
        if own.stage is Stage.CLEARING:
            if self.node.disk.live is not None:
                self.node.disk.live.writable = False
                self.node.disk.keep_aside(self._aside_name(own.displaced_epoch))
            own = own.at(Stage.CREATING)
            own.save(state)
            yield 0.02
        if own.stage is Stage.CREATING:
            if self.node.disk.live is None:
                self.node.disk.live = Tree(list(self._content(own)))
            own = own.at(Stage.READY)
            own.save(state)
        live = self.node.disk.live
        if live is None:
            raise StandfastError("the live subvolume is gone")
        live.writable = True
        own.at(Stage.READY).save(state)
        self.node.world.reign_prepared(self.node, epoch, live, in_place=own.in_place)

    def _begin(self, epoch: int, before: OwnReign | None) -> OwnReign:
        intent = Intent.load(self.node.config.state_dir, epoch)
        if intent is None:
            key = self.node.config.key(f"history/{epoch}")
            entry = self.node.client.read([key])[key]
            base = None if entry is None else Reign.parse(entry.value).base
            intent = Intent(epoch, base, None, in_place=False)
        displaced = before.epoch if before is not None else 0
        return OwnReign(
            epoch,
            Stage.READY if intent.in_place else Stage.CLEARING,
            f"fsid-{epoch}",
            intent.base,
            intent.in_place,
            displaced,
            intent.base_content_id,
        )

    def _aside_name(self, epoch: int) -> str:
        return diverged_name("services", epoch, utc_now())

    def _content(self, own: OwnReign) -> tuple[int, ...]:
        for available in self.node.disk.snapshots:
            snapshot = available.snapshot
            if (
                own.base_content_id in (None, snapshot.content_id)
                and str(snapshot.name) == own.base
            ):
                return self.node.disk.contents[snapshot.content_id]
        raise StandfastError(f"the snapshot {own.base} is not on this node any more")

    def do_export(self, task: Task) -> Routine:
        yield 0.01

    do_bind = do_unbind = do_unexport = do_no_writers = do_export

    def do_start_nfs(self, task: Task) -> Routine:
        lease = self._lease()
        if lease.remaining_s(monotonic()) <= 0 or not self.node.fence.state().in_place:
            raise Refused(Reason.LEASE_TOO_SHORT, "the guard refused: no time left")
        keys = LeaseKeys(self.node.config, self.node.client, self.node.holder)
        held = keys.read()
        if (
            held.epoch != lease.epoch
            or held.leader is None
            or held.leader.holder != self.node.holder
        ):
            raise Refused(Reason.LEASE_NOT_HELD, "the guard refused: the lease is another's")
        yield 0.3
        self.node.nfs.running = True

    def do_open_port(self, task: Task) -> Routine:
        yield from self.node.ask_lease({"cmd": "serve"})

    def do_check_serving(self, task: Task) -> Routine:
        for _ in range(50):
            if self.node.serves:
                return
            yield 0.1
        raise StandfastError("the server does not serve")

    def do_register(self, task: Task) -> Routine:
        self.node.registered = self._lease().epoch
        yield 0.01

    def do_deregister(self, task: Task) -> Routine:
        self.node.registered = None
        yield 0.01

    def do_close_port(self, task: Task) -> Routine:
        self._own().at(Stage.DRAINING).save(self.node.config.state_dir)
        yield from self.node.ask_lease({"cmd": "drain"})

    def do_shut_fence(self, task: Task) -> Routine:
        self.node.fence.ensure_closed()
        yield 0.01

    def do_stop_lease(self, task: Task) -> Routine:
        self.node.stop_keeper()
        yield 0.05

    def do_stop_nfs(self, task: Task) -> Routine:
        yield self.node.nfs.stop_s
        if self.node.nfs.stuck:
            raise StandfastError("threads of the NFS server are left")
        self.node.nfs.running = False

    def do_read_only(self, task: Task) -> Routine:
        if self.node.disk.live is not None:
            self.node.disk.live.writable = False
        yield 0.01

    def do_pre_copy(self, task: Task) -> Routine:
        assert task.to is not None
        taken = self.node.disk.snapshot("services", utc_now(), self._lease().epoch)
        yield from self.node.copy(taken, task.to, self._lease().epoch)

    def do_final_snapshot(self, task: Task) -> Routine:
        own = self._own()
        final = self.node.disk.snapshot("services", utc_now(), own.epoch)
        replace(own, final=str(final.snapshot.name)).save(self.node.config.state_dir)
        yield 0.05

    def do_final_copy(self, task: Task) -> Routine:
        assert task.to is not None
        own = self._own()
        final = next(one for one in self.node.disk.snapshots if str(one.snapshot.name) == own.final)
        yield from self.node.copy(final, task.to, own.epoch)

    def do_release(self, task: Task) -> Routine:
        self._own().at(Stage.RELEASED).save(self.node.config.state_dir)
        for left in (2, 1, 0):
            try:
                yield from self.node.ask_lease({"cmd": "release", "to": task.to})
                return
            except StandfastError:
                if left == 0:
                    raise
                yield 0.5

    def do_await_successor(self, task: Task) -> Routine:
        for _ in range(60):
            if task.to is not None and self.node.world.nodes[task.to].registered is not None:
                return
            yield 0.5
        raise StepFailed(f"the role was given up in order, and {task.to} doesn't serve yet")

    def do_keep_diverged(self, task: Task) -> Routine:
        if self.node.disk.live is not None:
            self.node.disk.keep_aside(self._aside_name(self._own().epoch))
        yield 0.01

    def do_retire_tree(self, task: Task) -> Routine:
        own = self._own()
        if self.node.disk.live is not None:
            name = retired_name if own.final is not None else diverged_name
            self.node.disk.keep_aside(name("services", own.epoch, utc_now()))
        yield 0.01

    def do_forget(self, task: Task) -> Routine:
        OwnReign.forget(self.node.config.state_dir)
        yield 0.01
