"""However a requester stands still, dies or is late: nothing is taken long after it was there.

The requester's rule is `asking`'s: it reads its clock before each beat, and raises none where the
last reading is long ago. Between reading and writing it may stand still for any time.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from standfast.requests.decide import (
    CLOSE_S,
    LATE_S,
    Look,
    Sighting,
    Traces,
    follow,
    stood_still,
    to_take,
)
from tests.support.examples import examples

NAME = "0f" * 16
Step = tuple[float, float]
MOST_AFTER_S = LATE_S + 3 * CLOSE_S
STALLS = st.sampled_from([CLOSE_S - 0.5, CLOSE_S + 0.5, 12.0, 30.0, 60.0, 3600.0])
STEPS = st.tuples(st.just(0.0) | STALLS, st.just(0.0) | STALLS)
"""Before the clock is read, and on the way from there."""


def schedule(every_s: float, count: int, odd: dict[int, tuple[float, float]]) -> list[Step]:
    """Steady, but for some steps."""
    steps = [odd.get(number, (0.0, 0.0)) for number in range(count)]
    return [(every_s + more_s, way_s) for more_s, way_s in steps]


@dataclass
class Requester:
    """When it read its clock, and when each beat came to be."""

    reads: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)

    def go(self, steps: list[Step]) -> None:
        now = 0.0
        for pause_s, way_s in [(0.0, 0.0), *steps]:
            now += pause_s
            if self.reads and stood_still(self.reads[-1], now):
                return
            self.reads.append(now)
            now += way_s
            self.writes.append(now)

    def seen_at(self, when: float) -> Sighting | None:
        beats = bisect_right(self.writes, when)
        return Sighting(beats, 10 + beats) if beats else None


@examples(600)
@given(
    st.dictionaries(st.integers(0, 8), STEPS, max_size=3),
    st.sampled_from([0.25, 0.5, 1.0, 3.0]),
    st.dictionaries(st.integers(0, 100), STEPS, max_size=2),
    st.sampled_from([0.0, 0.0, 0.0, 40.0]),
)
def test_nothing_is_taken_long_after_the_requester_was_there(
    beats: dict[int, tuple[float, float]],
    every_s: float,
    odd: dict[int, tuple[float, float]],
    later_s: float,
) -> None:
    requester = Requester()
    requester.go(schedule(0.5, 12, beats))
    looks = schedule(every_s, 200, odd)
    known, now = Traces(), 0.0
    for pause_s, way_s in looks:
        began = now = now + pause_s
        there = requester.seen_at(now)
        now += way_s
        known = follow(known, Look(began, now, {} if there is None else {NAME: there}))
        if to_take(known, now + later_s):
            last = max(read for read in requester.reads if read <= now)
            assert now + later_s - last <= MOST_AFTER_S


@examples(200)
@given(st.floats(0.1, 1.0), st.floats(0.05, 1.5), st.floats(0.0, 60.0))
def test_of_a_requester_that_is_there_it_is_taken_soon(
    beat_s: float, look_s: float, first_s: float
) -> None:
    requester = Requester()
    requester.go([(beat_s, 0.0)] * 1000)
    known, now = Traces(), first_s
    while now < first_s + 10.0:
        there = requester.seen_at(now)
        known = follow(known, Look(now, now, {} if there is None else {NAME: there}))
        if to_take(known, now):
            break
        now += look_s
    assert now - first_s <= 3 * (beat_s + look_s)


@examples(200)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_what_comes_back_is_never_taken(beats: list[int]) -> None:
    """As after a restore of Consul: a beat that isn't higher, or a key that was gone; 0: no key."""
    known, now = Traces(), 0.0
    spoiled, last = False, 0
    for number, beat in enumerate(beats):
        now += 0.5
        seen = {NAME: Sighting(beat, 10 + number)} if beat else {}
        spoiled = spoiled or (last > 0 and (beat == 0 or beat <= last))
        last = beat or last
        known = follow(known, Look(now, now, seen))
        assert not (spoiled and to_take(known, now))


def test_no_more_than_so_many_are_remembered() -> None:
    known = Traces()
    for number in range(1200):
        seen = {f"{number:032x}": Sighting(0, number + 1)}
        known = follow(known, Look(float(number), float(number), seen))
    assert len(known.by_id) <= 1001


def test_one_beat_of_somebody_who_stood_still_while_writing_it_is_not_enough() -> None:
    """The node begins to look right before: it has seen nothing of how long nothing happened."""
    requester = Requester()
    requester.go([(0.5, 0.0), (0.5, 3600.0), (0.5, 0.0)])
    known, now = Traces(), 3599.0
    while now < 3700.0:
        there = requester.seen_at(now)
        known = follow(known, Look(now, now, {} if there is None else {NAME: there}))
        assert not to_take(known, now)
        now += 0.25


def test_what_was_gone_is_never_taken_however_its_beat_rises() -> None:
    known = Traces()
    for number, beat in enumerate((1, 2, None, 3, 4, 5, 6)):
        seen = {} if beat is None else {NAME: Sighting(beat, 10 + number)}
        known = follow(known, Look(0.5 * number, 0.5 * number, seen))
        assert not to_take(known, 0.5 * number)
