"""The lease protocol's rules, one by one; `tests/sim` plays them against each other."""

from __future__ import annotations

import pytest
from msgspec import structs

from standfast.consul.records import Holder, Leader, LeaderState
from standfast.lease import protocol
from standfast.lease.protocol import (
    NEVER,
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

A, B, A_REBOOTED = Holder("a", "a1"), Holder("b", "b1"), Holder("a", "a2")
LENGTH_S, WAIT_S = 8.0, 12.0
HELD = HeldLease(5, A, epoch_index=50, leader_index=60, seq=7, valid_until=108.0)


def beat(epoch: int = 5, holder: Holder = A, seq: int = 7, state: str = "serving") -> Leader:
    return Leader(epoch, holder, seq, LeaderState(state), ())


def held(leader: Leader | None, epoch: int | None = 5, index: int = 61) -> Versioned:
    return Versioned(epoch, 50 if epoch is not None else 0, leader, index if leader else 0)


def after_sending(held_lease: HeldLease, at: float) -> HeldLease:
    return protocol.sent(held_lease, protocol.next_attempt(held_lease, LeaderState.SERVING, ()), at)


def back(held_lease: HeldLease, now_held: Versioned, now: float = 105.0) -> protocol.Verdict:
    return protocol.read_back(held_lease, now_held, now, LENGTH_S, WAIT_S)


def test_each_attempt_has_a_number_of_its_own() -> None:
    first = protocol.next_attempt(HELD, LeaderState.SERVING, ("b",))
    again = protocol.next_attempt(protocol.sent(HELD, first, 104.0), LeaderState.SERVING, ("b",))
    assert (first.leader.seq, again.leader.seq) == (8, 9)
    assert (again.epoch_index, again.leader_index) == (50, 60)


def test_a_commit_counts_from_the_moment_before_sending() -> None:
    held_lease = protocol.committed(after_sending(HELD, 104.0), 8, 61, LENGTH_S)
    assert (held_lease.valid_until, held_lease.leader_index, held_lease.attempts) == (112.0, 61, {})


def test_an_earlier_heartbeat_never_shortens_the_lease() -> None:
    assert protocol.committed(after_sending(HELD, 99.0), 8, 61, LENGTH_S).valid_until == 108.0


@pytest.mark.parametrize(
    ("sent_at", "valid_until"), [(103.9, NEVER), (104.0, NEVER), (104.1, 112.1)]
)
def test_only_a_heartbeat_sent_after_the_voiding_makes_the_lease_valid(
    sent_at: float, valid_until: float
) -> None:
    held_lease = protocol.voided(after_sending(HELD, sent_at), 104.0)
    assert protocol.committed(held_lease, 8, 61, LENGTH_S).valid_until == valid_until


def test_a_lost_reply_is_recognised_by_its_number() -> None:
    verdict = back(after_sending(after_sending(HELD, 104.0), 106.0), held(beat(seq=8)))
    assert isinstance(verdict, StillMine)
    assert verdict.held_lease.valid_until == 112.0
    assert verdict.held_lease.leader_index == 61


def test_a_number_that_this_process_never_sent_gives_no_time() -> None:
    verdict = back(after_sending(HELD, 104.0), held(beat(seq=9)))
    assert isinstance(verdict, StillMine)
    assert verdict.held_lease.valid_until == 108.0
    assert verdict.held_lease.seq == 9


def test_a_clean_that_committed_after_all_gives_no_time() -> None:
    void = protocol.voided(after_sending(HELD, 104.0), 103.0)
    verdict = back(void, held(beat(seq=8, state="clean")))
    assert isinstance(verdict, StillMine)
    assert verdict.held_lease.valid_until == NEVER
    assert verdict.held_lease.leader_index == 61


LOST = {
    "a later epoch": held(beat(6, B, 1), epoch=6),
    "a later epoch without a leader": held(None, epoch=6),
    "the same epoch held elsewhere": held(beat(holder=B)),
    "the same node in another boot": held(beat(holder=A_REBOOTED)),
    "no epoch and another's leader": held(beat(6, B), epoch=None),
    "a leader of a later epoch": held(beat(6, B)),
}


@pytest.mark.parametrize("now_held", LOST.values(), ids=LOST)
def test_it_is_lost_when_another_epochs(now_held: Versioned) -> None:
    verdict = back(HELD, now_held)
    assert isinstance(verdict, Lost)
    assert verdict.why


def test_an_older_epoch_halts() -> None:
    verdict = back(HELD, held(beat(4), epoch=4))
    assert isinstance(verdict, Halted)
    assert "accept-epoch" in verdict.why


@pytest.mark.parametrize(
    ("now_held", "missing_epoch"),
    [
        (held(None), False),
        (held(beat(4, B)), False),
        (held(None, epoch=None), True),
        (held(beat(), epoch=None), True),
    ],
    ids=["no leader", "an older leader", "neither", "no epoch"],
)
def test_a_deleted_key_is_to_be_written_again(now_held: Versioned, missing_epoch: bool) -> None:
    verdict = back(HELD, now_held)
    assert isinstance(verdict, Repair)
    assert verdict.missing_epoch == missing_epoch
    assert verdict.held_lease.leader_index == now_held.leader_index


def test_a_lapsed_holder_does_not_write_both_keys_again() -> None:
    assert isinstance(back(HELD, held(None, epoch=None), now=108.0), Halted)
    assert isinstance(back(HELD, held(None), now=108.0), Repair)


CLAIM = Claim(5, beat().identity, 100.0, "services@20261122T101500Z", "takeover", None, 60.0)


@pytest.mark.parametrize(
    ("claim", "now_held", "now", "why"),
    [
        (CLAIM, held(beat()), 112.0, None),
        (CLAIM, held(beat()), 111.9, "12 s are needed"),
        (CLAIM, held(beat(seq=8)), 200.0, "the last heartbeat is"),
        (CLAIM, held(beat(holder=A_REBOOTED)), 200.0, "the last heartbeat is"),
        (CLAIM, held(beat(6, B), epoch=6), 200.0, "the epoch is 6 now"),
        (CLAIM, held(None), 200.0, "the last heartbeat is None"),
        (CLAIM, held(beat(), epoch=None), 200.0, "the epoch is 0 now"),
        (structs.replace(CLAIM, seen=None), held(None), 111.0, "12 s are needed"),
        (structs.replace(CLAIM, seen=None), held(None), 112.0, None),
        (structs.replace(CLAIM, epoch=0, seen=None), held(None, epoch=None), 112.0, None),
        (CLAIM, structs.replace(held(beat()), highest=6), 200.0, "tell of epoch 6"),
        (CLAIM, structs.replace(held(beat()), highest=5), 112.0, None),
        (
            structs.replace(CLAIM, epoch=0, seen=None),
            structs.replace(held(None, epoch=None), highest=5),
            200.0,
            "accept-epoch",
        ),
    ],
)
def test_a_claim_is_made_good_when_the_same_heartbeat_was_seen_for_long_enough(
    claim: Claim, now_held: Versioned, now: float, why: str | None
) -> None:
    objection = protocol.objection(claim, now_held, now, WAIT_S)
    assert (objection is None) if why is None else (objection is not None and why in objection)


def test_a_clean_that_was_seen_to_arrive_needs_no_wait() -> None:
    clean = beat(seq=8, state="clean")
    claim = structs.replace(CLAIM, seen=clean.identity, witnessed=True)
    assert protocol.objection(claim, held(clean), 100.1, WAIT_S) is None


def test_a_clean_that_was_merely_found_needs_the_wait() -> None:
    """Consul was restored to it, say, and has forgotten a successor who still serves."""
    clean = beat(seq=8, state="clean")
    claim = structs.replace(CLAIM, seen=clean.identity)
    early = protocol.objection(claim, held(clean), 111.9, WAIT_S)
    assert early is not None and "12 s are needed" in early
    assert protocol.objection(claim, held(clean), 112.0, WAIT_S) is None


def test_a_clean_of_an_earlier_epoch_needs_the_wait() -> None:
    """After `accept-epoch` a later epoch that Consul has forgotten may not be over yet."""
    clean = beat(seq=8, state="clean")
    claim = structs.replace(CLAIM, epoch=6, seen=clean.identity, witnessed=True)
    early = protocol.objection(claim, held(clean, epoch=6), 111.9, WAIT_S)
    assert early is not None and "12 s are needed" in early
    assert protocol.objection(claim, held(clean, epoch=6), 112.0, WAIT_S) is None


def test_an_acquisition_is_ours_only_with_our_name_on_both_keys() -> None:
    sent = beat(6, B, 31)
    won = held(sent, epoch=6)
    held_lease = protocol.acquired(won, sent, 100.0, LENGTH_S)
    assert held_lease is not None
    assert (held_lease.epoch, held_lease.valid_until, held_lease.seq) == (6, 108.0, 31)
    for other in (held(beat(6, A, 31), epoch=6), held(beat(), epoch=6), held(None, epoch=6)):
        assert protocol.acquired(other, sent, 100.0, LENGTH_S) is None
    assert protocol.acquired(won, beat(7, B, 31), 100.0, LENGTH_S) is None


def test_an_acquisition_sent_earlier_is_ours_and_gives_no_time() -> None:
    """Nobody knows any more when it was sent: the first heartbeat upon it brings time."""
    earlier = held(beat(6, B, 17), epoch=6)
    held_lease = protocol.acquired(earlier, beat(6, B, 31), 100.0, LENGTH_S)
    assert held_lease is not None and held_lease.valid_until == NEVER
    assert held_lease.seq == 31, "none of the numbers that were used is used again"
    going_on = protocol.committed(after_sending(held_lease, 101.0), 32, 70, LENGTH_S)
    assert going_on.valid_until == 109.0


def test_the_time_left_is_never_negative() -> None:
    assert HELD.remaining_s(100.0) == 8.0
    assert HELD.remaining_s(200.0) == 0.0
    assert protocol.voided(HELD, 100.0).remaining_s(100.0) == 0.0


def test_a_lapsed_holder_that_finds_a_restored_consul_waits_out_a_forgotten_successor() -> None:
    holder = Holder("a", "a1")
    leader = Leader(5, holder, 3, LeaderState.SERVING, ())
    lapsed = HeldLease(
        5, holder, epoch_index=10, leader_index=90, seq=9, valid_until=100.0, attempts={9: 99.0}
    )
    held = Versioned(5, 10, leader, 40)
    verdict = protocol.read_back(lapsed, held, now=200.0, length_s=8.0, wait_s=12.0)
    assert isinstance(verdict, StillMine)
    early = protocol.committed(
        structs.replace(verdict.held_lease, attempts={10: 205.0}), 10, 41, 8.0
    )
    assert early.remaining_s(205.0) == 0
    late = protocol.committed(
        structs.replace(verdict.held_lease, attempts={11: 213.0}), 11, 42, 8.0
    )
    assert late.remaining_s(213.0) == 8.0


def test_a_holder_whose_lease_lasts_goes_on_with_a_restored_consul() -> None:
    holder = Holder("a", "a1")
    held = Versioned(5, 10, Leader(5, holder, 3, LeaderState.SERVING, ()), 40)
    held_lease = HeldLease(5, holder, epoch_index=10, leader_index=90, seq=9, valid_until=205.0)
    verdict = protocol.read_back(held_lease, held, now=200.0, length_s=8.0, wait_s=12.0)
    assert isinstance(verdict, StillMine)
    going_on = protocol.committed(
        structs.replace(verdict.held_lease, attempts={10: 201.0}), 10, 41, 8.0
    )
    assert going_on.remaining_s(201.0) == 8.0


def test_a_holder_with_longer_timings_than_ours_is_given_its_own_time() -> None:
    leader = structs.replace(beat(), wait=20.0)
    claim = Claim(5, leader.identity, first_seen=100.0, base=None, reason="", operator=None,
                  lost_s=None)  # fmt: skip
    early = protocol.objection(claim, held(leader), 119.9, WAIT_S)
    assert early == "the last heartbeat was first seen 19.9 s ago, 20 s are needed"
    assert protocol.objection(claim, held(leader), 120.0, WAIT_S) is None
    shorter = structs.replace(leader, wait=4.0)
    assert protocol.objection(claim, held(shorter), 111.9, WAIT_S) is not None
    assert protocol.objection(claim, held(shorter), 112.0, WAIT_S) is None


def test_each_heartbeat_tells_the_wait_of_the_holder() -> None:
    attempt = protocol.next_attempt(HELD, LeaderState.SERVING, (), wait_s=WAIT_S)
    assert Leader.parse(attempt.leader.dump()).wait == WAIT_S
    assert Leader.parse(beat().dump()).wait == 0.0, "an older version's"


# A wait that is told


@pytest.mark.parametrize(
    ("own_s", "now", "told_s"),
    [(4.0, 100.0, 20.0), (4.0, 119.9, 20.0), (4.0, 120.0, 4.0), (30.0, 100.0, 30.0)],
)
def test_a_shorter_wait_is_told_when_what_the_longer_one_permitted_is_over(
    own_s: float, now: float, told_s: float
) -> None:
    leader = structs.replace(beat(), wait=20.0)
    held_lease = protocol.taken_up(held(leader), A, NO_MEMORY, 100.0, 4.0)
    assert held_lease is not None
    assert held_lease.wait_s(own_s, now) == told_s


def test_a_lease_that_was_not_taken_up_tells_its_own_wait() -> None:
    assert HELD.wait_s(12.0, 100.0) == 12.0


# Taking up from an earlier process of this boot

LEFT = Memory(5, "a1", leader_index=61, valid_until=108.0, voided_at=90.0)


def taken_up(now_held: Versioned, memory: Memory = LEFT, now: float = 105.0) -> HeldLease | None:
    return protocol.taken_up(now_held, A, memory, now, WAIT_S)


def test_what_the_earlier_process_had_goes_on() -> None:
    held_lease = taken_up(held(beat(seq=9)))
    assert held_lease is not None
    assert (held_lease.seq, held_lease.leader_index, held_lease.valid_until) == (9, 61, 108.0)
    assert held_lease.voided_at == 90.0, "what it had voided stays so"


@pytest.mark.parametrize(
    "memory",
    [NO_MEMORY, structs.replace(LEFT, epoch=4), structs.replace(LEFT, instance="a0")],
    ids=["none", "another epoch's", "another boot's"],
)
def test_without_a_memory_of_this_epoch_there_is_no_time(memory: Memory) -> None:
    held_lease = taken_up(held(beat(), index=10), memory)
    assert held_lease is not None
    assert (held_lease.valid_until, held_lease.voided_at) == (NEVER, NEVER)


@pytest.mark.parametrize(
    ("index", "now", "voided_at"),
    [(61, 200.0, 90.0), (70, 200.0, 90.0), (60, 200.0, 212.0), (60, 105.0, 90.0)],
    ids=["as it was", "a lost reply", "restored, lapsed", "restored, not lapsed"],
)
def test_a_lapsed_lease_in_a_restored_consul_is_void_for_a_wait(
    index: int, now: float, voided_at: float
) -> None:
    """Its successor, which that backup has forgotten, may serve until then."""
    held_lease = taken_up(held(beat(), index=index), now=now)
    assert held_lease is not None and held_lease.voided_at == voided_at


TOLD = structs.replace(LEFT, epoch_index=50, committed_seq=7)


@pytest.mark.parametrize(
    ("known", "now_held", "is_void"),
    [
        (TOLD, held(beat(seq=7), index=61), False),
        (TOLD, held(beat(seq=9), index=70), False),
        (TOLD, held(beat(seq=6), index=70), True),
        (TOLD, structs.replace(held(beat(seq=9), index=70), epoch_index=51), True),
        (LEFT, structs.replace(held(beat(seq=6), index=70), epoch_index=51), False),
    ],
    ids=["as it was", "a lost reply", "an older one", "the epoch anew", "an older version's word"],
)
def test_a_lapsed_lease_in_an_imported_backup_is_void_for_a_wait(
    known: Memory, now_held: Versioned, is_void: bool
) -> None:
    """Imported key by key, what is older stands at a new index."""
    expected = 212.0 if is_void else 90.0
    held_lease = taken_up(now_held, known, now=200.0)
    assert held_lease is not None and held_lease.voided_at == expected
    if known is TOLD:
        mine = structs.replace(HELD, leader_index=61, committed_seq=7, voided_at=90.0)
        verdict = back(mine, now_held, now=200.0)
        assert isinstance(verdict, StillMine) and verdict.held_lease.voided_at == expected


def test_a_later_epoch_that_another_key_tells_of_halts_a_lapsed_holder() -> None:
    now_held = structs.replace(held(beat()), highest=6)
    assert isinstance(back(HELD, now_held, now=200.0), Halted)
    assert isinstance(back(HELD, now_held, now=107.0), StillMine), "its lease is valid"
    assert isinstance(back(HELD, structs.replace(held(beat()), highest=5), now=200.0), StillMine)


def test_the_longer_wait_counts_for_what_is_void() -> None:
    held_lease = taken_up(held(structs.replace(beat(), wait=20.0), index=60), now=200.0)
    assert held_lease is not None and held_lease.voided_at == 220.0


@pytest.mark.parametrize(
    "now_held",
    [
        held(None),
        held(beat(), epoch=None),
        held(beat(), epoch=6),
        held(beat(holder=B)),
        held(beat(holder=A_REBOOTED)),
        held(beat(state="clean")),
    ],
    ids=["no leader", "no epoch", "a later epoch", "another's", "another boot's", "given up"],
)
def test_what_is_not_this_boots_lease_is_not_taken_up(now_held: Versioned) -> None:
    assert taken_up(now_held) is None


# A repair


@pytest.mark.parametrize(
    ("leader", "now", "voided_at"),
    [
        (None, 107.9, NEVER),
        (beat(4, B), 107.9, NEVER),
        (None, 108.0, 120.0),
        (beat(4, B), 108.0, 120.0),
        (structs.replace(beat(4, B), wait=20.0), 108.0, 128.0),
    ],
    ids=["no leader", "another's", "no leader, lapsed", "another's, lapsed", "its own wait"],
)
def test_a_lapsed_lease_that_is_written_again_is_void_for_a_wait(
    leader: Leader | None, now: float, voided_at: float
) -> None:
    """After `accept-epoch`: the one whose epoch that ended may serve for the rest of its lease."""
    verdict = back(HELD, held(leader), now=now)
    assert isinstance(verdict, Repair)
    assert verdict.held_lease.voided_at == voided_at
