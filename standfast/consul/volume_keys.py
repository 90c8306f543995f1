"""Which of a volume's keys are read together: these and no others, at one point in time.

What else lies below its prefix, or beside it, costs no reader anything: whoever may write there
can't keep this program from reading what it needs. (What begins like a single key, `epoch.old` say,
is fetched with it and left out: to make that takes the right to write the volume's keys.)
"""

from __future__ import annotations

from collections.abc import Mapping

from standfast.config.model import Config
from standfast.consul.ports import Keys
from standfast.consul.records import Leader, StandbyRecord, is_epoch, parse_epoch
from standfast.consul.values import Entry
from standfast.system.clock import Deadline

ONES = ("epoch", "leader", "pause")
FOLDERS = ("history/", "standbys/")
"""With ONES: all that tells of an epoch."""
CANDIDATES = "candidates/"
"""Each node's word on itself."""
HOLDS = "holds/"
"""Nodes that don't take over by themselves."""


def keys_of(config: Config, node: str) -> tuple[str, ...]:
    """Returns the keys that are about one node: they go when it is no storage node any more."""
    return tuple(config.key(f"{folder}{node}") for folder in (CANDIDATES, "standbys/", HOLDS))


def read_volume(
    consul: Keys, config: Config, *more: str, deadline: Deadline | None = None
) -> Mapping[str, Entry]:
    """Returns what is there of these keys, by their names below the volume's prefix, consistently.

    `more`: other folders, CANDIDATES say. ConsulError.
    """
    entries = consul.read(
        [config.key(name) for name in ONES],
        folders=[config.key(name) for name in (*FOLDERS, *more)],
        deadline=deadline,
    )
    prefix = config.key("")
    return {key.removeprefix(prefix): entry for key, entry in entries.items() if entry is not None}


def highest_epoch(values: Mapping[str, bytes]) -> int:
    """Returns the highest epoch that any of the volume's keys tells of; 0: none does.

    `values` is by the key's name below the volume's prefix. The epoch's own key may be gone or
    written by hand: none of these numbers may be given to an epoch again. ForeignValue.
    """
    epochs = [0]
    for name, raw in values.items():
        kind, _, rest = name.partition("/")
        if name == "epoch":
            epochs.append(parse_epoch(raw, name))
        elif name == "leader":
            epochs.append(Leader.parse(raw, name).epoch)
        elif kind == "history" and is_epoch(rest):
            epochs.append(int(rest))
        elif kind == "standbys" and rest:
            epochs.append(StandbyRecord.parse(raw, name).epoch)
    return max(epochs)
