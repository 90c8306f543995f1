"""What callers rely on in the fence of the NFS port.

Run on the kernel, by nft and by ipset, in a network of the test's own; on the demo's file, on the
tests' fakes and on the simulation's kernel. What packets meet, and a process that is frozen while
it opens, is in tests/contract/test_fence_kernel.py. The file and FakeFence have the port for one
volume alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.demo.stand_ins.fence import FileFence
from standfast.errors import StandfastError, TimedOut
from standfast.fence.ipset import IpsetFence
from standfast.fence.nftables import NftFence
from standfast.node.ports import Fence
from standfast.system.clock import monotonic, sleep
from tests.contract.own_network import own_network
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.fences import SharedPort, VolumeFence
from tests.fakes.machine import FakeFence, World
from tests.sim.machine import SimFence
from tests.sim.one_node import on_a_node
from tests.support import needs
from tests.support.fences import claimed
from tests.support.pace import patient
from tests.support.volumes import command
from tests.support.waiting import soon

PORTS = (Fence,)
PORT = 2049


@dataclass
class Scene:
    """The port of a machine."""

    fence: Fence
    flush: Callable[[], object]
    """Somebody takes the rules away."""
    grain_s: float = 0.0
    """The kernel's unit of time: a permit is rounded down to it, and so is what is told of it."""
    other: Fence | None = None
    """Another volume's, on the same port."""

    def arm(self, seconds: float, fence: Fence | None = None) -> bool:
        return claimed(fence or self.fence).arm(monotonic() + seconds, monotonic() + patient(5.0))


@contextlib.contextmanager
def by_nft(directory: Path) -> Iterator[Scene]:
    with own_network():
        yield Scene(
            NftFence(PORT, directory, "data"),
            lambda: command("nft", "flush", "ruleset"),
            0.001,
            NftFence(PORT, directory, "music"),
        )


@contextlib.contextmanager
def by_ipset(directory: Path) -> Iterator[Scene]:
    with own_network():
        yield Scene(
            IpsetFence(PORT, directory, "data"),
            lambda: command("iptables-legacy", "-F"),
            1.0,
            IpsetFence(PORT, directory, "music"),
        )


@contextlib.contextmanager
def by_file(directory: Path) -> Iterator[Scene]:
    fence = FileFence(directory, PORT)
    yield Scene(fence, fence.path.unlink)


@contextlib.contextmanager
def fake_kernel(directory: Path) -> Iterator[Scene]:
    kernel = SharedPort(in_place=False)

    def flush() -> None:
        kernel.in_place = False

    data, music = (VolumeFence(kernel, directory, volume) for volume in ("data", "music"))
    yield Scene(data, flush, other=music)


@contextlib.contextmanager
def fake(_directory: Path) -> Iterator[Scene]:
    fence = FakeFence(World(), in_place=False)

    def flush() -> None:
        fence.in_place = False

    yield Scene(fence, flush)


@contextlib.contextmanager
def simulated(directory: Path) -> Iterator[Scene]:
    with on_a_node(directory, volumes=("data", "media")) as node:
        data, media = (seat.fence() for seat in node.seats.values())
        yield Scene(data, node.rules.flush, other=media)


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and firewalls")
KERNEL = (ROOT, needs.tool("ip", "iproute2"))
IMPLEMENTATIONS = (
    Implementation((NftFence,), by_nft, (*KERNEL, needs.tool("nft", "nftables"))),
    Implementation(
        (IpsetFence,),
        by_ipset,
        (*KERNEL, needs.tool("ipset", "ipset"), needs.tool("iptables-legacy", "iptables")),
    ),
    Implementation((FileFence,), by_file),
    Implementation((VolumeFence,), fake_kernel),
    Implementation((FakeFence,), fake),
    Implementation((SimFence,), simulated),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path / "fence") as made:
        yield made


@pytest.fixture
def fence(scene: Scene) -> Fence:
    return scene.fence


def told(fence: Fence) -> tuple[bool, float]:
    """Whether the rules are there, and for how long they let the port pass."""
    state = fence.state()
    return state.in_place, state.open_for_s


def test_where_nothing_was_done_there_are_no_rules_and_no_permit(fence: Fence) -> None:
    assert told(fence) == (False, 0.0)


def test_shutting_puts_the_rules_in_place_and_may_be_repeated(scene: Scene, fence: Fence) -> None:
    for _ in range(2):
        fence.ensure_closed()
        assert told(fence) == (True, 0.0)
    scene.arm(20)
    fence.ensure_closed(soon(10))
    fence.ensure_closed(soon(10))
    assert told(fence) == (True, 0.0)


def test_a_permit_lasts_until_its_end_and_not_beyond(scene: Scene, fence: Fence) -> None:
    fence.ensure_closed()
    claimed(fence)
    for seconds in (7.3001, 2.5):  # a shorter one replaces a longer one
        asked = monotonic()
        assert fence.arm(asked + seconds, asked + patient(5.0)) is False
        took_s = monotonic() - asked
        looked = monotonic()  # the answer is of some moment after it
        left_s = fence.state().open_for_s
        assert 0 < left_s <= asked + seconds - looked + took_s + 0.01
        assert asked + seconds - monotonic() - 2 * scene.grain_s - 0.01 <= left_s


def test_a_permit_ends_by_itself(scene: Scene, fence: Fence) -> None:
    fence.ensure_closed()
    span_s = 0.3 + 2 * scene.grain_s
    asked = monotonic()
    scene.arm(span_s)
    sleep(asked + span_s - monotonic() + 0.02 + (monotonic() - asked))
    assert told(fence) == (True, 0.0)


def test_opening_where_there_are_no_rules_makes_them_and_says_so(
    scene: Scene, fence: Fence
) -> None:
    assert scene.arm(20) is True
    state = fence.state()
    assert state.in_place
    assert state.open_for_s > 15
    assert scene.arm(20) is False


def test_rules_that_somebody_took_away_are_missed_and_put_back(scene: Scene, fence: Fence) -> None:
    fence.ensure_closed()
    scene.arm(20)
    scene.flush()
    assert not fence.state().in_place
    assert scene.arm(20) is True
    assert fence.state().in_place
    scene.flush()
    fence.ensure_closed()
    assert told(fence) == (True, 0.0)


@pytest.mark.parametrize("rules", [True, False], ids=["with rules", "without"])
def test_too_late_is_not_at_all(fence: Fence, rules: bool) -> None:
    if rules:
        fence.ensure_closed()
    claimed(fence)
    with pytest.raises(TimedOut):
        fence.arm(monotonic() + 20, monotonic() - 0.001)
    assert fence.state().open_for_s == 0


def test_a_lease_that_is_over_opens_nothing(fence: Fence) -> None:
    fence.ensure_closed()
    claimed(fence)
    with pytest.raises(StandfastError):
        fence.arm(monotonic() - 0.001, monotonic() + patient(5.0))
    assert fence.state().open_for_s == 0


def test_a_claim_opens_nothing_and_may_be_repeated_and_given_up_unmade(
    scene: Scene, fence: Fence
) -> None:
    fence.release()
    fence.ensure_closed()
    fence.claim()
    fence.claim()
    assert fence.state().claimed
    assert told(fence) == (True, 0.0)
    scene.arm(20)
    assert fence.state().open_for_s > 15
    fence.release()
    fence.release()


def test_what_is_not_exported_opens_nothing_and_claims_nothing(scene: Scene, fence: Fence) -> None:
    """A heartbeat that comes after the export was taken away."""
    if scene.other is None:
        pytest.skip("one volume has the port there: it is open for that one or not at all")
    fence.claim()
    fence.release()
    with pytest.raises(StandfastError, match="is not exported"):
        fence.arm(monotonic() + 20, monotonic() + patient(5.0))
    assert not fence.state().claimed and fence.state().open_for_s == 0
    scene.arm(20, scene.other)
    assert scene.other.state().open_for_s > 15


def test_the_least_lease_of_the_volumes_counts(scene: Scene, fence: Fence) -> None:
    if scene.other is None:
        pytest.skip("one volume has the port there: no other lease could be the least")
    scene.arm(10)
    scene.arm(50, scene.other)
    assert 0 < scene.other.state().open_for_s <= 10
    fence.release()
    assert not fence.state().claimed
    scene.arm(50, scene.other)
    assert 40 < scene.other.state().open_for_s <= 50
    fence.claim()
    assert scene.other.state().open_for_s == 0, "what was opened without it is shut"
    with pytest.raises(StandfastError, match="the lease of data has run out"):
        scene.arm(50, scene.other)
    scene.arm(20)
    scene.arm(50, scene.other)
    fence.claim()
    assert 0 < scene.other.state().open_for_s <= 20, "it had a claim already"
