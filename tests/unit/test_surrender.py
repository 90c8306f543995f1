"""A holder that can't serve gives the role up by itself: when, to whom, and what it is told as."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import structs

from standfast.agent.inspector import Inspection
from standfast.agent.local_view import LocalView
from standfast.agent.loop import Agent, Seen
from standfast.agent.upkeep import keep_up
from standfast.agent.watcher import Watcher
from standfast.ages import UNKNOWN
from standfast.config.model import Config
from standfast.consul.records import (
    CandidateRecord,
    HistoryEntry,
    Hold,
    Holder,
    Leader,
    LeaderState,
    Pause,
    dump_epoch,
)
from standfast.errors import ConsulTimedOut, StandfastError
from standfast.lease import cutoff
from standfast.lease import keeper as keeper_module
from standfast.lease import process as lease_process
from standfast.lease.epochs import EpochFile
from standfast.lease.files import NOTHING_HELD, LeaseStatus, Vouch
from standfast.lease.holding import LeaseKeys
from standfast.lease.inbox import Inbox
from standfast.lease.keeper import Keeper
from standfast.lease.process import answer, hold, previous_status, run
from standfast.lease.protocol import Claim
from standfast.lease.surrender import (
    FRESH_S,
    MOST_S,
    OUTAGE_LIMIT_S,
    PAID_OFF,
    TOLD_EVERY_S,
    TOLD_FROM_S,
    Sign,
    Spell,
    Standing,
    had_it,
    watch,
)
from standfast.lease.surrender import successor as judge
from standfast.lease.unserved import ASK_EVERY_S, VOUCH_S, Now
from standfast.names import SnapshotName
from standfast.node.obstacle import Obstacle
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import FenceState, LiveTree, Snapshot
from standfast.reasons import Reason
from standfast.role import readiness, registration, volume
from standfast.role.decide import decide
from standfast.role.decision import Action, Decision, Moment, Request
from standfast.role.observation import Available, Beginning, Cluster, LastHeartbeat, Local
from standfast.system.clock import Deadline, monotonic, utc_now
from standfast.system.locks import exclusive
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.consul import MemoryConsul
from tests.fakes.machine import FakeFence, FakeNfs, FakeNode, World, fake_node
from tests.support.configs import config_in

NOW = 10_000.0
AFTER_S = 60.0


def word(node: str = "n2", *, ready: bool = True, epoch: int = 5, age_s: float = 30) -> Any:
    snapshot = str(SnapshotName.at("services", 1_795_342_500 - age_s))
    return CandidateRecord(node, epoch, ready, "surrendered", snapshot, epoch, 0.0)


def sign(node: str = "n2", *, changed_ago_s: float | None = 5.0, **more: Any) -> dict[str, Sign]:
    changed_at = None if changed_ago_s is None else NOW - changed_ago_s
    return {node: Sign(word(node, **more), 7, changed_at)}


def history_entry(reason: str = "operator") -> HistoryEntry:
    return HistoryEntry(5, "n1", None, reason, None, 0.0, 0.0)


STANDING = Standing(5, 100.0, AFTER_S, AFTER_S, None, history_entry(), signs=sign())


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path)


# When, and to whom


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "n2"),
        ({"unserved_s": AFTER_S - 0.1}, None),
        ({"pause": Pause("ann", "disks", 0.0)}, Reason.PAUSED),
        ({"signs": {}}, Reason.NO_STANDBY_READY),
        ({"signs": sign(ready=False)}, Reason.NO_STANDBY_READY),
        ({"signs": sign(epoch=4)}, Reason.NO_STANDBY_READY),
        ({"signs": sign(changed_ago_s=None)}, Reason.NO_STANDBY_READY),
        ({"signs": sign(changed_ago_s=FRESH_S + 1)}, Reason.NO_STANDBY_READY),
        ({"signs": sign("n9")}, Reason.NO_STANDBY_READY),
        ({"signs": {**sign("n2", age_s=90), **sign("n3", age_s=30)}}, "n3"),
        ({"signs": {**sign("n2", age_s=30), **sign("n3", ready=False)}}, "n2"),
        ({"history_entry": history_entry("takeover: n9 was dead")}, Reason.COOLDOWN),
        ({"history_entry": history_entry("surrendered: n9 could not serve")}, Reason.COOLDOWN),
        ({"history_entry": history_entry("takeover"), "held_s": 600.0}, "n2"),
        ({"history_entry": history_entry("takeover"), "served": False}, "n2"),
        (
            {
                "history_entry": history_entry("surrendered"),
                "served": False,
                "had_it": frozenset({"n2"}),
            },
            Reason.NO_STANDBY_READY,
        ),
        (
            {
                "history_entry": history_entry("surrendered"),
                "had_it": frozenset({"n2"}),
                "held_s": 600.0,
            },
            "n2",
        ),
        ({"served": False, "had_it": frozenset({"n2"})}, "n2"),
        ({"history_entry": history_entry("clean-handover")}, "n2"),
        ({"history_entry": None}, "n2"),
    ],
)
def test_a_role_is_surrendered_to(
    changes: dict[str, Any], outcome: str | Reason | None, config: Config
) -> None:
    assert judge(replace(STANDING, **changes), config, NOW) == outcome


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [({"surrender_after": 0.0}, None), ({"mode": "manual"}, Reason.MANUAL_MODE)],
)
def test_a_configuration_keeps_the_role_here(
    changes: dict[str, Any], outcome: Reason | None, config: Config
) -> None:
    assert judge(STANDING, structs.replace(config, **changes), NOW) == outcome


def test_a_word_from_before_the_first_look_is_that_of_nobody() -> None:
    words = {"n2": (word(), 7)}
    signs = watch({}, words, NOW)
    assert signs["n2"].changed_at is None
    signs = watch(signs, words, NOW + 5)
    assert signs["n2"].changed_at is None
    signs = watch(signs, {"n2": (word(), 8)}, NOW + 10)
    assert signs["n2"].changed_at == NOW + 10
    assert watch(signs, {"n2": (word(), 8)}, NOW + 20)["n2"].changed_at == NOW + 10
    assert watch(signs, {}, NOW + 20) == {}


def test_nodes_that_can_not_serve_have_the_role_once_each() -> None:
    def began(epoch: int, node: str, reason: str) -> HistoryEntry:
        return HistoryEntry(epoch, node, None, reason, None, 0.0, 0.0)

    history_entries = {
        4: began(4, "n4", "takeover"),
        5: began(5, "n1", "operator"),
        6: began(6, "n2", "takeover: n1 was dead"),
        7: began(7, "n3", "surrendered: n2 could not serve"),
    }
    assert had_it(history_entries, 7) == {"n1", "n2"}
    assert had_it(history_entries, 6) == {"n1"}
    assert had_it(history_entries, 5) == set()
    assert had_it({7: history_entries[7]}, 7) == set()


def test_time_without_a_lease_is_that_of_consul() -> None:
    spell = Spell(NOW).seen(NOW + 5, "nfsd has no threads")
    assert spell.unserved_s(NOW + 5) == 5
    spell = spell.paused(NOW + 300)
    assert spell.unserved_s(NOW + 300) == 5, "what was before it is not forgotten"
    spell = spell.seen(NOW + 310, "nfsd has no threads")
    assert spell.unserved_s(NOW + 310) == 5
    spell = spell.seen(NOW + 315, "nfsd has no threads")
    assert (spell.unserved_s(NOW + 315), spell.unserved_s(NOW + 317)) == (10, 12)
    assert not spell.served
    spell = spell.seen(NOW + 320, None)
    assert (spell.unserved_s(NOW + 345), spell.served) == (10 - 5 * PAID_OFF, True)
    assert spell.seen(NOW + 330, None).unserved_s(NOW + 330) == 10 - 15 * PAID_OFF, "some of it"
    assert spell.seen(NOW + 350, None).unserved_s(NOW + 400) == 0


@pytest.mark.parametrize("one_in", [5, 6])
def test_a_server_that_serves_most_of_the_time_keeps_the_role(one_in: int) -> None:
    """A look that fails now and then on a loaded machine: not what was served is counted."""
    spell, now = Spell(NOW).seen(NOW, None), NOW
    for number in range(1000):
        sick = "no answer in 2 s" if number % one_in == 0 else None
        for _ in range(5):
            now += 1.0
            spell = spell.seen(now, sick)
        assert spell.unserved_s(now) < 60


def test_a_process_that_was_frozen_does_not_know_what_was_meanwhile() -> None:
    spell = Spell(NOW).seen(NOW + 5, "nfsd has no threads").seen(NOW + 900, "nfsd has no threads")
    assert spell.unserved_s(NOW + 900) == 5 + MOST_S


# Readiness


LEADER = Leader(5, Holder("n1", "boot-1"), 9, LeaderState.SERVING, ("n2", "n3"))


def seen_by(
    config: Config, *, age_s: float = 60.0, pause: Pause | None = None, leader: Leader = LEADER
) -> tuple[Cluster, Local, Moment]:
    now = Moment(NOW, utc_now())
    name = SnapshotName.at("services", now.utc - age_s)
    base = Available(Snapshot(name, Path(str(name)), "c0ffee", received=True), 5)
    history = {5: HistoryEntry(5, "n1", None, "first-primary", None, 0.0, 0.0)}
    last_heartbeat = LastHeartbeat(leader.identity, 9, NOW - 1, witnessed=True)
    view = Cluster(5, leader, last_heartbeat, pause, history)
    return view, Local(config.node, "boot-2", 5, snapshots=(base,)), now


@pytest.mark.parametrize(
    ("scene", "changes", "ready", "reason"),
    [
        ({}, {}, True, Reason.WAITING_FOR_BETTER_CANDIDATE),
        ({"age_s": 601.0}, {}, False, Reason.TOO_OLD),
        ({"pause": Pause("ann", "disks", 0.0)}, {}, False, Reason.PAUSED),
        (
            {"leader": structs.replace(LEADER, candidates=("n3",))},
            {},
            False,
            Reason.NOT_A_CANDIDATE,
        ),
        ({}, {"mode": "manual"}, False, Reason.MANUAL_MODE),
    ],
)
def test_a_standby_is_ready_when_it_would_take_over(
    scene: dict[str, Any], changes: dict[str, Any], ready: bool, reason: Reason, config: Config
) -> None:
    config = structs.replace(config, node="n2", **changes)
    view, local, now = seen_by(config, **scene)
    record = readiness.judge(view, local, config, now)
    assert record is not None
    assert (record.ready, record.reason) == (ready, reason)
    assert CandidateRecord.parse(record.dump()) == record
    # And then it does.
    gone = structs.replace(LEADER, state=LeaderState.CLEAN, to="n2", surrendered=True)
    decision = decide(replace(view, leader=gone), local, config, now)
    if ready:
        assert (decision.action, decision.reason) == (Action.PROMOTE, Reason.SURRENDERED)


MASKED = Obstacle("unit", "nfs-server.service is masked", "unmask it")


@pytest.mark.parametrize(
    ("scene", "has", "changes", "because", "ready"),
    [
        ({}, {}, {}, Reason.TAKEOVER, True),
        ({"age_s": 601.0}, {}, {}, Reason.TOO_OLD, False),
        ({"pause": Pause("ann", "disks", 0.0)}, {}, {}, Reason.PAUSED, False),
        ({}, {}, {"mode": "manual"}, Reason.MANUAL_MODE, False),
        ({}, {"snapshots": ()}, {}, Reason.NO_PUBLISHED_SNAPSHOT, False),
        ({}, {"read_only": True}, {}, Reason.VOLUME_READ_ONLY, False),
        ({}, {"obstacles": (MASKED,)}, {}, Reason.NOT_READY, False),
        (
            {"leader": structs.replace(LEADER, state=LeaderState.CLEAN, to=None)},
            {},
            {},
            Reason.DEMOTED,
            False,
        ),
        # Another surrender may follow at once, another takeover not.
        ({"began": "takeover"}, {}, {}, Reason.COOLDOWN, True),
    ],
)
def test_a_standby_tells_what_it_would_do_if_the_primary_died(
    scene: dict[str, Any],
    has: dict[str, Any],
    changes: dict[str, Any],
    because: Reason,
    ready: bool,
    config: Config,
) -> None:
    config = structs.replace(config, node="n2", **changes)
    began = scene.pop("began", None) if (scene := dict(scene)) else None
    view, local, now = seen_by(config, **scene)
    local = replace(local, **has)
    if began is not None:
        entry = HistoryEntry(5, "n1", None, began, None, 0.0, now.utc - 60)
        view = replace(view, history={5: entry}, beginning=Beginning(5, NOW - 60, witnessed=True))
    record = readiness.judge(view, local, config, now, (MASKED,))
    assert record is not None and CandidateRecord.parse(record.dump()) == record
    assert (record.takes_over, record.because) == (because is Reason.TAKEOVER, because)
    assert (record.sentence is None) == record.takes_over
    assert record.ready is ready and record.obstacles == (str(MASKED),)
    # And then it does, or not: the same node, when the primary has been silent for long enough.
    later = Moment(NOW + 1000.0, now.utc)
    dead = replace(view, holder_health="critical")
    decision = decide(dead, local, config, later)
    if because is not Reason.COOLDOWN:  # which is over by then
        assert (decision.action is Action.PROMOTE) == record.takes_over


def test_a_standby_whose_disk_takes_no_writes_is_not_ready(config: Config) -> None:
    config = structs.replace(config, node="n2")
    view, local, now = seen_by(config)
    record = readiness.judge(view, replace(local, read_only=True), config, now)
    assert record is not None
    assert (record.ready, record.reason) == (False, Reason.VOLUME_READ_ONLY)


def test_a_standby_that_consul_hides_is_not_ready_and_takes_over_from_a_dead_primary(
    config: Config,
) -> None:
    config = structs.replace(config, node="n2")
    view, local, now = seen_by(config)
    record = readiness.judge(view, local, config, now, hidden="in maintenance")
    assert record is not None
    assert (record.ready, record.reason) == (False, Reason.CHECK_CRITICAL)
    record = readiness.judge(view, replace(local, read_only=True), config, now, hidden="x")
    assert record is not None and record.reason == Reason.VOLUME_READ_ONLY, "what is graver"
    dead = replace(
        view,
        last_heartbeat=replace(view.last_heartbeat, first_seen=NOW - 100, witnessed=False),
        holder_health="critical",
    )
    assert decide(dead, local, config, now).action is Action.PROMOTE


def test_a_standby_that_consul_calls_otherwise_is_not_ready(config: Config) -> None:
    config = structs.replace(config, node="n2")
    view, local, now = seen_by(config)
    record = readiness.judge(replace(view, named="n2.lan"), local, config, now)
    assert record is not None
    assert (record.ready, record.reason) == (False, Reason.NODE_MISNAMED)


@pytest.mark.parametrize(
    ("idle", "behind_s", "reason"),
    [
        (True, 0, Reason.SURRENDERED),
        (True, 590, Reason.SURRENDERED),
        (True, 610, Reason.TOO_OLD),
        (False, 0, Reason.TOO_OLD),
    ],
)
def test_an_epoch_that_never_served_makes_no_snapshot_older(
    idle: bool, behind_s: float, reason: Reason, config: Config
) -> None:
    """What is lost with it is what it began with and the next one lacks: by the next one's own
    count, as names are a second apart where a clock was ahead before."""
    config = structs.replace(config, node="n2")
    view, local, now = seen_by(config, age_s=2000.0)
    [base] = local.snapshots
    local = replace(local, snapshots=(replace(base, taken_at=now.utc - 2000.0),))
    began = str(SnapshotName(base.snapshot.name.stamp + (behind_s > 0), "services"))
    history = {5: HistoryEntry(5, "n1", began, "takeover", None, 0.0, now.utc - 900)}
    holder = structs.replace(LEADER, unserved=900.0, idle=idle)
    beginning = Beginning(5, NOW - 2000.0 + behind_s)
    view = replace(view, history=history, leader=holder, beginning=beginning)
    told = readiness.judge(view, local, config, now)
    assert told is not None and told.ready is (reason is Reason.SURRENDERED)
    gone = structs.replace(holder, state=LeaderState.CLEAN, to="n2", surrendered=True)
    decision = decide(replace(view, leader=gone), local, config, now)
    assert decision.reason is reason
    if decision.action is Action.PROMOTE:
        assert decision.lost_s == pytest.approx(behind_s, abs=1)


@pytest.mark.parametrize("known", [True, False])
def test_of_an_epoch_that_began_unseen_nothing_is_told_as_less_than_it_is(
    known: bool, config: Config
) -> None:
    config = structs.replace(config, node="n2")
    view, local, now = seen_by(config, age_s=2000.0)
    [base] = local.snapshots
    if not known:
        local = replace(local, snapshots=(replace(base, taken_at=UNKNOWN),))
    began = str(SnapshotName(base.snapshot.name.stamp + 1, "services"))
    history = {5: HistoryEntry(5, "n1", began, "takeover", None, 0.0, now.utc - 1999)}
    gone = structs.replace(LEADER, idle=True, state=LeaderState.CLEAN, to="n2", surrendered=True)
    view = replace(view, history=history, leader=gone)
    assert decide(view, local, config, now).reason is Reason.TOO_OLD
    decision = decide(view, local, config, now, Request(promote=True, accept_data_loss=True))
    assert decision.lost_s == (pytest.approx(1999, abs=1) if known else None)


def test_a_candidate_tells_what_it_would_start_from(config: Config) -> None:
    """Of an epoch that never served the holder can't know who has more than it began with."""
    config = structs.replace(config, node="n2")
    view, local, now = seen_by(config, age_s=20.0)
    [newer] = local.snapshots
    older = replace(newer, snapshot=replace(newer.snapshot, name=SnapshotName.at("services", 1e9)))
    local = replace(local, snapshots=(older, newer))
    history = {
        5: HistoryEntry(5, "n1", str(older.snapshot.name), "takeover", None, 0.0, now.utc - 900)
    }
    mine = tuple(replace(snapshot, epoch=4) for snapshot in local.snapshots)
    view, local = replace(view, history=history), replace(local, snapshots=mine)
    for idle, best in ((False, older), (True, newer)):
        holder = structs.replace(LEADER, unserved=900.0, idle=idle)
        told = readiness.judge(replace(view, leader=holder), local, config, now)
        assert told is not None and told.snapshot == str(best.snapshot.name)


def test_the_holder_says_nothing_of_itself(config: Config) -> None:
    assert readiness.judge(*seen_by(config)[:2], config, Moment(NOW, utc_now())) is None


def test_readiness_is_told_when_it_changes_and_now_and_then() -> None:
    first = word()
    assert readiness.is_due(None, first, 0.0)
    assert not readiness.is_due(first, structs.replace(first, at=9.0), 1.0)
    assert readiness.is_due(first, first, TOLD_EVERY_S)
    assert readiness.is_due(first, structs.replace(first, ready=False), 1.0)


# The lease's process, on Consul in memory


@dataclass
class Holding:
    """n1 with the lease, a standby n2 that can be alive, and a clock that only this moves."""

    config: Config
    clock: StoppedClock
    consul: MemoryConsul
    keeper: Keeper
    nfs: FakeNfs
    vouches: str | bool | None = None
    """What the agent says of the server every 5 s; False: nothing."""
    told: float = float("-inf")
    standby_lives: bool = True
    standby_key: str = "candidates/n2"
    epoch: int = 1

    def pass_time(self, patience_s: float, _answer: Any) -> bool:
        """As the inbox of `hold`: time passes, and the others do what they do."""
        self.clock.now += max(min(patience_s, 1.0), 0.1)
        if self.vouches is not False and not isinstance(self.vouches, bool):
            Vouch(self.clock.now, self.vouches).save(self.config.run_dir)
        if self.standby_lives and self.clock.now - self.told >= TOLD_EVERY_S:
            told = structs.replace(word(epoch=self.epoch), at=self.clock.now)
            with contextlib.suppress(OSError):
                self.consul.put(self.config.key(self.standby_key), told.dump())
            self.told = self.clock.now
        return self.clock.now < self.until

    until: float = 0.0

    def run(self, seconds: float) -> float:
        """The process for so long, or until it ends; how long that was."""
        begun = self.clock.now
        self.until = begun + seconds
        hold(self.keeper, cast(Inbox, SimpleNamespace(wait=self.pass_time)))
        return self.clock.now - begun

    @property
    def leader(self) -> Leader:
        entry = self.consul.get(self.config.key("leader"))
        assert entry is not None
        return Leader.parse(entry.value)


@pytest.fixture
def holding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Holding:
    clock = stop_the_clock(monkeypatch)
    config = config_in(tmp_path)
    consul = MemoryConsul("n1", "n2", "n3")
    keys = LeaseKeys(config, consul, Holder("n1", "boot-1"))
    held_lease = keys.acquire(Claim(0, None, clock.now - 100, None, "first-primary", None, 0.0))
    world = World()
    nfs = FakeNfs(world, fsid="fsid", running=True)
    keeper = Keeper(config, keys, FakeFence(world), nfs, held_lease, since=clock.now)
    keeper.serve()
    return Holding(config, clock, consul, keeper, nfs)


def test_a_holder_that_serves_keeps_the_role(holding: Holding) -> None:
    holding.run(1000.0)
    assert not holding.keeper.over
    assert holding.leader.unserved == 0


def test_a_holder_that_can_not_serve_hands_the_role_to_one_that_is_ready(holding: Holding) -> None:
    holding.run(30.0)
    holding.vouches = "nfsd has no threads"
    took_s = holding.run(1000.0)
    assert holding.keeper.over
    assert AFTER_S <= took_s <= AFTER_S + 10
    left = holding.leader
    assert (left.state, left.to, left.final, left.surrendered) == (
        LeaderState.CLEAN,
        "n2",
        None,
        True,
    )
    assert left.note is not None and "nfsd has no threads" in left.note
    assert holding.keeper.fence.state() == FenceState(True, 0.0, claimed=False)


def full(_status: LeaseStatus, _run_dir: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_holder_whose_run_directory_is_full_gives_the_role_up(
    holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it said before of its lease is gone: a process that is started after it would go on
    with a time that is over."""
    holding.run(30.0)
    assert previous_status(holding.config.run_dir) is not None
    monkeypatch.setattr(LeaseStatus, "save", full)
    holding.vouches = "nfsd has no threads"
    took_s = holding.run(1000.0)
    assert AFTER_S <= took_s <= AFTER_S + 10
    assert (holding.leader.state, holding.leader.to) == (LeaderState.CLEAN, "n2")
    assert previous_status(holding.config.run_dir) is None


def test_a_lost_lease_stops_the_server_though_nothing_can_be_written(
    holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeaseStatus, "save", full)
    monkeypatch.setattr(keeper_module, "forget_status", full_directory)
    holding.consul.put(holding.config.key("epoch"), dump_epoch(2))
    holding.run(30.0)
    assert holding.keeper.over
    assert "stop-nfs" in holding.nfs.world.log


@pytest.mark.parametrize("by", ["a heartbeat", "a release"])
def test_a_lost_lease_has_the_epoch_of_the_successor_noted(holding: Holding, by: str) -> None:
    """The agent may be dead, and Consul be restored before it lives again."""
    holding.consul.put(holding.config.key("epoch"), dump_epoch(3))
    if by == "a release":
        assert answer(holding.keeper, {"cmd": "release"})["ok"] is False
    assert ended(holding) == 0
    assert EpochFile(holding.config.state_dir / "epoch").read() == 3


def test_an_epoch_that_can_not_be_noted_keeps_nothing_else_from_being_done(
    holding: Holding,
) -> None:
    holding.consul.put(holding.config.key("epoch"), dump_epoch(3))
    damaged = holding.config.state_dir / "epoch"
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_text("?")
    assert ended(holding) == 0
    assert damaged.read_text() == "?"


def test_a_server_that_may_be_left_ends_the_process_with_a_failure(
    holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was a command that found the lease lost, and its caller was told."""

    def stuck(*_: object) -> None:
        raise StandfastError("a thread of nfsd is left")

    monkeypatch.setattr(cutoff, "stop_for_good", stuck)
    holding.consul.put(holding.config.key("epoch"), dump_epoch(3))
    assert answer(holding.keeper, {"cmd": "release"})["ok"] is False
    with pytest.raises(StandfastError, match="is left"):
        ended(holding)
    assert not (holding.config.run_dir / NOTHING_HELD).exists()


def ended(holding: Holding) -> int:
    """The process, from here to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_process, "build", lambda *_: holding.keeper)
        holding.until = holding.clock.now + 30.0
        inbox = contextlib.nullcontext(cast(Inbox, SimpleNamespace(wait=holding.pass_time)))
        keeper = holding.keeper
        return run(holding.config, keeper.keys, keeper.fence, keeper.nfs, inbox)


def full_directory(_run_dir: Path) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def never_opened(holding: Holding) -> None:
    """The promotion didn't come so far."""
    holding.keeper.service.spell = Spell(holding.clock.now)


def test_a_server_that_dies_again_and_again_does_not_serve(holding: Holding) -> None:
    """It is seen well now and then, and lets nobody open anything in its grace time."""
    for _ in range(60):
        holding.vouches = None
        holding.run(8.0)
        holding.vouches = "nfsd has no threads"
        holding.run(6.0)
    assert holding.keeper.over
    assert holding.leader.to == "n2"


def test_an_epoch_whose_port_was_opened_for_a_moment_is_not_idle(holding: Holding) -> None:
    """A client may have written before anybody looked."""
    holding.vouches = "nfsd has no threads"
    Vouch(holding.clock.now, holding.vouches).save(holding.config.run_dir)
    holding.run(500.0)
    assert holding.keeper.over
    assert (holding.keeper.service.spell.served, holding.leader.idle) == (False, False)


def test_an_epoch_that_never_served_is_no_dead_end(holding: Holding) -> None:
    """It took over and can't serve either: it has nothing that another one lacks."""
    never_opened(holding)
    began = HistoryEntry(1, "n1", None, "takeover", None, 0.0, 0.0)
    holding.consul.put(holding.config.key("history/1"), began.dump())
    holding.vouches = "nfsd has no threads"
    Vouch(holding.clock.now, holding.vouches).save(holding.config.run_dir)
    assert holding.run(500.0) <= AFTER_S + TOLD_EVERY_S + 10
    assert (holding.leader.to, holding.leader.idle) == ("n2", True)


def test_the_last_of_those_that_can_not_serve_keeps_the_role(holding: Holding) -> None:
    never_opened(holding)
    holding.keeper.held_lease = structs.replace(holding.keeper.held_lease, epoch=2)
    leader = structs.replace(holding.leader, epoch=2)
    for key, value in {
        "epoch": b'{"v": 1, "epoch": 2}',
        "leader": leader.dump(),
        "history/1": HistoryEntry(1, "n2", None, "operator", None, 0.0, 0.0).dump(),
        "history/2": HistoryEntry(2, "n1", None, "surrendered", None, 0.0, 0.0).dump(),
    }.items():
        holding.consul.put(holding.config.key(key), value)
    holding.epoch = 2
    holding.vouches = "nfsd has no threads"
    holding.run(500.0)
    assert not holding.keeper.over and holding.leader.idle
    holding.run(200.0)
    assert holding.keeper.over, "the other may have been seen to, `failover_cooldown` later"


def test_a_lease_that_lapses_now_and_then_does_not_reset_the_time(holding: Holding) -> None:
    holding.run(10.0)
    holding.vouches = "nfsd has no threads"
    for _ in range(8):
        holding.run(20.0)
        holding.consul.error = OSError("away")
        holding.run(holding.config.lease.length + 2)
        holding.consul.error = None
    assert holding.keeper.over


def test_a_word_from_a_time_that_has_not_come_vouches_for_nothing(holding: Holding) -> None:
    """It is of before a reboot, or written by hand."""
    holding.vouches = False
    Vouch(holding.clock.now + 1e6, None).save(holding.config.run_dir)
    holding.nfs.running = False
    holding.run(500.0)
    assert holding.keeper.over


def test_others_are_asked_right_after_a_heartbeat_and_not_for_long(
    holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease must not run out over the question who else could have it."""
    asked: list[tuple[float, float]] = []
    beats: list[float] = []
    keys, nfs = holding.keeper.keys, holding.nfs
    prospects, heartbeat = keys.prospects, keys.heartbeat

    def look(epoch: int, deadline: Deadline) -> Any:
        asked.append((holding.clock.now, deadline.remaining_s()))
        return prospects(epoch, deadline)

    def check(deadline: Deadline) -> str | None:
        asked.append((holding.clock.now, deadline.remaining_s()))
        holding.clock.now += 1.0
        return "no answer"

    def beat(*args: Any) -> Any:
        outcome = heartbeat(*args)
        if getattr(outcome, "trouble", "lost") is None:
            beats.append(holding.clock.now)
        return outcome

    for part, name, fake in (
        (keys, "prospects", look),
        (nfs, "check", check),
        (keys, "heartbeat", beat),
    ):
        monkeypatch.setattr(part, name, fake)
    holding.vouches = False
    holding.standby_lives = False
    holding.run(200.0)
    assert len(asked) > 20
    limit_s = min(2.0, holding.config.lease.request_timeout)
    for at, left_s in asked:
        assert at in beats or at - 1.0 in beats
        assert left_s <= limit_s - (0.0 if at in beats else 1.0)


@pytest.mark.parametrize("heard", [True, False])
def test_in_a_turn_without_a_heartbeat_nobody_is_asked(
    heard: bool, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That turn's time is the lease's: both questions wait for the next one that commits."""
    asked: list[str] = []
    keys, nfs, service = holding.keeper.keys, holding.nfs, holding.keeper.service
    prospects = keys.prospects

    def look(epoch: int, deadline: Deadline) -> Any:
        asked.append("Consul")
        return prospects(epoch, deadline)

    def check(_: Deadline) -> str:
        asked.append("server")
        return "no answer"

    monkeypatch.setattr(keys, "prospects", look)
    monkeypatch.setattr(nfs, "check", check)
    service.spell = service.spell.seen(holding.clock.now, "no answer")
    holding.clock.now += TOLD_FROM_S + 1
    now = holding.clock.now
    service.look(Now(now, 1, now - 100, valid=True, serving=True, draining=False, heard=heard))
    assert asked == (["server", "Consul"] if heard else [])


def test_who_could_succeed_is_read_at_one_point_in_time(
    holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding.run(5.0)
    read, asked = holding.consul.read, []

    def noted(keys: Any, **more: Any) -> Any:
        asked.append(more)
        return read(keys, **more)

    monkeypatch.setattr(holding.consul, "read", noted)
    monkeypatch.setattr(holding.consul, "get_many", None)
    found = holding.keeper.keys.prospects(1, Deadline.after(60.0))
    assert (len(asked), list(found.candidates)) == (1, ["n2"])


def test_who_is_on_hold_could_not_succeed_though_its_word_is_older(holding: Holding) -> None:
    holding.run(5.0)
    keys = holding.keeper.keys
    assert list(keys.prospects(1, Deadline.after(60.0)).candidates) == ["n2"]
    hold = Hold("n2", "ann", "a new disk", 1e9)
    holding.consul.put(holding.config.key("holds/n2"), hold.dump())
    assert list(keys.prospects(1, Deadline.after(60.0)).candidates) == []


def test_how_long_it_has_not_served_is_told_meanwhile(holding: Holding) -> None:
    holding.vouches = "nfsd has no threads"
    holding.run(TOLD_FROM_S - 3)
    assert holding.leader.unserved == 0
    holding.run(20.0)
    assert 15 <= holding.leader.unserved <= 30
    holding.vouches = None
    holding.run(5.0)
    assert holding.leader.unserved == 0


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("no candidate", Reason.NO_STANDBY_READY),
        ("a dead candidate", Reason.NO_STANDBY_READY),
        ("another's word", Reason.NO_STANDBY_READY),
        ("paused", Reason.PAUSED),
        ("never", None),
        ("flapping", Reason.COOLDOWN),
    ],
)
def test_nobody_else_could_do_better(why: str, told: Reason | None, holding: Holding) -> None:
    holding.vouches = "nfsd has no threads"
    if why == "no candidate":
        holding.standby_lives = False
    elif why == "a dead candidate":
        holding.consul.put(holding.config.key("candidates/n2"), word(epoch=1).dump())
        holding.standby_lives = False
    elif why == "another's word":
        holding.standby_key = "candidates/n3"
    elif why == "paused":
        holding.consul.put(holding.config.key("pause"), Pause("ann", "disks", 0.0).dump())
    elif why == "never":
        holding.keeper.config = holding.config = structs.replace(
            holding.config, surrender_after=0.0
        )
        holding.keeper.service.config = holding.config
    else:
        holding.vouches = None
        holding.run(5.0)
        holding.vouches = "nfsd has no threads"
        began = HistoryEntry(1, "n1", None, "takeover", None, 0.0, 0.0)
        holding.consul.put(holding.config.key("history/1"), began.dump())
    holding.run(500.0)
    assert not holding.keeper.over
    assert holding.leader.state is LeaderState.SERVING
    status = LeaseStatus.load(holding.config.run_dir)
    assert status is not None and status.not_surrendered == told
    holding.vouches = None
    holding.run(200.0)
    status = LeaseStatus.load(holding.config.run_dir)
    assert status is not None and status.not_surrendered is None


def test_an_agent_that_is_away_while_the_server_answers_surrenders_nothing(
    holding: Holding,
) -> None:
    holding.vouches = False
    holding.run(500.0)
    assert not holding.keeper.over and holding.leader.unserved == 0


@pytest.mark.parametrize("dead", ["server", "daemon"])
def test_an_agent_that_is_dead_beside_a_dead_server_keeps_nobody_from_serving(
    holding: Holding, dead: str
) -> None:
    """Or beside one whose daemon is: the lease process asks as the agent does."""
    holding.vouches = False
    holding.nfs.running = dead != "server"
    holding.nfs.daemon_is_dead = dead == "daemon"
    took_s = holding.run(500.0)
    assert holding.keeper.over
    assert took_s <= AFTER_S + VOUCH_S + ASK_EVERY_S + 10


@pytest.mark.parametrize("agent", ["away", "there"])
def test_a_port_that_can_not_be_opened_again_is_no_service(
    agent: str, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full /run, or a failing nft: heartbeats commit, and over loopback the server answers."""

    def arm(_until: float, _latest: float) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(holding.keeper.fence, "arm", arm)
    holding.vouches = False if agent == "away" else "the NFS port is shut, though the lease lasts"
    took_s = holding.run(400.0)
    assert holding.keeper.over and holding.leader.surrendered
    assert took_s < holding.config.surrender_after + 40


def test_a_handover_at_work_has_its_own_time_and_no_more(holding: Holding) -> None:
    """A step that hangs on a dead disk must not keep everybody waiting for ever."""
    holding.vouches = "the NFS port is shut"
    holding.keeper.drain()
    holding.run(OUTAGE_LIMIT_S + AFTER_S - 5)
    assert not holding.keeper.over
    holding.run(20.0)
    assert holding.keeper.over


def test_a_release_whose_outcome_is_not_known_is_repeated_and_not_rolled_back(
    holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding.vouches = "nfsd has no threads"
    real = holding.keeper.keys.release
    tries: list[float] = []
    away = True

    def release(*args: Any) -> Any:
        tries.append(holding.clock.now)
        holding.consul.error = ConsulTimedOut("away", maybe_applied=True) if away else None
        try:
            return real(*args)
        finally:
            holding.consul.error = None

    monkeypatch.setattr(holding.keeper.keys, "release", release)
    holding.run(AFTER_S + 15)
    assert len(tries) > 2 and not holding.keeper.over
    for word_to_go_on in ("serve", "hold"):
        assert answer(holding.keeper, {"cmd": word_to_go_on})["ok"] is False
    assert not holding.keeper.serving
    away = False
    holding.run(5.0)
    assert holding.leader.to == "n2"
    assert [holding.keeper.over] == [True]


def test_an_outage_of_consul_is_no_time_in_which_it_did_not_serve(holding: Holding) -> None:
    holding.consul.error = OSError("away")
    holding.vouches = "the NFS port is shut: the lease has run out"
    holding.run(300.0)
    holding.consul.error = None
    holding.run(20.0)
    assert not holding.keeper.over
    holding.vouches = None
    holding.run(100.0)
    assert not holding.keeper.over and holding.leader.state is LeaderState.SERVING


# The agent


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return fake_node(tmp_path)


def agent_of(node: FakeNode) -> Agent:
    machine = node.machine
    return Agent(machine, Watcher(machine.config, machine.consul), LocalView(machine))


def test_the_agent_vouches_for_what_really_serves_alone(node: FakeNode) -> None:
    agent = agent_of(node)
    run_dir = node.config.run_dir
    keep_up(agent)
    assert Vouch.load(run_dir) is None, "there is no lease process that could ask"
    with exclusive(run_dir / "lease.lock", "the lease process"):
        keep_up(agent)
        assert (told := Vouch.load(run_dir)) is not None and told.why is not None
        node.nfs.running, node.nfs.fsid = True, "fsid"
        node.fence.open_until = monotonic() + 60
        keep_up(agent)
        assert (told := Vouch.load(run_dir)) is not None and told.why is None
        node.store.read_only = True
        agent.trouble = "it does not work"
        keep_up(agent)
        assert (told := Vouch.load(run_dir)) is not None and told.why is not None
        assert "read-only" in told.why and "it does not work" in told.why


def test_a_standby_tells_whether_it_is_ready(node: FakeNode, monkeypatch: Any) -> None:
    clock = stop_the_clock(monkeypatch)
    agent = agent_of(node)
    agent.inspector.last = Inspection((), clock.now)
    leader = structs.replace(LEADER, holder=Holder("n2", "boot-2"), candidates=("n1", "n3"))
    view, local, _ = seen_by(node.config, leader=leader)
    decision = Decision(Action.NOTHING, Reason.PRIMARY_ALIVE, "n2 is primary")

    def look() -> CandidateRecord:
        now = Moment(monotonic(), utc_now())
        base = replace(view.last_heartbeat, first_seen=now.monotonic - 1)
        agent.seen = Seen(replace(view, last_heartbeat=base), local, decision, now)
        keep_up(agent)
        entry = node.consul.get(node.config.key("candidates/n1"))
        assert entry is not None
        return CandidateRecord.parse(entry.value)

    first = look()
    assert (first.node, first.epoch) == ("n1", 5)
    clock.now += 5
    assert look().at == first.at
    clock.now += TOLD_EVERY_S
    assert look().at > first.at


# A file system that takes no writes


def test_a_read_only_file_system_is_told_as_sick_and_counts_as_frozen(node: FakeNode) -> None:
    node.nfs.running, node.nfs.fsid = True, "fsid"
    node.fence.open_until = monotonic() + 60
    node.store.tree = LiveTree(node.config.paths.live, "uuid", writable=True)
    assert registration.ailment(node.machine) is None
    node.store.read_only = True
    assert "read-only" in str(registration.ailment(node.machine))
    volume.freeze(node.machine)
    node.store.read_only = False
    volume.freeze(node.machine)
    assert node.store.tree.writable is False


OWN = OwnEpoch(5, Stage.READY, "fsid", None, in_place=True)


def test_giving_up_a_role_without_a_disk_claims_no_final_snapshot(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    from standfast.role import steps as effects_module
    from standfast.role.steps import Effects

    OWN.save(node.config.state_dir)
    until = monotonic() + 60
    LeaseStatus(5, "boot-1", 1, LeaderState.DRAINING, False, until, until, 1, monotonic()).save(
        node.config.run_dir
    )
    node.store.tree = LiveTree(node.config.paths.live, "uuid", writable=True)
    node.store.read_only = True
    asked: list[Mapping[str, Any]] = []

    def ask(_path: Path, request: Mapping[str, Any], _deadline: Deadline) -> Mapping[str, Any]:
        asked.append(request)
        return {"ok": True}

    monkeypatch.setattr(effects_module, "ask", ask)
    effects = Effects(node.machine)
    effects.salvage_snapshot()
    effects.release()
    assert asked[-1]["surrendered"] is True and asked[-1]["final"] is None
    effects.to = "n2"
    effects.surrender()
    assert (asked[-1]["cmd"], asked[-1]["to"]) == ("surrender", "n2")
