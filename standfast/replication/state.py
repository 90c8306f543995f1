"""What this node remembers of its replications: `<state_dir>/replication.json`.

Read by status and the exporter; it also says which snapshot of this epoch may be shared by the
cycles to several standbys. Losing it costs nothing but history; nothing is deleted on its word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from msgspec import Struct, convert, field, to_builtins
from msgspec.structs import replace

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.reasons import Reason
from standfast.system.clock import Deadline, utc_now
from standfast.system.files import read_json, write_atomically
from standfast.system.locks import exclusive

LOCK_WAIT_S = 10.0
A_MOMENT_S = 0.001
"""The later of two times says which came last."""


class Shared(Struct, frozen=True, forbid_unknown_fields=True):
    """The newest snapshot that a cycle took."""

    name: str
    content_id: str
    epoch: int


class StandbyState(Struct, frozen=True, forbid_unknown_fields=True):
    """Times are UTC seconds, durations seconds; all since this node first replicated there."""

    last_success_at: float | None = None
    snapshot: str | None = None
    content_id: str | None = None
    epoch: int | None = None
    duration_s: float | None = None
    sent_bytes: int | None = None
    sent_bytes_total: int = 0
    successes: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    """Failures by reason code, ever."""
    last_failure_at: float | None = None
    last_failure_reason: str | None = None
    last_failure: str | None = None
    needs_full: bool = False
    verified_at: float | None = None
    verified_snapshot: str | None = None
    verified_ok: bool | None = None
    """Whether the last comparison found both sides equal; None: there was none."""
    verified_full: bool = False
    """Whether it read what is in the files."""

    @property
    def has_failed(self) -> bool:
        """Tells whether the last cycle failed."""
        return (self.last_failure_at or 0.0) > (self.last_success_at or 0.0)


class ReplicationState(Struct, frozen=True):
    """Everything that the file holds."""

    shared: Shared | None = None
    standbys: Mapping[str, StandbyState] = field(default_factory=dict)


def load(config: Config) -> ReplicationState:
    """Returns what is remembered; empty when there is no file, StandfastError when it can't be
    understood."""
    path = config.state_dir / "replication.json"
    doc = read_json(path)
    if doc is None:
        return ReplicationState()
    try:
        if doc["v"] != 1:
            raise ValueError(f"version {doc['v']!r}")
        return convert({key: doc[key] for key in ("shared", "standbys")}, ReplicationState)
    except (KeyError, ValueError) as error:
        raise StandfastError(
            f"{path} is no state of the replication ({error!r}); move it away, it is history only"
        ) from error


def note_shared(config: Config, shared: Shared) -> None:
    """Notes the snapshot that the cycles to several standbys may share."""
    _update(config, lambda state: replace(state, shared=shared))


def note_success(
    config: Config, standby: str, sent: Shared, *, duration_s: float, sent_bytes: int
) -> None:
    """Notes a replication that the standby acknowledged."""

    def change(before: StandbyState) -> StandbyState:
        now = utc_now()
        return replace(
            before,
            last_success_at=now,
            last_failure_at=_not_after(before.last_failure_at, now),
            snapshot=sent.name,
            content_id=sent.content_id,
            epoch=sent.epoch,
            duration_s=duration_s,
            sent_bytes=sent_bytes,
            sent_bytes_total=before.sent_bytes_total + sent_bytes,
            successes=before.successes + 1,
            needs_full=False,
        )

    _update_standby(config, standby, change)


def note_failure(config: Config, standby: str, reason: Reason, message: str) -> None:
    """Notes a failed replication, with its reason code and message."""

    def change(before: StandbyState) -> StandbyState:
        counted = {**before.failures, str(reason): before.failures.get(str(reason), 0) + 1}
        now = utc_now()
        return replace(
            before,
            failures=counted,
            last_success_at=_not_after(before.last_success_at, now - A_MOMENT_S),
            last_failure_at=now,
            last_failure_reason=str(reason),
            last_failure=message,
            needs_full=before.needs_full or reason is Reason.NEEDS_FULL,
        )

    _update_standby(config, standby, change)


def _not_after(at: float | None, now: float) -> float | None:
    """What came before didn't come later: a clock was set back since."""
    return None if at is None else min(at, now)


def note_verified(config: Config, standby: str, snapshot: str, *, ok: bool, full: bool) -> None:
    """Notes a comparison. A look at the metadata alone doesn't clear what a look at the contents
    found."""

    def change(before: StandbyState) -> StandbyState:
        if ok and not full and before.verified_ok is False and before.verified_full:
            return before
        return replace(
            before,
            verified_at=utc_now(),
            verified_snapshot=snapshot,
            verified_ok=ok,
            verified_full=full,
        )

    _update_standby(config, standby, change)


def note_needs_full(config: Config, standby: str, message: str) -> None:
    """Notes that nothing is kept for `standby` any more; `message` says why."""

    def change(before: StandbyState) -> StandbyState:
        now = utc_now()
        return replace(
            before,
            last_success_at=_not_after(before.last_success_at, now - A_MOMENT_S),
            last_failure_at=now,
            last_failure_reason=str(Reason.NEEDS_FULL),
            last_failure=message,
            needs_full=True,
        )

    _update_standby(config, standby, change)


def forget(config: Config, standby: str) -> None:
    """Forgets everything that is remembered of `standby`."""

    def change(state: ReplicationState) -> ReplicationState:
        kept = {name: memory for name, memory in state.standbys.items() if name != standby}
        return replace(state, standbys=kept)

    if standby in load(config).standbys:
        _update(config, change)


def _update_standby(
    config: Config, standby: str, change: Callable[[StandbyState], StandbyState]
) -> None:
    def update(state: ReplicationState) -> ReplicationState:
        before = state.standbys.get(standby, StandbyState())
        return replace(state, standbys={**state.standbys, standby: change(before)})

    _update(config, update)


def _update(config: Config, change: Callable[[ReplicationState], ReplicationState]) -> None:
    lock = config.run_dir / "replication-state.lock"
    with exclusive(lock, "another replication", Deadline.after(LOCK_WAIT_S)):
        doc = {"v": 1, **to_builtins(change(load(config)))}
        path = config.state_dir / "replication.json"
        write_atomically(path, json.dumps(doc), durable=True)
