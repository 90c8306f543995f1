"""What is in the way of a setup, each with its fix: asked before anything is changed. Pure."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from standfast.btrfs.versions import OLDEST_KERNEL
from standfast.consul.node_name import misnamed
from standfast.node.obstacle import Weight
from standfast.setup.observation import Observed
from standfast.setup.wanted import Wanted

LANDLOCK_KERNEL = (5, 19)
MARK = "standfast"
"""In every file of ours."""
PACKAGES = {
    "btrfs": "btrfs-progs",
    "consul": "the consul command (HashiCorp's package, or your distribution's)",
    "ipset": "ipset and iptables",
    "mount.nfs4": "nfs-common (nfs-utils)",
    "nft": "nftables (or ipset and iptables)",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
}
"""Programs by what has them, as Debian calls it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What was found, and what mends it."""

    check: str
    evidence: str
    fix: str
    grave: bool = True
    """False: it is told, and setup goes on."""

    def document(self) -> dict[str, Any]:
        return {"check": self.check, "evidence": self.evidence, "fix": self.fix,
                "grave": self.grave}  # fmt: skip


def problems(seen: Observed, wanted: Wanted, *, replace_config: bool) -> list[Problem]:
    """Returns all at once, those that end it first. `replace_config`: the operator has said that a
    different configuration may be replaced."""
    found = [
        *_machine(seen, complete=wanted.complete),
        *_consul(seen, wanted),
        *_files(seen, wanted, replace_config=replace_config),
        *_places(seen),
        *_server(seen, wanted),
    ]
    return sorted(found, key=lambda problem: not problem.grave)


def _machine(seen: Observed, *, complete: bool) -> Iterator[Problem]:
    if not seen.has_systemd:
        yield Problem("systemd", "systemd is not what runs this machine",
                      "Standfast's processes are its units: boot with it")  # fmt: skip
    if not complete:
        what = "this is a storage node, and the installation has the units of a client alone"
        yield Problem("units", what, "install the package `standfast`, too")
    for name in seen.lacking:
        yield Problem("programs", f"there is no `{name}`", f"install {PACKAGES.get(name, name)}")
    if seen.kernel < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        yield Problem("kernel", f"this is Linux {_dotted(seen.kernel)}",
                      f"boot {oldest} or later")  # fmt: skip
    elif seen.kernel < LANDLOCK_KERNEL:
        yield Problem(
            "kernel",
            f"this is Linux {_dotted(seen.kernel)}: what is received is not confined by Landlock",
            "nothing; from Linux 5.19 on it is",
            grave=False,
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version)) or "of no known version"


def _consul(seen: Observed, wanted: Wanted) -> Iterator[Problem]:
    config = wanted.config
    if seen.consul.trouble is not None:
        fix = "start this node's Consul agent; or [consul] in the configuration, and --token FILE"
        yield Problem("consul", seen.consul.trouble, fix)
    elif wanted.is_storage and (wrong := misnamed(config.node, seen.consul.name)) is not None:
        fix = (
            f"name the nodes as `consul members` does, in [nodes] on every node; or --node, if "
            f"this machine is one of {', '.join(sorted(config.nodes))}"
        )
        yield Problem("name", wrong, fix)
    path = config.consul.token_file
    if wanted.token is not None and path is None:
        fix = '[consul] in the configuration: token_file = "/etc/standfast/token"'
        yield Problem("token", "a token was given, and no place for it is configured", fix)
    if path is not None and wanted.token is None and seen.token is None:
        yield Problem("token", f"{path} is not there", "--token FILE, or - to give it on stdin")


def _files(seen: Observed, wanted: Wanted, *, replace_config: bool) -> Iterator[Problem]:
    source = wanted.config.source
    there = seen.there.get(source)
    if there is not None and there != wanted.text and not replace_config:
        fix = f"compare the two; --yes replaces {source}, and keeps it beside the new one"
        yield Problem("config", f"{source} is there, and says something else", fix)
    for path, text in wanted.units.items():
        there = seen.there.get(path)
        ours = there is None or there == text or seen.installed.wrote(path, there)
        if not ours and MARK not in f"{path.name} {there}".lower():
            yield Problem(
                "units", f"{path} is somebody else's", "move it away, if nothing needs it"
            )
    for path in seen.shadowed:
        fix = f"rm {path} (and a package's file counts from the next daemon-reload on)"
        yield Problem("units", f"{path} hides that of the package", fix)
    for link, leads in seen.leads.items():
        if leads == "":
            yield Problem("programs", f"{link} is there, and is no link", "move it away")
    for text in seen.others:
        yield Problem("volumes", text, "what the message says, in one of the two configurations")
    if seen.foreign_mount is not None:
        yield Problem(
            "mount",
            f"{seen.foreign_mount} mounts {wanted.config.paths.bind}: no unit is written for it",
            "nothing, if it mounts the volume hard and by NFS 4.1 or 4.2",
            grave=False,
        )


def _places(seen: Observed) -> Iterator[Problem]:
    for path, mode in seen.modes.items():
        if not stat.S_ISDIR(mode):
            yield Problem("directories", f"{path} is no directory", "move it away")


def _server(seen: Observed, wanted: Wanted) -> Iterator[Problem]:
    unit = wanted.config.nfs.unit
    for obstacle in seen.obstacles:
        grave = obstacle.weight is not Weight.TOLD
        yield Problem(obstacle.check, obstacle.evidence, obstacle.fix, grave)
    if seen.server.active and seen.server.exports_others and not seen.server.ours:
        yield Problem(
            "nfs-server",
            f"{unit} runs and serves something else: it goes on, and from now on whoever starts it "
            f"asks the guard. Without a primary's role here it won't start again",
            f"move those exports to another node before this one reboots, or `standfast promote` "
            f"here: Standfast has {unit} run on the primary alone",
            grave=False,
        )
