"""What tokens of others can do on a real Consul with ACLs: a forged entry of the service, and what
a client writes. Neither leads clients astray, nor keeps the true primary from serving.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.agent.watcher import Watcher
from standfast.clients.loop import Parts, Remount, server_of
from standfast.clients.observation import NoServer, Server, Unreadable
from standfast.config.consul import ConsulAccess
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import ClientRecord, Holder, Leader, LeaderState, dump_epoch
from standfast.consul.values import Registration
from standfast.exporter.status_cache import read_keys
from standfast.lease.holding import LeaseKeys
from standfast.node.other_server import active_elsewhere, nobody
from standfast.reasons import Reason
from standfast.role.observation import Cluster
from tests.contract.consul_scene import SYNC_S, SYNCED
from tests.contract.own_network import own_network
from tests.contract.secured_consul import SecuredConsul, secured_consul
from tests.fakes.client import FakeClient, fake_client, fsid
from tests.fakes.nfs_server import FakeNfsServer, serve
from tests.support import needs
from tests.support.checkout import CHECKOUT
from tests.support.consul_clusters import NODE, consul_binary, free_ports
from tests.support.pace import patient
from tests.support.storage_node import StorageNode, unhurried_guard
from tests.support.waiting import soon, wait_for

pytestmark = SYNCED
EPOCH = 7
PRIMARY, STANDBY, EVIL = "192.168.1.2", "192.168.1.3", "10.66.0.9"
HALF_A_MEGABYTE = b"x" * (512 * 1024)


@dataclass(frozen=True)
class Served:
    """The volume is served by NODE; who asks or attacks has a token of its own."""

    consul: SecuredConsul
    config: Config
    storage: ConsulGateway
    token_file: Path

    def forge(self, node: str, address: str, **changes: object) -> None:
        """With no more than the right to write the service: an entry that claims to serve."""
        attacker = self.consul.token(
            "-".join(["attacker", node, *address.split(".")]),
            f'service "{self.config.service}" {{ policy = "write" }}',
        )
        service_id = str(changes.get("service_id", self.config.service_id))
        meta = {"epoch": str(changes.get("epoch", 9999)), "node": node, "fsid": fsid(9)}
        document = {
            # As it is listed: the node itself isn't changed, which would need another right.
            **self._listed(node),
            "Service": {
                "ID": service_id,
                "Service": self.config.service,
                "Address": address,
                "Port": changes.get("port", 2049),
                "Meta": meta,
            },
            "Check": {
                "CheckID": f"service:{service_id}",
                "Name": "NFS answers and its port is open",
                "ServiceID": service_id,
                "Status": "passing",
            },
        }
        theirs = replace(self.consul.cluster, headers={"X-Consul-Token": attacker})
        answer = theirs.ask("PUT", "/v1/catalog/register", json.dumps(document).encode())
        assert answer.status == 200, answer

    def _listed(self, node: str) -> Mapping[str, Any]:
        [found] = [
            each
            for each in self.consul.cluster.get_json("/v1/catalog/nodes")
            if each["Node"] == node
        ]
        same = {name: found[name] for name in ("Node", "ID", "Address", "TaggedAddresses")}
        return {**same, "NodeMeta": found["Meta"]}

    def client(self, directory: Path) -> FakeClient:
        """A client, with what it is given of Consul."""
        made = fake_client(directory)
        made.trees = {PRIMARY: 1, STANDBY: 1, EVIL: 9}
        return made

    def parts(self, client: FakeClient) -> Parts:
        rules = (CHECKOUT / "docs/consul-policy-client.hcl").read_text()
        token = self.consul.token(f"client-{client.config.paths.run.parent.name}", rules)
        return replace(client.parts, consul=self.consul.cluster.gateway(token=token))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    directory = tmp_path / "consul"
    directory.mkdir()
    with secured_consul(directory) as consul:
        token = consul.token("storage", (CHECKOUT / "docs/consul-policy.hcl").read_text())
        token_file = tmp_path / "token"
        token_file.write_text(token)
        token_file.chmod(0o600)
        storage = consul.cluster.gateway(token=token)
        access = ConsulAccess(addresses=(consul.cluster.address,), token_file=token_file)
        config = structs.replace(fake_client(tmp_path).config, node=NODE, consul=access)
        storage.put(config.key("epoch"), dump_epoch(EPOCH))
        leader = Leader(EPOCH, Holder(NODE, "boot-1"), 3, LeaderState.SERVING, ("n2", "n3"))
        storage.put(config.key("leader"), leader.dump())
        meta = {"epoch": str(EPOCH), "node": NODE, "fsid": fsid(1)}
        storage.register(
            Registration(config.service_id, config.service, PRIMARY, 2049, meta, 600, "nfs")
        )
        storage.pass_check(f"service:{config.service_id}", "")
        for node, address in (("n2", STANDBY), ("evil", EVIL)):
            body = json.dumps({"Node": node, "Address": address}).encode()
            assert consul.cluster.ask("PUT", "/v1/catalog/register", body).status == 200
        wait_for(
            lambda: [each.checks for each in storage.instances(config.service)] == ["passing"],
            SYNC_S,
            "the primary is listed",
        )
        yield Served(consul, config, storage, token_file)


FORGED: Mapping[str, tuple[str, str, dict[str, object]]] = {
    "of a later epoch, elsewhere": ("evil", EVIL, {}),
    "of this epoch, elsewhere": ("evil", EVIL, {"epoch": EPOCH}),
    "of this epoch, elsewhere at the address of the primary": ("evil", PRIMARY, {"epoch": EPOCH}),
    "of a later epoch, at a standby": ("n2", STANDBY, {}),
    "of this epoch, at a standby": ("n2", STANDBY, {"epoch": EPOCH}),
    "of this epoch, on the primary's node with another address": (
        NODE,
        EVIL,
        {"epoch": EPOCH, "service_id": "x"},
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_client_stays_with_the_holder_whatever_else_is_registered(
    served: Served, tmp_path: Path, case: str
) -> None:
    client = served.client(tmp_path / "client")
    client.mounted(PRIMARY, 1)
    parts = served.parts(client)
    assert isinstance(server_of(parts), Server)
    node, address, changes = FORGED[case]
    served.forge(node, address, **changes)
    assert len(served.storage.instances(served.config.service)) == 2
    chosen = server_of(parts)
    assert isinstance(chosen, Server)
    assert (chosen.node, chosen.address, chosen.epoch) == (NODE, PRIMARY, EPOCH)
    Remount(parts, limit=soon(0.0)).run()
    assert client.top is not None and client.top.address == PRIMARY and not client.sins


def test_a_client_waits_with_a_forged_entry_alone(served: Served, tmp_path: Path) -> None:
    """The true one was taken away with the same token."""
    client = served.client(tmp_path / "client")
    client.mounted(PRIMARY, 1)
    parts = served.parts(client)
    served.storage.deregister(served.config.service_id)
    served.forge("evil", EVIL)
    wait_for(
        lambda: [each.node for each in served.storage.instances(served.config.service)] == ["evil"],
        SYNC_S,
        "the forged one alone is listed",
    )
    chosen = server_of(parts)
    assert isinstance(chosen, NoServer) and "evil (10.66.0.9, epoch 9999)" in chosen.sentence
    Remount(parts, limit=soon(0.0)).run()
    assert client.top is not None and client.top.address == PRIMARY


def test_a_client_that_may_not_read_the_keys_is_told_what_it_needs(
    served: Served, tmp_path: Path
) -> None:
    """Not that they don't exist; its mount stays."""
    client = served.client(tmp_path / "client")
    client.mounted(PRIMARY, 1)
    service = f'service "{served.config.service}" {{ policy = "read" }}'
    token = served.consul.token("no-keys", f'{service}\nnode_prefix "" {{ policy = "read" }}')
    parts = replace(client.parts, consul=served.consul.cluster.gateway(token=token))
    found = server_of(parts)
    assert isinstance(found, Unreadable) and found.reason is Reason.CONSUL_DENIED
    assert "consul-policy-client.hcl" in found.sentence
    Remount(parts, limit=soon(0.0)).run()
    assert client.top is not None and client.top.address == PRIMARY


HANGS = "hangs.example"
RESOLVER = f"""
import socket, time
ask = socket.getaddrinfo
def hang(host, *given, flags=0, **more):
    if host == {HANGS!r} and not flags:
        time.sleep(600)
    return ask(host, *given, flags=flags, **more)
socket.getaddrinfo = hang
"""
"""The resolver of the guard's process, for which no name server answers."""
DROPPED = [f"127.66.0.{number}" for number in range(1, 17)]
DROP = """
table inet unheard {
    chain input { type filter hook input priority 0; ip daddr 127.66.0.0/16 drop; }
}"""


@pytest.fixture
def alone() -> Iterator[None]:
    """A network in which nothing answers at DROPPED, neither well nor badly."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a network namespace")
    needs.require({"nft": "nftables", "ip": "iproute2"})
    consul_binary()  # in there it can't be fetched
    with own_network():
        subprocess.run(["nft", "-f", "-"], input=DROP.encode(), timeout=patient(20.0), check=True)
        yield


def storing(served: Served, root: Path) -> StorageNode:
    """NODE as its guard looks at it, which gets three seconds for all."""
    [port] = free_ports(1)
    node = StorageNode(root, served.consul.cluster.address, port)
    access = {"addresses": [node.consul], "token_file": str(served.token_file)}
    node.configure(consul=access, guard={"deadline": patient(3.0)})
    node.be_primary()
    leader = Leader(EPOCH, node.holder, 3, LeaderState.STARTING, ("n2", "n3"))
    served.storage.put(served.config.key("leader"), leader.dump())
    return node


FORGED_ELSEWHERE: Mapping[str, list[str]] = {
    "where packets are dropped": DROPPED,
    "whose name no server tells": [HANGS],
    "of both kinds, and many": [*DROPPED, HANGS, *(f"127.66.1.{number}" for number in range(4))],
}


@pytest.mark.parametrize("case", FORGED_ELSEWHERE)
def test_the_guard_lets_the_true_primary_serve_beside_forged_entries(
    alone: None,  # before Consul starts in it
    served: Served,
    tmp_path: Path,
    case: str,
) -> None:
    node = storing(served, tmp_path / "node")
    addresses = FORGED_ELSEWHERE[case]
    for number, address in enumerate(addresses):
        served.forge("evil", address, service_id=f"x{number}")
    assert len(served.storage.instances(served.config.service)) == len(addresses) + 1
    ended = unhurried_guard(node, changed=RESOLVER)
    assert ended.code == 0, ended
    assert ("5 entries of data-services that none" in ended.said) == ("many" in case), ended


def test_the_guard_refuses_where_an_nfs_server_answers_behind_an_entry(
    served: Served, tmp_path: Path
) -> None:
    """Somebody serves; what else answers there, or at a port that the entry chose, says nothing."""
    node = storing(served, tmp_path / "node")
    config = served.config
    with socket.create_server(("127.0.0.9", 0)) as other:
        served.forge("evil", "127.0.0.9", port=other.getsockname()[1])
        assert unhurried_guard(node).code == 0
    with socket.create_server(("127.0.0.9", node.port)):
        assert unhurried_guard(node).code == 0
    with serve(FakeNfsServer(), "127.0.0.9", node.port):
        ended = unhurried_guard(node)
    assert ended.code == 1 and "already active at 127.0.0.9" in ended.said, ended
    assert f"on evil: consul services deregister -id={config.service_id}" in ended.said


def test_an_entry_of_a_later_epoch_on_a_storage_node_stops_the_guard(served: Served) -> None:
    """Whatever the keys say: they may have been deleted, or restored. Nobody is asked."""
    served.forge("n2", STANDBY)
    served.storage.delete(served.config.key("epoch"))
    instances = served.storage.instances(served.config.service)
    found = active_elsewhere(instances, served.config, NODE, EPOCH, nobody, soon(10.0))
    assert [each.node for each in found] == ["n2"]


@pytest.mark.parametrize(
    ("place", "values"),
    [
        # 2 MiB; a little less, and a little more, than the most of any answer of Consul's.
        *(("beside", values) for values in (3, 47, 48)),
        ("as an older version had it", 48),
    ],
)
def test_what_clients_write_stalls_nobody(served: Served, place: str, values: int) -> None:
    config = served.config
    rules = (CHECKOUT / "docs/consul-policy-client.hcl").read_text()
    key = config.client_key if place == "beside" else lambda node: config.key(f"clients/{node}")
    writer = served.consul.cluster.gateway(token=served.consul.token("a-client", rules))
    if place != "beside":
        writer = served.storage
    for number in range(values):
        writer.put(key(f"c{number}"), HALF_A_MEGABYTE)
    keys = LeaseKeys(config, served.storage, Holder(NODE, "boot-1"))
    assert keys.read(EPOCH).epoch == keys.read_all().epoch == EPOCH
    assert keys.prospects(EPOCH, soon(10.0)).pause is None
    assert isinstance(Watcher(config, served.storage).look(0.0, fresh=True), Cluster)
    known = read_keys(config)
    assert not known.foreign
    assert isinstance(known.clients, str) == (place == "beside")


def test_one_client_that_writes_nonsense_hides_no_other(served: Served) -> None:
    config = served.config
    well = ClientRecord("c1", NODE, EPOCH, "mount-current", 7.0)
    values = {
        "c1": well.dump(),
        "c2": HALF_A_MEGABYTE,
        "c3": b"\xff\x00",
        "c4": well.dump(),
    }
    for node, value in values.items():
        served.storage.put(config.client_key(node), value)
    known = read_keys(config)
    assert (known.clients, known.foreign_clients) == ([well], ["c2", "c3", "c4"])
    assert not known.foreign
