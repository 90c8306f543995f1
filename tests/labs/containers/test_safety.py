"""Hands on a primary that is cut off: nothing that they do there opens it beside its successor."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator
from functools import partial

import pytest

from standfast.consul.records import HistoryEntry
from standfast.events.events import Kind
from standfast.lease.files import NOTHING_HELD
from tests.labs.containers.cluster import AGENT, LEASE, VOLUME
from tests.labs.containers.drills import Writers, broken_server, kept_aside
from tests.labs.containers.node import Container
from tests.labs.containers.nomad import WithNomad
from tests.labs.containers.replication import progress, wait_for_success


def has_rules(node: Container) -> bool:
    return node.run("nft", "list", "table", "inet", "standfast", check=False).returncode == 0


def restart_the_firewall(node: Container) -> None:
    """As somebody does who finds that port shut; until the next look it is open."""
    node.run("nft", "flush", "ruleset")
    node.wait_for(lambda: has_rules(node), 30.0, "the rules are back")


@pytest.mark.timeout(240)
def test_a_flushed_firewall_of_a_primary_that_is_cut_off_is_put_back_shut(
    cluster: WithNomad,
) -> None:
    lab, old = cluster.lab, cluster.primary()
    node = cluster[old]
    epoch = cluster.epoch(old)
    cluster.wait_until_replicated(old)
    with Writers(lab, "flushed") as writers:
        writers.wait_for_ack(old)
        node.partition()  # the client still reaches it
        lab.wait_for(lambda: not lab.client.port_answers(node.address), 30.0, "the port is shut")
        restart_the_firewall(node)
        new = writers.wait_for_successor(old)
        writers.wait_for_ack(new, after_s=time.monotonic())
    assert writers.served() == [old, new]
    for _ in range(3):
        restart_the_firewall(node)
        assert not lab.client.port_answers(node.address)
    assert cluster.status(old)["fence_flushes"] >= 4
    lab.heal()
    cluster.wait_for_role(old, "standby")
    assert cluster.serving() == [new]
    assert cluster.epoch(new) == epoch + 1


@pytest.mark.timeout(240)
def test_the_agent_shuts_what_is_flushed_beside_a_frozen_lease_process(cluster: WithNomad) -> None:
    lab, old = cluster.lab, cluster.primary()
    node = cluster[old]
    cluster.wait_until_replicated(old)
    node.partition()
    node.freeze_unit(LEASE)
    try:
        lab.wait_for(lambda: not lab.client.port_answers(node.address), 30.0, "the port is shut")
        restart_the_firewall(node)
        assert not lab.client.port_answers(node.address)
    finally:
        node.thaw_unit(LEASE)
        lab.heal()
    lab.wait_for(lambda: len(cluster.serving()) == 1, 60.0, "one of them serves")


@pytest.mark.timeout(120)
def test_a_lease_unit_that_is_started_by_hand_on_a_standby_stops_no_server(
    cluster: WithNomad,
) -> None:
    """Only where nothing of the volume was held: on the primary its end in failure still does."""
    primary = cluster.primary()
    standby = next(node for node in cluster.lab if node.name != primary)
    held, mark = cluster[primary], f"/run/standfast/{VOLUME}/{NOTHING_HELD}"
    lost = LEASE.replace("-lease@", "-lost@")
    cluster.wait_for_role(standby.name, "standby")
    since = cluster.moment(standby.name)
    assert standby.run("systemctl", "start", LEASE, check=False).returncode != 0
    jobs = "systemctl list-jobs --no-legend"
    standby.wait_for(lambda: not standby.sh(jobs).strip(), 30.0, "what follows from it")
    said = standby.sh(f"journalctl --sync; journalctl -q -o cat -u {lost} --since='{since}'")
    assert said == ""
    standby.run("test", "-e", mark)
    assert held.run("test", "-e", mark, check=False).returncode != 0
    assert held.is_active("nfs-server")


def local_write(node: Container) -> bool:
    """Whether a program on the node can write where it sees the volume."""
    return node.run("sh", "-c", "echo x >>/data/services/local", check=False).returncode == 0


@pytest.mark.timeout(240)
def test_programs_on_a_primary_that_is_cut_off_can_write_until_a_successor_may_serve(
    cluster: WithNomad,
) -> None:
    """Nobody takes over: with its lease back the same epoch goes on, and so do they."""
    lab, old = cluster.lab, cluster.primary()
    node, epoch = cluster[old], cluster.epoch(old)
    cluster.standfast(old, "pause", "--reason", "nobody is to take over")
    try:
        with Writers(lab, "cut-off") as writers:
            writers.wait_for_ack(old)
            node.partition()
            lab.wait_for(lambda: not lab.client.port_answers(node.address), 60.0, "it is shut")
            assert local_write(node)
            node.wait_for(lambda: not local_write(node), 90.0, "its tree is read-only")
            lab.heal()
            writers.wait_for_ack(old, after_s=time.monotonic())
            assert local_write(node)
        assert (writers.served(), cluster.epoch(old)) == ([old], epoch)
    finally:
        lab.heal()

        def resumed() -> bool:  # Consul may be electing a leader
            return node.run("standfast", "resume", check=False).returncode == 0

        lab.wait_for(resumed, 60.0, "the pause is over", 0.5)


@pytest.mark.timeout(240)
def test_what_programs_wrote_on_a_primary_that_is_cut_off_is_kept_aside(
    cluster: WithNomad,
) -> None:
    lab, old = cluster.lab, cluster.primary()
    node, epoch = cluster[old], cluster.epoch(old)
    cluster.wait_until_replicated(old)
    with Writers(lab, "aside") as writers:
        writers.wait_for_ack(old)
        node.partition()
        node.sh("echo only here >/data/services/only-here; sync")
        writers.wait_for_successor(old)
        node.wait_for(lambda: not local_write(node), 90.0, "its tree is read-only")
    lab.heal()
    cluster.wait_for_role(old, "standby")
    assert node.read(f"{kept_aside(cluster, old, epoch)}/only-here") == "only here\n"


@pytest.mark.timeout(300)
def test_a_returned_primary_whose_disk_is_mounted_late_touches_nothing_before(
    cluster: WithNomad,
) -> None:
    lab, old = cluster.lab, cluster.primary()
    node, epoch = cluster[old], cluster.epoch(old)
    late = "/etc/systemd/system/persist.mount.d"
    cluster.wait_until_replicated(old)
    node.write(f"{late}/late.conf", "[Unit]\nConditionPathExists=/run/disk-is-there\n")
    try:
        with Writers(lab, "late") as writers:
            writers.wait_for_ack(old)
            cluster.power_cut(old)
            writers.wait_for_successor(old)
            lab.boot([node])
            lab.wait_for(
                lambda: "not mounted" in (cluster.status(old)["trouble"] or ""), 90.0, "it says so"
            )
            assert node.sh("ls -A /persist") == ""
            assert "BAD  trouble" in cluster.standfast(old, "doctor", check=False)
            node.sh("touch /run/disk-is-there; systemctl start persist.mount")
            cluster.wait_for_role(old, "standby")
        assert writers.missing_aside(old, kept_aside(cluster, old, epoch)) == []
        assert node.run("test", "-e", "/persist/services", check=False).returncode != 0
    finally:
        node.sh(f"rm -r {late}; systemctl daemon-reload; systemctl start persist.mount")


# A primary that can't serve

SURRENDER_S = 90.0
"""`surrender_after` with what comes before and after it."""


def its_successor(cluster: WithNomad, writers: Writers, old: str) -> str:
    """Who serves after `old` surrendered, as its history tells."""
    lab = cluster.lab
    lab.wait_for(
        lambda: cluster.serving() not in ([], [old]), SURRENDER_S, "another one serves", 0.5
    )
    new = cluster.primary()
    writers.wait_for_ack(new, after_s=time.monotonic())
    assert writers.served() == [old, new]
    status = cluster.status(new)
    assert status["began_by"].startswith(f"surrendered: {old} had not served for ")
    assert status["lost_s"] is not None and status["lost_s"] >= 0
    return new


@pytest.mark.timeout(300)
def test_a_primary_whose_server_does_not_start_gives_the_role_to_a_standby(
    cluster: WithNomad,
) -> None:
    old = cluster.primary()
    node = cluster[old]
    epoch = cluster.epoch(old)
    cluster.wait_until_replicated(old)
    with Writers(cluster.lab, "no-server") as writers:
        writers.wait_for_ack(old)
        since = cluster.moment(old)
        with broken_server(node):
            cluster.lab.wait_for(
                lambda: (cluster.status(old).get("unserved_s") or 0) > 10, 60.0, "it says so", 0.5
            )
            assert cluster.status(old)["serving"] is None
            new = its_successor(cluster, writers, old)
    assert cluster.epoch(new) == epoch + 1
    assert len(cluster.entries(old, Kind.SURRENDERED, since=since)) == 1
    cluster.wait_for_role(old, "standby")
    assert writers.missing_aside(old, kept_aside(cluster, old, epoch)) == []


@pytest.mark.timeout(300)
def test_a_file_system_that_went_read_only_is_handed_over_with_its_loss(
    cluster: WithNomad,
) -> None:
    """By itself, as btrfs does when its disk takes no more writes."""
    old = cluster.primary()
    node, epoch = cluster[old], cluster.epoch(old)
    cluster.wait_until_replicated(old)
    with Writers(cluster.lab, "read-only") as writers:
        writers.wait_for_ack(old)
        node.disk.cut()
        try:
            cluster.lab.wait_for(
                lambda: "read-only" in str(cluster.status(old).get("sick")), 60.0, "it is sick", 0.5
            )
            said = cluster.standfast(old, "switchover", check=False)
            assert "volume-read-only" in said
            assert "--accept-data-loss" in said
            cluster.standfast(old, "switchover", "--accept-data-loss", check=False)
            new = cluster.primary()
            writers.wait_for_ack(new, after_s=time.monotonic())
            assert new != old
            assert cluster.epoch(new) == epoch + 1
            assert cluster.status(new)["began_by"].startswith("surrendered")
        finally:
            cluster.power_cut(old)  # the disk is good again after it
            cluster.lab.boot([node])
    cluster.wait_for_role(old, "standby")
    kept_aside(cluster, old, epoch)


@contextlib.contextmanager
def takes_nothing_in(node: Container) -> Iterator[None]:
    """No replication key opens this standby."""
    keys = "/root/.ssh/authorized_keys"
    node.run("mv", keys, f"{keys}.away")
    try:
        yield
    finally:
        node.run("mv", f"{keys}.away", keys)


@pytest.mark.timeout(400)
def test_a_successor_that_never_served_costs_nothing_that_another_standby_has(
    cluster: WithNomad,
) -> None:
    """The one with less data takes over while the other's agent is away, and can't serve."""
    lab, old = cluster.lab, cluster.primary()
    epoch = cluster.epoch(old)
    idle, other = (node for node in lab if node.name != old)
    cluster.wait_until_replicated(old)
    with Writers(lab, "idle") as writers, takes_nothing_in(idle), broken_server(idle):
        writers.wait_for_ack(old, after_s=time.monotonic() + 1.0)
        replicated_s = writers.wait_for_ack(old, after_s=time.monotonic()).t_s
        sent = progress(cluster[old], other.name).successes
        wait_for_success(cluster, old, other.name, more_than=sent + 1)
        other.run("systemctl", "stop", AGENT)
        cluster.power_cut(old)
        lab.wait_for(
            lambda: cluster.status(idle.name).get("epoch") == epoch + 1, 120.0, "it has the role"
        )
        other.run("systemctl", "start", AGENT)
        lab.wait_for(lambda: cluster.serving() == [other.name], SURRENDER_S, "the other serves")
        writers.wait_for_ack(other.name, after_s=time.monotonic())
    assert writers.served() == [old, other.name]
    assert writers.missing(other.name, [old], replicated_s) == []
    assert cluster.epoch(other.name) == epoch + 2
    (entry,) = other.consul_get(f"kv/standfast/{VOLUME}/history/{epoch + 2}")
    assert HistoryEntry.parse(base64.b64decode(entry["Value"])).follows == epoch


STATE = "/var/lib/standfast"


@contextlib.contextmanager
def small_disk(node: Container) -> Iterator[None]:
    """The node's state on a file system of 1 MiB."""
    move = f"systemctl stop {AGENT}; rm -rf /tmp/state; cp -a {STATE} /tmp/state"
    node.sh(f"{move}; mount -t tmpfs -o size=1m small {STATE}; cp -a /tmp/state/. {STATE}")
    node.run("systemctl", "start", AGENT)
    try:
        yield
    finally:
        node.sh(
            f"rm -f {STATE}/full; systemctl stop {AGENT}; rm -rf /tmp/state; "
            f"cp -a {STATE} /tmp/state; umount {STATE}; cp -a /tmp/state/. {STATE}; "
            f"systemctl start {AGENT}"
        )


def has_reserve(node: Container) -> bool:
    there = node.run("test", "-e", f"{STATE}/{VOLUME}/.reserve/15", check=False)
    return there.returncode == 0


@pytest.mark.timeout(300)
def test_a_failover_to_a_node_whose_state_directory_is_full(cluster: WithNomad) -> None:
    old = cluster.primary()
    standbys = [node for node in cluster.lab if node.name != old]
    with contextlib.ExitStack() as stack:
        for node in standbys:
            stack.enter_context(small_disk(node))
        for node in standbys:
            cluster.wait_for_role(node.name, "standby")
            cluster.lab.wait_for(partial(has_reserve, node), 30.0, "the reserve is there", 0.5)
        cluster.wait_until_replicated(old)
        for node in standbys:
            node.sh(f"dd if=/dev/zero of={STATE}/full bs=4k 2>/dev/null || true")
        cluster.power_cut(old)
        cluster.lab.wait_for(lambda: len(cluster.serving()) == 1, 60.0, "a standby serves", 0.5)
        new = cluster.primary()
        assert "No space" not in str(cluster.status(new)["busy"])
