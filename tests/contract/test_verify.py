"""verify between two nodes, on both stores; the side that is asked is a process of its own."""

from __future__ import annotations

import json
import mmap
import os
import shlex
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.btrfs import info as btrfs_info
from standfast.cli.main import main
from standfast.config.model import Replication
from standfast.errors import Refused, TimedOut, Unreachable
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import state, verify, wire
from standfast.replication.fingerprint import manifest
from standfast.replication.verify import REPORTED, Comparison, compare
from standfast.system.clock import Deadline, sleep, utc_now
from standfast.system.locks import exclusive
from tests.contract.pairs import primary_and_standby
from tests.contract.peers import Peer
from tests.support.volumes import command

NASTY = (b"new\nline", b"\xff\xfe not utf-8", b" blanks = and \\x20", "grün".encode())


@pytest.fixture
def pair(kind: str, place: Path, tmp_path: Path) -> Iterator[tuple[Peer, Peer]]:
    """a, the primary with some files, and b, an empty standby."""
    with primary_and_standby(place if kind == "btrfs" else tmp_path, kind) as (a, b):
        fill(a.config.paths.live)
        yield a, b


def fill(live: Path) -> None:
    (live / "empty").mkdir()
    (live / "dir").mkdir(mode=0o750)
    (live / "dir/f").write_bytes(b"content" * 5000)
    (live / "dir/link").symlink_to("../nowhere")
    for name in NASTY:
        (live / "dir" / os.fsdecode(name)).write_bytes(name)
    with (live / "sparse").open("wb") as stream:
        stream.seek(5_000_000)
        stream.write(b"end")


def fill_as_root(live: Path) -> None:
    """What only btrfs carries."""
    os.link(live / "dir/f", live / "hard\nlink")
    os.mkfifo(live / "fifo")
    os.mknod(live / "null", 0o20600, os.makedev(1, 3))
    os.mknod(live / "disk", 0o60600, os.makedev(7, 200))
    directory = os.open(live, os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{directory}/socket")  # its path may not be long
    os.close(directory)
    os.chown(live / "dir/f", 1234, 4321)
    (live / "dir/f").chmod(0o6755)
    os.setxattr(live / "dir/f", "user.one", b"\x00 binary \xff")
    os.setxattr(live / "dir/f", "trusted.two", b"2")
    os.setxattr(live / "dir", "user.on a directory", b"3")
    os.setxattr(live / "dir/link", "trusted.on-a-link", b"4", follow_symlinks=False)
    # cap_net_raw=ep, and rw for uid 1000 with a default for what is made below.
    os.setxattr(
        live / "sparse", "security.capability", bytes.fromhex("0100000200200000" + "00" * 12)
    )
    acl = "0200000001000700ffffffff02000600e803000004000500ffffffff10000700ffffffff20000500ffffffff"
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        os.setxattr(live / "dir", name, bytes.fromhex(acl))
    command("btrfs", "property", "set", live / "empty", "compression", "zstd")
    os.utime(live / "fifo", ns=(0, 1_234_567_890_123_456_789))
    os.utime(live / "dir/link", ns=(0, -5), follow_symlinks=False)


def look(peer: Peer, *, full: bool = True) -> Comparison:
    return compare(peer.config, peer.store, "b", full=full, deadline=Deadline.after(60))


def sentences(comparison: Comparison) -> list[str]:
    return [difference.sentence("a", "b") for difference in comparison.differences]


def published(peer: Peer) -> Snapshot:
    return [snapshot for snapshot in peer.store.snapshots() if snapshot.received][-1]


def tampered(b: Peer, change: Callable[[Path], None]) -> None:
    """The standby's newest copy is changed behind Standfast's back; times and identity stay."""
    copy = published(b)
    aside = copy.path.with_name("aside")
    if b.store.kind == "btrfs":
        copy.path.rename(aside)
        command("btrfs", "subvolume", "snapshot", aside, copy.path)
    before = {path: path.lstat() for path in (copy.path, *copy.path.rglob("*"))}
    change(copy.path)
    for path, status in before.items():
        if os.path.lexists(path):
            os.utime(path, ns=(0, status.st_mtime_ns), follow_symlinks=False)
    if b.store.kind == "btrfs":
        btrfs_info.stand_in(copy.path, copy.content_id, aside)
        command("btrfs", "subvolume", "delete", aside)
    assert published(b).content_id == copy.content_id


def replicated(pair: tuple[Peer, Peer]) -> tuple[Peer, Peer]:
    pair[0].sender.cycle("b")
    return pair


# Equal


def test_what_was_replicated_is_equal(pair: tuple[Peer, Peer]) -> None:
    a, _ = replicated(pair)
    a.live("dir/f").write_bytes(b"changed")
    newest = a.sender.cycle("b").snapshot
    for full in (False, True):
        comparison = look(a, full=full)
        assert comparison.is_equal and comparison.differences == () and not comparison.more
        assert comparison.snapshot == str(newest) and comparison.full is full
        # The root, three below it, and in dir: f, the link and the nasty ones.
        assert comparison.ours.entries == 1 + 3 + 2 + len(NASTY)
        assert (comparison.read_bytes > 5_000_000) is full


@pytest.mark.parametrize("kind", ["btrfs"], indirect=True)
def test_btrfs_carries_all_that_is_compared(pair: tuple[Peer, Peer]) -> None:
    """Full, then as an increment: attributes, capabilities, ACLs, devices, links, odd times."""
    a, b = pair
    fill_as_root(a.config.paths.live)
    a.sender.cycle("b")
    comparison = look(a)
    assert comparison.is_equal, sentences(comparison)
    lines = list(manifest(published(b).path, full=True, deadline=Deadline.after(60)))
    text = "\n".join(lines)
    for part in (
        "xattr:security.capability=",
        "xattr:system.posix_acl_default=",
        "xattr:btrfs.compression=zstd",
        "xattr:trusted.on-a-link=4",
        "mode=6755 uid=1234 gid=4321",
        "rdev=7:200",
        "type=socket",
        "link=dir/f",
        "mtime=-1.999999995",
    ):
        assert part in text, part
    a.live("fifo").unlink()
    a.live("dir/f").rename(a.live("moved"))
    os.link(a.live("moved"), a.live("dir/again"))
    os.removexattr(a.live("dir"), "user.on a directory")
    os.truncate(a.live("sparse"), 6_000_000)
    a.sender.cycle("b")
    comparison = look(a)
    assert comparison.is_equal, sentences(comparison)


def test_the_newest_common_snapshot_is_compared(pair: tuple[Peer, Peer]) -> None:
    a, _ = replicated(pair)
    common = look(a).snapshot
    a.live("dir/f").write_bytes(b"not there yet")
    a.store.take_snapshot(SnapshotName.at("services", utc_now()))
    comparison = look(a)
    assert comparison.is_equal and comparison.snapshot == common


def test_it_goes_both_ways(pair: tuple[Peer, Peer]) -> None:
    a, b = replicated(pair)
    back = b.talk_to(a)
    assert compare(back.config, b.store, "a", full=True, deadline=Deadline.after(60)).is_equal


# Different


def _flip(root: Path) -> None:
    with (root / "dir/f").open("r+b") as stream:
        stream.seek(20_000)
        stream.write(b"!")


def _mode(root: Path) -> None:
    (root / "dir").chmod(0o777)


def _missing(root: Path) -> None:
    (root / "dir" / os.fsdecode(NASTY[1])).unlink()


def _extra(root: Path) -> None:
    (root / "empty/new").mkdir()
    (root / "empty/new/below").touch()


def _attribute(root: Path) -> None:
    try:
        os.setxattr(root / "sparse", "user.new", b"1")
    except OSError as error:
        pytest.skip(f"{root} takes no extended attributes: {error}")


# In the order of the listing.
DIFFERENT: tuple[tuple[Callable[[Path], None], str], ...] = (
    (_mode, "dir: mode is 0750 on a, 0777 on b"),
    (_flip, "dir/f: the content differs (sha256 "),
    (_missing, r"dir/\xff\xfe\x20not\x20utf-8: only on a"),
    (_extra, "empty/new: only on b"),
    (_attribute, "sparse: extended attribute user.new is missing on a, 1 on b"),
)


def test_a_changed_copy_is_found_and_said_what_it_is(pair: tuple[Peer, Peer]) -> None:
    a, b = replicated(pair)

    def change_all(root: Path) -> None:
        for change, _ in DIFFERENT:
            change(root)

    tampered(b, change_all)
    comparison = look(a)
    assert not comparison.is_equal and not comparison.more
    said = sentences(comparison)
    wanted = [words for _, words in DIFFERENT]
    assert len(said) == len(wanted)
    assert all(line.startswith(words) for line, words in zip(said, wanted, strict=True)), said


def test_only_a_full_look_finds_a_flipped_byte(pair: tuple[Peer, Peer]) -> None:
    a, b = replicated(pair)
    tampered(b, _flip)
    assert look(a, full=False).is_equal
    comparison = look(a)
    assert [difference.path for difference in comparison.differences] == ["dir/f"]


@pytest.mark.parametrize("kind", ["btrfs"], indirect=True)
def test_a_subvolume_inside_is_named_and_a_missing_one_is_found(pair: tuple[Peer, Peer]) -> None:
    """It is left out of snapshots and of streams; what stands for it has the time of looking."""
    a, _ = pair
    live = a.config.paths.live
    command("btrfs", "subvolume", "create", live / "nested")
    snapshot = live.with_name("with-nested")
    command("btrfs", "subvolume", "snapshot", "-r", live, snapshot)
    for tree in (live, snapshot):
        lines = list(manifest(tree, full=True, deadline=Deadline.after(60)))
        assert "nested type=other-file-system" in lines
    command("btrfs", "subvolume", "delete", live / "nested", snapshot)


@pytest.mark.parametrize("kind", ["btrfs"], indirect=True)
def test_a_broken_hard_link_is_found(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    fill_as_root(a.config.paths.live)
    a.sender.cycle("b")

    def unlink(root: Path) -> None:
        (root / "hard\nlink").unlink()
        command("cp", "-a", root / "dir/f", root / "hard\nlink")

    tampered(b, unlink)
    comparison = look(a, full=False)
    assert [difference.path for difference in comparison.differences] == ["hard\\x0alink"]
    assert "link is dir/f on a, missing on b" in sentences(comparison)[0]


def test_only_the_first_differences_are_told(pair: tuple[Peer, Peer]) -> None:
    a, b = replicated(pair)

    def many(root: Path) -> None:
        for number in range(REPORTED + 5):
            (root / f"new-{number:02}").touch()

    tampered(b, many)
    comparison = look(a)
    assert comparison.more and sentences(comparison) == [
        f"new-{suffix:02}: only on b" for suffix in range(10)
    ]


@pytest.mark.parametrize("kind", ["btrfs"], indirect=True)
@pytest.mark.parametrize("damaged", ["a", "b"])
def test_a_damaged_disk_is_named_with_node_and_file(
    pair: tuple[Peer, Peer], place: Path, damaged: str
) -> None:
    a, b = pair
    content = os.urandom(100_000)
    a.live("precious").write_bytes(content)
    a.sender.cycle("b")
    image = place / f"{damaged}.img"
    root = (a if damaged == "a" else b).config.paths.live.parent
    command("btrfs", "filesystem", "sync", root)
    with image.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as data:
        found_at = data.find(content[4096:8192])
        assert found_at > 0
        data[found_at] ^= 1
    for snapshot in (*a.store.snapshots(), *b.store.snapshots()):
        with (snapshot.path / "precious").open("rb") as precious:
            os.posix_fadvise(precious.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert look(a, full=False).is_equal
    with pytest.raises(Refused, match=f"on {damaged}: .*: precious: Input/output error") as refusal:
        look(a)
    assert refusal.value.reason is Reason.CONTENT_DIFFERS
    assert state.load(a.config).standbys["b"].verified_ok is False


# What is remembered


def test_the_outcome_is_remembered(pair: tuple[Peer, Peer]) -> None:
    a, b = replicated(pair)
    assert state.load(a.config).standbys["b"].verified_at is None
    comparison = look(a, full=False)
    noted = state.load(a.config).standbys["b"]
    assert noted.verified_at is not None and noted.verified_snapshot == comparison.snapshot
    assert noted.verified_ok is True and noted.verified_full is False and noted.successes == 1
    tampered(b, _flip)
    look(a)
    noted = state.load(a.config).standbys["b"]
    assert noted.verified_ok is False and noted.verified_full is True
    assert look(a, full=False).is_equal
    assert state.load(a.config).standbys["b"] == noted, "metadata say nothing about contents"


# What can't be answered


def test_an_unknown_snapshot_is_refused_by_the_side_that_is_asked(
    pair: tuple[Peer, Peer],
) -> None:
    _, b = replicated(pair)
    request = wire.Digest("00000000-0000-0000-0000-000000000001", full=False, listing=False)
    with pytest.raises(Refused) as refusal:
        list(verify.answer(b.config, b.store, request))
    assert refusal.value.reason is Reason.UNKNOWN_SNAPSHOT


def test_a_standby_without_a_common_snapshot_is_not_equal(pair: tuple[Peer, Peer]) -> None:
    a, _ = pair
    with pytest.raises(Refused) as refusal:
        look(a)
    assert refusal.value.reason is Reason.NEEDS_FULL
    assert "b" not in state.load(a.config).standbys


def test_a_standby_that_cant_be_reached_is_not_equal(pair: tuple[Peer, Peer]) -> None:
    a, _ = replicated(pair)
    gone = Replication(command=("sh", "-c", "echo no route to host >&2; exit 255"))
    with pytest.raises(Unreachable, match="no route"):
        config = replace(a.config, replication=gone)
        compare(config, a.store, "b", full=False, deadline=Deadline.after(60))
    assert state.load(a.config).standbys["b"].verified_at is None


def test_a_refusal_ends_the_reading_here(
    pair: tuple[Peer, Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contents may take hours: not for a standby that has refused long ago."""
    a, b = replicated(pair)
    monkeypatch.setattr(verify, "_LOOK_UP_S", 0.0)
    welcome = wire.dump(wire.Welcome(wire.offers(list(b.store.snapshots())), 1))
    refusal = wire.dump(wire.Refusal(Reason.CONTENT_DIFFERS, "on b: it is damaged"))
    said = tmp_path / "said"
    answer = f"echo '{refusal}'; touch {said}; sleep 60"
    script = f"read hello; echo '{welcome}'; read request; {answer}"
    config = replace(a.config, replication=Replication(command=("sh", "-c", script)))
    seen: list[int] = []

    def slowly(done: verify.Progress) -> None:
        seen.append(done.entries)
        patience = Deadline.after(30)
        while not said.exists() and not patience.expired:
            sleep(0.01)

    with pytest.raises(Refused, match="on b: it is damaged"):
        compare(config, a.store, "b", full=True, deadline=Deadline.after(60), progress=slowly)
    assert max(seen, default=0) <= 1, "there are ten entries"


def test_an_endless_look_has_an_end(pair: tuple[Peer, Peer]) -> None:
    a, _ = replicated(pair)
    with pytest.raises(TimedOut):
        compare(a.config, a.store, "b", full=True, deadline=Deadline.after(0.0))
    assert state.load(a.config).standbys["b"].verified_at is None


def test_the_side_that_is_asked_changes_nothing_and_leaves_nothing(
    pair: tuple[Peer, Peer],
) -> None:
    a, b = replicated(pair)
    tampered(b, _extra)  # so that the listing is made, too
    before = sorted(b.config.paths.standby.rglob("*")), sorted(b.config.state_dir.iterdir())
    with exclusive(b.config.run_dir / "receive.lock", "a snapshot that comes in"):
        assert not look(a).is_equal
    after = sorted(b.config.paths.standby.rglob("*")), sorted(b.config.state_dir.iterdir())
    assert before == after


# The command


def test_the_command_says_what_differs_and_what_to_do(
    pair: tuple[Peer, Peer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = replicated(pair)
    monkeypatch.setattr("standfast.cli.verify.load_volume", lambda _: a.config)
    assert main(["verify", "b"]) == 0
    assert "is equal: 10 entries (metadata; --full" in capsys.readouterr().out
    tampered(b, _flip)
    assert main(["verify", "b", "--full"]) == 1
    said = capsys.readouterr()
    assert "DIFFERS from the one on a:\n  dir/f: the content differs" in said.out
    assert said.err.startswith("standfast: content-differs: b: services@")
    for step in ("standfast pause", "mv ", "standfast replicate b --full", "standfast resume"):
        assert step in said.err
    assert main(["verify", "b", "--full", "--json"]) == 1
    doc = json.loads(capsys.readouterr().out)
    [compared] = doc["compared"]
    assert doc["reason"] == "content-differs" and doc["exit_code"] == 1
    assert compared["equal"] is False and len(compared["differences"]) == 1


def test_the_command_goes_on_to_the_other_standbys(
    pair: tuple[Peer, Peer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """c can't be reached: that is less than what differs, and more than nothing."""
    a, b = replicated(pair)
    words = " ".join(map(shlex.quote, a.config.replication.command))
    script = f"[ {{node}} = b ] || exit 255; exec {words}"
    config = replace(a.config, replication=Replication(command=("sh", "-c", script)))
    monkeypatch.setattr("standfast.cli.verify.load_volume", lambda _: config)
    assert main(["verify"]) == 3
    said = capsys.readouterr()
    assert "b: services@" in said.out and "is equal" in said.out
    assert "c: not compared: c can't be reached" in said.err
    tampered(b, _mode)
    assert main(["verify"]) == 1
    assert "content-differs: b: " in capsys.readouterr().err
    assert main(["verify", "d"]) == 1
    assert "unknown-node" in capsys.readouterr().err


def test_a_timer_does_nothing_on_a_standby(
    pair: tuple[Peer, Peer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = replicated(pair)
    monkeypatch.setattr("standfast.cli.verify.ConsulGateway.from_config", lambda _: a.gateway)
    for peer, said in ((b, "b is not the primary"), (a, "is equal")):
        monkeypatch.setattr("standfast.cli.verify.load_volume", lambda _, peer=peer: peer.config)
        assert main(["verify", "--if-primary", *(["b"] if peer is a else [])]) == 0
        caught = capsys.readouterr()
        assert said in caught.out + caught.err
