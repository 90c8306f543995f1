"""Pages generated from the tables: docs/cli.md, docs/config.md, the man page, journald's catalog.

`python -m standfast.cli.documents docs` writes them; a test fails while one is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from standfast import __version__
from standfast.cli.commands import COMMANDS, ENVIRONMENT, EXIT_CODES, Argument, Command, visible
from standfast.cli.parser import DESCRIPTION
from standfast.config.reference import reference
from standfast.doctor.causes import page
from standfast.events.catalog import CATALOG, catalog

INTRODUCTION = f"""\
# The command line

{DESCRIPTION}
Each command takes `--volume` where more than one volume is configured. Commands that change
something have `--dry-run`, which prints what would be done. With `--json`, an error is printed
as JSON, too: `{{"error": ..., "reason": ..., "exit_code": ...}}`.

This page is generated from the table that the parser uses.
"""


def pages() -> Mapping[str, str]:
    """Name below docs/ -> content."""
    return {
        "cli.md": markdown(),
        "config.md": reference(),
        "standfast.1": man_page(),
        "doctor.md": page(),
        CATALOG: catalog(),
    }


def markdown() -> str:
    """docs/cli.md."""
    parts = [INTRODUCTION]
    parts += [_markdown_command(command) for command in visible()]
    internal = [(synopsis(one), one.help) for one in COMMANDS if one.hidden]
    parts += [_markdown_table("Run by units and handlers", ("command", "what it does"), internal)]
    codes = [(str(code), text) for code, text in EXIT_CODES]
    parts += [_markdown_table("Exit status", ("code", "meaning"), codes)]
    parts += [_markdown_table("Environment", ("variable", "meaning"), ENVIRONMENT)]
    return "\n".join(parts)


def man_page() -> str:
    """docs/standfast.1."""
    lines = [
        f'.TH STANDFAST 1 "" "Standfast {__version__}" "User Commands"',
        ".SH NAME",
        f"standfast \\- {_roff(DESCRIPTION[:1].lower() + DESCRIPTION[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        ".B standfast",
        ".I COMMAND",
        "[\\fIoptions\\fR]",
        ".SH DESCRIPTION",
        _roff(
            "One of several nodes serves a btrfs subvolume over NFS; it holds a lease in Consul, "
            "replicates its snapshots to the others, and one of them takes over when it dies or "
            "when an operator asks. Whatever would let two nodes serve is refused, with a reason."
        ),
        ".SH COMMANDS",
    ]
    for command in visible():
        lines += _man_command(command)
    lines.append(".SH EXIT STATUS")
    for code, text in EXIT_CODES:
        lines += [".TP", f".B {code}", _roff(text)]
    lines.append(".SH ENVIRONMENT")
    for names, text in ENVIRONMENT:
        lines += [".TP", f".B {_roff(names)}", _roff(text)]
    lines += [
        ".SH FILES",
        ".TP",
        ".I /etc/standfast/VOLUME.toml",
        "the configuration; see",
        ".B standfast config example",
        ".TP",
        ".I /var/lib/standfast/VOLUME/",
        "state that survives a reboot",
        ".TP",
        ".I /run/standfast/VOLUME/",
        "sockets and locks",
        ".SH SEE ALSO",
        ".BR consul (1),",
        ".BR exports (5),",
        ".BR btrfs\\-send (8)",
    ]
    return "\n".join(lines) + "\n"


def synopsis(command: Command) -> str:
    """`standfast switchover [--to NODE]`."""
    options = [f"[{_usage(one)}]" for one in command.arguments if one.is_option]
    positionals = [_positional(one) for one in command.arguments if not one.is_option]
    return " ".join(["standfast", command.name, *positionals, *options])


def write(directory: Path) -> None:
    """Write all pages below `directory`."""
    for name, text in pages().items():
        (directory / name).write_text(text, encoding="utf-8")


def _markdown_command(command: Command) -> str:
    text = f"{_sentence(command.help)}{' ' + command.more if command.more else ''}"
    lines = [f"## `{command.name}`", "", f"    {synopsis(command)}", "", text, ""]
    if command.arguments:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| `{_usage(one)}` | {_meaning(one)} |" for one in command.arguments]
        lines.append("")
    return "\n".join(lines)


def _markdown_table(title: str, heads: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"## {title}", "", f"| {heads[0]} | {heads[1]} |", "|---|---|"]
    lines += [f"| `{left}` | {right} |" for left, right in rows]
    return "\n".join(lines) + "\n"


def _man_command(command: Command) -> list[str]:
    lines = [f".SS {_roff(synopsis(command))}", _roff(_sentence(command.help))]
    if command.more:
        lines.append(_roff(command.more))
    for argument in command.arguments:
        lines += [".TP", f".B {_roff(_usage(argument))}", _roff(_meaning(argument))]
    return lines


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


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


def main(argv: Sequence[str]) -> int:
    """`python -m standfast.cli.documents DIRECTORY`."""
    write(Path(argv[0] if argv else "docs"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
