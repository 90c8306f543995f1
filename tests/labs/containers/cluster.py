"""Standfast installed on a lab: configured, keyed, with n1 as the first primary.

Helpers read as words; times are the host's monotonic seconds.
"""

from __future__ import annotations

import json

from standfast.events.events import Kind
from tests.labs.containers.lab import Lab
from tests.labs.containers.node import Container
from tests.labs.shared.cluster import (
    AGENT,
    DEFAULT,
    FAST,
    LEASE,
    PRIMARY,
    RECEIVER,
    UNITS,
    VOLUME,
    Installed,
    Timing,
)
from tests.support.commands import LabError

__all__ = ["AGENT", "DEFAULT", "FAST", "LEASE", "PRIMARY", "VOLUME", "ContainerCluster", "Timing"]


class ContainerCluster(Installed[Container]):
    """A lab with Standfast on it: `install`, then `begin`."""

    server = "ganesha"
    interval_s = 3
    lab: Lab

    def __init__(self, lab: Lab, timing: Timing, extra: str = "") -> None:
        """`extra`: top-level lines of the configuration."""
        super().__init__(lab, timing, extra)
        self.beyond_repair: LabError | None = None
        """What the last attempt to repair it ended with."""

    def install(self) -> None:
        """Install, configure and start on every node; nobody is primary yet."""
        self.lab.install()
        for node in self.lab:
            self.configure(node)
            for other in self.lab:
                if other is not node:
                    node.authorize(other, f"standfast receive {VOLUME} --from {other.name}")
            node.sh("install -d -m 0700 /persist/services-standby; mkdir -p /data/services")
        self.lab.together(self._start, self.lab)

    def _start(self, node: Container) -> None:
        node.run("systemctl", "daemon-reload")
        self.start_units(node, f"{AGENT} {RECEIVER} {UNITS}")

    def begin(self) -> None:
        """n1 becomes the first primary, and every standby has a snapshot."""
        self.promote_first()
        self.wait_until_replicated(PRIMARY)

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

    def standby(self) -> Container:
        """The first node that isn't the primary."""
        primary = self.primary()
        return next(node for node in self.lab if node.name != primary)

    def move_role(self, *, to_consul_leader: bool) -> None:
        """Hands the role over to the node that leads Consul, or to one that doesn't."""
        leader, primary = self.lab.consul_leader().name, self.primary()
        if (primary == leader) is to_consul_leader:
            return
        others = [node.name for node in self.storage if node.name != leader]
        to = leader if to_consul_leader else others[0]
        self.wait_until_replicated(primary)
        self.standfast(primary, "switchover", "--to", to, timeout_s=120)
        self.wait_for_role(to, "primary")

    def wait_for_heartbeats(self, count: int = 5) -> None:
        """So many commit from now on, whoever sends them; the default is more than a lease."""
        node, path = next(node for node in self.lab if node.pid), f"kv/standfast/{VOLUME}/leader"
        seen = set()

        def counted() -> bool:
            seen.add(node.consul_get(path)[0]["ModifyIndex"])
            return len(seen) > count

        self.lab.wait_for(counted, 120.0, f"{count} heartbeats commit")

    def serving(self) -> list[str]:
        """Nodes whose NFS port lets the client in."""
        return [n.name for n in self.lab if n.pid and self.lab.client.port_answers(n.address)]

    def moment(self, name: str) -> str:
        """The time on a node, as its journal takes it."""
        # No cursor: journalctl 252 skips the first match after one that doesn't match itself.
        return self[name].sh("date '+%F %T.%6N'").strip()

    def entries(
        self, name: str, kind: Kind, reason: str | None = None, since: str | None = None
    ) -> list[dict[str, str]]:
        """What a node's journal has of an event (None: for any reason), as a program reads it: of
        this boot, or since a moment."""
        which = "-b" if since is None else f"--since='{since}'"
        listing = self[name].sh(
            f"journalctl --sync; journalctl -q -o json {which} MESSAGE_ID={kind.message_id}"
        )
        docs = [json.loads(line) for line in listing.splitlines()]
        return [entry for entry in docs if reason in (None, entry.get("STANDFAST_REASON"))]

    def use(self, timing: Timing) -> None:
        """Change [lease] on every node; our processes begin anew, which is no event."""
        self.timing = timing
        for node in self.lab:
            self.configure(node)
            node.run("systemctl", "try-restart", AGENT, LEASE)

    def repair(self) -> None:
        """Every node up, connected and thawed again; one primary, the rest standbys."""
        self.bring_up()
        for node in self.lab:
            node.run("systemctl", "kill", "--signal=CONT", AGENT, LEASE, check=False)
        self.wait_for_voters()
        self.wait_until_settled(90.0)
