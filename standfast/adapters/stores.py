"""The store that a configuration asks for."""

from __future__ import annotations

from standfast.config.model import Config
from standfast.replication.ports import ReplicaStore


def open_store(config: Config) -> ReplicaStore:
    """Nothing is touched before the first call."""
    if config.store == "directory":
        from standfast.adapters.directory import DirectoryStore

        return DirectoryStore(config.paths)
    from standfast.adapters.btrfs import BtrfsStore

    return BtrfsStore(config.paths)
