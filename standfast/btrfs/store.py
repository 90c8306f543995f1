"""The volume on btrfs.

Invariants: a received subvolume's flags are never changed (that would wipe its received UUID and
break the chain of increments): promotion makes a writable snapshot instead. Nothing is
acknowledged before `btrfs filesystem sync`: `btrfs receive` with status 0 is not on disk yet.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree

from standfast.btrfs import info as btrfs_info
from standfast.btrfs import inode_flags as btrfs_flags
from standfast.btrfs import quota as btrfs_quota
from standfast.btrfs import versions as btrfs_versions
from standfast.btrfs.names_and_places import STAGING, Store, TreeInfo
from standfast.btrfs.place import file_system
from standfast.btrfs.space import read_space
from standfast.btrfs.stream import COMPRESSED_DATA, size_from_outline
from standfast.config.model import Paths
from standfast.errors import CommandFailed, Refused, StandfastError, TimedOut
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot, Writer
from standfast.node.space import Space
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from standfast.system.lines import lines_of
from standfast.system.run import Completed, run
from standfast.system.streams import pipeline

log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 300.0
"""For one btrfs command; a sync with much unwritten data takes the longest."""
ESTIMATE_TIMEOUT_S = 10.0
"""Half a second for 20,000 files; no number is worth a longer wait."""
FLAGS_TIMEOUT_S = 20.0
"""Some four million inodes: the sender waits for the parent no longer than a minute."""
_PIECE_BYTES = 64 * 1024
_ANCHOR = ".parent-"
"""Of a stand-in's name: what begins with a dot is never taken for what a stream brought."""
_LISTED_PATH = re.compile(r" path (?P<path>.*)$")
_SHOWN_RECEIVED = re.compile(r"Received UUID:[ \t]{1,40}(?P<uuid>[0-9a-f-]{36})$", re.M)


class BtrfsStore(Store):
    """Subvolumes and snapshots; needs root for everything that changes them."""

    kind = "btrfs"
    _kind = "btrfs subvolume"

    def __init__(
        self,
        paths: Paths,
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> None:
        super().__init__(paths)
        self._timeout_s = timeout_s

    def send_argv(
        self, snapshot: Snapshot, parent: Snapshot | None, *, compressed_data: bool = False
    ) -> list[str]:
        as_it_is = ["--proto", "2", "--compressed-data"]
        return _send(snapshot, parent, *(as_it_is if compressed_data and self.abilities() else []))

    def abilities(self) -> Sequence[str]:
        return (COMPRESSED_DATA,) if btrfs_versions.here_moves_compressed_data() else ()

    def estimate(self, snapshot: Snapshot, parent: Snapshot | None) -> int | None:
        """Returns the bytes of the plain stream, from one without data; compressed extents count in
        full."""
        outline, sink = os.pipe()
        with ThreadPoolExecutor(1) as reader:
            size = reader.submit(_size_of_outline, outline)
            try:
                pipeline(
                    [_send(snapshot, parent, "--no-data")],
                    deadline=Deadline.after(ESTIMATE_TIMEOUT_S),
                    op="estimate",
                    stdout=sink,
                )
            except (CommandFailed, TimedOut) as error:
                log.debug("how large %s is in a stream is unknown: %s", snapshot.name, error)
                return None
            finally:
                os.close(sink)  # the reader's end of input
            try:
                return size.result()
            except ValueError as error:
                log.debug("how large %s is in a stream is unknown: %s", snapshot.name, error)
                return None

    def file_system(self) -> str:
        place = self._paths.live.parent
        uuid = file_system(place)
        if uuid is None:
            raise StandfastError(
                f"{place} is on no btrfs: the volume's disk is not mounted there. Mount it; "
                f"nothing was touched"
            )
        return uuid

    def obstacle(self) -> str | None:
        if (why := super().obstacle()) is not None:
            return why
        live = self._paths.live
        for place in (live, live.parent):
            if os.path.lexists(place) and btrfs_flags.is_pinned(place):
                return (
                    f"{place} is immutable or append-only, so that {live} can't be put away: "
                    f"chattr -i -a {place}"
                )
        return None

    def space(self) -> Space:
        return read_space(self._place()) or super().space()

    def writers(self, deadline: Deadline) -> Sequence[Writer]:
        from standfast.btrfs.writers import writers_of  # nothing that a cycle or the guard needs

        return writers_of(self._paths.live, self._paths.run, deadline)

    def prepare_parent(self, content_id: str) -> None:
        """Lets what this node itself wrote stand in as received while something is built on it.

        btrfs-progs before 6.10.1 look for the source of a reflink only among received
        subvolumes ("clone: did not find source subvol"), so every increment that comes back to
        the node its parent comes from would fail once it holds `cp big big.bak && rm big`.
        What no stream carries (chattr +i, +a and +C, a limit of btrfs' quota) the other node
        doesn't have: the increment was made without it, and would fail at it here.
        """
        known = [snapshot for snapshot in self.snapshots() if snapshot.content_id == content_id]
        if not known:
            raise Refused(Reason.UNKNOWN_PARENT, f"no snapshot {content_id} is here to build on")
        if any(snapshot.received for snapshot in known):
            return
        anchor = self._paths.standby / STAGING / f"{_ANCHOR}{content_id}"
        if not self._snapshot(known[0].path, anchor, read_only=False):
            raise Refused(Reason.BUSY, f"{anchor} is in use: another receive is under way")
        btrfs_quota.lift_limit(anchor)
        kept = btrfs_flags.take_off(anchor, Deadline.after(FLAGS_TIMEOUT_S))
        if kept:
            log.info("%s has %d files with data and without checksums (+C)", known[0].name, kept)
        btrfs_info.stand_in(anchor, content_id, known[0].path)

    def receive_argv(self, staging: Path) -> list[str]:
        # A stream cut anywhere lacks its end mark: status 1 (tried at every command's end). Not -e:
        # btrfs would leave at the end mark, and closing the stream early counts as a failure.
        # -C: btrfs believes every path in a stream, `../..` and links to elsewhere, too. It finds
        # parents outside all the same, as it opens the file system before its chroot.
        return ["btrfs", "-q", "receive", "-C", str(staging)]

    def within(self, parent_content_id: str | None) -> Sequence[Path]:
        # A stream may reflink from any received subvolume of the file system, another volume's
        # too, and by `..` and links from anything there.
        known = [own for own in self.snapshots() if own.content_id == parent_content_id]
        return [self._paths.standby, *(own.path for own in known)]

    def verify_staged(
        self, name: SnapshotName, content_id: str, parent_content_id: str | None = None
    ) -> None:
        super().verify_staged(name, content_id)
        info = self._info(self._paths.standby / STAGING / str(name))
        if info is None or not self._is_built_on(info, parent_content_id):
            raise Refused(
                Reason.INCOMPLETE,
                f"{name} was built on another snapshot than announced "
                f"({parent_content_id or 'none'}): not published",
            )

    def _is_built_on(self, info: TreeInfo, content_id: str | None) -> bool:
        if info.parent_uuid is None or content_id is None:
            return info.parent_uuid is content_id
        staging = self._paths.standby / STAGING
        anchor = staging / f"{_ANCHOR}{content_id}"
        here = [own.path for own in self.snapshots() if own.content_id == content_id]
        parents = [self._info(path) for path in (anchor, *here)]
        return info.parent_uuid in {parent.uuid for parent in parents if parent is not None} or (
            self._content_shown(info.parent_uuid) == content_id
        )

    def _content_shown(self, uuid: str) -> str | None:
        """Of a subvolume anywhere: somebody may have put a copy of a parent elsewhere."""
        place = str(self._paths.standby)
        with contextlib.suppress(CommandFailed):
            shown = self._btrfs("show-parent", "subvolume", "show", "-u", uuid, place).stdout
            match = _SHOWN_RECEIVED.search(shown)
            return None if match is None else match["uuid"]
        return None

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

    def _create_place(self, path: Path) -> None:
        # A subvolume of its own, so that no snapshot of what lies above holds what is received.
        # Not its parents: a file system that isn't mounted is not to be made up.
        self._btrfs("create-place", "subvolume", "create", str(path))
        path.chmod(0o700)

    def _sync(self, path: Path) -> None:
        self._btrfs("sync", "filesystem", "sync", str(path))

    def _set_read_only(self, path: Path, read_only: bool) -> None:
        value = "true" if read_only else "false"
        # Without -f btrfs itself refuses to make a received subvolume writable.
        self._btrfs("set-read-only", "property", "set", "-t", "subvol", str(path), "ro", value)

    def _delete(self, paths: Sequence[Path]) -> None:
        subvolumes = [path for path in paths if self._info(path) is not None]
        if subvolumes:
            # Not -c, which waits for a commit: what a power cut brings back is deleted again.
            self._btrfs("delete", "subvolume", "delete", *map(str, subvolumes))
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


def _send(snapshot: Snapshot, parent: Snapshot | None, *options: str) -> list[str]:
    # Always -p: -c alone fails after a promotion.
    base = ["-p", str(parent.path)] if parent is not None else []
    return ["btrfs", "-q", "send", *options, *base, str(snapshot.path)]


def _size_of_outline(descriptor: int) -> int:
    with open(descriptor, "rb") as stream:
        size = size_from_outline(stream)
        while stream.read(_PIECE_BYTES):  # closed before its end, the stream would have failed
            pass
    return size


def parse_listed_paths(text: str) -> list[str]:
    """Returns the paths in what `btrfs subvolume list` prints, relative to the file system's
    top."""
    matches = (_LISTED_PATH.search(line) for line in lines_of(text))
    return [match["path"] for match in matches if match is not None]
