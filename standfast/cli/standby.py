"""standby list: what each standby has on disk, by the records that the primary writes."""

from __future__ import annotations

import argparse
from typing import Any

from standfast.adapters.consul import ConsulGateway, Entry
from standfast.cli.output import age_s, print_json, print_table
from standfast.config.load import load_volume
from standfast.errors import ForeignValue
from standfast.records import StandbyRecord
from standfast.views.text import duration


def run(args: argparse.Namespace) -> int:
    """`standfast standby list`."""
    config = load_volume(args.volume, require_storage=False)
    prefix = config.key("standbys/")
    entries = ConsulGateway.from_config(config).get_many(prefix)
    found = {entry.key.removeprefix(prefix): _item(entry) for entry in entries}
    items = []
    for name in sorted({*config.nodes, *found}):
        facts = found.get(name, {"snapshot": None, "age_s": None, "epoch": None})
        items.append({"node": name, "configured": name in config.nodes, **facts})
    if args.json:
        print_json({"volume": config.volume, "standbys": items})
        return 0
    print_table(("NODE", "NEWEST SNAPSHOT", "AGE", "EPOCH", ""), [_row(item) for item in items])
    return 0


def _item(entry: Entry) -> dict[str, Any]:
    try:
        record = StandbyRecord.parse(entry.value, entry.key)
    except ForeignValue:
        shown = entry.value[:80].decode("utf-8", "replace")
        return {"snapshot": None, "age_s": None, "epoch": None, "foreign": shown}
    return {
        "snapshot": record.snapshot,
        "age_s": age_s(record.snapshot),
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
        remarks.append("the time in the name can't be believed")
    known = item["age_s"] is not None
    return (
        item["node"],
        item["snapshot"] or "-",
        duration(item["age_s"]) if known else "-",
        "-" if item["epoch"] is None else str(item["epoch"]),
        "; ".join(remarks),
    )
