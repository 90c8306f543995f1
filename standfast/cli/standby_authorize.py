"""standby authorize: on a standby, let another node's replication key receive a volume here."""

from __future__ import annotations

import argparse
from pathlib import Path

from standfast.cli.output import print_done
from standfast.config.load import load_volume
from standfast.replication.authorized import Change, authorize, authorized_keys_of
from standfast.replication.keys import PublicKey


def run(args: argparse.Namespace) -> int:
    """Runs `standfast standby authorize KEY`."""
    config = load_volume(args.volume)
    key = PublicKey.parse(args.key)
    user = config.replication.ssh_user
    path = authorized_keys_of(user) if args.file is None else Path(args.file)
    change = authorize(path, user, config.volume, key, dry_run=args.dry_run)
    text = _sentence(change, str(path), config.volume, key, args.dry_run)
    print_done(args.json, text, change=str(change), file=str(path), dry_run=args.dry_run)
    return 0


def _sentence(change: Change, path: str, volume: str, key: PublicKey, dry_run: bool) -> str:
    name = key.comment or key.blob[-12:]
    if change is Change.UNCHANGED:
        return f"{name} may receive {volume} already, by its line in {path}"
    verb = {Change.ADDED: "add a line for", Change.UPDATED: "change the line of"}[change]
    if dry_run:
        return f"would {verb} {name} in {path}"
    return f"{name} may receive {volume} here, and nothing else: its line is in {path}"
