"""standby authorize: on a standby, let another node's replication key receive a volume here."""

from __future__ import annotations

import argparse
from pathlib import Path

from standfast.cli.output import print_done
from standfast.config.load import load_volume
from standfast.replication.authorized import Bound, Change, authorize
from standfast.replication.authorized_file import authorized_keys_of
from standfast.replication.keys import PublicKey


def run(args: argparse.Namespace) -> int:
    """Runs `standfast standby authorize KEY`."""
    config = load_volume(args.volume)
    key = PublicKey.parse(args.key)
    user = config.replication.ssh_user
    path = authorized_keys_of(user) if args.file is None else Path(args.file)
    bound = Bound.of_key(config, key, getattr(args, "from"))  # no name in Python
    change = authorize(path, user, config.volume, bound, key, dry_run=args.dry_run)
    text = _sentence(change, str(path), config.volume, bound, args.dry_run)
    done = {"change": str(change), "file": str(path), "node": bound.node}
    print_done(args.json, text, **done, address=bound.address, dry_run=args.dry_run)
    return 0


def _sentence(change: Change, path: str, volume: str, bound: Bound, dry_run: bool) -> str:
    key = f"the key of {bound.node}"
    if change is Change.UNCHANGED:
        return f"{key} may send {volume} here already, by its line in {path}"
    verb = {Change.ADDED: "add a line for", Change.UPDATED: "change the line of"}[change]
    if dry_run:
        return f"would {verb} {key} in {path}"
    where = f", from {bound.address} alone" if bound.address else ""
    open_ = (
        ""
        if bound.address
        else (
            f". It is let in from anywhere, as [nodes.{bound.node}] has a host name: sshd compares "
            f"addresses"
        )
    )
    return f"{key} may send {volume} here, and nothing else{where}: its line is in {path}{open_}"
