"""Metrics as text: Prometheus' own format and OpenMetrics, several times as fast as the library's.

Invariant: what a reader finds in it is what the library's encoders would have written; a test
compares the two. Only what this exporter has is known here: gauges and counters, without
timestamps, exemplars or names beyond [a-z0-9_].
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def answer_to(accept: str, metrics: Iterable[Metric]) -> tuple[str, bytes]:
    """Content type and text, by a request's `Accept`."""
    _, kind = choose_encoder(accept)
    if kind.startswith("application/openmetrics-text"):
        return OPENMETRICS, encode(metrics, openmetrics=True).encode()
    return PLAIN, encode(metrics, openmetrics=False).encode()


def encode(metrics: Iterable[Metric], *, openmetrics: bool) -> str:
    """The text of these families."""
    lines: list[str] = []
    for metric in metrics:
        name = metric.name
        if metric.type == "counter" and not openmetrics:
            name += "_total"
        text = _escaped(metric.documentation) if openmetrics else _help(metric.documentation)
        lines.append(f"# HELP {name} {text}\n# TYPE {name} {metric.type}\n")
        for sample in metric.samples:
            labels = ",".join(
                [f'{key}="{_escaped(value)}"' for key, value in sample.labels.items()]
            )
            braces = f"{{{labels}}}" if labels else ""
            lines.append(f"{sample.name}{braces} {_number(sample.value)}\n")
    if openmetrics:
        lines.append("# EOF\n")
    return "".join(lines)


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
