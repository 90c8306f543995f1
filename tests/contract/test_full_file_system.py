"""A btrfs whose metadata is used up, though data has room: what `space` says of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.btrfs.space import read_space
from standfast.btrfs.store import BtrfsStore
from standfast.node.space import LEAST_BYTES, MIB, shortages
from tests.support.volumes import btrfs_on_file, command, make_live, paths_below, require_btrfs

TARGET_BYTES = 3000
"""btrfs keeps what a link says among its metadata."""
MOST_LINKS = 400_000
NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    require_btrfs()
    image = tmp_path / "image"
    command("truncate", "-s", "256M", image)
    command("mkfs.btrfs", "-q", "-f", "-m", "dup", image)
    with btrfs_on_file(image, tmp_path / "disk", make=False) as mount:
        make_live(mount / "services", "btrfs")
        yield mount


def fill(directory: Path) -> None:
    """With links, until there is no room for one more."""
    for number in range(MOST_LINKS):
        if number % 1000 == 0:
            (directory / f"{number}").mkdir()
        path = directory / f"{number - number % 1000}" / f"{number:0200d}"
        path.symlink_to("x" * TARGET_BYTES)


def test_metadata_that_runs_out_is_told_before_it_has(root: Path) -> None:
    store = BtrfsStore(paths_below(root))
    assert list(shortages(store.space())) == []
    # Nothing is left that nobody has, and what data has, metadata can't get: of each of its chunks
    # something stays in use, or the kernel would take it back.
    pieces = [root / "services" / f"{number}.piece" for number in range(132)]
    for path in pieces:
        with path.open("wb") as piece:
            os.posix_fallocate(piece.fileno(), 0, MIB)
    os.sync()
    for path in set(pieces) - set(pieces[::4]):
        path.unlink()
    os.sync()
    assert 8 * MIB < (store.space().metadata or 0) < LEAST_BYTES
    [shortage] = shortages(store.space())
    assert "left for metadata" in shortage.evidence and "balance" in shortage.fix
    with pytest.raises(OSError, match="No space") as raised:
        fill(root / "services")
    assert raised.value.errno == errno.ENOSPC
    full = store.space()
    assert full.metadata is not None and full.metadata < 8 * MIB
    assert full.data > LEAST_BYTES
    assert store.free_bytes() > LEAST_BYTES, "df shows room all the same"


def test_an_ordinary_user_may_ask(root: Path) -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(root)
            os.setgroups([])
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(write_end, repr(read_space(Path())).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as told:
        assert told.read() == repr(read_space(root))
    os.waitpid(child, 0)
