"""Stopping a process before its n-th effect, whatever that is: no list of stages to go stale.

An effect is what outlives the process: another program started, a file opened for writing, a name
made, moved or removed. Python itself announces each (PEP 578); the hook can't be taken away again,
so this is for processes that end anyway.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest

EFFECTS_AT_LEAST = 12
"""If a process that takes part in a replication has fewer, the counting is broken."""
some_or_every_effect = pytest.mark.parametrize(
    "stride",
    [pytest.param(5, id="some"), pytest.param(1, id="every", marks=pytest.mark.torture)],
)
_EFFECTS = frozenset(
    {"subprocess.Popen", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink"}
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def is_effect(event: str, arguments: tuple[Any, ...]) -> bool:
    if event != "open":
        return event in _EFFECTS
    path, _mode, flags = arguments
    nothing = str(path) == os.devnull or str(path).endswith(".lock")
    return isinstance(flags, int) and bool(flags & _WRITING) and not nothing


def at_effect(number: int, happen: Callable[[], None]) -> None:
    """From now on `happen` is called before this process's effect `number`, counted from 0."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if left < 0 or not is_effect(event, arguments):
            return
        left -= 1
        if left < 0:
            happen()

    sys.addaudithook(hook)


def effects(stride: int) -> Iterable[int]:
    """Numbers to try until a run has no more effects: every one, or from the first ones on some."""
    return itertools.count(stride // 2, stride)
