"""The embedded server and a real one, over the wire: by requests, by the library, and by the
real `consul` command. What the gateway makes of it is in tests/contract/ports/test_consul.py.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import consul as consul_library
import pytest

from standfast.consul.gateway import ConsulGateway
from standfast.system.clock import monotonic
from tests.contract.consul_scene import HANG_S, SYNC_S, SYNCED, after, listed, numbers, register
from tests.support.consul_clusters import (
    NODE,
    ConsulCluster,
    consul_binary,
    embedded_cluster,
    real_cluster,
)
from tests.support.pace import patient
from tests.support.scripts import script
from tests.support.waiting import wait_for

consul: Any = consul_library  # untyped
pytestmark = SYNCED


@pytest.fixture(scope="module", params=["embedded", "real"])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ConsulCluster]:
    if request.param == "embedded":
        with embedded_cluster() as cluster:
            yield cluster
    else:
        with real_cluster(tmp_path_factory.mktemp("consul")) as cluster:
            yield cluster


@pytest.fixture
def gateway(cluster: ConsulCluster) -> ConsulGateway:
    return cluster.gateway()


@pytest.fixture
def prefix() -> str:
    """Keys of this test alone."""
    return f"t{next(numbers)}/"


@pytest.fixture
def service(gateway: ConsulGateway) -> Iterator[str]:
    """The name of a service of this test alone; its id is `<name>-id`."""
    name = f"s{next(numbers)}"
    yield name
    gateway.deregister(f"{name}-id")


@pytest.fixture
def library(cluster: ConsulCluster) -> Any:
    host, port = cluster.address.split(":")
    return consul.Consul(host=host, port=int(port))


# Transactions


def test_an_unknown_verb_is_named(cluster: ConsulCluster, prefix: str) -> None:
    body = json.dumps([{"KV": {"Verb": "foo", "Key": f"{prefix}x"}}]).encode()
    answer = cluster.ask("PUT", "/v1/txn", body)
    assert answer.status == 409
    assert json.loads(answer.body)["Errors"] == [{"OpIndex": 0, "What": 'unknown KV verb "foo"'}]


# Indexes and waiting


def key_index(cluster: ConsulCluster, target: str) -> int:
    return int(cluster.ask("GET", f"/v1/kv/{target}").headers["X-Consul-Index"])


def test_the_index_of_a_key_is_its_own(
    cluster: ConsulCluster, gateway: ConsulGateway, prefix: str
) -> None:
    gateway.put(prefix + "k", b"1")
    entry = gateway.get(prefix + "k")
    assert entry is not None
    gateway.put(prefix + "other", b"1")
    assert key_index(cluster, prefix + "k") == entry.modify_index
    assert gateway.wait(prefix + "k", 0, wait_s=1) == (entry.modify_index, entry)


def test_the_index_of_a_missing_key_is_that_of_all_keys(
    cluster: ConsulCluster, gateway: ConsulGateway, prefix: str
) -> None:
    gateway.put(prefix + "a", b"1")
    entry = gateway.get(prefix + "a")
    assert entry is not None
    assert key_index(cluster, prefix + "none") == entry.modify_index
    gateway.delete(prefix + "a")
    assert key_index(cluster, prefix + "a") > entry.modify_index


def test_the_index_of_a_prefix_rises_with_each_change_under_it(
    cluster: ConsulCluster, gateway: ConsulGateway, prefix: str
) -> None:
    gateway.put(prefix + "a", b"1")
    gateway.put(prefix + "b", b"1")
    first = key_index(cluster, prefix + "?recurse")
    gateway.put("elsewhere", str(first).encode())
    assert key_index(cluster, prefix + "?recurse") == first
    gateway.delete(prefix + "a")
    assert key_index(cluster, prefix + "?recurse") > first


# Services


def test_a_health_query_waits_for_a_change_of_the_check(
    cluster: ConsulCluster, gateway: ConsulGateway, service: str
) -> None:
    register(gateway, service)
    listed(gateway, service)
    path = f"/v1/health/service/{service}"
    index = cluster.ask("GET", path).headers["X-Consul-Index"]
    started = monotonic()
    with after(0.3, lambda: gateway.pass_check(f"service:{service}-id", "")):
        answer = cluster.ask("GET", f"{path}?index={index}&wait={HANG_S:.0f}s")
    assert 0.2 < monotonic() - started < HANG_S
    assert int(answer.headers["X-Consul-Index"]) > int(index)
    assert [c["Status"] for c in json.loads(answer.body)[0]["Checks"]] == ["passing", "passing"]


def test_a_health_query_for_an_unknown_service_waits_for_its_registration(
    cluster: ConsulCluster, gateway: ConsulGateway, service: str
) -> None:
    path = f"/v1/health/service/{service}"
    index = cluster.ask("GET", path).headers["X-Consul-Index"]
    with after(0.3, lambda: register(gateway, service)):
        answer = cluster.ask("GET", f"{path}?index={index}&wait={HANG_S:.0f}s")
    assert len(json.loads(answer.body)) == 1


def test_the_index_of_a_service_that_is_gone_does_not_move_with_others(
    cluster: ConsulCluster, gateway: ConsulGateway, service: str
) -> None:
    register(gateway, service)
    listed(gateway, service)
    gateway.deregister(f"{service}-id")
    wait_for(lambda: gateway.instances(service) == (), SYNC_S, "it is gone from the catalog")
    path = f"/v1/health/service/{service}"
    index = cluster.ask("GET", path).headers["X-Consul-Index"]
    other = f"{service}-other"
    register(gateway, other)
    listed(gateway, other)
    assert cluster.ask("GET", path).headers["X-Consul-Index"] == index
    gateway.deregister(f"{other}-id")


# Over the wire


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "text"),
    [
        ("PUT", "/v1/kv/", b"x", 400, b"Missing key name"),
        ("GET", "/v1/kv/", None, 400, b"Missing key name"),
        ("PUT", "/v1/kv/w/a", b"x", 200, b"true"),
        ("DELETE", "/v1/kv/w/a", None, 200, b"true"),
        ("DELETE", "/v1/kv/w/none", None, 200, b"true"),
        ("GET", "/v1/kv/w/?recurse", None, 404, b""),
        ("GET", "/v1/kv/w/a", None, 404, b""),
        ("GET", "/v1/kv/w/a?index=xx", None, 400, b"Invalid index"),
        ("GET", "/v1/kv/w/a?index=1&wait=zz", None, 400, b"Invalid wait time"),
        (
            "GET",
            "/v1/kv/w/a?stale&consistent",
            None,
            400,
            b"Cannot specify ?stale with ?consistent, conflicting semantics.",
        ),
        ("PUT", "/v1/health/service/none", b"", 405, b"method PUT not allowed"),
        ("GET", "/v1/nope", None, 404, b""),
        ("GET", "/v1/health/service/none", None, 200, b"[]"),
        ("GET", "/v1/health/node/none", None, 200, b"[]"),
        (
            "PUT",
            "/v1/agent/check/pass/none",
            None,
            500,
            b'CheckID "none" does not have associated TTL',
        ),
    ],
)
def test_an_endpoint_answers_word_for_word(
    cluster: ConsulCluster, method: str, target: str, body: bytes | None, status: int, text: bytes
) -> None:
    answer = cluster.ask(method, target, body)
    assert (answer.status, answer.body) == (status, text)
    if method == "GET" and target.startswith(("/v1/kv/w/?", "/v1/health")):
        assert int(answer.headers["X-Consul-Index"]) >= 1
        assert answer.headers["X-Consul-KnownLeader"] == "true"
        assert answer.headers["X-Consul-LastContact"] == "0"


def test_the_agent_tells_its_name_and_the_cluster_its_leader(cluster: ConsulCluster) -> None:
    config = cluster.get_json("/v1/agent/self")["Config"]
    assert (config["NodeName"], config["Datacenter"]) == (NODE, "dc1")
    assert ":" in cluster.get_json("/v1/status/leader")


def test_no_object_of_the_embedded_server_has_a_field_that_consul_has_not(
    cluster: ConsulCluster, gateway: ConsulGateway, service: str
) -> None:
    with embedded_cluster() as embedded:
        for server in (cluster, embedded):
            register(server.gateway(), service)
            listed(server.gateway(), service)
        for path in (
            f"/v1/health/service/{service}",
            f"/v1/health/node/{NODE}",
            "/v1/agent/services",
        ):
            assert_same_shape(cluster.get_json(path), embedded.get_json(path), path)


def assert_same_shape(real: Any, fake: Any, where: str) -> None:
    assert type(real) is type(fake), where
    if isinstance(fake, dict):
        assert fake.keys() <= real.keys() or where.endswith("TaggedAddresses"), where
        for key in fake.keys() & real.keys():
            assert_same_shape(real[key], fake[key], f"{where}.{key}")
    elif isinstance(fake, list) and fake and real:
        assert len(real) == len(fake), where
        for number, (a, b) in enumerate(zip(real, fake, strict=True)):
            assert_same_shape(a, b, f"{where}[{number}]")


# The library, with its own transport


def test_the_library_reads_writes_and_waits(library: Any, prefix: str) -> None:
    key = prefix + "k"
    index, nothing = library.kv.get(key)
    assert nothing is None and int(index) >= 1
    assert library.kv.put(key, "v") is True
    index, entry = library.kv.get(key)
    assert (entry["Value"], entry["Key"], entry["Flags"]) == (b"v", key, 0)
    assert int(index) == entry["ModifyIndex"] == entry["CreateIndex"]
    with after(0.2, lambda: library.kv.put(key, "x", flags=5)):
        new_index, entry = library.kv.get(key, index=index, wait=f"{HANG_S:.0f}s")
    assert int(new_index) > int(index)
    assert (entry["Value"], entry["Flags"]) == (b"x", 5)
    assert [entry["Key"] for entry in library.kv.get(prefix, recurse=True)[1]] == [key]
    assert library.kv.delete(key) is True
    assert library.kv.get(prefix, recurse=True)[1] is None


def test_the_library_registers_and_finds_a_service(library: Any, service: str) -> None:
    library.agent.service.register(
        service, f"{service}-id", port=1234, tags=["a"], check=consul.Check.ttl("30s")
    )
    library.agent.check.ttl_pass(f"service:{service}-id", notes="fine")
    wait_for(lambda: len(library.health.service(service)[1]) == 1, SYNC_S, "it is listed")
    (instance,) = library.health.service(service)[1]
    assert (instance["Service"]["Port"], instance["Service"]["Tags"]) == (1234, ["a"])
    assert library.agent.services()[f"{service}-id"]["Service"] == service
    assert library.agent.self()["Config"]["NodeName"] == NODE


# The `consul` command


def test_the_command_puts_and_gets_keys(cluster: ConsulCluster, prefix: str) -> None:
    key = prefix + "k"
    assert cluster.cli("kv", "get", key).returncode == 1
    assert cluster.cli("kv", "put", key, "hello").stdout == f"Success! Data written to: {key}\n"
    assert cluster.cli("kv", "get", key).stdout == "hello\n"
    assert cluster.cli("kv", "get", "-recurse", prefix).stdout == f"{key}:hello\n"
    assert cluster.cli("kv", "put", key, "-", stdin="from stdin").returncode == 0
    assert cluster.cli("kv", "get", key).stdout == "from stdin\n"
    assert cluster.cli("kv", "delete", key).stdout == f"Success! Deleted key: {key}\n"


@contextmanager
def watching(
    cluster: ConsulCluster, directory: Path, *args: str
) -> Iterator[Callable[[], list[Any]]]:
    """`consul watch` with a handler; gives what the handler was called with so far."""
    calls = directory / "calls"
    noted = f"cat >> {calls}\nprintf '%s\\n' \" $CONSUL_INDEX\" >> {calls}"
    handler = script(directory / "handler", noted)
    calls.touch()

    def seen() -> list[Any]:
        decoder, text, docs = json.JSONDecoder(), calls.read_text(), []
        for line in text.split("\n")[:-1]:
            if line.startswith(" "):
                assert int(line) >= 1
            elif line:
                docs.append(decoder.raw_decode(line)[0])
        return docs

    with subprocess.Popen(
        [consul_binary(), "watch", *args, str(handler)],
        env=cluster.cli_env(),
        stdout=subprocess.DEVNULL,
    ) as watch:
        try:
            yield seen
        finally:
            watch.terminate()
            watch.wait(patient(20.0))


def test_a_watched_key_calls_the_handler_at_once_and_at_each_change(
    cluster: ConsulCluster, gateway: ConsulGateway, prefix: str, tmp_path: Path
) -> None:
    key = prefix + "epoch"
    with watching(cluster, tmp_path, "-type=key", f"-key={key}") as seen:
        wait_for(lambda: seen() == [None], SYNC_S, "a first call")
        gateway.put(key, b"7")
        wait_for(lambda: seen()[-1] is not None, SYNC_S, "a call for the value")
        last = seen()[-1]
        assert (last["Key"], base64.b64decode(last["Value"])) == (key, b"7")
        gateway.delete(key)
        wait_for(lambda: seen()[-1] is None, SYNC_S, "a call for the deletion")


def test_a_watched_service_calls_the_handler_at_once_and_at_each_change(
    cluster: ConsulCluster, gateway: ConsulGateway, service: str, tmp_path: Path
) -> None:
    with watching(cluster, tmp_path, "-type=service", f"-service={service}") as seen:
        wait_for(lambda: seen() == [[]], SYNC_S, "a first call")
        register(gateway, service)
        wait_for(lambda: len(seen()[-1]) == 1, SYNC_S, "a call for the registration")
        gateway.pass_check(f"service:{service}-id", "")
        wait_for(
            lambda: seen()[-1][0]["Checks"][-1]["Status"] == "passing", SYNC_S, "one for the check"
        )
        last = seen()[-1][0]
        assert (last["Node"]["Node"], last["Service"]["Meta"]) == (NODE, {"epoch": "1"})
        assert [check["CheckID"] for check in last["Checks"]] == [
            "serfHealth",
            f"service:{service}-id",
        ]
        gateway.deregister(f"{service}-id")
        wait_for(lambda: seen()[-1] == [], SYNC_S, "a call for its end")


def test_a_token_that_sees_the_servers_is_not_blind(gateway: ConsulGateway) -> None:
    gateway.self_check()
    assert ":" in gateway.leader()
