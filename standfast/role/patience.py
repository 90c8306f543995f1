"""How long a candidate waits, and for what: the end of the last lease, evidence, better candidates.

The wait for the end of a lease is a matter of safety; the rest is about lost data.
"""

from __future__ import annotations

import contextlib

from standfast.config.model import Config, LeaseTiming
from standfast.consul.records import longest_wait_s
from standfast.lease.surrender import rank
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.role.decision import Decision, Moment, wait
from standfast.role.observation import Available, Cluster, Local, is_beyond, is_final


def heard_within_s(timing: LeaseTiming) -> float:
    """Returns the seconds within which a primary that lives and reaches Consul is heard of."""
    return 2 * timing.heartbeat + timing.request_timeout


def still_waiting(view: Cluster, config: Config, now: Moment) -> Decision | None:
    """Returns the wait for the certain end of the last lease; None: it is over."""
    leader = view.leader
    if view.nobody_serves:
        return None
    seen_s = now.monotonic - view.last_heartbeat.first_seen
    left_s = longest_wait_s(leader, config.lease.wait) - seen_s
    if left_s <= 0:
        return None
    who = f"{leader.holder.node}'s last heartbeat" if leader else "the missing heartbeat"
    if leader is not None and view.given_up:
        return wait(
            Reason.WAITING_FOR_LEASE_END,
            f"{leader.holder.node} gave epoch {leader.epoch} up, and {config.node} was not looking "
            f"at Consul all that time: should it have been restored since and have forgotten a "
            f"successor, that one's lease is over for certain in {left_s:.1f} s",
        )
    return wait(
        Reason.WAITING_FOR_LEASE_END,
        f"{who} has been looked at without a gap for {seen_s:.1f} s: its lease is over for certain "
        f"in {left_s:.1f} s",
    )


def patience(
    view: Cluster,
    local: Local,
    config: Config,
    now: Moment,
    base: Available | None,
    *,
    in_place: bool,
) -> Decision | None:
    """Returns the wait for evidence that the primary is dead, or for better candidates; None: go
    on."""
    leader = view.leader
    assert leader is not None
    timing = config.lease
    silent_s = now.monotonic - view.last_heartbeat.first_seen
    waited_s = silent_s
    dead = view.holder_health == "critical" or view.holder_unanswered_s >= timing.wait / 2
    start_s = timing.wait
    if leader.is_clean:
        # Handed to another: that one goes first.
        start_s += timing.wait if leader.holder.node == local.node else 0.0
        if is_behind(base, view):
            # Whoever has the final snapshot first, the old holder among them: nothing is lost then.
            start_s += 2 * timing.wait + config.failover_after
    elif not dead and not in_place:
        start_s = max(config.failover_after, timing.wait)
        waited_s = now.monotonic - view.last_heartbeat.evident_since
        if waited_s < start_s:
            return wait(
                Reason.WAITING_FOR_EVIDENCE,
                f"{leader.holder.node} sends no heartbeats but looks alive "
                f"(gossip: {view.holder_health}): waiting {start_s - waited_s:.0f} s more",
            )
        # Consul itself was away: a primary that lives sends a heartbeat within this time, and
        # then the outage was a pause and not a failover.
        chance_s = heard_within_s(timing)
        readable_s = now.monotonic - view.readable_since
        if readable_s < chance_s:
            return wait(
                Reason.WAITING_FOR_EVIDENCE,
                f"Consul has been readable again for {readable_s:.1f} s: {leader.holder.node} has "
                f"{chance_s - readable_s:.1f} s more to heartbeat",
            )
    better = () if in_place else _better(view, local, config, base)
    head_start_s = len(better) * (timing.heartbeat + timing.request_timeout)
    if waited_s < start_s + head_start_s:
        who = ", ".join(better) or leader.to or leader.holder.node
        return wait(
            Reason.WAITING_FOR_BETTER_CANDIDATE,
            f"{who} may take over first: waiting {start_s + head_start_s - silent_s:.1f} s",
        )
    return None


def _better(view: Cluster, local: Local, config: Config, base: Available | None) -> tuple[str, ...]:
    """Candidates that are alive and rank above this node: (epoch, stamp, priority, name)."""
    leader = view.leader
    assert leader is not None and base is not None
    mine = rank(base.epoch, str(base.snapshot.name), config.me.priority, local.node)
    better = []
    for name in leader.candidates:
        record, node = view.standbys.get(name), config.nodes.get(name)
        if name == local.node or record is None or node is None or name not in view.alive:
            continue
        if name in view.holds:
            continue
        theirs = rank(record.epoch, record.snapshot, node.priority, name)
        if theirs > mine and record.time is not None:
            better.append(name)
    if (
        leader.holder.node != local.node
        and leader.holder.node in view.alive
        and leader.holder.node not in view.holds
        and (leader.epoch > base.epoch)
    ):
        better.append(leader.holder.node)
    return tuple(better)


def is_behind(base: Available | None, view: Cluster) -> bool:
    """Tells whether `base` lacks something of the epoch that was given up in order."""
    if base is None or view.leader is None or not view.leader.is_clean:
        return False
    if view.leader.surrendered or is_beyond(base, view):
        return False  # there is no final one, or it has more than that
    if view.leader.final is not None:
        return not is_final(base, view.leader)
    for record in view.standbys.values():
        with contextlib.suppress(ValueError):
            newer = SnapshotName.parse(record.snapshot) > base.snapshot.name
            if newer and record.epoch == view.leader.epoch:
                return True
    return False
