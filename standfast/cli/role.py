"""promote, switchover, failback, demote: asked of this node's agent, which does the work."""

from __future__ import annotations

import argparse
from typing import Any

from standfast.cli.agent_client import Request, ask_agent
from standfast.cli.operator import operator_name
from standfast.cli.output import note, print_done
from standfast.config.load import load_volume
from standfast.text import clean


def run(args: argparse.Namespace) -> int:
    """Runs `standfast promote`, `failback` or `demote`."""
    return _ask(args)


def switchover(args: argparse.Namespace) -> int:
    """Runs `standfast switchover`."""
    return _ask(args, to=args.to)


def _ask(args: argparse.Namespace, **more: Any) -> int:
    config = load_volume(args.volume)
    wanted = {
        "reason": args.reason,
        "operator": operator_name(),
        "accept_data_loss": bool(args.accept_data_loss),
        # The agent's answer comes before this process gives up.
        "timeout_s": args.timeout - min(5.0, args.timeout / 10),
        "despite": getattr(args, "despite", None),
        **more,
    }
    answer = ask_agent(
        config,
        Request(args.command, wanted, args.dry_run),
        timeout_s=args.timeout,
        on_progress=note if args.json else _say,
    )
    # An older version's agent tells no steps.
    steps = {"steps": answer.get("steps", [])} if args.dry_run else {}
    print_done(args.json, str(answer.get("text", "done")), dry_run=args.dry_run, **steps)
    return 0


def _say(text: str) -> None:
    print(clean(text), flush=True)
