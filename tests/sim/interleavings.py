"""Every interleaving of two nodes and a Consul, in whole seconds, on the real lease protocol.

A is the holder, B the candidate. A's requests wait on the wire and are carried out at any later
moment or never; their replies are heard at any later moment or never; either node may stand still
for any time between any two steps; opening the port is two steps. All times in a state count from
its present, and what lies too far back to matter is forgotten: so the states are finitely many, and
the search visits all of them. B looks and opens as early as it can, which is the worst case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from standfast.consul.records import Holder, Leader, LeaderState
from standfast.lease import protocol
from standfast.lease.protocol import NEVER, Claim, HeldLease, Lost, StillMine, Versioned
from standfast.role.observation import LastHeartbeat, heartbeat_seen
from tests.sim.clockwork import Violation

A, B = Holder("a", "a1"), Holder("b", "b1")
Packed = tuple[int, int, int, float, float, tuple[tuple[int, float], ...]]


@dataclass(frozen=True, slots=True)
class Bounds:
    length_s: int = 2
    fence_s: int = 1
    wait_s: int = 4
    most_requests: int = 4
    crashes: int = 1
    """How often A's keeper is killed and taken up again."""
    jump: int = 100
    keeps_latest: bool = True
    clean_has_cas: bool = True


class LeaseStore(NamedTuple):
    epoch: int
    epoch_index: int
    leader: Leader
    leader_index: int
    counter: int

    @property
    def held(self) -> Versioned:
        return Versioned(self.epoch, self.epoch_index, self.leader, self.leader_index)


class Request(NamedTuple):
    leader: Leader
    epoch_index: int
    leader_index: int
    process: int
    """Which of A's keepers sent it: nobody else hears the reply."""


class State(NamedTuple):
    store: LeaseStore
    wire: frozenset[Request]
    held_lease: Packed | None
    """None: A knows that it lost."""
    waits_for: int
    """Sequence number of the request whose reply A waits for; 0: none."""
    reply: int | None
    """On its way to A: the index of the commit, or -1 for a conflict."""
    wants: bool
    holding_back: bool
    voided_at: float
    """When A last gave the lease up, whatever its held lease says."""
    arming: tuple[int, int] | None
    """A is about to open the port: (for how long, not after)."""
    open_a: int
    """The port of A passes up to and including this second."""
    requests: int
    crashes: int
    seen: LastHeartbeat
    acquiring: tuple[int, int, int] | None
    """B's transaction on the wire: (epoch index, leader index, t_s)."""
    epochs_b: bool
    open_b: int


def pack(held_lease: HeldLease) -> Packed:
    return (
        held_lease.epoch_index,
        held_lease.leader_index,
        held_lease.seq,
        held_lease.valid_until,
        held_lease.voided_at,
        tuple(sorted(held_lease.attempts.items())),
    )


def unpack(packed: Packed) -> HeldLease:
    epoch_index, leader_index, seq, valid_until, voided_at, attempts = packed
    return HeldLease(1, A, epoch_index, leader_index, seq, valid_until, voided_at, dict(attempts))


def first_state(bounds: Bounds) -> State:
    leader = Leader(1, A, 1, LeaderState.SERVING, ())
    held_lease = HeldLease(1, A, 1, 2, 1, valid_until=bounds.length_s)
    return State(
        store=LeaseStore(1, 1, leader, 2, 2),
        wire=frozenset(),
        held_lease=pack(held_lease),
        waits_for=0,
        reply=None,
        wants=True,
        holding_back=False,
        voided_at=NEVER,
        arming=None,
        open_a=bounds.length_s,
        requests=0,
        crashes=0,
        seen=LastHeartbeat(leader.identity, 2, 0),
        acquiring=None,
        epochs_b=False,
        open_b=-1,
    )


def check(state: State) -> None:
    if state.open_a >= 0 and state.open_b >= 0:
        raise Violation("a and b serve at one time")


def a_second_later(state: State, bounds: Bounds) -> State:
    def back(when: float, floor: float) -> float:
        return max(when - 1, floor) if when != NEVER else NEVER

    oldest = -bounds.length_s - 1
    held_lease = None
    if state.held_lease is not None:
        epoch_index, leader_index, seq, valid_until, voided_at, attempts = state.held_lease
        valid_until = back(valid_until, oldest)
        held_lease = (
            epoch_index,
            leader_index,
            seq,
            valid_until if valid_until > 0 else NEVER,
            back(voided_at, oldest),
            tuple((number, back(t_s, oldest)) for number, t_s in attempts),
        )
    seen = state.seen
    acquiring = state.acquiring
    return state._replace(
        held_lease=held_lease,
        arming=None if state.arming is None else (state.arming[0], max(state.arming[1] - 1, -1)),
        voided_at=back(state.voided_at, oldest),
        open_a=max(state.open_a - 1, -1),
        seen=LastHeartbeat(seen.identity, seen.index, back(seen.first_seen, -bounds.wait_s)),
        acquiring=None if acquiring is None else (*acquiring[:2], max(acquiring[2] - 1, oldest)),
        open_b=max(state.open_b - 1, -1),
    )


def next_states(state: State, bounds: Bounds) -> Iterator[tuple[str, State]]:
    if state.epochs_b and state.open_b < 0:
        return  # had A still been able to open, it would have met B
    yield "a second passes", a_second_later(state, bounds)
    yield from _consul(state, bounds)
    if state.held_lease is not None:
        yield from _holder(state, unpack(state.held_lease), bounds)
    if not state.epochs_b:
        yield from _candidate(state, bounds)


def _consul(state: State, bounds: Bounds) -> Iterator[tuple[str, State]]:
    for request in state.wire:
        leader, store = request.leader, state.store
        forced = leader.is_clean and not bounds.clean_has_cas
        holds = request[1:3] == (store.epoch_index, store.leader_index)
        after = state._replace(wire=state.wire - {request})
        reply = -1
        if holds or forced:
            reply = store.counter + 1
            after = after._replace(
                store=store._replace(leader=leader, leader_index=reply, counter=reply),
                seen=heartbeat_seen(state.seen, leader.identity, reply, 0),
            )
        name = f"{leader.state} {leader.seq} arrives"
        yield f"{name}, its reply is lost", after
        if (state.waits_for, state.crashes) == (leader.seq, request.process):
            yield name, after._replace(reply=reply)


def _holder(state: State, held_lease: HeldLease, bounds: Bounds) -> Iterator[tuple[str, State]]:
    if state.arming is not None:
        yield from _opened(state, bounds)
    elif state.waits_for:
        yield "a gives up waiting", state._replace(waits_for=0, reply=None)
        if state.reply is not None:
            yield "a hears", _heard(state, held_lease, state.reply, bounds)
    else:
        yield from _idle(state, held_lease, bounds)
    if state.crashes < bounds.crashes:
        yield from _taken_up(state, held_lease, bounds)


def _idle(state: State, held_lease: HeldLease, bounds: Bounds) -> Iterator[tuple[str, State]]:
    if state.requests < bounds.most_requests:
        if not state.holding_back:
            yield "a heartbeats", _send(state, held_lease, LeaderState.SERVING)
        if state.wants or state.holding_back:
            # The fence first, then void, then clean.
            shut = state._replace(open_a=-1, wants=False, holding_back=True, voided_at=0)
            void = protocol.voided(held_lease, 0)
            yield "a sends clean", _send(shut, void, LeaderState.CLEAN)
    if state.holding_back:
        yield "a goes on", state._replace(holding_back=False, wants=True)
    if state.wants and held_lease.valid_until > 0 and state.open_a < held_lease.valid_until:
        arming = (int(held_lease.valid_until), bounds.fence_s)
        yield "a reads the clock to open", state._replace(arming=arming)


def _send(state: State, held_lease: HeldLease, kind: LeaderState) -> State:
    attempt = protocol.next_attempt(held_lease, kind, ("b",))
    request = Request(attempt.leader, attempt.epoch_index, attempt.leader_index, state.crashes)
    return state._replace(
        held_lease=pack(protocol.sent(held_lease, attempt, 0)),
        wire=state.wire | {request},
        waits_for=attempt.leader.seq,
        requests=state.requests + 1,
    )


def _opened(state: State, bounds: Bounds) -> Iterator[tuple[str, State]]:
    assert state.arming is not None
    left, latest = state.arming
    after = state._replace(arming=None)
    if latest >= 0 or not bounds.keeps_latest:
        yield "a opens", after._replace(open_a=left)
    else:
        yield "a is too late to open", after


def _heard(state: State, held_lease: HeldLease, reply: int, bounds: Bounds) -> State:
    after = state._replace(waits_for=0, reply=None)
    length_s = bounds.length_s
    if reply >= 0:
        if state.holding_back:
            return after._replace(held_lease=None)  # the clean committed: it is over
        known = protocol.committed(held_lease, state.waits_for, reply, length_s)
    else:
        verdict = protocol.read_back(held_lease, state.store.held, 0, length_s)
        if isinstance(verdict, Lost):
            return after._replace(held_lease=None, open_a=-1)
        assert isinstance(verdict, StillMine)
        known = verdict.held_lease
    if known.valid_until != NEVER and known.valid_until - length_s < state.voided_at:
        raise Violation("a heartbeat sent before the lease was voided makes it valid again")
    return after._replace(held_lease=pack(known))


def _taken_up(state: State, held_lease: HeldLease, bounds: Bounds) -> Iterator[tuple[str, State]]:
    """Killed and started again: what is on the wire stays there, what was known is read."""
    store = state.store
    after = state._replace(
        waits_for=0, reply=None, arming=None, holding_back=False, crashes=state.crashes + 1
    )
    if store.leader.holder == A and store.leader.epoch == store.epoch and not store.leader.is_clean:
        taken = HeldLease(
            1, A, store.epoch_index, store.leader_index, store.leader.seq + bounds.jump
        )
        taken = replace(taken, valid_until=held_lease.valid_until)
        yield "a is killed and taken up", after._replace(held_lease=pack(taken))
        yield "a is taken up to serve", after._replace(held_lease=pack(taken), wants=True)


def _candidate(state: State, bounds: Bounds) -> Iterator[tuple[str, State]]:
    store, seen = state.store, state.seen
    if state.acquiring is None:
        # Whether it saw a `clean` arrive or found it: here it never waits for one.
        claim = Claim(
            1, seen.identity, seen.first_seen, None, "takeover", None, None, witnessed=True
        )
        if protocol.objection(claim, store.held, 0, bounds.wait_s) is None:
            sent = (store.epoch_index, store.leader_index, 0)
            yield "b acquires", state._replace(acquiring=sent)
        return
    epoch_index, leader_index, t_s = state.acquiring
    after = state._replace(acquiring=None)
    if (epoch_index, leader_index) != (store.epoch_index, store.leader_index):
        yield "b is refused", after
        return
    index = store.counter + 1
    mine = LeaseStore(2, index, Leader(2, B, 1, LeaderState.STARTING, ()), index, index)
    held_lease = protocol.acquired(mine.held, mine.leader, t_s, bounds.length_s)
    assert held_lease is not None
    # Its next heartbeats prolong that: it counts as open for as long as A could be.
    yield "b epochs", after._replace(store=mine, epochs_b=True, open_b=bounds.wait_s)


def search(bounds: Bounds) -> int:
    """Visit everything; the number of states. Violation with the way that leads there."""
    start = first_state(bounds)
    came: dict[State, tuple[State, str] | None] = {start: None}
    frontier = [start]
    while frontier:
        reached: list[State] = []
        for state in frontier:
            try:
                check(state)
                for name, after in next_states(state, bounds):
                    if after not in came:
                        came[after] = (state, name)
                        reached.append(after)
            except Violation as violation:
                raise Violation(f"{violation}: {_way(came, state)}") from None
        frontier = reached
    return len(came)


def _way(came: dict[State, tuple[State, str] | None], state: State) -> str:
    names: list[str] = []
    step = came[state]
    while step is not None:
        names.append(step[1])
        step = came[step[0]]
    return "; ".join(reversed(names))
