"""The few questions of `standfast setup` on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from standfast.errors import UsageError
from standfast.setup.given import Answers
from standfast.system.lines import fields_of

TOKEN = "/etc/standfast/token"  # noqa: S105
"""Where a new configuration has it."""
Ask = Callable[[str], str]
"""Shows a text and returns the answer."""


def on_terminal() -> bool:
    """Tells whether somebody sits there who could answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(text: str) -> str:
    """Asks on the terminal; UsageError where the answers end."""
    try:
        return input(text).strip()
    except EOFError:
        raise UsageError("the answers ended: nothing was changed") from None


def agree(question: str, ask: Ask = ask) -> bool:
    """Asks for a yes; anything else is a no."""
    return ask(f"{question} [y/N] ").lower() in ("y", "yes")


def cluster_file(ask: Ask = ask) -> Path | None:
    """Asks for the cluster's file; None: a new one is to be made."""
    given = ask("The cluster's configuration file, as on its other nodes (empty: make one): ")
    return Path(given) if given else None


def answers(ask: Ask = ask) -> tuple[str, Answers]:
    """Asks for what a new configuration can't do without; the volume's name comes first."""
    volume = ask("The volume's name [data-services]: ") or "data-services"
    cluster = ask("The cluster's name [home]: ") or "home"
    nodes: dict[str, str] = {}
    print("The storage nodes, named as `consul members` does; an empty line ends them.")
    while True:
        words = fields_of(ask("  NAME ADDRESS: ").replace("=", " "))
        if not words and nodes:
            break
        if len(words) == 2:
            nodes[words[0]] = words[1]
        elif words:
            print("  a name and an address, with a blank between them")
    clients = fields_of(ask("Who may mount it, machines or networks [192.168.1.0/24]: "))
    token = TOKEN if agree("Does Consul have ACLs?", ask) else ""
    return volume, Answers(cluster, nodes, clients or ["192.168.1.0/24"], token)


def token(place: Path, ask: Ask = ask) -> str | None:
    """Asks for a file with the token that is to be at `place`; None: there is none."""
    return ask(f"A file with Consul's ACL token, for {place} (empty: none): ") or None
