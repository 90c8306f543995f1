"""A real Consul with ACLs, and one with TLS: the shipped policy suffices, and little else does."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from standfast.config.consul import ConsulAccess
from standfast.consul import watch
from standfast.consul.gateway import Committed, ConsulBlind, ConsulGateway, Set
from standfast.consul.records import ClientRecord, dump_epoch
from standfast.consul.values import Registration
from standfast.errors import ConsulDenied, ConsulError, ConsulUnreachable
from standfast.requests.record import BELL, OUTCOMES, REQUESTS
from tests.contract.consul_scene import SYNC_S, SYNCED
from tests.contract.secured_consul import SecuredConsul, secured_consul
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

CONFIG = config_of()
SERVICE = CONFIG.service
STORAGE, CLIENT = (CHECKOUT / f"docs/consul-policy{kind}.hcl" for kind in ("", "-client"))
pytestmark = SYNCED


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredConsul]:
    with secured_consul(tmp_path_factory.mktemp("consul-acl")) as secured:
        yield secured


@pytest.fixture(scope="module")
def enough(secured: SecuredConsul) -> str:
    return secured.token("standfast", STORAGE.read_text())


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
    assert gateway.read([], folders=[f"standfast/{SERVICE}/"]) == {key: entry}
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
    gateway = secured.cluster.gateway(token=secured.token("standfast-client", CLIENT.read_text()))
    record = ClientRecord("c7", "n1", 5, "mount-current", 7.0)
    gateway.put(CONFIG.client_key("c7"), record.dump())
    [entry] = gateway.get_many(CONFIG.client_key(""))
    assert ClientRecord.parse(entry.value, "c7") == record
    asked = (CONFIG.key(name) for name in (BELL, f"{REQUESTS}{'0f' * 16}", f"{OUTCOMES}x"))
    others = (CONFIG.key("epoch"), CONFIG.key("clients/c7"), "standfast-clients/other/c7", *asked)
    for key in (*others, "elsewhere"):
        with pytest.raises(ConsulDenied):
            gateway.put(key, b"8")
    secured.cluster.gateway(token=enough).delete(entry.key)


@pytest.mark.parametrize("policy", [STORAGE, CLIENT], ids=lambda path: path.stem)
def test_the_shipped_policies_are_enough_for_a_watch(secured: SecuredConsul, policy: Path) -> None:
    token = secured.token(f"watching-{policy.stem}", policy.read_text())
    assert watched(secured.cluster, token)


def watched(cluster: ConsulCluster, token: str) -> bool:
    shown = subprocess.run(
        [consul_binary(), "watch", "-type=service", f"-service={SERVICE}"],
        env={**cluster.cli_env(), "CONSUL_HTTP_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=patient(20.0),
    )
    return shown.returncode == 0 and isinstance(json.loads(shown.stdout), list)


# Each rule is needed


def rules_of(policy: Path) -> list[str]:
    """The rules that are in force: comments are not."""
    text = re.sub(r"(?m)^#.*$", "", policy.read_text())
    return re.findall(r"\w+ \"[^\"]*\" \{[^}]*\}", text)


def written(consul: ConsulGateway) -> bool:
    return isinstance(consul.txn([Set(CONFIG.key("epoch"), dump_epoch(7))]), Committed)


def registered(consul: ConsulGateway) -> bool:
    entry = Registration("own", SERVICE, "10.0.0.1", 2049, {"epoch": "7"}, 30, "answers NFS")
    consul.register(entry)
    consul.deregister("own")
    return True


def told(consul: ConsulGateway) -> bool:
    consul.put(CONFIG.client_key("c7"), b"{}")
    return bool(consul.get_many(CONFIG.client_key("")))


def sees_enough(consul: ConsulGateway) -> bool:
    consul.self_check()
    return True


def finds_the_server(consul: ConsulGateway) -> bool:
    return bool(consul.instances(SERVICE)) and consul.node_health(NODE) == "passing"


def knows_the_epoch(consul: ConsulGateway) -> bool:
    return consul.get(CONFIG.key("epoch"), consistent=True) is not None


def knows_the_agent(consul: ConsulGateway) -> bool:
    return consul.node_name() == NODE


Able = Callable[[ConsulGateway], bool]
NEEDED: Mapping[tuple[Path, str], Sequence[Able]] = {
    (STORAGE, 'service "data-services"'): (registered,),
    (STORAGE, 'key_prefix "standfast/"'): (written, knows_the_epoch),
    (STORAGE, 'key_prefix "standfast-clients/"'): (told,),
    (STORAGE, 'service "consul"'): (sees_enough,),
    (STORAGE, 'node_prefix ""'): (sees_enough, finds_the_server),
    (STORAGE, 'agent_prefix ""'): (knows_the_agent,),
    (CLIENT, 'service "data-services"'): (finds_the_server,),
    (CLIENT, 'key_prefix "standfast/data-services/"'): (knows_the_epoch,),
    (CLIENT, 'key_prefix "standfast-clients/data-services/"'): (told,),
    (CLIENT, 'node_prefix ""'): (finds_the_server,),
    (CLIENT, 'agent_prefix ""'): (knows_the_agent,),
}
"""What each rule is there for: without it, that is refused or not seen."""


def is_able(able: Able, consul: ConsulGateway) -> bool:
    try:
        return able(consul)
    except ConsulDenied:
        return False


def test_each_rule_of_the_shipped_policies_is_there_for_something() -> None:
    for policy in (STORAGE, CLIENT):
        named = [rule.partition(" {")[0] for rule in rules_of(policy)]
        assert named == [rule for path, rule in NEEDED if path == policy]


@pytest.fixture(scope="module")
def served(secured: SecuredConsul, enough: str) -> ConsulCluster:
    """Somebody serves."""
    consul = secured.cluster.gateway(token=enough)
    assert written(consul)
    consul.register(Registration("server", SERVICE, "10.0.0.1", 2049, {"epoch": "7"}, 600, "nfs"))
    consul.pass_check("service:server", "fine")
    wait_for(lambda: bool(consul.instances(SERVICE)), SYNC_S, "it is in the catalog")
    return secured.cluster


@pytest.mark.parametrize(
    ("policy", "rule"), NEEDED, ids=lambda part: part.stem if isinstance(part, Path) else part
)
def test_without_a_rule_of_the_shipped_policies_something_is_refused(
    secured: SecuredConsul, served: ConsulCluster, policy: Path, rule: str
) -> None:
    rules = rules_of(policy)
    all_able = [able for (path, _), needs in NEEDED.items() if path == policy for able in needs]
    name = re.sub(r"\W+", "-", rule)
    whole = served.gateway(token=secured.token(f"all-{policy.stem}-{name}", "\n".join(rules)))
    assert all(is_able(able, whole) for able in all_able), "the policy is enough"
    left = [each for each in rules if not each.startswith(f"{rule} {{")]
    assert len(left) == len(rules) - 1
    token = secured.token(f"without-{policy.stem}-{name}", "\n".join(left))
    without = served.gateway(token=token)
    for able in NEEDED[policy, rule]:
        assert not is_able(able, without), able
    if rule.startswith("agent_prefix"):
        assert not watched(served, token)


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


NO_KEYS = 'node_prefix "" { policy = "read" }'


def test_what_may_not_be_read_is_denied_alone_and_left_out_among_others(
    secured: SecuredConsul, enough: str
) -> None:
    """As Consul has always done it, so whoever reads several has to know that it sees something."""
    key = CONFIG.key("leader")
    secured.cluster.gateway(token=enough).put(key, b"x")
    gateway = secured.cluster.gateway(token=secured.token("no-keys", NO_KEYS))
    with pytest.raises(ConsulDenied):
        gateway.get(key, consistent=True)
    assert gateway.get_many(CONFIG.key("")) == ()
    assert gateway.read([key]) == {key: None}
    secured.cluster.gateway(token=enough).delete(key)


def test_a_denied_transaction_is_denied_and_no_conflict(secured: SecuredConsul) -> None:
    rules = 'key_prefix "standfast/" { policy = "read" }'
    gateway = secured.cluster.gateway(token=secured.token("reader", rules))
    with pytest.raises(ConsulDenied, match="Permission denied") as caught:
        gateway.txn([Set("standfast/v/epoch", b"1")])
    assert not caught.value.maybe_applied


def test_a_revoked_token_is_denied_everywhere(secured: SecuredConsul) -> None:
    token = secured.token("short-lived", STORAGE.read_text())
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
