"""A volume whose Consul is the embedded one, for tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from standfast.cli.main import main
from standfast.config.load import load
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.demo.consul.server import EmbeddedConsul

PREFIX = "standfast/data-services"


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where an operator sits: a configuration and the command's output."""

    config: Config
    captured: pytest.CaptureFixture[str]

    def run(self, *argv: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        code = main(list(argv))
        out, err = self.captured.readouterr()
        return code, out, err

    def run_json(self, *argv: str) -> Any:
        code, out, err = self.run(*argv, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)


@dataclass(frozen=True, slots=True)
class Desk(Terminal):
    """The same with a Consul."""

    consul: EmbeddedConsul
    gateway: ConsulGateway

    def key(self, name: str) -> bytes | None:
        entry = self.gateway.get(f"{PREFIX}/{name}", consistent=True)
        return None if entry is None else entry.value

    def put(self, name: str, value: bytes) -> None:
        self.gateway.put(f"{PREFIX}/{name}", value)


def write_node(directory: Path, root: Path, node: str, more: str) -> Path:
    """data-services.toml for a node, with everything below `root`; `more`: other tables."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "data-services.toml"
    path.write_text(
        f"""\
cluster = "test"
node = "{node}"
[nodes.zippy]
address = "192.168.1.2"
[nodes.c1]
address = "192.168.1.3"
[paths]
live = "{root}/persist/services"
snapshots = "{root}/persist"
standby = "{root}/persist/services-standby"
bind = "{root}/data"
state = "{root}/state"
run = "{root}/run"
{more}"""
    )
    return path


def write_config(directory: Path, root: Path, addresses: Sequence[str]) -> Path:
    """The same for node `zippy`, which has a Consul and reaches no standby."""
    more = f"""\
[consul]
addresses = {json.dumps(list(addresses))}
[replication]
command = ["false"]
[lease]
request_timeout = 1
"""
    return write_node(directory, root, "zippy", more)


@contextmanager
def a_desk(
    root: Path, monkeypatch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """Commands find the configuration by STANDFAST_CONFIG_DIR."""
    with EmbeddedConsul() as consul:
        consul.add_agent("zippy")
        address = consul.address("zippy")
        path = write_config(root / "etc", root, [address])
        monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(root / "etc"))
        yield Desk(load(path), captured, consul, ConsulGateway([address]))
