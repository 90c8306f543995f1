"""What is in the way of a promotion, and what is said of it: who is barred claims nothing, another
goes first, and what `status` answers is what happens when the primary dies right then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.reasons import Reason
from tests.sim import outlook
from tests.sim.node import SimNode
from tests.sim.world import FAST, SimWorld

TAKEN_S = 11.0
"""Until a standby serves: gossip tells late who is dead, and each better one has a head start."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SimWorld]:
    with SimWorld(tmp_path, timing=FAST) as world:
        yield world
        world.repair()
        world.check_settled()
        world.check_nothing_deleted()


def claims(world: SimWorld, node: SimNode) -> int:
    return sum(line.startswith(f"{node.name}: promotion: claim") for _, line, _ in world.lines)


@pytest.mark.parametrize("before_s", [0.5, 20.0, 70.0])
@pytest.mark.parametrize("what", ["server", "lease"])
def test_a_node_whose_unit_is_masked_lets_another_go_first(
    world: SimWorld, what: str, before_s: float
) -> None:
    """However short before the death it was: everybody looks once more when the primary is silent.
    The masked one would be the first by its name."""
    primary, barred = world.begin(), world["c"]
    world.run(20.0)
    if what == "server":
        barred.nfsd.masked = True
    else:
        barred.seat.lease.masked = True
    world.run(before_s)
    primary.power_cut()
    assert world.wait_for_primary() < TAKEN_S
    assert world["b"].serves
    assert claims(world, barred) == 0


@pytest.mark.parametrize("before_s", [0.5, 20.0])
def test_a_node_that_can_not_be_cut_off_takes_no_epoch(world: SimWorld, before_s: float) -> None:
    """Nor the role from somebody who serves. That its kernel has no fence is known when its agent
    has tried; until then it may claim the lease, and leaves it to the next."""
    primary, barred = world.begin(), world["c"]
    world.run(20.0)
    barred.rules.flush()
    barred.rules.unknown = True
    world.run(before_s)
    reply = primary.hand_to("c")
    world.wait_for("an answer", lambda: reply.closed)
    assert "not-ready" in reply.last and "fence" in reply.last and primary.serves
    primary.power_cut()
    world.wait_for_primary("b")
    assert world.epoch() == 2
    assert before_s < 20.0 or claims(world, barred) == 0


def test_a_node_takes_over_soon_after_what_was_in_its_way_is_gone(world: SimWorld) -> None:
    primary = world.begin()
    for name in "bc":
        world[name].nfsd.masked = True
    world.run(70.0)
    primary.power_cut()
    world.run(30.0)
    assert world.epoch() == 1
    for node in (world["b"], world["c"]):
        assert node.decision is not None and node.decision.reason is Reason.NOT_READY
    world["c"].nfsd.masked = False
    assert world.wait_for_primary("c") < 15.0


def test_a_switchover_to_a_node_that_is_not_ready_stops_nothing(world: SimWorld) -> None:
    primary = world.begin()
    world["b"].nfsd.masked = True
    reply = primary.hand_to("b")
    for _ in range(400):
        world.run(0.05)
        assert primary.serves
    assert reply.closed and "not-ready" in reply.last and "masked" in reply.last
    assert world.epoch() == 1
    world["b"].nfsd.masked = False
    primary.hand_to("b")
    world.wait_for_primary("b")


def test_a_promotion_says_what_is_in_its_way_and_can_be_tried_in_spite_of_it(
    world: SimWorld,
) -> None:
    primary, node = world.begin(), world["b"]
    world["c"].power_cut()
    node.nfsd.masked = True
    primary.power_cut()
    world.run(20.0)
    reply = node.ask("promote")
    world.wait_for("an answer", lambda: reply.closed)
    assert "nfs-server.service is masked" in reply.last and world.epoch() == 1
    node.ask("promote", despite="unit")
    world.wait_for("a try", lambda: claims(world, node) == 1)
    node.nfsd.masked = False
    world.wait_for_primary("b")


@pytest.mark.parametrize("asked", ["a", "b"])
def test_a_pause_is_told_at_once_by_all(world: SimWorld, asked: str) -> None:
    """A candidate reads it some seconds later; a primary that died then was followed by nobody,
    and `status` had just said who would."""
    world.begin()
    world.run(30.0)

    def said() -> tuple[bool, str | None]:
        answer = outlook.can_fail_over(world, world[asked])
        assert answer is not None
        return answer.possible, answer.reason

    assert said() == (True, None)
    world.pause_failover()
    assert said() == (False, Reason.PAUSED)
    world.store.delete(world.key("pause"))
    assert world.wait_for("it can again", lambda: said()[0]) < 20.0


@pytest.mark.parametrize("asked", ["a", "b"])
def test_a_hold_is_told_at_once_by_all(world: SimWorld, asked: str) -> None:
    world.begin()
    world.run(30.0)
    world.hold("b")
    answer = outlook.can_fail_over(world, world[asked])
    assert answer is not None and (answer.possible, answer.to) == (True, "c")
    world.hold("c")
    answer = outlook.can_fail_over(world, world[asked])
    assert answer is not None and (answer.possible, answer.reason) == (False, Reason.ON_HOLD)


def test_a_role_that_was_given_up_to_nobody_is_told_at_once_by_all(world: SimWorld) -> None:
    primary = world.begin()
    world.run(30.0)
    reply = primary.ask("demote")
    world.wait_for("the demotion", lambda: reply.closed)
    for node in world.nodes.values():
        answer = outlook.can_fail_over(world, node)
        assert answer is not None and answer.reason == Reason.DEMOTED
    primary.ask("promote")
    world.wait_for_primary(primary.name)


@pytest.mark.parametrize("seed", [6, 8, 20, 38, 40])
def test_nobody_takes_over_where_status_says_so(seed: int) -> None:
    assert outlook.run(seed) is False


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 5, 9, 10])
def test_somebody_takes_over_where_status_says_so(seed: int) -> None:
    assert outlook.run(seed) is True
