"""A Consul that somebody else set up, and works on: its names, its maintenance, what lies in it.

On a real one, as it is about what Consul does by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from standfast.agent.watcher import Watcher
from standfast.config.consul import ConsulAccess
from standfast.config.model import Config
from standfast.consul.blindness import blindness
from standfast.consul.records import HistoryEntry, Holder, Leader, LeaderState, dump_epoch
from standfast.consul.values import Registration
from standfast.errors import ConsulLimited
from standfast.exporter.status_cache import read_keys
from standfast.lease.holding import LeaseKeys
from standfast.node.node import Machine
from standfast.node.other_server import active_elsewhere
from standfast.nomad.notes import Notes
from standfast.reasons import Reason
from standfast.role import registration
from standfast.role.decide import decide
from standfast.role.decision import Action, Moment, Request
from standfast.role.observation import Cluster, Local
from standfast.system.clock import monotonic, utc_now
from tests.contract.consul_scene import SYNC_S, SYNCED, listed
from tests.fakes.machine import fake_node
from tests.support.configs import config_in
from tests.support.consul_clusters import NODE, ConsulCluster, real_cluster
from tests.support.waiting import soon, wait_for

pytestmark = SYNCED


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulCluster]:
    with real_cluster(tmp_path_factory.mktemp("consul")) as cluster:
        yield cluster


@pytest.mark.parametrize("node", ["N1", "n1.lan", NODE])
def test_a_node_that_consul_calls_otherwise_is_not_promoted(
    cluster: ConsulCluster, tmp_path: Path, node: str
) -> None:
    """Its own server would be another's to its guard, which is shown here, too."""
    consul, config = cluster.gateway(), config_in(tmp_path, node, "n2")
    consul.put(config.key("epoch"), dump_epoch(4))
    gone = Leader(4, Holder("n2", "boot-2"), 9, LeaderState.CLEAN, (node,), to=node)
    consul.put(config.key("leader"), gone.dump())
    view = Watcher(config, consul).look(0)
    assert isinstance(view, Cluster)
    local = Local(node, "boot-1", 4, has_live=True)
    decision = decide(view, local, config, Moment(monotonic(), utc_now()), Request(promote=True))
    assert decision.action is Action.BLOCKED
    assert (decision.reason is Reason.NODE_MISNAMED) == (node != NODE)
    consul.register(
        Registration(config.service_id, config.service, "10.1.2.3", 2049, {"epoch": "4"}, 60, "nfs")
    )
    consul.pass_check(f"service:{config.service_id}", "")
    listed(consul, config.service, "passing")
    entries = consul.instances(config.service)
    others = active_elsewhere(entries, config, node, 4, lambda doors, _: doors, soon(10.0))
    assert bool(others) == (node != NODE)


def serving(cluster: ConsulCluster, machine: Machine) -> list[str]:
    """The addresses that Consul names for the service, as DNS does: all but critical ones."""
    rows = cluster.get_json(f"/v1/health/service/{machine.config.service}?consistent")
    return [
        row["Service"]["Address"]
        for row in rows
        if all(check["Status"] != "critical" for check in row["Checks"])
    ]


def node_maintenance(cluster: ConsulCluster, enable: bool, _config: Config) -> None:
    assert cluster.cli("maint", "-enable" if enable else "-disable").returncode == 0


def service_maintenance(cluster: ConsulCluster, enable: bool, config: Config) -> None:
    way = "-enable" if enable else "-disable"
    assert cluster.cli("maint", way, f"-service={config.service_id}").returncode == 0


def check_of_the_node(cluster: ConsulCluster, enable: bool, _config: Config) -> None:
    """As a monitoring script registers one."""
    check = {"Name": "disk", "TTL": "1h", "Status": "critical"}
    way, body = "deregister/disk", b""
    if enable:
        way, body = "register", json.dumps(check).encode()
    assert cluster.ask("PUT", f"/v1/agent/check/{way}", body).status == 200


@pytest.mark.parametrize(
    ("hide", "named"),
    [
        (node_maintenance, "Node Maintenance Mode"),
        (service_maintenance, "Service Maintenance Mode"),
        (check_of_the_node, "disk"),
    ],
)
def test_what_takes_the_service_out_of_dns_is_named(
    cluster: ConsulCluster,
    tmp_path: Path,
    hide: Callable[[ConsulCluster, bool, Config], None],
    named: str,
) -> None:
    machine = replace(fake_node(tmp_path).machine, consul=cluster.gateway())
    config = machine.config
    entry = Registration(config.service_id, config.service, "10.1.2.3", 2049, {}, 600, "nfs")
    machine.consul.register(entry)
    machine.consul.pass_check(f"service:{config.service_id}", "")
    wait_for(lambda: serving(cluster, machine) == ["10.1.2.3"], SYNC_S, "DNS names it")
    assert registration.hidden(machine) is None
    hide(cluster, True, config)
    try:
        wait_for(lambda: serving(cluster, machine) == [], SYNC_S, "it is out of DNS")
        said = registration.hidden(machine)
        assert said is not None and f"'{named}' of {NODE}" in said
    finally:
        hide(cluster, False, config)
    wait_for(lambda: registration.hidden(machine) is None, SYNC_S, "nothing hides it any more")


FOLDERS = ("", *(f"{kind}/" for kind in ("history", "standbys", "candidates", "clients", "nomad")))


def test_a_folder_in_the_web_interface_blinds_nobody(
    cluster: ConsulCluster, tmp_path: Path
) -> None:
    """What looks at all keys of a volume sees no others than before, whatever it makes of them."""
    config = config_in(
        tmp_path, consul=ConsulAccess(addresses=(cluster.address,), prefix="folders")
    )
    consul = cluster.gateway()
    consul.put(config.key("epoch"), dump_epoch(4))
    gone = Leader(4, Holder("n2", "boot-2"), 9, LeaderState.CLEAN, ("n1",), to="n1")
    consul.put(config.key("leader"), gone.dump())
    entry = HistoryEntry(4, "n2", None, "first-primary", None, 0.0, utc_now())
    consul.put(config.key("history/4"), entry.dump())

    def seen() -> list[object]:
        view = Watcher(config, consul).look(0)
        assert isinstance(view, Cluster), view
        lease = LeaseKeys(config, consul, Holder("n1", "boot-1"))
        return [
            (view.epoch, view.leader, view.history, view.standbys, view.highest_epoch),
            (lease.read_all().highest, lease.prospects(4, soon(10.0))),
            read_keys(config),
            Notes(config, consul).load(),
        ]

    before = seen()
    for folder in (*FOLDERS, "standbys/c1/", "history/old/", "pause/"):
        answer = cluster.ask("PUT", f"/v1/kv/{config.key(folder)}")
        assert answer.status == 200, answer
    assert seen() == before


def test_a_limit_of_consul_is_named(tmp_path: Path) -> None:
    """Not a lost quorum: nobody has to bring back a server."""
    with (
        real_cluster(tmp_path, {"limits": {"rpc_rate": 1e-6, "rpc_max_burst": 50}}) as cluster,
        pytest.raises(ConsulLimited, match="429") as caught,
    ):
        for _ in range(51):
            cluster.gateway().get("standfast/data/epoch")
    assert blindness(caught.value).reason is Reason.CONSUL_LIMITED


@pytest.mark.parametrize("multiplier", [1, 5])
def test_an_agent_tells_the_timing_of_its_elections(tmp_path: Path, multiplier: int) -> None:
    """By which doctor says what an election of Consul's adds to a failover."""
    timing = {"performance": {"raft_multiplier": multiplier}}
    with real_cluster(tmp_path, timing) as cluster:
        assert cluster.gateway().election_timeout_s() == multiplier
