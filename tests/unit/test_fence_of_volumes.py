"""Several volumes, one port: whatever is done in whatever order, no claim is exceeded.

The kernel is a number here: until when it lets the port pass. The backends have their contract
tests; what they share is the shipped code.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standfast.errors import CommandFailed, StandfastError
from standfast.system import locks
from standfast.system.clock import Deadline
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.fences import SharedPort, VolumeFence
from tests.support.examples import examples

VOLUMES = ("data", "music")


@dataclass
class Port:
    """The port and two volumes' fences; `ends` is what each volume's lease allows."""

    directory: Path
    clock: StoppedClock
    kernel: SharedPort = field(default_factory=SharedPort)
    ends: dict[str, float] = field(default_factory=dict)

    def fence(self, volume: str) -> VolumeFence:
        return VolumeFence(self.kernel, self.directory, volume)

    def claim(self, volume: str, _: float) -> None:
        self.fence(volume).claim()
        self.ends.setdefault(volume, 0.0)

    def arm(self, volume: str, length_s: float) -> None:
        """By a heartbeat, which may come before the export, and after it was taken away."""
        until = max(self.ends.get(volume, 0.0), self.clock.now + length_s)
        if volume in self.ends:
            self.ends[volume] = until
        self.fence(volume).arm(until, self.clock.now + 1)

    def shut(self, volume: str, _: float) -> None:
        self.fence(volume).ensure_closed()
        if volume in self.ends:
            self.ends[volume] = 0.0

    def release(self, volume: str, _: float) -> None:
        self.fence(volume).release()
        self.ends.pop(volume, None)

    def flush(self, _volume: str, _: float) -> None:
        """By the firewall's owner; the rules' absence is another subject."""
        self.kernel.in_place, self.kernel.open_until = False, 0.0

    def wait(self, _volume: str, length_s: float) -> None:
        self.clock.now += length_s

    def breaks(self, _volume: str, _: float) -> None:
        self.kernel.broken = not self.kernel.broken

    def check(self) -> None:
        for volume, end in self.ends.items():
            assert self.kernel.open_until <= max(end, self.clock.now), f"beyond {volume}'s lease"
        claims = {path.stem for path in self.directory.glob("*.json")}
        assert claims <= self.ends.keys(), "of what is not exported nothing shuts the port"


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Port:
    return Port(tmp_path, stop_the_clock(monkeypatch))


def test_a_volume_that_claims_the_port_shuts_the_port_that_was_opened_without_it(
    port: Port,
) -> None:
    port.claim("music", 0)
    port.arm("music", 8.0)
    assert port.kernel.open_until == port.clock.now + 8.0
    port.claim("data", 0)
    assert port.kernel.open_until == 0.0
    port.arm("data", 3.0)
    assert port.kernel.open_until == port.clock.now + 3.0


def test_a_volume_that_claims_it_already_shuts_nothing(port: Port) -> None:
    port.claim("data", 0)
    port.arm("data", 8.0)
    port.claim("data", 0)
    assert port.kernel.open_until == port.clock.now + 8.0


def test_who_cannot_shut_the_port_has_not_claimed_it_and_tries_again(port: Port) -> None:
    """A claim that is there is taken for one that everything open has counted."""
    port.claim("music", 0)
    port.arm("music", 8.0)
    port.kernel.broken = True
    with pytest.raises(CommandFailed):
        port.fence("data").claim()
    assert not port.fence("data").state().claimed
    port.kernel.broken = False
    port.fence("data").claim()
    assert port.kernel.open_until == 0.0
    assert port.fence("data").state().claimed


def test_a_permit_given_while_the_port_is_being_shut_is_taken_back(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another volume's process has counted the claim as it was before, and is a moment later."""
    port.claim("data", 0)
    port.arm("data", 8.0)
    port.claim("music", 0)
    others = contextlib.ExitStack()
    others.enter_context(port.fence("music").claims.locked(Deadline.after(0)))

    def opens(seconds: float) -> None:
        port.clock.now += seconds
        port.kernel.open_until = port.clock.now + 5.0
        others.close()

    monkeypatch.setattr(locks, "sleep", opens)
    port.fence("data").ensure_closed()
    assert port.kernel.open_until == 0.0
    with pytest.raises(StandfastError, match="the lease of data has run out"):
        port.fence("music").arm(port.clock.now + 8.0, port.clock.now + 1)


deeds = st.tuples(
    st.sampled_from(["claim", "arm", "arm", "arm", "shut", "release", "flush", "wait", "breaks"]),
    st.sampled_from(VOLUMES),
    st.sampled_from([0.0, 0.5, 2.0, 8.0, 40.0]),
)


@pytest.mark.hypothesis
@examples(300)
@given(st.lists(deeds, max_size=14))
def test_in_whatever_order_the_port_is_open_for_no_longer_than_each_lease(
    history: list[tuple[str, str, float]],
) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        port = Port(Path(directory), stop_the_clock(patch))
        for deed, volume, length_s in history:
            with contextlib.suppress(StandfastError):
                getattr(port, deed)(volume, length_s)
            port.check()
