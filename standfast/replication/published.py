"""Where each replicated snapshot comes from: `<state_dir>/published.json`.

    {"v": 1, "epochs": {content id: epoch}, "clock": {"utc", "up", "boot", "set_up"}, "last": name,
     "counted_at": {content id: UTC seconds}, "before": {content id: [UTC seconds, floor]}}

`last` is the latest name ever noted here: the next one comes after it, though everything that had a
name may be deleted by then. What was noted since the start that `clock` is of is in `counted_at`,
by that very clock: when it is found to have been set back, so much is taken off; `before` has the
others. See `ages`. An older version wrote only `epochs`.

Invariant: an entry is on disk before its snapshot becomes visible. So a power cut can leave an
entry without a snapshot, which means nothing, but never a published snapshot of unknown epoch.
A snapshot taken here gets its entry when a standby has acknowledged it.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from standfast.ages import WAS_SET_S, Before, Origin, Seen
from standfast.config.model import Config
from standfast.consul.records import MOST_SECONDS
from standfast.errors import Refused, StandfastError
from standfast.lease.files import boot_instance
from standfast.names import MOST_AHEAD_S, SnapshotName
from standfast.node.own_epoch import OwnEpoch
from standfast.node.ports import Snapshot, VolumeStore
from standfast.reasons import Reason
from standfast.system.clock import Deadline, Instant, instant
from standfast.system.files import read_json, write_atomically
from standfast.system.locks import exclusive

LOCK_WAIT_S = 10.0
CLOCK_EVERY_S = 60.0
MOST_UNSEEN = 50
"""So many of the last entries are kept though their snapshots are not there: deleted, or on a file
system that is mounted later. Of those the newest count; and the reserve grows with this file."""
CLOCK_LOCK_S = 1.0
"""Not having noted the clock costs less than an agent that waits."""


class Named(Protocol):
    """A snapshot that isn't visible yet: announced, or just staged."""

    @property
    def name(self) -> SnapshotName: ...

    @property
    def content_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Noted:
    """The whole file."""

    epochs: Mapping[str, int]
    before: Mapping[str, Before]
    counted_at: Mapping[str, float]
    """Of what was noted since the start that `seen` is of, by that clock."""
    last: SnapshotName | None
    seen: Seen | None

    def going_on(self, now: Instant) -> _Noted:
        """As of now; after a start of the machine nothing is counted any more."""
        if self.seen is None:
            return replace(self, seen=Seen(now))
        last, seen = self.seen.at, self.seen.going_on(now)
        if last.boot != now.boot:
            before = {one: at.over_start(last) for one, at in self.before.items()}
            before |= {one: Before(at, last.utc) for one, at in self.counted_at.items()}
            return replace(self, seen=seen, before=before, counted_at={})
        # Set forward may mean that the machine stood still: it makes nothing younger.
        set_back = min(0.0, self.seen.set_by(now))
        counted = {one: at + set_back for one, at in self.counted_at.items()}
        return replace(self, seen=seen, counted_at=counted)

    def origins(self) -> dict[str, Origin]:
        assert self.seen is not None
        found = {}
        for one, epoch in self.epochs.items():
            if one in self.counted_at:
                found[one] = Origin(epoch, self.counted_at[one], counted=True)
            else:
                before = self.before.get(one)
                at = None if before is None else before.time(self.seen.at)
                found[one] = Origin(epoch, at)
        return found

    def keeping(self, known: Collection[str]) -> _Noted:
        """Of these only."""
        return replace(
            self,
            epochs={one: epoch for one, epoch in self.epochs.items() if one in known},
            before={one: at for one, at in self.before.items() if one in known},
            counted_at={one: at for one, at in self.counted_at.items() if one in known},
        )

    def adding(self, snapshot: Named, origin: Origin) -> _Noted:
        one, at = snapshot.content_id, origin.taken_at
        counted = self.counted_at if at is None else {**self.counted_at, one: at}
        last = snapshot.name if self.last is None else max(self.last, snapshot.name)
        epochs = {**self.epochs, one: origin.epoch}
        return replace(self, epochs=epochs, counted_at=counted, last=last)

    def save(self, config: Config, *, durable: bool = True, reserved: bool = False) -> None:
        seen = self.seen
        clock = None
        if seen is not None:
            clock = {**asdict(seen.at), "set_up": seen.set_up}
        last = None if self.last is None else str(self.last)
        # To the thousandth of a second: room may be reserved.
        counted = {one: round(at, 3) for one, at in self.counted_at.items()}
        before = {one: [round(of.at, 3), round(of.floor, 3)] for one, of in self.before.items()}
        times = {"counted_at": counted, "before": before}
        text = json.dumps({"v": 1, "epochs": self.epochs, "last": last, "clock": clock, **times})
        write_atomically(published_file(config), text, durable=durable, reserved=reserved)


def _load(config: Config) -> _Noted:
    path = published_file(config)
    doc = read_json(path)
    if doc is None:
        return _Noted({}, {}, {}, None, None)
    try:
        if doc["v"] != 1:
            raise ValueError(f"version {doc['v']!r}")
        for epoch in doc["epochs"].values():
            if type(epoch) is not int or epoch < 0:
                raise ValueError(f"epoch {epoch!r}")
        last, clock = doc.get("last"), doc.get("clock")
        return _Noted(
            doc["epochs"],
            {one: _before(*of) for one, of in doc.get("before", {}).items()},
            {one: _finite(at) for one, at in doc.get("counted_at", {}).items()},
            None if last is None else SnapshotName.parse(last),
            None if clock is None else _seen(clock),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise StandfastError(
            f"{path} does not hold the epochs of the published snapshots ({error!r}). Move it "
            f"away: snapshots published so far then count as older than all others, until the next "
            f"replication"
        ) from error


def _seen(clock: Mapping[str, Any]) -> Seen:
    now = Instant(_finite(clock["utc"]), _finite(clock["up"]), str(clock["boot"]))
    return Seen(now, None if clock["set_up"] is None else _finite(clock["set_up"]))


def _before(at: Any, floor: Any) -> Before:
    return Before(_finite(at), _finite(floor))


def _finite(value: Any) -> float:
    # A bool is an int, and json reads NaN and Infinity: none of them is a time.
    if type(value) not in (int, float) or not abs(value) < MOST_SECONDS:
        raise ValueError(f"{value!r} is not a time")
    return float(value)


def epochs_of_snapshots(config: Config) -> Mapping[str, int]:
    """Content id -> epoch of the primary that took it; StandfastError when unreadable."""
    return _load(config).epochs


def origins_of_snapshots(config: Config, now: Instant) -> Mapping[str, Origin]:
    """Content id -> origin; StandfastError when unreadable."""
    return _as_of(config, now).origins()


def clock_was_set_s_ago(config: Config, now: Instant) -> float:
    """Seconds since the wall clock was set; infinity: not since this machine started."""
    seen = _as_of(config, now).seen
    return math.inf if seen is None or seen.set_up is None else now.up - seen.set_up


def next_name(config: Config, utc: float) -> SnapshotName:
    """The name of a snapshot taken now: after every one that this node's files know of.

    The store adds what lies in its directories. Refused (bad-name) when nothing comes after them.
    """
    known = [_load(config).last]
    own = OwnEpoch.load(config.state_dir)
    for text in () if own is None else (own.base, own.final):
        with contextlib.suppress(ValueError):  # written by hand: no name
            known.append(None if text is None else SnapshotName.parse(text))
    found = [one for one in known if one is not None]
    chosen = SnapshotName.at(config.base, utc).after(found)
    if chosen.stamp >= MOST_SECONDS:
        latest = f"{max(found)}, the latest noted in" if found else "the clock's time; see"
        raise Refused(
            Reason.BAD_NAME,
            f"no name comes after {latest} {published_file(config)} or own-epoch.json there: set "
            f"the clock, and if no snapshot has that name, correct it there",
        )
    return chosen


def take(config: Config, store: VolumeStore, epoch: int, *, reserved: bool = False) -> Snapshot:
    """Take a snapshot of the live tree and note it as of this epoch; see `note_origin`.

    One that can't be noted is deleted: nobody else has it, and nothing would ever prune it. Raises
    what the store and `note_origin` do.
    """
    began = instant()
    snapshot = store.take_snapshot(next_name(config, began.utc))
    now = instant()
    # By the clock as it is now: it may have been set meanwhile.
    origin = Origin(epoch, now.utc - (now.up - began.up))
    try:
        note_origin(config, snapshot, origin, store.snapshots, reserved=reserved)
    except Exception:
        with contextlib.suppress(StandfastError, OSError):
            store.delete([snapshot])
        raise
    return snapshot


def origin_of(config: Config, snapshot: Snapshot, epoch: int) -> Origin:
    """Where a snapshot of this node's comes from, by the clock as it is now: ask again after
    anything that takes time. `taken_at` is UNKNOWN where nobody knows."""
    noted = origins_of_snapshots(config, instant()).get(snapshot.content_id, Origin(epoch))
    return Origin(epoch, noted.time(snapshot.name))


def note_names(config: Config, names: Iterable[str]) -> None:
    """The next name comes after these, too: another node has them.

    An older version, whose clock was ahead, named by the clock alone.
    """
    now = instant()
    found = []
    for text in names:
        with contextlib.suppress(ValueError):  # made by hand: no name
            found.append(SnapshotName.parse(text))
    ours = [one for one in found if one.base == config.base and one.stamp <= now.utc + MOST_AHEAD_S]
    with _locked(config, LOCK_WAIT_S):
        noted = _as_of(config, now)
        known = ours if noted.last is None else [*ours, noted.last]
        replace(noted, last=max(known, default=None)).save(config)


def note_origin(
    config: Config,
    snapshot: Named,
    origin: Origin,
    snapshots: Callable[[], Iterable[Snapshot]],
    *,
    reserved: bool = False,
) -> None:
    """Note where `snapshot` comes from; on disk when this returns. `reserved`: on a full one too.

    What was noted of it before stays, if it is of this epoch. Entries of what is no more among
    `snapshots` are dropped, but for the last ones: their directory may not be mounted yet. They are
    listed under the lock: one that another process took and noted meanwhile must not lose its
    entry.
    """
    with _locked(config, LOCK_WAIT_S):
        noted = _as_of(config, instant())
        if noted.epochs.get(snapshot.content_id) != origin.epoch:
            known = {*(one.content_id for one in snapshots()), *list(noted.epochs)[-MOST_UNSEEN:]}
            noted.keeping(known).adding(snapshot, origin).save(config, reserved=reserved)


def note_clock(config: Config, now: Instant) -> None:
    """Have it known which time it was, for after a start of the machine: now and then is enough.

    At once when the clock was set: with the next time that it is, this one couldn't be told apart.
    Refused (busy), StandfastError, OSError.
    """
    seen, now = _load(config).seen, _here(config, now)
    if seen is None:
        return
    same = seen.at.boot == now.boot and abs(seen.set_by(now)) <= WAS_SET_S
    if same and now.up - seen.at.up < CLOCK_EVERY_S:
        return
    with _locked(config, CLOCK_LOCK_S):
        _as_of(config, now).save(config, durable=False)


def _as_of(config: Config, now: Instant) -> _Noted:
    """The one door to what is noted: without the start that it is of, any moment would be of
    another one, and nothing be counted any more."""
    return _load(config).going_on(_here(config, now))


def _here(config: Config, now: Instant) -> Instant:
    """With the start that it is of, by our own name for it: in a container the kernel's is not the
    same for a service with its own /proc."""
    if now.boot:
        return now
    try:
        return replace(now, boot=boot_instance(config.paths.run))
    except OSError:  # somebody who only looks, before this start has a name
        return now


def _locked(config: Config, wait_s: float) -> contextlib.AbstractContextManager[object]:
    lock = config.run_dir / "published.lock"
    return exclusive(lock, "another replication", Deadline.after(wait_s))


def ranked(snapshots: Sequence[Snapshot], epochs: Mapping[str, int]) -> list[Snapshot]:
    """Received snapshots, best last: by the epoch they come from, then by time.

    One without a known epoch comes before all others.
    """
    received = [one for one in snapshots if one.received]
    return sorted(received, key=lambda one: (epochs.get(one.content_id, -1), one.name))


def published_file(config: Config) -> Path:
    """Where the entries are; it changes before a snapshot becomes visible."""
    return config.state_dir / "published.json"
