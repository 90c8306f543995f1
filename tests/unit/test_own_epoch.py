"""What a node knows of its own epoch, on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.errors import StandfastError
from standfast.node.own_epoch import Intent, OwnEpoch, Stage

EPOCH = OwnEpoch(
    5, Stage.READY, "fsid", "services@20261122T101500Z", False, 4, "content", "uuid", None
)


def test_an_epoch_survives_the_disk(tmp_path: Path) -> None:
    EPOCH.save(tmp_path)
    assert OwnEpoch.load(tmp_path) == EPOCH


@pytest.mark.parametrize("stage", Stage)
def test_each_stage_survives_the_disk(tmp_path: Path, stage: Stage) -> None:
    EPOCH.at(stage).save(tmp_path)
    loaded = OwnEpoch.load(tmp_path)
    assert loaded is not None
    assert loaded.stage is stage


def test_an_epoch_that_an_older_version_wrote_names_its_final_snapshot_alone(
    tmp_path: Path,
) -> None:
    replace(EPOCH, final="services@20261122T111500Z", final_id="c0ffee").save(tmp_path)
    path = tmp_path / "own-epoch.json"
    doc = json.loads(path.read_text())
    del doc["final_id"]
    path.write_text(json.dumps(doc))
    assert OwnEpoch.load(tmp_path) == replace(EPOCH, final="services@20261122T111500Z")


def test_a_node_without_the_file_is_no_primary(tmp_path: Path) -> None:
    assert OwnEpoch.load(tmp_path) is None
    OwnEpoch.forget(tmp_path)
    EPOCH.save(tmp_path)
    OwnEpoch.forget(tmp_path)
    assert OwnEpoch.load(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"epoch": 5',
        json.dumps({"v": 1, "epoch": "5"}),
        EPOCH.stage.value,
    ],
)
def test_a_damaged_epoch_is_an_error_and_never_no_epoch(tmp_path: Path, text: str) -> None:
    (tmp_path / "own-epoch.json").write_text(text)
    with pytest.raises(StandfastError, match=r"own-epoch\.json"):
        OwnEpoch.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("stage", "lost"), ("epoch", "5"), ("epoch", True), ("fsid", None)]
)
def test_a_field_of_a_wrong_type_is_damage(tmp_path: Path, field: str, value: object) -> None:
    EPOCH.save(tmp_path)
    path = tmp_path / "own-epoch.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(StandfastError, match="damaged"):
        OwnEpoch.load(tmp_path)


def test_an_intent_counts_for_its_own_epoch_only(tmp_path: Path) -> None:
    intent = Intent(6, "services@20261122T101500Z", "content", in_place=True)
    intent.save(tmp_path)
    assert Intent.load(tmp_path, 6) == intent
    assert Intent.load(tmp_path, 5) is None
    assert Intent.load(tmp_path / "elsewhere", 6) is None


def test_an_intent_with_wrong_types_promises_nothing(tmp_path: Path) -> None:
    (tmp_path / "intent.json").write_text(
        '{"v": 1, "epoch": 6, "base": 7, "base_content_id": [], "in_place": "yes"}'
    )
    assert Intent.load(tmp_path, 6) == Intent(6, None, None, in_place=False, begun=None)


def test_the_file_of_an_older_version_is_read_and_replaced(tmp_path: Path) -> None:
    """A primary would take itself for a standby, and its tree for nobody's."""
    EPOCH.save(tmp_path)
    new, former = OwnEpoch.paths(tmp_path)
    new.rename(former)
    assert OwnEpoch.load(tmp_path) == EPOCH
    later = EPOCH.at(Stage.DRAINING)
    later.save(tmp_path)
    assert OwnEpoch.load(tmp_path) == later and not former.exists()
    former.write_text("{")  # a cut between the two
    assert OwnEpoch.load(tmp_path) == later
    OwnEpoch.forget(tmp_path)
    assert OwnEpoch.load(tmp_path) is None and not former.exists()


def test_a_damaged_file_of_an_older_version_is_no_plain_standby(tmp_path: Path) -> None:
    (tmp_path / "reign.json").write_text("{}")
    with pytest.raises(StandfastError, match="damaged"):
        OwnEpoch.load(tmp_path)
