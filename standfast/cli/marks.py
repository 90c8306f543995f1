"""A key in Consul that somebody puts there and takes away: written only if it is not there, deleted
only if it is ours and unchanged."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from standfast.cli.output import print_done
from standfast.config.model import Config
from standfast.consul.gateway import Cas, CheckIndex, ConsulGateway, Delete, Entry
from standfast.consul.records import Hold, Pause
from standfast.consul.values import Committed
from standfast.errors import Refused
from standfast.reasons import Reason
from standfast.system.clock import format_utc

NO_REASON = "no reason given"


@dataclass(frozen=True, slots=True)
class Mark:
    """One such key, and what is said of it: `name` is who or what it is about."""

    config: Config
    key: str
    kind: type[Pause | Hold]
    name: str
    state: str
    """What it is while the key is there."""
    effect: str
    """What that does, and for how long."""

    def put(self, args: argparse.Namespace, wanted: Pause | Hold) -> int:
        """Writes the key, or says who did; Refused (busy), ConsulError, ForeignValue."""
        gateway = ConsulGateway.from_config(self.config)
        if (entry := self._read(gateway)) is not None:
            return self._already(args, entry)
        if args.dry_run:
            text = f"{self.name} would be {self.state}: {self.effect}"
            print_done(args.json, text, dry_run=True)
            return 0
        done = gateway.txn([Cas(self.key, 0, wanted.dump())])
        if not isinstance(done, Committed):
            if (entry := self._read(gateway)) is not None:
                return self._already(args, entry)
            raise self._busy()
        print_done(args.json, f"{self.name} is {self.state}: {self.effect}", changed=True)
        return 0

    def take_away(self, args: argparse.Namespace, then: str) -> int:
        """Deletes the key, if it is there; `then` says what is so afterwards. Refused (busy),
        ConsulError, ForeignValue."""
        gateway = ConsulGateway.from_config(self.config)
        entry = self._read(gateway)
        if entry is None:
            text = f"{self.name} is not {self.state}: nothing to do"
            print_done(args.json, text, changed=False)
            return 0
        # A foreign value is not ours to delete.
        text = f"({self.state} {_by(self.kind.parse(entry.value, entry.key))})"
        if args.dry_run:
            text = f"{self.name} would not be {self.state} any more {text}"
            print_done(args.json, text, dry_run=True)
            return 0
        done = gateway.txn([CheckIndex(entry.key, entry.modify_index), Delete(entry.key)])
        if not isinstance(done, Committed) and self._read(gateway) is not None:
            raise self._busy()
        print_done(args.json, f"{then} {text}", changed=True)
        return 0

    def _read(self, gateway: ConsulGateway) -> Entry | None:
        return gateway.get(self.key, consistent=True)

    def _already(self, args: argparse.Namespace, entry: Entry) -> int:
        was = self.kind.parse(entry.value, entry.key)
        print_done(args.json, f"{self.name} is {self.state} already, {_by(was)}", changed=False)
        return 0

    def _busy(self) -> Refused:
        return Refused(
            Reason.BUSY,
            f"{self.key} was changed by somebody else just now; nothing was done. "
            "Look with `standfast status` and run it again",
        )


def _by(was: Pause | Hold) -> str:
    until = was.until if isinstance(was, Pause) else None
    end = "" if until is None else f" until about {format_utc(until)}"
    return f"by {was.by} at {format_utc(was.at)}{end}: {was.reason}"
