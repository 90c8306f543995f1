"""Whoever joins the clockwork from outside: a test that waits in virtual time."""

from __future__ import annotations

import pytest

from tests.sim.clockwork import FOREVER, Clockwork, NodeClock, SimEvent, SimProcess, Violation


def test_what_happens_while_a_test_waits_has_happened_when_it_goes_on() -> None:
    clockwork = Clockwork()
    happened: list[float] = []

    def other() -> None:
        clockwork.sleep(1)
        happened.append(clockwork.now)

    clockwork.start(SimProcess("other", NodeClock()), other)
    with clockwork.joined_by(SimProcess("test", NodeClock(rate=2.0))):
        clockwork.sleep(6)
    assert (clockwork.now, happened) == (3.0, [1.0])
    clockwork.run_until(4.0)


def test_a_violation_in_an_event_is_raised_where_the_test_waits() -> None:
    clockwork = Clockwork()

    def break_a_rule() -> None:
        raise Violation("two serve")

    clockwork.after(1.0, break_a_rule)
    with (
        pytest.raises(Violation, match="two serve"),
        clockwork.joined_by(SimProcess("test", NodeClock())),
    ):
        clockwork.sleep(5)
    assert clockwork.current is None


def test_a_wait_for_what_never_comes_is_an_error() -> None:
    clockwork = Clockwork()
    with (
        pytest.raises(AssertionError, match="nothing is to come"),
        clockwork.joined_by(SimProcess("test", NodeClock())),
    ):
        SimEvent(clockwork).wait(None)
    assert clockwork.now == FOREVER
