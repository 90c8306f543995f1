"""What doctor says of the volume's storage on this node: each check, also those that are well."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from standfast.assembly.parts import open_store, parts
from standfast.config.model import Config
from standfast.doctor import exposure_checks
from standfast.doctor.finding import Finding, finding_of
from standfast.errors import AS_ROOT, Refused, StandfastError, is_lack_of
from standfast.node.ports import Snapshot
from standfast.replication.authorized_file import (
    SYSTEM_KEYS,
    Owner,
    authorized_keys_of,
    own_keys,
    system_keys,
)
from standfast.replication.loose_lines import loose_lines
from standfast.replication.preflight import problems
from standfast.replication.storage_facts import Facts, facts_here
from standfast.system import landlock

# Check by check, what is said when nothing is wrong.
_WELL = {
    "tools": "Linux {0.kernel}, btrfs-progs {0.progs}",
    "disk": "live, snapshots and standby are on one btrfs",
    "received": "the live subvolume is an ordinary one",
    "nested": "no subvolumes inside the live one",
    "mounts": "parents can be found where snapshots are received",
    "copies": "no other device has this file system's UUID",
    "flags": "no files with flags (chattr +i, +a, +C) that a failover would lose",
    "limit": "no limit of btrfs' quota that a failover would lose",
    "room": "there is room for data and for metadata",
}


def examine(facts: Facts) -> list[Finding]:
    """Makes every check, also those that are well. Pure."""
    bad = problems(facts)
    wrong = {problem.check for problem in bad}
    well = _WELL if facts.store == "btrfs" else {}
    return [
        *map(finding_of, bad),
        *(
            Finding(name, True, text.format(facts))
            for name, text in well.items()
            if name not in wrong
        ),
    ]


def replicas(config: Config, snapshots: Sequence[Snapshot], holder: str) -> Finding:
    """Judges whether there is anything that this standby of `holder` could take over with. Pure."""
    names = sorted(snapshot.name for snapshot in snapshots if snapshot.received)
    if names:
        text = f"{len(names)} published in {config.paths.standby}, the newest {names[-1]}"
        return Finding("replicas", True, text)
    text = f"no published snapshot is in {config.paths.standby}: nothing to take over with"
    fix = f"on {holder}: standfast standby add {config.node} sends one, or says what is in the way"
    return Finding("replicas", False, text, fix)


def lines(config: Config) -> list[Finding]:
    """Judges the lines by which other nodes' keys may send here; none where no file is read."""
    if config.replication.command:
        return []
    user, findings, files = config.replication.ssh_user, list[Finding](), dict[str, bytes]()
    try:
        own, owner = authorized_keys_of(user), Owner.of(user)
    except StandfastError:  # there is no such user here
        return []
    second, of_system = own.with_name(f"{own.name}2"), SYSTEM_KEYS / user
    looks: dict[Path, Callable[[], bytes]] = {
        own: lambda: own_keys(own, owner),
        second: lambda: own_keys(second, owner),  # which sshd reads by default as well
        of_system: lambda: system_keys(of_system),
    }
    for path, read in looks.items():
        try:
            text = read()
        except Refused as refused:  # sshd may think otherwise
            findings.append(Finding("line", True, f"not looked at: {refused}"))
            continue
        except OSError:  # who looks isn't root
            continue
        files[str(path)] = text
    findings += [
        Finding("line", False, f"line {line.number} of {line.source} {line.what}", line.fix)
        for line in loose_lines(files, config)
    ]
    if not findings and any(b"standfast receive" in text for text in files.values()):
        return [Finding("line", True, "each key that may send here is one node's")]
    return findings


def confined(store: str, *, there: bool) -> list[Finding]:
    """Says whether a stream from another node can get at what else is on the disk; never bad, as an
    older kernel does without. Pure."""
    if store != "btrfs":
        return []
    if there:
        text = "what is received is kept by Landlock to this volume's directories"
    else:
        text = (
            "what is received is not confined, as this kernel has no Landlock (Linux 5.19, "
            "CONFIG_SECURITY_LANDLOCK, lsm=): who has a key may read other volumes of this disk"
        )
    return [Finding("confined", True, text)]


def look(config: Config, holder: str | None = None) -> list[Finding]:
    """Looks at this node; nothing for one that has no storage. `holder` has the role, if known."""
    if config.node not in config.nodes:
        return []
    try:
        store = open_store(config)
        findings = [
            *examine(facts_here(config, store)),
            *confined(store.kind, there=landlock.is_there()),
            *lines(config),
        ]
        if holder not in (None, config.node):
            findings.append(replicas(config, store.snapshots(), str(holder)))
        return findings + (exposure_checks.look(config) if parts().is_machine else [])
    except (StandfastError, OSError) as error:
        fix = f"mount the volume's disk, or correct [paths] in {config.source}"
        if is_lack_of(error, errno.EACCES, errno.EPERM):
            fix = AS_ROOT
        return [Finding("storage", False, f"not known: {error}", fix)]
