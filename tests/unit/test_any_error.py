"""Whatever a step, a look or a request raises is a failure like any other: told, and repeated."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from standfast import errors
from standfast.agent import announcer
from standfast.agent.fence import FenceWatch
from standfast.agent.local_view import LocalView
from standfast.agent.loop import Agent
from standfast.agent.main import keep_up, serve
from standfast.agent.watcher import Watcher
from standfast.errors import (
    CommandFailed,
    Refused,
    StandfastError,
    StepFailed,
    Unexpected,
    is_lack_of,
    ours,
    said,
)
from standfast.lease import cutoff
from standfast.lease import keeper as keeper_module
from standfast.lease.files import LeaseStatus
from standfast.lease.keeper import SKIPPED
from standfast.lease.process import RETRY_S, Turn, answer
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.replication.failures import reason_of
from standfast.role import plan as plans
from standfast.role import registration
from standfast.role.execute import execute
from standfast.role.plan import Do, Plan
from standfast.role.steps import Effects
from standfast.system.clock import Deadline
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import Cut, FakeFence, FakeNfs, FakeNode, World, fake_node
from tests.support.plans import (
    MANY,
    NAMES,
    is_primary,
    is_standby,
    made,
    promote,
    promotion,
    run,
    step_down,
    surrender,
    switch,
)
from tests.unit.agents import agent as agent_with
from tests.unit.agents import promotion as decision_to_promote
from tests.unit.agents import say
from tests.unit.keepers import Fence, Keys, started

ERRORS: tuple[Exception, ...] = (
    OSError(errno.ENOSPC, "No space left on device", "/var/lib/standfast/x/own-epoch.json"),
    OSError(errno.EIO, "Input/output error", "/persist/services"),
    OSError(errno.EROFS, "Read-only file system", "/persist/services"),
    UnicodeDecodeError("utf-8", b"/mnt/caf\xe9", 8, 9, "invalid continuation byte"),
    RuntimeError("a bug"),
)
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: said(error).split(":")[0])


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    return made(tmp_path, monkeypatch)


# Plans


@each_error
@pytest.mark.parametrize(
    ("start", "plan", "end"),
    [
        pytest.param(None, promote, is_primary, id="promotion"),
        pytest.param(promote, switch, is_standby, id="switchover"),
        pytest.param(promote, step_down, is_standby, id="step-down"),
        pytest.param(promote, surrender, is_standby, id="surrender"),
    ],
)
def test_each_effect_that_fails_for_any_reason_is_a_failed_step_and_the_next_try_works(
    start: Callable[[FakeNode], None] | None,
    plan: Callable[[FakeNode], None],
    end: Callable[[FakeNode], None],
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(MANY):
        node = made(tmp_path / str(number), monkeypatch)
        if start is not None:
            start(node)
        node.world.log.clear()
        node.world.break_at(number, error)
        try:
            plan(node)
        except StepFailed as failure:
            assert said(error) in str(failure)
            plan(node)
            end(node)
        else:
            end(node)
            if len(node.world.log) <= number:
                assert number > 5, "the plan has hardly any effects: is it run at all?"
                return
    pytest.fail(f"more than {MANY} effects")


BEFORE_RELEASE = [step.do for step in plans.demotion(NAMES, "n2").steps]
BEFORE_RELEASE = BEFORE_RELEASE[: BEFORE_RELEASE.index(Do.RELEASE)]


@each_error
@pytest.mark.parametrize("at", BEFORE_RELEASE)
def test_a_switchover_that_fails_for_any_reason_before_the_release_serves_again(
    at: Do, error: Exception, node: FakeNode
) -> None:
    promote(node)
    table = dict(Effects(node.machine, to="n2").table())

    def fail() -> None:
        raise error

    table[at] = fail
    with pytest.raises(StepFailed, match=r"stopped at the step (.|\n)*\nThis node serves again"):
        execute(plans.demotion(NAMES, "n2"), table, lambda _: None)
    is_primary(node)


@each_error
def test_an_undo_that_fails_for_any_reason_says_where(error: Exception, node: FakeNode) -> None:
    promote(node)
    table = dict(Effects(node.machine, to="n2").table())

    def fail() -> None:
        raise error

    table[Do.FINAL_COPY] = table[Do.EXPORT] = fail
    with pytest.raises(StepFailed, match="Serving again failed at export: "):
        execute(plans.demotion(NAMES, "n2"), table, lambda _: None)
    run(plans.go_on(NAMES), Effects(node.machine))
    is_primary(node)


def test_a_cut_is_no_failure(node: FakeNode) -> None:
    node.world.cut_after = 3
    with pytest.raises(Cut):
        promote(node)


# The agent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


def real_agent(node: FakeNode) -> Agent:
    machine = node.machine
    return Agent(machine, Watcher(machine.config, machine.consul), LocalView(machine))


@each_error
def test_a_plan_of_the_agent_that_fails_for_any_reason_is_trouble_and_tried_again(
    error: Exception, node: FakeNode, clock: StoppedClock
) -> None:
    agent = agent_with(node.config.paths.run.parent / "other", decision_to_promote())
    agent.broken = error
    agent.step()
    assert agent.trouble == said(error)
    assert agent.retry_at > clock.now
    mended = agent_with(node.config.paths.run.parent / "another", decision_to_promote())
    mended.trouble, mended.failures = agent.trouble, agent.failures
    mended.step()
    assert len(mended.ran) == 1
    assert [mended.trouble, mended.failures] == [None, 0]


@each_error
def test_a_look_that_fails_for_any_reason_is_trouble_and_the_agent_looks_again(
    error: Exception, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = real_agent(node)
    troubles: list[str | None] = []

    def look(*_: Any, **__: Any) -> None:
        troubles.append(agent.trouble)
        if len(troubles) == 3:
            agent.stopping.set()
        raise error

    monkeypatch.setattr(agent.local, "look", look)
    monkeypatch.setattr("standfast.agent.main.TICK_S", 0.0)
    serve(agent)
    assert troubles == [None, said(error), said(error)]


@each_error
def test_upkeep_that_fails_for_any_reason_is_told_and_comes_again(
    error: Exception, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = real_agent(node)
    agent.look()
    node.world.break_at(0, error)
    node.fence.in_place = False
    agent.stopping.set()
    keep_up(agent)
    assert agent.unkept == said(error)
    keep_up(agent)
    assert agent.unkept is None


@each_error
def test_a_command_that_fails_for_any_reason_is_answered(error: Exception, tmp_path: Path) -> None:
    agent = agent_with(tmp_path, decision_to_promote())
    agent.broken = error
    [*_, last] = say(agent, "promote")
    assert (last["error"], last["exit_code"], last["reason"]) == (said(error), 4, None)


@each_error
def test_what_keeps_an_event_from_being_told_changes_nothing(
    error: Exception, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(announcer, "tell", broken)
    monkeypatch.setattr(Effects, "facts", broken)
    agent = real_agent(node)
    agent.run_plan(plans.promotion(NAMES, "a snapshot"), promotion(node))
    is_primary(node)


@each_error
def test_who_can_not_look_at_the_server_does_not_vouch_for_it(
    error: Exception, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(node.fence, "state", broken)
    assert registration.ailment(node.machine) == said(error)


# The lease's process


@each_error
def test_a_heartbeat_that_fails_for_any_reason_is_followed_by_the_next_one(
    error: Exception, node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys()
    keeper = started(node.config, keys, Fence(World()))
    before = keeper.held_lease
    with monkeypatch.context() as patch:
        patch.setattr(keys, "heartbeat", lambda *_: (_ for _ in ()).throw(error))
        keeper.beat()
    assert keeper.trouble == said(error)
    # It may have been sent: its number is never used for an attempt with a later stamp.
    assert keeper.held_lease.seq == before.seq + SKIPPED
    assert keeper.held_lease.valid_until == before.valid_until
    keeper.beat()
    assert keeper.held_lease.remaining_s(clock.now) > RETRY_S


@each_error
def test_a_status_that_can_not_be_written_ends_no_lease(
    error: Exception,
    node: FakeNode,
    clock: StoppedClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeper = started(node.config, Keys(), Fence(World()))

    def save() -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(type(keeper), "save", lambda _: save())
        with caplog.at_level(logging.ERROR, logger="standfast.lease.process"):
            turn = Turn(keeper)
            for _ in range(3):
                turn.do(save)
    told = [record for record in caplog.records if record.name == "standfast.lease.process"]
    assert [logged.getMessage() for logged in told] == [f"save: {said(error)}"]
    assert not keeper.over
    # But nothing is given up that the guard could still take for valid.
    turn.do(keeper.beat)
    keeper.save()
    with monkeypatch.context() as patch:
        patch.setattr(type(keeper), "save", lambda _: save())
        with monkeypatch.context() as more:
            more.setattr(keeper_module, "forget_status", lambda _: save())
            assert answer(keeper, {"cmd": "release"})["ok"] is False
        assert LeaseStatus.load(node.config.run_dir) is not None
        assert answer(keeper, {"cmd": "release"}) == {"ok": True, "epoch": 4, "over": True}
    assert LeaseStatus.load(node.config.run_dir) is None


@each_error
def test_the_end_of_a_lease_is_seen_to_whatever_the_fence_raises(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    fence, nfs = FakeFence(world), FakeNfs(world, running=True)

    def broken() -> None:
        raise error

    monkeypatch.setattr(fence, "state", broken)
    assert cutoff.confirm_shut(fence, nfs, by=0.0) is cutoff.Found.NO_SERVER
    assert not nfs.running


@each_error
def test_the_agent_looks_at_the_fence_again_whatever_it_raises(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = fake_node(tmp_path)
    OwnEpoch(4, Stage.READY, "fsid", None, in_place=True).save(node.config.state_dir)
    watch = FenceWatch(node.machine)
    node.fence.in_place = False

    def broken(_deadline: Deadline | None = None) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(node.fence, "ensure_closed", broken)
        watch.look()
    assert watch.trouble == str(ours(error)) and not node.fence.state().in_place
    watch.look()
    assert not watch.trouble and node.fence.state().in_place


# Words


def test_what_the_system_refuses_is_said_with_its_path_and_code() -> None:
    assert said(ERRORS[0]) == (
        "/var/lib/standfast/x/own-epoch.json: No space left on device (ENOSPC)"
    )
    moved = OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b")
    assert said(moved) == "/a -> /b: Invalid cross-device link (EXDEV)"
    assert said(OSError(errno.EIO, "Input/output error")) == "Input/output error (EIO)"
    assert said(RuntimeError("a bug")) == "RuntimeError: a bug"
    assert said(AssertionError()) == "AssertionError"
    assert said(Refused(Reason.BUSY, "at work")) == "at work"


def test_only_a_bug_has_its_traceback_in_the_log_and_only_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_bugs", set())
    ours(StandfastError("known"))
    full = ours(ERRORS[0])
    assert caplog.records == []
    assert isinstance(full, Unexpected) and is_lack_of(full, errno.ENOSPC)
    around = StandfastError("one that is its own cause")
    around.__cause__ = around
    assert not is_lack_of(around, errno.ENOSPC), "and there is an end to it"
    assert reason_of(full) is Reason.NO_SPACE
    for words in ("No space left on device", "Disk quota exceeded"):
        told = CommandFailed("x", returncode=1, stderr=f"ERROR: cannot snapshot '/x': {words}\n")
        assert reason_of(told) is Reason.NO_SPACE, "a program's, as of btrfs' metadata"
    bug = ours(ERRORS[-1])
    ours(ERRORS[-1])
    [record] = caplog.records
    assert record.exc_info is not None
    assert reason_of(bug) is Reason.UNEXPECTED


def test_a_plan_of_nobody_fails_with_the_name_of_the_step() -> None:
    plan = Plan("some", (plans.Step(Do.EXPORT, "export"),))
    with pytest.raises(StepFailed, match="stopped at the step export: KeyError"):
        execute(plan, {}, lambda _: None)
