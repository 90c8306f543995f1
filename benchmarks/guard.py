"""How long a healthy guard takes, as systemd runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Benchmark, Figure
from tests.contract.storage_node import StorageNode, embedded_primary, guard, run_handler
from tests.machines.host import LabError

PROMISE_MS = 250
NOTHING = "raise SystemExit(0)"
"""In the guard's place: what a start of the interpreter alone takes."""


@contextmanager
def primary() -> Iterator[StorageNode]:
    """A node that may serve."""
    with tempfile.TemporaryDirectory() as directory, embedded_primary(Path(directory)) as (node, _):
        yield node


def healthy(node: StorageNode, rounds: int) -> Sequence[Figure]:
    """In turns with an interpreter that does nothing; the first, which warms up, is left out."""
    took_ms, nothing_ms = [], []
    for _ in range(rounds + 1):
        ended = guard(node)
        if ended.code != 0:
            raise LabError(f"the guard refused a healthy node: {ended.said}")
        took_ms.append(ended.took_s * 1000)
        bare = run_handler("nfs-server-guard", env=node.environment(), changed=NOTHING)
        nothing_ms.append(bare.took_s * 1000)
    return [
        Figure(
            "a healthy primary's yes",
            "ms",
            took_ms[1:],
            PROMISE_MS,
            {"`python -c pass`": nothing_ms[1:]},
        )
    ]


BENCHMARKS = (
    Benchmark(
        "guard",
        "How long the guard delays a start of the NFS server that it allows.",
        on=primary,
        measure=healthy,
        rounds=15,
        quick=5,
        seconds=(1, 0.3),
    ),
)
