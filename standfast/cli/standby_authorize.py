"""standby authorize: on a standby, let another node's replication key receive a volume here."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Mapping
from ipaddress import ip_address
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
    seen = _seen(os.environ)
    elsewhere = None not in (seen, bound.address) and seen != bound.address
    change = authorize(
        path, user, config.volume, bound, key, dry_run=args.dry_run, elsewhere=elsewhere
    )
    kept = seen if elsewhere and change is Change.UPDATED else None
    text = _sentence(change, str(path), config.volume, bound, args.dry_run, kept)
    done = {"change": str(change), "file": str(path), "node": bound.node}
    print_done(args.json, text, **done, address=bound.address, dry_run=args.dry_run)
    return 0


def _seen(environ: Mapping[str, str]) -> str | None:
    """Returns from where `standby add --install-key` of the other node comes; None where a person
    types this, who may sit anywhere."""
    words = environ.get("SSH_CONNECTION", "").split(" ")
    if "SSH_TTY" in environ:
        return None
    with contextlib.suppress(ValueError):
        return str(ip_address(words[0]))
    return None


def _sentence(
    change: Change, path: str, volume: str, bound: Bound, dry_run: bool, kept_for: str | None
) -> str:
    key = f"the key of {bound.node}"
    if change is Change.UNCHANGED:
        return f"{key} may send {volume} here already, by its line in {path}"
    verb = {Change.ADDED: "add a line for", Change.UPDATED: "change the line of"}[change]
    if dry_run:
        return f"would {verb} {key} in {path}"
    where, more = f", from {bound.address} alone", ""
    if kept_for is not None:
        where = ""
        more = (
            f". Its from= was left as it was: this came from {kept_for}, and [nodes.{bound.node}] "
            f"has {bound.address}. Correct that on every node, or put the addresses there from "
            f"which {bound.node} comes"
        )
    elif bound.address is None:
        where = ""
        more = (
            f". It is let in from anywhere, as [nodes.{bound.node}] has a host name: sshd compares "
            f"addresses"
        )
    return f"{key} may send {volume} here, and nothing else{where}: its line is in {path}{more}"
