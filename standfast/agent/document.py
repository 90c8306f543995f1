"""`standfast status`: who serves, since when, and can we fail over now, and if not, why.

The document is built by the agent from its last look; where no agent runs, from Consul alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from standfast.agent.watcher import Watcher
from standfast.ages import UNKNOWN, age_of
from standfast.config.model import Config
from standfast.consul.blindness import Blind
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import Leader, LeaderState
from standfast.errors import StandfastError, Unreachable, ours
from standfast.nomad import reports
from standfast.reasons import Reason
from standfast.replication import state
from standfast.replication.state import StandbyState
from standfast.role.observation import Cluster, Local
from standfast.status.asking import ANSWER_S, of_agent
from standfast.system.clock import monotonic, utc_now

if TYPE_CHECKING:
    from standfast.agent.loop import Agent


@dataclass(frozen=True, slots=True)
class Outlook:
    """Whether a standby could take over now; the reason when none could."""

    possible: bool
    reason: Reason | None
    sentence: str


def times(
    cluster: Cluster, config: Config, utc: float, local: Local | None = None
) -> dict[str, float | None]:
    """When each standby's newest snapshot was taken, UTC seconds, or UNKNOWN; None: it has none.

    A node that has the same snapshot knows better than the record, whose clock may be another.
    """
    holder = cluster.leader.holder.node if cluster.leader else None
    own = {one.snapshot.content_id: one for one in local.snapshots} if local is not None else {}
    found: dict[str, float | None] = {}
    for name in sorted(config.nodes):
        if name == holder:
            continue
        record = cluster.standbys.get(name)
        at = None if record is None else record.believed_time(utc)
        here = None if record is None else own.get(record.content_id)
        found[name] = at if here is None or here.taken_at is None else here.taken_at
    return found


def outlook(
    view: Cluster | Blind, config: Config, utc: float, local: Local | None = None
) -> Outlook:
    """Can we fail over now? By what Consul shows; each standby has the last word on itself."""
    if isinstance(view, Blind):
        return Outlook(False, view.reason, view.sentence)
    if view.epoch is None:
        return Outlook(False, Reason.NOT_INITIALISED, "there has been no primary yet")
    if view.leader is None:
        return Outlook(
            False,
            Reason.LEADER_MISSING,
            f"epoch {view.epoch} has no heartbeat in Consul (deleted by hand?): its holder writes "
            f"it again by itself; without one, run `standfast promote` on the best standby",
        )
    if view.pause is not None:
        return Outlook(
            False, Reason.PAUSED, f"paused by {view.pause.by}: `standfast resume` ends that"
        )
    if config.mode == "manual":
        return Outlook(False, Reason.MANUAL_MODE, "mode is manual: only by `standfast promote`")
    taken = {name: at for name, at in times(view, config, utc, local).items() if at is not None}
    taken = {name: at for name, at in taken.items() if name in view.leader.candidates}
    if not taken:
        return Outlook(
            False, Reason.NO_PUBLISHED_SNAPSHOT, "no candidate has a snapshot yet: replicate first"
        )
    ages = {name: age_of(at, utc) for name, at in taken.items()}
    known = {name: age_s for name, age_s in ages.items() if age_s is not None}
    if not known:
        return Outlook(
            False,
            Reason.TOO_OLD,
            f"nobody here knows how old the newest snapshots are ({', '.join(taken)}): this node's "
            f"clock, or that of the node that told it, was wrong: `timedatectl` on both; "
            f"`standfast snapshots` on the standby tells its own count",
        )
    best = min(known, key=lambda name: known[name])
    if known[best] > config.max_data_loss:
        return Outlook(
            False,
            Reason.TOO_OLD,
            f"the newest snapshot ({best}) is {known[best]:.0f} s old, "
            f"max_data_loss is {config.max_data_loss:g} s: is replication running?",
        )
    return Outlook(True, None, f"{best} would lose {known[best]:.0f} s of data at most")


def build(view: Cluster | Blind, local: Local | None, config: Config, utc: float) -> dict[str, Any]:
    """The status document, as far as the cluster and this node's files tell it."""
    doc: dict[str, Any] = {"v": 1, "volume": config.volume, "node": config.node, "role": "unknown"}
    can = outlook(view, config, utc, local)
    doc["failover"] = {
        "possible": can.possible,
        "reason": None if can.reason is None else str(can.reason),
        "sentence": can.sentence,
    }
    if isinstance(view, Cluster):
        doc |= _cluster(view, config, utc, local)
    if local is not None:
        doc |= _local(local, doc.get("holder"))
    doc["serving"] = _serving(doc, config)
    return doc


def _serving(doc: Mapping[str, Any], config: Config) -> str | None:
    """Who serves; None: nobody, or a holder whose last heartbeat is older than a lease."""
    fresh = doc.get("last_heartbeat_seen_s", 0.0) <= config.lease.length
    serves = doc.get("state") == LeaderState.SERVING and fresh and not doc.get("unserved_s")
    return doc.get("holder") if serves else None


def _cluster(view: Cluster, config: Config, utc: float, local: Local | None) -> dict[str, Any]:
    leader = view.leader
    history_entry = view.history.get(view.epoch or 0)
    records = view.standbys
    return {
        "epoch": view.epoch,
        "holder": None if leader is None or leader.is_clean else leader.holder.node,
        "state": None if leader is None else str(leader.state),
        "last_heartbeat_seen_s": round(monotonic() - view.last_heartbeat.first_seen, 2),
        "unserved_s": None if leader is None or not leader.unserved else leader.unserved,
        "given_up": None if leader is None or not leader.is_clean else _given_up(leader),
        "since": None if history_entry is None else history_entry.at,
        "began_by": None if history_entry is None else history_entry.reason,
        "lost_s": None if history_entry is None else history_entry.lost_s,
        "paused": None
        if view.pause is None
        else {"by": view.pause.by, "reason": view.pause.reason, "at": view.pause.at},
        "standbys": [
            {
                "node": name,
                "age_s": None if (age_s := age_of(at, utc)) is None else round(age_s, 1),
                "taken_at": None if at == UNKNOWN else at,
                "snapshot": records[name].snapshot if name in records else None,
                "epoch": records[name].epoch if name in records else None,
                "candidate": leader is not None and name in leader.candidates,
            }
            for name, at in times(view, config, utc, local).items()
        ],
    }


def _given_up(leader: Leader) -> dict[str, Any]:
    return {"by": leader.holder.node, "to": leader.to, "surrendered": leader.surrendered}


def _local(local: Local, holder: Any) -> dict[str, Any]:
    lease = local.lease
    holds = lease is not None and lease.instance == local.instance and local.lease_alive
    primary = holds and lease is not None and lease.serving
    return {
        "role": "primary" if primary else ("changing" if holds or local.own else "standby"),
        "highest_epoch": local.highest_epoch,
        "lease_remaining_s": round(lease.remaining_s(monotonic()), 2) if holds and lease else None,
        "lease_trouble": lease.trouble if holds and lease else None,
        "not_surrendered": lease.not_surrendered if holds and lease else None,
        "fence_flushes": lease.flushes if holds and lease else 0,
        "is_holder": holder == local.node,
        "newest_snapshot": str(max(s.snapshot.name for s in local.snapshots))
        if local.snapshots
        else None,
    }


def document(agent: Agent) -> dict[str, Any]:
    """What the agent knows, as of its last look."""
    seen = agent.seen
    if seen is None:
        return {
            "v": 1,
            "volume": agent.config.volume,
            "node": agent.config.node,
            "role": "starting",
        }
    local = agent.local.glance(seen.local)
    doc = build(seen.view, local, agent.config, utc_now())
    decision = seen.decision
    doc["decision"] = {
        "action": str(decision.action),
        "reason": str(decision.reason),
        "sentence": decision.sentence,
    }
    failed = [
        _put(doc, "fence", partial(_fence, agent)),
        _put(doc, "aside", partial(_aside, agent)),
    ]
    doc["busy"], doc["sick"] = agent.busy, agent.sick
    failed += [agent.trouble, agent.unkept, local.unread]
    doc["trouble"] = next(filter(None, reversed(failed)), None)
    doc["fence_flushes"] += agent.fence.flushes
    doc["agent"] = True
    if agent.config.nomad.enabled:
        doc["nomad"] = reports.load(agent.config).document()
    if doc["role"] == "primary":
        _add_replication(doc, agent.config)
    return doc


def _fence(agent: Agent) -> Mapping[str, Any]:
    fence = agent.machine.fence.state()
    # A permit that somebody put there by hand may have no end.
    open_for_s = round(fence.open_for_s, 2) if math.isfinite(fence.open_for_s) else None
    return {"in_place": fence.in_place, "open_for_s": open_for_s}


def _aside(agent: Agent) -> list[str]:
    return [str(path) for path in agent.machine.store.aside()]


def _put(doc: dict[str, Any], key: str, read: Callable[[], object]) -> str | None:
    """What failed: a disk that can't be read is told, and hides nothing else."""
    try:
        doc[key] = read()
    except Exception as error:  # noqa: BLE001  # told, whatever it was
        return str(ours(error))
    return None


def _add_replication(doc: dict[str, Any], config: Config) -> None:
    """What the primary alone knows of each standby; none of it when its file is damaged."""
    try:
        known = state.load(config).standbys
    except StandfastError:
        return
    for one in doc.get("standbys", ()):
        one |= replication_of(known.get(one["node"], StandbyState()))


def replication_of(one: StandbyState) -> dict[str, Any]:
    """Whether it was found equal, and why the last cycle failed, if it did."""
    failed = (one.last_failure_at or 0.0) > (one.last_success_at or 0.0)
    compared = {
        "ok": one.verified_ok,
        "at": one.verified_at,
        "snapshot": one.verified_snapshot,
        "full": one.verified_full,
    }
    return {
        "verified": None if one.verified_ok is None else compared,
        "failure": f"{one.last_failure_reason}: {one.last_failure}" if failed else None,
        "needs_full": one.needs_full,
    }


def without_agent(config: Config) -> dict[str, Any]:
    """The same from Consul alone: on clients, and while the agent is down."""
    consul = ConsulGateway.from_config(config, timeout_s=ANSWER_S)
    view = Watcher(config, consul).look(0.0, fresh=True)
    return build(view, None, config, utc_now()) | {"agent": False}


def fetch(config: Config) -> Mapping[str, Any]:
    """The status document, from the agent if there is one."""
    try:
        return of_agent(config)
    except Unreachable:
        return without_agent(config)
