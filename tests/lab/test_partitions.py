"""Partitions, hands in Consul's keys, and hands on the machine: with real parts, fast timings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.cluster import FAST, VOLUME, Cluster
from tests.lab.lab import Lab

PREFIX = f"standfast/{VOLUME}"


@pytest.fixture(scope="module")
def whole(lab_factory: Callable[..., Lab]) -> Iterator[Cluster]:
    lab = lab_factory()
    made = Cluster(lab, FAST, extra="min_reign = 0\nfailover_after = 6")
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


@pytest.mark.timeout(180)
def test_a_primary_cut_off_from_consul_is_shut_before_its_successor_serves(
    cluster: Cluster,
) -> None:
    lab, old = cluster.lab, cluster.primary()
    cluster.wait_until_replicated(old)
    address = cluster[old].address
    with lab.client.stream(lab.servers(), "cut-off", interval_s=0.02, silence_s=0.3) as stream:
        stream.wait_for_ack(address)
        cluster[old].partition()  # the client still reaches it
        taken = lab.wait_for(
            lambda: next((e for e in stream.acknowledged() if e.server != address), None),
            60,
            "a successor serves",
            0.02,
        )
        assert taken is not None
        assert max(e.t_s for e in stream.acknowledged(address)) < taken.t_s
        assert not lab.client.port_answers(address)
        lab.heal()
        cluster.wait_for_role(old, "standby")
        assert max(e.t_s for e in stream.acknowledged(address)) < taken.t_s
    assert any("diverged" in path for path in cluster.status(old)["aside"])


@pytest.mark.timeout(120)
def test_a_leader_key_deleted_by_hand_is_written_again_by_its_holder(cluster: Cluster) -> None:
    name = cluster.primary()
    epoch = cluster.epoch(name)
    for key in (f"{PREFIX}/leader", f"{PREFIX}/epoch"):
        cluster[name].consul("kv", "delete", key)
        time.sleep(3)
        assert cluster.primary() == name
        assert cluster.epoch(name) == epoch
        assert cluster.serving() == [name]


@pytest.mark.timeout(120)
def test_a_foreign_value_in_the_leader_key_is_left_alone_and_named(cluster: Cluster) -> None:
    name = cluster.primary()
    epoch = cluster.epoch(name)
    foreign = '{"hello": "world"}'
    cluster[name].consul("kv", "put", f"{PREFIX}/leader", foreign)
    time.sleep(FAST.wait + 4)
    assert cluster[name].consul("kv", "get", f"{PREFIX}/leader") == foreign
    assert cluster.serving() == []
    for node in cluster.lab:
        decision = cluster.status(node.name)["decision"]
        assert decision["reason"] == "foreign-value"
        assert "hello" in decision["sentence"]
    cluster[name].consul("kv", "delete", f"{PREFIX}/leader")
    cluster.lab.wait_for(lambda: cluster.serving() == [name], 30, "the holder serves again")
    assert cluster.epoch(name) == epoch


@pytest.mark.timeout(120)
def test_an_epoch_that_went_back_halts_everybody_until_it_is_accepted(cluster: Cluster) -> None:
    name = cluster.primary()
    epoch = cluster.epoch(name)
    cluster[name].consul("kv", "put", f"{PREFIX}/epoch", '{"v":1,"epoch":0}')
    cluster.lab.wait_for(lambda: cluster.serving() == [], 30, "the port is shut")
    time.sleep(FAST.wait + 3)
    assert cluster.serving() == []
    for node in cluster.lab:
        assert cluster.status(node.name)["decision"]["reason"] == "epoch-went-back"
    assert str(epoch) in cluster.standfast(name, "accept-epoch", "--dry-run")
    cluster.standfast(name, "accept-epoch")
    cluster.lab.wait_for(lambda: cluster.serving() == [name], 30, "the holder serves again")
    assert cluster.epoch(name) == epoch


def test_a_service_deregistered_by_hand_is_registered_again(cluster: Cluster) -> None:
    name = cluster.primary()
    node = cluster[name]
    node.consul("services", "deregister", f"-id=standfast-{VOLUME}")
    cluster.lab.wait_for(
        lambda: any(
            check["Status"] == "passing"
            for entry in node.consul_get(f"health/service/{VOLUME}")
            for check in entry["Checks"]
            if check["ServiceName"] == VOLUME
        ),
        20,
        "the service is back",
    )


def test_a_second_lease_process_started_by_hand_is_refused(cluster: Cluster) -> None:
    name = cluster.primary()
    standby = next(n.name for n in cluster.lab if n.name != name)
    assert "busy" in cluster.standfast(name, "lease", VOLUME, check=False)
    assert "lease-not-held" in cluster.standfast(standby, "lease", VOLUME, check=False)
    assert cluster.serving() == [name]


@pytest.mark.timeout(120)
def test_a_standby_that_boots_with_nfs_server_enabled_by_hand_does_not_serve(
    cluster: Cluster,
) -> None:
    name = cluster.primary()
    node = next(n for n in cluster.lab if n.name != name)
    node.run("systemctl", "enable", "nfs-server")
    try:
        node.shutdown()
        cluster.lab.boot([node])
        cluster.wait_for_role(node.name, "standby")
        assert not node.is_active("nfs-server")
        assert "refused [" in node.journal("nfs-server") or "ERROR:" in node.journal("nfs-server")
        assert cluster.serving() == [name]
    finally:
        node.run("systemctl", "disable", "nfs-server")


@pytest.mark.timeout(120)
def test_while_paused_nobody_takes_over_and_resume_ends_that(cluster: Cluster) -> None:
    lab, old = cluster.lab, cluster.primary()
    cluster.wait_until_replicated(old)
    cluster.standfast(old, "pause", "--reason", "maintenance")
    cluster[old].power_cut()
    time.sleep(FAST.wait + 4)
    left = next(n.name for n in lab if n.pid)
    assert cluster.serving() == []
    assert cluster.status(left)["decision"]["reason"] == "paused"
    cluster.standfast(left, "resume")
    lab.wait_for(lambda: len(cluster.serving()) == 1, 30, "a standby serves")
