"""What others need of the gateway, apart from what one of them needs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from standfast.consul.values import Committed, Conflict, Entry, Op
from standfast.system.clock import Deadline


class Keys(Protocol):
    """Reads our keys as they are now, and changes them in one transaction. ConsulError."""

    def read(
        self, keys: Sequence[str], *, folders: Sequence[str] = (), deadline: Deadline | None = None
    ) -> Mapping[str, Entry | None]: ...

    def get_many(
        self, prefix: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> tuple[Entry, ...]: ...

    def txn(
        self, ops: Sequence[Op], *, deadline: Deadline | None = None
    ) -> Committed | Conflict: ...
