"""Mutants: small faults of the program, each of which a fast test has to catch.

Each `*.toml` here is a list of them: the kind of fault, the file, the text that is exchanged (it
stands there once), and the test that fails then. `make test` checks the list, `make torture` tries
every mutant.
"""

from __future__ import annotations

import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.support.checkout import CHECKOUT

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault and the test that catches it."""

    kind: str
    """The class of fault that it stands for; in the file: `class`."""
    file: str
    old: str
    new: str
    caught_by: str
    """`tests/...py::test_...`, a test of `make test`."""

    def __str__(self) -> str:
        return f"{self.kind} ({self.file})"

    def applied(self, text: str) -> str:
        """The file's text with the fault; ValueError unless there is exactly one place for it."""
        if (places := text.count(self.old)) != 1:
            raise ValueError(f"{self}: its old text stands {places} times in the file, not once")
        return text.replace(self.old, self.new)


def load() -> tuple[Mutant, ...]:
    """All of them, by file name and in the order of the file."""
    return tuple(
        Mutant(**{"kind" if name == "class" else name: value for name, value in entry.items()})
        for path in sorted(HERE.glob("*.toml"))
        for entry in tomllib.loads(path.read_text())["mutant"]
    )


def tracked_files() -> tuple[str, ...]:
    """What belongs to the project, relative to its root."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    )
    return tuple(name for name in done.stdout.split("\0") if name and (CHECKOUT / name).is_file())
