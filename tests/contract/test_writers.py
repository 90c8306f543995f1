"""Who can write into a subvolume though it is read-only: real btrfs, real mount namespaces."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from standfast.btrfs import writers as writers_text
from standfast.btrfs import writers_look
from standfast.btrfs.store import BtrfsStore
from standfast.config.model import Paths
from standfast.node.ports import Writer
from standfast.system.clock import Deadline, sleep
from tests.support.volumes import btrfs_on_file, command, require_btrfs

OPEN = """
import ctypes, mmap, sys
how, path = sys.argv[1:]
file = open(path, "rb" if how == "read" else "r+b")
if how not in ("read", "write"):  # Python's own mmap keeps a copy of the descriptor
    call = ctypes.CDLL(None, use_errno=True).mmap
    number = ctypes.c_int
    call.restype = ctypes.c_void_p
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, number, number, number, ctypes.c_long]
    flags = mmap.MAP_SHARED if how == "map" else mmap.MAP_PRIVATE
    area = call(None, 1, mmap.PROT_READ | mmap.PROT_WRITE, flags, file.fileno(), 0)
    assert area not in (None, ctypes.c_void_p(-1).value)
    file.close()
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    require_btrfs()
    with btrfs_on_file(tmp_path / "disk.img", tmp_path / "disk") as mounted:
        for name in ("services", "other"):
            command("btrfs", "subvolume", "create", mounted / name)
            (mounted / name / "file of it").write_text("x")
        yield mounted


@contextlib.contextmanager
def holding(how: str, path: Path, *before: str) -> Iterator[int]:
    """A process that has the file open, or mapped, until the block is left; its pid."""
    argv = [*before, sys.executable, "-I", "-S", "-c", OPEN, how, str(path)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "open\n"
        yield process.pid
        process.stdin.close()


def look(disk: Path) -> Sequence[Writer]:
    paths = Paths(live=disk / "services", snapshots=disk, standby=disk / "standby")
    return BtrfsStore(paths).writers(Deadline.after(30))


def writers(disk: Path) -> list[int]:
    return sorted(writer.pid for writer in look(disk))


@pytest.mark.parametrize("how", ["write", "map"])
def test_what_was_opened_before_is_found_and_is_still_written(disk: Path, how: str) -> None:
    path = disk / "services/file of it"
    with holding(how, path) as pid:
        command("btrfs", "property", "set", "-t", "subvol", disk / "services", "ro", "true")
        assert writers(disk) == [pid]
    assert writers(disk) == []


@pytest.mark.parametrize("how", ["write", "map"])
@pytest.mark.parametrize("there", ["services", "other"])
def test_no_name_of_a_file_keeps_others_from_being_seen(disk: Path, how: str, there: str) -> None:
    """Any user may map a file of any name: the look would end there, and each change of role."""
    names = [b"x\r7f-8 rws a b c d", bytes({*range(1, 256)} - {ord("/")})]
    with contextlib.ExitStack() as stack:
        pids = []
        for path in [disk / there / os.fsdecode(name) for name in names]:
            path.write_text("x")
            pids.append(stack.enter_context(holding(how, path)))
        pid = stack.enter_context(holding("map", disk / "services/file of it"))
        assert writers(disk) == sorted([pid, *(pids if there == "services" else [])])


def test_a_file_that_is_written_after_the_tree_is_read_only_shows_why_it_is_looked_for(
    disk: Path,
) -> None:
    path = disk / "services/file of it"
    with path.open("r+b", buffering=0) as file:
        command("btrfs", "property", "set", "-t", "subvol", disk / "services", "ro", "true")
        file.write(b"written")
        os.fsync(file.fileno())
        assert writers(disk) == [os.getpid()]
    assert path.read_text() == "written"
    with pytest.raises(OSError, match="Read-only"):
        path.open("r+b")


def test_a_writer_is_told_with_its_unit(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers_text, "unit_of", lambda process: f"of-{process}.service")
    with holding("write", disk / "services/file of it") as pid:
        assert [writer.unit for writer in look(disk)] == [f"of-/proc/{pid}.service"]


@pytest.mark.parametrize(
    ("how", "tree"), [("read", "services"), ("private", "services"), ("write", "other")]
)
def test_readers_and_writers_of_other_subvolumes_do_not_count(
    disk: Path, how: str, tree: str
) -> None:
    with holding(how, disk / tree / "file of it"):
        assert writers(disk) == []


def test_a_writer_in_a_mount_namespace_of_its_own_is_found(disk: Path) -> None:
    """As a container has it: its mount is in no table but its own."""
    there = disk.parent / "in the container"
    there.mkdir()
    script = 'mount --bind "$1" "$2"; umount -l "$3"; shift 3; exec "$@"'
    inside = ("unshare", "-m", "sh", "-ec", script, "sh")
    mounts = (str(disk / "services"), str(there), str(disk))
    with holding("write", there / "file of it", *inside, *mounts) as pid:
        assert writers(disk) == [pid]
        assert not (there / "file of it").exists()


def test_a_writer_in_a_mount_that_was_let_go_of_is_found(disk: Path) -> None:
    """Its mount is in no table at all."""
    there = disk.parent / "let go"
    there.mkdir()
    command("mount", "--bind", disk / "services", there)
    with holding("write", there / "file of it") as pid:
        command("umount", "-l", there)
        assert writers(disk) == [pid]


@pytest.mark.parametrize(("options", "tree", "listed"), [
    ((), "services", True), (("--read-only",), "services", False), ((), "other", False),
])  # fmt: skip
def test_a_loop_device_on_a_file_of_it_is_found(
    disk: Path, options: tuple[str, ...], tree: str, listed: bool
) -> None:
    image = disk / tree / "an image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    device = command("losetup", "--find", "--show", *options, image).strip()
    try:
        command("btrfs", "property", "set", "-t", "subvol", disk / tree, "ro", "true")
        told = [str(writer) for writer in look(disk)]
        assert told == ([f"{Path(device).name} ({image})"] if listed else [])
        if listed:  # which is why it counts
            with Path(device).open("r+b") as file:
                file.write(b"written")
                file.flush()
                os.fsync(file.fileno())
            assert image.read_bytes()[:7] == b"written"
    finally:
        command("losetup", "--detach", device)


def test_a_tree_with_a_swap_file_has_no_snapshot(disk: Path) -> None:
    """So what the kernel writes there is in no final one, either: the handover ends before."""
    swap = disk / "services/swap"
    command("btrfs", "filesystem", "mkswapfile", "--size", "4m", swap)
    command("swapon", swap)
    try:
        with pytest.raises(AssertionError, match="swap"):
            command("btrfs", "subvolume", "snapshot", "-r", disk / "services", disk / "final")
    finally:
        command("swapoff", swap)


def test_a_look_at_a_file_of_a_dead_server_ends_and_says_no(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = tmp_path.stat().st_dev
    assert writers_look.is_of_apart(device, tmp_path)
    monkeypatch.setattr(writers_look, "is_of", lambda *_: sleep(600))
    assert not writers_look.is_of_apart(device, tmp_path)


def test_what_a_hanging_process_has_mapped_is_looked_at_in_a_process_apart(disk: Path) -> None:
    path, subvolume = disk / "services/file of it", (disk / "services").stat().st_dev
    device = command("findmnt", "-no", "MAJ:MIN", disk).strip()
    with holding("map", path) as pid:
        look = writers_look.mapped_by_hanging(Path(f"/proc/{pid}"), subvolume, device)
        assert list(look) == [str(path)]
