"""What `config check` says beyond the rules: values that can't work here, and doubtful ones.

A rule stops the agent; none of this does, as a newer nfs-utils may know more, and a file may be
missing for a moment.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from standfast.config.model import Config
from standfast.config.problems import Problem, dotted, shown
from standfast.config.rules import names
from standfast.system.lines import fields_of, lines_of

# Of exports(5) and parseopts() in support/nfs/exports.c of nfs-utils 2.8.
_EXPORT_OPTIONS = """
    ro rw secure insecure sync async hide nohide crossmnt nocrossmnt wdelay no_wdelay
    root_squash no_root_squash all_squash no_all_squash subtree_check no_subtree_check
    auth_nlm no_auth_nlm secure_locks insecure_locks acl no_acl pnfs no_pnfs nordirplus
    security_label no_security_label mountpoint mp
    anonuid= anongid= squash_uids= squash_gids= mountpoint= mp= refer= replicas= sec= xprtsec=
    reexport=
"""
_MORE_IDS = re.compile(r"\d+(-\d+)?")
"""What follows a comma in squash_uids=0-15,20."""
_ALIKE = 0.7


def advice(config: Config, *, here: bool) -> tuple[list[Problem], list[Problem]]:
    """Returns what can't work, and what is only worth a word. `here`: it is this host's own
    configuration, and not a file that may be meant for another one."""
    bad = [*_export_options(config), *_addresses(config)]
    words = list(_resembling(config))
    for problem, certain in _files(config) if here else ():
        (bad if certain else words).append(problem)
    return bad, words


def _export_options(config: Config) -> Iterator[Problem]:
    if config.nfs.server != "kernel":
        return
    known = fields_of(" ".join(lines_of(_EXPORT_OPTIONS)))
    for text in config.nfs.options.split(","):
        name, equals, _ = text.partition("=")
        if name + equals in known or _MORE_IDS.fullmatch(text):
            continue
        if name == "fsid":
            rule, way_out = "is given by Standfast, another one for each tree", "leave it out"
        else:
            rule = f"{shown(text)} is no export option: exportfs would refuse it, and with it the "
            rule += "whole export"
            close = difflib.get_close_matches(name + equals, known, 1, _ALIKE)
            way_out = f"did you mean {close[0]}?" if close else "see `man 5 exports`"
        yield Problem("nfs.options", shown(config.nfs.options), rule, way_out)


def _addresses(config: Config) -> Iterator[Problem]:
    for name, node in sorted(config.nodes.items()):
        if _is_everybodys(node.address):
            yield Problem(
                dotted("nodes", name, "address"),
                shown(node.address),
                "is another machine on each node: clients and other nodes would reach themselves",
                f"give the address at which they reach {name}",
            )


def _is_everybodys(address: str) -> bool:
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        name = address.lower().removesuffix(".")
        return name == "localhost" or name.startswith("localhost.") or name.endswith(".localhost")
    return known.is_loopback


def _files(config: Config) -> Iterator[tuple[Problem, bool]]:
    """Yields with each problem whether it is certain that it can't work."""
    tables = {"consul": config.consul, "nomad": config.nomad}
    if not config.nomad.enabled:
        del tables["nomad"]
    for table, access in tables.items():
        for key in ("token_file", "ca_cert", "client_cert", "client_key"):
            path = getattr(access, key)
            wrong = None if path is None else _wrong_with(path)
            if wrong is not None:
                rule, certain = wrong
                what_now = "put it there, or correct the path" if certain else "check it with sudo"
                yield Problem(f"{table}.{key}", shown(path), rule, what_now), certain
    ssh_key = config.replication.ssh_key
    if config.node in config.nodes and config.standbys and not config.replication.command:
        wrong = _wrong_with(ssh_key)
        if wrong is not None:
            what_now = f"`standfast standby add {config.standbys[0]}` makes it"
            yield Problem("replication.ssh_key", shown(ssh_key), wrong[0], what_now), False


def _wrong_with(path: Path) -> tuple[str, bool] | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "is no file", True
    except PermissionError:
        return "can't be looked for as this user", False
    except OSError as error:
        return f"can't be read: {error.strerror}", True
    return (
        None
        if os.access(path, os.R_OK, effective_ids=True)
        else ("can't be read as this user", False)
    )


def _resembling(config: Config) -> Iterator[Problem]:
    if config.node in config.nodes:
        return
    like = [name for name in sorted(config.nodes) if _alike(name, config.node)]
    if like:
        yield Problem(
            "node",
            shown(config.node),
            f"this host is none of the storage nodes ({names(config)}), so that it counts as a "
            f"client; but its name is much like {like[0]}",
            f'if it is that node, rename [nodes.{like[0]}], or set node = "{like[0]}"',
            ("nodes",),
        )


def _alike(name: str, other: str) -> bool:
    """Hosts that are numbered differ by their numbers, and on purpose."""
    name, other = name.lower(), other.lower()
    if re.findall(r"\d+", name) != re.findall(r"\d+", other):
        return False
    return difflib.SequenceMatcher(None, name, other).ratio() >= _ALIKE
