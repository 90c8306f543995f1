"""The receiver's wait for the sender's next line: it ends, and it gives way."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from standfast.errors import Refused, TimedOut
from standfast.replication.receive import _read_line
from standfast.system.clock import Deadline


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_line_is_read_and_nothing_of_what_follows(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.write(write, b"hello\nstream")
    assert _read_line(read, Deadline.after(5)) == "hello"
    assert os.read(read, 100) == b"stream"


def test_a_sender_that_says_nothing_is_given_up(pipe: tuple[int, int]) -> None:
    with pytest.raises(TimedOut, match="the sender said nothing in time"):
        _read_line(pipe[0], Deadline.after(0.1))


def test_a_sender_that_says_nothing_gives_way_to_one_that_waits(pipe: tuple[int, int]) -> None:
    def give_up(idle_s: float) -> str | None:
        return "another sender waits" if idle_s > 0.5 else None

    with pytest.raises(TimedOut, match="another sender waits"):
        _read_line(pipe[0], Deadline.after(60), give_up)


def test_a_sender_that_leaves_in_the_middle_is_refused() -> None:
    read, write = os.pipe()
    os.write(write, b"hel")
    os.close(write)
    with pytest.raises(Refused, match="left in the middle of a line"):
        _read_line(read, Deadline.after(5))
    os.close(read)
