"""What each source says, as samples of the metrics.

Invariants: pure. What a source doesn't know is left out: never zero, never "well".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from standfast.ages import UNKNOWN, age_of, time_of
from standfast.config.model import Config
from standfast.errors import NomadOutcome
from standfast.exporter.families import MODES, ROLES, Sample
from standfast.names import SnapshotName
from standfast.replication import state
from standfast.status.document import FromConsul, Standby, Status

_NOMAD_FAILED = frozenset(f"nomad-{outcome}" for outcome in NomadOutcome)
# The agent notes each minute what it saw of Nomad: one that stopped doing so knows nothing.
NOMAD_SILENT_S = 600.0


def from_config(config: Config) -> Iterator[Sample]:
    """Yields what alert rules compare with: none of them has to know this cluster's timing."""
    yield "lease_length_seconds", config.lease.length, ()
    yield "replication_interval_seconds", config.replication.interval, ()


def from_status(status: Status, config: Config, utc: float) -> Iterator[Sample]:
    """Yields what the agent, or Consul alone, says."""
    for role in ROLES:
        yield "role", float(status.role == role), (role,)
    if status.consul is not None:
        yield from _from_consul(status.consul, config)
    if status.agent is True:
        yield from _from_agent(status, utc)
    if status.failover is not None:
        yield "failover_possible", float(status.failover.possible), ()
        if status.failover.reason is not None:
            yield "failover_blocked", 1.0, (status.failover.reason,)


def _from_consul(consul: FromConsul, config: Config) -> Iterator[Sample]:
    if consul.epoch is not None:
        yield "epoch", consul.epoch, ()
    if consul.since is not None:
        # An operator's own words may follow the code: they are no label.
        began_by = (consul.began_by or "").partition(":")[0]
        yield "epoch_start_timestamp_seconds", consul.since, (began_by,)
    for standby in consul.standbys:
        if standby.on_hold is not UNSET:
            yield "standby_on_hold", float(standby.on_hold is not None), (standby.node,)
        if standby.word is not UNSET and standby.word is not None:
            yield "takeover_obstacles", len(standby.word.obstacles), (standby.node,)
    now = config.mode if consul.paused is None else "paused"
    for mode in MODES:
        yield "mode", float(mode == now), (mode,)


def _from_agent(status: Status, utc: float) -> Iterator[Sample]:
    """Yields what nobody but the agent of this node knows."""
    files, work, nomad = status.files, status.work, status.nomad
    yield "serving", float(status.node_serves), ()
    if files is not None:
        yield "fence_flushes", files.fence_flushes, ()
    if work is not None:
        yield "trouble", float(work.trouble is not None), ()
    if status.role == "primary" and status.fence is not None:
        yield "fence_armed", float(status.fence.in_place), ()
    if files is not None and files.lease_remaining_s is not None:
        yield "lease_remaining_seconds", max(0.0, files.lease_remaining_s), ()
    if nomad is not None and nomad.at is not None and nomad.role != "changing":
        silent = utc - nomad.at > NOMAD_SILENT_S
        yield "nomad_up", float(not silent and nomad.reason not in _NOMAD_FAILED), ()
        yield "nomad_pending", float(not nomad.settled), ()


def from_replication(config: Config, sent: state.ReplicationState) -> Iterator[Sample]:
    """Yields what this node has sent, ever, to each standby that is still configured."""
    for name in config.standbys:
        standby, labels = sent.standbys.get(name, state.StandbyState()), (name,)
        yield "replication_sent_bytes", standby.sent_bytes_total, labels
        yield "replication_needs_full", float(standby.needs_full), labels
        for reason, count in standby.failures.items():
            yield "replication_failures", count, (name, reason)
        if standby.last_success_at is not None:
            yield "replication_last_success_timestamp_seconds", standby.last_success_at, labels
        if standby.duration_s is not None:
            yield "replication_duration_seconds", standby.duration_s, labels
        if standby.verified_at is not None:
            yield "replication_verified_timestamp_seconds", standby.verified_at, labels
        if standby.verified_ok is not None:
            yield "replication_verify_failed", float(not standby.verified_ok), labels


@dataclass(frozen=True, slots=True)
class Copy:
    """Names the newest snapshot of a node, and says when it was taken, UTC seconds or UNKNOWN."""

    name: SnapshotName
    taken_at: float


def ages(newest: Mapping[str, Copy | None], utc: float) -> Iterator[Sample]:
    """Yields the age of each standby, by its newest snapshot; None: it has none.

    An age that isn't known, as a clock was set back, is not a small one.
    """
    for standby, copy in newest.items():
        age_s = None if copy is None else age_of(copy.taken_at, utc)
        yield "replication_age_seconds", math.inf if age_s is None else age_s, (standby,)
        yield "replica_has_snapshot", float(copy is not None), (standby,)
        if copy is not None and age_s is not None:
            yield "replica_newest_snapshot_timestamp_seconds", copy.taken_at, (standby,)


def newest_of_standbys(
    config: Config,
    told: Sequence[Standby],
    sent: state.ReplicationState | None,
    times: Mapping[str, float],
) -> Mapping[str, Copy | None]:
    """Returns each standby's newest snapshot, by Consul's records, which are `told`, or by what
    this node saw acknowledged, whichever is newer.

    With neither at hand a standby is left out: unknown is not "none". `times`: when the snapshots
    that this node has itself were taken, by their names.
    """
    records = {standby.node: standby for standby in told}
    newest: dict[str, Copy | None] = {}
    copies: dict[tuple[str | None, float | None], Copy | None] = {}
    for name in config.standbys:
        own = sent.standbys.get(name) if sent is not None else None
        record = records.get(name, Standby(name))
        at = UNKNOWN if record.taken_at is None else record.taken_at
        both = []
        for text, taken_at in (
            (record.snapshot, None if at is UNSET else at),
            (own.snapshot if own is not None else None, None),
        ):
            key = (text, taken_at)
            if key not in copies:  # one snapshot goes to all standbys: its name is read once
                copies[key] = _copy(text, taken_at, times)
            if (copy := copies[key]) is not None:
                both.append(copy)
        if both or name in records:
            # Of one snapshot the older time, or that nobody knows it.
            newest[name] = max(
                both,
                key=lambda copy: (copy.name, copy.taken_at == UNKNOWN, -copy.taken_at),
                default=None,
            )
    return newest


def _copy(text: str | None, taken_at: float | None, times: Mapping[str, float]) -> Copy | None:
    name = _parsed(text)
    if name is None:
        return None
    here = times.get(str(name))
    if here is None:
        here = UNKNOWN if taken_at == UNKNOWN else time_of(name, taken_at)
    return Copy(name, here)


def _parsed(text: str | None) -> SnapshotName | None:
    try:
        return None if text is None else SnapshotName.parse(text)
    except ValueError:
        return None
