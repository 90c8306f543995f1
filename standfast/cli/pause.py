"""pause and resume of automatic failover."""

from __future__ import annotations

import argparse

from standfast.cli.marks import NO_REASON, Mark
from standfast.cli.operator import operator_name
from standfast.config.load import load_volume
from standfast.consul.records import Pause
from standfast.system.clock import utc_now


def pause(args: argparse.Namespace) -> int:
    """Runs `standfast pause`."""
    return _mark(args).put(args, Pause(operator_name(), args.reason or NO_REASON, utc_now()))


def resume(args: argparse.Namespace) -> int:
    """Runs `standfast resume`."""
    mark = _mark(args)
    then = f"{mark.config.volume} is resumed: automatic failover is enabled"
    return mark.take_away(args, then)


def _mark(args: argparse.Namespace) -> Mark:
    config = load_volume(args.volume, require_storage=False)
    effect = "automatic failover is disabled until `standfast resume`"
    return Mark(config, config.key("pause"), Pause, config.volume, "paused", effect)
