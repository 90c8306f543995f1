"""snapshots: the complete snapshots on this node, the newest last."""

from __future__ import annotations

import argparse

from standfast.act.ports import Snapshot
from standfast.adapters.stores import open_store
from standfast.cli.output import age_s, print_json, print_table
from standfast.config.load import load_volume
from standfast.views.text import duration


def run(args: argparse.Namespace) -> int:
    """`standfast snapshots`."""
    config = load_volume(args.volume)
    store = open_store(config)
    found = sorted(store.snapshots(), key=lambda one: one.name)
    aside = [str(path) for path in store.aside()]
    if args.json:
        print_json(
            {
                "volume": config.volume,
                "node": config.node,
                "snapshots": [
                    {
                        "name": str(one.name),
                        "path": str(one.path),
                        "kind": _kind(one),
                        "content_id": one.content_id,
                        "age_s": age_s(str(one.name)),
                    }
                    for one in found
                ],
                "kept_aside": aside,
            }
        )
        return 0
    if found:
        print_table(("SNAPSHOT", "AGE", "KIND", "PATH"), [_row(one) for one in found])
    else:
        print(f"{config.node} has no snapshot of {config.volume}: `standfast replicate` on the "
              "primary makes and sends one")  # fmt: skip
    for path in aside:
        print(f"kept aside: {path}")
    return 0


def _kind(snapshot: Snapshot) -> str:
    return "published" if snapshot.received else "own"


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    age = age_s(str(snapshot.name))
    shown = "in the future: never used" if age is None else duration(age)
    return (str(snapshot.name), shown, _kind(snapshot), str(snapshot.path))
