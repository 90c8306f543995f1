"""pause and resume of automatic failover."""

from __future__ import annotations

import argparse

from standfast.cli.marks import NO_REASON, Mark
from standfast.cli.operator import operator_name
from standfast.config.load import load_volume
from standfast.consul.records import Pause
from standfast.system.clock import format_utc, utc_now


def pause(args: argparse.Namespace) -> int:
    """Runs `standfast pause`."""
    lasts: float | None = getattr(args, "for")  # the option's name is no name in Python
    wanted = Pause(operator_name(), args.reason or NO_REASON, utc_now(), lasts)
    return _mark(args, wanted).put(args, wanted)


def resume(args: argparse.Namespace) -> int:
    """Runs `standfast resume`."""
    mark = _mark(args)
    then = f"{mark.config.volume} is resumed: automatic failover is enabled"
    return mark.take_away(args, then)


def _mark(args: argparse.Namespace, wanted: Pause | None = None) -> Mark:
    config = load_volume(args.volume, require_storage=False)
    end = None if wanted is None else wanted.until
    about = "" if end is None else f"about {format_utc(end)}, or "
    effect = f"automatic failover is disabled until {about}`standfast resume`"
    return Mark(config, config.key("pause"), Pause, config.volume, "paused", effect)
