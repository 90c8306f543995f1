"""A Consul that is restored to the moment in which a role was handed over."""

from __future__ import annotations

from tests.sim.world import SimWorld


def is_clean(world: SimWorld) -> bool:
    leader = world.leader()
    return leader is not None and leader.is_clean


def restored_to_a_clean(world: SimWorld) -> None:
    """A node that was off since before a role was handed over boots into a Consul that was restored
    to the moment in which it was given up; the successor is cut off just then and serves on."""
    primary = world.begin()
    world.run(10.0)
    primary.hand_to("b")
    world.wait_for("the role is given up", lambda: is_clean(world))
    saved = world.store.backup()
    world["b"].power_cut()
    world["c"].power_cut()
    world.wait_for_primary("a", 120.0)
    assert world.epoch() == 2
    world.run(20.0)
    world.isolate("a")
    world.restore(saved)
    world["b"].boot()
    world.wait_for_primary("b", 120.0)
