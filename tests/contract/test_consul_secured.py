"""A real Consul with ACLs, and one with TLS: the shipped policy suffices, and little else does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from standfast.config.consul import ConsulAccess
from standfast.consul import watch
from standfast.consul.gateway import Committed, ConsulBlind, ConsulGateway, Set
from standfast.consul.records import ClientRecord
from standfast.consul.values import Registration
from standfast.errors import ConsulDenied, ConsulError, ConsulUnreachable
from tests.contract.consul_scene import SYNC_S, SYNCED
from tests.support.checkout import CHECKOUT
from tests.support.configs import config_of
from tests.support.consul_clusters import (
    NODE,
    ConsulCluster,
    consul_binary,
    free_ports,
    real_cluster,
)
from tests.support.pace import patient
from tests.support.waiting import wait_for

MASTER = "3f1e0b7a-77c9-4d8c-8ad5-2e5f6ac4c7c1"
SERVICE = "data-services"
pytestmark = SYNCED


@dataclass(frozen=True)
class SecuredConsul:
    cluster: ConsulCluster

    def token(self, name: str, rules: str) -> str:
        """The secret of a new token with a policy of its own."""
        self._put("/v1/acl/policy", {"Name": name, "Rules": rules})
        made = self._put("/v1/acl/token", {"Policies": [{"Name": name}]})
        return str(made["SecretID"])

    def revoke(self, secret: str) -> None:
        listed = self.cluster.get_json("/v1/acl/tokens")
        for token in listed:
            accessor = token["AccessorID"]
            if self.cluster.get_json(f"/v1/acl/token/{accessor}")["SecretID"] == secret:
                self.cluster.ask("DELETE", f"/v1/acl/token/{accessor}")

    def _put(self, target: str, doc: object) -> Any:
        answer = self.cluster.ask("PUT", target, json.dumps(doc).encode())
        assert answer.status == 200, answer
        return json.loads(answer.body)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredConsul]:
    acl = {
        "enabled": True,
        "default_policy": "deny",
        "token_ttl": "0s",
        "tokens": {"master": MASTER, "agent": MASTER},
    }
    directory = tmp_path_factory.mktemp("consul-acl")
    with real_cluster(directory, {"acl": acl}, token=MASTER) as cluster:
        yield SecuredConsul(cluster)


@pytest.fixture(scope="module")
def enough(secured: SecuredConsul) -> str:
    return secured.token("standfast", (CHECKOUT / "docs/consul-policy.hcl").read_text())


def test_the_shipped_policy_is_enough_for_every_call(secured: SecuredConsul, enough: str) -> None:
    gateway = secured.cluster.gateway(token=enough)
    gateway.self_check()
    key = f"standfast/{SERVICE}/epoch"
    assert isinstance(gateway.txn([Set(key, b"1")]), Committed)
    gateway.put(key, b"2")
    entry = gateway.get(key, consistent=True)
    assert entry is not None and entry.value == b"2"
    assert gateway.read([key, f"standfast/{SERVICE}/leader"])[key] == entry
    assert gateway.get_many(f"standfast/{SERVICE}/") == (entry,)
    assert gateway.wait(key, 0, wait_s=1) == (entry.modify_index, entry)
    gateway.delete(key)
    assert gateway.node_health(NODE) == "passing"
    gateway.register(
        Registration("ds", SERVICE, "10.0.0.1", 2049, {"epoch": "1"}, 30, "answers NFS")
    )
    gateway.pass_check("service:ds", "fine")
    wait_for(
        lambda: [instance.checks for instance in gateway.instances(SERVICE)] == ["passing"],
        SYNC_S,
        "it passes",
    )
    gateway.fail_check("service:ds", "gone")
    assert "ds" in gateway.local_services()
    gateway.deregister("ds")
    wait_for(lambda: gateway.instances(SERVICE) == (), SYNC_S, "it is gone from the catalog")


def test_the_policy_of_a_client_lets_it_say_what_it_mounts_and_change_nothing_else(
    secured: SecuredConsul, enough: str
) -> None:
    rules = (CHECKOUT / "docs/consul-policy-client.hcl").read_text()
    gateway = secured.cluster.gateway(token=secured.token("standfast-client", rules))
    record = ClientRecord("c7", "n1", 5, "mount-current", 7.0)
    gateway.self_check()
    gateway.put(f"standfast/{SERVICE}/clients/c7", record.dump())
    [entry] = gateway.get_many(f"standfast/{SERVICE}/clients/")
    assert ClientRecord.parse(entry.value, entry.key) == record
    for key in (f"standfast/{SERVICE}/epoch", f"standfast/{SERVICE}/clients", "elsewhere"):
        with pytest.raises(ConsulDenied):
            gateway.put(key, b"8")
    secured.cluster.gateway(token=enough).delete(entry.key)


def test_the_shipped_policy_is_enough_for_a_watch(secured: SecuredConsul, enough: str) -> None:
    shown = subprocess.run(
        [consul_binary(), "watch", "-type=service", f"-service={SERVICE}"],
        env={**secured.cluster.cli_env(), "CONSUL_HTTP_TOKEN": enough},
        capture_output=True,
        text=True,
        timeout=patient(20.0),
    )
    assert (shown.returncode, shown.stdout.strip()) == (0, "[]")


def test_the_shipped_policy_is_not_more_than_needed(secured: SecuredConsul, enough: str) -> None:
    gateway = secured.cluster.gateway(token=enough)
    with pytest.raises(ConsulDenied):
        gateway.put("elsewhere", b"")
    with pytest.raises(ConsulDenied):
        gateway.register(Registration("x", "other", "10.0.0.1", 1, {}, 30, "check"))


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param('key_prefix "standfast/" { policy = "write" }', id="keys only"),
        pytest.param('service "consul" { policy = "read" }', id="no nodes"),
        pytest.param('node_prefix "" { policy = "read" }', id="no services"),
    ],
)
def test_a_token_that_sees_nothing_is_blind(secured: SecuredConsul, rules: str) -> None:
    token = secured.token(f"blind-{abs(hash(rules))}", rules)
    gateway = secured.cluster.gateway(token=token)
    assert gateway.instances(SERVICE) == ()
    with pytest.raises(ConsulBlind, match="would prove nothing"):
        gateway.self_check()


def test_no_token_at_all_is_blind_too(secured: SecuredConsul) -> None:
    with pytest.raises(ConsulBlind):
        secured.cluster.gateway().self_check()


def test_a_denied_transaction_is_denied_and_no_conflict(secured: SecuredConsul) -> None:
    rules = 'key_prefix "standfast/" { policy = "read" }'
    gateway = secured.cluster.gateway(token=secured.token("reader", rules))
    with pytest.raises(ConsulDenied, match="Permission denied") as caught:
        gateway.txn([Set("standfast/v/epoch", b"1")])
    assert not caught.value.maybe_applied


def test_a_revoked_token_is_denied_everywhere(secured: SecuredConsul) -> None:
    token = secured.token("short-lived", (CHECKOUT / "docs/consul-policy.hcl").read_text())
    gateway = secured.cluster.gateway(token=token)
    gateway.self_check()
    secured.revoke(token)
    calls: list[Callable[[], object]] = [
        gateway.self_check,
        lambda: gateway.get("standfast/v/epoch"),
        lambda: gateway.txn([Set("standfast/v/epoch", b"1")]),
        lambda: gateway.pass_check("c", "note"),
        gateway.local_services,
    ]
    for call in calls:
        with pytest.raises(ConsulDenied) as caught:
            call()
        assert token not in str(caught.value)
        assert not caught.value.maybe_applied


# TLS


@dataclass(frozen=True)
class Encrypted:
    address: str
    ca_cert: Path
    cert: Path
    key: Path


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    directory = tmp_path_factory.mktemp("consul-tls")
    _make_certificates(directory)
    (https,) = free_ports(1)
    settings = {
        "ports": {"https": https},
        "verify_incoming_https": True,
        "ca_file": str(directory / "consul-agent-ca.pem"),
        "cert_file": str(directory / "dc1-server-consul-0.pem"),
        "key_file": str(directory / "dc1-server-consul-0-key.pem"),
    }
    with real_cluster(directory, settings):
        yield Encrypted(
            f"127.0.0.1:{https}",
            directory / "consul-agent-ca.pem",
            directory / "dc1-client-consul-0.pem",
            directory / "dc1-client-consul-0-key.pem",
        )


def _make_certificates(directory: Path) -> None:
    for args in (["ca", "create"], ["cert", "create", "-server"], ["cert", "create", "-client"]):
        command = [consul_binary(), "tls", *args]
        subprocess.run(
            command, cwd=directory, check=True, capture_output=True, timeout=patient(30.0)
        )


def test_tls_with_both_certificates_works(encrypted: Encrypted) -> None:
    server = encrypted
    gateway = ConsulGateway(
        [server.address],
        ca_cert=server.ca_cert,
        client_cert=server.cert,
        client_key=server.key,
        timeout_s=5,
    )
    gateway.self_check()
    assert isinstance(gateway.txn([Set("k", b"v" * 100_000)]), Committed)
    entry = gateway.get("k")
    assert entry is not None and entry.value == b"v" * 100_000


def test_a_watch_speaks_tls_where_the_gateway_does(encrypted: Encrypted) -> None:
    access = ConsulAccess(
        addresses=(encrypted.address,),
        ca_cert=encrypted.ca_cert,
        client_cert=encrypted.cert,
        client_key=encrypted.key,
    )
    config = config_of("a", node="a", consul=access)
    [address] = watch.addresses(config)
    shown = subprocess.run(
        watch.argv({"type": "service", "service": SERVICE, "handler": []}, address),
        executable=consul_binary(),
        env=watch.environment(config),
        capture_output=True,
        text=True,
        timeout=patient(20.0),
    )
    assert (shown.returncode, shown.stdout.strip()) == (0, "[]"), shown


def test_tls_without_the_client_certificate_is_turned_away(encrypted: Encrypted) -> None:
    gateway = ConsulGateway([encrypted.address], ca_cert=encrypted.ca_cert, timeout_s=5)
    with pytest.raises(ConsulError, match=r"certificate required|bad certificate|tlsv1"):
        gateway.get("k")


def test_a_server_of_another_authority_is_not_spoken_to(
    encrypted: Encrypted, tmp_path: Path
) -> None:
    _make_certificates(tmp_path)
    other = replace(encrypted, ca_cert=tmp_path / "consul-agent-ca.pem")
    gateway = ConsulGateway([other.address], ca_cert=other.ca_cert, token="secret", timeout_s=5)
    with pytest.raises(ConsulUnreachable, match="certificate verify failed"):
        gateway.get("k")


def test_plain_http_to_the_tls_port_is_garbled(encrypted: Encrypted) -> None:
    with pytest.raises(ConsulError, match=r"400|no whole"):
        ConsulGateway([encrypted.address], timeout_s=5).get("k")
