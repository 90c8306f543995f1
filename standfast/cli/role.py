"""promote, switchover, failback, demote: asked of a node's agent, which does the work.

This node's is asked by its socket, another one's through Consul. What only the primary can do goes
to the primary from a machine that is no storage node.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from standfast.cli.agent_client import Request, ask_agent, error_of
from standfast.cli.operator import operator_name
from standfast.cli.output import note, print_done
from standfast.cli.remote import (
    ask,
    document_of,
    holder_if_known,
    is_storage,
    load_for,
    named,
    the_holder,
)
from standfast.config.model import Config
from standfast.errors import NotRunning, Refused, StandfastError
from standfast.reasons import Reason
from standfast.requests.record import OF_HOLDER, Arguments, Outcome, Verb
from standfast.text import clean


def run(args: argparse.Namespace) -> int:
    """Runs `standfast promote`, `failback` or `demote`."""
    return _ask(args)


def switchover(args: argparse.Namespace) -> int:
    """Runs `standfast switchover`."""
    return _ask(args, to=args.to)


def _ask(args: argparse.Namespace, **more: Any) -> int:
    verb = Verb(args.command)
    config = load_for(args, anywhere=verb in OF_HOLDER)
    node = named(config, args.on)
    if node is None and not is_storage(config):
        node = the_holder(config)
    answer: Mapping[str, Any]
    if node is not None:
        answer = _of_another(args, config, node, more)
    else:
        try:
            answer = _of_ours(args, config, more)
        except (Refused, NotRunning) as error:
            elsewhere = _where_instead(args, config, error) if args.on is None else None
            if elsewhere is None:
                raise
            note(f"{elsewhere} has the role: asking it through Consul")
            answer = _of_another(args, config, elsewhere, more)
    # An older version's agent tells no steps.
    steps = {"steps": answer.get("steps", [])} if args.dry_run else {}
    print_done(args.json, str(answer.get("text", "done")), dry_run=args.dry_run, **steps)
    return 0


def _of_ours(
    args: argparse.Namespace, config: Config, more: Mapping[str, Any]
) -> Mapping[str, Any]:
    wanted = {
        "reason": args.reason,
        "operator": operator_name(),
        "accept_data_loss": bool(args.accept_data_loss),
        "timeout_s": _limit_s(args),
        "despite": getattr(args, "despite", None),
        **more,
    }
    return ask_agent(
        config,
        Request(args.command, wanted, args.dry_run),
        timeout_s=args.timeout,
        on_progress=note if args.json else _say,
    )


def _limit_s(args: argparse.Namespace) -> float:
    """The agent's answer comes before this process gives up."""
    timeout_s: float = args.timeout
    return timeout_s - min(5.0, timeout_s / 10)


def _where_instead(args: argparse.Namespace, config: Config, error: StandfastError) -> str | None:
    """Returns the node that has the role, where this one refused as it hasn't, or has no agent.

    Only for what says where the role is to be: `demote`, or a `switchover` away from here, on a
    node that lost the role already, would take it from a node that nobody meant.
    """
    if isinstance(error, Refused) and error.reason is not Reason.NOT_PRIMARY:
        return None
    says_where = args.command == Verb.FAILBACK or getattr(args, "to", None) is not None
    return holder_if_known(config) if says_where else None


def _of_another(
    args: argparse.Namespace, config: Config, node: str, more: Mapping[str, Any]
) -> Mapping[str, Any]:
    arguments = Arguments(
        dry_run=args.dry_run,
        as_json=args.json,
        timeout_s=_limit_s(args),
        reason=args.reason,
        accept_data_loss=bool(args.accept_data_loss),
        to=more.get("to"),
        despite=getattr(args, "despite", None),
    )
    outcome = ask(
        config,
        Verb(args.command),
        node,
        arguments,
        on_progress=note if args.json else _say,
        watch_s=args.timeout,
    )
    return _answer(outcome)


def _answer(outcome: Outcome) -> Mapping[str, Any]:
    """The same as the agent's last line."""
    if outcome.error is not None:
        raise error_of(
            {
                "error": outcome.error,
                "reason": outcome.reason,
                "exit_code": outcome.exit_code,
            }
        )
    document = document_of(outcome)
    steps = document.get("steps") if isinstance(document, dict) else None
    more = {"steps": steps} if isinstance(steps, list) else {}
    return {"done": True, "text": outcome.text or "done", **more}


def _say(text: str) -> None:
    print(clean(text), flush=True)
