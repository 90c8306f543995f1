"""Upkeep runs beside the plans, on what was seen before them: it never undoes what they did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from standfast.act import registration
from standfast.agent import Agent, Seen
from standfast.clock import monotonic, utc_now
from standfast.decision import Action, Decision, Moment
from standfast.lease.files import LeaseStatus
from standfast.local_view import LocalView
from standfast.locks import exclusive
from standfast.observe import Blind, Local
from standfast.reasons import Reason
from standfast.records import LeaderState
from standfast.reign import OwnReign, Stage
from standfast.watcher import Watcher
from tests.fakes.machine import FakeNode, fake_node

OWN = OwnReign(4, Stage.READY, "fsid", None, in_place=True)
NOTHING = Decision(Action.NOTHING, Reason.SERVING, "n1 serves data-services with epoch 4")
VIEW = Blind(Reason.CONSUL_TIMEOUT, "not looked at here")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return fake_node(tmp_path)


def agent_that_saw(node: FakeNode, own: OwnReign | None) -> Agent:
    machine = node.machine
    until = monotonic() + 60
    lease = LeaseStatus(
        4, "boot-1", 1, LeaderState.SERVING, True, until, until, 1, monotonic()
    )  # fmt: skip
    local = Local("n1", "boot-1", 4, own=own, lease=None if own is None else lease)
    agent = Agent(machine, Watcher(machine.config, machine.consul), LocalView(machine))
    agent.seen = Seen(VIEW, local, NOTHING, Moment(monotonic(), utc_now()))
    return agent


def register(node: FakeNode) -> None:
    registration.register(node.machine, 4)
    node.world.log.clear()


def test_a_standby_loses_a_leftover_registration(node: FakeNode) -> None:
    register(node)
    agent_that_saw(node, None).upkeep()
    assert node.consul.registered == {}


def test_a_promotion_that_ended_since_the_last_look_stays_registered_and_open(
    node: FakeNode,
) -> None:
    register(node)
    node.fence.in_place = False  # would be put there shut
    OWN.save(node.config.state_dir)
    agent_that_saw(node, None).upkeep()
    assert node.world.log == []
    assert len(node.consul.registered) == 1


def test_a_plan_at_work_goes_first(node: FakeNode) -> None:
    register(node)
    agent = agent_that_saw(node, None)
    with exclusive(node.config.run_dir / "plan.lock", "a plan"):
        agent.upkeep()
    assert len(node.consul.registered) == 1
    agent.upkeep()
    assert node.consul.registered == {}


def test_a_server_whose_registration_vanished_gets_it_back(node: FakeNode) -> None:
    OWN.save(node.config.state_dir)
    agent_that_saw(node, OWN).upkeep()
    assert len(node.consul.registered) == 1


@pytest.mark.parametrize("now", [None, replace(OWN, stage=Stage.DRAINING), replace(OWN, epoch=6)])
def test_a_demotion_that_ended_since_the_last_look_is_not_registered_again(
    node: FakeNode, now: OwnReign | None
) -> None:
    if now is not None:
        now.save(node.config.state_dir)
    agent_that_saw(node, OWN).upkeep()
    assert node.consul.registered == {}


def test_an_export_that_somebody_took_away_comes_back_and_nothing_else(node: FakeNode) -> None:
    OWN.save(node.config.state_dir)
    agent = agent_that_saw(node, OWN)
    node.nfs.running = True
    agent.upkeep()
    assert node.nfs.fsid == OWN.fsid
    node.world.log.clear()
    agent.upkeep()
    assert "export" not in node.world.log


@pytest.mark.parametrize("now", [None, replace(OWN, stage=Stage.DRAINING)])
def test_what_a_demotion_unexported_stays_so(node: FakeNode, now: OwnReign | None) -> None:
    if now is not None:
        now.save(node.config.state_dir)
    node.nfs.running = True
    agent_that_saw(node, OWN).upkeep()
    assert node.nfs.fsid is None
