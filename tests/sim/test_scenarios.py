"""The faults to survive, one test each. After every one: somebody serves again, or says why not,
and no write is gone from every disk. The other invariants are checked all along (see `world`)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.config.model import LeaseTiming
from standfast.consul.records import HistoryEntry, LeaderState
from standfast.consul.values import Op
from standfast.errors import StandfastError
from standfast.lease.process import RETRY_S
from standfast.node.node import Machine
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication.reporting import EpochInConsul
from standfast.role import volume
from standfast.role.decision import Action
from standfast.role.observation import Cluster, Identity
from standfast.role.plan import Do
from standfast.system.clock import Deadline
from tests.sim.clockwork import Violation
from tests.sim.disk import SimTree
from tests.sim.model_consul import AgentService
from tests.sim.node import SimNode
from tests.sim.restores import is_clean, restored_to_a_clean
from tests.sim.systemd import LEASE_BURST
from tests.sim.world import FAST, SimWorld

TIMING = LeaseTiming()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SimWorld]:
    with SimWorld(tmp_path) as world:
        yield world
        world.check_settled()
        world.run(20.0)
        world.check_settled()
        world.check_nothing_deleted()


def successor(world: SimWorld) -> SimNode:
    primary = world.primary()
    assert primary is not None
    return primary


def written_in(world: SimWorld, epoch: int) -> list[int]:
    return world.invariants.history_entries["data", epoch].tree.writes


def reasons(world: SimWorld) -> dict[str, Reason]:
    return {n.name: n.decision.reason for n in world.nodes.values() if n.decision is not None}


def told(world: SimWorld) -> Identity | None:
    """The last heartbeat in Consul."""
    leader = world.leader()
    return None if leader is None else leader.identity


def seen_by(node: SimNode) -> Identity | None:
    """The last heartbeat as that node saw it."""
    agent = node.seat.agent
    assert agent is not None and agent.seen is not None
    view = agent.seen.view
    assert isinstance(view, Cluster)
    return view.last_heartbeat.identity


def test_a_standby_takes_over_when_the_primary_loses_power(world: SimWorld) -> None:
    world.begin().power_cut()
    assert world.wait_for_primary() < TIMING.wait + 3
    assert world.epoch() == 2


def test_the_fast_profile_takes_over_in_a_few_seconds(tmp_path: Path) -> None:
    with SimWorld(tmp_path, timing=FAST) as fast:
        fast.begin().power_cut()
        assert fast.wait_for_primary() < 9.0


def test_standbys_with_shorter_timings_wait_for_those_of_the_primary(tmp_path: Path) -> None:
    """As while a configuration is changed node by node; the world looks at who serves."""
    quick = {"b": FAST, "c": FAST}
    with SimWorld(tmp_path, timing=TIMING, timings=quick) as mixed:
        primary = mixed.begin()
        mixed.isolate(primary.name)
        taken_s = mixed.wait_for("a takeover", lambda: mixed.epoch() == 2, 60.0)
        assert TIMING.wait - TIMING.heartbeat <= taken_s < TIMING.wait + 6
        mixed.join(primary.name)
        mixed.run(40.0)


def test_the_death_of_the_agent_on_the_primary_changes_nothing(world: SimWorld) -> None:
    primary = world.begin()
    primary.kill_agent()
    world.run(40.0)
    assert primary.serves
    primary.start_agent()
    world.run(5.0)
    assert (world.epoch(), primary.serves) == (1, True)


def test_a_killed_lease_process_is_taken_up_again_without_a_pause(world: SimWorld) -> None:
    primary = world.begin()
    for _ in range(4):  # with its first start one below the unit's limit
        primary.kill_keeper()
        for _ in range(30):
            world.run(0.1)
            assert primary.serves
    assert world.epoch() == 1


def test_a_frozen_lease_process_is_cut_off_and_does_not_serve_after_its_thaw(
    world: SimWorld,
) -> None:
    primary = world.begin()
    primary.freeze_all(90.0)
    world.wait_for("a successor", lambda: world.primary() is world["c"], 75.0)
    world.run(60.0)
    assert not primary.serves
    assert primary.decision is not None
    assert primary.decision.reason is Reason.PRIMARY_ALIVE
    assert len(primary.asides()) == 1


@pytest.mark.parametrize("clock_stops", [False, True])
def test_a_paused_machine_serves_at_most_the_rest_of_its_lease(
    world: SimWorld, clock_stops: bool
) -> None:
    primary = world.begin()
    if clock_stops:  # beyond what S3 promises: no timer of the machine can know
        world.invariants.allowed_two_s = TIMING.length + TIMING.fence
    primary.pause_vm(60.0, clock_stops=clock_stops)
    world.wait_for_primary()
    world.run(60.0)
    assert not primary.serves


def test_a_server_that_does_not_stop_keeps_the_switchover_from_giving_the_role_up(
    world: SimWorld,
) -> None:
    primary = world.begin()
    primary.nfsd.stuck = True
    primary.hand_to("b")
    world.run(20.0)
    assert world.epoch() == 1
    assert successor(world) is primary


def test_a_stop_slower_than_the_fence_is_no_danger(world: SimWorld) -> None:
    primary = world.begin()
    primary.nfsd.stop_s = 25.0
    primary.hand_to("b")
    world.wait_for_primary("b", 90.0)


@pytest.mark.parametrize("away_s", [1.5, 3.0])
def test_a_restart_of_the_primarys_consul_agent_changes_no_role(
    world: SimWorld, away_s: float
) -> None:
    primary = world.begin()
    primary.link.agent_down = True
    world.run(away_s)
    primary.link.agent_down = False
    for _ in range(200):
        world.run(0.1)
        assert primary.serves
    assert world.epoch() == 1


def test_a_primary_whose_consul_agent_stays_away_is_replaced(world: SimWorld) -> None:
    primary = world.begin()
    primary.link.agent_down = True
    world.wait_for(
        "a successor", lambda: world.primary() not in (None, primary), 61.0 + TIMING.wait
    )
    primary.link.agent_down = False
    world.run(20.0)
    assert not primary.serves


@pytest.mark.parametrize(("election_s", "limit_s"), [(4.0, 4.0), (8.0, TIMING.wait + 3)])
def test_an_election_of_consul_during_a_failover_only_delays_it(
    world: SimWorld, election_s: float, limit_s: float
) -> None:
    """One that is longer than W/2 by a whole wait: nobody saw what happened meanwhile."""
    world.begin().power_cut()
    world.run(8.0)
    world.store.quorum = False
    world.run(election_s)
    world.store.quorum = True
    assert world.wait_for_primary() < limit_s
    assert world.epoch() == 2


def test_a_consul_without_quorum_for_half_a_minute_is_a_pause(world: SimWorld) -> None:
    primary = world.begin()
    world.store.quorum = False
    world.run(30.0)
    assert not primary.serves
    world.store.quorum = True
    world.wait_for_primary("a", 5.0)
    assert world.epoch() == 1


def test_a_consul_backup_of_an_older_epoch_halts_everybody_with_a_reason(world: SimWorld) -> None:
    world.begin()
    saved = world.store.backup()
    world["a"].power_cut()
    world.wait_for_primary()
    world["a"].boot()
    world.run(10.0)
    world.restore(saved)
    world.run(60.0)
    assert set(reasons(world).values()) == {Reason.EPOCH_WENT_BACK}
    assert not any(node.serves for node in world.nodes.values())


def test_after_a_restore_the_last_primary_goes_on_with_its_own_tree(world: SimWorld) -> None:
    """The backup tells of an older epoch; everybody was off, and its epoch is accepted again."""
    world.begin()
    saved = world.store.backup()
    world["a"].power_cut()
    world.wait_for_primary()
    last = successor(world)
    world["a"].boot()
    world.run(30.0)
    for seat in world.seats():
        seat.copies = False
    world.run(10.0)
    for node in world.nodes.values():
        node.power_cut()
    world.restore(saved)
    had = len(written_in(world, 1)), list(last.live.writes if last.live else ())
    for node in world.nodes.values():
        node.boot()
    world.run(20.0)
    for name in world.nodes:
        world.accept_epoch(name)
    world.run(20.0)
    last.ask("promote")
    world.wait_for_primary(last.name)
    assert last.live is not None and last.live.writes[: len(had[1])] == had[1]
    for seat in world.seats():
        seat.copies = True


def test_a_lease_process_killed_in_an_outage_of_consul_costs_no_failover(world: SimWorld) -> None:
    primary = world.begin()
    world.run(70.0)
    world.store.quorum = False
    world.run(1.0)
    primary.kill_keeper()
    world.run(14.0)
    world.store.quorum = True
    world.wait_for_primary("a", 8.0)
    assert world.epoch() == 1


@pytest.mark.parametrize("how", ["somebody keeps it", "its agent dies", "in the copy"])
def test_the_tree_of_a_switchover_that_lost_consul_is_soon_read_only(
    world: SimWorld, how: str
) -> None:
    """No plan is at work any more, or one that waits for a copy: a successor may serve by then."""
    primary = world.begin()
    world.run(8.0)
    if how == "in the copy":
        world.copies_held = True
        primary.hand_to("b")
        world.run(3.0)
        world.isolate("a", standbys=False)
    else:
        primary.busy = how == "somebody keeps it"
        primary.nfsd.stop_s = 2.0
        primary.hand_to("b")
        world.wait_for("the drain", lambda: stage_of(primary) is Stage.DRAINING)
        world.isolate("a")
        if how == "its agent dies":
            primary.kill_agent(again=True)
    lease = primary.config.lease
    bound_s = lease.length + lease.wait + 25.0
    world.wait_for("it", lambda: primary.live is not None and primary.live.read_only, bound_s)
    world.copies_held = primary.busy = False
    world.wait_for_primary(limit_s=90.0)
    world.join("a")
    world.run(30.0)


def stage_of(node: SimNode) -> Stage | None:
    own = OwnEpoch.load(node.config.state_dir)
    return None if own is None else own.stage


def test_a_consul_backup_of_the_same_epoch_costs_no_failover(world: SimWorld) -> None:
    primary = world.begin()
    saved = world.store.backup()
    world.run(20.0)
    world.restore(saved)
    world.run(30.0)
    assert (world.epoch(), primary.serves) == (1, True)


@pytest.mark.parametrize("keys", [("leader",), ("epoch",), ("leader", "epoch")])
def test_a_deleted_key_is_written_again_by_its_holder(
    world: SimWorld, keys: tuple[str, ...]
) -> None:
    primary = world.begin()
    world.store.delete(*map(world.key, keys))
    for _ in range(100):
        world.run(0.1)
        assert primary.serves
    assert world.leader() is not None
    assert world.epoch() == 1


def test_a_leader_key_deleted_with_its_holder_dead_needs_one_word(world: SimWorld) -> None:
    world.begin().power_cut()
    world.store.delete(world.key("leader"))
    world.run(30.0)
    assert set(reasons(world).values()) >= {Reason.LEADER_MISSING}
    world["b"].ask("promote")
    world.wait_for_primary("b")
    assert world.epoch() == 2


def test_keys_deleted_while_two_epochs_could_think_themselves_alive(world: SimWorld) -> None:
    """The old holder must not write its older epoch back under a successor that serves."""
    primary = world.begin()
    world.isolate("a")
    world.wait_for_primary("c")
    world.run(1.9)
    world.join("a")
    world.store.delete(world.key("leader"), world.key("epoch"))
    primary.kill_agent()
    world.run(10.0)
    assert world.epoch() in (0, 2)
    primary.start_agent()


def test_a_server_that_autopilot_removed_is_replaced(world: SimWorld) -> None:
    world.begin().power_cut()
    world.removed.add("a")
    assert world.wait_for_primary() < 2 * TIMING.wait


def test_a_primary_cut_off_from_consul_alone_is_replaced_when_its_time_is_over(
    world: SimWorld,
) -> None:
    world.begin()
    world.isolate("a", standbys=False)
    world.wait_for("a successor", lambda: world.primary() is world["c"], 61 + TIMING.wait)
    world.join("a")


def test_a_primary_cut_off_from_everybody_is_replaced_at_once(world: SimWorld) -> None:
    world.begin()
    world.isolate("a")
    world.wait_for("a successor", lambda: world.primary() is world["c"], TIMING.wait + 4)
    world.run(30.0)
    world.join("a")
    world.run(10.0)
    assert reasons(world)["a"] is Reason.PRIMARY_ALIVE


def test_a_primary_cut_off_from_its_standbys_alone_goes_on(world: SimWorld) -> None:
    primary = world.begin()
    world.unlink("a", "b")
    world.unlink("a", "c")
    world.run(90.0)
    assert (world.epoch(), primary.serves) == (1, True)


def test_a_primary_that_is_heard_and_hears_nothing_neither_serves_nor_is_replaced(
    world: SimWorld,
) -> None:
    primary = world.begin()
    primary.link.replies_cut = True
    world.run(30.0)
    assert not primary.serves or world.epoch() == 1
    world.join("a")
    world.run(15.0)
    assert world.primary() is not None


@pytest.mark.parametrize("rates", [(0.99, 1.01, 1.01), (1.01, 0.99, 0.99)])
def test_clocks_that_drift_within_the_bound_are_safe(
    tmp_path: Path, rates: tuple[float, ...]
) -> None:
    with SimWorld(tmp_path, rates=rates) as world:
        primary = world.begin()
        primary.freeze_all(90.0)
        world.wait_for("a successor", lambda: world.primary() is world["c"], 75.0)
        world.run(60.0)
        world.check_nothing_deleted()


@pytest.mark.parametrize("step_s", [-7200.0, 7200.0])
def test_a_step_of_a_wall_clock_moves_no_lease(world: SimWorld, step_s: float) -> None:
    primary = world.begin()
    primary.clock.utc_step_s = step_s
    world.run(30.0)
    assert (world.epoch(), primary.serves) == (1, True)
    primary.power_cut()
    world.run(40.0)


def test_a_heartbeat_whose_reply_was_lost_counts_all_the_same(world: SimWorld) -> None:
    primary = world.begin()
    for _ in range(5):
        world.fault("a", "heartbeat", "reply-lost")
        for _ in range(60):
            world.run(0.1)
            assert primary.serves
    assert world.epoch() == 1


def test_many_lost_replies_in_a_row_are_a_pause(world: SimWorld) -> None:
    primary = world.begin()
    world.fault("a", "heartbeat", "reply-lost", count=6)
    world.run(20.0)
    assert (world.epoch(), primary.serves) == (1, True)


def test_heartbeats_that_arrive_late_are_told_apart(world: SimWorld) -> None:
    primary = world.begin()
    for delay_s in (1.9, 2.1, 3.5, 5.0):
        world.fault("a", "heartbeat", "late", delay_s)
        world.run(9.0)
    assert (world.epoch(), primary.serves) == (1, True)


@pytest.mark.parametrize("fault", ["reply-lost", "late", "lost"])
def test_an_acquisition_whose_reply_was_lost_ends_in_one_primary(
    world: SimWorld, fault: str
) -> None:
    world.begin()
    for name in ("b", "c"):
        world.fault(name, "acquire", fault, 3.0)
    world["a"].power_cut()
    world.wait_for_primary(limit_s=90.0)


STEPS = [
    Do.CLAIM_LEASE,
    Do.PREPARE_VOLUME,
    Do.BIND,
    Do.EXPORT,
    Do.START_NFS,
    Do.OPEN_PORT,
    Do.CHECK_SERVING,
    Do.REGISTER,
]


@pytest.mark.parametrize("when", ["cut_before", "cut_after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_candidate_that_dies_at_a_step_of_its_promotion_is_followed(
    world: SimWorld, step: Do, when: str
) -> None:
    world.begin()
    setattr(world["c"].seat, when, step)
    world["a"].power_cut()
    world.wait_for_primary("b", 60.0)
    world["a"].boot()
    world["c"].boot()
    world.run(20.0)
    assert successor(world) is world["b"]


@pytest.mark.parametrize("step", STEPS)
def test_a_candidate_that_dies_at_a_step_and_returns_alone_goes_on(
    world: SimWorld, step: Do
) -> None:
    world.begin()
    world["b"].power_cut()
    world["c"].seat.cut_before = step
    world["a"].power_cut()
    world.wait_for("the cut", lambda: not world["c"].powered)
    world.run(3.0)
    world["c"].boot()
    if step is Do.PREPARE_VOLUME:
        # Nothing on its disk proves yet that the epoch is its own and not a namesake's.
        world.run(30.0)
        assert reasons(world)["c"] is Reason.NOT_A_CANDIDATE
        world["c"].ask("promote")
    world.wait_for_primary("c", 60.0)


def test_the_first_node_that_returns_alone_after_two_failovers_does_not_serve_old_data(
    world: SimWorld,
) -> None:
    world.begin()
    world["a"].seat.copies = False
    world.run(20.0)
    world["a"].power_cut()
    world.wait_for_primary("c")
    world["b"].power_cut()
    world.run(20.0)
    world["c"].power_cut()
    world["a"].boot()
    world.run(120.0)
    if world.primary() is None:
        assert reasons(world)["a"] in (Reason.NO_PUBLISHED_SNAPSHOT, Reason.NOT_A_CANDIDATE)
    world["c"].boot()
    world.wait_for_primary()


def test_snapshots_of_a_primary_that_was_replaced_are_refused(
    world: SimWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the sender believes in itself: the receiver asks Consul, and has seen a later one."""
    primary = world.begin()
    primary.seat.copies = False
    world.isolate("a")
    world.wait_for("a successor", lambda: world.primary() is world["c"], 90.0)
    before = set(world["b"].snapshots())
    world.cut_ways.clear()
    monkeypatch.setattr(EpochInConsul, "epoch", lambda _self: 1)
    monkeypatch.setattr(EpochInConsul, "index_of", lambda _self, _epoch: 1)
    primary.spawn("replicate", lambda: primary.seat.cycle("b"))
    world.wait_for("an answer", lambda: bool(primary.seat.failures), 60.0)
    monkeypatch.undo()
    assert "the lease says: epoch 2, c" in primary.seat.failures[-1]
    world.join("a")
    world.run(10.0)
    assert not [
        snapshot
        for snapshot in set(world["b"].snapshots()) - before
        if "a" in snapshot.partition("@")[0]
    ]


def test_an_epoch_that_changes_while_a_snapshot_is_on_its_way_ends_its_publication(
    world: SimWorld,
) -> None:
    primary = world.begin()
    primary.seat.copies = False
    world.run(6.0)
    world.copies_held = True
    primary.spawn("replicate", lambda: primary.seat.cycle("b"))
    world.run(1.0)
    own = primary.snapshots()[-1]
    world.isolate("a", standbys=False)
    world.wait_for("a takeover", lambda: world.epoch() == 2, 75.0)
    world.copies_held = False
    world.wait_for("the end of the copy", lambda: bool(primary.seat.failures), 120.0)
    assert "epoch 1 is over" in primary.seat.failures[-1]
    assert own not in world["b"].snapshots()
    world.join("a")


def test_what_the_dead_primary_alone_had_is_kept_aside_when_it_returns(world: SimWorld) -> None:
    world.begin()
    world["a"].seat.copies = False
    world.run(10.0)
    alone = world.kept_on(world["a"], "data") - world.kept_on(world["c"], "data")
    assert alone
    world["a"].power_cut()
    world.wait_for_primary("c")
    world["a"].boot()
    world.run(10.0)
    (name,) = world["a"].asides()
    assert name.startswith("services.diverged-1-")
    assert alone <= set(world["a"].asides()[name].writes)


def test_standbys_that_are_all_too_old_say_so_and_wait_for_a_word(tmp_path: Path) -> None:
    with SimWorld(tmp_path, max_data_loss_s=60.0) as world:
        world.begin()
        world["a"].seat.copies = False
        world.run(70.0)
        world["a"].power_cut()
        world.run(30.0)
        assert {reasons(world)["b"], reasons(world)["c"]} == {Reason.TOO_OLD}
        world["b"].ask("promote", accept_data_loss=True)
        world.wait_for_primary("b")


def test_a_switchover_loses_nothing(world: SimWorld) -> None:
    world.begin().hand_to("b")
    took_s = world.wait_for_primary("b", 20.0)
    assert took_s < 8.0
    assert world.invariants.history_entries["data", 2].tree.writes[
        : len(world.invariants.history_entries["data", 1].tree.writes)
    ] == (world.invariants.history_entries["data", 1].tree.writes)


def test_the_history_names_who_asked_for_a_switchover(world: SimWorld) -> None:
    """The successor writes it, and was asked by nobody."""

    def entry(epoch: int) -> HistoryEntry:
        return HistoryEntry.parse(world.store.entries[world.key(f"history/{epoch}")].value)

    world.begin().ask("switchover", to="b", operator="alice", reason="disks")
    world.wait_for_primary("b", 20.0)
    assert (entry(2).operator, entry(2).reason) == ("alice", "clean-handover: disks")
    world.run(20.0)
    world["b"].power_cut()
    world.wait_for_primary("c", 90.0)
    assert entry(3).operator is None, "nobody asked for a failover"


def test_a_switchover_target_that_dies_after_the_final_copy_loses_nothing(world: SimWorld) -> None:
    """The one with the complete data goes first, though it had just given the role up."""
    primary = world.begin()
    primary.hand_to("b")
    world.run(0.5)
    primary.seat.copies = False
    world.wait_for("clean", lambda: (now := world.leader()) is not None and now.is_clean)
    world["b"].power_cut()
    world.wait_for_primary("a", 90.0)
    before = world.invariants.history_entries["data", 1].tree.writes
    before = written_in(world, 1)
    assert written_in(world, 2)[: len(before)] == before


def test_when_both_with_the_final_data_are_gone_an_older_standby_follows_and_says_what_is_lost(
    world: SimWorld,
) -> None:
    primary = world.begin()
    primary.seat.copies = False
    world.run(20.0)
    primary.hand_to("b")
    world.wait_for("clean", lambda: (now := world.leader()) is not None and now.is_clean)
    world["b"].power_cut()
    world.run(1.0)
    primary.power_cut()
    world.wait_for_primary("c", 120.0)
    raw = world.store.entries[world.key("history/2")].value
    assert b'"takeover"' in raw
    assert b'"lost_s":0.0' not in raw


def test_a_flapping_primary_is_not_followed_by_a_second_takeover_within_failover_cooldown(
    tmp_path: Path,
) -> None:
    with SimWorld(tmp_path, failover_cooldown_s=600.0) as world:
        world.begin().power_cut()
        world.wait_for_primary("c")
        world["a"].boot()
        world.run(30.0)
        world["c"].power_cut()
        world.run(60.0)
        assert {reasons(world)["a"], reasons(world)["b"]} == {Reason.COOLDOWN}
        world["b"].ask("promote")
        world.wait_for_primary("b")


def test_two_nodes_told_to_promote_at_the_same_moment_make_one_primary(world: SimWorld) -> None:
    world.begin().power_cut()
    for name in ("b", "c"):
        world[name].ask("promote")
    world.wait_for_primary()
    world.run(30.0)
    assert world.epoch() == 2


def test_nobody_follows_a_primary_that_dies_during_a_pause(world: SimWorld) -> None:
    world.begin()
    world.pause_failover()
    world.run(15.0)
    world["a"].power_cut()
    world.run(120.0)
    assert {reasons(world)["b"], reasons(world)["c"]} == {Reason.PAUSED}
    world.store.delete(world.key("pause"))
    world.wait_for_primary()


def test_a_node_on_hold_is_passed_over_until_it_is_released(world: SimWorld) -> None:
    world.begin()
    world.hold("b")
    world.hold("c")
    world.run(15.0)
    world["a"].power_cut()
    world.run(120.0)
    assert {reasons(world)["b"], reasons(world)["c"]} == {Reason.ON_HOLD}
    world.store.delete(world.key("holds/b"))
    world.wait_for_primary("b")
    world["b"].power_cut()
    world.run(120.0)
    assert reasons(world)["c"] is Reason.ON_HOLD
    world.store.delete(world.key("holds/c"))
    world.wait_for_primary("c")


def test_a_standby_that_joins_during_a_failover_waits_its_whole_time(world: SimWorld) -> None:
    world.begin()
    world["b"].power_cut()
    world["c"].power_cut()
    world.run(1.0)
    world["a"].power_cut()
    world.run(11.0)
    world["b"].boot()
    assert world.wait_for_primary("b") >= TIMING.wait


@pytest.mark.parametrize("freeze_s", [0.5, 1.6, 5.0, 30.0])
def test_a_process_frozen_while_it_opens_the_port_opens_it_in_time_or_not_at_all(
    world: SimWorld, freeze_s: float
) -> None:
    primary = world.begin()
    primary.rules.freeze_in_arm_s = freeze_s
    world.run(60.0)


def test_a_frozen_opener_stays_shut_out_after_the_takeover(world: SimWorld) -> None:
    primary = world.begin()
    primary.rules.freeze_in_arm_s = 80.0
    primary.watchdogs = False
    primary.freeze(primary.seat.agent_service, 120.0)
    world.wait_for("a successor", lambda: world.primary() is world["c"], 130.0)
    world.run(60.0)
    assert not primary.serves


@pytest.mark.parametrize("delay_s", [2.5, 6.0, 12.0])
def test_a_clean_that_arrives_after_the_switchover_was_rolled_back_is_refused(
    world: SimWorld, delay_s: float
) -> None:
    primary = world.begin()
    primary.hand_to("b")
    world.fault("a", "clean", "late", delay_s)
    world.fault("a", "clean", "lost", count=5)
    world.run(60.0)
    world.wait_for_primary(limit_s=90.0)


def test_a_release_that_never_arrives_is_rolled_back(world: SimWorld) -> None:
    """Nobody else may take over here: the role must not be stuck between two nodes."""
    primary = world.begin()
    world.pause_failover()
    primary.hand_to("b")
    world.fault("a", "clean", "lost", count=3)
    world.wait_for("the switchover", lambda: not primary.serves)
    world.wait_for_primary("a", 40.0)
    assert world.epoch() == 1


@pytest.mark.parametrize("fault", ["reply-lost", "lost"])
def test_a_release_that_is_not_heard_of_is_asked_for_again(world: SimWorld, fault: str) -> None:
    world.begin().hand_to("b")
    world.fault("a", "clean", fault)
    world.wait_for_primary("b", 30.0)
    assert world.epoch() == 2


def test_a_lease_process_killed_in_the_middle_of_a_release_serves_or_has_released(
    world: SimWorld,
) -> None:
    primary = world.begin()
    primary.hand_to("b")
    world.fault("a", "clean", "late", 4.0)
    world.wait_for(
        "the release", lambda: (now := primary.seat.status()) is not None and now.valid_until < 0
    )
    primary.kill_keeper()
    world.run(60.0)


def test_flushed_rules_of_the_fence_are_put_back_by_the_next_heartbeat(world: SimWorld) -> None:
    primary = world.begin()
    primary.rules.flush()
    world.run(3.0)
    assert primary.rules.asks and primary.rules.answers
    assert primary.serves


def test_a_flush_while_cut_off_is_put_back_shut_by_the_lease_process(tmp_path: Path) -> None:
    """Somebody restarts the firewall because the port is shut; the agent is frozen."""
    with SimWorld(tmp_path, mode="manual") as world:
        primary = world.begin()
        world.isolate("a")
        primary.freeze(primary.seat.agent_service, 90.0)
        world.wait_for("the end of the lease", lambda: not primary.serves, 10.0)
        for _ in range(3):
            world.run(5.0)
            primary.rules.flush()
            world.run(TIMING.request_timeout + RETRY_S + 0.1)
            assert primary.rules.asks and not primary.serves
        world["b"].ask("promote")
        world.wait_for_primary("b")
        world.run(30.0)


@pytest.mark.parametrize(("length_s", "wait_s"), [(8.0, 12.0), (40.0, 45.0)])
def test_a_shorter_lease_on_the_primary_is_told_when_the_longer_one_is_over(
    tmp_path: Path, length_s: float, wait_s: float
) -> None:
    """The configuration is changed everywhere, the primary's lease process started again; it is
    frozen right after its first heartbeat, so that the kernel alone ends the longer permit."""
    long = replace(TIMING, length=length_s, wait=wait_s)
    short = FAST if length_s == TIMING.length else TIMING
    timings = {"a": long, "b": short, "c": short}
    with SimWorld(tmp_path, timings=timings) as mixed:
        primary = mixed.begin()
        primary.seat.config = replace(primary.config, lease=short)
        mixed.fault("a", "heartbeat", "freeze-after", 90.0)
        primary.watchdogs = False
        primary.stop_keeper()
        primary.freeze(primary.seat.agent_service, 120.0)
        primary.down_since = mixed.now - 60.0
        mixed.unlink("a", "b")
        mixed.unlink("a", "c")
        primary.seat.lease.launch()
        mixed.wait_for("a successor", lambda: mixed.epoch() == 2, 130.0)
        mixed.run(40.0)


@pytest.mark.parametrize("how", ["frozen", "blind"])
def test_a_consul_backup_of_what_a_candidate_saw_last_starts_its_wait_anew(
    world: SimWorld, how: str
) -> None:
    """It saw nothing of the heartbeats after that, and the primary is cut off right then."""
    world.begin()
    world["b"].power_cut()
    candidate = world["c"]
    world.wait_for("c saw it", lambda: seen_by(candidate) == told(world))
    saved, seen = world.store.backup(), seen_by(candidate)
    if how == "frozen":
        candidate.freeze(candidate.seat.agent_service, 70.0)
    else:
        candidate.link.cut = True
    world.run(69.7)
    # Right after a heartbeat: that is how long the primary serves on.
    before = told(world)
    world.wait_for("a heartbeat", lambda: told(world) != before)
    world.restore(saved)
    assert told(world) == seen
    world.isolate("a")
    candidate.link.cut = False
    world.wait_for_primary("c")
    world.join("a")
    world["b"].boot()


def test_a_leader_key_deleted_twice_while_nobody_looked_starts_the_wait_anew(
    world: SimWorld,
) -> None:
    world.begin()
    world["b"].power_cut()
    candidate = world["c"]
    world.store.delete(world.key("leader"))
    while seen_by(candidate) is not None:  # before its holder writes it again
        world.run(0.002)
    candidate.link.cut = True
    world.run(300.0)
    assert told(world) is not None, "it was written again"
    world.store.delete(world.key("leader"))
    candidate.link.cut = False
    world.isolate("a")
    candidate.ask("promote", accept_data_loss=True)
    world.wait_for_primary("c")
    world.join("a")
    world["b"].boot()


def test_a_holder_that_was_replaced_waits_in_a_restored_consul(world: SimWorld) -> None:
    """It has never seen its successor, and its lease process begins anew meanwhile."""
    primary = world.begin()
    primary.kill_agent()
    saved = world.store.backup()
    world.run(5.0)
    world.isolate("a")
    world.wait_for_primary("c")
    primary.stop_keeper()
    world.run(5.0)
    world.restore(saved)
    world.join("a")
    primary.seat.lease.launch()
    world.run(30.0)
    primary.start_agent()


def test_an_epoch_that_was_put_away_is_not_begun_again_in_a_restored_consul(
    world: SimWorld,
) -> None:
    """It would begin from what it began with, and lack all that was written in it."""
    primary = world.begin()
    primary.power_cut()
    world.wait_for_primary("c")
    world.run(20.0)
    saved = world.store.backup()
    world.ask("c", "demote")
    world.wait_for("it is put away", lambda: OwnEpoch.load(state_of(world, "c")) is None, 60.0)
    assert is_clean(world)
    world.restore(saved)
    world.run(10.0)
    assert world["c"].seat.live is None
    world.wait_for("another one serves", lambda: world.epoch() == 3, 300.0)


def state_of(world: SimWorld, name: str) -> Path:
    return world[name].seat.config.state_dir


def test_a_role_given_up_in_a_restored_consul_is_taken_after_a_wait(world: SimWorld) -> None:
    restored_to_a_clean(world)


def test_a_foreign_value_in_the_leader_key_stops_everybody_with_a_reason(world: SimWorld) -> None:
    primary = world.begin()
    world.store.put(world.key("leader"), b'{"mine": true}')
    world.run(30.0)
    assert set(reasons(world).values()) == {Reason.FOREIGN_VALUE}
    assert not primary.serves
    world.store.delete(world.key("leader"))
    world.wait_for_primary("a", 20.0)
    assert world.epoch() == 1


@pytest.mark.parametrize("ahead_s", [0.0, 7200.0])
def test_what_an_epoch_that_never_served_makes_lost_goes_by_no_names(
    tmp_path: Path, ahead_s: float
) -> None:
    """After clocks that were ahead, minutes lie between names that are a second apart."""
    with SimWorld(tmp_path, failover_cooldown_s=0.0, max_data_loss_s=120.0) as world:
        for node in world.nodes.values():
            node.clock.utc_step_s = ahead_s
        world.begin()
        world.unlink("a", "b")
        world.run(12.0)
        for node in world.nodes.values():
            node.clock.utc_step_s = 0.0
        world.run(300.0)
        world.cut_ways.clear()
        world["c"].nfsd.broken = True
        world["a"].seat.copies = False
        world["a"].power_cut()
        world.wait_for("epoch 2", lambda: world.epoch() == 2)
        world.run(120.0)
        assert world.epoch() == 2, "b lacks five minutes"
        world["c"].nfsd.broken = False
        world.wait_for_primary("c")


def has_fewer(world: SimWorld) -> SimNode:
    """b takes over from a, and c, which is off, has more than b."""
    primary = world.begin()
    world.unlink("a", "b")
    world.run(15.0)
    world.cut_ways.clear()
    world["c"].power_cut()
    primary.seat.copies = False
    primary.power_cut()
    return world["b"]


@pytest.mark.parametrize("ends", ["surrender", "demote"])
@pytest.mark.parametrize("sick", ["disk", "server"])
def test_an_epoch_that_never_served_cuts_nothing_off(tmp_path: Path, sick: str, ends: str) -> None:
    """It began from older data than somebody else had, and found its disk full or its server
    broken."""
    with SimWorld(tmp_path, failover_cooldown_s=0.0) as world:
        idle = has_fewer(world)
        most = world.kept_on(world["c"], "data")
        idle.disk.full, idle.nfsd.broken = sick == "disk", sick == "server"
        world.wait_for("epoch 2", lambda: world.epoch() == 2)
        world["c"].boot()
        if ends == "demote":
            world.run(10.0)
            idle.ask("demote")
            world.wait_for("clean", lambda: (now := world.leader()) is not None and now.is_clean)
            world["c"].ask("promote")
        world.wait_for_primary("c", 120.0)
        assert most > world.kept_on(idle, "data")
        assert set(written_in(world, 3)) >= most
        raw = world.store.entries[world.key("history/3")].value
        assert HistoryEntry.parse(raw).follows == 1
        world.run(30.0)  # both others get it
        idle.power_cut()
        world["a"].boot()
        world.run(1.0)
        world["c"].power_cut()
        world.wait_for_primary("a", limit_s=120.0)
        assert set(written_in(world, 4)) >= most
        world.check_nothing_deleted()


def test_what_an_epoch_that_never_served_had_cut_off_goes_to_who_has_most_of_it(
    tmp_path: Path,
) -> None:
    with SimWorld(tmp_path, failover_cooldown_s=0.0) as world:
        primary = world.begin()
        world.unlink("a", "b")
        world.run(10.0)
        world.unlink("a", "c")
        world.run(15.0)
        primary.power_cut()
        world.cut_ways.clear()
        world["c"].link.cut = True
        world["b"].nfsd.broken = True
        world.wait_for("epoch 2", lambda: world.epoch() == 2)
        world["c"].link.cut = False
        primary.boot()
        world.wait_for_primary("a", 200.0)
        assert len(written_in(world, 3)) > len(world.kept_on(world["c"], "data"))


def test_a_tree_that_no_epoch_knows_follows_nobody(tmp_path: Path) -> None:
    """Two nodes with a tree of their own are told to be the first primary; one can't serve."""
    with SimWorld(tmp_path, failover_cooldown_s=0.0) as world:
        for name, count in (("a", 5), ("b", 2)):
            node = world[name]
            node.boot()
            node.seat.config.paths.live.mkdir()
            writes = [world.invariants.asked("data") for _ in range(count)]
            node.disk.data.put(node.seat.config.paths.live, SimTree(node.disk.new_uuid(), writes))
        world["a"].nfsd.broken = True
        world["b"].clock.utc_step_s = 2.0
        world.run(0.5)
        for name in ("a", "b"):
            world[name].ask("promote")
        world.run(150.0)
        leader = world.leader()
        assert leader is not None and (leader.epoch, leader.holder.node) == (1, "a")
        world["a"].nfsd.broken = False
        world.wait_for_primary("a")


def test_an_epoch_whose_port_was_open_by_a_flush_may_have_been_written_to(tmp_path: Path) -> None:
    """It goes on in its own tree, and so do clients; its agent dies before the port opens."""
    with SimWorld(tmp_path, failover_cooldown_s=0.0) as world:
        primary = world.begin()
        for name in ("b", "c", "a"):
            world[name].power_cut()
        world.run(1.0)
        primary.boot()
        world.wait_for("epoch 2", lambda: world.epoch() == 2, 100.0)
        while not primary.nfsd.running:
            world.run(0.003)
        primary.kill_agent()
        for _ in range(6):
            primary.rules.flush("both", world.now)
            world.run(2.0)
        world["b"].boot()
        world["c"].boot()
        world.wait_for("clean", lambda: (now := world.leader()) is not None and now.is_clean, 200.0)
        leader = world.leader()
        assert leader is not None and leader.surrendered and not leader.idle


def test_in_manual_mode_nobody_takes_over_without_a_word(tmp_path: Path) -> None:
    with SimWorld(tmp_path, mode="manual") as world:
        world.begin().power_cut()
        world.run(120.0)
        assert {reasons(world)["b"], reasons(world)["c"]} == {Reason.MANUAL_MODE}
        world["b"].ask("promote")
        world.wait_for_primary("b")


def test_a_primary_that_reboots_goes_on_with_its_own_tree(tmp_path: Path) -> None:
    with SimWorld(tmp_path, mode="auto", names=("a", "b")) as world:
        primary = world.begin()
        world["b"].power_cut()
        world.run(5.0)
        primary.power_cut()
        world.run(2.0)
        primary.boot()
        world.wait_for_primary("a")
        assert world.epoch() == 2
        assert primary.asides() == {}


def test_a_primary_that_reboots_goes_on_with_no_other_tree(tmp_path: Path) -> None:
    """Somebody put an older one in its place while it was down: that is a loss, and told as one."""
    with SimWorld(tmp_path, mode="auto", names=("a", "b")) as world:
        primary = world.begin()
        world.run(30.0)
        world["b"].power_cut()
        world.run(30.0)
        primary.power_cut()
        disk, live = primary.disk, primary.config.paths.live
        tree = primary.live
        assert tree is not None
        older, away = SimTree(disk.new_uuid(), tree.writes[:10]), live.with_name("services.mine")
        live.rename(away)
        disk.data.put(away, tree)
        live.mkdir()
        disk.data.put(live, older)
        primary.boot()
        world.wait_for_primary("a", 90.0)
        history = world.store.get(world.key("history/2"))
        assert history is not None and (HistoryEntry.parse(history.value).lost_s or 0.0) > 0.0
        assert primary.live is not older and older in primary.asides().values()
        assert primary.live is not None and len(primary.live.writes) > len(older.writes)


def test_an_epoch_whose_file_is_deleted_keeps_its_tree(world: SimWorld) -> None:
    """It is not begun anew from its base; `demote` tells the loss and puts the tree aside."""
    world.begin().hand_to("b")
    world.wait_for_primary("b")
    world.run(30.0)
    primary = world["b"]
    primary.seat.copies = False
    world.run(20.0)
    tree = primary.live
    assert tree is not None
    (primary.config.state_dir / "own-epoch.json").unlink()
    world.run(20.0)
    assert primary.live is tree and primary.asides() == {}
    assert "standfast demote" in str(primary.seat.agent and primary.seat.agent.trouble)
    primary.ask("demote")
    world.wait_for("clean", lambda: (now := world.leader()) is not None and now.is_clean)
    world.run(10.0)
    [(name, aside)] = primary.asides().items()
    assert name.startswith("services.diverged-2-") and aside is tree
    now = world.leader()
    assert now is not None and now.surrendered and now.final is None
    primary.seat.copies = True
    world["c"].ask("promote", accept_data_loss=True)
    world.wait_for_primary("c", 60.0)
    history = world.store.get(world.key("history/3"))
    assert history is not None and (HistoryEntry.parse(history.value).lost_s or 0.0) > 10.0


def test_a_replaced_primary_whose_file_is_deleted_steps_down_all_the_same(world: SimWorld) -> None:
    """Else programs on it would write into its tree for ever, and lose that without a word."""
    world.begin().hand_to("b")
    world.wait_for_primary("b")
    world.run(10.0)
    primary = world["b"]
    tree = primary.live
    (primary.config.state_dir / "own-epoch.json").unlink()
    world.isolate("b")
    world.wait_for("a successor", lambda: world.epoch() == 3, 120.0)
    world.join("b")
    world.wait_for("the tree is put away", lambda: primary.asides() != {})
    world.run(10.0)
    [(name, aside)] = primary.asides().items()
    assert name.startswith("services.diverged-2-") and aside is tree and aside.read_only
    assert not (primary.config.state_dir / "own-epoch.json").exists()


def test_a_whole_cluster_that_loses_power_comes_back_without_loss(world: SimWorld) -> None:
    world.begin()
    for node in world.nodes.values():
        node.power_cut()
    world.run(5.0)
    for node in world.nodes.values():
        node.boot()
    world.wait_for_primary(limit_s=90.0)


def test_there_is_no_primary_after_a_plain_wait_without_a_first_word(tmp_path: Path) -> None:
    with SimWorld(tmp_path) as world:
        for node in world.nodes.values():
            node.boot()
        world.run(60.0)
        assert set(reasons(world).values()) == {Reason.NOT_INITIALISED}
        assert world.leader() is None


@pytest.mark.parametrize("fault", ["frozen", "broken"])
def test_a_volume_whose_disk_is_gone_takes_no_other_with_it(tmp_path: Path, fault: str) -> None:
    """It goes to another node, and what is left of it here may never be put away."""
    with SimWorld(tmp_path, volumes=("data", "media")) as world:
        primary = world.begin()
        setattr(primary.disk, fault, True)
        primary.disk.only = "data"
        world.wait_for("another one has it", lambda: world.epoch("data") == 2, 180.0)
        world.wait_for_primary("a", volume="media", limit_s=20.0)
        world.run(120.0)
        assert (world.epoch("data"), world.epoch("media")) == (2, 1)
        assert [world.primary(volume) for volume in world.volumes] != [primary, primary]
        assert world.primary("media") is primary


def test_a_disk_that_dies_before_an_epoch_has_its_tree_leaves_a_way_out(tmp_path: Path) -> None:
    """There is no own-epoch.json yet: in mode manual `demote` is the only way."""
    with SimWorld(tmp_path, mode="manual") as world:
        primary, target = world.begin(), world["b"]
        committed = world.store.on_commit

        def breaks(ops: Sequence[Op]) -> None:
            committed(ops)
            target.disk.broken = target.disk.broken or world.epoch() == 2

        world.store.on_commit = breaks
        primary.hand_to("b")
        world.wait_for("epoch 2", lambda: world.epoch() == 2)
        world.run(20.0)
        answer = target.ask("demote")
        world.run(20.0)
        assert "gave up a role" in answer.last
        primary.ask("promote")
        world.wait_for_primary("a", 60.0)
        assert world.epoch() == 3


def test_a_tree_given_up_without_its_final_snapshot_is_not_called_retired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent is frozen before its release, and the lease process surrenders meanwhile."""
    with SimWorld(tmp_path) as world:
        primary = world.begin()
        world.run(5.0)
        primary.seat.copies = False
        world.run(20.0)
        take = volume.take_final_snapshot

        def take_and_freeze(machine: Machine, own: OwnEpoch) -> Snapshot:
            primary.freeze(primary.seat.agent_service, 208.0)
            return take(machine, own)

        monkeypatch.setattr(volume, "take_final_snapshot", take_and_freeze)
        primary.ask("demote")
        world.wait_for("clean", lambda: (now := world.leader()) is not None and now.is_clean, 208.0)
        now = world.leader()
        assert now is not None and now.surrendered and now.to is not None
        world[now.to].power_cut()
        world.wait_for("the tree is put away", lambda: primary.asides() != {}, 30.0)
        assert (world.epoch(), primary.live) == (1, None), "nobody has followed yet"
        [aside] = primary.asides()
        assert aside.startswith("services.diverged-1-")
        world.wait_for_primary(limit_s=120.0)


def test_who_gave_one_of_two_volumes_up_keeps_no_successor_from_serving_it(tmp_path: Path) -> None:
    """Its agent is dead, and its port answers for the other volume."""
    with SimWorld(tmp_path, volumes=("data", "media"), failover_cooldown_s=0.0) as world:
        primary = world.begin()
        world.run(5.0)
        primary.disk.broken, primary.disk.only = True, "media"
        for name in ("b", "c"):
            world[name].nfsd.broken = True  # until a's server is there again, for `data`
        service = primary.seats["media"].agent_service
        assert service.process is not None
        service.wanted = False
        world.clockwork.kill(service.process)
        primary.nfsd.table.pop("media")
        world.wait_for("epoch 2", lambda: world.epoch("media") == 2, 300.0)
        world.run(10.0)
        for name in ("b", "c"):
            world[name].nfsd.broken = False
        world.wait_for_primary(volume="media", limit_s=60.0)
        world.wait_for_primary("a", volume="data", limit_s=20.0)


def test_an_entry_by_hand_at_a_server_that_goes_on_keeps_the_role_where_it_is(
    tmp_path: Path,
) -> None:
    """The target's guard would refuse the server with the lease in its hands."""
    with SimWorld(tmp_path, volumes=("data", "media")) as world:
        primary = world.begin()
        world.run(5.0)
        config, link = primary.seats["data"].config, primary.link
        link.services["by-hand"] = AgentService(
            config.service, config.me.address, config.nfs.port, {}, math.inf, passing=True
        )
        link.tell_servers()
        world.copy_s = 2.0  # meanwhile the port is open again for `media`
        reply = world.ask("a", "switchover", "data", to="b")
        world.wait_for("an answer", lambda: reply.closed)
        assert "on a: consul services deregister -id=by-hand" in reply.last
        assert primary.serves and world.epoch("data") == 1
        del link.services["by-hand"]
        link.tell_servers()
        world.ask("a", "switchover", "data", to="b")
        world.wait_for_primary("b", volume="data")


@pytest.mark.parametrize("ends", ["switchover", "surrender"])
def test_a_damaged_file_of_another_volume_is_in_the_way_of_nobody(
    tmp_path: Path, ends: str
) -> None:
    with SimWorld(tmp_path, volumes=("data", "media")) as world:
        primary = world.begin()
        world.run(5.0)
        gone = primary.directory / "run" / "gone"
        gone.mkdir()
        (gone / "lease.json").write_text('{"v": 1}')
        if ends == "switchover":
            world.ask("a", "switchover", "data", to="b")
            world.wait_for_primary("b", volume="data")
        else:
            primary.disk.broken, primary.disk.only = True, "data"
            world.wait_for("another one has it", lambda: world.epoch("data") == 2, 180.0)
        world.wait_for_primary("a", volume="media", limit_s=20.0)
        world.run(30.0)
        assert "data" not in primary.nfsd.table and world.epoch("media") == 1


def start_by_hand(node: SimNode, volume: str) -> None:
    """`systemctl start standfast-lease@VOLUME`, by somebody on the node."""
    service = node.seats[volume].lease

    def body() -> None:
        with contextlib.suppress(StandfastError):
            service.start(Deadline.after(20.0))

    node.spawn("by hand", body)
    node.world.run(20.0)
    assert not service.runs


@pytest.mark.parametrize("held_before", [False, True])
def test_a_claim_that_is_refused_stops_no_server_of_another_volume(
    tmp_path: Path, held_before: bool
) -> None:
    """It has nothing to lose: it held nothing in this boot, or gave it up in order."""
    with SimWorld(tmp_path, volumes=("data", "media")) as world:
        world.begin()
        world.run(5.0)
        node = world["b"]
        if held_before:
            world.ask("a", "switchover", "data", to="b")
            world.wait_for_primary("b", volume="data", limit_s=30.0)
            world.run(5.0)
            world.ask("b", "switchover", "data", to="c")
            world.wait_for_primary("c", volume="data", limit_s=30.0)
        world.ask("a", "switchover", "media", to="b")
        world.wait_for_primary("b", volume="media", limit_s=30.0)
        world.run(5.0)
        starts = node.nfsd.starts
        start_by_hand(node, "data")
        assert node.nfsd.running and node.nfsd.starts == starts
        assert world.primary("media") is node


def test_a_lease_process_that_held_the_lease_and_fails_stops_the_server(tmp_path: Path) -> None:
    """It crashes until it is started no more, and the agents hang: systemd alone does it."""
    with SimWorld(tmp_path, volumes=("data", "media")) as world:
        primary = world.begin()
        world.run(5.0)
        for seat in primary.seats.values():
            primary.freeze(seat.agent_service, 30.0)
        for _ in range(LEASE_BURST):
            primary.kill_keeper("data")
            world.run(1.0)
        assert not primary.seats["data"].lease.runs
        world.wait_for("its server stops", lambda: not primary.nfsd.running, 10.0)
        world.wait_for_primary("a", volume="data", limit_s=120.0)


def serve_beside(node: SimNode) -> None:
    """By hand, around the guard and without the fence's rules."""
    live = node.config.paths.live
    live.mkdir()
    node.disk.data.put(live, SimTree("made by hand", []))
    node.nfsd.running = True
    node.nfsd.table["data"] = "by hand"
    node.rules.flush()


def test_the_harness_sees_two_serving_nodes(tmp_path: Path) -> None:
    with SimWorld(tmp_path) as world:
        world.begin()
        serve_beside(world["b"])
        with pytest.raises(Violation, match=r"(a and b|b and a) serve"):
            world.run(5.0)


CHECKS: list[tuple[str, Callable[[SimWorld], bool]]] = [
    ("state", lambda w: (now := w.leader()) is not None and now.state is LeaderState.SERVING),
    ("action", lambda w: w["b"].decision is not None and w["b"].decision.action is Action.NOTHING),
]


@pytest.mark.parametrize(("what", "holds"), CHECKS, ids=[what for what, _ in CHECKS])
def test_an_undisturbed_cluster_stays_as_it_is(
    world: SimWorld, what: str, holds: Callable[[SimWorld], bool]
) -> None:
    primary = world.begin()
    world.run(120.0)
    assert holds(world)
    assert (world.epoch(), primary.serves) == (1, True)
