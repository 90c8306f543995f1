"""`standfast doctor`: every check of a node, each with its cause and what to do.

Another node's checks are made there, by its agent, and told through Consul.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from standfast.cli.output import error_fields, note, print_json
from standfast.cli.remote import ask, document_of, is_storage, load_for, named
from standfast.cli.targets import Answer, forbidden, tell_of_each
from standfast.config.model import Config
from standfast.doctor.run import LIMIT_S, Listed, document, gather, looks_of, render
from standfast.errors import AS_ROOT, Unreachable, UsageError, ours
from standfast.requests.record import Arguments, Outcome, Verb
from standfast.system.clock import Deadline
from standfast.system.lines import lines_of
from standfast.system.threads import all_at_once
from standfast.text import clean_lines

ASK_S = LIMIT_S + 30.0
"""For another node, which has to start the command."""


def run(args: argparse.Namespace) -> int:
    """Runs `standfast doctor`: exit 0 when every check is well, else 1."""
    if args.all and args.on:
        raise UsageError("--all is every storage node: leave --on out")
    if args.all:
        return _all(load_for(args, anywhere=True), as_json=args.json)
    if args.on is not None:
        config = load_for(args, anywhere=True)
        node = named(config, args.on)
        if node is not None:
            return _tell([_ask(config, node, args.json)], as_json=args.json, alone=True)
    return tell_of_each(args, _answer)


def _findings(config: Config) -> Sequence[Listed]:
    path = forbidden([config.run_dir / "agent.sock", config.state_dir])
    if path is not None:
        raise Unreachable(f"{path} is closed to this user, and most checks would fail. {AS_ROOT}")
    return gather(looks_of(config), Deadline.after(LIMIT_S))


def _answer(config: Config) -> Answer:
    findings = _findings(config)
    return Answer(
        document(config, findings),
        lambda: print(clean_lines(render(findings))),
        code=0 if all(finding.ok for finding in findings) else 1,
    )


# Other nodes


@dataclass(frozen=True, slots=True)
class Told:
    """What one node's doctor says."""

    node: str
    code: int
    document: Mapping[str, Any] | None = None
    text: str = ""
    error: str = ""
    """Why it says nothing, or less."""


def _all(config: Config, *, as_json: bool) -> int:
    """Every storage node at once; one that doesn't answer keeps no other's answer back."""
    nodes = sorted(config.nodes)
    asks = [partial(_of_one, config, node, as_json) for node in nodes]
    return _tell(all_at_once("doctor", asks), as_json=as_json)


def _of_one(config: Config, node: str, as_json: bool) -> Told:
    if node != config.node or not is_storage(config):
        return _ask(config, node, as_json)
    try:
        findings = _findings(config)
    except Exception as error:  # noqa: BLE001  # the other nodes have their turns
        return _failed(node, error)
    code = 0 if all(finding.ok for finding in findings) else 1
    return Told(node, code, document(config, findings), render(findings))


def _ask(config: Config, node: str, as_json: bool) -> Told:
    arguments = Arguments(as_json=as_json, timeout_s=ASK_S)
    try:
        outcome = ask(config, Verb.DOCTOR, node, arguments, on_progress=lambda _: None)
    except Exception as error:  # noqa: BLE001  # the other nodes have their turns
        return _failed(node, error)
    return _told(node, outcome)


def _failed(node: str, error: Exception) -> Told:
    known = ours(error)
    told = error_fields(known)
    reason = getattr(known, "reason", None) or told["reason"]
    return Told(node, known.exit_code, {**told, "reason": str(reason)}, error=f"{reason}: {known}")


def _told(node: str, outcome: Outcome) -> Told:
    found = document_of(outcome)
    if not isinstance(found, dict):
        error = {"error": outcome.error or "", "reason": outcome.reason}
        found = error if outcome.error else None
    return Told(node, outcome.exit_code, found, outcome.text or "", outcome.error or "")


def _tell(told: Sequence[Told], *, as_json: bool, alone: bool = False) -> int:
    if as_json:
        documents = [{**(each.document or {}), "node": each.node} for each in told]
        print_json(documents[0] if alone else documents)
    for number, each in enumerate(told):
        if not as_json and not alone:
            print(f"{chr(10) if number else ''}node {each.node}", flush=True)
        if not as_json and each.text:
            print(clean_lines(each.text).rstrip("\n"), flush=True)
        for line in lines_of(each.error):
            note(line if alone else f"{each.node}: {line}")
    return max(each.code for each in told)
