"""What could go wrong, before anything starts: pure checks of what nodes say of
themselves (`storage_facts`).

Invariant: a problem says what was found, with its evidence, and what mends it; a grave one would
lose or mix up data, or make every cycle fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from standfast.btrfs import versions as btrfs_versions
from standfast.node.space import shortages
from standfast.replication.receive_checks import RESERVE_BYTES
from standfast.replication.storage_facts import ROLES, ZSTD, Facts
from standfast.text import duration

SKEW_WORTH_A_WORD_S = 1.0
SKEW_TOO_LARGE_S = 30.0
"""By so much ages would be told wrong, and data would be taken for too old."""
SET_WORTH_A_WORD_S = 86_400.0
"""A clock that was set longer ago than that has set everything right since."""
CLOCK_FIX = "find out what did: `ntpdate` in a timer, two time daemons, a virtual machine's pause"
ASKED_APART_S = 5.0
"""Two nodes' facts are not of one moment: so much of a difference says nothing."""


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
    live = facts.paths["live"]
    told, ends = [], []
    if facts.limit_bytes is not None:
        told.append(f"{live} on {facts.node} to {facts.limit_bytes // 2**20} MiB")
        ends += [f"btrfs qgroup limit none {live}", f"btrfs qgroup limit -e none {live}"]
    for group, limit in facts.group_limits.items():
        told.append(f"the group {group} of {live} on {facts.node} to {limit // 2**20} MiB")
        ends += [f"btrfs qgroup limit {kind}none {group} {live}" for kind in ("", "-e ")]
    if told:
        yield Problem(
            "limit",
            f"btrfs' quota limits {' and '.join(told)}, which no snapshot carries to another node",
            f"have a hook set it again where the role goes (docs/operators-guide.md), or end it: "
            f"{'; '.join(ends)}",
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
