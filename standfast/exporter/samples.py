"""What each source says, as samples of the metrics.

Invariants: pure; a document of an unexpected shape raises KeyError, TypeError or the like. What a
source doesn't know is left out: never zero, never "well".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from standfast.ages import UNKNOWN, age_of, time_of
from standfast.config.model import Config
from standfast.errors import NomadOutcome
from standfast.exporter.families import MODES, ROLES, Sample
from standfast.names import SnapshotName
from standfast.replication import state

Status = Mapping[str, Any]

_NOMAD_FAILED = frozenset(f"nomad-{outcome}" for outcome in NomadOutcome)
# The agent notes each minute what it saw of Nomad: one that stopped doing so knows nothing.
NOMAD_SILENT_S = 600.0


def from_config(config: Config) -> Iterator[Sample]:
    """What alert rules compare with, so that none of them has to know this cluster's timing."""
    yield "lease_length_seconds", config.lease.length, ()
    yield "replication_interval_seconds", config.replication.interval, ()


def sees_consul(doc: Status) -> bool:
    """Whether the status rests on an answer of Consul."""
    return "epoch" in doc


def from_status(doc: Status, config: Config, utc: float) -> Iterator[Sample]:
    """What the agent, or Consul alone, says."""
    for role in ROLES:
        yield "role", float(doc["role"] == role), (role,)
    if doc.get("epoch") is not None:
        yield "epoch", doc["epoch"], ()
    if doc.get("since") is not None:
        # An operator's own words may follow the code: they are no label.
        began_by = doc["began_by"].partition(":")[0]
        yield "epoch_start_timestamp_seconds", doc["since"], (began_by,)
    if "paused" in doc:
        now = config.mode if doc["paused"] is None else "paused"
        for mode in MODES:
            yield "mode", float(mode == now), (mode,)
    if doc.get("agent") is True:
        yield from _from_agent(doc, utc)
    failover = doc.get("failover")
    if failover is not None:
        yield "failover_possible", float(failover["possible"]), ()
        if failover["reason"] is not None:
            yield "failover_blocked", 1.0, (failover["reason"],)


def _from_agent(doc: Status, utc: float) -> Iterator[Sample]:
    """What nobody but the agent of this node knows."""
    yield "serving", float(is_serving(doc)), ()
    yield "fence_flushes", doc["fence_flushes"], ()
    yield "trouble", float(doc["trouble"] is not None), ()
    if doc["role"] == "primary" and "fence" in doc:
        yield "fence_armed", float(doc["fence"]["in_place"]), ()
    if doc.get("lease_remaining_s") is not None:
        yield "lease_remaining_seconds", max(0.0, doc["lease_remaining_s"]), ()
    nomad = doc.get("nomad")
    if nomad is not None and nomad["at"] is not None and nomad["role"] != "changing":
        silent = utc - nomad["at"] > NOMAD_SILENT_S
        yield "nomad_up", float(not silent and nomad["reason"] not in _NOMAD_FAILED), ()
        yield "nomad_pending", float(not nomad["settled"]), ()


def is_serving(doc: Status) -> bool:
    """Whether this node serves, by its own agent's word; KeyError when that can't be understood."""
    return doc.get("agent") is True and doc["role"] == "primary" and doc["sick"] is None


def from_replication(config: Config, sent: state.ReplicationState) -> Iterator[Sample]:
    """What this node has sent, ever, to each standby that is still configured."""
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
    """The newest snapshot that a node has, and when it was taken, UTC seconds or UNKNOWN."""

    name: SnapshotName
    taken_at: float


def ages(newest: Mapping[str, Copy | None], utc: float) -> Iterator[Sample]:
    """Of each standby, by its newest snapshot; None: it has none.

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
    doc: Status,
    sent: state.ReplicationState | None,
    times: Mapping[str, float],
) -> Mapping[str, Copy | None]:
    """By Consul's records and by what this node saw acknowledged, whichever is newer.

    With neither at hand a standby is left out: unknown is not "none". `times`: when the snapshots
    that this node has itself were taken, by their names.
    """
    records = {record["node"]: record for record in doc.get("standbys", ())}
    newest: dict[str, Copy | None] = {}
    copies: dict[tuple[str | None, float | None], Copy | None] = {}
    for standby in config.standbys:
        own = sent.standbys.get(standby) if sent is not None else None
        told = records.get(standby, {})
        at = told.get("taken_at")
        unknown = at is None and "taken_at" in told
        both = []
        for text, taken_at in (
            (told.get("snapshot"), UNKNOWN if unknown else at),
            (own.snapshot if own is not None else None, None),
        ):
            key = (text, taken_at)
            if key not in copies:  # one snapshot goes to all standbys: its name is read once
                copies[key] = _copy(text, taken_at, times)
            if (copy := copies[key]) is not None:
                both.append(copy)
        if both or standby in records:
            # Of one snapshot the older time, or that nobody knows it.
            newest[standby] = max(
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
