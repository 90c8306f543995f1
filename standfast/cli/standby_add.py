"""standby add: from a node in the configuration to a standby that has everything.

Each step has a line, and each can be repeated: what is done already is found done. On a node that
isn't primary only the way is made ready, for the day on which it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from standfast.assembly.parts import open_store
from standfast.cli.output import error_fields, note, print_json
from standfast.cli.remote import elsewhere
from standfast.cli.replicate import Outlook, outlook
from standfast.cli.steps import Report, node_name
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.consul.gateway import PATIENT_S, ConsulGateway
from standfast.errors import Refused, StandfastError, UsageError, ours
from standfast.reasons import Reason
from standfast.replication import preflight, session, wire
from standfast.replication.cycle import CycleResult, Sender
from standfast.replication.failures import reason_of
from standfast.replication.ports import ReplicaStore
from standfast.replication.progress import showing
from standfast.replication.reporting import leader_of
from standfast.replication.standby_connection import StandbyConnection
from standfast.replication.standby_step import Mark, Step
from standfast.replication.survey import both_sides
from standfast.replication.timers import timer_of
from standfast.requests.record import Arguments, Verb
from standfast.system.clock import Deadline, sleep
from standfast.system.systemd import SystemdUnits
from standfast.text import duration, size

SURVEY_S = 60.0
ATTEMPTS = 5
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0
# What another attempt can cure: cuts, elections, a cycle of the timer that is at work.
_PASSING = frozenset(
    {
        Reason.BUSY,
        Reason.INCOMPLETE,
        Reason.DEADLINE,
        Reason.REPLICATION_FAILED,
        Reason.CONSUL_UNREACHABLE,
        Reason.CONSUL_TIMEOUT,
        Reason.CONSUL_NO_QUORUM,
        Reason.CONSUL_LIMITED,
        Reason.CONSUL_GARBLED,
    }
)


def run(args: argparse.Namespace) -> int:
    """Runs `standfast standby add NODE`."""
    node = node_name(args.node)
    if args.on and args.install_key:
        raise UsageError("--install-key uses your own ssh: run it on the node that is to send")
    if (code := _elsewhere(args, node)) is not None:
        return code
    config = load_volume(args.volume)
    report = Report(quiet=args.json)
    joining = _Joining(
        config,
        node,
        StandbyConnection(config, node, install_key=args.install_key, dry_run=args.dry_run),
        timeout_s=args.timeout,
        quiet=args.quiet or args.json,
        dry_run=args.dry_run,
    )
    for step in joining.steps():
        report.add(step)
    bad = report.bad
    error = None if bad is None else _error_of(bad, node)
    if args.json:
        done = error is None and not args.dry_run
        doc = {"done": done, "volume": config.volume, "node": node}
        doc |= {"dry_run": args.dry_run, "steps": report.documents()}
        if error is not None:
            doc |= {**error_fields(error), "exit_code": error.exit_code}
        print_json(doc)
        return 0 if error is None else error.exit_code
    if error is not None:
        raise error
    return 0


def _elsewhere(args: argparse.Namespace, node: str) -> int | None:
    """From a machine that is no storage node, the primary does it."""

    def arguments(_config: Config) -> Arguments:
        return Arguments(
            dry_run=args.dry_run, as_json=args.json, standby=node, timeout_s=args.timeout
        )

    return elsewhere(args, Verb.STANDBY_ADD, arguments)


def _error_of(bad: Step, node: str) -> StandfastError:
    if isinstance(bad.error, StandfastError):
        return bad.error
    return Refused(
        Reason.STANDBY_NOT_READY,
        f"{bad.name}: {bad.evidence}. Fix that, then: standfast standby add {node}",
    )


@dataclass
class _Joining:
    config: Config
    node: str
    connection: StandbyConnection
    timeout_s: float
    quiet: bool
    dry_run: bool

    def __post_init__(self) -> None:
        self.deadline = Deadline.after(self.timeout_s)
        self.store: ReplicaStore = open_store(self.config)
        self.coming = Outlook()
        self.there: Sequence[wire.Offer] | None = None
        """What the standby just said it has; None when that is old."""

    def steps(self) -> Iterator[Step]:
        """Yields the steps; ends after a BAD one."""
        for step in self.connection.steps():
            yield step
            if step.mark is Mark.BAD:
                return
        if step.mark is Mark.LEFT and step.name == "door":  # a dry run that can't know more
            return
        survey = list(self._survey())
        yield from survey
        if any(step.mark is Mark.BAD for step in survey):
            return
        step = self._role()
        yield step
        if step.mark is not Mark.OK:
            return
        if self.dry_run:
            yield Step("send", Mark.LEFT, f"would take a snapshot; {self.coming.sentence()}")
            return
        step = self._send()
        yield step
        if step.mark is Mark.OK:
            yield self._timer()

    # Both sides

    def _survey(self) -> Iterator[Step]:
        """Compares what both sides say of themselves, and finds what doesn't fit."""
        try:
            both = both_sides(self.config, self.store, self.node, self.deadline.within(SURVEY_S))
            self.there = both.snapshots
            full = not self._in_common(both.snapshots)
            self.coming = outlook(self.config, self.node, both.snapshots, full=full)
        except (StandfastError, OSError) as error:
            known = ours(error)
            yield Step("survey", Mark.BAD, f"both sides can't be checked: {known}", error=known)
            return
        problems = [
            *preflight.problems(both.ours),
            *preflight.problems(both.theirs),
            *preflight.problems_between(
                both.ours,
                both.theirs,
                size_bytes=self.coming.estimate_bytes,
                apart_s=both.apart_s,
            ),
        ]
        for problem in dict.fromkeys(problems):
            mark = Mark.BAD if problem.grave else Mark.WORD
            yield Step(problem.check, mark, problem.evidence, (problem.fix,))
        if not any(problem.grave for problem in problems):
            free = size(both.theirs.free_bytes)
            names = f"{self.config.node} and {self.node}"
            yield Step("survey", Mark.OK, f"{names} fit together; {free} are free on {self.node}")

    def _gateway(self) -> ConsulGateway:
        return ConsulGateway.from_config(self.config, timeout_s=PATIENT_S)

    # Who is primary

    def _role(self) -> Step:
        try:
            leader = leader_of(self.config, self._gateway())
        except StandfastError as error:
            return Step("primary", Mark.BAD, str(error), error=error)
        if leader is None:
            return Step(
                "primary",
                Mark.LEFT,
                f"nobody is primary yet: replication to {self.node} is prepared. Once, on the node "
                f"that has the data: standfast promote",
            )
        holder = leader.holder.node
        if holder == self.config.node:
            return Step("primary", Mark.OK, f"{holder} is the primary, in epoch {leader.epoch}")
        return Step(
            "primary",
            Mark.LEFT,
            f"{holder} is the primary, not this node: replication to {self.node} is prepared for "
            f"when this node takes over, and nothing is sent now (on {holder}: standfast standby "
            f"add {self.node})",
        )

    # The first snapshot

    def _send(self) -> Step:
        """Sends; repeats after a cut, with the same snapshot while that is fresh, and not for ever.

        A cycle that the timer began is waited for, and counts as no try of ours.
        """
        pause_s, tries = FIRST_PAUSE_S, 0
        while True:
            try:
                return Step("send", Mark.OK, _what_is_there(self.node, self._cycle()))
            except (StandfastError, OSError) as error:
                reason = reason_of(error)
                tries += reason is not Reason.BUSY
                no_time = self.deadline.remaining_s() < pause_s
                if tries == ATTEMPTS or no_time or reason not in _PASSING:
                    return _not_sent(self.node, error, tries)
                count = f" ({tries} of {ATTEMPTS} tries)" if tries else ""
                self._say(f"{error}; trying again in {pause_s:.0f} s{count}")
            sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def _cycle(self) -> CycleResult:
        sender = Sender(self.config, self.store, self._gateway())
        with showing(self.node, quiet=self.quiet) as progress:
            return sender.cycle(
                self.node,
                full=not self._something_common(),
                timeout_s=self.deadline.remaining_s(),
                on_progress=progress,
            )

    def _something_common(self) -> bool:
        """Tells whether an increment is enough; else everything is sent."""
        if self.there is None:
            soon = self.deadline.within(SURVEY_S)
            with session.greet(self.config, self.node, soon, wire.Purpose.ASK) as (_, welcome):
                self.there = welcome.snapshots
        there, self.there = self.there, None
        return self._in_common(there)

    def _in_common(self, there: Sequence[wire.Offer]) -> bool:
        offered = {offer.content_id for offer in there}
        return any(snapshot.content_id in offered for snapshot in self.store.snapshots())

    def _say(self, text: str) -> None:
        if not self.quiet:
            note(f"{self.node}: {text}")

    # What goes on by itself

    def _timer(self) -> Step:
        """Checks whether the agent has started the timer; it changes nothing."""
        unit = timer_of(self.config, self.node)
        every = duration(self.config.replication.interval)
        try:
            active = SystemdUnits().is_active(unit)
        except StandfastError:
            text = f"systemd doesn't report {unit}; `standfast replicate {self.node}` runs a cycle"
            return Step("timer", Mark.LEFT, text)
        if active:
            text = (
                f"{unit} is active: the next cycle is at most {every} away, then one each {every}"
            )
            return Step("timer", Mark.OK, text)
        agent = f"standfast-agent@{self.config.volume}"
        return Step(
            "timer",
            Mark.BAD,
            f"{unit} is not active: no replication runs automatically",
            (f"the agent starts it once it has read the configuration: systemctl restart {agent}",),
        )


def _what_is_there(node: str, done: CycleResult) -> str:
    if done.sent_bytes == 0 and done.parent is None:
        return f"{node} had {done.snapshot} already"
    how = f"the changes since {done.parent}" if done.parent else "everything"
    return f"{node} has {done.snapshot}: {how}, {size(done.sent_bytes)} in {done.seconds:.1f} s"


def _not_sent(node: str, error: Exception, attempts: int) -> Step:
    tries = "" if attempts <= 1 else f", {attempts} times"
    known = ours(error)
    return Step(
        "send",
        Mark.BAD,
        f"not sent{tries}: {known}",
        (f"nothing partial is visible on {node}; again: standfast standby add {node}",),
        known,
    )
