"""The lease's process on a Consul and a fence that note what they are asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from standfast.config.model import Config
from standfast.consul.records import Handover, Holder, Leader, LeaderState
from standfast.errors import ConsulTimedOut
from standfast.lease import protocol
from standfast.lease.holding import Kept, LeaseKeys, Prospects
from standfast.lease.keeper import Keeper
from standfast.lease.process import build
from standfast.lease.protocol import Claim, HeldLease, Memory, Versioned
from standfast.system.clock import Deadline, monotonic
from tests.fakes.machine import FakeFence, FakeNfs

ME = Holder("n1", "boot-1")


LENGTH_S = 8.0


@dataclass
class Keys:
    """Consul, to which every heartbeat commits at once unless it is `away`."""

    away: bool = False
    sent: list[LeaderState] = field(default_factory=list)
    released: list[HeldLease] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    registered: bool = True
    told_s: float = 0.0
    """How long it has not served, by the last heartbeat."""
    found: Prospects = field(default_factory=lambda: Prospects(None, None, {}))
    free: bool = False
    """Nobody holds the lease: it is to be acquired."""
    acquired: list[Claim] = field(default_factory=list)

    def heartbeat(self, held_lease: HeldLease, state: LeaderState, word: Handover) -> Kept:
        self.sent.append(state)
        self.told_s = word.unserved
        attempt = protocol.next_attempt(held_lease, state, ())
        held_lease = protocol.sent(held_lease, attempt, monotonic())
        if self.away:
            return Kept(held_lease, "Consul hangs")
        return Kept(protocol.committed(held_lease, attempt.leader.seq, 12, LENGTH_S))

    def prospects(self, _epoch: int, _deadline: Deadline) -> Prospects:
        return self.found

    def release(self, held_lease: HeldLease, handover: Handover) -> Kept | None:
        self.released.append(held_lease)
        self.handovers.append(handover)
        return Kept(held_lease, "the reply is lost") if self.away else None

    def deregister(self) -> None:
        if self.away:
            raise ConsulTimedOut("no answer")
        self.registered = False

    def take_up(self, memory: Memory) -> HeldLease | None:
        if self.free:
            return None
        leader = Leader(4, ME, 1, LeaderState.SERVING, ())
        return protocol.taken_up(Versioned(4, 10, leader, 11), ME, memory, monotonic(), 12.0)

    def acquire(self, claim: Claim) -> HeldLease:
        self.acquired.append(claim)
        leader = Leader(claim.epoch + 1, ME, 1, LeaderState.STARTING, ())
        held = Versioned(leader.epoch, 10, leader, 11)
        held_lease = protocol.acquired(held, leader, monotonic(), LENGTH_S)
        assert held_lease is not None
        return held_lease


@dataclass
class Fence(FakeFence):
    """Notes by when the port must be open, if at all, seconds from then."""

    had_s: list[float] = field(default_factory=list)

    def arm(self, until: float, latest: float) -> bool:
        self.had_s.append(latest - monotonic())
        return FakeFence.arm(self, until, latest)


def started(config: Config, keys: Keys, fence: Fence) -> Keeper:
    """A process that has just begun; its first heartbeat is still to come."""
    return build(config, cast(LeaseKeys, keys), fence, FakeNfs(fence.world, running=True))
