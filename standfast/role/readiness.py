"""Whether this node could take over: if the primary died now, or gave the role up. Told in Consul.

Invariant: it is `decide` that is asked, about a holder that is dead and silent, or has given up; a
node that says that it would take over is one that does. One whose service Consul would tell nobody
of isn't ready for a surrender: where the primary is dead it is better than none.
"""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from standfast.config.model import Config
from standfast.consul.records import CandidateRecord, Hold, Leader, LeaderState, longest_wait_s
from standfast.lease.surrender import TOLD_EVERY_S
from standfast.node.obstacle import Obstacle, heaviest_first
from standfast.reasons import Reason
from standfast.role.candidacy import on_hold
from standfast.role.decide import decide
from standfast.role.decision import Action, Decision, Moment
from standfast.role.observation import Cluster, Local, newest

TO_ACT = (Action.PROMOTE, Action.WAIT)
"""Of a node that would take over: now, or when the time has come."""


def judge(
    view: Cluster,
    local: Local,
    config: Config,
    now: Moment,
    obstacles: tuple[Obstacle, ...] = (),
    *,
    hidden: str | None = None,
) -> CandidateRecord | None:
    """Returns this node's word on itself; None: it is the holder, or there is none to succeed.

    `obstacles` are told, too, whether they bar a promotion or not; `hidden`: see
    `registration.hidden`.
    """
    leader = view.leader
    if leader is None or (leader.holder.node == local.node and not leader.is_clean):
        return None
    dead = decide(if_silent(view, config, now), local, config, now)
    surrendered = (
        dead if leader.is_clean else decide(_if_given_up(view, leader), local, config, now)
    )
    base = newest(local, view if leader.is_clean else _if_given_up(view, leader))
    ready = (
        surrendered.action is Action.PROMOTE
        or surrendered.reason is Reason.WAITING_FOR_BETTER_CANDIDATE
    )
    barred = ready and hidden is not None
    return CandidateRecord(
        node=local.node,
        epoch=leader.epoch,
        ready=ready and not barred,
        reason=str(Reason.CHECK_CRITICAL if barred else surrendered.reason),
        snapshot=None if base is None else str(base.snapshot.name),
        snapshot_epoch=0 if base is None else base.epoch,
        at=now.utc,
        takes_over=dead.action in TO_ACT,
        because=str(dead.reason),
        # What it would do is told by what is known of its snapshot: this is a mere supposition.
        sentence=None if dead.action in TO_ACT else dead.sentence,
        obstacles=(*map(str, heaviest_first(obstacles)), *(() if hidden is None else (hidden,))),
    )


def while_held(word: CandidateRecord, hold: Hold | None) -> CandidateRecord:
    """Returns what a node says of itself that may not have read yet that it is on hold."""
    if hold is None:
        return word
    reason = str(Reason.ON_HOLD)
    return structs.replace(
        word, ready=False, takes_over=False, reason=reason, because=reason, sentence=on_hold(hold)
    )


def if_silent(view: Cluster, config: Config, now: Moment) -> Cluster:
    """Returns what would be seen once a dead primary has been silent for long enough; one that has
    given the role up already says what there is to say."""
    leader = view.leader
    if leader is None or leader.is_clean:
        return view
    since = now.monotonic - longest_wait_s(leader, config.lease.wait)
    silent = replace(view.last_heartbeat, first_seen=since, unchanged_since=since)
    return replace(view, last_heartbeat=silent, holder_health="critical", alive=frozenset())


def _if_given_up(view: Cluster, leader: Leader) -> Cluster:
    # Not to this node: what is promised to one is not asked what everybody else is.
    to = leader.holder.node
    gone = structs.replace(leader, state=LeaderState.CLEAN, to=to, final=None, surrendered=True)
    return replace(view, leader=gone)


def if_handed_over(view: Cluster, local: Local, config: Config, now: Moment) -> Decision:
    """Returns what this node would do if the primary handed the role over to it in order, with a
    final snapshot upon the newest one that is here."""
    leader = view.leader
    if leader is None or leader.is_clean:
        return decide(view, local, config, now)
    gone = structs.replace(leader, state=LeaderState.CLEAN, to=local.node, final=None, idle=False)
    seen = replace(view.last_heartbeat, witnessed=True)
    # The records tell of snapshots that the final one has the better of.
    handed = replace(view, leader=gone, last_heartbeat=seen, standbys={})
    return decide(handed, local, config, now)


def is_due(told: CandidateRecord | None, word: CandidateRecord, since_s: float) -> bool:
    """Tells whether a word has to be written: it is another one, or the last is `since_s` old.

    An age grows in a sentence from look to look: that alone is no other word.
    """
    if told is None or since_s >= TOLD_EVERY_S:
        return True
    return structs.replace(told, at=word.at, sentence=word.sentence) != word
