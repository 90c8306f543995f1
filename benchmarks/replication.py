"""What replication costs beside a bare pipe and btrbk (root).

Invariant: what is compared was measured in turns, on the same content, with nothing left to be
written beforehand.

`sender` and `sink` are parts of it, started by itself as processes.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import sh

from benchmarks.contestants import BarePipe, Btrbk, Samples
from benchmarks.figures import Benchmark, Figure
from standfast.assembly.parts import open_store
from standfast.config.load import load_volume
from standfast.consul.gateway import ConsulGateway
from standfast.names import diverged_name
from standfast.replication import wire
from standfast.replication.cycle import Sender
from standfast.system.clock import utc_now
from tests.support.checkout import CHECKOUT
from tests.support.commands import LabError
from tests.support.replication_bed import GIB, MIB, VOLUME, Bed, GeneratedTree, MeasuredCycle, bed
from tests.support.volumes import why_no_btrfs

STEPS = ("full", "1 % changed", "unchanged")
INCREMENTS = 4
"""Increments (and unchanged cycles) after each full send."""
SLOWER = 1.05
OVERHEAD_S = 0.150
"""A cycle may take this and SLOWER times what the bare pipe does, and the sync."""
PARALLEL = 1.3
MEMORY_MIB = 60.0
FAILBACK_PERCENT = 3.0
LINK_BYTES_S = 30 * MIB
ANSWER_S = 600.0


@dataclass(frozen=True)
class ReplicatedTree:
    """Nodes with their disks, and the tree that "a" has."""

    bed: Bed
    tree: GeneratedTree


@contextmanager
def planted(tree: GeneratedTree) -> Iterator[ReplicatedTree]:
    """A bed for all contestants. Nodes that send have a variant for each kind of receiver."""
    sizes = {"a": 6 * GIB, **dict.fromkeys(("b", "c", "d", "bare", "btrbk"), 4 * GIB)}
    with bed(sizes) as place:
        sinks = ["env", f"PYTHONPATH={CHECKOUT}", sys.executable]
        place.configure("a", OursAsProcess.variant)
        place.configure(
            "a", "-sink", replication={"command": [*sinks, "-m", "benchmarks.replication", "sink"]}
        )
        place.configure("a", "-link", replication={"bandwidth_limit": LINK_BYTES_S})
        tree.build(place.live("a"))
        yield ReplicatedTree(place, tree)


@contextmanager
def many_files() -> Iterator[ReplicatedTree]:
    with planted(GeneratedTree("1 GiB in 20000 files", 20_000)) as place:
        yield place


@contextmanager
def one_file() -> Iterator[ReplicatedTree]:
    with planted(GeneratedTree("1 GiB in one file", 1)) as place:
        yield place


# -- the contestants that are ours -----------------------------------------------------------------


class Ours:
    """A cycle of a sender that runs already; its receiver starts with the cycle, as with ssh."""

    node = "b"

    def __init__(self, place: Bed) -> None:
        self._bed = place
        self.sent_bytes: dict[str, list[float]] = {}

    def begin(self) -> None:
        self._bed.forget("a")

    def run(self, step: str, samples: Samples) -> None:
        with running(self._bed, "a") as cycle:
            done = cycle({"standby": self.node, "full": step == "full"})
        samples.add(step, "ours", done["seconds"])
        self.sent_bytes.setdefault(step, []).append(done["sent_bytes"])


class OursAsProcess:
    """What a timer starts: with the interpreter's start. It shares no snapshot with `Ours`."""

    node = "c"
    variant = "-process"

    def __init__(self, place: Bed) -> None:
        self._bed = place
        self.cycles: list[MeasuredCycle] = []

    def begin(self) -> None:
        pass  # `Ours` forgets for both

    def run(self, step: str, samples: Samples) -> None:
        done = self._bed.replicate("a", self.node, full=step == "full", variant=self.variant)
        self.cycles.append(done)
        samples.add(step, "ours, a process", done.seconds)


@contextmanager
def running(place: Bed, node: str) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A sender whose start is over: what it is asked for is timed inside it."""
    questions: queue.Queue[str | None] = queue.Queue()
    answers: queue.Queue[str] = queue.Queue()
    process = sh.Command(sys.executable)(
        *("-m", "benchmarks.replication", "sender"),
        _in=questions,
        _out=answers.put,
        _err=sys.stderr,
        _done=lambda *_: answers.put(""),
        _cwd=str(CHECKOUT),
        _env=place.environment(node),
        _bg=True,
        _bg_exc=False,
    )

    def answer() -> dict[str, Any]:
        line = answers.get(timeout=ANSWER_S)
        if not line:
            raise LabError("the sender ended; what it said stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        questions.put(json.dumps(question) + "\n")
        return answer()

    try:
        answer()
        yield ask
        questions.put(None)
        process.wait(ANSWER_S)
    finally:
        if process.is_alive():
            process.kill()


def sender(questions: IO[str]) -> None:
    """The process of `running`."""
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
    wire.parse(words.readline().decode(), wire.Hello)
    say(wire.Welcome((), 2**40))
    begin = wire.parse(words.readline().decode(), wire.Begin)
    say(wire.Ready())
    while words.read(MIB):
        pass
    say(wire.Published(str(begin.name), begin.content_id))


# -- what is measured ------------------------------------------------------------------------------


def cycles(place: ReplicatedTree, rounds: int) -> Sequence[Figure]:
    """Full, increments and unchanged, each contestant in turn and first as often as the others."""
    tree, on = place.tree, place.bed
    ours, process, samples = Ours(on), OursAsProcess(on), Samples()
    contestants: list[Any] = [BarePipe(on), ours, process, Btrbk(on)]
    turns = 0
    for _ in range(rounds):
        for contestant in contestants:
            on.reset(contestant.node)
            contestant.begin()
        for step in (STEPS[0], *STEPS[1:] * INCREMENTS):
            turns += 1
            if step == STEPS[1]:
                tree.change(on.live("a"), 0.01, seed=100 + turns)
            for turn in range(len(contestants)):
                on.settle()
                contestants[(turns + turn) % len(contestants)].run(step, samples)
    return [
        *(figure for step in STEPS for figure in of_step(step, samples)),
        Figure("1 % changed: sent", "MiB", [sent / MIB for sent in ours.sent_bytes[STEPS[1]]]),
        *(
            Figure(f"most memory of `{role}`", "MiB", peaks, MEMORY_MIB)
            for role, peaks in memory(process.cycles).items()
        ),
    ]


def of_step(step: str, samples: Samples) -> Sequence[Figure]:
    pipe_s, sync_s = samples.median(step, "pipe"), samples.median(step, "sync")
    others = {name: samples.taken[step, name] for name in ("pipe and sync", "btrbk")}
    whole = samples.taken[step, "ours, a process"]
    return [
        Figure(
            step,
            "s",
            samples.taken[step, "ours"],
            SLOWER * pipe_s + sync_s + OVERHEAD_S,
            {"bare pipe and sync": others["pipe and sync"], "btrbk": others["btrbk"]},
        ),
        Figure(f"{step}: with the start of its process", "s", whole),
    ]


def memory(done: Sequence[MeasuredCycle]) -> dict[str, list[float]]:
    """Of our processes, by role: the peak of each cycle that was seen, MiB."""
    peaks: dict[str, list[float]] = {}
    for cycle in done:
        for role, peak in cycle.peaks_mib.items():
            if role.startswith("standfast"):
                peaks.setdefault(role, []).append(peak)
    return peaks


RECEIVERS = {
    "": ("receivers on the same machine", None),
    "-link": (f"links of {LINK_BYTES_S // MIB} MiB/s each", PARALLEL),
    "-sink": ("receivers that throw the stream away", None),
}


def three_standbys(place: ReplicatedTree, rounds: int) -> Sequence[Figure]:
    """One standby alone, then three at once, full sends."""
    on, figures = place.bed, []
    for variant, (receivers, promise) in RECEIVERS.items():
        took: dict[int, list[float]] = {1: [], 3: []}
        for _ in range(rounds):
            for standbys in (("b",), ("b", "c", "d")):
                on.reset("b", "c", "d")
                on.forget("a")
                on.settle()
                began = time.monotonic()
                waits = [on.start("a", name, full=True, variant=variant) for name in standbys]
                for wait in waits:
                    wait()
                took[len(standbys)].append(time.monotonic() - began)
        times = [three_s / one_s for one_s, three_s in zip(took[1], took[3], strict=True)]
        figures += [
            Figure(f"three at once, {receivers}", "s", took[3], baselines={"one": took[1]}),
            Figure(f"times as long as one, {receivers}", "times", times, promise),
        ]
    return figures


def failback(place: ReplicatedTree, _rounds: int) -> Sequence[Figure]:
    """b takes over what it has, 1 % is written there, and a gets the difference back: once."""
    on, tree = place.bed, place.tree
    on.reset("b")
    on.forget("a")
    first = on.replicate("a", "b", full=True)
    there = open_store(on.config("b"))
    newest = max(there.snapshots(), key=lambda snapshot: snapshot.name)
    open_store(on.config("a")).keep_aside(diverged_name("services", 1, utc_now()))
    (on.mount("a") / "services-standby").mkdir(exist_ok=True)
    there.create_live_from(newest)
    tree.change(on.live("b"), 0.01, 999)
    on.lead("b", 2)
    on.settle()
    done = on.replicate("b", "a")
    if done.full:
        raise LabError("the failback sent everything")
    share = 100 * done.sent_bytes / tree.size_bytes
    return [
        Figure("sent, of the whole tree", "%", [share], FAILBACK_PERCENT),
        Figure("the way back", "s", [done.seconds], baselines={"the full send": [first.seconds]}),
    ]


def benchmark(
    name: str,
    about: str,
    on: Callable[[], AbstractContextManager[ReplicatedTree]],
    measure: Callable[[ReplicatedTree, int], Sequence[Figure]],
    round_s: float,
    rounds: int = 1,
) -> Benchmark[ReplicatedTree]:
    return Benchmark(
        f"replication-{name}",
        about,
        on=on,
        measure=measure,
        rounds=rounds,
        quick=1,
        seconds=(20, round_s),
        why_not=why_no_btrfs,
    )


CYCLES = (
    "A cycle to one standby, without ssh. Promised are 5 % more than `btrfs send | btrfs receive` "
    "with its snapshot takes, its sync, and 0.15 s."
)
AT_ONCE = "Full sends to three standbys at once."
FAILBACK = "The old primary gets back the 1 % that its successor changed."
BENCHMARKS = (
    benchmark("many-files", CYCLES, many_files, cycles, 45, rounds=2),
    benchmark("three-standbys", AT_ONCE, many_files, three_standbys, 100),
    benchmark("failback-many-files", FAILBACK, many_files, failback, 15),
    benchmark("one-file", CYCLES, one_file, cycles, 45, rounds=2),
    benchmark("failback-one-file", FAILBACK, one_file, failback, 15),
)


if __name__ == "__main__":
    {"sender": lambda: sender(sys.stdin), "sink": sink}[sys.argv[1]]()
