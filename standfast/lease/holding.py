"""The lease against a real Consul: acquire, take up, heartbeat, release.

The decisions are in `protocol`; this module sends transactions and reads back. A write whose reply
was lost is never assumed to have failed or to have worked.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from standfast.config.model import Config
from standfast.consul.gateway import (
    Cas,
    CheckIndex,
    CheckNotExists,
    Committed,
    Conflict,
    Entry,
    Set,
)
from standfast.consul.ports import Keys
from standfast.consul.records import (
    CandidateRecord,
    Handover,
    HistoryEntry,
    Holder,
    Leader,
    LeaderState,
    Pause,
    dump_epoch,
    parse_epoch,
)
from standfast.consul.values import Op
from standfast.consul.volume_keys import CANDIDATES, HOLDS, highest_epoch, read_volume
from standfast.errors import ConsulError, ForeignValue, Refused
from standfast.lease import protocol
from standfast.lease.protocol import (
    NO_MEMORY,
    Claim,
    Halted,
    HeldLease,
    Lost,
    Memory,
    Repair,
    StillMine,
    Versioned,
)
from standfast.lease.surrender import had_it
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic, utc_now

# A keeper that takes up the lease of a killed one must not use a sequence number that the killed
# one may still have in flight: reading it back would be taken for its own commit.
SEQ_JUMP = (1_000, 1_000_000)
# Where an epoch's numbers begin. Each attempt at an acquisition has its own: an earlier one of this
# node's that commits late must not be taken for the one that was sent last.
FIRST_SEQ = (1, 1_000_000_000)


class Consul(Keys, Protocol):
    """What the lease needs of the gateway."""

    def deregister(self, service_id: str, *, deadline: Deadline | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """The lease is held; look at `held_lease.remaining_s`."""

    held_lease: HeldLease
    trouble: str | None = None
    """Why the last heartbeat brought no time, when it didn't."""


@dataclass(frozen=True, slots=True)
class Prospects:
    """Who could succeed, and what forbids it."""

    pause: Pause | None
    history_entry: HistoryEntry | None
    candidates: Mapping[str, tuple[CandidateRecord, int]]
    """Each node's word on itself, and the index at which it was written."""
    had_it: frozenset[str] = frozenset()
    """See `surrender.had_it`."""


class LeaseKeys:
    """The volume's lease in Consul, as one node in one boot sees it."""

    def __init__(self, config: Config, consul: Consul, me: Holder) -> None:
        self._config = config
        self._consul = consul
        self._me = me
        self._epoch_key = config.key("epoch")
        self._leader_key = config.key("leader")

    def _deadline(self) -> Deadline:
        return Deadline.after(self._config.lease.request_timeout)

    def read(self, epoch: int | None = None) -> Versioned:
        """Reads both keys at one point in time, consistently; ForeignValue, ConsulError.

        With `epoch`: and whether another followed upon that one, whatever the two keys say.
        """
        keys = [self._epoch_key, self._leader_key]
        if epoch is not None:
            keys.append(self._config.key(f"history/{epoch + 1}"))
        entries = self._consul.read(keys, deadline=self._deadline())
        followed = epoch is not None and entries[keys[-1]] is not None
        held = self._versioned(entries)
        return replace(held, highest=epoch + 1) if epoch is not None and followed else held

    def _versioned(self, entries: Mapping[str, Entry | None]) -> Versioned:
        epoch, leader = entries.get(self._epoch_key), entries.get(self._leader_key)
        return Versioned(
            epoch=None if epoch is None else parse_epoch(epoch.value, self._epoch_key),
            epoch_index=0 if epoch is None else epoch.modify_index,
            leader=None if leader is None else Leader.parse(leader.value, self._leader_key),
            leader_index=0 if leader is None else leader.modify_index,
        )

    def read_all(self) -> Versioned:
        """Reads as `read` does, and whatever the volume's other keys say of epochs, of a
        pause and of a hold on this node."""
        entries = read_volume(self._consul, self._config, HOLDS, deadline=self._deadline())
        held = self._versioned({entry.key: entry for entry in entries.values()})
        values = {name: entry.value for name, entry in entries.items()}
        return replace(
            held,
            highest=highest_epoch(values),
            paused="pause" in values,
            on_hold=f"{HOLDS}{self._me.node}" in values,
        )

    def prospects(self, epoch: int, deadline: Deadline) -> Prospects:
        """Reads what a surrender of `epoch` depends on; ForeignValue, ConsulError."""
        pause_key = self._config.key("pause")
        oldest = max(0, epoch - len(self._config.nodes))
        epoch_keys = {
            past: self._config.key(f"history/{past}") for past in range(epoch, oldest, -1)
        }
        folder, on_hold = self._config.key(CANDIDATES), self._config.key(HOLDS)
        keys = [pause_key, *epoch_keys.values()]
        entries = self._consul.read(keys, folders=[folder, on_hold], deadline=deadline)
        pause = entries[pause_key]
        history_entries = {
            past: HistoryEntry.parse(entry.value, key)
            for past, key in epoch_keys.items()
            if (entry := entries[key]) is not None
        }
        words = {}
        for key, entry in entries.items():
            if entry is None or not key.startswith(folder):
                continue
            with contextlib.suppress(ForeignValue):  # whoever wrote it is no candidate
                word = CandidateRecord.parse(entry.value, entry.key)
                # It may not have read yet that it is on hold.
                if f"{on_hold}{word.node}" not in entries:
                    words[word.node] = (word, entry.modify_index)
        return Prospects(
            None if pause is None else Pause.parse(pause.value, pause_key),
            history_entries.get(epoch),
            words,
            had_it(history_entries, epoch),
        )

    def acquire(self, claim: Claim) -> HeldLease:
        """Makes good a claim: one transaction. Refused when it may not be or somebody was faster.

        It has no time yet where an earlier attempt of this node's turns out to have committed.
        """
        # Before anything is read: whatever commits in Consul from what is read here commits later.
        t_s = monotonic()
        held = self.read_all()
        if claim.unless_paused and held.paused:
            raise Refused(Reason.PAUSED, "somebody paused automatic takeovers: `standfast resume`")
        if self._is_barred_by_hold(claim, held) and held.on_hold:
            node = self._me.node
            raise Refused(Reason.ON_HOLD, f"{node} is on hold: `standfast standby release {node}`")
        objection = protocol.objection(claim, held, monotonic(), self._config.lease.wait)
        if objection is not None:
            raise Refused(Reason.LEASE_NOT_HELD, f"the lease can't be taken: {objection}")
        epoch = claim.epoch + 1
        leader = self._starting(epoch, random.randrange(*FIRST_SEQ), self._config.lease.wait)
        try:
            operations = self._acquisition(claim, held, leader)
            result = self._consul.txn(operations, deadline=self._deadline())
        except ConsulError as error:
            if not error.maybe_applied:
                raise
            result = Conflict((str(error),))
        # Read back in every case: it gives the indexes, and tells a lost reply from a lost race.
        held_lease = protocol.acquired(self.read(), leader, t_s, self._config.lease.length)
        if held_lease is None:
            why = "; ".join(result.errors) if isinstance(result, Conflict) else "taken over since"
            raise Refused(
                Reason.LEASE_NOT_HELD,
                f"the lease for epoch {epoch} went to another or changed meanwhile: {why}",
            )
        return held_lease

    def _acquisition(self, claim: Claim, held: Versioned, leader: Leader) -> list[Op]:
        """All of it or nothing: the new epoch, its first heartbeat, and a history without it."""
        history_entry = HistoryEntry(
            leader.epoch,
            self._me.node,
            claim.base,
            claim.reason,
            claim.operator,
            claim.lost_s,
            utc_now(),
            claim.follows,
        )
        forbidding = ["pause"] if claim.unless_paused else []
        if self._is_barred_by_hold(claim, held):
            forbidding.append(f"{HOLDS}{self._me.node}")
        return [
            *(CheckNotExists(self._config.key(name)) for name in forbidding),
            Cas(self._epoch_key, held.epoch_index, dump_epoch(leader.epoch)),
            Cas(self._leader_key, held.leader_index, leader.dump()),
            Cas(self._config.key(f"history/{leader.epoch}"), 0, history_entry.dump()),
        ]

    def _is_barred_by_hold(self, claim: Claim, held: Versioned) -> bool:
        """Tells whether this would be a takeover that nobody asked for, from another node."""
        followed = held.leader is not None and held.leader.holder.node != self._me.node
        return claim.unless_paused and followed

    def _starting(self, epoch: int, seq: int, wait_s: float) -> Leader:
        """Returns a heartbeat that stands alone: of an epoch's begin, or in a deleted one's
        place."""
        state, standbys = LeaderState.STARTING, self._config.standbys
        return Leader(epoch, self._me, seq, state, standbys, wait=wait_s)

    def take_up(self, memory: Memory = NO_MEMORY) -> HeldLease | None:
        """Takes up the lease of a keeper of this boot that ended without giving it up; None: there
        is none.

        It gets no time until its first heartbeat commits, which proves that nobody took over.
        """
        held, now = self.read(), monotonic()
        held_lease = protocol.taken_up(held, self._me, memory, now, self._config.lease.wait)
        if held_lease is None:
            return None
        if held_lease.remaining_s(now) <= 0:
            highest = self.read(held_lease.epoch).highest
            if highest > held_lease.epoch:
                raise Refused(
                    Reason.EPOCH_WENT_BACK,
                    f"Consul holds epoch {held_lease.epoch}, and other keys of the volume tell of "
                    f"epoch {highest}: check who has the newest data, then run `standfast "
                    f"accept-epoch` on each storage node",
                )
        return replace(held_lease, seq=held_lease.seq + random.randrange(*SEQ_JUMP))

    def heartbeat(
        self,
        held_lease: HeldLease,
        state: LeaderState,
        handover: Handover = protocol.NO_HANDOVER,
    ) -> Kept | Lost | Halted:
        """Sends one heartbeat, with its read-back when it didn't plainly commit."""
        deadline = self._deadline()
        t_s = monotonic()
        wait_s = held_lease.wait_s(self._config.lease.wait, t_s)
        attempt = protocol.next_attempt(held_lease, state, self._config.standbys, handover, wait_s)
        held_lease = protocol.sent(held_lease, attempt, t_s)
        try:
            result = self._consul.txn(
                [
                    CheckIndex(self._epoch_key, attempt.epoch_index),
                    Cas(self._leader_key, attempt.leader_index, attempt.leader.dump()),
                ],
                deadline=deadline,
            )
        except ConsulError as error:
            return Kept(held_lease, str(error))
        if isinstance(result, Committed):
            index = result.indexes[self._leader_key]
            length_s = self._config.lease.length
            return Kept(protocol.committed(held_lease, attempt.leader.seq, index, length_s))
        return self._after_conflict(held_lease, result)

    def _after_conflict(self, held_lease: HeldLease, conflict: Conflict) -> Kept | Lost | Halted:
        now, timing = monotonic(), self._config.lease
        try:
            held = self.read(held_lease.epoch)
        except (ConsulError, ForeignValue) as error:
            return Kept(held_lease, str(error))
        wait_s = held_lease.wait_s(timing.wait, now)
        verdict = protocol.read_back(held_lease, held, now, timing.length, wait_s)
        if isinstance(verdict, (Lost, Halted)):
            return verdict
        if isinstance(verdict, Repair):
            return self._repair(verdict)
        assert isinstance(verdict, StillMine)
        return Kept(verdict.held_lease, "; ".join(conflict.errors) or "the heartbeat was refused")

    def _repair(self, repair: Repair) -> Kept:
        """Writes a deleted key again; the transaction fails if anybody did anything meanwhile."""
        # A sequence number of its own, not among the attempts: this write brings no time, the
        # next heartbeat upon it does.
        held_lease = replace(repair.held_lease, seq=repair.held_lease.seq + 1)
        wait_s = held_lease.wait_s(self._config.lease.wait, monotonic())
        leader = self._starting(held_lease.epoch, held_lease.seq, wait_s)
        operations: list[Op] = [
            Cas(self._leader_key, held_lease.leader_index, leader.dump()),
        ]
        if repair.missing_epoch:
            operations += [
                CheckNotExists(self._epoch_key),
                Set(self._epoch_key, dump_epoch(held_lease.epoch)),
            ]
        else:
            operations.append(CheckIndex(self._epoch_key, held_lease.epoch_index))
        try:
            result = self._consul.txn(operations, deadline=self._deadline())
        except ConsulError as error:
            return Kept(
                held_lease, f"a key of the lease was deleted; writing it again failed: {error}"
            )
        if isinstance(result, Committed):
            held_lease = replace(
                held_lease,
                leader_index=result.indexes[self._leader_key],
                epoch_index=result.indexes.get(self._epoch_key, held_lease.epoch_index),
            )
        return Kept(held_lease, "a key of the lease was deleted by hand; written again")

    def deregister(self) -> None:
        """Removes this node's entry from Consul's catalogue; ConsulError. None there is fine."""
        self._consul.deregister(self._config.service_id, deadline=self._deadline())

    def release(
        self, held_lease: HeldLease, handover: Handover = protocol.NO_HANDOVER
    ) -> Kept | Lost | Halted | None:
        """Sends `clean`; None when it is known to have committed.

        The lease has to be voided, and the fence closed, before. A Kept means unknown: to go on
        serving, a heartbeat sent after this one has to commit first.
        """
        if held_lease.valid_until != protocol.NEVER:
            raise AssertionError("the lease has to be void before clean is sent")
        outcome = self.heartbeat(held_lease, LeaderState.CLEAN, handover)
        if isinstance(outcome, Kept):
            if outcome.trouble is None:
                return None
            try:
                held = self.read()
            except (ConsulError, ForeignValue):
                return outcome
            if held.leader is not None and held.leader.holder == self._me and held.leader.is_clean:
                return None
            if held.epoch is not None and held.epoch > held_lease.epoch:
                return None  # it committed, and the successor was quick
        return outcome
