"""snapshots: what is here (own, published, partial, kept aside), and what the other nodes have."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from msgspec import UNSET

from standfast.ages import Origin, age_of
from standfast.assembly.parts import open_store
from standfast.cli.output import cell, error_fields, note, print_table
from standfast.cli.targets import Answer, tell_of_each
from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.names import parse_aside
from standfast.node.ports import Snapshot
from standfast.replication import pins, session, wire
from standfast.replication.ports import ReplicaStore
from standfast.replication.published import origins_of_snapshots
from standfast.system.clock import Deadline, instant, utc_now
from standfast.text import age_s, clean, duration

ASK_S = 20.0
"""For everything that one other node is asked; ssh alone gives up after 10 s."""
_AT_ONCE = 8

Doc = dict[str, Any]


def run(args: argparse.Namespace) -> int:
    """Runs `standfast snapshots`."""
    return tell_of_each(args, partial(_answer, ask_others=args.all), require_storage=True)


def _answer(config: Config, *, ask_others: bool) -> Answer:
    here = _here(config, open_store(config))
    if not ask_others:
        return Answer(here, lambda: _show(config, here, ()))
    others = _others(config, here["snapshots"])
    return Answer({**here, "others": others}, lambda: _show(config, here, others))


def _show(config: Config, here: Doc, others: Sequence[Doc]) -> None:
    for trouble in here["trouble"]:
        note(trouble)
    _print_here(config, here)
    for other in others:
        _print_other(other)


def kind_of(snapshot: Snapshot) -> str:
    """Returns whether a snapshot was taken here (own) or received (published)."""
    return "published" if snapshot.received else "own"


# This node


def _here(config: Config, store: ReplicaStore) -> Doc:
    trouble: list[str] = []
    origins: Mapping[str, Origin] = {}
    pinned: Mapping[str, pins.Pin] = {}
    try:
        origins = origins_of_snapshots(config, instant())
    except StandfastError as error:
        trouble.append(str(error))
    try:
        pinned = pins.load(config)
    except StandfastError as error:
        trouble.append(str(error))
    snapshots = sorted(store.snapshots(), key=lambda snapshot: snapshot.name)
    return {
        "volume": config.volume,
        "node": config.node,
        "snapshots": [
            _snapshot(snapshot, origins.get(snapshot.content_id), pinned) for snapshot in snapshots
        ],
        "partial": [str(path) for path in store.unfinished()],
        "kept_aside": [_aside(path.name, str(path)) for path in store.aside()],
        "free_bytes": store.free_bytes(),
        "trouble": trouble,
    }


def _snapshot(snapshot: Snapshot, origin: Origin | None, pinned: Mapping[str, pins.Pin]) -> Doc:
    return {
        "name": str(snapshot.name),
        "path": str(snapshot.path),
        "kind": kind_of(snapshot),
        "content_id": snapshot.content_id,
        "age_s": age_s(str(snapshot.name), None if origin is None else origin.time(snapshot.name)),
        "epoch": None if origin is None else origin.epoch,
        "pinned_for": sorted(
            n for n, pin in pinned.items() if pin.content_id == snapshot.content_id
        ),
    }


def _aside(name: str, path: str) -> Doc:
    """A tree whose name only looks like one of ours is shown all the same."""
    parsed = parse_aside(name)
    if parsed is None:
        return {"path": path, "kind": "kept aside", "epoch": None, "age_s": None}
    old_s = age_of(parsed.at, utc_now())
    return {"path": path, "kind": parsed.kind, "epoch": parsed.epoch, "age_s": old_s}


def _print_here(config: Config, here: Doc) -> None:
    rows = [
        *(_row(snapshot) for snapshot in here["snapshots"]),
        *((path, "-", "partial", "-", "never used") for path in here["partial"]),
        *(_aside_row(tree) for tree in here["kept_aside"]),
    ]
    if not here["snapshots"]:
        print(f"{config.node} has no snapshot of {config.volume}: `standfast replicate` on the "
              "primary makes and sends one")  # fmt: skip
    if rows:
        print_table(("SNAPSHOT", "AGE", "KIND", "EPOCH", ""), rows)


def _row(snapshot: Doc) -> Sequence[str]:
    remarks = ["of unknown age: a clock was set back"] if snapshot["age_s"] is None else []
    if snapshot["pinned_for"]:
        remarks.append(f"pinned for {', '.join(snapshot['pinned_for'])}")
    if snapshot["epoch"] is None:
        remarks.append("not made by Standfast")
    return (
        snapshot["path"],
        cell(snapshot["age_s"], duration),
        snapshot["kind"],
        cell(snapshot["epoch"]),
        "; ".join(remarks),
    )


def _aside_row(tree: Doc) -> Sequence[str]:
    why = {
        "diverged": "what its successor never had; never deleted automatically",
        "retired": "its final snapshot has the same content",
    }
    return (
        tree["path"],
        cell(tree["age_s"], duration),
        tree["kind"],
        cell(tree["epoch"]),
        why.get(tree["kind"], ""),
    )


# The other nodes


def _others(config: Config, here: Sequence[Doc]) -> list[Doc]:
    """Asks all at the same time: a node that hangs delays no other."""
    ours = {snapshot["content_id"]: snapshot for snapshot in here}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda node: _other(config, node, ours), config.standbys))


def _other(config: Config, node: str, ours: Mapping[str, Doc]) -> Doc:
    deadline = Deadline.after(ASK_S)
    try:
        with session.greet(config, node, deadline, wire.Purpose.ASK) as (conversation, welcome):
            session.end(conversation, deadline)
    except (StandfastError, OSError) as error:
        return {"node": node, **error_fields(error)}
    ages = welcome.ages or (None,) * len(welcome.snapshots)
    return {
        "node": node,
        "snapshots": [
            _offer(offer, age, ours) for offer, age in zip(welcome.snapshots, ages, strict=True)
        ],
        "partial": [clean(name) for name in welcome.unfinished],
        "free_bytes": welcome.free_bytes,
        "tells_ages": welcome.ages is not UNSET,
    }


def _offer(offer: wire.Offer, age: float | None, ours: Mapping[str, Doc]) -> Doc:
    here = ours.get(offer.content_id)
    ages = (age, None if here is None else here["age_s"])
    return {
        "name": offer.name,
        "kind": "published" if offer.received else "own",
        "content_id": offer.content_id,
        # The node that has it counts itself, and so does this one: a name gives only the order.
        "age_s": max((age for age in ages if age is not None), default=None),
        "here_too": here is not None,
    }


def _print_other(other: Doc) -> None:
    print()
    if "error" in other:
        print(clean(f"{other['node']}: {other['error']}"))
        return
    free = f"{other['free_bytes'] / 2**30:.1f} GiB free"
    print(f"{other['node']}: {len(other['snapshots'])} snapshots, {free}")
    ageless = "its age is unknown"
    if not other["tells_ages"]:
        ageless = f"{other['node']}'s version doesn't report ages"
    rows = [_offer_row(offer, ageless) for offer in other["snapshots"]]
    rows += [(name, "-", "partial", "never used") for name in other["partial"]]
    if rows:
        print_table(("SNAPSHOT", "AGE", "KIND", ""), rows)


def _offer_row(offer: Doc, ageless: str) -> tuple[str, str, str, str]:
    remarks = ["here, too"] if offer["here_too"] else []
    remarks += [ageless] if offer["age_s"] is None else []
    return (offer["name"], cell(offer["age_s"], duration), offer["kind"], "; ".join(remarks))
