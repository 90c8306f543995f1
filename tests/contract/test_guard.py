"""The guard as systemd runs it: the deployed handler, a process of its own, against real servers.

The promise is a healthy answer in 250 ms on an idle machine and a refusal within 3.5 s, whatever
hangs; `make bench` measures both. What doesn't depend on its own timer is asked without it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from standfast.btrfs.names_and_places import TreeInfo
from standfast.consul.records import Holder, Leader, LeaderState
from standfast.demo.consul.server import EmbeddedConsul
from standfast.demo.stand_ins.directory import save_info
from standfast.errors import Refused
from standfast.guard import node_verdict, words
from standfast.lease.epochs import EpochFile
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.system.clock import monotonic
from tests.fakes.nfs_server import FakeNfsServer, serve
from tests.fakes.rude_server import (
    Manner,
    drip,
    flood,
    hang,
    hang_up,
    late,
    raw,
    refused_address,
    reply,
    reply_json,
    rude_server,
)
from tests.support.figures import note
from tests.support.pace import patient
from tests.support.storage_node import (
    ADDRESSES,
    EPOCH,
    VOLUME,
    Ended,
    StorageNode,
    embedded_primary,
    guard,
    unhurried_guard,
)
from tests.support.waiting import soon

RUNBOOK = """ERROR: Another NFS server is already active at {other}
This host (127.0.0.1) is configured as NFS server but should be standby.
To fix:
  1. If this is intentional (failback), first demote the other server
  2. Update this host's config to use nfs-services-standby.nix instead
  3. Sync data from active server before promoting this host
"""
PROMISED_S = 3.5
"""For a no, whatever hangs: the timer of the handler."""
HEAD = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nX-Consul-KnownLeader: true\r\n"


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[tuple[StorageNode, EmbeddedConsul]]:
    with embedded_primary(tmp_path) as primary:
        yield primary


@pytest.fixture
def node(primary: tuple[StorageNode, EmbeddedConsul]) -> StorageNode:
    return primary[0]


def assert_refused(ended: Ended, reason: str, *said: str) -> None:
    assert ended.code == 1, ended
    assert f"refused [{reason}]: " in ended.said, ended
    for word in said:
        assert word in ended.said, ended
    assert ended.said.count("refused [") == 1, ended
    assert "Traceback" not in ended.said, ended
    assert ended.out == ""


def asked(node: StorageNode, limit_s: float = 20.0) -> Ended:
    """The same question in this process: for the many answers to it."""
    started = monotonic()
    try:
        node_verdict([node.config], soon(limit_s))
    except Refused as error:
        return Ended(1, "", f"{words(error)}\n", monotonic() - started)
    return Ended(0, "", "", monotonic() - started)


def test_a_healthy_primary_may_serve(node: StorageNode) -> None:
    took_s = []
    for _ in range(3):
        ended = unhurried_guard(node)
        assert (ended.code, ended.said) == (0, f"guard: n1 may serve {VOLUME}\n")
        took_s.append(ended.took_s)
    note(f"guard, healthy: median {statistics.median(took_s) * 1000:.0f} ms of {len(took_s)}")


# What Consul does


def test_a_consul_that_refuses_connections(node: StorageNode) -> None:
    with refused_address() as address:
        node.consul = address
        node.configure()
        assert_refused(unhurried_guard(node), "consul-unreachable", address)


MANNERS: Mapping[str, tuple[str, Manner]] = {
    "hangs": ("consul-timeout", hang),
    "drips header bytes": ("consul-timeout", drip(b"HTTP/1.1 200 OK\r\nX: ", b"x")),
    "drips body bytes": ("consul-timeout", drip(HEAD + b"Content-Length: 9999\r\n\r\n[", b" ")),
    "answers after 10 s": ("consul-timeout", late(10, reply_json([]))),
    "hangs up": ("consul-garbled", hang_up),
    "has no leader": (
        "consul-no-quorum",
        reply(b"No cluster leader", status="500 Internal Server Error", headers={}),
    ),
    "is a proxy without a backend": (
        "consul-no-quorum",
        reply(b"<html>", status="502 Bad Gateway", headers={}),
    ),
    "says 403": ("consul-denied", reply(b"Permission denied", status="403 Forbidden", headers={})),
    "says 403 to the token": (
        "consul-denied",
        reply(b"ACL not found", status="403 Forbidden", headers={}),
    ),
    "says 404": ("consul-garbled", reply(b"nothing here", status="404 Not Found", headers={})),
    "redirects": (
        "consul-garbled",
        reply(status="302 Found", headers={"Location": "http://127.0.0.1:1/"}),
    ),
    "sends a page": ("consul-garbled", reply(b"<html>hello</html>")),
    "sends an object for a list": ("consul-garbled", reply_json({"a": 1})),
    "sends null": ("consul-garbled", reply_json(None)),
    "sends foreign instances": ("consul-garbled", reply_json([{"Node": 7}])),
    "sends half an answer": ("consul-garbled", raw(HEAD + b"Content-Length: 99\r\n\r\n[")),
    "speaks another protocol": ("consul-garbled", raw(b"SSH-2.0-OpenSSH_9.2\r\n")),
    "floods": ("consul-garbled", flood(HEAD + b"Content-Length: 200000000\r\n\r\n", 200_000_000)),
    "shows the token nothing": ("consul-blind-token", reply_json([])),
}


def hurry() -> float:
    """A deadline for what never answers, in which the guard can start."""
    return patient(1.0)


NEVER_ANSWER = ("hangs", "drips header bytes", "drips body bytes", "answers after 10 s")
AS_A_PROCESS = (
    "hangs",
    "drips body bytes",
    "has no leader",
    "says 403",
    "sends a page",
    "shows the token nothing",
)


@pytest.mark.parametrize("manner", MANNERS)
def test_a_consul_that(manner: str, node: StorageNode) -> None:
    reason, treat = MANNERS[manner]
    with rude_server(treat) as server:
        node.consul = server.address
        hurried = manner in NEVER_ANSWER
        node.configure(guard={"deadline": hurry()} if hurried else {})
        if manner in AS_A_PROCESS:
            ended = unhurried_guard(node)
        else:
            ended = asked(node, 0.3) if hurried else asked(node)
        assert_refused(ended, reason)
        assert server.requests


def test_a_consul_that_hangs_at_every_address_is_given_up_in_time(node: StorageNode) -> None:
    with rude_server(hang) as one, rude_server(hang) as two, rude_server(hang) as three:
        addresses = [one.address, two.address, three.address]
        node.configure(guard={"deadline": hurry()}, consul={"addresses": addresses})
        assert_refused(unhurried_guard(node), "consul-timeout")
        assert one.requests and two.requests and three.requests


def test_a_second_address_makes_up_for_a_hung_first_one(node: StorageNode) -> None:
    good = node.consul
    with rude_server(hang) as hung:
        addresses = [hung.address, good]
        node.configure(guard={"deadline": 3 * hurry()}, consul={"addresses": addresses})
        ended = unhurried_guard(node)
    assert ended.code == 0, ended


def test_a_short_deadline_of_the_configuration_is_kept(node: StorageNode) -> None:
    """The shipped one would have waited for the answer."""
    with rude_server(late(2 * hurry(), reply_json([]))) as server:
        node.configure(guard={"deadline": hurry()}, consul={"addresses": [server.address]})
        assert_refused(unhurried_guard(node), "consul-timeout")


def test_a_long_deadline_of_the_configuration_does_not_break_the_promise(
    node: StorageNode,
) -> None:
    with rude_server(hang) as server:
        node.configure(guard={"deadline": 60.0}, consul={"addresses": [server.address]})
        ended = guard(node)
    # On a machine that has no time for its words the timer of the handler ends it.
    assert ended.code in (1, -signal.SIGALRM), ended
    # Its timer, and a start of the interpreter.
    assert ended.took_s <= PROMISED_S + patient(1.0), ended
    note(f"guard: a Consul that hangs is given up, and the start refused, in {ended.took_s:.1f} s")


def test_a_cluster_without_quorum(primary: tuple[StorageNode, EmbeddedConsul]) -> None:
    node, consul = primary
    consul.set_quorum(False)
    assert_refused(unhurried_guard(node), "consul-no-quorum")


def test_a_volume_that_has_never_had_a_primary(node: StorageNode) -> None:
    for key in ("epoch", "leader"):
        node.gateway.delete(node.config.key(key))
    (node.config.state_dir / "epoch").unlink()
    assert_refused(asked(node), "not-initialised", "standfast promote")


@pytest.mark.parametrize(
    ("gone", "reason"), [("epoch", "epoch-went-back"), ("leader", "lease-not-held")]
)
def test_a_key_that_was_deleted(node: StorageNode, gone: str, reason: str) -> None:
    node.gateway.delete(node.config.key(gone))
    assert_refused(asked(node), reason)


def test_both_keys_that_were_deleted(node: StorageNode) -> None:
    for key in ("epoch", "leader"):
        node.gateway.delete(node.config.key(key))
    assert_refused(asked(node), "epoch-went-back", "None", f"has seen {EPOCH}")


@pytest.mark.parametrize("key", ["epoch", "leader"])
@pytest.mark.parametrize(
    "value",
    [b"", b"7", b"null", b"{}", b'{"v":2,"epoch":7}', b"\xff\xfe", b"[" * 9999],
    ids=["empty", "number", "null", "object", "newer", "bytes", "deep"],
)
def test_a_foreign_value(node: StorageNode, key: str, value: bytes) -> None:
    name = node.config.key(key)
    node.gateway.put(name, value)
    assert_refused(asked(node), "foreign-value", name)
    entry = node.gateway.get(name)
    assert entry is not None and entry.value == value


def test_a_lower_epoch_in_consul_is_a_restored_backup(node: StorageNode) -> None:
    node.publish(EPOCH - 1)
    assert_refused(unhurried_guard(node), "epoch-went-back", f"epoch {EPOCH - 1}", "accept-epoch")


# Another server


def test_the_text_of_the_runbook_stands_alone(
    primary: tuple[StorageNode, EmbeddedConsul],
) -> None:
    node, consul = primary
    register(consul, "n2", 2049, {"epoch": str(EPOCH)})
    ended = unhurried_guard(node)
    assert (ended.code, ended.said, ended.out) == (1, RUNBOOK.format(other="127.0.0.2"), "")


def test_of_an_entry_that_somebody_else_made_it_is_said_how_it_goes_away(
    primary: tuple[StorageNode, EmbeddedConsul],
) -> None:
    node, consul = primary
    with serve(FakeNfsServer(), ADDRESSES["n2"], node.port):
        register(consul, "n2", node.port, {})
        said = asked(node).said
    assert said.startswith(RUNBOOK.format(other="127.0.0.2"))
    assert "on n2: consul services deregister -id=data-services-x" in said


def test_the_hint_of_the_text_can_be_configured(
    primary: tuple[StorageNode, EmbeddedConsul],
) -> None:
    node, consul = primary
    register(consul, "n2", 2049, {"epoch": str(EPOCH)})
    node.configure(guard={"standby_hint": "standby.yml"})
    assert "Update this host's config to use standby.yml instead\n" in asked(node).said


OTHERS: Mapping[str, tuple[dict[str, str], str, bool, bool]] = {
    # what the other's registration says: meta, check, does its port answer -> is it active
    "no epoch, passing, port shut": ({}, "pass", False, False),
    "no epoch, passing, a port of any service open": ({}, "pass", True, False),
    "no epoch, critical": ({}, "fail", True, False),
    "the same epoch, passing": ({"epoch": str(EPOCH)}, "pass", False, True),
    "a higher epoch, passing": ({"epoch": str(EPOCH + 1)}, "pass", False, True),
    "a higher epoch, critical": ({"epoch": str(EPOCH + 1)}, "fail", True, False),
    "a lower epoch, port shut": ({"epoch": str(EPOCH - 1)}, "pass", False, False),
    "a lower epoch, port open": ({"epoch": str(EPOCH - 1)}, "pass", True, True),
    "a lower epoch, critical, port open": ({"epoch": str(EPOCH - 1)}, "fail", True, True),
    "a foreign epoch, passing": ({"epoch": "yes"}, "pass", False, True),
    "a number that is none, passing": ({"epoch": "\u00b2"}, "pass", False, True),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_instance_with(case: str, primary: tuple[StorageNode, EmbeddedConsul]) -> None:
    meta, check, answers, active = OTHERS[case]
    node, consul = primary
    with listening(ADDRESSES["n2"], answers=answers) as port:
        register(consul, "n2", port, meta, check)
        ended = asked(node)
    if active:
        assert ended.code == 1 and ended.said.startswith(RUNBOOK.format(other="127.0.0.2")), ended
    else:
        assert ended.code == 0, ended


def test_without_a_lease_every_passing_instance_counts(
    primary: tuple[StorageNode, EmbeddedConsul],
) -> None:
    node, consul = primary
    (node.config.run_dir / "lease.json").unlink()
    register(consul, "n3", 2049, {"epoch": "1"})
    ended = unhurried_guard(node)
    assert (ended.code, ended.said) == (1, RUNBOOK.format(other="127.0.0.3"))


def test_the_lease_of_an_earlier_boot_makes_no_leftover_of_another(
    primary: tuple[StorageNode, EmbeddedConsul],
) -> None:
    node, consul = primary
    node.hold(instance="an earlier boot")
    with listening(ADDRESSES["n2"], answers=False) as port:
        register(consul, "n2", port, {"epoch": str(EPOCH - 1)})
        assert asked(node).said == RUNBOOK.format(other="127.0.0.2")


def test_the_instance_of_a_dead_node_does_not_count(
    primary: tuple[StorageNode, EmbeddedConsul],
) -> None:
    node, consul = primary
    register(consul, "n2", 2049, {})
    consul.set_node_health("n2", "critical")
    assert asked(node).code == 0


def test_the_own_registration_is_not_another_server(
    primary: tuple[StorageNode, EmbeddedConsul],
) -> None:
    node, consul = primary
    register(consul, "n1", 2049, {})
    assert asked(node).code == 0


# The lease


def test_a_node_without_a_lease(node: StorageNode) -> None:
    (node.config.run_dir / "lease.json").unlink()
    assert_refused(asked(node), "lease-not-held", "held by n1", "standfast status")


def test_the_lease_of_an_earlier_boot(node: StorageNode) -> None:
    node.hold(instance="an earlier boot")
    assert_refused(asked(node), "lease-not-held")


LEADERS: Mapping[str, tuple[Callable[[Leader], Leader], str]] = {
    "of another node": (lambda own: replace(own, holder=Holder("n2", "x")), "lease-not-held"),
    "of this node in another boot": (
        lambda own: replace(own, holder=Holder("n1", "x")),
        "lease-not-held",
    ),
    "given up": (lambda own: replace(own, state=LeaderState.CLEAN), "lease-not-held"),
    "of another epoch": (lambda own: replace(own, epoch=EPOCH + 1), "wrong-epoch"),
}


@pytest.mark.parametrize("case", LEADERS)
def test_a_last_heartbeat(case: str, node: StorageNode) -> None:
    change, reason = LEADERS[case]
    own = Leader(EPOCH, node.holder, 3, LeaderState.SERVING, ("n2", "n3"))
    node.publish(leader=change(own))
    assert_refused(asked(node), reason)


def test_a_lease_whose_epoch_is_over(node: StorageNode) -> None:
    node.publish(EPOCH + 1)
    assert_refused(asked(node), "wrong-epoch", f"epoch {EPOCH + 1}", f"epoch {EPOCH}")


@pytest.mark.parametrize("remaining_s", [1.9, 0.0, -30.0])
def test_a_lease_that_has_too_little_time_left(node: StorageNode, remaining_s: float) -> None:
    node.hold(remaining_s=remaining_s, trouble="no route to host")
    assert_refused(asked(node), "lease-too-short", "2.0 s", "no route to host")


FILES: Mapping[str, tuple[str, str]] = {
    "run/data-services/lease.json": ("{", "unexpected"),
    "run/data-services/lease.json ": ('{"v": 1}', "unexpected"),
    "run/data-services/lease.json  ": ("[]", "unexpected"),
    "var/data-services/epoch": ("seven", "unexpected"),
    "var/data-services/epoch ": ("", "unexpected"),
    "var/data-services/own-epoch.json": ("{", "unexpected"),
    "var/data-services/own-epoch.json ": ('{"epoch": 7}', "unexpected"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_damaged_file(case: str, node: StorageNode) -> None:
    text, reason = FILES[case]
    path = node.root / "disk" / case.strip()
    assert path.exists()
    path.write_text(text)
    assert_refused(unhurried_guard(node), reason, path.name)
    assert path.read_text() == text


# The volume and the fence


def test_a_tree_that_was_not_promoted_here(node: StorageNode) -> None:
    OwnEpoch.forget(node.config.state_dir)
    assert_refused(asked(node), "not-promoted-here", "standfast promote")


def test_a_tree_of_an_earlier_epoch(node: StorageNode) -> None:
    node.change_epoch(epoch=EPOCH - 1)
    assert_refused(asked(node), "not-promoted-here")


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.READY])
def test_a_tree_in_the_making_or_being_put_away(node: StorageNode, stage: Stage) -> None:
    node.change_epoch(stage=stage)
    assert_refused(asked(node), "volume-quarantined", str(stage))


def test_another_tree_at_the_place_of_the_volume(node: StorageNode) -> None:
    live = node.config.paths.live
    save_info(live, TreeInfo("00000000-0000-4000-8000-00000000000f", None, read_only=False))
    assert_refused(asked(node), "volume-missing", str(live))


def test_a_volume_that_is_gone(node: StorageNode) -> None:
    node.config.paths.live.rename(node.root / "elsewhere")
    assert_refused(asked(node), "volume-missing")


def test_a_volume_that_a_demotion_left_read_only(node: StorageNode) -> None:
    live = node.config.paths.live
    save_info(live, TreeInfo(node.live().uuid, None, read_only=True))
    assert_refused(asked(node), "volume-read-only")


def test_a_fence_that_somebody_took_away(node: StorageNode) -> None:
    node.fence().path.unlink()
    assert_refused(asked(node), "fence-not-armed", "standfast-lease@data-services.service")


def test_an_epoch_that_was_seen_here_and_is_not_in_consul(node: StorageNode) -> None:
    EpochFile(node.config.state_dir / "epoch").raise_to(EPOCH + 3)
    assert_refused(asked(node), "epoch-went-back", f"has seen {EPOCH + 3}")


# The configuration


@pytest.mark.parametrize(
    "text",
    ["", "{", "\x00\x01", 'cluster = "x"\n', 'foo = 1\n[nodes.n1]\naddress = "::"\n'],
    ids=["empty", "no TOML", "binary", "no nodes", "unknown key"],
)
def test_a_configuration_that_is_garbage(node: StorageNode, text: str) -> None:
    node.file.write_text(text)
    assert_refused(unhurried_guard(node), "config-invalid", str(node.file))


def test_no_configuration(node: StorageNode) -> None:
    node.file.unlink()
    assert_refused(unhurried_guard(node), "config-invalid", "config example")


def test_no_directory_of_configurations(node: StorageNode) -> None:
    ended = unhurried_guard(node, STANDFAST_CONFIG_DIR=str(node.root / "nowhere"))
    assert_refused(ended, "config-invalid", "nowhere")


def test_garbage_of_a_second_volume_refuses_too(node: StorageNode) -> None:
    (node.file.parent / "scratch.toml").write_text("{")
    assert_refused(unhurried_guard(node), "config-invalid", "scratch.toml")


@pytest.mark.parametrize("how", ["missing", "open to all", "empty", "binary"])
def test_a_token_file_that_is(how: str, node: StorageNode) -> None:
    path = node.root / "token"
    if how != "missing":
        path.write_bytes({"empty": b"", "binary": b"\xff\x00"}.get(how, b"secret-word"))
        path.chmod(0o644 if how == "open to all" else 0o600)
    node.configure(consul={"token_file": str(path)})
    ended = unhurried_guard(node)
    assert_refused(ended, "config-invalid", str(path))
    assert "secret-word" not in ended.said


def test_the_token_is_in_no_message(node: StorageNode) -> None:
    denied = reply(b"rpc error: token secret-word: Permission denied", status="403 Forbidden")
    with rude_server(denied) as server:
        node.consul = server.address
        node.configure()
        ended = unhurried_guard(node, CONSUL_HTTP_TOKEN="secret-word")
        assert b"secret-word" in server.requests[0]
    assert_refused(ended, "consul-denied")
    assert "secret-word" not in ended.said


def register(
    consul: EmbeddedConsul, name: str, port: int, meta: Mapping[str, str], check: str = "pass"
) -> None:
    """An instance of the service on another node, through that node's own agent."""

    def put(path: str, doc: Any = None) -> None:
        answer = consul.request(name, "PUT", path, b"" if doc is None else json.dumps(doc).encode())
        assert answer is not None and answer.status == 200, answer

    put(
        "/v1/agent/service/register",
        {
            "Name": VOLUME,
            "ID": f"{VOLUME}-x",
            "Address": ADDRESSES[name],
            "Port": port,
            "Meta": dict(meta),
            "Check": {"Name": "NFS", "TTL": "60s"},
        },
    )
    put(f"/v1/agent/check/{check}/service:{VOLUME}-x")


@contextlib.contextmanager
def listening(address: str, *, answers: bool) -> Iterator[int]:
    """A port that takes connections, or one that refuses them."""
    with socket.socket() as server:
        server.bind((address, 0))
        if answers:
            server.listen()
        yield int(server.getsockname()[1])
