"""What a replication asks of Consul and tells it: who is primary, what a standby has.

Invariant: Consul hears of a standby's snapshot only as long as the epoch in which it was sent lasts
(the epoch key is unchanged).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from standfast.ages import Origin
from standfast.config.model import Config
from standfast.consul.record import shown_seconds
from standfast.consul.records import Leader, LeaderState, StandbyRecord, parse_epoch
from standfast.consul.values import CheckIndex, Conflict, Op, Set
from standfast.errors import ConsulError, Refused
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication.ports import ReplicaGateway
from standfast.system.clock import Deadline, sleep, utc_now

PATIENCE_S = 20.0
"""A stream, sent or received, is not thrown away because Consul elects a leader just then."""
T = TypeVar("T")


def leader_of(config: Config, gateway: ReplicaGateway) -> Leader | None:
    """Returns the last heartbeat, by a consistent read; None: nobody has been primary yet.

    Raises ConsulError, and ForeignValue for a value that Standfast didn't write.
    """
    key = config.key("leader")
    entry = gateway.get(key, consistent=True)
    return None if entry is None else Leader.parse(entry.value, key)


def patiently(ask: Callable[[], T]) -> T:
    """Asks Consul again for up to PATIENCE_S seconds while it fails; ConsulError after that.

    `ask` may change something only if the same again does no harm.
    """
    patience = Deadline.after(PATIENCE_S)
    while True:
        try:
            return ask()
        except ConsulError:
            if patience.remaining_s() < 1.0:
                raise
            sleep(0.5)


@dataclass(frozen=True, slots=True)
class EpochInConsul:
    """The epoch of this node as Consul shows it."""

    config: Config
    gateway: ReplicaGateway

    def epoch(self) -> int:
        """Returns the epoch in which this node serves; Refused when it doesn't."""
        leader = leader_of(self.config, self.gateway)
        if leader is None:
            key = self.config.key("leader")
            raise Refused(Reason.LEADER_MISSING, f"{key} doesn't exist: nobody is primary")
        serving = leader.state in (LeaderState.SERVING, LeaderState.DRAINING)
        if leader.holder.node != self.config.node or not serving:
            raise Refused(
                Reason.NOT_PRIMARY,
                f"{self.config.node} is not serving (epoch {leader.epoch}: "
                f"{leader.holder.node}, {leader.state}): only a serving primary replicates",
            )
        return leader.epoch

    def index_of(self, epoch: int) -> int:
        """Returns the modify index of the epoch key; Refused when it holds another epoch by now."""
        key = self.config.key("epoch")
        entry = self.gateway.get(key, consistent=True)
        current = None if entry is None else parse_epoch(entry.value, key)
        if entry is None or current != epoch:
            raise Refused(
                Reason.WRONG_EPOCH,
                f"the epoch in Consul is {current}, and this node is the primary of epoch {epoch}, "
                f"which is over",
            )
        return entry.modify_index

    def report(self, standby: str, snapshot: Snapshot, origin: Origin, epoch_index: int) -> None:
        """Tells Consul what the standby has; the same again does no harm, so it is retried."""
        config, epoch, name = self.config, origin.epoch, str(snapshot.name)
        record = StandbyRecord(
            standby,
            epoch,
            name,
            snapshot.content_id,
            utc_now(),
            shown_seconds(origin.taken_at),
            by=config.node,
        )
        ops: list[Op] = [
            CheckIndex(config.key("epoch"), epoch_index),
            Set(config.key(f"standbys/{standby}"), record.dump()),
        ]
        outcome = patiently(lambda: self.gateway.txn(ops))
        if isinstance(outcome, Conflict):
            raise Refused(
                Reason.WRONG_EPOCH,
                f"{standby} has {snapshot.name}, but epoch {epoch} ended meanwhile",
            )
