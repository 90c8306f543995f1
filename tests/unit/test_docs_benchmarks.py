"""The figures of the documentation are those that `make bench` measured.

A page quotes a figure as a link: `[13.9 s](docs/benchmarks.md#failover)`. It has to be the median
of a figure of that benchmark, rounded as it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import render
from tests.support.checkout import CHECKOUT

DOCUMENT = CHECKOUT / "docs/benchmarks.json"
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])
QUOTED = re.compile(r"\[([^\]]+)\]\([^)]*benchmarks\.md#([\w-]+)\)")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DOCUMENT.read_text())
    return content


def quoted(document: dict[str, Any], text: str, benchmark: str) -> Iterator[dict[str, Any]]:
    """The figures of a benchmark for which a page may say this, as `13.9 s`."""
    amount, _, unit = text.partition(" ")
    decimals = len(amount.partition(".")[2])
    for figure in document["benchmarks"].get(benchmark, {"figures": {}})["figures"].values():
        if figure["unit"] == unit and f"{figure['median']:.{decimals}f}" == amount:
            yield figure


def promises() -> list[str]:
    """The cells of README's table of promises."""
    _, _, rest = (CHECKOUT / "README.md").read_text().partition("## What it promises\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [cell for line in lines for cell in line.split("|")]


def test_the_page_is_what_is_made_from_the_document(document: dict[str, Any]) -> None:
    assert DOCUMENT.with_suffix(".md").read_text() == render(document), (
        "docs/benchmarks.md was edited, or what makes it: python -m benchmarks writes both"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_that_a_page_quotes_was_measured(document: dict[str, Any], page: Path) -> None:
    for text, benchmark in QUOTED.findall(page.read_text()):
        assert any(quoted(document, text, benchmark)), (
            f"{text} is no median of {benchmark} in docs/benchmarks.json"
        )


def test_what_readme_promises_and_measured_is_there(document: dict[str, Any]) -> None:
    quotes = [(cell, *groups) for cell in promises() for groups in QUOTED.findall(cell)]
    assert quotes, "README's table of promises quotes no figure"
    for cell, text, benchmark in quotes:
        limits = [figure["promise"] for figure in quoted(document, text, benchmark)]
        assert any(limit is None or f"{limit:g} s" in cell for limit in limits), cell
    unnamed = [cell for cell in promises() if "measured" in QUOTED.sub("", cell)]
    assert not [cell for cell in unnamed if not QUOTED.search(cell)], unnamed
