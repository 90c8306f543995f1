"""The completion scripts: shtab's, with completers for volumes, nodes and files.

Names come from the configuration directory, so that completing starts no program of Standfast.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

from standfast.cli.commands import visible
from standfast.cli.parser import build

_VOLUMES = {
    "bash": "_standfast_volumes",
    "zsh": "_standfast_volumes",
    "fish": "(_standfast_volumes)",
}
_NODES = {"bash": "_standfast_nodes", "zsh": "_standfast_nodes", "fish": "(_standfast_nodes)"}
COMPLETERS = {
    "VOLUME": _VOLUMES,
    "NODE": _NODES,
    "STANDBY": _NODES,
    "FILE": shtab.FILE,
    "DIR": shtab.DIRECTORY,
}
"""By the metavar of an argument."""
# The names stand in the files' names and in headings [nodes.NAME], or keys nodes.NAME.address.
_LIST_VOLUMES = "ls {directory} 2>/dev/null | sed -n 's/\\.toml$//p'"
_LIST_NODES = (
    "cat {directory}/*.toml 2>/dev/null "
    "| sed -n 's/^[[:space:]]*\\[\\{{0,1\\}}nodes\\.\"\\{{0,1\\}}\\([^].\"]*\\).*/\\1/p' | sort -u"
)
_POSIX_DIRECTORY = '"${STANDFAST_CONFIG_DIR:-/etc/standfast}"'
_FISH_DIRECTORY = "$directory"


def script(shell: str) -> str:
    """The script for bash, zsh or fish."""
    parser = build(commands=visible())
    for action in _actions(parser):
        if isinstance(action.metavar, str) and action.metavar in COMPLETERS:
            action.complete = COMPLETERS[action.metavar]  # type: ignore[attr-defined]
    text = shtab.complete(parser, shell, root_prefix="standfast", preamble=_preamble(shell))
    return text.rstrip("\n") + "\n"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of all commands; argparse has no public way to them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from _actions(part)
        else:
            yield action


def _preamble(shell: str) -> str:
    return "\n".join(
        _function(shell, name, listing)
        for name, listing in (
            ("_standfast_volumes", _LIST_VOLUMES),
            ("_standfast_nodes", _LIST_NODES),
        )
    )


def _function(shell: str, name: str, listing: str) -> str:
    posix = listing.format(directory=_POSIX_DIRECTORY)
    if shell == "bash":
        return f'{name}() {{\n  compgen -W "$({posix})" -- "$1"\n}}'
    if shell == "zsh":
        return f"{name}() {{\n  compadd -- $({posix})\n}}"
    return (
        f"function {name}\n"
        "  set -l directory /etc/standfast\n"
        "  set -q STANDFAST_CONFIG_DIR; and set directory $STANDFAST_CONFIG_DIR\n"
        f"  {listing.format(directory=_FISH_DIRECTORY)}\n"
        "end"
    )
