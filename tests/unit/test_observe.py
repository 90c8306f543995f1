"""What counts as seen, and which snapshots are part of the current past."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from standfast.consul.records import HistoryEntry
from standfast.lease.surrender import Rank, rank
from standfast.role.observation import (
    Available,
    Cluster,
    LastHeartbeat,
    heartbeat_seen,
    in_lineage,
    newest,
)
from tests.support.observations import NOW_S, cluster, history_entry, local, snap

SEEN = (5, "a", "a1", 7)
NEXT = (5, "a", "a1", 8)


@pytest.mark.parametrize(
    ("identity", "index", "first_seen"),
    [
        (SEEN, 10, 100.0),
        (SEEN, 11, 100.0),
        (SEEN, 9, 200.0),
        (NEXT, 11, 200.0),
        ((5, "a", "a2", 7), 10, 200.0),
        ((6, "a", "a1", 7), 10, 200.0),
        (None, 11, 200.0),
    ],
)
def test_a_heartbeat_is_as_old_as_its_first_unbroken_sight(
    identity: tuple[int, str, str, int] | None, index: int, first_seen: float
) -> None:
    before = LastHeartbeat(SEEN, 10, 100.0)
    heartbeat = heartbeat_seen(before, identity, index, 200.0)
    assert replace(heartbeat, witnessed=False) == LastHeartbeat(identity, index, first_seen)


@pytest.mark.parametrize(
    ("identity", "index", "unbroken_since", "witnessed"),
    [
        (NEXT, 11, 90.0, True),
        (NEXT, 11, 100.0, True),
        (NEXT, 11, 100.1, False),
        (NEXT, 9, 90.0, False),
        ((5, "a", "a1", 6), 11, 90.0, False),
        ((5, "a", "a2", 8), 11, 90.0, False),
        ((5, "b", "a1", 8), 11, 90.0, False),
        ((6, "a", "a1", 8), 11, 90.0, False),
        (None, 11, 90.0, False),
    ],
    ids=[
        "the next",
        "and no gap since the one before",
        "after a gap",
        "at an older index",
        "an older one",
        "another boot's",
        "another node's",
        "another epoch's",
        "gone",
    ],
)
def test_only_the_next_heartbeat_of_an_epoch_that_was_looked_at_is_witnessed(
    identity: tuple[int, str, str, int] | None, index: int, unbroken_since: float, witnessed: bool
) -> None:
    before = LastHeartbeat(SEEN, 10, 100.0)
    heartbeat = heartbeat_seen(before, identity, index, 200.0, unbroken_since)
    assert heartbeat.witnessed is witnessed
    assert heartbeat_seen(heartbeat, identity, index, 201.0).witnessed is witnessed, (
        "and it stays so"
    )
    assert not heartbeat_seen(None, identity, index, 200.0).witnessed
    missing = LastHeartbeat(None, 10, 100.0)
    assert not heartbeat_seen(missing, identity, index, 200.0, 90.0).witnessed


def test_the_first_look_starts_the_wait() -> None:
    assert heartbeat_seen(None, SEEN, 10, 200.0).first_seen == 200.0


def at_epoch(epoch: int, **bases: float | None) -> Cluster:
    """Consul at that epoch; `e6=60` means that epoch 6 started from a snapshot 60 s old."""
    history = {int(name[1:]): history_entry(int(name[1:]), ago) for name, ago in bases.items()}
    return replace(cluster(None), epoch=epoch, history=history)


@pytest.mark.parametrize(
    ("snapshot_epoch", "ago_s", "view", "counts"),
    [
        (5, 60, at_epoch(5), True),
        (5, 60, at_epoch(6, e6=60), True),
        (5, 61, at_epoch(6, e6=60), True),
        (5, 59, at_epoch(6, e6=60), False),
        (5, 70, at_epoch(7, e6=60, e7=30), True),
        (5, 50, at_epoch(7, e6=60, e7=30), False),
        (6, 20, at_epoch(7, e6=60, e7=30), False),
        (5, 60, at_epoch(6), False),
        (5, 60, at_epoch(6, e6=None), False),
        (6, 60, at_epoch(5), False),
    ],
    ids=[
        "of this epoch",
        "the base itself",
        "before the base",
        "after the base: diverged",
        "two epochs ago",
        "diverged two epochs ago",
        "diverged one epoch ago",
        "no history",
        "a history without a base",
        "from an epoch to come",
    ],
)
def test_the_lineage(snapshot_epoch: int, ago_s: float, view: Cluster, counts: bool) -> None:
    assert in_lineage(snap(ago_s, snapshot_epoch), view) is counts


IDLE = "e6 a/a1 #7 clean ->b surrendered idle"
"""It took over from a snapshot 60 s old, and never served."""


def ended(heartbeat: str, *history_entries: HistoryEntry) -> Cluster:
    return cluster(
        heartbeat,
        history={entry.epoch: entry for entry in (history_entry(6, 60), *history_entries)},
    )


@pytest.mark.parametrize(
    ("mine", "view", "best"),
    [
        ([snap(60), snap(40), snap(50)], ended(IDLE), snap(40)),
        ([snap(40), snap(30, 6)], ended(IDLE), snap(40)),
        ([snap(60), snap(30, 6)], ended(IDLE), snap(30, 6)),
        ([snap(60), replace(snap(40), ahead=True)], ended(IDLE), snap(60)),
        ([snap(60), snap(40, 4)], ended(IDLE, history_entry(5, 55)), snap(60)),
        ([snap(60, 0), snap(40, 0)], ended(IDLE, history_entry(6, 60, follows=0)), snap(60, 0)),
        ([snap(60), snap(40)], ended(IDLE.removesuffix(" idle")), snap(60)),
        ([snap(60), snap(40)], ended("e6 a/a1 #7 serving ->b idle"), snap(60)),
        ([snap(60), snap(40)], replace(ended(IDLE), epoch=7), None),
        ([snap(60), snap(40)], ended("e6 a/a1 #7 clean ->b final:60 idle"), snap(40)),
        ([snap(60), snap(40), snap(20, 6)], ended("e6 a/a1 #7 clean final:20 idle"), snap(20, 6)),
        ([snap(60), snap(40)], ended(IDLE, history_entry(6, None)), None),
    ],
    ids=[
        "what its base lacks",
        "though it took one of its own",
        "nobody has more than its base",
        "a name of a clock that was ahead proves no order",
        "diverged before",
        "of no epoch: taken of a tree that nobody else knows",
        "it served",
        "it may serve yet",
        "another came after it",
        "handed over with what it began with",
        "handed over with a tree that it went on in",
        "its base is not known",
    ],
)
def test_an_epoch_that_never_served_cuts_nothing_off(
    mine: list[Available], view: Cluster, best: Available | None
) -> None:
    assert newest(local("b", mine), view) == best


def test_the_next_epoch_goes_on_from_the_one_before_the_one_that_never_served() -> None:
    view = at_epoch(7, e5=90, e6=60, e7=40)
    follows = replace(view, history={**view.history, 7: history_entry(7, 40, follows=5)})
    assert not in_lineage(snap(40), view) and in_lineage(snap(40), follows)
    assert in_lineage(snap(90, 4), follows) and not in_lineage(snap(80, 4), follows)
    assert not in_lineage(snap(65, 6), follows) and in_lineage(snap(65, 6), view)
    # What is written by hand may name itself another, and lead round and round.
    circle = {
        **view.history,
        7: structs.replace(history_entry(9, 40), follows=8),
        8: history_entry(8, 40),
    }
    assert not in_lineage(snap(90, 4), replace(view, history=circle))
    # Two that never served, one after the other.
    unused = cluster("e7 a/a1 #7 clean ->b surrendered idle", history=follows.history)
    assert newest(local("b", [snap(40), snap(20)]), unused) == snap(20)


def test_without_an_epoch_nothing_is_in_the_lineage() -> None:
    assert not in_lineage(snap(60), cluster(None))


def test_a_history_that_names_no_snapshot_is_doubt() -> None:
    broken = structs.replace(history_entry(6, 60), base="yesterday's")
    assert not in_lineage(snap(60), replace(at_epoch(6), history={6: broken}))


def test_the_newest_is_of_the_latest_epoch_then_of_the_latest_time() -> None:
    view = at_epoch(6, e6=60)
    mine = [snap(70, 5), snap(60, 5), snap(40, 6), snap(50, 6), snap(30, 5)]
    assert newest(local("b", mine), view) == snap(40, 6)
    assert newest(local("b", mine[:2]), view) == snap(60, 5)
    assert newest(local("b"), view) is None


def test_a_name_from_the_future_comes_after_the_others_all_the_same() -> None:
    """The clock was set back after it was taken: nobody knows when, but in which order."""
    mine = [snap(70), snap(-3600), snap(-3601), snap(10)]
    assert newest(local("b", mine), at_epoch(5)) == snap(-3601)


def test_a_future_name_of_an_older_version_comes_before_the_others() -> None:
    """Its clock was ahead, and what was taken after it was set right has earlier names."""
    old = replace(snap(-3600), ahead=True)
    assert newest(local("b", [old, snap(10), snap(60)]), at_epoch(5)) == snap(10)
    assert newest(local("b", [old, snap(10, 4)]), at_epoch(5, e5=-3600)) == old
    assert newest(local("b", [old]), at_epoch(5)) == old


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ((6, 60.0, 10, "a"), (5, 10.0, 99, "b")),
        ((5, 10.0, 10, "a"), (5, 60.0, 99, "b")),
        ((5, 10.0, 99, "a"), (5, 10.0, 10, "b")),
        ((5, 10.0, 10, "b"), (5, 10.0, 10, "a")),
        ((5, 60.0, 10, "a"), (5, None, 99, "b")),
    ],
    ids=["epoch", "snapshot", "priority", "name", "no snapshot's name"],
)
def test_who_should_rather_take_over(
    better: tuple[int, float | None, int, str], worse: tuple[int, float | None, int, str]
) -> None:
    def ranked(epoch: int, ago_s: float | None, priority: int, node: str) -> Rank:
        name = "yesterday's" if ago_s is None else str(snap(ago_s).snapshot.name)
        return rank(epoch, name, priority, node)

    assert ranked(*better) > ranked(*worse)


def test_after_an_orderly_end_the_final_snapshot_is_the_newest_whatever_the_names_say() -> None:
    """Of an older version, say, that took it when the clock had been set back."""
    mine = [snap(-3600), snap(10), snap(60)]
    view = cluster("e5 a/a1 #7 clean ->b final:10")
    assert newest(local("b", mine), view) == snap(10)
    assert newest(local("b", mine[::2]), view) == snap(-3600)
    assert view.leader is not None
    other = replace(view, leader=structs.replace(view.leader, final_id="id-60"))
    assert newest(local("b", mine), other) == snap(60)


def test_a_clusters_defaults_blame_nobody() -> None:
    view = cluster("e5 a/a1 #7 serving", silent=3)
    assert (view.holder_health, view.holder_unanswered_s, view.alive) == ("unknown", 0, frozenset())
    assert view.last_heartbeat.first_seen == NOW_S - 3
