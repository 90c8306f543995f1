"""Commands for another node: which node does it, and what whoever asks sees of it.

Invariant: Ctrl-C takes back what nobody has taken; what a node has taken goes on there.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable
from typing import Any

from standfast.cli.operator import operator_name
from standfast.cli.output import note, print_json
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.consul.gateway import PATIENT_S, ConsulGateway
from standfast.errors import ForeignValue, Refused, Unreachable, did_you_mean
from standfast.reasons import Reason
from standfast.replication.reporting import leader_of
from standfast.requests.asking import ACCEPT_S, Asker, NotTaken, new_request
from standfast.requests.folder import Folder
from standfast.requests.programs import LAST_WORD_S
from standfast.requests.record import OF_HOLDER, Arguments, Outcome, Verb
from standfast.system.lines import lines_of
from standfast.text import clean_lines

LOOK = "look at it with `standfast requests {id} --follow`"


def gateway_of(config: Config) -> ConsulGateway:
    return ConsulGateway.from_config(config, timeout_s=PATIENT_S)


def load_for(args: argparse.Namespace, *, anywhere: bool) -> Config:
    """Returns the configuration; this node needs to be no storage node where another one does it,
    or, with `anywhere`, where that may be."""
    return load_volume(args.volume, require_storage=not (args.on or anywhere))


def is_storage(config: Config) -> bool:
    return config.node in config.nodes


def named(config: Config, on: str | None) -> str | None:
    """Returns the other node that `--on` names; None: this one, or none is named. Refused."""
    if on is None or (on == config.node and is_storage(config)):
        return None
    if on not in config.nodes:
        raise Refused(
            Reason.UNKNOWN_NODE,
            f"{on} is no storage node of {config.volume}: {', '.join(sorted(config.nodes))}"
            f"{did_you_mean(on, config.nodes)}",
        )
    return on


def other_holder(config: Config) -> str | None:
    """Returns the node that holds the role now; None where that is this one, or nobody.
    ConsulError, ForeignValue."""
    leader = leader_of(config, gateway_of(config))
    if leader is None or leader.is_clean or leader.holder.node == config.node:
        return None
    return named(config, leader.holder.node)


def the_holder(config: Config) -> str:
    """Returns the other node that holds the role; Refused where nobody does."""
    holder = other_holder(config)
    if holder is None:
        raise Refused(
            Reason.NOT_PRIMARY,
            f"nobody has the role of {config.volume}, so nobody can be asked: name a node with "
            "`--on NODE`, or `standfast promote --on NODE`",
        )
    return holder


def ask(
    config: Config,
    verb: Verb,
    node: str,
    arguments: Arguments,
    *,
    on_progress: Callable[[str], None] = note,
    watch_s: float | None = None,
) -> Outcome:
    """Has another node do it, and returns what came of it.

    NotTaken, Unreachable, TimedOut, Refused, ConsulError; KeyboardInterrupt, after it was said what
    became of the request.
    """
    request = new_request(verb, node, operator_name(), arguments)
    asker = Asker(Folder(config, gateway_of(config)), request)
    try:
        asker.until_taken(min(ACCEPT_S, arguments.timeout_s))
        return asker.watch(on_progress, watch_s or arguments.timeout_s + 2 * LAST_WORD_S)
    except KeyboardInterrupt:
        _interrupted(asker, verb, node)
        raise


def _interrupted(asker: Asker, verb: Verb, node: str) -> None:
    # A second ^C meanwhile would leave the request there.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if asker.withdraw():
            note(f"`{verb}` is withdrawn: {node} had not taken it, and nothing was done")
        else:
            note(f"{node} goes on with `{verb}`: {LOOK.format(id=asker.id)}")
    except NotTaken as error:
        note(str(error))
    finally:
        signal.signal(signal.SIGINT, before)


def show(outcome: Outcome, *, as_json: bool) -> int:
    """Prints what a program on another node said; returns its exit code."""
    if as_json and outcome.document is not None:
        print_json(document_of(outcome))
    elif outcome.text:
        print(clean_lines(outcome.text).rstrip("\n"), flush=True)
    if outcome.error:
        for line in lines_of(outcome.error):
            note(line)
        if as_json and outcome.document is None:
            error = {"error": outcome.error, "reason": outcome.reason}
            print_json({**error, "exit_code": outcome.exit_code})
    return outcome.exit_code


def document_of(outcome: Outcome) -> Any:
    """Returns its document; None where there is none, or one that can't be read."""
    try:
        return json.loads(outcome.document or "null")
    except (ValueError, RecursionError):
        return None


def elsewhere(
    args: argparse.Namespace,
    verb: Verb,
    arguments: Callable[[Config], Arguments],
    *,
    from_storage: bool = False,
) -> int | None:
    """Has another node run the program where that is its to do, and returns the exit code; None:
    this node runs it itself.

    What is the holder's goes there from a node that is no storage node, and, with `from_storage`,
    from any.
    """
    config = load_for(args, anywhere=verb in OF_HOLDER)
    node = named(config, args.on)
    if node is None and args.on is None and verb in OF_HOLDER:
        if not is_storage(config):
            node = the_holder(config)
        elif from_storage:
            node = holder_if_known(config)
    if node is None:
        return None
    if node != args.on:
        note(f"{node} has the role: asking it through Consul")
    return show(ask(config, verb, node, arguments(config)), as_json=args.json)


def holder_if_known(config: Config) -> str | None:
    """Returns the node that holds the role, where that is another one, and Consul tells."""
    try:
        return other_holder(config)
    except (Unreachable, ForeignValue, Refused):
        return None  # what this node says by itself is more to the point
