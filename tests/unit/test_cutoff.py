"""The end of serving when the lease has run out or is lost: one stage after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from standfast.config.model import Config, Fencing
from standfast.consul.records import Handover, Holder, LeaderState
from standfast.errors import StandfastError
from standfast.lease import cutoff
from standfast.lease.cutoff import SHUT_S, Found, confirm_shut, stop_for_good
from standfast.lease.holding import LeaseKeys
from standfast.lease.keeper import Keeper
from standfast.lease.protocol import HeldLease, Lost
from standfast.node.ports import FenceState
from standfast.system.clock import Deadline, monotonic
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.support.configs import config_in

SHUT = FenceState(in_place=True, open_for_s=0.0)
OPEN = FenceState(in_place=True, open_for_s=3.0)
GONE = FenceState(in_place=False, open_for_s=0.0)


@dataclass
class Parts:
    """Fence and server in one, as far as cutting off goes; `broken` names what fails."""

    kernel: FenceState | None = SHUT
    """None: the kernel doesn't answer."""
    broken: frozenset[str] = frozenset()
    runs: bool = True
    """The server."""
    elsewhere: str | None = None
    """Where it listens that the fence doesn't shut."""
    did: list[str] = field(default_factory=list)
    had_s: dict[str, float | None] = field(default_factory=dict)
    """How long each may take; None: as long as it likes."""

    def state(self) -> FenceState:
        if self.kernel is None:
            raise StandfastError("nft hangs")
        return self.kernel

    def ensure_closed(self, deadline: Deadline | None = None) -> None:
        self._do("shut", deadline)
        self.kernel = SHUT

    def arm(self, until: float, latest: float) -> bool:
        flushed = not self.state().in_place
        self._do("open", Deadline(latest))
        self.kernel = FenceState(True, until - monotonic())
        return flushed

    def stop(self, deadline: Deadline) -> None:
        self._do("stop", deadline)
        self.runs = False

    def is_running(self) -> bool:
        return self.runs

    def unfenced(self) -> str | None:
        return self.elsewhere if self.runs else None

    def _do(self, what: str, deadline: Deadline | None) -> None:
        self.had_s[what] = None if deadline is None else round(deadline.remaining_s(), 3)
        if what in self.broken:
            raise StandfastError(f"{what} hangs")
        self.did.append(what)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.fixture(autouse=True)
def reboots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """When the machine would have been rebooted; never this one, whatever is wrong."""
    monkeypatch.setattr(cutoff, "SYSRQ", tmp_path / "sysrq-trigger")
    at: list[float] = []
    monkeypatch.setattr(cutoff, "reboot_now", lambda: at.append(monotonic()))
    return at


def confirmed(parts: Parts, within_s: float = 3.0) -> Found:
    return confirm_shut(cast(Any, parts), cast(Any, parts), monotonic() + within_s)


# The lease ran out


def test_a_port_that_the_kernel_shut_needs_nothing_more() -> None:
    parts = Parts(SHUT)
    assert confirmed(parts) is Found.SHUT
    assert parts.did == []


def test_a_server_that_listens_where_the_fence_does_not_shut_it_is_stopped() -> None:
    """Somebody changed the server's port and started it again, while this node served."""
    parts = Parts(SHUT, elsewhere="nfsd listens at tcp 20490")
    assert confirmed(parts) is Found.NO_SERVER
    assert parts.did == ["stop"]
    assert confirmed(parts) is Found.SHUT


def test_a_role_is_not_given_up_beside_a_server_that_the_fence_does_not_shut() -> None:
    parts = Parts(OPEN, elsewhere="nfsd listens at tcp 20490")
    cutoff.shut_to_give_up(cast(Any, parts), cast(Any, parts))
    assert parts.did == ["shut", "stop"]
    parts = Parts(OPEN, frozenset({"stop"}), elsewhere="nfsd listens at tcp 20490")
    with pytest.raises(StandfastError, match="listens at tcp 20490"):
        cutoff.shut_to_give_up(cast(Any, parts), cast(Any, parts))


@pytest.mark.parametrize(
    ("kernel", "outcome"),
    [(OPEN, Found.OPEN), (GONE, Found.FLUSHED)],
    ids=["still open", "without its rules"],
)
def test_a_port_is_shut_when_it_is(kernel: FenceState, outcome: Found) -> None:
    parts = Parts(kernel)
    assert confirmed(parts) is outcome
    assert parts.did == ["shut"]


@pytest.mark.parametrize(
    ("kernel", "broken"),
    [(None, frozenset[str]()), (OPEN, frozenset({"shut"}))],
    ids=["no answer", "it stays open"],
)
def test_a_fence_that_can_not_be_confirmed_stops_the_server(
    kernel: FenceState | None, broken: frozenset[str]
) -> None:
    parts = Parts(kernel, broken)
    assert confirmed(parts) is Found.NO_SERVER
    assert parts.did == ["stop"]
    assert confirmed(parts) is Found.NO_SERVER
    assert parts.did == ["stop"], "one that doesn't run is not stopped again and again"


def test_a_server_that_does_not_stop_either_is_a_doubt_that_names_both() -> None:
    with pytest.raises(StandfastError, match=r"shut hangs.*stop hangs"):
        confirmed(Parts(OPEN, frozenset({"shut", "stop"})))


def test_shutting_leaves_time_to_stop_the_server() -> None:
    parts = Parts(OPEN, frozenset({"shut"}))
    confirmed(parts, within_s=3.0)
    assert parts.had_s == {"shut": SHUT_S, "stop": 3.0}
    parts.runs = True
    confirmed(parts, within_s=-5.0)
    assert parts.had_s["stop"] == 1.0, "it is tried even when it is late"


# The lease is lost for good


def stopped(*broken: str) -> list[str]:
    parts = Parts(OPEN, frozenset(broken))
    stop_for_good(cast(Any, parts), cast(Any, parts), Deadline.after(10))
    return parts.did


def test_the_port_is_shut_before_the_server_is_stopped() -> None:
    assert stopped() == ["shut", "stop"]


def test_one_of_both_is_enough() -> None:
    assert stopped("shut") == ["stop"]
    assert stopped("stop") == ["shut"]


def test_neither_of_both_is_an_error_with_both_reasons() -> None:
    with pytest.raises(StandfastError, match=r"shut hangs.*stop hangs"):
        stopped("shut", "stop")


# The last resort


def keeper(directory: Path, parts: Parts, *, reboot: str = "sysrq") -> Keeper:
    """It serves, and its lease ends in 8 s."""
    config: Config = replace(config_in(directory), fence=Fencing(reboot=reboot))
    now = monotonic()
    held_lease = HeldLease(4, Holder("n1", "boot-1"), 10, 11, 1, valid_until=now + 8)
    keys = cast(LeaseKeys, LostKeys())
    made = Keeper(config, keys, cast(Any, parts), cast(Any, parts), held_lease, since=now)
    made.state, made.serving, made.armed_until = LeaderState.SERVING, True, now + 8
    return made


class LostKeys:
    """Consul's answer to each heartbeat: it is over."""

    def heartbeat(self, _held_lease: HeldLease, _state: LeaderState, _word: Handover) -> Lost:
        return Lost("n2 took over with epoch 5")


UNSTOPPABLE = frozenset({"shut", "stop"})


def reboots_within(keeper: Keeper, clock: StoppedClock, seconds: int) -> None:
    for _ in range(seconds * 10):
        clock.now += 0.1
        keeper.check_end()


def test_a_machine_that_serves_on_is_rebooted_when_the_time_of_the_fence_is_over(
    tmp_path: Path, clock: StoppedClock, reboots: list[float]
) -> None:
    lease_keeper = keeper(tmp_path, Parts(OPEN, UNSTOPPABLE))
    ended = lease_keeper.held_lease.valid_until
    reboots_within(lease_keeper, clock, 15)
    assert ended + lease_keeper.config.lease.fence == pytest.approx(reboots[0], abs=0.15)


@pytest.mark.parametrize(
    ("reboot", "broken"),
    [("never", UNSTOPPABLE), ("sysrq", frozenset[str]())],
    ids=["not wanted", "the server stops"],
)
def test_a_machine_is_not_rebooted(
    tmp_path: Path,
    clock: StoppedClock,
    reboots: list[float],
    reboot: str,
    broken: frozenset[str],
) -> None:
    """Where it is not configured, and where the port could be shut."""
    reboots_within(keeper(tmp_path, Parts(OPEN, broken), reboot=reboot), clock, 15)
    assert reboots == []


def test_within_its_lease_nothing_is_cut_off(tmp_path: Path, clock: StoppedClock) -> None:
    parts = Parts(OPEN)
    lease_keeper = keeper(tmp_path, parts)
    reboots_within(lease_keeper, clock, 8)
    assert parts.did == []
    reboots_within(lease_keeper, clock, 1)
    assert parts.did == ["shut"]


# The firewall is flushed


def test_a_port_that_was_shut_is_looked_at_again_and_again(
    tmp_path: Path, clock: StoppedClock
) -> None:
    """Somebody flushes the rules because the port is shut, as Consul is away."""
    parts = Parts(OPEN)
    lease_keeper = keeper(tmp_path, parts)
    reboots_within(lease_keeper, clock, 9)
    assert parts.did == ["shut"]
    for flushes in (1, 2, 3):
        parts.kernel = GONE
        reboots_within(lease_keeper, clock, 2)
        assert (parts.kernel, lease_keeper.flushes) == (SHUT, flushes)
    assert parts.runs, "the port is shut: a heartbeat may open it again"


def test_a_shut_port_costs_one_look_each_heartbeat_interval(
    tmp_path: Path, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(SHUT)
    lease_keeper = keeper(tmp_path, parts)
    reboots_within(lease_keeper, clock, 9)
    looks: list[float] = []

    def state(_parts: Parts) -> FenceState:
        looks.append(monotonic())
        return SHUT

    monkeypatch.setattr(Parts, "state", state)
    reboots_within(lease_keeper, clock, 20)
    assert len(looks) == pytest.approx(20 / lease_keeper.config.lease.heartbeat, abs=1)


def test_rules_that_go_while_no_heartbeat_gets_through_come_back_for_the_rest_of_the_lease(
    tmp_path: Path, clock: StoppedClock
) -> None:
    parts = Parts(OPEN)
    lease_keeper = keeper(tmp_path, parts)
    lease_keeper.sure_at = monotonic()
    clock.now += 3
    parts.kernel = GONE
    lease_keeper.check_end()
    assert parts.did == ["open"]
    assert parts.kernel == FenceState(in_place=True, open_for_s=5.0)
    assert lease_keeper.flushes == 1


def test_rules_that_can_not_be_put_back_open_are_put_back_shut(
    tmp_path: Path, clock: StoppedClock
) -> None:
    parts = Parts(GONE, frozenset({"open"}))
    lease_keeper = keeper(tmp_path, parts)
    clock.now += 3
    lease_keeper.check_end()
    assert parts.did == ["shut"]
    assert (parts.kernel, lease_keeper.flushes) == (SHUT, 1)


def test_rules_that_go_while_the_node_drains_come_back_shut(
    tmp_path: Path, clock: StoppedClock
) -> None:
    """Within its lease and after its end: until the epoch is put away."""
    parts = Parts(OPEN)
    lease_keeper = keeper(tmp_path, parts)
    lease_keeper.drain()
    for _ in range(4):
        parts.kernel = GONE
        reboots_within(lease_keeper, clock, 3)
        assert parts.kernel == SHUT
    assert lease_keeper.flushes == 4 and parts.runs


def test_a_port_that_is_open_for_another_volume_is_left_to_it(
    tmp_path: Path, clock: StoppedClock
) -> None:
    """This volume's lease lasts or not: it isn't served here yet."""
    parts = Parts(OPEN)
    lease_keeper = keeper(tmp_path, parts)
    lease_keeper.serving = False
    reboots_within(lease_keeper, clock, 15)
    assert parts.did == []


def test_a_port_that_opens_again_and_can_not_be_shut_is_left_to_the_last_resort(
    tmp_path: Path, clock: StoppedClock, reboots: list[float]
) -> None:
    parts = Parts(SHUT)
    lease_keeper = keeper(tmp_path, parts)
    reboots_within(lease_keeper, clock, 60)
    assert reboots == []
    parts.kernel, parts.broken = GONE, UNSTOPPABLE
    noticed = monotonic()
    reboots_within(lease_keeper, clock, 10)
    limit_s = lease_keeper.config.lease.heartbeat + lease_keeper.config.lease.fence
    assert 0 < reboots[0] - noticed <= limit_s + 0.2


# Lost for good


def test_a_lease_that_another_one_took_stops_the_server(
    tmp_path: Path, reboots: list[float]
) -> None:
    parts = Parts(OPEN)
    lease_keeper = keeper(tmp_path, parts)
    lease_keeper.beat()
    assert parts.did == ["shut", "stop"]
    assert (
        lease_keeper.over
        and not lease_keeper.serving
        and lease_keeper.held_lease.remaining_s(monotonic()) == 0
    )
    assert reboots == []


@pytest.mark.parametrize("reboot", ["sysrq", "never"])
def test_a_lost_lease_whose_server_serves_on_is_left_to_the_last_resort(
    tmp_path: Path, reboots: list[float], reboot: str
) -> None:
    lease_keeper = keeper(tmp_path, Parts(OPEN, UNSTOPPABLE), reboot=reboot)
    with pytest.raises(StandfastError, match="shut hangs"):
        lease_keeper.beat()
    assert len(reboots) == (reboot == "sysrq")
