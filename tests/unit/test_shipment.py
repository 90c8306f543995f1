"""One snapshot on its way to one standby: streams that stand still, limits, what is believed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from standfast.act.ports import Snapshot
from standfast.adapters.directory import DirectoryStore
from standfast.clock import Deadline, monotonic
from standfast.config.model import Config
from standfast.errors import Refused, TimedOut
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.replication import wire
from standfast.replication.shipment import Order, Shipped, ship
from tests.fakes.replication import Talk, storage_node
from tests.support.pace import patient

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


def send(config: Config, program: Sequence[str], talk: Talk, deadline: Deadline) -> Shipped:
    store = Sends(config.paths)
    store.program = program
    snapshot = Snapshot(NAME, config.paths.snapshots / str(NAME), "content", received=False)
    order = Order("b", snapshot, 2, {}, served_before=False)
    return ship(config, store, order, talk, deadline)  # type: ignore[arg-type]


def published(content_id: str) -> str:
    return wire.dump(wire.Published(str(NAME), content_id))


def test_a_stream_in_which_nothing_moves_is_given_up(tmp_path: Path, pipe: tuple[int, int]) -> None:
    config = storage_node(tmp_path, "a", stall_timeout=0.2)
    cycle = Deadline.after(patient(10))
    with pytest.raises(TimedOut, match="stalled"):
        send(config, ("sleep", "600"), Talk([WELCOME, READY], pipe[1]), cycle)
    assert not cycle.expired, "it was the cycle's own deadline that ended it"


def test_a_standby_that_reads_no_more_is_given_up(tmp_path: Path, pipe: tuple[int, int]) -> None:
    config = storage_node(tmp_path, "a", stall_timeout=0.2)
    cycle = Deadline.after(patient(10))
    with pytest.raises(TimedOut, match="stalled"):
        send(config, ("cat", "/dev/zero"), Talk([WELCOME, READY], pipe[1]), cycle)
    assert not cycle.expired, "it was the cycle's own deadline that ended it"


def test_no_more_than_the_bandwidth_limit_passes(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """A lower bound: however slow the machine is, 4200 bytes at 4000 a second take a second."""
    config = storage_node(tmp_path, "a", bandwidth_limit=4000)
    talk = Talk([WELCOME, READY, published("content")], pipe[1])
    begun = monotonic()
    done = send(config, ("head", "-c", "4200", "/dev/zero"), talk, Deadline.after(patient(30)))
    assert done.sent_bytes == 4200
    assert monotonic() - begun >= 1.0


def test_the_acknowledgement_of_another_content_is_none(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    config = storage_node(tmp_path, "a")
    talk = Talk([WELCOME, READY, published("something else")], pipe[1])
    with pytest.raises(Refused, match="b acknowledged something else, sent was content") as caught:
        send(config, ("true",), talk, Deadline.after(patient(10)))
    assert caught.value.reason is Reason.PROTOCOL


def test_only_the_acknowledgement_was_lost_nothing_is_sent(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    there = wire.Welcome((wire.Offer(str(NAME), "content", received=True),), 10**12)
    talk = Talk([wire.dump(there)], pipe[1])
    done = send(storage_node(tmp_path, "a"), ("false",), talk, Deadline.after(patient(10)))
    assert done == Shipped(None, 0, was_full=False)
