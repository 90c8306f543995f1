"""What doctor says of a client's mount: cause, evidence and fix, without touching the mount itself.

Invariant: each look is bounded, and made by a child process where it may hang. `examine` is pure.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from standfast.assembly.client import parts_of
from standfast.assembly.parts import parts
from standfast.clients import notes
from standfast.clients.decide import CHANGES, Action, Decision, decide
from standfast.clients.loop import look as observe
from standfast.clients.observation import Observed, Role, Server, left_behind
from standfast.clients.ports import Namespace, Use
from standfast.config.model import Config
from standfast.doctor.finding import Finding
from standfast.errors import StandfastError
from standfast.mounts.mounts import KernelMounts
from standfast.mounts.processes import ProcProcesses
from standfast.nfs.rpc_null import null_call
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from standfast.system.mountinfo import Mount, canonical, part_of

ASK_S = 3.0
MAX_NAMED = 5
# Where mount(8) looks for mount.nfs4, whatever PATH says; the first two on NixOS.
HELPERS = "/run/wrappers/bin:/run/current-system/sw/bin:/usr/sbin:/sbin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Facts:
    """Holds what was read of this node, as a client of the volume."""

    observed: Observed
    decision: Decision
    name: str
    """Host name that the units mount from."""
    name_gives: frozenset[str]
    """What DNS says it is; empty: nothing."""
    no_answer: str | None
    """Why the server can't be reached over the network; None: it answers, or there is none."""
    others: tuple[tuple[Namespace, tuple[Mount, ...]], ...] = ()
    """Other mount namespaces that show an earlier mount, with those mounts."""
    old_users: tuple[Use, ...] = ()
    """Processes with files of a mount that was let go of."""
    hanging: tuple[Use, ...] = ()
    has_helper: bool = True
    """mount.nfs4 is installed."""


def examine(facts: Facts, config: Config) -> list[Finding]:
    """Makes every check; none for a node that isn't a client."""
    if facts.decision.reason is Reason.NOT_A_CLIENT:
        return []
    findings = [_mount(facts, config)]
    if facts.observed.role is Role.NONE:
        findings += [_tools(facts), _server(facts, config), _dns(facts)]
        findings += [_options(facts)]
    return [*findings, _binds(facts), _namespaces(facts), _handles(facts), _hanging(facts)]


_FIXES = {
    Reason.PATH_TAKEN: "umount {path}, then `standfast remount`",
    Reason.NO_SERVER: "`standfast status`: somebody has to serve first",
    Reason.SERVER_AWAY: "the network to it; its journal; `standfast status`",
    Reason.MOUNT_FAILS: "nfs.clients in the configuration, and `exportfs -v` on the server",
    Reason.OLDER_EPOCH: "docs/reason-codes.md: older-epoch",
}
_WORDS = {
    Reason.SERVER_MOVED: "a mount of another server is still there: ",
    Reason.TREE_REPLACED: "stale: ",
    Reason.STALE_MOUNT: "stale: ",
}


def _mount(facts: Facts, config: Config) -> Finding:
    decision = facts.decision
    well = decision.action in (Action.NOTHING, Action.ADOPT, Action.REBIND)
    if well:
        return Finding("mount", True, decision.sentence)
    evidence = _WORDS.get(decision.reason, "") + decision.sentence
    fix = _FIXES.get(decision.reason, "`standfast remount`").format(path=config.paths.bind)
    if decision.action in CHANGES:
        fix += f"; if that repeats: systemctl status standfast-watch@{config.volume}"
    return Finding("mount", False, evidence, fix)


def _tools(facts: Facts) -> Finding:
    if facts.has_helper:
        return Finding("nfs-tools", True, "mount.nfs4 is installed")
    return Finding("nfs-tools", False, "there is no mount.nfs4", "install nfs-common (nfs-utils)")


def _server(facts: Facts, config: Config) -> Finding:
    service = facts.observed.service
    if not isinstance(service, Server):
        return Finding("server", False, service.sentence, "`standfast status`")
    if facts.no_answer is None and service.strangers:
        them = " and ".join(service.strangers)
        return Finding(
            "server",
            False,
            f"{them} may serve next, and {config.source} doesn't have it in [nodes]: the mount "
            f"would stay with {service.node}, which is gone then",
            "the storage nodes' [nodes] in that file, too",
        )
    if facts.no_answer is None:
        return Finding("server", True, f"{service.node} ({service.address}) answers NFS")
    return Finding(
        "server",
        False,
        f"can't mount: {facts.no_answer}",
        f"firewalls between; port {config.nfs.port} there: `standfast status` on {service.node}",
    )


def _dns(facts: Facts) -> Finding:
    service, given = facts.observed.service, ", ".join(sorted(facts.name_gives))
    if not facts.name_gives:
        return Finding(
            "dns",
            False,
            f"{facts.name} does not resolve: the next access through the automount, and the next "
            f"boot, can't mount",
            "forward .consul to the Consul agent (port 8600): systemd-resolved, dnsmasq; handlers "
            "mount by address all the same",
        )
    if isinstance(service, Server) and not facts.name_gives & service.addresses:
        return Finding(
            "dns",
            False,
            f"{facts.name} is {given}, and {service.node} ({service.address}) serves",
            "a cache between here and Consul keeps old answers; ask the agent directly",
        )
    return Finding("dns", True, f"{facts.name} is {given}")


def _options(facts: Facts) -> Finding:
    top = facts.observed.top
    if top is None or not top.is_nfs:
        return Finding("options", True, "nothing is mounted just now")
    words = top.options.split(",")
    version = top.option("vers") or "?"
    wrong: list[str] = [word for word in ("soft", "softerr") if word in words]
    if version not in ("4.1", "4.2"):
        wrong.append(f"vers={version}")
    if not wrong:
        return Finding("options", True, f"hard, NFS {version}")
    return Finding(
        "options",
        False,
        f"mounted with {', '.join(wrong)}: programs get errors, or wait long, at a failover",
        "vers=4.2,hard instead of these among the options of the unit (or fstab), then mount anew",
    )


def _binds(facts: Facts) -> Finding:
    left = _of_earlier(facts.observed.elsewhere, facts.observed)
    if not left:
        return Finding("binds", True, "no bind mount shows an earlier server")
    points = sorted({mount.point for mount in left})
    return Finding(
        "binds",
        False,
        "; ".join(f"{mount.point} still shows {mount.address}" for mount in left[:MAX_NAMED]),
        f"for each: umount -l, mount --bind again; or client.binds = {points!r} and "
        f"`standfast remount`",
    )


def _of_earlier(mounts: Sequence[Mount], observed: Observed) -> tuple[Mount, ...]:
    """Returns those that show an earlier server, or tree; with nothing mounted here, only the
    address tells."""
    service, top = observed.service, observed.top
    if not isinstance(service, Server) or not service.addresses:
        return ()
    if top is not None and top.is_nfs:
        return left_behind(replace(observed, elsewhere=tuple(mounts)), service, top)
    return tuple(
        mount for mount in mounts if canonical(mount.address or "") not in service.addresses
    )


def _namespaces(facts: Facts) -> Finding:
    if not facts.others:
        return Finding("containers", True, "no other mount namespace shows an earlier server")
    told = []
    for space, mounts in facts.others[:MAX_NAMED]:
        who = ", ".join(space.units) or f"pid {', '.join(map(str, space.pids))}"
        told.append(f"{who}: {', '.join(mount.point for mount in mounts)}")
    return Finding(
        "containers",
        False,
        f"an earlier server is still mounted in {'; '.join(told)}",
        "restart these services or containers: their mounts can't be changed from outside",
    )


def _handles(facts: Facts) -> Finding:
    none = "no program holds files of an earlier mount"
    some = "files of an earlier mount are open in "
    fix = "restart them; client.restart_units does it by itself"
    return _no_users("handles", facts.old_users, none, some, fix)


def _hanging(facts: Facts) -> Finding:
    none, some = "no process hangs in NFS", "in state D inside NFS: "
    fix = "they go on when their server answers; of an earlier one: kill -9, restart the service"
    return _no_users("hanging", facts.hanging, none, some, fix)


def _no_users(check: str, users: Sequence[Use], none: str, some: str, fix: str) -> Finding:
    """Well when there are no users; `some` goes before their names."""
    if not users:
        return Finding(check, True, none)
    return Finding(check, False, some + _named(users), fix)


def _named(users: Sequence[Use]) -> str:
    text = ", ".join(
        f"{use.name} (pid {use.pid}{f', {use.unit}' if use.unit else ''}: {use.target})"
        for use in users[:MAX_NAMED]
    )
    return f"{text} and {len(users) - MAX_NAMED} more" if len(users) > MAX_NAMED else text


def facts_here(config: Config) -> Facts:
    """Looks at this machine; StandfastError, OSError."""
    parts = parts_of(config)
    observed = observe(parts)
    service = observed.service
    mounts = KernelMounts(config.run_dir)
    name = config.server_name
    no_answer = None
    if isinstance(service, Server) and service.addresses:
        address = min(service.addresses)
        no_answer = null_call(address, config.nfs.port, Deadline.after(ASK_S))
    processes = ProcProcesses()
    shown = {mount.id for mount in mounts.here()}
    gone = [mount_id for mount_id in notes.let_go(config.run_dir) if mount_id not in shown]
    return Facts(
        observed,
        decide(observed, config),
        name,
        mounts.resolve(name, Deadline.after(ASK_S)),
        no_answer,
        others=_earlier(mounts.namespaces(), observed, config),
        old_users=tuple(use for use in processes.holders(gone)),
        hanging=tuple(processes.hanging()),
        has_helper=shutil.which("mount.nfs4", path=HELPERS) is not None,
    )


def _earlier(
    spaces: Sequence[Namespace], observed: Observed, config: Config
) -> tuple[tuple[Namespace, tuple[Mount, ...]], ...]:
    """Returns the namespaces that show an earlier server or tree, with the mounts that do."""
    export = str(config.paths.live)
    earlier = []
    for space in spaces:
        theirs = [mount for mount in space.mounts if part_of(mount, export) is not None]
        old = _of_earlier(theirs, observed)
        if old:
            earlier.append((space, old))
    return tuple(earlier)


def look(config: Config) -> list[Finding]:
    """Looks at this node and judges it; nothing in the demo, or where it is no client."""
    if not parts().is_machine:
        return []
    try:
        return examine(facts_here(config), config)
    except (StandfastError, OSError) as error:
        return [Finding("mount", False, f"not known: {error}", "run it as root")]
