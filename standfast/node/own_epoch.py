"""What this node durably knows of its own time as primary: `own-epoch.json` in the state directory.

It is written before the step that it describes, so that whoever goes on after a cut knows what may
have happened. A node without it is a plain standby.
"""

from __future__ import annotations

import contextlib
import json
from enum import StrEnum
from pathlib import Path

from msgspec import Struct, ValidationError, convert, to_builtins
from msgspec.structs import replace

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.system.clock import Deadline
from standfast.system.files import read_json, write_atomically
from standfast.system.locks import exclusive


class Stage(StrEnum):
    """How far the node is; each is written before its work begins."""

    CLEARING = "clearing"
    """Whatever lies at the live path is being set aside."""
    CREATING = "creating"
    """The live path is free; what appears there is made from `base`."""
    READY = "ready"
    """The live subvolume is this epoch's; it is being exported, or served."""
    DRAINING = "draining"
    """An orderly demotion is under way."""
    RELEASED = "released"
    """`clean` was or is being sent; the tree equals the final snapshot."""


_FILE = "own-epoch.json"
_FORMER = "reign.json"
"""Its name in an older version: read where the new one isn't there, and gone when that is."""
_LATER = ("file_system", "aside", "final_id")
"""Fields that a file of an older version doesn't have."""


def snapshot_lock(config: Config, deadline: Deadline) -> contextlib.AbstractContextManager[object]:
    """Returns the lock held while a snapshot of the live subvolume is taken: the stage doesn't
    change meanwhile."""
    return exclusive(config.run_dir / "snapshot.lock", "another snapshot", deadline)


class OwnEpoch(Struct, frozen=True):
    """One epoch of this node's."""

    epoch: int
    stage: Stage
    fsid: str
    """UUID of the export: new for each new tree, so that an old handle fails cleanly."""
    base: str | None
    """Name of the snapshot it started from; None for a tree that was there before Standfast."""
    in_place: bool
    """The node goes on with its own live tree (it rebooted and nobody took over)."""
    displaced_epoch: int = 0
    """Epoch of the tree that lay at the live path before; 0: unknown."""
    base_content_id: str | None = None
    live_uuid: str | None = None
    final: str | None = None
    """Name of the final snapshot of an orderly demotion."""
    file_system: str | None = None
    """UUID of the file system that has the tree; None: not known yet, an older version began it."""
    aside: str | None = None
    """Name under which the tree is, or was just going to be, set aside."""
    final_id: str | None = None
    """Its content id; None: an older version noted only the name."""

    def at(self, stage: Stage) -> OwnEpoch:
        return replace(self, stage=stage)

    def save(self, state_dir: Path) -> None:
        text = json.dumps({"v": 1, **to_builtins(self)})
        write_atomically(state_dir / _FILE, text, durable=True, reserved=True)
        (state_dir / _FORMER).unlink(missing_ok=True)

    @classmethod
    def load(cls, state_dir: Path) -> OwnEpoch | None:
        """Returns the record; None when this node is no primary, StandfastError when the file is
        unusable."""
        doc = read_json(state_dir / _FILE)
        if doc is None:
            doc = read_json(state_dir / _FORMER)
        if doc is None:
            return None
        missing = [name for name in cls.__struct_fields__ if name not in {*doc, *_LATER}]
        try:
            if missing:
                raise ValidationError(f"no {missing[0]}")
            return convert(doc, cls)
        except ValidationError as error:
            raise StandfastError(_damaged(state_dir, str(error))) from error

    @staticmethod
    def forget(state_dir: Path) -> None:
        """Deletes the record: the epoch is over and put away, and the node is a plain standby."""
        for name in (_FORMER, _FILE):
            (state_dir / name).unlink(missing_ok=True)

    @staticmethod
    def paths(state_dir: Path) -> tuple[Path, Path]:
        """Returns where the record may be, for what is told of it without a look into it."""
        return state_dir / _FILE, state_dir / _FORMER


def _damaged(state_dir: Path, what: str) -> str:
    return (
        f"{state_dir / _FILE} is damaged ({what}). It says what this node's data is: restore "
        f"it. If it can't be, delete it first, and then, where this node holds the lease, run "
        f"`standfast demote`: the live subvolume is kept aside as diverged"
    )


class Intent(Struct, frozen=True):
    """What a promotion will start from: written before the claim, since the lease may be acquired
    by a process that is cut off before it can say so."""

    epoch: int
    base: str | None
    base_content_id: str | None
    in_place: bool
    begun: bool | None = False
    """The epoch has, or may have, its tree: noted before that is made; None: an older version's."""
    put_away: bool = False
    """The epoch is over and its tree set aside: it is never begun again."""

    def save(self, state_dir: Path) -> None:
        text = json.dumps({"v": 1, **to_builtins(self)})
        write_atomically(state_dir / "intent.json", text, durable=True, reserved=True)

    @classmethod
    def load(cls, state_dir: Path, epoch: int) -> Intent | None:
        """Returns the intent for `epoch`; None when there is none."""
        doc = read_json(state_dir / "intent.json")
        if doc is None or doc.get("epoch") != epoch:
            return None
        base, content_id = doc.get("base"), doc.get("base_content_id")
        begun = doc.get("begun")
        return cls(
            epoch,
            base if isinstance(base, str) else None,
            content_id if isinstance(content_id, str) else None,
            doc.get("in_place") is True,
            begun if isinstance(begun, bool) else None,
            doc.get("put_away") is True,
        )
