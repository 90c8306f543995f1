"""The last storage node goes on as a plain NFS server, under a client that notices nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.labs.kernels.clients_scene import wait_until_on
from tests.labs.kernels.cluster import AGENT, EXPORT, LEASE, MOUNTED, VOLUME, KernelCluster
from tests.labs.kernels.node import VirtualMachine
from tests.support.commands import wait_for
from tests.support.figures import note
from tests.support.pace import patient

PLAIN = "/mnt/plain"
SERVER = "nfs-server.service"
WRITER = f"""
import os, time
file = os.open("{PLAIN}/kept", os.O_WRONLY | os.O_CREAT, 0o644)
number, longest, last = 0, 0.0, time.monotonic()
while True:
    os.pwrite(file, b"%015d\\n" % number, 16 * number)
    os.fsync(file)
    number += 1
    longest, last = max(longest, time.monotonic() - last), time.monotonic()
    with open("/run/kept.new", "w") as told:
        told.write(f"{{number}} {{longest:.1f}}")
    os.rename("/run/kept.new", "/run/kept")
    time.sleep(0.1)
"""
RULES = "iptables-legacy -S; ipset list -name; nft list ruleset 2>/dev/null || true"


@pytest.fixture(scope="module")
def followed(cluster_factory: Callable[..., KernelCluster]) -> KernelCluster:
    """Every node is a client, n1 the primary."""
    cluster = cluster_factory(binds=[])
    for node in cluster.lab:
        wait_until_on(cluster, node.name, "n1")
    return cluster


def written(client: VirtualMachine) -> tuple[int, float]:
    """Records that were acknowledged, and the longest time between two of them."""
    number, longest = client.sh("cat /run/kept").split()
    return int(number), float(longest)


def wait_for_more(client: VirtualMachine, what: str, timeout_s: float) -> None:
    before, _ = written(client)
    wait_for(lambda: written(client)[0] > before + 3, timeout_s, what, 0.5)


def left_on(node: VirtualMachine) -> str:
    units = node.sh("systemctl list-units --all --plain --no-legend 'standfast-*'")
    rules = "".join(line for line in node.sh(RULES).splitlines(True) if "standfast" in line)
    return units + rules + node.sh("ls /etc/systemd/system | grep standfast || true")


@pytest.mark.timeout(900)
def test_the_last_node_goes_on_as_a_plain_server(followed: KernelCluster) -> None:
    n1, n2, c1 = (followed[name] for name in ("n1", "n2", "c1"))
    followed.mount("c1", n1.address, PLAIN)
    c1.write("/run/writer.py", WRITER)
    c1.run("systemd-run", "-q", "--unit=writer", "/usr/bin/python3", "/run/writer.py")
    wait_for(lambda: c1.sh("cat /run/kept || true"), patient(60.0), "the writer writes", 0.5)

    refused = n1.run("standfast", "uninstall", "--yes", "--keep-serving", check=False)
    assert refused.returncode == 1 and "still-in-use" in refused.stderr, refused.stderr
    assert "n2" in refused.stderr
    followed.standfast("c1", "uninstall", "--yes", timeout_s=patient(120.0))
    assert followed.mount_id("c1") == "", "the mount of the volume's path is gone"
    followed.standfast("n2", "uninstall", "--yes", timeout_s=patient(120.0))
    assert left_on(n2) == ""
    wait_for_more(c1, "the client writes to n1", patient(60.0))

    said = followed.standfast(
        "n1", "uninstall", "--yes", "--keep-serving", timeout_s=patient(120.0)
    )
    assert "plain-export" in said
    assert left_on(n1) == ""
    assert not n1.is_active(AGENT) and not n1.is_active(LEASE)
    n1.sh("sleep 15")  # longer than the lease and the fence would have it
    wait_for_more(c1, "the client goes on without a lease", patient(60.0))
    assert c1.is_active("writer"), c1.journal("writer")
    number, longest_s = written(c1)
    note(f"uninstall --keep-serving: {number} writes, the longest gap {longest_s:.1f} s")
    assert int(n1.sh(f"stat -c %s {EXPORT}/kept")) >= 16 * number
    assert f"/etc/exports.d/{VOLUME}.exports" in n1.sh("ls /etc/exports.d/*")
    assert EXPORT in n1.sh("exportfs -v")
    assert n1.run("systemctl", "is-enabled", SERVER).stdout.strip() == "enabled"
    assert "btrfs" in followed.mount_id("n1", MOUNTED)

    n1.run("systemctl", "restart", SERVER, timeout_s=patient(60.0))  # nobody is asked any more
    wait_for_more(
        c1, "the client is served after a restart, as of any plain server", patient(240.0)
    )
    assert c1.is_active("writer"), c1.journal("writer")
