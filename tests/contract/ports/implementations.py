"""What a port's suite runs on: its implementations, each with the way to make one for a test.

A suite is a module `test_<port>.py` with `PORTS`, the protocols that it is the contract of, and
`IMPLEMENTATIONS`. tests/unit/test_ports.py finds whoever implements a port and stands in no suite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pytest

S = TypeVar("S")


@dataclass(frozen=True)
class Implementation(Generic[S]):
    """Classes that meet the port together, and how a test gets at them."""

    parts: tuple[type, ...]
    make: Callable[[Path], AbstractContextManager[S]]
    """In an empty directory; gives what the suite's tests ask for."""
    marks: Sequence[pytest.MarkDecorator] = ()
    """What it needs of the machine."""
    name: str = ""
    """For the test's name, where the classes don't tell it."""

    def __str__(self) -> str:
        return self.name or "+".join(part.__name__ for part in self.parts)


def each(implementations: Sequence[Implementation[S]]) -> list[object]:
    """The parameters of a suite's fixture."""
    return [
        pytest.param(implementation, id=str(implementation), marks=implementation.marks)
        for implementation in implementations
    ]
