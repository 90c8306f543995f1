from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.ages import Origin
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import (
    HistoryEntry,
    Hold,
    Holder,
    Leader,
    LeaderState,
    Pause,
    StandbyRecord,
    dump_epoch,
    parse_epoch,
)
from standfast.lease.epochs import EpochFile
from standfast.names import SnapshotName
from standfast.replication.published import note_origin, published_file
from standfast.status.watching import Watch
from standfast.system.clock import format_stamp, format_utc, utc_now
from tests.support.origins import Named
from tests.support.terminal import Desk, a_desk

FOREIGN = b'{"hello": "\x1b[31mworld"}'


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    monkeypatch.setenv("SUDO_USER", "alice")
    with a_desk(tmp_path, monkeypatch, capsys) as made:
        yield made


# pause, resume


def test_a_pause_is_written_with_name_and_reason_and_taken_back(desk: Desk) -> None:
    code, out, err = desk.run("pause", "--reason", "moving a rack")
    assert (code, err) == (0, "")
    assert out == (
        "data-services is paused: automatic failover is disabled until `standfast resume`\n"
    )
    written = Pause.parse(desk.key("pause") or b"")
    assert (written.by, written.reason) == ("alice", "moving a rack")
    assert abs(written.at - utc_now()) < 60
    code, out, err = desk.run("resume")
    assert (code, err) == (0, "")
    assert out.startswith(
        "data-services is resumed: automatic failover is enabled (paused by alice at "
    )
    assert desk.key("pause") is None


def test_a_pause_for_a_time_says_until_when(desk: Desk) -> None:
    code, out, _ = desk.run("pause", "--for", "2h", "--dry-run")
    assert code == 0 and out.startswith(
        "data-services would be paused: automatic failover is disabled"
    )
    code, out, _ = desk.run("pause", "--for", "2h", "--reason", "rack")
    written = Pause.parse(desk.key("pause") or b"")
    assert (code, written.lasts, written.until) == (0, 7200.0, written.at + 7200.0)
    until = f"until about {format_utc(written.at + 7200.0)}"
    assert out.endswith(f"automatic failover is disabled {until}, or `standfast resume`\n")
    assert until in desk.run("pause")[1]
    assert (
        f"paused:    by alice since {written.span().removeprefix('since ')}: rack"
        in (desk.run("status")[1])
    )
    status = json.loads(desk.run("status", "--json")[1])
    assert status["paused"]["until"] == written.until


@pytest.mark.parametrize("words", ["0h", "2", "-1h", "2w", "31d", "h", "1h30m"])
def test_a_time_without_a_unit_or_out_of_range_is_no_time(desk: Desk, words: str) -> None:
    code, _, err = desk.run("pause", f"--for={words}")
    assert code == 2 and "45s, 90m, 2h, 1d" in err
    assert desk.key("pause") is None


def test_a_second_pause_and_a_second_resume_change_nothing(desk: Desk) -> None:
    desk.put("pause", Pause("bob", "first", 1e9).dump())
    code, out, _ = desk.run("pause", "--reason", "second")
    assert code == 0
    assert out == "data-services is paused already, by bob at 2001-09-09 01:46:40 UTC: first\n"
    assert Pause.parse(desk.key("pause") or b"").reason == "first"
    desk.run("resume")
    assert desk.run("resume")[:2] == (0, "data-services is not paused: nothing to do\n")


def test_a_dry_run_neither_pauses_nor_resumes(desk: Desk) -> None:
    assert desk.run("pause", "--dry-run")[1].startswith("data-services would be paused")
    assert desk.key("pause") is None
    desk.put("pause", Pause("bob", "first", 1e9).dump())
    assert desk.run("resume", "--dry-run")[1].startswith("data-services would not be paused")
    assert desk.key("pause") is not None


@pytest.mark.parametrize(
    "words",
    [
        *("pause", "resume", "standby hold c1", "standby release c1", "accept-epoch", "prune"),
        *("standby remove c9", "replicate c1"),
    ],
)
def test_a_dry_run_never_says_that_it_is_done(desk: Desk, words: str) -> None:
    has_seen(desk, 7)
    if words == "resume":
        desk.put("pause", Pause("bob", "first", 1e9).dump())
    if "release" in words:
        desk.put("holds/c1", Hold("c1", "bob", "first", 1e9).dump())
    doc = desk.run_json(*words.split(), "--dry-run")
    assert (doc["done"], doc["dry_run"]) == (False, True)


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_foreign_value_in_the_pause_key_is_left_alone(desk: Desk, command: str) -> None:
    desk.put("pause", FOREIGN)
    code, out, err = desk.run(command)
    assert (code, out) == (1, "")
    assert "holds a value that Standfast did not write" in err
    assert desk.key("pause") == FOREIGN


def test_a_pause_that_comes_at_the_same_moment_is_not_overwritten(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ConsulGateway.get
    seen: list[str] = []

    def get_then_somebody_else(self: ConsulGateway, key: str, **options: Any) -> object:
        entry = ask(self, key, **options)
        if not seen:
            seen.append(key)
            desk.put("pause", Pause("bob", "faster", 1e9).dump())
        return entry

    monkeypatch.setattr(ConsulGateway, "get", get_then_somebody_else)
    code, out, _ = desk.run("pause")
    assert (code, out[:43]) == (0, "data-services is paused already, by bob at ")
    assert Pause.parse(desk.key("pause") or b"").by == "bob"


def test_a_pause_without_consul_is_unreachable(desk: Desk) -> None:
    desk.consul.stop_agent("zippy")
    code, out, err = desk.run("pause", "--json")
    assert code == 3
    assert json.loads(out)["reason"] == "consul-unreachable"
    assert err.startswith("standfast: Consul")


# standby hold, standby release


def test_a_hold_is_written_with_name_and_reason_and_taken_back(desk: Desk) -> None:
    code, out, err = desk.run("standby", "hold", "c1", "--reason", "a new disk")
    assert (code, err) == (0, "")
    assert out == (
        "c1 is on hold: it doesn't take over by itself until `standfast standby release c1`\n"
    )
    written = Hold.parse(desk.key("holds/c1") or b"", desk.config.key("holds/c1"))
    assert (written.node, written.by, written.reason) == ("c1", "alice", "a new disk")
    assert desk.run("standby", "hold", "c1")[1].startswith("c1 is on hold already, by alice at ")
    code, out, err = desk.run("standby", "release", "c1")
    assert (code, err) == (0, "")
    assert out.startswith("c1 is released: it takes over by itself again (on hold by alice at ")
    assert desk.key("holds/c1") is None
    assert desk.run("standby", "release", "c1")[:2] == (0, "c1 is not on hold: nothing to do\n")


def test_a_hold_is_for_a_standby(desk: Desk) -> None:
    code, _, err = desk.run("standby", "hold", "c9")
    assert code == 1 and "c9 is no storage node" in err and "c1" in err
    assert desk.run("standby", "hold", "../pause")[0] == 2
    holder = Leader(7, Holder("zippy", "1"), 9, LeaderState.SERVING, ("c1",))
    desk.put("leader", holder.dump())
    code, _, err = desk.run("standby", "hold", "zippy")
    assert code == 1 and "zippy is the primary" in err
    desk.put("leader", structs.replace(holder, state=LeaderState.CLEAN).dump())
    assert desk.run("standby", "hold", "zippy")[0] == 0


def test_a_foreign_value_in_a_holds_key_is_left_alone(desk: Desk) -> None:
    desk.put("holds/c1", FOREIGN)
    for command in ("hold", "release"):
        code, out, err = desk.run("standby", command, "c1")
        assert (code, out) == (1, "")
        assert "holds a value that Standfast did not write" in err
    assert desk.key("holds/c1") == FOREIGN


# history


def history_entry(epoch: int, node: str, lost_s: float | None) -> bytes:
    return HistoryEntry(
        epoch, node, "services@20261122T101500Z", "takeover", None, lost_s, 1e9
    ).dump()


def test_the_history_is_in_the_order_of_the_epochs(desk: Desk) -> None:
    assert "has no history yet" in desk.run("history")[1]
    desk.put("history/10", history_entry(10, "c1", 0.0))
    desk.put("history/9", history_entry(9, "zippy", 40.0))
    code, out, _ = desk.run("history")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert [line[0] for line in lines] == ["EPOCH", "9", "10"]
    assert lines[1][4:8] == ["zippy", "40", "s", "itself"]
    assert lines[2][4:7] == ["c1", "nothing", "itself"]
    listed = desk.run_json("history")["history"]
    assert [item["epoch"] for item in listed] == [9, 10]
    assert listed[0]["lost_s"] == 40.0


def test_an_epoch_that_left_one_out_says_which_it_goes_on_from(desk: Desk) -> None:
    base = "services@20261122T101500Z"
    desk.put("history/2", history_entry(2, "b1", 40.0))
    desk.put("history/3", HistoryEntry(3, "c1", base, "surrendered", None, 0.0, 1e9, 1).dump())
    _, out, _ = desk.run("history")
    assert [line.endswith(" (goes on from epoch 1)") for line in out.splitlines()] == [
        False,
        False,
        True,
    ]
    assert [entry["follows"] for entry in desk.run_json("history")["history"]] == [None, 1]


def test_a_foreign_value_in_the_history_is_shown_as_one(desk: Desk) -> None:
    desk.put("history/1", history_entry(1, "zippy", None))
    desk.put("history/2", FOREIGN)
    code, out, _ = desk.run("history")
    assert code == 0
    assert "\x1b" not in out
    assert f"not Standfast's: standfast/data-services/history/2 = {{" in out  # noqa: F541
    assert desk.run_json("history")["history"][1]["foreign"] == FOREIGN.decode()


# standby list


def test_standbys_are_listed_with_the_age_of_their_newest_snapshot(desk: Desk) -> None:
    name = f"services@{format_stamp(utc_now() - 600)}"
    desk.put("standbys/c1", StandbyRecord("c1", 7, name, "id", utc_now(), by="c9").dump())
    desk.put("standbys/c7", StandbyRecord("c7", 7, "nonsense", "id", 1e9).dump())
    desk.put("standbys/c8", FOREIGN)
    code, out, _ = desk.run("standby", "list")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert f"{name}  10 min" in rows["c1"] and rows["c1"].endswith("by c9's clock")
    assert "not in [nodes]; its age is unknown" in rows["c7"]
    assert "not Standfast's" in rows["c8"]
    assert "nothing was replicated to it" in rows["zippy"]
    listed = {item["node"]: item for item in desk.run_json("standby", "list")["standbys"]}
    assert 590 < listed["c1"]["age_s"] < 660 and listed["c1"]["clock"] == "c9"
    assert listed["c7"]["age_s"] is None and listed["c7"]["clock"] is None


def test_a_snapshot_from_the_future_has_no_age(desk: Desk) -> None:
    name = f"services@{format_stamp(utc_now() + 3600)}"
    desk.put("standbys/c1", StandbyRecord("c1", 7, name, "id", 1e9).dump())
    listed = {item["node"]: item for item in desk.run_json("standby", "list")["standbys"]}
    assert listed["c1"]["age_s"] is None


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_what_this_node_noted_itself_goes_by_no_other_clock(desk: Desk, ahead_s: float) -> None:
    """The record is of a primary whose clock was wrong."""
    told = utc_now() + ahead_s
    name = SnapshotName.at("services", told - 600)
    record = StandbyRecord("c1", 7, str(name), "id", told, told - 600, by="c1")
    desk.put("standbys/c1", record.dump())

    def shown() -> tuple[dict[str, Any], str]:
        listed = {item["node"]: item for item in desk.run_json("standby", "list")["standbys"]}
        return listed["c1"], desk.run("replicate", "c1", "--dry-run")[1]

    item, plan = shown()
    if ahead_s > 0:
        assert item["age_s"] is None and "(of unknown age)" in plan
    else:
        assert item["age_s"] == pytest.approx(4200, abs=60) and item["clock"] == "c1"
        assert "(70 min old by c1's clock)" in plan
    note_origin(desk.config, Named(name, "id"), Origin(7, utc_now() - 900), list)
    item, plan = shown()
    assert item["age_s"] == pytest.approx(900, abs=60) and item["clock"] is None
    assert "(15 min old)" in plan


def test_notes_that_can_not_be_read_leave_the_clock_of_the_record(desk: Desk) -> None:
    name = f"services@{format_stamp(utc_now() - 600)}"
    desk.put("standbys/c1", StandbyRecord("c1", 7, name, "id", utc_now(), by="c9").dump())
    desk.config.state_dir.mkdir(parents=True, exist_ok=True)
    published_file(desk.config).write_text("{")
    assert "by c9's clock" in desk.run("standby", "list")[1]
    assert "(10 min old by c9's clock)" in desk.run("replicate", "c1", "--dry-run")[1]


# accept-epoch


def has_seen(desk: Desk, epoch: int) -> None:
    desk.config.state_dir.mkdir(parents=True, exist_ok=True)
    EpochFile(desk.config.state_dir / "epoch").raise_to(epoch)


@pytest.mark.parametrize("stored", [None, 4])
def test_a_lost_epoch_is_raised_to_the_highest_seen(desk: Desk, stored: int | None) -> None:
    has_seen(desk, 7)
    if stored is not None:
        desk.put("epoch", dump_epoch(stored))
    before = desk.key("epoch")
    code, out, _ = desk.run("accept-epoch", "--dry-run")
    assert (code, desk.key("epoch")) == (0, before)
    assert f"from {stored or 'missing'} to 7, the highest that zippy has seen" in out
    code, out, _ = desk.run("accept-epoch")
    assert code == 0
    assert "the next epoch is 8" in out
    assert parse_epoch(desk.key("epoch") or b"") == 7
    code, out, _ = desk.run("accept-epoch")
    assert (code, out[:14]) == (0, "nothing to do:")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("leader", Leader(7, Holder("c1", "1"), 9, LeaderState.CLEAN, ()).dump()),
        ("history/7", HistoryEntry(7, "c1", None, "takeover", None, 0.0, 1e9).dump()),
        ("standbys/c1", StandbyRecord("c1", 7, "services@20261122T101500Z", "id", 1e9).dump()),
    ],
    ids=["leader", "history", "standbys"],
)
def test_a_lost_epoch_is_raised_to_what_the_other_keys_tell_of(
    desk: Desk, name: str, value: bytes
) -> None:
    """On a node that has seen nothing of it, too: a number is never given twice."""
    desk.put(name, value)
    code, out, _ = desk.run("accept-epoch")
    assert code == 0 and "the next epoch is 8" in out
    assert parse_epoch(desk.key("epoch") or b"") == 7


@pytest.mark.parametrize(("seen", "stored"), [(7, 7), (7, 9), (0, 3), (0, None)])
def test_an_epoch_is_never_lowered(desk: Desk, seen: int, stored: int | None) -> None:
    if seen:
        has_seen(desk, seen)
    if stored is not None:
        desk.put("epoch", dump_epoch(stored))
    before = desk.key("epoch")
    assert desk.run_json("accept-epoch")["changed"] is False
    assert desk.key("epoch") == before


def test_an_epoch_raised_by_somebody_else_meanwhile_is_not_overwritten(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_seen(desk, 7)
    desk.put("epoch", dump_epoch(4))
    ask = ConsulGateway.read

    def read_then_an_acquisition(self: ConsulGateway, keys: Any, **options: Any) -> object:
        entries = ask(self, keys, **options)
        found = [entry for key, entry in entries.items() if key.endswith("/epoch")]
        if any(entry is not None and parse_epoch(entry.value) == 4 for entry in found):
            desk.put("epoch", dump_epoch(8))
        return entries

    monkeypatch.setattr(ConsulGateway, "read", read_then_an_acquisition)
    code, out, _ = desk.run("accept-epoch")
    assert (code, out[:14]) == (0, "nothing to do:")
    monkeypatch.undo()
    assert parse_epoch(desk.key("epoch") or b"") == 8


def test_a_foreign_epoch_is_left_alone(desk: Desk) -> None:
    has_seen(desk, 7)
    desk.put("epoch", b"8")
    assert desk.run("accept-epoch")[0] == 1
    assert desk.key("epoch") == b"8"


# Several volumes


LOOKS = ["status", "doctor", "history", "standby list", "snapshots"]


def with_a_second_volume(desk: Desk, text: str | None = None) -> None:
    for disk in ("persist", "media-persist"):
        desk.config.paths.snapshots.with_name(disk).mkdir(exist_ok=True)
    first = desk.config.source
    given = first.read_text() if text is None else text
    for part in ("persist", "data"):
        given = given.replace(f"/{part}", f"/media-{part}")
    first.with_name("media.toml").write_text(given)


@pytest.mark.parametrize("words", LOOKS)
def test_who_only_looks_is_told_of_each_volume(desk: Desk, words: str) -> None:
    desk.config.paths.snapshots.mkdir()
    alone = json.loads(desk.run(*words.split(), "--json")[1])
    assert alone["volume"] == "data-services", "of one volume it is no list"
    with_a_second_volume(desk)
    code, out, _ = desk.run(*words.split(), "--json")
    both = json.loads(out)
    assert [document["volume"] for document in both] == ["data-services", "media"]
    assert alone.keys() == both[0].keys()
    _, out, _ = desk.run(*words.split(), "--volume", "media", "--json")
    assert json.loads(out)["volume"] == "media"
    told, out, err = desk.run(*words.split())
    assert told == code != 2 and "several volumes" not in err
    assert out.startswith("volume data-services\n") and "\n\nvolume media\n" in out


@pytest.mark.parametrize("words", LOOKS)
def test_a_volume_that_can_not_be_asked_keeps_no_other_from_its_turn(
    desk: Desk, words: str
) -> None:
    with_a_second_volume(desk, "x = 1\n")
    code, out, _ = desk.run(*words.split(), "--json")
    good, bad = json.loads(out)
    assert code == 2 and good["volume"] == "data-services" and "error" not in good
    assert (bad["volume"], bad["reason"], bad["exit_code"]) == ("media", "config-invalid", 2)
    code, out, err = desk.run(*words.split())
    assert code == 2 and "volume data-services\n" in out
    assert "standfast: config-invalid: " in err and "media.toml: x = 1" in err


def test_a_file_that_is_wrong_hides_no_other_volume_from_who_watches(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_second_volume(desk, "x = 1")
    monkeypatch.setattr(Watch, "run", Watch.turn)
    lines = desk.run("status", "--watch", "--json")[1].splitlines()
    good, bad, *_ = [json.loads(line) for line in lines]
    assert good["volume"] == "data-services" and "error" not in good
    assert bad["volume"] == "media" and "x = 1" in bad["error"] and bad["exit_code"] == 2


def test_what_changes_something_still_needs_the_name_of_one(desk: Desk) -> None:
    with_a_second_volume(desk)
    code, _, err = desk.run("pause")
    assert code == 2 and 'there are several volumes ("data-services", "media")' in err


# replicate, snapshots


def test_a_replication_to_an_unknown_node_names_the_known_ones(desk: Desk) -> None:
    code, out, err = desk.run("replicate", "c9")
    assert (code, out) == (1, "")
    assert err.startswith("standfast: unknown-node: c9 is not another storage node of "
                          "data-services: c1.")  # fmt: skip
    assert "did you mean" not in err
    assert "c1 (did you mean c1?)." in desk.run("replicate", "c11")[2]
    assert "c1.toml: there is no such file" in desk.run("status", "--volume", "c1")[2]
    assert "did you mean data-services?" in desk.run("status", "--volume", "data-servces")[2]


def test_a_dry_run_of_a_replication_tells_what_the_standby_has(desk: Desk) -> None:
    code, out, _ = desk.run("replicate", "--dry-run")
    assert code == 0
    assert "send it to c1 (192.168.1.3); nothing was replicated to it yet" in out
    name = f"services@{format_stamp(utc_now() - 600)}"
    desk.put("standbys/c1", StandbyRecord("c1", 7, name, "id", utc_now()).dump())
    out = desk.run("replicate", "--instance", "data-services:c1", "--dry-run")[1]
    assert f"the newest there is {name} (10 min old by the primary's clock)" in out


@pytest.mark.parametrize("words", [["x"], ["x:"], ["data-services:c1", "c1"]])
def test_an_instance_is_a_volume_and_a_standby(desk: Desk, words: list[str]) -> None:
    code, _, err = desk.run("replicate", "--instance", *words)
    assert code == 2
    assert "--instance takes VOLUME:STANDBY" in err


def test_only_the_primary_replicates(desk: Desk) -> None:
    code, _, err = desk.run("replicate", "c1")
    assert code != 0
    assert err.startswith("standfast: ")
    assert desk.key("standbys/c1") is None


def test_no_snapshots_are_no_error(desk: Desk) -> None:
    desk.config.paths.standby.mkdir(parents=True)
    code, out, _ = desk.run("snapshots")
    assert code == 0
    assert out.startswith("zippy has no snapshot of data-services: ")
    assert desk.run_json("snapshots")["snapshots"] == []
