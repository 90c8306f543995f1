"""What a client writes down in this boot, below /run: what it mounted, and what it let go of.

`mounted.json` is written after the mount has answered and its users were seen to; a file that
can't be understood counts as none, as the mount itself tells what matters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from standfast.clients.observation import Note
from standfast.errors import StandfastError
from standfast.system.files import read_struct, write_struct
from standfast.system.mountinfo import Mount

log = logging.getLogger(__name__)

MOUNTED = "mounted.json"
LET_GO = "let-go.json"
# Mounts let go of that are remembered; each may have users that hang for ever.
MOST = 64


class LetGo(Struct, frozen=True):
    """Numbers of the mounts that were let go of in this boot."""

    ids: tuple[int, ...] = ()


def load(run_dir: Path) -> Note | None:
    """Returns what was mounted last; None when that is not known."""
    try:
        return read_struct(run_dir / MOUNTED, Note)
    except StandfastError as error:
        log.warning("%s, and it counts as not there", error)
        return None


def save(run_dir: Path, note: Note) -> None:
    write_struct(run_dir / MOUNTED, note)


def note_let_go(run_dir: Path, mounts: Iterable[Mount]) -> None:
    """These are being taken away, to be replaced: whatever is cut off now, it is gone on with."""
    gone = list(mounts)
    if not gone:
        return
    last = gone[-1]
    note = load(run_dir) or Note("nfs", last.address or "", None, 0, last.id, last.device)
    save(run_dir, replace(note, let_go=True))
    ids = (*let_go(run_dir), *(mount.id for mount in gone))
    write_struct(run_dir / LET_GO, LetGo(ids[-MOST:]))


def let_go(run_dir: Path) -> tuple[int, ...]:
    """Numbers of the mounts that were let go of in this boot; none when the file is unusable."""
    try:
        return (read_struct(run_dir / LET_GO, LetGo) or LetGo()).ids
    except StandfastError:
        return ()
