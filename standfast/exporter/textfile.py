"""`standfast exporter --textfile`: one look, written for node_exporter's textfile collector.

Invariant: a reader finds the last look or this one, never a part. What could not be read is
`standfast_up 0` in the file, as in a scrape; an old file is told by node_exporter itself
(`node_textfile_mtime_seconds`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prometheus_client import generate_latest

from standfast.config.model import Config
from standfast.errors import StandfastError, UsageError
from standfast.exporter.metrics import SCRAPE_S, VolumeMetrics
from standfast.system.clock import Deadline
from standfast.system.files import write_atomically


def write(configs: Sequence[Config], path: Path, metrics: VolumeMetrics | None = None) -> None:
    """Writes what one scrape says; UsageError for a name that node_exporter passes over,
    StandfastError when it can't be written."""
    if path.suffix != ".prom":
        raise UsageError(f"{path}: node_exporter reads only files whose names end with .prom")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory: node_exporter's --collector.textfile."
                         f"directory is meant")  # fmt: skip
    metrics = metrics or VolumeMetrics(configs)
    # Not OpenMetrics: node_exporter doesn't read it.
    text = generate_latest(metrics.registry(Deadline.after(SCRAPE_S))).decode()
    try:
        write_atomically(path, text)
        path.chmod(0o644)  # whatever the umask: node_exporter isn't root
    except OSError as error:
        raise StandfastError(f"{path} can't be written: {error.strerror or error}") from error
