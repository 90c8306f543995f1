"""Shows the primaries by epoch, the newest last, and foreign values as what they are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from msgspec.structs import asdict

from standfast.cli.output import print_table
from standfast.cli.targets import Answer, tell_of_each
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway, Entry
from standfast.consul.records import HistoryEntry
from standfast.errors import ForeignValue
from standfast.system.clock import format_utc
from standfast.text import duration


def run(args: argparse.Namespace) -> int:
    """Runs `standfast history`."""
    return tell_of_each(args, _answer)


def _answer(config: Config) -> Answer:
    entries = ConsulGateway.from_config(config).get_many(config.key("history/"))
    items = sorted(map(_item, entries), key=_order)
    return Answer({"volume": config.volume, "history": items}, lambda: _show(config, items))


def _show(config: Config, items: Sequence[dict[str, Any]]) -> None:
    if not items:
        print(f"{config.volume} has no history yet: `standfast promote` begins it")
        return
    heads = ("EPOCH", "FROM", "PRIMARY", "LOST AT MOST", "BY", "WHY", "BASE")
    print_table(heads, [_row(item) for item in items])


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
