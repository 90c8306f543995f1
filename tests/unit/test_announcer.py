"""What a plan's course is told as: events for the journal, hooks for the operator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.agent import announcer as announcer_module
from standfast.agent import loop as agent_module
from standfast.agent.commands import promote
from standfast.agent.local_view import LocalView
from standfast.agent.loop import Agent, Seen
from standfast.agent.watcher import Watcher
from standfast.consul.blindness import Blind
from standfast.errors import Refused, StandfastError, StepFailed
from standfast.events import hooks
from standfast.events.events import Event, Kind
from standfast.events.hooks import Occasion
from standfast.lease import keeper as keeper_module
from standfast.lease.keeper import Keeper
from standfast.lease.protocol import HeldLease
from standfast.names import SnapshotName
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.role import plan as plans
from standfast.role.decision import Action, Decision, Moment, Request
from standfast.role.execute import execute
from standfast.role.observation import Available, LastHeartbeat, Local
from standfast.role.plan import Do, Names, Plan, Step
from standfast.role.steps import Effects
from standfast.system.clock import Deadline, monotonic
from tests.fakes.machine import FakeNode, fake_node
from tests.support.scripts import script

NAMES = Names("/persist/services", "/data/services", "data-services")
BASE = Snapshot(SnapshotName.at("services", 1_795_000_000.0), Path("/x"), "c0ffee", received=True)
TAKEOVER = Decision(
    Action.PROMOTE,
    Reason.TAKEOVER,
    "n1 takes over from n2",
    base=Available(BASE, 4),
    epoch=4,
    lost_s=60.0,
)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return fake_node(tmp_path)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    events: list[Event] = []
    monkeypatch.setattr(announcer_module, "tell", events.append)
    monkeypatch.setattr(keeper_module, "tell", events.append)
    return events


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Occasion, dict[str, object]]]:
    added: list[tuple[Occasion, dict[str, object]]] = []
    monkeypatch.setattr(
        hooks.Later, "add", lambda _self, occasion, facts: added.append((occasion, dict(facts)))
    )
    return added


def agent_of(node: FakeNode) -> Agent:
    machine = node.machine
    return Agent(machine, Watcher(machine.config, machine.consul), LocalView(machine))


def run(node: FakeNode, plan: Plan, effects: Effects, **broken: Exception) -> None:
    """A plan whose steps do nothing; `broken` names one that fails (with _ for -)."""

    def do(step: Do) -> None:
        if error := broken.get(step.replace("-", "_")):
            raise error

    def table(_self: Effects) -> dict[Do, Any]:
        return {step: (lambda step=step: do(step)) for step in Do}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Effects, "table", table)
        patch.setattr(Effects, "epoch", lambda _self: 5)
        agent_of(node).run_plan(plan, effects)


def test_a_failover_is_decided_and_ends_as_a_promotion(
    node: FakeNode, told: list[Event], hooked: list[tuple[Occasion, dict[str, object]]]
) -> None:
    run(node, plans.promotion(NAMES, "a snapshot"), Effects(node.machine, TAKEOVER))
    assert [(event.kind, event.epoch, event.reason) for event in told] == [
        (Kind.FAILOVER_DECIDED, 5, "takeover"),
        (Kind.PROMOTED, 5, "takeover"),
    ]
    [(occasion, facts)] = hooked
    assert occasion is Occasion.POST_PROMOTE
    assert facts["snapshot"] == BASE.name and facts["lost_seconds"] == 60.0


def test_a_switchover_begins_and_ends_and_leaves_a_standby(
    node: FakeNode, told: list[Event], hooked: list[tuple[Occasion, dict[str, object]]]
) -> None:
    OwnEpoch(4, Stage.READY, "fsid", None, in_place=True).save(node.config.state_dir)
    run(node, plans.demotion(NAMES, "n2"), Effects(node.machine, to="n2", operator="ann"))
    assert [(event.kind, event.epoch, dict(event.more)) for event in told] == [
        (Kind.SWITCHOVER_BEGUN, 4, {"STANDFAST_TO": "n2"}),
        (Kind.DEMOTED, 4, {"STANDFAST_TO": "n2"}),
        (Kind.SWITCHOVER_ENDED, 4, {"STANDFAST_TO": "n2"}),
    ]
    assert [(occasion, facts["operator"]) for occasion, facts in hooked] == [
        (Occasion.POST_DEMOTE, "ann")
    ]


def test_a_switchover_that_is_rolled_back_fails_and_serves_again(
    node: FakeNode, told: list[Event], hooked: list[tuple[Occasion, dict[str, object]]]
) -> None:
    with pytest.raises(StepFailed):
        run(
            node,
            plans.demotion(NAMES, "n2"),
            Effects(node.machine, to="n2"),
            final_copy=StandfastError("n2 is away"),
        )
    assert [event.kind for event in told] == [
        Kind.SWITCHOVER_BEGUN,
        Kind.SERVING_AGAIN,
        Kind.ROLE_CHANGE_FAILED,
    ]
    assert "n2 is away" in told[-1].sentence


def test_a_promotion_that_is_refused_is_told_once_while_it_repeats(
    node: FakeNode, told: list[Event], hooked: list[tuple[Occasion, dict[str, object]]]
) -> None:
    agent = agent_of(node)
    plan = Plan("promotion", (Step(Do.ASK_HOOKS, "ask"),))
    veto = Refused(Reason.HOOK_VETOED, "10-disk is against it")
    effects = Effects(node.machine, replace(TAKEOVER, reason=Reason.CLEAN_HANDOVER))
    for error in (veto, veto, Refused(Reason.HOOK_VETOED, "20-net is against it")):
        plan_report = agent.announcer.plan_report(plan, effects)
        plan_report.failed(error)
    assert [(event.kind, event.reason) for event in told] == [
        (Kind.PROMOTION_REFUSED, "hook-vetoed"),
        (Kind.PROMOTION_REFUSED, "hook-vetoed"),
    ]
    assert [occasion for occasion, _ in hooked] == [Occasion.PROMOTION_REFUSED] * 2


def test_a_veto_comes_before_anything_was_done(tmp_path: Path, node: FakeNode) -> None:
    directory = tmp_path / "hooks.d"
    script(directory / "pre-promote/10-no", "echo not now\nexit 75")
    node.config = structs.replace(
        node.config, hooks=structs.replace(node.config.hooks, dir=directory)
    )
    effects = Effects(node.machine, TAKEOVER, LastHeartbeat((4, "n2", "boot-2", 17), 100, 0.0))
    with pytest.raises(Refused, match="not now"):
        execute(plans.promotion(NAMES, "a snapshot"), effects.table(), lambda _: None)
    assert node.world.log == []


def test_the_steps_for_hooks_stand_before_the_lease_and_before_the_jobs() -> None:
    assert plans.promotion(NAMES, "x").steps[0].do is Do.ASK_HOOKS
    order = [step.do for step in plans.demotion(replace(NAMES, jobs=True), "n2").steps]
    assert order[:5] == [
        Do.PREPARE_JOBS,
        Do.PRE_COPY,
        Do.TELL_HOOKS,
        Do.RELEASE_JOBS,
        Do.DEREGISTER,
    ]
    without = plans.step_down(NAMES)
    assert not {Do.ASK_HOOKS, Do.TELL_HOOKS} & {step.do for step in without.steps}


def test_what_keeps_a_standby_from_taking_over_is_told_when_it_changes(
    node: FakeNode,
    told: list[Event],
    hooked: list[tuple[Occasion, dict[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = agent_of(node)
    reasons = iter([Reason.TOO_OLD, Reason.TOO_OLD, Reason.PAUSED, Reason.TOO_OLD])
    monkeypatch.setattr(
        agent_module, "decide", lambda *_: Decision(Action.BLOCKED, next(reasons), "no")
    )
    for request in (Request(), Request(), Request(), Request(promote=True)):
        agent.look(request=request)
    assert [(event.kind, event.reason) for event in told] == [
        (Kind.PROMOTION_REFUSED, "too-old"),
        (Kind.PROMOTION_REFUSED, "paused"),
    ]


def test_a_refused_command_to_promote_is_told(
    node: FakeNode,
    told: list[Event],
    hooked: list[tuple[Occasion, dict[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Asked:
        dry_run = True
        argument = staticmethod(lambda _name: None)
        text = staticmethod(lambda _name: None)
        limit = staticmethod(lambda: Deadline.after(10.0))

    agent = agent_of(node)
    alive = Decision(Action.NOTHING, Reason.PRIMARY_ALIVE, "n2 is primary")
    seen = Seen(
        Blind(Reason.CONSUL_TIMEOUT, "x"), Local("n1", "b", 4), alive, Moment(monotonic(), 0.0)
    )
    monkeypatch.setattr(Agent, "look", lambda *_args, **_more: seen)
    asked: Any = Asked()
    for dry_run in (True, False):
        asked.dry_run = dry_run
        with pytest.raises(Refused):
            promote(agent, asked)
    assert [event.reason for event in told] == ["primary-alive"]


def test_the_fence_is_told_when_it_shuts_and_when_it_opens_again(
    node: FakeNode, told: list[Event]
) -> None:
    held_lease = HeldLease(4, node.machine.me, 1, 1, 1, valid_until=monotonic() - 60)
    consul: Any = None  # no heartbeat here
    keeper = Keeper(node.config, consul, node.fence, node.nfs, held_lease, since=0.0, serving=True)
    keeper.check_end()
    keeper.check_end()
    keeper.held_lease = structs.replace(held_lease, valid_until=monotonic() + 600)
    keeper._arm()
    keeper.check_end()
    assert [(event.kind, event.epoch) for event in told] == [
        (Kind.FENCE_CLOSED, 4),
        (Kind.FENCE_REOPENED, 4),
    ]
