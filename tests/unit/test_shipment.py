"""One snapshot on its way to one standby: streams that stand still, limits, what is believed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from standfast.ages import UNKNOWN, Origin
from standfast.btrfs.names_and_places import TreeInfo
from standfast.config.model import Config
from standfast.demo.stand_ins.directory import DirectoryStore, save_info
from standfast.errors import Refused, TimedOut
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import shipment, wire
from standfast.replication.fingerprint import digest_of
from standfast.replication.published import next_name
from standfast.replication.shipment import Order, Shipped, ship
from standfast.system.clock import Deadline, monotonic
from tests.fakes.replication import Talk, storage_node
from tests.support.pace import patient

EARLIER = SnapshotName.parse("services@20261122T101000Z")
NAME = SnapshotName.parse("services@20261122T101500Z")
WELCOME = wire.dump(wire.Welcome((), 10**12))
READY = wire.dump(wire.Ready())


class Sends(DirectoryStore):
    """A store whose streams come from a program of the test's."""

    program: Sequence[str] = ("true",)

    def send_argv(
        self, snapshot: Snapshot, parent: Snapshot | None, *, compressed_data: bool = False
    ) -> list[str]:
        return list(self.program)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """What the standby would read, and where the stream is written."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def send(
    config: Config, program: Sequence[str], conversation: Talk, deadline: Deadline, **order: Any
) -> Shipped:
    store = Sends(config.paths)
    store.program = program
    snapshot = Snapshot(NAME, config.paths.snapshots / str(NAME), "content", received=False)
    snapshot.path.mkdir(exist_ok=True)
    asked = Order("b", snapshot, 2, {}, served_before=False, **order)
    return ship(config, store, asked, conversation, deadline)  # type: ignore[arg-type]


def published(content_id: str) -> str:
    return wire.dump(wire.Published(str(NAME), content_id))


def test_a_stream_in_which_nothing_moves_is_given_up(tmp_path: Path, pipe: tuple[int, int]) -> None:
    config = storage_node(tmp_path, "a", stall_timeout=0.2)
    cycle = Deadline.after(patient(3))
    with pytest.raises(TimedOut, match="stalled"):
        send(config, ("sleep", "600"), Talk([WELCOME, READY], pipe[1]), cycle)
    assert not cycle.expired, "it was the cycle's own deadline that ended it"


def test_a_standby_that_reads_no_more_is_given_up(tmp_path: Path, pipe: tuple[int, int]) -> None:
    config = storage_node(tmp_path, "a", stall_timeout=0.2)
    cycle = Deadline.after(patient(3))
    with pytest.raises(TimedOut, match="stalled"):
        send(config, ("cat", "/dev/zero"), Talk([WELCOME, READY], pipe[1]), cycle)
    assert not cycle.expired, "it was the cycle's own deadline that ended it"


def test_no_more_than_the_bandwidth_limit_passes(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """A lower bound: however slow the machine is, 4200 bytes at 4000 a second take a second."""
    config = storage_node(tmp_path, "a", bandwidth_limit=4000)
    conversation = Talk([WELCOME, READY, published("content")], pipe[1])
    begun = monotonic()
    done = send(
        config, ("head", "-c", "4200", "/dev/zero"), conversation, Deadline.after(patient(30))
    )
    assert done.sent_bytes == 4200
    assert monotonic() - begun >= 1.0


def test_the_acknowledgement_of_another_content_is_none(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    config = storage_node(tmp_path, "a")
    conversation = Talk([WELCOME, READY, published("something else")], pipe[1])
    with pytest.raises(Refused, match="b acknowledged something else, sent was content") as caught:
        send(config, ("true",), conversation, Deadline.after(patient(10)))
    assert caught.value.reason is Reason.PROTOCOL


def test_only_the_acknowledgement_was_lost_nothing_is_sent(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    there = wire.Welcome((wire.Offer(str(NAME), "content", received=True),), 10**12)
    conversation = Talk([wire.dump(there)], pipe[1])
    done = send(storage_node(tmp_path, "a"), ("false",), conversation, Deadline.after(patient(10)))
    assert done == Shipped(None, 0, was_full=False)


@pytest.mark.parametrize(("has", "overtaken"), [("later", True), ("earlier", False)])
def test_a_snapshot_is_left_out_only_when_the_standby_itself_says_that_it_has_a_later_one(
    tmp_path: Path, pipe: tuple[int, int], has: str, overtaken: bool
) -> None:
    there = wire.Welcome((wire.Offer("services@20991122T101500Z", has, received=True),), 10**12)
    conversation = Talk([wire.dump(there), READY, published("content")], pipe[1])
    config = storage_node(tmp_path, "a", allow_full=True)
    done = send(
        config, ("true",), conversation, Deadline.after(patient(10)), later=frozenset({"later"})
    )
    assert done.overtaken is overtaken
    assert (conversation.heard == []) is overtaken


def test_a_name_that_the_standby_has_a_later_one_than_is_refused_once(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    """An older version named by a clock that was ahead; the next name comes after that one."""
    config = storage_node(tmp_path, "a", allow_full=True)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    names = ("services@20991122T101500Z", "services@99991231T235958Z", "other@20991201T000000Z")
    offers = tuple(wire.Offer(name, f"id-{name}", received=True) for name in names)
    refusal = wire.dump(wire.Refusal(Reason.BAD_NAME, "not newer"))
    conversation = Talk([wire.dump(wire.Welcome(offers, 10**12)), refusal], pipe[1])
    with pytest.raises(Refused, match="not newer"):
        send(config, ("true",), conversation, Deadline.after(patient(10)))
    assert str(next_name(config, NAME.stamp)) == "services@20991122T101501Z"


@pytest.mark.parametrize("waits_for", ["the stream", "the acknowledgement"])
def test_a_copy_that_nobody_needs_any_more_is_given_up(
    tmp_path: Path, pipe: tuple[int, int], waits_for: str
) -> None:
    """However well it goes on, and long before its own deadline."""
    config = storage_node(tmp_path, "a", bandwidth_limit=1000 if waits_for == "the stream" else 0)
    size = "5000" if waits_for == "the stream" else "1000"
    conversation = Slow([WELCOME, READY], pipe[1])
    if waits_for == "the stream":
        conversation.says.append(published("content"))
    cycle = Deadline.after(patient(20))
    with pytest.raises(TimedOut, match="send:b: the lease is over"):
        program = ("head", "-c", size, "/dev/zero")
        send(config, program, conversation, cycle, give_up=lambda: "the lease is over")
    assert not cycle.expired


class Slow(Talk):
    """A standby that acknowledges nothing."""

    def read_line(self, deadline: Deadline) -> str:
        if self.says:
            return super().read_line(deadline)
        time.sleep(deadline.remaining_s())
        raise TimedOut("no answer before the deadline")


# What is announced


@pytest.mark.parametrize(
    ("ago_s", "told_s"),
    [(100, 100), (0, 0), (-5, 0), (-3600, None), (None, None)],
    ids=["as it was", "just now", "a moment", "from the future", "not known"],
)
def test_how_old_it_is_is_told_as_a_span_and_not_as_a_time(
    tmp_path: Path,
    pipe: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    ago_s: float | None,
    told_s: float | None,
) -> None:
    now = 1_795_342_500.0
    monkeypatch.setattr(shipment, "utc_now", lambda: now)
    noted = Origin(2, UNKNOWN if ago_s is None else now - ago_s)
    monkeypatch.setattr(shipment, "origin_of", lambda *_: noted)
    begin = announced(storage_node(tmp_path, "a"), pipe, None)
    assert begin.age_s == told_s


def announced(config: Config, pipe: tuple[int, int], there: str | None, **how: Any) -> wire.Begin:
    """To a standby that has a snapshot with this content already."""
    offers = () if there is None else (wire.Offer(str(EARLIER), there, received=True),)
    welcome = wire.dump(wire.Welcome(offers, 10**12))
    conversation = Talk([welcome, READY, published("content")], pipe[1])
    send(config, ("true",), conversation, Deadline.after(patient(10)), **how)
    return wire.parse(conversation.heard[0], wire.Begin)


@pytest.mark.parametrize(("full", "parent"), [(False, "common"), (True, None)])
def test_an_increment_is_sent_unless_everything_was_asked_for(
    tmp_path: Path, pipe: tuple[int, int], full: bool, parent: str | None
) -> None:
    config = storage_node(tmp_path, "a")
    (config.paths.snapshots / str(EARLIER)).mkdir()
    save_info(config.paths.snapshots / str(EARLIER), TreeInfo("common", None, read_only=True))
    assert announced(config, pipe, "common", full=full).parent_content_id == parent


def test_everything_is_sent_again_by_itself_only_where_that_was_allowed(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    with pytest.raises(Refused) as caught:
        announced(storage_node(tmp_path, "a"), pipe, "another past")
    assert caught.value.reason is Reason.NEEDS_FULL
    allowed = storage_node(tmp_path, "a", allow_full=True)
    assert announced(allowed, pipe, "another past").parent_content_id is None


def test_the_fingerprint_of_the_metadata_is_announced_where_it_is_to_be_verified(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    assert announced(storage_node(tmp_path, "a"), pipe, None).fingerprint is None
    told = announced(storage_node(tmp_path, "a", verify="metadata"), pipe, None).fingerprint
    assert told == digest_of(tmp_path / str(NAME), Deadline.after(patient(10)))
