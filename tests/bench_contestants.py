"""The others of the benchmark of replication: a bare pipe, and btrbk; and what is noted of each.

Invariant: each has a receiving disk of its own, and sends the same content as the others.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.replication_bed import Bed

CHECKOUT = Path(__file__).resolve().parents[1]


def btrbk() -> list[str] | None:
    """The command: the one on PATH, or Debian's, unpacked below .cache (nothing is installed)."""
    if found := shutil.which("btrbk"):
        return [found]
    cache = CHECKOUT / ".cache/btrbk"
    script = cache / "root/usr/bin/btrbk"
    if not script.exists():
        cache.mkdir(parents=True, exist_ok=True)
        for argv in (
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "btrbk"],
            ["sh", "-c", "dpkg -x btrbk_*.deb root"],
        ):
            done = subprocess.run(argv, cwd=cache, capture_output=True, text=True)
            if done.returncode != 0:
                said = done.stderr.strip().splitlines()[-1:]
                print(f"btrbk is LEFT OUT: it can't be fetched ({said}); apt-get install btrbk")
                return None
    return ["perl", str(script)]


@dataclass
class Samples:
    """Seconds, by step and column."""

    taken: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, step: str, column: str, seconds: float) -> None:
        self.taken.setdefault((step, column), []).append(seconds)

    def median(self, step: str, column: str) -> float:
        return statistics.median(self.taken[step, column])

    def spread(self, step: str, column: str) -> str:
        values = self.taken[step, column]
        return f"{min(values):.2f}-{max(values):.2f}"


def timed(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


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
        pipe_s = timed(self._pipe)
        sync_s = timed(self._bed.disks[self.node].sync)
        samples.add(step, "pipe", pipe_s)
        samples.add(step, "sync", sync_s)
        samples.add(step, "pipe+sync", pipe_s + sync_s)

    def _pipe(self) -> None:
        self._count += 1
        snapshot = self._bed.mount("a") / f"bare.{self._count}"
        quietly(["btrfs", "subvolume", "snapshot", "-r", str(self._bed.live("a")), str(snapshot)])
        base = [] if self._last is None else ["-p", str(self._last)]
        send = subprocess.Popen(
            ["btrfs", "-q", "send", *base, str(snapshot)], stdout=subprocess.PIPE
        )
        target = str(self._bed.mount(self.node))
        received = subprocess.run(["btrfs", "-q", "receive", target], stdin=send.stdout)
        if send.wait() or received.returncode:
            raise SystemExit("the bare pipe failed")
        if self._last is not None:
            quietly(["btrfs", "subvolume", "delete", str(self._last)])
        self._last = snapshot


class Btrbk:
    """`btrbk run` with one subvolume and one target; what it doesn't sync is synced after it."""

    node = "btrbk"

    def __init__(self, place: Bed, argv: Sequence[str]) -> None:
        self._bed = place
        self._argv = argv
        self._config = place.root / "btrbk.conf"

    def begin(self) -> None:
        snapshots = self._bed.mount("a") / "btrbk"
        for path in snapshots.glob("*"):
            quietly(["btrfs", "subvolume", "delete", str(path)])
        snapshots.mkdir(exist_ok=True)
        self._config.write_text(
            f"timestamp_format long-iso\nvolume {self._bed.mount('a')}\n  snapshot_dir btrbk\n"
            f"  subvolume services\n    target {self._bed.mount(self.node)}\n"
        )

    def run(self, step: str, samples: Samples) -> None:
        samples.add(step, "btrbk", timed(self._run))

    def _run(self) -> None:
        quietly([*self._argv, "-q", "-c", str(self._config), "run"])


def quietly(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr or done.stdout}")
