"""What a tree of files is made of, line by line, so that two nodes can compare theirs.

Invariant: the same tree gives the same lines in the same order on every node, and any difference
in what `btrfs send` carries changes a line. Nothing depends on what differs between two copies
(inode numbers, device numbers, sizes of directories, holes). What can't be read is an error, never
a line: two trees that are both unreadable must not look equal.

A line is an entry: its path from the tree's root (`.`), then `key=value` words.

    dir/file type=file mode=0644 uid=0 gid=0 size=3 mtime=1700000000.000000000 sha256=...

Links are never followed, other file systems and nested subvolumes are named but not entered. Memory
stays bounded: a large directory's names are sorted in files, links are remembered in a database on
disk, and a single directory is open at a time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import os
import re
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from standfast.errors import Refused, StandfastError
from standfast.reasons import Reason
from standfast.system.clock import Deadline

READ_BYTES = 1024 * 1024
NAMES_IN_MEMORY = 50_000
"""So many names of one directory are sorted in memory; more go through temporary files."""
MAX_WORD = 4096
"""A longer value is cut and ends in its own hash: every line fits one line of a conversation."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_UNSAFE = re.compile(rb"[^!-<>-\[\]-~]")  # all but printable ASCII; and blank, = and backslash
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character-device",
    stat.S_IFBLK: "block-device",
}
# What the kernel says when the disk's content is wrong: EIO (a checksum), and its two relatives.
_DAMAGE = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`digest` is the SHA-256 of the manifest's lines, in hex."""

    digest: str
    entries: int


def fingerprint(root: Path, *, full: bool, deadline: Deadline) -> Fingerprint:
    """Returns the fingerprint of the tree at `root`; `full` includes what is in the files. It
    raises what `manifest` does."""
    return counted(manifest(root, full=full, deadline=deadline), lambda _: None)


def digest_of(root: Path, deadline: Deadline) -> str:
    """Returns the metadata's fingerprint, as the sender of a snapshot announces it."""
    return fingerprint(root, full=False, deadline=deadline).digest


def counted(lines: Iterable[str], on_line: Callable[[bytes], object]) -> Fingerprint:
    """Returns the fingerprint of these lines; `on_line` gets every line with its end."""
    digest, entries = hashlib.sha256(), 0
    for line in lines:
        data = line.encode("ascii") + b"\n"
        digest.update(data)
        on_line(data)
        entries += 1
    return Fingerprint(digest.hexdigest(), entries)


def manifest(
    root: Path,
    *,
    full: bool,
    deadline: Deadline,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[str]:
    """Yields the lines of the tree at `root`, in the order of the paths' parts, compared as bytes.

    `on_bytes` gets the size of each piece of content read. Raises Refused (content-differs) naming
    the path where the disk is damaged, StandfastError when the tree changes or can't be read,
    TimedOut.
    """
    walk = _Walk(root, full, deadline, on_bytes)
    try:
        yield from walk.lines()
    except OSError as error:
        raise walk.failure(error) from error
    finally:
        walk.close()


@dataclass(slots=True)
class _Level:
    """A directory on the way down."""

    prefix: bytes
    identity: tuple[int, int]
    names: Iterator[bytes]
    files: contextlib.ExitStack


class _Walk:
    """One pass over a tree; its only open directory is the one at work."""

    def __init__(
        self, root: Path, full: bool, deadline: Deadline, on_bytes: Callable[[int], None] | None
    ) -> None:
        self._root = root
        self._full = full
        self._deadline = deadline
        self._on_bytes = on_bytes
        self._fd = -1
        self._at = b"."
        self._root_status: os.stat_result | None = None
        self._levels: list[_Level] = []
        self._links = _Links()
        self._buffer = memoryview(bytearray(READ_BYTES)) if full else memoryview(b"")

    def lines(self) -> Iterator[str]:
        self._fd = os.open(self._root, _DIRECTORY)
        self._root_status = os.fstat(self._fd)
        yield self._line(b".", b".", self._root_status)
        self._enter(b"", self._root_status)
        while self._levels:
            self._deadline.check(f"looking at {self._root}")
            level = self._levels[-1]
            name = next(level.names, None)
            if name is None:
                self._leave()
                continue
            self._at = path = level.prefix + name
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            yield self._line(path, name, status)
            if stat.S_ISDIR(status.st_mode) and not self._is_outside(status):
                self._go_to(name, _identity(status))
                self._enter(path + b"/", status)
        # Of a deleted directory readdir only says that it is empty.
        self._at = b"."
        self._check_identity(self._root.stat(), _identity(self._root_status))

    def close(self) -> None:
        while self._levels:
            self._levels.pop().files.close()
        self._links.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def failure(self, error: OSError) -> StandfastError:
        where = f"{self._root}: {shown(escape(self._at))}: {error.strerror}"
        if error.errno in _DAMAGE:
            return Refused(
                Reason.CONTENT_DIFFERS,
                f"{where}: the disk is damaged there. `btrfs scrub start -B {self._root}` and the "
                f"kernel's log name all such files",
            )
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE):
            return StandfastError(
                f"{where}: it is not there (any more). If the snapshot was deleted meanwhile, "
                f"start again"
            )
        return StandfastError(f"{where}: it can't be looked at; this needs root")

    # The way through the tree

    def _enter(self, prefix: bytes, status: os.stat_result) -> None:
        files = contextlib.ExitStack()
        names = _sorted_names(self._fd, files)
        self._levels.append(_Level(prefix, _identity(status), names, files))

    def _leave(self) -> None:
        self._levels.pop().files.close()
        if self._levels:
            self._go_to(b"..", self._levels[-1].identity)

    def _go_to(self, name: bytes, identity: tuple[int, int]) -> None:
        descriptor = os.open(name, _DIRECTORY, dir_fd=self._fd)
        os.close(self._fd)
        self._fd = descriptor
        self._check_identity(os.fstat(descriptor), identity)

    def _check_identity(self, status: os.stat_result, identity: tuple[int, int]) -> None:
        if _identity(status) != identity:
            raise StandfastError(
                f"{self._root}: {shown(escape(self._at))} was moved while it was looked at: only "
                f"a read-only tree can be compared"
            )

    def _is_outside(self, status: os.stat_result) -> bool:
        """Another file system, or (in a snapshot, in place of) a subvolume: a device of its own."""
        assert self._root_status is not None
        return status.st_dev != self._root_status.st_dev

    # One entry

    def _line(self, path: bytes, name: bytes, status: os.stat_result) -> str:
        kind = _TYPES.get(stat.S_IFMT(status.st_mode), "unknown")
        words = [word(path), f"type={kind}"]
        if self._is_outside(status):
            return f"{words[0]} type=other-file-system"
        if kind != "directory" and status.st_nlink > 1:
            first = self._links.first(status.st_ino, path)
            if first is not None:
                return f"{words[0]} type={kind} link={word(first)}"
        seconds, rest = divmod(status.st_mtime_ns, 10**9)
        words.append(f"mode={stat.S_IMODE(status.st_mode):04o}")
        words.append(f"uid={status.st_uid} gid={status.st_gid}")
        # `btrfs receive` makes new files in the root first, and an increment that leaves the root
        # alone doesn't set its time back.
        if path != b".":
            words.append(f"mtime={seconds}.{rest:09d}")
        if kind == "file":
            words.append(f"size={status.st_size}")
        elif kind == "symlink":
            words.append(f"target={word(os.readlink(name, dir_fd=self._fd))}")
        elif kind.endswith("device"):
            words.append(f"rdev={os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
        words += self._xattrs(name)
        if kind == "file" and self._full:
            words.append(f"sha256={self._content(name)}")
        return " ".join(words)

    def _xattrs(self, name: bytes) -> list[str]:
        # By /proc: the only way to those of a symlink or a device below an open directory.
        path = b"/proc/self/fd/%d/%s" % (self._fd, name)
        try:
            names = sorted(map(os.fsencode, os.listxattr(path, follow_symlinks=False)))
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                return []
            raise
        words, length = [], 0
        for attribute in names:
            value = os.getxattr(path, attribute, follow_symlinks=False)
            words.append(f"xattr:{word(attribute)}={word(value)}")
            length += len(words[-1])
        if length > 4 * MAX_WORD:
            return [f"xattrs=sha256:{hashlib.sha256(' '.join(words).encode()).hexdigest()}"]
        return words

    def _content(self, name: bytes) -> str:
        digest = hashlib.sha256()
        descriptor = os.open(name, _FILE, dir_fd=self._fd)
        try:
            done = 0
            while size := os.readv(descriptor, [self._buffer]):
                self._deadline.check(f"reading {self._root}")
                digest.update(self._buffer[:size])
                # What nobody reads again must not push out what is being served.
                os.posix_fadvise(descriptor, done, size, os.POSIX_FADV_DONTNEED)
                done += size
                if self._on_bytes is not None:
                    self._on_bytes(size)
        finally:
            os.close(descriptor)
        return digest.hexdigest()


class _Links:
    """The first path of every inode that has several, on disk when they are many."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._first: Callable[[int, bytes], bytes | None] | None = None

    def first(self, inode: int, path: bytes) -> bytes | None:
        """Returns the path noted for this inode before; None when this is its first."""
        if self._first is None:
            self._first = self._open()
        return self._first(inode, path)

    def close(self) -> None:
        self._stack.close()

    def _open(self) -> Callable[[int, bytes], bytes | None]:
        db = self._stack.enter_context(contextlib.closing(sqlite3.connect("")))
        db.isolation_level = None
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("CREATE TABLE seen (inode BLOB PRIMARY KEY, path BLOB) WITHOUT ROWID")
        db.execute("BEGIN")

        def first(inode: int, path: bytes) -> bytes | None:
            key = inode.to_bytes(8, "big")
            row = db.execute("SELECT path FROM seen WHERE inode = ?", (key,)).fetchone()
            if row is None:
                db.execute("INSERT INTO seen VALUES (?, ?)", (key, path))
                return None
            return bytes(row[0])

        return first


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _sorted_names(directory: int, files: contextlib.ExitStack) -> Iterator[bytes]:
    runs: list[Iterator[bytes]] = []
    names: list[bytes] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            names.append(os.fsencode(entry.name))
            if len(names) == NAMES_IN_MEMORY:
                names.sort()
                runs.append(_on_disk(names, files))
                names = []
    names.sort()
    return heapq.merge(*runs, names) if runs else iter(names)


def _on_disk(names: Iterable[bytes], files: contextlib.ExitStack) -> Iterator[bytes]:
    """The same names, from a file; no name has a slash, so it can stand for the line's end."""
    file = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # closed with its level
    file.writelines(name.replace(b"\n", b"/") + b"\n" for name in names)
    file.seek(0)
    return (line[:-1].replace(b"/", b"\n") for line in file)


# Words


def escape(raw: bytes) -> str:
    """Returns printable ASCII without blanks; anything else is written as `\\xHH`."""
    return _UNSAFE.sub(lambda match: b"\\x%02x" % ord(match[0]), raw).decode("ascii")


def word(raw: bytes) -> str:
    """Returns what `escape` does, but cuts a long text, which then ends in its hash."""
    text = escape(raw)
    if len(text) <= MAX_WORD:
        return text
    return f"{text[:MAX_WORD]}...sha256:{hashlib.sha256(raw).hexdigest()}"


def unescape(text: str) -> bytes:
    """Returns what `escape` was given."""
    return re.sub(
        rb"\\x([0-9a-f]{2})",
        lambda match: bytes([int(match[1], 16)]),
        text.encode("ascii", "replace"),
    )


def shown(text: str) -> str:
    """Returns an escaped word as people read it, where that is possible."""
    try:
        readable = unescape(text).decode("utf-8")
    except UnicodeDecodeError:
        return text
    return readable if readable.isprintable() else text
