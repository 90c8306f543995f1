"""What this machine's NFS server would meet, found before it starts."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.errors import StandfastError
from standfast.nfs import ahead, conf_ahead
from standfast.nfs.conf_ahead import NfsConf
from standfast.nfs.kernel import export_line
from standfast.node.obstacle import Weight
from standfast.system.probe import is_ours, listening
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


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., NfsConf]:
    """What a file below nfs.conf.d says, on a node with two addresses."""

    def make(*settings: str, file: str = "zz.conf") -> NfsConf:
        etc = tmp_path / "etc"
        path = etc / "nfs.conf.d" / file
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(["[mountd]", "vers4=y", "[nfsd]", *settings, ""]))
        known = f'sed -n "/nfsd/,\\$s/^$3 *= *//p" {path} | tail -1'
        write_script(tmp_path / "bin" / "nfsconf", known)
        return NfsConf(etc, {"127.0.0.1", "192.168.1.2", "0.0.0.0", "::"}.__contains__)

    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return make


@pytest.mark.parametrize(
    ("port", "is_wrong"), [("", False), ("2049", False), ("nfs", False), ("20049", True)]
)
def test_what_nfs_conf_says_of_the_port_is_compared(
    node: FakeNode, conf: Callable[..., NfsConf], port: str, is_wrong: bool
) -> None:
    said = [str(obstacle) for obstacle in conf_ahead.obstacles(node.config, conf(f"port={port}"))]
    assert [f"at port {port}" in text for text in said] == [True] * is_wrong


@pytest.mark.parametrize(
    ("setting", "weight", "words"),
    [
        ("vers4=n", Weight.BARS, "not speak NFS 4 by"),
        ("vers4 = No", Weight.BARS, "not speak NFS 4 by"),
        ("vers4=y", None, ""),
        ("vers4.1=off", Weight.BARS, "not speak NFS 4.1"),
        ("vers4.2=n", Weight.TOLD, "not speak NFS 4.2"),
        ("vers4.0=n", None, ""),
        ("tcp=false", Weight.BARS, "no TCP port"),
        ("udp=n", None, ""),
        ("threads=0", Weight.BARS, "no threads"),
        ("threads=16", None, ""),
        # Where it is asked whether it serves, and where clients are.
        ("host=192.168.1.99", Weight.BARS, "which is no address of this node; it has to be"),
        ("host=192.168.1.2", Weight.BARS, "reached at 127.0.0.1"),
        ("host=127.0.0.1", Weight.BARS, "reached at 192.168.1.2"),
        ("host=::", Weight.BARS, "reached at 127.0.0.1 and 192.168.1.2"),
        ("host=127.0.0.1, 192.168.1.2", None, ""),
        ("host=0.0.0.0", None, ""),
    ],
)
def test_what_nfs_conf_says_of_a_server_for_nobody_is_foreseen_with_its_file(
    node: FakeNode,
    conf: Callable[..., NfsConf],
    setting: str,
    weight: Weight | None,
    words: str,
) -> None:
    assert node.config.me.address == "192.168.1.2"
    nfs = structs.replace(node.config.nfs, clients=("192.168.1.0/24",))
    config = structs.replace(node.config, nfs=nfs)
    made = list(conf_ahead.obstacles(config, conf(setting)))
    assert [(each.check, each.weight) for each in made] == (
        [("nfs-conf", weight)] if weight else []
    )
    for each in made:
        assert words in each.evidence
        assert "nfs.conf.d/zz.conf (" in each.evidence and "zz.conf" in each.fix


def test_the_last_file_that_has_a_setting_for_nfsd_is_named(
    node: FakeNode, conf: Callable[..., NfsConf]
) -> None:
    made = conf("tcp=n", file="aa.conf")
    (made.etc / "nfs.conf").write_text("[nfsd]\ntcp=n\n")
    (made.etc / "nfs.conf.d/zz.conf").write_text("[nfsd]\n# tcp=n\n[mountd]\ntcp=n\n")
    [obstacle] = conf_ahead.obstacles(node.config, made)
    assert f"by {made.etc}/nfs.conf.d/aa.conf (tcp=n)" in obstacle.evidence


def test_nfs_4_1_is_missed_by_clients_where_this_node_asks_for_nothing_itself(
    node: FakeNode, conf: Callable[..., NfsConf]
) -> None:
    nfs = structs.replace(node.config.nfs, clients=("10.9.0.0/16",))
    config = structs.replace(node.config, nfs=nfs)
    [obstacle] = conf_ahead.obstacles(config, conf("vers4.1=n"))
    assert obstacle.weight is Weight.REFUSES


@pytest.mark.parametrize(
    ("address", "hosts", "is_missed"),
    [
        ("n1.lan", "127.0.0.1, 192.168.1.2", False),
        ("n1.lan", "127.0.0.1", True),
        ("gone.lan", "127.0.0.1", False),
        ("fd00:0:0::2", "127.0.0.1 fd00::2", False),
        ("fd00:0:0::2", "127.0.0.1", True),
    ],
)
def test_the_address_that_clients_use_may_be_a_name_or_spelt_otherwise(
    node: FakeNode,
    conf: Callable[..., NfsConf],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    hosts: str,
    is_missed: bool,
) -> None:
    def known(name: str, *_rest: object, **_more: object) -> list[Any]:
        if name == "gone.lan":
            raise socket.gaierror("Name or service not known")
        # One of its addresses is another machine's, as of a name for all of them.
        return [(0, 0, 0, "", (each, 0)) for each in ("192.168.1.2", "192.168.1.9")]

    monkeypatch.setattr(socket, "getaddrinfo", known)
    me = structs.replace(node.config.me, address=address)
    config = structs.replace(node.config, nodes={**node.config.nodes, "n1": me})
    made = conf(f"host={hosts}")
    here = replace(made, owns={"127.0.0.1", "192.168.1.2", "fd00::2"}.__contains__)
    seen = [str(obstacle) for obstacle in conf_ahead.obstacles(config, here)]
    assert [f"reached at {address}" in text for text in seen] == [True] * is_missed


@pytest.mark.parametrize(
    ("kernel", "modprobe", "is_wrong"),
    [
        ("nodev\tsysfs\nnodev\tnfsd\n", "exit 1", False),
        ("nodev\tsysfs\n\tbtrfs\n", "exit 0", False),
        ("nodev\tsysfs\n\tbtrfs\n", "exit 1", True),
        ("nodev\tnfsd4\n", "exit 1", True),
        ("nodev\tsysfs\n", None, False),
    ],
)
def test_a_kernel_that_could_not_serve_bars_a_promotion(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    modprobe: str | None,
    is_wrong: bool,
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    if modprobe is not None:
        write_script(tmp_path / "bin" / "modprobe", modprobe)
    table = tmp_path / "filesystems"
    table.write_text(kernel)
    made = list(ahead.missing_kernel_part(table))
    assert [(each.check, each.weight) for each in made] == [("unit", Weight.BARS)] * is_wrong


def test_an_address_of_this_machine_is_told_from_one_of_another() -> None:
    assert is_ours("127.0.0.1") and is_ours("0.0.0.0")
    assert not is_ours("192.0.2.1")


@pytest.mark.parametrize(
    "clients",
    [
        ("10.0.0.0/8",),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("*.LAN", "*.lan"),
        ("web1",),
    ],
)
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
    said = "exportfs: can't open /etc/exports for reading\nexportfs: unknown keyword"
    write_script(tmp_path / "bin" / "unshare", f'echo "{said}" >&2')
    [obstacle] = ahead.exports_trial(config, export_line)
    assert obstacle.weight is Weight.BARS
    assert obstacle.evidence.endswith(": exportfs: unknown keyword")
