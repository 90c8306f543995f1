"""verify: is what the standbys have what this node has? Nothing is changed anywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from standfast.assembly.parts import open_store
from standfast.cli.output import error_fields, note, print_json
from standfast.cli.targets import standbys_of
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.errors import Refused, StandfastError
from standfast.reasons import Reason
from standfast.replication.failures import reason_of
from standfast.replication.reporting import leader_of
from standfast.replication.verify import Comparison, Progress, compare, limit
from standfast.system.clock import Deadline
from standfast.text import clean, size

NOTES_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Says how one comparison ended."""

    standby: str
    comparison: Comparison | None = None
    error: StandfastError | None = None

    @property
    def is_equal(self) -> bool:
        return self.comparison is not None and self.comparison.is_equal


def run(args: argparse.Namespace) -> int:
    """Runs `standfast verify`."""
    config = load_volume(args.volume)
    standbys = standbys_of(config, args.standby)
    if args.if_primary and not _is_primary(config):
        note(f"{config.node} is not the primary: nothing to do")
        if args.json:
            print_json({"volume": config.volume, "node": config.node, "compared": []})
        return 0
    outcomes = [_compare(config, standby, args.full) for standby in standbys]
    if not args.json:
        for outcome in outcomes:
            if outcome.error is None or len(outcomes) > 1:
                _print(config, outcome)
    error = _worst(config, outcomes)
    if args.json:
        print_json(_document(config, outcomes, error))
        if error is not None:
            note(f"standfast: {reason_of(error)}: {error}")
    elif error is not None:
        raise error
    return 0 if error is None else error.exit_code


def _is_primary(config: Config) -> bool:
    leader = leader_of(config, ConsulGateway.from_config(config))
    return leader is not None and leader.holder.node == config.node


def _compare(config: Config, standby: str, full: bool) -> Outcome:
    try:
        comparison = compare(
            config,
            open_store(config),
            standby,
            full=full,
            deadline=limit(full),
            progress=_notes(config.node, standby),
        )
        return Outcome(standby, comparison)
    except StandfastError as error:
        return Outcome(standby, error=error)


def _notes(node: str, standby: str) -> Callable[[Progress], None]:
    """Returns what prints a line to stderr now and then: a long comparison is not a hung one."""
    due = Deadline.after(NOTES_EVERY_S)

    def say(done: Progress) -> None:
        nonlocal due
        if due.expired:
            note(f"{standby}: {node} has looked at {done.entries} entries, {size(done.read_bytes)}")
            due = Deadline.after(NOTES_EVERY_S)

    return say


def _print(config: Config, outcome: Outcome) -> None:
    if outcome.comparison is None:
        note(f"{outcome.standby}: not compared: {outcome.error}")
        return
    comparison = outcome.comparison
    what = "and all contents" if comparison.full else "(metadata; --full reads the contents, too)"
    if comparison.is_equal:
        print(
            f"{outcome.standby}: {comparison.snapshot} is equal: {comparison.ours.entries} entries "
            f"{what}, {size(comparison.read_bytes)} read in {comparison.seconds:.1f} s"
        )
        return
    print(f"{outcome.standby}: {comparison.snapshot} DIFFERS from the one on {config.node}:")
    for sentence in _sentences(config, comparison):
        print(f"  {clean(sentence)}")


def _sentences(config: Config, comparison: Comparison) -> list[str]:
    sentences = [
        difference.sentence(config.node, comparison.standby)
        for difference in comparison.differences
    ]
    if comparison.more:
        sentences.append("... and more")
    return sentences or [
        "a second comparison found no difference: a disk or the memory of one of the nodes gives "
        "different answers each time"
    ]


def _worst(config: Config, outcomes: Sequence[Outcome]) -> StandfastError | None:
    """Returns the worst error: a difference, else a refusal, else an unreachable standby."""
    differing = [
        outcome for outcome in outcomes if outcome.comparison is not None and not outcome.is_equal
    ]
    damaged = [
        outcome
        for outcome in outcomes
        if outcome.error is not None and reason_of(outcome.error) is Reason.CONTENT_DIFFERS
    ]
    if differing or damaged:
        return _differs(config, [*differing, *damaged])
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    return min(errors, key=lambda error: error.exit_code, default=None)


def _differs(config: Config, bad: Sequence[Outcome]) -> Refused:
    told = []
    for outcome in bad:
        if outcome.comparison is None:
            told.append(f"{outcome.standby}: {outcome.error}.")
        else:
            first = _sentences(config, outcome.comparison)[0]
            name = outcome.comparison.snapshot
            told.append(f"{outcome.standby}: {name} is not what {config.node} has: {first}.")
    return Refused(Reason.CONTENT_DIFFERS, "\n".join([*told, *_next_steps(config, bad[0].standby)]))


def _next_steps(config: Config, standby: str) -> list[str]:
    """Returns the operator's next steps in full: one of the two nodes has bad data."""
    there = config.paths.standby
    return [
        f"1. Disable automatic failover: standfast pause --reason 'verify: {standby} differs'",
        f"2. Which node is damaged? On both: btrfs scrub start -B {config.paths.live.parent}",
        f"3. If it is {standby}, there: mv {there} {there}.differs && "
        f"btrfs subvolume create {there}",
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
        "compared": [_fields(config, outcome) for outcome in outcomes],
    }
    if error is not None:
        doc |= {**error_fields(error), "exit_code": error.exit_code}
    return doc


def _fields(config: Config, outcome: Outcome) -> dict[str, Any]:
    if outcome.error is not None:
        return {"standby": outcome.standby, **error_fields(outcome.error)}
    comparison = outcome.comparison
    assert comparison is not None
    return {
        "standby": outcome.standby,
        "equal": comparison.is_equal,
        "snapshot": comparison.snapshot,
        "full": comparison.full,
        "entries": comparison.ours.entries,
        "digest": comparison.ours.digest,
        "digest_there": comparison.theirs.digest,
        "read_bytes": comparison.read_bytes,
        "seconds": comparison.seconds,
        "differences": [] if comparison.is_equal else _sentences(config, comparison),
    }
