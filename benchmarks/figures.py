"""What was measured, the document that keeps it, and the page that is made from the document.

Invariant: pure. The page says only what the document says; a promise is kept or missed by the
median; what was not measured this time stays as it was, with its own date and commit.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Bed = TypeVar("Bed")
Document = dict[str, Any]
PAGE = """\
# Benchmarks

`make bench` measures this and writes it to [benchmarks.json](benchmarks.json), from which this page
is made: don't edit either. A promise holds for the median; `make bench` fails when one is missed.
What a figure is compared with was measured in the same run.

Machine: {cpu}, {cores} cores, {memory_gib} GiB of memory, Linux {kernel}, Python {python}.
Last run: {date}, commit {commit}.
"""
HEAD = """\
| | median | least to most | n | promised at most | for comparison |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured."""

    name: str
    unit: str
    samples: Sequence[float]
    promise: float | None = None
    """The median is promised to be at most this."""
    baselines: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The same without the product, or what stands for it, in the same run."""


@dataclass(frozen=True)
class Benchmark(Generic[Bed]):
    """A function that returns figures, and what it needs."""

    name: str
    about: str
    on: Callable[[], AbstractContextManager[Bed]]
    """What it is measured on; made once for all benchmarks in a row that have the same."""
    measure: Callable[[Bed, int], Sequence[Figure]]
    """With so many rounds."""
    rounds: int
    quick: int
    """Rounds, as a rule and with --quick."""
    seconds: tuple[float, float]
    """About how long: what it is measured on, and a round."""
    why_not: Callable[[], str | None] = lambda: None
    """Why it can't be measured here, or None."""


@dataclass(frozen=True, slots=True)
class Run:
    """Where and when it is measured."""

    machine: Mapping[str, Any]
    date: str
    commit: str


# -- the document --------------------------------------------------------------------------------


def spread(samples: Sequence[float]) -> dict[str, float]:
    """What is kept of samples: four significant digits say more than they are worth."""
    kept = {"median": statistics.median(samples), "min": min(samples), "max": max(samples)}
    return {name: float(f"{value:.4g}") for name, value in kept.items()} | {"n": len(samples)}


def sentence(figure: Figure) -> str:
    """A figure for a terminal."""
    taken = spread(figure.samples)
    said = f"{figure.name}: {value(taken['median'], figure.unit)} (median of {taken['n']}, "
    said += f"{number(taken['min'])} to {number(taken['max'])})"
    if figure.promise is not None:
        said += f", promised at most {value(figure.promise, figure.unit)}"
    for name, samples in figure.baselines.items():
        said += f"; {name}: {value(statistics.median(samples), figure.unit)}"
    return said


def begin(run: Run, before: Document | None = None) -> Document:
    """The document of this run; what was measured before stays if it was on the same machine."""
    same = before is not None and before["machine"] == run.machine
    return {
        "machine": dict(run.machine),
        "date": run.date,
        "commit": run.commit,
        "benchmarks": dict(before["benchmarks"]) if same and before is not None else {},
    }


def put(
    document: Document, benchmark: Benchmark[Any], figures: Sequence[Figure], run: Run
) -> Document:
    """The document with this benchmark's figures in place of those that it had."""
    kept = {
        figure.name: {
            "unit": figure.unit,
            **spread(figure.samples),
            "promise": None if figure.promise is None else float(f"{figure.promise:.4g}"),
            "baselines": {name: spread(taken) for name, taken in figure.baselines.items()},
            "date": run.date,
            "commit": run.commit,
        }
        for figure in figures
    }
    section = {"about": benchmark.about, "figures": kept}
    return {**document, "benchmarks": {**document["benchmarks"], benchmark.name: section}}


def is_missed(kept: Mapping[str, Any]) -> bool:
    """Whether a figure of the document is more than was promised."""
    return kept["promise"] is not None and kept["median"] > kept["promise"]


def missed(document: Document) -> list[str]:
    """Every promise of the document that is missed, as a sentence."""
    return [
        f"{name}: {what}: {value(kept['median'], kept['unit'])}, promised are "
        f"{value(kept['promise'], kept['unit'])}"
        for name, section in document["benchmarks"].items()
        for what, kept in section["figures"].items()
        if is_missed(kept)
    ]


# -- the page ------------------------------------------------------------------------------------


def number(amount: float) -> str:
    """Three significant digits, without an exponent."""
    if amount == 0:
        return "0"
    return f"{amount:.{max(0, 2 - math.floor(math.log10(abs(amount))))}f}"


def value(amount: float, unit: str) -> str:
    return f"{number(amount)} {unit}"


def limit(kept: Mapping[str, Any]) -> str:
    """A promise as the documentation writes it, and whether it was missed."""
    if kept["promise"] is None:
        return ""
    return f"{kept['promise']:g} {kept['unit']}{', **missed**' if is_missed(kept) else ''}"


def row(name: str, kept: Mapping[str, Any]) -> str:
    unit = kept["unit"]
    compared = [
        f"{what}: {value(took['median'], unit)}" for what, took in kept["baselines"].items()
    ]
    cells = [
        name,
        value(kept["median"], unit),
        f"{number(kept['min'])} to {number(kept['max'])}",
        str(kept["n"]),
        limit(kept),
        "; ".join(compared),
    ]
    return f"| {' | '.join(cells)} |\n"


def render(document: Document) -> str:
    """docs/benchmarks.md."""
    parts = [PAGE.format(**document, **document["machine"])]
    for name, section in document["benchmarks"].items():
        rows = "".join(row(what, kept) for what, kept in section["figures"].items())
        when = sorted({f"{kept['date']}, {kept['commit']}" for kept in section["figures"].values()})
        parts.append(f"## {name}\n\n{section['about']} ({'; '.join(when)})\n\n{HEAD}{rows}")
    return "\n".join(parts)
