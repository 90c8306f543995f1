"""Shows the primaries by epoch, the newest last, and foreign values as what they are."""

from __future__ import annotations

import argparse
from typing import Any

from msgspec.structs import asdict

from standfast.cli.output import print_json, print_table
from standfast.config.load import load_volume
from standfast.consul.gateway import ConsulGateway, Entry
from standfast.consul.records import HistoryEntry
from standfast.errors import ForeignValue
from standfast.system.clock import format_utc
from standfast.text import duration


def run(args: argparse.Namespace) -> int:
    """Runs `standfast history`."""
    config = load_volume(args.volume, require_storage=False)
    entries = ConsulGateway.from_config(config).get_many(config.key("history/"))
    items = sorted(map(_item, entries), key=_order)
    if args.json:
        print_json({"volume": config.volume, "history": items})
    elif not items:
        print(f"{config.volume} has no history yet: `standfast promote` begins it")
    else:
        print_table(
            ("EPOCH", "FROM", "PRIMARY", "LOST AT MOST", "BY", "WHY", "BASE"),
            [_row(item) for item in items],
        )
    return 0


def _item(entry: Entry) -> dict[str, Any]:
    try:
        history_entry = HistoryEntry.parse(entry.value, entry.key)
    except ForeignValue:
        shown = entry.value[:80].decode("utf-8", "replace")
        return {"epoch": None, "key": entry.key, "foreign": shown}
    return {**asdict(history_entry), "key": entry.key}


def _order(item: dict[str, Any]) -> tuple[bool, int, str]:
    """Sorts by epoch; foreign values come last, by their keys."""
    return (item["epoch"] is None, item["epoch"] or 0, str(item["key"]))


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    if "foreign" in item:
        text = f"not Standfast's: {item['key']} = {item['foreign']}"
        return ("?", "", "", "", "", text, "")
    lost = "nothing" if item["lost_s"] == 0 else duration(item["lost_s"])
    return (
        str(item["epoch"]),
        format_utc(item["at"]),
        item["node"],
        "unknown" if item["lost_s"] is None else lost,
        item["operator"] or "itself",
        item["reason"],
        _base(item),
    )


def _base(item: dict[str, Any]) -> str:
    base = item["base"] or "-"
    return base if item["follows"] is None else f"{base} (goes on from epoch {item['follows']})"
