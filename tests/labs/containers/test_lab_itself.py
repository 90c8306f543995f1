"""The lab keeps its promises; without this, no result of the other lab tests means much."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.labs.containers.lab import Lab, ganesha_export
from tests.labs.containers.node import Container
from tests.labs.shared.client import NfsFailed, NfsTimeout, missing_records
from tests.labs.shared.host import LABS, Claim, cgroups
from tests.support.checkout import CHECKOUT
from tests.support.commands import LabError, LabTimeout

# What the kernel does at the end of a lease: no element, no NFS.
FENCE = """
add table inet fence
add set inet fence open { type inet_service; flags timeout; }
add chain inet fence input { type filter hook input priority -10; }
add rule inet fence input tcp dport 2049 tcp dport != @open drop
"""


@pytest.fixture
def healthy(lab: Lab) -> Iterator[Lab]:
    """The module's lab with every node up, thawed, connected, and nothing exported."""
    yield lab
    lab.heal()
    for node in lab:
        node.thaw()
        if not node.pid:
            node.boot()
        node.sh("nft flush ruleset; systemctl stop nfs-server; rm -f /etc/ganesha/exports.d/*")
    lab.wait_for_leader()


def serve(node: Container) -> None:
    """Export /persist/services on a node, as an operator would by hand."""
    node.sh(
        "[ -d /persist/services ] || btrfs subvolume create /persist/services\n"
        "mountpoint -q /persist/services || mount --bind /persist/services /persist/services"
    )
    node.write("/etc/ganesha/exports.d/services.conf", ganesha_export(1))
    node.run("systemctl", "restart", "nfs-server")


def reaches(sender: Container, receiver: Container) -> bool:
    """Whether a datagram gets through in one direction, asked of the receiver."""
    listen = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "s.bind(('', 9999)); s.settimeout(1.0); print('ready', flush=True); print(s.recv(99))"
    )
    send = (
        "import socket, sys, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for _ in range(4): s.sendto(b'x', (sys.argv[1], 9999)); time.sleep(0.1)"
    )
    said: list[str] = []
    listener = receiver.start("/usr/bin/python3", "-ISc", listen, out=said.append)
    receiver.wait_for(lambda: said == ["ready\n"], 30.0, "it listens", 0.01)
    sender.run("/usr/bin/python3", "-ISc", send, receiver.address)
    return listener.wait(30.0) == 0


def test_three_nodes_boot_with_real_systemd_and_one_consul_cluster(healthy: Lab) -> None:
    for node in healthy:
        assert node.run("cat", "/proc/1/comm").stdout == "systemd\n"
        assert node.run("hostname").stdout.strip() == node.name
        assert node.sh("systemctl --failed --no-legend") == ""
        assert "btrfs" in node.sh("findmnt -no FSTYPE /persist")
        assert sorted(node.consul_get("status/peers")) == [f"{n.address}:8300" for n in healthy]
    assert healthy.consul_leader().name in healthy.nodes


def test_nothing_that_the_host_runs_or_keeps_shows_in_a_node(healthy: Lab, tmp_path: Path) -> None:
    (tmp_path / "on-the-host").touch()
    running = healthy["n1"].sh("systemctl list-units --type=service --state=running --no-legend")
    assert {line.split()[0] for line in running.splitlines()} == {
        "consul.service",
        "dbus.service",
        "ssh.service",
        "systemd-journald.service",
    }
    assert not healthy["n1"].sh(f"ls {tmp_path} 2>/dev/null || true")
    healthy["n1"].write("/etc/only-here", "x")
    assert not Path("/etc/only-here").exists()
    assert healthy["n2"].sh("ls /etc/only-here || true") == ""


def test_a_client_writes_and_reads_over_nfs(healthy: Lab) -> None:
    n1 = healthy["n1"]
    serve(n1)
    healthy.nfs_write(n1.address, "greeting", b"hello" * 10_000)
    assert healthy.nfs_read(n1.address, "greeting") == b"hello" * 10_000
    assert n1.read("/persist/services/greeting") == "hello" * 10_000
    healthy.nfs_write(n1.address, "greeting", b"shorter")
    assert healthy["n2"].client.nfs_read(n1.address, "greeting") == b"shorter"


def test_a_server_without_an_export_refuses_and_takes_one_on_reload(healthy: Lab) -> None:
    n1 = healthy["n1"]
    serve(n1)
    healthy.nfs_write(n1.address, "f", b"x")
    n1.sh("rm /etc/ganesha/exports.d/*; systemctl restart nfs-server")
    with pytest.raises(NfsFailed, match="NFS4ERR_NOENT"):
        healthy.nfs_read(n1.address, "f")
    n1.write("/etc/ganesha/exports.d/services.conf", ganesha_export(2))
    n1.run("systemctl", "reload", "nfs-server")

    def served() -> bytes:
        try:
            return healthy.nfs_read(n1.address, "f")
        except NfsFailed:
            return b""

    assert n1.wait_for(served, 30.0, "the new export is served") == b"x"


def test_a_stopped_server_refuses_at_once(healthy: Lab) -> None:
    n1 = healthy["n1"]
    serve(n1)
    assert healthy.client.port_answers(n1.address)
    n1.run("systemctl", "stop", "nfs-server")
    assert not healthy.client.port_answers(n1.address)


def test_a_power_cut_loses_run_memory_firewall_and_unsynced_data_only(healthy: Lab) -> None:
    n3 = healthy["n3"]
    serve(n3)
    healthy.nfs_write(n3.address, "acknowledged", b"kept")
    n3.sh(
        "echo kept > /persist/synced; sync; echo lost > /persist/unsynced; echo x > /run/volatile"
    )
    n3.sh("echo kept > /var/lib/kept; nft add table inet volatile; nft list table inet volatile")
    boot_id = n3.read("/proc/sys/kernel/random/boot_id")
    n3.power_cut()
    with pytest.raises(LabError, match="n3 is down"):
        n3.run("true")
    assert not healthy.client.port_answers(n3.address, 22)
    assert "Startup finished" in n3.journal()
    n3.boot()
    assert n3.read("/persist/synced") == "kept\n"
    assert n3.read("/persist/services/acknowledged") == "kept"
    assert n3.read("/var/lib/kept") == "kept\n"
    assert n3.sh("ls /persist/unsynced /run/volatile 2>/dev/null || true") == ""
    assert n3.sh("nft list ruleset") == ""
    assert n3.read("/proc/sys/kernel/random/boot_id") != boot_id
    healthy.wait_for_leader()


def test_an_orderly_shutdown_keeps_unsynced_data(healthy: Lab) -> None:
    n3 = healthy["n3"]
    n3.sh("echo kept > /persist/late")
    n3.shutdown()
    n3.boot()
    assert n3.read("/persist/late") == "kept\n"


def test_a_frozen_node_stands_still_while_the_kernel_expires_its_lease(healthy: Lab) -> None:
    n1 = healthy["n1"]
    serve(n1)
    n1.run("nft", "-f", "-", input=FENCE)
    heartbeat = (
        "while :; do nft add element inet fence open '{ 2049 timeout 2s }' 2>/dev/null;"
        " nft delete element inet fence open '{ 2049 }';"
        " nft add element inet fence open '{ 2049 timeout 2s }'; date +%s%N > /run/beat;"
        " sleep 0.2; done"
    )
    n1.run("systemd-run", "--unit=heartbeat", "/bin/bash", "-c", heartbeat)
    with healthy.client.stream([n1.address], silence_s=20.0) as stream:
        stream.wait_for_ack()
        n1.freeze()
        beat = n1.read("/run/beat")
        assert "2049" in n1.sh("nft list set inet fence open")
        n1.wait_for(
            lambda: "2049" not in n1.sh("nft list set inet fence open"), 30.0, "the fence closed"
        )
        assert n1.read("/run/beat") == beat
        with pytest.raises((NfsTimeout, NfsFailed)):
            healthy.nfs_read(n1.address, "stream", timeout_s=0.5)
        n1.thaw()
        thawed_s = time.monotonic()
        n1.wait_for(lambda: n1.read("/run/beat") != beat, 30.0, "the heartbeat goes on")
        stream.wait_for_ack(after_s=thawed_s)
        written = stream.stop()
    n1.run("systemctl", "stop", "heartbeat")
    content = n1.read("/persist/services/stream").encode()
    assert missing_records(content, [e for e in written if e.event == "ok"]) == []


def test_one_unit_can_be_frozen_alone(healthy: Lab) -> None:
    n2 = healthy["n2"]
    n2.freeze_unit("consul.service")
    assert n2.consul_leader() == ""
    n2.thaw_unit("consul.service")
    n2.wait_for(n2.consul_leader, 60.0, "Consul answers again")


def test_the_elements_of_the_other_fence_expire_by_themselves(healthy: Lab) -> None:
    n2 = healthy["n2"]
    n2.sh(
        "ipset create lab bitmap:port range 2049-2049 timeout 1; ipset add lab 2049\n"
        "iptables-legacy -A INPUT -p tcp --dport 22 -m set ! --match-set lab dst -j DROP"
        " || iptables-nft -A INPUT -p tcp --dport 22 -m set ! --match-set lab dst -j DROP"
    )
    n2.wait_for(lambda: "\n2049" not in n2.sh("ipset list lab"), 30.0, "the element expired")
    n2.sh("iptables-legacy -F; iptables-nft -F; ipset destroy lab")


def test_a_partition_cuts_both_ways_and_heals(healthy: Lab) -> None:
    n1, n2, n3 = healthy
    assert reaches(n1, n2) and reaches(n2, n1)
    n1.partition([n2.name])
    assert not reaches(n1, n2) and not reaches(n2, n1)
    assert reaches(n1, n3) and reaches(n3, n2)
    n1.heal()
    assert reaches(n1, n2) and reaches(n2, n1)


def test_a_partition_of_one_direction_lets_the_other_through(healthy: Lab) -> None:
    n1, n2, _ = healthy
    n1.partition([n2.name], bidirectional=False)
    assert not reaches(n1, n2)
    assert reaches(n2, n1)


def test_a_partitioned_node_loses_the_consul_leader_and_its_client_does_not(healthy: Lab) -> None:
    n1 = healthy["n1"]
    serve(n1)
    n1.partition()
    n1.wait_for(lambda: n1.consul_leader() == "", 60.0, "n1 knows no leader")
    healthy.nfs_write(n1.address, "f", b"still")
    assert healthy["n2"].consul_leader() or healthy["n3"].consul_leader()
    n1.isolate()
    with pytest.raises(NfsTimeout):
        healthy.nfs_write(n1.address, "f", b"lost", timeout_s=1.0)


def test_the_replication_key_runs_its_forced_command_only(healthy: Lab) -> None:
    n1, n2, n3 = healthy
    n2.authorize(n1, "echo forced: $SSH_ORIGINAL_COMMAND")
    n2.authorize(n1, "echo only: $SSH_ORIGINAL_COMMAND")
    assert n1.run("ssh", "root@n2", "anything").stdout == "only: anything\n"
    assert n1.run("ssh", n2.address, "id").stdout == "only: id\n"
    with pytest.raises(LabError, match="Permission denied"):
        n3.run("ssh", "n2", "id")


def test_a_command_that_hangs_is_killed_in_the_node(healthy: Lab) -> None:
    n1 = healthy["n1"]
    with pytest.raises(LabTimeout, match="n1: sleep 4711"):
        n1.run("sleep", "4711", timeout_s=0.3)
    assert n1.run("pgrep", "-f", "sleep 4711", check=False).stdout == ""


def test_the_product_of_this_checkout_runs_in_a_node(healthy: Lab) -> None:
    healthy.install()
    n1 = healthy["n1"]
    where = "import standfast, sys; print(standfast.__file__)"
    assert n1.run(f"{CHECKOUT}/.venv/bin/python", "-c", where).stdout.startswith(str(CHECKOUT))
    assert f"exec {CHECKOUT}/.venv/bin/python -I " in n1.read("/usr/local/bin/standfast")
    with pytest.raises(LabError, match="Read-only file system"):
        n1.run("touch", f"{CHECKOUT}/written-by-a-node")


def traces(tag: str) -> list[str]:
    """Whatever on this machine still carries the tag of a lab."""
    mounts = [ln for ln in Path("/proc/self/mountinfo").read_text().splitlines() if tag in ln]
    paths = [*LABS.glob(f"{tag}*"), *Path("/run/netns").glob(f"*{tag}*")]
    return mounts + [str(path) for path in [*paths, *cgroups(tag)] if path.exists()]


def alive(pid: int) -> bool:
    """Whether a process still runs; a zombie that its parent hasn't fetched doesn't."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def loops() -> set[str]:
    return {
        path.parent.parent.name
        for path in Path("/sys/block").glob("loop*/loop/backing_file")
        if "standfast-lab" in path.read_text()
    }


def test_a_closed_lab_leaves_no_trace(lab_factory: Callable[..., Lab]) -> None:
    before = loops()
    with Lab(nodes=("solo",)) as lab:
        tag = lab.network.tag
        assert len(traces(tag)) > 4
        assert len(loops() - before) == 1
        init = lab["solo"].pid
    assert traces(tag) == []
    assert loops() == before
    assert not alive(int(init))


def test_what_a_killed_run_left_is_swept_by_the_next_lab(lab_factory: Callable[..., Lab]) -> None:
    script = (
        "import signal\nfrom tests.labs.containers.lab import Lab\n"
        "with Lab(nodes=('solo',)) as lab:\n"
        "    print(lab.network.tag, lab['solo'].pid, flush=True)\n"
        "    signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        tag, init = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
    assert alive(int(init))
    assert len(traces(tag)) > 4
    claim = Claim()
    assert traces(tag) == []
    assert not alive(int(init))
    claim.release()
    assert traces(claim.tag) == []
