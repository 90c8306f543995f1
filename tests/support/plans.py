"""A node of fakes on which whole plans run, and what it is like after them."""

from __future__ import annotations

from pathlib import Path

import pytest

from standfast.names import SnapshotName
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.role import plan as plans
from standfast.role import steps as effects_module
from standfast.role.decision import Action, Decision
from standfast.role.execute import execute
from standfast.role.observation import Available, LastHeartbeat
from standfast.role.plan import Names, Plan
from standfast.role.steps import Effects
from standfast.system.clock import utc_now
from tests.fakes.machine import FakeNode, fake_node

NAMES = Names("/persist/services", "/data/services", "data-services")


# No plan here has more effects than this.
MANY = 40


def made(directory: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    directory.mkdir(parents=True, exist_ok=True)
    node = fake_node(directory)
    base = SnapshotName.at("services", utc_now() - 60)
    node.store.taken.append(Snapshot(base, directory / str(base), "c0ffee", received=True))
    node.successor_serves()
    monkeypatch.setattr(effects_module, "ask", node.keeper.ask)
    monkeypatch.setattr(effects_module, "RELEASE_TRIES", 1)
    monkeypatch.setattr(effects_module, "SERVING_TIMEOUT_S", 0.0)
    return node


def promotion(node: FakeNode) -> Effects:
    [base] = [s for s in node.store.taken if s.received]
    decision = Decision(
        Action.PROMOTE,
        Reason.TAKEOVER,
        "n1 takes over",
        base=Available(base, 4),
        epoch=4,
        lost_s=60.0,
    )
    last_heartbeat = LastHeartbeat((4, "n9", "boot-9", 17), 100, 0.0)
    return Effects(node.machine, decision, last_heartbeat)


def run(plan: Plan, effects: Effects) -> None:
    execute(plan, effects.table(), lambda _: None)


def promote(node: FakeNode) -> None:
    if node.keeper.epoch is None:
        run(plans.promotion(NAMES, "a snapshot"), promotion(node))
    else:
        run(plans.go_on(NAMES), Effects(node.machine))


def switch(node: FakeNode) -> None:
    """What the agent does: the demotion, or its rest once the lease is given up."""
    if node.keeper.clean:
        run(plans.put_away(NAMES), Effects(node.machine))
    else:
        run(plans.go_on(NAMES), Effects(node.machine))
        run(plans.demotion(NAMES, "n2"), Effects(node.machine, to="n2"))


def step_down(node: FakeNode) -> None:
    run(plans.step_down(NAMES), Effects(node.machine))


def surrender(node: FakeNode) -> None:
    """What `standfast demote` does on a holder that doesn't serve."""
    if node.keeper.clean:
        run(plans.put_away(NAMES), Effects(node.machine))
    else:
        run(plans.surrender(NAMES), Effects(node.machine))


def is_primary(node: FakeNode) -> None:
    own = OwnEpoch.load(node.config.state_dir)
    assert own is not None
    assert (own.epoch, own.stage, own.fsid) == (5, Stage.READY, node.nfs.fsid)
    assert node.serves
    assert node.bind.mounted
    assert node.store.tree is not None
    assert node.store.tree.writable
    assert node.store.tree.uuid == own.live_uuid
    meta = {"epoch": "5", "node": "n1", "fsid": own.fsid}
    assert node.consul.local_services() == {"standfast-data-services": meta}


def is_standby(node: FakeNode) -> None:
    assert OwnEpoch.load(node.config.state_dir) is None
    assert not node.serves
    assert not node.nfs.running
    assert not node.bind.mounted
    assert node.store.tree is None
    assert node.consul.local_services() == {}
