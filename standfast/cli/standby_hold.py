"""standby hold and release: a node that doesn't take over by itself, for maintenance say."""

from __future__ import annotations

import argparse

from standfast.cli.marks import NO_REASON, Mark
from standfast.cli.operator import operator_name
from standfast.cli.steps import node_name
from standfast.config.load import load_volume
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import Hold
from standfast.consul.volume_keys import HOLDS
from standfast.errors import Refused, did_you_mean
from standfast.reasons import Reason
from standfast.replication.reporting import leader_of
from standfast.system.clock import utc_now


def hold(args: argparse.Namespace) -> int:
    """Runs `standfast standby hold NODE`. Refused (serving) for the primary."""
    mark = _mark(args)
    config, node = mark.config, mark.name
    if node not in config.nodes:
        known = f"{', '.join(config.nodes)}{did_you_mean(node, config.nodes)}"
        raise Refused(Reason.UNKNOWN_NODE, f"{node} is no storage node of {config.volume}: {known}")
    leader = leader_of(config, ConsulGateway.from_config(config))
    if leader is not None and leader.holder.node == node and not leader.is_clean:
        raise Refused(
            Reason.SERVING,
            f"{node} is the primary of {config.volume}: move the role first (there: `standfast "
            f"switchover`)",
        )
    return mark.put(args, Hold(node, operator_name(), args.reason or NO_REASON, utc_now()))


def release(args: argparse.Namespace) -> int:
    """Runs `standfast standby release NODE`."""
    mark = _mark(args)
    return mark.take_away(args, f"{mark.name} is released: it takes over by itself again")


def _mark(args: argparse.Namespace) -> Mark:
    config, node = load_volume(args.volume, require_storage=False), node_name(args.node)
    effect = f"it doesn't take over by itself until `standfast standby release {node}`"
    return Mark(config, config.key(f"{HOLDS}{node}"), Hold, node, "on hold", effect)
