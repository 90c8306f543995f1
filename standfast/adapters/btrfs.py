"""The volume on btrfs.

Invariants: a received subvolume's flags are never changed (that would wipe its received UUID and
break the chain of increments): promotion makes a writable snapshot instead. Nothing is
acknowledged before `btrfs filesystem sync`: `btrfs receive` with status 0 is not on disk yet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree

from standfast.act.ports import Snapshot
from standfast.adapters import btrfs_info
from standfast.adapters.store import Store, TreeInfo
from standfast.clock import Deadline, utc_now
from standfast.config.model import Paths
from standfast.errors import CommandFailed
from standfast.run import Completed, run

COMMAND_TIMEOUT_S = 300.0
"""For one btrfs command; a sync with much unwritten data takes the longest."""
_LISTED_PATH = re.compile(r" path (?P<path>.*)$")


class BtrfsStore(Store):
    """Subvolumes and snapshots; needs root for everything that changes them."""

    _kind = "btrfs subvolume"

    def __init__(
        self,
        paths: Paths,
        *,
        utc: Callable[[], float] = utc_now,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> None:
        super().__init__(paths, utc=utc)
        self._timeout_s = timeout_s

    def send_argv(
        self, snapshot: Snapshot, parent: Snapshot | None, *, compressed_data: bool = False
    ) -> list[str]:
        # Always -p: -c alone fails after a promotion.
        base = ["-p", str(parent.path)] if parent is not None else []
        return ["btrfs", "-q", "send", *base, str(snapshot.path)]

    def receive_argv(self, staging: Path) -> list[str]:
        # A stream cut anywhere lacks its end mark: status 1 (tried at every command's end). Not -e:
        # btrfs would leave at the end mark, and closing the stream early counts as a failure.
        return ["btrfs", "-q", "receive", str(staging)]

    def _btrfs(self, op: str, *arguments: str) -> Completed:
        return run(["btrfs", *arguments], deadline=Deadline.after(self._timeout_s), op=op)

    def _info(self, path: Path) -> TreeInfo | None:
        return btrfs_info.read(path)

    def _snapshot(self, source: Path, target: Path, *, read_only: bool) -> bool:
        # With an existing target btrfs would put the snapshot inside it.
        if os.path.lexists(target):
            return False
        flags = ["-r"] if read_only else []
        try:
            self._btrfs("snapshot", "subvolume", "snapshot", *flags, str(source), str(target))
        except CommandFailed:
            if read_only and os.path.lexists(target):  # another process was quicker
                return False
            raise
        return True

    def _sync(self, path: Path) -> None:
        self._btrfs("sync", "filesystem", "sync", str(path))

    def _set_read_only(self, path: Path, read_only: bool) -> None:
        value = "true" if read_only else "false"
        # Without -f btrfs itself refuses to make a received subvolume writable.
        self._btrfs("set-read-only", "property", "set", "-t", "subvol", str(path), "ro", value)

    def _delete(self, paths: Sequence[Path]) -> None:
        subvolumes = [path for path in paths if self._info(path) is not None]
        if subvolumes:
            self._btrfs("delete", "subvolume", "delete", "-c", *map(str, subvolumes))
        for path in set(paths) - set(subvolumes):
            if path.is_dir() and not path.is_symlink():
                rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _rename(self, source: Path, target: Path) -> None:
        source.rename(target)
        self._sync(target.parent)

    def _nested(self, tree: Path) -> list[str]:
        listed = self._btrfs("list-nested", "subvolume", "list", "-o", str(tree)).stdout
        return parse_listed_paths(listed)


def parse_listed_paths(text: str) -> list[str]:
    """The paths in what `btrfs subvolume list` prints, relative to the file system's top."""
    found = (_LISTED_PATH.search(line) for line in text.splitlines())
    return [match["path"] for match in found if match is not None]
