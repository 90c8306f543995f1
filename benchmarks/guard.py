"""How long a healthy guard takes, as systemd runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Benchmark, Figure
from tests.fakes.rude_server import hang, rude_server
from tests.support.commands import LabError
from tests.support.storage_node import StorageNode, embedded_primary, guard, run_handler

PROMISE_MS = 250
REFUSAL_MS = 3500
"""Whatever hangs."""
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
        bare = run_handler("nfs-server-guard", env=node.environment(), changed=NOTHING, parts="")
        nothing_ms.append(bare.took_s * 1000)
    return [
        Figure(
            "a healthy primary's yes",
            "ms",
            took_ms[1:],
            PROMISE_MS,
            {"`python -c pass`": nothing_ms[1:]},
        ),
        Figure("its no, when Consul hangs", "ms", hanging(node), REFUSAL_MS),
    ]


def hanging(node: StorageNode) -> list[float]:
    """Milliseconds until it refuses; this is the last measurement on the node."""
    with rude_server(hang) as server:
        node.configure(consul={"addresses": [server.address]})
        return [guard(node).took_s * 1000 for _ in range(3)]


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
