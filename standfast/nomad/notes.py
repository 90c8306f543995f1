"""Notes in Consul of which nodes were made ineligible by Standfast: `nomad/<node id>`.

Invariants: the note is there before the node is made ineligible, and goes after it was made
eligible again; only the very note that was looked at is deleted. A primary's note of another node
is written only while its epoch is the current one, and is made firm afterwards: the other one
doesn't lift what is just being done, which would leave it ineligible without a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from standfast.config.model import Config
from standfast.consul.gateway import Conflict, Entry
from standfast.consul.ports import Keys
from standfast.consul.records import NomadNote, parse_epoch
from standfast.consul.values import CheckIndex, Delete, Op, Set
from standfast.errors import Refused
from standfast.nomad.observation import Noted
from standfast.nomad.ports import Node
from standfast.reasons import Reason
from standfast.system.clock import monotonic, utc_now

# By then whoever wrote a note has made the node ineligible, or never will.
FIRM_AFTER_S = 30.0
# For so long the next primary waits for the role, with its meta: a switchover's copy may take long.
AHEAD_S = 180.0


@dataclass(frozen=True, slots=True)
class Notes:
    """Reads and writes the notes of one volume."""

    config: Config
    consul: Keys
    _first_seen: dict[int, float] = field(default_factory=dict)
    """ModifyIndex of a note that has its time -> when, by this node's monotonic clock."""

    def load(self) -> Mapping[str, Noted]:
        """Returns node id -> note; raises ConsulError or ForeignValue."""
        prefix = self.config.key("nomad/")
        return {
            entry.key.removeprefix(prefix): self._noted(entry)
            for entry in self.consul.get_many(prefix, consistent=True)
        }

    def _noted(self, entry: Entry) -> Noted:
        note, index = NomadNote.parse(entry.value, entry.key), entry.modify_index
        if note.firm and not note.ahead:
            return Noted(note, index)
        now = monotonic()
        age_s = now - self._first_seen.setdefault(index, now)
        firm = note.firm or age_s > FIRM_AFTER_S
        return Noted(note, index, firm, note.ahead and age_s <= AHEAD_S)

    def write(self, node: Node, epoch: int, *, firm: bool = True, ahead: bool = False) -> None:
        """Notes that `node` is being made ineligible; `epoch` 0: by the node itself.

        Refused when `epoch` is over: whoever serves now sees to the node.
        """
        note = NomadNote(node.name, self.config.node, epoch, utc_now(), firm, ahead)
        ops: list[Op] = [Set(self._key(node.id), note.dump())]
        if epoch:
            ops.insert(0, CheckIndex(self.config.key("epoch"), self._index_of(epoch)))
        outcome = self.consul.txn(ops)
        if isinstance(outcome, Conflict):
            raise self._over(epoch)

    def delete(self, node_id: str, noted: Noted) -> None:
        """Deletes the note, unless somebody has written it anew meanwhile: then it is theirs."""
        key = self._key(node_id)
        self.consul.txn([CheckIndex(key, noted.index), Delete(key)])

    def _key(self, node_id: str) -> str:
        return self.config.key(f"nomad/{node_id}")

    def _index_of(self, epoch: int) -> int:
        key = self.config.key("epoch")
        entry = self.consul.read([key])[key]
        if entry is None or parse_epoch(entry.value, key) != epoch:
            raise self._over(epoch)
        return entry.modify_index

    def _over(self, epoch: int) -> Refused:
        return Refused(Reason.WRONG_EPOCH, f"epoch {epoch} is over: no node is made ineligible")
