"""Real and hostile streams: what a receive may write, and what an estimate is worth."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from standfast.btrfs import store as btrfs
from standfast.btrfs import versions as btrfs_versions
from standfast.btrfs.store import BtrfsStore
from standfast.errors import Refused
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from tests.support import btrfs_streams as made
from tests.support.volumes import btrfs_on_file, command, files, paths_below, require_btrfs

NOW = 1_800_000_000.0
NAME = SnapshotName.at("services", NOW)
IDENTITY = uuid.UUID(int=7)


@pytest.fixture
def make_root(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    require_btrfs()
    with contextlib.ExitStack() as stack:

        def make(name: str, options: str = "") -> Path:
            root = tmp_path / name
            stack.enter_context(btrfs_on_file(tmp_path / f"{name}.img", root))
            if options:
                command("mount", "-o", f"remount,{options}", root)
            command("btrfs", "subvolume", "create", root / "services")
            return root

        yield make


def store_at(root: Path) -> BtrfsStore:
    return BtrfsStore(paths_below(root))


def receive(argv: list[str], stream: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, input=stream, capture_output=True)


def whole(*commands: bytes) -> bytes:
    return made.header() + made.subvolume(str(NAME), IDENTITY) + b"".join(commands) + made.end()


def test_a_stream_made_here_is_one_that_btrfs_takes(make_root: Callable[..., Path]) -> None:
    store = store_at(make_root("a"))
    stream = whole(made.file("f", b"content"), made.symlink("link", "f"))
    assert receive(store.receive_argv(store.open_staging()), stream).returncode == 0
    store.verify_staged(NAME, str(IDENTITY))
    assert files(store.publish(NAME).path) == {"f": b"content"}


@pytest.mark.parametrize("way", ["dots", "link"])
def test_a_hostile_stream_writes_nothing_outside_of_the_staging_directory(
    make_root: Callable[..., Path], tmp_path: Path, way: str
) -> None:
    store = store_at(make_root("a"))
    outside = tmp_path / "outside"
    outside.mkdir()
    staging = store.open_staging()
    up = os.path.relpath(outside, staging / str(NAME))
    hostile = {
        "dots": whole(made.file(f"{up}/planted", b"x")),
        "link": whole(made.symlink("way", str(outside)), made.file("way/planted", b"x")),
    }[way]
    bare = ["btrfs", "-q", "receive", str(staging)]
    assert receive(bare, hostile).returncode == 0
    assert (outside / "planted").read_bytes() == b"x"  # so the stream does what it is to do
    (outside / "planted").unlink()
    receive(store.receive_argv(store.open_staging()), hostile)
    assert list(outside.iterdir()) == []


def test_what_a_hostile_stream_leaves_in_the_staging_directory_is_never_published(
    make_root: Callable[..., Path],
) -> None:
    store = store_at(make_root("a"))
    staging = store.open_staging()
    receive(store.receive_argv(staging), whole(made.file("../other", b"x")))
    assert (staging / "other").exists()
    with pytest.raises(Refused, match="the stream held other, services@"):
        store.verify_staged(NAME, str(IDENTITY))
    store.clear_staging()
    assert store.unfinished() == ()


def sent(store: BtrfsStore, snapshot: Snapshot, parent: Snapshot | None, **options: bool) -> bytes:
    argv = store.send_argv(snapshot, parent, **options)
    return subprocess.run(argv, capture_output=True, check=True).stdout


def test_an_estimate_is_within_a_hundredth_of_the_stream(make_root: Callable[..., Path]) -> None:
    root = make_root("a")
    store = store_at(root)
    for number in range(200):
        (root / "services" / f"f{number}").write_bytes(os.urandom(20_000))
    (root / "services" / "large").write_bytes(os.urandom(8_000_000))
    first = store.take_snapshot(NAME)
    unchanged = store.take_snapshot(NAME)
    (root / "services" / "more").write_bytes(os.urandom(3_000_000))
    command("cp", "--reflink=always", root / "services/large", root / "services/large.bak")
    third = store.take_snapshot(NAME)
    for snapshot, parent in ((first, None), (unchanged, first), (third, unchanged)):
        estimate = store.estimate(snapshot, parent)
        assert estimate == pytest.approx(len(sent(store, snapshot, parent)), rel=0.01)
    assert len(sent(store, third, unchanged)) < 3_200_000  # a reflink weighs nothing


def test_reflinks_within_one_snapshot_and_to_its_parent_arrive_as_reflinks(
    make_root: Callable[..., Path],
) -> None:
    a_root, b_root = make_root("a"), make_root("b")
    a, b = store_at(a_root), store_at(b_root)
    large = a_root / "services" / "large"
    large.write_bytes(os.urandom(4_000_000))
    command("cp", "--reflink=always", large, a_root / "services" / "twin")
    first = a.take_snapshot(NAME)
    command("cp", "--reflink=always", large, a_root / "services" / "third")
    second = a.take_snapshot(NAME)
    for snapshot, parent in ((first, None), (second, first)):
        stream = sent(a, snapshot, parent)
        assert len(stream) < 4_100_000
        staging = b.open_staging()
        if parent is not None:
            b.prepare_parent(parent.content_id)
            assert list(staging.iterdir()) == []
        done = receive(b.receive_argv(staging), stream)
        assert done.returncode == 0, done.stderr
        above = None if parent is None else parent.content_id
        b.verify_staged(snapshot.name, snapshot.content_id, above)
        assert files(b.publish(snapshot.name).path) == files(snapshot.path)


def test_an_estimate_that_takes_too_long_or_fails_is_none(
    make_root: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(make_root("a"))
    snapshot = store.take_snapshot(NAME)
    assert store.estimate(snapshot, None) is not None
    with monkeypatch.context() as patch:
        patch.setattr(btrfs, "ESTIMATE_TIMEOUT_S", 0.0)
        assert store.estimate(snapshot, None) is None
    store.delete([snapshot])
    assert store.estimate(snapshot, None) is None


def test_compressed_extents_go_as_they_are_where_both_ends_can(
    make_root: Callable[..., Path],
) -> None:
    if not btrfs_versions.moves_compressed_data(btrfs_versions.kernel(), btrfs_versions.progs()):
        kernel, progs = (
            ".".join(map(str, oldest))
            for oldest in (
                btrfs_versions.COMPRESSED_DATA_KERNEL,
                btrfs_versions.COMPRESSED_DATA_PROGS,
            )
        )
        pytest.skip(
            f"compressed extents are moved as they are from Linux {kernel} and btrfs-progs {progs} "
            f"on; here are {btrfs_versions.kernel()} and {btrfs_versions.progs()}"
        )
    a_root = make_root("a", "compress=zstd")
    a, b = store_at(a_root), store_at(make_root("b"))
    (a_root / "services" / "text").write_bytes(b"compressible " * 400_000)
    (a_root / "services" / "noise").write_bytes(os.urandom(500_000))
    command("sync", "-f", a_root)
    snapshot = a.take_snapshot(NAME)
    assert "compressed-data" in b.abilities()
    plain = sent(a, snapshot, None)
    small = sent(a, snapshot, None, compressed_data=True)
    assert len(small) < len(plain) / 4
    assert receive(b.receive_argv(b.open_staging()), small).returncode == 0
    b.verify_staged(NAME, snapshot.content_id)
    assert files(b.publish(NAME).path) == files(snapshot.path)


def test_an_untrusted_version_sends_plainly(
    make_root: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(make_root("a"))
    snapshot = store.take_snapshot(NAME)
    monkeypatch.setattr(btrfs_versions, "kernel", lambda: "6.1.0-37-amd64")
    assert store.abilities() == ()
    plain = store.send_argv(snapshot, None)
    assert store.send_argv(snapshot, None, compressed_data=True) == plain
