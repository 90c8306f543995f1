"""What a node should do, from what it knows: pure, total, and with a sentence for each answer.

Invariants: a node that is not the holder promotes itself only after W without a heartbeat (or upon
`clean`), with a snapshot of the current lineage; whatever can't be understood is left alone.
"""

from __future__ import annotations

from standfast.config.model import Config
from standfast.consul.blindness import Blind
from standfast.consul.records import Leader
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.role.candidacy import consider, obstructed, unwritable, wrongly_named
from standfast.role.decision import NO_REQUEST, Action, Decision, Moment, Request, blocked
from standfast.role.observation import Cluster, Local
from standfast.role.patience import still_waiting


def decide(
    view: Cluster | Blind, local: Local, config: Config, now: Moment, request: Request = NO_REQUEST
) -> Decision:
    """Returns the one decision that follows from what is known."""
    if isinstance(view, Blind):
        action = Action.BLOCKED if view.reason is Reason.FOREIGN_VALUE else Action.WAIT
        return Decision(action, view.reason, view.sentence)
    leader = view.leader
    mine = leader is not None and (leader.holder.node, leader.holder.instance) == (
        local.node,
        local.instance,
    )
    if view.epoch is None or view.epoch < max(local.highest_epoch, view.highest_epoch):
        return _without_epoch(view, local, request, config, now)
    if leader is None or leader.epoch != view.epoch:
        if request.promote:
            return consider(view, local, config, now, request)
        return blocked(
            Reason.LEADER_MISSING,
            f"epoch {view.epoch} has no heartbeat in Consul (deleted by hand?): its holder writes "
            f"it again by itself; without one, run `standfast promote` on the best standby",
        )
    if mine and not leader.is_clean:
        return _holder(leader, local, config)
    if local.own is not None:
        left = _leaving(leader, local)
        if left is not None:
            return left
    return consider(view, local, config, now, request)


def _without_epoch(
    view: Cluster, local: Local, request: Request, config: Config, now: Moment
) -> Decision:
    highest = max(local.highest_epoch, view.highest_epoch)
    if highest > 0:
        if view.epoch is None:
            reason, what = Reason.EPOCH_MISSING, "no epoch"
        else:
            reason, what = Reason.EPOCH_WENT_BACK, f"epoch {view.epoch}"
        return blocked(
            reason,
            f"Consul holds {what}, {_who_knows(view, local)} epoch {highest}: Consul was restored "
            f"from a backup, or keys were deleted. Check who has the newest data, then run "
            f"`standfast accept-epoch` on each storage node",
        )
    if not request.promote:
        return blocked(
            Reason.NOT_INITIALISED,
            "there has been no primary yet: run `standfast promote` on the node with the data",
        )
    unfit = wrongly_named(view, local) or unwritable(local, config) or obstructed(local, request)
    if unfit is not None:
        return unfit
    if not local.has_live or local.live_is_empty:
        empty = _nothing_to_serve(view, local, config)
        if empty is not None:
            return empty
    waiting = still_waiting(view, config, now)
    if waiting is not None:
        return waiting
    return Decision(
        Action.PROMOTE,
        Reason.FIRST_PRIMARY,
        f"{local.node} becomes the first primary with what lies at {config.paths.live}",
        in_place=True,
        lost_s=0.0,
    )


def _nothing_to_serve(view: Cluster, local: Local, config: Config) -> Decision | None:
    """Returns the refusal of a first epoch without a file, where one is known of anywhere: clients
    would see an empty volume, and standbys take it in. None: the volume is new."""
    live, node = config.paths.live, local.node
    reason = Reason.VOLUME_EMPTY if local.has_live else Reason.VOLUME_MISSING
    what = (
        f"{live} on {node} has no file in it" if local.has_live else f"there is no {live} on {node}"
    )
    if local.copies:
        newest, more = local.copies[-1], len(local.copies) - 1
        away = f"mv {live} {live}.empty && " if local.has_live else ""
        return blocked(
            reason,
            f"{what}, and copies of the volume lie here: {newest}"
            f"{f' and {more} more beside it' if more else ''}. Nothing was begun, as an empty "
            f"volume would be served. Make the tree from the newest copy, `{away}btrfs subvolume "
            f"snapshot {newest} {live}`, then `standfast promote` again. (Is the volume to begin "
            f"empty? Move the copies elsewhere first.)",
        )
    if view.standbys:
        known = ", ".join(f"{name} ({view.standbys[name].snapshot})" for name in view.standbys)
        return blocked(
            reason,
            f"{what}, and Consul tells of snapshots on {known}: run `standfast promote` there",
        )
    if local.has_live:
        return None
    return blocked(
        reason,
        f"the first primary starts from a subvolume at {live}, and there is none, nor a copy of "
        f"the volume on {node}. Does another storage node have the data, or a copy? Run `standfast "
        f"promote` there. Only for a new, empty volume: `btrfs subvolume create {live}`",
    )


def _who_knows(view: Cluster, local: Local) -> str:
    if local.highest_epoch >= view.highest_epoch:
        return "this node has seen"
    return "other keys of the volume there tell of"


def _holder(leader: Leader, local: Local, config: Config) -> Decision:
    if not local.lease_alive:
        return Decision(
            Action.HOLD_LEASE,
            Reason.LEASE_LAPSED,
            f"this node holds epoch {leader.epoch} and its lease process is not running",
        )
    own = local.own
    lease = local.lease
    # An interrupted demotion is rolled back: the role stays until `clean` has committed.
    complete = own is not None and own.epoch == leader.epoch and own.stage is Stage.READY
    if not complete or lease is None or not lease.serving or not local.nfs_running:
        return Decision(
            Action.FINISH_PROMOTION,
            Reason.RESUME_PROMOTION,
            f"{local.node} holds epoch {leader.epoch} and doesn't serve yet: going on with it",
        )
    return Decision(
        Action.NOTHING,
        Reason.SERVING,
        f"{local.node} serves {config.volume} with epoch {leader.epoch}",
    )


def _leaving(leader: Leader, local: Local) -> Decision | None:
    """For a node that was primary and isn't the holder any more; None: nothing to put away."""
    own = local.own
    assert own is not None
    if leader.epoch == own.epoch and leader.holder.node == local.node:
        if not leader.is_clean:
            # It was this node before a reboot, and nobody took over since: its tree is the newest.
            return None
        if own.final is not None and not _is_handed_over(leader, own):
            return Decision(
                Action.STEP_DOWN,
                Reason.RESUME_DEMOTION,
                f"epoch {own.epoch} of this node is given up without its final snapshot: becoming "
                f"a standby; what only this node has is kept aside",
            )
        return Decision(
            Action.FINISH_DEMOTION,
            Reason.RESUME_DEMOTION,
            f"the lease of epoch {own.epoch} is given up: putting the rest away",
        )
    return Decision(
        Action.STEP_DOWN,
        Reason.LEASE_LOST if local.nfs_running else Reason.RETURNED,
        f"epoch {own.epoch} of this node is over, {leader.holder.node} holds epoch {leader.epoch}: "
        f"becoming a standby; what was written here after the takeover is kept aside",
    )


def _is_handed_over(leader: Leader, own: OwnEpoch) -> bool:
    """Tells whether the final snapshot that this node took is the one that the role was given up
    with.

    The lease process may have surrendered it as it was, before the agent came to its release.
    """
    if leader.final_id is None:  # an older version tells only the name
        return not leader.surrendered and leader.final == own.final
    return leader.final_id == own.final_id
