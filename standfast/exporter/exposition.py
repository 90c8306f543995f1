"""Metrics as text: Prometheus' own format and OpenMetrics, several times as fast as the library's.

Invariant: what a reader finds in it is what the library's encoders would have written; a test
compares the two. Only what this exporter has is known here: gauges and counters, without
timestamps, exemplars or names beyond [a-z0-9_].
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client.exposition import choose_encoder

from standfast.exporter.families import Table

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def answer_to(accept: str, tables: Iterable[Table]) -> tuple[str, bytes]:
    """Content type and text, by a request's `Accept`."""
    _, kind = choose_encoder(accept)
    if kind.startswith("application/openmetrics-text"):
        return OPENMETRICS, encode(tables, openmetrics=True).encode(errors="replace")
    return PLAIN, encode(tables, openmetrics=False).encode(errors="replace")


def encode(tables: Iterable[Table], *, openmetrics: bool) -> str:
    """The text of these families and their rows."""
    lines: list[str] = []
    # The same standby stands in many families: its labels become text once.
    texts: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
    for family, rows in tables:
        name, keys = family.full_name, family.label_names
        about = name.removesuffix("_total") if openmetrics else name
        text = _escaped(family.help) if openmetrics else _help(family.help)
        kind = "counter" if family.counter else "gauge"
        lines.append(f"# HELP {about} {text}\n# TYPE {about} {kind}\n")
        for value, labels in rows:
            braces = texts.get((keys, labels))
            if braces is None:
                braces = texts[keys, labels] = _labels(keys, labels)
            lines.append(f"{name}{braces} {_number(value)}\n")
    if openmetrics:
        lines.append("# EOF\n")
    return "".join(lines)


def _labels(keys: tuple[str, ...], values: tuple[str, ...]) -> str:
    pairs = [f'{key}="{_escaped(value)}"' for key, value in zip(keys, values, strict=True)]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escaped(text: str) -> str:
    if "\\" in text or '"' in text or "\n" in text:
        return _help(text).replace('"', r"\"")
    return text


def _number(value: float) -> str:
    number = float(value)
    if math.isfinite(number):
        return repr(number)
    return "NaN" if math.isnan(number) else ("+Inf" if number > 0 else "-Inf")
