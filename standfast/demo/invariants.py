"""What must hold at every moment of the demo: fed with observations, it names the first breach.

Invariant: an observation is judged when it comes in; a breach is kept with its evidence and is
never taken back. Times are monotonic seconds of the one machine that the demo runs on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from standfast.consul.records import HistoryEntry, Holder, Leader
from standfast.errors import StandfastError

ONE_OWNER = "one owner per epoch"
ONE_SERVER = "at no moment two nodes serve"
EPOCH_RISES = "the epoch only rises"
NOTHING_LOST = "nothing acknowledged and replicated is lost"
NOTHING_DELETED = "no data is deleted"
NAMES = (ONE_OWNER, ONE_SERVER, EPOCH_RISES, NOTHING_LOST, NOTHING_DELETED)


class Broken(StandfastError):
    """An invariant does not hold; the text says which, and what showed it."""

    exit_code = 1

    def __init__(self, name: str, evidence: str) -> None:
        super().__init__(f"INVARIANT BROKEN: {name}: {evidence}")
        self.name = name


@dataclass(slots=True)
class _Served:
    """The answers that came from one epoch's server."""

    node: str
    first: float
    last: float


@dataclass(slots=True)
class Invariants:
    """Thread-safe; `check` raises what was found broken first."""

    started: float = 0.0
    looks: int = 0
    answers: int = 0
    _broken: Broken | None = None
    _served: dict[int, _Served] = field(default_factory=dict)
    _history: dict[int, HistoryEntry] = field(default_factory=dict)
    _holders: dict[int, Holder] = field(default_factory=dict)
    _epoch: int = 0
    _trees: dict[str, str] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def check(self) -> None:
        """Raises Broken when anything was found."""
        if self._broken is not None:
            raise self._broken

    def breach(self, name: str, evidence: str) -> None:
        with self._lock:
            if self._broken is None:
                self._broken = Broken(name, evidence)

    def _at(self, moment: float) -> str:
        return f"{moment - self.started:.3f} s"

    def answered(self, node: str, epoch: int | None, at: float) -> None:
        """A server answered a client at `at`: no earlier epoch's may answer from then on."""
        with self._lock:
            self.answers += 1
            if epoch is None:
                self.breach(ONE_SERVER, f"{node} answered at {self._at(at)} without an epoch")
                return
            served = self._served.setdefault(epoch, _Served(node, at, at))
            if served.node != node:
                self.breach(
                    ONE_SERVER,
                    f"{node} answered at {self._at(at)} in epoch {epoch}, "
                    f"in which {served.node} had answered at {self._at(served.first)}",
                )
            served.first, served.last = min(served.first, at), max(served.last, at)
            for lower, before in self._served.items():
                for higher, after in self._served.items():
                    if lower < higher and before.last >= after.first:
                        self.breach(
                            ONE_SERVER,
                            f"{before.node} (epoch {lower}) still answered at "
                            f"{self._at(before.last)}, {after.node} (epoch {higher}) since "
                            f"{self._at(after.first)}",
                        )

    def consul(
        self, epoch: int | None, leader: Leader | None, history: Iterable[HistoryEntry]
    ) -> None:
        """What Consul holds now."""
        with self._lock:
            self.looks += 1
            if (epoch or 0) < self._epoch:
                self.breach(EPOCH_RISES, f"Consul holds epoch {epoch} after {self._epoch}")
            self._epoch = max(self._epoch, epoch or 0)
            for history_entry in history:
                known = self._history.setdefault(history_entry.epoch, history_entry)
                if known != history_entry:
                    self.breach(ONE_OWNER, f"the history said {known}, and then {history_entry}")
            if leader is None:
                return
            holder = self._holders.setdefault(leader.epoch, leader.holder)
            if holder.node != leader.holder.node:
                self.breach(
                    ONE_OWNER,
                    f"epoch {leader.epoch} was held by {holder.node}, then by {leader.holder.node}",
                )
            epoch_of = self._history.get(leader.epoch)
            if epoch_of is not None and epoch_of.node != leader.holder.node:
                self.breach(
                    ONE_OWNER,
                    f"epoch {leader.epoch} is {epoch_of.node}'s by the history, "
                    f"{leader.holder.node}'s by the lease",
                )

    def history_entries(self) -> tuple[HistoryEntry, ...]:
        """The history as far as it was seen."""
        with self._lock:
            return tuple(self._history[epoch] for epoch in sorted(self._history))

    def lacks(self, trees: Mapping[str, str]) -> bool:
        """Whether a tree seen before is not in `trees`."""
        with self._lock:
            return not self._trees.keys() <= trees.keys()

    def trees(self, trees: Mapping[str, str]) -> None:
        """The nodes' live trees and those kept aside, identity -> place; none may ever go."""
        with self._lock:
            for identity, place in self._trees.items():
                if identity not in trees:
                    self.breach(NOTHING_DELETED, f"{place} is gone from every place")
            self._trees.update(trees)

    def lines_kept(self, what: str, missing: Iterable[int]) -> None:
        """`missing`: numbers of lines that had to be in `what`, and are not."""
        gone = sorted(missing)
        if gone:
            shown = ", ".join(map(str, gone[:10]))
            self.breach(NOTHING_LOST, f"{len(gone)} lines are not in {what}: {shown}")
