"""How old a snapshot is, whatever the clocks did since."""

from __future__ import annotations

import pytest

from standfast.ages import UNKNOWN, Before, Origin, Seen, age_of, time_by_record, time_of
from standfast.names import SnapshotName
from standfast.system.clock import Instant

UTC = 1_795_342_500.0
NAME = SnapshotName.at("services", UTC)


@pytest.mark.parametrize(
    ("taken_at", "now", "age"),
    [
        (None, UTC + 60, 60),
        (UTC, UTC + 60, 60),
        (UTC - 3600, UTC + 60, 3660),
        (UTC + 3600, UTC + 60, 60),
        (UTC, UTC - 9, 0),
        (UTC, UTC - 11, None),
        (None, UTC - 3600, None),
        (UTC - 7200, UTC - 3600, 3600),
    ],
    ids=[
        "by the name",
        "both the same",
        "noted as older",
        "named as older",
        "clocks that agree",
        "from the future",
        "a name from the future",
        "a name from the future, noted rightly",
    ],
)
def test_the_older_of_two_times_counts_and_none_from_the_future(
    taken_at: float | None, now: float, age: float | None
) -> None:
    assert age_of(Origin(1, taken_at).time(NAME), now) == age


@pytest.mark.parametrize("named_s", [-3600, 0, 3600])
def test_what_is_counted_by_the_uptime_is_believed_whatever_the_name_says(named_s: float) -> None:
    """The primary's clock may be behind for good: its standbys are not too old for that."""
    name = SnapshotName.at("services", UTC + named_s)
    assert age_of(Origin(1, UTC - 60, counted=True).time(name), UTC) == 60


@pytest.mark.parametrize(
    ("at_s", "told_s", "age_s"),
    [
        (-60, -30, 60),
        (-60, 5, 60),
        (-7200, 3600 - 30, None),
        (-60, -90, None),
        (3600, 3630, None),
    ],
    ids=[
        "both right",
        "clocks that agree",
        "told by a clock that is ahead, of what looks old enough",
        "named by a clock that was set back before it was told",
        "all of it in the future",
    ],
)
def test_what_another_node_tells_is_no_age_where_its_clock_was_wrong(
    at_s: float, told_s: float, age_s: float | None
) -> None:
    assert age_of(time_by_record(UTC + at_s, UTC + told_s, UTC), UTC) == age_s


def test_nothing_known_is_no_age() -> None:
    assert age_of(None, UTC) is None
    assert time_of(NAME, None) == UTC


def now(hours: float, up_hours: float, boot: str = "one") -> Instant:
    return Instant(UTC + 3600 * hours, 3600 * up_hours, boot)


def test_what_is_of_this_start_counts_by_the_uptime() -> None:
    """The clock was two hours ahead, and is right an hour later."""
    assert Seen(now(2, 10)).set_by(now(1, 11)) == -2 * 3600
    assert Seen(now(2, 10)).set_by(now(3, 11)) == 0


def age_hours(before: Before, after: Instant) -> float | None:
    age = age_of(Origin(1, before.time(after)).time(NAME), after.utc)
    return None if age is None else age / 3600


NOTED = Before(UTC, UTC + 3600)
"""At 0, and it was at least 1 when the machine stopped."""


@pytest.mark.parametrize(
    ("after", "age"),
    [
        (now(3, 0.5, "two"), 3),
        (now(1.5 - 9 / 3600, 0.5, "two"), 1.5),
        (now(1.5 - 11 / 3600, 0.5, "two"), None),
        (now(-5, 0.5, "two"), None),
    ],
    ids=["a right clock", "clocks that agree", "a little behind", "hours behind"],
)
def test_after_a_start_with_a_clock_that_is_behind_nobody_knows_how_long_it_was_off(
    after: Instant, age: float | None
) -> None:
    assert age_hours(NOTED, after) == (age if age is None else pytest.approx(age))


@pytest.mark.parametrize(("wrong", "age"), [(9, 9), (-9, None)])
def test_a_start_with_a_wrong_clock_that_is_set_right_soon_costs_nothing(
    wrong: float, age: float | None
) -> None:
    assert age_hours(NOTED, now(wrong, 0.1, "two")) == age
    assert age_hours(NOTED, now(2, 0.2, "two")) == 2


def test_what_a_clock_that_was_ahead_at_one_start_said_is_not_believed_by_later_ones() -> None:
    """Of several starts with wrong clocks the latest that any of them said counts."""
    ahead = NOTED.over_start(now(5, 1, "two"))
    assert age_hours(ahead, now(3, 0.5, "three")) is None
    assert age_hours(ahead, now(6, 0.5, "three")) == 6
    behind = NOTED.over_start(now(-5, 1, "two"))
    assert age_hours(behind, now(2.5, 0.5, "three")) == 2.5
    assert age_hours(behind, now(2.4, 0.5, "three")) is None


def test_an_unknown_time_is_not_made_known_by_the_name() -> None:
    assert Origin(1, UNKNOWN).time(NAME) == UNKNOWN
    assert age_of(UNKNOWN, UTC) is None
