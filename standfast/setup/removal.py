"""Taking Standfast off a node: what is there, who forbids it, and the steps. Pure.

Invariants: nothing that may be the only copy of data is a step: the volume, its snapshots and trees
kept aside are told. Files of others, and those of ours that somebody has changed, stay. The record
of what setup made, and the configuration, go last: a plan that was cut is made again from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from standfast.config.model import Config
from standfast.consul.volume_keys import keys_of
from standfast.errors import Refused, UsageError
from standfast.reasons import Reason
from standfast.setup.execute import Step
from standfast.text import some


class Do(StrEnum):
    """Every effect that a removal may have; `removal_steps` has one function for each."""

    PLAIN_EXPORT = "plain-export"
    STOP = "stop"
    UNMOUNT = "unmount"
    FENCE = "fence"
    UNEXPORT = "unexport"
    FILES = "files"
    BIND = "bind"
    NFS_SERVER = "nfs-server"
    LINES = "lines"
    KEYS = "keys"
    CONSUL = "consul"
    CLUSTER = "cluster"
    RUN = "run-files"
    STATE = "state"


@dataclass(frozen=True, slots=True)
class Ask:
    """What the operator wants."""

    cluster: bool = False
    keep_serving: bool = False
    package: bool = False
    """Files that a package has, /etc/standfast and the state are its own to take away."""
    forget: bool = True
    """State, configuration, token and keys go, too."""


@dataclass(frozen=True, slots=True)
class InConsul:
    """What Consul says of the volume."""

    trouble: str | None = None
    """Why it can't be asked; None: it can."""
    own: tuple[str, ...] = ()
    """Keys in which this node tells of itself."""
    registered: bool = False
    """The service, with this node's agent."""
    others: tuple[str, ...] = ()
    """Other nodes that have said that they are storage nodes, and haven't taken that back."""
    holder: str | None = None
    """Another node that holds the lease: its heartbeats go on."""
    keys: int = 0
    """Of the volume, all together."""
    foreign: tuple[str, ...] = ()
    """Other nodes whose agents have an entry of the service."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """One look at a node, for one volume."""

    config: Config
    last: bool
    """No other volume is left on this node: what all share goes, too."""
    role: str | None = None
    """How it is known that this node has the role; None: it hasn't."""
    fsid: str | None = None
    """Of the tree that it serves."""
    consul: InConsul = InConsul()
    units: tuple[str, ...] = ()
    """Of ours, active, failed or enabled."""
    mounted: str | None = None
    """What is mounted at the volume's path by us: `bind` or `nfs`."""
    fenced: bool = False
    exported: bool = False
    files: tuple[Path, ...] = ()
    """Files and links of ours, as they were written; drop-ins in /run among them."""
    altered: tuple[Path, ...] = ()
    """Files that were written by us, and say something else now."""
    was_enabled: tuple[str, ...] = ()
    """Units that setup disabled."""
    lines: int = 0
    """In authorized_keys, by which other nodes' keys may send here."""
    keys: tuple[Path, ...] = ()
    """This node's replication key, both halves."""
    run: tuple[Path, ...] = ()
    """What processes of this boot have told each other."""
    state: tuple[Path, ...] = ()
    """State, configuration and token."""
    unknown: tuple[str, ...] = ()
    """What could not be looked at, and why."""
    blind: str | None = None
    """Why it isn't known which processes of ours run; None: it is."""
    by_package: bool = False
    """A package has the guard, which stays."""
    export_taken: Path | None = None
    """Where the plain export would be, and somebody's file is."""
    data: tuple[tuple[str, str], ...] = field(default=())
    """What stays, and the command that deletes it."""

    @property
    def is_storage(self) -> bool:
        return self.config.node in self.config.nodes


def check(seen: Leaving, ask: Ask) -> None:
    """Raises Refused for what would take away what somebody uses; UsageError."""
    config, consul = seen.config, seen.consul
    if seen.role is not None and not ask.keep_serving:
        way_out = "`standfast switchover` (or `standfast demote`, with no successor) first"
        if not config.standbys or not consul.others:
            way_out += "; or --keep-serving, which goes on as a plain NFS server"
        raise Refused(
            Reason.SERVING, f"this node is the primary of {config.volume} ({seen.role}): {way_out}"
        )
    if seen.blind is not None:
        raise Refused(
            Reason.STILL_IN_USE, f"which of its processes run here is not known: {seen.blind}"
        )
    if ask.keep_serving:
        _check_keeps_serving(seen)
    if ask.cluster:
        _check_cluster(seen)


def _check_keeps_serving(seen: Leaving) -> None:
    config, consul = seen.config, seen.consul
    if config.nfs.server != "kernel":
        raise UsageError(
            "--keep-serving is for the kernel's server: nfs-ganesha exports a bind mount that only "
            "the agent makes. `standfast demote`, uninstall, and export by your ganesha.conf"
        )
    if not seen.last:
        raise Refused(
            Reason.STILL_IN_USE,
            f"this node has other volumes, and one NFS server with one fence for all of them: "
            f"uninstall those first (`standfast uninstall --volume ...`), {config.volume} last",
        )
    if seen.by_package:
        raise UsageError(
            "--keep-serving is for an installation of the wheel: the package's guard would refuse "
            "the plain server's next start. `standfast demote`, `apt purge standfast`, then export "
            f"{config.paths.live} in /etc/exports and start nfs-server"
        )
    if seen.export_taken is not None:
        raise Refused(
            Reason.STILL_IN_USE,
            f"{seen.export_taken} is somebody's: the plain export would be written there. Give it "
            f"another name, or take it away",
        )
    if seen.role is None or seen.fsid is None:
        raise Refused(
            Reason.NOT_PRIMARY,
            f"only the node that serves {config.volume} can go on serving it, and this one doesn't",
        )
    if consul.trouble is not None:
        raise Refused(
            Reason.STILL_IN_USE,
            f"whether other storage nodes are left is not known: {consul.trouble}",
        )
    if consul.others:
        raise Refused(Reason.STILL_IN_USE, _others(config, consul.others))


def _check_cluster(seen: Leaving) -> None:
    config, consul = seen.config, seen.consul
    if consul.trouble is not None:
        raise Refused(
            Reason.STILL_IN_USE, f"who still uses {config.volume} is not known: {consul.trouble}"
        )
    if consul.holder is not None:
        raise Refused(
            Reason.STILL_IN_USE,
            f"{consul.holder} holds the lease of {config.volume}, its heartbeats go on: "
            f"`standfast uninstall` there, in the end",
        )
    if consul.others:
        raise Refused(Reason.STILL_IN_USE, _others(config, consul.others))


def _others(config: Config, names: Sequence[str]) -> str:
    keys = " ".join(key for name in names for key in keys_of(config, name))
    return (
        f"other nodes are storage nodes of {config.volume} by their word in Consul "
        f"({', '.join(names)}): `standfast uninstall` there first. For one that is gone for good: "
        f"for k in {keys}; do consul kv delete $k; done"
    )


def plan(seen: Leaving, ask: Ask) -> tuple[Step, ...]:
    """Returns the steps, those too for which there is nothing to do."""
    config = seen.config
    steps = []
    if ask.keep_serving:
        said = f"export {config.paths.live} by /etc/exports.d/{config.volume}.exports, with the " \
               f"same fsid: clients notice nothing"  # fmt: skip
        steps.append(Step(Do.PLAIN_EXPORT, said))
    units = some(seen.units, 8) or "none of its units is active or enabled"
    steps.append(Step(Do.STOP, f"stop and disable {units}" if seen.units else units,
                      bool(seen.units)))  # fmt: skip
    if not ask.keep_serving:
        path = config.paths.bind
        said = f"unmount {path}" if seen.mounted else f"{path} is not mounted by it"
        steps.append(Step(Do.UNMOUNT, said, seen.mounted is not None))
    if seen.last:
        port = config.nfs.port
        said = f"take the firewall's rules for port {port} away" if seen.fenced else "no rules"
        steps.append(Step(Do.FENCE, said, seen.fenced))
    said = f"take the export of {config.paths.live} away" if seen.exported else "no export"
    steps.append(Step(Do.UNEXPORT, said, seen.exported))
    count = len(seen.files)
    said = f"delete {count} files and links that were put here" if count else "no files of its own"
    steps.append(Step(Do.FILES, said, bool(count)))
    if ask.keep_serving:  # a mount unit that went has taken it along
        steps.append(Step(Do.BIND, f"show {config.paths.live} at {config.paths.bind} as before"))
    steps += _server(seen, ask)
    steps += _rights(seen, ask)
    steps += _in_consul(seen, ask)
    names = some(list(map(str, seen.run)))
    steps.append(Step(Do.RUN, f"delete {names}" if names else "no files of this boot", bool(names)))
    if not ask.package:
        steps.append(_state(seen, ask))
    return tuple(steps)


def _server(seen: Leaving, ask: Ask) -> list[Step]:
    unit = seen.config.nfs.unit
    if ask.keep_serving:
        return [Step(Do.NFS_SERVER, f"have {unit} started at boot, and now if it isn't")]
    if not seen.last or not seen.is_storage:
        return []
    again = f"have {', '.join(seen.was_enabled)} started at boot again, as before"
    free = f"{unit} starts without a guard, as before"
    return [Step(Do.NFS_SERVER, again if seen.was_enabled else free, bool(seen.was_enabled))]


def _rights(seen: Leaving, ask: Ask) -> list[Step]:
    if not seen.is_storage or seen.config.replication.command:
        return []
    user = seen.config.replication.ssh_user
    said = f"delete {seen.lines} lines by which other nodes may send here, in {user}'s " \
           f"authorized_keys"  # fmt: skip
    steps = [Step(Do.LINES, said if seen.lines else "no lines in authorized_keys",
                  bool(seen.lines), may_fail=True)]  # fmt: skip
    if seen.keys and ask.forget and not ask.package:
        steps.append(Step(Do.KEYS, f"delete the replication key {seen.keys[0]}"))
    return steps


def _in_consul(seen: Leaving, ask: Ask) -> list[Step]:
    config, consul = seen.config, seen.consul
    steps = []
    told = bool(consul.own or consul.registered)
    if consul.trouble is not None:
        said = f"what this node said of itself stays in Consul: {consul.trouble}"
    else:
        said = "delete what this node said of itself" if told else "nothing is told of this node"
    steps.append(Step(Do.CONSUL, said, told or consul.trouble is not None, may_fail=True))
    if ask.cluster:
        prefix = config.key("")
        said = f"delete {consul.keys} keys below {prefix} and {config.client_key('')}"
        steps.append(Step(Do.CLUSTER, said, bool(consul.keys)))
    return steps


def _state(seen: Leaving, ask: Ask) -> Step:
    if not seen.state:
        return Step(Do.STATE, "no state, no configuration", pending=False)
    names = some(list(map(str, seen.state)), 4)
    if not ask.forget:
        return Step(Do.STATE, f"state and configuration stay: {names}", pending=False)
    return Step(Do.STATE, f"delete state and configuration: {names}")


def is_done(steps: Sequence[Step]) -> bool:
    """Tells whether there is nothing to take away; Consul that can't be asked is no reason to
    begin."""
    return not any(step.pending for step in steps if step.do is not Do.CONSUL)
