"""What `config check` says beyond the rules: values that can't work here, and doubtful ones.

A rule stops the agent; none of this does, as a newer nfs-utils may know more, and a file may be
missing for a moment.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from standfast.config.consul import ConsulAccess
from standfast.config.fields import TLS_FILES
from standfast.config.model import Config
from standfast.config.nomad import NomadAccess
from standfast.config.problems import Problem, dotted, shown
from standfast.config.rules import ALIKE, much_like, names
from standfast.system.environment import TAKEN
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
# A list of ids ends at its comma: of squash_uids=0-15,20 exportfs refuses the 20.
_OWN_NAMES = (
    "localhost", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback"
)  # fmt: skip
"""Of loopback, by the /etc/hosts of one distribution or another."""


def advice(config: Config, *, here: bool) -> tuple[list[Problem], list[Problem]]:
    """Returns what can't work, and what is only worth a word. `here`: it is this host's own
    configuration, and not a file that may be meant for another one."""
    bad = [*_export_options(config), *_addresses(config)]
    words = [*_resembling(config), *wide_exports(config)]
    words += _mount_points(config) if here else ()
    words += in_the_clear(config, TAKEN if here else {})
    for problem, certain in _files(config) if here else ():
        (bad if certain else words).append(problem)
    return bad, words


def _export_options(config: Config) -> Iterator[Problem]:
    if config.nfs.server != "kernel":
        return
    known = fields_of(" ".join(lines_of(_EXPORT_OPTIONS)))
    for text in config.nfs.options.split(","):
        name, equals, _ = text.partition("=")
        if name + equals in known:
            continue
        if name == "fsid":
            rule, way_out = "is given by Standfast, another one for each tree", "leave it out"
        else:
            rule = f"{shown(text)} is no export option: exportfs would refuse it, and with it the "
            rule += "whole export"
            close = difflib.get_close_matches(name + equals, known, 1, ALIKE)
            way_out = f"did you mean {close[0]}?" if close else "see `man 5 exports`"
        yield Problem("nfs.options", shown(config.nfs.options), rule, way_out)


def wide_exports(config: Config) -> Iterator[Problem]:
    """Yields what lets more people into the volume than its list of clients looks like."""
    ganesha = config.nfs.server != "kernel"
    given = ["no_root_squash"] if ganesha else config.nfs.options.split(",")
    wide = [client for client in config.nfs.clients if _is_wide(client)]
    if wide and _keeps_root(given):
        them = " and ".join(wide)
        yield Problem(
            "nfs.clients",
            ", ".join(map(shown, config.nfs.clients)),
            f"root of each machine of {them}, and of a container there that leaves by its address, "
            f"is root in the volume (no_root_squash): it may put a set-uid program there",
            "name the clients one by one" + ("" if ganesha else ", or use root_squash"),
        )
    if "insecure" in given:
        yield Problem(
            "nfs.options",
            shown(config.nfs.options),
            "insecure: with sec=sys every user of a client passes for any other one, as the server "
            "takes requests from ports that aren't root's alone",
            "take it out",
        )


def _keeps_root(options: Sequence[str]) -> bool:
    """The last word counts, as for exportfs."""
    said = [word for word in options if word in ("root_squash", "no_root_squash")]
    return said[-1:] == ["no_root_squash"] and "all_squash" not in options


def _is_wide(client: str) -> bool:
    """Tells whether a client of exports(5) is more than one machine; a netgroup is a list of
    names."""
    if not client.startswith("@") and any(char in client for char in "*?["):
        return True
    try:
        return ipaddress.ip_network(client, strict=False).num_addresses > 1
    except ValueError:
        return False


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
    known = _address(address)
    if known is None:
        name = address.lower().removesuffix(".")
        return name.partition(".")[0] in _OWN_NAMES or name.endswith(".localhost")
    return known.is_loopback or known.is_unspecified


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Returns the address that a resolver makes of the text without asking anybody."""
    try:
        known = ipaddress.ip_address(text)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(text))  # 0x7f.1, say
        except OSError:
            return None
    mapped = known.ipv4_mapped if isinstance(known, ipaddress.IPv6Address) else None
    return known if mapped is None else mapped


def in_the_clear(config: Config, environ: Mapping[str, str] = TAKEN) -> Iterator[Problem]:
    """Yields each address of another machine to which an ACL token would go as it is; `environ` has
    CONSUL_* and NOMAD_*, which count where the file says nothing."""
    consul, nomad = config.consul, config.nomad
    told = environ.get("CONSUL_HTTP_ADDR")
    yield from _plain(
        "consul.addresses", consul.addresses or ((told,) if told else ()),
        has_token=bool(consul.token_file or environ.get("CONSUL_HTTP_TOKEN")),
        tls=_has_tls(consul, "CONSUL", environ),
    )  # fmt: skip
    address = nomad.address or environ.get("NOMAD_ADDR")
    if nomad.enabled:
        yield from _plain(
            "nomad.address", (address,) if address else (),
            has_token=bool(nomad.token_file or environ.get("NOMAD_TOKEN")),
            tls=_has_tls(nomad, "NOMAD", environ),
        )  # fmt: skip


def _has_tls(access: ConsulAccess | NomadAccess, program: str, environ: Mapping[str, str]) -> bool:
    """Tells whether an address without a scheme is https, as the gateways have it."""
    names = (f"{program}_CACERT", f"{program}_CLIENT_CERT")
    return bool(access.ca_cert or access.client_cert or any(map(environ.get, names)))


def _plain(key: str, addresses: Sequence[str], *, has_token: bool, tls: bool) -> Iterator[Problem]:
    for text in addresses if has_token else ():
        parts = urlsplit(text if "://" in text else f"{'https' if tls else 'http'}://{text}")
        if parts.scheme == "http" and not _is_everybodys(parts.hostname or ""):
            yield Problem(
                key,
                shown(text),
                "is another machine's and plain HTTP: everybody on the way can read the ACL token",
                "ask this node's own agent at 127.0.0.1, or give an https:// address (ca_cert)",
            )


def _mount_points(config: Config) -> Iterator[Problem]:
    """Without a path it is the live tree that has to be one, and a subvolume is one to mountd."""
    if config.nfs.server != "kernel" or config.node not in config.nodes:
        return
    for text in config.nfs.options.split(","):
        name, _, path = text.partition("=")
        if name in ("mp", "mountpoint") and path and not is_mount_point(path):
            yield Problem(
                "nfs.options",
                shown(config.nfs.options),
                f"{path} is no mount point now: with {shown(text)} mountd would export nothing",
                "mount it, or take the option out",
            )


def is_mount_point(path: str) -> bool:
    """Judges by the rule of mountd (support/misc/mountpoint.c of nfs-utils)."""
    try:
        own, above = os.lstat(path), os.lstat(f"{path}/..")
    except OSError:
        return False
    return own.st_dev != above.st_dev or own.st_ino == above.st_ino


def _files(config: Config) -> Iterator[tuple[Problem, bool]]:
    """Yields with each problem whether it is certain that it can't work."""
    tables = {"consul": config.consul, "nomad": config.nomad}
    if not config.nomad.enabled:
        del tables["nomad"]
    for table, access in tables.items():
        for key in ("token_file", *TLS_FILES):
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
    like = much_like(config, config.node)
    if like:
        yield Problem(
            "node",
            shown(config.node),
            f"this host is none of the storage nodes ({names(config)}), so that it counts as a "
            f"client; but its name is much like {like[0]}",
            f'if it is that node, rename [{dotted("nodes", like[0])}], or set node = "{like[0]}"',
            ("nodes",),
        )
