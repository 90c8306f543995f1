"""The man page: argparse-manpage's, with the sections that no parser knows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from unittest import mock

from argparse_manpage.manpage import Manpage

from standfast import __version__
from standfast.cli.commands import visible
from standfast.cli.parser import DESCRIPTION, build
from tools.interface import ENVIRONMENT, EXIT_CODES

MORE = """\
One of several nodes serves a btrfs subvolume over NFS. It holds a lease in Consul and replicates
its snapshots to the others; one of them takes over when it dies or when an operator asks. Standfast
refuses any step that could leave two servers up, and says why.
.PP"""
FILES = (
    ("/etc/standfast/VOLUME.toml", "the configuration; see `standfast config example`"),
    ("/var/lib/standfast/VOLUME/", "state that survives a reboot"),
    ("/run/standfast/VOLUME/", "sockets and locks"),
)
SEE_ALSO = ".BR consul (1),\n.BR exports (5),\n.BR btrfs\\-send (8)"
# argparse wraps to the terminal's width; troff fills the lines again.
WIDTH = "999"


def man_page() -> str:
    """docs/standfast.1; it has no date, so that it changes only with the commands."""
    with mock.patch.dict(os.environ, COLUMNS=WIDTH):
        return _man_page()


def _man_page() -> str:
    about = {"project_name": "Standfast", "version": __version__, "description": _name()}
    page = Manpage(build(commands=visible()), about)
    page.date = ""
    page.manual = "User Commands"
    page.add_section("description", "=", MORE)
    codes = ((str(code), text) for code, text in EXIT_CODES)
    page.add_section("exit status", "=", _list(codes))
    page.add_section("environment", "=", _list(ENVIRONMENT))
    page.add_section("files", "=", _list(FILES))
    page.add_section("see also", "=", SEE_ALSO)
    return str(page)


def _name() -> str:
    return DESCRIPTION[:1].lower() + DESCRIPTION[1:].rstrip(".")


def _list(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f".TP\n.B {_roff(term)}\n{_roff(text)}" for term, text in rows)


def _roff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")
