"""Epochs of snapshots, the highest epoch, retention, the cycles' memory, the transport."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from pathlib import Path
from typing import cast
from unittest.mock import patch

import pytest
from msgspec import structs
from msgspec.structs import replace

from standfast.agent.document import with_notes
from standfast.ages import Origin
from standfast.cli import replicate
from standfast.config.model import Config, Replication
from standfast.demo.stand_ins.directory import DirectoryStore
from standfast.errors import (
    CommandFailed,
    ConsulNoQuorum,
    ForeignValue,
    Refused,
    StandfastError,
    TimedOut,
)
from standfast.lease.epochs import EpochFile
from standfast.names import SnapshotName
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import published, state, verify
from standfast.replication.failures import reason_of
from standfast.replication.fingerprint import Fingerprint
from standfast.replication.published import (
    SETTLED_S,
    clock_set_ago,
    clock_was_set_s_ago,
    epochs_of_snapshots,
    next_name,
    note_clock,
    note_names,
    note_origin,
    origins_of_snapshots,
)
from standfast.replication.session import transport_argv
from standfast.status.document import Standby
from standfast.system.clock import Deadline, Instant, instant
from standfast.system.locks import exclusive
from tests.support.configs import config_in
from tests.support.origins import note_epoch


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path, "a", "b", "c")


def snapshot(second: int, content_id: str, *, received: bool = False) -> Snapshot:
    name = SnapshotName.at("services", 1e9 + second)
    return Snapshot(name, Path("/p") / str(name), content_id, received)


# The highest epoch


def test_the_highest_epoch_only_grows(tmp_path: Path) -> None:
    epochs = EpochFile(tmp_path / "state" / "epoch")
    assert epochs.read() == 0
    for epoch, highest in ((3, 3), (2, 3), (3, 3), (4, 4)):
        epochs.raise_to(epoch)
        assert EpochFile(tmp_path / "state" / "epoch").read() == highest


@pytest.mark.parametrize(
    "text", ["", "7", "{}", '{"v":1}', '{"v":1,"epoch":-1}', '{"v":1,"epoch":true}', "\0" * 20]
)
def test_an_unreadable_epoch_is_an_error_and_never_zero(tmp_path: Path, text: str) -> None:
    (tmp_path / "epoch").write_text(text)
    epochs = EpochFile(tmp_path / "epoch")
    with pytest.raises(StandfastError, match="does not hold an epoch"):
        epochs.read()
    with pytest.raises(StandfastError):
        epochs.raise_to(9)
    assert (tmp_path / "epoch").read_text() == text


# Epochs of snapshots


def test_epochs_are_noted_and_those_of_deleted_snapshots_forgotten(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert epochs_of_snapshots(config) == {}
    two = snapshot(2, "two")
    note_epoch(config, "one", 1, lambda: ())
    note_epoch(config, "two", 2, lambda: [])
    assert epochs_of_snapshots(config) == {"one": 1, "two": 2}, "it may not be mounted yet"
    monkeypatch.setattr(published, "MOST_UNSEEN", 1)
    note_epoch(config, "three", 2, lambda: [])
    note_epoch(config, "four", 2, lambda: [two])
    assert epochs_of_snapshots(config) == {"two": 2, "three": 2, "four": 2}
    note_epoch(config, "five", 2, lambda: [])
    assert epochs_of_snapshots(config) == {"four": 2, "five": 2}


def test_of_what_is_there_every_epoch_stays_noted(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "MOST_UNSEEN", 1)
    one, two = snapshot(1, "one"), snapshot(2, "two")
    note_epoch(config, "one", 1, lambda: ())
    note_epoch(config, "two", 2, lambda: [one])
    assert epochs_of_snapshots(config) == {"one": 1, "two": 2}
    note_epoch(config, "three", 2, lambda: [two])
    assert epochs_of_snapshots(config) == {"two": 2, "three": 2}


def test_what_another_process_takes_and_notes_meanwhile_keeps_its_epoch(config: Config) -> None:
    """Two cycles at once: what the slower one lists is what is there when it writes."""
    taken = [snapshot(1, "one")]

    def take_and_note() -> None:
        taken.append(snapshot(2, "two"))
        note_epoch(config, "two", 1, lambda: taken)

    def snapshots() -> list[Snapshot]:
        listed = list(taken)
        other.start()
        other.join(0.3)
        return listed

    other = threading.Thread(target=take_and_note)
    note_epoch(config, "one", 1, snapshots)
    other.join()
    assert epochs_of_snapshots(config) == {"one": 1, "two": 1}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"v":1,"epochs":{"one":"1"}}', '{"v":1}'])
def test_unreadable_epochs_are_an_error_and_stay(config: Config, text: str) -> None:
    config.state_dir.mkdir(parents=True)
    path = config.state_dir / "published.json"
    path.write_text(text)
    with pytest.raises(StandfastError):
        epochs_of_snapshots(config)
    with pytest.raises(StandfastError):
        note_epoch(config, "one", 1, lambda: ())
    assert path.read_text() == text


@pytest.mark.parametrize("back_s", [0.0, 3600.0])
def test_a_failure_after_the_clock_was_set_back_is_the_last_word(
    config: Config, monkeypatch: pytest.MonkeyPatch, back_s: float
) -> None:
    """And a success after that one, however the times that were noted compare."""
    now = 1e9
    monkeypatch.setattr(state, "utc_now", lambda: now)
    sent = state.Shared("services@20261122T101500Z", "id", 1)
    state.note_success(config, "b", sent, duration_s=1.0, sent_bytes=1)
    now -= back_s
    state.note_failure(config, "b", Reason.BUSY, "later")
    assert failure_shown(config) == "busy: later"
    state.note_success(config, "b", sent, duration_s=1.0, sent_bytes=1)
    assert failure_shown(config) is None
    state.note_needs_full(config, "b", "too long away")
    assert failure_shown(config) == "needs-full: too long away"
    now -= back_s
    state.note_success(config, "b", sent, duration_s=1.0, sent_bytes=1)
    assert failure_shown(config) is None


def failure_shown(config: Config) -> str | None:
    return with_notes(Standby("b"), state.load(config).standbys["b"]).failure or None


def test_what_an_older_version_noted_is_read_and_of_unknown_time(config: Config) -> None:
    config.state_dir.mkdir(parents=True)
    path = config.state_dir / "published.json"
    path.write_text('{"v":1,"epochs":{"one":1}}')
    assert origins_of_snapshots(config, instant()) == {"one": Origin(1)}
    one, two = snapshot(1, "one"), snapshot(2, "two")
    note_origin(config, two, Origin(1, instant().utc - 30), lambda: [one, two])
    assert json.loads(path.read_text())["epochs"] == {"one": 1, "two": 1}
    assert origins_of_snapshots(config, instant())["one"] == Origin(1)


@pytest.mark.parametrize(
    "field",
    [
        {"before": {"one": ["now", 1]}},
        {"before": [1]},
        {"counted_at": {"one": True}},
        {"before": {"one": [1, 1e300]}},
        {"before": {"one": [1]}},
        {"before": {"one": 1}},
        {"last": "yesterday's"},
        {"last": 5},
        {"clock": {"utc": 1.0}},
        {"clock": 5},
    ],
    ids=str,
)
def test_times_that_are_none_are_an_error_and_stay(config: Config, field: object) -> None:
    config.state_dir.mkdir(parents=True)
    path = config.state_dir / "published.json"
    text = json.dumps({"v": 1, "epochs": {"one": 1}} | cast("dict[str, object]", field))
    path.write_text(text)
    with pytest.raises(StandfastError, match="does not hold"):
        origins_of_snapshots(config, instant())
    with pytest.raises(StandfastError):
        note_clock(config, instant())
    assert path.read_text() == text


def at(now: Instant, seconds: float, *, set_by: float = 0.0, boot: str = "") -> Instant:
    """So much later, on a clock that was set by so much; `boot`: after a start of the machine."""
    up = 20.0 if boot else now.up + seconds
    return Instant(now.utc + seconds + set_by, up, boot or now.boot)


def told_age_s(config: Config, now: Instant) -> float:
    taken_at = origins_of_snapshots(config, now)["one"].taken_at
    assert taken_at is not None
    return now.utc - taken_at


def test_it_is_known_when_the_clock_was_set_but_for_the_first_minutes(config: Config) -> None:
    now = instant()
    taken = snapshot(1, "one")
    note_origin(config, taken, Origin(1, now.utc - 10), lambda: [taken])
    begun = Instant(now.utc, 20.0, "a new start")
    note_clock(config, begun)
    by_ntp = at(begun, 30, set_by=3600)
    note_clock(config, by_ntp)
    settled = at(by_ntp, SETTLED_S)
    assert clock_set_ago(config, settled) is None
    stepped = at(settled, 0, set_by=-5)
    assert clock_set_ago(config, stepped) == 0.0, "it is seen at once"
    note_clock(config, stepped)
    assert clock_set_ago(config, at(stepped, 90)) == pytest.approx(90)
    assert clock_set_ago(config, Instant(stepped.utc + 99, 30.0, "another start")) is None
    published.published_file(config).write_text("{")
    assert clock_set_ago(config, stepped) is None


@pytest.mark.parametrize("set_by", [-3600.0, -3e8, 0.0])
def test_a_clock_that_is_set_back_makes_nothing_younger_or_older(
    config: Config, set_by: float
) -> None:
    now = instant()
    taken = snapshot(1, "one")
    note_origin(config, taken, Origin(1, now.utc - 100), lambda: [taken])
    later = at(now, 500, set_by=set_by)
    assert told_age_s(config, later) == pytest.approx(600, abs=1)
    note_clock(config, later)
    assert told_age_s(config, at(later, 7200)) == pytest.approx(7800, abs=1)
    # It counts by the clock as it was last, not as it was when this was noted.
    after = at(later, 900, boot="another")
    assert told_age_s(config, after) == pytest.approx(1500, abs=1)


def test_a_machine_that_stood_still_does_not_take_its_data_for_young(config: Config) -> None:
    """A saved virtual machine: its uptime stood still, and its clock is set right afterwards."""
    now = instant()
    taken = snapshot(1, "one")
    note_origin(config, taken, Origin(1, now.utc - 10), lambda: [taken])
    resumed = Instant(now.utc + 7200, now.up + 1, now.boot)
    assert told_age_s(config, resumed) == pytest.approx(7210, abs=1)
    note_clock(config, resumed)
    assert told_age_s(config, at(resumed, 60, set_by=-5)) == pytest.approx(7270, abs=1)


def test_two_ways_in_which_a_clock_was_set_do_not_make_up_for_each_other(config: Config) -> None:
    now = instant()
    taken = snapshot(1, "one")
    note_origin(config, taken, Origin(1, now.utc - 10), lambda: [taken])
    back = at(now, 5, set_by=-3600)
    note_clock(config, back)
    resumed = Instant(back.utc + 7200, back.up + 1, now.boot)
    assert told_age_s(config, resumed) == pytest.approx(7215, abs=1)


def test_after_a_start_with_a_clock_that_is_behind_the_age_is_unknown_until_it_is_right(
    config: Config,
) -> None:
    """RTC in local time: hours behind, until NTP has set it right."""
    now = instant()
    taken = snapshot(1, "one")
    note_origin(config, taken, Origin(1, now.utc - 100), lambda: [taken])
    note_clock(config, at(now, 500))
    behind = at(now, 600, set_by=-7200, boot="another")
    assert told_age_s(config, behind) == -math.inf
    note_clock(config, behind)
    assert told_age_s(config, at(behind, 300)) == -math.inf
    right = at(behind, 300, set_by=7200)
    assert told_age_s(config, right) == pytest.approx(1000, abs=1)


@pytest.mark.parametrize("ahead", [3600.0, 2.5e9])
def test_a_clock_that_was_ahead_at_one_start_says_nothing_of_what_is_noted_later(
    config: Config, ahead: float
) -> None:
    """It starts an hour ahead, or in 2106, and again before NTP has set its clock."""
    now = instant()
    before, taken = snapshot(1, "before"), snapshot(2, "one")
    note_origin(config, before, Origin(1, now.utc), lambda: [before])
    wrong = at(now, 60, set_by=ahead, boot="two")
    note_clock(config, wrong)
    right = at(now, 120, boot="three")
    note_clock(config, right)
    a_day_later = at(right, 86400)
    with patch.object(published, "instant", lambda: a_day_later):
        note_origin(config, taken, Origin(1, a_day_later.utc), lambda: [before, taken])
    assert told_age_s(config, a_day_later) == pytest.approx(0, abs=1)
    for boot in ("four", "five"):
        a_day_later = at(a_day_later, 35, boot=boot)
        note_clock(config, a_day_later)
    assert told_age_s(config, a_day_later) == pytest.approx(70, abs=1)


def test_names_that_another_node_has_change_no_age(config: Config) -> None:
    """They are noted after a `bad-name`; it was taken for a start of the machine."""
    now = instant()
    taken = snapshot(1, "one")
    note_origin(config, taken, Origin(1, now.utc - 100), lambda: [taken])
    note_clock(config, at(now, 60, set_by=-30))
    later = at(now, 80, set_by=-30)
    theirs = SnapshotName.at(config.base, later.utc + 3600)
    other_base = SnapshotName.at("other", later.utc + 7200)
    with patch.object(published, "instant", lambda: later):
        note_names(config, [str(theirs), str(other_base), "made by hand"])
    assert next_name(config, later.utc) == theirs.after([theirs])
    assert origins_of_snapshots(config, later)["one"].counted
    assert told_age_s(config, later) == pytest.approx(180, abs=1)
    assert clock_was_set_s_ago(config, later) == pytest.approx(20, abs=1)


def test_the_clock_is_noted_once_a_minute_and_after_a_start(config: Config) -> None:
    now = instant()
    note_clock(config, now)
    assert not (config.state_dir / "published.json").exists(), "there is nothing to count for"
    taken = snapshot(1, "one")
    note_origin(config, taken, Origin(1, now.utc), lambda: [taken])
    path = config.state_dir / "published.json"
    before = path.read_text()
    note_clock(config, at(now, 50))
    assert path.read_text() == before
    for moment in (at(now, 100), at(now, 110, boot="another")):
        note_clock(config, moment)
        assert path.read_text() != before
        before = path.read_text()


def test_when_no_name_comes_after_the_noted_one_the_file_is_named(config: Config) -> None:
    last = "services@99991231T235959Z"
    config.state_dir.mkdir(parents=True)
    path = config.state_dir / "published.json"
    path.write_text(json.dumps({"v": 1, "epochs": {}, "last": last}))
    with pytest.raises(Refused, match=rf"{last}.*{path}") as refusal:
        next_name(config, instant().utc)
    assert refusal.value.reason is Reason.BAD_NAME
    config.paths.standby.mkdir(parents=True)
    told = replicate.outlook(config, "b", (), full=False)
    assert told.refused is not None and str(path) in told.refused


def test_the_next_name_comes_after_all_that_this_node_ever_noted(config: Config) -> None:
    now = snapshot(0, "x").name.stamp
    assert next_name(config, now).stamp == now
    late = snapshot(500, "late")
    note_origin(config, late, Origin(1, 0.0), lambda: [])
    note_origin(config, snapshot(2, "two"), Origin(1, 0.0), lambda: [])
    assert next_name(config, now).stamp == now + 501
    assert next_name(config, now + 600).stamp == now + 600
    base, final = str(snapshot(700, "b").name), str(snapshot(800, "f").name)
    history_entry = OwnEpoch(2, Stage.READY, "fsid", base, in_place=False)
    history_entry.save(config.state_dir)
    assert next_name(config, now).stamp == now + 701
    replace(history_entry, final=final).save(config.state_dir)
    assert next_name(config, now).stamp == now + 801


# Memory of the cycles


def test_outcomes_add_up_by_standby_and_reason(config: Config) -> None:
    sent = state.Shared("services@20270115T080000Z", "id", 3)
    state.note_shared(config, sent)
    state.note_failure(config, "b", Reason.NEEDS_FULL, "no common")
    assert state.load(config).standbys["b"].needs_full
    state.note_failure(config, "b", Reason.BUSY, "later")
    state.note_failure(config, "b", Reason.BUSY, "later")
    for size in (10, 20):
        state.note_success(config, "b", sent, duration_s=0.5, sent_bytes=size)
    state.note_failure(config, "c", Reason.DEADLINE, "slow")
    loaded = state.load(config)
    b = loaded.standbys["b"]
    assert loaded.shared == sent
    assert (b.successes, b.sent_bytes, b.sent_bytes_total, b.epoch) == (2, 20, 30, 3)
    assert b.failures == {"needs-full": 1, "busy": 2} and b.last_failure == "later"
    assert not b.needs_full
    assert loaded.standbys["c"].failures == {"deadline": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"v":1,"shared":null,"standbys":{"b":{"x":1}}}',
        '{"v":1,"shared":5,"standbys":{}}',
        '{"v":1,"standbys":{}}',
        '{"v":1,"shared":null,"standbys":{"b":{"successes":true}}}',
        '{"v":1,"shared":null,"standbys":{"b":{"failures":{"busy":"1"}}}}',
    ],
)
def test_an_unreadable_memory_is_an_error_that_names_the_file(config: Config, text: str) -> None:
    config.state_dir.mkdir(parents=True)
    (config.state_dir / "replication.json").write_text(text)
    with pytest.raises(StandfastError, match=r"replication\.json"):
        state.load(config)


def test_a_standby_that_needs_everything_does_so_until_it_has_it(config: Config) -> None:
    sent = state.Shared("services@20270115T080000Z", "id", 3)
    state.note_needs_full(config, "b", "its pin was dropped")
    state.note_failure(config, "b", Reason.DEADLINE, "slow")
    assert state.load(config).standbys["b"].needs_full
    state.note_success(config, "b", sent, duration_s=0.5, sent_bytes=1)
    assert not state.load(config).standbys["b"].needs_full


@pytest.mark.parametrize("theirs", ["same", "other", None])
def test_what_a_comparison_found_is_noted(
    config: Config, monkeypatch: pytest.MonkeyPatch, theirs: str | None
) -> None:
    """None: a file can't be read any more, here or there."""

    def run(look: verify._Look) -> verify.Comparison:
        look.snapshot = snapshot(1, "id")
        if theirs is None:
            raise Refused(Reason.CONTENT_DIFFERS, "a file can't be read")
        ours, their_fingerprint = Fingerprint("same", 3), Fingerprint(theirs, 3)
        return verify.Comparison(
            "b", str(look.snapshot.name), "id", True, ours, their_fingerprint, 0.1, 9
        )

    monkeypatch.setattr(verify._Look, "run", run)
    store = DirectoryStore(config.paths)
    with contextlib.suppress(Refused):
        verify.compare(config, store, "b", full=True, deadline=Deadline.after(1))
    noted = state.load(config).standbys["b"]
    assert (noted.verified_ok, noted.verified_full) == (theirs == "same", True)
    assert noted.verified_snapshot == str(snapshot(1, "id").name)


def test_a_look_at_the_metadata_does_not_clear_what_the_contents_showed(config: Config) -> None:
    for full in (True, False):
        state.note_verified(config, "b", "s", ok=not full, full=full)
    assert state.load(config).standbys["b"].verified_ok is False
    state.note_verified(config, "b", "s", ok=True, full=True)
    assert state.load(config).standbys["b"].verified_ok is True


def test_a_cycle_at_work_elsewhere_is_waited_for_only_so_long(config: Config) -> None:
    lock = config.run_dir / "x.lock"
    again = exclusive(lock, "a test", Deadline.after(0.1))
    with exclusive(lock, "a test"), pytest.raises(Refused) as refusal, again:
        pass
    assert refusal.value.reason is Reason.BUSY


# Transport and reasons


def test_ssh_never_asks_and_never_waits_for_ever(config: Config) -> None:
    argv = transport_argv(config, "b")
    text = " ".join(argv)
    assert argv[:2] == ["ssh", "-T"] and "BatchMode=yes" in text and "ConnectTimeout=10" in text
    assert "ServerAliveInterval=5" in text and "StrictHostKeyChecking=yes" in text
    assert text.endswith(
        "-i /etc/standfast/replication_key root@192.168.1.3 standfast receive data-services"
    )


def test_another_transport_gets_its_words_replaced(config: Config) -> None:
    other = Replication(command=("link", "--to={node}/{address}", "{volume}", "{x}"))
    config = structs.replace(config, replication=other)
    assert transport_argv(config, "c") == ["link", "--to=c/192.168.1.4", "data-services", "{x}"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refused(Reason.BUSY, ""), Reason.BUSY),
        (ConsulNoQuorum(""), Reason.CONSUL_NO_QUORUM),
        (ForeignValue(""), Reason.FOREIGN_VALUE),
        (CommandFailed("", returncode=1), Reason.REPLICATION_FAILED),
        (TimedOut(""), Reason.DEADLINE),
        (OSError("disk"), Reason.UNEXPECTED),
    ],
)
def test_every_failure_has_a_reason(error: Exception, reason: Reason) -> None:
    assert reason_of(error) is reason


def test_a_start_is_named_by_our_own_file(config: Config) -> None:
    """In a container not every process sees the same boot id of the kernel."""
    taken = snapshot(1, "one")
    note_origin(config, taken, Origin(1, instant().utc - 30), lambda: [taken])
    assert origins_of_snapshots(config, instant())["one"].counted
    (config.paths.run / "instance").unlink()  # /run is new
    assert not origins_of_snapshots(config, instant())["one"].counted
