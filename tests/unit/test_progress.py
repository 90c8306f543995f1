"""How far a replication is: figures, lines and the bar."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios

import pytest

from standfast.replication import progress
from standfast.replication.progress import Bar, Lines, Meter, describe, showing
from standfast.text import size
from tests.unit.terminals import TerminalOutput

MIB = 2**20


class Gone(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


class Ticks:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_is_that_of_late_and_tells_the_time_left() -> None:
    meter = Meter(0.0)
    for second in range(1, 101):
        meter.add(10 * MIB, float(second))
    for second in range(101, 161):
        meter.add(1 * MIB, float(second))
    assert meter.moved == 1060 * MIB
    assert meter.rate(160.0) == pytest.approx(MIB, rel=0.05)
    assert meter.left_s(1120 * MIB, 160.0) == pytest.approx(60.0, rel=0.05)


def test_nothing_is_said_of_the_end_where_the_estimate_is_unknown_or_was_too_low() -> None:
    meter = Meter(0.0)
    meter.add(10 * MIB, 1.0)
    assert describe(meter, None, 1.0) == "10.0 MiB, 10.0 MiB/s"
    assert describe(meter, 5 * MIB, 1.0) == "10.0 MiB, 10.0 MiB/s"
    assert describe(meter, 20 * MIB, 1.0) == "10.0 MiB of about 20.0 MiB, 10.0 MiB/s, 1 s left"


def test_lines_come_after_five_seconds_then_every_ten_and_at_the_end() -> None:
    said: list[str] = []
    clock = Ticks()
    lines = Lines("c1", said.append, clock)
    for _ in range(30):
        lines(MIB, 60 * MIB)
        clock.now += 1.0
    assert said == [
        "c1: 6.0 MiB of about 60.0 MiB, 1.2 MiB/s, 45 s left",
        "c1: 16.0 MiB of about 60.0 MiB, 1.1 MiB/s, 41 s left",
        "c1: 26.0 MiB of about 60.0 MiB, 1.0 MiB/s, 33 s left",
    ]
    lines.close()
    lines.close()
    assert said[3:] == ["c1: 30.0 MiB sent in 30 s, 1.0 MiB/s"]


def test_a_short_stream_says_nothing() -> None:
    said: list[str] = []
    lines = Lines("c1", said.append, Ticks())
    lines(112, None)
    lines.close()
    assert said == []


def test_a_terminal_gets_a_bar_with_bytes_rate_and_time_left() -> None:
    out = TerminalOutput()
    bar = Bar("c1", 0, out)
    bar(3 * MIB, 4 * MIB)
    bar._bar.refresh()
    bar.close()
    shown = out.getvalue()
    assert "c1:  75%" in shown and "3.00M/4.00M" in shown and "B/s" in shown
    again = TerminalOutput()
    with showing("c1", out=again) as show:
        show(MIB, 4 * MIB)
    assert "c1:" in again.getvalue()


def test_a_bar_whose_estimate_was_too_low_goes_on_without_an_end() -> None:
    out = TerminalOutput()
    bar = Bar("c1", 0, out)
    bar(3 * MIB, 4 * MIB)
    bar(3 * MIB, 4 * MIB)
    bar._bar.refresh()
    bar.close()
    assert "6.00MB" in out.getvalue()
    assert "150%" not in out.getvalue()


def test_quiet_is_quiet_on_a_terminal_too() -> None:
    out = TerminalOutput()
    with showing("c1", quiet=True, out=out) as show:
        show(3 * MIB, 4 * MIB)
    assert out.getvalue() == ""


def test_elsewhere_than_on_a_terminal_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    out = io.StringIO()
    with showing("c1", out=out) as show:
        show(MIB, None)
    assert out.getvalue().startswith("c1: 1.0 MiB, ")


@pytest.mark.parametrize(("columns", "begins"), [(80, "\rc1: "), (0, "c1: 1.0 MiB, ")])
def test_a_console_without_a_width_gets_lines(
    monkeypatch: pytest.MonkeyPatch, columns: int, begins: str
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(writer, "w") as out, showing("c1", out=out) as show:
        show(MIB, None)
    with os.fdopen(reader, "rb") as shown:
        assert shown.read1(1000).decode().startswith(begins)


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    with showing("c1", out=Gone()) as show:
        show(MIB, None)
        show(MIB, None)


@pytest.mark.parametrize(
    ("count", "text"),
    [(112, "112 B"), (1536, "1.5 KiB"), (5 * MIB, "5.0 MiB"), (2**40 * 2048, "2048.0 TiB")],
)
def test_sizes_read_as_people_say_them(count: int, text: str) -> None:
    assert size(count) == text
