"""Trees for tests: changes that are hard to send, and what a tree is made of, for comparison.

Everything a client of the volume can see counts: names, kinds, contents, modes, owners, times of
change, extended attributes, which names are one file. Where the holes lie doesn't.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import shutil
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
PUNCH_HOLE_KEEP_SIZE = 3
BLOCK = 4096
SIZES = (0, 1, 100, 2_000, BLOCK, 5_000, 20_000, 70_000)
NAMES = ("a", "b", "c", "dir", "d.txt", " leading", "ü\n new line", "x" * 255, "-rf", "a.bak")
_libc = ctypes.CDLL(None, use_errno=True)


# What a tree is made of


@dataclass(frozen=True, slots=True)
class Entry:
    kind: int
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    same_as: str
    """The first of the names of this file."""
    xattrs: tuple[tuple[str, bytes], ...]
    content: str
    """Digest of a file, target of a link, number of a device."""


Tree = Mapping[str, Entry]


def read_tree(root: Path) -> Tree:
    """Every entry below `root`, and the root itself as `.`."""
    tree: dict[str, Entry] = {}
    first_names: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        name = str(path.relative_to(root))
        tree[name] = _entry(path, name, first_names)
    return tree


def _entry(path: Path, name: str, first_names: dict[int, str]) -> Entry:
    status = path.lstat()
    regular = stat.S_ISREG(status.st_mode)
    same_as = name if stat.S_ISDIR(status.st_mode) else first_names.setdefault(status.st_ino, name)
    xattrs = sorted(os.listxattr(path, follow_symlinks=False))
    return Entry(
        kind=stat.S_IFMT(status.st_mode),
        mode=stat.S_IMODE(status.st_mode),
        owner=(status.st_uid, status.st_gid),
        # `btrfs receive` makes new files in the root first, and an increment that leaves the root
        # alone doesn't set its time back.
        mtime_ns=0 if name == "." else status.st_mtime_ns,
        size=status.st_size if regular else 0,
        same_as=same_as,
        xattrs=tuple((xattr, os.getxattr(path, xattr, follow_symlinks=False)) for xattr in xattrs),
        content=_content(path, status),
    )


def _content(path: Path, status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    if stat.S_ISLNK(status.st_mode):
        return str(path.readlink())
    return str(status.st_rdev)


def differences(here: Tree, there: Tree) -> list[str]:
    """One line for each name that differs."""
    lines = []
    for name in sorted({*here, *there}):
        one, other = here.get(name), there.get(name)
        if one is None or other is None:
            lines.append(f"{name!r}: only {'there' if one is None else 'here'}")
        elif one != other:
            differing = [
                f"{item.name} {getattr(one, item.name)!r} != {getattr(other, item.name)!r}"
                for item in fields(Entry)
                if getattr(one, item.name) != getattr(other, item.name)
            ]
            lines.append(f"{name!r}: {', '.join(differing)}")
    return lines


# Changes


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change; the numbers choose among what is there. Nothing to choose: nothing happens."""

    kind: str
    one: int
    other: int


def mutate(root: Path, mutation: Mutation) -> None:
    # A name that is too long below, a target in the way, a directory moved into itself: refused by
    # the kernel, and then nothing has changed.
    with contextlib.suppress(OSError):
        KINDS[mutation.kind](_Chooser(root, mutation.one, mutation.other))


class _Chooser:
    """What a mutation works on."""

    def __init__(self, root: Path, one: int, other: int) -> None:
        self.root = root
        self.one = one
        self.other = other
        self._all = sorted(root.rglob("*"))

    def file(self, number: int) -> Path:
        return self._of(
            [path for path in self._all if path.is_file() and not path.is_symlink()], number
        )

    def directory(self, number: int) -> Path:
        return self._of(
            [path for path in self._all if path.is_dir() and not path.is_symlink()], number
        )

    def any(self, number: int) -> Path:
        return self._of(self._all, number)

    def place(self, number: int) -> Path:
        """A directory, the root among them."""
        return self._of(
            [self.root, *(path for path in self._all if path.is_dir() and not path.is_symlink())],
            number,
        )

    def free_name(self) -> Path:
        """A path at which something may be."""
        return self.place(self.other) / NAMES[self.one % len(NAMES)]

    def place_for_a_file(self) -> Path:
        """A free name, or a file's: whoever opens a pipe waits, and a link may lead outside."""
        path = self.free_name()
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise FileExistsError(path)
        return path

    def data(self) -> bytes:
        size = SIZES[self.other % len(SIZES)]
        seed = f"{self.one}-{self.other}".encode()
        return hashlib.shake_128(seed).digest(size)

    def offset(self, size: int) -> int:
        return (self.other * 977) % max(1, size)

    def _of(self, paths: list[Path], number: int) -> Path:
        if not paths:
            raise FileNotFoundError("nothing of the kind")
        return paths[number % len(paths)]


def _write(choose: _Chooser) -> None:
    choose.place_for_a_file().write_bytes(choose.data())


def _append(choose: _Chooser) -> None:
    with choose.file(choose.one).open("ab") as stream:
        stream.write(choose.data())


def _overwrite(choose: _Chooser) -> None:
    path = choose.file(choose.one)
    with path.open("r+b") as stream:
        stream.seek(choose.offset(path.stat().st_size))
        stream.write(choose.data()[:6_000])


def _truncate(choose: _Chooser) -> None:
    path = choose.file(choose.one)
    os.truncate(path, choose.offset(path.stat().st_size))


def _grow(choose: _Chooser) -> None:
    path = choose.file(choose.one)
    os.truncate(path, path.stat().st_size + SIZES[choose.other % len(SIZES)])


def _punch(choose: _Chooser) -> None:
    path = choose.file(choose.one)
    with path.open("r+b") as stream:
        start = choose.offset(path.stat().st_size) // BLOCK * BLOCK
        _libc.fallocate(
            stream.fileno(), PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(start), ctypes.c_long(2 * BLOCK)
        )


def _preallocate(choose: _Chooser) -> None:
    path = choose.file(choose.one)
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), path.stat().st_size, 3 * BLOCK)


def clone(source: Path, target: Path) -> None:
    """`cp --reflink=always`, without the attributes."""
    with source.open("rb") as read, target.open("wb") as write:
        fcntl.ioctl(write.fileno(), FICLONE, read.fileno())


def _reflink(choose: _Chooser) -> None:
    source, target = choose.file(choose.one), choose.place_for_a_file()
    if source != target:
        clone(source, target)


def _reflink_range(choose: _Chooser) -> None:
    """Some blocks of a file also elsewhere, in the same one or another."""
    source, target = choose.file(choose.one), choose.file(choose.other)
    with source.open("rb") as read, target.open("r+b") as write:
        to = choose.other % 5 * BLOCK
        arguments = struct.pack("=qQQQ", read.fileno(), 0, 2 * BLOCK, to)
        fcntl.ioctl(write.fileno(), FICLONERANGE, arguments)


def _copy_and_delete(choose: _Chooser) -> None:
    """`cp big big.bak && rm big`: what is left refers to data that has lost its name."""
    source = choose.file(choose.one)
    backup = source.with_name(source.name[:200] + ".bak")
    if not os.path.lexists(backup) or stat.S_ISREG(backup.lstat().st_mode):
        clone(source, backup)
        source.unlink()


def _rename(choose: _Chooser) -> None:
    choose.any(choose.one).rename(choose.free_name())


def _move_over(choose: _Chooser) -> None:
    choose.file(choose.one).replace(choose.file(choose.other))


def _swap(choose: _Chooser) -> None:
    one, other = choose.any(choose.one), choose.any(choose.other)
    aside = choose.root / "aside"
    if one in other.parents or other in one.parents or one == other:
        return
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _hard_link(choose: _Chooser) -> None:
    choose.free_name().hardlink_to(choose.file(choose.one))


def _unlink(choose: _Chooser) -> None:
    choose.file(choose.one).unlink()


def _delete_tree(choose: _Chooser) -> None:
    shutil.rmtree(choose.directory(choose.one))


def _make_directory(choose: _Chooser) -> None:
    choose.free_name().mkdir()


def _symlink(choose: _Chooser) -> None:
    choose.free_name().symlink_to(NAMES[choose.other % len(NAMES)])


def _pipe(choose: _Chooser) -> None:
    os.mkfifo(choose.free_name())


def _other_kind(choose: _Chooser) -> None:
    """A file where a directory was, or the other way round, under the same name."""
    path = choose.any(choose.one)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        path.write_bytes(b"once a directory")
    else:
        path.unlink()
        path.mkdir()


def _set_xattr(choose: _Chooser) -> None:
    os.setxattr(
        choose.any(choose.one),
        f"user.x{choose.other % 3}",
        choose.data()[:500],
        follow_symlinks=False,
    )


def _remove_xattr(choose: _Chooser) -> None:
    os.removexattr(choose.any(choose.one), f"user.x{choose.other % 3}", follow_symlinks=False)


def _chmod(choose: _Chooser) -> None:
    path = choose.any(choose.one)
    if not path.is_symlink():
        path.chmod((0o600, 0o755, 0o4711, 0o1777, 0o000)[choose.other % 5])


def _chown(choose: _Chooser) -> None:
    os.chown(
        choose.any(choose.one),
        choose.other % 3 * 1000,
        choose.other % 2 * 500,
        follow_symlinks=False,
    )


def _touch(choose: _Chooser) -> None:
    os.utime(choose.any(choose.one), (1, choose.other), follow_symlinks=False)


def _root_attributes(choose: _Chooser) -> None:
    choose.root.chmod((0o755, 0o700)[choose.one % 2])
    os.setxattr(choose.root, "user.root", choose.data()[:20])


KINDS: Mapping[str, Callable[[_Chooser], None]] = {
    "write": _write,
    "append": _append,
    "overwrite": _overwrite,
    "truncate": _truncate,
    "grow": _grow,
    "punch": _punch,
    "preallocate": _preallocate,
    "reflink": _reflink,
    "reflink-range": _reflink_range,
    "copy-and-delete": _copy_and_delete,
    "rename": _rename,
    "move-over": _move_over,
    "swap": _swap,
    "hard-link": _hard_link,
    "unlink": _unlink,
    "delete-tree": _delete_tree,
    "mkdir": _make_directory,
    "symlink": _symlink,
    "pipe": _pipe,
    "other-kind": _other_kind,
    "set-xattr": _set_xattr,
    "remove-xattr": _remove_xattr,
    "chmod": _chmod,
    "chown": _chown,
    "touch": _touch,
    "root": _root_attributes,
}
