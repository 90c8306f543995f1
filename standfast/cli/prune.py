"""prune: delete what may go, and say why the rest stays."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace

from standfast.ages import Origin
from standfast.assembly.parts import open_store
from standfast.cli.output import cell, note, print_json, print_table
from standfast.cli.shown_ages import origins_here
from standfast.cli.snapshots import kind_of
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.node.ports import Snapshot
from standfast.replication.ports import ReplicaStore
from standfast.replication.pruning import Pruned, prune
from standfast.replication.retention import Kept
from standfast.text import age_s, duration

Taken = Mapping[str, Origin]
"""By content id. Where it can't be read, the names tell; what is wrong with it, `prune` says."""


def run(args: argparse.Namespace) -> int:
    """Runs `standfast prune`."""
    config = load_volume(args.volume)
    store = open_store(config)
    taken = origins_here(config)
    pruned = prune(config, store, also=(), dry_run=True) if args.dry_run else _all(config, store)
    if args.json:
        _print_document(config, pruned, taken, args.dry_run)
    elif pruned.deleted or pruned.kept:
        _print_text(pruned, taken, args.dry_run)
    elif pruned.trouble is None:
        print(f"{config.node} has no snapshot of {config.volume}: there is nothing to delete")
    if pruned.trouble is not None:
        raise StandfastError(
            f"{pruned.trouble}. {_count(len(pruned.deleted))} deleted; `standfast prune` goes on"
        )
    return 0


def _time(snapshot: Snapshot, taken: Taken) -> float | None:
    origin = taken.get(snapshot.content_id)
    return None if origin is None else origin.time(snapshot.name)


def _all(config: Config, store: ReplicaStore) -> Pruned:
    """Prunes batch after batch, so that running replications get their turn in between."""
    deleted: list[Snapshot] = []
    dropped: list[str] = []
    while True:
        pruned = prune(config, store, also=())
        deleted += pruned.deleted
        dropped += pruned.dropped_pins
        if not pruned.left or not pruned.deleted or pruned.trouble is not None:
            return replace(pruned, deleted=tuple(deleted), dropped_pins=tuple(dropped))


def _print_document(config: Config, pruned: Pruned, taken: Taken, dry_run: bool) -> None:
    print_json(
        {
            "volume": config.volume,
            "node": config.node,
            "dry_run": dry_run,
            "done": pruned.trouble is None and not dry_run,
            "deleted": [_item(snapshot, taken) for snapshot in pruned.deleted],
            "kept": [
                {**_item(kept.snapshot, taken), "why": list(kept.reasons)} for kept in pruned.kept
            ],
            "dropped_pins": list(pruned.dropped_pins),
            "trouble": pruned.trouble,
        }
    )


def _print_text(pruned: Pruned, taken: Taken, dry_run: bool) -> None:
    fate = "would be deleted" if dry_run else "deleted"
    rows: list[Kept] = [*pruned.kept, *(Kept(snapshot, (fate,)) for snapshot in pruned.deleted)]
    rows.sort(key=lambda row: row.snapshot.name)
    print_table(("SNAPSHOT", "AGE", "KIND", "WHY"), [_row(row, taken, fate) for row in rows])
    print(f"{_count(len(pruned.deleted))} {fate}, {len(pruned.kept)} kept")
    for node in pruned.dropped_pins:
        said = "would no longer be" if dry_run else "is no longer"
        note(
            f"{node} received nothing for longer than replication.drop_pin_after: no snapshot "
            f"{said} kept for it; when it is back: `standfast replicate {node} --full`"
        )


def _row(kept: Kept, taken: Taken, fate: str) -> Sequence[str]:
    name = str(kept.snapshot.name)
    old_s = age_s(name, _time(kept.snapshot, taken))
    why = ", ".join(kept.reasons)
    shown = why if kept.reasons == (fate,) else f"kept: {why}"
    return (name, cell(old_s, duration), kind_of(kept.snapshot), shown)


def _item(snapshot: Snapshot, taken: Taken) -> dict[str, object]:
    name = str(snapshot.name)
    return {
        "name": name,
        "path": str(snapshot.path),
        "kind": kind_of(snapshot),
        "content_id": snapshot.content_id,
        "age_s": age_s(name, _time(snapshot, taken)),
    }


def _count(number: int) -> str:
    return "1 snapshot" if number == 1 else f"{number} snapshots"
