"""The agent's own look at the fence: what is flushed while the lease is over comes back shut."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from standfast.agent.fence import FenceWatch
from standfast.consul.records import LeaderState
from standfast.errors import StandfastError
from standfast.lease.files import LeaseStatus, was_flushed
from standfast.node.own_epoch import Intent, OwnEpoch, Stage
from standfast.system.clock import Deadline, monotonic
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeNode, fake_node


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.fixture
def node(tmp_path: Path, clock: StoppedClock) -> FakeNode:
    """A primary whose lease lasts for 8 s more."""
    made = fake_node(tmp_path)
    OwnEpoch(4, Stage.READY, "fsid", None, in_place=True).save(made.config.state_dir)
    lease(made, monotonic() + 8)
    return made


def lease(node: FakeNode, until: float, instance: str = "boot-1") -> None:
    state = LeaderState.SERVING
    LeaseStatus(4, instance, 1, state, True, until, until, 1, 0.0).save(node.config.run_dir)
    node.fence.open_until = until


def flush(node: FakeNode) -> None:
    node.fence.in_place = False
    node.world.log.clear()


def test_rules_that_are_flushed_while_the_lease_is_over_are_back_shut_each_time(
    node: FakeNode, clock: StoppedClock
) -> None:
    watch = FenceWatch(node.machine)
    clock.now += 9
    for flushes in (1, 2, 3):
        flush(node)
        watch.look()
        assert node.fence.in_place and node.fence.state().open_for_s == 0
        assert watch.flushes == flushes
        assert was_flushed(node.machine.config.run_dir)
    watch.look()
    assert watch.flushes == 3


def test_within_the_lease_the_lease_process_sees_to_it(node: FakeNode) -> None:
    """Shut by somebody else, the port would stay so until the next heartbeat."""
    flush(node)
    FenceWatch(node.machine).look()
    assert node.world.log == []


@pytest.mark.parametrize("what", ["gone", "of another boot", "unreadable"])
def test_a_lease_that_is_not_known_of_is_over(node: FakeNode, what: str) -> None:
    path = node.config.run_dir / "lease.json"
    if what == "gone":
        path.unlink()
    elif what == "unreadable":
        path.write_text("{")
    else:
        lease(node, monotonic() + 8, "boot-0")
    flush(node)
    FenceWatch(node.machine).look()
    assert node.fence.in_place


def test_a_damaged_epoch_counts_as_one(node: FakeNode, clock: StoppedClock) -> None:
    (node.config.state_dir / "own-epoch.json").write_text("{")
    clock.now += 9
    flush(node)
    FenceWatch(node.machine).look()
    assert node.fence.in_place


def test_a_node_that_has_put_its_epoch_away_is_the_upkeeps(
    node: FakeNode, clock: StoppedClock
) -> None:
    OwnEpoch.forget(node.config.state_dir)
    Intent(4, None, None, in_place=True, begun=False).save(node.config.state_dir)
    clock.now += 9
    flush(node)
    FenceWatch(node.machine).look()
    assert node.world.log == []


def test_an_epoch_whose_file_is_gone_is_shut_all_the_same(
    node: FakeNode, clock: StoppedClock
) -> None:
    OwnEpoch.forget(node.config.state_dir)
    clock.now += 9
    flush(node)
    FenceWatch(node.machine).look()
    assert node.world.log == ["shut"]


def test_a_permit_without_an_end_is_ended_and_a_rest_of_one_ends_by_itself(
    node: FakeNode, clock: StoppedClock
) -> None:
    watch = FenceWatch(node.machine)
    clock.now += 9
    node.fence.open_until = monotonic() + 0.2
    node.world.log.clear()
    watch.look()
    assert node.world.log == []
    node.fence.open_until = math.inf
    watch.look()
    assert node.fence.state().open_for_s == 0


def test_a_lease_renewed_while_it_looked_is_not_shut(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.now += 9
    flush(node)
    state = node.fence.state

    def slow() -> object:
        lease(node, monotonic() + 8)
        return state()

    monkeypatch.setattr(node.fence, "state", slow)
    FenceWatch(node.machine).look()
    assert "shut" not in node.world.log


def test_a_fence_that_can_not_be_seen_is_told_once_and_tried_again(
    node: FakeNode,
    clock: StoppedClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_deadline: Deadline | None = None) -> None:
        raise StandfastError("nft hangs")

    watch = FenceWatch(node.machine)
    clock.now += 9
    flush(node)
    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
        broken.setattr(node.fence, "ensure_closed", fail)
        watch.look()
        watch.look()
    assert [r.getMessage() for r in caplog.records] == ["the fence can't be confirmed: nft hangs"]
    watch.look()
    assert node.fence.in_place and watch.trouble is None


def test_rules_that_were_never_there_since_the_start_were_flushed_by_nobody(
    node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    """A primary that boots again: they are put there shut, and that is all."""
    (node.config.run_dir / "lease.json").unlink()
    watch = FenceWatch(node.machine)
    flush(node)
    watch.look()
    assert node.fence.in_place and node.fence.state().open_for_s == 0
    assert watch.flushes == 0 and "were gone" not in caplog.text
    flush(node)
    watch.look()
    assert watch.flushes == 1
