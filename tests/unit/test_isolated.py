"""A primary that is cut off: its tree is read-only when a successor may be serving, and writable
again when it has the lease of its epoch, before anybody is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from standfast.agent.local_view import LocalView
from standfast.agent.loop import Agent, Seen
from standfast.agent.upkeep import keep_up
from standfast.agent.watcher import Watcher
from standfast.consul.blindness import Blind
from standfast.consul.records import LeaderState
from standfast.errors import Refused, StepFailed, TimedOut
from standfast.lease.files import LeaseStatus
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import LiveTree
from standfast.reasons import Reason
from standfast.role import isolated
from standfast.role import plan as plans
from standfast.role import steps as effects_module
from standfast.role.decision import Action, Decision, Moment
from standfast.role.execute import execute
from standfast.role.observation import Local
from standfast.role.plan import Names
from standfast.role.steps import Effects
from standfast.system.clock import Deadline, monotonic, utc_now
from standfast.system.locks import exclusive
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeNode, fake_node

OWN = OwnEpoch(
    4, Stage.READY, "fsid-4", None, in_place=True, live_uuid="tree-4", file_system="disk-1"
)
BLIND = Blind(Reason.CONSUL_TIMEOUT, "Consul does not answer")
NAMES = Names("/persist/services", "/data/services", "data-services")
LENGTH_S = 8.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: StoppedClock) -> FakeNode:
    """It serves epoch 4; its last heartbeat committed just now."""
    made = fake_node(tmp_path)
    OWN.save(made.config.state_dir)
    made.store.tree = LiveTree(made.config.paths.live, "tree-4", writable=True)
    made.nfs.running, made.nfs.fsid = True, "fsid-4"
    made.keeper.epoch = 4
    leases(made)
    for module in (isolated, effects_module):
        monkeypatch.setattr(module, "ask", made.keeper.ask)
    return made


def leases(node: FakeNode, **changed: object) -> None:
    until = monotonic() + LENGTH_S
    lease = LeaseStatus(4, "boot-1", 1, LeaderState.SERVING, True, until, until, 1, monotonic())
    structs.replace(lease, **changed).save(node.config.run_dir)
    node.fence.open_until = until


@pytest.fixture
def lease_process(node: FakeNode, clock: StoppedClock) -> object:
    """It runs: nobody else gets its lock."""
    held = exclusive(node.config.run_dir / "lease.lock", "a second one")
    held.__enter__()
    return held


def agent_of(node: FakeNode) -> Agent:
    agent = Agent(node.machine, Watcher(node.config, node.consul), LocalView(node.machine))
    look(agent)
    return agent


def look(agent: Agent) -> None:
    own = OwnEpoch.load(agent.config.state_dir)
    local = Local("n1", "boot-1", 4, own=own, lease=LeaseStatus.load(agent.config.run_dir))
    decision = Decision(Action.WAIT, BLIND.reason, BLIND.sentence)
    agent.seen = Seen(BLIND, local, decision, Moment(monotonic(), utc_now()))
    agent.moved_at = monotonic()


def upkeep(agent: Agent) -> None:
    look(agent)
    keep_up(agent)


def writable(node: FakeNode) -> bool:
    assert node.store.tree is not None
    return node.store.tree.writable


@pytest.mark.usefixtures("lease_process")
def test_it_is_read_only_when_a_successor_has_had_its_time_and_not_before(
    node: FakeNode, clock: StoppedClock
) -> None:
    agent = agent_of(node)
    clock.now += LENGTH_S + node.config.lease.wait - 0.1
    upkeep(agent)
    assert writable(node)
    clock.now += 0.2
    upkeep(agent)
    assert not writable(node)
    assert node.world.log.index("lease:drain") < node.world.log.index("writable=False")


@pytest.mark.usefixtures("lease_process")
def test_a_primary_whose_heartbeats_commit_stays_writable(
    node: FakeNode, clock: StoppedClock
) -> None:
    agent = agent_of(node)
    for _ in range(10):
        clock.now += LENGTH_S
        leases(node)
        upkeep(agent)
    assert writable(node)


@pytest.mark.usefixtures("lease_process")
@pytest.mark.parametrize("stage", [Stage.DRAINING, Stage.RELEASED])
def test_what_a_plan_was_about_to_put_away_and_left_is_read_only_then(
    node: FakeNode, clock: StoppedClock, stage: Stage
) -> None:
    OWN.at(stage).save(node.config.state_dir)
    leases(node, serving=False, state=LeaderState.DRAINING)
    agent = agent_of(node)
    clock.now += LENGTH_S + node.config.lease.wait + 0.1
    upkeep(agent)
    assert not writable(node)
    assert "lease:drain" not in node.world.log, "nobody opens it by itself"


@pytest.mark.usefixtures("lease_process")
@pytest.mark.parametrize(
    "stage", sorted(set(Stage) - {Stage.READY, Stage.DRAINING, Stage.RELEASED})
)
def test_what_a_plan_has_begun_is_left_to_it(
    node: FakeNode, clock: StoppedClock, stage: Stage
) -> None:
    OWN.at(stage).save(node.config.state_dir)
    agent = agent_of(node)
    clock.now += 1000
    upkeep(agent)
    assert writable(node)


@pytest.mark.usefixtures("lease_process")
def test_a_plan_at_work_goes_first_and_what_it_changed_is_seen(
    node: FakeNode, clock: StoppedClock
) -> None:
    agent = agent_of(node)
    clock.now += 1000
    with exclusive(node.config.run_dir / "plan.lock", "a plan"):
        upkeep(agent)
        assert writable(node)
    look(agent)
    OWN.at(Stage.DRAINING).save(node.config.state_dir)  # since that look
    keep_up(agent)
    assert writable(node)


@pytest.mark.usefixtures("lease_process")
def test_where_the_lease_process_keeps_the_port_the_tree_stays_writable_and_it_is_tried_again(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs. Clients that it serves when it wakes must not meet a read-only file system."""

    def hangs(*_: object) -> Mapping[str, object]:
        raise TimedOut("the lease process does not answer")

    agent = agent_of(node)
    clock.now += 1000
    with monkeypatch.context() as patch:
        patch.setattr(isolated, "ask", hangs)
        upkeep(agent)
    assert writable(node)
    upkeep(agent)
    assert not writable(node)


def test_without_a_lease_process_the_next_one_does_not_open_the_port_by_itself(
    node: FakeNode, clock: StoppedClock
) -> None:
    agent = agent_of(node)
    clock.now += 1000
    upkeep(agent)
    assert not writable(node)
    lease = LeaseStatus.load(node.config.run_dir)
    assert lease is not None and not lease.serving


def test_after_a_reboot_without_consul_it_is_read_only_too(
    node: FakeNode, clock: StoppedClock
) -> None:
    (node.config.run_dir / "lease.json").unlink()
    agent = agent_of(node)
    clock.now += node.config.lease.wait - 1
    upkeep(agent)
    assert writable(node)
    clock.now += 2
    upkeep(agent)
    assert not writable(node)


@pytest.mark.usefixtures("lease_process")
def test_a_tree_that_can_not_be_made_read_only_is_told(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise Refused(Reason.VOLUME_MISSING, "it exists but is no subvolume")

    agent = agent_of(node)
    clock.now += 1000
    monkeypatch.setattr(node.store, "live", refused)
    upkeep(agent)
    assert agent.unkept is not None and "no subvolume" in agent.unkept


@pytest.mark.usefixtures("lease_process")
def test_without_standbys_nobody_follows_and_it_stays_writable(
    node: FakeNode, clock: StoppedClock
) -> None:
    alone = structs.replace(node.config, nodes={"n1": node.config.me})
    agent = agent_of(node)
    agent.machine = replace(node.machine, config=alone)
    clock.now += 1000
    upkeep(agent)
    assert writable(node)


@pytest.mark.usefixtures("lease_process")
def test_another_tree_in_its_place_is_left_alone(node: FakeNode, clock: StoppedClock) -> None:
    node.store.tree = LiveTree(node.config.paths.live, "put there by hand", writable=True)
    agent = agent_of(node)
    clock.now += 1000
    upkeep(agent)
    assert writable(node)


@pytest.mark.usefixtures("lease_process")
def test_it_is_writable_again_with_the_lease_of_its_epoch_and_before_it_is_served(
    node: FakeNode, clock: StoppedClock
) -> None:
    agent = agent_of(node)
    clock.now += 1000
    upkeep(agent)
    node.world.log.clear()
    leases(node, serving=False, state=LeaderState.DRAINING)
    node.fence.open_until = 0.0
    execute(plans.go_on(NAMES), Effects(node.machine).table(), lambda _: None)
    assert writable(node)
    assert node.world.log.index("writable=True") < node.world.log.index("lease:serve")
    upkeep(agent)
    assert writable(node)


@pytest.mark.usefixtures("lease_process")
def test_without_the_lease_of_its_epoch_it_stays_read_only(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another boot's lease is none, and one that is over is none."""
    agent = agent_of(node)
    clock.now += 1000
    upkeep(agent)
    monkeypatch.setattr(node.keeper, "start", lambda unit, deadline: None)
    for lease in ({"valid_until": monotonic() - 1}, {"instance": "boot-0"}):
        leases(node, serving=False, **lease)
        with pytest.raises((Refused, StepFailed)):
            execute(
                plans.go_on(NAMES),
                Effects(node.machine, deadline=Deadline.after(1000)).table(),
                lambda _: None,
            )
        assert not writable(node)
