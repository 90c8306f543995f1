"""Whether a node that is not the holder takes over: who may, from what, when, and who goes first.

Invariants: never before W has passed since this node first saw the last heartbeat, except upon
a `clean` that it saw arrive; never from a snapshot outside the current lineage, nor on a disk that
takes no writes; an operator's word lifts the rules that protect against haste, never the wait.
"""

from __future__ import annotations

import contextlib

from standfast.config.model import Config
from standfast.consul.node_name import misnamed
from standfast.consul.records import HistoryEntry, Hold, Leader, longest_wait_s
from standfast.names import SnapshotName
from standfast.node.obstacle import told
from standfast.node.own_epoch import Stage
from standfast.reasons import Reason
from standfast.role.decision import Action, Decision, Moment, Request, blocked
from standfast.role.observation import Available, Cluster, Local, newest
from standfast.role.patience import heard_within_s, is_behind, patience, still_waiting
from standfast.system.clock import format_utc


def consider(
    view: Cluster, local: Local, config: Config, now: Moment, request: Request
) -> Decision:
    """Returns the decision of a node that is not the holder."""
    leader = view.leader
    handed = _is_handed(view, local)
    in_place = _may_go_on_in_place(view, local)
    base = None if in_place else newest(local, view)
    if leader is not None:
        alive = _primary_alive(leader, view, config, now)
        if alive is not None:
            return alive
    if not handed and not request.promote:
        barred = _barred(view, local, config, now, in_place=in_place)
        if barred is not None:
            return barred
    unfit = wrongly_named(view, local) or unwritable(local, config) or obstructed(local, request)
    if unfit is not None:
        return unfit
    # What is handed over in order is the newest there is, however old; what is surrendered isn't.
    whole = handed and leader is not None and not leader.surrendered
    no_data = None if in_place else _unfit(base, view, local, config, now, request, handed=whole)
    if no_data is None and (handed or request.promote):
        no_data = _incomplete(base, view, local, request)
    if no_data is not None:
        return no_data
    waiting = still_waiting(view, config, now)
    if waiting is not None:
        return waiting
    if not handed and not request.promote:
        waiting = patience(view, local, config, now, base, in_place=in_place)
        if waiting is not None:
            return waiting
    return _promotion(view, local, config, now, base, request, in_place=in_place)


def _is_handed(view: Cluster, local: Local) -> bool:
    """Tells whether the last holder gave the current epoch up in order, and to this node."""
    return view.given_up and view.leader is not None and view.leader.to == local.node


def _promotion(
    view: Cluster,
    local: Local,
    config: Config,
    now: Moment,
    base: Available | None,
    request: Request,
    *,
    in_place: bool,
) -> Decision:
    leader = view.leader
    seen_s = now.monotonic - view.last_heartbeat.first_seen
    reason = Reason.OPERATOR if request.promote else Reason.TAKEOVER
    lost_s = 0.0 if base is None else _lost_s(base, view, config, now)
    if leader is not None and view.given_up and leader.surrendered:
        note = leader.note or "it could not serve"
        why = f"{leader.holder.node} surrendered epoch {leader.epoch}: {note}"
        reason = Reason.OPERATOR if request.promote else Reason.SURRENDERED
    elif leader is not None and view.given_up:
        why = f"{leader.holder.node} gave epoch {leader.epoch} up in order"
        if not is_behind(base, view):
            reason, lost_s = Reason.CLEAN_HANDOVER, 0.0
    else:
        who = leader.holder.node if leader is not None else "the primary"
        why = f"{who} has sent no heartbeat for {seen_s:.1f} s"
    source = "its own live tree" if base is None else str(base.snapshot.name)
    return Decision(
        Action.PROMOTE,
        reason,
        f"{local.node} takes over from {source}: {why}",
        base=base,
        in_place=in_place,
        epoch=view.epoch or 0,
        follows=_follows(base, view),
        lost_s=lost_s,
        unless_paused=not request.promote and not _is_handed(view, local),
    )


def _follows(base: Available | None, view: Cluster) -> int | None:
    """Returns what HistoryEntry.follows says: one that never served is left out, but for its own
    snapshot."""
    unused = view.unused
    if unused is None or base is None or base.epoch >= unused.epoch:
        return None
    return unused.before


def _behind_idle_s(base: Available, view: Cluster, now: Moment) -> float | None:
    """Returns what `base` lacks of an epoch that was given up without ever having served: what that
    began with, and nothing more. None: it is no such epoch, or not known."""
    leader = view.leader
    if leader is None or not view.given_up or not leader.idle:
        return None
    history_entry = view.history.get(leader.epoch)
    if leader.final is not None and (history_entry is None or leader.final != history_entry.base):
        return None  # it went on in a tree that had more
    with contextlib.suppress(ValueError):
        began = SnapshotName.parse(
            (history_entry.base if history_entry is not None else None) or ""
        )
        if base.snapshot.name >= began:
            return 0.0
    # Two names tell an order and no time. By our own count nothing was written since it began.
    age_s, seen = base.age_s(now.utc), view.beginning
    if age_s is None or seen is None:
        return None
    return max(0.0, age_s - (now.monotonic - seen.first_seen))


def _lost_s(base: Available, view: Cluster, config: Config, now: Moment) -> float | None:
    """Returns seconds: at most so much was written after `base`; None: not known.

    A primary that is cut off serves on until its lease is over: only from then on is nothing lost.
    """
    behind_s = _behind_idle_s(base, view, now)
    if behind_s is not None:
        return behind_s
    age_s = base.age_s(now.utc)
    if age_s is None:
        return None
    silent_s = now.monotonic - view.last_heartbeat.first_seen
    lease_s = 0.0 if view.given_up else longest_wait_s(view.leader, config.lease.wait)
    return max(0.0, age_s - max(0.0, silent_s - lease_s))


def _may_go_on_in_place(view: Cluster, local: Local) -> bool:
    """Tells whether the newest data is this node's own tree: its epoch was the last one."""
    leader, own = view.leader, local.own
    return (
        own is not None
        and own.stage in (Stage.READY, Stage.DRAINING, Stage.RELEASED)
        and own.epoch == view.epoch
        and local.has_live
        and (
            # Deleted by hand, or of a restored Consul; the epoch tells that nobody followed.
            leader is None
            or leader.epoch < own.epoch
            or (not leader.is_clean and leader.holder.node == local.node)
        )
    )


def _primary_alive(leader: Leader, view: Cluster, config: Config, now: Moment) -> Decision | None:
    silent_s = now.monotonic - view.last_heartbeat.first_seen
    if leader.is_clean or silent_s > heard_within_s(config.lease):
        return None
    return Decision(
        Action.NOTHING,
        Reason.PRIMARY_ALIVE,
        f"{leader.holder.node} is primary with epoch {leader.epoch}",
    )


def _barred(
    view: Cluster, local: Local, config: Config, now: Moment, *, in_place: bool
) -> Decision | None:
    leader = view.leader
    assert leader is not None
    stopped = stopped_for_all(view)
    if stopped is not None:
        return stopped
    # Going on with its own tree, of which nobody followed, is no taking over.
    if (hold := view.holds.get(local.node)) is not None and not in_place:
        return blocked(Reason.ON_HOLD, on_hold(hold))
    was_holder = leader.holder.node == local.node and (local.own is not None or leader.is_clean)
    if leader.holder.node == local.node and not was_holder:
        return blocked(
            Reason.NOT_A_CANDIDATE,
            f"a machine named {local.node} holds epoch {leader.epoch} and it is not this boot: it "
            f"was cut off before it had data, or two machines have this name; if it was this one, "
            f"run `standfast promote` on the best node",
        )
    if local.node not in leader.candidates and not was_holder:
        return blocked(
            Reason.NOT_A_CANDIDATE,
            f"{local.node} is not among the candidates of epoch {leader.epoch} "
            f"({', '.join(leader.candidates) or 'none'}): add it to [nodes] on the primary",
        )
    if config.mode == "manual":
        return blocked(
            Reason.MANUAL_MODE,
            f"mode is manual: {local.node} would take over from {leader.holder.node}; "
            f"run `standfast promote` to let it",
        )
    history_entry = view.history.get(leader.epoch)
    if history_entry is None or not history_entry.is_automatic or in_place or leader.is_clean:
        return None
    age_s = _epoch_age_s(history_entry, view, now)
    if age_s >= config.failover_cooldown:
        return None
    return blocked(
        Reason.COOLDOWN,
        f"epoch {leader.epoch} began by itself ({history_entry.reason}) at least {age_s:.0f} s "
        f"ago, as far as {local.node} has seen, and failover_cooldown is "
        f"{config.failover_cooldown:g} s: no second time yet; `standfast promote` goes at once",
    )


def on_hold(hold: Hold) -> str:
    """Says of a node that it doesn't take over by itself, and what ends that."""
    return (
        f"{hold.node} is on hold by {hold.by} since {format_utc(hold.at)} ({hold.reason}): it "
        f"doesn't take over by itself; `standfast standby release {hold.node}` ends that"
    )


def stopped_for_all(view: Cluster) -> Decision | None:
    """Returns what keeps every candidate from the role that isn't handed to it; None: nothing
    does."""
    leader, pause = view.leader, view.pause
    if pause is not None:
        return blocked(
            Reason.PAUSED,
            f"paused by {pause.by} {pause.span()} ({pause.reason}): "
            f"nobody takes over by itself; `standfast resume` ends that",
        )
    if leader is not None and leader.is_clean and leader.to is None:
        return blocked(
            Reason.DEMOTED,
            f"{leader.holder.node} gave the role up by `standfast demote`, to nobody"
            f"{_left_behind(leader)}: `standfast promote` on a node of your choice goes on",
        )
    return None


def _left_behind(leader: Leader) -> str:
    if not leader.surrendered or leader.idle:
        return ""
    return (
        f", and without a final snapshot (what {leader.holder.node} wrote since the last "
        f"replication is in the tree that it keeps aside, and nowhere else)"
    )


def _epoch_age_s(history_entry: HistoryEntry, view: Cluster, now: Moment) -> float:
    """Returns for how long it has lasted, seconds, by this node's own count where it saw the epoch
    begin.

    Else it may have lasted for longer than this node knows: as two nodes' wall clocks tell it, and
    at least for as long as it has been seen, so that none of them makes it last for ever.
    """
    seen = view.beginning
    seen_s = 0.0 if seen is None else now.monotonic - seen.first_seen
    if seen is not None and seen.witnessed:
        return seen_s
    return max(seen_s, now.utc - history_entry.at)


def wrongly_named(view: Cluster, local: Local) -> Decision | None:
    """Returns the refusal that no word lifts: the guard would take its own server for another's."""
    why = misnamed(local.node, view.named)
    return None if why is None else blocked(Reason.NODE_MISNAMED, f"{local.node}: {why}")


def unwritable(local: Local, config: Config) -> Decision | None:
    """Returns the refusal that no word lifts: the promotion would fail with the lease in its
    hands."""
    if not local.read_only:
        return None
    return blocked(
        Reason.VOLUME_READ_ONLY,
        f"the file system of {config.paths.live.parent} on {local.node} takes no writes (an error? "
        f"see `dmesg`): it can't take over. Repair it and mount it writable",
    )


def obstructed(local: Local, request: Request) -> Decision | None:
    """Returns the refusal of a promotion that would fail; of somebody who has seen that, it is
    tried."""
    obstacles = [seen for seen in local.obstacles if seen.check not in request.despite]
    if not obstacles:
        return None
    return blocked(
        Reason.NOT_READY,
        f"a promotion of {local.node} would fail:\n{told(obstacles)}",
    )


def _unfit(
    base: Available | None,
    view: Cluster,
    local: Local,
    config: Config,
    now: Moment,
    request: Request,
    *,
    handed: bool,
) -> Decision | None:
    if base is None:
        return blocked(
            Reason.NO_PUBLISHED_SNAPSHOT,
            f"{local.node} has no published snapshot of the current lineage in "
            f"{config.paths.standby}: it can't take over; see `standfast snapshots`",
        )
    age_s = _behind_idle_s(base, view, now)
    if age_s is None:
        age_s = base.age_s(now.utc)
    if age_s is not None and age_s <= config.max_data_loss:
        return None
    if request.accept_data_loss or handed:
        return None
    old = (
        "of unknown age (this node started with its clock behind, or a name is from the future: "
        "see `timedatectl`; with the clock right it may be known again)"
        if age_s is None
        else f"{age_s:.0f} s old"
    )
    return blocked(
        Reason.TOO_OLD,
        f"the newest snapshot on {local.node} ({base.snapshot.name}) is {old} and "
        f"max_data_loss is {config.max_data_loss:g} s: "
        f"`standfast promote --accept-data-loss` takes it all the same",
    )


def _incomplete(
    base: Available | None, view: Cluster, local: Local, request: Request
) -> Decision | None:
    """Refuses a loss: a handover is without one, so the final snapshot has to be here."""
    if base is None or request.accept_data_loss or not is_behind(base, view):
        return None
    return blocked(
        Reason.TOO_OLD,
        f"the newest snapshot on {local.node} ({base.snapshot.name}) is not the final one "
        f"of the last epoch: `standfast promote` on the node that has that{_final(view)}, or "
        f"`standfast promote --accept-data-loss` here",
    )


def _final(view: Cluster) -> str:
    leader = view.leader
    if leader is None or leader.final is None:
        return ""
    return f" ({leader.final}, on {leader.holder.node} at least)"
