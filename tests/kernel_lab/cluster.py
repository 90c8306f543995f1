"""Standfast installed on the kernel lab: configured, keyed, with n1 as the first primary.

Helpers read as words; times are the host's monotonic seconds. Nothing of the machines is set up
for the product beyond what its own installation asks for: what is missing shows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.kernel_lab.lab import KernelLab
from tests.kernel_lab.node import Node
from tests.lab.cluster import AGENT, DEFAULT, LEASE, PRIMARY, VOLUME, Timing
from tests.machines.host import LabError

__all__ = ["AGENT", "DEFAULT", "EXPORT", "LEASE", "PRIMARY", "VOLUME", "Cluster", "Timing"]
EXPORT = "/persist/services"
MOUNTED = "/data/services"
AUTOMOUNT, MOUNT = "data-services.automount", "data-services.mount"
SERVER = f"{VOLUME}.service.consul"
INTERVAL_S = 5


def configuration(lab: KernelLab, node: Node, timing: Timing, extra: str = "") -> str:
    """A node's /etc/standfast/data-services.toml; only storage nodes are in [nodes], and a client
    goes by its host name."""
    addresses = ["127.0.0.1:8500", *(f"{n.address}:8500" for n in lab if n is not node)]
    nodes = "".join(
        f'[nodes.{name}]\naddress = "{lab[name].address}"\npriority = {100 - index}\n'
        for index, name in enumerate(lab.storage)
    )
    own = f'node = "{node.name}"\n' if node.name in lab.storage else ""
    return f"""\
cluster = "lab"
{own}preferred = "{PRIMARY}"
{extra}
[lease]
heartbeat = {timing.heartbeat}
request_timeout = {timing.request_timeout}
length = {timing.length}
fence = {timing.fence}
wait = {timing.wait}
[consul]
addresses = {json.dumps(addresses)}
[nfs]
server = "kernel"
clients = ["192.168.1.0/24"]
[replication]
interval = {INTERVAL_S}
ssh_key = "/root/.ssh/id_ed25519"
{nodes}"""


class Cluster:
    """A kernel lab with Standfast on it: `create`, then `start`, then `begin`."""

    def __init__(
        self,
        lab: KernelLab,
        timing: Timing = DEFAULT,
        extra: str = "",
        binds: Sequence[str] | None = None,
    ) -> None:
        """`extra`: top-level lines of the configuration. `binds`: every node is a client that
        follows by itself, and on the clients proper client.binds names these."""
        self.lab = lab
        self.binds = binds
        self.timing = timing
        self.extra = extra

    def __getitem__(self, name: str) -> Node:
        return self.lab[name]

    @property
    def storage(self) -> list[Node]:
        return [self.lab[name] for name in self.lab.storage]

    def create(self) -> None:
        """Make the machines and configure the product on them, before anything boots."""
        self.lab.create()
        for node in self.storage:
            node.write(
                f"/etc/standfast/{VOLUME}.toml",
                configuration(self.lab, node, self.timing, self.extra),
            )
            others = [other for other in self.storage if other is not node]
            node.authorized_keys(others, f"standfast receive {VOLUME}")

    def start(self) -> None:
        """Boot everything; every storage node becomes a standby."""
        self.lab.boot(self.lab)
        self.lab.wait_for_leader()
        self.lab.together(self._enable, self.storage)
        if self.binds is not None:
            self.lab.together(lambda node: self.follow(node.name), self.lab)

    def _enable(self, node: Node) -> None:
        node.sh(
            "mkdir -p /persist/services-standby /data/services\n"
            f"systemctl enable -q --now {AGENT} standfast-watch@{VOLUME} standfast-resync.timer"
        )

    def begin(self) -> None:
        """n1 becomes the first primary, and every standby has a snapshot."""
        self[PRIMARY].run("btrfs", "subvolume", "create", EXPORT)
        self.standfast(PRIMARY, "promote", timeout_s=120)
        self.lab.wait_for(
            lambda: all(s["age_s"] is not None for s in self.status(PRIMARY)["standbys"]),
            120.0,
            "every standby has a snapshot",
            interval_s=1.0,
        )

    # -- the product's own words ---------------------------------------------------------

    def standfast(self, name: str, *argv: str, timeout_s: float = 120.0, check: bool = True) -> str:
        """Output of the standfast command on a node, both streams."""
        done = self[name].run("standfast", *argv, timeout_s=timeout_s, check=False)
        if check and done.returncode != 0:
            raise LabError(
                f"{name}: standfast {' '.join(argv)}: exit {done.returncode}: "
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout + done.stderr

    def status(self, name: str) -> Mapping[str, Any]:
        """`standfast status --json` on a node; exit 1 (nobody serves) is an answer."""
        done = self[name].run("standfast", "status", "--json", check=False)
        try:
            doc = json.loads(done.stdout)
        except ValueError as error:
            raise LabError(f"{name}: status: {done.stdout}{done.stderr}") from error
        assert isinstance(doc, dict)
        return doc

    def role(self, name: str) -> str:
        return str(self.status(name)["role"])

    def primary(self) -> str:
        """The node whose role is primary; "" when there is none. More than one is a failure."""
        found = [n.name for n in self.storage if n.pid and self.role(n.name) == "primary"]
        assert len(found) <= 1, f"two primaries: {found}"
        return found[0] if found else ""

    def epoch(self, ask: str) -> int:
        return int(self.status(ask)["epoch"])

    def wait_for_role(self, name: str, role: str, timeout_s: float = 120.0) -> None:
        self.lab.wait_for(lambda: self.role(name) == role, timeout_s, f"{name} is {role}")

    def wait_until_replicated(self, name: str, timeout_s: float = 120.0) -> float:
        """Every standby that is up gets a snapshot taken after now; returns when that was."""
        after = time.time()
        up = {n.name for n in self.storage if n.pid} - {name}

        def fresh() -> bool:
            standbys = {s["node"]: s for s in self.status(name)["standbys"]}
            return all(
                n in standbys
                and standbys[n]["age_s"] is not None
                and time.time() - standbys[n]["age_s"] > after
                for n in up
            )

        self.lab.wait_for(fresh, timeout_s, f"standbys of {name} are fresh", interval_s=1.0)
        return after

    def service(self, ask: str) -> list[Mapping[str, Any]]:
        """The passing instances of the volume's service, as a node's Consul agent tells them."""
        found = self[ask].consul_get(f"health/service/{VOLUME}?passing=1")
        return [instance["Service"] for instance in found]

    def resolve(self, name: str) -> list[str]:
        """The server's addresses as a node's own resolver gives them; empty: none."""
        script = f"getent ahostsv4 {SERVER} | cut -d' ' -f1 | sort -u"
        return self[name].sh(script, check=False).split()

    # -- clients -------------------------------------------------------------------------

    def follow(self, name: str) -> None:
        """Make a running node a client as the product's documentation has it: configuration, the
        shipped mount units with the automount, watch and timer."""
        node = self[name]
        binds = [] if name in self.lab.storage else self.binds or []
        text = configuration(self.lab, node, self.timing, self.extra)
        text += f"[client]\nbinds = {json.dumps(list(binds))}\n"
        node.write(f"/etc/standfast/{VOLUME}.toml", text)
        self.standfast(name, "client", "units", "--install")
        node.sh(
            "mkdir -p /data/services; systemctl daemon-reload\n"
            f"systemctl enable -q --now {AUTOMOUNT} standfast-watch@{VOLUME} standfast-resync.timer"
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
        """Lazily, so that a dead server keeps nobody."""
        self[name].run("umount", "-l", at, timeout_s=30.0, check=False)

    def repair(self, timeout_s: float = 180.0) -> None:
        """Every node up, connected and thawed again; one primary, the rest standbys."""
        self.lab.heal()
        for node in self.lab:
            node.thaw()
        down = [node for node in self.lab if not node.pid]
        if down:
            self.lab.boot(down)
        self.lab.wait_for_leader()
        self.lab.wait_for(
            lambda: (
                self.primary() != ""
                and all(self.role(n.name) in ("primary", "standby") for n in self.storage)
            ),
            timeout_s,
            "one primary and standbys",
            interval_s=1.0,
        )
