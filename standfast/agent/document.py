"""`standfast status`: who serves, since when, and can we fail over now, and if not, why.

The document is built by the agent from its last look; where no agent runs, from Consul alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as evolve
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from msgspec import UNSET, convert
from msgspec.structs import replace

from standfast.agent.watcher import Watcher, assemble
from standfast.ages import UNKNOWN, age_of
from standfast.config.model import Config
from standfast.consul.blindness import Blind, blindness
from standfast.consul.gateway import ConsulGateway
from standfast.consul.node_name import misnamed
from standfast.consul.records import CandidateRecord, Leader, LeaderState
from standfast.consul.volume_keys import CANDIDATES, HOLDS, read_volume
from standfast.errors import ConsulError, ForeignValue, StandfastError, Unreachable, ours
from standfast.lease.files import LeaseStatus
from standfast.lease.protocol import NEVER
from standfast.lease.surrender import watch
from standfast.nomad import reports
from standfast.replication import state
from standfast.replication.state import StandbyState
from standfast.role.candidacy import stopped_for_all
from standfast.role.decide import decide
from standfast.role.decision import Moment
from standfast.role.observation import Cluster, LastHeartbeat, Local, heartbeat_seen
from standfast.role.readiness import while_held
from standfast.status.asking import ANSWER_S, of_agent
from standfast.status.document import (
    Decision,
    Failover,
    Fence,
    FromConsul,
    FromFiles,
    GivenUp,
    NomadReport,
    Obstacle,
    Paused,
    Standby,
    Status,
    Verified,
    Word,
    Work,
)
from standfast.status.failover import failover, spoken, would_take_over
from standfast.system.clock import Deadline, monotonic, utc_now

if TYPE_CHECKING:
    from standfast.agent.loop import Agent

T = TypeVar("T")

READ_S = 1.0
"""For the keys, before the last look has to do."""
LOOKS_WITHIN_S = 30.0
"""Of two looks that are further apart, another heartbeat tells nothing of now."""

Heard = dict[str, tuple[LastHeartbeat, float]]
"""By volume, what a process that is no agent saw of the heartbeats, and when it looked last
(monotonic seconds)."""


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


def can_fail_over(
    view: Cluster | Blind, config: Config, utc: float, local: Local | None = None
) -> Failover:
    """Says whether we can fail over now: where there is a holder, as its candidates tell it."""
    if isinstance(view, Blind):
        return Failover(False, view.reason, view.sentence)
    if view.leader is None or view.epoch is None:
        nobody = local or Local(config.node, "", 0)
        decision = decide(view, nobody, config, Moment(monotonic(), utc))
        return Failover(False, decision.reason, decision.sentence)
    handed = view.given_up and view.leader.to is not None
    stopped = None if handed else stopped_for_all(view)
    if stopped is not None:  # the candidates say so, too, when they have read it
        return Failover(False, stopped.reason, stopped.sentence)
    ages = {
        name: None if at is None else age_of(at, utc)
        for name, at in times(view, config, utc, local).items()
    }
    return failover(_words(view, utc), view.leader.candidates, ages, config)


def _words(view: Cluster, utc: float) -> Mapping[str, CandidateRecord]:
    words = spoken(view.words.values(), view.epoch, monotonic(), utc)
    return {name: while_held(word, view.holds.get(name)) for name, word in words.items()}


def build(view: Cluster | Blind, local: Local | None, config: Config, utc: float) -> Status:
    """Makes the status document, as far as the cluster and this node's files tell it."""
    consul = _from_consul(view, config, utc, local) if isinstance(view, Cluster) else None
    holder = None if consul is None else consul.holder
    return Status(
        volume=config.volume,
        node=config.node,
        role="unknown" if local is None else _role(local),
        failover=can_fail_over(view, config, utc, local),
        consul=consul,
        files=None if local is None else _from_files(local, holder),
        serving=None if consul is None else _serving(consul, config),
    )


def _serving(consul: FromConsul, config: Config) -> str | None:
    """Returns who serves; None: nobody, or a holder whose last heartbeat is older than a lease.

    An agent that has just started takes the heartbeat that it finds for one of now, so that it says
    for a lease's length at most that a dead holder serves.
    """
    seen_s = consul.last_heartbeat_seen_s
    fresh = seen_s is not None and seen_s <= config.lease.length
    serves = consul.state == LeaderState.SERVING and fresh and not consul.unserved_s
    return consul.holder if serves else None


def _from_consul(view: Cluster, config: Config, utc: float, local: Local | None) -> FromConsul:
    leader, pause = view.leader, view.pause
    history_entry = view.history.get(view.epoch or 0)
    words = _words(view, utc)
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
        paused=None if pause is None else Paused(pause.by, pause.reason, pause.at, pause.until),
        standbys=tuple(
            _standby(name, at, view, words.get(name), utc)
            for name, at in times(view, config, utc, local).items()
        ),
    )


def _given_up(leader: Leader) -> GivenUp:
    return GivenUp(leader.holder.node, leader.to, leader.surrendered)


def _standby(
    name: str, at: float | None, view: Cluster, word: CandidateRecord | None, utc: float
) -> Standby:
    age_s, record, hold = age_of(at, utc), view.standbys.get(name), view.holds.get(name)
    return Standby(
        name,
        age_s=None if age_s is None else round(age_s, 1),
        taken_at=None if at == UNKNOWN else at,
        snapshot=None if record is None else record.snapshot,
        epoch=None if record is None else record.epoch,
        candidate=view.leader is not None and name in view.leader.candidates and hold is None,
        word=None if word is None else _word(word),
        on_hold=None if hold is None else Paused(hold.by, hold.reason, hold.at),
    )


def _word(word: CandidateRecord) -> Word:
    reason = word.reason if word.because is None else word.because
    return Word(would_take_over(word), reason, word.sentence, word.obstacles)


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


def document(agent: Agent, *, fresh: bool = False) -> Status:
    """Makes the document of what the agent knows, as of its last look; `fresh` reads the volume's
    keys again where that look could: the details of a look may be some seconds old."""
    seen, config = agent.seen, agent.config
    if seen is None:
        return Status(volume=config.volume, node=config.node, role="starting")
    local = agent.local.glance(seen.local)
    view = seen.view
    if fresh and isinstance(view, Cluster):
        view = _read_again(agent, view)
    told = build(view, local, config, utc_now())
    consul, files, decision = told.consul, told.files, seen.decision
    assert files is not None
    if consul is not None and told.role == "primary":
        consul = replace(consul, standbys=_with_notes(consul.standbys, config))
    fence, fence_failure = _tried(partial(_fence, agent))
    aside, aside_failure = _tried(partial(_aside, agent))
    wrong_name = misnamed(config.node, seen.view.named) if isinstance(seen.view, Cluster) else None
    failures = (
        *(local.unread, agent.unkept, agent.trouble, wrong_name),
        *(aside_failure, fence_failure),
    )
    return replace(
        told,
        consul=consul,
        files=replace(files, fence_flushes=files.fence_flushes + agent.fence.flushes),
        decision=Decision(decision.action, decision.reason, decision.sentence),
        fence=fence,
        aside=aside,
        obstacles=_obstacles(agent),
        work=Work(agent.busy, agent.sick, next(filter(None, failures), None), agent.hidden),
        agent=True,
        nomad=_nomad(config) if config.nomad.enabled else None,
    )


def _read_again(agent: Agent, view: Cluster) -> Cluster:
    """What the keys say now, with what only the one who looks all the time knows; the last look,
    where Consul doesn't answer at once."""
    config = agent.config
    try:
        limit = Deadline.after(READ_S)
        entries = read_volume(agent.machine.consul, config, CANDIDATES, HOLDS, deadline=limit)
        now = assemble(config, entries, view.last_heartbeat)
    except (ConsulError, ForeignValue):
        return view
    identity = None if now.leader is None else now.leader.identity
    seen = view.last_heartbeat
    if identity != seen.identity:
        seen = evolve(seen, identity=identity, first_seen=monotonic())
    words = {name: (sign.record, sign.index) for name, sign in now.words.items()}
    signs = watch(view.words, words, monotonic())
    return evolve(
        view,
        epoch=now.epoch,
        leader=now.leader,
        last_heartbeat=seen,
        pause=now.pause,
        history=now.history,
        holds=now.holds,
        standbys=now.standbys,
        words=signs,
    )


def _obstacles(agent: Agent) -> tuple[Obstacle, ...] | None:
    known = agent.inspector.known
    if known is None:
        return None
    return tuple(Obstacle(seen.check, seen.evidence, seen.fix, seen.weight) for seen in known)


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


def without_agent(config: Config, heard: Heard | None = None, *, listens: bool = False) -> Status:
    """Makes the document from Consul alone: on clients, and while the agent is down.

    A heartbeat that is merely found may be of any age: whether its holder serves is not known (no
    `serving`, no age of the heartbeat) until another one is seen to follow upon it, or none for a
    lease's length. `heard` keeps what is seen for the next look. Whoever `listens` waits for the
    answer: until the next heartbeat or, without one, for a lease's length; never for longer than
    two of them and the reads' own deadlines.
    """
    heard = {} if heard is None else heard
    consul = ConsulGateway.from_config(config, timeout_s=ANSWER_S)
    limit, index, length_s = Deadline.after(2 * config.lease.length), 0, config.lease.length
    while True:
        view = _look_on(config, consul, heard)
        left_s = _unheard_s(view, length_s)
        if left_s is None or not listens or limit.expired:
            break
        assert isinstance(view, Cluster)
        try:
            since = index or view.last_heartbeat.index
            index, _ = consul.wait(config.key("leader"), since, wait_s=left_s)
        except ConsulError as error:
            view, left_s = blindness(error), None
            break
    told = replace(build(view, None, config, utc_now()), agent=False)
    if left_s is None or told.consul is None or told.serving is None:
        return told
    return replace(told, serving=UNSET, consul=replace(told.consul, last_heartbeat_seen_s=None))


def _look_on(config: Config, consul: ConsulGateway, heard: Heard) -> Cluster | Blind:
    """One look, with what earlier ones saw of the holder's heartbeats."""
    view = Watcher(config, consul).look(0.0, fresh=True)
    if isinstance(view, Blind):
        return view
    found, now = view.last_heartbeat, monotonic()
    before, looked_at = heard.get(config.volume, (None, now))
    unbroken_since = now if now - looked_at > LOOKS_WITHIN_S else NEVER
    # Two threads may overwrite each other's look by an older one: that costs a heartbeat's time.
    last = heartbeat_seen(before, found.identity, found.index, found.first_seen, unbroken_since)
    heard[config.volume] = last, now
    held = view.leader is not None and not view.leader.is_clean
    return evolve(view, last_heartbeat=last) if held else view


def _unheard_s(view: Cluster | Blind, length_s: float) -> float | None:
    """Returns for how long to listen yet, seconds, until it is known whether the holder sends
    heartbeats; None: it is known, or there is no holder."""
    if isinstance(view, Blind) or view.leader is None or view.leader.is_clean:
        return None
    silent_s = round(monotonic() - view.last_heartbeat.first_seen, 2)
    if view.last_heartbeat.witnessed or silent_s > length_s:
        return None
    return length_s - silent_s + 0.05  # (beyond it, as the document rounds)


def fetch(config: Config, heard: Heard | None = None, *, listens: bool = False) -> Status:
    """Returns the status document, from the agent if there is one; else as `without_agent`;
    StandfastError."""
    try:
        return of_agent(config)
    except Unreachable:
        return without_agent(config, heard, listens=listens)
