"""The agent's thread for Nomad: which role it follows, and when it must not go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from standfast.agent.local_view import LocalView
from standfast.agent.loop import Agent, Seen
from standfast.agent.nomad_thread import keep_following, role_of
from standfast.agent.watcher import Watcher
from standfast.consul.records import LeaderState
from standfast.lease.files import LeaseStatus
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.nomad.loop import Follower
from standfast.nomad.observation import Role
from standfast.nomad.reports import Report
from standfast.reasons import Reason
from standfast.role.decision import Moment
from standfast.role.observation import Local
from standfast.system.clock import monotonic
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeNode, fake_node
from tests.unit.agents import BLIND, SERVING

OWN = OwnEpoch(4, Stage.READY, "fsid", None, in_place=True)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return fake_node(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.fixture
def agent(node: FakeNode, clock: StoppedClock) -> Agent:
    """One that has looked."""
    machine = node.machine
    made = Agent(machine, Watcher(machine.config, machine.consul), LocalView(machine))
    made.seen = Seen(BLIND, Local("n1", "boot-1", 4), SERVING, Moment(monotonic(), 0.0))
    return made


def history_entries(
    node: FakeNode, own: OwnEpoch = OWN, *, left_s: float = 60.0, **lease: Any
) -> None:
    """This node's files say that it serves; `lease`: what its lease says otherwise."""
    own.save(node.config.state_dir)
    until = monotonic() + left_s
    good = LeaseStatus(4, "boot-1", 1, LeaderState.SERVING, True, until, until, 1, monotonic())
    replace(good, **lease).save(node.config.run_dir)


def test_a_primary_is_one_that_serves_now(node: FakeNode, agent: Agent) -> None:
    history_entries(node)
    assert role_of(agent) == (Role.PRIMARY, 4)


@pytest.mark.parametrize(
    "differs",
    [
        {"own": OWN.at(Stage.DRAINING)},
        {"own": OWN.at(Stage.CREATING)},
        {"left_s": -0.1},
        {"instance": "boot-0"},
        {"serving": False},
        {"epoch": 3},
    ],
    ids=" ".join,
)
def test_who_has_an_epoch_and_does_not_serve_is_changing(
    node: FakeNode, agent: Agent, differs: dict[str, Any]
) -> None:
    history_entries(node, **differs)
    assert role_of(agent) == (Role.CHANGING, 4)


def test_an_epoch_without_a_lease_or_a_damaged_one_is_changing(
    node: FakeNode, agent: Agent
) -> None:
    OWN.save(node.config.state_dir)
    assert role_of(agent) == (Role.CHANGING, 4)
    (node.config.state_dir / "own-epoch.json").write_text("{}")
    assert role_of(agent) == (Role.CHANGING, 0)


def test_a_standby_is_one_that_has_looked_and_has_no_epoch(agent: Agent) -> None:
    assert role_of(agent) == (Role.STANDBY, 0)
    agent.seen = None
    assert role_of(agent) == (Role.CHANGING, 0), "its files may be of an earlier boot"


@dataclass
class Rounds:
    """Stands in for the follower: one function for each round, then the agent ends."""

    agent: Agent
    plays: list[Callable[[Role, Callable[[], bool]], None]]
    roles: list[Role] = field(default_factory=list)

    def round(self, role: Role, epoch: int, still: Callable[[], bool]) -> Report:
        self.roles.append(role)
        play = self.plays.pop(0)
        if not self.plays:
            self.agent.stopping.set()
        play(role, still)
        return Report(
            role=role, reason=Reason.SERVING, sentence="all is as it should be", settled=True
        )

    def pause_s(self, report: Report) -> float:
        return 10.0

    def follow(self, clock: StoppedClock) -> None:
        """The thread's loop, in this one."""

        def wait(seconds: float) -> bool:
            clock.now += seconds
            return self.agent.stopping.is_set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.agent.stopping, "wait", wait)
            keep_following(self.agent, cast(Follower, self))


def nothing(_role: Role, _still: Callable[[], bool]) -> None:
    return


def test_a_round_learns_that_its_role_is_over(
    node: FakeNode, agent: Agent, clock: StoppedClock
) -> None:
    answers: list[bool] = []

    def demoted_meanwhile(_role: Role, still: Callable[[], bool]) -> None:
        answers.append(still())
        OwnEpoch.forget(node.config.state_dir)
        answers.append(still())

    history_entries(node)
    Rounds(agent, [demoted_meanwhile]).follow(clock)
    assert answers == [True, False]


def test_a_change_of_the_role_begins_a_round_at_once(
    node: FakeNode, agent: Agent, clock: StoppedClock
) -> None:
    started = clock.now

    def promoted(_role: Role, _still: Callable[[], bool]) -> None:
        history_entries(node)

    rounds = Rounds(agent, [promoted, nothing])
    rounds.follow(clock)
    assert rounds.roles == [Role.STANDBY, Role.PRIMARY]
    assert clock.now - started < 10.0


def test_a_round_that_fails_unexpectedly_is_tried_again_later(
    agent: Agent, clock: StoppedClock
) -> None:
    def bug(_role: Role, _still: Callable[[], bool]) -> None:
        raise ValueError("a bug")

    started = clock.now
    rounds = Rounds(agent, [bug, nothing])
    rounds.follow(clock)
    assert len(rounds.roles) == 2
    assert clock.now - started >= 10.0
