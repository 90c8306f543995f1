"""Commands that fail on purpose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from standfast.errors import CommandFailed
from standfast.system import run


@contextlib.contextmanager
def failing(op: str, times: int | None = None) -> Iterator[None]:
    """Has exactly the operation `op` fail inside, at most `times` times."""
    left = times
    previous = run.hook

    def fail(name: str) -> None:
        nonlocal left
        if previous is not None:
            previous(name)
        if name == op and left != 0:
            left = None if left is None else left - 1
            raise CommandFailed(f"{op}: made to fail by a test", returncode=1)

    run.hook = fail
    try:
        yield
    finally:
        run.hook = previous
