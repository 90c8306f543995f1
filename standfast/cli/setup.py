"""setup: this node from nothing to running, by one command that can be repeated."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from standfast.assembly.parts import parts
from standfast.cli import setup_questions
from standfast.cli.output import print_json
from standfast.config.load import DEFAULT_DIR, config_dir, config_files
from standfast.config.model import Config
from standfast.consul.access import check_token
from standfast.errors import (
    AS_ROOT,
    ConfigError,
    ConsulDenied,
    NeedsRoot,
    Refused,
    StandfastError,
    StepFailed,
    UsageError,
)
from standfast.reasons import Reason
from standfast.setup import given, shipped
from standfast.setup.execute import Ended, Outcome, execute, rehearse
from standfast.setup.look import agent_answers, disk_of, foreign_mount, gateway, look
from standfast.setup.observation import Observed
from standfast.setup.plan import is_done, plan
from standfast.setup.readiness import Problem, problems
from standfast.setup.steps import Effects
from standfast.setup.wanted import Wanted, wanted
from standfast.system.locks import exclusive
from standfast.system.systemd import SystemdUnits
from standfast.text import clean


@dataclass(frozen=True, slots=True)
class Source:
    """The configuration that is to be this node's, and where it comes from."""

    volume: str
    text: str
    origin: Path


class Lines:
    """Prints each step as it ends, and keeps it for --json."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.ended: list[Ended] = []

    def tell(self, ended: Ended) -> None:
        self.ended.append(ended)
        if not self.quiet:
            print(f"{ended.outcome:<8} {ended.do:<12} {clean(ended.text)}", flush=True)

    @property
    def failed(self) -> list[Ended]:
        return [each for each in self.ended if each.outcome is Outcome.FAILED]


def run(args: argparse.Namespace) -> int:
    """Runs `standfast setup`."""
    if not parts().is_machine:
        raise UsageError("the demo's nodes are no machines: nothing can be set up there")
    if os.geteuid() != 0:
        raise NeedsRoot(f"setup looks at what is root's, and changes it. {AS_ROOT}")
    source = _source(args)
    places = shipped.Places()
    brought = shipped.look(places)
    token = _token(args.token)
    goal = _goal(args, source, token, brought, places)
    place = goal.config.consul.token_file
    if place is not None and token is None and not place.exists() and _asks(args):
        token = _token(setup_questions.token(place))
        goal = _goal(args, source, token, brought, places)
    seen = look(goal, brought, places)
    found = problems(seen, goal, replace_config=args.yes)
    steps = plan(seen, goal)
    lines = Lines(quiet=args.json)
    if not args.json:
        _show(goal, found)
    grave = [problem for problem in found if problem.grave]
    if grave or args.dry_run:
        rehearse(steps, lines.tell)
        return _end(args, goal, seen, found, lines, ask_for=grave)
    if not args.yes and not is_done(steps):
        rehearse(steps, lines.tell)
        if not setup_questions.agree("Do it?"):
            print("nothing was changed")
            return 0
        print()
        lines.ended.clear()
    with exclusive(goal.config.paths.run / "setup.lock", "another setup"):
        effects = Effects(goal, seen, places, SystemdUnits(), _answers)
        execute(steps, effects.acts(), lines.tell)
    return _end(args, goal, seen, found, lines)


def _answers(config: Config) -> bool:
    if config.node in config.nodes:
        return agent_answers(config)
    return SystemdUnits().is_active(f"standfast-watch@{config.volume}.service")


# What is given


def _asks(args: argparse.Namespace) -> bool:
    return setup_questions.on_terminal() and not args.yes and not args.json


def _source(args: argparse.Namespace) -> Source:
    """Takes the file that is named, or the one that is there, or asks."""
    asks = _asks(args)
    if not asks and not args.yes and not args.dry_run:
        raise UsageError("nobody can be asked here: --yes does it without, --dry-run shows it")
    if args.config is not None:
        return _read(Path(args.config))
    try:
        files: Sequence[Path] = config_files(config_dir())
    except ConfigError:
        files = ()
    if len(files) == 1:
        return _read(files[0])
    if files:
        names = ", ".join(map(str, files))
        raise UsageError(f"there are several volumes ({names}): name one with --config FILE")
    if not asks:
        raise UsageError(f"{config_dir()} has no configuration: give one with --config FILE")
    path = setup_questions.cluster_file()
    if path is not None:
        return _read(path)
    volume, answers = setup_questions.answers()
    return Source(volume, given.new_text(volume, answers), DEFAULT_DIR / f"{volume}.toml")


def _read(path: Path) -> Source:
    if path.suffix != ".toml":
        raise UsageError(f"{path} is no VOLUME.toml: its name is the volume's")
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    return Source(path.stem, text, path)


def _token(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        text = (sys.stdin.read(4096) if name == "-" else Path(name).read_text()).strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"the token can't be read from {name}: {error}") from error
    if not text:
        raise UsageError(f"there is no token in {'stdin' if name == '-' else name}")
    check_token(text, "Consul")
    return text


def _goal(
    args: argparse.Namespace,
    source: Source,
    token: str | None,
    brought: shipped.Shipped,
    places: shipped.Places,
) -> Wanted:
    target = config_dir() / f"{source.volume}.toml"
    text = source.text
    config = given.take(text, source.volume, source.origin, target)
    in_consul = ""
    if args.node is None and config.node not in config.nodes:
        in_consul = _name_in_consul(token, config)
    name = given.own_name(text, args.node, in_consul)
    if name is not None:
        text = given.with_node(text, name)
        config = given.take(text, source.volume, source.origin, target)
    mounts = foreign_mount(config, places) is None
    return wanted(config, text, token, brought, disk_of(config), mounts=mounts)


def _name_in_consul(token: str | None, config: Config) -> str:
    """Returns what Consul's agent here is called, empty where a client's token may not ask.

    UsageError where that can't be known: a storage node is not to be taken for a client.
    """
    try:
        return gateway(config, token).node_name()
    except ConsulDenied:
        return ""
    except StandfastError as error:
        raise UsageError(
            f"{config.node} is none of [nodes], and what this machine's Consul agent is called "
            f"isn't known ({error}): name the node by --node, or bring that agent up"
        ) from error


# What is said


def _show(goal: Wanted, found: Sequence[Problem]) -> None:
    config = goal.config
    kind = "a storage node" if goal.is_storage else "a client"
    print(clean(f"{config.volume}: {config.node} is {kind} of cluster {config.cluster}"))
    for problem in found:
        print(f"{'BAD' if problem.grave else '!':<8} {problem.check:<12} {clean(problem.evidence)}")
        print(f"{'':<21} -> {clean(problem.fix)}")


def _end(
    args: argparse.Namespace,
    goal: Wanted,
    seen: Observed,
    found: Sequence[Problem],
    lines: Lines,
    ask_for: Sequence[Problem] = (),
) -> int:
    """Says what comes next, or what has to; the exit code."""
    error: StandfastError | None = None
    if ask_for:
        names = ", ".join(dict.fromkeys(problem.check for problem in ask_for))
        text = f"nothing was changed; mend what is BAD above ({names}), then run this again"
        error = Refused(Reason.SETUP_NOT_POSSIBLE, text)
    elif lines.failed:
        first = lines.failed[0]
        error = StepFailed(f"{first.do}: {first.text}. Mend that, then run this again")
    next_ = () if error else next_commands(goal, seen)
    if args.json:
        doc = {
            "done": error is None and not args.dry_run,
            "dry_run": args.dry_run,
            "volume": goal.config.volume,
            "node": goal.config.node,
            "storage_node": goal.is_storage,
            "problems": [problem.document() for problem in found],
            "steps": [ended.document() for ended in lines.ended],
            "next": list(next_),
        }
        if error is not None:
            reason = error.reason if isinstance(error, Refused) else Reason.UNEXPECTED
            doc |= {"error": str(error), "reason": str(reason), "exit_code": error.exit_code}
        print_json(doc)
        return 0 if error is None else error.exit_code
    if error is not None:
        raise error
    if not args.dry_run and all(
        ended.outcome is Outcome.ALREADY or ended.do == "check" for ended in lines.ended
    ):
        print("everything is done already")
    for number, command in enumerate(next_):
        print(f"{'next:' if number == 0 else '     '} {clean(command)}")
    return 0


def next_commands(goal: Wanted, seen: Observed) -> Sequence[str]:
    """Returns what somebody types next, in order."""
    config = goal.config
    if not goal.is_storage:
        return (f"standfast status    # {config.paths.bind} follows whoever serves",)
    adds = tuple(f"standfast standby add {name}" for name in config.standbys)
    if seen.consul.leader is not None:
        return adds
    live = config.paths.live
    first = f"standfast promote --reason 'first primary'    # once, on the node that has {live}"
    if not live.exists():
        first = f"btrfs subvolume create {live}    # for a new volume, on one node, which then: "
        first += "standfast promote --reason 'first primary'"
    return (*adds, first)
