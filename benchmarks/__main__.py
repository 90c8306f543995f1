"""Measure, and write docs/benchmarks.json and the page made from it: make bench.

Without names everything is measured that can be measured here. The exit status is 1 when a promise
was missed, or when something that was asked for was not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import (
    cluster,
    demo,
    elections,
    exporter,
    guard,
    lab,
    monitoring,
    nomad,
    page,
    replication,
)
from benchmarks.figures import Benchmark, Document, Run, begin, missed, put, render, sentence
from standfast.system.clock import format_utc, monotonic, utc_now
from tests.support.checkout import CHECKOUT
from tests.support.commands import sh

DOCUMENT = CHECKOUT / "docs/benchmarks.json"
SUBJECTS = (guard, exporter, page, demo, lab, cluster, elections, nomad, monitoring, replication)
ALL: tuple[Benchmark[Any], ...] = tuple(
    benchmark for subject in SUBJECTS for benchmark in subject.BENCHMARKS
)


# -- what to measure -----------------------------------------------------------------------------


class UnknownName(Exception):
    """No benchmark has that name; the message lists those that there are."""


def chosen(names: Sequence[str]) -> list[Benchmark[Any]]:
    """Those named, or all, in the order in which they share what they are measured on."""
    unknown = sorted(set(names) - {benchmark.name for benchmark in ALL})
    if unknown:
        raise UnknownName(
            f"no benchmark is called {', '.join(unknown)}; there are: "
            f"{', '.join(benchmark.name for benchmark in ALL)}"
        )
    return [benchmark for benchmark in ALL if not names or benchmark.name in names]


def with_rounds(benchmark: Benchmark[Any], rounds: int | None, quick: bool) -> Benchmark[Any]:
    """The benchmark with the rounds that were asked for."""
    told = benchmark.quick if quick else benchmark.rounds
    return replace(benchmark, rounds=told if rounds is None else rounds)


def seconds(benchmarks: Iterable[Benchmark[Any]]) -> float:
    """About how long they take together."""
    groups = [list(group) for _, group in groupby(benchmarks, lambda benchmark: benchmark.on)]
    return sum(
        max(benchmark.seconds[0] for benchmark in group)
        + sum(benchmark.seconds[1] * benchmark.rounds for benchmark in group)
        for group in groups
    )


# -- measuring -----------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def this_run() -> Run:
    """This machine, today, and the commit of the checkout."""
    words = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
    )
    cpu = next((text for key, text in words.items() if key.strip() == "model name"), "unknown")
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = {
        "cpu": cpu.strip(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    git = ("git", "-C", CHECKOUT)
    commit = sh(*git, "rev-parse", "--short=12", "HEAD", check=False).strip() or "unknown"
    # What this writes itself is no change of what is measured.
    changed = sh(*git, "status", "--porcelain", "--", ".", ":!docs", check=False).strip()
    return Run(machine, format_utc(utc_now())[:10], commit + (" with changes" if changed else ""))


@dataclass
class Measuring:
    """Takes one figure after the other; `taken` has those of this run, `kept` all."""

    run: Run
    taken: Document
    kept: Document
    into: Path | None
    failed: list[str]

    def measure(self, benchmarks: Sequence[Benchmark[Any]]) -> None:
        """All of them; one that fails doesn't keep those after it from being measured."""
        for _, group in groupby(benchmarks, lambda benchmark: benchmark.on):
            left = list(group)
            try:
                with ExitStack() as stack:
                    say(
                        f"bench: making what {', '.join(benchmark.name for benchmark in left)} need"
                    )
                    bed = stack.enter_context(left[0].on())
                    while left:
                        self._measure_one(left[0], bed)
                        del left[0]
            except Exception:
                say(traceback.format_exc())
                self.failed += [
                    f"{benchmark.name} was not measured: see above" for benchmark in left
                ]

    def _measure_one(self, benchmark: Benchmark[Any], bed: Any) -> None:
        say(f"bench: {benchmark.name}, rounds: {benchmark.rounds}")
        began_s = monotonic()
        figures = benchmark.measure(bed, benchmark.rounds)
        for figure in figures:
            say(f"  {sentence(figure)}")
        say(f"  ({monotonic() - began_s:.0f} s)")
        self.taken = put(self.taken, benchmark, figures, self.run)
        self.kept = put(self.kept, benchmark, figures, self.run)
        if self.into is not None:  # at once: an hour's run may be interrupted
            write(self.kept, self.into)


def write(document: Document, path: Path) -> None:
    """The document, in the order of the benchmarks that there are, and the page beside it."""
    sections = document["benchmarks"]
    ordered = {
        benchmark.name: sections[benchmark.name] for benchmark in ALL if benchmark.name in sections
    }
    document = {**document, "benchmarks": ordered}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(render(document))


def read(path: Path) -> Document | None:
    """The document of the runs before this one."""
    if not path.exists():
        return None
    document: Document = json.loads(path.read_text())
    return document


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measure only these")
    parser.add_argument("--rounds", type=int, help="how often, for all of them")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="print the document, write nothing")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be measured")
    asked = parser.parse_args(argv)
    if asked.rounds is not None and asked.rounds < 1:
        parser.error(f"--rounds {asked.rounds}: at least one is needed")
    try:
        asked.benchmarks = [
            with_rounds(benchmark, asked.rounds, asked.quick) for benchmark in chosen(asked.names)
        ]
    except UnknownName as error:
        parser.error(str(error))
    return asked


def main(argv: Sequence[str]) -> int:
    asked = arguments(argv)
    possible: list[Benchmark[Any]] = []
    left_out: dict[str, list[str]] = {}
    for benchmark in asked.benchmarks:
        if (reason := benchmark.why_not()) is None:
            possible.append(benchmark)
        else:
            left_out.setdefault(reason, []).append(benchmark.name)
    load = os.getloadavg()[0]
    say(
        f"bench: {len(possible)} benchmarks, about {seconds(possible) / 60:.0f} min; load "
        f"{load:.1f} on {os.cpu_count()} cores{': NOT A QUIET MACHINE' if load > 0.5 else ''}"
    )
    if asked.dry_run:
        for benchmark in possible:
            print(
                f"{benchmark.name}: {benchmark.about} Rounds: {benchmark.rounds}, "
                f"{seconds([benchmark]):.0f} s."
            )
    else:
        run = this_run()
        older = read(DOCUMENT)
        if older is not None and older["machine"] != run.machine:
            say(f"bench: {DOCUMENT.name} has figures of another machine; it begins anew")
        into = None if asked.json else DOCUMENT
        measuring = Measuring(run, begin(run), begin(run, older), into, [])
        measuring.measure(possible)
        wrong = measuring.failed + [f"MISSED: {text}" for text in missed(measuring.taken)]
        if asked.json:
            print(json.dumps(measuring.taken, indent=1, ensure_ascii=False))
        for text in wrong:
            say(f"bench: {text}")
    for reason, names in left_out.items():
        say(f"bench: LEFT OUT: {', '.join(names)}: {reason}")
    # Without names it is enough to measure what can be measured here.
    return 1 if (not asked.dry_run and wrong) or (asked.names and left_out) else 0


if __name__ == "__main__":
    # A run that is ended leaves no lab and no disk behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
