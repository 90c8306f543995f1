"""Whether this node could take over if the primary gave the role up now: told in Consul.

Invariant: it is `decide` that is asked, about a holder that has given up; a node that says it is
ready is one that would act.
"""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from standfast.config.model import Config
from standfast.consul.records import CandidateRecord, LeaderState
from standfast.lease.surrender import TOLD_EVERY_S
from standfast.reasons import Reason
from standfast.role.decide import decide
from standfast.role.decision import Action, Moment
from standfast.role.observation import Cluster, Local, newest


def judge(view: Cluster, local: Local, config: Config, now: Moment) -> CandidateRecord | None:
    """Returns this node's word on itself; None: it is the holder, or there is none to succeed."""
    leader = view.leader
    if leader is None or leader.is_clean or leader.holder.node == local.node:
        return None
    # Not to this node: what is promised to one is not asked what everybody else is.
    gone = structs.replace(
        leader, state=LeaderState.CLEAN, to=leader.holder.node, final=None, surrendered=True
    )
    view = replace(view, leader=gone)
    decision = decide(view, local, config, now)
    base = newest(local, view)
    return CandidateRecord(
        node=local.node,
        epoch=leader.epoch,
        ready=decision.action is Action.PROMOTE
        or decision.reason is Reason.WAITING_FOR_BETTER_CANDIDATE,
        reason=str(decision.reason),
        snapshot=None if base is None else str(base.snapshot.name),
        snapshot_epoch=0 if base is None else base.epoch,
        at=now.utc,
    )


def is_due(told: CandidateRecord | None, word: CandidateRecord, since_s: float) -> bool:
    """Tells whether a word has to be written: it is another one, or the last is `since_s` old."""
    return told is None or since_s >= TOLD_EVERY_S or structs.replace(told, at=word.at) != word
