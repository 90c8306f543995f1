"""The kernel lab keeps its promises, and the product serves by a real kernel's NFS server.

Without this, no result of the other kernel lab tests means much. The tests share one cluster and
run in this order: each leaves n1 primary and every node up.
"""

from __future__ import annotations

import itertools
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs.kernels import workloads
from tests.labs.kernels.cluster import (
    AGENT,
    DEFAULT,
    EXPORT,
    LEASE,
    MOUNTED,
    RECEIVER,
    SERVER,
    KernelCluster,
)
from tests.labs.kernels.node import VirtualMachine
from tests.labs.shared.host import LABS, cgroups, processes
from tests.support.checkout import CHECKOUT
from tests.support.commands import LabError, LabTimeout, wait_for
from tests.support.figures import note

OTHER_SERVER = """\
ERROR: Another NFS server is already active at 192.168.1.2
This host (192.168.1.3) is configured as NFS server but should be standby.
To fix:
  1. If this is intentional (failback), first demote the other server
  2. Update this host's config to use nfs-services-standby.nix instead
  3. Sync data from active server before promoting this host
"""
_LISTEN = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    "s.bind(('', int(sys.argv[1]))); s.settimeout(3.0); print(s.recv(99))"
)
_SEND = (
    "import socket, sys, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "for _ in range(25): s.sendto(b'x', (sys.argv[1], int(sys.argv[2]))); time.sleep(0.1)"
)

_ports = itertools.count(9000)


def reaches(sender: VirtualMachine, receiver: VirtualMachine, address: str = "") -> bool:
    """Whether a datagram gets through in one direction, asked of the receiver."""
    port = str(next(_ports))  # an earlier question's datagrams are still on their way
    argv = ["/usr/bin/python3", "-ISc", _SEND, address or receiver.address, port]
    sender.control.detach(argv, "/dev/null")
    done = receiver.run("/usr/bin/python3", "-ISc", _LISTEN, port, check=False)
    return done.returncode == 0


@pytest.fixture
def mounted(cluster: KernelCluster) -> Iterator[KernelCluster]:
    """The volume is mounted on c1, as the runbook's clients do it."""
    cluster.mount("c1")
    yield cluster
    cluster.unmount("c1")


# -- the machines ----------------------------------------------------------------------


def test_three_machines_boot_with_kernels_of_their_own(cluster: KernelCluster) -> None:
    for node in cluster.lab:
        assert node.run("cat", "/proc/1/comm").stdout == "systemd\n"
        assert node.run("uname", "-r").stdout.strip() != platform.release()
        assert node.run("hostname").stdout.strip() == node.name
        assert node.sh("systemctl --failed --no-legend") == ""
        assert len(node.consul_get("status/peers")) == 3
        took = node.sh("systemd-analyze time | grep -o '= .*' | head -1").strip("= \n")
        note(f"kernel lab: {node.name} booted in {took}")
    assert all("btrfs" in n.sh("findmnt -no FSTYPE /persist") for n in cluster.storage)


def test_a_command_gets_its_input_and_gives_its_output_and_status(cluster: KernelCluster) -> None:
    c1 = cluster["c1"]
    done = c1.run("/bin/sh", "-c", "cat; echo bad >&2; exit 3", input="x" * 200_000, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "x" * 200_000, "bad\n")
    with pytest.raises(LabError, match="exit 127: no-such-thing: No such file"):
        c1.run("no-such-thing")
    times = []
    for _ in range(5):
        before = time.monotonic()
        c1.run("true")
        times.append((time.monotonic() - before) * 1000)
    note(f"kernel lab: a command takes {sorted(times)[2]:.0f} ms")


def test_a_command_that_takes_too_long_is_killed_in_the_node(cluster: KernelCluster) -> None:
    c1 = cluster["c1"]
    with pytest.raises(LabTimeout, match="c1: sleep 4711: still running after"):
        c1.run("sleep", "4711", timeout_s=1.0)
    c1.wait_for(lambda: not c1.sh("pgrep -fx 'sleep 4711' || true"), 10.0, "it is gone")


def test_a_partition_cuts_one_direction_or_both_and_heals(cluster: KernelCluster) -> None:
    n2, c1 = cluster["n2"], cluster["c1"]
    assert reaches(n2, c1)
    assert not reaches(n2, c1, address="10.99.0.4"), "the control network joins nodes"
    c1.partition(["n2"], bidirectional=False)
    try:
        assert reaches(n2, c1)
        assert not reaches(c1, n2)
        cluster.lab.partition("n2", "c1")
        assert not reaches(n2, c1)
        assert c1.run("true").returncode == 0, "the lab itself must still get there"
    finally:
        cluster.lab.heal()
    assert reaches(c1, n2)


def test_a_frozen_machine_says_nothing_and_goes_on_after_the_thaw(cluster: KernelCluster) -> None:
    c1 = cluster["c1"]
    before = c1.read("/proc/sys/kernel/random/boot_id")
    c1.freeze()
    try:
        with pytest.raises(LabTimeout):
            c1.run("true", timeout_s=1.5)
    finally:
        c1.thaw()
    assert c1.read("/proc/sys/kernel/random/boot_id") == before
    boot_s, _ = c1.control.clocks()
    assert abs(c1.host_time_s(boot_s) - time.monotonic()) < 1.0, "its clock stood still"


def test_after_a_power_cut_only_what_was_synced_is_there(cluster: KernelCluster) -> None:
    n2 = cluster["n2"]
    before = n2.read("/proc/sys/kernel/random/boot_id")
    # A cycle of the replication ends with a sync of this filesystem: none may arrive now. And
    # the kernel's own commit comes 30 s after the first write that follows the sync.
    n2.sh(f"systemctl stop ssh {RECEIVER} standfast-receive.service {AGENT}")
    receiving = "pgrep -f '[s]tandfast receive' || true"
    n2.wait_for(lambda: not n2.sh(receiving), 30.0, "no snapshot is on its way")
    n2.sh("echo kept >/persist/kept; sync -f /persist; echo lost >/persist/lost")
    assert n2.read("/persist/lost") == "lost\n"
    processes_of_n2 = [group / "n2" for group in cgroups(n2.place.tag)]
    n2.power_cut()
    assert not any(processes(group) for group in processes_of_n2)
    assert "systemd" in n2.journal(), "the journal of a dead node comes from its console"
    began = time.monotonic()
    n2.boot()
    note(f"kernel lab: back {time.monotonic() - began:.1f} s after a power cut")
    assert n2.read("/proc/sys/kernel/random/boot_id") != before
    assert n2.read("/persist/kept") == "kept\n"
    assert n2.sh("cat /persist/lost 2>/dev/null || true") == ""
    cluster.wait_for_role("n2", "standby")


# -- the product on a real kernel --------------------------------------------------------


def test_after_the_first_promotion_the_server_in_the_kernel_serves(cluster: KernelCluster) -> None:
    n1, n2 = cluster["n1"], cluster["n2"]
    assert cluster.primary() == "n1"
    assert n1.nfsd_threads() > 0
    assert n2.nfsd_threads() == 0
    assert EXPORT in n1.sh("exportfs -v")
    assert n1.read("/run/standfast/fence/backend") == "ipset", "this kernel has no inet tables"
    assert cluster.lab.client.port_answers(n1.address)
    assert not cluster.lab.client.port_answers(n2.address)


def test_a_client_mounts_by_name_and_reads_what_it_wrote(mounted: KernelCluster) -> None:
    c1 = mounted["c1"]
    assert mounted.resolve("c1") == [mounted["n1"].address]
    source, options = c1.sh(f"findmnt -no SOURCE,OPTIONS {MOUNTED}").split()
    assert source == f"{SERVER}:{EXPORT}"
    assert "vers=4.1" in options
    c1.sh(f"seq 20000 >{MOUNTED}/numbers; sync {MOUNTED}/numbers")
    assert mounted["n1"].sh(f"tail -1 {EXPORT}/numbers") == "20000\n"
    c1.sh("echo 3 >/proc/sys/vm/drop_caches")
    assert len(c1.read(f"{MOUNTED}/numbers").split()) == 20000


def test_every_workload_works_and_what_it_says_is_on_the_server(mounted: KernelCluster) -> None:
    c1, n1 = mounted["c1"], mounted["n1"]
    running = [workloads.start(c1, kind) for kind in workloads.KINDS]
    try:
        after = time.monotonic()
        for workload in running:
            workload.wait_until_done(after)
        assert not [e for w in running if w.kind != "reader" for e in w.errors()]
        # What is mounted in the container's own namespace is seen nowhere else.
        assert "/mnt/contained" not in c1.read("/proc/self/mounts")
        assert "/mnt/bound" in c1.read("/proc/self/mounts")
        with pytest.raises(LabError, match="exit 1"):
            c1.run("flock", "-n", f"{MOUNTED}/flock-c1", "true")
    finally:
        logs = {workload.kind: workload.stop() for workload in running}
    assert logs["walk"][-1].text or logs["walk"][-2].text
    for workload in running:
        if workload.kind in workloads.WRITERS:
            acknowledged = [e for e in logs[workload.kind] if e.event == "ok"]
            content = n1.read(workload.path.replace(MOUNTED, EXPORT))
            assert acknowledged
            assert workloads.missing_records(content, acknowledged) == []
    assert all(workload.state() in ("", "Z") for workload in running)


def test_the_guard_refuses_a_second_server_in_the_words_of_the_runbook(
    cluster: KernelCluster,
) -> None:
    n2 = cluster["n2"]

    def said_by_the_guard() -> str:
        assert n2.run("systemctl", "start", "nfs-server", check=False).returncode != 0
        n2.run("systemctl", "reset-failed", "nfs-server", check=False)
        assert n2.nfsd_threads() == 0
        return n2.sh("journalctl -u nfs-server -o cat --no-pager -t nfs-server-guard")

    # A virtual machine may be too slow for the guard's three seconds: that refuses as well.
    wait_for(lambda: OTHER_SERVER in said_by_the_guard(), 60.0, "the runbook's words")


def test_the_fence_drops_an_established_connection_when_its_time_is_over(
    mounted: KernelCluster,
) -> None:
    c1, n1 = mounted["c1"], mounted["n1"]
    with workloads.start(c1, "kept_open") as writer:
        writer.wait_until_done(time.monotonic())
        n1.freeze_unit(f"{LEASE}")
        frozen_s = time.monotonic()
        try:
            time.sleep(DEFAULT.length + DEFAULT.fence + 3.0)
            served_s = max(e.t_s for e in writer.done()) - frozen_s
            assert writer.hangs(), "it still writes"
            assert served_s < DEFAULT.length + DEFAULT.fence
            assert n1.nfsd_threads() > 0, "the server itself was stopped: that is no fence"
            assert not mounted.lab.client.port_answers(n1.address)
        finally:
            n1.thaw_unit(f"{LEASE}")
        thawed_s = time.monotonic()
        back = writer.wait_until_done(thawed_s, timeout_s=90.0)
        assert writer.errors() == []
        note(
            f"kernel lab: frozen lease process: served for another {served_s:.1f} s, and again "
            f"{back.t_s - thawed_s:.1f} s after the thaw"
        )
    assert mounted.primary() == "n1"


def test_a_server_that_listens_beside_the_fence_is_told(cluster: KernelCluster) -> None:
    """By the kernel's own list; the port of the fence alone is what it has before."""
    n1, listens = cluster["n1"], "/proc/fs/nfsd/portlist"
    before = n1.sh(f"cat {listens}").splitlines()
    assert before and set(before) <= {"tcp 2049", "udp 2049"}
    n1.sh(f"echo 'tcp 20490' > {listens}")

    def told() -> bool:
        return "nfsd listens at tcp 20490" in str(cluster.status("n1")["sick"])

    cluster.lab.wait_for(told, 60.0, "the primary is told as sick", 1.0)
    n1.run("systemctl", "stop", "nfs-server", timeout_s=180.0)  # a listener goes with the server

    def well() -> bool:
        status = cluster.status("n1")
        return status["sick"] is None and status["serving"] == "n1"

    cluster.lab.wait_for(well, 120.0, "the agent has started it again, and it is well", 1.0)
    assert n1.sh(f"cat {listens}").splitlines() == before
    assert cluster.primary() == "n1"


def test_after_a_demotion_the_kernel_has_no_server_thread_left(mounted: KernelCluster) -> None:
    n1 = mounted["n1"]
    mounted["c1"].sh(f"exec 9>{MOUNTED}/held; flock -n 9; echo x >&9; sync {MOUNTED}/held")
    mounted.standfast("n1", "demote", timeout_s=180.0)
    assert n1.nfsd_threads() == 0
    assert n1.sh("cat /var/lib/nfs/etab") == ""
    assert mounted.role("n1") == "standby"
    assert not mounted.lab.client.port_answers(n1.address)
    assert mounted.service("c1") == []


# -- leaving no trace --------------------------------------------------------------------


def test_a_lab_ends_when_its_test_run_is_killed(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "from tests.labs.kernels.lab import KernelLab\n"
        "lab = KernelLab(storage=(), clients=('c1',), product=False)\n"
        "lab.create(); lab['c1'].power_on(); print(lab._claim.tag, flush=True); time.sleep(600)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    tag = run.stdout.readline().strip()
    group = cgroups(tag)[0]
    wait_for(lambda: len(processes(group)) > 1, 30.0, "its kernel runs processes")
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_for(lambda: not (LABS / tag).exists(), 30.0, "the watchdog has undone the lab")
    assert not group.exists()
    assert not list(Path("/run/netns").glob(f"sflab-{tag}-*"))
