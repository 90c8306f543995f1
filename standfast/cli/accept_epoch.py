"""accept-epoch: after a restore of Consul, or when keys were deleted, the epoch there is raised to
the highest that this node has seen or that any key of the volume tells of.

Invariant: the epoch in Consul only grows, and only from the value that was looked at.
"""

from __future__ import annotations

import argparse

from standfast.cli.output import print_done
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.consul.gateway import Cas, ConsulGateway, Entry
from standfast.consul.records import dump_epoch, parse_epoch
from standfast.consul.values import Committed
from standfast.consul.volume_keys import highest_epoch, read_volume
from standfast.errors import Refused
from standfast.lease.epochs import EpochFile
from standfast.reasons import Reason

ATTEMPTS = 3


def run(args: argparse.Namespace) -> int:
    """Runs `standfast accept-epoch`."""
    config = load_volume(args.volume)
    here = EpochFile(config.state_dir / "epoch").read()
    gateway = ConsulGateway.from_config(config)
    for _ in range(ATTEMPTS):
        entries = read_volume(gateway, config)
        told = highest_epoch({name: entry.value for name, entry in entries.items()})
        entry, seen = entries.get("epoch"), max(here, told)
        stored = None if entry is None else parse_epoch(entry.value, entry.key)
        if not seen or (stored is not None and stored >= seen):
            print_done(args.json, _nothing_to_do(config, seen, stored), changed=False)
            return 0
        if args.dry_run:
            would = f"would raise {_change(config, seen, stored)}. {_meaning(seen)}"
            print_done(args.json, would, dry_run=True)
            return 0
        if _raise(gateway, config, seen, entry):
            print_done(
                args.json,
                f"raised {_change(config, seen, stored)}. {_meaning(seen)}",
                changed=True,
            )
            return 0
    raise Refused(
        Reason.BUSY,
        f"{config.key('epoch')} changed {ATTEMPTS} times in the meantime; nothing was done. "
        "Look with `standfast status` and run it again",
    )


def _raise(gateway: ConsulGateway, config: Config, seen: int, entry: Entry | None) -> bool:
    index = 0 if entry is None else entry.modify_index
    done = gateway.txn([Cas(config.key("epoch"), index, dump_epoch(seen))])
    return isinstance(done, Committed)


def _change(config: Config, seen: int, stored: int | None) -> str:
    was = "missing" if stored is None else str(stored)
    return (
        f"{config.key('epoch')} in Consul from {was} to {seen}, the highest that {config.node} has "
        "seen or other keys there name: the epochs in between were lost (restored from a backup?)"
    )


def _meaning(seen: int) -> str:
    return (
        f"A server of an older epoch loses its lease by that; the next epoch is {seen + 1}. Run "
        "this on the other storage nodes too, then look with `standfast status`"
    )


def _nothing_to_do(config: Config, seen: int, stored: int | None) -> str:
    there = "has no epoch" if stored is None else f"is at epoch {stored}"
    here = f"epoch {seen}" if seen else "none"
    return f"nothing to do: Consul {there}, the highest that is known on {config.node} is {here}"
