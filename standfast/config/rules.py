"""What must be true between keys. A broken rule is refused with the values, never adjusted.

The first paragraph of each rule's docstring is what the reference prints.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from pathlib import Path

from standfast.config.consul import ConsulAccess
from standfast.config.model import Config, LeaseTiming
from standfast.config.nomad import NomadAccess
from standfast.config.problems import Problem, dotted, shown

# Room for the last request's way and the kernel's timers, seconds.
MARGIN_S = 1.0
# sun_path holds 108 bytes with the terminating zero.
MOST_SOCKET_BYTES = 107
ALIKE = 0.7
"""Of two names: one may be the other, mistyped."""
SOCKET_NAME = "agent.sock"
_SNAPSHOT_BASE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,200}$")


def check(config: Config) -> list[Problem]:
    """Returns every broken rule of one volume."""
    return [problem for rule in RULES for problem in rule(config)]


def check_together(configs: Sequence[Config]) -> list[tuple[Config, Problem]]:
    """Returns every conflict between volumes of one node, reported at the later one."""
    conflicts = []
    for first, second in combinations(configs, 2):
        conflicts += [(second, problem) for problem in _conflicts(first, second)]
    return conflicts


def least_wait_s(timing: LeaseTiming) -> float:
    """Returns the shortest `lease.wait` that the timing rule accepts, rounded up to 10 ms."""
    exact = ((timing.length + timing.fence) * (1 + timing.drift) + MARGIN_S) / (1 - timing.drift)
    return math.ceil(round(exact * 100, 6)) / 100


def timing_rule(config: Config) -> Iterator[Problem]:
    """`wait * (1 - drift) >= (length + fence) * (1 + drift) + 1 s`: a successor never opens
    before the last holder is cut off."""
    timing = config.lease
    left = timing.wait * (1 - timing.drift)
    right = (timing.length + timing.fence) * (1 + timing.drift) + MARGIN_S
    # The smallest accepted value, as printed, has to be accepted when typed in.
    if left < right - 1e-9:
        yield Problem(
            "lease.wait",
            shown(timing.wait),
            f"breaks wait*(1-drift) >= (length+fence)*(1+drift) + 1 s: {left:.3f} < {right:.3f} "
            f"with length {timing.length:g}, fence {timing.fence:g}, drift {timing.drift:g}",
            f"set lease.wait to at least {least_wait_s(timing):g}, or shorten length or fence",
            ("lease.length", "lease.fence", "lease.drift"),
        )


def heartbeat_rule(config: Config) -> Iterator[Problem]:
    """`length >= 2 * (heartbeat + request_timeout)`: one lost heartbeat doesn't end the lease."""
    timing = config.lease
    least = 2 * (timing.heartbeat + timing.request_timeout)
    if timing.length < least - 1e-9:
        yield Problem(
            "lease.length",
            shown(timing.length),
            f"breaks length >= 2*(heartbeat+request_timeout): {timing.length:g} < {least:g} with "
            f"heartbeat {timing.heartbeat:g}, request_timeout {timing.request_timeout:g}",
            f"set lease.length to at least {least:g}, or shorten heartbeat or request_timeout",
            ("lease.heartbeat", "lease.request_timeout"),
        )


def replication_rule(config: Config) -> Iterator[Problem]:
    """`replication.interval <= max_data_loss / 2`: one late or failed cycle must not block a
    failover for want of a recent snapshot."""
    if config.replication.interval > config.max_data_loss / 2:
        yield Problem(
            "replication.interval",
            shown(config.replication.interval),
            f"must be at most half of max_data_loss ({config.max_data_loss:g} s), or one late "
            "cycle blocks every failover",
            f"set it to at most {config.max_data_loss / 2:g}, or raise max_data_loss",
            ("max_data_loss",),
        )


def nodes_rule(config: Config) -> Iterator[Problem]:
    """There is at least one `[nodes.NAME]`, each with an address of its own; `node` and
    `preferred` are among them."""
    if not config.nodes:
        yield Problem(
            "nodes",
            "",
            "no storage node is given",
            'add one: [nodes.NAME] with address = "192.168.1.2"',
        )
        return
    for key, name in (("node", config.node), ("preferred", config.preferred)):
        if name and name not in config.nodes:
            like = much_like(config, name)
            yield Problem(
                key,
                shown(name),
                f"is not one of the nodes ({names(config)})",
                (f"did you mean {like[0]}? If not, " if like else "use one of them or ")
                + f"add [{dotted('nodes', name)}]",
                ("nodes",),
            )
    yield from _duplicate_addresses(config)


def live_path_rule(config: Config) -> Iterator[Problem]:
    """`paths.live` has a plain last part: the snapshots are named after it."""
    if not _SNAPSHOT_BASE.match(config.base):
        yield Problem(
            "paths.live",
            shown(config.paths.live),
            "its last part names the snapshots and has letters, digits, dots, dashes and "
            "underscores only",
            'use a path like "/persist/services"',
        )


def paths_rule(config: Config) -> Iterator[Problem]:
    """`paths.live`, `standby`, `bind`, `state` and `run` neither equal nor contain each other;
    `snapshots` may contain the others but lies in none of them."""
    paths = {
        name: getattr(config.paths, name) for name in ("live", "standby", "bind", "state", "run")
    }
    for (first, path), (second, other) in combinations(paths.items(), 2):
        if _overlap(path, other):
            yield _path_problem(second, other, first, path)
    own = config.paths.snapshots
    for name, path in paths.items():
        if own.is_relative_to(path):
            yield _path_problem("snapshots", own, name, path)


def socket_rule(config: Config) -> Iterator[Problem]:
    """`paths.run` is short enough for a unix socket below it."""
    length = len(str(config.run_dir / SOCKET_NAME).encode("utf-8", "surrogateescape"))
    if length > MOST_SOCKET_BYTES:
        yield Problem(
            "paths.run",
            shown(config.paths.run),
            f"the socket below it would have a path of {length} bytes, and the kernel takes "
            f"{MOST_SOCKET_BYTES}",
            f"shorten it by {length - MOST_SOCKET_BYTES}",
        )


def consul_rule(config: Config) -> Iterator[Problem]:
    """`consul.client_cert` and `consul.client_key` are given together."""
    yield from _both_or_none("consul", config.consul)


def nomad_rule(config: Config) -> Iterator[Problem]:
    """`nomad.client_cert` and `nomad.client_key` are given together."""
    yield from _both_or_none("nomad", config.nomad)


def clients_rule(config: Config) -> Iterator[Problem]:
    """`nfs.clients` names at least one client."""
    if not config.nfs.clients:
        yield Problem(
            "nfs.clients",
            "[]",
            "nobody could mount the volume",
            'name a network or host, like ["192.168.1.0/24"]',
        )


def mount_options_rule(config: Config) -> Iterator[Problem]:
    """`client.options` is a hard NFS 4.1 or 4.2 mount: a soft one tells programs that a write
    failed which a failover would have carried out."""
    given = config.client.options.split(",")
    version = next((text.partition("=")[2] for text in given if text.startswith(("vers=",
                    "nfsvers="))), None)  # fmt: skip
    if version not in ("4.1", "4.2"):
        yield Problem(
            "client.options",
            shown(config.client.options),
            "must name the version: 4.0 and older can't tell a server that recovery is over",
            "add vers=4.2",
        )
    for word in ("soft", "softerr"):
        if word in given:
            yield Problem(
                "client.options",
                shown(config.client.options),
                f"{word} gives programs errors instead of letting them wait for a failover",
                "use hard",
            )


def binds_rule(config: Config) -> Iterator[Problem]:
    """`client.binds` lie outside `paths.bind`: what is below it comes and goes with the mount."""
    for text in config.client.binds:
        if _overlap(Path(text), config.paths.bind):
            yield Problem(
                "client.binds",
                shown(text),
                f"overlaps with paths.bind ({config.paths.bind})",
                "name the targets of bind mounts elsewhere",
                ("paths.bind",),
            )


RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    timing_rule,
    heartbeat_rule,
    replication_rule,
    nodes_rule,
    live_path_rule,
    paths_rule,
    socket_rule,
    consul_rule,
    nomad_rule,
    clients_rule,
    mount_options_rule,
    binds_rule,
)


def names(config: Config) -> str:
    """Returns the storage nodes for a message."""
    return ", ".join(sorted(config.nodes)[:20])


def much_like(config: Config, name: str) -> list[str]:
    """Returns the storage nodes that a name is much like."""
    return [known for known in sorted(config.nodes) if _alike(known, name)]


def _alike(name: str, other: str) -> bool:
    """Also where one of them has a domain."""
    name, other = name.lower(), other.lower()
    return _are_close(name, other) or _are_close(name.partition(".")[0], other.partition(".")[0])


def _are_close(name: str, other: str) -> bool:
    """Hosts that are numbered differ by their numbers, and on purpose."""
    if re.findall(r"\d+", name) != re.findall(r"\d+", other):
        return False
    return difflib.SequenceMatcher(None, name, other).ratio() >= ALIKE


def _both_or_none(table: str, access: ConsulAccess | NomadAccess) -> Iterator[Problem]:
    if (access.client_cert is None) != (access.client_key is None):
        given, other = ("client_cert", "client_key")
        if access.client_cert is None:
            given, other = other, given
        yield Problem(
            f"{table}.{given}",
            shown(getattr(access, given)),
            f"is of no use without {table}.{other}",
            f"add {table}.{other}, or leave both out",
            (f"{table}.{other}",),
        )


def _duplicate_addresses(config: Config) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for name, node in sorted(config.nodes.items()):
        # Nodes on one address are told apart by their probe ports in no way that NFS clients use.
        key = _canonical(node.address)
        if key in seen:
            yield Problem(
                dotted("nodes", name, "address"),
                shown(node.address),
                f"is also the address of node {seen[key]}",
                "give each node its own",
                (dotted("nodes", seen[key], "address"),),
            )
        seen.setdefault(key, name)


def _canonical(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address.lower().removesuffix(".")


def _path_problem(name: str, path: Path, other_name: str, other: Path) -> Problem:
    relation = (
        "is the same as" if path == other
        else "lies inside" if path.is_relative_to(other)
        else "contains"
    )  # fmt: skip
    return Problem(
        f"paths.{name}",
        shown(path),
        f"{relation} paths.{other_name} ({other})",
        "choose directories that don't contain each other",
        (f"paths.{other_name}",),
    )


def _overlap(path: Path, other: Path) -> bool:
    return path.is_relative_to(other) or other.is_relative_to(path)


def _conflicts(first: Config, second: Config) -> Iterator[Problem]:
    if first.service == second.service:
        yield Problem(
            "consul.service",
            shown(second.service),
            f"is also the service of volume {first.volume}",
            "give each volume its own",
        )
    pairs = (
        ("nfs.port", first.nfs.port, second.nfs.port),
        ("fence.backend", first.fence.backend, second.fence.backend),
    )
    for key, theirs, mine in pairs:
        # What `auto` is turns out on the node; there `fence.choice.settle` refuses another one.
        if mine != theirs and "auto" not in (mine, theirs):
            yield Problem(
                key,
                shown(mine),
                f"is {shown(theirs)} for volume {first.volume}, and a node has one NFS server "
                "and one fence for all its volumes",
                "give each volume the same",
            )
    if (
        first.nomad.enabled
        and second.nomad.enabled
        and first.nomad.meta_key == second.nomad.meta_key
    ):
        yield Problem(
            "nomad.meta_key",
            shown(second.nomad.meta_key),
            f"is also the node meta of volume {first.volume}, whose primary may be another node",
            "give each volume its own",
        )
    for mine in ("live", "standby", "bind"):
        path = getattr(second.paths, mine)
        for theirs in ("live", "standby", "bind"):
            other = getattr(first.paths, theirs)
            if _overlap(path, other):
                yield _between(second, mine, first, theirs)
    for config, other in permutations((first, second)):
        for theirs in ("live", "standby", "bind"):
            if config.paths.snapshots.is_relative_to(getattr(other.paths, theirs)):
                yield _between(config, "snapshots", other, theirs)
    if (first.paths.snapshots, first.base) == (second.paths.snapshots, second.base):
        yield _between(second, "snapshots", first, "snapshots")


def _between(config: Config, mine: str, other: Config, theirs: str) -> Problem:
    return Problem(
        f"paths.{mine}",
        shown(getattr(config.paths, mine)),
        f"overlaps with paths.{theirs} ({getattr(other.paths, theirs)}) of volume {other.volume}",
        "give each volume its own directories",
    )
