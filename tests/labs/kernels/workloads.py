"""What clients run: programs inside a node, each with a log of what it did and when.

Invariant: an `ok` of a writing workload is a record that fsync acknowledged; the log is on the
node's own root, so it outlives the server, and ends with the node.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from types import TracebackType

from tests.labs.kernels.image import GUEST
from tests.labs.kernels.node import VirtualMachine
from tests.support.commands import LabError, wait_for

RECORD_BYTES = 16
PROGRAM = "/usr/local/lib/lab/workload.py"
LOGS = "/var/lib/lab"
WRITERS = ("kept_open", "reopened", "flock", "bound", "contained")
KINDS = (*WRITERS, "reader", "walk")
_started = count()
# `bound` and `contained` reach a subdirectory of the volume through a bind mount; the latter in a
# mount namespace of its own, where what is mounted outside later doesn't show: as in a container.
_SCRIPTS = {
    "bound": 'mkdir -p "$1" "$2" && mount --bind "$1" "$2" && shift 2 && exec "$@"',
    "contained": 'mkdir -p "$1" "$2" && exec unshare -m --propagation private '
    '/bin/sh -c \'mount --bind "$1" "$2" && shift 2 && exec "$@"\' sh "$@"',
}


@dataclass(frozen=True, slots=True)
class WorkloadEvent:
    """One line of a workload's log; t_s is on the host's monotonic clock, took_s how long."""

    t_s: float
    event: str
    """begin, start (of an action), ok or error."""
    seq: int
    took_s: float
    error: str
    """The errno's name: ESTALE, EIO, ..."""
    text: str
    """What was read or counted; of a write the file's device, major:minor."""

    @property
    def on_volume(self) -> bool:
        """Whether it was written to NFS or btrfs, and not below an empty mount point."""
        return self.text.startswith("0:")


class Workload:
    """A running program; a context manager that ends it."""

    def __init__(self, node: VirtualMachine, kind: str, pid: int, log: str, path: str) -> None:
        self.node = node
        self.kind = kind
        self.pid = pid
        """In the node."""
        self.log = log
        self.path = path
        """Of the file that a writer writes, as the rest of the node sees it."""
        self._bound = ""

    def events(self) -> list[WorkloadEvent]:
        """Everything so far, in order."""
        events = []
        for line in self.node.read(self.log).splitlines():
            try:
                doc = json.loads(line)
            except ValueError as error:
                raise LabError(f"{self.kind} on {self.node.name} says: {line}") from error
            t_s = self.node.host_time_s(doc["t"])
            events.append(
                WorkloadEvent(t_s, doc["event"], doc["seq"], doc["took"], doc["error"], doc["text"])
            )
        return events

    def done(self, after_s: float = 0.0) -> list[WorkloadEvent]:
        """What succeeded after a host's monotonic time; of a writer: the acknowledged records.

        What a path-based writer wrote while nothing was mounted, on the node's own root, is no
        success.
        """
        elsewhere = self.kind in WRITERS
        return [
            e
            for e in self.events()
            if e.event == "ok" and e.t_s >= after_s and (e.on_volume or not elsewhere)
        ]

    def errors(self, after_s: float = 0.0) -> list[WorkloadEvent]:
        """What failed after a host's monotonic time."""
        return [e for e in self.events() if e.event == "error" and e.t_s >= after_s]

    def hangs(self) -> bool:
        """Whether an action has begun and not ended."""
        return self.events()[-1].event == "start"

    def state(self) -> str:
        """The process's state letter as ps(1) shows it ("D": uninterruptible); "" if it ended."""
        script = f"cut -d')' -f2- /proc/{self.pid}/stat 2>/dev/null | cut -d' ' -f2"
        return self.node.sh(script, check=False).strip()

    def wait_until_done(self, after_s: float = 0.0, timeout_s: float = 60.0) -> WorkloadEvent:
        """The first success that ended after a host's monotonic time."""
        what = f"{self.kind} on {self.node.name} succeeds"
        return wait_for(lambda: self.done(after_s), timeout_s, what, interval_s=0.3)[0]

    def longest_gap_s(self, after_s: float = 0.0) -> float:
        """The longest time between two successes, seconds."""
        times = [e.t_s for e in self.done(after_s)]
        return max((b - a for a, b in pairwise(times)), default=0.0)

    def stop(self) -> list[WorkloadEvent]:
        """End it; every event. One that hangs in the kernel is left behind, killed when it wakes.

        A bind mount of its own is taken away.
        """
        self.node.run("kill", "-KILL", str(self.pid), check=False)
        if self.kind == "bound":
            self.node.run("umount", "-l", _bind(self.kind), check=False)
        return self.events()

    def __enter__(self) -> Workload:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.node.pid:
            self.stop()


def _bind(kind: str) -> str:
    return f"/mnt/{kind}"


def start(
    node: VirtualMachine, kind: str, directory: str = "/data/services", interval_s: float = 0.2
) -> Workload:
    """Start a workload of one of KINDS on a node, in a directory of the volume.

    The writers write `KIND-NODE` there (`bound` and `contained` in the subdirectory `sub`); the
    reader reads `reopened-NODE`, and fails with ENOENT until that one has begun.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind} is none of {', '.join(KINDS)}")
    node.write(PROGRAM, (GUEST / "workload.py").read_text())
    name = f"{'reopened' if kind == 'reader' else kind}-{node.name}"
    subdirectory = f"{directory}/sub" if kind in _SCRIPTS else directory
    inside = _bind(kind) if kind in _SCRIPTS else directory
    doing = "reopened" if kind == "bound" else "kept_open" if kind == "contained" else kind
    argv = ["/usr/bin/python3", "-ISu", PROGRAM, doing, inside, name, str(interval_s)]
    if kind in _SCRIPTS:
        argv = ["/bin/sh", "-c", _SCRIPTS[kind], "sh", subdirectory, inside, *argv]
    # One of each: a program that hangs since an earlier test may still come back to its own.
    log = f"{LOGS}/{kind}-{next(_started)}.log"
    node.sh(f"mkdir -p {LOGS}")
    pid = node.control.detach(argv, log)
    workload = Workload(node, kind, pid, log, f"{subdirectory}/{name}")
    wait_for(workload.events, 30.0, f"{shlex.join(argv)} begins on {node.name}", 0.1)
    return workload


def missing_records(content: str, acknowledged: Sequence[WorkloadEvent]) -> list[int]:
    """The numbers of acknowledged records that a writer's file doesn't hold."""
    return [
        e.seq
        for e in acknowledged
        if content[e.seq * RECORD_BYTES : (e.seq + 1) * RECORD_BYTES]
        != f"{e.seq:0{RECORD_BYTES - 1}d}\n"
    ]
