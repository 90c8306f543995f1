"""Where each snapshot comes from, received or taken here: `<state_dir>/published.json`.

    {"v": 1, "epochs": {content id: epoch}, "clock": {"utc", "up", "boot", "set_up"}, "last": name,
     "counted_at": {content id: UTC seconds}, "before": {content id: [UTC seconds, floor]}}

`last` is the latest name ever noted here: the next one comes after it, though everything that had a
name may be deleted by then. What was noted since the start that `clock` is of is in `counted_at`,
by that very clock: when it is found to have been set back, so much is taken off; `before` has the
others. See `ages`. An older version wrote only `epochs`.

Invariant: an entry is on disk before its snapshot becomes visible. So a power cut can leave an
entry without a snapshot, which means nothing, but never a published snapshot of unknown epoch.
A snapshot taken here (`take`) is noted at once, and deleted when it can't be.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeVar

from msgspec import Meta, Struct, convert, field, to_builtins

from standfast.ages import WAS_SET_S, Before, Origin, Seen
from standfast.config.model import Config
from standfast.consul.record import MOST_SECONDS
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
SETTLED_S = 600.0
"""Uptime by which NTP has corrected what the machine started with; to be set later is none of
that."""
MOST_UNSEEN = 50
"""So many of the last entries are kept though their snapshots are not there: deleted, or on a file
system that is mounted later. Of those the newest count; and the reserve grows with this file."""
CLOCK_LOCK_S = 1.0
"""Not having noted the clock costs less than an agent that waits."""
Time = Annotated[float, Meta(gt=-MOST_SECONDS, lt=MOST_SECONDS)]
T = TypeVar("T")


class Named(Protocol):
    """A snapshot that isn't visible yet: announced, or just staged."""

    @property
    def name(self) -> SnapshotName: ...

    @property
    def content_id(self) -> str: ...


class _Clock(Struct, frozen=True):
    utc: Time
    up: Time
    boot: str
    set_up: Time | None


class _File(Struct, frozen=True):
    v: Literal[1]
    epochs: Mapping[str, Annotated[int, Meta(ge=0)]]
    last: str | None = None
    clock: _Clock | None = None
    counted_at: Mapping[str, Time] = field(default_factory=dict)
    before: Mapping[str, tuple[Time, Time]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Noted:
    """What the file says."""

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
            before = {content_id: at.over_start(last) for content_id, at in self.before.items()}
            before |= {id_: Before(at, last.utc) for id_, at in self.counted_at.items()}
            return replace(self, seen=seen, before=before, counted_at={})
        # Set forward may mean that the machine stood still: it makes nothing younger.
        set_back = min(0.0, self.seen.set_by(now))
        counted = {content_id: at + set_back for content_id, at in self.counted_at.items()}
        return replace(self, seen=seen, counted_at=counted)

    def origins(self) -> dict[str, Origin]:
        assert self.seen is not None
        origins = {}
        for content_id, epoch in self.epochs.items():
            if content_id in self.counted_at:
                origins[content_id] = Origin(epoch, self.counted_at[content_id], counted=True)
            else:
                before = self.before.get(content_id)
                at = None if before is None else before.time(self.seen.at)
                origins[content_id] = Origin(epoch, at)
        return origins

    def keeping(self, known: Collection[str]) -> _Noted:
        """Returns what is noted of these content ids only."""
        return replace(
            self,
            epochs=_only(known, self.epochs),
            before=_only(known, self.before),
            counted_at=_only(known, self.counted_at),
        )

    def adding(self, snapshot: Named, origin: Origin) -> _Noted:
        content_id, at = snapshot.content_id, origin.taken_at
        counted = self.counted_at if at is None else {**self.counted_at, content_id: at}
        last = snapshot.name if self.last is None else max(self.last, snapshot.name)
        epochs = {**self.epochs, content_id: origin.epoch}
        return replace(self, epochs=epochs, counted_at=counted, last=last)

    def save(self, config: Config, *, durable: bool = True, reserved: bool = False) -> None:
        seen = self.seen
        # To the thousandth of a second: room may be reserved.
        file = _File(
            v=1,
            epochs=self.epochs,
            last=None if self.last is None else str(self.last),
            clock=None if seen is None else _Clock(**asdict(seen.at), set_up=seen.set_up),
            counted_at={content_id: round(at, 3) for content_id, at in self.counted_at.items()},
            before={
                content_id: (round(noted.at, 3), round(noted.floor, 3))
                for content_id, noted in self.before.items()
            },
        )
        text = json.dumps(to_builtins(file))
        write_atomically(published_file(config), text, durable=durable, reserved=reserved)


def _only(known: Collection[str], noted: Mapping[str, T]) -> dict[str, T]:
    return {content_id: value for content_id, value in noted.items() if content_id in known}


def _load(config: Config) -> _Noted:
    path = published_file(config)
    doc = read_json(path)
    if doc is None:
        return _Noted({}, {}, {}, None, None)
    try:
        file = convert(doc, _File)
        clock = file.clock
        return _Noted(
            file.epochs,
            {content_id: Before(*times) for content_id, times in file.before.items()},
            file.counted_at,
            None if file.last is None else SnapshotName.parse(file.last),
            None if clock is None else Seen(Instant(clock.utc, clock.up, clock.boot), clock.set_up),
        )
    except ValueError as error:
        raise StandfastError(
            f"{path} does not hold the epochs of the published snapshots ({error!r}). Move it "
            f"away: snapshots published so far then count as older than all others, until the next "
            f"replication"
        ) from error


def epochs_of_snapshots(config: Config) -> Mapping[str, int]:
    """Returns the epoch of the primary that took each snapshot, by content id; StandfastError when
    that is unreadable."""
    return _load(config).epochs


def origins_of_snapshots(config: Config, now: Instant) -> Mapping[str, Origin]:
    """Returns the origin of each snapshot, by content id; StandfastError when that is
    unreadable."""
    return _as_of(config, now).origins()


def clock_was_set_s_ago(config: Config, now: Instant) -> float:
    """Returns the seconds since the wall clock was set; infinity: not since this machine
    started."""
    seen = _as_of(config, now).seen
    return math.inf if seen is None or seen.set_up is None else now.up - seen.set_up


def next_name(config: Config, utc: float) -> SnapshotName:
    """Returns the name of a snapshot taken now: after every one that this node's files know of.

    The store adds what lies in its directories. Refused (bad-name) when nothing comes after them.
    """
    known = [_load(config).last]
    own = OwnEpoch.load(config.state_dir)
    for text in () if own is None else (own.base, own.final):
        with contextlib.suppress(ValueError):  # written by hand: no name
            known.append(None if text is None else SnapshotName.parse(text))
    names = [name for name in known if name is not None]
    chosen = SnapshotName.at(config.base, utc).after(names)
    if chosen.stamp >= MOST_SECONDS:
        latest = f"{max(names)}, the latest noted in" if names else "the clock's time; see"
        raise Refused(
            Reason.BAD_NAME,
            f"no name comes after {latest} {published_file(config)} or own-epoch.json there: set "
            f"the clock, and if no snapshot has that name, correct it there",
        )
    return chosen


def take(config: Config, store: VolumeStore, epoch: int, *, reserved: bool = False) -> Snapshot:
    """Takes a snapshot of the live tree and notes it as of this epoch; see `note_origin`.

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
    """Returns where a snapshot of this node's comes from, by the clock as it is now: ask again
    after anything that takes time. `taken_at` is UNKNOWN where nobody knows."""
    noted = origins_of_snapshots(config, instant()).get(snapshot.content_id, Origin(epoch))
    return Origin(epoch, noted.time(snapshot.name))


def note_names(config: Config, names: Iterable[str]) -> None:
    """Makes the next name come after these, too: another node has them.

    An older version, whose clock was ahead, named by the clock alone.
    """
    now = instant()
    ours = []
    for text in names:
        with contextlib.suppress(ValueError):  # made by hand: no name
            name = SnapshotName.parse(text)
            if name.base == config.base and name.stamp <= now.utc + MOST_AHEAD_S:
                ours.append(name)
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
    """Notes where `snapshot` comes from; on disk when this returns. `reserved`: on a full one too.

    What was noted of it before stays, if it is of this epoch. Entries of what is no more among
    `snapshots` are dropped, but for the last ones: their directory may not be mounted yet. They are
    listed under the lock: one that another process took and noted meanwhile must not lose its
    entry.
    """
    with _locked(config, LOCK_WAIT_S):
        noted = _as_of(config, instant())
        if noted.epochs.get(snapshot.content_id) != origin.epoch:
            here = (present.content_id for present in snapshots())
            known = {*here, *list(noted.epochs)[-MOST_UNSEEN:]}
            noted.keeping(known).adding(snapshot, origin).save(config, reserved=reserved)


def note_clock(config: Config, now: Instant) -> None:
    """Notes which time it is, for after a start of the machine: now and then is enough.

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


def clock_set_ago(config: Config, now: Instant) -> float | None:
    """Returns seconds since the wall clock was last seen to have been set, or the machine to have
    stood still; None: not since its clock had its time after the start, or it isn't known."""
    try:
        seen = _as_of(config, now).seen
    except (StandfastError, OSError):
        return None
    if seen is None or seen.set_up is None or seen.set_up < SETTLED_S:
        return None
    return max(0.0, now.up - seen.set_up)


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


def published_file(config: Config) -> Path:
    """Returns where the entries are; that file changes before a snapshot becomes visible."""
    return config.state_dir / "published.json"
