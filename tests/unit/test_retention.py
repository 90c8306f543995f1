"""Which snapshots stay: a grid on the times in their names, and what is kept whatever it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from standfast.config.model import Keep, KeepOwn, KeepPublished
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.replication.pins import Pin
from standfast.replication.retention import overdue, sort_out
from standfast.system.clock import parse_stamp
from tests.support.examples import examples

HOUR_S = 3600
DAY_S = 24 * HOUR_S
NOW = 1_800_000_000.0


def snapshot(at: float, *, received: bool = True) -> Snapshot:
    name = SnapshotName.at("services", at)
    return Snapshot(name, Path("/p") / str(name), f"id-{int(at)}", received)


def stamped(*stamps: str) -> list[Snapshot]:
    """`20260105T1200` or a part of it from the left: the rest is that of noon, of the first."""
    return [snapshot(parse_stamp(stamp + "20260101T120000Z"[len(stamp) :])) for stamp in stamps]


def keep(
    last: int = 1, hourly: int = 0, daily: int = 0, weekly: int = 0, monthly: int = 0
) -> KeepOwn:
    return KeepOwn(keep_last=last, hourly=hourly, daily=daily, weekly=weekly, monthly=monthly)


def kept(snapshots: Sequence[Snapshot], policy: Keep, epoch: int = 1) -> list[str]:
    """The kept ones' stamps, without what is zero at the end."""
    sorted_out = sort_out(
        snapshots, {snapshot.content_id: epoch for snapshot in snapshots}, {}, policy
    )
    return [str(survivor.snapshot.name).partition("@")[2] for survivor in sorted_out.kept]


# The grid


def test_of_each_period_the_last_one_stays() -> None:
    hours = stamped("20260105T0930", "20260105T0959", "20260105T1000", "20260105T1001")
    assert kept(hours, keep(hourly=2)) == ["20260105T095900Z", "20260105T100100Z"]
    days = stamped("20260105T09", "20260105T23", "20260106T00", "20260107T01")
    assert kept(days, keep(daily=3)) == [
        "20260105T230000Z", "20260106T000000Z", "20260107T010000Z",
    ]  # fmt: skip


def test_weeks_begin_on_monday_and_months_on_the_first_in_utc() -> None:
    # 2026-01-04 is a Sunday.
    weeks = stamped("20260103T10", "20260104T2359", "20260105T0000", "20260111T2359")
    assert kept(weeks, keep(weekly=2)) == ["20260104T235900Z", "20260111T235900Z"]
    months = stamped("20251231T2359", "20260101T0000", "20260131T2359", "20260228T2359")
    assert kept(months, keep(monthly=3)) == [
        "20251231T235900Z", "20260131T235900Z", "20260228T235900Z",
    ]  # fmt: skip


def test_periods_without_a_snapshot_do_not_count() -> None:
    sparse = stamped("20250105", "20250601", "20260101")
    assert len(kept(sparse, keep(daily=3))) == 3


def test_each_one_that_stays_says_why() -> None:
    old, new = stamped("20260105T10", "20260106T10")
    foreign = snapshot(parse_stamp("20260104T100000Z"))
    epochs = {old.content_id: 3, new.content_id: 4}
    sorted_out = sort_out(
        [new, foreign, old], epochs, {new.content_id: ["pinned for c2"]}, keep(hourly=1, daily=2)
    )
    assert [(survivor.snapshot, survivor.reasons) for survivor in sorted_out.kept] == [
        (foreign, ("not made by Standfast",)),
        (old, ("newest of epoch 3", "daily")),
        (new, ("pinned for c2", "newest of epoch 4", "newest", "hourly", "daily")),
    ]
    assert sorted_out.old == ()


def test_names_a_year_ahead_keep_no_later_epoch_out_of_the_grid() -> None:
    """The clock was a year ahead for 30 hours; its successor's was right."""
    ahead = [snapshot(NOW + 365 * DAY_S + hour * HOUR_S) for hour in range(30)]
    right = [snapshot(NOW + hour * HOUR_S) for hour in range(24)]
    epochs = {taken.content_id: 1 for taken in ahead} | {taken.content_id: 2 for taken in right}
    sorted_out = sort_out([*ahead, *right], epochs, {}, keep(hourly=24))
    hourly = [survivor.snapshot for survivor in sorted_out.kept if "hourly" in survivor.reasons]
    assert hourly == right


def test_the_newest_counts_by_epoch_then_by_time() -> None:
    """What an earlier primary took last may be later by the clock than its successor's first."""
    early, late = snapshot(NOW), snapshot(NOW + 60)
    before = snapshot(NOW - 60)
    epochs = {before.content_id: 4, early.content_id: 4, late.content_id: 3}
    sorted_out = sort_out([before, early, late], epochs, {}, keep(last=2))
    assert [survivor.reasons for survivor in sorted_out.kept] == [
        ("among the newest 2",),
        ("newest of epoch 4", "among the newest 2"),
        ("newest of epoch 3",),
    ]


# What holds for every history

TIMES = st.lists(
    st.one_of(
        st.integers(0, 300).map(lambda step: NOW - 5 * step),
        st.integers(0, 400).map(lambda step: NOW - HOUR_S * step / 2),
        st.integers(0, 800).map(lambda step: NOW - DAY_S * step),
    ),
    unique=True,
    max_size=60,
)
COUNTS = st.integers(0, 6)
POLICIES = st.builds(keep, st.integers(1, 8), COUNTS, COUNTS, COUNTS, COUNTS)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Snapshot], dict[str, int], dict[str, list[str]]]:
    """Snapshots in any order; some foreign, some protected; epochs in the order of time or not."""
    snapshots = [snapshot(at) for at in draw(TIMES)]
    own = [taken for taken in snapshots if draw(st.integers(0, 9)) > 0]
    epochs = {taken.content_id: draw(st.integers(0, 3)) for taken in own}
    protected = {
        taken.content_id: ["pinned"] for taken in snapshots if draw(st.integers(0, 9)) == 0
    }
    return snapshots, epochs, protected


@examples(150)
@given(histories(), POLICIES)
def test_what_must_stay_stays(
    history: tuple[list[Snapshot], dict[str, int], dict[str, list[str]]], policy: Keep
) -> None:
    snapshots, epochs, protected = history
    sorted_out = sort_out(snapshots, epochs, protected, policy)
    old = set(sorted_out.old)
    assert {survivor.snapshot for survivor in sorted_out.kept} | old == set(snapshots)
    assert len(sorted_out.kept) + len(old) == len(snapshots)
    assert all(survivor.reasons for survivor in sorted_out.kept)
    assert not any(deleted.content_id in protected for deleted in old)
    assert all(deleted.content_id in epochs for deleted in old)
    if snapshots:
        assert max(snapshots, key=lambda snapshot: snapshot.name) not in old
    for epoch in set(epochs.values()):
        history_entry = [
            snapshot for snapshot in snapshots if epochs.get(snapshot.content_id) == epoch
        ]
        assert max(history_entry, key=lambda snapshot: snapshot.name) not in old


@examples(150)
@given(histories(), POLICIES)
def test_no_more_is_kept_than_the_policy_says(
    history: tuple[list[Snapshot], dict[str, int], dict[str, list[str]]], policy: Keep
) -> None:
    snapshots, epochs, protected = history
    count = len(sort_out(snapshots, epochs, protected, policy).kept)
    grid = policy.keep_last + policy.hourly + policy.daily + policy.weekly + policy.monthly
    foreign = sum(snapshot.content_id not in epochs for snapshot in snapshots)
    assert count <= grid + len(set(epochs.values())) + len(protected) + foreign


@examples(150)
@given(histories(), POLICIES)
def test_deleting_twice_is_deleting_once(
    history: tuple[list[Snapshot], dict[str, int], dict[str, list[str]]], policy: Keep
) -> None:
    snapshots, epochs, protected = history
    left = [survivor.snapshot for survivor in sort_out(snapshots, epochs, protected, policy).kept]
    assert sort_out(left, epochs, protected, policy).old == ()


@examples(150)
@given(histories(), POLICIES, st.data())
def test_a_more_generous_policy_deletes_no_more(
    history: tuple[list[Snapshot], dict[str, int], dict[str, list[str]]],
    policy: KeepOwn,
    data: st.DataObject,
) -> None:
    snapshots, epochs, protected = history
    fields = ("keep_last", "hourly", "daily", "weekly", "monthly")
    more = KeepOwn(**{name: getattr(policy, name) + data.draw(COUNTS) for name in fields})
    before = set(sort_out(snapshots, epochs, protected, policy).old)
    for snapshot in snapshots:
        if data.draw(st.integers(0, 9)) == 0:
            protected = {**protected, snapshot.content_id: ["pinned"]}
    assert set(sort_out(snapshots, epochs, protected, more).old) <= before


@examples(150)
@given(histories(), POLICIES, st.integers(1, 90 * DAY_S))
def test_what_was_old_once_is_never_missed_later(
    history: tuple[list[Snapshot], dict[str, int], dict[str, list[str]]], policy: Keep, later_s: int
) -> None:
    snapshots, epochs, protected = history
    before = set(sort_out(snapshots, epochs, protected, policy).old)
    newer = snapshot(NOW + later_s)
    epochs = {**epochs, newer.content_id: max(epochs.values(), default=0)}
    assert before <= set(sort_out([*snapshots, newer], epochs, protected, policy).old)


@pytest.mark.parametrize(("policy", "bound"), [(KeepOwn(), 25), (KeepPublished(), 84)])
def test_an_interval_of_five_seconds_does_not_pile_up(policy: Keep, bound: int) -> None:
    """Two days, pruned after each snapshot; the grid is full by then, and no more come."""
    held: list[Snapshot] = []
    epochs: dict[str, int] = {}
    most = 0
    for step in range(2 * DAY_S // 5):
        if 1200 < step < 2 * DAY_S // 5 - 1200 and step % 60 > 2:
            continue  # five minutes' worth of steps look the same; a few of them do
        newest = snapshot(NOW + 5 * step)
        epochs[newest.content_id] = 1
        sorted_out = sort_out([*held, newest], epochs, {}, policy)
        held = [each.snapshot for each in sorted_out.kept]
        most = max(most, len(held))
        assert len(sorted_out.old) <= 2
    assert most <= bound
    hours = {int(taken.name.stamp // HOUR_S) for taken in held}
    assert len(hours) >= 24 if policy.hourly else len(held) == policy.keep_last


# Pins that are dropped

LIMIT_S = 14.0 * DAY_S


def pin(node: str, days: float) -> Pin:
    return Pin("services@20260101T000000Z", f"id-{node}", 1, NOW - days * DAY_S)


def late(*nodes: tuple[str, float], present: str = "bcd") -> tuple[str, ...]:
    pins = {node: pin(node, days) for node, days in nodes}
    return overdue(pins, {f"id-{node}" for node in present}, NOW, LIMIT_S)


def test_the_pin_of_a_dead_standby_goes_when_another_one_is_up_to_date() -> None:
    assert late(("b", 15), ("c", 1), ("d", 20)) == ("b", "d")
    assert late(("b", 14), ("c", 1)) == ()


def test_no_pin_goes_when_no_other_standby_is_up_to_date() -> None:
    assert late(("b", 15)) == ()
    assert late(("b", 15), ("c", 15)) == ()
    # What c has in common was deleted here: c needs everything itself.
    assert late(("b", 15), ("c", 1), present="b") == ()


@examples(150)
@example([("b", 15), ("c", 14)])
@given(st.lists(st.tuples(st.sampled_from("bcdef"), st.integers(0, 40)), unique_by=lambda p: p[0]))
def test_somebody_is_left_who_can_go_on(nodes: list[tuple[str, int]]) -> None:
    gone = late(*nodes, present="bcdef")
    assert not gone or set(gone) < {node for node, _ in nodes}
    assert all(days > 14 for node, days in nodes if node in gone)
