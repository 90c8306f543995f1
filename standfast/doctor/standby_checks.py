"""What doctor says on the primary of each standby: the way there, what it is able to, its data.

Invariant: nothing is changed, on neither side: no key is made, no host key noted, nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from standfast.assembly.parts import open_store
from standfast.config.model import Config
from standfast.doctor.finding import Finding, finding_of
from standfast.errors import StandfastError
from standfast.replication import preflight
from standfast.replication.standby_connection import StandbyConnection
from standfast.replication.standby_step import Mark, Step
from standfast.replication.storage_facts import Facts
from standfast.replication.survey import both_sides
from standfast.status.document import Standby, Status
from standfast.system.clock import Deadline, format_utc
from standfast.system.threads import all_at_once
from standfast.text import duration, size

ASK_S = 30.0


def look(config: Config, status: Status | None) -> list[Finding]:
    """Looks at every standby, all at once; nothing on a node that isn't primary."""
    if status is None or status.holder != config.node or not config.standbys:
        return []
    told = {standby.node: standby for standby in status.standbys}
    ways = all_at_once("way", [partial(_way, config, name) for name in config.standbys])
    return [
        finding
        for name, way in zip(config.standbys, ways, strict=True)
        for finding in [*way, *examine(told.get(name), config)]
    ]


def _way(config: Config, name: str) -> list[Finding]:
    try:
        return way_and_facts(config, name)
    except Exception as error:  # noqa: BLE001  # a finding, not the end of all others
        fix = "this is a bug: please report it"
        return [Finding("way", False, f"the check failed itself: {error!r}", fix, name)]


def examine(told: Standby | None, config: Config) -> list[Finding]:
    """Judges what status knows of a standby's data. Pure."""
    return [] if told is None else list(_data(told, config))


def _data(told: Standby, config: Config) -> Iterator[Finding]:
    name, age_s, limit_s = told.node, told.age_s, 2 * config.replication.interval
    again = f"standfast replicate {name}"
    if age_s is None:
        text = "no snapshot yet"
        if told.snapshot:
            text = "of unknown age: a clock was wrong (timedatectl on both nodes)"
        yield Finding("age", False, text, again, name)
    else:
        text = f"{duration(age_s)} behind; one cycle each {config.replication.interval:g} s"
        fix = f"systemctl list-timers 'standfast-replicate@*'; {again}"
        yield Finding("age", age_s <= limit_s, text, fix, name)
    if told.needs_full:
        yield Finding("full", False, "it needs everything sent again", f"{again} --full", name)
    elif told.failure:
        fix = f"docs/reason-codes.md; {again} shows it at work"
        yield Finding("cycle", False, told.failure, fix, name)
    compared = told.verified
    if compared:
        what = "all contents" if compared.full else "metadata"
        text = f"{compared.snapshot} ({what}, {format_utc(compared.at)})"
        said = f"equal: {text}" if compared.ok else f"DIFFERS: {text}"
        fix = f"standfast verify {name} --full names the files and the next steps"
        yield Finding("verified", compared.ok, said, fix, name)


def way_and_facts(config: Config, name: str) -> list[Finding]:
    """Reaches it as a replication does, and asks what it is like."""
    step, loose = None, list[Finding]()
    for step in StandbyConnection(config, name, dry_run=True).steps():
        if step.mark is Mark.WORD:
            loose.append(Finding("line", False, step.evidence, "; ".join(step.fix), name))
        if step.mark is Mark.BAD or (step.mark is Mark.LEFT and not config.replication.command):
            return [_blocked(name, step)]
    try:
        both = both_sides(config, open_store(config), name, Deadline.after(ASK_S))
    except (StandfastError, OSError) as error:
        fix = f"standfast standby add {name} goes through it step by step"
        return [Finding("survey", False, str(error), fix, name)]
    by_key = step is not None and step.mark in (Mark.OK, Mark.WORD)
    evidence = step.evidence if step and by_key else "it answers, by replication.command"
    way = Finding("way", True, evidence, "", name)
    return [way, *loose, *compare(both.ours, both.theirs, both.apart_s)]


def _blocked(name: str, step: Step) -> Finding:
    """A dry run that would change something can't go on: that, too, is not done yet."""
    fix = "; ".join(step.fix) or f"standfast standby add {name}"
    return Finding("way", False, f"{step.name}: {step.evidence}", fix, name)


def compare(ours: Facts, theirs: Facts, apart_s: float) -> list[Finding]:
    """Judges what is wrong over there, and between the two. Pure."""
    name = theirs.node
    between = preflight.problems_between(ours, theirs, apart_s=apart_s)
    problems = dict.fromkeys([*preflight.problems(theirs), *between])
    if problems:
        return [finding_of(problem, name) for problem in problems]
    tools = f"Linux {theirs.kernel}" + (f", btrfs-progs {theirs.progs}" if theirs.progs else "")
    return [Finding("survey", True, f"{tools}; {size(theirs.free_bytes)} free", "", name)]
