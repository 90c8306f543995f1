"""The step of a demotion that lets Nomad's jobs go: before the storage, and never in its way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from standfast.agent import nomad_thread
from standfast.agent.loop import Agent
from standfast.assembly.node import jobs_of
from standfast.config.load import load
from standfast.config.nomad import NomadAccess
from standfast.consul.records import LeaderState
from standfast.errors import ConfigError, NomadError, NomadOutcome, StepFailed
from standfast.lease.files import LeaseStatus
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.nomad import reports
from standfast.nomad.downtime import Downtime
from standfast.nomad.loop import refuse_conflicts
from standfast.nomad.observation import Role
from standfast.nomad.reports import Report
from standfast.reasons import Reason
from standfast.role import plan as plans
from standfast.role.plan import Do, Names, Plan, Step
from standfast.role.steps import Effects
from standfast.status.text import render
from standfast.system.clock import Deadline, monotonic
from tests.fakes.machine import FakeJobs, fake_node
from tests.support.observations import config
from tests.support.status_documents import parsed

NAMES = Names("/persist/services", "/data/services", "data-services", jobs=True)


@pytest.mark.parametrize("to", ["b", None])
def test_the_jobs_go_after_the_first_copy_and_before_the_deregistration(to: str | None) -> None:
    order = [step.do for step in plans.demotion(NAMES, to).steps]
    place = order.index(Do.RELEASE_JOBS)
    assert order[place + 1] is Do.DEREGISTER
    assert order[:place] == [*([Do.PREPARE_JOBS, Do.PRE_COPY] if to else []), Do.TELL_HOOKS]


def test_without_nomad_no_plan_has_the_step() -> None:
    without = replace(NAMES, jobs=False)
    order = [step.do for step in plans.demotion(without, "b").steps]
    assert Do.RELEASE_JOBS not in order and Do.PREPARE_JOBS not in order
    assert not plans.names_of(config()).jobs
    assert plans.names_of(config(nomad=NomadAccess())).jobs


@pytest.mark.parametrize(
    "error",
    [NomadError("away", NomadOutcome.UNREACHABLE), KeyError("a surprise in an answer"), None],
)
def test_whatever_comes_of_it_the_demotion_goes_on(error: Exception | None, tmp_path: Path) -> None:
    jobs = FakeJobs(error)
    machine = replace(fake_node(tmp_path).machine, jobs=jobs)
    Effects(machine, deadline=Deadline.after(1000.0)).table()[Do.RELEASE_JOBS]()
    assert jobs.asked_s is not None and 35.0 < jobs.asked_s <= 40.0


@pytest.mark.parametrize(
    "error",
    [NomadError("away", NomadOutcome.UNREACHABLE), KeyError("a surprise in an answer"), None],
)
def test_whatever_comes_of_preparing_the_next_one_the_switchover_goes_on(
    error: Exception | None, tmp_path: Path
) -> None:
    jobs = FakeJobs(error)
    agent = agent_in(tmp_path)
    lease(agent, epoch=7)
    machine = replace(agent.machine, jobs=jobs)
    Effects(machine, to="b").table()[Do.PREPARE_JOBS]()
    assert jobs.prepared == ("b", 7)


def test_without_a_follower_the_steps_do_nothing(tmp_path: Path) -> None:
    for step in (Do.PREPARE_JOBS, Do.RELEASE_JOBS):
        Effects(fake_node(tmp_path).machine, to="b").table()[step]()


def agent_in(directory: Path) -> Any:
    """As far as the thread needs one."""
    machine = fake_node(directory).machine
    return SimpleNamespace(
        config=machine.config, machine=machine, seen=object(), stopping=threading.Event()
    )


def own_epoch(agent: Any, stage: Stage) -> None:
    OwnEpoch(5, stage, "fsid", None, in_place=False).save(agent.config.state_dir)


def lease(agent: Any, *, epoch: int = 5, serving: bool = True, left_s: float = 60.0) -> None:
    until = monotonic() + left_s
    instance = agent.machine.me.instance
    LeaseStatus(
        epoch, instance, 1, LeaderState.SERVING, serving, until, until, 1, monotonic()
    ).save(agent.config.run_dir)


def test_a_node_without_an_epoch_is_a_standby_once_it_has_looked(tmp_path: Path) -> None:
    agent = agent_in(tmp_path)
    assert nomad_thread.role_of(agent) == (Role.STANDBY, 0)
    agent.seen = None
    assert nomad_thread.role_of(agent) == (Role.CHANGING, 0)


def test_only_who_serves_with_a_lease_of_its_epoch_is_primary(tmp_path: Path) -> None:
    agent = agent_in(tmp_path)
    own_epoch(agent, Stage.READY)
    assert nomad_thread.role_of(agent) == (Role.CHANGING, 5)
    lease(agent)
    assert nomad_thread.role_of(agent) == (Role.PRIMARY, 5)
    for wrong in ({"epoch": 4}, {"serving": False}, {"left_s": -1.0}):
        lease(agent, **wrong)
        assert nomad_thread.role_of(agent) == (Role.CHANGING, 5), wrong
    lease(agent)
    for stage in (Stage.CREATING, Stage.DRAINING, Stage.RELEASED):
        own_epoch(agent, stage)
        assert nomad_thread.role_of(agent) == (Role.CHANGING, 5), stage


def test_an_epoch_that_can_not_be_read_is_no_standby(tmp_path: Path) -> None:
    agent = agent_in(tmp_path)
    own_epoch(agent, Stage.READY)
    (agent.config.state_dir / "own-epoch.json").write_text("{")
    assert nomad_thread.role_of(agent) == (Role.CHANGING, 0)


def test_a_token_that_can_not_be_read_does_not_keep_the_agent_from_starting(tmp_path: Path) -> None:
    machine = fake_node(tmp_path).machine
    wrong = NomadAccess(token_file=tmp_path / "missing")
    broken = structs.replace(machine.config, nomad=wrong)
    assert jobs_of(broken, machine.consul) is None  # type: ignore[arg-type]
    report = reports.load(broken)
    assert report.reason is Reason.CONFIG_INVALID and "missing" in report.sentence


def test_status_shows_the_last_round_and_the_jobs(tmp_path: Path) -> None:
    made = fake_node(tmp_path).machine.config
    assert "not looked" in reports.load(made).sentence
    report = Report(
        role=Role.PRIMARY,
        reason=Reason.NOMAD_FOLLOWS,
        sentence="b shows it",
        settled=True,
        failed=("stop x: denied",),
        jobs=(Downtime("db.g", "a", "b", 12.34), Downtime("web.g", "a", why="no room")),
    )
    reports.save(made, report)
    assert reports.load(made) == report
    doc = {"volume": "v", "node": "b", "role": "primary", "nomad": report.document()}
    text = render(parsed(doc))
    assert "nomad:     b shows it [nomad-follows]" in text
    assert "FAILED: stop x: denied" in text
    assert "db.g: from a to b, 12.3 s down" in text
    assert "web.g: stopped on a, runs nowhere yet (no room)" in text


def test_a_report_of_another_shape_counts_as_none(tmp_path: Path) -> None:
    made = fake_node(tmp_path).machine.config
    for text in ("{", "[]", '{"v": 1}'):
        reports.path_of(made).parent.mkdir(parents=True, exist_ok=True)
        reports.path_of(made).write_text(text)
        assert reports.load(made).settled is False


@pytest.mark.parametrize("fails", [False, True])
def test_when_the_plan_is_over_the_jobs_are_followed_again(fails: bool, tmp_path: Path) -> None:
    jobs = FakeJobs()
    machine = replace(fake_node(tmp_path).machine, jobs=jobs)
    agent = Agent(machine, SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    effects = Effects(machine)
    plan = Plan("some", (Step(Do.PRE_COPY if fails else Do.RELEASE_JOBS, "a step"),))
    with pytest.raises(StepFailed) if fails else nullcontext():
        agent.run_plan(plan, effects)
    assert jobs.resumed == 1


def test_who_can_not_carry_out_the_role_lets_its_jobs_go_before_their_files(tmp_path: Path) -> None:
    order = [step.do for step in plans.surrender(NAMES).steps]
    assert order.index(Do.RELEASE_JOBS) < order.index(Do.UNBIND)


def test_two_volumes_of_a_node_never_follow_the_same_meta(tmp_path: Path) -> None:
    text = 'cluster = "c"\nnode = "a"\n[nodes.a]\naddress = "10.0.0.1"\n[nomad]\n'
    (tmp_path / "one.toml").write_text(text)
    loaded = load(tmp_path / "one.toml")
    refuse_conflicts(loaded)
    (tmp_path / "two.toml").write_text(text)
    with pytest.raises(
        ConfigError, match=r'one and two both have nomad\.meta_key = "storage_role"'
    ):
        refuse_conflicts(loaded)
    (tmp_path / "two.toml").write_text(text + 'meta_key = "other_role"\n')
    refuse_conflicts(loaded)
    (tmp_path / "two.toml").write_text(text.replace("[nomad]\n", ""))
    refuse_conflicts(loaded)
    (tmp_path / "two.toml").write_text("[broken")
    refuse_conflicts(loaded)


class FakeFollower:
    """Rounds as they are asked for; the first one goes wrong in a way that nobody thought of."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent
        self.rounds: list[tuple[Role, int]] = []
        self.still: list[bool] = []

    def round(self, role: Role, epoch: int, still: Callable[[], bool]) -> Report:
        self.rounds.append((role, epoch))
        self.still.append(still())
        if len(self.rounds) == 1:
            raise KeyError("a surprise in an answer")
        if len(self.rounds) == 2:
            own_epoch(self.agent, Stage.READY)
            lease(self.agent)
            self.still.append(still())
        else:
            self.agent.stopping.set()
        return Report(
            role=role,
            reason=Reason.NOMAD_FOLLOWS,
            sentence=f"{role} of {epoch}",
            settled=True,
        )

    def pause_s(self, report: Report) -> float:
        return 3600.0


def test_a_change_of_the_role_is_followed_at_once_and_a_surprise_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nomad_thread, "TICK_S", 0.01)
    monkeypatch.setattr(nomad_thread, "TROUBLE_PAUSE_S", 0.0)
    agent = agent_in(tmp_path)
    follower = FakeFollower(agent)
    nomad_thread.keep_following(agent, follower)  # type: ignore[arg-type]
    assert follower.rounds == [(Role.STANDBY, 0), (Role.STANDBY, 0), (Role.PRIMARY, 5)]
    # Each still had its role at first; during the second it became another one.
    assert follower.still == [True, True, False, True]
    assert reports.load(agent.config).sentence == "primary of 5"
