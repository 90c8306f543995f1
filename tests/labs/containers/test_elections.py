"""Consul's servers lose their leader, by both timings: with the primary's machine, and alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.labs.containers.cluster import FAST
from tests.labs.containers.drills import Writers, power_cut
from tests.labs.containers.lab import Lab
from tests.labs.containers.nomad import WithNomad, with_nomad
from tests.support.figures import note

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(
    scope="module", params=[1, 5], ids=lambda multiplier: f"raft_multiplier {multiplier}"
)
def elected(request: pytest.FixtureRequest, lab_factory: Callable[..., Lab]) -> Iterator[WithNomad]:
    """5 is Consul's own default."""
    lab = lab_factory(consul_config={"performance": {"raft_multiplier": request.param}})
    with with_nomad(lab, FAST, "failover_cooldown = 0\nfailover_after = 60") as made:
        yield made
    lab.close()


def test_a_primary_that_led_consul_as_well_is_replaced_once_another_leads(
    elected: WithNomad,
) -> None:
    """The standby begins to count anew when the election ends: one takeover, by one node."""
    elected.repair()
    elected.move_role(to_consul_leader=True)
    leader = elected.lab.consul_leader().name
    takeover = power_cut(elected, "led")
    takeover.check(elected)
    assert leader == takeover.old, "another one led at the cut"
    assert elected.lab.consul_leader().name != leader
    note(
        f"elections: the primary led Consul: a pause of {takeover.writers.longest_pause_s():.1f} s"
    )


def test_a_leader_of_consul_that_dies_alone_moves_no_role(elected: WithNomad) -> None:
    """While nobody leads, no lease can be renewed: a pause, and the same server after it."""
    elected.repair()
    elected.move_role(to_consul_leader=False)
    primary, leader = elected.primary(), elected.lab.consul_leader().name
    epoch = elected.epoch(primary)
    with Writers(elected.lab, "alone") as writers:
        writers.wait_for_ack(primary)
        elected.power_cut(leader)
        # Until they miss it they say that it leads.
        elected.lab.wait_for(
            lambda: elected.lab.consul_leader().name != leader, 60.0, "another server leads", 0.3
        )
        elected.wait_for_heartbeats()
        writers.wait_for_ack(primary, after_s=time.monotonic())
    assert writers.served() == [primary]
    assert writers.missing(primary, [primary]) == []
    assert (elected.primary(), elected.epoch(primary)) == (primary, epoch)
    note(f"elections: Consul's leader died alone: a pause of {writers.longest_pause_s():.1f} s")
