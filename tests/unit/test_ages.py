"""How old a snapshot is, whatever the clocks did since."""

from __future__ import annotations

import pytest

from standfast.ages import Origin, Seen, age_of, time_of
from standfast.clock import Instant
from standfast.names import SnapshotName

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


def test_nothing_known_is_no_age() -> None:
    assert age_of(None, UTC) is None
    assert time_of(NAME, None) == UTC


def now(hours: float, up_hours: float, boot: str = "one") -> Instant:
    return Instant(UTC + 3600 * hours, 3600 * up_hours, boot)


def age_hours(seen: Seen) -> float:
    """Of what was noted at UTC, before the last start."""
    return (seen.at.utc - seen.by_clock(UTC)) / 3600


def test_what_is_of_this_start_counts_by_the_uptime() -> None:
    """The clock was two hours ahead, and is right an hour later."""
    assert Seen(now(2, 10)).set_by(now(1, 11)) == -2 * 3600
    assert Seen(now(2, 10)).set_by(now(3, 11)) == 0


@pytest.mark.parametrize(
    ("after", "age"),
    [
        (now(3, 0.5, "two"), 3),
        (now(1.2, 0.5, "two"), 1.5),
        (now(-5, 0.5, "two"), 1.5),
        (now(-5, 7, "two"), 8),
    ],
    ids=["a right clock", "a little behind", "hours behind", "hours behind, and hours later"],
)
def test_after_a_start_the_time_is_later_than_any_seen_before(after: Instant, age: float) -> None:
    """Noted at 0, last seen at 1; the machine was off for no one knows how long."""
    assert age_hours(Seen(now(1, 11)).going_on(after)) == pytest.approx(age)


@pytest.mark.parametrize("wrong", [9, -9])
def test_a_start_with_a_wrong_clock_that_is_set_right_soon_costs_nothing(wrong: float) -> None:
    seen = Seen(now(1, 11)).going_on(now(wrong, 0.1, "two"))
    assert age_hours(seen) == pytest.approx(max(wrong, 1.1)), "never too young"
    assert age_hours(seen.going_on(now(2, 0.2, "two"))) == pytest.approx(2)


def test_of_several_starts_with_a_clock_that_is_behind_all_count() -> None:
    second = Seen(now(1, 11)).going_on(now(-5, 0, "two")).going_on(now(-4, 1, "two"))
    third = second.going_on(now(-9, 0, "three"))
    assert age_hours(third) == pytest.approx(2)
