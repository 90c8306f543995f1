"""The keys of requests and outcomes in Consul: what is read of them, and how they are changed.

Invariants: a request is taken, and withdrawn, by compare-and-set against the index at which it was
read, so only one of both can come about, and once. However many values lie there, the newest ones
are looked at: a requester that is there has raised its beat last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from standfast.config.model import Config
from standfast.consul.ports import Keys
from standfast.consul.values import (
    Cas,
    CheckIndex,
    CheckNotExists,
    Committed,
    Delete,
    Entry,
    Op,
    Set,
)
from standfast.errors import ForeignValue
from standfast.requests.record import (
    BELL,
    OUTCOMES,
    REQUESTS,
    Bell,
    Outcome,
    Request,
    parse_request,
)
from standfast.system.clock import Deadline

log = logging.getLogger(__name__)

MOST = 64
"""So many are looked at; and with so many there nobody asks for more."""


@dataclass(frozen=True, slots=True)
class Found:
    """A request as it stands in Consul."""

    request: Request
    index: int


class Folder:
    """The requests of one volume; for any thread. ConsulError."""

    def __init__(self, config: Config, consul: Keys) -> None:
        self._config = config
        self._consul = consul
        self._told: set[str] = set()

    @property
    def volume(self) -> str:
        return self._config.volume

    def key(self, request_id: str) -> str:
        return self._config.key(f"{REQUESTS}{request_id}")

    def outcome_key(self, request_id: str) -> str:
        return self._config.key(f"{OUTCOMES}{request_id}")

    @property
    def bell(self) -> str:
        return self._config.key(BELL)

    # What is there

    def look(self, deadline: Deadline | None = None) -> Mapping[str, Found]:
        """Returns the newest requests, by id; a foreign value is told once, and is none."""
        found = {}
        for entry in self.entries(REQUESTS, deadline=deadline)[:MOST]:
            try:
                request = parse_request(entry.value, entry.key)
            except ForeignValue as error:
                if entry.key not in self._told and len(self._told) < MOST:
                    self._told.add(entry.key)
                    log.warning("%s", error)
                continue
            found[request.id] = Found(request, entry.modify_index)
        return found

    def entries(self, *folders: str, deadline: Deadline | None = None) -> Sequence[Entry]:
        """Returns what is in `REQUESTS` or `OUTCOMES`, consistently, the newest first."""
        names = [self._config.key(folder) for folder in folders]
        there = self._consul.read([], folders=names, deadline=deadline)
        entries = [entry for entry in there.values() if entry is not None]
        return sorted(entries, key=lambda entry: (-entry.modify_index, entry.key))

    def both(
        self, request_id: str, deadline: Deadline | None = None
    ) -> tuple[Found | None, Outcome | None]:
        """Returns one request and what came of it; ForeignValue."""
        keys = self.key(request_id), self.outcome_key(request_id)
        there = self._consul.read(keys, deadline=deadline)
        found = outcome = None
        if (entry := there[keys[0]]) is not None:
            found = Found(parse_request(entry.value, entry.key), entry.modify_index)
        if (entry := there[keys[1]]) is not None:
            outcome = Outcome.parse(entry.value, entry.key)
        return found, outcome

    # Who asks

    def create(self, request: Request) -> bool:
        """Makes the request; False where there is one of this id."""
        return self._do(
            Cas(self.key(request.id), 0, request.dump()),
            Set(self.bell, Bell(request.id).dump()),
        )

    def beat(self, found: Found) -> bool:
        """Raises the beat; False where it was changed meanwhile."""
        request = replace(found.request, beat=found.request.beat + 1)
        return self._do(Cas(self.key(request.id), found.index, request.dump()))

    def withdraw(self, found: Found) -> bool:
        """Deletes it; False where it was changed meanwhile: taken, say."""
        return self.remove(self.key(found.request.id), found.index)

    def clear(self, request_id: str) -> None:
        """Deletes a request that has ended, with its outcome."""
        self._do(Delete(self.key(request_id)), Delete(self.outcome_key(request_id)))

    # Who carries it out

    def take(self, found: Found, run: str) -> bool:
        """Takes it for the process `run`; False where it was changed meanwhile. After a ConsulError
        the next look tells."""
        request = found.request
        outcome_key = self.outcome_key(request.id)
        return self._do(
            CheckNotExists(outcome_key),
            Cas(self.key(request.id), found.index, replace(request, taken=run).dump()),
            Set(outcome_key, Outcome(request.id, request.node, run).dump()),
        )

    def tell(self, outcome: Outcome) -> None:
        """Writes how far it is."""
        self._do(Set(self.outcome_key(outcome.id), outcome.dump()))

    def remove(self, key: str, index: int) -> bool:
        """Deletes what stands there unchanged since it was read at that index."""
        return self._do(CheckIndex(key, index), Delete(key))

    def _do(self, *ops: Op) -> bool:
        return isinstance(self._consul.txn(ops), Committed)
