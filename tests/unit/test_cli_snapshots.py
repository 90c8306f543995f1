"""`standfast snapshots` and `standfast prune`, on two nodes with plain directories."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from standfast.ages import Origin
from standfast.assembly.parts import open_store
from standfast.btrfs.names_and_places import TreeInfo
from standfast.config.load import load
from standfast.config.model import Config
from standfast.demo.stand_ins.directory import initialise, save_info
from standfast.names import SnapshotName, diverged_name, parse_aside, retired_name
from standfast.replication import pins, wire
from standfast.replication.pins import Pin
from standfast.replication.published import note_origin
from standfast.system.clock import utc_now
from tests.support.origins import Named, note_epoch
from tests.support.terminal import Terminal, write_node

pytestmark = pytest.mark.usefixtures("demo_parts")

OTHER = (
    "import os, sys; from standfast.demo.program import main; "
    "os.environ['STANDFAST_CONFIG_DIR'] = sys.argv[1]; "
    "sys.exit(main(['standfast', 'receive', sys.argv[2]]))"
)


class DiskTerminal(Terminal):
    """A node with a disk of its own."""

    def add(self, age_s: float, content_id: str, *, received: bool = False, epoch: int = 1) -> Path:
        paths = self.config.paths
        name = SnapshotName.at("services", utc_now() - age_s)
        path = (paths.standby if received else paths.snapshots) / str(name)
        path.mkdir(parents=True)
        own, there = (content_id, None) if not received else (uuid.uuid4().hex, content_id)
        save_info(path, TreeInfo(own, there, read_only=True))
        if epoch:
            note_epoch(self.config, content_id, epoch, open_store(self.config).snapshots)
        return path


def configured(root: Path, node: str, transport: Sequence[str]) -> Config:
    own = f"""\
[replication]
command = {json.dumps(list(transport))}
[retention_own]
keep_last = 2
"""
    config = load(write_node(root / "etc", root, node, own))
    initialise(config.paths.live)
    return config


@pytest.fixture
def c1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> DiskTerminal:
    return DiskTerminal(configured(tmp_path / "c1", "c1", ["false"]), capsys)


@pytest.fixture
def zippy(
    tmp_path: Path,
    c1: DiskTerminal,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> DiskTerminal:
    transport = [sys.executable, "-c", OTHER, str(c1.config.source.parent), "{volume}"]
    config = configured(tmp_path / "zippy", "zippy", transport)
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(config.source.parent))
    return DiskTerminal(config, capsys)


# snapshots


def test_each_snapshot_has_its_kind_epoch_and_for_whom_it_is_pinned(zippy: DiskTerminal) -> None:
    zippy.add(600, "x", epoch=3)
    zippy.add(300, "y", received=True, epoch=4)
    zippy.add(200, "z", epoch=0)
    pins.note(zippy.config, "c1", Pin("services@20260101T000000Z", "x", 3, 1e9))
    x, y, z = zippy.run_json("snapshots")["snapshots"]
    assert (x["kind"], x["epoch"], x["pinned_for"]) == ("own", 3, ["c1"])
    assert (y["kind"], y["epoch"], y["pinned_for"]) == ("published", 4, [])
    assert 600 <= x["age_s"] < 700
    out = zippy.run("snapshots")[1].splitlines()
    assert out[0].split() == ["SNAPSHOT", "AGE", "KIND", "EPOCH"]
    assert out[1].split("  ")[-1] == "pinned for c1" and out[1].startswith(x["path"])
    assert out[3].endswith("not made by Standfast") and z["epoch"] is None


def test_what_never_counts_is_shown_as_that(zippy: DiskTerminal) -> None:
    zippy.add(600, "x")
    paths = zippy.config.paths
    (paths.standby / "half").mkdir(parents=True)
    ahead = utc_now() + 3600
    for name in (diverged_name("services", 7, 1e9), retired_name("services", 8, ahead)):
        initialise(paths.live.with_name(name))
    initialise(paths.live.with_name("services.diverged-odd"))
    doc = zippy.run_json("snapshots")
    assert doc["partial"] == [str(paths.standby / "half")]
    aside = [(kept["kind"], kept["epoch"]) for kept in doc["kept_aside"]]
    assert aside == [("diverged", 7), ("kept aside", None), ("retired", 8)]
    assert [kept["age_s"] is None for kept in doc["kept_aside"]] == [False, True, True]
    rows = [line.split() for line in zippy.run("snapshots")[1].splitlines()]
    assert [row[-5:] for row in rows if "partial" in row] == [
        [str(paths.standby / "half"), "-", "partial", "-", "never", "used"][-5:]
    ]
    assert sum("diverged" in row for row in rows) == 1


@pytest.mark.parametrize(
    "name",
    ["services", "services.diverged-7", "services.diverged-x-20260101T000000Z",
     "services.diverged-7-20261301T000000Z", "services.retired-7-20260101T000000Z.old"],
)  # fmt: skip
def test_a_name_that_only_looks_like_ours_says_nothing(name: str) -> None:
    assert parse_aside(name) is None


def test_unreadable_files_are_named_and_hide_no_snapshot(zippy: DiskTerminal) -> None:
    zippy.add(600, "x")
    for name in ("pins.json", "published.json"):
        (zippy.config.state_dir / name).write_text("{")
    code, out, err = zippy.run("snapshots")
    assert code == 0 and "services@" in out
    assert "pins.json" in err and "published.json" in err


def test_the_other_node_says_what_it_has(zippy: DiskTerminal, c1: DiskTerminal) -> None:
    zippy.add(600, "x")
    c1.add(600, "x", received=True)
    c1.add(300, "y", received=True)
    (c1.config.paths.standby / "half").mkdir()
    (other,) = zippy.run_json("snapshots", "--all")["others"]
    assert other["node"] == "c1" and other["free_bytes"] > 0
    assert [(row["content_id"], row["kind"], row["here_too"]) for row in other["snapshots"]] == [
        ("x", "published", True), ("y", "published", False),
    ]  # fmt: skip
    assert other["partial"] == ["half"]
    code, out, err = zippy.run("snapshots", "--all")
    assert (code, err) == (0, "")
    assert "c1: 2 snapshots, " in out and out.count("here, too") == 1
    assert "others" not in zippy.run_json("snapshots")


def test_the_age_of_what_another_node_has_is_its_own_count_and_not_that_of_a_name(
    zippy: DiskTerminal, c1: DiskTerminal
) -> None:
    """The names are of a primary whose clock was wrong; c1 knows of the one, and of the other not.
    Of what both have the older age counts."""
    for content_id, told_s, noted_s in (("x", -3600, 900), ("y", 60, 7200), ("z", 90, None)):
        c1.add(told_s, content_id, received=True, epoch=0)
        if noted_s is not None:
            named = Named(SnapshotName.at("services", 0.0), content_id)
            origin = Origin(1, utc_now() - noted_s)
            note_origin(c1.config, named, origin, open_store(c1.config).snapshots)
    zippy.add(60, "x", epoch=0)
    (other,) = zippy.run_json("snapshots", "--all")["others"]
    ages = {snapshot["content_id"]: snapshot["age_s"] for snapshot in other["snapshots"]}
    assert ages["x"] == pytest.approx(900, abs=60)
    assert ages["y"] == pytest.approx(7200, abs=60)
    assert ages["z"] is None
    assert "its age is unknown" in zippy.run("snapshots", "--all")[1]


def test_a_node_of_an_older_version_knows_its_ages_and_does_not_tell(
    zippy: DiskTerminal, c1: DiskTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    c1.add(600, "x", received=True)
    parse = wire.parse

    def of_older(line: str, kind: Any) -> Any:
        doc = json.loads(line)
        del doc["ages"]
        return parse(json.dumps(doc), kind)

    monkeypatch.setattr(wire, "parse", of_older)
    (other,) = zippy.run_json("snapshots", "--all")["others"]
    assert (other["tells_ages"], other["snapshots"][0]["age_s"]) == (False, None)
    out = zippy.run("snapshots", "--all")[1]
    assert "c1's version doesn't report ages" in out and "nobody knows" not in out


def test_unreadable_notes_of_another_node_hide_no_snapshot(
    zippy: DiskTerminal, c1: DiskTerminal
) -> None:
    c1.add(600, "x", received=True)
    (c1.config.state_dir / "published.json").write_text("{")
    (other,) = zippy.run_json("snapshots", "--all")["others"]
    assert [(snapshot["content_id"], snapshot["age_s"]) for snapshot in other["snapshots"]] == [
        ("x", None)
    ]
    assert other["tells_ages"]


def test_asking_takes_no_lock_and_leaves_the_staging_alone(
    zippy: DiskTerminal, c1: DiskTerminal
) -> None:
    staged = c1.config.paths.standby / ".staging" / "services@20260101T000000Z"
    staged.mkdir(parents=True)
    assert "error" not in zippy.run_json("snapshots", "--all")["others"][0]
    assert staged.exists()


def test_a_node_that_can_not_be_reached_is_a_line_and_no_failure(
    zippy: DiskTerminal, c1: DiskTerminal
) -> None:
    zippy.add(600, "x")
    c1.config.source.unlink()
    code, out, err = zippy.run("snapshots", "--all")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("c1: ")]
    assert len(line) > len("c1: ")
    (other,) = zippy.run_json("snapshots", "--all")["others"]
    assert other["error"] and other["reason"]


# prune


def test_prune_deletes_and_says_why_the_rest_stays(zippy: DiskTerminal) -> None:
    paths = [zippy.add(60.0 * age, f"id-{age}") for age in (5, 4, 3, 2, 1)]
    pins.note(zippy.config, "c1", Pin(paths[0].name, "id-5", 1, utc_now()))
    code, out, _ = zippy.run("prune", "--dry-run")
    assert code == 0
    lines = out.splitlines()
    assert lines[1].endswith("own   kept: pinned for c1")
    assert [line.split("  ")[-1].strip() for line in lines[2:4]] == ["would be deleted"] * 2
    assert lines[-1] == "2 snapshots would be deleted, 3 kept"
    assert all(path.exists() for path in paths)
    doc = zippy.run_json("prune", "--dry-run")
    assert doc["dry_run"] is True
    assert [snapshot["content_id"] for snapshot in doc["deleted"]] == ["id-4", "id-3"]
    assert doc["kept"][0]["why"] == ["pinned for c1"]
    assert zippy.run("prune")[1].splitlines()[-1] == "2 snapshots deleted, 3 kept"
    assert [path.exists() for path in paths] == [True, False, False, True, True]
    assert zippy.run_json("prune")["deleted"] == []


def test_prune_goes_on_until_nothing_is_left(
    zippy: DiskTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standfast.replication.pruning.MOST_AT_ONCE", 2)
    for age in range(1, 8):
        zippy.add(60.0 * age, f"id-{age}")
    assert zippy.run("prune")[1].splitlines()[-1] == "5 snapshots deleted, 2 kept"


def test_prune_that_can_not_be_sure_fails_and_says_why(zippy: DiskTerminal) -> None:
    for age in range(1, 6):
        zippy.add(60.0 * age, f"id-{age}")
    (zippy.config.state_dir / "pins.json").write_text("{")
    code, out, err = zippy.run("prune")
    assert (code, out) == (4, "")
    assert "pins.json" in err and "0 snapshots deleted" in err
    assert len(open_store(zippy.config).snapshots()) == 5


def test_nothing_to_prune_is_no_error(zippy: DiskTerminal) -> None:
    zippy.config.paths.standby.mkdir(parents=True)
    code, out, _ = zippy.run("prune")
    assert (code, out) == (
        0,
        "zippy has no snapshot of data-services: there is nothing to delete\n",
    )
