"""pause and resume: one key in Consul, written only if it is not there, deleted only if ours."""

from __future__ import annotations

import argparse

from standfast.cli.operator import operator_name
from standfast.cli.output import print_done
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.consul.gateway import Cas, CheckIndex, ConsulGateway, Delete, Entry
from standfast.consul.records import Pause
from standfast.consul.values import Committed
from standfast.errors import Refused
from standfast.reasons import Reason
from standfast.system.clock import format_utc, utc_now

NO_REASON = "no reason given"


def pause(args: argparse.Namespace) -> int:
    """Runs `standfast pause`."""
    config = load_volume(args.volume, require_storage=False)
    gateway = ConsulGateway.from_config(config)
    lasts: float | None = getattr(args, "for")  # the option's name is no name in Python
    wanted = Pause(operator_name(), args.reason or NO_REASON, utc_now(), lasts)
    if (entry := _read(gateway, config)) is not None:
        return _already(args, config, entry)
    if args.dry_run:
        text = f"would pause {config.volume}: automatic failover is disabled{_end(wanted)}"
        print_done(args.json, text, dry_run=True)
        return 0
    done = gateway.txn([Cas(config.key("pause"), 0, wanted.dump())])
    if not isinstance(done, Committed):
        if (entry := _read(gateway, config)) is not None:
            return _already(args, config, entry)
        raise _busy(config)
    print_done(
        args.json,
        f"{config.volume} is paused: automatic failover is disabled{_end(wanted)}",
        changed=True,
    )
    return 0


def resume(args: argparse.Namespace) -> int:
    """Runs `standfast resume`."""
    config = load_volume(args.volume, require_storage=False)
    gateway = ConsulGateway.from_config(config)
    entry = _read(gateway, config)
    if entry is None:
        print_done(args.json, f"{config.volume} is not paused: nothing to do", changed=False)
        return 0
    was = Pause.parse(entry.value, entry.key)  # a foreign value is not ours to delete
    text = f"(paused by {was.by} at {format_utc(was.at)}: {was.reason})"
    if args.dry_run:
        print_done(args.json, f"would resume {config.volume} {text}", dry_run=True)
        return 0
    done = gateway.txn([CheckIndex(entry.key, entry.modify_index), Delete(entry.key)])
    if not isinstance(done, Committed) and _read(gateway, config) is not None:
        raise _busy(config)
    print_done(
        args.json, f"{config.volume} is resumed: automatic failover is enabled {text}", changed=True
    )
    return 0


def _end(pause: Pause) -> str:
    if pause.until is None:
        return " until `standfast resume`"
    return f" until about {format_utc(pause.until)}, or `standfast resume`"


def _read(gateway: ConsulGateway, config: Config) -> Entry | None:
    return gateway.get(config.key("pause"), consistent=True)


def _already(args: argparse.Namespace, config: Config, entry: Entry) -> int:
    was = Pause.parse(entry.value, entry.key)
    print_done(
        args.json,
        f"{config.volume} is paused already, by {was.by} at {format_utc(was.at)}"
        f"{_end(was) if was.until else ''}: {was.reason}",
        changed=False,
    )
    return 0


def _busy(config: Config) -> Refused:
    return Refused(
        Reason.BUSY,
        f"{config.key('pause')} was changed by somebody else just now; nothing was done. "
        "Look with `standfast status` and run it again",
    )
