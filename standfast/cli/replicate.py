"""replicate: one cycle to one standby, or to each; one that fails doesn't stop the others."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from standfast.adapters.consul import ConsulGateway
from standfast.adapters.stores import open_store
from standfast.cli.output import age_s, note, print_done, print_json
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.errors import Refused, StandfastError, UsageError
from standfast.reasons import Reason
from standfast.records import StandbyRecord
from standfast.replication.cycle import CycleResult, run_cycle
from standfast.replication.failures import reason_of
from standfast.views.text import duration


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one cycle ended."""

    standby: str
    result: CycleResult | None = None
    error: StandfastError | None = None

    def sentence(self) -> str:
        if self.result is None:
            return f"{self.standby}: not replicated: {self.error}"
        done = self.result
        since = f"since {done.parent}" if done.parent else "full"
        return (
            f"{self.standby}: {done.snapshot} is there ({since}, {size(done.sent_bytes)} in "
            f"{done.seconds:.1f} s)"
        )

    def document(self) -> dict[str, Any]:
        if self.result is None:
            reason = None if self.error is None else str(reason_of(self.error))
            return {"standby": self.standby, "error": str(self.error), "reason": reason}
        done = self.result
        return {
            "standby": self.standby,
            "snapshot": str(done.snapshot),
            "parent": done.parent,
            "sent_bytes": done.sent_bytes,
            "seconds": done.seconds,
            "full": done.was_full,
        }


def run(args: argparse.Namespace) -> int:
    """`standfast replicate`."""
    volume, standby = _target(args)
    config = load_volume(volume)
    standbys = _standbys(config, standby)
    gateway = ConsulGateway.from_config(config)
    if args.dry_run:
        lines = [_plan(config, gateway, name) for name in standbys]
        print_done(args.json, "\n".join(lines), dry_run=True)
        return 0
    outcomes = [_one(config, gateway, name, args.full) for name in standbys]
    failed = [one for one in outcomes if one.error is not None]
    if len(outcomes) == 1 and failed and failed[0].error is not None:
        raise failed[0].error
    for one in outcomes:
        if not args.json and one.error is None:
            print(one.sentence())
        elif one.error is not None:
            note(one.sentence())
    if failed:
        names = ", ".join(one.standby for one in failed)
        raise Refused(
            Reason.REPLICATION_FAILED,
            f"not replicated to {names} ({failed[0].error}); run `standfast replicate NODE` again",
        )
    if args.json:
        print_json({"done": True, "replicated": [one.document() for one in outcomes]})
    return 0


def size(count: int) -> str:
    """`112 B`, `3.4 MiB`."""
    amount, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def _one(config: Config, gateway: ConsulGateway, standby: str, full: bool) -> Outcome:
    try:
        return Outcome(standby, run_cycle(config, open_store(config), gateway, standby, full=full))
    except StandfastError as error:
        return Outcome(standby, error=error)


def _target(args: argparse.Namespace) -> tuple[str | None, str | None]:
    if args.instance is None:
        return args.volume, args.standby
    volume, colon, standby = args.instance.partition(":")
    if not (volume and colon and standby) or args.volume or args.standby:
        raise UsageError("--instance takes VOLUME:STANDBY and stands alone")
    return volume, standby


def _standbys(config: Config, standby: str | None) -> tuple[str, ...]:
    known = ", ".join(config.standbys) or "there is none"
    if standby is None and config.standbys:
        return config.standbys
    if standby is None or standby not in config.standbys:
        wanted = standby or "no standby"
        raise Refused(
            Reason.UNKNOWN_NODE,
            f"{wanted} is not another storage node of {config.volume}: {known}. "
            f"The nodes are in {config.source}",
        )
    return (standby,)


def _plan(config: Config, gateway: ConsulGateway, standby: str) -> str:
    entry = gateway.get(config.key(f"standbys/{standby}"), consistent=True)
    if entry is None:
        last = "nothing was replicated to it yet: this would send everything (--full)"
    else:
        snapshot = StandbyRecord.parse(entry.value, entry.key).snapshot
        last = f"the newest there is {snapshot} ({duration(age_s(snapshot))} old)"
    address = config.nodes[standby].address
    return (
        f"would take a snapshot of {config.paths.live} and send it to {standby} ({address}); {last}"
    )
