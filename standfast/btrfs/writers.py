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
from standfast.mounts.processes import PROC, unit_of
from standfast.node.ports import Writer
from standfast.system.clock import Deadline
from standfast.system.lines import lines_of
from standfast.system.mountinfo import around
from standfast.system.run import run


def writers_of(live: Path, run_dir: Path, deadline: Deadline) -> Sequence[Writer]:
    """Returns the processes with a file of the subvolume open or mapped for writing, and loop
    devices on one.

    Raises TimedOut, CommandFailed and StandfastError when that can't be said.
    """
    table = KernelMounts(run_dir)
    here = table.here()
    mount = around(here, live)
    if mount is None:
        raise StandfastError(f"{live} is on no file system that is mounted here")
    device = mount.device
    mounts = [*here, *(other for space in table.namespaces() for other in space.mounts)]
    own = {mount.id for mount in mounts if mount.device == device}
    others = {mount.id for mount in mounts} - own
    program = [sys.executable, "-I", "-S", str(Path(writers_look.__file__).resolve())]
    argv = [*program, str(live), device, joined(own), joined(others)]
    return parse(run(argv, deadline=deadline, op="look-for-writers").stdout)


def joined(numbers: Iterable[int]) -> str:
    """Returns numbers in order, joined by commas."""
    return ",".join(map(str, sorted(numbers)))


def parse(text: str) -> Sequence[Writer]:
    """Returns the writers that the program printed."""
    writers = []
    for line in lines_of(text):
        pid, name, target = line.split("\t")
        words = str(ast.literal_eval(name)), str(ast.literal_eval(target))
        writers.append(Writer(int(pid), *words, unit_of(PROC / pid)))
    return writers
