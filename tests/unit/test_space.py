"""Which room a btrfs has, from what the kernel says, and when it is too little."""

from __future__ import annotations

import pytest

from standfast.btrfs.space import DATA, METADATA, RESERVE, Kind, space_of
from standfast.node.space import LEAST_BYTES, MIB, Space, shortages

GIB = 1024 * MIB
DUP, RAID1, RAID1C3 = 1 << 5, 1 << 4, 1 << 9
ROOMY = Space(size=100 * GIB, data=50 * GIB, metadata=50 * GIB, reserve=512 * MIB)


def kinds(profile: int = 0, *, used_metadata: int = 300 * MIB) -> list[Kind]:
    return [
        Kind(DATA, 8 * GIB, 7 * GIB),
        Kind(METADATA | profile, GIB, used_metadata),
        Kind(RESERVE, 200 * MIB, 0),
    ]


def test_what_nobody_has_counts_for_both_and_the_reserve_for_nobody() -> None:
    assert space_of(kinds(), [(9 * GIB, 19 * GIB)]) == Space(
        size=19 * GIB, data=11 * GIB, metadata=10 * GIB + 524 * MIB, reserve=200 * MIB
    )


def test_metadata_that_is_kept_twice_takes_twice_the_room() -> None:
    space = space_of(kinds(DUP), [(9 * GIB, 19 * GIB)])
    assert (space.data, space.metadata) == (11 * GIB, 5 * GIB + 524 * MIB)


@pytest.mark.parametrize(
    ("profile", "free", "usable"),
    [
        (RAID1, [10, 0], 0),  # the classic: one device full, the other one empty
        (RAID1, [10, 4], 4),
        (RAID1, [4, 4, 4], 6),
        (DUP, [10, 0], 5),
        (RAID1C3, [10, 10, 4], 7),
        (RAID1C3, [10, 10], 5),  # an upper bound
    ],
)
def test_copies_on_several_devices_need_room_on_several(
    profile: int, free: list[int], usable: int
) -> None:
    devices = [(GIB, GIB + room * GIB) for room in free]
    space = space_of(kinds(profile, used_metadata=GIB - 200 * MIB), devices)
    assert space.metadata == usable * GIB


def test_mixed_chunks_are_both() -> None:
    space = space_of([Kind(DATA | METADATA, 100, 60), Kind(RESERVE, 10, 0)], [(100, 150)])
    assert (space.data, space.metadata) == (90, 80)


def test_a_reserve_that_is_touched_leaves_nothing() -> None:
    assert space_of(kinds(used_metadata=GIB - MIB), [(9 * GIB, 9 * GIB)]).metadata == 0


@pytest.mark.parametrize(
    ("space", "about"),
    [
        (ROOMY, []),
        (Space(size=100 * GIB, data=5 * GIB, metadata=GIB, reserve=512 * MIB), []),
        (Space(size=100 * GIB, data=5 * GIB - 1), ["data"]),
        (Space(size=100 * 1024 * GIB, data=10 * GIB), []),
        (Space(size=100 * 1024 * GIB, data=10 * GIB - 1), ["data"]),
        (Space(size=100 * MIB, data=LEAST_BYTES), []),
        (Space(size=100 * MIB, data=LEAST_BYTES - 1), ["data"]),
        (Space(size=GIB, data=GIB, metadata=512 * MIB, reserve=512 * MIB), []),
        (Space(size=GIB, data=GIB, metadata=512 * MIB - 1, reserve=512 * MIB), ["metadata"]),
        (Space(size=GIB, data=GIB, metadata=LEAST_BYTES - 1), ["metadata"]),
        (Space(size=GIB, data=0, metadata=0), ["data", "metadata"]),
    ],
)
def test_what_is_nearly_full_is_told_with_a_way_out(space: Space, about: list[str]) -> None:
    short = list(shortages(space))
    assert len(short) == len(about)
    for shortage, what in zip(short, about, strict=True):
        assert f"are left for {what}" in shortage.evidence and shortage.fix
