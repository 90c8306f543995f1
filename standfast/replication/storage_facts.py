"""What a node says of its storage: facts, found out before anything starts, for `preflight`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args

from msgspec import Meta, Struct, convert, to_builtins

from standfast.btrfs import info as btrfs_info
from standfast.btrfs import inode_flags, quota
from standfast.btrfs import place as btrfs_place
from standfast.btrfs import versions as btrfs_versions
from standfast.btrfs.stream import COMPRESSED_DATA
from standfast.config.model import Config
from standfast.errors import Refused
from standfast.node.space import Space
from standfast.reasons import Reason
from standfast.replication.ports import ReplicaStore
from standfast.replication.published import clock_set_ago
from standfast.replication.wire import Whole
from standfast.system.clock import Deadline, instant, utc_now
from standfast.system.files import read_foreign_text
from standfast.text import check_printable, clean

ZSTD = "zstd"
Role = Literal["live", "snapshots", "standby"]
ROLES: tuple[Role, ...] = get_args(Role)
_MOST = 200
_EXAMPLES = 5
_FLAGS_S = 3.0
"""Some 600,000 inodes; whoever asks waits for it."""
Text = Annotated[str, Meta(max_length=4096)]
"""Printable, too; may be empty."""
Group = Annotated[str, Meta(pattern=r"^[0-9]{1,5}/[0-9]{1,15}\Z")]
Texts = Annotated[tuple[Text, ...], Meta(max_length=_MOST)]


class Paths(TypedDict):
    """The paths of the configuration."""

    live: Text
    snapshots: Text
    standby: Text


class FileSystems(TypedDict, total=False):
    """UUID of the btrfs of each path, None: something else; none at all for another store."""

    live: Text | None
    snapshots: Text | None
    standby: Text | None


class Facts(Struct, frozen=True):
    """One node's storage, as it is now."""

    node: Text
    store: Text
    utc_s: Annotated[float, Meta(ge=0, lt=2**63)]
    """This node's wall clock."""
    free_bytes: Whole
    wants: Texts
    """Of ZSTD and COMPRESSED_DATA those that the configuration asks for."""
    has: Texts
    """... and those that work here."""
    kernel: Text
    progs: Text | None
    """Version of btrfs-progs, None when there are none."""
    paths: Paths
    file_systems: FileSystems
    nested: Texts
    """Subvolumes inside the live one, relative to the file system's top."""
    live_received: Text | None
    """The received UUID of the live subvolume; one that is written to must have none."""
    partial_mount: Text | None
    """A mount that shows a mere directory of a subvolume, and in it the standby directory."""
    copies: Texts
    """Devices with one and the same file system."""
    space: Space | None = None
    """None: the other side is of a version that doesn't tell."""
    flags: Texts = ()
    """Some files of the live subvolume with flags that no stream carries: `+i DIRECTORY/FILE`."""
    limit_bytes: Whole | None = None
    """What btrfs' quota limits the live subvolume to."""
    group_limits: Annotated[dict[Group, Whole], Meta(max_length=_MOST)] = {}
    """... and each group of quota that it is in; an older version's node doesn't tell."""
    clock_set_s: Annotated[float, Meta(ge=0, lt=2**63)] | None = None
    """See `published.clock_set_ago`; an older version's node doesn't tell."""

    def document(self) -> dict[str, Any]:
        facts: dict[str, Any] = to_builtins(self)
        return facts

    @classmethod
    def parse(cls, doc: Mapping[str, Any]) -> Facts:
        """Returns the facts in a document; Refused (protocol) when it is none."""
        try:
            facts = convert(doc, cls)
            for name in facts.__struct_fields__:
                check_printable(getattr(facts, name), name)
            if doc["file_systems"] and len(facts.file_systems) < len(ROLES):
                raise ValueError("Object lacks a role - at `$.file_systems`")
        except ValueError as error:
            raise Refused(
                Reason.PROTOCOL, f"the other side's facts can't be understood: {error}"
            ) from error
        return facts


def facts_here(config: Config, store: ReplicaStore) -> Facts:
    """Returns this node's facts; StandfastError or OSError when something can't be found out. It
    needs root on btrfs."""
    on_btrfs = store.kind == "btrfs"
    paths = config.paths
    options = config.replication
    wants = [ZSTD] if options.compression == ZSTD else []
    wants += [COMPRESSED_DATA] if options.compressed_data else []
    has = [ZSTD] if shutil.which("zstd") else []
    systems: FileSystems = {}
    for role in ROLES if on_btrfs else ():
        systems[role] = btrfs_place.file_system(getattr(paths, role))
    live = btrfs_info.read(paths.live) if on_btrfs else None
    limits = quota.group_limits(paths.live) if live is not None else {}
    ours = systems.get("standby")
    progs = btrfs_versions.progs() if on_btrfs else None
    return Facts(
        node=config.node,
        store=store.kind,
        utc_s=utc_now(),
        clock_set_s=clock_set_ago(config, instant()),
        free_bytes=store.free_bytes(),
        wants=tuple(wants),
        has=(*has, *store.abilities()),
        kernel=btrfs_versions.kernel(),
        progs=progs,
        paths=Paths(
            live=str(paths.live), snapshots=str(paths.snapshots), standby=str(paths.standby)
        ),
        file_systems=systems,
        # Without the program it can't be known; that it is missing is the finding then.
        nested=tuple(map(clean, store.nested()))[:_MOST] if live and progs else (),
        live_received=live.received_uuid if live is not None and not live.read_only else None,
        partial_mount=_partial_mount(paths.standby) if ours is not None else None,
        copies=btrfs_place.copies_of(ours)[:_MOST] if ours is not None else (),
        space=store.space(),
        flags=_flags(paths.live) if live is not None else (),
        limit_bytes=quota.limit_of(paths.live) if live is not None else None,
        group_limits=dict(islice(limits.items(), _MOST)),
    )


def _flags(live: Path) -> tuple[str, ...]:
    deadline = Deadline.after(_FLAGS_S)
    return tuple(map(clean, inode_flags.examples(live, _EXAMPLES, deadline)))


def _partial_mount(standby: Path) -> str | None:
    mountinfo = read_foreign_text(Path("/proc/self/mountinfo"))
    point = btrfs_place.mount_point_of(standby, mountinfo)
    return None if btrfs_place.shows_a_subvolume(point) else str(point)
