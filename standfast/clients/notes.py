"""What a client writes down in this boot, below /run: what it mounted, and what it let go of.

`mounted.json` is written after the mount has answered and its users were seen to; a file that
can't be understood counts as none, as the mount itself tells what matters.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from standfast.clients.observation import Note
from standfast.errors import StandfastError
from standfast.system.files import read_json, write_atomically
from standfast.system.mountinfo import Mount

log = logging.getLogger(__name__)

MOUNTED = "mounted.json"
LET_GO = "let-go.json"
# Mounts let go of that are remembered; each may have users that hang for ever.
MOST = 64


def load(run_dir: Path) -> Note | None:
    try:
        doc = read_json(run_dir / MOUNTED)
        if doc is None:
            return None
        note = Note(**{name: doc[name] for name in Note.__dataclass_fields__})
    except (StandfastError, KeyError, TypeError) as error:
        log.warning("%s is of no use (%s) and counts as not there", run_dir / MOUNTED, error)
        return None
    texts = (note.kind, note.address, note.device, note.fsid or "")
    if not all(isinstance(text, str) for text in texts) or type(note.epoch) is not int:
        log.warning("%s holds values of wrong types and counts as not there", run_dir / MOUNTED)
        return None
    return note


def save(run_dir: Path, note: Note) -> None:
    write_atomically(run_dir / MOUNTED, json.dumps({"v": 1, **asdict(note)}))


def note_let_go(run_dir: Path, mounts: Iterable[Mount]) -> None:
    """These are being taken away, to be replaced: whatever is cut off now, it is gone on with."""
    gone = list(mounts)
    if not gone:
        return
    note = load(run_dir)
    if note is None:
        one = gone[-1]
        note = Note("nfs", one.address or "", None, 0, one.id, one.device)
    save(run_dir, replace(note, let_go=True))
    ids = [*let_go(run_dir), *(one.id for one in gone)]
    write_atomically(run_dir / LET_GO, json.dumps({"v": 1, "ids": ids[-MOST:]}))


def let_go(run_dir: Path) -> tuple[int, ...]:
    """Numbers of the mounts that were let go of in this boot."""
    try:
        ids = (read_json(run_dir / LET_GO) or {}).get("ids", [])
    except StandfastError:
        return ()
    return tuple(one for one in ids if type(one) is int) if isinstance(ids, list) else ()
