"""The lease's process between two heartbeats: what it opens, and what it takes up from another."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from msgspec import structs

from standfast.config.model import FAST_PROFILE, Config
from standfast.consul.records import Handover, LeaderState
from standfast.errors import Refused, StandfastError
from standfast.events.events import Kind
from standfast.lease import cutoff
from standfast.lease import keeper as keeper_module
from standfast.lease.epochs import EpochFile
from standfast.lease.files import (
    NOTHING_HELD,
    LeaseStatus,
    Vouch,
    note_flush,
    note_start,
    save_claim,
    was_flushed,
    was_never_open,
)
from standfast.lease.inbox import REQUEST_S, Answer, listening
from standfast.lease.keeper import Keeper
from standfast.lease.process import answer, hold, run
from standfast.lease.protocol import NEVER, Claim
from standfast.lease.surrender import Spell
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import NfsServer
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import World
from tests.support.configs import config_in
from tests.unit.keepers import LENGTH_S, Fence, Keys, started


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path)


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def fence() -> Fence:
    return Fence(World())


def is_open(fence: Fence) -> bool:
    return fence.state().open_for_s > 0


# Opening


def test_the_port_stays_shut_until_the_word_and_then_opens_for_the_lease_alone(
    config: Config, keys: Keys, fence: Fence
) -> None:
    keeper = started(config, keys, fence)
    keeper.beat()
    assert not is_open(fence)
    assert answer(keeper, {"cmd": "serve"})["ok"] is True
    assert fence.state().open_for_s == LENGTH_S


def test_the_port_is_opened_soon_or_not_at_all(config: Config, keys: Keys, fence: Fence) -> None:
    """What is frozen on the way opens it later than its lease allows: F is all it may take."""
    keeper = started(config, keys, fence)
    keeper.serve()
    assert 0 < fence.had_s[0] < config.lease.fence


def test_a_lease_without_time_opens_nothing(config: Config, keys: Keys, fence: Fence) -> None:
    keys.away = True
    keeper = started(config, keys, fence)
    reply = answer(keeper, {"cmd": "serve"})
    assert reply["ok"] is False and "no time left: Consul hangs" in str(reply["error"])
    assert not keeper.serving
    keys.away = False
    keeper.beat()
    assert not is_open(fence), "the word was refused: the agent has to say it again"


def test_a_port_that_does_not_open_is_no_success(
    config: Config, keys: Keys, fence: Fence, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(until: float, latest: float) -> bool:
        raise StandfastError("nft hangs")

    monkeypatch.setattr(fence, "arm", fail)
    reply = answer(started(config, keys, fence), {"cmd": "serve"})
    assert reply["ok"] is False and "nft hangs" in str(reply["error"])


# Giving up


def test_no_heartbeat_opens_the_port_of_an_epoch_that_drains(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock
) -> None:
    keeper = started(config, keys, fence)
    keeper.serve()
    keeper.drain()
    assert not is_open(fence)
    clock.now += 2
    keeper.beat()
    assert not is_open(fence)
    assert keys.sent[-1] is LeaderState.DRAINING


def test_the_port_is_shut_and_the_lease_void_before_clean_is_sent(
    config: Config, keys: Keys, fence: Fence
) -> None:
    keeper = started(config, keys, fence)
    keeper.serve()
    keeper.release(Handover(to="n2"))
    assert not is_open(fence)
    assert [held_lease.valid_until for held_lease in keys.released] == [NEVER]
    assert keeper.over


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("surrendered", [False, True])
def test_who_gives_up_says_whether_the_port_was_ever_open(
    config: Config, keys: Keys, fence: Fence, *, opened: bool, surrendered: bool
) -> None:
    """The next one may take data that this epoch had cut off, when nobody wrote in it."""
    keeper = started(config, keys, fence)
    keeper.service.spell = Spell(monotonic())
    if opened:
        keeper.serve()
    keeper.release(Handover(to="n2", surrendered=surrendered))
    assert [handover.idle for handover in keys.handovers] == [not opened]


def test_a_port_that_a_flush_opened_may_have_been_written_through(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock
) -> None:
    """The server ran already, and nobody had said `serve` yet."""
    keeper = started(config, keys, fence)
    keeper.service.spell = Spell(monotonic())
    hold(keeper, Script(clock, [""] * 3 + ["end"]))
    assert (keeper.service.idle, was_never_open(config.run_dir)) == (True, True)
    fence.in_place = False
    hold(keeper, Script(clock, [""] * 3 + ["end"]))
    assert keeper.flushes == 1
    assert (keeper.service.idle, was_never_open(config.run_dir)) == (False, False)
    keeper.release(Handover(to="n2", surrendered=True))
    assert [handover.idle for handover in keys.handovers] == [False]


def test_a_flush_of_an_earlier_epoch_says_nothing_of_the_next(
    config: Config, keys: Keys, fence: Fence
) -> None:
    note_flush(config.run_dir)
    assert was_flushed(config.run_dir)
    started(config, keys, fence)
    assert not was_flushed(config.run_dir)


def test_after_a_clean_of_unknown_outcome_it_waits_for_a_word(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock
) -> None:
    """A heartbeat would make the lease valid while a successor may start."""
    keeper = started(config, keys, fence)
    keeper.serve()
    keys.away = True
    reply = answer(keeper, {"cmd": "release", "to": "n2"})
    assert reply["ok"] is False and "not known" in str(reply["error"])
    assert waits_for_a_word(keeper) and not keeper.over
    assert keeper.held_lease.valid_until == NEVER
    keys.away = False
    clock.now += 1
    assert answer(keeper, {"cmd": "hold"})["ok"] is True
    assert not waits_for_a_word(keeper)
    assert keeper.held_lease.remaining_s(monotonic()) == LENGTH_S


def can_not_be_set(fence: Fence, monkeypatch: pytest.MonkeyPatch) -> None:
    """nft can't be run; what the kernel has goes on."""

    def fail(deadline: Deadline | None = None) -> None:
        raise StandfastError("nft can't be run")

    monkeypatch.setattr(fence, "ensure_closed", fail)


@pytest.mark.parametrize("command", ["release", "surrender"])
def test_a_port_that_can_not_be_shut_stops_the_server_before_the_lease_is_given_up(
    command: str, config: Config, keys: Keys, fence: Fence, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = started(config, keys, fence)
    keeper.serve()
    can_not_be_set(fence, monkeypatch)
    assert answer(keeper, {"cmd": command, "to": "n2"}) == {"ok": True, "epoch": 4, "over": True}
    assert not keeper.nfs.is_running()
    assert [held_lease.valid_until for held_lease in keys.released] == [NEVER]


def unstoppable(nfs: NfsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(deadline: Deadline) -> None:
        raise StandfastError("a thread of nfsd is left")

    monkeypatch.setattr(nfs, "stop", hang)


def test_a_role_is_not_given_up_while_clients_may_be_served(
    config: Config, keys: Keys, fence: Fence, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = started(config, keys, fence)
    keeper.serve()
    can_not_be_set(fence, monkeypatch)
    unstoppable(keeper.nfs, monkeypatch)
    reply = answer(keeper, {"cmd": "surrender", "to": "n2"})
    assert reply["ok"] is False and "nft can't be run" in str(reply["error"])
    assert keys.released == [] and not keeper.over


def test_a_surrender_that_can_not_shut_the_port_lets_the_lease_run_out(
    config: Config,
    keys: Keys,
    fence: Fence,
    clock: StoppedClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel's permit ends with it, and others take over as from a dead node."""
    config = structs.replace(config, fence=structs.replace(config.fence, reboot="sysrq"))
    keeper = started(config, keys, fence)
    reboots: list[float] = []
    monkeypatch.setattr(cutoff, "reboot_now", lambda: reboots.append(clock.now))
    keeper.serve()
    can_not_be_set(fence, monkeypatch)
    unstoppable(keeper.nfs, monkeypatch)
    # Whatever the kernel was told is not in effect: the rules were flushed.
    fence.in_place = False
    end = keeper.held_lease.valid_until
    before = len(keys.sent)
    answer(keeper, {"cmd": "surrender", "to": "n2"})
    hold(keeper, Script(clock, [""] * 20 + ["end"]))
    assert len(keys.sent) == before
    assert reboots and reboots[0] <= end + config.lease.fence + config.lease.heartbeat


@pytest.mark.parametrize("since", ["the drain failed", "flushed after it"])
def test_past_the_lease_the_server_of_a_drained_epoch_is_stopped_in_doubt(
    since: str,
    config: Config,
    keys: Keys,
    fence: Fence,
    clock: StoppedClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keeper = started(config, keys, fence)
    keeper.serve()
    if since == "flushed after it":
        keeper.drain()
    can_not_be_set(fence, monkeypatch)
    if since == "the drain failed":
        assert answer(keeper, {"cmd": "drain"})["ok"] is False
    fence.in_place = False
    keys.away = True
    hold(keeper, Script(clock, [""] * 3 + ["end"]))
    assert keeper.nfs.is_running(), "the lease lasts: nobody else serves"
    hold(keeper, Script(clock, [""] * 20 + ["end"]))
    assert not keeper.nfs.is_running()


def test_a_drain_that_fails_opens_nothing_again(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = started(config, keys, fence)
    keeper.serve()
    until = fence.open_until
    can_not_be_set(fence, monkeypatch)
    answer(keeper, {"cmd": "drain"})
    clock.now += 2
    keeper.beat()
    assert fence.open_until == until


def told(monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    kinds: list[Kind] = []
    monkeypatch.setattr(keeper_module, "tell", lambda event: kinds.append(event.kind))
    return kinds


def test_a_surrender_that_is_over_is_not_carried_out_again(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the successor's lease stands there: it would be told as a lease that was lost."""
    kinds = told(monkeypatch)
    hold(started(config, keys, fence), Script(clock, ["surrender", "never heard"]))
    assert len(keys.released) == 1
    assert kinds == [Kind.SURRENDERED]


def waits_for_a_word(keeper: Keeper) -> bool:
    """Its loop sends no heartbeat."""
    return keeper.holding_back


def test_a_silent_client_holds_heartbeats_up_for_no_longer_than_the_fast_profile_allows() -> None:
    """That none of them is waited for without end is in test_lease_on_consul.py."""
    assert FAST_PROFILE.heartbeat >= REQUEST_S


# Taking up


def left_behind(config: Config, fence: Fence, **changes: Any) -> LeaseStatus:
    """The last word of a keeper that was killed while it served."""
    until = monotonic() + 5
    fence.open_until = until
    serving = LeaderState.SERVING
    last = LeaseStatus(4, "boot-1", 1, serving, True, until, until, 7, monotonic() - 1e6, 3)
    last = structs.replace(last, **changes)
    last.save(config.run_dir)
    return last


def test_a_restart_within_the_lease_touches_nothing(
    config: Config, keys: Keys, fence: Fence
) -> None:
    last = left_behind(config, fence)
    keeper = started(config, keys, fence)
    assert fence.world.log == [] and fence.state().open_for_s == 5
    assert keeper.serving and keeper.state is LeaderState.SERVING
    assert (keeper.held_lease.valid_until, keeper.armed_until) == (
        last.valid_until,
        last.armed_until,
    )


def test_a_restart_does_not_make_the_epoch_younger(
    config: Config, keys: Keys, fence: Fence
) -> None:
    """Only who has served for long drops the pin of a standby that is away."""
    last = left_behind(config, fence)
    keeper = started(config, keys, fence)
    assert (keeper.since, keeper.flushes) == (last.since, last.flushes)


def test_a_restart_puts_rules_that_are_gone_back_shut(
    config: Config, keys: Keys, fence: Fence
) -> None:
    left_behind(config, fence)
    fence.in_place = False
    started(config, keys, fence)
    assert fence.world.log == ["shut"]


@pytest.mark.parametrize("other", [{"epoch": 3}, {"instance": "boot-0"}], ids=str)
def test_the_last_word_of_another_epoch_or_boot_is_not_taken_up(
    config: Config, keys: Keys, fence: Fence, other: dict[str, Any]
) -> None:
    left_behind(config, fence, **other)
    keeper = started(config, keys, fence)
    assert not is_open(fence) and not keeper.serving
    assert keeper.held_lease.remaining_s(monotonic()) == 0


def test_what_was_voided_stays_void_over_a_restart(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock
) -> None:
    """Else a crash would end the wait for a successor that Consul has forgotten."""
    now = monotonic()
    left_behind(config, fence, valid_until=now - 1, armed_until=now - 1, voided_at=now + 5)
    fence.open_until = now - 1
    keeper = started(config, keys, fence)
    keeper.beat()
    assert keeper.held_lease.remaining_s(monotonic()) == 0 and not is_open(fence)
    clock.now += 5.1
    keeper.beat()
    assert is_open(fence)


def test_an_earlier_keepers_longer_lease_goes_on_under_a_shorter_configuration(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock
) -> None:
    until = monotonic() + 38
    left_behind(config, fence, valid_until=until, armed_until=until, longest_s=40.0)
    started(config, keys, fence).save()
    clock.now += 1
    again = started(config, keys, fence)
    assert again.held_lease.valid_until == until, "its file is one of this boot's"


def test_a_lease_of_before_a_reboot_opens_nothing(config: Config, keys: Keys, fence: Fence) -> None:
    until = monotonic() + 500
    left_behind(config, fence, valid_until=until, armed_until=until, longest_s=8.0)
    keeper = started(config, keys, fence)
    assert keeper.held_lease.valid_until == NEVER and not keeper.serving
    assert not is_open(fence)


def test_an_epoch_whose_end_this_node_has_seen_is_not_taken_up(
    config: Config, keys: Keys, fence: Fence
) -> None:
    """Consul was restored to it, and the one that followed may serve."""
    left_behind(config, fence)
    EpochFile(config.state_dir / "epoch").raise_to(5)
    with pytest.raises(Refused, match=r"this node has seen 5.*accept-epoch") as refused:
        started(config, keys, fence)
    assert refused.value.reason is Reason.EPOCH_WENT_BACK


def test_the_own_epoch_is_remembered_through_a_reboot(
    config: Config, keys: Keys, fence: Fence
) -> None:
    """Else a restored backup of Consul would not be noticed here."""
    started(config, keys, fence)
    assert EpochFile(config.state_dir / "epoch").read() == 4


# Acquiring


CLAIM = Claim(4, (4, "n2", "boot-2", 7), 100.0, None, "takeover", None, 60.0)


def test_a_node_that_can_not_be_cut_off_acquires_no_lease(
    config: Config, keys: Keys, fence: Fence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not serve, and the others would wait once more for the lease that it took."""
    keys.free = True
    save_claim(config.run_dir, CLAIM)
    can_not_be_set(fence, monkeypatch)
    with pytest.raises(StandfastError, match="nft can't be run"):
        started(config, keys, fence)
    assert keys.acquired == []
    assert EpochFile(config.state_dir / "epoch").read() == 0


def test_a_lease_is_acquired_with_the_port_shut(config: Config, keys: Keys, fence: Fence) -> None:
    keys.free, fence.in_place = True, False
    save_claim(config.run_dir, CLAIM)
    fence.open_until = monotonic() + 5
    keeper = started(config, keys, fence)
    assert keys.acquired == [CLAIM] and keeper.held_lease.epoch == 5
    assert fence.world.log == ["shut"], "once: another volume may be served here"


def test_who_has_nothing_to_acquire_shuts_nothing(config: Config, keys: Keys, fence: Fence) -> None:
    keys.free = True
    with pytest.raises(Refused, match="made no claim"):
        started(config, keys, fence)
    assert fence.world.log == []


# The loop


@dataclass
class Script:
    """An inbox that says one thing at each turn, after all the patience it was given."""

    clock: StoppedClock
    turns: list[str]
    replies: list[dict[str, Any]] = field(default_factory=list)
    patience_s: list[float] = field(default_factory=list)

    def wait(self, patience_s: float, answer: Answer) -> bool:
        self.patience_s.append(patience_s)
        self.clock.now += patience_s
        word = self.turns.pop(0)
        if word not in ("", "end"):
            self.replies.append(answer({"cmd": word}))
        return word != "end"


def test_the_loop_heartbeats_answers_and_ends_at_the_word(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock
) -> None:
    keeper = started(config, keys, fence)
    script = Script(clock, ["serve", "", "", "end"])
    hold(keeper, script)
    assert script.replies == [{"ok": True, "epoch": 4, "over": False}]
    assert keys.sent[0] is LeaderState.STARTING
    assert keys.sent[1:] == [LeaderState.SERVING] * 3
    assert set(script.patience_s) == {config.lease.heartbeat}
    assert is_open(fence), "an orderly end touches nothing"


def test_the_loop_ends_with_the_lease(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock
) -> None:
    hold(started(config, keys, fence), Script(clock, ["release", "never heard"]))
    status = LeaseStatus.load(config.run_dir)
    assert status is not None and status.valid_until == NEVER


def test_a_request_on_the_socket_is_answered_and_a_broken_one_harms_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lease.sock"
    stop, ending = socket.socketpair()
    asked: list[Mapping[str, Any]] = []

    def reply(request: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return {"ok": True}

    with stop, ending, listening(path, stop) as inbox:
        for line in (b"nonsense\n", b'{"cmd": "status"}\n'):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(line)
                assert inbox.wait(5.0, reply)
                said = client.recv(100)
        assert (asked, said) == ([{"cmd": "status"}], b'{"ok": true}\n')
        ending.send(b"x")
        assert not inbox.wait(5.0, reply)


# The end of a surrender


def ends_by_surrender(keeper: Keeper, clock: StoppedClock, config: Config) -> int:
    script = contextlib.nullcontext(Script(clock, ["surrender", "never heard"]))
    return run(config, keeper.keys, keeper.fence, keeper.nfs, script)


def test_a_surrender_ends_with_the_server_stopped(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock
) -> None:
    """Nobody looks at the fence from here any more, and the agent may be dead."""
    keeper = started(config, keys, fence)
    assert ends_by_surrender(keeper, clock, config) == 0
    assert not keeper.nfs.is_running() and not keys.registered


@pytest.mark.parametrize("away", [False, True])
def test_a_lease_that_is_over_leaves_no_entry_in_the_catalogue(
    config: Config, keys: Keys, fence: Fence, away: bool
) -> None:
    """Its agent may be unable to remove it."""
    keeper = started(config, keys, fence)
    keys.away = away
    keeper.sign_off()
    assert keys.registered, "it only ends, and will be taken up again"
    keeper.over = True
    keeper.sign_off()
    assert keys.registered is away


@pytest.mark.parametrize("ends", ["surrender", "end"])
def test_only_a_lease_that_is_over_in_order_leaves_nothing_that_systemd_has_to_stop(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock, ends: str
) -> None:
    """One that was told to end is taken up again."""
    mark = config.run_dir / NOTHING_HELD
    note_start(config)
    assert mark.exists()
    keeper = started(config, keys, fence)
    script = contextlib.nullcontext(Script(clock, [ends, "never heard"]))
    seen = []
    save = LeaseStatus.save

    def saved(status: LeaseStatus, run_dir: Path) -> None:
        save(status, run_dir)
        seen.append(mark.exists())

    with patch.object(LeaseStatus, "save", saved):
        assert run(config, keeper.keys, keeper.fence, keeper.nfs, script) == 0
    assert seen and not any(seen)
    assert mark.exists() is (ends == "surrender")


def test_a_surrender_that_leaves_a_server_ends_in_failure(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service manager stops it then; the role is given up all the same."""
    keeper = started(config, keys, fence)
    unstoppable(keeper.nfs, monkeypatch)
    with pytest.raises(StandfastError, match="a thread of nfsd is left"):
        ends_by_surrender(keeper, clock, config)
    assert len(keys.released) == 1 and keys.registered
    assert not (config.run_dir / NOTHING_HELD).exists(), "systemd stops it"


def test_a_surrender_ends_the_server_of_other_volumes_as_well(
    config: Config, keys: Keys, fence: Fence, clock: StoppedClock
) -> None:
    """It would answer what it was asked before; their agents start another one."""
    keeper = started(config, keys, fence)
    OwnEpoch(4, Stage.READY, "fsid", None, in_place=True).save(config.state_dir)
    keeper.nfs.export("fsid")
    until = monotonic() + 60
    other = config.paths.run / "other"
    other.mkdir(parents=True)
    LeaseStatus(2, "boot-1", 1, LeaderState.SERVING, True, until, until, 1, 0.0).save(other)
    assert ends_by_surrender(keeper, clock, config) == 0
    assert not keeper.nfs.is_running()
    assert fence.world.log[-3:] == ["stop-nfs", "unexport", "release"]


def test_what_the_agent_said_of_the_last_epoch_vouches_for_nothing(
    config: Config, keys: Keys, fence: Fence
) -> None:
    Vouch(monotonic(), None).save(config.run_dir)
    started(config, keys, fence)
    assert Vouch.load(config.run_dir) is None


def test_a_restart_does_not_make_the_time_without_service_shorter(
    config: Config, keys: Keys, fence: Fence
) -> None:
    left_behind(config, fence, unserved_s=42.0, served=False)
    keeper = started(config, keys, fence)
    keeper.save()
    status = LeaseStatus.load(config.run_dir)
    assert status is not None and (status.unserved_s, status.served) == (42.0, False)


def test_who_takes_a_lease_up_without_knowing_more_takes_it_for_one_that_served(
    config: Config, keys: Keys, fence: Fence
) -> None:
    assert started(config, keys, fence).service.spell.served
