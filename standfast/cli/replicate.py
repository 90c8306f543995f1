"""replicate: one cycle to a standby, or to all of them at once; none waits for another's result."""

from __future__ import annotations

import argparse
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from standfast.assembly.parts import open_store
from standfast.cli.output import error_fields, note, print_done, print_json
from standfast.cli.remote import elsewhere
from standfast.cli.shown_ages import age_by_record, origins_here
from standfast.cli.targets import standbys_of
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.consul.gateway import PATIENT_S, ConsulGateway
from standfast.consul.records import StandbyRecord
from standfast.errors import Refused, StandfastError, UsageError
from standfast.events import hooks, journal
from standfast.events.events import Kind, happened
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import parents, session, wire
from standfast.replication.cycle import CycleResult, Sender, served_before
from standfast.replication.failures import reason_of
from standfast.replication.progress import above_bars, showing
from standfast.replication.published import next_name
from standfast.requests.record import MOST_LIMIT_S, Arguments, Verb
from standfast.system.clock import Deadline, utc_now
from standfast.system.threads import start
from standfast.text import clean, size

# Another cycle is at work, or none is due: nothing failed.
_NO_CYCLE = (Reason.BUSY, Reason.NOT_PRIMARY)
LONGER_S = 60.0
"""Than a cycle, its command may take."""
ASK_S = 20.0
"""For what a dry run asks of a standby."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one cycle ended."""

    standby: str
    result: CycleResult | None = None
    error: Exception | None = None
    in_journal: bool = False
    """The failure is an entry there, and so would be a line on stderr."""

    def sentence(self) -> str:
        if self.result is None:
            return f"{self.standby}: not replicated: {self.error}"
        done = self.result
        since = (
            f"since {done.parent}"
            if done.parent
            else "full"
            if done.was_full
            else "it had it already"
        )
        return (
            f"{self.standby}: {done.snapshot} is there ({since}, {size(done.sent_bytes)} in "
            f"{done.seconds:.1f} s)"
        )

    def document(self) -> dict[str, Any]:
        if self.error is not None:
            return {"standby": self.standby, **error_fields(self.error)}
        done = self.result
        assert done is not None
        return {
            "standby": self.standby,
            "snapshot": str(done.snapshot),
            "parent": done.parent,
            "sent_bytes": done.sent_bytes,
            "seconds": done.seconds,
            "full": done.was_full,
        }


@dataclass(frozen=True, slots=True)
class How:
    """What the command line says of every cycle."""

    full: bool
    quiet: bool


def run(args: argparse.Namespace) -> int:
    """Runs `standfast replicate`."""
    volume, standby = _target(args)
    if args.instance is None and (code := _elsewhere(args)) is not None:
        return code
    config = load_volume(volume)
    standbys = standbys_of(config, standby)
    if args.dry_run:
        plans = [_plan(config, name, full=args.full) for name in standbys]
        print_done(args.json, "\n".join(plan["text"] for plan in plans), dry_run=True, plans=plans)
        return 0
    how = How(args.full, args.quiet or args.json)
    outcomes = []
    for outcome in _cycles(config, standbys, how):
        outcomes.append(outcome)
        if not args.json and (outcome.error is None or len(standbys) > 1):
            with above_bars():
                _tell(outcome)
    failed = [outcome for outcome in outcomes if outcome.error]
    failed.sort(key=lambda outcome: outcome.standby)
    if len(standbys) == 1 and failed and failed[0].error is not None:
        error = failed[0].error
        if failed[0].in_journal and isinstance(error, StandfastError):
            return error.exit_code
        raise error
    refusal = _not_all(failed) if failed else None
    if args.json:
        print_json(_document(outcomes, refusal))
        return 0 if refusal is None else refusal.exit_code
    if refusal is not None:
        raise refusal
    return 0


def _elsewhere(args: argparse.Namespace) -> int | None:
    """Only the primary replicates; the exit code, where that is another node."""

    def arguments(config: Config) -> Arguments:
        limit_s = min(MOST_LIMIT_S, config.replication.timeout + LONGER_S)
        return Arguments(
            dry_run=args.dry_run,
            as_json=args.json,
            full=args.full,
            standby=args.standby,
            timeout_s=limit_s,
        )

    return elsewhere(args, Verb.REPLICATE, arguments, from_storage=True)


def _cycles(config: Config, standbys: Sequence[str], how: How) -> Iterator[Outcome]:
    """Yields each outcome as soon as it is known."""
    if len(standbys) == 1:
        yield _one(config, standbys[0], how, 0)
        return
    done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def replicate(name: str, position: int) -> None:
        done.put(_one(config, name, how, position))

    for position, name in enumerate(standbys):
        # Daemons: an interrupted command doesn't wait for them, and what they started ends at
        # its closed pipes.
        start(f"replicate {name}", partial(replicate, name, position))
    for _ in standbys:
        yield done.get()


def _one(config: Config, standby: str, how: How, position: int) -> Outcome:
    try:
        gateway = ConsulGateway.from_config(config, timeout_s=PATIENT_S)
        sender = Sender(config, open_store(config), gateway)
        with showing(standby, quiet=how.quiet, position=position) as progress:
            return Outcome(standby, sender.cycle(standby, full=how.full, on_progress=progress))
    except Exception as error:  # noqa: BLE001  # every standby has its result, whatever happened
        return Outcome(standby, error=error, in_journal=_announce(config, standby, error))


def _announce(config: Config, standby: str, error: Exception) -> bool:
    """A cycle that failed is an event, and has hooks; True: nobody misses a line on stderr."""
    reason = reason_of(error)
    if reason in _NO_CYCLE:
        return False
    text = f"not replicated to {standby}: {reason}: {error}"
    event = happened(config, Kind.CYCLE_FAILED, text, reason=reason, standby=standby)
    delivered = journal.deliver(event)
    facts: dict[str, object] = {"standby": standby, "reason": reason, "message": str(error)}
    hooks.announce(config, hooks.Occasion.FAILED_CYCLE, lambda: facts)
    return delivered and journal.is_stderr()


def _tell(outcome: Outcome) -> None:
    if outcome.error is None:
        print(clean(outcome.sentence()), flush=True)
    else:
        note(outcome.sentence())


def _not_all(failed: Sequence[Outcome]) -> Refused:
    names = ", ".join(outcome.standby for outcome in failed)
    return Refused(
        Reason.REPLICATION_FAILED,
        f"not replicated to {names} ({failed[0].error}); run `standfast replicate NODE` again",
    )


def _document(outcomes: Sequence[Outcome], refusal: Refused | None) -> dict[str, Any]:
    ordered = sorted(outcomes, key=lambda outcome: outcome.standby)
    doc: dict[str, Any] = {"done": refusal is None}
    doc["replicated"] = [outcome.document() for outcome in ordered]
    if refusal is not None:
        doc |= {**error_fields(refusal), "exit_code": refusal.exit_code}
    return doc


def _target(args: argparse.Namespace) -> tuple[str | None, str | None]:
    if args.instance is None:
        return args.volume, args.standby
    volume, colon, standby = args.instance.partition(":")
    if not (volume and colon and standby) or args.volume or args.standby:
        raise UsageError("--instance takes VOLUME:STANDBY and stands alone")
    return volume, standby


# The dry run


def _plan(config: Config, standby: str, *, full: bool) -> dict[str, Any]:
    gateway = ConsulGateway.from_config(config, timeout_s=PATIENT_S)
    entry = gateway.get(config.key(f"standbys/{standby}"), consistent=True)
    if entry is None:
        last = "nothing was replicated to it yet: this would send everything"
    else:
        record = StandbyRecord.parse(entry.value, entry.key)
        old = age_by_record(record, origins_here(config))
        last = f"the newest there is {record.snapshot} ({old.sentence()})"
    address = config.nodes[standby].address
    outlook = foresee(config, standby, full=full)
    return {
        "standby": standby,
        **outlook.document(),
        "text": f"would take a snapshot of {config.paths.live} and send it to {standby} "
        f"({address}); {last}; {outlook.sentence()}",
    }


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a cycle would build on, by the standby's own word."""

    parent: str | None = None
    estimate_bytes: int | None = None
    """From the parent to the newest snapshot here: the live tree itself can't be asked."""
    refused: str | None = None
    """Why nothing would be sent."""
    silent: str | None = None
    """Why the standby doesn't say."""

    def sentence(self) -> str:
        if self.silent is not None:
            return f"it doesn't answer now ({self.silent})"
        if self.refused is not None:
            return f"nothing would be sent: {self.refused}"
        kind = "everything" if self.parent is None else f"the changes since {self.parent}"
        if self.estimate_bytes is None:
            return f"it answers, and would be sent {kind}"
        return f"it answers, and would be sent {kind}, about {size(self.estimate_bytes)} or more"

    def document(self) -> dict[str, Any]:
        return {
            "answers": self.silent is None,
            "parent": self.parent,
            "estimate_bytes": self.estimate_bytes,
            "problem": self.silent or self.refused,
        }


def foresee(config: Config, standby: str, *, full: bool) -> Outlook:
    """Asks the standby and chooses as a cycle would; nothing is changed on either side."""
    deadline = Deadline.after(ASK_S)
    try:
        with session.greet(config, standby, deadline, wire.Purpose.ASK) as (_, welcome):
            there = welcome.snapshots
    except (StandfastError, OSError) as error:
        return Outlook(silent=str(error))
    return outlook(config, standby, there, full=full)


def outlook(config: Config, standby: str, there: Sequence[wire.Offer], *, full: bool) -> Outlook:
    """Chooses by what the standby said it has."""
    store = open_store(config)
    ours = store.snapshots()
    try:
        name = next_name(config, utc_now()).after_found(snapshot.name for snapshot in ours)
        coming = Snapshot(name, config.paths.snapshots / str(name), "", received=False)
        common = parents.newest_common(ours, there, coming)
        parent = None if full else parents.choose(
            standby, common, there, may_be_full=config.replication.allow_full,
            served_before=served_before(config, standby),
        )  # fmt: skip
        own = [snapshot for snapshot in ours if not snapshot.received and snapshot.name < name]
        newest = max(own, key=lambda snapshot: snapshot.name, default=None)
        if newest is None or (parent is not None and newest.name <= parent.name):
            return Outlook(None if parent is None else str(parent.name))
        return Outlook(None if parent is None else str(parent.name), store.estimate(newest, parent))
    except Refused as refusal:
        return Outlook(refused=str(refusal))
