"""What the tests of the clients ask a cluster of which every node is a client."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.labs.kernels.cluster import EXPORT, MOUNTED, VOLUME, KernelCluster
from tests.labs.kernels.node import VirtualMachine
from tests.labs.kernels.workloads import Workload
from tests.support.commands import wait_for

HANDLER = "data-services-remount"


def is_on(cluster: KernelCluster, name: str, server: str, at: str = MOUNTED) -> bool:
    """Whether a node sees the volume of a server: its own as a bind mount, by NFS otherwise."""
    mount = cluster.mount_id(name, at).split()
    if not mount:
        return False
    if name == server:
        return mount[2] == "btrfs"
    if mount[2] != "nfs4":
        return False
    script = (
        f"awk -v at={at} '$5 == at' /proc/self/mountinfo | grep -o ' addr=[^, ]*\\|,addr=[^, ]*'"
    )
    return cluster[name].sh(script, check=False).strip(" ,\n").endswith(cluster[server].address)


def wait_until_on(cluster: KernelCluster, name: str, server: str, timeout_s: float = 90.0) -> float:
    """When a node was first seen to have the volume of a server; it is used on the way there."""

    def there() -> bool:
        cluster[name].run("timeout", "-s", "KILL", "3", "stat", f"{MOUNTED}/.", check=False)
        return is_on(cluster, name, server)

    wait_for(there, timeout_s, f"{name} has the volume of {server}", 0.3)
    return time.monotonic()


def fresh_mount_s(cluster: KernelCluster, server: str) -> float:
    """What a mount by hand and a first look take on c1, the median of three."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        cluster.mount("c1", cluster[server].address, "/mnt/fresh", "nosharecache")
        cluster["c1"].run("ls", "/mnt/fresh")
        took.append(time.monotonic() - began)
        cluster["c1"].run("umount", "/mnt/fresh")
    return sorted(took)[1]


def doctor(cluster: KernelCluster, name: str) -> dict[str, dict[str, Any]]:
    """The findings on a node by check; of several with one name the bad one."""
    done = cluster[name].run("standfast", "doctor", "--json", timeout_s=120.0, check=False)
    findings = json.loads(done.stdout)["findings"]
    return {
        finding["check"]: finding
        for finding in sorted(findings, key=lambda finding: not finding["ok"])
    }


def content(node: VirtualMachine, workload: Workload) -> str:
    return node.read(workload.path.replace(MOUNTED, EXPORT))


def handle(node: VirtualMachine, text: str = "[]") -> None:
    """Call the handler by hand, as `consul watch` does."""
    node.run(HANDLER, "--volume", VOLUME, input=text, timeout_s=120.0)


def primary_and_standby(
    cluster: KernelCluster, timeout_s: float = 180.0
) -> tuple[VirtualMachine, VirtualMachine]:
    """The storage nodes by their roles, once the standby has what the primary had now."""
    cluster.wait_until_settled(timeout_s)
    primary = cluster.primary()
    cluster.wait_until_replicated(primary)
    [standby] = [node for node in cluster.storage if node.name != primary]
    return cluster[primary], standby


def switch_over(cluster: KernelCluster) -> float:
    """The role goes to the standby; seconds that the command took."""
    primary, standby = primary_and_standby(cluster)
    began_s = time.monotonic()
    cluster.standfast(primary.name, "switchover", "--to", standby.name, timeout_s=240.0)
    return time.monotonic() - began_s
