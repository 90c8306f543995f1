"""Hands on a primary that is cut off: nothing that they do there opens it beside its successor."""

from __future__ import annotations

import time

import pytest

from tests.lab.cluster import LEASE
from tests.lab.drills import Writers
from tests.lab.node import Node
from tests.lab.nomad import WithNomad


def has_rules(node: Node) -> bool:
    return node.run("nft", "list", "table", "inet", "standfast", check=False).returncode == 0


def restart_the_firewall(node: Node) -> None:
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
