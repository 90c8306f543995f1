"""What a plan relies on in a replication of one snapshot to one standby.

Run on the real sender, with a receiver in a process of its own and both volumes in directories, and
with the simulation's network and disks between it and the real receiver, and on the tests' fake. On
btrfs, cut anywhere, and with every fault of a standby it is in
tests/contract/test_replication.py and test_cuts.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.errors import Refused, StandfastError
from standfast.names import SnapshotName
from standfast.node.obstacle import Obstacle
from standfast.node.ports import ReplicaSender, Snapshot
from standfast.reasons import Reason
from standfast.replication.cycle import Sender
from standfast.system.clock import Deadline, utc_now
from tests.contract.pairs import primary_and_standby
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.machine import FakeSender, World
from tests.sim.one_node import EPOCH, give_the_lease, make_live, on_a_node
from tests.support.waiting import soon

PORTS = (ReplicaSender,)


@dataclass
class Scene:
    """The primary of EPOCH and its standby `b`."""

    sender: ReplicaSender
    take: Callable[[], Snapshot]
    published: Callable[[], Sequence[str]]
    """Names of the standby's snapshots, in their order."""
    cut: Callable[[], object]
    """From now on nobody reaches the standby."""


@contextlib.contextmanager
def real(directory: Path) -> Iterator[Scene]:
    with primary_and_standby(directory, "directory") as (a, b):

        class StandbyConnection:
            """The sender with the transport of the moment."""

            peer = a

            def replicate(
                self,
                standby: str,
                snapshot: Snapshot,
                epoch: int,
                deadline: Deadline,
                give_up: Callable[[], str | None] = lambda: None,
            ) -> None:
                self.peer.sender.replicate(standby, snapshot, epoch, deadline, give_up)

            def greet(self, standby: str, deadline: Deadline) -> None:
                self.peer.sender.greet(standby, deadline)

            def inspect(self, standby: str, deadline: Deadline) -> Sequence[Obstacle]:
                return self.peer.sender.inspect(standby, deadline)

        way = StandbyConnection()

        def cut() -> None:
            way.peer = a.reaching(["false"])

        yield Scene(
            way,
            lambda: a.store.take_snapshot(SnapshotName.at("services", utc_now())),
            b.published,
            cut,
        )


@contextlib.contextmanager
def simulated(directory: Path) -> Iterator[Scene]:
    with on_a_node(directory, names=("a", "b")) as node:
        world, seat = node.world, node.seat
        make_live(seat)
        give_the_lease(seat)

        def take() -> Snapshot:
            seat.snapshot(EPOCH)
            return seat.store().snapshots()[-1]

        yield Scene(seat.sender(), take, world["b"].snapshots, lambda: world.unlink("a", "b"))


@contextlib.contextmanager
def fake(directory: Path) -> Iterator[Scene]:
    sender = FakeSender(World(), standbys=("b",))
    taken: list[Snapshot] = []

    def take() -> Snapshot:
        name = SnapshotName.at("services", utc_now() + len(taken))
        taken.append(Snapshot(name, directory / str(name), f"content-{len(taken)}", False))
        return taken[-1]

    def cut() -> None:
        sender.broken = True

    yield Scene(sender, take, lambda: [str(snapshot.name) for snapshot in sender.sent], cut)


IMPLEMENTATIONS = (
    Implementation((Sender,), real),
    Implementation((Sender,), simulated, name="simulated"),
    Implementation((FakeSender,), fake),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        yield made


def test_what_was_replicated_is_published_over_there_once(scene: Scene) -> None:
    first, second = scene.take(), scene.take()
    for snapshot in (first, second, second):
        scene.sender.replicate("b", snapshot, EPOCH, soon(60))
        assert scene.published()[-1] == str(snapshot.name)
    assert scene.published() == [str(first.name), str(second.name)]


def test_an_earlier_one_is_left_out_where_a_later_one_is_there(scene: Scene) -> None:
    first, second = scene.take(), scene.take()
    for snapshot in (second, first):
        scene.sender.replicate("b", snapshot, EPOCH, soon(60))
    assert scene.published() == [str(second.name)]


def test_a_standby_that_can_not_be_reached_is_an_error_and_has_nothing(scene: Scene) -> None:
    scene.cut()
    with pytest.raises(StandfastError):
        scene.sender.replicate("b", scene.take(), EPOCH, soon(60))
    assert scene.published() == []


def test_who_is_no_standby_gets_nothing(scene: Scene) -> None:
    with pytest.raises(Refused) as refused:
        scene.sender.replicate("nobody", scene.take(), EPOCH, soon(60))
    assert refused.value.reason is Reason.UNKNOWN_NODE
    assert scene.published() == []


def test_when_the_time_is_over_nothing_is_begun(scene: Scene) -> None:
    with pytest.raises(StandfastError):
        scene.sender.replicate("b", scene.take(), EPOCH, Deadline.after(-1))
    assert scene.published() == []


def test_a_standby_that_answers_is_known_by_a_greeting_and_one_that_is_away_is_an_error(
    scene: Scene,
) -> None:
    scene.sender.greet("b", soon(60))
    assert scene.published() == []
    scene.cut()
    with pytest.raises(StandfastError):
        scene.sender.greet("b", soon(60))
    with pytest.raises(StandfastError):
        scene.sender.inspect("b", soon(60))
