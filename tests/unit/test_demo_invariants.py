"""The demo's own judge: each invariant is seen broken by what breaks it, and by nothing else."""

from __future__ import annotations

import pytest

from standfast.consul.records import HistoryEntry, Holder, Leader, LeaderState
from standfast.demo import invariants as names
from standfast.demo.invariants import Broken, Invariants


def history_entry(epoch: int, node: str) -> HistoryEntry:
    return HistoryEntry(epoch, node, None, "takeover", None, 0.0, 1.0)


def leader(epoch: int, node: str, instance: str = "i") -> Leader:
    return Leader(epoch, Holder(node, instance), 1, LeaderState.SERVING, ())


def broken(invariants: Invariants) -> str:
    with pytest.raises(Broken) as caught:
        invariants.check()
    assert str(caught.value).startswith(f"INVARIANT BROKEN: {caught.value.name}: ")
    assert caught.value.exit_code == 1
    return caught.value.name


def test_a_failover_and_the_way_back_break_nothing() -> None:
    watched = Invariants()
    for epoch, node, at in ((1, "zippy", 1.0), (1, "zippy", 2.0), (2, "c1", 9.0), (3, "zippy", 20)):
        watched.answered(node, epoch, at)
        watched.consul(epoch, leader(epoch, node), [history_entry(epoch, node)])
    watched.trees({"a": "/live"})
    watched.trees({"a": "/diverged", "b": "/live"})
    watched.lines_kept("the volume", [])
    watched.check()
    assert [entry.node for entry in watched.history_entries()] == ["zippy", "c1", "zippy"]


def test_an_answer_of_an_ended_epoch_after_the_next_began_is_two_servers() -> None:
    watched = Invariants()
    watched.answered("zippy", 1, 1.0)
    watched.answered("c1", 2, 2.0)
    watched.check()
    watched.answered("zippy", 1, 2.1)
    assert broken(watched) == names.ONE_SERVER


def test_answers_that_are_reported_late_are_judged_by_their_own_time() -> None:
    watched = Invariants()
    watched.answered("c1", 2, 2.0)
    watched.answered("zippy", 1, 1.9)
    watched.check()
    watched.answered("c1", 2, 1.8)
    assert broken(watched) == names.ONE_SERVER


@pytest.mark.parametrize("epoch", [None, 1])
def test_a_second_server_in_one_epoch_or_in_none_is_found(epoch: int | None) -> None:
    watched = Invariants()
    watched.answered("zippy", 1, 1.0)
    watched.answered("c1", epoch, 1.0)
    assert broken(watched) == names.ONE_SERVER


def test_two_holders_of_one_epoch_are_found() -> None:
    watched = Invariants()
    watched.consul(1, leader(1, "zippy"), [])
    watched.consul(1, leader(1, "zippy", "after a restart"), [])
    watched.check()
    watched.consul(1, leader(1, "c1"), [])
    assert broken(watched) == names.ONE_OWNER


def test_a_history_that_is_rewritten_or_denied_by_the_lease_is_found() -> None:
    rewritten = Invariants()
    rewritten.consul(1, None, [history_entry(1, "zippy")])
    rewritten.consul(1, None, [history_entry(1, "c1")])
    assert broken(rewritten) == names.ONE_OWNER
    denied = Invariants()
    denied.consul(1, leader(1, "c1"), [history_entry(1, "zippy")])
    assert broken(denied) == names.ONE_OWNER


@pytest.mark.parametrize("later", [None, 2])
def test_an_epoch_that_falls_is_found(later: int | None) -> None:
    watched = Invariants()
    watched.consul(3, None, [])
    watched.consul(later, None, [])
    assert broken(watched) == names.EPOCH_RISES


def test_a_tree_that_is_gone_is_found_and_a_renamed_one_is_not_gone() -> None:
    watched = Invariants()
    watched.trees({"a": "/live"})
    assert not watched.lacks({"a": "/diverged"})
    assert watched.lacks({"b": "/live"})
    watched.trees({"b": "/live"})
    assert broken(watched) == names.NOTHING_DELETED


def test_a_lost_line_is_named_and_the_first_breach_stays() -> None:
    watched = Invariants()
    watched.lines_kept("c1's volume", [7, 3])
    watched.trees({"a": "/live"})
    watched.trees({})
    with pytest.raises(Broken, match=r"2 lines are not in c1's volume: 3, 7"):
        watched.check()
