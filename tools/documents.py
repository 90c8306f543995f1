"""`python -m tools.documents` writes every page that is made of a table or of the parser.

Invariant: nobody edits these files, and a test fails while one of them is out of date.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from standfast.cli.command import Argument, Command
from standfast.cli.commands import COMMANDS, visible
from standfast.cli.parser import DESCRIPTION
from standfast.doctor.causes import CAUSES
from tools.completion import script
from tools.config_reference import reference
from tools.interface import ENVIRONMENT, EXIT_CODES
from tools.journal_catalog import catalog
from tools.man_page import man_page

ROOT = Path(__file__).parents[1]
INTRODUCTION = f"""\
# The command line

{DESCRIPTION}
Each command needs `--volume` when more than one volume is configured, but for those that only
look: `status`, `doctor`, `history`, `standby list` and `snapshots` tell of all then, and exit with
the highest status. With `--json` they print a list of the documents then (of one volume, named or
the only one, the document itself); a volume that can't be asked is in it with `"volume"`,
`"error"`, `"reason"` and `"exit_code"`. Commands that change
something have `--dry-run`, which prints what they would do; with `--json` they say whether it is
`"done"`, which after a dry run is `false`, with `"dry_run": true`. Where there are several steps
they are in `"steps"`, a list of objects; those of `promote`, `switchover`, `failback` and `demote`
are `{{"do": NAME, "says": SENTENCE}}`. With `--json`, an error is printed as JSON, too:
`{{"error": ..., "reason": ..., "exit_code": ...}}`.

This page is generated from the table that the parser uses.
"""


DOCTOR = """\
# doctor

`standfast doctor` runs all checks of this node and prints them in groups: the result of each, and
for each problem what it means and how to fix it. It changes nothing, needs no running agent, and
always ends, whatever hangs: a check that can't be made is a finding (`look`). Exit status 0: every
check passed; 1: one failed.

On the primary it also checks the connection to each standby as a replication uses it: ssh, the host
key, the replication key, what the key may do, versions, clocks, space.

`--json` prints one object, whose names don't change (a list of them where several volumes are
configured and none is named):

    {"v": 1, "volume": ..., "node": ..., "ok": true or false, "findings": [
      {"group": ..., "check": ..., "subject": ..., "ok": true or false,
       "cause": ..., "evidence": ..., "fix": ...}
    ]}

`subject` is a node's name in the groups `replication` and `takeover`, else empty; `cause` and `fix`
are empty when the check passed. Checks that don't apply to a node are left out. `eligible` and
`users` (group `nomad`), `limit`, `export` and `confined` (group `storage`) and `elections` (group
`node`: how long an election of Consul's is by its timing, and whether this machine leads it) are
information only: they never fail; nor does `flags` where it names files whose `chattr`
flags a failover loses, nor `set-uid` where only the operator's own mount of the disk lets
such programs work.

| group | check | when it is bad |
|---|---|---|
"""


def pages() -> Mapping[str, str]:
    """Returns path in the project -> content."""
    return {
        "docs/cli.md": markdown(),
        "docs/config.md": reference(),
        "docs/doctor.md": doctor(),
        "docs/standfast.1": man_page(),
        "docs/completion/standfast.bash": script("bash"),
        "docs/completion/_standfast": script("zsh"),
        "docs/completion/standfast.fish": script("fish"),
        "systemd/standfast.catalog": catalog(),
    }


def markdown() -> str:
    """docs/cli.md."""
    parts = [INTRODUCTION]
    parts += [_markdown_command(command) for command in visible()]
    internal = [(synopsis(command), command.help) for command in COMMANDS if command.hidden]
    parts += [
        _markdown_table(
            "Commands that units and handlers run", ("command", "what it does"), internal
        )
    ]
    codes = [(str(code), text) for code, text in EXIT_CODES]
    parts += [_markdown_table("Exit status", ("code", "meaning"), codes)]
    parts += [_markdown_table("Environment", ("variable", "meaning"), ENVIRONMENT)]
    return "\n".join(parts)


def doctor() -> str:
    """docs/doctor.md."""
    rows = [f"| {group} | `{check}` | {text} |\n" for (group, check), text in CAUSES.items()]
    return DOCTOR + "".join(rows)


def synopsis(command: Command) -> str:
    """`standfast switchover [--to NODE]`."""
    options = [f"[{_usage(argument)}]" for argument in command.arguments if argument.is_option]
    positionals = [
        _positional(argument) for argument in command.arguments if not argument.is_option
    ]
    return " ".join(["standfast", command.name, *positionals, *options])


def _markdown_command(command: Command) -> str:
    text = f"{_sentence(command.help)}{' ' + command.more if command.more else ''}"
    lines = [f"## `{command.name}`", "", f"    {synopsis(command)}", "", text, ""]
    if command.arguments:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [
            f"| `{_usage(argument)}` | {_meaning(argument)} |" for argument in command.arguments
        ]
        lines.append("")
    return "\n".join(lines)


def _markdown_table(title: str, heads: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"## {title}", "", f"| {heads[0]} | {heads[1]} |", "|---|---|"]
    lines += [f"| `{left}` | {right} |" for left, right in rows]
    return "\n".join(lines) + "\n"


def _usage(argument: Argument) -> str:
    if not argument.is_option:
        return "|".join(argument.choices) or argument.metavar
    metavar = f"[{argument.metavar}]" if argument.kind == "maybe seconds" else argument.metavar
    return f"{argument.name} {metavar}".rstrip()


def _positional(argument: Argument) -> str:
    if argument.kind == "words":
        return f"[{argument.metavar}...]"
    return _usage(argument) if argument.required else f"[{argument.metavar}]"


def _meaning(argument: Argument) -> str:
    if argument.default is None:
        return argument.help
    if argument.kind == "maybe seconds":
        return f"{argument.help} (without a number: {argument.default:g})"
    return f"{argument.help} (default: {argument.default:g})"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(("?", ".")) else f"{text}."


def main() -> None:
    for name, text in pages().items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
