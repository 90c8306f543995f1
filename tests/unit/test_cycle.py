"""One replication cycle on the sender's side: which snapshot, and what is noted in which order."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from standfast.ages import UNKNOWN, Origin
from standfast.config.model import Config
from standfast.consul.records import LeaderState, StandbyRecord
from standfast.demo.stand_ins.directory import DirectoryStore
from standfast.errors import Refused, TimedOut
from standfast.names import SnapshotName
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import cycle, pins, published, state
from standfast.replication.cycle import Sender
from standfast.replication.ports import ReplicaStore
from standfast.replication.published import note_origin
from standfast.replication.reporting import EpochInConsul
from standfast.replication.shipment import Order, Shipped
from standfast.system.clock import Deadline, Instant, utc_now
from standfast.system.streams import Conversation
from tests.fakes.replication import LeaseKeys, storage_node

INTERVAL_S = 300.0


@dataclass
class Primary:
    """`a` serves; its standbys take everything in at once, in memory."""

    config: Config
    store: DirectoryStore
    keys: LeaseKeys = field(default_factory=LeaseKeys)
    now: float = field(default_factory=lambda: utc_now() - 10_000)
    orders: list[Order] = field(default_factory=list)
    meanwhile: Callable[[Order], None] = lambda _: None
    """What happens while a stream is under way."""
    overtaken: bool = False
    """The standby says that it has a later one."""

    set_by: float = 0.0
    """By so much the clock was set."""

    @property
    def utc(self) -> float:
        return self.now + self.set_by

    def cycle(self, standby: str) -> SnapshotName:
        return Sender(self.config, self.store, self.keys).cycle(standby).snapshot

    def ship(
        self, _config: Config, _store: ReplicaStore, order: Order, _talk: Conversation, _: Deadline
    ) -> Shipped:
        self.orders.append(order)
        self.meanwhile(order)
        return Shipped(None, 0, was_full=True, overtaken=self.overtaken)


@pytest.fixture
def primary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Primary:
    # A transport that ends at once: what it would carry is done by `ship`.
    config = storage_node(tmp_path, "a", interval=INTERVAL_S, command=("true",))
    made = Primary(config, DirectoryStore(config.paths))
    monkeypatch.setattr(cycle, "ship", made.ship)
    start, boot = made.now, "one"
    for module in (cycle, published):
        monkeypatch.setattr(
            module, "instant", lambda: Instant(made.utc, 1e6 + made.now - start, boot)
        )
    monkeypatch.setattr(cycle, "utc_now", lambda: made.utc)
    return made


def test_standbys_share_a_snapshot_that_is_younger_than_half_an_interval(primary: Primary) -> None:
    first = primary.cycle("b")
    primary.now += INTERVAL_S / 2 - 2
    assert primary.cycle("c") == first


def test_a_snapshot_that_is_older_than_half_an_interval_is_not_shared(primary: Primary) -> None:
    first = primary.cycle("b")
    primary.now += INTERVAL_S / 2 + 2
    assert primary.cycle("c") > first


def test_a_standby_never_gets_the_same_snapshot_twice(primary: Primary) -> None:
    first = primary.cycle("b")
    primary.now += 2
    assert primary.cycle("b") > first


def test_a_snapshot_of_an_earlier_epoch_is_not_shared(primary: Primary) -> None:
    first = primary.cycle("b")
    primary.keys.lead(epoch=3)
    primary.now += 2
    assert primary.cycle("c") > first


def test_what_a_standby_acknowledged_is_pinned_before_consul_hears_of_it(primary: Primary) -> None:
    pinned: list[str] = []
    primary.keys.effect = lambda _: pinned.extend(
        pin.name for pin in pins.load(primary.config).values()
    )
    name = primary.cycle("b")
    assert pinned == [str(name)]
    assert "standfast/data-services/standbys/b" in primary.keys.written


def test_consul_does_not_hear_of_what_was_sent_in_an_epoch_that_is_over(primary: Primary) -> None:
    def another_takes_over(_: Order) -> None:
        primary.keys.lead("b", 3)

    primary.meanwhile = another_takes_over
    with pytest.raises(Refused, match="but epoch 2 ended meanwhile") as caught:
        primary.cycle("c")
    assert caught.value.reason is Reason.WRONG_EPOCH
    assert primary.keys.written == {}


def test_what_is_sent_and_what_it_may_build_on_is_in_use_meanwhile(primary: Primary) -> None:
    used: list[frozenset[str]] = []

    def look(_: Order) -> None:
        with pins.locked(primary.config):
            used.append(pins.all_in_use(primary.config))

    primary.meanwhile = look
    for _ in range(2):
        primary.cycle("b")
        primary.now += 2
    first, second = (order.snapshot.content_id for order in primary.orders)
    assert used == [{first}, {first, second}]


def test_a_cycle_that_failed_is_noted_with_its_reason(primary: Primary) -> None:
    def hang(_: Order) -> None:
        raise TimedOut("nothing moved")

    primary.meanwhile = hang
    with pytest.raises(TimedOut):
        primary.cycle("b")
    noted = state.load(primary.config).standbys["b"]
    assert noted.last_failure == "nothing moved"
    assert (noted.failures, noted.successes) == ({noted.last_failure_reason: 1}, 0)


@pytest.mark.parametrize("said", [LeaderState.STARTING, LeaderState.CLEAN])
def test_a_node_that_does_not_serve_takes_and_sends_nothing(
    primary: Primary, said: LeaderState
) -> None:
    primary.keys.lead(state=said)
    with pytest.raises(Refused, match="only a serving primary replicates") as caught:
        primary.cycle("b")
    assert caught.value.reason is Reason.NOT_PRIMARY
    assert primary.store.snapshots() == () and primary.orders == []


def test_a_success_that_can_not_be_noted_is_one_all_the_same(
    primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standby has it: a switchover away from a full /var goes on."""
    name = primary.cycle("b")
    snapshot = next(snapshot for snapshot in primary.store.snapshots() if snapshot.name == name)

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for module in (state, pins):
        monkeypatch.setattr(module, "write_atomically", full)
    replicate(primary, snapshot)
    assert [order.standby for order in primary.orders] == ["b", "b"]
    assert primary.cycle("c") == name


def test_a_snapshot_that_can_not_be_noted_is_none(
    primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has it, and nothing would ever delete it."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(published, "write_atomically", full)
        primary.cycle("b")
    assert primary.store.snapshots() == ()


def test_a_clock_that_is_set_back_during_a_cycle_makes_nothing_younger(primary: Primary) -> None:
    def slow(_: Order) -> None:
        primary.now += 300
        primary.set_by -= 250

    primary.meanwhile = slow
    primary.cycle("b")
    told = StandbyRecord.parse(primary.keys.written[primary.config.key("standbys/b")])
    assert told.taken_at == pytest.approx(primary.utc - 300, abs=1.0)


def test_a_clock_that_is_set_while_a_snapshot_is_taken_makes_it_no_younger(
    primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = primary.store.take_snapshot

    def slow(name: SnapshotName) -> Snapshot:
        primary.now += 100
        primary.set_by -= 90
        return real(name)

    monkeypatch.setattr(primary.store, "take_snapshot", slow)
    primary.cycle("b")
    told = StandbyRecord.parse(primary.keys.written[primary.config.key("standbys/b")])
    assert told.taken_at == pytest.approx(primary.utc - 100, abs=1.0)


# What it knows of a standby


def test_a_standby_that_had_everything_is_not_new_when_the_pins_are_lost(primary: Primary) -> None:
    primary.cycle("b")
    (primary.config.state_dir / "pins.json").unlink()
    primary.now += 2
    primary.cycle("b")
    assert [order.served_before for order in primary.orders] == [False, True]


def test_pins_that_can_not_be_read_are_not_told_to_be_none(primary: Primary) -> None:
    """A standby that was told of none would delete what others build on."""
    primary.cycle("b")
    (primary.config.state_dir / "pins.json").write_text("{")
    primary.now += 2
    primary.cycle("b")
    assert [order.commons for order in primary.orders] == [{}, None]


def replicate(primary: Primary, snapshot: Snapshot) -> None:
    sender = Sender(primary.config, primary.store, primary.keys)
    sender.replicate("b", snapshot, 2, Deadline.after(60))


def take(primary: Primary, epoch: int) -> Snapshot:
    taken = primary.store.take_snapshot(SnapshotName.at("services", primary.now))
    note_origin(primary.config, taken, Origin(epoch, primary.now), primary.store.snapshots)
    return taken


def test_the_final_snapshot_is_sent_whatever_the_pins_say(primary: Primary) -> None:
    """A pin with a later name was taken when the clock was ahead, say: the standby is asked."""
    final = take(primary, 2)
    newer = str(SnapshotName.at("services", primary.now + 3600))
    pins.note(primary.config, "b", pins.Pin(newer, "newer", 2, primary.now))
    replicate(primary, final)
    assert [(order.snapshot, order.later) for order in primary.orders] == [(final, frozenset())]


def test_what_the_standby_may_have_instead_was_taken_later_in_the_same_epoch(
    primary: Primary,
) -> None:
    take(primary, 1)
    asked = take(primary, 2)
    later = take(primary, 2)
    take(primary, 1)  # of another epoch, by its note
    replicate(primary, asked)
    assert [order.later for order in primary.orders] == [{later.content_id}]


def test_one_that_the_standby_has_no_need_of_is_noted_nowhere(primary: Primary) -> None:
    """The standby has a later one, which was noted when it was acknowledged."""
    asked = take(primary, 2)
    primary.overtaken = True
    replicate(primary, asked)
    assert pins.load(primary.config) == {}
    assert state.load(primary.config).standbys == {}
    assert primary.keys.written == {}


@pytest.mark.parametrize("back_s", [3.0, 3600.0, 1e8])
def test_a_clock_that_goes_back_changes_neither_the_order_nor_the_freshness(
    primary: Primary, back_s: float
) -> None:
    first = primary.cycle("b")
    primary.set_by -= back_s
    second = primary.cycle("b")
    assert second > first
    record = StandbyRecord.parse(primary.keys.written[primary.config.key("standbys/b")])
    assert record.snapshot == str(second)
    assert record.taken_at == pytest.approx(primary.utc, abs=1)


def test_names_go_on_where_all_that_had_one_was_deleted(primary: Primary) -> None:
    """By hand, and the clock was set back: the standby takes nothing with an earlier name."""
    first = primary.cycle("b")
    primary.store.delete(primary.store.snapshots())
    primary.set_by -= 3600
    assert primary.cycle("b") > first


def test_an_epoch_goes_on_above_what_it_started_from(primary: Primary) -> None:
    """The new primary's clock is behind the old one's, and the base was deleted by hand since."""
    base = str(SnapshotName.at("services", primary.now + 3600))
    OwnEpoch(2, Stage.READY, "fsid", base, in_place=False).save(primary.config.state_dir)
    assert str(primary.cycle("b")) > base


def test_a_snapshot_from_the_future_is_shared_no_longer_than_another(primary: Primary) -> None:
    first = primary.cycle("b")
    primary.set_by -= 3600
    second = primary.cycle("b")
    assert primary.cycle("c") == second > first
    primary.now += INTERVAL_S
    assert primary.cycle("c") > second


@pytest.mark.parametrize("taken_at", [-5.0, UNKNOWN, 1e12])
def test_consul_is_told_no_time_that_nobody_could_read(tmp_path: Path, taken_at: float) -> None:
    config, consul = storage_node(tmp_path, "a"), LeaseKeys()
    snapshot = Snapshot(SnapshotName.at("services", 0.0), tmp_path, "content", received=False)
    history_entry = EpochInConsul(config, consul)
    history_entry.report("b", snapshot, Origin(2, taken_at), history_entry.index_of(2))
    record = StandbyRecord.parse(consul.written["standfast/data-services/standbys/b"])
    assert (record.content_id, record.taken_at) == ("content", None)
