"""The agent's loop: it acts on a fresh look alone, pauses after a failure, and goes on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.agent import upkeep
from standfast.agent.fence import FenceWatch
from standfast.agent.inspector import Inspection
from standfast.agent.local_view import LocalView
from standfast.agent.loop import BACK_OFF_S, TICK_S, Agent, Seen
from standfast.agent.main import keep_fenced, keep_up, serve
from standfast.agent.watcher import Watcher
from standfast.consul.blindness import Blind
from standfast.consul.records import Holder, Leader, LeaderState, dump_epoch
from standfast.errors import ConsulUnreachable, Refused, StandfastError, StepFailed
from standfast.lease.epochs import EpochFile
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.role.decision import NO_REQUEST, Action, Decision, Moment, Request
from standfast.role.observation import Cluster, Local
from standfast.role.plan import Do, Plan, Step, go_on, names_of
from standfast.role.steps import Effects
from standfast.system.clock import monotonic
from standfast.system.locks import exclusive
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeJobs, FakeNode, fake_node
from tests.unit.agents import FakeAgent, promotion, refusal, say, view

SERVING = Decision(Action.NOTHING, Reason.SERVING, "n1 serves data-services with epoch 4")
STANDING_BY = Decision(Action.NOTHING, Reason.PRIMARY_ALIVE, "n2 is primary with epoch 4")
TAKEOVER = Decision(Action.STEP_DOWN, Reason.LEASE_LOST, "epoch 4 of this node is over")
OWN = OwnEpoch(4, Stage.READY, "fsid", None, in_place=True)
VIEW = Blind(Reason.CONSUL_TIMEOUT, "not looked at here")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return fake_node(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@dataclass
class TwoFaced(FakeAgent):
    """What it saw last differs from what a fresh look shows, after the first ones."""

    stale: Decision = SERVING
    fresh: Decision = STANDING_BY
    first: list[Decision] = field(default_factory=list)

    def look(
        self, wait_s: float = 0.0, *, fresh: bool = False, request: Request = NO_REQUEST
    ) -> Seen:
        decision = self.fresh if fresh else self.stale
        if self.first:
            decision = self.first.pop(0)
        self.seen = Seen(self.view, Local("n1", "boot-1", 4), decision, Moment(monotonic(), 0.0))
        return self.seen


def two_faced(node: FakeNode, *, stale: Decision, fresh: Decision) -> TwoFaced:
    machine = node.machine
    made = TwoFaced(machine, Watcher(machine.config, machine.consul), LocalView(machine))
    made.stale, made.fresh, made.view = stale, fresh, view("n2", "n3")
    return made


def plans_of(agent: FakeAgent) -> list[str]:
    return [plan.name for plan, _ in agent.ran]


def real_agent(node: FakeNode) -> Agent:
    machine = node.machine
    return Agent(machine, Watcher(machine.config, machine.consul), LocalView(machine))


# Looks


def test_the_loop_does_nothing_that_a_fresh_look_does_not_ask_for(node: FakeNode) -> None:
    agent = two_faced(node, stale=TAKEOVER, fresh=STANDING_BY)
    agent.step()
    assert agent.ran == []
    agent.fresh = TAKEOVER
    agent.step()
    assert plans_of(agent) == ["step-down"]


def test_promote_does_nothing_that_a_fresh_look_does_not_ask_for(node: FakeNode) -> None:
    agent = two_faced(node, stale=promotion(), fresh=STANDING_BY)
    waits = Decision(Action.WAIT, Reason.WAITING_FOR_LEASE_END, "the lease is over in 9 s")
    agent.inspector.last = Inspection((), math.inf)
    # It may have waited before, or after it looked ahead, by looks that aren't fresh.
    for agent.first in ([], [waits], [promotion(), waits]):
        assert refusal(say(agent, "promote"))[0] == Reason.PRIMARY_ALIVE
        assert agent.ran == [] and agent.first == []


@pytest.mark.parametrize("command", ["demote", "switchover", "failback"])
def test_the_role_is_given_up_by_who_has_it_at_a_fresh_look_alone(
    node: FakeNode, command: str
) -> None:
    agent = two_faced(node, stale=SERVING, fresh=STANDING_BY)
    agent.machine = replace(agent.machine, config=structs.replace(node.config, preferred="n2"))
    assert refusal(say(agent, command))[0] == Reason.NOT_PRIMARY
    assert agent.ran == []


def consul_holds(node: FakeNode, epoch: int) -> None:
    """A primary on n2 that heartbeats."""
    leader = Leader(epoch, Holder("n2", "boot-2"), 9, LeaderState.SERVING, ("n1", "n3"))
    node.consul.put(node.config.key("epoch"), dump_epoch(epoch))
    node.consul.put(node.config.key("leader"), leader.dump())


def test_an_epoch_that_was_seen_is_remembered_through_a_reboot(node: FakeNode) -> None:
    consul_holds(node, 4)
    real_agent(node).look()
    assert EpochFile(node.config.state_dir / "epoch").read() == 4


@pytest.mark.parametrize("gone", ["epoch", "leader"])
def test_who_could_not_heartbeat_gets_a_chance_once_consul_is_mended(
    node: FakeNode, clock: StoppedClock, gone: str
) -> None:
    """The time in which Consul held nonsense is no time in which a primary was silent."""
    agent = real_agent(node)
    consul_holds(node, 4)
    agent.look()
    kept = node.consul.get(node.config.key(gone))
    assert kept is not None
    node.consul.delete(kept.key)
    clock.now += 5.0
    agent.look(fresh=True)
    node.consul.put(kept.key, kept.value)
    clock.now += 5.0
    seen = agent.look(fresh=True)
    assert isinstance(seen.view, Cluster)
    assert seen.view.readable_since == clock.now


def test_a_consul_that_refuses_at_once_is_asked_a_few_times_a_second_only(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = real_agent(node)
    waited: list[float] = []

    def refuse(*_: object, **__: object) -> None:
        raise ConsulUnreachable("connection refused")

    monkeypatch.setattr(agent.machine.consul, "wait", refuse)
    agent.stopping.wait = lambda timeout=None: bool(waited.append(timeout or 0))  # type: ignore[method-assign, func-returns-value]
    agent.step()
    agent.step()
    assert waited == [TICK_S, TICK_S / 4]


# Failures


@dataclass
class Failing(TwoFaced):
    """Every plan fails, until it is `mended`."""

    tried_at: list[float] = field(default_factory=list)
    mended: bool = False

    def run_plan(self, plan: Plan, effects: Effects, progress: Any = None) -> None:
        self.tried_at.append(monotonic())
        if not self.mended:
            raise StepFailed("it does not work")


def test_what_failed_is_tried_again_after_longer_and_longer_pauses(
    node: FakeNode, clock: StoppedClock
) -> None:
    machine = node.machine
    agent = Failing(machine, Watcher(machine.config, machine.consul), LocalView(machine))
    agent.stale = agent.fresh = TAKEOVER
    agent.view = view("n2", "n3")
    for _ in range(200):
        agent.step()
        clock.now += 0.25
    tried = agent.tried_at
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert pauses == [*BACK_OFF_S, BACK_OFF_S[-1]]
    assert agent.trouble == "it does not work"
    agent.mended = True
    clock.now += BACK_OFF_S[-1]
    agent.step()
    assert agent.failures == 0 and agent.trouble is None


def test_a_file_that_can_not_be_understood_is_said_and_looked_at_again(node: FakeNode) -> None:
    agent = real_agent(node)
    looks = []

    def step() -> None:
        looks.append(agent.trouble)
        if len(looks) == 2:
            agent.stopping.set()
        raise StandfastError("own-epoch.json is damaged")

    agent.stopping.wait = lambda timeout=None: agent.stopping.is_set()  # type: ignore[method-assign]
    agent_with(agent, step)
    assert looks == [None, "own-epoch.json is damaged"]


def agent_with(agent: Agent, step: Callable[[], None]) -> None:
    """Run the loop with this step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agent, "step", lambda _self: step())
        serve(agent)


def a_bug(_agent: Agent) -> None:
    raise ValueError("a bug")


def test_upkeep_that_dies_takes_the_agent_with_it(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new agent vouches for the server again; without, its check in Consul would expire."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    agent = real_agent(node)
    monkeypatch.setattr(upkeep, "keep_up", a_bug)
    agent.stopping.set()
    keep_up(agent)
    assert ended == [1]


def test_what_runs_beside_the_loop_is_begun_once_and_before_a_look_that_may_hang(
    node: FakeNode,
) -> None:
    agent = real_agent(node)
    begun: list[str] = []

    def beside(name: str, body: Callable[[], None]) -> None:
        assert agent.seen is None
        begun.append(name)

    agent.stopping.set()
    serve(agent, beside)
    assert begun == ["upkeep", "fence", "inspection", "requests"]


def test_the_fence_is_looked_at_while_the_upkeep_waits(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a disk, a server, or a lease process that is frozen."""
    agent = real_agent(node)
    looks: list[int] = []

    def look(_fence: FenceWatch) -> None:
        looks.append(1)
        if len(looks) == 3:
            agent.stopping.set()

    monkeypatch.setattr(FenceWatch, "look", look)
    monkeypatch.setattr(agent.stopping, "wait", lambda _seconds: agent.stopping.is_set())
    monkeypatch.setattr(upkeep, "keep_up", a_bug)
    keep_fenced(agent)
    assert len(looks) == 3


# Plans


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
def test_when_a_plan(node: FakeNode, fails: bool) -> None:
    """The jobs go on, and the agent is free again."""
    agent = real_agent(node)
    jobs = FakeJobs()
    agent.machine = replace(agent.machine, jobs=jobs)
    # There is no epoch whose port could be closed.
    plan = Plan("some", (Step(Do.CLOSE_PORT if fails else Do.UNEXPORT, "do it"),))
    with pytest.raises(StepFailed) if fails else nullcontext() as failed:
        agent.run_plan(plan, Effects(agent.machine))
    assert failed is None or failed.value.__cause__ is not failed.value
    assert (jobs.resumed, agent.busy) == (1, None)


def test_what_a_step_says_is_told_to_whoever_asked_and_by_status(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, told = real_agent(node), list[str]()
    effects = Effects(agent.machine)

    def unexport() -> None:
        effects.say("once more")
        told.append(f"status: {agent.busy}")

    monkeypatch.setattr(node.nfs, "unexport", unexport)
    agent.run_plan(Plan("some", (Step(Do.UNEXPORT, "a step"),)), effects, told.append)
    assert told == ["some 1/1: a step", "once more", "status: once more"]


def test_one_plan_at_a_time(node: FakeNode, clock: StoppedClock) -> None:
    agent = real_agent(node)
    with (
        exclusive(node.config.run_dir / "plan.lock", "another process"),
        pytest.raises(Refused, match="another change of the role is at work"),
    ):
        agent.run_plan(go_on(names_of(node.config)), Effects(agent.machine))
    assert node.world.log == []
