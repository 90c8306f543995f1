"""What no stream carries (chattr +i, +a, +C, a limit of btrfs' quota), and the way back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from standfast.btrfs import quota
from standfast.btrfs.inode_flags import examples, flagged
from standfast.errors import Refused
from standfast.reasons import Reason
from standfast.replication import state
from standfast.replication.cycle import CycleResult
from standfast.system.clock import Deadline
from tests.contract.pairs import primary_and_standby
from tests.contract.peers import Peer, lead
from tests.support.volumes import command, files, require_btrfs

MIB = 2**20


@pytest.fixture
def pair(place: Path) -> Iterator[tuple[Peer, Peer]]:
    require_btrfs()
    with primary_and_standby(place, "btrfs") as pair:
        yield pair


def carried(subvolume: Path) -> list[str]:
    """The letters of all that has some."""
    os.sync()
    root = os.open(subvolume, os.O_RDONLY)
    try:
        return sorted(inode.letters for inode in flagged(root, Deadline.after(10)))
    finally:
        os.close(root)


def fail_over_and_back(
    pair: tuple[Peer, Peer], change: Callable[[Path], object]
) -> Callable[[], CycleResult]:
    """b takes over with what a sent, changes it, and is about to replicate to a."""
    a, b = pair
    a.sender.cycle("b")
    (base,) = b.store.snapshots()
    lead(b, 2)
    b.store.create_live_from(base)
    assert carried(b.config.paths.live) == [], "a failover loses them"
    change(b.config.paths.live)
    return lambda: b.talk_to(a).sender.cycle("a")


def arrived_whole(pair: tuple[Peer, Peer], result: CycleResult) -> None:
    a, b = pair
    published = [snapshot for snapshot in a.store.snapshots() if snapshot.received][-1]
    assert published.name == result.snapshot
    assert files(published.path) == files(b.config.paths.live)
    assert list((a.config.paths.standby / ".staging").iterdir()) == []


@pytest.mark.parametrize(
    ("make", "change"),
    [
        ("echo x >f; chattr +i f", "echo y >f"),
        ("echo x >f; chattr +i f", "rm f"),
        ("echo x >f; chattr +a f", "echo y >f"),
        ("mkdir d; echo x >d/f; chattr +i d", "echo y >d/g"),
        ("mkdir d; echo x >d/f; chattr +a d", "rm d/f"),
        ("seq 9999 >f; chattr +C .", "cp --reflink=always f g"),
        ("touch f; chattr +C f", "echo y >f; btrfs property set f compression zstd"),
        ("touch f; chattr +C f", "yes | head -c 100000 >f; cp --reflink=always f g"),
    ],
)
def test_flags_of_before_are_in_nobodys_way_back(
    pair: tuple[Peer, Peer], make: str, change: str
) -> None:
    command("sh", "-ec", f"cd {pair[0].config.paths.live}; {make}")
    cycle = fail_over_and_back(pair, lambda live: command("sh", "-ec", f"cd {live}; {change}"))
    before = carried(pair[0].config.paths.live)
    result = cycle()
    assert not result.was_full
    arrived_whole(pair, result)
    assert before and carried(pair[0].config.paths.live) == before, "only the stand-in is changed"


def test_a_file_without_checksums_needs_everything_once_and_it_is_said_why(
    pair: tuple[Peer, Peer],
) -> None:
    """The kernel lets only an empty file change whether it has checksums, and reflinks between two
    of a kind."""
    a, b = pair
    live = a.config.paths.live
    command("sh", "-ec", f"cd {live}; mkdir d; chattr +C d; seq 100000 >d/table")
    copy = lambda new: command("cp", "--reflink=always", new / "d/table", new / "d/table.bak")  # noqa: E731
    cycle = fail_over_and_back(pair, copy)
    for _ in range(2):
        with pytest.raises(
            Refused, match=r"d/table\.bak: Invalid argument.*\+C.*--full"
        ) as refusal:
            cycle()
        assert refusal.value.reason is Reason.NEEDS_FULL
    assert state.load(b.config).standbys["a"].needs_full
    allowed = structs.replace(b.config.replication, allow_full=True)
    told = replace(b, config=structs.replace(b.config, replication=allowed))
    result = told.talk_to(a).sender.cycle("a")
    assert result.was_full
    arrived_whole(pair, result)
    assert not state.load(b.config).standbys["a"].needs_full
    again = cycle()
    assert not again.was_full
    arrived_whole(pair, again)


@pytest.mark.parametrize(
    "change",
    ["cp --reflink=always table table.bak", "btrfs property set table compression zstd"],
)
def test_a_file_without_checksums_is_what_is_blamed_after_the_first_increment_too(
    pair: tuple[Peer, Peer], change: str
) -> None:
    """What that made has the file as the stand-in had it."""
    live = pair[0].config.paths.live
    command("sh", "-ec", f"cd {live}; touch table; chattr +C table; seq 100000 >table")
    cycle = fail_over_and_back(pair, lambda new: (new / "other").write_text("x"))
    assert not cycle().was_full
    command("sh", "-ec", f"cd {pair[1].config.paths.live}; {change}")
    for _ in range(2):
        with pytest.raises(Refused, match=r"table.*: Invalid argument.*\+C.*--full") as refusal:
            cycle()
        assert refusal.value.reason is Reason.NEEDS_FULL


def test_a_standby_that_is_mounted_without_checksums_since_needs_everything_once(
    pair: tuple[Peer, Peer],
) -> None:
    a, b = pair
    live = a.config.paths.live
    command("sh", "-ec", f"cd {live}; seq 100000 >f")
    a.sender.cycle("b")
    command("mount", "-o", "remount,nodatacow", b.config.paths.live.parent)
    command("cp", "--reflink=always", live / "f", live / "g")
    with pytest.raises(Refused, match=r"g: Invalid argument.*nodatacow.*--full") as refusal:
        a.sender.cycle("b")
    assert refusal.value.reason is Reason.NEEDS_FULL
    a.sender.cycle("b", full=True)
    command("cp", "--reflink=always", live / "f", live / "h")
    assert not a.sender.cycle("b").was_full
    assert files(b.store.snapshots()[-1].path) == files(live)


def test_a_limit_of_before_is_in_nobodys_way_back(pair: tuple[Peer, Peer]) -> None:
    a, _b = pair
    live = a.config.paths.live
    command("btrfs", "quota", "enable", live)
    command("btrfs", "qgroup", "limit", "4M", live)
    assert quota.limit_of(live) == 4 * MIB
    cycle = fail_over_and_back(pair, lambda new: (new / "big").write_bytes(os.urandom(16 * MIB)))
    arrived_whole(pair, cycle())
    published = [snapshot for snapshot in a.store.snapshots() if snapshot.received][-1]
    assert quota.limit_of(published.path) is None
    assert quota.limit_of(live) == 4 * MIB


def test_a_limit_that_is_reached_is_said_to_be_that(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    a.sender.cycle("b")
    (base,) = b.store.snapshots()
    command("btrfs", "quota", "enable", b.config.paths.standby)
    command("btrfs", "qgroup", "limit", "4M", base.path)
    (a.config.paths.live / "big").write_bytes(os.urandom(16 * MIB))
    with pytest.raises(Refused, match=r"Disk quota exceeded.*btrfs qgroup show") as refusal:
        a.sender.cycle("b")
    assert refusal.value.reason is Reason.NO_SPACE


def test_examples_are_told_with_their_paths_and_no_more_than_wanted(
    pair: tuple[Peer, Peer],
) -> None:
    live = pair[0].config.paths.live
    command(
        "sh",
        "-ec",
        f"cd {live}; mkdir d; touch d/i d/a c; chattr +i d/i; chattr +a d/a; chattr +C c",
    )
    os.sync()
    assert examples(live, 9, Deadline.after(10)) == ("+i d/i", "+a d/a", "+C c")
    assert examples(live, 2, Deadline.after(10)) == ("+i d/i", "+a d/a")
