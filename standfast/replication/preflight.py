"""What could go wrong is looked for before anything starts: facts of a node, then pure checks.

Invariant: a problem says what was found, with its evidence, and what mends it; a grave one would
lose or mix up data, or make every cycle fail.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
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
from standfast.node.space import Space, shortages
from standfast.reasons import Reason
from standfast.replication.ports import ReplicaStore
from standfast.replication.published import clock_set_ago
from standfast.replication.receive_checks import RESERVE_BYTES
from standfast.replication.wire import Whole, check_printable
from standfast.system.clock import Deadline, instant, utc_now
from standfast.system.files import read_foreign_text
from standfast.text import clean, duration

ZSTD = "zstd"
Role = Literal["live", "snapshots", "standby"]
ROLES: tuple[Role, ...] = get_args(Role)
SKEW_WORTH_A_WORD_S = 1.0
SKEW_TOO_LARGE_S = 30.0
"""By so much ages would be told wrong, and data would be taken for too old."""
SET_WORTH_A_WORD_S = 86_400.0
"""A clock that was set longer ago than that has set everything right since."""
CLOCK_FIX = "find out what did: `ntpdate` in a timer, two time daemons, a virtual machine's pause"
ASKED_APART_S = 5.0
"""Two nodes' facts are not of one moment: so much of a difference says nothing."""
_MOST = 200
_EXAMPLES = 5
_FLAGS_S = 3.0
"""Some 600,000 inodes; whoever asks waits for it."""
Text = Annotated[str, Meta(max_length=4096)]
"""Printable, too; may be empty."""
Texts = Annotated[tuple[Text, ...], Meta(max_length=_MOST)]


@dataclass(frozen=True, slots=True)
class Problem:
    """What was found, and what mends it. `check` is one word; one that is not `grave` is only worth
    knowing."""

    check: str
    evidence: str
    fix: str
    grave: bool = True
    lasts: bool = False
    """It may be there for good reasons, and stay: nothing that a check has to fail for."""


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
    ours = systems.get("standby")
    return Facts(
        node=config.node,
        store=store.kind,
        utc_s=utc_now(),
        clock_set_s=clock_set_ago(config, instant()),
        free_bytes=store.free_bytes(),
        wants=tuple(wants),
        has=(*has, *store.abilities()),
        kernel=btrfs_versions.kernel(),
        progs=btrfs_versions.progs() if on_btrfs else None,
        paths=Paths(
            live=str(paths.live), snapshots=str(paths.snapshots), standby=str(paths.standby)
        ),
        file_systems=systems,
        nested=tuple(map(clean, store.nested()))[:_MOST] if live is not None else (),
        live_received=live.received_uuid if live is not None and not live.read_only else None,
        partial_mount=_partial_mount(paths.standby) if ours is not None else None,
        copies=btrfs_place.copies_of(ours)[:_MOST] if ours is not None else (),
        space=store.space(),
        flags=_flags(paths.live) if live is not None else (),
        limit_bytes=quota.limit_of(paths.live) if live is not None else None,
    )


def _flags(live: Path) -> tuple[str, ...]:
    deadline = Deadline.after(_FLAGS_S)
    return tuple(map(clean, inode_flags.examples(live, _EXAMPLES, deadline)))


def _partial_mount(standby: Path) -> str | None:
    mountinfo = read_foreign_text(Path("/proc/self/mountinfo"))
    point = btrfs_place.mount_point_of(standby, mountinfo)
    return None if btrfs_place.shows_a_subvolume(point) else str(point)


def _gravest_first(*checks: Iterable[Problem]) -> list[Problem]:
    return sorted(chain(*checks), key=lambda problem: not problem.grave)


# One node


def problems(facts: Facts) -> list[Problem]:
    """Returns what one node's facts show, the gravest first."""
    checks = (_tools, _disk, _received, _nested, _mounts, _copies, _flagged, _limit, _room)
    on_btrfs = (check(facts) for check in checks if facts.store == "btrfs")
    return _gravest_first(*on_btrfs, _options(facts, facts))


def _tools(facts: Facts) -> Iterator[Problem]:
    if facts.progs is None:
        evidence = f"{facts.node} has no program `btrfs`"
        yield Problem("tools", evidence, "install btrfs-progs")
    if btrfs_versions.parse(facts.kernel) < btrfs_versions.OLDEST_KERNEL:
        oldest = _dotted(btrfs_versions.OLDEST_KERNEL)
        evidence = f"{facts.node} runs Linux {facts.kernel}, but {oldest} or newer is needed"
        yield Problem("tools", evidence, "boot a newer kernel")


def _disk(facts: Facts) -> Iterator[Problem]:
    systems = facts.file_systems
    foreign = [facts.paths[role] for role in ROLES if systems.get(role, "") is None]
    if foreign:
        yield Problem(
            "disk",
            f"no btrfs at {', '.join(foreign)} on {facts.node}",
            "mount the volume's file system there; is it in /etc/fstab, and did it fail?",
        )
    elif len(set(systems.values())) > 1:
        where = ", ".join(f"{facts.paths[role]}: {systems[role]}" for role in ROLES)
        yield Problem(
            "disk",
            f"{facts.node} has its paths on different file systems ({where}): no snapshot can "
            f"be taken from one to the other",
            "set [paths] so that live, snapshots and standby are on one btrfs",
        )


def _received(facts: Facts) -> Iterator[Problem]:
    if facts.live_received is None:
        return
    live = facts.paths["live"]
    yield Problem(
        "received",
        f"{live} on {facts.node} can be written to and has the received UUID "
        f"{facts.live_received}: its snapshots all inherit it, and pass for one content",
        f"when nobody writes: btrfs property set -t subvol {live} ro true; "
        f"btrfs property set -f -t subvol {live} ro false (which removes the UUID)",
    )


def _nested(facts: Facts) -> Iterator[Problem]:
    if facts.nested:
        yield Problem(
            "nested",
            f"subvolumes inside the live one on {facts.node}, which a snapshot silently leaves "
            f"out: {', '.join(facts.nested)}",
            "for each: mv SUB SUB.old; mkdir SUB; cp -a --reflink=auto SUB.old/. SUB/; "
            "btrfs subvolume delete SUB.old (or move it out of the volume)",
        )


def _mounts(facts: Facts) -> Iterator[Problem]:
    if facts.partial_mount is not None:
        yield Problem(
            "mounts",
            f"{facts.partial_mount} on {facts.node} shows a mere directory of a subvolume (a "
            f"bind mount?): `btrfs receive` looks for parents from the subvolume's root and "
            f"finds none below it, so every increment fails; its option -C changes nothing there",
            "mount the subvolume itself (mount -o subvol=...), or make the directory one",
        )


def _copies(facts: Facts) -> Iterator[Problem]:
    if facts.copies:
        yield Problem(
            "copies",
            f"{' and '.join(facts.copies)} on {facts.node} have one and the same file system "
            f"UUID: after a reboot the wrong one may be mounted",
            f"detach the copy, or give it another UUID while it is not mounted: "
            f"btrfstune -u DEVICE (which of {', '.join(facts.copies)} is in use: findmnt)",
        )


def _flagged(facts: Facts) -> Iterator[Problem]:
    live = facts.paths["live"]
    if any(told.endswith(" .") and ("+i" in told or "+a" in told) for told in facts.flags):
        yield Problem(
            "flags",
            f"{live} itself on {facts.node} is immutable or append-only: it can't be set aside, "
            f"and none of its snapshots can be deleted",
            f"chattr -i -a {live}; then for each snapshot that is to go: "
            f"btrfs property set SNAPSHOT ro false; chattr -i -a SNAPSHOT; "
            f"btrfs subvolume delete SNAPSHOT",
        )
    elif facts.flags:
        yield Problem(
            "flags",
            f"files in {live} on {facts.node} have flags that no snapshot carries to another "
            f"node: {', '.join(facts.flags)}",
            "have a hook set them again where the role goes (docs/operators-guide.md), or do "
            "without: chattr -i -a -C",
            grave=False,
            lasts=True,
        )


def _limit(facts: Facts) -> Iterator[Problem]:
    if facts.limit_bytes is not None:
        live = facts.paths["live"]
        yield Problem(
            "limit",
            f"btrfs' quota limits {live} on {facts.node} to {facts.limit_bytes // 2**20} MiB, "
            f"which no snapshot carries to another node",
            f"have a hook set it again where the role goes (docs/operators-guide.md), or end it: "
            f"btrfs qgroup limit none {live}",
            grave=False,
            lasts=True,
        )


def _room(facts: Facts) -> Iterator[Problem]:
    for shortage in shortages(facts.space) if facts.space is not None else ():
        yield Problem("room", f"{facts.node}: {shortage.evidence}", shortage.fix, grave=False)


def _options(asking: Facts, able: Facts) -> Iterator[Problem]:
    """What one node's configuration asks for and a node (itself, or its peer) can't."""
    for wanted in asking.wants:
        if wanted in able.has:
            continue
        if wanted == ZSTD:
            evidence = f'{asking.node} sends with compression = "zstd", {able.node} has no zstd'
            yield Problem("options", evidence, f"install zstd on {able.node}")
        else:
            yield Problem(
                "options",
                f"{asking.node} is to send compressed_data, which {able.node} (Linux "
                f"{able.kernel}, btrfs-progs {able.progs}) is not trusted with: the stream has "
                f"plain data instead",
                f"Linux {_dotted(btrfs_versions.COMPRESSED_DATA_KERNEL)} and btrfs-progs "
                f"{_dotted(btrfs_versions.COMPRESSED_DATA_PROGS)}, or compressed_data = false",
                grave=False,
            )


def _dotted(version: btrfs_versions.Version) -> str:
    return ".".join(map(str, version))


# Two nodes


def problems_between(
    ours: Facts,
    theirs: Facts,
    *,
    size_bytes: int | None = None,
    apart_s: float = ASKED_APART_S,
) -> list[Problem]:
    """Returns what doesn't fit between a sender and a standby, the gravest first.

    `size_bytes` are those that are to be sent, if known; `apart_s` passed at most between the
    moments at which the two said what time it is.
    """
    return _gravest_first(
        _stores(ours, theirs),
        _clocks(ours, theirs, apart_s),
        _set(ours),
        _set(theirs),
        _space(theirs, size_bytes),
        _options(ours, theirs),
        _options(theirs, ours),  # as after a failover
    )


def _stores(ours: Facts, theirs: Facts) -> Iterator[Problem]:
    if ours.store != theirs.store:
        yield Problem(
            "store",
            f"{ours.node} stores in a {ours.store}, {theirs.node} in a {theirs.store}",
            "one of them runs on the parts of the demo: storage is btrfs on both",
        )


def _clocks(ours: Facts, theirs: Facts, apart_s: float) -> Iterator[Problem]:
    skew_s = theirs.utc_s - ours.utc_s
    certain_s = abs(skew_s) - apart_s
    if certain_s > SKEW_WORTH_A_WORD_S:
        grave = certain_s > SKEW_TOO_LARGE_S
        ahead, behind = (theirs, ours) if skew_s > 0 else (ours, theirs)
        consequence = "ages are told wrong" if grave else "names tell the wrong time"
        yield Problem(
            "clock",
            f"{ahead.node}'s clock is {abs(skew_s):.0f} s ahead of {behind.node}'s: {consequence}",
            "set both by NTP: timedatectl set-ntp true; chronyc tracking",
            grave,
        )


def _set(facts: Facts) -> Iterator[Problem]:
    text = clock_was_set(facts.clock_set_s)
    if text is not None:
        yield Problem("clock", f"{facts.node}'s {text}", CLOCK_FIX, grave=False)


def clock_was_set(ago_s: float | None) -> str | None:
    """Says that a wall clock was set not long ago (`ago_s`: see `published.clock_set_ago`)."""
    if ago_s is None or ago_s > SET_WORTH_A_WORD_S:
        return None
    return f"clock was set {duration(ago_s)} ago, or the machine stood still: ages may be older"


def _space(theirs: Facts, size_bytes: int | None) -> Iterator[Problem]:
    if size_bytes is not None and theirs.free_bytes < size_bytes + RESERVE_BYTES:
        yield Problem(
            "space",
            f"{size_bytes // 2**20} MiB are to be sent, {theirs.node} has "
            f"{theirs.free_bytes // 2**20} MiB left (and keeps {RESERVE_BYTES // 2**20})",
            f"delete old snapshots on {theirs.node}, or give it a larger disk",
        )
