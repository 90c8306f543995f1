"""What doctor says on the primary of each standby: the way there, what it is able to, its data.

Invariant: nothing is changed, on neither side: no key is made, no host key noted, nothing is sent.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from standfast.assembly.parts import open_store
from standfast.config.model import Config
from standfast.doctor.finding import Finding
from standfast.errors import StandfastError
from standfast.replication import preflight
from standfast.replication.preflight import Facts, Problem
from standfast.replication.standby_connection import StandbyConnection
from standfast.replication.standby_step import Mark, Step
from standfast.replication.survey import both_sides
from standfast.system.clock import Deadline, format_utc
from standfast.text import duration, size

ASK_S = 30.0


def look(config: Config, doc: Mapping[str, Any]) -> list[Finding]:
    """Of every standby, all at once; nothing on a node that isn't primary."""
    if doc.get("holder") != config.node or not config.standbys:
        return []
    told = {one["node"]: one for one in doc.get("standbys", ())}
    ways = _all_at_once(config)
    return [
        one
        for name in config.standbys
        for one in [*ways[name], *examine(name, told.get(name), config)]
    ]


def _all_at_once(config: Config) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}

    def take(name: str) -> None:
        fix = "this is a bug: please report it"
        found[name] = [Finding("way", False, "the check failed itself", fix, name)]
        found[name] = way_and_facts(config, name)

    threads = [
        # Daemons: one that hangs must not keep the command from ending.
        threading.Thread(target=take, args=(name,), name=f"way {name}", daemon=True)
        for name in config.standbys
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def examine(name: str, told: Mapping[str, Any] | None, config: Config) -> list[Finding]:
    """What status knows of a standby's data. Pure."""
    if told is None:
        return []
    return list(_data(name, told, config))


def _data(name: str, told: Mapping[str, Any], config: Config) -> Iterator[Finding]:
    age_s, limit_s = told["age_s"], 2 * config.replication.interval
    again = f"standfast replicate {name}"
    if age_s is None:
        text = "no snapshot yet"
        if told.get("snapshot"):
            text = "of unknown age: a clock was wrong (timedatectl on both nodes)"
        yield Finding("age", False, text, again, name)
    else:
        text = f"{duration(age_s)} behind; one cycle each {config.replication.interval:g} s"
        fix = f"systemctl list-timers 'standfast-replicate@*'; {again}"
        yield Finding("age", age_s <= limit_s, text, fix, name)
    if told.get("needs_full"):
        yield Finding("full", False, "it needs everything sent again", f"{again} --full", name)
    elif told.get("failure"):
        fix = f"docs/reason-codes.md; {again} shows it at work"
        yield Finding("cycle", False, told["failure"], fix, name)
    compared = told.get("verified")
    if compared:
        what = "all contents" if compared["full"] else "metadata"
        text = f"{compared['snapshot']} ({what}, {format_utc(compared['at'])})"
        said = f"equal: {text}" if compared["ok"] else f"DIFFERS: {text}"
        fix = f"standfast verify {name} --full names the files and the next steps"
        yield Finding("verified", compared["ok"], said, fix, name)


def way_and_facts(config: Config, name: str) -> list[Finding]:
    """Reach it as a replication does, and ask what it is like."""
    step = None
    for step in StandbyConnection(config, name, dry_run=True).steps():
        if step.mark is Mark.BAD or (step.mark is Mark.LEFT and not config.replication.command):
            return [_blocked(name, step)]
    try:
        both = both_sides(config, open_store(config), name, Deadline.after(ASK_S))
    except (StandfastError, OSError) as error:
        fix = f"standfast standby add {name} goes through it step by step"
        return [Finding("survey", False, str(error), fix, name)]
    by_key = step is not None and step.mark is Mark.OK
    evidence = step.evidence if step and by_key else "it answers, by replication.command"
    way = Finding("way", True, evidence, "", name)
    return [way, *compare(both.ours, both.theirs, both.apart_s)]


def _blocked(name: str, step: Step) -> Finding:
    """A dry run that would change something can't go on: that, too, is not done yet."""
    fix = "; ".join(step.fix) or f"standfast standby add {name}"
    return Finding("way", False, f"{step.name}: {step.evidence}", fix, name)


def compare(ours: Facts, theirs: Facts, apart_s: float) -> list[Finding]:
    """What is wrong over there, and between the two. Pure."""
    name = theirs.node
    between = preflight.problems_between(ours, theirs, apart_s=apart_s)
    found = dict.fromkeys([*preflight.problems(theirs), *between])
    if found:
        return [_finding(one, name) for one in found]
    tools = f"Linux {theirs.kernel}" + (f", btrfs-progs {theirs.progs}" if theirs.progs else "")
    return [Finding("survey", True, f"{tools}; {size(theirs.free_bytes)} free", "", name)]


def _finding(one: Problem, name: str) -> Finding:
    return Finding(one.check, False, one.evidence, one.fix, name)
