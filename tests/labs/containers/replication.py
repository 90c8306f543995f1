"""What the lab knows of a replication: read from the state that the sending node keeps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.labs.containers.cluster import VOLUME, ContainerCluster
from tests.labs.containers.node import Container

STATE = f"/var/lib/standfast/{VOLUME}/replication.json"
STAGING = "/persist/services-standby/.staging"
KEY = "/root/.ssh/id_ed25519"


@dataclass(frozen=True, slots=True)
class Progress:
    """What one node has sent to another, ever."""

    successes: int
    failures: int
    sent_bytes: int
    snapshot: str | None
    last_failure: str | None


def progress(sender: Container, standby: str) -> Progress:
    doc: dict[str, Any] = json.loads(sender.sh(f"cat {STATE} 2>/dev/null || echo '{{}}'"))
    record = doc.get("standbys", {}).get(standby, {})
    return Progress(
        record.get("successes", 0),
        sum(record.get("failures", {}).values()),
        record.get("sent_bytes_total", 0),
        record.get("snapshot"),
        record.get("last_failure"),
    )


def wait_for_success(
    cluster: ContainerCluster, sender: str, standby: str, *, more_than: int, timeout_s: float = 60.0
) -> Progress:
    """When the sender has replicated to the standby more often than that."""
    node = cluster[sender]
    return node.wait_for(
        lambda: latest if (latest := progress(node, standby)).successes > more_than else None,
        timeout_s,
        f"a cycle to {standby} succeeds ({progress(node, standby)})",
    ) or progress(node, standby)


def ssh(
    sender: Container, to: Container, *words: str, options: tuple[str, ...] = ()
) -> tuple[int, str]:
    """The replication key as a thief would use it: status, and all that was said."""
    done = sender.run(
        *("ssh", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", KEY, *options),
        *(f"root@{to.address}", *words),
        timeout_s=20.0,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def published(node: Container) -> list[str]:
    """Published snapshots on a node, the newest last."""
    doc = json.loads(node.run("standfast", "snapshots", "--json").stdout)
    return [snapshot["name"] for snapshot in doc["snapshots"] if snapshot["kind"] == "published"]


CUTS = {
    # What a dead switch does: no packet of the connection arrives any more, and nobody is told.
    "dropped": (
        "nft 'add table inet cut; add chain inet cut in { type filter hook input priority -300; };"
        " add chain inet cut out { type filter hook output priority -300; };"
        " add rule inet cut in tcp dport 22 drop; add rule inet cut out tcp sport 22 drop'"
    ),
    "killed": "kill -KILL $(pgrep -f '^sshd: root@notty')",
    "not": "true",
}
HEALS = {"dropped": "nft delete table inet cut", "killed": "true"}


def cut_in_mid_stream(standby: Container, how: str) -> None:
    """Wait until something lies in the staging directory, and cut the connection right then."""
    standby.sh(
        f"until set -- {STAGING}/services@*; [[ -e $1 ]]; do sleep 0.01; done; {CUTS[how]}",
        timeout_s=60.0,
    )
