"""The lease against Consul: the embedded one, and a real server where a binary can be had."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from msgspec import structs

from standfast.config.model import FAST_PROFILE, Config
from standfast.consul.gateway import Committed, Conflict, ConsulGateway, Entry
from standfast.consul.records import (
    Handover,
    HistoryEntry,
    Hold,
    Holder,
    Leader,
    LeaderState,
    Pause,
    dump_epoch,
    parse_epoch,
)
from standfast.consul.values import Op
from standfast.demo.commands import STANDFAST, command
from standfast.demo.consul.server import EmbeddedConsul
from standfast.demo.stand_ins.fence import FileFence
from standfast.errors import ConsulError, ForeignValue, Refused, StandfastError
from standfast.lease import process as lease_process
from standfast.lease import protocol
from standfast.lease.epochs import EpochFile
from standfast.lease.files import LeaseStatus, save_claim
from standfast.lease.holding import Kept, LeaseKeys
from standfast.lease.inbox import listening
from standfast.lease.keeper import Keeper
from standfast.lease.process import answer, build, hold, obtain
from standfast.lease.protocol import Claim, Halted, HeldLease, Lost, Memory
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from standfast.system.local_socket import ask
from tests.fakes.machine import FakeNfs, World
from tests.support.configs import config_in
from tests.support.consul_clusters import embedded_cluster, real_cluster
from tests.support.pace import patient
from tests.support.storage_node import VOLUME, StorageNode
from tests.support.waiting import soon, wait_for

ME = Holder("n1", "boot-1")
OTHER = Holder("n2", "boot-1")
SERVING = LeaderState.SERVING
FIRST = Claim(0, None, float("-inf"), None, "first-primary", None, 0.0)
# Heartbeats come often, and no deadline and no lease passes because the machine is busy.
STEADY = structs.replace(FAST_PROFILE, heartbeat=0.1, request_timeout=20.0, length=60.0)


@dataclass
class Volume:
    """One volume's keys; every test has a volume of its own."""

    config: Config
    gateway: ConsulGateway

    def keys(self, me: Holder = ME) -> LeaseKeys:
        return LeaseKeys(self.config, self.gateway, me)

    def leader(self) -> Leader:
        entry = self.gateway.get(self.config.key("leader"), consistent=True)
        assert entry is not None
        return Leader.parse(entry.value)

    def epoch(self) -> int:
        entry = self.gateway.get(self.config.key("epoch"), consistent=True)
        assert entry is not None
        return parse_epoch(entry.value)

    def seen(self, *, ago_s: float = 60.0) -> Claim:
        """The claim of a candidate that has seen what stands there for a while."""
        leader = self.leader()
        first_seen = monotonic() - ago_s
        return Claim(self.epoch(), leader.identity, first_seen, "a@1", "takeover", None, 3.0)


@pytest.fixture(scope="module", params=["embedded", "real"])
def address(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "embedded":
        with embedded_cluster() as cluster:
            yield cluster.address
    else:
        with real_cluster(tmp_path_factory.mktemp("consul")) as cluster:
            yield cluster.address


numbers = iter(range(10_000))


def volume_at(address: str, directory: Path) -> Volume:
    config = structs.replace(config_in(directory), volume=f"v{next(numbers)}", lease=STEADY)
    return Volume(config, ConsulGateway([address], timeout_s=20))


def with_lease(volume: Volume, **timing: float) -> Volume:
    """The volume of a lease that is STEADY but for this."""
    return replace(
        volume, config=structs.replace(volume.config, lease=structs.replace(STEADY, **timing))
    )


@pytest.fixture
def volume(address: str, tmp_path: Path) -> Volume:
    return volume_at(address, tmp_path)


@pytest.fixture
def embedded() -> Iterator[EmbeddedConsul]:
    with EmbeddedConsul(no_leader_after_s=0.1) as consul:
        consul.add_agent("n1")
        yield consul


@pytest.fixture
def faulty(embedded: EmbeddedConsul, tmp_path: Path) -> Volume:
    return volume_at(embedded.address("n1"), tmp_path)


def kept(outcome: object) -> HeldLease:
    """The held lease after a heartbeat that committed."""
    assert isinstance(outcome, Kept), outcome
    assert outcome.trouble is None, outcome
    return outcome.held_lease


def is_txn(method: str, path: str) -> bool:
    return (method, path) == ("PUT", "/v1/txn")


# Acquiring


def test_the_first_primary_acquires_epoch_1(volume: Volume) -> None:
    before = monotonic()
    held_lease = volume.keys().acquire(FIRST)
    assert (held_lease.epoch, volume.epoch(), volume.leader().holder) == (1, 1, ME)
    assert before <= held_lease.valid_until - STEADY.length <= monotonic()
    assert volume.leader().candidates == ("n2", "n3")
    history = volume.gateway.get(volume.config.key("history/1"))
    assert history is not None
    history_entry = HistoryEntry.parse(history.value)
    assert (history_entry.epoch, history_entry.node, history_entry.reason) == (
        1,
        "n1",
        "first-primary",
    )


def test_an_acquisition_counts_from_before_its_look(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stalled between the look and the sending, it must not be given the time of its stall."""
    looked: list[float] = []
    read_all = LeaseKeys.read_all

    def look(keys: LeaseKeys) -> protocol.Versioned:
        looked.append(monotonic())
        return read_all(keys)

    monkeypatch.setattr(LeaseKeys, "read_all", look)
    held_lease = volume.keys().acquire(FIRST)
    assert held_lease.valid_until <= looked[0] + STEADY.length


def test_an_earlier_attempt_that_commits_late_gives_the_later_one_no_time(
    embedded: EmbeddedConsul, faulty: Volume
) -> None:
    """Both are this node's, in one boot; nobody knows when the first was sent."""
    hasty = with_lease(faulty, request_timeout=patient(0.5)).keys()
    held = embedded.hold_next(is_txn)
    with pytest.raises(Refused):
        hasty.acquire(FIRST)  # past its deadline, and still on its way
    assert held.arrived

    class Stalled(Racer):
        def txn(
            self, ops: Sequence[Op], *, deadline: Deadline | None = None
        ) -> Committed | Conflict:
            assert embedded.let_go(held, soon(20.0)).status == 200
            return super().txn(ops, deadline=deadline)

    late = LeaseKeys(faulty.config, Stalled(faulty.gateway, threading.Barrier(1)), ME)
    held_lease = late.acquire(FIRST)
    assert held_lease.epoch == 1
    assert held_lease.remaining_s(monotonic()) == 0
    assert kept(late.heartbeat(held_lease, LeaderState.SERVING)).remaining_s(monotonic()) > 0


def paused(volume: Volume) -> None:
    volume.gateway.put(volume.config.key("pause"), Pause("op", "a rack moves", 1e9).dump())


def test_a_pause_set_between_the_look_and_the_acquisition_wins(volume: Volume) -> None:
    volume.keys().acquire(FIRST)
    claim = structs.replace(volume.seen(), unless_paused=True)

    class Paused(Racer):
        def txn(
            self, ops: Sequence[Op], *, deadline: Deadline | None = None
        ) -> Committed | Conflict:
            paused(volume)
            return super().txn(ops, deadline=deadline)

    racer = Paused(volume.gateway, threading.Barrier(1))
    with pytest.raises(Refused, match="changed meanwhile"):
        LeaseKeys(volume.config, racer, OTHER).acquire(claim)
    with pytest.raises(Refused) as refused:
        volume.keys(OTHER).acquire(claim)
    assert refused.value.reason is Reason.PAUSED
    assert (volume.epoch(), volume.leader().holder) == (1, ME)


def test_a_hold_set_between_the_look_and_the_acquisition_wins_on_its_node_alone(
    volume: Volume,
) -> None:
    volume.keys().acquire(FIRST)
    claim = structs.replace(volume.seen(), unless_paused=True)
    mine = volume.config.key(f"holds/{OTHER.node}")

    class Held(Racer):
        def txn(
            self, ops: Sequence[Op], *, deadline: Deadline | None = None
        ) -> Committed | Conflict:
            volume.gateway.put(mine, Hold(OTHER.node, "op", "a new disk", 1e9).dump())
            return super().txn(ops, deadline=deadline)

    racer = Held(volume.gateway, threading.Barrier(1))
    with pytest.raises(Refused, match="changed meanwhile"):
        LeaseKeys(volume.config, racer, OTHER).acquire(claim)
    with pytest.raises(Refused) as refused:
        volume.keys(OTHER).acquire(claim)
    assert refused.value.reason is Reason.ON_HOLD
    assert (volume.epoch(), volume.leader().holder) == (1, ME)
    volume.gateway.delete(mine)
    volume.gateway.put(volume.config.key("holds/another"), b"whatever")
    assert volume.keys(OTHER).acquire(volume.seen()).epoch == 2


def test_the_history_tells_which_epoch_the_new_one_goes_on_from(volume: Volume) -> None:
    volume.keys().acquire(FIRST)
    volume.keys(OTHER).acquire(structs.replace(volume.seen(), follows=0))
    entries = [volume.gateway.get(volume.config.key(f"history/{n}")) for n in (1, 2)]
    assert [entry and HistoryEntry.parse(entry.value).follows for entry in entries] == [None, 0]


def test_an_operators_word_goes_on_in_spite_of_a_pause(volume: Volume) -> None:
    volume.keys().acquire(FIRST)
    paused(volume)
    assert volume.keys(OTHER).acquire(volume.seen()).epoch == 2


def test_a_number_that_any_key_tells_of_is_not_given_to_another_epoch(volume: Volume) -> None:
    """The epoch's key is deleted; a node that has seen nothing of it is to be the first primary."""
    volume.keys().acquire(FIRST)
    other = volume.keys(OTHER)
    held_lease = other.acquire(volume.seen())
    assert other.release(protocol.voided(held_lease, monotonic())) is None
    volume.gateway.delete(volume.config.key("epoch"))
    for gone in ("leader", "history/2"):
        with pytest.raises(Refused, match=r"tell of epoch [12].*accept-epoch"):
            volume.keys().acquire(first_on(volume))
        volume.gateway.delete(volume.config.key(gone))
    with pytest.raises(Refused, match=r"tell of epoch 1"):
        volume.keys().acquire(first_on(volume))
    assert volume.gateway.get(volume.config.key("epoch")) is None


def first_on(volume: Volume) -> Claim:
    """A first primary's claim, made long after it saw what stands there."""
    entry = volume.gateway.get(volume.config.key("leader"), consistent=True)
    return structs.replace(
        FIRST, seen=None if entry is None else Leader.parse(entry.value).identity
    )


def test_a_history_is_written_once(volume: Volume) -> None:
    """By the transaction itself, whatever was looked at before."""
    volume.keys().acquire(FIRST)
    key = volume.config.key("history/2")

    class Racing(Racer):
        def txn(
            self, ops: Sequence[Op], *, deadline: Deadline | None = None
        ) -> Committed | Conflict:
            volume.gateway.put(key, HistoryEntry(2, "n3", None, "x", None, 0.0, 1e9).dump())
            return super().txn(ops, deadline=deadline)

    racer = Racing(volume.gateway, threading.Barrier(1))
    with pytest.raises(Refused, match="changed meanwhile"):
        LeaseKeys(volume.config, racer, OTHER).acquire(volume.seen())
    assert volume.epoch() == 1


def test_a_heartbeat_renews_the_lease(volume: Volume) -> None:
    keys = volume.keys()
    first = keys.acquire(FIRST)
    second = kept(keys.heartbeat(first, LeaderState.SERVING))
    assert second.valid_until > first.valid_until
    assert volume.leader().state is LeaderState.SERVING
    assert volume.leader().seq == first.seq + 1


def test_a_successor_takes_over_after_the_wait_and_the_old_holder_learns_it(
    volume: Volume,
) -> None:
    old = volume.keys()
    held_lease = old.acquire(FIRST)
    new = volume.keys(OTHER).acquire(volume.seen())
    assert (new.epoch, volume.leader().holder) == (2, OTHER)
    outcome = old.heartbeat(held_lease, LeaderState.SERVING)
    assert isinstance(outcome, Lost)
    assert "n2 took over with epoch 2" in outcome.why
    assert volume.leader().holder == OTHER


def test_before_the_wait_is_over_nobody_acquires(volume: Volume) -> None:
    volume.keys().acquire(FIRST)
    with pytest.raises(Refused, match=r"first seen 4\.0 s ago, 4\.1 s are needed"):
        volume.keys(OTHER).acquire(volume.seen(ago_s=4.0))
    assert (volume.epoch(), volume.leader().holder) == (1, ME)


def test_a_heartbeat_that_came_in_between_ends_the_claim(volume: Volume) -> None:
    keys = volume.keys()
    held_lease = keys.acquire(FIRST)
    claim = volume.seen()
    kept(keys.heartbeat(held_lease, LeaderState.SERVING))
    with pytest.raises(Refused, match="the claim was made on"):
        volume.keys(OTHER).acquire(claim)
    assert volume.epoch() == 1


class Racer:
    """A gateway whose transactions start together, after everybody has read the same."""

    def __init__(self, gateway: ConsulGateway, start: threading.Barrier) -> None:
        self._gateway = gateway
        self._start = start
        self.results: list[Committed | Conflict] = []

    def read(
        self, keys: Sequence[str], *, folders: Sequence[str] = (), deadline: Deadline | None = None
    ) -> Mapping[str, Entry | None]:
        return self._gateway.read(keys, folders=folders, deadline=deadline)

    def get_many(
        self, prefix: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> tuple[Entry, ...]:
        return self._gateway.get_many(prefix, consistent=consistent, deadline=deadline)

    def txn(self, ops: Sequence[Op], *, deadline: Deadline | None = None) -> Committed | Conflict:
        self._start.wait(patient(30.0))
        result = self._gateway.txn(ops, deadline=soon(20.0))
        self.results.append(result)
        return result

    def deregister(self, service_id: str, *, deadline: Deadline | None = None) -> None:
        self._gateway.deregister(service_id, deadline=deadline)


@pytest.mark.parametrize("first", [True, False], ids=["first primaries", "candidates"])
def test_of_20_that_claim_the_same_exactly_one_acquires(volume: Volume, first: bool) -> None:
    claim = FIRST
    if not first:
        volume.keys().acquire(FIRST)
        claim = volume.seen()
    racer = Racer(volume.gateway, threading.Barrier(20))
    won: list[Holder] = []
    refused: list[Reason] = []

    def candidate(number: int) -> None:
        me = Holder(f"c{number}", f"boot-{number}")
        try:
            won.append(LeaseKeys(volume.config, racer, me).acquire(claim).holder)
        except Refused as error:
            refused.append(error.reason)

    in_threads([partial(candidate, number) for number in range(20)])
    assert [type(result) for result in racer.results].count(Committed) == 1
    assert len(racer.results) == 20
    assert len(won) == 1
    assert refused == [Reason.LEASE_NOT_HELD] * 19
    assert (volume.epoch(), volume.leader().holder) == (claim.epoch + 1, won[0])


# Taking up


def test_a_keeper_of_the_same_boot_takes_the_lease_up(volume: Volume) -> None:
    volume.keys().acquire(FIRST)
    held_lease = volume.keys().take_up()
    assert held_lease is not None and held_lease.epoch == 1
    assert held_lease.remaining_s(monotonic()) == 0, "time comes with its first heartbeat alone"
    assert (
        kept(volume.keys().heartbeat(held_lease, LeaderState.SERVING)).remaining_s(monotonic()) > 0
    )


@pytest.mark.parametrize("me", [OTHER, Holder("n1", "boot-2")], ids=["node", "boot"])
def test_a_lease_of_another_is_not_taken_up(volume: Volume, me: Holder) -> None:
    volume.keys().acquire(FIRST)
    assert volume.keys(me).take_up() is None


def test_a_shorter_lease_is_told_when_the_longer_one_is_over(volume: Volume) -> None:
    """The documented way: the configuration is changed, and the lease process started again."""
    keys = with_lease(volume, wait=30.0).keys()
    kept(keys.heartbeat(keys.acquire(FIRST), LeaderState.SERVING))
    quick = volume.keys()  # wait is 4.1
    before = monotonic()
    held_lease = quick.take_up()
    assert held_lease is not None
    held_lease = kept(quick.heartbeat(held_lease, LeaderState.SERVING))
    assert volume.leader().wait == 30.0
    with pytest.raises(Refused, match="30 s are needed"):
        volume.keys(OTHER).acquire(volume.seen(ago_s=20.0))
    assert held_lease.earlier_until >= before + 30.0
    later = structs.replace(held_lease, earlier_until=monotonic() - 0.001)
    kept(quick.heartbeat(later, LeaderState.SERVING))
    assert volume.leader().wait == STEADY.wait


def test_a_repair_tells_the_longer_wait_too(volume: Volume) -> None:
    keys = with_lease(volume, wait=30.0).keys()
    kept(keys.heartbeat(keys.acquire(FIRST), LeaderState.SERVING))
    held_lease = volume.keys().take_up()
    assert held_lease is not None
    volume.gateway.delete(volume.config.key("leader"))
    outcome = volume.keys().heartbeat(
        structs.replace(held_lease, valid_until=monotonic() + 20), SERVING
    )
    assert isinstance(outcome, Kept) and "deleted by hand" in str(outcome.trouble)
    assert volume.leader().wait == 30.0


def test_a_lapsed_lease_in_a_restored_consul_is_taken_up_without_time(
    embedded: EmbeddedConsul, faulty: Volume
) -> None:
    """A successor that the backup has forgotten serves for the rest of its lease."""
    keys = faulty.keys()
    held_lease = keys.acquire(FIRST)
    backup = embedded.snapshot()
    held_lease = kept(keys.heartbeat(held_lease, SERVING))
    left = Memory(1, ME.instance, held_lease.leader_index, valid_until=monotonic() - 1)
    faulty.keys(OTHER).acquire(faulty.seen())
    embedded.restore(backup)
    again = faulty.keys().take_up(left)
    assert again is not None
    again = kept(keys.heartbeat(again, SERVING))
    assert again.remaining_s(monotonic()) == 0
    over = kept(keys.heartbeat(structs.replace(again, voided_at=monotonic() - 0.001), SERVING))
    assert over.remaining_s(monotonic()) > 0


def imported(volume: Volume, entries: Mapping[str, Entry | None]) -> None:
    """As `consul kv import` does: key by key at a new index, and nothing is deleted."""
    for key, entry in entries.items():
        assert entry is not None
        volume.gateway.put(key, entry.value)


def overtaken(volume: Volume, *, forgotten: bool) -> tuple[HeldLease, Memory]:
    """A holder whose lease has run out unseen, and what its process left behind: another epochs,
    and a backup of an earlier heartbeat was imported."""
    keys = volume.keys()
    held_lease = keys.acquire(FIRST)
    names = [volume.config.key(name) for name in ("epoch", "leader")]
    backup = volume.gateway.read(names)
    held_lease = kept(keys.heartbeat(held_lease, SERVING))
    held_lease = structs.replace(held_lease, valid_until=monotonic() - 1)
    left = Memory(
        1,
        ME.instance,
        held_lease.leader_index,
        held_lease.valid_until,
        epoch_index=held_lease.epoch_index,
        committed_seq=held_lease.committed_seq,
    )
    volume.keys(OTHER).acquire(volume.seen())
    imported(volume, backup)
    if forgotten:
        volume.gateway.delete(volume.config.key("history/2"))
    return held_lease, left


@pytest.mark.parametrize("restarted", [False, True], ids=["goes on", "taken up"])
def test_a_lapsed_lease_in_an_imported_backup_has_no_time(volume: Volume, restarted: bool) -> None:
    held_lease, left = overtaken(volume, forgotten=True)
    if restarted:
        mine = volume.keys().take_up(left)
    else:
        outcome = volume.keys().heartbeat(held_lease, SERVING)
        assert isinstance(outcome, Kept) and outcome.trouble is not None
        mine = outcome.held_lease
    assert mine is not None
    assert kept(volume.keys().heartbeat(mine, SERVING)).remaining_s(monotonic()) == 0


def test_an_epoch_that_only_its_history_tells_of_is_not_rolled_back(volume: Volume) -> None:
    """An import of older values deletes nothing."""
    held_lease, left = overtaken(volume, forgotten=False)
    outcome = volume.keys().heartbeat(held_lease, SERVING)
    assert isinstance(outcome, Halted) and "accept-epoch" in outcome.why
    with pytest.raises(Refused, match="accept-epoch") as refused:
        volume.keys().take_up(left)
    assert refused.value.reason is Reason.EPOCH_WENT_BACK
    within = structs.replace(left, valid_until=monotonic() + 60)
    assert volume.keys().take_up(within) is not None, (
        "nobody can have been primary within its lease"
    )


def test_a_lease_that_was_given_up_is_not_taken_up(volume: Volume) -> None:
    keys = volume.keys()
    held_lease = protocol.voided(keys.acquire(FIRST), monotonic())
    assert keys.release(held_lease) is None
    assert volume.keys().take_up() is None


# Giving up


def test_who_saw_clean_arrive_does_not_wait(volume: Volume) -> None:
    keys = volume.keys()
    held_lease = protocol.voided(keys.acquire(FIRST), monotonic())
    assert keys.release(held_lease, Handover("n2")) is None
    assert (volume.leader().state, volume.leader().to) == (LeaderState.CLEAN, "n2")
    claim = volume.seen(ago_s=0.0)
    with pytest.raises(Refused, match="are needed"):
        volume.keys(OTHER).acquire(claim)
    assert volume.keys(OTHER).acquire(structs.replace(claim, witnessed=True)).epoch == 2


def test_a_lease_that_is_not_void_can_not_be_given_up(volume: Volume) -> None:
    keys = volume.keys()
    held_lease = keys.acquire(FIRST)
    with pytest.raises(AssertionError, match="void before clean"):
        keys.release(held_lease)
    assert volume.leader().state is LeaderState.STARTING


def test_a_clean_that_comes_late_is_refused(embedded: EmbeddedConsul, faulty: Volume) -> None:
    keys, hasty = faulty.keys(), with_lease(faulty, request_timeout=patient(0.5)).keys()
    held_lease = protocol.voided(keys.acquire(FIRST), monotonic())
    held = embedded.hold_next(is_txn)
    outcome = hasty.release(held_lease, Handover("n2"))  # past its deadline, and still on its way
    assert held.arrived
    assert isinstance(outcome, Kept) and outcome.trouble is not None
    going_on = kept(keys.heartbeat(outcome.held_lease, LeaderState.SERVING))
    assert going_on.remaining_s(monotonic()) > 0
    assert embedded.let_go(held, soon(20.0)).status == 409
    assert faulty.leader().state is LeaderState.SERVING, "the late clean was carried out"
    kept(keys.heartbeat(going_on, LeaderState.SERVING))


# Replies that are lost


def test_an_acquisition_whose_reply_is_lost_is_recognised(
    embedded: EmbeddedConsul, faulty: Volume
) -> None:
    embedded.drop_next_reply(is_txn)
    held_lease = faulty.keys().acquire(FIRST)
    assert held_lease.epoch == 1
    kept(faulty.keys().heartbeat(held_lease, LeaderState.SERVING))


def test_a_heartbeat_whose_reply_is_lost_counts_once_it_is_read_back(
    embedded: EmbeddedConsul, faulty: Volume
) -> None:
    keys = faulty.keys()
    held_lease = keys.acquire(FIRST)
    embedded.drop_next_reply(is_txn)
    sent_at = monotonic()
    lost = keys.heartbeat(held_lease, LeaderState.SERVING)
    assert isinstance(lost, Kept) and lost.trouble is not None
    assert lost.held_lease.valid_until == held_lease.valid_until
    known = keys.heartbeat(lost.held_lease, LeaderState.SERVING)
    assert isinstance(known, Kept)
    assert known.held_lease.valid_until >= sent_at + STEADY.length
    assert known.held_lease.valid_until < monotonic() + STEADY.length
    kept(keys.heartbeat(known.held_lease, LeaderState.SERVING))


def test_a_heartbeat_from_before_the_lease_was_voided_brings_no_time(
    embedded: EmbeddedConsul, faulty: Volume
) -> None:
    keys = faulty.keys()
    held_lease = keys.acquire(FIRST)
    embedded.drop_next_reply(is_txn)
    lost = keys.heartbeat(held_lease, LeaderState.SERVING)
    assert isinstance(lost, Kept) and lost.trouble is not None
    void = protocol.voided(lost.held_lease, monotonic())
    known = keys.heartbeat(void, LeaderState.DRAINING)  # reads the lost one back
    assert isinstance(known, Kept)
    assert known.held_lease.remaining_s(monotonic()) == 0


def test_a_clean_whose_reply_is_lost_is_recognised(
    embedded: EmbeddedConsul, faulty: Volume
) -> None:
    keys = faulty.keys()
    held_lease = protocol.voided(keys.acquire(FIRST), monotonic())
    embedded.drop_next_reply(is_txn)
    assert keys.release(held_lease, Handover("n2")) is None
    assert faulty.leader().is_clean


# Keys that others touch


@pytest.mark.parametrize("gone", [("epoch",), ("leader",), ("epoch", "leader")], ids="+".join)
def test_deleted_keys_are_repaired_within_the_lease(volume: Volume, gone: Sequence[str]) -> None:
    keys = volume.keys()
    held_lease = keys.acquire(FIRST)
    for name in gone:
        volume.gateway.delete(volume.config.key(name))
    repaired = keys.heartbeat(held_lease, LeaderState.SERVING)
    assert isinstance(repaired, Kept) and "deleted by hand" in str(repaired.trouble)
    assert repaired.held_lease.valid_until == held_lease.valid_until, "a repair brings no time"
    again: Kept | Lost | Halted = repaired
    for _ in range(2):
        assert isinstance(again, Kept)
        again = keys.heartbeat(again.held_lease, LeaderState.SERVING)
    assert kept(again).valid_until > held_lease.valid_until
    assert (volume.epoch(), volume.leader().holder) == (1, ME)


def test_keys_deleted_after_the_end_of_the_lease_halt(volume: Volume) -> None:
    keys = volume.keys()
    held_lease = structs.replace(keys.acquire(FIRST), valid_until=monotonic() - 1)
    for name in ("epoch", "leader"):
        volume.gateway.delete(volume.config.key(name))
    outcome = keys.heartbeat(held_lease, LeaderState.SERVING)
    assert isinstance(outcome, Halted) and "accept-epoch" in outcome.why
    assert volume.gateway.get(volume.config.key("epoch")) is None


@pytest.mark.parametrize("name", ["epoch", "leader"])
def test_a_foreign_value_is_left_alone(volume: Volume, name: str) -> None:
    keys = volume.keys()
    held_lease = keys.acquire(FIRST)
    foreign = b'{"who": "somebody"}'
    volume.gateway.put(volume.config.key(name), foreign)
    outcome = keys.heartbeat(held_lease, LeaderState.SERVING)
    assert isinstance(outcome, Kept) and "did not write" in str(outcome.trouble)
    assert outcome.held_lease.valid_until == held_lease.valid_until
    for act in (keys.take_up, lambda: keys.acquire(FIRST)):
        with pytest.raises(ForeignValue):
            act()
    entry = volume.gateway.get(volume.config.key(name))
    assert entry is not None and entry.value == foreign


def test_a_restored_backup_halts_the_holder(embedded: EmbeddedConsul, faulty: Volume) -> None:
    faulty.keys().acquire(FIRST)
    backup = embedded.snapshot()
    keys = faulty.keys(OTHER)
    held_lease = keys.acquire(faulty.seen())
    embedded.restore(backup)
    outcome = keys.heartbeat(held_lease, LeaderState.SERVING)
    assert isinstance(outcome, Halted) and "accept-epoch" in outcome.why
    assert faulty.epoch() == 1


@pytest.mark.parametrize("lapsed", [False, True])
def test_the_owner_of_an_accepted_epoch_waits_for_the_end_of_the_interim_epoch(
    embedded: EmbeddedConsul, faulty: Volume, lapsed: bool
) -> None:
    """Consul was restored to epoch 1; the one who holds that serves on until `accept-epoch`."""
    interim = faulty.keys(OTHER)
    before = interim.acquire(FIRST)
    backup = embedded.snapshot()
    owner = faulty.keys()
    held_lease = owner.acquire(faulty.seen())
    embedded.restore(backup)
    read = interim.heartbeat(before, SERVING)
    assert isinstance(read, Kept)
    kept(interim.heartbeat(read.held_lease, SERVING))
    if lapsed:
        held_lease = structs.replace(held_lease, valid_until=monotonic() - 1)
    faulty.gateway.put(faulty.config.key("epoch"), dump_epoch(2))  # accept-epoch
    begun = monotonic()
    repaired = owner.heartbeat(held_lease, SERVING)
    assert isinstance(repaired, Kept) and "deleted by hand" in str(repaired.trouble)
    read = owner.heartbeat(repaired.held_lease, SERVING)
    assert isinstance(read, Kept)
    again = kept(owner.heartbeat(read.held_lease, SERVING))
    if lapsed:
        assert again.remaining_s(monotonic()) == 0
        assert again.voided_at >= begun + STEADY.wait
    else:
        assert again.valid_until > begun + STEADY.length - 1


def test_a_backup_of_the_same_epoch_is_gone_on_with(
    embedded: EmbeddedConsul, faulty: Volume
) -> None:
    keys = faulty.keys()
    held_lease = keys.acquire(FIRST)
    backup = embedded.snapshot()
    for _ in range(3):
        held_lease = kept(keys.heartbeat(held_lease, LeaderState.SERVING))
    embedded.restore(backup)
    outcome = keys.heartbeat(held_lease, LeaderState.SERVING)
    assert isinstance(outcome, Kept)
    kept(keys.heartbeat(outcome.held_lease, LeaderState.SERVING))


def test_without_quorum_the_lease_just_runs_out(embedded: EmbeddedConsul, faulty: Volume) -> None:
    keys = faulty.keys()
    held_lease = keys.acquire(FIRST)
    embedded.set_quorum(False)
    outcome = keys.heartbeat(held_lease, LeaderState.SERVING)
    assert isinstance(outcome, Kept) and outcome.trouble
    assert outcome.held_lease.valid_until == held_lease.valid_until
    with pytest.raises(ConsulError):
        keys.take_up()
    embedded.set_quorum(True)
    kept(keys.heartbeat(outcome.held_lease, LeaderState.SERVING))


# The keeper


@dataclass
class Running:
    """A keeper that runs in a thread, with a fence in a file."""

    volume: Volume
    keeper: Keeper
    fence: FileFence
    nfs: FakeNfs
    thread: threading.Thread

    def tell(self, **request: str | None) -> dict[str, object]:
        path = self.volume.config.run_dir / "lease.sock"
        return dict(ask(path, request, soon(20.0)))

    def status(self) -> LeaseStatus:
        status = LeaseStatus.load(self.volume.config.run_dir)
        assert status is not None
        return status

    def is_open(self) -> bool:
        return self.fence.state().open_for_s > 0


@contextmanager
def keeping(volume: Volume) -> Iterator[Running]:
    config = volume.config
    save_claim(config.run_dir, FIRST)
    fence = FileFence(config.paths.run / "fence", config.nfs.port)
    nfs = FakeNfs(World(), running=True)
    keeper = build(config, volume.keys(), fence, nfs)
    stop_reader, stop_writer = socket.socketpair()
    path = config.run_dir / "lease.sock"
    with stop_reader, stop_writer, listening(path, stop_reader) as inbox:
        thread = threading.Thread(target=hold, args=(keeper, inbox))
        thread.start()
        try:
            yield Running(volume, keeper, fence, nfs, thread)
        finally:
            stop_writer.send(b"x")
            thread.join(patient(20.0))
            assert not thread.is_alive()


def test_the_port_opens_at_the_word_and_stays_open_by_heartbeats(volume: Volume) -> None:
    with keeping(volume) as keeper:
        assert keeper.fence.state().in_place and not keeper.is_open()
        assert keeper.tell(cmd="serve") == {"ok": True, "epoch": 1, "over": False}
        assert keeper.is_open()
        first = keeper.status().armed_until
        wait_for(lambda: keeper.status().armed_until > first, 20.0, "a heartbeat arms the fence")
        wait_for(lambda: volume.leader().state is LeaderState.SERVING, 20.0, "it says so in Consul")
        assert EpochFile(volume.config.state_dir / "epoch").read() == 1
    assert keeper.is_open(), "an orderly end of the process touches nothing"


def test_draining_shuts_the_port_and_keeps_the_lease(volume: Volume) -> None:
    with keeping(volume) as keeper:
        keeper.tell(cmd="serve")
        assert keeper.tell(cmd="drain")["ok"] is True
        assert not keeper.is_open()
        wait_for(lambda: volume.leader().state is LeaderState.DRAINING, 20.0, "it drains in Consul")
        assert keeper.status().remaining_s(monotonic()) > 0
        assert keeper.tell(cmd="serve")["ok"] is True
        assert keeper.is_open()


def test_releasing_shuts_the_port_before_clean_and_ends_the_keeper(volume: Volume) -> None:
    with keeping(volume) as keeper:
        keeper.tell(cmd="serve")
        assert keeper.tell(cmd="release", to="n2") == {"ok": True, "epoch": 1, "over": True}
        assert not keeper.is_open()
        assert (volume.leader().state, volume.leader().to) == (LeaderState.CLEAN, "n2")
        keeper.thread.join(patient(20.0))
        assert not keeper.thread.is_alive()
        assert keeper.nfs.running, "the plan that asked for it stops the server, or has done so"


def test_a_release_of_unknown_outcome_waits_for_a_word(
    embedded: EmbeddedConsul, faulty: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    monkeypatch.setattr(lease_process, "notify", turns.append)
    monkeypatch.setattr(lease_process, "RETRY_S", STEADY.heartbeat)
    with keeping(faulty) as keeper:
        keeper.tell(cmd="serve")
        embedded.set_quorum(False)
        reply = keeper.tell(cmd="release", to="n2")
        assert reply["ok"] is False and "not known" in str(reply["error"])
        embedded.set_quorum(True)
        seq, before = faulty.leader().seq, len(turns)
        # Each turn takes no longer than a heartbeat, and has one when one is due.
        wait_for(lambda: len(turns) > before + 5, 20.0, "a few turns of the keeper")
        assert faulty.leader().seq == seq, "it heartbeats though a clean may be on its way"
        assert not keeper.is_open()
        assert keeper.tell(cmd="hold")["ok"] is True
        assert keeper.status().remaining_s(monotonic()) > 0
        assert keeper.tell(cmd="serve")["ok"] is True
        assert keeper.is_open()


@pytest.mark.parametrize("foreign", [b'{"v":1,"epoch":1}', b"\xff"], ids=["JSON", "bytes"])
def test_a_foreign_leader_changes_nothing_and_the_keeper_lives_on(
    volume: Volume, foreign: bytes
) -> None:
    with keeping(with_lease(volume, length=1.0)) as keeper:
        keeper.tell(cmd="serve")
        key = volume.config.key("leader")
        entry = volume.gateway.get(key)
        assert entry is not None
        volume.gateway.put(key, foreign)
        wait_for(lambda: "did not write" in str(keeper.status().trouble), 20.0, "it is noted")
        wait_for(lambda: not keeper.is_open(), 20.0, "the lease runs out")
        assert keeper.tell(cmd="serve")["ok"] is False
        present = volume.gateway.get(key)
        assert present is not None and present.value == foreign
        assert keeper.thread.is_alive() and keeper.nfs.running
        volume.gateway.put(key, volume_last(entry.value))
        wait_for(keeper.is_open, 20.0, "the port is open again")


def volume_last(value: bytes) -> bytes:
    """What an operator writes back: the last heartbeat, as it stood there."""
    return Leader.parse(value).dump()


def test_a_lost_lease_shuts_the_port_and_stops_the_server(volume: Volume) -> None:
    with keeping(volume) as keeper:
        keeper.tell(cmd="serve")
        # Between its heartbeats: again until none came in between.
        wait_for(lambda: _taken_over(volume), 20.0, "a takeover")
        keeper.thread.join(patient(20.0))
        assert not keeper.thread.is_alive()
        assert not keeper.is_open() and not keeper.nfs.running
        assert "took over" in str(keeper.status().trouble)


def _taken_over(volume: Volume) -> bool:
    try:
        return volume.keys(OTHER).acquire(volume.seen()).epoch == 2
    except Refused:
        return False


@pytest.mark.parametrize(
    "request_line",
    [b"garbage\n", b"[]\n", b"{}\n", b'{"cmd": 7}\n', b'{"cmd":"release","to":7}\n', b""],
)
def test_garbage_on_the_socket_changes_nothing(faulty: Volume, request_line: bytes) -> None:
    with keeping(faulty) as keeper:
        keeper.tell(cmd="serve")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(faulty.config.run_dir / "lease.sock"))
            client.sendall(request_line)
            client.shutdown(socket.SHUT_WR)
            client.settimeout(patient(20.0))
            assert b'"ok": true' not in client.recv(4096)
        assert keeper.is_open() and keeper.tell(cmd="status")["ok"] is True


def test_a_client_that_says_nothing_does_not_cost_the_lease(faulty: Volume) -> None:
    """The keeper gives up on each after a while, and has a heartbeat before the next one."""
    with keeping(with_lease(faulty, length=5.0)) as keeper, ExitStack() as stack:
        keeper.tell(cmd="serve")
        seq = faulty.leader().seq
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        for client in clients:
            client.connect(str(faulty.config.run_dir / "lease.sock"))
        for client in clients:
            client.settimeout(patient(20.0))
            assert client.recv(1) == b""
            assert keeper.is_open()
        assert faulty.leader().seq >= seq + len(clients) - 1


def test_a_claim_is_made_good_once(volume: Volume) -> None:
    save_claim(volume.config.run_dir, FIRST)
    fence = FileFence(volume.config.paths.run / "fence", 2049)
    obtain(volume.config, volume.keys(), fence)
    with pytest.raises(Refused, match="made no claim"):
        obtain(volume.config, volume.keys(OTHER), fence)
    assert (volume.epoch(), volume.leader().holder) == (1, ME)


def test_an_unknown_command_is_answered(faulty: Volume) -> None:
    keeper = Keeper(
        faulty.config,
        faulty.keys(),
        FileFence(faulty.config.paths.run / "fence", 2049),
        FakeNfs(World()),
        faulty.keys().acquire(FIRST),
        since=monotonic(),
    )
    assert answer(keeper, {"cmd": "explode"}) == {
        "ok": False,
        "error": "unknown command 'explode'",
    }


# The process


def test_a_second_keeper_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with EmbeddedConsul() as consul:
        for name in ("n1", "n2", "n3"):
            consul.add_agent(name)
        node = StorageNode(tmp_path, consul.address("n1"), 20490)
        config = node.configure()
        save_claim(config.run_dir, FIRST)
        lease = command(STANDFAST, "lease", VOLUME)
        with subprocess.Popen(lease, env=node.environment(), stderr=subprocess.DEVNULL) as first:
            try:
                wait_for(lambda: LeaseStatus.load(config.run_dir), 30.0, "the first one's status")
                second = subprocess.run(
                    lease,
                    env=node.environment(),
                    capture_output=True,
                    text=True,
                    timeout=patient(30.0),
                )
                assert second.returncode in (1, 3), second
                assert "another lease process of this volume" in second.stderr
                assert first.poll() is None
                status = LeaseStatus.load(config.run_dir)
                assert status is not None and status.pid == first.pid
                assert status.remaining_s(monotonic()) > 0
            finally:
                first.terminate()
                assert first.wait(patient(20.0)) == 0


def in_threads(bodies: Sequence[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patient(60.0))
        assert not thread.is_alive()
    assert not errors, errors


def test_what_can_not_be_said_of_the_lease_is_an_error(faulty: Volume) -> None:
    path = faulty.config.run_dir / "claim.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"v": 1, "epoch": 3}')
    with pytest.raises(StandfastError, match="not a claim"):
        obtain(faulty.config, faulty.keys(), FileFence(faulty.config.paths.run / "fence", 2049))
    assert faulty.gateway.get(faulty.config.key("epoch")) is None
    assert list(path.parent.iterdir()) == [], "a claim is made good at most once"
