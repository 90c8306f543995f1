"""Waiting for something to become true, with a deadline that fits the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from standfast.system.clock import Deadline
from tests.support import pace

T = TypeVar("T")


def soon(seconds: float) -> Deadline:
    """A deadline to hand to the product: `seconds` on a quiet machine."""
    return Deadline.after(pace.patient(seconds))


class NotInTime(AssertionError):
    """A deadline passed; the message says what was waited for and the last answer."""


def wait_for(
    predicate: Callable[[], T],
    within_s: float,
    what: str,
    interval_s: float = 0.02,
    late: type[Exception] = NotInTime,
) -> T:
    """The first truthy answer of `predicate`, asked at least twice; else `late` is raised.

    `within_s` is for a quiet machine. When it has passed, the machine is measured again: on one
    that has become busy meanwhile the wait goes on.
    """
    started = time.monotonic()
    limit_s = within_s * pace.factor()
    while True:
        over = time.monotonic() - started >= limit_s
        answer = predicate()
        if answer:
            return answer
        if over:
            longer_s = within_s * pace.measure()
            if longer_s <= limit_s:
                raise late(f"not within {limit_s:.1f} s: {what} (last answer: {answer!r})")
            limit_s = longer_s
        time.sleep(interval_s)
