"""Replication between two nodes, with both stores; the receiving end is a real process."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from standfast.ages import Origin
from standfast.consul.records import LeaderState, StandbyRecord
from standfast.consul.values import Set
from standfast.errors import CommandFailed, Refused, StandfastError
from standfast.lease.epochs import EpochFile
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import pins, state, wire
from standfast.replication.published import epochs_of_snapshots
from standfast.replication.reporting import EpochInConsul
from standfast.replication.session import hailing
from standfast.replication.shipment import Order, ship
from standfast.system.clock import Deadline, utc_now
from standfast.system.locks import exclusive
from tests.contract.links import LinkFault, Links, fork
from tests.contract.pairs import node, primary_and_standby
from tests.contract.peers import Peer, lead, leader_value
from tests.support.origins import note_epoch
from tests.support.volumes import files
from tests.support.waiting import wait_for


@pytest.fixture
def pair(kind: str, place: Path, tmp_path: Path) -> Iterator[tuple[Peer, Peer]]:
    with primary_and_standby(place if kind == "btrfs" else tmp_path, kind) as pair:
        yield pair


def take(peer: Peer) -> Snapshot:
    return peer.store.take_snapshot(SnapshotName.at("services", utc_now()))


def replicate(peer: Peer, epoch: int = 1, to: str = "b") -> Snapshot:
    snapshot = take(peer)
    peer.sender.replicate(to, snapshot, epoch, Deadline.after(60))
    return snapshot


def promote(peer: Peer, base: Snapshot, epoch: int) -> None:
    lead(peer, epoch)
    if peer.store.live() is not None:
        peer.store.keep_aside(f"services.diverged-{epoch}-20260101T000000Z")
    peer.store.create_live_from(base)


def refusal_of(peer: Peer, epoch: int = 1) -> Refused:
    with pytest.raises(Refused) as refusal:
        replicate(peer, epoch)
    return refusal.value


def nothing_arrived(standby: Peer) -> bool:
    return standby.published() == [] and list(standby.store.unfinished()) == []


# The way it should go


def test_the_first_cycle_sends_everything_and_the_second_only_the_change(
    pair: tuple[Peer, Peer],
) -> None:
    a, b = pair
    a.live("big").write_bytes(os.urandom(2_000_000))
    a.live("f").write_text("one")
    first = a.sender.cycle("b")
    assert first.was_full and first.parent is None and first.sent_bytes > 2_000_000
    a.live("f").write_text("two")
    second = a.sender.cycle("b")
    assert not second.was_full and second.parent == str(first.snapshot)
    if a.store.kind == "btrfs":
        assert second.sent_bytes < 2_000
    old, new = b.store.snapshots()
    assert (old.path / "f").read_text() == "one"
    assert files(new.path) == files(a.config.paths.live)
    assert b.store.unfinished() == ()


def test_a_new_file_in_a_directory_below_passes_the_fingerprint(pair: tuple[Peer, Peer]) -> None:
    """`btrfs receive` makes it in the root first, whose time of change is another one then."""
    here, b = pair
    options = structs.replace(here.config.replication, verify="metadata")
    a = replace(here, config=structs.replace(here.config, replication=options))
    a.live("d").mkdir()
    first = a.sender.cycle("b")
    a.live("d/new").write_text("new")
    second = a.sender.cycle("b")
    assert second.parent == str(first.snapshot)
    assert (b.store.snapshots()[-1].path / "d/new").read_text() == "new"


def test_nobody_waits_for_what_is_only_tidied_up(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    first = a.talk_to(b, untidy=True).sender.cycle("b")
    assert b.published() == [str(first.snapshot)]
    assert [path.name for path in b.store.unfinished()] == [str(first.snapshot)]
    second = a.talk_to(b).sender.cycle("b")
    assert second.parent == str(first.snapshot)
    assert b.store.unfinished() == ()


def test_an_unchanged_volume_still_proves_its_freshness(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    first = a.sender.cycle("b")
    second = a.sender.cycle("b")
    assert second.snapshot > first.snapshot
    assert b.published() == [str(first.snapshot), str(second.snapshot)]
    if a.store.kind == "btrfs":
        assert second.sent_bytes < 500


def test_consul_and_both_nodes_know_what_the_standby_has(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    result = a.sender.cycle("b")
    (published,) = b.store.snapshots()
    entry = a.gateway.get(a.config.key("standbys/b"))
    assert entry is not None
    record = StandbyRecord.parse(entry.value)
    assert (record.node, record.epoch, record.snapshot) == ("b", 1, str(result.snapshot))
    assert record.content_id == published.content_id
    assert epochs_of_snapshots(b.config) == {published.content_id: 1}
    assert epochs_of_snapshots(a.config) == {published.content_id: 1}
    known = state.load(a.config).standbys["b"]
    assert known.snapshot == record.snapshot and known.successes == 1
    assert known.sent_bytes_total == result.sent_bytes and known.failures == {}
    assert EpochFile(b.config.state_dir / "epoch").read() == 1


def test_the_newest_common_snapshot_is_the_parent_after_standbys_got_different_ones(
    pair: tuple[Peer, Peer],
) -> None:
    a, _ = pair
    common = a.sender.cycle("b")
    take(a)
    take(a)  # never sent to b
    assert a.sender.cycle("b").parent == str(common.snapshot)


def test_a_lost_acknowledgement_is_made_up_for_without_sending_again(
    pair: tuple[Peer, Peer],
) -> None:
    a, b = pair
    snapshot = replicate(a)
    a.sender.replicate("b", snapshot, 1, Deadline.after(60))
    known = state.load(a.config).standbys["b"]
    assert (known.successes, known.sent_bytes) == (2, 0)
    assert b.published() == [str(snapshot.name)]


def test_a_snapshot_that_a_cycle_overtook_is_not_sent_any_more(pair: tuple[Peer, Peer]) -> None:
    """A switchover's first copy waits for the cycle that a timer has begun."""
    a, b = pair
    overtaken = take(a)
    newer = replicate(a)
    a.sender.replicate("b", overtaken, 1, Deadline.after(60))
    assert b.published() == [str(newer.name)]


def test_a_draining_holder_may_send_its_final_snapshot(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    a.live("f").write_text("last words")
    lead(a, 1, LeaderState.DRAINING)
    a.store.set_live_writable(False)
    final = replicate(a)
    (published,) = b.store.snapshots()
    assert published.content_id == final.content_id
    assert (published.path / "f").read_text() == "last words"


def test_after_a_promotion_the_way_back_is_an_increment_of_the_common_snapshot(
    pair: tuple[Peer, Peer],
) -> None:
    a, b = pair
    a.live("big").write_bytes(os.urandom(2_000_000))
    common = a.sender.cycle("b")
    a.live("f").write_text("only on a")
    take(a)
    (base,) = b.store.snapshots()
    promote(b, base, 2)
    b.live("f").write_text("from b")
    back = b.talk_to(a).sender.cycle("a")
    assert back.parent == str(common.snapshot) and not back.was_full
    if a.store.kind == "btrfs":
        assert back.sent_bytes < 2_000
    received = [snapshot for snapshot in a.store.snapshots() if snapshot.received]
    assert [files(snapshot.path) for snapshot in received] == [files(b.config.paths.live)]
    # And once more in the first direction: published there, own here, own there.
    promote(a, received[0], 3)
    a.live("f").write_text("from a again")
    again = a.sender.cycle("b")
    assert again.parent == str(back.snapshot) and not again.was_full
    assert (b.store.snapshots()[-1].path / "f").read_text() == "from a again"


def test_two_cycles_close_together_share_a_snapshot(pair: tuple[Peer, Peer], kind: str) -> None:
    a, _ = pair
    first = a.sender.cycle("b")
    with node(Path(a.spec["keys"]).parent, "c", kind) as c:
        shared = a.talk_to(c).sender.cycle("c")
        assert shared.snapshot == first.snapshot and shared.was_full
        # Of another epoch it is another history, however new it is.
        lead(a, 2)
        assert a.talk_to(c).sender.cycle("c").snapshot > first.snapshot


@pytest.mark.parametrize("kind", ["directory"], indirect=True)  # the rule is pure
def test_old_own_snapshots_go_but_never_a_standbys_newest(pair: tuple[Peer, Peer]) -> None:
    a, _ = pair
    first = a.sender.cycle("b")
    far = replicate(a)
    pins.note(a.config, "c", pins.Pin(str(far.name), far.content_id, 1, utc_now()))
    for _ in range(25):
        taken = take(a)
        note_epoch(a.config, taken.content_id, 1, a.store.snapshots)  # as a cycle does
    a.sender.cycle("b")
    left = [snapshot.name for snapshot in a.store.snapshots()]
    assert len(left) == 24 + 1
    assert far.name in left and first.snapshot not in left
    assert pins.load(a.config)["b"].name == str(left[-1])
    (a.config.state_dir / "pins.json").write_text("not ours")
    for _ in range(2):
        note_epoch(a.config, take(a).content_id, 1, a.store.snapshots)
    assert a.sender.cycle("b").parent == str(left[-1]), "replication goes on"
    assert len(a.store.snapshots()) == 24 + 1 + 3, "unreadable pins: nothing is deleted"


# Cut on the way


def big_change(a: Peer) -> None:
    for number in range(8):
        a.live(f"file{number}").write_bytes(os.urandom(1_000_000))


def arm(peer: Peer, fault: LinkFault | None) -> Links:
    assert peer.links is not None
    peer.links.arm(fault)
    return peer.links


def cut_and_go_on(pair: tuple[Peer, Peer], fault: LinkFault, *, seeded: bool) -> None:
    a, b = pair
    before = [str(a.sender.cycle("b").snapshot)] if seeded else []
    big_change(a)
    links = arm(a, fault)
    sender = fork(lambda: 0 if a.sender.cycle("b") else 1)
    _, status = os.waitpid(sender, 0)
    links.wait_idle()
    assert links.happened.exists() and status != 0
    assert b.published() == before
    arm(a, None)
    result = a.sender.cycle("b")
    assert b.published() == [*before, str(result.snapshot)]
    assert files(b.store.snapshots()[-1].path) == files(a.config.paths.live)
    assert b.store.unfinished() == ()


@pytest.mark.parametrize("seeded", [False, True], ids=["full", "increment"])
def test_a_killed_receiver_publishes_nothing_and_the_next_cycle_succeeds(
    pair: tuple[Peer, Peer], seeded: bool
) -> None:
    cut_and_go_on(pair, LinkFault("kill-receiver", stream_bytes=300_000), seeded=seeded)


def test_what_a_killed_receiver_started_is_waited_for(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    slow = a.talk_to(b, late_s=0.5)
    cut_and_go_on((slow, b), LinkFault("kill-receiver", stream_bytes=300_000), seeded=False)


@pytest.mark.parametrize("seeded", [False, True], ids=["full", "increment"])
def test_a_killed_sender_publishes_nothing_and_the_next_cycle_succeeds(
    pair: tuple[Peer, Peer], seeded: bool
) -> None:
    cut_and_go_on(pair, LinkFault("kill-sender", stream_bytes=300_000), seeded=seeded)


@pytest.mark.parametrize("passed", [2_000, 1_000_000])
def test_a_stream_cut_by_the_link_is_refused_and_leaves_nothing(
    pair: tuple[Peer, Peer], passed: int
) -> None:
    a, b = pair
    big_change(a)
    arm(a, LinkFault("end", stream_bytes=passed))
    with pytest.raises((Refused, CommandFailed)) as failure:
        replicate(a)
    assert nothing_arrived(b)
    failed = state.load(a.config).standbys["b"]
    assert sum(failed.failures.values()) == 1 and failed.last_failure == str(failure.value)
    arm(a, None)
    a.sender.cycle("b")
    assert files(b.store.snapshots()[-1].path) == files(a.config.paths.live)


# Refusals


def test_a_lower_epoch_than_the_highest_seen_is_refused(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    EpochFile(b.config.state_dir / "epoch").raise_to(2)
    refusal = refusal_of(a)
    assert refusal.reason is Reason.STALE_LINEAGE and "seen epoch 2" in str(refusal)
    assert nothing_arrived(b)


def test_an_unreadable_highest_epoch_takes_in_nothing(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    b.config.state_dir.mkdir(parents=True)
    (b.config.state_dir / "epoch").write_text("")
    assert refusal_of(a).reason is Reason.UNEXPECTED
    assert nothing_arrived(b)


def test_a_sender_that_is_not_the_holder_is_refused(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    key = a.config.key("leader")
    for value in (
        leader_value("c", 1, LeaderState.SERVING),
        leader_value("a", 2, LeaderState.SERVING),
        leader_value("a", 1, LeaderState.CLEAN),
    ):
        a.gateway.txn([Set(key, value)])
        assert refusal_of(a).reason is Reason.NOT_THE_LEASE_HOLDER
        assert nothing_arrived(b)


def test_an_epoch_that_rises_during_the_receive_is_not_published(
    pair: tuple[Peer, Peer],
) -> None:
    a, b = pair
    later = base64.b64encode(leader_value("c", 2, LeaderState.STARTING)).decode()
    refusal = refusal_of(a.talk_to(b, later={a.config.key("leader"): later}))
    assert refusal.reason is Reason.NOT_THE_LEASE_HOLDER and "epoch 2, c" in str(refusal)
    assert nothing_arrived(b)


def test_a_foreign_leader_value_takes_in_nothing(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    a.gateway.txn([Set(a.config.key("leader"), b'{"hello": 1}')])
    assert refusal_of(a).reason is Reason.FOREIGN_VALUE
    assert nothing_arrived(b)


def test_the_senders_own_word_is_not_enough_for_consul(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    snapshot = take(a)
    with pytest.raises(Refused, match="which is over") as refusal:
        a.sender.replicate("b", snapshot, 2, Deadline.after(60))
    assert refusal.value.reason is Reason.WRONG_EPOCH
    assert nothing_arrived(b)


def test_a_second_receive_at_the_same_time_is_busy(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    with exclusive(b.config.run_dir / "receive.lock", "this test"):
        assert refusal_of(a.talk_to(b, turn_s=0.1)).reason is Reason.BUSY
    replicate(a)


def test_a_second_cycle_to_the_same_standby_is_busy(pair: tuple[Peer, Peer]) -> None:
    a, _ = pair
    lock = exclusive(a.config.run_dir / "replicate-b.lock", "this test")
    with lock, pytest.raises(Refused) as refusal:
        a.sender.cycle("b")
    assert refusal.value.reason is Reason.BUSY


def test_another_cluster_or_node_is_refused(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    refusal = refusal_of(a.talk_to(b, cluster="other"))
    assert refusal.reason is Reason.PROTOCOL and "of cluster other" in str(refusal)
    here = a.talk_to(b)
    stranger = replace(here, config=structs.replace(here.config, node="stranger"))
    assert refusal_of(stranger).reason is Reason.UNKNOWN_NODE
    assert nothing_arrived(b)


def test_without_a_common_snapshot_everything_is_sent_only_when_told(
    pair: tuple[Peer, Peer],
) -> None:
    a, b = pair
    first = a.sender.cycle("b")
    a.store.delete(a.store.snapshots())
    # The next name must differ though nothing here remembers the last one.
    wait_for(lambda: utc_now() >= first.snapshot.stamp + 1, 30, "the second is over")
    with pytest.raises(Refused, match="none in common") as refusal:
        a.sender.cycle("b")
    assert refusal.value.reason is Reason.NEEDS_FULL
    assert state.load(a.config).standbys["b"].needs_full
    assert b.published() == [str(first.snapshot)]
    assert a.sender.cycle("b", full=True).was_full
    assert len(b.published()) == 2
    assert not state.load(a.config).standbys["b"].needs_full


@pytest.mark.parametrize("kind", ["directory"], indirect=True)  # the rule is pure
@pytest.mark.parametrize("pinned", [True, False])
def test_a_standby_that_lost_everything_is_not_silently_filled_again(
    pair: tuple[Peer, Peer], pinned: bool
) -> None:
    a, b = pair
    a.sender.cycle("b")
    b.store.delete([snapshot for snapshot in b.store.snapshots() if snapshot.received])
    if not pinned:
        pins.drop(a.config, "b")
    with pytest.raises(Refused, match="no snapshot in common") as refusal:
        a.sender.cycle("b")
    assert refusal.value.reason is Reason.NEEDS_FULL
    told = structs.replace(
        a.config, replication=structs.replace(a.config.replication, allow_full=True)
    )
    assert replace(a, config=told).sender.cycle("b").was_full


def test_a_node_that_is_not_serving_runs_no_cycle(pair: tuple[Peer, Peer]) -> None:
    a, _ = pair
    for node_name, phase in (("c", LeaderState.SERVING), ("a", LeaderState.STARTING)):
        a.gateway.txn([Set(a.config.key("leader"), leader_value(node_name, 1, phase))])
        with pytest.raises(Refused) as refusal:
            a.sender.cycle("b")
        assert refusal.value.reason is Reason.NOT_PRIMARY
    assert a.store.snapshots() == ()


def test_an_older_snapshot_than_the_published_one_is_refused(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    old = take(a)
    newer = replicate(a)
    config = a.config
    order = Order("b", old, 1, {}, True, full=True)
    with (
        pytest.raises(Refused, match="is not newer") as refusal,
        hailing(config, "b", wire.Purpose.SEND) as conversation,
    ):
        ship(config, a.store, order, conversation, Deadline.after(60))
    assert refusal.value.reason is Reason.BAD_NAME
    assert b.published() == [str(newer.name)] and config.node == "a"


def test_a_standby_that_does_not_answer_is_a_clear_failure(pair: tuple[Peer, Peer]) -> None:
    a, _ = pair
    silent = structs.replace(
        a.config.replication, command=("sh", "-c", "echo no route >&2; exit 255")
    )
    gone = replace(a, config=structs.replace(a.config, replication=silent))
    with pytest.raises(StandfastError, match="no route"):
        replicate(gone)
    assert state.load(a.config).standbys["b"].failures == {"replication-failed": 1}


def test_a_shell_that_prints_a_greeting_is_named(pair: tuple[Peer, Peer]) -> None:
    a, _ = pair
    noisy = structs.replace(
        a.config.replication, command=("sh", "-c", "echo Welcome to Debian; cat")
    )
    gone = replace(a, config=structs.replace(a.config, replication=noisy))
    with pytest.raises(Refused, match="Welcome to Debian") as refusal:
        replicate(gone)
    assert refusal.value.reason is Reason.PROTOCOL


def test_a_consul_without_leader_for_a_moment_doesnt_cost_the_replication(
    pair: tuple[Peer, Peer],
) -> None:
    a, b = pair
    snapshot = take(a)
    history_entry = EpochInConsul(a.config, a.gateway)
    index = history_entry.index_of(1)
    a.gateway.failing = 2
    history_entry.report("b", snapshot, Origin(1), index)
    assert a.gateway.get(a.config.key("standbys/b")) is not None
    assert nothing_arrived(b)
