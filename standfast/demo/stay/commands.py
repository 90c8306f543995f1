"""The commands at the prompt of `standfast demo --stay`, in one table, and how a line is read.

From a command's form come what it takes, its completion and what it says when a word is wrong:
`NODE` is one of the nodes, `a|b` one of these words, `SECONDS` a number, `[...]` may be left out.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from standfast.cli.commands import visible
from standfast.errors import UsageError

NODE, SECONDS, COMMAND, ALL = "NODE", "SECONDS", "COMMAND", "all"
ON_NODE = "NODE COMMAND..."


@dataclass(frozen=True, slots=True)
class Command:
    """Its first word is its name."""

    form: str
    help: str

    @property
    def name(self) -> str:
        return self.form.split(" ")[0]

    @property
    def slots(self) -> list[tuple[list[str], bool]]:
        """The words that each argument may be, and whether it may be left out."""
        parts = self.form.split(" ")[1:]
        return [(part.strip("[]").split("|"), part.startswith("[")) for part in parts]


COMMANDS = (
    Command("kill NODE", "cut its power: SIGKILL to all that runs on it; its disk stays"),
    Command("start NODE", "boot it again, and wait until it knows its role"),
    Command("freeze [NODE] lease|agent", "stop that process, as SIGSTOP does"),
    Command("thaw [NODE]", "let what is frozen go on"),
    Command("cut [NODE|all] consul", "cut it off from Consul; all: Consul loses its quorum"),
    Command("heal [NODE]", "connect again what is cut off"),
    Command("wait [SECONDS]", "until the client writes and every sound node knows its role"),
    Command("status [NODE]", "who serves, and what would a failover lose"),
    Command("history", "the primaries, and what was lost"),
    Command("doctor [NODE]", "all checks of a node"),
    Command("switchover [NODE]", "move the role to that standby, or the one with the newest data"),
    Command("failback", "move the role back to zippy"),
    Command("promote NODE", "make it the primary when nobody takes over by itself"),
    Command("write", "how far the client has got, and what the standbys have of it"),
    Command("page", "where the status pages are"),
    Command("help [COMMAND]", "this list"),
    Command("quit", "end the demo, as Ctrl-D does"),
    Command(ON_NODE, "any `standfast` command on that node, as `c1 snapshots`"),
)
NAMES = {command.name: command for command in COMMANDS if command.form != ON_NODE}


@dataclass(frozen=True, slots=True)
class Asked:
    """A line that was understood. `words` has the arguments by the first word of their slot;
    `rest` what is to run on a node."""

    name: str
    words: Mapping[str, str] = field(default_factory=dict)
    rest: tuple[str, ...] = ()


def parse(line: str, nodes: Sequence[str]) -> Asked | None:
    """What is asked; None for an empty line. UsageError, with what to type instead."""
    if "\0" in line:
        raise UsageError(f"{line!r}: no program takes a NUL; leave it out")
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{line!r}: {error}; close the quotes") from error
    if not words:
        return None
    name, *rest = words
    if name in nodes:
        if not rest:
            raise UsageError(f"what shall {name} do? For example: `{name} status`, `kill {name}`")
        return Asked(ON_NODE, {NODE: name}, tuple(rest))
    command = NAMES.get(name)
    if command is None:
        raise UsageError(_unknown(name, nodes))
    taken, missing = _fill(command, rest, nodes)
    left = rest[len(taken) :]
    if left:
        raise UsageError(f"{left[0]!r} doesn't fit: {_usage(command, nodes)}")
    if missing is not None:
        raise UsageError(f"{missing} is missing: {_usage(command, nodes)}")
    return Asked(name, taken)


def completions(before: Sequence[str], nodes: Sequence[str]) -> list[str]:
    """What may follow these words."""
    if not before:
        return [*NAMES, *nodes]
    name, *rest = before
    if name in nodes:
        return [] if rest else sorted(_of_standfast())
    command = NAMES.get(name)
    if command is None:
        return []
    taken, _ = _fill(command, rest, nodes)
    if len(taken) < len(rest):
        return []
    may: list[str] = []
    for options, optional in command.slots:
        if options[0] in taken:
            may = []
            continue
        may += _choices(options, nodes)
        if not optional:
            break
    return may


def help_text(name: str | None = None) -> str:
    """A line for each command, or for that one."""
    width = max(len(command.form) for command in COMMANDS)
    told = COMMANDS if name is None else [NAMES[name]]
    return "\n".join(f"  {command.form:<{width}}  {command.help}" for command in told)


def _unknown(name: str, nodes: Sequence[str]) -> str:
    if name in _of_standfast():
        return f"`{name}` runs on a node: `{nodes[0]} {name}`"
    near = difflib.get_close_matches(name, [*NAMES, *nodes], 1)
    return f"no command {name!r}: " + (f"did you mean `{near[0]}`?" if near else "see `help`")


def _fill(
    command: Command, words: Sequence[str], nodes: Sequence[str]
) -> tuple[dict[str, str], str | None]:
    """The words in their slots, as far as they fit, and what is missing then."""
    taken: dict[str, str] = {}
    for options, optional in command.slots:
        word = words[len(taken)] if len(taken) < len(words) else None
        if word is not None and _fits(word, options, nodes):
            taken[options[0]] = word
        elif not optional:
            return taken, "|".join(options)
    return taken, None


def _fits(word: str, options: Sequence[str], nodes: Sequence[str]) -> bool:
    if options == [SECONDS]:
        return re.fullmatch(r"\d{1,5}(\.\d{1,3})?", word, re.ASCII) is not None
    return word in _choices(options, nodes)


def _choices(options: Sequence[str], nodes: Sequence[str]) -> list[str]:
    named = {NODE: nodes, SECONDS: (), COMMAND: NAMES}
    return [word for option in options for word in named.get(option, (option,))]


def _usage(command: Command, nodes: Sequence[str]) -> str:
    where = f"; NODE is {', '.join(nodes)}" if NODE in command.form else ""
    return f"`{command.form}`{where}"


def _of_standfast() -> set[str]:
    return {command.name.split(" ")[0] for command in visible()}
