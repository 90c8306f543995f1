"""How long a healthy guard takes, as systemd runs it: python -m tests.bench_guard [ROUNDS]."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from tests.contract.storage_node import embedded_primary, guard

PROMISE_MS = 250


def measure(rounds: int) -> list[float]:
    """Wall times of that many runs, milliseconds; the first, which warms up, is left out."""
    with tempfile.TemporaryDirectory() as directory, embedded_primary(Path(directory)) as (node, _):
        took_ms = []
        for _ in range(rounds + 1):
            ended = guard(node)
            if ended.code != 0:
                raise SystemExit(f"the guard refused a healthy node: {ended.said}")
            took_ms.append(ended.took_s * 1000)
        return took_ms[1:]


def main() -> None:
    took = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
    median = statistics.median(took)
    print(
        f"guard: healthy, {len(took)} runs: median {median:.0f} ms, least {min(took):.0f}, "
        f"most {max(took):.0f} (promised on an idle machine: {PROMISE_MS})"
    )


if __name__ == "__main__":
    main()
