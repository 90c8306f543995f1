"""Clients follow the volume, on real kernels: what a program sees on the way to another server.

The tests share one cluster, in which every node is a client, and run in this order: each leaves
every node up. Times are measured beside a fresh mount of the same run, as everything is slower here
than on a machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.labs.kernels import workloads
from tests.labs.kernels.clients_scene import (
    content,
    doctor,
    fresh_mount_s,
    handle,
    is_on,
    primary_and_standby,
    switch_over,
    wait_until_on,
)
from tests.labs.kernels.cluster import AUTOMOUNT, EXPORT, MOUNT, MOUNTED, VOLUME, KernelCluster
from tests.labs.kernels.node import VirtualMachine
from tests.labs.kernels.workloads import Workload, missing_records
from tests.support.figures import note

BOUND = "/mnt/bound"
LEFT = "/mnt/left"
"""A bind mount that client.binds doesn't name."""
PATH_BASED = ("reopened", "reader", "walk", "bound")
KEPT = ("kept_open", "flock", "contained")
WATCH = f"standfast-watch@{VOLUME}"
TIMER = "standfast-resync.timer"
PROMISED = 5
"""Fresh mounts that a client may need after the takeover."""
BUSY = 2
"""So much slower a run may be, whose machine does something else as well, before the test fails."""
FRESH_OPEN_S = 15.0
GRACE_S = "10"
DEPENDANT = "dependant.service"
DEPENDANT_UNIT = f"""\
[Unit]
RequiresMountsFor={MOUNTED}
[Service]
ExecStart=/bin/sh -c 'exec >>{MOUNTED}/dependant; while :; do echo $$$$ && sync . ; sleep 1; done'
"""
"""A service with a file open; it says its pid."""
OLD: list[Workload] = []
"""Of the first test: programs with files of an earlier server, which nobody restarts."""


def main_pid(node: VirtualMachine, unit: str) -> str:
    return node.run("systemctl", "show", "-P", "MainPID", unit).stdout.strip()


@pytest.fixture(scope="module")
def followed(cluster_factory: Callable[..., KernelCluster]) -> KernelCluster:
    """n1 is primary; every node has the path by its automount."""
    cluster = cluster_factory(binds=[BOUND])
    for node in cluster.lab:
        wait_until_on(cluster, node.name, "n1")
    return cluster


# -- power cut -------------------------------------------------------------------------------


def test_after_a_power_cut_every_program_that_opens_by_path_writes_again(
    followed: KernelCluster,
) -> None:
    c1, n1, n2 = followed["c1"], followed["n1"], followed["n2"]
    fresh_s = fresh_mount_s(followed, "n1")
    running = {kind: workloads.start(c1, kind) for kind in workloads.KINDS}
    OLD.extend(running[kind] for kind in KEPT)
    c1.sh(f"mkdir -p {LEFT} && mount --bind {MOUNTED}/sub {LEFT}")
    c1.write(f"/etc/systemd/system/{DEPENDANT}", DEPENDANT_UNIT)
    c1.sh(f"systemctl daemon-reload && systemctl start {DEPENDANT}")
    served = main_pid(c1, DEPENDANT)
    safe_s = time.monotonic()
    followed.wait_until_replicated("n1")
    for workload in running.values():
        workload.wait_until_done(time.monotonic())
    n1.power_cut()
    cut_s = time.monotonic()
    followed.lab.wait_for(
        lambda: followed.lab.client.port_answers(n2.address), 120.0, "n2 serves", interval_s=0.1
    )
    took_over_s = time.monotonic() - cut_s
    back = {}
    for kind in PATH_BASED:
        # Before the port answered nobody can have been served by n2.
        first = running[kind].wait_until_done(cut_s + took_over_s, timeout_s=45.0)
        back[kind] = first.t_s - cut_s
    limit_s = took_over_s + PROMISED * fresh_s
    note(
        f"clients: power cut: taken over after {took_over_s:.1f} s; a fresh mount takes "
        f"{fresh_s:.2f} s; written again by path after "
        + ", ".join(f"{kind} {s:.1f} s" for kind, s in back.items())
        + f" (promised {limit_s:.1f} s: {'met' if max(back.values()) <= limit_s else 'MISSED'})"
    )
    for kind in ("reopened", "bound", "kept_open", "flock", "contained"):
        acknowledged = [e for e in running[kind].done() if e.t_s < safe_s]
        assert missing_records(content(n2, running[kind]), acknowledged) == [], kind
    for kind in KEPT:
        assert running[kind].done(cut_s + 1.0) == [], f"{kind} has written with an old handle"
    followed.lab.wait_for(
        lambda: main_pid(c1, DEPENDANT) not in ("0", served) and c1.is_active(DEPENDANT),
        60.0,
        f"{DEPENDANT} was restarted",
    )
    assert n2.read(f"{EXPORT}/dependant").splitlines()[-1] == main_pid(c1, DEPENDANT)
    c1.run("systemctl", "stop", DEPENDANT)
    said = followed.standfast("c1", "doctor", check=False, timeout_s=120.0)
    for kind in PATH_BASED:
        running[kind].stop()
    for kind in ("kept_open", "flock"):
        assert f"pid {running[kind].pid}" in said, said
    assert f"{LEFT} still shows {n1.address}" in said, said
    assert "an earlier server is still mounted in" in said, said
    assert max(back.values()) <= took_over_s + BUSY * PROMISED * fresh_s


# -- the handler -----------------------------------------------------------------------------


def test_called_twice_late_or_with_old_news_the_handler_leaves_a_healthy_mount(
    followed: KernelCluster,
) -> None:
    c1 = followed["c1"]
    followed["n1"].power_on()
    wait_until_on(followed, "c1", "n2")
    before = followed.mount_id("c1")
    late = json.dumps([{"Node": {"Node": "n1"}, "Service": {"Address": followed["n1"].address}}])
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda text: handle(c1, text), ["[]", late, "no JSON"]))
    handle(c1)
    assert followed.mount_id("c1") == before


def test_without_consul_the_handler_leaves_the_mount(followed: KernelCluster) -> None:
    c1 = followed["c1"]
    before = followed.mount_id("c1")
    rule = "OUTPUT -p tcp --dport 8500 -j REJECT --reject-with tcp-reset"
    with workloads.start(c1, "reopened") as writer:
        c1.sh(f"iptables-legacy -I {rule}")
        try:
            handle(c1)
            assert followed.mount_id("c1") == before
            writer.wait_until_done(time.monotonic())
        finally:
            c1.sh(f"iptables-legacy -D {rule}")


def test_doctor_says_why_a_client_can_not_mount(followed: KernelCluster) -> None:
    c1, (server, _other) = followed["c1"], primary_and_standby(followed)
    rules = {
        "dns": "OUTPUT -p udp --dport 53 -j REJECT",
        "server": f"OUTPUT -p tcp -d {server.address} --dport 2049 --syn -j REJECT",
    }
    wrong = {
        "dns": ("data-services.service.consul does not resolve", "port 8600"),
        "server": ("can't mount: ", "firewalls between"),
    }
    assert doctor(followed, "c1")["dns"]["ok"]
    for check, rule in rules.items():
        c1.sh(f"iptables-legacy -I {rule}")
        try:
            finding = doctor(followed, "c1")[check]
        finally:
            c1.sh(f"iptables-legacy -D {rule}")
        evidence, fix = wrong[check]
        assert not finding["ok"]
        assert evidence in finding["evidence"]
        assert fix in finding["fix"]


def test_a_flapping_server_keeps_its_clients(followed: KernelCluster) -> None:
    c1, n2 = followed["c1"], followed["n2"]
    before = followed.mount_id("c1")
    with workloads.start(c1, "kept_open", interval_s=0.5) as writer:
        for _ in range(2):
            # The agent starts it again as well, which may cancel this start.
            n2.run("systemctl", "restart", "nfs-server", timeout_s=120.0, check=False)
            handle(c1)
            assert followed.mount_id("c1") == before
        back = writer.wait_until_done(time.monotonic(), timeout_s=120.0)
        assert writer.errors() == []
        assert missing_records(content(n2, writer), writer.done()) == []
        note(f"clients: flapping server: an open file paused for {writer.longest_gap_s():.1f} s")
        assert back.on_volume
    assert followed.mount_id("c1") == before


# -- back to a former primary --------------------------------------------------------------------


def test_a_former_primary_lets_new_files_be_opened_though_a_client_never_returns(
    followed: KernelCluster,
) -> None:
    """n1 lost power with files of three nodes open, and c1 is cut off when it serves again."""
    c1, n1 = followed["c1"], followed["n1"]
    n1.wait_until_booted()
    assert primary_and_standby(followed) == (followed["n2"], n1)
    for name in ("c1", "n2"):
        wait_until_on(followed, name, "n2")
    here, there = workloads.start(followed["n2"], "reopened"), workloads.start(c1, "reopened")
    for workload in (here, there):
        workload.wait_until_done(time.monotonic())
    c1.partition()
    try:
        # c1 may have led Consul: its loss is not what is measured.
        elsewhere = ("", f"{c1.address}:8300")
        followed.lab.wait_for(
            lambda: all(node.consul_leader() not in elsewhere for node in followed.storage),
            60.0,
            "the storage nodes know a Consul leader",
        )
        took_s = switch_over(followed)
        serves_s = time.monotonic()
        assert followed.lab.client.port_answers(n1.address)
        opened = here.wait_until_done(serves_s, timeout_s=90.0)
        note(
            f"clients: a former primary with clients on record, one of them gone: the command "
            f"{took_s:.1f} s, after it a file was opened within "
            f"{opened.t_s - serves_s:.1f} s"
        )
        assert opened.t_s - serves_s < FRESH_OPEN_S
        # n1 is back at its old address with another tree: who held files of its last epoch gets an
        # error, and nobody another file.
        for workload in OLD:
            assert workload.done(serves_s - took_s) == [], (
                f"{workload.kind} has written with an old handle"
            )
    finally:
        followed.lab.heal()
    healed_s = time.monotonic()
    back = there.wait_until_done(healed_s, timeout_s=150.0)
    note(f"clients: cut off during a switchover: writes {back.t_s - healed_s:.1f} s after it")
    assert is_on(followed, "c1", "n1")
    assert back.t_s - healed_s < 60.0
    for workload in (here, there):
        workload.stop()
        assert missing_records(content(n1, workload), workload.done()) == []
    note(
        "clients: programs with handles of n1's last epoch, n1 serving again: "
        + ", ".join(f"{w.kind} {w.errors()[-1].error if w.errors() else 'hangs'}" for w in OLD)
    )


def test_the_server_speaks_nfs_4_1_only_and_waits_ten_seconds_for_its_clients(
    followed: KernelCluster,
) -> None:
    server = followed[followed.primary()]
    versions = server.read("/proc/fs/nfsd/versions").split()
    assert {"+4.1", "+4.2", "-4.0"} <= set(versions)
    assert not {"+2", "+3"} & set(versions)
    for name in ("nfsv4gracetime", "nfsv4leasetime"):
        assert server.read(f"/proc/fs/nfsd/{name}").strip() == GRACE_S


def test_open_files_survive_a_reboot_of_the_server_without_failover(
    followed: KernelCluster,
) -> None:
    server, other = primary_and_standby(followed)
    wait_until_on(followed, "c1", server.name)
    epoch, before = followed.epoch(other.name), followed.mount_id("c1")
    with workloads.start(followed["c1"], "kept_open") as writer:
        writer.wait_until_done(time.monotonic())
        followed.standfast(other.name, "pause", "--reason", "the primary reboots")
        try:
            server.power_cut()
            followed.lab.wait_for(lambda: writer.state() == "D", 60.0, "the writer hangs")
            hanging = doctor(followed, "c1")["hanging"]
            server.power_on()
            server.wait_until_booted()
        finally:
            followed.standfast(other.name, "resume")
        assert not hanging["ok"]
        assert f"pid {writer.pid}" in hanging["evidence"]
        resumed_s = time.monotonic()
        back = writer.wait_until_done(resumed_s, timeout_s=120.0)
        note(
            f"clients: the server lost power and went on in place: an open file "
            f"{back.t_s - resumed_s:.1f} s after the pause"
        )
        assert writer.errors() == []
        assert missing_records(content(server, writer), writer.done()) == []
    assert followed.primary() == server.name
    assert followed.epoch(other.name) == epoch + 1  # in place, and an epoch of its own all the same
    assert followed.mount_id("c1") == before


# -- switchover, and the primary as its own client ---------------------------------------------


def test_a_switchover_under_load_loses_no_acknowledged_write(followed: KernelCluster) -> None:
    old, new = primary_and_standby(followed)
    for name in ("c1", new.name):
        wait_until_on(followed, name, old.name)
    running = [
        workloads.start(followed["c1"], "reopened"),
        workloads.start(followed["c1"], "bound"),
        workloads.start(old, "reopened"),
        workloads.start(new, "reopened"),
    ]
    for workload in running:
        workload.wait_until_done(time.monotonic())
    took_s = switch_over(followed)
    for workload in running:
        workload.wait_until_done(time.monotonic(), timeout_s=90.0)
    assert followed.primary() == new.name
    for name in ("n1", "n2", "c1"):
        assert is_on(followed, name, new.name), followed.mount_id(name)
    pauses = []
    for workload in running:
        workload.stop()
        assert missing_records(content(new, workload), workload.done()) == []
        pauses.append(f"{workload.kind} on {workload.node.name} {workload.longest_gap_s():.1f} s")
    note(f"clients: switchover: the command {took_s:.1f} s; pauses: {', '.join(pauses)}")


# -- who missed it, and what doctor says of it ---------------------------------------------------


def test_doctor_names_what_a_client_without_its_handler_is_left_with(
    followed: KernelCluster,
) -> None:
    c1, (server, _other) = followed["c1"], primary_and_standby(followed)
    c1.sh(f"umount -l {LEFT}; umount -l {BOUND}; mkdir -p {MOUNTED}/sub", check=False)
    wait_until_on(followed, "c1", server.name)
    # Somebody is inside: the automount lets go of what nobody uses for a minute.
    inside = ["/bin/sh", "-c", f"cd {MOUNTED} && exec sleep 900"]
    pid = c1.control.detach(inside, "/dev/null")
    c1.sh(f"mount --bind {MOUNTED}/sub {LEFT}; systemctl stop {WATCH} {TIMER}")
    try:
        switch_over(followed)
        findings = doctor(followed, "c1")
        assert not findings["mount"]["ok"]
        assert "a mount of another server is still there" in findings["mount"]["evidence"]
        assert "standfast remount" in findings["mount"]["fix"]
        switch_over(followed)
        findings = doctor(followed, "c1")
        assert not findings["mount"]["ok"]
        assert findings["mount"]["evidence"].startswith("stale: "), findings["mount"]
        told = json.loads(followed.standfast("c1", "remount", "--json"))
        assert told["trouble"] is None, told
        assert is_on(followed, "c1", server.name)
        findings = doctor(followed, "c1")
        assert findings["mount"]["ok"]
        assert not findings["binds"]["ok"]
        assert f"{LEFT} still shows {server.address}" in findings["binds"]["evidence"]
    finally:
        c1.run("kill", "-KILL", str(pid), check=False)
        c1.sh(f"systemctl start {WATCH} {TIMER}; umount -l {LEFT}", check=False)


def test_a_plain_mount_follows_and_a_client_that_was_off_is_right_within_a_minute(
    followed: KernelCluster,
) -> None:
    c1, (server, other) = followed["c1"], primary_and_standby(followed)
    c1.sh(f"systemctl disable -q --now {AUTOMOUNT}; systemctl enable -q --now {MOUNT}")
    wait_until_on(followed, "c1", server.name)
    switch_over(followed)
    wait_until_on(followed, "c1", other.name, timeout_s=60.0)
    c1.power_cut()
    switch_over(followed)
    c1.power_on()
    c1.wait_until_booted()
    booted_s = time.monotonic()
    there_s = wait_until_on(followed, "c1", server.name, timeout_s=60.0)
    note(f"clients: off during a switchover: on the new server {there_s - booted_s:.1f} s after")
