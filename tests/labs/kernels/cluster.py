"""Standfast installed on the kernel lab: configured, keyed, with n1 as the first primary.

Helpers read as words; times are the host's monotonic seconds. Nothing of the machines is set up
for the product beyond what its own installation asks for: what is missing shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.labs.kernels.lab import KernelLab
from tests.labs.kernels.node import VirtualMachine
from tests.labs.shared.cluster import (
    AGENT,
    DEFAULT,
    EXPORT,
    LEASE,
    PRIMARY,
    RECEIVER,
    UNITS,
    VOLUME,
    Installed,
    Timing,
)

__all__ = [
    "AGENT",
    "DEFAULT",
    "EXPORT",
    "LEASE",
    "PRIMARY",
    "RECEIVER",
    "VOLUME",
    "KernelCluster",
    "Timing",
]
MOUNTED = "/data/services"
AUTOMOUNT, MOUNT = "data-services.automount", "data-services.mount"
SERVER = f"{VOLUME}.service.consul"


class KernelCluster(Installed[VirtualMachine]):
    """A kernel lab with Standfast on it: `create`, then `start`, then `begin`."""

    server = "kernel"
    interval_s = 5
    lab: KernelLab

    def __init__(
        self,
        lab: KernelLab,
        timing: Timing = DEFAULT,
        extra: str = "",
        binds: Sequence[str] | None = None,
    ) -> None:
        """`extra`: top-level lines of the configuration. `binds`: every node is a client that
        follows by itself, and on the clients proper client.binds names these."""
        super().__init__(lab, timing, extra)
        self.binds = binds

    def create(self) -> None:
        """Make the machines and configure the product on them, before anything boots."""
        self.lab.create()
        for node in self.storage:
            self.configure(node)
            others = [other for other in self.storage if other is not node]
            node.authorized_keys(others, f"standfast receive {VOLUME} --from {{}}")

    def start(self) -> None:
        """Boot everything; every storage node becomes a standby."""
        self.lab.boot(self.lab)
        self.lab.wait_for_leader()
        self.lab.together(self._enable, self.storage)
        if self.binds is not None:
            self.lab.together(lambda node: self.follow(node.name), self.lab)

    def _enable(self, node: VirtualMachine) -> None:
        node.sh("install -d -m 0700 /persist/services-standby; mkdir -p /data/services")
        self.start_units(node, f"{AGENT} {RECEIVER} {UNITS}")

    def begin(self) -> None:
        """n1 becomes the first primary, and every standby has a snapshot."""
        self.promote_first()
        self.lab.wait_for(
            lambda: all(
                # Not there while Consul doesn't answer in time.
                s["age_s"] is not None
                for s in self.status(PRIMARY).get("standbys", [{"age_s": None}])
            ),
            120.0,
            "every standby has a snapshot",
            interval_s=1.0,
        )

    # -- what Consul says of it ----------------------------------------------------------

    def service(self, ask: str) -> list[Mapping[str, Any]]:
        """The passing instances of the volume's service, as a node's Consul agent tells them."""
        instances = self[ask].consul_get(f"health/service/{VOLUME}?passing=1")
        return [instance["Service"] for instance in instances]

    def resolve(self, name: str) -> list[str]:
        """The server's addresses as a node's own resolver gives them; empty: none."""
        script = f"getent ahostsv4 {SERVER} | cut -d' ' -f1 | sort -u"
        return self[name].sh(script, check=False).split()

    # -- clients -------------------------------------------------------------------------

    def follow(self, name: str) -> None:
        """Make a running node a client as the product's documentation has it: configuration, the
        shipped mount units with the automount, watch and timer. Nobody waits for a turn: there is
        one client."""
        node = self[name]
        binds = [] if name in self.lab.storage else self.binds or []
        self.configure(node, f"[client]\nspread = 0\nbinds = {json.dumps(list(binds))}\n")
        self.standfast(name, "client", "units", "--install")
        node.sh(
            "mkdir -p /data/services; systemctl daemon-reload\n"
            f"systemctl enable -q --now {AUTOMOUNT} {UNITS}"
        )

    def mount_id(self, name: str, at: str = MOUNTED) -> str:
        """Number, source and kind of the NFS or other mount that is seen at a path; "" for none."""
        script = (
            'awk -v at="$1" \'$5 == at { for (i = 7; $i != "-"; i++); '
            'found = $1 " " $(i + 2) " " $(i + 1) } END { print found }\' /proc/self/mountinfo'
        )
        return self[name].run("/bin/bash", "-ec", script, "sh", at).stdout.strip()

    def mount(self, name: str, server: str = SERVER, at: str = MOUNTED, options: str = "") -> None:
        """A plain, hard NFSv4.1 mount on a node, as the runbook's clients have it."""
        more = f",{options}" if options else ""
        argv = ("mount", "-t", "nfs4", "-o", f"vers=4.1,hard{more}", f"{server}:{EXPORT}", at)
        self[name].run("mkdir", "-p", at)
        self[name].run(*argv, timeout_s=90.0)

    def unmount(self, name: str, at: str = MOUNTED) -> None:
        """Lazily, so that a dead server keeps nobody.

        The kernel takes leave of the server before umount returns, which takes minutes when that
        one doesn't answer; the mount is gone by then.
        """
        argv = ("timeout", "-s", "KILL", "10", "umount", "-l", at)
        self[name].run(*argv, timeout_s=60.0, check=False)

    def repair(self, timeout_s: float = 180.0) -> None:
        """Every node up, connected and thawed again; one primary, the rest standbys."""
        self.bring_up()
        self.wait_until_settled(timeout_s)
