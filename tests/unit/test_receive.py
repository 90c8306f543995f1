"""Whole conversations of `standfast receive`: who is refused, and when a snapshot counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.ages import Origin
from standfast.btrfs.names_and_places import TreeInfo
from standfast.config.model import KeepPublished
from standfast.consul.records import LeaderState
from standfast.consul.values import Entry
from standfast.demo.stand_ins.directory import save_info
from standfast.errors import ConsulNoQuorum
from standfast.lease.epochs import EpochFile
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import pins
from standfast.replication.published import epochs_of_snapshots, origins_of_snapshots
from standfast.replication.receive_checks import RESERVE_BYTES
from standfast.system.clock import instant, monotonic, utc_now
from standfast.system.locks import exclusive
from tests.fakes.replication import storage_node
from tests.support.origins import note_epoch
from tests.support.pace import patient
from tests.unit.receiving import EPOCH, NAME, Arriving, Standby


@pytest.fixture
def standby(tmp_path: Path) -> Standby:
    config = storage_node(tmp_path, "b")
    return Standby(config, Arriving(config.paths))


def test_a_snapshot_of_the_primary_is_published(standby: Standby) -> None:
    said = [message["message_type"] for message in standby.hear()]
    assert said == ["welcome", "ready", "published"]
    assert standby.published == [str(NAME)]


def test_a_name_from_the_future_is_taken_in_and_its_age_is_counted_by_this_nodes_clock(
    standby: Standby,
) -> None:
    """The primary's clock is an hour ahead: what its names say is no reason to go without it."""
    ahead = SnapshotName.at("services", utc_now() + 3600)
    standby.store.name = ahead
    standby.begin = structs.replace(standby.begin, snapshot=str(ahead), age_s=40.0)
    standby.hear()
    assert standby.published == [str(ahead)]
    now = instant()
    taken_at = origins_of_snapshots(standby.config, now)["content"].taken_at
    assert taken_at is not None
    assert 40 <= now.utc - taken_at < 40 + patient(30)


def test_what_an_older_sender_does_not_tell_is_not_made_up(standby: Standby) -> None:
    standby.hear()
    assert origins_of_snapshots(standby.config, instant()) == {"content": Origin(EPOCH)}


# Who is refused


def test_an_epoch_that_is_over_here_is_refused_even_where_consul_still_names_it(
    standby: Standby,
) -> None:
    EpochFile(standby.config.state_dir / "epoch").raise_to(EPOCH + 1)
    assert standby.refusal() is Reason.STALE_LINEAGE


def test_who_has_given_the_lease_up_is_refused(standby: Standby) -> None:
    """After its hello: before that, see `test_receive_keys`."""

    def gives_up(line: str) -> None:
        if "welcome" in line:
            standby.keys.lead(state=LeaderState.CLEAN)

    standby.says = gives_up
    assert standby.refusal() is Reason.NOT_THE_LEASE_HOLDER
    assert "ready" not in standby.said


@pytest.mark.parametrize(("holder", "epoch"), [("a", EPOCH + 1), ("c", EPOCH)])
def test_who_does_not_hold_the_lease_in_this_epoch_is_refused(
    standby: Standby, holder: str, epoch: int
) -> None:
    def takeover(line: str) -> None:
        if "welcome" in line:
            standby.keys.lead(holder, epoch)

    standby.says = takeover
    assert standby.refusal() is Reason.NOT_THE_LEASE_HOLDER
    assert "ready" not in standby.said


def test_what_continues_an_older_history_than_is_here_is_refused(standby: Standby) -> None:
    earlier = standby.config.paths.standby / str(SnapshotName.at("services", NAME.stamp - 60))
    earlier.mkdir(parents=True)
    save_info(earlier, TreeInfo("y", "other", read_only=True))
    note_epoch(standby.config, "other", EPOCH + 1, standby.store.snapshots)
    said = standby.hear()[-1]
    assert (said["message_type"], said["reason"]) == ("refusal", Reason.STALE_LINEAGE)
    assert standby.published == [earlier.name]


@pytest.mark.parametrize("other", [{"cluster": "another"}, {"volume": "another"}])
def test_what_belongs_elsewhere_is_refused(standby: Standby, other: dict[str, Any]) -> None:
    standby.begin = structs.replace(standby.begin, **other)
    assert standby.refusal() is Reason.PROTOCOL


def test_a_command_that_only_begins_well_is_refused(standby: Standby) -> None:
    standby.asked = "standfast receive data-services; rm -rf /"
    assert standby.refusal() is Reason.PROTOCOL


@pytest.mark.parametrize(("size", "free", "fits"), [
    (None, RESERVE_BYTES - 1, False),
    (5000, RESERVE_BYTES + 4999, False),
    (5000, RESERVE_BYTES + 5000, True),
])  # fmt: skip
def test_what_leaves_no_reserve_of_free_space_is_refused(
    standby: Standby, size: int | None, free: int, fits: bool
) -> None:
    standby.begin = structs.replace(standby.begin, size_bytes=size)
    standby.store.free = free
    if fits:
        assert standby.hear()[-1]["message_type"] == "published"
    else:
        assert standby.refusal() is Reason.NO_SPACE


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("ERROR: creating x failed: No space left on device", Reason.NO_SPACE),
        ("ERROR: creating x failed: Disk quota exceeded", Reason.NO_SPACE),
        ("ERROR: invalid tlv in cmd", Reason.INCOMPLETE),
    ],
)
def test_metadata_that_are_full_are_no_space_though_there_seems_to_be_some(
    standby: Standby, monkeypatch: pytest.MonkeyPatch, words: str, reason: Reason
) -> None:
    """btrfs counts space for data as free that it can't give to metadata; or there is a quota."""
    argv = ["sh", "-c", f"echo '{words}' >&2; exit 1"]
    monkeypatch.setattr(Arriving, "receive_argv", lambda *_: argv)
    assert standby.refusal() is reason


# When it counts


def test_a_sender_whose_stream_stands_still_is_given_up(standby: Standby) -> None:
    options = structs.replace(standby.config.replication, stall_timeout=0.2)
    standby.config = structs.replace(standby.config, replication=options)
    standby.begin = structs.replace(standby.begin, patience_s=math.ceil(patient(3)))
    begun = monotonic()
    assert standby.refusal(ends=False) is Reason.DEADLINE
    assert monotonic() - begun < standby.begin.patience_s, "it waited as long as the sender would"


def test_a_snapshot_is_not_published_when_the_lease_moved_on_while_it_came_in(
    standby: Standby,
) -> None:
    def takeover(line: str) -> None:
        if "ready" in line:
            standby.keys.lead("c", EPOCH + 1)

    standby.says = takeover
    assert standby.refusal() is Reason.NOT_THE_LEASE_HOLDER


def test_another_content_than_was_announced_is_not_published(standby: Standby) -> None:
    standby.store.arrives = "something else"
    assert standby.refusal() is Reason.INCOMPLETE


def test_other_metadata_than_that_of_the_sender_is_not_published(standby: Standby) -> None:
    standby.begin = structs.replace(standby.begin, fingerprint="0" * 64)
    assert standby.refusal() is Reason.INCOMPLETE


def test_what_was_published_is_pinned_before_it_is_acknowledged(standby: Standby) -> None:
    pinned: list[str] = []

    def look(line: str) -> None:
        if '"published"' in line:
            pinned.extend(pin.content_id for pin in pins.load(standby.config).values())

    standby.says = look
    standby.hear()
    assert pinned == ["content"]


def test_the_epoch_of_a_snapshot_is_known_before_it_is_visible(
    standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[int | None] = []
    publish = standby.store.publish

    def look_first(name: SnapshotName) -> Snapshot:
        known.append(epochs_of_snapshots(standby.config).get("content"))
        return publish(name)

    monkeypatch.setattr(standby.store, "publish", look_first)
    standby.hear()
    assert known == [EPOCH]


def test_the_epoch_of_whoever_was_let_in_is_kept(standby: Standby) -> None:
    standby.hear()
    assert EpochFile(standby.config.state_dir / "epoch").read() == EPOCH


def test_an_election_in_consul_throws_no_stream_away(
    standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    get = standby.keys.get

    def twice_no_quorum(key: str, **how: Any) -> Entry | None:
        if len(waited) < 2:
            raise ConsulNoQuorum("there is no leader")
        return get(key, **how)

    monkeypatch.setattr(standby.keys, "get", twice_no_quorum)
    monkeypatch.setattr("standfast.replication.reporting.sleep", waited.append)
    assert standby.hear()[-1]["message_type"] == "published"


def test_a_sender_that_stands_still_gives_way_to_one_that_waits(
    standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standfast.replication.receive.STANDSTILL_S", 0.1)
    standby.begin = structs.replace(standby.begin, patience_s=math.ceil(patient(5)))
    waits = exclusive(standby.config.run_dir / "receive.next", "another sender")

    def another_comes(line: str) -> None:
        if "ready" in line:
            waits.__enter__()

    standby.says = another_comes
    try:
        said = standby.hear(ends=False)[-1]
    finally:
        waits.__exit__(None, None, None)
    assert "another sender waits" in said["message"]


@pytest.mark.parametrize("commons", [None, {}])
def test_nothing_is_pruned_where_the_primary_can_not_say_what_others_need(
    standby: Standby, commons: dict[str, str] | None
) -> None:
    keep_one = KeepPublished(keep_last=1, hourly=0, daily=0, weekly=0, monthly=0)
    standby.config = structs.replace(standby.config, retention_published=keep_one)
    for age_s in (120, 60):
        earlier = SnapshotName.at("services", NAME.stamp - age_s)
        path = standby.config.paths.standby / str(earlier)
        path.mkdir(parents=True)
        save_info(path, TreeInfo("y", f"{age_s}", read_only=True))
        note_epoch(standby.config, f"{age_s}", EPOCH, standby.store.snapshots)
    standby.begin = structs.replace(standby.begin, commons=commons)
    assert standby.hear()[-1]["message_type"] == "published"
    assert len(standby.published) == (3 if commons is None else 1)
