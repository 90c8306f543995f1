"""Names of snapshots: only what is written in the one form counts."""

from __future__ import annotations

import pytest

from standfast.names import SnapshotName, diverged_name, retired_name

UTC = 1_795_342_500.0


def test_names_sort_by_their_time() -> None:
    names = [SnapshotName.at("services", UTC + s) for s in (5, 0, 3600)]
    assert [str(name) for name in sorted(names)] == [
        "services@20261122T101500Z",
        "services@20261122T101505Z",
        "services@20261122T111500Z",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "services",
        "services@",
        "@20261122T101500Z",
        "services@20261122T101500",
        "services@20261122T101500Z\n",
        "services@20261122T101500Z.partial",
        "services@20261322T101500Z",
        "services@20260230T101500Z",
        "services@20261122T251500Z",
        "services@20261122t101500z",
        "services@2026-11-22T10:15:00Z",
        "services@\u0662\u0660\u0662\u0666\u0661\u0661\u0662\u0662T101500Z",
        "../services@20261122T101500Z",
        "a/b@20261122T101500Z",
        "services@20261122T101500Z@20261122T101500Z",
    ],
)
def test_anything_else_is_not_a_snapshot(text: str) -> None:
    with pytest.raises(ValueError, match=r"not|match|range|remains|hour|day|month"):
        SnapshotName.parse(text)


@pytest.mark.parametrize(("ahead_s", "believed"), [(-5, True), (60, True), (61, False)])
def test_a_name_ahead_of_the_clock_is_not_believed(ahead_s: float, believed: bool) -> None:
    assert SnapshotName.at("services", UTC + ahead_s).is_in_the_future(UTC) is not believed


def test_names_of_trees_put_aside_tell_the_reign_and_the_time() -> None:
    assert diverged_name("services", 5, UTC) == "services.diverged-5-20261122T101500Z"
    assert retired_name("services", 5, UTC) == "services.retired-5-20261122T101500Z"
