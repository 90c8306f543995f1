"""What nfsd needs beside the kernel: rpc.mountd dies, hangs, and can't be started any more.
What a server would meet on the node that is to be next.

The tests share one cluster, whose nodes are all clients, and run in this order: the last one leaves
the role with n2.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from standfast.nfs.as_client import LOOK_UP_EVERY_S
from tests.labs.kernels import workloads
from tests.labs.kernels.clients_scene import wait_until_on
from tests.labs.kernels.cluster import AGENT, EXPORT, VOLUME, KernelCluster
from tests.labs.kernels.node import VirtualMachine
from tests.labs.kernels.workloads import missing_records
from tests.support.figures import note

MOUNTD = "nfs-mountd.service"
SURRENDER_S = 60.0
"""surrender_after, by default."""
ASKED_OF_LOOPBACK = "grep -c 'nfsd *127\\.' /proc/net/rpc/auth.unix.ip/content || true"
OURS_FOR_NFSDCLD = """
import sqlite3
database = sqlite3.connect("file:/var/lib/nfs/nfsdcld/main.sqlite?mode=ro", uri=True)
tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'rec-%'"
for (name,) in database.execute(tables).fetchall():
    known = [bytes(row[0]) for row in database.execute(f'SELECT id FROM "{name}"').fetchall()]
    print(name, len(known), sum(b"standfast" in each for each in known))
"""
OURS_FOR_NFSD = r"""
end=$((SECONDS + %d))
while [ $SECONDS -lt $end ]; do
  n=$(grep -l 'name: "standfast' /proc/fs/nfsd/clients/*/info 2>/dev/null | wc -l)
  echo "$EPOCHREALTIME $n"
  sleep 0.05
done
"""


@pytest.fixture(scope="module")
def followed(cluster_factory: Callable[..., KernelCluster]) -> KernelCluster:
    cluster = cluster_factory(binds=[])
    for node in cluster.lab:
        wait_until_on(cluster, node.name, "n1")
    return cluster


def mountd_s_pid(node: VirtualMachine) -> str:
    return node.sh("pidof rpc.mountd || true").strip()


def forget_clients(node: VirtualMachine) -> None:
    """From now on the kernel has to ask mountd for each of them."""
    node.sh("exportfs -f")


def sick(cluster: KernelCluster, name: str) -> str:
    return str(cluster.status(name).get("sick") or "")


def is_well(cluster: KernelCluster, name: str) -> bool:
    status = cluster.status(name)
    return status.get("sick", "unknown") is None and status.get("serving") == name


def test_what_the_check_asks_for_leaves_nothing_with_the_server(followed: KernelCluster) -> None:
    """Neither clients, nor records that a restart would wait for; mountd has answered for it."""
    n1 = followed["n1"]
    asked = int(n1.sh(ASKED_OF_LOOPBACK))
    n1_lease_s = int(n1.read("/proc/fs/nfsd/nfsv4leasetime"))
    # A look by a session of NFSv4.1 comes once a minute. Its client is there while it asks; one
    # that was left would be there for the time of a lease.
    seconds = 2.5 * LOOK_UP_EVERY_S
    samples = n1.run("bash", "-c", OURS_FOR_NFSD % seconds, timeout_s=seconds + 60.0).stdout
    alone_s = longest_s = 0.0
    for at_s, clients in (map(float, line.split()) for line in samples.splitlines()):
        alone_s = at_s if clients == 0 or alone_s == 0 else alone_s
        longest_s = max(longest_s, at_s - alone_s)
    note(f"daemons: a look of our own was a client for up to {longest_s:.2f} s")
    assert longest_s < 0.7 * n1_lease_s
    assert int(n1.sh(ASKED_OF_LOOPBACK)) >= asked + 4
    known = n1.run("/usr/bin/python3", "-c", OURS_FOR_NFSDCLD).stdout
    assert known and all(line.endswith(" 0") for line in known.splitlines()), known
    assert is_well(followed, "n1"), sick(followed, "n1")


OPTIONS = f"/etc/standfast/{VOLUME}.toml"


@contextmanager
def planted(node: VirtualMachine, do: str, undo: str) -> Iterator[None]:
    node.sh(do)
    try:
        yield
    finally:
        node.sh(undo)


REFUSED = {
    "a line of exports(5) that exportfs refuses": (
        f"sed -i.good '/^.nfs.$/a options = \"rw,nonsense\"' {OPTIONS}; systemctl restart {AGENT}",
        f"mv {OPTIONS}.good {OPTIONS}; systemctl restart {AGENT}",
        "exportfs refuses the export",
    ),
    "an export of the path by somebody else": (
        f"echo '{EXPORT} 10.0.0.0/8(ro)' >> /etc/exports",
        f"sed -i '\\#^{EXPORT} #d' /etc/exports",
        "/etc/exports:",
    ),
    "a unit that is masked": (
        "systemctl mask --runtime -q nfs-server",
        "systemctl unmask --runtime -q nfs-server",
        "nfs-server.service is masked",
    ),
    "what its unit requires is masked": (
        f"systemctl mask --runtime -q {MOUNTD}",
        f"systemctl unmask --runtime -q {MOUNTD}",
        f"requires {MOUNTD}, which is masked",
    ),
    "another port of nfsd": (
        "printf '[nfsd]\\nport=20049\\n' > /etc/nfs.conf.d/zz.conf",
        "rm /etc/nfs.conf.d/zz.conf",
        "nfsd would listen at port 20049",
    ),
    "no NFS 4": (
        "printf '[nfsd]\\nvers4=n\\n' > /etc/nfs.conf.d/zz.conf",
        "rm /etc/nfs.conf.d/zz.conf",
        "nfsd would not speak NFS 4 by /etc/nfs.conf.d/zz.conf",
    ),
}


def test_nothing_is_in_the_way_of_a_standby_that_is_well(followed: KernelCluster) -> None:
    findings = json.loads(followed.standfast("n1", "doctor", "--json", check=False))["findings"]
    takeover = [each for each in findings if each["group"] == "takeover"]
    assert [(each["check"], each["subject"], each["ok"]) for each in takeover] == [
        ("ready", "n2", True)
    ], takeover


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_next_server_would_fail_at_refuses_a_switchover_before_it(
    followed: KernelCluster, what: str
) -> None:
    do, undo, words = REFUSED[what]
    n1, epoch = followed["n1"], followed.epoch("n1")
    threads = n1.sh("cat /proc/fs/nfsd/threads")
    with planted(followed["n2"], do, undo):
        followed.wait_for_role("n2", "standby")
        said = followed.standfast("n1", "switchover", "--to", "n2", check=False)
    assert words in said and "nothing was stopped" in said, said
    followed.wait_for_role("n2", "standby")
    assert followed.epoch("n1") == epoch and is_well(followed, "n1")
    assert n1.sh("cat /proc/fs/nfsd/threads") == threads


ODD = r"$'odd \x0b\x0c\x1c\x1d\x1e\x85\xc2\x85\xe2\x80\xa8\xe9\xff'"
"""As bash has it: what ends a line elsewhere, and bytes that are no UTF-8."""
EXPORT_ODD = f"""
name={ODD}; mkdir -p /srv/"$name"; mount -t tmpfs odd /srv/"$name"
printf '"/srv/%s" 10.0.0.0/8(ro,fsid=77)\\n' "$name" > /etc/exports.d/odd.exports
exportfs -ra
"""
FORGET_ODD = f"""
name={ODD}; rm /etc/exports.d/odd.exports; exportfs -ra; exportfs -f
umount /srv/"$name"; rmdir /srv/"$name"
"""


def test_another_export_with_a_name_of_any_bytes_is_in_nobodys_way(
    followed: KernelCluster,
) -> None:
    """Neither in the files of exports, nor in exportfs' table, nor in the kernel's."""
    n1, n2, epoch = followed["n1"], followed["n2"], followed.epoch("n1")
    with planted(n1, EXPORT_ODD, FORGET_ODD), planted(n2, EXPORT_ODD, FORGET_ODD):
        tables = n1.sh("exportfs -s | grep -ac odd; grep -ac /srv/odd /var/lib/nfs/etab")
        assert tables.split() == ["1", "1"]
        for frm, to in (("n1", "n2"), ("n2", "n1")):
            followed.wait_until_replicated(frm)
            followed.standfast(frm, "switchover", "--to", to, timeout_s=120.0)
            followed.lab.wait_for(partial(is_well, followed, to), 90.0, f"{to} is well", 1.0)
            followed.wait_for_role(frm, "standby")
            wait_until_on(followed, "c1", to)
    assert followed.epoch("n1") == epoch + 2
    for node in (n1, n2):
        assert "Traceback" not in node.journal()


def test_the_lease_process_asks_as_the_agent_does(followed: KernelCluster) -> None:
    """From its sandbox, while the agent is away: of a server that is well the role isn't given up,
    and of one whose mountd hangs others are told."""
    n1, n2, epoch = followed["n1"], followed["n2"], followed.epoch("n1")

    def leader() -> dict[str, Any]:
        told = n2.consul_get(f"kv/standfast/{VOLUME}/leader?raw")
        assert isinstance(told, dict)
        return told

    n1.run("systemctl", "stop", AGENT)
    try:
        asked = int(n1.sh(ASKED_OF_LOOPBACK))
        followed.lab.wait_for(
            lambda: int(n1.sh(ASKED_OF_LOOPBACK)) >= asked + 4, 180.0, "four more checks", 1.0
        )
        assert "unserved" not in leader()
        n1.sh(f"kill -STOP {mountd_s_pid(n1)}")
        followed.lab.wait_for(lambda: "unserved" in leader(), 90.0, "it isn't served", 0.5)
    finally:
        n1.sh(f"kill -CONT {mountd_s_pid(n1)}; systemctl start --no-block {AGENT}")
    followed.lab.wait_for(lambda: is_well(followed, "n1"), 120.0, "n1 is well", 1.0)
    # Its check in Consul had expired: until it passes again no client finds the server by its name.
    followed.lab.wait_for(lambda: followed.service("c1") != [], 120.0, "c1 finds it", 1.0)
    assert followed.epoch("n1") == epoch


def test_a_mountd_that_is_killed_runs_again_within_seconds_and_clients_go_on(
    followed: KernelCluster,
) -> None:
    c1, n1 = followed["c1"], followed["n1"]
    epoch, before = followed.epoch("n1"), mountd_s_pid(n1)
    assert before
    with workloads.start(c1, "reopened") as writer:
        writer.wait_until_done(time.monotonic())
        n1.sh(f"kill -9 {before}")
        killed_s = time.monotonic()
        forget_clients(n1)
        followed.lab.wait_for(
            lambda: mountd_s_pid(n1) not in ("", before), 60.0, "mountd runs again", 0.3
        )
        mended_s = time.monotonic()
        back = writer.wait_until_done(mended_s, timeout_s=60.0)
        assert writer.errors() == []
    # By the agent, and not since the server was started anew.
    assert f"serving: {MOUNTD} had ended: started again" in n1.journal(AGENT)
    note(
        f"daemons: mountd killed: runs again after {mended_s - killed_s:.1f} s, a client wrote "
        f"after {back.t_s - killed_s:.1f} s"
    )
    followed.lab.wait_for(lambda: is_well(followed, "n1"), 60.0, "n1 is well", 1.0)
    assert followed.epoch("n1") == epoch


def test_a_mountd_that_hangs_is_told_by_name_and_started_again(followed: KernelCluster) -> None:
    c1, n1 = followed["c1"], followed["n1"]
    epoch, before = followed.epoch("n1"), mountd_s_pid(n1)
    n1.sh(f"kill -STOP {before}")
    told = []

    def again() -> bool:
        told.append(sick(followed, "n1"))
        return mountd_s_pid(n1) not in ("", before)

    followed.lab.wait_for(again, 90.0, "mountd runs again", 0.5)
    assert any("rpc.mountd doesn't answer the kernel" in text for text in told), told
    followed.lab.wait_for(lambda: is_well(followed, "n1"), 60.0, "n1 is well", 1.0)
    c1.run("touch", "/data/services/after", timeout_s=60.0)
    assert followed.epoch("n1") == epoch


def test_a_mountd_that_can_not_be_started_costs_the_role_and_clients_follow(
    followed: KernelCluster,
) -> None:
    c1, n1, n2 = followed["c1"], followed["n1"], followed["n2"]
    with workloads.start(c1, "reopened") as writer:
        writer.wait_until_done(time.monotonic())
        followed.wait_until_replicated("n1")
        n1.sh(f"systemctl mask --runtime {MOUNTD}; kill -9 {mountd_s_pid(n1)}")
        safe_s = killed_s = time.monotonic()
        forget_clients(n1)
        told = []

        def replaced() -> bool:
            told.append(sick(followed, "n1"))
            return followed.role("n2") == "primary"

        followed.lab.wait_for(replaced, SURRENDER_S + 150.0, "n2 has the role", 1.0)
        served_s = time.monotonic()
        assert any("rpc.mountd doesn't answer the kernel" in text for text in told), told
        back = writer.wait_until_done(served_s, timeout_s=90.0)
        records = [entry for entry in writer.done() if entry.t_s < safe_s - 10.0]
        assert missing_records(n2.read(f"{EXPORT}/{writer.path.rsplit('/', 1)[1]}"), records) == []
    note(
        f"daemons: mountd killed and masked: n2 has the role after {served_s - killed_s:.1f} s, a "
        f"client wrote after {back.t_s - killed_s:.1f} s"
    )
    followed.lab.wait_for(lambda: followed.service("c1") != [], 60.0, "n2 is registered", 1.0)
    [service] = followed.service("c1")
    assert service["Address"] == n2.address
    assert n1.nfsd_threads() == 0
    n1.sh(f"systemctl unmask --runtime {MOUNTD}")
    followed.wait_for_role("n1", "standby")
