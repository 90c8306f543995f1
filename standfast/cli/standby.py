"""standby list: what each standby has on disk, by the records that the primary writes.

Beside that, what this node itself remembers: what it keeps for whom, and what went wrong last.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from standfast.ages import Origin
from standfast.cli.output import cell, note, print_table
from standfast.cli.shown_ages import age_by_record, origins_here
from standfast.cli.targets import Answer, tell_of_each
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway, Entry
from standfast.consul.records import StandbyRecord
from standfast.errors import ForeignValue, StandfastError
from standfast.replication import pins, state
from standfast.system.clock import utc_now
from standfast.text import duration


def run(args: argparse.Namespace) -> int:
    """Runs `standfast standby list`."""
    return tell_of_each(args, _answer)


def _answer(config: Config) -> Answer:
    prefix = config.key("standbys/")
    entries = ConsulGateway.from_config(config).get_many(prefix)
    here = origins_here(config)
    records = {entry.key.removeprefix(prefix): _item(entry, here) for entry in entries}
    items = []
    remembered, wrong = _remembered(config)
    for name in sorted({*config.nodes, *records, *remembered}):
        facts = records.get(name, _NO_SNAPSHOT)
        own = remembered.get(name, _NOTHING)
        items.append({"node": name, "configured": name in config.nodes, **facts, **own})
    document = {"volume": config.volume, "standbys": items, "problems": wrong}
    return Answer(document, lambda: _show(items, wrong))


def _show(items: Sequence[dict[str, Any]], wrong: Sequence[str]) -> None:
    heads = ("NODE", "NEWEST SNAPSHOT", "AGE", "EPOCH", "PINNED HERE", "")
    print_table(heads, [_row(item) for item in items])
    for text in wrong:
        note(text)


_NO_SNAPSHOT: dict[str, Any] = {"snapshot": None, "age_s": None, "clock": None, "epoch": None}
_NOTHING: dict[str, Any] = {"pin": None, "needs_full": False, "last_failure": None}


def _remembered(config: Config) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Returns by node its pin and how its replication went, and what is unreadable."""
    known: dict[str, dict[str, Any]] = {}
    wrong = []
    try:
        for name, pin in pins.load(config).items():
            known[name] = {**_NOTHING, "pin": pin.name}
    except StandfastError as error:
        wrong.append(str(error))
    try:
        for name, standby in state.load(config).standbys.items():
            before = known.get(name, _NOTHING)
            failed = _failure(standby)
            known[name] = {**before, "needs_full": standby.needs_full, "last_failure": failed}
    except StandfastError as error:
        wrong.append(str(error))
    return known, wrong


def _failure(standby: state.StandbyState) -> dict[str, Any] | None:
    """Returns the last failure; None when a success came after it."""
    at = standby.last_failure_at
    if at is None or (standby.last_success_at is not None and standby.last_success_at >= at):
        return None
    return {"at": at, "reason": standby.last_failure_reason, "text": standby.last_failure}


def _item(entry: Entry, here: Mapping[str, Origin]) -> dict[str, Any]:
    try:
        record = StandbyRecord.parse(entry.value, entry.key)
    except ForeignValue:
        shown = entry.value[:80].decode("utf-8", "replace")
        return {**_NO_SNAPSHOT, "foreign": shown}
    old = age_by_record(record, here)
    return {
        "snapshot": record.snapshot,
        "age_s": old.age_s,
        "clock": old.clock,
        "epoch": record.epoch,
        "content_id": record.content_id,
        "at": record.at,
    }


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    remarks = []
    if not item["configured"]:
        remarks.append("not in [nodes]")
    if "foreign" in item:
        remarks.append(f"its key holds a value that is not Standfast's: {item['foreign']}")
    elif item["snapshot"] is None:
        remarks.append("nothing was replicated to it")
    elif item["age_s"] is None:
        remarks.append("its age is unknown")
    elif item["clock"] is not None:
        remarks.append(f"by {item['clock']}'s clock")
    if item["needs_full"]:
        remarks.append(f"NEEDS EVERYTHING: standfast replicate {item['node']} --full")
    if item["last_failure"] is not None:
        failed = item["last_failure"]
        ago = duration(max(0.0, utc_now() - failed["at"]))
        remarks.append(f"failed {ago} ago: {failed['reason']}: {failed['text']}")
    return (
        item["node"],
        cell(item["snapshot"]),
        cell(item["age_s"], duration),
        cell(item["epoch"]),
        cell(item["pin"]),
        "; ".join(remarks),
    )
