"""What doctor says of the volume's storage on this node: each check, also those that are well."""

from __future__ import annotations

from standfast.assembly.parts import open_store
from standfast.config.model import Config
from standfast.doctor.finding import Finding, finding_of
from standfast.errors import StandfastError
from standfast.replication.preflight import Facts, facts_here, problems

# Check by check, what is said when nothing is wrong.
_WELL = {
    "tools": "Linux {0.kernel}, btrfs-progs {0.progs}",
    "disk": "live, snapshots and standby are on one btrfs",
    "received": "the live subvolume is an ordinary one",
    "nested": "no subvolumes inside the live one",
    "mounts": "parents can be found where snapshots are received",
    "copies": "no other device has this file system's UUID",
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


def look(config: Config) -> list[Finding]:
    """Looks at this node; nothing for one that has no storage."""
    if config.node not in config.nodes:
        return []
    try:
        return examine(facts_here(config, open_store(config)))
    except (StandfastError, OSError) as error:
        return [Finding("storage", False, f"not known: {error}", "run it as root")]
