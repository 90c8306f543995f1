"""The others of the benchmark of replication: a bare pipe, and btrbk; and what is noted of each.

Invariant: each has a receiving disk of its own, and sends the same content as the others. What they
run is timed by the shell that runs it, so that starting this shell counts for nobody.
"""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.checkout import CHECKOUT
from tests.support.commands import sh
from tests.support.replication_bed import Bed

TIMED = """
set -o pipefail
began=$EPOCHREALTIME
{ %s
} >&2
ended=$EPOCHREALTIME
echo $((${ended/./} - ${began/./}))
"""
SCRIPT_S = 600.0


def timed(script: str) -> float:
    """Seconds that a shell script takes; LabError with its words when it fails."""
    return int(sh("bash", "-ec", TIMED % script, timeout_s=SCRIPT_S)) / 1e6


def btrbk() -> str:
    """The command: the one on PATH, or Debian's, unpacked below .cache (nothing is installed)."""
    if installed := shutil.which("btrbk"):
        return installed
    cache = CHECKOUT / ".cache/btrbk"
    script = cache / "root/usr/bin/btrbk"
    if not script.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fetch = "apt-get -qq -o APT::Sandbox::User=root download btrbk; dpkg -x btrbk_*.deb root"
        sh("bash", "-ec", f"cd {cache}; {fetch}", timeout_s=SCRIPT_S)
    return f"perl {script}"


@dataclass
class Samples:
    """Seconds, by step and column."""

    taken: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, step: str, column: str, seconds: float) -> None:
        self.taken.setdefault((step, column), []).append(seconds)

    def median(self, step: str, column: str) -> float:
        return statistics.median(self.taken[step, column])


class BarePipe:
    """`btrfs subvolume snapshot -r`, then `btrfs send | btrfs receive`; the sync by itself."""

    node = "bare"

    def __init__(self, place: Bed) -> None:
        self._bed = place
        self._count = 0
        self._last: Path | None = None

    def begin(self) -> None:
        self._last = None

    def run(self, step: str, samples: Samples) -> None:
        self._count += 1
        source, target = self._bed.mount("a"), self._bed.mount(self.node)
        snapshot, last = source / f"bare.{self._count}", self._last
        pipe = [
            f"btrfs -q subvolume snapshot -r {self._bed.live('a')} {snapshot}",
            f"btrfs -q send {f'-p {last} ' if last else ''}{snapshot} | btrfs -q receive {target}",
            f"btrfs -q subvolume delete {last}" if last else "true",
        ]
        pipe_s = timed("\n".join(pipe))
        sync_s = timed(f"btrfs filesystem sync {target}")
        self._last = snapshot
        samples.add(step, "pipe", pipe_s)
        samples.add(step, "sync", sync_s)
        samples.add(step, "pipe and sync", pipe_s + sync_s)


class Btrbk:
    """`btrbk run` with one subvolume and one target; what it doesn't sync is synced after it."""

    node = "btrbk"

    def __init__(self, place: Bed) -> None:
        self._bed = place
        self._config = place.root / "btrbk.conf"
        self._command = f"{btrbk()} -q -c {self._config} run"

    def begin(self) -> None:
        snapshots = self._bed.mount("a") / "btrbk"
        for path in snapshots.glob("*"):
            sh("btrfs", "subvolume", "delete", path)
        snapshots.mkdir(exist_ok=True)
        self._config.write_text(
            f"timestamp_format long-iso\nvolume {self._bed.mount('a')}\n  snapshot_dir btrbk\n"
            f"  subvolume services\n    target {self._bed.mount(self.node)}\n"
        )

    def run(self, step: str, samples: Samples) -> None:
        samples.add(step, "btrbk", timed(self._command))
