"""What commands print: tables, JSON, ages. Text from elsewhere never steers the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from standfast.replication.failures import reason_of
from standfast.text import clean, clean_lines


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns as wide as their widest cell."""
    cells = [list(heads), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(padded).rstrip())


def cell(value: Any, show: Callable[[Any], str] = str) -> str:
    """Returns what a table shows of a value: `-` for None."""
    return "-" if value is None else show(value)


def print_json(doc: Any) -> None:
    """Prints a document; ValueError for a number that JSON doesn't have."""
    print(json.dumps(doc, indent=2, allow_nan=False))


def print_done(as_json: bool, text: str, **facts: Any) -> None:
    """Prints the result of a command that changes something; with `dry_run` it has changed
    nothing."""
    if as_json:
        print_json({"done": not facts.get("dry_run"), "text": text, **facts})
    else:
        print(clean_lines(text))


def error_fields(error: Exception) -> dict[str, Any]:
    """Returns how a JSON document tells an error: its text and its reason code."""
    return {"error": str(error), "reason": str(reason_of(error))}


def note(text: str) -> None:
    """Prints a line for people to stderr, beside the output."""
    print(clean(text), file=sys.stderr, flush=True)
