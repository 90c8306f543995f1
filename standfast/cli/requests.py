"""requests: what was asked of nodes through Consul, how far it is, and what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from standfast.cli.output import note, print_json, print_table
from standfast.cli.remote import document_of, gateway_of, show
from standfast.cli.targets import Answer, tell_of_each
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.errors import ForeignValue, UsageError
from standfast.requests.asking import watch
from standfast.requests.folder import Folder, Found
from standfast.requests.record import MOST_LIMIT_S, Outcome, Request
from standfast.system.lines import lines_of
from standfast.text import clean, clean_lines

SHORT = 8
"""Characters of an id that tell requests apart."""


def run(args: argparse.Namespace) -> int:
    """Runs `standfast requests`."""
    if args.id is None:
        if args.follow:
            raise UsageError("--follow needs the ID of a request: `standfast requests` lists them")
        return tell_of_each(args, _list)
    config = load_volume(args.volume, require_storage=False)
    gateway = gateway_of(config)
    folder = Folder(config, gateway)
    request = _one_of(folder.look(), args.id).request
    if args.follow:
        say = note if args.json else _say
        outcome = watch(folder, request, say, MOST_LIMIT_S)
        return show(outcome, as_json=args.json)
    outcome_now = _outcomes(folder, gateway, [request]).get(request.id)
    document = _document(request, outcome_now)
    if args.json:
        print_json(document)
        return 0
    for name in ("id", "command", "node", "to", "by", "why", "state", "error", "text"):
        if (value := document.get(name)) is not None:
            print(clean_lines(f"{name + ':':<9} {value}"))
    for line in document["progress"]:
        _say(line)
    return 0


def _say(text: str) -> None:
    print(clean(text), flush=True)


def _one_of(found: Mapping[str, Found], start: str) -> Found:
    matching = [each for name, each in found.items() if name.startswith(start)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(f"{len(matching)} requests begin with {start}: give more of the id")
    raise UsageError(
        f"there is no request {start}: one that has ended, or was withdrawn, is deleted by whoever "
        "asked. `standfast requests` lists those that are there"
    )


def _list(config: Config) -> Answer:
    gateway = gateway_of(config)
    folder = Folder(config, gateway)
    requests = [each.request for each in folder.look().values()]
    outcomes = _outcomes(folder, gateway, requests)
    documents = [_document(request, outcomes.get(request.id)) for request in requests]

    def show_them() -> None:
        if not documents:
            print(f"nothing is asked of a node of {config.volume} through Consul")
            return
        heads = ("ID", "COMMAND", "NODE", "BY", "STATE", "LAST")
        print_table(heads, [_row(document) for document in documents])

    return Answer({"volume": config.volume, "requests": documents}, show_them)


def _outcomes(
    folder: Folder, gateway: ConsulGateway, requests: list[Request]
) -> Mapping[str, Outcome]:
    """One that isn't ours is as none."""
    if not requests:
        return {}
    there = gateway.read([folder.outcome_key(request.id) for request in requests])
    outcomes = {}
    for request in requests:
        entry = there[folder.outcome_key(request.id)]
        try:
            if entry is not None:
                outcomes[request.id] = Outcome.parse(entry.value, entry.key)
        except ForeignValue as error:
            note(str(error))
    return outcomes


def _document(request: Request, outcome: Outcome | None) -> dict[str, Any]:
    state = "open" if request.taken is None else "at work"
    document: dict[str, Any] = {
        "id": request.id,
        "command": str(request.verb),
        "node": request.node,
        "by": request.by,
        "state": state,
        "dry_run": request.arguments.dry_run,
        "to": request.arguments.to or request.arguments.standby,
        "why": request.arguments.reason,
        "progress": [],
    }
    if outcome is None:
        return document
    document["progress"] = list(outcome.progress)
    if outcome.ended:
        document |= {
            "state": "ended",
            "exit_code": outcome.exit_code,
            "text": outcome.text,
            "error": outcome.error,
            "reason": outcome.reason,
            "document": document_of(outcome),
        }
    return document


def _row(document: Mapping[str, Any]) -> tuple[str, ...]:
    state = document["state"]
    if state == "ended":
        state = f"ended ({document['exit_code']})"
    said = document.get("error") or document.get("text")
    last = lines_of(said)[0] if said else (document["progress"] or ["-"])[-1]
    command = " ".join(filter(None, (document["command"], document["to"])))
    return (document["id"][:SHORT], command, document["node"], document["by"], state, last)
