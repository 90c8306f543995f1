"""What must not be a failover, and what must be one, with real parts and the fast timings."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.cluster import AGENT, FAST, LEASE, VOLUME, Cluster
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.machines.host import LabError
from tests.support.figures import note

CONFIG = f"/etc/standfast/{VOLUME}.toml"
EXTRA = "min_reign = 0\nfailover_after = 6"


@pytest.fixture(scope="module")
def whole(lab_factory: Callable[..., Lab]) -> Iterator[Cluster]:
    lab = lab_factory()
    made = Cluster(lab, FAST, extra=EXTRA)
    made.install()
    made.begin()
    yield made
    lab.close()


@pytest.fixture
def cluster(whole: Cluster) -> Iterator[Cluster]:
    """A healthy cluster before each test, whatever the last one did."""
    whole.repair()
    yield whole
    whole.lab.heal()


def nfsd_pid(node: Node) -> str:
    return node.run("systemctl", "show", "-P", "MainPID", "nfs-server").stdout.strip()


def undisturbed(cluster: Cluster, disturb: Callable[[Node], None], settle_s: float) -> None:
    """`disturb` is done to the primary: no new epoch, the same nfsd, no pause worth naming."""
    lab, name = cluster.lab, cluster.primary()
    node = cluster[name]
    epoch, pid = cluster.epoch(name), nfsd_pid(node)
    with lab.client.stream([node.address], "quiet", interval_s=0.05, silence_s=3.0) as stream:
        stream.wait_for_ack()
        disturb(node)
        time.sleep(settle_s)
        stream.wait_for_ack(after_s=time.monotonic())
        assert stream.errors() == []
    assert cluster.primary() == name
    assert cluster.epoch(name) == epoch
    assert nfsd_pid(node) == pid


@pytest.mark.parametrize("unit", [AGENT, LEASE], ids=["agent", "lease"])
@pytest.mark.parametrize("how", ["kill -9", "restart"])
def test_a_killed_or_restarted_process_of_ours_is_no_event(
    cluster: Cluster, unit: str, how: str
) -> None:
    def disturb(node: Node) -> None:
        if how == "restart":
            node.run("systemctl", "restart", unit)
        else:
            node.run("systemctl", "kill", "--signal=KILL", unit)

    undisturbed(cluster, disturb, settle_s=4.0)


def test_a_restarted_consul_agent_on_the_primary_is_no_event(cluster: Cluster) -> None:
    undisturbed(cluster, restart_consul, settle_s=6.0)
    cluster.lab.wait_for_leader()


@pytest.mark.timeout(180)
def test_a_configuration_that_changes_under_a_running_primary_is_no_event(
    cluster: Cluster,
) -> None:
    node = cluster[cluster.primary()]
    good = cluster.configuration(node)
    changed = good.replace(f"interval = {cluster.interval_s}\n", "interval = 7\n")
    assert changed != good

    def write_garbage(node: Node) -> None:
        node.write(CONFIG, good + "\n[nonsense]\n")
        refused = node.run("nfs-server-guard", check=False)
        assert refused.returncode == 1 and "config-invalid" in refused.stderr
        time.sleep(8)  # a lease, and more
        node.write(CONFIG, good)

    def change_the_interval(node: Node) -> None:
        node.write(CONFIG, changed)
        node.run("systemctl", "restart", AGENT, LEASE)
        node.wait_for(lambda: intervals(node) == ["7s", "7s"], 90.0, "the timers have it")

    try:
        undisturbed(cluster, write_garbage, settle_s=1.0)
        undisturbed(cluster, change_the_interval, settle_s=2.0)
    finally:
        node.write(CONFIG, good)
        node.run("systemctl", "restart", AGENT, LEASE)
    node.wait_for(lambda: intervals(node) == ["3s", "3s"], 90.0, "the timers have it back")


def intervals(node: Node) -> list[str]:
    """What systemd has of the replication timers."""
    told = node.sh("systemctl show -P TimersMonotonic 'standfast-replicate@*.timer'")
    return re.findall(r"OnUnitActiveUSec=(\S+)", told)


def restart_consul(node: Node) -> None:
    node.run("systemctl", "restart", "consul")


@pytest.mark.timeout(180)
def test_a_lost_consul_quorum_is_a_pause_and_not_a_failover(cluster: Cluster) -> None:
    lab, name = cluster.lab, cluster.primary()
    epoch = cluster.epoch(name)
    others = [n for n in lab if n.name != name]
    with lab.client.stream([cluster[name].address], "quorum", silence_s=1.0) as stream:
        stream.wait_for_ack()
        for node in others:
            node.run("systemctl", "kill", "--signal=KILL", "consul")
            node.run("systemctl", "stop", "consul")
        time.sleep(30)
        assert cluster.serving() == [], "no lease, and the port is open"
        for node in others:
            node.run("systemctl", "start", "consul")
        back = time.monotonic()
        stream.wait_for_ack(after_s=back, timeout_s=60)
        note(f"serving again {time.monotonic() - back:.1f} s after the quorum's return")
    assert cluster.primary() == name
    assert cluster.epoch(name) == epoch


@pytest.mark.timeout(300)
def test_two_nodes_that_start_nfs_server_at_once_never_both_serve(cluster: Cluster) -> None:
    name = cluster.primary()
    other = next(n.name for n in cluster.lab if n.name != name)
    for _ in range(50):
        # The agent may be starting it again at this moment, which cancels the stop: no matter.
        cluster[name].run("systemctl", "stop", "nfs-server", check=False)
        with ThreadPoolExecutor(2) as pool:
            done = list(
                pool.map(
                    lambda n: cluster[n].run("systemctl", "start", "nfs-server", check=False),
                    (name, other),
                )
            )
        assert done[1].returncode != 0
        assert not cluster[other].is_active("nfs-server")
        cluster[name].wait_for(
            lambda: cluster[name].is_active("nfs-server"), 10, "the holder's server is up"
        )


@pytest.mark.timeout(300)
def test_two_nodes_that_promote_at_once_get_one_epoch_between_them(cluster: Cluster) -> None:
    for _ in range(5):
        cluster.wait_until_replicated(cluster.primary())
        epoch = cluster.epoch(cluster.primary())
        cluster.standfast(cluster.primary(), "demote")
        with ThreadPoolExecutor(3) as pool:
            names = [n.name for n in cluster.lab]
            list(pool.map(lambda n: cluster.standfast(n, "promote", check=False), names))
        cluster.repair()
        assert cluster.epoch(cluster.primary()) == epoch + 1


@pytest.mark.timeout(180)
def test_a_frozen_lease_process_is_cut_off_by_the_kernel_and_never_serves_again(
    cluster: Cluster,
) -> None:
    lab, name = cluster.lab, cluster.primary()
    node = cluster[name]
    cluster.wait_until_replicated(name)
    epoch = cluster.epoch(name)
    # Without its watchdog, so that systemd doesn't end the process before anybody takes over.
    node.write(f"/run/systemd/system/{LEASE}.service.d/test.conf", "[Service]\nWatchdogSec=0\n")
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "restart", LEASE)
    cluster.wait_for_role(name, "primary")
    others = [n.address for n in lab if n.name != name]
    try:
        with lab.client.stream(lab.servers(), "frozen", interval_s=0.05, silence_s=0.5) as stream:
            stream.wait_for_ack(node.address)
            frozen = time.monotonic()
            node.freeze_unit(LEASE)
            node.freeze_unit(AGENT)  # it would end the frozen process as soon as it is replaced
            taken = lab.wait_for(
                lambda: next((e for e in stream.acknowledged() if e.server in others), None),
                60.0,
                "a successor serves",
                0.02,
            )
            last = max(e.t_s for e in stream.acknowledged(node.address))
            assert taken is not None
            assert last - frozen <= FAST.length + FAST.fence
            assert last < taken.t_s
            node.thaw_unit(LEASE)
            node.thaw_unit(AGENT)
            stream.wait_for_ack(taken.server, after_s=time.monotonic() + 3)
            assert not [e for e in stream.acknowledged(node.address) if e.t_s > taken.t_s]
        cluster.wait_for_role(name, "standby")
        assert cluster.epoch(name) == epoch + 1
    finally:
        node.sh(f"rm -rf /run/systemd/system/{LEASE}.service.d; systemctl daemon-reload")


@pytest.mark.timeout(180)
def test_a_frozen_node_is_cut_off_and_puts_its_tree_aside_when_thawed(cluster: Cluster) -> None:
    lab, name = cluster.lab, cluster.primary()
    cluster.wait_until_replicated(name)
    with lab.client.stream(lab.servers(), "vm", interval_s=0.05, silence_s=0.5) as stream:
        stream.wait_for_ack(cluster[name].address)
        cluster[name].freeze()
        frozen = time.monotonic()
        taken = lab.wait_for(
            lambda: next(
                (e for e in stream.acknowledged() if e.server != cluster[name].address), None
            ),
            60.0,
            "a successor serves",
            0.02,
        )
        cluster[name].thaw()
        assert taken is not None
        note(f"frozen primary -> successor's first write {taken.t_s - frozen:.1f} s")
        stream.wait_for_ack(taken.server, after_s=time.monotonic() + 3)
        late = [e for e in stream.acknowledged(cluster[name].address) if e.t_s > taken.t_s]
        assert late == []
    cluster.wait_for_role(name, "standby")


@pytest.mark.timeout(120)
def test_a_crash_loop_of_the_lease_process_stops_the_nfs_server(cluster: Cluster) -> None:
    name = cluster.primary()
    node = cluster[name]
    for _ in range(8):
        node.run("systemctl", "kill", "--signal=KILL", LEASE, check=False)
        time.sleep(0.6)
    node.wait_for(lambda: not node.is_active("nfs-server"), 30, "the server is stopped")
    node.run("systemctl", "reset-failed", LEASE, check=False)


@pytest.mark.timeout(180)
def test_a_clean_that_was_delayed_past_a_rolled_back_switchover_is_refused(
    cluster: Cluster,
) -> None:
    name = cluster.primary()
    to = next(n.name for n in cluster.lab if n.name != name)
    key = f"standfast/{VOLUME}/leader"
    cluster[to].sh("mv /root/.ssh/authorized_keys /root/.ssh/away")
    try:
        said = cluster.standfast(name, "switchover", "--to", to, check=False)
        assert "This node serves again" in said
    finally:
        cluster[to].sh("mv /root/.ssh/away /root/.ssh/authorized_keys")
    entry = cluster[name].consul_get(f"kv/{key}")[0]
    cluster.lab.wait_for(
        lambda: cluster[name].consul_get(f"kv/{key}")[0]["ModifyIndex"] > entry["ModifyIndex"],
        10,
        "a heartbeat after it",
    )
    late = json.dumps(
        [
            {
                "KV": {
                    "Verb": "cas",
                    "Key": key,
                    "Value": entry["Value"],
                    "Index": entry["ModifyIndex"],
                }
            }
        ]
    )
    answer = cluster[name].run(
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-X",
        "PUT",
        "-d",
        late,
        "http://127.0.0.1:8500/v1/txn",
    )
    assert answer.stdout == "409"
    assert cluster.primary() == name


@pytest.mark.timeout(240)
def test_a_leftover_registration_blocks_a_promotion_only_while_its_port_answers(
    cluster: Cluster,
) -> None:
    lab, name = cluster.lab, cluster.primary()
    cluster.wait_until_replicated(name)
    ghost = {
        "Node": "ghost",
        "Address": "192.168.1.100",
        "Service": {
            "ID": "ghost",
            "Service": VOLUME,
            "Address": "192.168.1.100",
            "Port": 2049,
            "Meta": {"epoch": "0", "node": "ghost"},
        },
    }
    other = next(n.name for n in lab if n.name != name)
    put(cluster[other], "catalog/register", ghost)
    listener = lab.client.listen(2049)
    try:
        cluster.standfast(name, "switchover", "--to", other, check=False, timeout_s=120)
        said = cluster[other].journal("nfs-server")
        assert "ERROR: Another NFS server is already active at 192.168.1.100" in said
        assert cluster.serving() == []
    finally:
        listener.kill()
        listener.wait(5)
    cluster.wait_for_role(other, "primary")
    put(cluster[other], "catalog/deregister", {"Node": "ghost"})


def put(node: Node, path: str, doc: object) -> None:
    done = node.run(
        "curl", "-sf", "-X", "PUT", "-d", json.dumps(doc), f"http://127.0.0.1:8500/v1/{path}"
    )
    if done.returncode != 0:
        raise LabError(f"{path}: {done.stderr}")


def test_flushed_firewall_rules_are_noticed_and_put_back(cluster: Cluster) -> None:
    name = cluster.primary()
    cluster[name].run("nft", "flush", "ruleset")
    cluster.lab.wait_for(
        lambda: cluster.status(name)["fence_flushes"] > 0, 10, "the flush is noticed"
    )
    assert cluster.status(name)["fence"]["in_place"] is True
    assert "BAD  firewall" in cluster.standfast(name, "doctor", check=False)
    standby = next(n.name for n in cluster.lab if n.name != name)
    cluster[standby].run("nft", "flush", "ruleset")
    cluster.lab.wait_for(
        lambda: cluster.status(standby)["fence"]["in_place"], 15, "the standby's rules are back"
    )


@pytest.mark.timeout(180)
def test_a_holder_that_cannot_serve_gives_the_role_up_at_a_word(cluster: Cluster) -> None:
    name = cluster.primary()
    node = cluster[name]
    other = next(n.name for n in cluster.lab if n.name != name)
    cluster.wait_until_replicated(name)
    broken = "/etc/systemd/system/nfs-server.service.d/zz-broken.conf"
    node.write(broken, "[Service]\nExecStartPre=/bin/false\n")
    node.run("systemctl", "daemon-reload")
    try:
        node.run("systemctl", "stop", "nfs-server")
        node.wait_for(lambda: cluster.status(name)["trouble"], 60, "it fails to serve again")
        assert "primary-alive" in cluster.standfast(other, "promote", check=False)
        assert "gave up a role" in cluster.standfast(name, "demote")
        assert "too-old" in cluster.standfast(other, "promote", check=False)
        cluster.standfast(other, "promote", "--accept-data-loss")
        assert cluster.serving() == [other]
    finally:
        node.run("rm", broken)
        node.run("systemctl", "daemon-reload")
