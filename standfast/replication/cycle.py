"""The cycle that a timer runs: one snapshot of this epoch, sent to one standby, noted and pruned.

Invariant: what a standby acknowledged is pinned here before anybody hears of it, so that the
chance of an increment is never lost; what was pinned before goes only then. While pins can't be
read or written, nothing is deleted.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from standfast.ages import Origin, age_of
from standfast.config.model import Config
from standfast.errors import Refused, StandfastError, TimedOut, ours
from standfast.names import SnapshotName
from standfast.node.obstacle import Obstacle
from standfast.node.own_epoch import OwnEpoch, Stage, snapshot_lock
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import pins, session, state, wire
from standfast.replication.failures import reason_of
from standfast.replication.ports import ReplicaGateway, ReplicaStore
from standfast.replication.pruning import prune
from standfast.replication.published import note_origin, origin_of, origins_of_snapshots, take
from standfast.replication.reporting import EpochInConsul
from standfast.replication.session import check_standby, end, hailing
from standfast.replication.shipment import LOOK_UP_S, OnProgress, Order, Shipped, ship
from standfast.system.clock import Deadline, instant, monotonic, utc_now
from standfast.system.locks import exclusive
from standfast.system.streams import Conversation
from standfast.text import clean, clean_lines

log = logging.getLogger(__name__)

SNAPSHOT_LOCK_S = 60.0


@dataclass(frozen=True, slots=True)
class CycleResult:
    """What one replication did; `parent` is the name of the common snapshot it built on."""

    snapshot: SnapshotName
    parent: str | None
    sent_bytes: int
    seconds: float
    was_full: bool


class Sender:
    """Sends this node's snapshots; meets `ReplicaSender`."""

    def __init__(self, config: Config, store: ReplicaStore, gateway: ReplicaGateway) -> None:
        self._config = config
        self._store = store
        self._epoch = EpochInConsul(config, gateway)

    def replicate(
        self,
        standby: str,
        snapshot: Snapshot,
        epoch: int,
        deadline: Deadline,
        give_up: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Returns when the standby acknowledged it; waits for a running cycle to that standby.

        That cycle may have brought a later one of this epoch: nothing is left to do when the
        standby says so. Nothing is later than a final snapshot.
        """
        with contextlib.ExitStack() as stack:
            self._wait_for(stack, standby, deadline, give_up)
            conversation = stack.enter_context(hailing(self._config, standby, wire.Purpose.SEND))
            order = self._order(standby, snapshot, epoch)
            order = replace(order, later=self._later(snapshot, epoch), give_up=give_up)
            self._send(order, conversation, deadline)
            end(conversation, deadline)

    def greet(self, standby: str, deadline: Deadline) -> None:
        """Returns when the standby has welcomed this node; nothing is asked of it."""
        with session.greet(self._config, standby, deadline, wire.Purpose.ASK):
            pass

    def inspect(self, standby: str, deadline: Deadline) -> Sequence[Obstacle]:
        """Has the standby's agent look, now; StandfastError."""
        with session.greet(self._config, standby, deadline, wire.Purpose.ASK) as (asked, _welcome):
            answer = session.ask(asked, wire.Inspect(), deadline)
        return tuple(
            replace(
                obstacle,
                check=clean(obstacle.check),
                evidence=clean_lines(obstacle.evidence),
                fix=clean_lines(obstacle.fix),
            )
            for obstacle in wire.parse(answer, wire.Inspected).obstacles
        )

    def cycle(
        self,
        standby: str,
        *,
        full: bool = False,
        timeout_s: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> CycleResult:
        """Runs one whole cycle; Refused (busy) when one to this standby is at work.

        `full` sends everything whatever there is in common; `timeout_s` replaces
        `replication.timeout`.
        """
        deadline = Deadline.after(timeout_s or self._config.replication.timeout)
        # The standby's side starts up, and asks Consul who we are, while the snapshot is taken.
        with (
            self._lock(standby, None),
            hailing(self._config, standby, wire.Purpose.SEND) as conversation,
        ):
            epoch = self._epoch.epoch()
            with self._noting_failures(standby):
                snapshot = self._snapshot(standby, epoch)
            order = self._order(standby, snapshot, epoch)
            order = replace(
                order, full=full or self._waits_for_full(standby), on_progress=on_progress
            )
            result = self._send(order, conversation, deadline)
            # The standby deletes what it no longer needs at the same time.
            prune(self._config, self._store, also=(snapshot.content_id,))
            end(conversation, deadline)
        return result

    def _waits_for_full(self, standby: str) -> bool:
        """No increment gets through to it, as was seen before, and everything may be sent."""
        memory = state.load(self._config).standbys.get(standby, state.StandbyState())
        return memory.needs_full and self._config.replication.allow_full

    def _later(self, snapshot: Snapshot, epoch: int) -> frozenset[str]:
        """Returns what was taken after it, in the same epoch."""
        origins = self._origins()
        return frozenset(
            taken.content_id
            for taken in self._store.snapshots()
            if taken.name > snapshot.name
            and not taken.received
            and origins.get(taken.content_id, Origin(-1)).epoch == epoch
        )

    def _origins(self) -> Mapping[str, Origin]:
        return origins_of_snapshots(self._config, instant())

    def _order(self, standby: str, snapshot: Snapshot, epoch: int) -> Order:
        commons = self._commons(standby, snapshot)
        return Order(standby, snapshot, epoch, commons, served_before(self._config, standby))

    def _send(self, order: Order, conversation: Conversation, deadline: Deadline) -> CycleResult:
        """The caller holds the lock, and ends the conversation; the outcome is noted."""
        config, standby, snapshot = self._config, order.standby, order.snapshot
        started = monotonic()
        with self._noting_failures(standby):
            epoch_index = self._epoch.index_of(order.epoch)
            with pins.in_use(config, (snapshot.content_id, *(order.commons or {}).values())):
                shipped = ship(config, self._store, order, conversation, deadline)
                if shipped.overtaken:
                    log.info("%s has a later snapshot than %s already", standby, snapshot.name)
                    return CycleResult(snapshot.name, None, 0, monotonic() - started, False)
                origin = origin_of(config, snapshot, order.epoch)
                note_origin(config, snapshot, origin, self._store.snapshots)
                self._pin(order)
            self._epoch.report(standby, snapshot, origin, epoch_index)
        seconds = monotonic() - started
        self._note_success(order, shipped, seconds)
        parent = None if shipped.parent is None else str(shipped.parent.name)
        return CycleResult(snapshot.name, parent, shipped.sent_bytes, seconds, shipped.was_full)

    def _wait_for(
        self,
        stack: contextlib.ExitStack,
        standby: str,
        deadline: Deadline,
        give_up: Callable[[], str | None],
    ) -> None:
        """Enters the lock; a running cycle has no reason of its own to end soon."""
        while True:
            try:
                stack.enter_context(self._lock(standby, deadline.within(LOOK_UP_S)))
                return
            except Refused as busy:
                if busy.reason is not Reason.BUSY or deadline.expired:
                    raise
                if (why := give_up()) is not None:
                    raise TimedOut(f"send:{standby}: {why}") from busy

    def _lock(
        self, standby: str, deadline: Deadline | None
    ) -> contextlib.AbstractContextManager[object]:
        check_standby(self._config, standby)
        path = self._config.run_dir / f"replicate-{standby}.lock"
        return exclusive(path, f"a replication to {standby}", deadline)

    # What is remembered

    @contextlib.contextmanager
    def _noting_failures(self, standby: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            failure = ours(error)
            try:
                state.note_failure(self._config, standby, reason_of(failure), str(failure))
            except (StandfastError, OSError) as second:
                log.error("the failure to replicate to %s is not noted: %s", standby, ours(second))
            raise

    def _note_success(self, order: Order, shipped: Shipped, seconds: float) -> None:
        """History only: the standby has it, and a switchover goes on, also on a full disk."""
        snapshot = order.snapshot
        shared = state.Shared(str(snapshot.name), snapshot.content_id, order.epoch)
        sent = shipped.sent_bytes
        try:
            state.note_success(
                self._config, order.standby, shared, duration_s=seconds, sent_bytes=sent
            )
        except (StandfastError, OSError) as error:
            log.error("%s has %s, which is not noted: %s", order.standby, snapshot.name, error)

    def _pin(self, order: Order) -> None:
        """Unreadable pins don't end the replication: they only keep everything from deletion."""
        snapshot = order.snapshot
        try:
            pins.note(self._config, order.standby, pins.Pin.of(snapshot, order.epoch))
        except (StandfastError, OSError) as error:
            log.error("%s has %s, which is not pinned: %s", order.standby, snapshot.name, error)

    def _commons(self, standby: str, snapshot: Snapshot) -> dict[str, str] | None:
        """By standby a content that it has; None when that can't be said."""
        try:
            return pins.to_tell(pins.load(self._config), standby, snapshot.content_id)
        except (StandfastError, OSError) as error:
            log.warning("nothing is pruned, the pinned snapshots are unknown: %s", error)
            return None

    # Snapshots

    def _snapshot(self, standby: str, epoch: int) -> Snapshot:
        """Returns a snapshot of this epoch: one that another cycle took just now, or a new one."""
        config = self._config
        waiting = Deadline.after(SNAPSHOT_LOCK_S)
        with snapshot_lock(config, waiting):
            self._check_not_draining()
            before = state.load(config)
            shared = self._shareable(before, standby, epoch)
            if shared is not None:
                return shared
            taken = take(config, self._store, epoch)
            state.note_shared(config, state.Shared(str(taken.name), taken.content_id, epoch))
            return taken

    def _check_not_draining(self) -> None:
        """The final snapshot of a demotion is the newest of its epoch: nothing comes after it."""
        own = OwnEpoch.load(self._config.state_dir)
        if own is not None and own.stage in (Stage.DRAINING, Stage.RELEASED):
            raise Refused(
                Reason.NOT_PRIMARY,
                f"{self._config.node} is giving up the role (epoch {own.epoch}, {own.stage}): its "
                f"final snapshot is the last one",
            )

    def _shareable(
        self, before: state.ReplicationState, standby: str, epoch: int
    ) -> Snapshot | None:
        shared = before.shared
        # Of another epoch it would be of another history, however new.
        if shared is None or shared.epoch != epoch:
            return None
        done = before.standbys.get(standby)
        if done is not None and done.epoch == epoch and (done.snapshot or "") >= shared.name:
            return None  # the standby has this one, or a newer one
        for snapshot in self._store.snapshots():
            if snapshot.content_id == shared.content_id and not snapshot.received:
                old_s = age_of(origin_of(self._config, snapshot, epoch).taken_at, utc_now())
                fresh = old_s is not None and old_s < self._config.replication.interval / 2
                return snapshot if fresh else None
        return None


def served_before(config: Config, standby: str) -> bool:
    """Tells whether something was replicated to the standby once, as far as this node remembers.

    In doubt it was: what was lost over there isn't sent again without a word. StandfastError when
    the memory of the cycles can't be read.
    """
    memory = state.load(config).standbys.get(standby, state.StandbyState())
    if memory.needs_full or memory.successes > 0:
        return True
    try:
        pin = pins.load(config).get(standby)
    except (StandfastError, OSError):
        return True
    return pin is not None and pin.sure
