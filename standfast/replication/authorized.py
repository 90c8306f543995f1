"""A replication key's line in a standby's authorized_keys.

Invariant: a line that this module writes lets its key run `standfast receive` and nothing else,
and every other line stays as it is, byte for byte. sshd takes the first line with a key, so a key
has one line: it names the volume, or, once several volumes are sent with the same key, none (then
the sender names it, and the configuration of that volume there decides).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from standfast.errors import Refused, StandfastError
from standfast.reasons import Reason
from standfast.replication.keys import PublicKey
from standfast.system.lines import fields_of

MOST_BYTES = 1024 * 1024
_RECEIVE = re.compile(r"(?P<program>(/[A-Za-z0-9._/+-]*/)?standfast receive)( (?P<volume>\S+))?\Z")
# Options that only take away: they may stand beside ours.
_NARROWING = re.compile(r'(restrict|no-[a-z0-9-]+|from="[^"\\]*"|expiry-time="[^"\\]*")\Z', re.I)
_OPTION = re.compile(r'[A-Za-z0-9-]+(="(?:[^"\\]|\\.)*")?')


class Change(StrEnum):
    """What `authorize` did to the file."""

    ADDED = "added"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class _Owner:
    name: str
    uid: int
    gid: int


def authorized_line(volume: str | None, key: PublicKey) -> str:
    """Returns the line of authorized_keys; without a volume, of every volume of the node."""
    return f'restrict,command="{_command(volume)}" {key}'


def _command(volume: str | None) -> str:
    return "standfast receive" + ("" if volume is None else f" {volume}")


def nixos_form(keys: Sequence[PublicKey]) -> str:
    """Returns the same for a NixOS node whose module puts the restriction before each key."""
    listed = " ".join(f'"{key}"' for key in keys)
    return f"nfsServicesStandby.replicationKeys = [ {listed} ];"


def authorized_keys_of(user: str) -> Path:
    """Returns the file that sshd reads by default; StandfastError when there is no such user."""
    return Path(_entry(user).pw_dir) / ".ssh" / "authorized_keys"


def authorize(
    path: Path, user: str, volume: str, key: PublicKey, *, dry_run: bool = False
) -> Change:
    """Lets `key` receive `volume`, by one line of the file at `path`; on disk when this returns.

    Refused when the file is a symlink, when somebody else could write there (sshd would ignore
    it), or when the key may do something else there already.
    """
    entry = _entry(user)
    owner = _Owner(user, entry.pw_uid, entry.pw_gid)
    if dry_run and not path.parent.exists():
        return Change.ADDED
    with _directory(path.parent, owner) as directory:
        before = _read(directory, path, owner)
        after, change = with_line(before, volume, key, str(path))
        if change is not Change.UNCHANGED and not dry_run:
            _replace(directory, path.name, after, owner)
    return change


def with_line(text: bytes, volume: str, key: PublicKey, source: str) -> tuple[bytes, Change]:
    """Returns the file's content with the key's one line; pure."""
    lines = re.split(rb"(?<=\n)", text)
    ours = [number for number, line in enumerate(lines) if _is_of(line, key)]
    if not ours:
        gap = b"" if not text or text.endswith(b"\n") else b"\n"
        return text + gap + authorized_line(volume, key).encode() + b"\n", Change.ADDED
    number = ours[0]
    line = lines[number].decode("utf-8", "replace").rstrip("\r\n")
    options = _options_before(line, key)
    allowed = None if options is None else _allowed(options)
    if options is None or allowed is None:
        raise Refused(
            Reason.BAD_KEY,
            f"line {number + 1} of {source} lets this key do something else than receive, and "
            f"sshd takes the first line with a key: remove it, then run this again",
        )
    if len(ours) > 1:
        numbers = ", ".join(str(line + 1) for line in ours)
        raise Refused(
            Reason.BAD_KEY,
            f"lines {numbers} of {source} have this key, and sshd takes the first one only: leave "
            f"that one, then run this again",
        )
    program, granted = allowed
    wanted = granted if granted in (None, volume) else None
    command = program + ("" if wanted is None else f" {wanted}")
    restricted = any(option.lower() == "restrict" for option in options)
    if restricted and wanted == granted:
        return text, Change.UNCHANGED
    ours_too = ("command=", "restrict")
    others = [option for option in options if not option.lower().startswith(ours_too)]
    new = ",".join(["restrict", *others, f'command="{command}"']) + f" {key}"
    lines[number] = new.encode() + b"\n"
    return b"".join(lines), Change.UPDATED


def _is_of(line: bytes, key: PublicKey) -> bool:
    words = fields_of(line.decode("utf-8", "replace").strip())
    return not line.lstrip().startswith(b"#") and key.blob in words


def _options_before(line: str, key: PublicKey) -> list[str] | None:
    """Returns the options of a line with this key; None for what can't be told apart."""
    rest, options = line.strip(), []
    while not rest.startswith(f"{key.kind} "):
        match = _OPTION.match(rest)
        if match is None:
            return None
        options.append(match.group())
        rest = rest[match.end() :]
        if rest.startswith(","):
            rest = rest[1:]
        elif not rest.startswith((" ", "\t")):
            return None
        rest = rest.lstrip()
    return options


def _allowed(options: Sequence[str]) -> tuple[str, str | None] | None:
    """(program, volume) when the options allow `standfast receive` and nothing else, else None."""
    commands = [option for option in options if option.lower().startswith("command=")]
    others = [option for option in options if option not in commands]
    if len(commands) != 1 or not all(map(_NARROWING.match, others)):
        return None
    match = _RECEIVE.match(commands[0].partition("=")[2].strip('"'))
    return None if match is None else (match["program"], match["volume"])


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise StandfastError(
            f"there is no user {user} here (replication.ssh_user): create it, or correct that"
        ) from None


@contextlib.contextmanager
def _directory(path: Path, owner: _Owner) -> Iterator[int]:
    """Yields the directory as a descriptor, so that nobody exchanges it under our hands."""
    made = not os.path.lexists(path)
    if made:
        path.mkdir(mode=0o700)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unsafe(path, f"can't be used ({error.strerror}); a symlink isn't followed") from None
    try:
        _check_owned(path, os.fstat(descriptor), owner)
        if made:
            os.fchown(descriptor, owner.uid, owner.gid)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(directory: int, path: Path, owner: _Owner) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path.name, flags, dir_fd=directory)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _unsafe(
            path, f"can't be used ({error.strerror}); a symlink means that something else writes it"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise _unsafe(path, f"is no file of at most {MOST_BYTES} bytes")
        _check_owned(path, status, owner)
        return file.read(MOST_BYTES)


def _check_owned(path: Path, status: os.stat_result, owner: _Owner) -> None:
    if status.st_uid not in (0, owner.uid):
        raise _unsafe(path, f"belongs to uid {status.st_uid}, not to {owner.name}")
    if status.st_mode & 0o022:
        raise _unsafe(path, f"can be written by others (mode {status.st_mode & 0o7777:04o})")


def _unsafe(path: Path, what: str) -> Refused:
    return Refused(
        Reason.BAD_KEY,
        f"{path} {what}: sshd doesn't trust it, or another tool keeps it. Correct that, or put "
        f"the line there yourself (NixOS: nfsServicesStandby.replicationKeys)",
    )


def _replace(directory: int, name: str, content: bytes, owner: _Owner) -> None:
    temporary = f".{name}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    with os.fdopen(descriptor, "wb") as file:
        os.fchown(descriptor, owner.uid, owner.gid)
        os.fchmod(descriptor, 0o600)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)
