"""Which reign each replicated snapshot comes from: `<state_dir>/published.json`.

Invariant: an entry is on disk before its snapshot becomes visible. So a power cut can leave an
entry without a snapshot, which means nothing, but never a published snapshot of unknown epoch.
A snapshot taken here gets its entry when a standby has acknowledged it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from standfast.act.ports import Snapshot
from standfast.clock import Deadline
from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.files import read_json, write_atomically
from standfast.locks import exclusive

LOCK_WAIT_S = 10.0


def epochs_of_snapshots(config: Config) -> Mapping[str, int]:
    """Content id -> epoch of the primary that took it; StandfastError when unreadable."""
    path = published_file(config)
    doc = read_json(path)
    if doc is None:
        return {}
    epochs = doc.get("epochs")
    if doc.get("v") != 1 or not isinstance(epochs, dict):
        raise _unusable(path)
    for epoch in epochs.values():
        if type(epoch) is not int or epoch < 0:
            raise _unusable(path)
    return epochs


def note_epoch(
    config: Config,
    content_id: str,
    epoch: int,
    snapshots: Callable[[], Iterable[Snapshot]],
    *,
    reserved: bool = False,
) -> None:
    """Note where `content_id` comes from; on disk when this returns. `reserved`: on a full one too.

    Entries of what is no more among `snapshots` are dropped. They are listed under the lock: one
    that another process took and noted meanwhile must not lose its entry.
    """
    lock = config.run_dir / "published.lock"
    with exclusive(lock, "another replication", Deadline.after(LOCK_WAIT_S)):
        epochs = dict(epochs_of_snapshots(config))
        if epochs.get(content_id) == epoch:
            return
        known = {one.content_id for one in snapshots()}
        kept = {one: number for one, number in epochs.items() if one in known}
        doc = {"v": 1, "epochs": {**kept, content_id: epoch}}
        write_atomically(published_file(config), json.dumps(doc), durable=True, reserved=reserved)


def ranked(snapshots: Sequence[Snapshot], epochs: Mapping[str, int]) -> list[Snapshot]:
    """Received snapshots, best last: by the reign they come from, then by time.

    One without a known epoch comes before all others.
    """
    received = [one for one in snapshots if one.received]
    return sorted(received, key=lambda one: (epochs.get(one.content_id, -1), one.name))


def published_file(config: Config) -> Path:
    """Where the entries are; it changes before a snapshot becomes visible."""
    return config.state_dir / "published.json"


def _unusable(path: Path) -> StandfastError:
    return StandfastError(
        f"{path} does not hold the epochs of the published snapshots. Move it away: snapshots "
        f"published so far then count as older than all others, until the next replication"
    )
