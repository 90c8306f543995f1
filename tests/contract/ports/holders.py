"""A process that holds a file."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HOLDER = """
import os, sys
flags = os.O_RDWR if sys.argv[1] == "write" else os.O_RDONLY
os.open(sys.argv[2], flags)
print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(file: Path, how: str) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, how, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield
