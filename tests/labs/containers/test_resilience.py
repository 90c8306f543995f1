"""What must not be a failover, and what must be one, with real parts and the fast timings."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.labs.containers.cluster import AGENT, LEASE, VOLUME
from tests.labs.containers.drills import Writers, broken_server, kept_aside
from tests.labs.containers.node import Container
from tests.labs.containers.nomad import WithNomad
from tests.support.commands import LabError
from tests.support.figures import note
from tests.support.pace import patient

CONFIG = f"/etc/standfast/{VOLUME}.toml"
LEADER = f"kv/standfast/{VOLUME}/leader"
OUTAGE_S = 12.0
"""A failover would have come by then: twice the shared cluster's failover_after."""


def nfsd_pid(node: Container) -> str:
    return main_pid(node, "nfs-server")


def undisturbed(cluster: WithNomad, disturb: Callable[[Container], None]) -> None:
    """`disturb` is done to the primary: no new epoch, the same nfsd, no error for a client."""
    lab, name = cluster.lab, cluster.primary()
    node = cluster[name]
    epoch, pid = cluster.epoch(name), nfsd_pid(node)
    with lab.client.stream([node.address], "quiet", 0.05, patient(3.0)) as stream:
        stream.wait_for_ack()
        disturb(node)
        cluster.wait_for_heartbeats()
        cluster.wait_for_role(name, "primary")
        stream.wait_for_ack(after_s=time.monotonic())
        assert stream.errors() == []
    assert cluster.primary() == name
    assert cluster.epoch(name) == epoch
    assert nfsd_pid(node) == pid


@pytest.mark.parametrize("unit", [AGENT, LEASE], ids=["agent", "lease"])
@pytest.mark.parametrize("how", ["kill -9", "restart"])
def test_a_killed_or_restarted_process_of_ours_is_no_event(
    cluster: WithNomad, unit: str, how: str
) -> None:
    def disturb(node: Container) -> None:
        if how == "restart":
            node.run("systemctl", "restart", unit)
        else:
            node.run("systemctl", "kill", "--signal=KILL", unit)

    undisturbed(cluster, disturb)


WATCHED = f"/run/systemd/system/{AGENT}.service.d/watchdog.conf"


@pytest.mark.timeout(180)
def test_a_frozen_agent_is_started_anew_by_its_watchdog(cluster: WithNomad) -> None:
    """Within seconds here, a minute as shipped; one that works is left alone meanwhile."""
    node = cluster[cluster.primary()]
    shipped = node.run("systemctl", "show", "-P", "WatchdogUSec", AGENT).stdout.strip()
    assert shipped == "1min"

    def disturb(node: Container) -> None:
        node.write(WATCHED, "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n")
        node.run("systemctl", "daemon-reload")
        node.run("systemctl", "restart", AGENT)
        before = main_pid(node, AGENT)
        time.sleep(6.0)
        assert main_pid(node, AGENT) == before, "a loop that looks is fed for"
        node.freeze_unit(AGENT)
        node.wait_for(
            lambda: main_pid(node, AGENT) not in ("0", before), 60.0, "the next agent runs"
        )

    try:
        undisturbed(cluster, disturb)
    finally:
        node.run("rm", "-f", WATCHED)
        node.run("systemctl", "daemon-reload")
        node.run("systemctl", "restart", AGENT)


RECEIVER = "standfast-receive.service"


@pytest.mark.timeout(180)
def test_a_frozen_receiver_is_started_anew_by_its_watchdog(cluster: WithNomad) -> None:
    """Within seconds here, half a minute as shipped; one that waits for work is left alone."""
    name = cluster.primary()
    node = next(node for node in cluster.storage if node.name != name)
    shipped = node.run("systemctl", "show", "-P", "WatchdogUSec", RECEIVER).stdout.strip()
    assert shipped == "30s"
    changed = f"/run/systemd/system/{RECEIVER}.d/watchdog.conf"
    before = cluster.moment(node.name)
    try:
        node.write(changed, "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n")
        node.run("systemctl", "daemon-reload")
        node.run("systemctl", "restart", RECEIVER)
        first = main_pid(node, RECEIVER)
        time.sleep(6.0)
        assert main_pid(node, RECEIVER) == first, "it says so while nothing happens, too"
        node.freeze_unit(RECEIVER)
        node.wait_for(
            lambda: main_pid(node, RECEIVER) not in ("0", first), 60.0, "the next receiver runs"
        )
        assert "Watchdog timeout" in said_since(node, RECEIVER, before)
        cluster.wait_until_replicated(name)
    finally:
        node.run("rm", "-f", changed)
        node.run("systemctl", "daemon-reload")
        node.run("systemctl", "restart", RECEIVER)


def test_a_restarted_consul_agent_on_the_primary_is_no_event(cluster: WithNomad) -> None:
    undisturbed(cluster, restart_consul)


@pytest.mark.timeout(180)
def test_a_configuration_that_changes_under_a_running_primary_is_no_event(
    cluster: WithNomad,
) -> None:
    node = cluster[cluster.primary()]
    good = cluster.configuration(node)
    changed = good.replace(f"interval = {cluster.interval_s}\n", "interval = 7\n")
    assert changed != good

    def write_garbage(node: Container) -> None:
        node.write(CONFIG, good + "\n[nonsense]\n")
        refused = node.run("nfs-server-guard", check=False)
        assert refused.returncode == 1 and "config-invalid" in refused.stderr
        cluster.wait_for_heartbeats()
        node.write(CONFIG, good)

    def change_the_interval(node: Container) -> None:
        node.write(CONFIG, changed)
        node.run("systemctl", "restart", AGENT, LEASE)
        node.wait_for(lambda: intervals(node) == ["7s", "7s"], 90.0, "the timers have it")

    try:
        undisturbed(cluster, write_garbage)
        undisturbed(cluster, change_the_interval)
    finally:
        node.write(CONFIG, good)
        node.run("systemctl", "restart", AGENT, LEASE)
    node.wait_for(lambda: intervals(node) == ["3s", "3s"], 90.0, "the timers have it back")


def intervals(node: Container) -> list[str]:
    """What systemd has of the replication timers."""
    told = node.sh("systemctl show -P TimersMonotonic 'standfast-replicate@*.timer'")
    return re.findall(r"OnUnitActiveUSec=(\S+)", told)


def restart_consul(node: Container) -> None:
    node.run("systemctl", "restart", "consul")
    node.wait_for(node.consul_leader, 60.0, "its Consul agent is back")


@pytest.mark.timeout(180)
def test_a_lost_consul_quorum_is_a_pause_and_not_a_failover(cluster: WithNomad) -> None:
    lab, name = cluster.lab, cluster.primary()
    epoch = cluster.epoch(name)
    others = [n for n in lab if n.name != name]
    with Writers(lab, "quorum") as writers:
        writers.wait_for_ack(name)
        for node in others:
            node.run("systemctl", "kill", "--signal=KILL", "consul")
            node.run("systemctl", "stop", "consul")
        lab.wait_for(lambda: not cluster.serving(), 60.0, "no lease: the port is shut")
        time.sleep(OUTAGE_S)
        assert cluster.serving() == [], "no lease, and the port is open"
        for node in others:
            node.run("systemctl", "start", "consul")
        back = time.monotonic()
        writers.wait_for_ack(after_s=back)
        note(f"serving again {time.monotonic() - back:.1f} s after the quorum's return")
        lab.wait_for_leader()
    assert writers.served() == [name]
    assert cluster.primary() == name
    assert cluster.epoch(name) == epoch


def races(few: int, many: int) -> pytest.MarkDecorator:
    """A few in `make lab`, and many in `make torture`."""
    return pytest.mark.parametrize("races", [few, pytest.param(many, marks=pytest.mark.torture)])


@pytest.mark.timeout(600)
@races(10, 50)
def test_two_nodes_that_start_nfs_server_at_once_never_both_serve(
    cluster: WithNomad, races: int
) -> None:
    name = cluster.primary()
    other = cluster.standby().name
    for _ in range(races):
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
            lambda: cluster[name].is_active("nfs-server"), 60.0, "the holder's server is up"
        )


@pytest.mark.timeout(600)
@races(1, 5)
def test_two_nodes_that_promote_at_once_get_one_epoch_between_them(
    cluster: WithNomad, races: int
) -> None:
    names = [n.name for n in cluster.lab]
    for race in range(races):
        old = cluster.primary()
        epoch = cluster.epoch(old)
        cluster.wait_until_replicated(old)
        cluster.standfast(old, "demote")
        with Writers(cluster.lab, f"promoted{race}") as writers, ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda n: cluster.standfast(n, "promote", check=False), names))
            cluster.wait_until_settled(90.0)
            new = cluster.primary()
            writers.wait_for_ack(new, after_s=time.monotonic())
        assert writers.served() == [new]
        assert cluster.epoch(new) == epoch + 1


@pytest.mark.timeout(300)
def test_a_lease_process_that_hangs_is_ended_by_its_watchdog_and_the_same_epoch_goes_on(
    cluster: WithNomad,
) -> None:
    """Nobody takes over while it is paused: what is left is systemd's own look at the process."""
    name = cluster.primary()
    node = cluster[name]
    epoch, server, before = cluster.epoch(name), nfsd_pid(node), cluster.moment(name)
    frozen = main_pid(node, LEASE)
    cluster.standfast(name, "pause", "--reason", "a process hangs")
    try:
        with Writers(cluster.lab, "hangs") as writers:
            writers.wait_for_ack(name)
            node.freeze_unit(LEASE)
            node.wait_for(lambda: not cluster.serving(), 60.0, "the kernel shuts the port")
            node.wait_for(lambda: main_pid(node, LEASE) not in ("0", frozen), 120.0, "a new one")
            writers.wait_for_ack(name, after_s=time.monotonic())
        assert "Watchdog timeout" in said_since(node, LEASE, before)
        assert writers.served() == [name]
        assert cluster.primary() == name
        assert (cluster.epoch(name), nfsd_pid(node)) == (epoch, server)
    finally:
        cluster.standfast(name, "resume")


@pytest.mark.timeout(300)
def test_a_lease_process_that_hangs_beyond_a_takeover_is_ended_and_its_server_stopped(
    cluster: WithNomad,
) -> None:
    """The agent hangs, too: systemd alone ends both, by the watchdog and OnFailure=."""
    name = cluster.primary()
    node = cluster[name]
    epoch, before = cluster.epoch(name), cluster.moment(name)
    cluster.wait_until_replicated(name)
    with Writers(cluster.lab, "hangs-on") as writers:
        writers.wait_for_ack(name)
        node.freeze_unit(LEASE)
        node.freeze_unit(AGENT)
        new = writers.wait_for_successor(name)
        node.wait_for(lambda: not node.is_active("nfs-server"), 120.0, "its server is stopped")
        assert "Watchdog timeout" in said_since(node, LEASE, before)
        assert not node.is_active(LEASE)
        node.thaw_unit(AGENT)
        cluster.wait_for_role(name, "standby")
        writers.wait_for_ack(new, after_s=time.monotonic())
    assert writers.served() == [name, new]
    assert cluster.epoch(new) == epoch + 1


def main_pid(node: Container, unit: str) -> str:
    return node.run("systemctl", "show", "-P", "MainPID", unit).stdout.strip()


def said_since(node: Container, unit: str, moment: str) -> str:
    return node.sh(f"journalctl -q -o cat -u {unit} --since='{moment}'")


@pytest.mark.timeout(180)
def test_a_frozen_node_is_cut_off_and_puts_its_tree_aside_when_thawed(cluster: WithNomad) -> None:
    lab, name = cluster.lab, cluster.primary()
    epoch = cluster.epoch(name)
    cluster.wait_until_replicated(name)
    with Writers(lab, "vm") as writers:
        writers.wait_for_ack(name)
        cluster[name].freeze()
        new = writers.wait_for_successor(name)
        cluster[name].thaw()
        cluster.wait_for_role(name, "standby")
        writers.wait_for_ack(new, after_s=time.monotonic())
    assert writers.served() == [name, new]
    assert writers.missing_aside(name, kept_aside(cluster, name, epoch)) == []
    note(f"frozen primary: nobody served for {writers.longest_pause_s():.1f} s")


@pytest.mark.timeout(120)
def test_a_crash_loop_of_the_lease_process_stops_the_nfs_server(cluster: WithNomad) -> None:
    node = cluster[cluster.primary()]

    killed = set()

    def stopped_by_crashes() -> bool:
        killed.add(node.sh(f"systemctl show -P MainPID {LEASE}").strip())
        node.run("systemctl", "kill", "--signal=KILL", LEASE, check=False)
        return not node.is_active("nfs-server")

    node.wait_for(stopped_by_crashes, 60.0, "the server is stopped", interval_s=0.3)
    assert len(killed - {"0"}) > 1, "the first crash is taken up again"
    node.run("systemctl", "reset-failed", LEASE, check=False)


@pytest.mark.timeout(180)
def test_a_clean_that_was_delayed_past_a_rolled_back_switchover_is_refused(
    cluster: WithNomad,
) -> None:
    name = cluster.primary()
    to = cluster.standby().name
    cluster[to].sh("mv /root/.ssh/authorized_keys /root/.ssh/away")
    try:
        argv = ("switchover", "--to", to, "--despite", "inspection")
        said = cluster.standfast(name, *argv, check=False)
        assert "This node serves again" in said
    finally:
        cluster[to].sh("mv /root/.ssh/away /root/.ssh/authorized_keys")
    entry = cluster[name].consul_get(LEADER)[0]
    cluster.wait_for_heartbeats(1)
    late = json.dumps(
        [
            {
                "KV": {
                    "Verb": "cas",
                    "Key": entry["Key"],
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
    cluster: WithNomad,
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
    other = cluster.standby().name
    put(cluster[other], "catalog/register", ghost)
    listener = lab.client.listen(2049)
    try:
        epoch, pid = cluster.epoch(name), nfsd_pid(cluster[name])
        said = cluster.standfast(name, "switchover", "--to", other, check=False, timeout_s=120)
        assert "ERROR: Another NFS server is already active at 192.168.1.100" in said
        assert "nothing was stopped" in said
        assert (cluster.serving(), cluster.epoch(name)) == ([name], epoch)
        assert nfsd_pid(cluster[name]) == pid
        listener.kill()
        listener.wait(30.0)
        cluster.standfast(name, "switchover", "--to", other, timeout_s=120)
        cluster.wait_for_role(other, "primary")
    finally:
        listener.kill()
        listener.wait(30.0)
        put(cluster[other], "catalog/deregister", {"Node": "ghost"})


def put(node: Container, path: str, doc: object) -> None:
    done = node.run(
        "curl", "-sf", "-X", "PUT", "-d", json.dumps(doc), f"http://127.0.0.1:8500/v1/{path}"
    )
    if done.returncode != 0:
        raise LabError(f"{path}: {done.stderr}")


def test_flushed_firewall_rules_are_noticed_and_put_back(cluster: WithNomad) -> None:
    name = cluster.primary()
    cluster[name].run("nft", "flush", "ruleset")
    cluster.lab.wait_for(
        lambda: cluster.status(name)["fence_flushes"] > 0, 60.0, "the flush is noticed"
    )
    assert cluster.status(name)["fence"]["in_place"] is True
    assert "BAD  firewall" in cluster.standfast(name, "doctor", check=False)
    standby = cluster.standby().name
    cluster[standby].run("nft", "flush", "ruleset")
    cluster.lab.wait_for(
        lambda: cluster.status(standby)["fence"]["in_place"], 60.0, "the standby's rules are back"
    )


@pytest.mark.timeout(180)
def test_a_holder_that_cannot_serve_gives_the_role_up_at_a_word(cluster: WithNomad) -> None:
    name = cluster.primary()
    node = cluster[name]
    other = cluster.standby().name
    cluster.wait_until_replicated(name)
    with broken_server(node):
        node.wait_for(lambda: cluster.status(name)["trouble"], 60, "it fails to serve again")
        assert "primary-alive" in cluster.standfast(other, "promote", check=False)
        assert "gave up a role" in cluster.standfast(name, "demote")
        assert "too-old" in cluster.standfast(other, "promote", check=False)
        cluster.standfast(other, "promote", "--accept-data-loss")
        assert cluster.serving() == [other]
