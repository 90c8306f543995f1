"""The table of commands as an argparse parser; usage errors are raised, not printed."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from standfast import __version__
from standfast.cli.command import Argument, Command
from standfast.cli.commands import COMMANDS
from standfast.errors import UsageError, did_you_mean

MOST_TEXT = 500
MOST_SECONDS = 86400.0
MOST_TIME_S = 30 * 86400
_TIME = re.compile(r"([0-9]{1,7})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_HIDDEN = frozenset(command.name for command in COMMANDS if command.hidden)
DESCRIPTION = "Keeps exactly one NFS server alive for a Consul and Nomad cluster."


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Says which command was meant; argparse's own lists also those that nobody runs."""
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices if choice not in _HIDDEN]
        meant = did_you_mean(str(value), known) or f" (choose from {', '.join(known)})"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{meant}")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own swallows a full disk and a reader that is gone.
        if message:
            (file or sys.stderr).write(message)


def build(words: Sequence[str] = (), commands: Sequence[Command] = COMMANDS) -> Parser:
    """Returns the parser; the namespace that it makes has `entry`, MODULE:FUNCTION.

    It has only the commands that these words can mean: all of them take longer to build than most
    commands take to run.
    """
    asked = [command for command in commands if command.name.split(" ")[0] in words[:1]]
    parser = Parser(prog="standfast", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"standfast {__version__}")
    groups = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    nested: dict[str, Any] = {}
    for command in asked or commands:
        first, _, second = command.name.partition(" ")
        if not second:
            _add(groups, first, command)
            continue
        if first not in nested:
            parts = [part.name for part in commands if part.name.startswith(first + " ")]
            group = groups.add_parser(first, help=f"see `{'`, `'.join(parts)}`")
            nested[first] = group.add_subparsers(metavar="COMMAND", title="commands", required=True)
        _add(nested[first], second, command)
    return parser


def _add(groups: Any, name: str, command: Command) -> None:
    described = {} if command.hidden else {"help": command.help}
    text = ". ".join(part for part in (_sentence(command.help), command.more) if part)
    parser = groups.add_parser(name, description=text, allow_abbrev=False, **described)
    parser.set_defaults(entry=command.entry, command=command.name, json=False, volume=None)
    for argument in command.arguments:
        parser.add_argument(*_names(argument), **_behaviour(argument))


def _names(argument: Argument) -> tuple[str, ...]:
    return (argument.name,) if argument.is_option else (argument.dest,)


def _behaviour(argument: Argument) -> dict[str, Any]:
    said: dict[str, Any] = {"help": argument.help}
    if not argument.metavar:
        return said | {"action": "store_true"}
    said["metavar"] = argument.metavar
    kinds: dict[str, Callable[[str], Any]] = {
        "seconds": _seconds,
        "maybe seconds": _seconds,
        "time": _time,
    }
    said["type"] = kinds.get(argument.kind, _text)
    if argument.choices:
        said["choices"] = argument.choices
    if argument.kind == "words":
        said["nargs"] = "*"
    elif not argument.is_option and not argument.required:
        said["nargs"] = "?"
    if argument.kind == "maybe seconds":
        said["help"] += f" (without a number: {argument.default:g})"
        return said | {"nargs": "?", "const": argument.default}
    if argument.default is not None:
        said["default"] = argument.default
        said["help"] += f" (default: {argument.default:g})"
    return said


def _text(raw: str) -> str:
    if not raw or not raw.isprintable() or len(raw) > MOST_TEXT:
        raise argparse.ArgumentTypeError(
            f"{raw[:40]!r} is not a text of 1 to {MOST_TEXT} printable characters"
        )
    return raw


def _seconds(raw: str) -> float:
    try:
        seconds = float(raw)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{raw[:40]!r} is not a number of seconds above 0 and up to {MOST_SECONDS:g}"
        )
    return seconds


def _time(raw: str) -> float:
    match = _TIME.fullmatch(raw)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= MOST_TIME_S:
        raise argparse.ArgumentTypeError(
            f"{raw[:40]!r} is not a time above 0 and up to 30d: 45s, 90m, 2h, 1d"
        )
    return float(seconds)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
