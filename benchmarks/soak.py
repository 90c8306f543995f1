"""Replication under a steady write load, for as long as wanted (root).

    python -m benchmarks.soak --seconds 600 [--interval 5] [--tail 60]

Writes 5 MB and 200 small files a second, replicates as the timer does (a new process each time,
`interval` seconds after the last one began), and samples how old the standby is. Then the same
with an interval of 1 s for `tail` seconds, and what both cost beside the load alone.

`load` is the writing process, started by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standfast.assembly.parts import open_store
from standfast.config.model import Config
from tests.support.checkout import CHECKOUT
from tests.support.commands import Process
from tests.support.replication_bed import GIB, MIB, Bed, MeasuredCycle, bed, command

OLDEST_S = 8.0
SAMPLE_S = 0.5
BIG_BYTES_S = 5_000_000
BIG_FILE_BYTES = 256 * MIB
SMALL_FILES_S = 200
SMALL_FILES = 10_000
SMALL_BYTES = 2048
TICK_S = 0.1
KEEP_OWN = 10
KEEP_PUBLISHED = 20
GROWTH = 1.25
"""By what the end may exceed the start before it is called growth (noise of medians)."""


def load(root: Path, pids_parent: int) -> None:
    """Write at the promised rate until whoever started us is gone."""
    source = random.Random(7)
    small, position, began, ticks = 0, 0, time.monotonic(), 0
    (root / "small").mkdir(exist_ok=True)
    with (root / "big").open("wb") as big:
        while os.getppid() == pids_parent:
            big.seek(position)
            big.write(source.randbytes(int(BIG_BYTES_S * TICK_S)))
            big.flush()
            position = (position + int(BIG_BYTES_S * TICK_S)) % BIG_FILE_BYTES
            for _ in range(int(SMALL_FILES_S * TICK_S)):
                small = (small + 1) % SMALL_FILES
                path = root / "small" / f"{small:05d}"
                path.with_suffix(".new").write_bytes(source.randbytes(SMALL_BYTES))
                path.with_suffix(".new").rename(path)
            ticks += 1
            late_s = time.monotonic() - began - ticks * TICK_S
            if late_s > 2.0:
                print(f"the load is {late_s:.1f} s behind its rate", flush=True)
                began += late_s
            time.sleep(max(0.0, -late_s))


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    argv = [sys.executable, "-m", "benchmarks.soak", "load", str(root), str(os.getpid())]
    process = Process(argv, cwd=CHECKOUT, out=lambda line: print(line, end="", flush=True))
    try:
        yield
        if not process.alive():
            raise SystemExit("the writing process has ended; what it said stands above")
    finally:
        process.kill()
        process.wait(30.0)


# -- what is measured ------------------------------------------------------------------------


@dataclass(frozen=True)
class Meter:
    """The machine's counters at one moment."""

    at_s: float
    busy_s: float
    written_bytes: dict[str, int]

    @classmethod
    def read(cls, place: Bed) -> Meter:
        user, nice, system, _idle, _wait, irq, softirq = (
            int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:8]
        )
        busy_s = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        written = {name: disk.written_bytes() for name, disk in place.disks.items()}
        return cls(time.monotonic(), busy_s, written)


def cost(before: Meter, after: Meter) -> str:
    """CPU of the whole machine, and what the disks were given to write, per second."""
    seconds = after.at_s - before.at_s
    cores = (after.busy_s - before.busy_s) / seconds
    disks = ", ".join(
        f"{name} {(after.written_bytes[name] - before.written_bytes[name]) / seconds / 1e6:.1f}"
        for name in before.written_bytes
    )
    return f"{cores:.2f} cores busy, written MB/s: {disks}"


@dataclass(frozen=True)
class Sample:
    """The standby at one moment."""

    at_s: float
    age_s: float
    published: int
    own: int
    unfinished: int


@dataclass
class SnapshotSampler:
    """Samples two nodes' snapshots until the block is left."""

    primary: Config
    standby: Config
    samples: list[Sample] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __enter__(self) -> SnapshotSampler:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(SAMPLE_S):
            try:
                self.samples.append(self._sample())
            except Exception as error:
                self.wrong.append(repr(error))

    def _sample(self) -> Sample:
        there, here = open_store(self.standby), open_store(self.primary)
        published = [snapshot for snapshot in there.snapshots() if snapshot.received]
        newest = max(snapshot.name.stamp for snapshot in published)
        own = [snapshot for snapshot in here.snapshots() if not snapshot.received]
        staged = len(there.unfinished())
        return Sample(time.monotonic(), time.time() - newest, len(published), len(own), staged)


@dataclass
class IntervalRun:
    """Cycles and samples of one interval."""

    interval_s: float
    cycles: list[MeasuredCycle] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    cost: str = ""

    def of_cycles(self, what: str) -> list[float]:
        if what == "seconds":
            return [cycle.seconds for cycle in self.cycles]
        return [cycle.peaks_mib[what] for cycle in self.cycles if what in cycle.peaks_mib]


def soak(place: Bed, interval_s: float, seconds: float) -> IntervalRun:
    """Cycles as a timer with OnUnitActiveSec starts them: from start to start."""
    run = IntervalRun(interval_s)
    before = Meter.read(place)
    end = time.monotonic() + seconds
    with SnapshotSampler(place.config("a"), place.config("b")) as watch:
        while (started := time.monotonic()) < end:
            try:
                run.cycles.append(place.replicate("a", "b"))
            except Exception as error:
                run.failures.append(str(error))
            time.sleep(max(0.0, started + interval_s - time.monotonic()))
    run.samples, run.cost = watch.samples, cost(before, Meter.read(place))
    run.failures += watch.wrong
    return run


# -- what is said ----------------------------------------------------------------------------


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and of the last fifth; the first two values, the warm-up, are out."""
    rest = values[2:] if len(values) > 10 else values
    part = max(1, len(rest) // 5)
    return statistics.median(rest[:part]), statistics.median(rest[-part:])


def report(run: IntervalRun, *, judge: bool) -> bool:
    """Print it; whether all that was promised is true."""
    ages = [sample.age_s for sample in run.samples]
    print(f"\ninterval {run.interval_s:g} s, {len(run.cycles)} cycles, {len(ages)} samples")
    print(f"  the standby's age: median {statistics.median(ages):.1f} s, most {max(ages):.1f} s")
    print(f"  cost of everything on both nodes and the load: {run.cost}")
    cpu_s = statistics.median(cycle.cpu_s for cycle in run.cycles)
    sent = statistics.median(cycle.sent_bytes for cycle in run.cycles)
    print(f"  a cycle: {cpu_s:.2f} s of CPU (both ends), {sent / 1e6:.1f} MB sent, medians")
    wrong = [f"a cycle failed: {text}" for text in run.failures[:3]]
    if any(cycle.full for cycle in run.cycles):
        wrong.append("a cycle sent everything")
    wrong += grown(run)
    if max(ages) > OLDEST_S and judge:
        late = [f"{sample.age_s:.1f}" for sample in run.samples if sample.age_s > OLDEST_S]
        wrong.append(f"{len(late)} samples above {OLDEST_S} s: {', '.join(late[:5])}")
    most_published = max(sample.published for sample in run.samples)
    most_own = max(sample.own for sample in run.samples)
    print(f"  snapshots, most at any time: {most_own} own, {most_published} published")
    if judge and most_own > KEEP_OWN + 2:
        wrong.append(f"{most_own} own snapshots at a time, kept should be {KEEP_OWN}")
    if judge and most_published > KEEP_PUBLISHED + 3:
        wrong.append(f"{most_published} published at a time, kept should be {KEEP_PUBLISHED}")
    for text in wrong:
        print(f"  NOT AS PROMISED: {text}")
    return not wrong or not judge


def grown(run: IntervalRun) -> list[str]:
    """What is larger at the end than at the start."""
    wrong = []
    for what, unit, least in (
        ("seconds", "s", 0.2),
        ("standfast replicate", "MiB", 3.0),
        ("standfast receive", "MiB", 3.0),
    ):
        values = run.of_cycles(what)
        if not values:
            wrong.append(f"{what} was not seen")
            continue
        first, last = ends(values)
        name = "cycle time" if what == "seconds" else f"memory of {what}"
        print(
            f"  {name}: at the start {first:.2f} {unit}, at the end {last:.2f}, most "
            f"{max(values):.2f}"
        )
        if last > first * GROWTH and last - first > least:
            wrong.append(f"{name} grew from {first:.2f} to {last:.2f} {unit}")
    return wrong


def soak_all(seconds: float, interval_s: float, tail_s: float) -> bool:
    tables: dict[str, dict[str, Any]] = {
        "retention_own": {"keep_last": KEEP_OWN},
        "retention_published": {
            **{"keep_last": KEEP_PUBLISHED, "hourly": 0, "daily": 0, "weekly": 0, "monthly": 0}
        },
    }
    with bed({"a": 8 * GIB, "b": 8 * GIB}, tables) as place:
        live = place.live("a")
        command("btrfs", "-q", "subvolume", "create", live)
        with writing(live):
            time.sleep(10)
            place.settle()
            before = Meter.read(place)
            time.sleep(30)
            place.settle()
            print(f"the load alone: {cost(before, Meter.read(place))}", flush=True)
            place.replicate("a", "b", full=True)
            good = report(soak(place, interval_s, seconds), judge=True)
            sys.stdout.flush()
            if tail_s > 0:
                report(soak(place, 1.0, tail_s), judge=False)
    return good


def main() -> int:
    if sys.argv[1:2] == ["load"]:
        load(Path(sys.argv[2]), int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description="Replication under a steady write load")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument(
        "--tail",
        type=float,
        default=60.0,
        help="seconds with an interval of 1 s, shown and not judged",
    )
    args = parser.parse_args()
    print(f"soak: {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} at the start", flush=True)
    return 0 if soak_all(args.seconds, args.interval, args.tail) else 1


if __name__ == "__main__":
    sys.exit(main())
