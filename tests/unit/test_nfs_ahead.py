"""What this machine's NFS server would meet, found before it starts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from msgspec import structs

from standfast.errors import StandfastError
from standfast.nfs import ahead
from standfast.nfs.kernel import export_line
from standfast.node.obstacle import Weight
from standfast.system.probe import listening
from tests.fakes.machine import FakeNode, fake_node
from tests.support.scripts import script as write_script


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return fake_node(tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_program_that_listens_at_the_port_is_seen(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        server.bind((address, 0))
        port = server.getsockname()[1]
        assert not listening(port)
        server.listen()
        assert listening(port)
    assert not listening(port)


def test_another_program_at_the_port_bars_a_promotion(node: FakeNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nfs = structs.replace(node.config.nfs, port=server.getsockname()[1])
        config = structs.replace(node.config, nfs=nfs)
        [obstacle] = ahead.taken_port(config, running=False)
        assert obstacle.check == "port" and not list(ahead.taken_port(config, running=True))


def test_only_names_of_hosts_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def resolve(name: str) -> None:
        asked.append(name)
        if name == "web2.lan":
            raise OSError("Name or service not known")

    clients = ("10.0.0.0/8", "192.168.1.7", "fd00::/8", "*.lan", "@group", "web1", "web2.lan")
    [obstacle] = ahead.unresolved(clients, resolve)
    assert sorted(asked) == ["web1", "web2.lan"]
    assert "web2.lan" in obstacle.evidence and "web1" not in obstacle.evidence
    assert obstacle.weight is Weight.REFUSES


@pytest.mark.parametrize(
    ("port", "is_wrong"), [("", False), ("2049", False), ("nfs", False), ("20049", True)]
)
def test_what_nfs_conf_says_of_the_port_is_compared(
    node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str, is_wrong: bool
) -> None:
    write_script(tmp_path / "bin" / "nfsconf", f'test "$3" = port && echo "{port}"')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    said = [obstacle.evidence for obstacle in ahead.listens_elsewhere(node.config)]
    assert [f"at port {port}" in text for text in said] == [True] * is_wrong


@pytest.mark.parametrize("clients", [("10.0.0.0/8",), ("10.0.0.0/8", "10.0.0.0/8"), ("web1",)])
def test_an_export_that_could_not_be_tried_bars_nobody(
    node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: tuple[str, ...]
) -> None:
    """Where no namespace can be made, say; a client that is named twice has one line."""
    write_script(tmp_path / "bin" / "exportfs", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    config = structs.replace(node.config, nfs=structs.replace(node.config.nfs, clients=clients))
    monkeypatch.setattr(ahead, "EXPORTS", tmp_path / "exports.d")
    write_script(tmp_path / "bin" / "unshare", "echo Operation not permitted >&2; exit 1")
    with pytest.raises(StandfastError, match="could not be tried: Operation not permitted"):
        list(ahead.exports_trial(config, export_line))
    write_script(tmp_path / "bin" / "unshare", "echo '/persist 10.0.0.0/8(rw)'")
    assert list(ahead.exports_trial(config, export_line)) == []
    write_script(tmp_path / "bin" / "unshare", "echo 'unknown keyword' >&2")
    [obstacle] = ahead.exports_trial(config, export_line)
    assert obstacle.weight is Weight.BARS and "unknown keyword" in obstacle.evidence
