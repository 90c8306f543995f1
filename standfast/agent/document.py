"""`standfast status`: who serves, since when, and can we fail over now, and if not, why.

The document is built by the agent from its last look; where no agent runs, from Consul alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from msgspec import convert
from msgspec.structs import replace

from standfast.agent.watcher import Watcher
from standfast.ages import UNKNOWN, age_of
from standfast.config.model import Config
from standfast.consul.blindness import Blind
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import Leader, LeaderState
from standfast.errors import StandfastError, Unreachable, ours
from standfast.lease.files import LeaseStatus
from standfast.nomad import reports
from standfast.reasons import Reason
from standfast.replication import state
from standfast.replication.state import StandbyState
from standfast.role.observation import Cluster, Local
from standfast.status.asking import ANSWER_S, of_agent
from standfast.status.document import (
    Decision,
    Failover,
    Fence,
    FromConsul,
    FromFiles,
    GivenUp,
    NomadReport,
    Paused,
    Standby,
    Status,
    Verified,
    Work,
)
from standfast.system.clock import monotonic, utc_now

if TYPE_CHECKING:
    from standfast.agent.loop import Agent

T = TypeVar("T")


def times(
    cluster: Cluster, config: Config, utc: float, local: Local | None = None
) -> dict[str, float | None]:
    """Returns when each standby's newest snapshot was taken, UTC seconds, or UNKNOWN; None: it has
    none.

    A node that has the same snapshot knows better than the record, whose clock may be another.
    """
    holder = cluster.leader.holder.node if cluster.leader else None
    own = {seen.snapshot.content_id: seen for seen in local.snapshots} if local is not None else {}
    taken: dict[str, float | None] = {}
    for name in sorted(config.nodes):
        if name == holder:
            continue
        record = cluster.standbys.get(name)
        at = None if record is None else record.believed_time(utc)
        here = None if record is None else own.get(record.content_id)
        taken[name] = at if here is None or here.taken_at is None else here.taken_at
    return taken


def outlook(
    view: Cluster | Blind, config: Config, utc: float, local: Local | None = None
) -> Failover:
    """Says whether we can fail over now, by what Consul shows; each standby has the last word on
    itself."""
    if isinstance(view, Blind):
        return Failover(False, view.reason, view.sentence)
    if view.epoch is None:
        return Failover(False, Reason.NOT_INITIALISED, "there has been no primary yet")
    if view.leader is None:
        return Failover(
            False,
            Reason.LEADER_MISSING,
            f"epoch {view.epoch} has no heartbeat in Consul (deleted by hand?): its holder writes "
            f"it again by itself; without one, run `standfast promote` on the best standby",
        )
    if view.pause is not None:
        return Failover(
            False, Reason.PAUSED, f"paused by {view.pause.by}: `standfast resume` ends that"
        )
    if config.mode == "manual":
        return Failover(False, Reason.MANUAL_MODE, "mode is manual: only by `standfast promote`")
    taken = {name: at for name, at in times(view, config, utc, local).items() if at is not None}
    taken = {name: at for name, at in taken.items() if name in view.leader.candidates}
    if not taken:
        return Failover(
            False, Reason.NO_PUBLISHED_SNAPSHOT, "no candidate has a snapshot yet: replicate first"
        )
    ages = {name: age_of(at, utc) for name, at in taken.items()}
    known = {name: age_s for name, age_s in ages.items() if age_s is not None}
    if not known:
        return Failover(
            False,
            Reason.TOO_OLD,
            f"nobody here knows how old the newest snapshots are ({', '.join(taken)}): this node's "
            f"clock, or that of the node that told it, was wrong: `timedatectl` on both; "
            f"`standfast snapshots` on the standby tells its own count",
        )
    best = min(known, key=lambda name: known[name])
    if known[best] > config.max_data_loss:
        return Failover(
            False,
            Reason.TOO_OLD,
            f"the newest snapshot ({best}) is {known[best]:.0f} s old, "
            f"max_data_loss is {config.max_data_loss:g} s: is replication running?",
        )
    return Failover(True, None, f"{best} would lose {known[best]:.0f} s of data at most")


def build(view: Cluster | Blind, local: Local | None, config: Config, utc: float) -> Status:
    """Makes the status document, as far as the cluster and this node's files tell it."""
    consul = _from_consul(view, config, utc, local) if isinstance(view, Cluster) else None
    holder = None if consul is None else consul.holder
    return Status(
        volume=config.volume,
        node=config.node,
        role="unknown" if local is None else _role(local),
        failover=outlook(view, config, utc, local),
        consul=consul,
        files=None if local is None else _from_files(local, holder),
        serving=None if consul is None else _serving(consul, config),
    )


def _serving(consul: FromConsul, config: Config) -> str | None:
    """Returns who serves; None: nobody, or a holder whose last heartbeat is older than a lease."""
    seen_s = consul.last_heartbeat_seen_s
    fresh = seen_s is not None and seen_s <= config.lease.length
    serves = consul.state == LeaderState.SERVING and fresh and not consul.unserved_s
    return consul.holder if serves else None


def _from_consul(view: Cluster, config: Config, utc: float, local: Local | None) -> FromConsul:
    leader, pause = view.leader, view.pause
    history_entry = view.history.get(view.epoch or 0)
    return FromConsul(
        epoch=view.epoch,
        holder=None if leader is None or leader.is_clean else leader.holder.node,
        state=None if leader is None else leader.state,
        last_heartbeat_seen_s=round(monotonic() - view.last_heartbeat.first_seen, 2),
        unserved_s=None if leader is None or not leader.unserved else leader.unserved,
        given_up=None if leader is None or not leader.is_clean else _given_up(leader),
        since=None if history_entry is None else history_entry.at,
        began_by=None if history_entry is None else history_entry.reason,
        lost_s=None if history_entry is None else history_entry.lost_s,
        paused=None if pause is None else Paused(pause.by, pause.reason, pause.at),
        standbys=tuple(
            _standby(name, at, view, utc) for name, at in times(view, config, utc, local).items()
        ),
    )


def _given_up(leader: Leader) -> GivenUp:
    return GivenUp(leader.holder.node, leader.to, leader.surrendered)


def _standby(name: str, at: float | None, view: Cluster, utc: float) -> Standby:
    age_s, record = age_of(at, utc), view.standbys.get(name)
    return Standby(
        name,
        age_s=None if age_s is None else round(age_s, 1),
        taken_at=None if at == UNKNOWN else at,
        snapshot=None if record is None else record.snapshot,
        epoch=None if record is None else record.epoch,
        candidate=view.leader is not None and name in view.leader.candidates,
    )


def _held(local: Local) -> LeaseStatus | None:
    """This node's own lease, whose process lives."""
    lease = local.lease
    holds = lease is not None and lease.instance == local.instance and local.lease_alive
    return lease if holds else None


def _role(local: Local) -> str:
    lease = _held(local)
    if lease is not None and lease.serving:
        return "primary"
    return "standby" if lease is None and local.own is None else "changing"


def _from_files(local: Local, holder: str | None) -> FromFiles:
    lease = _held(local)
    newest = max((seen.snapshot.name for seen in local.snapshots), default=None)
    return FromFiles(
        highest_epoch=local.highest_epoch,
        lease_remaining_s=None if lease is None else round(lease.remaining_s(monotonic()), 2),
        lease_trouble=None if lease is None else lease.trouble,
        not_surrendered=None if lease is None else lease.not_surrendered,
        fence_flushes=0 if lease is None else lease.flushes,
        is_holder=holder == local.node,
        newest_snapshot=None if newest is None else str(newest),
    )


def document(agent: Agent) -> Status:
    """Makes the document of what the agent knows, as of its last look."""
    seen, config = agent.seen, agent.config
    if seen is None:
        return Status(volume=config.volume, node=config.node, role="starting")
    local = agent.local.glance(seen.local)
    told = build(seen.view, local, config, utc_now())
    consul, files, decision = told.consul, told.files, seen.decision
    assert files is not None
    if consul is not None and told.role == "primary":
        consul = replace(consul, standbys=_with_notes(consul.standbys, config))
    fence, fence_failure = _tried(partial(_fence, agent))
    aside, aside_failure = _tried(partial(_aside, agent))
    failures = (local.unread, agent.unkept, agent.trouble, aside_failure, fence_failure)
    return replace(
        told,
        consul=consul,
        files=replace(files, fence_flushes=files.fence_flushes + agent.fence.flushes),
        decision=Decision(decision.action, decision.reason, decision.sentence),
        fence=fence,
        aside=aside,
        work=Work(agent.busy, agent.sick, trouble=next(filter(None, failures), None)),
        agent=True,
        nomad=_nomad(config) if config.nomad.enabled else None,
    )


def _fence(agent: Agent) -> Fence:
    fence = agent.machine.fence.state()
    # A permit that somebody put there by hand may have no end.
    open_for_s = round(fence.open_for_s, 2) if math.isfinite(fence.open_for_s) else None
    return Fence(fence.in_place, open_for_s)


def _aside(agent: Agent) -> tuple[str, ...]:
    return tuple(str(path) for path in agent.machine.store.aside())


def _tried(read: Callable[[], T]) -> tuple[T | None, str | None]:
    """Returns what was read, and what failed: a disk that can't be read is told, and hides nothing
    else."""
    try:
        return read(), None
    except Exception as error:  # noqa: BLE001  # told, whatever it was
        return None, str(ours(error))


def _nomad(config: Config) -> NomadReport:
    return convert(reports.load(config).document(), NomadReport)


def _with_notes(standbys: Sequence[Standby], config: Config) -> tuple[Standby, ...]:
    """With what the primary alone knows of each; none of it when its file is damaged."""
    try:
        known = state.load(config).standbys
    except StandfastError:
        return tuple(standbys)
    return tuple(with_notes(each, known.get(each.node, StandbyState())) for each in standbys)


def with_notes(standby: Standby, noted: StandbyState) -> Standby:
    """Adds whether it was found equal, and why the last cycle failed, if it did."""
    ok, at, snapshot = noted.verified_ok, noted.verified_at, noted.verified_snapshot
    failure = compared = None
    if noted.has_failed:
        failure = f"{noted.last_failure_reason}: {noted.last_failure}"
    if ok is not None and at is not None and snapshot is not None:
        compared = Verified(ok, at, snapshot, noted.verified_full)
    return replace(standby, verified=compared, failure=failure, needs_full=noted.needs_full)


def without_agent(config: Config) -> Status:
    """Makes the document from Consul alone: on clients, and while the agent is down."""
    consul = ConsulGateway.from_config(config, timeout_s=ANSWER_S)
    view = Watcher(config, consul).look(0.0, fresh=True)
    return replace(build(view, None, config, utc_now()), agent=False)


def fetch(config: Config) -> Status:
    """Returns the status document, from the agent if there is one; StandfastError."""
    try:
        return of_agent(config)
    except Unreachable:
        return without_agent(config)
