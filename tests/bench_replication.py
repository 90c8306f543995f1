"""What replication costs beside a bare pipe and btrbk: python -m tests.bench_replication (root).

Invariant: what stands in one line was measured in turns, on the same content, with nothing left
to be written beforehand; every figure is a median and says of how many.

`sender` and `sink` are parts of it, started by itself as processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from standfast.adapters.consul import ConsulGateway
from standfast.adapters.stores import open_store
from standfast.clock import utc_now
from standfast.config.load import load_volume
from standfast.names import diverged_name
from standfast.replication import wire
from standfast.replication.cycle import Sender
from tests.bench_contestants import CHECKOUT, BarePipe, Btrbk, Samples, btrbk
from tests.replication_bed import GIB, MIB, VOLUME, Bed, Cycle, Tree, bed

TREES = (Tree("1 GiB in 20000 files", 20_000), Tree("1 GiB in one file", 1))
STEPS = ("full", "1 % changed", "unchanged")
INCREMENTS = 4
"""Increments (and unchanged cycles) after each full send."""
SLOWER = 1.05
OVERHEAD_S = 0.150
PARALLEL = 1.3
MEMORY_MIB = 60.0
FAILBACK = 0.03
LINK_BYTES_S = 30 * MIB


@dataclass
class Peaks:
    """Peak memory in MiB, by process."""

    by_role: dict[str, float] = field(default_factory=dict)

    def add(self, done: Cycle) -> None:
        for role, peak in done.peaks_mib.items():
            self.by_role[role] = max(peak, self.by_role.get(role, 0.0))


class Ours:
    """A cycle of a sender that runs already; its receiver starts with the cycle, as with ssh."""

    node = "b"

    def __init__(self, place: Bed) -> None:
        self._bed = place
        self.sent_bytes: dict[str, int] = {}

    def begin(self) -> None:
        self._bed.forget("a")

    def run(self, step: str, samples: Samples) -> None:
        with Running(self._bed, "a") as sender:
            done = sender.cycle(self.node, full=step == "full")
        samples.add(step, "ours", done["seconds"])
        self.sent_bytes[step] = done["sent_bytes"]


class OursAsProcess:
    """What a timer starts: with the interpreter's start. It shares no snapshot with `Ours`."""

    node = "c"
    variant = "-process"

    def __init__(self, place: Bed) -> None:
        self._bed = place
        self.peaks = Peaks()

    def begin(self) -> None:
        pass  # `Ours` forgets for both

    def run(self, step: str, samples: Samples) -> None:
        done = self._bed.replicate("a", self.node, full=step == "full", variant=self.variant)
        self.peaks.add(done)
        samples.add(step, "ours, a process", done.seconds)


class Running:
    """A sender whose start is over: its cycles are timed inside it."""

    def __init__(self, place: Bed, node: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench_replication", "sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            env=place.environment(node),
        )

    def __enter__(self) -> Running:
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def cycle(self, standby: str, *, full: bool) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"standby": standby, "full": full}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the sender ended; what it said stands above")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


def sender(questions: IO[str]) -> None:
    """The process of `Running`."""
    config = load_volume(VOLUME)
    store, gateway = open_store(config), ConsulGateway.from_config(config)
    store.snapshots()
    gateway.get(config.key("leader"))
    print("{}", flush=True)
    for line in questions:
        asked = json.loads(line)
        began = time.monotonic()
        done = Sender(config, store, gateway).cycle(asked["standby"], full=asked["full"])
        seconds = time.monotonic() - began
        print(json.dumps({"seconds": seconds, "sent_bytes": done.sent_bytes}), flush=True)


def sink() -> None:
    """A standby that costs nothing: it throws the stream away, and acknowledges."""

    def say(message: wire.Message) -> None:
        sys.stdout.write(wire.dump(message) + "\n")
        sys.stdout.flush()

    words = os.fdopen(0, "rb", buffering=0)
    wire.parse_hello(words.readline().decode())
    say(wire.Welcome((), 2**40))
    begin = wire.parse_begin(words.readline().decode())
    say(wire.Ready())
    while words.read(MIB):
        pass
    say(wire.Published(str(begin.name), begin.content_id))


# -- the parts ---------------------------------------------------------------------------------


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def single(place: Bed, tree: Tree, rounds: int, other: Sequence[str] | None) -> Peaks:
    """Full, increments and unchanged, each contestant in turn and first as often as the others."""
    tree.build(place.live("a"))
    ours, process, samples = Ours(place), OursAsProcess(place), Samples()
    contestants: list[Any] = [BarePipe(place), ours, process]
    contestants += [Btrbk(place, other)] if other else []
    turns = 0
    for _ in range(rounds):
        for one in contestants:
            place.reset(one.node)
            one.begin()
        for step in (STEPS[0], *STEPS[1:] * INCREMENTS):
            turns += 1
            if step == STEPS[1]:
                tree.change(place.live("a"), 0.01, seed=100 + turns)
            for turn in range(len(contestants)):
                place.settle()
                contestants[(turns + turn) % len(contestants)].run(step, samples)
    print_single(tree, samples, ours)
    return process.peaks


def print_single(tree: Tree, samples: Samples, ours: Ours) -> None:
    print(f"\n{tree.name}: seconds, medians (least-most), of content changed alike for all")
    columns = ["pipe", "sync", "pipe+sync", "ours", "ours, a process", "btrbk"]
    print(f"{'':<12}" + "".join(f"{column:>24}" for column in columns))
    for step in STEPS:
        cells = []
        for column in columns:
            if (step, column) in samples.taken:
                cells.append(f"{samples.median(step, column):.3f} ({samples.spread(step, column)})")
            else:
                cells.append("-")
        count = len(samples.taken[step, "ours"])
        print(f"{step:<12}" + "".join(f"{cell:>24}" for cell in cells) + f"   n={count}")
    own_s = samples.median(STEPS[2], "ours") - samples.median(STEPS[2], "pipe+sync")
    for step in STEPS[:2]:
        allowed_s = SLOWER * samples.median(step, "pipe") + samples.median(step, "sync")
        taken_s = samples.median(step, "ours")
        above = (taken_s - samples.median(step, "sync")) / samples.median(step, "pipe") - 1
        print(
            f"  {step}: without the sync {100 * above:+.1f} % of the pipe; allowed are "
            f"{allowed_s:.3f} s, taken {taken_s:.3f} s: {verdict(taken_s <= allowed_s)}; without "
            f"what a cycle costs that sends nothing {taken_s - own_s:.3f} s: "
            f"{verdict(taken_s - own_s <= allowed_s)}; {ours.sent_bytes[step] / MIB:.2f} MiB sent"
        )
    print(
        f"  unchanged: {1000 * own_s:.0f} ms more than pipe and sync, allowed are "
        f"{1000 * OVERHEAD_S:.0f} ms: {verdict(own_s < OVERHEAD_S)}; "
        f"{ours.sent_bytes[STEPS[2]]} bytes sent",
        flush=True,
    )


def parallel(place: Bed, rounds: int, variant: str) -> list[Cycle]:
    """One standby alone, then three at once, full sends; seconds, and the ratio."""
    took: dict[int, list[float]] = {1: [], 3: []}
    cpu_s: dict[int, list[float]] = {1: [], 3: []}
    cycles: list[Cycle] = []
    for _ in range(rounds):
        for standbys in (("b",), ("b", "c", "d")):
            place.reset("b", "c", "d")
            place.forget("a")
            place.settle()
            began = time.monotonic()
            waits = [place.start("a", name, full=True, variant=variant) for name in standbys]
            done = [wait() for wait in waits]
            took[len(standbys)].append(time.monotonic() - began)
            cpu_s[len(standbys)].append(sum(one.cpu_s for one in done))
            cycles += done
    one_s, three_s = statistics.median(took[1]), statistics.median(took[3])
    what = {
        "": "all three receivers on this machine",
        "-link": f"links of {LINK_BYTES_S // MIB} MiB/s each",
        "-sink": "receivers that throw the stream away",
    }[variant]
    print(
        f"three standbys, {what}: one {one_s:.1f} s, three at once {three_s:.1f} s, "
        f"{three_s / one_s:.2f} times (n={rounds}; wished {PARALLEL}: "
        f"{verdict(three_s / one_s <= PARALLEL)}); CPU {statistics.median(cpu_s[1]):.1f} s and "
        f"{statistics.median(cpu_s[3]):.1f} s on {os.cpu_count()} cores",
        flush=True,
    )
    return cycles


def failback(place: Bed, tree: Tree) -> None:
    """b takes over what it has, 1 % is written there, and a gets the difference back."""
    place.reset("b")
    place.forget("a")
    place.replicate("a", "b", full=True)
    there = open_store(place.config("b"))
    newest = max(there.snapshots(), key=lambda one: one.name)
    open_store(place.config("a")).keep_aside(diverged_name("services", 1, utc_now()))
    (place.mount("a") / "services-standby").mkdir(exist_ok=True)
    there.create_live_from(newest)
    changed = tree.change(place.live("b"), 0.01, 999)
    place.lead("b", 2)
    place.settle()
    done = place.replicate("b", "a")
    share = done.sent_bytes / tree.size_bytes
    print(
        f"failback, {tree.name}: {changed / MIB:.1f} MiB changed on the standby, "
        f"{done.sent_bytes / MIB:.1f} MiB sent back ({100 * share:.2f} % of it) in "
        f"{done.seconds:.2f} s: {verdict(share <= FAILBACK and not done.full)}"
    )


def memory(tree: Tree, peaks: Peaks) -> None:
    said = ", ".join(f"{role} {peak:.0f}" for role, peak in sorted(peaks.by_role.items()))
    most = max(peak for role, peak in peaks.by_role.items() if role.startswith("standfast"))
    print(f"peak memory, {tree.name}, MiB: {said}: {verdict(most < MEMORY_MIB)}", flush=True)


def measure(tree: Tree, rounds: int, other: Sequence[str] | None, parts: Sequence[str]) -> None:
    sizes = {"a": 6 * GIB, **dict.fromkeys(("b", "c", "d", "bare", "btrbk"), 4 * GIB)}
    with bed(sizes) as place:
        sinks = [*("env", f"PYTHONPATH={CHECKOUT}", sys.executable)]
        sinks += ["-m", "tests.bench_replication", "sink"]
        place.configure("a", OursAsProcess.variant)
        place.configure("a", "-sink", replication={"command": sinks})
        place.configure("a", "-link", replication={"bandwidth_limit": LINK_BYTES_S})
        peaks = Peaks()
        if "single" in parts:
            peaks = single(place, tree, rounds, other)
        else:
            tree.build(place.live("a"))
        if "parallel" in parts and tree.files > 1:
            for variant in ("", "-link", "-sink"):
                for done in parallel(place, max(1, rounds // 2), variant):
                    peaks.add(done)
        if peaks.by_role:
            memory(tree, peaks)
        if "failback" in parts:
            failback(place, tree)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("sender", "sink"))
    parser.add_argument("--rounds", type=int, default=3, help="full sends of each contestant")
    parser.add_argument("--trees", default="0,1", help="0: many files, 1: one file")
    parser.add_argument("--parts", default="single,parallel,failback")
    args = parser.parse_args()
    if args.part == "sender":
        sender(sys.stdin)
    elif args.part == "sink":
        sink()
    else:
        load = os.getloadavg()[0]
        print(f"replication: {os.cpu_count()} cores, load {load:.2f} at the start")
        other = btrbk()
        for index in args.trees.split(","):
            measure(TREES[int(index)], args.rounds, other, args.parts.split(","))


if __name__ == "__main__":
    main()
