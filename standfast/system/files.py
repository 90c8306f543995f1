"""Small files of our own: replaced as a whole, read with an error that says what to do.

Invariants: a reader sees the old content or the new one, never a part; also after a power cut where
the writer asked for that. A disk that is full keeps the old content, and what the way back needs is
written all the same (`reserved`), into room that was taken while there was some.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct, ValidationError, convert, to_builtins

from standfast.errors import AS_ROOT, StandfastError

T = TypeVar("T", bound=Struct)

RESERVE = ".reserve"
"""In a directory: files that stand for the room of those that are replaced there."""
RESERVE_FILES = 16
"""A failover and its undoing write less than ten."""
RESERVE_BYTES = 32 * 1024
"""Of each at least: more where that is less than twice the largest file that it stands for."""
MOST_RESERVE_BYTES = 1024 * 1024
NEW = os.O_CREAT | os.O_EXCL
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(
    path: Path, text: str, *, durable: bool = False, reserved: bool = False, mode: int = 0o644
) -> None:
    """Replaces `path`, following no link; with `durable` it is on the disk when this returns.

    An OSError names the file, and leaves it as it was. With `reserved` a full disk is none as long
    as the directory's reserve lasts.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        temporary = beside(path)
        try:
            _write(temporary, text, NEW, durable=durable, mode=mode)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if not reserved or error.errno not in FULL:
                raise
            _write_into_reserve(path, temporary, text, mode)
        if durable:
            _sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def beside(path: Path) -> Path:
    """Returns a name in its directory that nobody could have taken beforehand, of those that may
    write there (the exporter's text file lies in another user's)."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def write_new(path: Path, text: str) -> None:
    """Makes a file that isn't there; FileExistsError, for a link that leads nowhere as well."""
    _write(path, text, NEW, durable=False, mode=0o644)


def _write(path: Path, text: str, flags: int, *, durable: bool, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream:
        if not flags & os.O_CREAT:
            os.fchmod(descriptor, mode)
        stream.write(text)
        stream.flush()
        stream.truncate()
        if durable:
            os.fsync(descriptor)


def _write_into_reserve(path: Path, temporary: Path, text: str, mode: int) -> None:
    """Writes over a file of the reserve and renames it: neither takes room that others could have
    taken meanwhile, as would room that was let go of."""
    # The smallest that has the room, else the largest.
    sizes = {spare: _size(spare) for spare in _spares(path.parent)}
    large = [spare for spare, size in sizes.items() if size >= len(text)]
    fit = sorted(large, key=sizes.__getitem__)
    for spare in [*fit, *sorted(sizes.keys() - fit, key=sizes.__getitem__, reverse=True)]:
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            spare.rename(temporary)
            break
    else:
        raise OSError(errno.ENOSPC, "No space left on device, and the reserve is used up")
    try:
        _write(temporary, text, 0, durable=True, mode=mode)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _spares(directory: Path) -> list[Path]:
    try:
        return [spare for spare in (directory / RESERVE).iterdir() if spare.name.isdigit()]
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def keep_reserve(directory: Path) -> None:
    """Makes sure that there is room for the files that `directory` has to be able to replace;
    OSError when there isn't.

    Cheap where it is there; called now and then, it makes up for what was used, and for files that
    have grown.
    """
    pieces = 1 + 2 * _largest(directory) // RESERVE_BYTES
    wanted = min(pieces * RESERVE_BYTES, MOST_RESERVE_BYTES)
    there = {spare.name for spare in _spares(directory) if spare.stat().st_size >= wanted}
    missing = [name for name in map(str, range(RESERVE_FILES)) if name not in there]
    reserve = directory / RESERVE
    if missing:
        reserve.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in missing:
        half = reserve / f".{name}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(half, flags, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, wanted)
            finally:
                os.close(descriptor)
            half.rename(reserve / name)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(reserve)) from error


def _largest(directory: Path) -> int:
    """Bytes of the largest of our own files in it."""
    sizes = []
    for path in directory.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes, default=0)


def _sync(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_json(path: Path) -> Mapping[str, Any] | None:
    """Returns the object in `path`, None when there is no such file; StandfastError when it is
    unusable."""
    try:
        doc = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise StandfastError(f"{path} can't be read: {error.strerror}. {AS_ROOT}") from error
    except (OSError, ValueError) as error:
        raise StandfastError(
            f"{path} can't be read: {error}. Look at it; delete it if it is of no use"
        ) from error
    if not isinstance(doc, dict):
        raise StandfastError(
            f"{path} holds no JSON object. Look at it; delete it if it is of no use"
        )
    return doc


def write_struct(
    path: Path, struct: Struct, *, durable: bool = False, reserved: bool = False
) -> None:
    """Replaces `path` by the fields of `struct`; see `write_atomically`."""
    # By json: to msgspec a text with an undecodable byte, an operator's reason say, is no text.
    text = json.dumps({"v": 1, **to_builtins(struct)})
    write_atomically(path, text, durable=durable, reserved=reserved)


def read_struct(path: Path, kind: type[T]) -> T | None:
    """Returns the struct in `path`, None when there is no such file; StandfastError for anything
    else."""
    doc = read_json(path)
    if doc is None:
        return None
    try:
        return convert(doc, kind)
    except ValidationError as error:
        raise StandfastError(
            f"{path} holds something else ({error}). Look at it; delete it if it is of no use"
        ) from error


def read_foreign_text(path: Path) -> str:
    """Returns a text that others wrote: the names in it may be any bytes, and come back from
    `str(Path)` in the same form. Nothing of it is lost, carriage returns neither; who shows it
    cleans it (`standfast.text.clean`)."""
    return os.fsdecode(path.read_bytes())
