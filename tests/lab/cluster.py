"""Standfast installed on a lab: configured, keyed, with n1 as the first primary.

Helpers read as words; times are the host's monotonic seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.machines.host import LabError

VOLUME = "data-services"
PRIMARY = "n1"
AGENT = f"standfast-agent@{VOLUME}"
LEASE = f"standfast-lease@{VOLUME}"


@dataclass(frozen=True, slots=True)
class Timing:
    """[lease] of the configuration, seconds."""

    heartbeat: float
    request_timeout: float
    length: float
    fence: float
    wait: float


DEFAULT = Timing(2.0, 2.0, 8.0, 2.0, 12.0)
FAST = Timing(0.5, 0.5, 2.0, 1.0, 4.1)


def configuration(lab: Lab, node: Node, timing: Timing, extra: str = "") -> str:
    """A node's /etc/standfast/data-services.toml."""
    addresses = ["127.0.0.1:8500", *(f"{n.address}:8500" for n in lab if n is not node)]
    nodes = "".join(
        f'[nodes.{n.name}]\naddress = "{n.address}"\npriority = {100 - index}\n'
        for index, n in enumerate(lab)
    )
    return f"""\
cluster = "lab"
node = "{node.name}"
preferred = "{PRIMARY}"
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
server = "ganesha"
clients = ["192.168.1.0/24"]
[replication]
interval = 3
ssh_key = "/root/.ssh/id_ed25519"
{nodes}"""


class Cluster:
    """A lab with Standfast on it."""

    def __init__(self, lab: Lab, timing: Timing, extra: str = "") -> None:
        """`extra`: top-level lines of the configuration."""
        self.lab = lab
        self.timing = timing
        self.extra = extra

    def __getitem__(self, name: str) -> Node:
        return self.lab[name]

    def install(self) -> None:
        """Install, configure and start on every node; nobody is primary yet."""
        self.lab.install()
        for node in self.lab:
            node.write(
                f"/etc/standfast/{VOLUME}.toml",
                configuration(self.lab, node, self.timing, self.extra),
            )
            for other in self.lab:
                if other is not node:
                    node.authorize(other, f"standfast receive {VOLUME}")
            node.sh("mkdir -p /persist/services-standby /data/services")
        self.lab._together(self._start, self.lab)

    def _start(self, node: Node) -> None:
        node.run("systemctl", "daemon-reload")
        node.run(
            *("systemctl", "enable", "--now", AGENT, f"standfast-watch@{VOLUME}"),
            "standfast-resync.timer",
        )

    def begin(self) -> None:
        """n1 becomes the first primary, and every standby has a snapshot."""
        self[PRIMARY].run("btrfs", "subvolume", "create", "/persist/services")
        self.standfast(PRIMARY, "promote", timeout_s=60)
        self.wait_until_replicated(PRIMARY)

    def standfast(self, name: str, *argv: str, timeout_s: float = 60.0, check: bool = True) -> str:
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
        found = [n.name for n in self.lab if n.pid and self.role(n.name) == "primary"]
        assert len(found) <= 1, f"two primaries: {found}"
        return found[0] if found else ""

    def epoch(self, ask: str) -> int:
        return int(self.status(ask)["epoch"])

    def wait_for_role(self, name: str, role: str, timeout_s: float = 60.0) -> None:
        self.lab.wait_for(
            lambda: self.role(name) == role, timeout_s, f"{name} is {role}", interval_s=0.1
        )

    def wait_until_replicated(self, name: str, timeout_s: float = 60.0) -> float:
        """Every standby that is up gets a snapshot taken after now; returns when that was."""
        after = time.time()
        up = {n.name for n in self.lab if n.pid} - {name}

        def fresh() -> bool:
            standbys = {s["node"]: s for s in self.status(name)["standbys"]}
            return all(
                n in standbys
                and standbys[n]["age_s"] is not None
                and time.time() - standbys[n]["age_s"] > after
                for n in up
            )

        self.lab.wait_for(fresh, timeout_s, f"standbys of {name} are fresh", interval_s=0.3)
        return after

    def wait_for_voters(self, timeout_s: float = 60.0) -> None:
        """Every node that is up votes in Consul again.

        A server that comes back is a non-voter for a while (autopilot's stabilization time); the
        next death before that would cost Consul its quorum, which is not what these tests are for.
        """
        up = [n for n in self.lab if n.pid]

        def all_vote() -> bool:
            peers = up[0].consul("operator", "raft", "list-peers", check=False)
            return sum(line.split()[-2:-1] == ["true"] for line in peers.splitlines()) >= len(up)

        self.lab.wait_for(all_vote, timeout_s, "every Consul server votes", interval_s=0.5)

    def serving(self) -> list[str]:
        """Nodes whose NFS port lets the client in."""
        return [n.name for n in self.lab if n.pid and self.lab.client.port_answers(n.address)]

    def repair(self) -> None:
        """Every node up, connected and thawed again; one primary, the rest standbys."""
        self.lab.heal()
        for node in self.lab:
            node.thaw()
        down = [node for node in self.lab if not node.pid]
        if down:
            self.lab.boot(down)
        self.lab.wait_for_leader()
        self.wait_for_voters()
        self.lab.wait_for(
            lambda: (
                self.primary() != ""
                and all(self.role(n.name) in ("primary", "standby") for n in self.lab)
            ),
            90.0,
            "one primary and standbys",
            interval_s=0.5,
        )
