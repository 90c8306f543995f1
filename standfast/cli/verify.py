"""verify: is what the standbys have what this node has? Nothing is changed anywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from standfast.assembly import open_store
from standfast.cli.output import note, print_json
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import Leader
from standfast.errors import Refused, StandfastError
from standfast.reasons import Reason
from standfast.replication.failures import reason_of
from standfast.replication.verify import Comparison, Progress, compare, limit
from standfast.system.clock import Deadline
from standfast.text import clean, size

NOTES_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one comparison ended."""

    standby: str
    found: Comparison | None = None
    error: StandfastError | None = None

    @property
    def is_equal(self) -> bool:
        return self.found is not None and self.found.is_equal


def run(args: argparse.Namespace) -> int:
    """`standfast verify`."""
    config = load_volume(args.volume)
    standbys = _standbys(config, args.standby)
    if args.if_primary and not _is_primary(config):
        note(f"{config.node} is not the primary: nothing to do")
        if args.json:
            print_json({"volume": config.volume, "node": config.node, "compared": []})
        return 0
    outcomes = [_one(config, standby, args.full) for standby in standbys]
    if not args.json:
        for one in outcomes:
            if one.error is None or len(outcomes) > 1:
                _print(config, one)
    error = _worst(config, outcomes)
    if args.json:
        print_json(_document(config, outcomes, error))
        if error is not None:
            note(f"standfast: {reason_of(error)}: {error}")
    elif error is not None:
        raise error
    return 0 if error is None else error.exit_code


def _standbys(config: Config, standby: str | None) -> tuple[str, ...]:
    if standby is None and config.standbys:
        return config.standbys
    if standby is None or standby not in config.standbys:
        raise Refused(
            Reason.UNKNOWN_NODE,
            f"{standby or 'no standby'} is not another storage node of {config.volume}: "
            f"{', '.join(config.standbys) or 'there is none'}. The nodes are in {config.source}",
        )
    return (standby,)


def _is_primary(config: Config) -> bool:
    key = config.key("leader")
    entry = ConsulGateway.from_config(config).get(key, consistent=True)
    return entry is not None and Leader.parse(entry.value, key).holder.node == config.node


def _one(config: Config, standby: str, full: bool) -> Outcome:
    try:
        found = compare(
            config,
            open_store(config),
            standby,
            full=full,
            deadline=limit(full),
            progress=_notes(config.node, standby),
        )
        return Outcome(standby, found)
    except StandfastError as error:
        return Outcome(standby, error=error)


def _notes(node: str, standby: str) -> Callable[[Progress], None]:
    """A line on stderr now and then: a long look is not a hung one."""
    due = Deadline.after(NOTES_EVERY_S)

    def say(done: Progress) -> None:
        nonlocal due
        if due.expired:
            note(f"{standby}: {node} has looked at {done.entries} entries, {size(done.read_bytes)}")
            due = Deadline.after(NOTES_EVERY_S)

    return say


def _print(config: Config, one: Outcome) -> None:
    if one.found is None:
        note(f"{one.standby}: not compared: {one.error}")
        return
    found = one.found
    what = "and all contents" if found.full else "(metadata; --full reads the contents, too)"
    if found.is_equal:
        print(
            f"{one.standby}: {found.snapshot} is equal: {found.ours.entries} entries {what}, "
            f"{size(found.read_bytes)} read in {found.seconds:.1f} s"
        )
        return
    print(f"{one.standby}: {found.snapshot} DIFFERS from the one on {config.node}:")
    for sentence in _sentences(config, found):
        print(f"  {clean(sentence)}")


def _sentences(config: Config, found: Comparison) -> list[str]:
    sentences = [one.sentence(config.node, found.standby) for one in found.differences]
    if found.more:
        sentences.append("... and more")
    return sentences or [
        "a second comparison found no difference: a disk or the memory of one of the nodes gives "
        "different answers each time"
    ]


def _worst(config: Config, outcomes: Sequence[Outcome]) -> StandfastError | None:
    """What differs matters most, then what was refused, then what couldn't be reached."""
    differing = [one for one in outcomes if one.found is not None and not one.is_equal]
    damaged = [
        one
        for one in outcomes
        if one.error is not None and reason_of(one.error) is Reason.CONTENT_DIFFERS
    ]
    if differing or damaged:
        return _differs(config, [*differing, *damaged])
    errors = [one.error for one in outcomes if one.error is not None]
    return min(errors, key=lambda error: error.exit_code, default=None)


def _differs(config: Config, bad: Sequence[Outcome]) -> Refused:
    told = []
    for one in bad:
        if one.found is None:
            told.append(f"{one.standby}: {one.error}.")
        else:
            first = _sentences(config, one.found)[0]
            told.append(f"{one.standby}: {one.found.snapshot} is not what {config.node} has: "
                        f"{first}.")  # fmt: skip
    return Refused(Reason.CONTENT_DIFFERS, "\n".join([*told, *_next_steps(config, bad[0].standby)]))


def _next_steps(config: Config, standby: str) -> list[str]:
    """To the letter: the data of one of the two nodes is bad, and nobody should serve it."""
    there = config.paths.standby
    made = "btrfs subvolume create" if config.store == "btrfs" else "mkdir"
    steps = [f"1. Disable automatic failover: standfast pause --reason 'verify: {standby} differs'"]
    if config.store == "btrfs":
        mount = config.paths.live.parent
        steps.append(f"2. Which node is damaged? On both: btrfs scrub start -B {mount}")
    else:
        steps.append("2. Which node is damaged? Compare the files named above with your copies")
    return [
        *steps,
        f"3. If it is {standby}, there: mv {there} {there}.differs && {made} {there}",
        f"   then here: standfast replicate {standby} --full && standfast verify {standby} --full",
        f"   If it is {config.node}: keep the pause, restore the named files here from {standby}'s "
        f"snapshot or from a backup",
        "4. When both are equal: standfast resume",
    ]


def _document(
    config: Config, outcomes: Sequence[Outcome], error: StandfastError | None
) -> dict[str, Any]:
    doc: dict[str, Any] = {
        "volume": config.volume,
        "node": config.node,
        "compared": [_fields(config, one) for one in outcomes],
    }
    if error is not None:
        doc |= {"error": str(error), "reason": reason_of(error), "exit_code": error.exit_code}
    return doc


def _fields(config: Config, one: Outcome) -> dict[str, Any]:
    if one.found is None:
        reason = None if one.error is None else str(reason_of(one.error))
        return {"standby": one.standby, "error": str(one.error), "reason": reason}
    found = one.found
    return {
        "standby": one.standby,
        "equal": found.is_equal,
        "snapshot": found.snapshot,
        "full": found.full,
        "entries": found.ours.entries,
        "digest": found.ours.digest,
        "digest_there": found.theirs.digest,
        "read_bytes": found.read_bytes,
        "seconds": found.seconds,
        "differences": [] if found.is_equal else _sentences(config, found),
    }
