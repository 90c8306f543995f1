"""Each parser of what others say: whatever it is given, it answers or refuses as it promises, soon.

What a parser makes of it is tested where its module is. Here nothing else may come out than its
own errors, as whoever calls it takes only those for a refusal; and no text keeps it busy.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standfast.btrfs import info, place, store, stream, versions
from standfast.cli.receiver import Request
from standfast.consul import values as consul
from standfast.consul.http import Endpoint
from standfast.consul.records import parse_epoch
from standfast.errors import ConfigError, Refused, StandfastError
from standfast.exporter.exporter import address_of
from standfast.exporter.web import query_of
from standfast.fence import ipset, nftables
from standfast.mounts.processes import fdinfo_of
from standfast.mounts.units import parse_show, unit_options
from standfast.names import SnapshotName, parse_aside
from standfast.nfs.exports_file import entries
from standfast.nomad import values as nomad
from standfast.replication import wire
from standfast.replication.differences import differences
from standfast.replication.keys import PublicKey
from standfast.replication.storage_facts import Facts
from standfast.requests.record import parse_request
from standfast.status.document import Status
from standfast.system.clock import parse_stamp
from standfast.system.local_socket import parse as parse_answer
from standfast.system.mountinfo import parse_mountinfo, parse_volumes
from standfast.system.systemd import parse_journal
from tests.support.checkout import CHECKOUT
from tests.support.examples import examples

SOON_S = 1.0
"""Of processor time, for a few thousand bytes: what backtracks takes minutes."""
GARBLED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What the clients of Consul and Nomad take for an answer that is none."""


@dataclass(frozen=True, slots=True)
class Parser:
    """Takes a text, or bytes, or a JSON document, of which an example that it understands is
    there; raises `errors` for what it doesn't, and nothing else."""

    parse: Callable[[Any], object]
    example: str | bytes | dict[str, Any] | list[Any]
    errors: tuple[type[Exception], ...] = ()


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43 + "A= standfast-home-zippy"
STREAM = (
    stream.HEADER.pack(stream.MAGIC, 1)
    + stream.COMMAND.pack(12, stream.UPDATE_EXTENT, 0)
    + stream.ATTRIBUTE.pack(stream.SIZE, 8)
    + (4096).to_bytes(8, "little")
    + stream.COMMAND.pack(0, stream.END, 0)
)
ENTRY = {"Key": "standfast/v/epoch", "Value": "e30=", "ModifyIndex": 7, "CreateIndex": 1}
CHECKS = [{"CheckID": "serfHealth", "Status": "passing", "Node": "zippy", "Name": "n"}]
SERVICE = {
    "Node": {"Node": "zippy", "Address": "10.0.0.1"},
    "Service": {"ID": "v", "Service": "v", "Address": "10.0.0.1", "Port": 2049, "Meta": {"a": "b"}},
    "Checks": CHECKS,
}
NODE = {"ID": "n", "Name": "zippy", "Meta": {"storage_role": "primary"}, "Status": "ready"}
ALLOCATION = {"ID": "a", "JobID": "j", "Namespace": "default", "NodeID": "n", "NodeName": "zippy"}
HELLO = wire.dump(wire.Hello("home", "v", "zippy"))
NFT = """table inet standfast {
\tset open {
\t\telements = { 2049 timeout 8s expires 7s432ms }
\t}
\tchain in {
\t\ttype filter hook input priority -300; policy accept;
\t\tiif "lo" accept
\t\ttcp dport 2049 th dport 2049 th dport != @open drop
\t}
}
"""


def of_object(parse: Callable[[dict[str, Any]], object]) -> Callable[[Any], object]:
    """A JSON object is what the line before it promises."""
    return lambda doc: parse(doc) if isinstance(doc, dict) else None


PARSERS = {
    "btrfs: a subvolume": Parser(info.parse, b"\0" * 504, (ValueError,)),
    "btrfs: subvolume list": Parser(store.parse_listed_paths, "ID 257 gen 8 top level 5 path a/b"),
    "btrfs: send --no-data": Parser(
        lambda raw: stream.size_from_outline(io.BytesIO(raw)), STREAM, (ValueError,)
    ),
    "a version": Parser(versions.parse, "btrfs-progs v6.2"),
    "blkid": Parser(
        lambda text: place.parse_copies(text, "f"), "DEVNAME=/dev/sda\nUUID=f\nUUID_SUB=a\n"
    ),
    "a conversation that is handed over": Parser(
        Request.parse, b"v\0zippy\x0010.0.0.1 22 10.0.0.2 22\0", (ValueError,)
    ),
    "an address of Consul": Parser(Endpoint.parse, "https://10.0.0.1:8501", (ConfigError,)),
    "the epoch": Parser(parse_epoch, b'{"v": 1, "epoch": 7}', (StandfastError,)),
    "a request": Parser(
        lambda raw: parse_request(raw, f"standfast/v/requests/{'0f' * 16}"),
        json.dumps(
            {
                "v": 1,
                "id": "0f" * 16,
                "verb": "switchover",
                "node": "zippy",
                "by": "ann@desk",
                "beat": 3,
                "arguments": {"to": "c1", "dry_run": True},
            }
        ).encode(),
        (StandfastError,),
    ),
    "Consul: an entry": Parser(consul.parse_entry, ENTRY, GARBLED),
    "Consul: one entry": Parser(
        lambda doc: consul.parse_entry_of(doc, "standfast/v/epoch"), ENTRY, GARBLED
    ),
    "Consul: a commit": Parser(
        lambda doc: consul.parse_committed(doc, [consul.Delete("standfast/v/epoch")]),
        {"Results": [{"KV": ENTRY}], "Errors": None},
        GARBLED,
    ),
    "Consul: a read": Parser(
        lambda doc: consul.parse_read(doc, [consul.GetTree("standfast/v/")]),
        {"Results": [{"KV": ENTRY}], "Errors": None},
        GARBLED,
    ),
    "Consul: a conflict": Parser(
        consul.parse_conflict, {"Results": None, "Errors": [{"OpIndex": 0, "What": "no"}]}, GARBLED
    ),
    "Consul: an instance": Parser(consul.parse_instance, SERVICE, GARBLED),
    "Consul: health of a node": Parser(consul.parse_node_health, CHECKS, GARBLED),
    "Consul: critical checks": Parser(consul.parse_critical, CHECKS, GARBLED),
    "Consul: the agent's services": Parser(
        consul.parse_local_services, {"v": {"ID": "v", "Meta": {"epoch": "7"}}}, GARBLED
    ),
    "Consul: the agent's name": Parser(
        consul.parse_node_name, {"Config": {"NodeName": "zippy"}}, GARBLED
    ),
    "Consul: its timing": Parser(
        consul.parse_election_timeout,
        {"DebugConfig": {"ConsulRaftElectionTimeout": "5s"}, "Config": {"Server": True}},
        GARBLED,
    ),
    "Consul: who leads": Parser(
        consul.parse_is_leader, {"Stats": {"consul": {"leader": "true"}}}, GARBLED
    ),
    "Consul: success": Parser(consul.parse_success, {"Success": True}, GARBLED),
    "Nomad: the agent": Parser(
        nomad.parse_agent, {"stats": {"client": {"node_id": "n"}}, "config": {}}, GARBLED
    ),
    "Nomad: a meta": Parser(
        nomad.parse_local_meta, {"Meta": {"a": "b"}, "Dynamic": {"a": "b"}, "Static": {}}, GARBLED
    ),
    "Nomad: a node": Parser(nomad.parse_node, NODE, GARBLED),
    "Nomad: nodes": Parser(nomad.parse_node_names, [NODE], GARBLED),
    "Nomad: allocations": Parser(nomad.parse_allocations, [ALLOCATION], GARBLED),
    "Nomad: an allocation": Parser(nomad.parse_allocation, ALLOCATION, GARBLED),
    "Nomad: jobs": Parser(nomad.parse_jobs, [{"ID": "j", "Namespace": "default"}], GARBLED),
    "Nomad: a job": Parser(nomad.parse_job, {"ID": "j", "TaskGroups": []}, GARBLED),
    "Nomad: an evaluation": Parser(nomad.parse_evaluation, {"ID": "e", "Status": "s"}, GARBLED),
    "Nomad: a CSI volume": Parser(nomad.parse_csi_volume, {"ID": "v", "Parameters": {}}, GARBLED),
    "Nomad: a stop": Parser(nomad.parse_stopped, {"EvalID": "e"}, GARBLED),
    "Nomad: who leads": Parser(nomad.parse_leader, {"a": "10.0.0.1:4647"}, GARBLED),
    "ipset": Parser(lambda text: ipset.parse_members(text, "sf", 2049), "add sf 2049 timeout 7\n"),
    "nft": Parser(lambda text: nftables.parse_table(text, 2049), NFT),
    "nft: a time": Parser(nftables.parse_time, "1m8s432ms"),
    "systemctl show": Parser(parse_show, "Id=a.service\nActiveState=active\n\nId=b.service\n"),
    "a mount unit": Parser(unit_options, "[Mount]\nOptions=vers=4.2,hard\n"),
    "the journal": Parser(parse_journal, '{"MESSAGE": "m", "SYSLOG_IDENTIFIER": "i"}\n'),
    "mountinfo": Parser(
        parse_mountinfo, "36 35 0:30 / /data rw,nosuid shared:1 - nfs4 z:/p rw,vers=4.2\n"
    ),
    "volumes of NFS": Parser(parse_volumes, "NV SERVER PORT DEV FSID FSC\nv4 0a 801 0:30 a:b no\n"),
    "fdinfo": Parser(fdinfo_of, "pos:\t0\nflags:\t0100002\n"),
    "exports": Parser(lambda text: list(entries(text)), "/p 10.0.0.1(rw) @g(ro) # c\n"),
    "a snapshot": Parser(SnapshotName.parse, "services@20261122T101500Z", (ValueError,)),
    "a tree set aside": Parser(parse_aside, "services.diverged-1-20261122T101500Z"),
    "a stamp": Parser(parse_stamp, "20261122T101500Z", (ValueError,)),
    "replication: a hello": Parser(lambda text: wire.parse(text, wire.Hello), HELLO, (Refused,)),
    "replication: a request": Parser(wire.parse_request, HELLO, (Refused,)),
    "replication: facts": Parser(
        of_object(Facts.parse), {"node": "zippy", "file_systems": {}}, (Refused,)
    ),
    "replication: a listing": Parser(
        lambda text: list(differences([text], ["a type=f mode=644"])),
        "a type=f mode=600",
        (Refused, ValueError),
    ),
    "a public key": Parser(PublicKey.parse, KEY, (Refused,)),
    "the agent's document": Parser(of_object(Status.parse), {"volume": "v"}, (StandfastError,)),
    "a line of the agent": Parser(parse_answer, b'{"v": 1}', (StandfastError,)),
    "an address to listen at": Parser(address_of, "127.0.0.1:9756", (StandfastError,)),
    "a query": Parser(query_of, "a=b&c=d"),
}
ELSEWHERE = {
    "config/parse.py": "tests/property/test_config_properties.py",
    "consul/record.py": "tests/property/test_records.py",
    "btrfs/writers.py": "tests/property/test_names_of_any_bytes.py",
}
"""Modules whose parsers have properties of their own."""

ODD = ("\0", "\n", "\\", "\udcff", "\u2028", "\x1b[2J", "{", "}", '"', "=", " " * 300, "9" * 5000)


def spoiled(example: str, chance: random.Random) -> str:
    """The example with a few pieces of it left out, doubled, or replaced by odd ones."""
    text = example
    for _ in range(chance.randrange(1, 6)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.randrange(8))
        piece = chance.choice(
            ("", text[start:end] * 2, chance.choice(ODD), chr(chance.randrange(256)))
        )
        text = text[:start] + piece + text[end:]
    return text


def documents(example: Any, chance: random.Random) -> Any:
    """The example with a part of it of another shape."""
    others: tuple[Any, ...] = (
        None,
        True,
        -1,
        2**70,
        1e308,
        "",
        "\ud800\0",
        [],
        [[]],
        {},
        {"ID": None},
        "9" * 5000,
    )
    if chance.random() < 0.15 or not isinstance(example, (dict, list)) or not example:
        return chance.choice(others) if chance.random() < 0.5 else example
    if isinstance(example, list):
        return [documents(item, chance) for item in example for _ in range(chance.randrange(3))]
    kept = {
        key: documents(value, chance) for key, value in example.items() if chance.random() < 0.9
    }
    return kept | ({"Odd": chance.choice(others)} if chance.random() < 0.2 else {})


def given_to(parser: Parser, chance: random.Random) -> Any:
    example = parser.example
    if isinstance(example, str):
        return spoiled(example, chance)
    if isinstance(example, bytes):
        return spoiled(example.decode("latin-1"), chance).encode("latin-1", "replace")
    return documents(json.loads(json.dumps(example)), chance)


@pytest.mark.parametrize("name", PARSERS)
@examples(40)
@given(chance=st.randoms(use_true_random=False))
def test_a_parser_answers_or_refuses_as_it_promises_and_soon(
    name: str, chance: random.Random
) -> None:
    parser = PARSERS[name]
    value = given_to(parser, chance)
    began = time.process_time()
    with contextlib.suppress(*parser.errors):
        parser.parse(value)
    assert time.process_time() - began < SOON_S


def parsers_of(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        for each in inside:
            if isinstance(each, ast.FunctionDef) and each.name.startswith("parse"):
                yield each.name


def test_every_parser_is_there() -> None:
    """By its module, as an example may have a name of its own."""
    package = CHECKOUT / "standfast"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "demo" not in path.parts and list(parsers_of(path))
    }
    text = Path(__file__).read_text()
    imported = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("standfast"):
            module = (node.module or "").removeprefix("standfast").removeprefix(".")
            place = module.replace(".", "/")
            imported |= {f"{place}.py"} | {f"{place}/{alias.name}.py" for alias in node.names}
    assert found <= imported | set(ELSEWHERE)
