"""The volume in plain directories, for the demonstration and for tests without root.

The same rules as on btrfs: what a subvolume carries in its metadata lies in a sidecar file beside
the tree (`.NAME.meta.json`). The sidecar is written before the tree appears under its name, and a
tree without one counts for nothing. It survives the death of any process at any moment; it doesn't
survive a power cut (nothing is forced to disk), and a snapshot is not of one instant: what was
written before it began is in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from standfast.btrfs.names_and_places import Store, TreeInfo
from standfast.demo.commands import run_module
from standfast.node.ports import Snapshot
from standfast.system.files import write_atomically

_HALF_MADE = ".making-"


def sidecar(path: Path) -> Path:
    return path.with_name(f".{path.name}.meta.json")


def save_info(path: Path, info: TreeInfo) -> None:
    """Writes the sidecar of the tree at `path`."""
    doc = {
        "v": 1,
        "uuid": info.uuid,
        "received": info.received_uuid,
        "content_id": info.content_id,
        "complete": True,
        "read_only": info.read_only,
    }
    write_atomically(sidecar(path), json.dumps(doc))


def load_info(path: Path) -> TreeInfo | None:
    """None when there is no tree, no sidecar, or one that Standfast did not write."""
    try:
        doc: Any = json.loads(sidecar(path).read_text())
        if doc["complete"] is not True or not path.is_dir() or path.is_symlink():
            return None
        received = doc["received"]
        return TreeInfo(
            str(doc["uuid"]),
            None if received is None else str(received),
            bool(doc["read_only"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def initialise(live: Path) -> None:
    """Makes `live` a volume: what `btrfs subvolume create` does on btrfs."""
    live.mkdir(parents=True, exist_ok=True)
    if load_info(live) is None:
        save_info(live, TreeInfo(str(uuid.uuid4()), None, read_only=False))


class DirectoryStore(Store):
    """Trees of files with sidecars."""

    kind = "directory"
    _kind = "directory volume"

    def send_argv(
        self,
        snapshot: Snapshot,
        parent: Snapshot | None,
        *,
        compressed_data: bool = False,  # noqa: ARG002
    ) -> list[str]:
        """Always the whole tree; the parent is named all the same, and the receiver needs it."""
        named = [] if parent is None else [parent.content_id]
        return _stream("send", str(snapshot.path), snapshot.content_id, *named)

    def receive_argv(self, staging: Path) -> list[str]:
        return _stream("receive", str(staging))

    def within(self, parent_content_id: str | None) -> None:
        """None: its own program takes the stream in, and opens nothing that a stream names."""

    def _info(self, path: Path) -> TreeInfo | None:
        return load_info(path)

    def _snapshot(self, source: Path, target: Path, *, read_only: bool) -> bool:
        info = load_info(source)
        if info is None or os.path.lexists(target):
            return False
        # As on btrfs: only a read-only snapshot of a received tree is the received content.
        received = info.received_uuid if read_only else None
        half = target.with_name(f"{_HALF_MADE}{uuid.uuid4().hex}")
        try:
            copy_tree(source, half)
            save_info(target, TreeInfo(str(uuid.uuid4()), received, read_only))
            try:
                half.rename(target)
            except OSError:
                if os.path.lexists(target):
                    return False
                raise
        finally:
            shutil.rmtree(half, ignore_errors=True)
        return True

    def _create_place(self, path: Path) -> None:
        path.mkdir(parents=True, mode=0o700)

    def _sync(self, path: Path) -> None:
        """Nothing: see the module's text."""

    def _set_read_only(self, path: Path, read_only: bool) -> None:
        info = load_info(path)
        assert info is not None
        save_info(path, TreeInfo(info.uuid, info.received_uuid, read_only))

    def _delete(self, paths: Sequence[Path]) -> None:
        for path in paths:
            # The tree's name goes first: half a tree must not look like a whole one.
            sidecar(path).unlink(missing_ok=True)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _rename(self, source: Path, target: Path) -> None:
        info = load_info(source)
        if info is not None:
            save_info(target, info)
        source.rename(target)
        sidecar(source).unlink(missing_ok=True)

    def _nested(self, tree: Path) -> tuple[str, ...]:  # noqa: ARG002
        return ()


def copy_tree(source: Path, target: Path) -> None:
    """Copies a tree that others may be writing in: what vanishes on the way is left out."""
    try:
        shutil.copytree(source, target, symlinks=True, copy_function=_copy_file)
    except shutil.Error as error:
        failures = error.args[0]
        if any(os.path.lexists(name) for name, *_ in failures):
            raise


def _copy_file(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target, follow_symlinks=False)


def _stream(*arguments: str) -> list[str]:
    return run_module("standfast.demo.stand_ins.directory_stream", *arguments)
