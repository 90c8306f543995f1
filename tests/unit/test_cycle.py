"""One replication cycle on the sender's side: which snapshot, and what is noted in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from standfast.adapters.directory import DirectoryStore
from standfast.clock import Deadline, utc_now
from standfast.config.model import Config
from standfast.errors import Refused, TimedOut
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.records import LeaderState
from standfast.replication import cycle, pins, state
from standfast.replication.cycle import Sender
from standfast.replication.ports import ReplicaStore
from standfast.replication.shipment import Order, Shipped
from standfast.streams import Conversation
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

    def cycle(self, standby: str) -> SnapshotName:
        return Sender(self.config, self.store, self.keys).cycle(standby).snapshot

    def ship(
        self, _config: Config, _store: ReplicaStore, order: Order, _talk: Conversation, _: Deadline
    ) -> Shipped:
        self.orders.append(order)
        self.meanwhile(order)
        return Shipped(None, 0, was_full=True)


@pytest.fixture
def primary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Primary:
    # A transport that ends at once: what it would carry is done by `ship`.
    config = storage_node(tmp_path, "a", interval=INTERVAL_S, command=("true",))
    made = Primary(config, DirectoryStore(config.paths))
    monkeypatch.setattr(cycle, "ship", made.ship)
    monkeypatch.setattr(cycle, "utc_now", lambda: made.now)
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


def test_a_snapshot_of_an_earlier_reign_is_not_shared(primary: Primary) -> None:
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


def test_consul_does_not_hear_of_what_was_sent_in_a_reign_that_is_over(primary: Primary) -> None:
    def another_takes_over(_: Order) -> None:
        primary.keys.lead("b", 3)

    primary.meanwhile = another_takes_over
    with pytest.raises(Refused, match="the reign of epoch 2 ended meanwhile") as caught:
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


@pytest.mark.parametrize(("pinned_in", "sent"), [(2, 0), (1, 1)])
def test_the_final_snapshot_is_left_out_only_for_a_newer_one_of_the_same_reign(
    primary: Primary, pinned_in: int, sent: int
) -> None:
    final = primary.store.take_snapshot(SnapshotName.at("services", primary.now))
    newer = str(SnapshotName.at("services", primary.now + 60))
    pins.note(primary.config, "b", pins.Pin(newer, "newer", pinned_in, primary.now))
    sender = Sender(primary.config, primary.store, primary.keys)
    sender.replicate("b", final, 2, Deadline.after(60))
    assert len(primary.orders) == sent
