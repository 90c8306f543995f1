"""The files of keys that sshd reads: looked at and replaced by root, in directories of others.

Invariants: of a user's own file no link is followed, of the system's only links that are root's;
nothing is waited for (a FIFO), nor read without end. A file that sshd would not trust is none.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from standfast.config.trust import untrusted
from standfast.errors import Refused, StandfastError
from standfast.reasons import Reason
from standfast.system.files import beside

MOST_BYTES = 1024 * 1024
SYSTEM_KEYS = Path("/etc/ssh/authorized_keys.d")
"""Where NixOS has a file for each user, which sshd reads beside the user's own."""
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Owner:
    """The user whose keys they are."""

    name: str
    uid: int
    gid: int

    @classmethod
    def of(cls, user: str) -> Owner:
        """StandfastError when there is no such user."""
        entry = _entry(user)
        return cls(user, entry.pw_uid, entry.pw_gid)


def authorized_keys_of(user: str) -> Path:
    """Returns the file that sshd reads by default; StandfastError when there is no such user."""
    return Path(_entry(user).pw_dir) / ".ssh" / "authorized_keys"


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise StandfastError(
            f"there is no user {user} here (replication.ssh_user): create it, or correct that"
        ) from None


def own_keys(path: Path, owner: Owner) -> bytes:
    """Returns what is in a user's own file, empty where there is none. Refused (bad-key) for one
    that sshd would not trust, or that another tool keeps."""
    if not os.path.lexists(path.parent):
        return b""
    with _opened(path.parent, owner) as directory:
        return read_in(directory, path, owner)


def system_keys(path: Path) -> bytes:
    """Returns what is in a file of root's, which may be a link; empty where there is none. Refused
    (bad-key) where somebody else could have written it, or a link to it; OSError."""
    try:
        if wrong := untrusted(path, (0,)):
            rule, _, way_out = wrong.partition(": ")
            raise _unsafe(path, f"isn't root's alone ({rule})", way_out)
        return _content(os.open(path, _FLAGS), path, Owner("root", 0, 0))
    except FileNotFoundError:
        return b""


@contextlib.contextmanager
def directory_of(path: Path, owner: Owner) -> Iterator[int]:
    """Yields the directory of a user's own file as a descriptor, so that nobody exchanges it under
    our hands; it is made where there is none. Refused (bad-key), OSError."""
    made = not os.path.lexists(path.parent)
    if made:
        path.parent.mkdir(mode=0o700)
    with _opened(path.parent, owner) as descriptor:
        if made:
            os.fchown(descriptor, owner.uid, owner.gid)
        yield descriptor


@contextlib.contextmanager
def _opened(path: Path, owner: Owner) -> Iterator[int]:
    try:
        descriptor = os.open(path, _FLAGS | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _unsafe(path, f"can't be used ({error.strerror}); a symlink isn't followed") from None
    try:
        _check_owned(path, os.fstat(descriptor), owner)
        yield descriptor
    finally:
        os.close(descriptor)


def read_in(directory: int, path: Path, owner: Owner) -> bytes:
    """Returns the file's content, by its directory's descriptor; empty where there is none. Refused
    (bad-key) for anything but a small file of the owner's, or of root's."""
    try:
        descriptor = os.open(path.name, _FLAGS | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _unsafe(
            path, f"can't be used ({error.strerror}); a symlink means that something else writes it"
        ) from None
    return _content(descriptor, path, owner)


def _content(descriptor: int, path: Path, owner: Owner) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise _unsafe(path, f"is no file of at most {MOST_BYTES} bytes")
        _check_owned(path, status, owner)
        return file.read(MOST_BYTES)


def _check_owned(path: Path, status: os.stat_result, owner: Owner) -> None:
    if status.st_uid not in (0, owner.uid):
        way_out = f"chown {owner.name} {path}"
        raise _unsafe(path, f"belongs to uid {status.st_uid}, not to {owner.name}", way_out)
    if status.st_mode & 0o022:
        mode = f"{status.st_mode & 0o7777:04o}"
        raise _unsafe(path, f"can be written by others (mode {mode})", f"chmod go-w {path}")


def _unsafe(path: Path, what: str, way_out: str = "Correct that") -> Refused:
    return Refused(
        Reason.BAD_KEY,
        f"{path} {what}: sshd doesn't trust it, or another tool keeps it. {way_out}, or put the "
        f"line there yourself (NixOS: nfsServicesStandby.replicationKeys)",
    )


def put_in(directory: int, name: str, content: bytes, owner: Owner) -> None:
    """Replaces a file by its directory's descriptor; on disk when this returns. OSError."""
    temporary = beside(Path(name)).name
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchown(descriptor, owner.uid, owner.gid)
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)
