"""The btrfs store's pure parts, and its commands as a fake `btrfs` sees them."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest

from standfast.btrfs import info as btrfs_info
from standfast.btrfs.inode_flags import is_pinned
from standfast.btrfs.names_and_places import TreeInfo
from standfast.btrfs.store import BtrfsStore, parse_listed_paths
from standfast.config.model import Paths
from standfast.errors import CommandFailed, Refused
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from tests.support.scripts import script

OWN, RECEIVED, PARENT, NONE = uuid.uuid4(), uuid.uuid4(), uuid.uuid4(), uuid.UUID(int=0)


def answer(flags: int, received: uuid.UUID, parent: uuid.UUID = NONE) -> bytes:
    head = struct.pack("=Q256sQQQQ", 258, b"services", 5, 256, 7, flags)
    return (head + OWN.bytes + parent.bytes + received.bytes).ljust(504, b"\0")


def test_the_kernels_answer_is_understood() -> None:
    assert btrfs_info.parse(answer(0, NONE)) == TreeInfo(str(OWN), None, read_only=False)
    received = btrfs_info.parse(answer(1, RECEIVED, PARENT))
    assert received == TreeInfo(str(OWN), str(RECEIVED), True, str(PARENT))
    assert received.content_id == str(RECEIVED)


def test_an_answer_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="503"):
        btrfs_info.parse(answer(0, NONE)[:-1])


def test_what_is_no_subvolume_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("", "file", "link", "missing"):
        assert btrfs_info.read(tmp_path / name) is None


def test_nested_subvolumes_are_listed_with_spaces_in_their_names() -> None:
    text = (
        "ID 257 gen 7 top level 256 path services/we ird/n sub\n"
        "ID 290 gen 10 top level 256 path @persist/services/a path b\n"
    )
    assert parse_listed_paths(text) == ["services/we ird/n sub", "@persist/services/a path b"]
    assert parse_listed_paths("") == []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `btrfs` that notes its arguments and says and does what FAKE_* tell."""
    program = script(
        tmp_path / "bin" / "btrfs",
        f'echo "$@" >> {tmp_path}/log\n'
        'case "$*" in "${FAKE_FAIL:-none}"*) echo "ERROR: broken" >&2; exit 1;; esac\n'
        'case "$*" in "subvolume create"*) mkdir "$3";; esac\n'
        'case "$*" in "subvolume list"*) printf "%s" "$FAKE_LIST";; esac',
    )
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(
        btrfs_info,
        "read",
        lambda path: TreeInfo(path.name, None, "@" in path.name) if path.name else None,
    )
    live = tmp_path / "volume" / "services"
    live.mkdir(parents=True)
    return tmp_path


def store_in(root: Path) -> BtrfsStore:
    volume = root / "volume"
    paths = Paths(live=volume / "services", snapshots=volume, standby=volume / "standby")
    return BtrfsStore(paths)


def commands(root: Path) -> list[str]:
    log = root / "log"
    return log.read_text().splitlines() if log.exists() else []


NAME = SnapshotName.parse("services@20270115T080000Z")


def test_a_snapshot_is_read_only_and_synced_before_it_is_returned(fake: Path) -> None:
    taken = store_in(fake).take_snapshot(NAME)
    live, target = fake / "volume" / "services", fake / "volume" / str(NAME)
    assert taken.path == target
    assert commands(fake) == [
        f"subvolume list -o {live}",
        f"subvolume snapshot -r {live} {target}",
        f"filesystem sync {target}",
    ]


def test_nested_subvolumes_stop_before_anything_is_made(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LIST", "ID 1 gen 1 top level 5 path services/x\n")
    with pytest.raises(Refused, match="services/x") as refusal:
        store_in(fake).take_snapshot(NAME)
    assert refusal.value.reason is Reason.INCOMPLETE
    assert len(commands(fake)) == 1


@pytest.mark.parametrize("failing", ["subvolume list", "subvolume snapshot", "filesystem sync"])
def test_a_failing_btrfs_is_an_error_with_its_words(
    fake: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setenv("FAKE_FAIL", failing)
    with pytest.raises(CommandFailed, match="broken"):
        store_in(fake).take_snapshot(NAME)
    assert commands(fake)[-1].startswith(failing)


def test_listing_snapshots_starts_no_process(fake: Path) -> None:
    for second in range(50):
        (fake / "volume" / str(SnapshotName.at("services", 1.7e9 + second))).mkdir()
    assert len(store_in(fake).snapshots()) == 50
    assert commands(fake) == []


def test_a_published_snapshot_is_synced_before_and_after_it_becomes_visible(fake: Path) -> None:
    store = store_in(fake)
    staging = store.open_staging()
    (staging / str(NAME)).mkdir()
    btrfs_info_read = TreeInfo("u", "content", read_only=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(btrfs_info, "read", lambda _: btrfs_info_read)
        store.verify_staged(NAME, "content")
        store.publish(NAME)
    staged, final = staging / str(NAME), fake / "volume" / "standby" / str(NAME)
    assert commands(fake) == [
        f"subvolume create {final.parent}",
        f"filesystem sync {staged}",
        f"subvolume snapshot -r {staged} {final}",
        f"filesystem sync {final}",
    ]


def test_a_parent_is_always_named_with_p() -> None:
    store = BtrfsStore(Paths())
    parent = Snapshot(NAME, Path("/persist/s@1"), "1", received=False)
    two = Snapshot(NAME, Path("/persist/s@2"), "2", received=False)
    assert store.send_argv(two, None) == ["btrfs", "-q", "send", "/persist/s@2"]
    assert store.send_argv(two, parent) == [
        "btrfs",
        "-q",
        "send",
        "-p",
        "/persist/s@1",
        "/persist/s@2",
    ]


def test_a_file_system_without_flags_pins_nothing() -> None:
    assert not is_pinned(Path("/proc"))
    with pytest.raises(FileNotFoundError):
        is_pinned(Path("/proc/nothing"))
