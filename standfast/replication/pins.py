"""For each other node the newest snapshot that both have: `<state_dir>/pins.json`.

Invariants: a pin is on disk before anything is deleted on its word, and it is replaced only by a
newer snapshot that the other node is known to have. Whoever deletes snapshots holds the lock
(`locked`) from reading the pins to the last deletion, and so does whoever begins to use some
(`in_use`): nothing vanishes that a transfer at work still needs. Unreadable pins protect
everything: nothing is deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, convert, field, to_builtins
from msgspec.structs import replace

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.system.clock import Deadline, utc_now
from standfast.system.files import read_json, write_atomically
from standfast.system.locks import exclusive, is_locked

LOCK_WAIT_S = 60.0
"""Deleting one batch of snapshots is what one may have to wait for."""


class Pin(Struct, frozen=True, forbid_unknown_fields=True):
    """The newest snapshot in common with another node."""

    name: str
    content_id: Annotated[str, Meta(min_length=1)]
    epoch: Annotated[int, Meta(ge=0)]
    """Of the primary that took it."""
    at: float
    """When the other node was first known to have it, UTC seconds."""
    sure: bool = True
    """Otherwise only likely: good for keeping the snapshot, never told to others."""
    both: Mapping[str, str] = field(default_factory=dict)
    """By third node the newest content that this other node has in common with that one, as far as
    a primary here knew."""

    @classmethod
    def of(cls, snapshot: Snapshot, epoch: int) -> Pin:
        """Returns the pin of a snapshot that another node is known to have as of now."""
        return cls(str(snapshot.name), snapshot.content_id, epoch, utc_now())

    @property
    def rank(self) -> tuple[int, str]:
        """The order of pins: the later epoch counts more, then the later name."""
        return (self.epoch, self.name)


def load(config: Config) -> Mapping[str, Pin]:
    """Returns the pins by node: none when there is no file; StandfastError when it can't be
    understood."""
    path = config.state_dir / "pins.json"
    doc = read_json(path)
    if doc is None:
        return {}
    try:
        if doc["v"] != 1:
            raise ValueError(f"version {doc['v']!r}")
        pins = convert(doc["pins"], dict[str, Pin])
        for pin in pins.values():
            SnapshotName.parse(pin.name)
        return pins
    except (KeyError, ValueError) as error:
        raise StandfastError(
            f"{path} does not hold the pinned snapshots ({error!r}): no snapshot is deleted on "
            f"this node. Move it away: the next replication to each standby notes its snapshot "
            f"again"
        ) from error


def note(config: Config, node: str, pin: Pin) -> None:
    """Notes that `node` has this snapshot, which this node has, too; on disk when this returns."""
    with locked(config):
        before = load(config)
        known = before.get(node)
        if known is None or not known.sure or known.content_id != pin.content_id:
            save(config, _noted(before, node, pin))


def _noted(before: Mapping[str, Pin], node: str, pin: Pin) -> dict[str, Pin]:
    """With what the standbys have in common with each other: an older one of theirs never comes
    into being later, as each gets the newest snapshot there is."""
    known = before.get(node)
    both = dict({} if known is None else known.both)
    after = dict(before)
    for other, its in before.items():
        if other != node and its.sure and its.content_id == pin.content_id:
            both[other] = pin.content_id
            after[other] = replace(its, both={**its.both, node: pin.content_id})
    return {**after, node: replace(pin, both=both)}


def to_tell(known: Mapping[str, Pin], node: str, content_id: str) -> dict[str, str]:
    """Returns for `node`, which is about to get `content_id`, what each other node has (content
    id).

    If possible something that `node` has, too: should it become primary, it builds on that.
    """
    both = known[node].both if node in known else {}
    told = {}
    for other, pin in known.items():
        if pin.sure:
            latest = pin.content_id
            told[other] = latest if latest == content_id else both.get(other, latest)
    return told


def expect(config: Config, node: str, pin: Pin, theirs: Collection[str]) -> None:
    """Notes that `node`, which has `theirs` (content ids), is about to get this as the first one in
    common.

    It may have it, whole, and be cut off before it can say so: from then on this is all that an
    increment could build on.
    """
    with locked(config):
        before = load(config)
        known = before.get(node)
        if known is None or known.content_id not in theirs:
            save(config, {**before, node: replace(pin, sure=False)})


def learn(
    config: Config,
    commons: Mapping[str, str],
    snapshots: Sequence[Snapshot],
    epochs: Mapping[str, int],
) -> None:
    """Notes on a standby what the primary says that nodes have (node -> content id), in one write.

    Noted is what this node has, too; never an older snapshot than the one already pinned. A node
    that the primary names no more loses its pin here, too, when that is beyond the limit.
    """
    here = {snapshot.content_id: snapshot for snapshot in snapshots}
    now = utc_now()
    with locked(config):
        before = load(config)
        oldest = now - config.replication.drop_pin_after
        after = {node: pin for node, pin in before.items() if node in commons or pin.at > oldest}
        for node, content_id in commons.items():
            if node == config.node or content_id not in here.keys() & epochs.keys():
                continue
            known = before.get(node)
            both = {} if known is None else known.both
            pin = Pin(str(here[content_id].name), content_id, epochs[content_id], now, both=both)
            if known is None or not known.sure or known.rank < pin.rank:
                after[node] = pin
        if after != before:
            save(config, after)


def drop(config: Config, node: str) -> None:
    """Keeps nothing for `node` any more; on disk when this returns."""
    with locked(config):
        before = load(config)
        if node in before:
            save(config, {name: pin for name, pin in before.items() if name != node})


def locked(
    config: Config, deadline: Deadline | None = None
) -> contextlib.AbstractContextManager[object]:
    """Returns the lock that is held while pins change, and while snapshots are chosen and deleted;
    Refused (busy)."""
    waiting = Deadline.after(LOCK_WAIT_S) if deadline is None else deadline
    return exclusive(config.run_dir / "pins.lock", "the deletion of old snapshots", waiting)


def save(config: Config, pins: Mapping[str, Pin]) -> None:
    """Writes all pins, to the disk when this returns. The caller holds `locked`."""
    doc = {"v": 1, "pins": to_builtins(dict(sorted(pins.items())))}
    write_atomically(config.state_dir / "pins.json", json.dumps(doc), durable=True)


@contextlib.contextmanager
def in_use(config: Config, content_ids: Collection[str]) -> Iterator[None]:
    """Keeps every process from pruning these while the block lasts: what is being sent, and what it
    builds on.

    Ends with the process, however that ends. Note the pin before the block is left.
    """
    directory = config.run_dir / "in-use"
    with locked(config):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, path = tempfile.mkstemp(dir=directory)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(sorted(content_ids)).encode())
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)
        os.close(descriptor)


def all_in_use(config: Config) -> frozenset[str]:
    """Returns the content ids that transfers at work need. The caller holds `locked`."""
    content_ids: set[str] = set()
    directory = config.run_dir / "in-use"
    for path in sorted(directory.iterdir()) if directory.exists() else ():
        content_ids.update(_held(path))
    return frozenset(content_ids)


def _held(path: Path) -> list[str]:
    """Returns what the note says; it is removed when its process is gone."""
    with contextlib.suppress(FileNotFoundError):  # it ended just now
        if is_locked(path):
            return _ids(path.read_text(), path)
    path.unlink(missing_ok=True)
    return []


def _ids(text: str, path: Path) -> list[str]:
    try:
        return convert(json.loads(text), list[str])
    except ValueError as error:
        raise StandfastError(
            f"{path} does not say which snapshots the replication at work needs: no snapshot is "
            f"deleted until that replication has ended"
        ) from error
