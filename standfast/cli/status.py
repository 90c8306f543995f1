"""`standfast status`: who serves, since when, and can we fail over now, and if not, why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import UNSET
from msgspec.structs import replace

from standfast.cli.output import note
from standfast.cli.targets import Answer, forbidden, tell_of_each
from standfast.config.load import config_dir, config_files, load, load_volume
from standfast.config.model import Config
from standfast.errors import NeedsRoot, Unreachable
from standfast.status.asking import of_agent
from standfast.status.document import Status
from standfast.status.text import render
from standfast.status.watching import Watch, Watched

if TYPE_CHECKING:
    from standfast.agent.document import Heard


def fetch(config: Config, heard: Heard | None = None) -> Status:
    """Returns the agent's document; one from Consul alone where no agent runs, which waits for a
    heartbeat of the holder's: for a lease's length, where none comes. `heard` is kept for the next
    look, which has to wait no more."""
    try:
        return of_agent(config)
    except (Unreachable, NeedsRoot) as error:
        # Loading what speaks to Consul would take longer than the agent's answer.
        from standfast.agent.document import without_agent

        status = without_agent(config, heard, listens=True)
        # One that doesn't answer this user may run all the same.
        return replace(status, agent=None) if isinstance(error, NeedsRoot) else status


def run(args: argparse.Namespace) -> int:
    """Runs `standfast status`: exit 0 when somebody serves, 1 when nobody does, 3 when that is not
    known."""
    if args.watch is not None:
        Watch(_watched(args.volume), sys.stdout, args.watch, as_json=args.json).run()
        return 0
    return tell_of_each(args, _answer)


def _watched(volume: str | None) -> Sequence[Watched]:
    """The volume that is named, or the only one; else all of this node, where a file that is wrong
    hides no other."""
    paths = [] if volume else config_files(config_dir())
    if len(paths) <= 1:
        config = load_volume(volume, require_storage=False)
        _say_whose_word_it_is(config)
        return [Watched(config.volume, partial(fetch, config, {}))]
    return [Watched(path.stem, partial(_fetch_by, path, {})) for path in paths]


def _fetch_by(path: Path, heard: Heard) -> Status:
    return fetch(load(path, require_storage=False), heard)


def _answer(config: Config) -> Answer:
    _say_whose_word_it_is(config)
    status = fetch(config)
    known = status.consul is not None and status.serving is not UNSET
    code = 0 if status.serving else 1 if known else Unreachable.exit_code
    return Answer(status.as_json(), lambda: print(render(status)), code=code)


def _say_whose_word_it_is(config: Config) -> None:
    path = forbidden([config.run_dir / "agent.sock"])
    if path is not None:
        note(
            f"{path} answers only root: `sudo standfast status` has the word of {config.node}'s "
            f"agent, too; what follows is Consul's"
        )
