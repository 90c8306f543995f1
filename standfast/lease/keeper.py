"""`standfast-lease@V.service`: holds the lease and feeds the fence. As little code as possible.

Invariants:
- The port is open only while the lease is valid, and the kernel ends it, not this process.
- The fence's rules are looked at each heartbeat interval, whether heartbeats commit or not and
  whether the lease lasts or not: what was flushed is put back.
- A crash or restart of this process, taken up again within the lease, touches nothing.
- It ends by itself only when the lease is given up or lost for good.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace

from msgspec import structs

from standfast.config.model import Config
from standfast.consul.records import Handover, LeaderState
from standfast.errors import StandfastError, ours
from standfast.events.events import Kind, happened, tell
from standfast.lease import cutoff, exports, protocol
from standfast.lease.epochs import EpochFile
from standfast.lease.files import (
    LeaseStatus,
    forget_status,
    note_flush,
)
from standfast.lease.holding import Kept, LeaseKeys
from standfast.lease.protocol import Halted, HeldLease, Lost
from standfast.lease.surrender import Spell
from standfast.lease.unserved import Now, Service
from standfast.node.ports import Fence, NfsServer
from standfast.system.clock import Deadline, monotonic

log = logging.getLogger(__name__)

# Of F, kept back for the kernel's own delay in ending a timeout, seconds (seen: 0.02-0.2).
FENCE_MARGIN_S = 0.3
# Sequence numbers that one heartbeat may use at most, its repair of a deleted key included.
SKIPPED = 2


@dataclass(slots=True)
class Keeper:
    """The holder's state between two heartbeats."""

    config: Config
    keys: LeaseKeys
    fence: Fence
    nfs: NfsServer
    held_lease: HeldLease
    since: float
    state: LeaderState = LeaderState.STARTING
    serving: bool = False
    holding_back: bool = False
    """A `clean` is on its way: no heartbeat until somebody decides to go on."""
    armed_until: float = protocol.NEVER
    flushes: int = 0
    trouble: str | None = None
    cut_off: bool = False
    """The lease ran out while it served, and the port is known to be shut: that was told."""
    in_doubt: bool = False
    """The port has to be shut for good, and isn't known to be."""
    sure_at: float = protocol.NEVER
    """When the rules were last seen in place, and the port shut where that has to be."""
    longest_s: float = 0.0
    """Of all permits that may still run: `length`, or an earlier keeper's."""
    over: bool = False
    successor: int = 0
    """The epoch of whoever took over, where that is known."""
    unended: StandfastError | None = None
    """Why the server may still be there after the end of the lease."""
    surrendering: Handover | None = None
    """The role is being given up for want of a server: there is no way back."""
    service: Service = field(init=False)
    heard: bool = False
    """A heartbeat has committed in this turn."""

    def __post_init__(self) -> None:
        self.service = Service(self.config, self.keys, self.nfs, Spell(monotonic()))

    def see_to_serving(self) -> None:
        """Gives the role up when this node can't carry it out and another one can."""
        now = monotonic()
        if self.over:
            return
        if self.surrendering is None:
            at = Now(
                now,
                self.held_lease.epoch,
                self.since,
                self.held_lease.remaining_s(now) > 0,
                self.serving and self.armed_until > now,
                self.state is LeaderState.DRAINING,
                self.heard,
            )
            handover = self.service.look(at)
            if handover is not None:
                self.surrender(handover)
        else:
            self.surrender(self.surrendering)

    def surrender(self, handover: Handover) -> None:
        """Shuts the port and gives the lease up as it is; repeated until it is certain.

        The server may run and the disk may hang: what counts for others is the port. Where neither
        can be ended, the lease isn't kept from running out, and the kernel's permit with it.
        """
        self.surrendering = handover
        self.holding_back = True
        self.release(handover)
        to = handover.to or "nobody"
        self._tell(Kind.SURRENDERED, f"the role is surrendered to {to}: {handover.note}")

    def end_surrender(self) -> None:
        """Stops the server as well: nobody looks at the fence from here any more, and the agent may
        be dead. StandfastError: that is for the service manager then (`OnFailure=`)."""
        if self.surrendering is None or not self.over:
            return
        exports.withdraw(self.config, self.fence, self.nfs, Deadline.after(cutoff.GIVE_UP_S))

    def sign_off(self) -> None:
        """Ends the entry in Consul's catalogue along with the role. The agent may be unable to
        remove it, and where the server goes on for another volume, the successor's guard would take
        it for a server of this one."""
        if not self.over:
            return
        try:
            self.keys.deregister()
        except Exception as error:  # noqa: BLE001  # the agent does the same, when it can
            log.warning("the entry in Consul is still there: %s", ours(error))

    def beat(self) -> None:
        """Sends one heartbeat and does what follows from it."""
        try:
            word = self.service.word(monotonic())
            outcome = self.keys.heartbeat(self.held_lease, self.state, word)
        except Exception as error:  # noqa: BLE001  # a primary is not to end by what it can repeat
            # Whether it was sent is not known. Used again, its number would be credited with the
            # time of the later one.
            self.held_lease = structs.replace(self.held_lease, seq=self.held_lease.seq + SKIPPED)
            self._note(str(ours(error)))
            return
        if isinstance(outcome, Lost):
            self._end(outcome)
        elif isinstance(outcome, Halted):
            self._note(outcome.why)
        else:
            self.held_lease = outcome.held_lease
            self.heard = outcome.trouble is None
            self._note(outcome.trouble)
            if self.serving:
                self._arm()

    def check_end(self) -> None:
        """Makes sure, past the lease's end, that the port is shut, at once and then each heartbeat
        interval; at any other time, that the rules are there."""
        now = monotonic()
        lapsed = now >= self.held_lease.valid_until + FENCE_MARGIN_S
        lapsed = lapsed and (self.serving or self.in_doubt)
        if not lapsed:
            self.cut_off = False
        if now - self.sure_at < self.config.lease.heartbeat and self.cut_off == lapsed:
            return
        if lapsed:
            self._confirm_shut(now)
        else:
            self._confirm_rules(now)

    def _confirm_shut(self, now: float) -> None:
        # From the end of the lease; later on, from when it was last known.
        known = max(self.held_lease.valid_until, self.armed_until)
        if self.cut_off:
            known = max(known, self.sure_at + self.config.lease.heartbeat)
        by = (known if known > 0 else now) + self.config.lease.fence
        try:
            found = cutoff.confirm_shut(self.fence, self.nfs, by)
        except StandfastError as doubt:
            self._note(str(doubt))
            if monotonic() >= by and self.config.fence.reboot == "sysrq":
                cutoff.reboot_now()
            return
        self.sure_at = now
        if found is not cutoff.Found.SHUT:
            log.warning("the lease has run out: %s", found.value)
        if found is cutoff.Found.FLUSHED:
            self.flushes += 1
            note_flush(self.config.run_dir)
        if not self.serving:
            self._known_shut()
        elif not self.cut_off:
            self.cut_off = True
            text = "the lease ran out: the port is shut until a heartbeat commits again"
            self._tell(Kind.FENCE_CLOSED, text)

    def _confirm_rules(self, now: float) -> None:
        """Looks at the rules for as long as no heartbeat looks at them: each one that arms the port
        does.

        What is left of the permit is given again: it ends with the lease as the last one did. Where
        there is none, the port may be open for another volume, and the rules alone count.
        """
        try:
            in_place = self.fence.state().in_place
            if in_place and not self.in_doubt:
                self.sure_at = now
                return
            if self.serving:
                self.armed_until = protocol.NEVER
                self._arm()
            if not self.serving or self.armed_until == protocol.NEVER:
                self.fence.ensure_closed(Deadline.after(cutoff.SHUT_S))
                self._known_shut()
                self.sure_at = now
                if not in_place:
                    self._count_flush(now)
        except Exception as error:  # noqa: BLE001  # looked at again, whatever it was
            self.in_doubt = not self.serving
            self._note(f"the fence's rules can't be confirmed: {ours(error)}")

    def serve(self) -> None:
        """Opens the port; StandfastError when the lease has no time left."""
        self._refuse_after_surrender()
        if self.held_lease.remaining_s(monotonic()) <= 0:
            self.holding_back = False
            self.beat()
        if self.held_lease.remaining_s(monotonic()) <= 0 or self.over:
            raise StandfastError(f"the lease has no time left: {self.trouble or 'it is lost'}")
        self.holding_back = False
        self.service.spell = replace(self.service.spell, opened=True)
        self.save()  # before anybody can write: a killed process is followed by one that knows
        self.serving, self.in_doubt = True, False
        self.state = LeaderState.SERVING
        self._arm()
        if self.armed_until < monotonic():
            raise StandfastError(f"the port can't be opened: {self.trouble}")

    def hold(self) -> None:
        """Goes on with the lease after a `clean` of unknown outcome; one heartbeat at once."""
        self._refuse_after_surrender()
        self.holding_back = False
        self.beat()

    def _refuse_after_surrender(self) -> None:
        if self.surrendering is not None:
            raise StandfastError(f"the role is being surrendered: {self.surrendering.note}")

    def drain(self) -> None:
        """Shuts the port and keeps the lease: nobody else starts while this node puts things
        away."""
        self._open_no_more()
        self.fence.ensure_closed()
        self._known_shut()

    def _open_no_more(self) -> None:
        """Keeps heartbeats from opening the port; until it is known to be shut, it is seen to."""
        self.serving, self.in_doubt = False, True
        self.state = LeaderState.DRAINING

    def _known_shut(self) -> None:
        self.in_doubt = False
        self.armed_until = protocol.NEVER

    def release(self, handover: Handover) -> None:
        """Gives the lease up: nobody is served, then void, then `clean`. StandfastError when it is
        not certain."""
        self._open_no_more()
        cutoff.shut_to_give_up(self.fence, self.nfs)
        self._known_shut()
        self.held_lease = protocol.voided(self.held_lease, monotonic())
        self.holding_back = True
        self._note_void()
        word = structs.replace(handover, idle=self.service.idle)
        outcome = self.keys.release(self.held_lease, word)
        if outcome is None:
            self.over = True
            return
        if isinstance(outcome, Kept):
            self.held_lease = structs.replace(outcome.held_lease, valid_until=protocol.NEVER)
            raise StandfastError(
                f"whether the lease is given up is not known ({outcome.trouble}); "
                f"ask for it again, or go on with `serve`"
            )
        self._end(outcome)
        raise StandfastError(outcome.why)

    def say_last(self) -> None:
        """Saves the last word, so that what was said before permits no more than this."""
        try:
            self.save()
        except Exception as error:  # noqa: BLE001  # what follows is what counts
            log.error("the last word on the lease can't be written: %s", ours(error))

    def _note_void(self) -> None:
        """Writes that the lease is void, before anybody is told: the next process of this boot must
        not go on with the time that this one had. Where that can't be written (a full /run), it
        finds nothing at all."""
        try:
            self.save()
        except Exception as error:  # noqa: BLE001  # what is stale is as good as gone
            log.error("the end of the lease can't be written down: %s", ours(error))
            forget_status(self.config.run_dir)

    def save(self) -> None:
        status = LeaseStatus(
            epoch=self.held_lease.epoch,
            instance=self.held_lease.holder.instance,
            pid=os.getpid(),
            state=self.state,
            serving=self.serving,
            valid_until=self.held_lease.valid_until,
            armed_until=self.armed_until,
            seq=self.held_lease.seq,
            since=self.since,
            flushes=self.flushes,
            trouble=self.trouble,
            leader_index=self.held_lease.leader_index,
            epoch_index=self.held_lease.epoch_index,
            committed_seq=self.held_lease.committed_seq,
            voided_at=self.held_lease.voided_at,
            longest_s=max(self.longest_s, self.config.lease.length),
            unserved_s=self.service.spell.unserved_s(monotonic()),
            served=self.service.spell.served,
            opened=self.service.spell.opened,
            not_surrendered=self.service.said,
        )
        status.save(self.config.run_dir)

    def _arm(self) -> None:
        until = self.held_lease.valid_until
        now = monotonic()
        if until <= now or until == self.armed_until:
            return
        try:
            put_back = self.fence.arm(until, now + self.config.lease.fence - FENCE_MARGIN_S)
        except Exception as error:  # noqa: BLE001  # tried again by the next heartbeat
            self._note(f"the port can't be opened: {ours(error)}")
            return
        self.armed_until = until
        self.sure_at = now
        if self.cut_off:
            self.cut_off = False
            self._tell(Kind.FENCE_REOPENED, "a heartbeat committed: the port is open again")
        if put_back:
            self._count_flush(now)

    def _count_flush(self, now: float) -> None:
        self.sure_at = now
        self.flushes += 1
        note_flush(self.config.run_dir)
        log.error("the fence's rules were gone (flushed by somebody): put back")

    def _tell(self, kind: Kind, sentence: str) -> None:
        tell(happened(self.config, kind, sentence, epoch=self.held_lease.epoch))

    def _note(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self.trouble:
            log.warning("heartbeat: %s", trouble)
        if trouble is None and self.trouble is not None:
            log.info("heartbeats commit again")
        self.trouble = trouble

    def remember_successor(self) -> None:
        """Notes the successor's epoch, so that in a restored Consul this epoch is not gone on with
        then. The agent does the same, where it lives."""
        try:
            EpochFile(self.config.state_dir / "epoch").raise_to(self.successor)
        except Exception as error:  # noqa: BLE001  # the disk may be why the lease was lost
            log.warning("epoch %d can't be noted: %s", self.successor, ours(error))

    def _end(self, outcome: Lost | Halted) -> None:
        why = outcome.why
        self._tell(Kind.LEASE_LOST, f"the lease is lost: {why}. Stopping the NFS server")
        self.trouble = why
        self.successor = outcome.epoch if isinstance(outcome, Lost) else 0
        self.serving = False
        self.over = True
        self.held_lease = protocol.voided(self.held_lease, monotonic())
        self.armed_until = protocol.NEVER
        try:
            self._note_void()
        except OSError as error:  # what follows is what counts
            log.error("the last word on the lease can't be taken back: %s", error)
        try:
            limit = Deadline.after(self.config.nfs.start_timeout)
            cutoff.stop_for_good(self.fence, self.nfs, limit)
        except StandfastError as error:
            if self.config.fence.reboot == "sysrq":
                cutoff.reboot_now()
            self.unended = error
            raise
