"""uninstall: takes Standfast off this node, and on request out of Consul; data stays."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from standfast.assembly.parts import parts
from standfast.cli import setup_questions
from standfast.cli.output import print_json
from standfast.cli.setup import Lines
from standfast.config.load import config_dir, config_files, load, load_volume
from standfast.config.model import Config
from standfast.config.problems import InvalidConfig
from standfast.errors import AS_ROOT, NeedsRoot, StandfastError, StepFailed, UsageError
from standfast.setup import given, shipped
from standfast.setup.execute import Ended, Outcome, execute, rehearse
from standfast.setup.removal import Ask, Do, Leaving, check, is_done, plan
from standfast.setup.removal_look import Look
from standfast.setup.removal_steps import Effects
from standfast.system.locks import exclusive
from standfast.system.systemd import SystemdUnits
from standfast.text import clean

NOBODYS = "unnamed"


def run(args: argparse.Namespace) -> int:
    """Runs `standfast uninstall`."""
    if not parts().is_machine:
        raise UsageError("the demo's nodes are no machines: they go with it")
    if os.geteuid() != 0:
        raise NeedsRoot(f"uninstall looks at what is root's, and takes it away. {AS_ROOT}")
    if args.package and (args.cluster or args.keep_serving):
        raise UsageError("--package is of this node's run time alone: leave the others out")
    asks = setup_questions.on_terminal() and not (args.yes or args.json or args.package)
    if not asks and not (args.yes or args.package or args.dry_run):
        raise UsageError("nobody can be asked here: --yes does it without, --dry-run shows it")
    configs, is_configured = _configs(args.volume)
    if not is_configured and (args.cluster or args.keep_serving):
        raise UsageError(f"{config_dir()} has no configuration: which volume is meant is not known")
    left = 1 if not is_configured else len(config_files(config_dir()))
    wish = Ask(args.cluster, args.keep_serving, args.package)
    lines = Lines(quiet=args.json)
    places = shipped.Places()

    def look() -> list[Leaving]:
        """All of them, before anything of the first goes."""
        brought = shipped.look(places)
        looks = [
            Look(config, number + 1 == left, brought, places, is_configured, args.cluster)
            for number, config in enumerate(configs)
        ]
        found = [one.leaving() for one in looks]
        for seen in found:
            check(seen, wish)
        return found

    all_seen = look()
    if asks and not args.dry_run:
        agreed = _ask(all_seen, wish)
        if agreed is None:
            return 0
        wish = agreed
        lines.ended.clear()
        all_seen = look()  # the answer may have taken an hour
    for seen in all_seen:
        _carry_out(seen, wish, lines, places, dry_run=args.dry_run)
        if lines.failed and not _is_optional(lines):
            break
    return _end(args, all_seen, lines)


def _configs(volume: str | None) -> tuple[Sequence[Config], bool]:
    """Returns the volumes that are to go, and whether any is configured: without, what all volumes
    share may be left."""
    if volume is not None:
        return [load_volume(volume, require_storage=False, acted_by=False)], True
    try:
        files = config_files(config_dir())
    except InvalidConfig:
        return [_nobodys()], False
    return [load(path, require_storage=False, acted_by=False) for path in files], True


def _nobodys() -> Config:
    """Returns the defaults, for a node whose configuration is gone."""
    host = socket.gethostname().split(".")[0]
    answers = given.Answers(NOBODYS, {host: "127.0.0.1"}, ["127.0.0.1"])
    text = given.new_text(NOBODYS, answers)
    target = config_dir() / f"{NOBODYS}.toml"
    return given.take(text, NOBODYS, target, target)


def _ask(all_seen: Sequence[Leaving], wish: Ask) -> Ask | None:
    """Shows the plan and asks; None: no."""
    shown = Lines(quiet=False)
    for seen in all_seen:
        rehearse(plan(seen, wish), shown.tell)
    if not setup_questions.agree("Take Standfast off this node?"):
        print("nothing was changed")
        return None
    if any(seen.state for seen in all_seen):
        forget = setup_questions.agree("Its state, configuration, token and keys, too?")
        wish = replace(wish, forget=forget)
    print()
    return wish


def _carry_out(
    seen: Leaving, wish: Ask, lines: Lines, places: shipped.Places, *, dry_run: bool
) -> None:
    steps = plan(seen, wish)
    if is_done(steps) and not seen.consul.own and not seen.consul.registered:
        steps = tuple(replace(step, pending=False) for step in steps)
    if dry_run:
        rehearse(steps, lines.tell)
    elif any(step.pending for step in steps):
        lock = Path("/run/standfast-uninstall.lock")
        with exclusive(lock, "another uninstall"):
            effects = Effects(seen, places, SystemdUnits(), wish.keep_serving)
            execute(steps, effects.acts(), lines.tell)
        lock.unlink(missing_ok=True)
    else:
        rehearse(steps, lines.tell)
    for path in seen.altered:
        lines.tell(Ended("kept", Outcome.LEFT, f"{path} was changed after it was put here"))
    for text in seen.unknown:
        lines.tell(Ended("kept", Outcome.LEFT, f"not looked at: {text}"))
    for what, command in seen.data:
        lines.tell(Ended("data", Outcome.LEFT, f"{what}    # {command}"))
    _tell_consul(seen, wish, lines)
    if wish.keep_serving:
        bind, live = seen.config.paths.bind, seen.config.paths.live
        text = f"{bind} shows {live} until the next boot; to keep it, in /etc/fstab: " \
               f"{live} {bind} none bind 0 0"  # fmt: skip
        lines.tell(Ended("bind", Outcome.LEFT, text))


def _tell_consul(seen: Leaving, wish: Ask, lines: Lines) -> None:
    config = seen.config
    if wish.cluster:
        for node in seen.consul.foreign:
            text = f"{node} has an entry of the service: there, consul services deregister " \
                   f"-id={config.service_id}"  # fmt: skip
            lines.tell(Ended("consul", Outcome.LEFT, text))
    elif seen.is_storage and seen.consul.others and not wish.package:
        text = f"on {', '.join(seen.consul.others)}: take [nodes.{config.node}] out of the " \
               f"configuration, then `standfast standby remove {config.node}`"  # fmt: skip
        lines.tell(Ended("others", Outcome.LEFT, text))


def _is_optional(lines: Lines) -> bool:
    return all(ended.do in (Do.CONSUL, Do.LINES) for ended in lines.failed)


def _end(args: argparse.Namespace, all_seen: Sequence[Leaving], lines: Lines) -> int:
    error: StandfastError | None = None
    if lines.failed and not (args.package and _is_optional(lines)):
        first = lines.failed[0]
        error = StepFailed(f"{first.do}: {first.text}. Mend that, then run this again")
    if args.json:
        doc = {
            "done": error is None and not args.dry_run,
            "dry_run": args.dry_run,
            "volumes": [seen.config.volume for seen in all_seen],
            "steps": [ended.document() for ended in lines.ended],
        }
        if error is not None:
            doc |= {"error": str(error), "reason": "unexpected", "exit_code": error.exit_code}
        print_json(doc)
        return 0 if error is None else error.exit_code
    if error is not None:
        raise error
    if all(ended.outcome in (Outcome.ALREADY, Outcome.LEFT) for ended in lines.ended):
        print(clean("nothing of Standfast is left here"))
    return 0
