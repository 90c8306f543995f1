"""A node's configuration, without a file: what a test doesn't say is as by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from standfast.config.model import Config, Node, Paths


def config_of(*nodes: str, **changes: Any) -> Config:
    """That of the first of these nodes; their addresses are 192.168.1.2 and the next ones."""
    names = nodes or ("n1", "n2", "n3")
    given = {
        "volume": "data-services",
        "source": Path("data-services.toml"),
        "cluster": "test",
        "node": names[0],
        "nodes": {name: Node(address=f"192.168.1.{2 + i}") for i, name in enumerate(names)},
    }
    return Config(**{**given, **changes})


def config_in(directory: Path, *nodes: str, **changes: Any) -> Config:
    """The same, with everything below a directory."""
    paths = Paths(
        live=directory / "services",
        snapshots=directory,
        standby=directory / "services-standby",
        bind=directory / "data",
        state=directory / "state",
        run=directory / "run",
    )
    source = directory / "data-services.toml"
    return config_of(*nodes, **{"source": source, "paths": paths, **changes})
