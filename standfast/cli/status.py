"""`standfast status`: who serves, since when, and can we fail over now, and if not, why."""

from __future__ import annotations

import argparse
import sys

from standfast.cli.targets import Answer, tell_of_each
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.errors import Unreachable
from standfast.status.asking import of_agent
from standfast.status.document import Status
from standfast.status.text import render
from standfast.status.watching import Watch


def fetch(config: Config) -> Status:
    """Returns the agent's document; one from Consul alone where no agent runs."""
    try:
        return of_agent(config)
    except Unreachable:
        # Loading what speaks to Consul would take longer than the agent's answer.
        from standfast.agent.document import without_agent

        return without_agent(config)


def run(args: argparse.Namespace) -> int:
    """Runs `standfast status`: exit 0 when somebody serves, 1 when nobody does."""
    if args.watch is not None:
        config = load_volume(args.volume, require_storage=False)
        Watch(config, fetch, sys.stdout, args.watch, as_json=args.json).run()
    return tell_of_each(args, _answer)


def _answer(config: Config) -> Answer:
    status = fetch(config)
    return Answer(status.as_json(), lambda: print(render(status)), code=0 if status.serving else 1)
