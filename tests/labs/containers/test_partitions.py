"""Hands in Consul's keys, hands on the machine, and a pause, with real parts."""

from __future__ import annotations

import time
from functools import partial

import pytest

from tests.labs.containers.cluster import VOLUME
from tests.labs.containers.nomad import WithNomad

PREFIX = f"standfast/{VOLUME}"
OVERDUE_S = 9.0
"""Without a heartbeat for so long a primary would have been replaced, and its port be shut."""


@pytest.mark.timeout(120)
def test_a_leader_key_deleted_by_hand_is_written_again_by_its_holder(cluster: WithNomad) -> None:
    name = cluster.primary()
    epoch = cluster.epoch(name)
    for key in (f"{PREFIX}/leader", f"{PREFIX}/epoch"):
        cluster[name].consul("kv", "delete", key)
        there = partial(cluster[name].consul, "kv", "get", key, check=False)
        cluster.lab.wait_for(there, 60.0, f"{key} is written again")
        cluster.wait_for_heartbeats()
        assert cluster.primary() == name
        assert cluster.epoch(name) == epoch
        assert cluster.serving() == [name]


@pytest.mark.timeout(120)
def test_a_foreign_value_in_the_leader_key_is_left_alone_and_named(cluster: WithNomad) -> None:
    name = cluster.primary()
    epoch = cluster.epoch(name)
    foreign = '{"hello": "world"}'
    cluster[name].consul("kv", "put", f"{PREFIX}/leader", foreign)
    all_stand_still(cluster, "foreign-value")
    assert cluster.serving() == []
    for node in cluster.lab:
        assert "hello" in cluster.status(node.name)["decision"]["sentence"]
    assert cluster[name].consul("kv", "get", f"{PREFIX}/leader") == foreign
    cluster[name].consul("kv", "delete", f"{PREFIX}/leader")
    cluster.lab.wait_for(lambda: cluster.serving() == [name], 60.0, "the holder serves again")
    assert cluster.epoch(name) == epoch


@pytest.mark.timeout(120)
def test_an_epoch_that_went_back_halts_everybody_until_it_is_accepted(cluster: WithNomad) -> None:
    name = cluster.primary()
    epoch = cluster.epoch(name)
    cluster[name].consul("kv", "put", f"{PREFIX}/epoch", '{"v":1,"epoch":0}')
    all_stand_still(cluster, "epoch-went-back")
    assert cluster.serving() == []
    assert str(epoch) in cluster.standfast(name, "accept-epoch", "--dry-run")
    cluster.standfast(name, "accept-epoch")
    cluster.lab.wait_for(lambda: cluster.serving() == [name], 60.0, "the holder serves again")
    assert cluster.epoch(name) == epoch


def test_a_service_deregistered_by_hand_is_registered_again(cluster: WithNomad) -> None:
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
        60.0,
        "the service is back",
    )


def test_a_second_lease_process_started_by_hand_is_refused(cluster: WithNomad) -> None:
    name = cluster.primary()
    standby = cluster.standby().name
    assert "busy" in cluster.standfast(name, "lease", VOLUME, check=False)
    assert "lease-not-held" in cluster.standfast(standby, "lease", VOLUME, check=False)
    assert cluster.serving() == [name]


@pytest.mark.timeout(120)
def test_a_standby_that_boots_with_nfs_server_enabled_by_hand_does_not_serve(
    cluster: WithNomad,
) -> None:
    name = cluster.primary()
    node = cluster.standby()
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


@pytest.mark.timeout(240)
def test_while_paused_nobody_takes_over_and_resume_ends_that(cluster: WithNomad) -> None:
    lab, old = cluster.lab, cluster.primary()
    epoch, left = cluster.epoch(old), cluster.standby().name
    cluster.wait_until_replicated(old)
    cluster.standfast(old, "pause", "--reason", "maintenance")
    try:
        cluster.power_cut(old)
        # Without the pause it would have been taken over by then.
        lab.wait_for(lambda: heartbeat_age_s(cluster, left) > OVERDUE_S, 120.0, "it is overdue")
        assert cluster.serving() == []
        assert cluster.status(left)["decision"]["reason"] == "paused"
        assert cluster.epoch(left) == epoch
    finally:
        cluster.standfast(left, "resume")
    lab.wait_for(lambda: len(cluster.serving()) == 1, 60.0, "a standby serves")
    assert cluster.epoch(left) == epoch + 1


def heartbeat_age_s(cluster: WithNomad, name: str) -> float:
    """For how long a node has seen no new heartbeat; 0 while it can't ask Consul."""
    return float(cluster.status(name).get("last_heartbeat_seen_s", 0.0))


def all_stand_still(cluster: WithNomad, reason: str) -> None:
    """For this reason no node does anything; so it stays until a takeover would be overdue."""

    def reasons() -> set[str]:
        return {cluster.status(node.name)["decision"]["reason"] for node in cluster.lab}

    cluster.lab.wait_for(lambda: reasons() == {reason}, 60.0, f"all decide: {reason}")
    time.sleep(OVERDUE_S)
    assert reasons() == {reason}
