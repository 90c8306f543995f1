"""Whether a file that root acts by is root's: what it lies in decides as much as the file does.

As sshd's StrictModes, up to the root directory and over each symbolic link on the way: whoever may
write one of these may replace what is below. In a directory with the sticky bit (/tmp, /nix/store)
others can't, where what is in it is not theirs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from standfast.config.fields import TLS_FILES
from standfast.config.model import Config
from standfast.config.problems import Problem, shown

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40
"""As the kernel has it."""


def untrusted(path: Path, owners: Collection[int]) -> str | None:
    """Says, with the way out, who else than `owners` (uids) could have written the file or could
    replace it; None: nobody. OSError where it can't be looked at."""
    for place in _on_the_way_to(path):
        status = place.lstat()
        if status.st_uid not in owners:
            return f"{place} belongs to uid {status.st_uid}, not to root: chown -h root {place}"
        if stat.S_ISLNK(status.st_mode) or not status.st_mode & _OTHERS_MAY_WRITE:
            continue
        if not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
            return f"{place} can be written by others than root: chmod go-w {place}"
    return None


def _on_the_way_to(path: Path) -> Iterator[Path]:
    """Yields each directory and symbolic link that leads to the file, and the file."""
    here, links = Path("/"), 0
    yield here
    left = list(reversed(path.absolute().parts[1:]))
    while left:
        part = left.pop()
        if part == "..":
            here = here.parent
            continue
        at = here / part
        yield at
        if not at.is_symlink():
            here = at
            continue
        links += 1
        target = at.readlink()
        if links > _MOST_LINKS:
            raise OSError(f"{path}: too many symbolic links")
        here = Path("/") if target.is_absolute() else here
        left += reversed([part for part in target.parts if part != "/"])


def mistrusted(config: Config) -> Iterator[Problem]:
    """Yields what root must not act by: the file itself, and what it names that is a secret or a
    program. Nothing where it isn't root who would: a user's own files are that user's business."""
    if os.geteuid() != 0:
        return
    for key, path in _named(config):
        try:
            wrong = untrusted(path, _owners(key, path))
        except OSError:
            continue  # whoever needs it says what is wrong with it
        if wrong is not None:
            rule, _, way_out = wrong.partition(": ")
            value = "" if not key else shown(path)
            yield Problem(key, value, f"{rule}: root would act by what others write", way_out)


def _owners(key: str, path: Path) -> Collection[int]:
    """A token, a certificate or its key may be that of the agent that is asked with it, whose user
    has it: who is that user passes for the agent anyway."""
    return (0, path.stat().st_uid) if key.partition(".")[0] in ("consul", "nomad") else (0,)


def _named(config: Config) -> Iterator[tuple[str, Path]]:
    yield "", config.source
    for table, access in (("consul", config.consul), ("nomad", config.nomad)):
        for key in ("token_file", *TLS_FILES):
            if (path := getattr(access, key)) is not None:
                yield f"{table}.{key}", path
    command = config.replication.command
    if config.node in config.nodes and not command:
        yield "replication.ssh_key", config.replication.ssh_key
    if command and command[0].startswith("/"):
        yield "replication.command", Path(command[0])
