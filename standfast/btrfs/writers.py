"""Who can still write into a subvolume, by whatever mount and in whatever mount namespace.

Invariant: "nobody" is said only after every process was looked at; a look that doesn't end in time
is an error. A read-only subvolume refuses to be opened for writing, but what was opened, or mapped,
before goes on being written (tried on Linux 6.18): it would be missing from a final snapshot.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from standfast.btrfs import writers_look
from standfast.errors import StandfastError
from standfast.mounts.mounts import KernelMounts
from standfast.node.ports import Writer
from standfast.system.clock import Deadline
from standfast.system.mountinfo import root_of
from standfast.system.run import run


def writers_of(live: Path, run_dir: Path, deadline: Deadline) -> Sequence[Writer]:
    """Processes with a file of the subvolume open or mapped for writing, and loop devices on one.

    Raises TimedOut, CommandFailed and StandfastError when that can't be said.
    """
    table = KernelMounts(run_dir)
    here = table.here()
    around = root_of(here, live)
    if around is None:
        raise StandfastError(f"{live} is on no file system that is mounted here")
    device = around[0]
    mounts = [*here, *(one for space in table.namespaces() for one in space.mounts)]
    own = {one.id for one in mounts if one.device == device}
    others = {one.id for one in mounts} - own
    program = [sys.executable, "-I", "-S", str(Path(writers_look.__file__).resolve())]
    argv = [*program, str(live), device, joined(own), joined(others)]
    return parse(run(argv, deadline=deadline, op="look-for-writers").stdout)


def joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def parse(text: str) -> Sequence[Writer]:
    """What the program printed."""
    found = []
    for line in text.splitlines():
        pid, name, target = line.split("\t")
        found.append(Writer(int(pid), str(ast.literal_eval(name)), str(ast.literal_eval(target))))
    return found
