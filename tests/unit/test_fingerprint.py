"""The manifest of a tree: what changes it, what doesn't, and how two of them are compared."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from standfast.errors import Refused, StandfastError, TimedOut
from standfast.reasons import Reason
from standfast.replication import fingerprint
from standfast.replication.differences import Change, Difference, differences
from standfast.replication.fingerprint import digest_of, escape, manifest, shown, unescape, word
from standfast.system.clock import Deadline
from tests.support.waiting import soon

ROOT = os.geteuid() == 0
NASTY = (b"new\nline", b"\xff\xfe not utf-8", b"a b=c\\x20", "grün".encode(), b" ", b"-", b"a.b")


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def lines(root: Path, *, full: bool = True) -> list[str]:
    return list(manifest(root, full=full, deadline=soon(60)))


def properties(root: Path, path: str, *, full: bool = True) -> dict[str, str]:
    [line] = [entry for entry in lines(root, full=full) if entry.startswith(path + " ")]
    return dict(pair.split("=", 1) for pair in line.split(" ")[1:])


def build(root: Path) -> Path:
    """A tree with one of each."""
    root.mkdir()
    (root / "empty").mkdir()
    (root / "a").mkdir()
    (root / "a/f").write_bytes(b"content")
    (root / "a/linked").write_bytes(b"one inode")
    os.link(root / "a/linked", root / "b")
    (root / "link").symlink_to("/nowhere\n")
    os.mkfifo(root / "fifo")
    with (root / "sparse").open("wb") as stream:
        stream.seek(3_000_000)
        stream.write(b"end")
    for name in NASTY:
        (root / "empty" / os.fsdecode(name)).write_bytes(name)
    return root


def copy(source: Path, target: Path) -> Path:
    """An equal tree of other inodes: hard links kept, holes filled, times set."""
    target.mkdir()
    first: dict[int, Path] = {}
    for path in sorted(source.rglob("*")):
        there, status = target / path.relative_to(source), path.lstat()
        if path.is_symlink():
            there.symlink_to(path.readlink())
        elif path.is_dir():
            there.mkdir()
        elif path.is_fifo():
            os.mkfifo(there)
        elif status.st_ino in first:
            os.link(first[status.st_ino], there)
        else:
            there.write_bytes(path.read_bytes())
            first[status.st_ino] = there
    for path in [*source.rglob("*"), source]:
        shutil.copystat(path, target / path.relative_to(source), follow_symlinks=False)
    return target


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return build(tmp_path / "tree")


# Equal


def test_a_copy_has_the_same_manifest(tree: Path, tmp_path: Path) -> None:
    other = copy(tree, tmp_path / "copy")
    assert lines(tree) == lines(other)
    assert fingerprint.fingerprint(tree, full=True, deadline=soon(60)) == fingerprint.fingerprint(
        other, full=True, deadline=soon(60)
    )
    assert digest_of(tree, soon(60)) == digest_of(other, soon(60))


def test_every_entry_has_a_line_in_the_order_of_the_parts_of_its_path(tree: Path) -> None:
    paths = [unescape(line.split(" ")[0]) for line in lines(tree)]
    wanted = [os.fsencode(path.relative_to(tree)) for path in tree.rglob("*")]
    assert paths == [b".", *sorted(wanted, key=lambda path: path.split(b"/"))]


def test_the_fingerprint_is_of_the_lines(tree: Path) -> None:
    text = "".join(line + "\n" for line in lines(tree)).encode()
    of_tree = fingerprint.fingerprint(tree, full=True, deadline=soon(60))
    assert (of_tree.digest, of_tree.entries) == (
        hashlib.sha256(text).hexdigest(),
        text.count(b"\n"),
    )


def test_a_line_says_all_of_a_file(tree: Path) -> None:
    path = tree / "a/f"
    path.chmod(0o4751)
    os.utime(path, ns=(1, 1_700_000_000_000_000_009))
    assert properties(tree, "a/f") == {
        "type": "file",
        "mode": "4751",
        "uid": str(os.getuid()),
        "gid": str(path.stat().st_gid),
        "mtime": "1700000000.000000009",
        "size": "7",
        "sha256": hashlib.sha256(b"content").hexdigest(),
    }
    assert "sha256" not in properties(tree, "a/f", full=False)
    assert properties(tree, "link")["target"] == "/nowhere\\x0a"
    assert properties(tree, "fifo")["type"] == "fifo"
    assert "size" not in properties(tree, "a")


def test_a_time_before_1970_is_one_of_its_own(tree: Path) -> None:
    os.utime(tree / "a/f", ns=(1, -1))
    assert properties(tree, "a/f")["mtime"] == "-1.999999999"


@pytest.mark.parametrize("names_in_memory", [1, 3])
def test_a_large_directory_is_sorted_in_pieces(
    tree: Path, names_in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lines(tree)
    monkeypatch.setattr(fingerprint, "NAMES_IN_MEMORY", names_in_memory)
    assert lines(tree) == whole


def test_a_tree_deeper_than_any_path_may_be_long_is_walked(tmp_path: Path) -> None:
    root = tmp_path / "deep"
    root.mkdir()
    here = os.open(root, os.O_DIRECTORY)
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    opened = open_files()
    walked = lines(root)
    assert len(walked) == 61
    assert max(map(len, walked)) < 60_000
    assert open_files() == opened


# Different


def _chmod(root: Path) -> None:
    (root / "a/f").chmod(0o600)


def _flip(root: Path) -> None:
    before = (root / "a/f").stat()
    (root / "a/f").write_bytes(b"cOntent")
    os.utime(root / "a/f", ns=(before.st_atime_ns, before.st_mtime_ns))


def _grow(root: Path) -> None:
    (root / "a/f").write_bytes(b"more content")


def _touch(root: Path) -> None:
    os.utime(root / "a/f", ns=(0, (root / "a/f").stat().st_mtime_ns + 1))


def _remove(root: Path) -> None:
    (root / "a/f").unlink()


def _add(root: Path) -> None:
    (root / "a/new").touch()


def _unlink(root: Path) -> None:
    (root / "b").unlink()
    shutil.copy2(root / "a/linked", root / "b")


def _cross(root: Path) -> None:
    """The same names and as many links, but other names together."""
    (root / "b").unlink()
    os.link(root / "a/f", root / "b")


def _retarget(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("/elsewhere")


def _no_fifo(root: Path) -> None:
    (root / "fifo").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(root)  # a socket's path may not be long
        listener.bind("fifo")
        os.chdir(here)


def _rename(root: Path) -> None:
    (root / "empty" / os.fsdecode(NASTY[1])).rename(root / "empty" / os.fsdecode(b"\xff\xfd"))


def _no_directory(root: Path) -> None:
    shutil.rmtree(root / "empty")


def _root_mode(root: Path) -> None:
    root.chmod(0o700)


CHANGES = (
    _chmod,
    _grow,
    _touch,
    _remove,
    _add,
    _unlink,
    _cross,
    _retarget,
    _no_fifo,
    _rename,
    _no_directory,
    _root_mode,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_change_changes_the_fingerprint_of_the_metadata(
    tree: Path, change: Callable[[Path], None]
) -> None:
    before = digest_of(tree, soon(60))
    times = tree.stat(), (tree / "a").stat(), (tree / "empty").stat()
    change(tree)
    for name, status in zip((".", "a", "empty"), times, strict=True):  # these are not the proof
        if (tree / name).exists():
            os.utime(tree / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest_of(tree, soon(60)) != before


def test_a_flipped_byte_is_found_by_the_full_fingerprint_only(tree: Path) -> None:
    metadata, full = lines(tree, full=False), lines(tree)
    _flip(tree)
    assert lines(tree, full=False) == metadata
    [difference] = differences(full, lines(tree))
    assert difference.path == "a/f" and [change.key for change in difference.changes] == ["sha256"]


def test_extended_attributes_count(tree: Path) -> None:
    set_attribute(tree / "a/f", "user.one", b"\x00 =value")
    before = lines(tree, full=False)
    assert properties(tree, "a/f")["xattr:user.one"] == "\\x00\\x20\\x3dvalue"
    os.setxattr(tree / "a/f", "user.one", b"other")
    os.setxattr(tree / "a/f", "user.two", b"")
    [difference] = differences(before, lines(tree, full=False))
    assert difference.changes == (
        Change("xattr:user.one", "\\x00\\x20\\x3dvalue", "other"),
        Change("xattr:user.two", None, ""),
    )
    assert difference.sentence("a", "b") == (
        "a/f: extended attribute user.one is \\x00\\x20\\x3dvalue on a, other on b; "
        "extended attribute user.two is missing on a, empty on b"
    )


def test_many_and_large_attributes_fit_a_line_and_still_count(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "MAX_WORD", 100)
    for number in range(5):
        set_attribute(tree / "a/f", f"user.{number}", b"\x00" * 500)
        before = lines(tree)
        assert max(map(len, before)) < 1000
        os.setxattr(tree / "a/f", f"user.{number}", b"\x00" * 499 + b"\x01")
        [difference] = differences(before, lines(tree))
        many = number >= 2
        assert [change.key for change in difference.changes] == [
            "xattrs" if many else f"xattr:user.{number}"
        ]


@pytest.mark.skipif(not ROOT, reason="needs root: device nodes, owners, trusted attributes")
def test_owners_devices_and_trusted_attributes_count(tree: Path) -> None:
    os.mknod(tree / "device", 0o20600, os.makedev(1, 3))
    os.chown(tree / "a/f", 12, 34)
    set_attribute(tree / "a/f", "trusted.one", b"1")
    os.setxattr(tree / "link", "trusted.two", b"2", follow_symlinks=False)
    device = properties(tree, "device")
    assert (device["type"], device["rdev"]) == ("character-device", "1:3")
    before = lines(tree)
    file = properties(tree, "a/f")
    assert (file["uid"], file["gid"], file["xattr:trusted.one"]) == ("12", "34", "1")
    assert properties(tree, "link")["xattr:trusted.two"] == "2"
    (tree / "device").unlink()
    os.mknod(tree / "device", 0o20600, os.makedev(1, 5))
    [change] = [
        difference for difference in differences(before, lines(tree)) if difference.path == "device"
    ]
    assert Change("rdev", "1:3", "1:5") in change.changes


def set_attribute(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"the file system of {path} takes no {name} attribute: {error}")


# What can't be looked at


def test_links_out_of_the_tree_are_not_followed(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree / "out").symlink_to(outside)
    before = lines(tree)
    (outside / "f").touch()
    assert lines(tree) == before


@pytest.mark.skipif(not ROOT, reason="needs root: mounts a file system")
def test_another_file_system_is_named_and_not_entered(tree: Path) -> None:
    mount = f"mount -t tmpfs none '{tree}/a' && touch '{tree}/a/hidden'"
    assert os.system(mount) == 0
    try:
        while_mounted = lines(tree)
    finally:
        os.system(f"umount '{tree}/a'")
    assert "a type=other-file-system" in while_mounted
    assert not [line for line in while_mounted if line.startswith("a/")]
    assert while_mounted != lines(tree)


def test_a_damaged_disk_is_an_error_with_the_path_and_never_a_line(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def readv(descriptor: int, buffers: list[memoryview]) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "readv", readv)
    assert lines(tree, full=False)
    with pytest.raises(Refused, match=r"tree: a/f: Input/output error: the disk is damaged") as end:
        lines(tree)
    assert end.value.reason is Reason.CONTENT_DIFFERS


def test_a_tree_that_goes_away_is_an_error(tree: Path) -> None:
    walk = manifest(tree, full=False, deadline=soon(60))
    next(walk)
    shutil.rmtree(tree)
    with pytest.raises(StandfastError, match="start again"):
        list(walk)
    with pytest.raises(StandfastError, match="not there"):
        lines(tree)


def test_a_tree_that_is_moved_meanwhile_is_an_error(tree: Path, tmp_path: Path) -> None:
    walk = manifest(tree, full=False, deadline=soon(60))
    while not next(walk).startswith("a/f "):
        pass
    (tree / "a").rename(tmp_path / "elsewhere")
    with pytest.raises(StandfastError, match="read-only tree"):
        list(walk)


def test_there_is_a_deadline_and_nothing_stays_open(tree: Path) -> None:
    opened = open_files()
    with pytest.raises(TimedOut, match="looking at"):
        digest_of(tree, Deadline.after(-1))
    assert open_files() == opened


# Words


@pytest.mark.parametrize("raw", [*NASTY, bytes(range(1, 256)), b"\\x41", b"plain"])
def test_a_word_is_printable_and_reversible(raw: bytes) -> None:
    text = escape(raw)
    assert unescape(text) == raw
    assert text.isascii() and text.isprintable() and " " not in text and "=" not in text


def test_a_long_word_is_cut_and_still_distinct() -> None:
    first, second = word(b"x" * 10_000), word(b"x" * 9_999 + b"y")
    assert first != second and len(first) < 4200


def test_people_see_names_as_they_are_where_that_does_no_harm() -> None:
    assert shown(escape("grün und blau".encode())) == "grün und blau"
    assert shown(escape(b"a\x1b[0m")) == "a\\x1b[0m"
    assert shown(escape(b"\xff")) == "\\xff"


# Merging


def line(path: str, mode: str = "0644", kind: str = "file") -> str:
    return f"{path} type={kind} mode={mode}"


def merge(ours: str, theirs: str) -> list[str]:
    differing = differences(map(line, ours.split()), map(line, theirs.split()))
    return [difference.sentence("a", "b") for difference in differing]


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        (". x y", ". x y", []),
        (". x y", ". y", ["x: only on a"]),
        (". y", ". x y z", ["x: only on b", "z: only on b"]),
        (". d d/x d.x", ". d d.x", ["d/x: only on a"]),
        (". d d/x d/y d.x", ". d.x", ["d: only on a"]),
        (". x", "", [".: only on a", "x: only on a"]),
        ("", ".", [".: only on b"]),
        (". d d/x e", ". c e e/z", ["c: only on b", "d: only on a", "e/z: only on b"]),
        (r". a\x20b a!b", r". a!b", [r"a b: only on a"]),
    ],
)
def test_what_is_on_one_side_only_is_named_once(ours: str, theirs: str, wanted: list[str]) -> None:
    assert merge(ours, theirs) == wanted


def test_a_directory_that_is_a_file_elsewhere_is_one_difference() -> None:
    ours = [line("d", "0755", "directory"), line("d/x"), line("e")]
    theirs = [line("d"), line("e")]
    [difference] = differences(ours, theirs)
    assert difference == Difference(
        "d",
        ours=True,
        theirs=True,
        changes=(Change("type", "directory", "file"), Change("mode", "0755", "0644")),
    )


def test_contents_are_told_by_the_beginning_of_their_hashes() -> None:
    [difference] = differences(
        ["f type=file sha256=" + "1" * 64], ["f type=file sha256=" + "2" * 64]
    )
    assert difference.sentence("a", "b") == (
        f"f: the content differs (sha256 {'1' * 16}... on a, {'2' * 16}... on b)"
    )


@pytest.mark.parametrize("text", ["", "f", "f type", "f mode=1", " type=file", "f type=file x"])
def test_a_line_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refusal:
        list(differences([line("f")], [text]))
    assert refusal.value.reason is Reason.PROTOCOL
