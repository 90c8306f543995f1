"""The harness can fail: each safety rule, taken away, makes it report a violation."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

import pytest
from msgspec import structs

from standfast.config.model import LeaseTiming
from standfast.consul.gateway import Committed, Conflict
from standfast.consul.values import Cas, Op, Set
from standfast.lease import holding, protocol
from standfast.lease.epochs import EpochFile
from standfast.lease.protocol import NEVER, HeldLease
from standfast.replication.reporting import EpochInConsul
from standfast.role import observation
from tests.sim.clockwork import Violation
from tests.sim.deeds import Deed, Schedule
from tests.sim.model_consul import SimConsul, kind_of
from tests.sim.mutations import MUTATIONS, a_shorter_wait
from tests.sim.node import SimNode
from tests.sim.restores import restored_to_a_clean
from tests.sim.search import run
from tests.sim.world import SimWorld


def frozen_at_a_bad_moment(world: SimWorld) -> None:
    """The keeper is frozen right after a heartbeat committed, until a successor serves."""
    primary = world.begin()
    world.fault("a", "heartbeat", "freeze-after", 90.0)
    primary.watchdogs = False
    primary.freeze(primary.seat.agent_service, 120.0)
    world.run(130.0)


def a_dead_keeper(world: SimWorld) -> None:
    """The kernel alone ends the permit of a keeper that is dead or frozen."""
    world.begin()
    world.run(1.0)
    world["a"].freeze_all(90.0)
    world["a"].down_since = world.now - 60.0
    world.run(100.0)


def a_late_clean(world: SimWorld) -> None:
    """A switchover that was rolled back; its `clean` arrives when the old primary serves."""
    primary = world.begin()
    primary.hand_to("b")
    world.fault("a", "clean", "late", 12.0)
    world.fault("a", "clean", "lost", count=5)
    world.run(60.0)


def a_frozen_opener(world: SimWorld) -> None:
    primary = world.begin()
    primary.rules.freeze_in_arm_s = 80.0
    primary.freeze(primary.seat.agent_service, 120.0)
    primary.watchdogs = False
    world.run(130.0)


def two_failovers_and_the_first_node_alone(world: SimWorld) -> None:
    """The first primary has what its successor never had, and is asked to serve it."""
    world.begin()
    world["a"].seat.copies = False
    world.run(20.0)
    primary = world["a"]
    primary.spawn("snapshot", lambda: primary.seat.snapshot(1))
    world.run(1.0)
    primary.power_cut()
    world.wait_for_primary("c")
    world["c"].seat.copies = False
    primary.boot()
    world.run(20.0)
    world["b"].power_cut()
    world["c"].power_cut()
    primary.ask("promote")
    world.run(40.0)


def a_reused_number(world: SimWorld) -> None:
    """A killed keeper's heartbeat commits after its successor on the node has looked, whose own
    one, of the same number, is sent long after that and refused."""
    primary = world.begin()
    world.unlink("a", "b")
    world.unlink("a", "c")
    primary.kill_agent()
    beats = primary.config.lease.heartbeat
    world.fault("a", "heartbeat", "late", 4.0)
    world.wait_for("the time-out of a heartbeat", lambda: not primary.link.faults, beats)
    primary.stop_keeper()
    world.fault("a", "read", "freeze-after", 10.0)
    primary.seat.lease.launch()
    world.after(10.3, lambda: world.isolate("a"))
    world.run(40.0)


def test_each_schedule_is_harmless_to_the_program_as_it_is(tmp_path: Path) -> None:
    for number, schedule in enumerate(SCHEDULES):
        with SimWorld(tmp_path / str(number)) as world:
            schedule(world)


SCHEDULES = (
    frozen_at_a_bad_moment,
    a_dead_keeper,
    a_late_clean,
    a_frozen_opener,
    two_failovers_and_the_first_node_alone,
    a_reused_number,
)


def test_a_wait_that_breaks_the_timing_rule_is_noticed(tmp_path: Path) -> None:
    short = structs.replace(LeaseTiming(), wait=4.0)
    with pytest.raises(Violation, match="serve data at"), SimWorld(tmp_path, timing=short) as world:
        world.begin()
        before = world.leader()
        while world.leader() == before:  # right after a heartbeat: its lease is a whole one
            world.run(0.1)
        world.isolate("a")
        world.run(60.0)


def test_a_heartbeat_counted_from_its_reply_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = protocol.committed

    def from_the_reply(held_lease: HeldLease, seq: int, index: int, length_s: float) -> HeldLease:
        return real(
            structs.replace(held_lease, attempts={seq: vars(holding)["monotonic"]()}),
            seq,
            index,
            length_s,
        )

    monkeypatch.setattr(protocol, "committed", from_the_reply)
    with pytest.raises(Violation, match="serve data at"), SimWorld(tmp_path) as world:
        frozen_at_a_bad_moment(world)


def test_a_late_clean_without_its_cas_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SimConsul.txn

    def forced(client: SimConsul, ops: Sequence[Op], **rest: object) -> Committed | Conflict:
        if kind_of(ops) == "clean":
            ops = [Set(op.key, op.value) for op in ops if isinstance(op, Cas)]
        return real(client, ops)

    monkeypatch.setattr(SimConsul, "txn", forced)
    with (
        pytest.raises(Violation, match=r"serve data at|acknowledged|starts from"),
        SimWorld(tmp_path) as world,
    ):
        a_late_clean(world)


def test_an_opening_without_its_deadline_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(Violation, match="serve data at"), SimWorld(tmp_path) as world:
        world["a"].rules.keeps_latest = False
        a_frozen_opener(world)


def test_a_snapshot_outside_the_lineage_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "in_lineage", lambda available, cluster: True)
    with pytest.raises(Violation, match="outside the lineage"), SimWorld(tmp_path) as world:
        two_failovers_and_the_first_node_alone(world)


def test_a_number_that_is_used_twice_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "SEQ_JUMP", (0, 1))
    with pytest.raises(Violation, match="serve data at"), SimWorld(tmp_path) as world:
        a_reused_number(world)


def test_keys_written_back_by_a_lapsed_holder_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = protocol.read_back

    def as_if_valid(
        held_lease: HeldLease, held: protocol.Versioned, now: float, length_s: float, wait_s: float
    ) -> protocol.Verdict:
        return real(held_lease, held, NEVER, length_s, wait_s)

    monkeypatch.setattr(protocol, "read_back", as_if_valid)
    with pytest.raises(Violation, match="epoch 1 after 2"), SimWorld(tmp_path) as world:
        world.begin()
        world.isolate("a")
        world.wait_for_primary("c")
        world.run(1.7)
        world.join("a")
        world.store.delete(world.key("leader"), world.key("epoch"))
        world["a"].kill_agent()
        world.run(10.0)


def test_an_acknowledged_write_that_no_disk_has_is_noticed(tmp_path: Path) -> None:
    with SimWorld(tmp_path) as world:
        primary = world.begin()
        for node in (primary, world["b"], world["c"]):
            for tree in node.disk.data.trees.values():
                tree.writes.clear()
        with pytest.raises(Violation, match="were deleted"):
            world.check_nothing_deleted()


def test_a_fault_of_the_program_that_it_survives_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent tells it and looks again, for ever: no schedule must take that for an answer."""

    def broken(*_: object) -> NoReturn:
        raise AssertionError("a bug")

    with SimWorld(tmp_path) as world:
        world.begin()
        world.check_no_bug()
        monkeypatch.setattr("standfast.agent.loop.decide", broken)
        world.run(3.0)
        with pytest.raises(Violation, match=r"nobody's.*a bug"):
            world.check_no_bug()


# Rules that later faults asked for: each with the shortest schedule that needs it


def stale_sender(world: SimWorld) -> SimNode:
    """The first primary, replaced, still believes that it holds epoch 1."""
    primary = world.begin()
    primary.seat.copies = False
    world["b"].kill_agent()
    world.isolate("a")
    world.wait_for_primary("c", 90.0)
    world["c"].seat.copies = False
    world.cut_ways.clear()
    return primary


def send(world: SimWorld, node: SimNode) -> None:
    with (
        patch.object(EpochInConsul, "epoch", lambda _self: 1),
        patch.object(EpochInConsul, "index_of", lambda _self, _epoch: 1),
    ):
        node.spawn("replicate", lambda: node.seat.cycle("b"))
        world.run(40.0)


def a_heartbeat_within_an_acquisition(world: SimWorld) -> None:
    """The holder's process wakes while a candidate stands between its look and its transaction; its
    agent doesn't, which would step down."""
    primary = world.begin()
    primary.watchdogs = False
    primary.freeze(primary.seat.agent_service, 90.0)
    world.unlink("a", "b")
    world.unlink("a", "c")
    world["b"].power_cut()
    world.fault("c", "acquire", "freeze-before", 1.5)

    def keep_frozen() -> None:
        if world["c"].link.faults:
            primary.freeze(primary.seat.lease, 0.4)
            world.after(0.3, keep_frozen)

    keep_frozen()
    world.run(90.0)


def flushed_beside_a_successor(world: SimWorld) -> None:
    primary = world.begin()
    world.isolate("a")
    world.wait_for_primary("c")
    primary.rules.flush("both", world.now)
    world.run(15.0)


def flushed_beside_a_successor_with_the_agent_frozen(world: SimWorld) -> None:
    primary = world.begin()
    world.isolate("a")
    primary.freeze(primary.seat.agent_service, 90.0)
    world.wait_for_primary("c")
    primary.rules.flush("both", world.now)
    world.run(15.0)


def a_shorter_lease_told_at_once(world: SimWorld) -> None:
    primary = world.begin()
    primary.seat.config = structs.replace(primary.config, lease=LeaseTiming())
    world.fault("a", "heartbeat", "freeze-after", 90.0)
    primary.watchdogs = False
    primary.stop_keeper()
    primary.freeze(primary.seat.agent_service, 120.0)
    primary.down_since = world.now - 60.0
    world.unlink("a", "b")
    world.unlink("a", "c")
    primary.seat.lease.launch()
    world.run(90.0)


def a_stale_sender_after_a_restore(world: SimWorld) -> None:
    """Consul names it holder again; the receiver knows better."""
    saved = None

    def save() -> None:
        nonlocal saved
        saved = world.store.backup()

    world.after(18.0, save)
    primary = stale_sender(world)
    EpochFile(world["b"].config.state_dir / "epoch").raise_to(2)
    assert saved is not None
    world.restore(saved)
    send(world, primary)


def a_stale_sender(world: SimWorld) -> None:
    send(world, stale_sender(world))


def an_epoch_that_changes_under_a_stream(world: SimWorld) -> None:
    primary = world.begin()
    primary.seat.copies = False
    world["b"].kill_agent()
    world.copies_held = True
    primary.spawn("replicate", lambda: primary.seat.cycle("b"))
    world.run(1.0)
    world.isolate("a", standbys=False)
    world.wait_for("a takeover", lambda: world.epoch() == 2, 90.0)
    world.copies_held = False
    world.run(20.0)


def clocks_that_were_ahead(world: SimWorld) -> None:
    """Set right later: what is taken then still comes after the names from the future."""
    primary = world.begin()
    for node in world.nodes.values():
        node.clock.utc_step_s = 3600.0
    world.run(12.0)
    for node in world.nodes.values():
        node.clock.utc_step_s = 0.0
    world.run(20.0)
    primary.hand_to("b")
    world.wait_for_primary("b", 40.0)


def a_state_directory_that_fails(world: SimWorld) -> None:
    primary = world.begin()
    for name in ("b", "c"):
        world[name].var_error = errno.EIO
    primary.power_cut()
    world.run(40.0)


def a_server_that_is_dead(world: SimWorld) -> None:
    world.begin().nfsd.broken = True
    world.wait_for("another one serves", lambda: world.epoch() == 2, 180.0)


def answers_that_come_late(world: SimWorld) -> None:
    """What was asked before the cut is answered when another node serves."""
    primary = world.begin()
    primary.nfsd.answer_s = 20.0
    world.run(1.0)
    world.isolate("a")
    world.run(40.0)


LONG = LeaseTiming(length=40.0, wait=45.0)
SHORT_LATER = {"a": LONG, "b": LeaseTiming(), "c": LeaseTiming()}
RULES = {
    "acquire-without-cas": (a_heartbeat_within_an_acquisition, "serve data"),
    "answers-not-fenced": (answers_that_come_late, "serve data"),
    "clean-found-taken-at-once": (restored_to_a_clean, "serve data"),
    "check-end-off": (flushed_beside_a_successor_with_the_agent_frozen, "serve data"),
    "flush-not-noticed": (flushed_beside_a_successor, "serve data"),
    "told-wait-too-short": (a_shorter_lease_told_at_once, "serve data"),
    "receiver-without-epoch": (a_stale_sender_after_a_restore, "had seen epoch 2"),
    "receiver-without-holder": (a_stale_sender, "the lease was that of epoch 2"),
    "receiver-without-second-look": (
        an_epoch_that_changes_under_a_stream,
        "the lease was that of epoch 2",
    ),
    "order-by-the-clock": (clocks_that_were_ahead, "b serves: not within|starts from"),
    "errors-not-caught": (a_state_directory_that_fails, "by a traceback"),
    "no-surrender": (a_server_that_is_dead, "not within 180 s"),
}


def in_its_world(directory: Path, schedule: Callable[[SimWorld], None]) -> None:
    timings = SHORT_LATER if schedule is a_shorter_lease_told_at_once else None
    with SimWorld(directory, timings=timings) as world:
        schedule(world)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_schedule_of_a_rule_is_harmless_with_it(tmp_path: Path, rule: str) -> None:
    in_its_world(tmp_path, RULES[rule][0])


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_that_is_taken_away_is_noticed(tmp_path: Path, rule: str) -> None:
    schedule, what = RULES[rule]
    with MUTATIONS[rule](), pytest.raises(Violation, match=what):
        in_its_world(tmp_path, schedule)


@pytest.mark.parametrize(("by_s", "safe"), [(0.0, True), (0.3, False)])
@pytest.mark.parametrize("timing", ["fast", "slow"])
def test_the_timing_rule_is_tight(timing: str, by_s: float, safe: bool) -> None:
    """The last heartbeat opens the port at the last moment, the kernel takes the rule's second for
    it, clocks differ by all that they may, and the successor loses no time: 0.3 s less of
    `wait` puts two servers up."""
    late = Deed(1.0, "arm-late", "a", 60.0, 0)
    schedule = Schedule(1, timing, ("data",), (0.99, 1.01, 1.01), 0.0, True, (late,))
    with a_shorter_wait(by_s):
        _, violation = run(schedule)
    assert (violation is None) is safe, violation
