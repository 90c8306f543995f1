"""Upkeep runs beside the plans, on what was seen before them: it never undoes what they did."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.agent import loop as agent_module
from standfast.agent.document import document
from standfast.agent.inspector import EVERY_S, Inspection
from standfast.agent.local_view import LocalView
from standfast.agent.loop import Agent, Seen
from standfast.agent.main import go_on
from standfast.agent.upkeep import MEND_EVERY_S, SCHEDULE_EVERY_S, STUCK_S, keep_up
from standfast.agent.watcher import Watcher
from standfast.consul.blindness import Blind
from standfast.consul.records import LeaderState, Pause
from standfast.consul.values import Registration
from standfast.doctor.service_checks import examine
from standfast.errors import ConsulDenied, StandfastError
from standfast.lease.files import LeaseStatus, Vouch
from standfast.lease.protocol import NEVER
from standfast.lease.surrender import TOLD_EVERY_S
from standfast.node.obstacle import Obstacle, Weight
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.role import plan as plans
from standfast.role import registration
from standfast.role.decision import Action, Decision, Moment
from standfast.role.observation import Local
from standfast.role.plan import names_of
from standfast.role.steps import Effects
from standfast.status.text import render
from standfast.system.clock import Deadline, monotonic, utc_now
from standfast.system.locks import exclusive
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeNode, FakeSchedule, fake_node
from tests.unit.agents import view

OWN = OwnEpoch(4, Stage.READY, "fsid", None, in_place=True)
NOTHING = Decision(Action.NOTHING, Reason.SERVING, "n1 serves data-services with epoch 4")
VIEW = Blind(Reason.CONSUL_TIMEOUT, "not looked at here")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return fake_node(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


def agent_that_saw(
    node: FakeNode, own: OwnEpoch | None, decision: Decision = NOTHING, **lease: Any
) -> Agent:
    """One that looked just now; `lease`: what differs from a lease that serves this epoch."""
    machine = node.machine
    until = monotonic() + 60
    good = LeaseStatus(4, "boot-1", 1, LeaderState.SERVING, True, until, until, 1, monotonic())
    if own:
        structs.replace(good, **lease).save(node.config.run_dir)
    local = Local("n1", "boot-1", 4, own=own, lease=structs.replace(good, **lease) if own else None)
    agent = Agent(machine, Watcher(machine.config, machine.consul), LocalView(machine))
    agent.seen = Seen(VIEW, local, decision, Moment(monotonic(), utc_now()))
    return agent


def register(node: FakeNode) -> None:
    registration.register(node.machine, 4)
    node.world.log.clear()


def test_a_standby_loses_a_leftover_registration(node: FakeNode) -> None:
    register(node)
    keep_up(agent_that_saw(node, None))
    assert node.consul.local_services() == {}


def test_a_sickness_is_over_with_its_epoch(node: FakeNode) -> None:
    """A firewall that was flushed up to the switchover, say."""
    agent = agent_that_saw(node, None)
    agent.sick = "the fence's rules are not in place"
    keep_up(agent)
    assert agent.sick is None


def test_a_promotion_that_ended_since_the_last_look_stays_registered_and_open(
    node: FakeNode,
) -> None:
    register(node)
    node.fence.in_place = False  # would be put there shut
    OWN.save(node.config.state_dir)
    keep_up(agent_that_saw(node, None))
    assert node.world.log == []
    assert len(node.consul.local_services()) == 1


def test_a_plan_at_work_goes_first(node: FakeNode) -> None:
    register(node)
    agent = agent_that_saw(node, None)
    with exclusive(node.config.run_dir / "plan.lock", "a plan"):
        keep_up(agent)
    assert len(node.consul.local_services()) == 1
    keep_up(agent)
    assert node.consul.local_services() == {}


def test_a_server_whose_registration_vanished_gets_it_back(node: FakeNode) -> None:
    OWN.save(node.config.state_dir)
    keep_up(agent_that_saw(node, OWN))
    assert len(node.consul.local_services()) == 1


@pytest.mark.parametrize(
    "now", [None, structs.replace(OWN, stage=Stage.DRAINING), structs.replace(OWN, epoch=6)]
)
def test_a_demotion_that_ended_since_the_last_look_is_not_registered_again(
    node: FakeNode, now: OwnEpoch | None
) -> None:
    if now is not None:
        now.save(node.config.state_dir)
    keep_up(agent_that_saw(node, OWN))
    assert node.consul.local_services() == {}


def test_an_export_that_somebody_took_away_comes_back_and_nothing_else(node: FakeNode) -> None:
    OWN.save(node.config.state_dir)
    agent = agent_that_saw(node, OWN)
    node.nfs.running = True
    keep_up(agent)
    assert node.nfs.fsid == OWN.fsid
    node.world.log.clear()
    keep_up(agent)
    assert "export" not in node.world.log


def test_a_claim_to_the_port_that_was_lost_is_made_again(node: FakeNode) -> None:
    """Without one no heartbeat opens the port."""
    OWN.save(node.config.state_dir)
    agent = agent_that_saw(node, OWN)
    node.nfs.running = True
    keep_up(agent)
    node.fence.claimed = False
    keep_up(agent)
    assert node.fence.claimed
    assert node.nfs.fsid == OWN.fsid


def test_a_standby_takes_a_leftover_export_away(node: FakeNode) -> None:
    """Of an epoch that nobody knows of any more: the guard would let no other volume be served."""
    node.nfs.fsid = "of before a power cut"
    keep_up(agent_that_saw(node, None))
    assert node.nfs.fsid is None


def test_what_a_surrender_unexported_since_the_last_look_stays_so(node: FakeNode) -> None:
    """The lease process gives the role up without the agent, whose look may hang with the disk."""
    OWN.save(node.config.state_dir)
    agent = agent_that_saw(node, OWN)
    node.nfs.running = True  # for another volume
    lease = LeaseStatus.load(node.config.run_dir)
    assert lease is not None
    structs.replace(lease, serving=False, valid_until=NEVER).save(node.config.run_dir)
    keep_up(agent)
    assert node.nfs.fsid is None
    assert "the lease of epoch 4 ended, as it was given up" in str(agent.unkept)


@pytest.mark.parametrize("now", [None, structs.replace(OWN, stage=Stage.DRAINING)])
def test_what_a_demotion_unexported_stays_so(node: FakeNode, now: OwnEpoch | None) -> None:
    if now is not None:
        now.save(node.config.state_dir)
    node.nfs.running = True
    keep_up(agent_that_saw(node, OWN))
    assert node.nfs.fsid is None


# Vouching for the server


def vouches(agent: Agent, node: FakeNode) -> bool:
    """Whether upkeep feeds the check in Consul, whatever it says."""
    OWN.save(node.config.state_dir)
    node.world.log.clear()
    keep_up(agent)
    return "pass-check" in node.world.log or "fail-check" in node.world.log


def test_a_stuck_agent_does_not_vouch_for_its_server(node: FakeNode, clock: StoppedClock) -> None:
    agent = agent_that_saw(node, OWN)
    clock.now += STUCK_S - 1
    assert vouches(agent, node)
    clock.now += 2
    assert not vouches(agent, node), "the check in Consul has to expire"
    agent.busy = "switchover 2/9: replicate to n2"
    assert vouches(agent, node), "a long copy is no look that hangs"


def serves(node: FakeNode) -> None:
    node.nfs.running, node.nfs.fsid = True, OWN.fsid
    node.fence.open_until = monotonic() + 1000
    OWN.save(node.config.state_dir)


def test_looks_that_fail_do_not_make_a_server_sick_that_is_well(
    node: FakeNode, clock: StoppedClock
) -> None:
    """The role would be surrendered, with a loss, for a file that the server doesn't need."""
    serves(node)
    agent = agent_that_saw(node, OWN)
    agent.stopping.set()  # so that a failed look isn't followed by a pause
    (node.config.state_dir / "epoch").write_text("no epoch")
    with exclusive(node.config.run_dir / "lease.lock", "the lease process"):
        for _ in range(3):
            clock.now += STUCK_S - 5
            go_on(agent)
            node.world.log.clear()
            keep_up(agent)
            told = Vouch.load(node.config.run_dir)
            assert told == Vouch(clock.now, None)
            assert "pass-check" in node.world.log
    assert agent.trouble is not None and "does not hold an epoch" in agent.trouble


def turn(node: FakeNode, agent: Agent) -> Vouch | None:
    """One of upkeep beside a lease process; returns what that one is told."""
    node.world.log.clear()
    with exclusive(node.config.run_dir / "lease.lock", "the lease process"):
        keep_up(agent)
    return Vouch.load(node.config.run_dir)


def test_a_daemon_that_the_server_misses_is_started_before_anybody_is_told(
    node: FakeNode, clock: StoppedClock
) -> None:
    serves(node)
    agent = agent_that_saw(node, OWN)
    turn(node, agent)
    node.nfs.daemon_is_dead = True
    assert turn(node, agent) == Vouch(clock.now, None)
    assert "mend" in node.world.log and "pass-check" in node.world.log
    assert agent.sick is None


@pytest.mark.parametrize("dies", [True, False])
def test_a_daemon_that_does_not_start_or_dies_again_is_told_and_tried_again(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """The lease process, which surrenders by it, Consul and `status` say the same."""
    serves(node)
    agent = agent_that_saw(node, OWN)
    tried: list[float] = []

    def mend(_: object) -> str | None:
        tried.append(clock.now)
        if not dies:
            raise StandfastError("it doesn't start")
        return "its daemon had ended: started again"

    monkeypatch.setattr(node.nfs, "mend", mend)
    node.nfs.daemon_is_dead = True
    why = "its daemon is dead" if dies else "its daemon is dead; it doesn't start"
    for _ in range(2):
        clock.now += 5
        assert turn(node, agent) == Vouch(clock.now, why)
        assert "fail-check" in node.world.log
        assert agent.sick == why
    assert len(tried) == 2
    node.nfs.daemon_is_dead = False
    clock.now += 5
    assert turn(node, agent) == Vouch(clock.now, None)


def test_one_late_answer_is_no_sickness(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    serves(node)
    agent = agent_that_saw(node, OWN)
    late = iter([True])
    check = node.nfs.check

    def slow_once(deadline: Deadline) -> str | None:
        return "no answer in time" if next(late, False) else check(deadline)

    monkeypatch.setattr(node.nfs, "check", slow_once)
    assert turn(node, agent) == Vouch(clock.now, None)
    assert "fail-check" not in node.world.log


def test_what_is_not_missed_at_once_is_looked_after_now_and_then(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    serves(node)
    agent = agent_that_saw(node, OWN)
    looked: list[float] = []
    monkeypatch.setattr(node.nfs, "mend", lambda _: looked.append(clock.now))
    for _ in range(7):
        turn(node, agent)
        clock.now += 5
    assert [at - looked[0] for at in looked] == [0, MEND_EVERY_S, 2 * MEND_EVERY_S]


@pytest.mark.parametrize("why", ["a plan", "a role that ended", "another decision", "no lease"])
def test_no_daemon_is_started_in_a_plans_way_or_where_nobody_serves(
    node: FakeNode, why: str
) -> None:
    serves(node)
    agent = agent_that_saw(node, OWN)
    node.nfs.daemon_is_dead = True
    with contextlib.ExitStack() as held:
        if why == "a plan":
            held.enter_context(exclusive(node.config.run_dir / "plan.lock", "a plan"))
        elif why == "a role that ended":
            (node.config.state_dir / "own-epoch.json").unlink()
        elif why == "another decision":
            assert agent.seen is not None
            decision = Decision(Action.PROMOTE, Reason.OPERATOR, "n1 takes over")
            agent.seen = replace(agent.seen, decision=decision)
        else:
            assert agent.seen is not None
            agent.seen = replace(agent.seen, local=replace(agent.seen.local, lease=None))
        turn(node, agent)
        assert "mend" not in node.world.log


def test_the_end_of_a_long_plan_is_no_look_that_hangs(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look comes a moment later."""

    def long_copy(*_: Any) -> None:
        clock.now += 10 * STUCK_S

    serves(node)
    agent = agent_that_saw(node, OWN)
    monkeypatch.setattr(agent_module, "execute", long_copy)
    agent.run_plan(plans.demotion(names_of(node.config), "n2"), Effects(node.machine))
    assert vouches(agent, node)


@pytest.mark.parametrize(
    ("decision", "lease"),
    [
        (Decision(Action.STEP_DOWN, Reason.LEASE_LOST, "epoch 4 is over"), {}),
        (NOTHING, {"serving": False}),
        (NOTHING, {"epoch": 3}),
        (Decision(Action.WAIT, Reason.CONSUL_TIMEOUT, "Consul hangs"), {}),
    ],
    ids=["another one's lease", "a lease that drains", "an older lease", "a blind look"],
)
def test_nobody_vouches_for_a_server_with(
    node: FakeNode, decision: Decision, lease: dict[str, Any]
) -> None:
    assert vouches(agent_that_saw(node, OWN), node)
    assert not vouches(agent_that_saw(node, OWN, decision, **lease), node)


# A standby


def with_timers(agent: Agent) -> FakeSchedule:
    timers = FakeSchedule()
    agent.machine = replace(agent.machine, schedule=timers)
    return timers


def test_a_standby_stops_its_replication_once(node: FakeNode) -> None:
    agent = agent_that_saw(node, None)
    timers = with_timers(agent)
    keep_up(agent)
    keep_up(agent)
    assert timers.calls == ["stop"]


def test_a_primary_sees_to_its_replication_now_and_then(
    node: FakeNode, clock: StoppedClock
) -> None:
    OWN.save(node.config.state_dir)
    register(node)
    agent = agent_that_saw(node, OWN)
    timers = with_timers(agent)
    for _ in range(3):
        keep_up(agent)
    assert timers.calls == ["start"]
    clock.now += SCHEDULE_EVERY_S + 1
    agent.moved_at = clock.now
    keep_up(agent)
    assert timers.calls == ["start", "start"]


@pytest.mark.parametrize("failing", ["the word", "the registration", "the timers"])
def test_a_word_that_consul_refuses_and_the_like_keep_nothing_else_from_its_turn(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def denied(*_: Any, **__: Any) -> Any:
        raise ConsulDenied("403: the policy is too small")

    agent = agent_that_saw(node, None)
    seen = agent.seen
    assert seen is not None
    agent.seen = replace(seen, view=view("n1"), at=Moment(monotonic(), utc_now()))
    agent.inspector.last = Inspection((), monotonic())
    timers = with_timers(agent)
    place = {
        "the word": (node.consul, "txn"),
        "the registration": (node.consul, "local_services"),
        "the timers": (timers, "stop"),
    }[failing]
    monkeypatch.setattr(*place, denied)
    register(node)
    node.fence.in_place = False
    keep_up(agent)
    assert "shut" in node.world.log
    assert ("deregister" in node.world.log) == (failing != "the registration")
    assert (timers.calls == ["stop"]) == (failing != "the timers")
    assert (agent.told is not None) == (failing != "the word")
    assert agent.unkept is not None and "403" in agent.unkept


def test_a_standby_whose_looks_fail_says_nothing_of_itself(
    node: FakeNode, clock: StoppedClock
) -> None:
    """What it saw last may be over; a holder that can't serve would surrender to it."""
    agent = agent_that_saw(node, None)
    assert agent.seen is not None
    agent.seen = replace(agent.seen, view=view("n1"))
    agent.inspector.last = Inspection((), clock.now)
    keep_up(agent)
    first = agent.told_at
    for _ in range(10):
        clock.now += TOLD_EVERY_S + 1
        agent.moved_at = clock.now
        keep_up(agent)
    assert (agent.told_at, agent.unkept) == (first, None)
    agent.seen = replace(agent.seen, at=Moment(clock.now, utc_now()))
    keep_up(agent)
    assert agent.told_at == clock.now


def test_an_old_inspection_vouches_for_nothing_and_is_told(
    node: FakeNode, clock: StoppedClock
) -> None:
    """A look that hangs, or fails each time, while the rest goes on."""
    agent = agent_that_saw(node, None)
    assert agent.seen is not None
    leftover = Obstacle("service", "a leftover", "take it away", Weight.TOLD)
    agent.inspector.last = Inspection((leftover,), clock.now)

    def word_after(seconds: float) -> tuple[str, ...]:
        clock.now += seconds
        assert agent.seen is not None
        now = Moment(clock.now, utc_now())
        agent.moved_at, agent.seen = clock.now, replace(agent.seen, view=view("n1"), at=now)
        keep_up(agent)
        assert agent.told is not None and agent.told.at == now.utc
        return agent.told.obstacles

    assert word_after(3 * EVERY_S) == ("service: a leftover",)
    # The weightier one first, as the first is what is shown of several.
    late, other = word_after(TOLD_EVERY_S + 1)
    assert other == "service: a leftover"
    assert late.startswith("inspection: the last look at what is in the way is 196 s old")
    known = agent.inspector.known
    assert known is not None and [each.weight for each in known] == [Weight.TOLD, Weight.REFUSES]
    agent.inspector.last = Inspection((), clock.now)
    assert word_after(1) == ()


def test_a_standby_whose_rules_were_flushed_puts_them_back_shut(node: FakeNode) -> None:
    agent = agent_that_saw(node, None)
    keep_up(agent)
    assert "shut" not in node.world.log
    node.fence.in_place = False
    keep_up(agent)
    assert "shut" in node.world.log


def test_rules_that_can_not_be_put_up_are_told_as_in_the_way_until_they_are_there(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, clock: StoppedClock
) -> None:
    """And looked at anew then: a first look after boot may come before upkeep's first turn."""

    def fail(deadline: Deadline | None = None) -> None:
        raise StandfastError("ipset: Kernel error received")

    def found() -> dict[str, str]:
        agent.inspector.turn()
        known = agent.inspector.known or ()
        return {each.check: each.weight for each in known if each.check == "fence"}

    agent = agent_that_saw(node, None)
    node.fence.in_place = False
    assert found() == {"fence": Weight.REFUSES}
    with monkeypatch.context() as broken:
        broken.setattr(node.fence, "ensure_closed", fail)
        keep_up(agent)
        assert agent.unkept is not None and "Kernel error" in agent.unkept
        clock.now += EVERY_S
        assert found() == {"fence": Weight.BARS}
    clock.now += 1
    agent.moved_at = clock.now
    keep_up(agent)
    clock.now += 1
    assert found() == {} and agent.unkept is None


# What hides this node in Consul


def test_a_primary_in_maintenance_is_told_as_sick_and_keeps_its_role(node: FakeNode) -> None:
    """Who has mounted the volume is served: the lease process hears of no ailment."""
    serves(node)
    agent = agent_that_saw(node, OWN)
    keep_up(agent)
    assert agent.hidden is None
    node.consul.maintain("n1")
    with exclusive(node.config.run_dir / "lease.lock", "the lease process"):
        keep_up(agent)
    assert "'Node Maintenance Mode' of n1 is critical" in str(agent.hidden)
    vouch = Vouch.load(node.config.run_dir)
    assert vouch is not None and (vouch.why, agent.sick) == (None, None)
    assert len(node.consul.local_services()) == 1
    status = document(agent)
    assert any("SICK:" in line and "Maintenance" in line for line in render(status).splitlines())
    [trouble] = [each for each in examine(status) if each.check == "trouble"]
    assert not trouble.ok and "Maintenance" in trouble.evidence
    node.consul.maintain("n1", "passing")
    keep_up(agent)
    assert agent.hidden is None


def test_what_hides_nothing_of_ours_is_no_finding(node: FakeNode) -> None:
    """Another service's check, one that warns, and our own check, of which `sick` tells."""
    serves(node)
    node.consul.maintain("n1", "warning")
    others = Registration("web", "web", "10.0.0.1", 80, {}, 60, "answers")
    node.consul.register(others)
    agent = agent_that_saw(node, OWN)
    keep_up(agent)
    node.fence.open_until = 0.0
    keep_up(agent)
    assert agent.sick is not None and agent.hidden is None


def test_a_standby_in_maintenance_is_not_ready(node: FakeNode) -> None:
    agent = agent_that_saw(node, None)
    assert agent.seen is not None
    agent.seen = replace(agent.seen, view=view("n1"))
    agent.inspector.last = Inspection((), monotonic())
    node.consul.maintain("n1")
    keep_up(agent)
    assert agent.hidden is not None and agent.told is not None
    assert not agent.told.ready


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("serves", [True, False])
def test_only_a_node_that_serves_does_it_and_only_where_that_is_wanted(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, wanted: bool, serves: bool
) -> None:
    transfers: list[None] = []
    monkeypatch.setattr(node.consul, "transfer_leadership", lambda: transfers.append(None))
    OWN.save(node.config.state_dir)
    agent = agent_that_saw(node, OWN if serves else None)
    access = structs.replace(node.config.consul, transfer_leadership=wanted)
    config = structs.replace(node.config, consul=access)
    agent.machine = replace(agent.machine, config=config)
    keep_up(agent)
    assert len(transfers) == (1 if wanted and serves else 0)
    assert agent.unkept is None


@pytest.mark.parametrize("own", [None, OWN])
def test_a_pause_for_a_time_ends_on_a_standby_and_on_a_primary(
    node: FakeNode, clock: StoppedClock, own: OwnEpoch | None
) -> None:
    pause = Pause("ann", "disks", 1e9, 60.0)
    key = node.config.key("pause")
    node.consul.put(key, pause.dump())
    agent = agent_that_saw(node, own)
    for seconds, there in ((0.0, True), (59.0, True), (2.0, False)):
        clock.now += seconds
        assert agent.seen is not None
        seen = replace(view("n2"), pause=pause)
        agent.seen = replace(agent.seen, view=seen, at=Moment(monotonic(), utc_now()))
        agent.moved_at = monotonic()
        keep_up(agent)
        assert (node.consul.get(key) is not None) is there
    assert agent.woken.is_set()
