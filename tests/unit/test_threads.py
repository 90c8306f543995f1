"""Threads that may be left behind: what hangs keeps nobody waiting, and errors arrive."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from standfast.errors import Refused, TimedOut
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from standfast.system.threads import Question, all_at_once, start


def test_an_answer_that_does_not_come_in_time_is_waited_for_no_longer() -> None:
    let_go = threading.Event()
    question = Question("hangs", lambda: let_go.wait(60))
    with pytest.raises(TimedOut, match="a disk hangs"):
        question.answer(Deadline.after(0.01), "a disk hangs")
    let_go.set()
    assert question.answer() is True, "it goes on, and may be asked for again"


def test_nothing_is_an_answer_and_an_error_is_raised_where_it_is_waited_for() -> None:
    assert Question("nothing", lambda: None).answer() is None

    def refuses() -> None:
        raise Refused(Reason.BUSY, "not now")

    with pytest.raises(Refused, match="not now"):
        Question("refuses", refuses).answer()


def test_all_are_asked_side_by_side_and_a_single_one_without_a_thread() -> None:
    together = threading.Barrier(3)
    names = ["a", "b", "c"]

    def read(name: str) -> str:
        together.wait(60)
        return name

    assert all_at_once("look", [partial(read, name) for name in names]) == names
    assert all_at_once("look", [threading.current_thread]) == [threading.current_thread()]
    assert all_at_once("look", []) == []


def test_what_runs_beside_keeps_no_process_from_its_end() -> None:
    let_go = threading.Event()
    thread = start("beside", lambda: let_go.wait(60))
    assert (thread.name, thread.daemon) == ("beside", True)
    let_go.set()
