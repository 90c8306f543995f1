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


@pytest.mark.parametrize(
    ("known_s", "stamp_s"), [((), 0), ((-60, -5), 0), ((-1,), 0), ((0,), 1), ((3600, 7), 3601)]
)
def test_the_next_name_comes_after_every_one_that_is_known(
    known_s: tuple[float, ...], stamp_s: float
) -> None:
    """Whatever the clock says: it may have been set back since."""
    known = [SnapshotName.at("services", UTC + s) for s in known_s]
    chosen = SnapshotName.at("services", UTC).after(known)
    assert chosen == SnapshotName.at("services", UTC + stamp_s)


def test_names_of_trees_set_aside_tell_the_epoch_and_the_time() -> None:
    assert diverged_name("services", 5, UTC) == "services.diverged-5-20261122T101500Z"
    assert retired_name("services", 5, UTC) == "services.retired-5-20261122T101500Z"
