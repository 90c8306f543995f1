"""remount and client units: a client's side, for handlers, the timer and people."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from standfast.assembly.client import parts_of, restart_late
from standfast.assembly.parts import parts
from standfast.cli.output import note, print_json
from standfast.cli.targets import for_each_volume
from standfast.cli.wake import drain
from standfast.clients.loop import Outcome, Remount
from standfast.clients.plan import plan_for
from standfast.clients.record import report
from standfast.clients.units import unit_files
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.errors import Refused, StandfastError
from standfast.events.log import set_up_log
from standfast.system.clock import Deadline
from standfast.system.files import read_foreign_text, write_atomically
from standfast.text import clean

log = logging.getLogger(__name__)

UNITS_DIR = Path("/etc/systemd/system")
DRAIN_S = 2.0


def remount(args: argparse.Namespace) -> int:
    """Runs `standfast remount` for one volume, or for all of this node. With --event it never fails
    for what it could not do: the next event or the timer tries again."""
    by_event = args.event is not None
    if by_event:
        set_up_log()
        # The timer has no event on stdin.
        if args.event != "timer" and sys.stdin is not None and not sys.stdin.closed:
            drain(sys.stdin.fileno(), Deadline.after(DRAIN_S))

    def act(config: Config) -> int:
        if by_event:
            _by_event(config, args.event)
            return 0
        return _by_hand(config, args.dry_run, args.json)

    return for_each_volume(args.volume, act)


def _by_event(config: Config, event: str) -> None:
    if not parts().is_machine:  # the demo's server can't be mounted
        return
    try:
        made = parts_of(config)
        outcome = Remount(made, thorough=event != "timer").run()
    except (StandfastError, OSError) as error:
        log.warning("%s: %s", config.volume, error)
        return
    restart_late(config)
    report(config, made.consul, outcome.decision)
    decision = outcome.decision
    if outcome.trouble is not None:
        log.warning("%s: %s", decision.reason, outcome.trouble)
    elif event != "timer":
        log.info("%s: %s", decision.reason, decision.sentence)


def _by_hand(config: Config, dry_run: bool, as_json: bool) -> int:
    if not parts().is_machine:
        note(f"{config.volume}: the demo's server can't be mounted")
        return 0
    made = parts_of(config)
    run = Remount(made)
    if dry_run:
        observed, decision = run.decide()
        outcome = Outcome(decision, plan_for(decision, observed, config))
    else:
        try:
            outcome = run.run()
        except Refused:
            raise
        except OSError as error:
            raise StandfastError(f"{config.volume}: {error}; run it as root") from error
        report(config, made.consul, outcome.decision)
    _show(config, outcome, dry_run, as_json)
    return 0 if outcome.trouble is None else StandfastError.exit_code


def _show(config: Config, outcome: Outcome, dry_run: bool, as_json: bool) -> None:
    decision = outcome.decision
    if as_json:
        print_json(
            {
                "volume": config.volume,
                "node": config.node,
                "dry_run": dry_run,
                "action": decision.action,
                "reason": decision.reason,
                "sentence": decision.sentence,
                "server": None if decision.server is None else decision.server.address,
                "epoch": None if decision.server is None else decision.server.epoch,
                "steps": [asdict(step) for step in outcome.steps],
                "said": list(outcome.said),
                "trouble": outcome.trouble,
            }
        )
        return
    print(clean(f"{config.volume}: {decision.sentence} [{decision.reason}]"))
    for step in outcome.steps:
        print(clean(f"  {'would ' if dry_run else ''}{step.says}"))
    for text in outcome.said:
        print(clean(f"  {text}"))
    if outcome.trouble is not None:
        note(f"standfast: {outcome.trouble}")


def units(args: argparse.Namespace) -> int:
    """Runs `standfast client units`: prints the mount and automount unit, or writes them."""
    config = load_volume(args.volume, require_storage=False)
    files = unit_files(config)
    if not args.install:
        for name, text in files.items():
            print(f"# {UNITS_DIR}/{name}\n{text}")
        return 0
    directory = Path(args.dir) if args.dir else UNITS_DIR
    for name, text in files.items():
        path = directory / name
        same = path.exists() and read_foreign_text(path) == text
        if not same and not args.dry_run:
            write_atomically(path, text)
        done = "is there already" if same else "would be written" if args.dry_run else "written"
        print(f"{path}: {done}")
    mount, automount = files
    note(
        f"now: systemctl daemon-reload && systemctl enable --now {automount}   "
        f"(or {mount}, to have it mounted all the time)"
    )
    return 0
