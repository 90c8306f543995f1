"""Clients follow the volume, on real kernels: what a program sees on the way to another server.

The tests share one cluster, in which every node is a client, and run in this order: each leaves
every node up. Times are measured beside a fresh mount of the same run, as everything is slower here
than on a machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from standfast.config.model import Client
from tests.kernel_lab import workloads
from tests.kernel_lab.cluster import EXPORT, MOUNTED, VOLUME, Cluster
from tests.kernel_lab.node import Node
from tests.kernel_lab.workloads import Workload, missing_records
from tests.machines.figures import note
from tests.machines.host import wait_for

BOUND = "/mnt/bound"
LEFT = "/mnt/left"
"""A bind mount that client.binds doesn't name."""
PATH_BASED = ("reopened", "reader", "walk", "bound")
KEPT = ("kept_open", "flock", "contained")
WATCH = f"standfast-watch@{VOLUME}"
TIMER = "standfast-resync.timer"
HANDLER = "data-services-remount"
FRESH: list[float] = []
SPREAD_S = Client().spread
LATE: dict[str, float] = {}
"""By how much the first test's programs missed the limit, seconds."""
OLD: list[Workload] = []
"""Of the first test: programs with files of an earlier server, which nobody restarts."""


@pytest.fixture(scope="module")
def followed(cluster_factory: Callable[..., Cluster]) -> Iterator[Cluster]:
    """n1 is primary; every node has the path by its automount."""
    cluster = cluster_factory(binds=[BOUND])
    for node in cluster.lab:
        wait_until_on(cluster, node.name, "n1")
    yield cluster
    for workload in OLD:
        workload.stop()


def is_on(cluster: Cluster, name: str, server: str, at: str = MOUNTED) -> bool:
    """Whether a node sees the volume of a server: its own as a bind mount, by NFS otherwise."""
    found = cluster.mount_id(name, at).split()
    if not found:
        return False
    if name == server:
        return found[2] == "btrfs"
    if found[2] != "nfs4":
        return False
    script = (
        f"awk -v at={at} '$5 == at' /proc/self/mountinfo | grep -o ' addr=[^, ]*\\|,addr=[^, ]*'"
    )
    return cluster[name].sh(script, check=False).strip(" ,\n").endswith(cluster[server].address)


def wait_until_on(cluster: Cluster, name: str, server: str, timeout_s: float = 90.0) -> float:
    """When a node was first seen to have the volume of a server; it is used on the way there."""

    def there() -> bool:
        cluster[name].run("timeout", "-s", "KILL", "3", "stat", f"{MOUNTED}/.", check=False)
        return is_on(cluster, name, server)

    wait_for(there, timeout_s, f"{name} has the volume of {server}", 0.3)
    return time.monotonic()


def fresh_mount_s(cluster: Cluster, server: str) -> float:
    """What a mount by hand and a first look take on c1, the median of three."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        cluster.mount("c1", cluster[server].address, "/mnt/fresh", "nosharecache")
        cluster["c1"].run("ls", "/mnt/fresh")
        took.append(time.monotonic() - began)
        cluster["c1"].run("umount", "/mnt/fresh")
    return sorted(took)[1]


def doctor(cluster: Cluster, name: str) -> dict[str, dict[str, Any]]:
    """The findings on a node by check; of several with one name the bad one."""
    done = cluster[name].run("standfast", "doctor", "--json", timeout_s=120.0, check=False)
    found = json.loads(done.stdout)
    return {one["check"]: one for one in sorted(found, key=lambda one: not one["ok"])}


def content(node: Node, workload: Workload) -> str:
    return node.read(workload.path.replace(MOUNTED, EXPORT))


def handle(node: Node, text: str = "[]") -> None:
    """Call the handler by hand, as `consul watch` does."""
    node.run(HANDLER, "--volume", VOLUME, input=text, timeout_s=120.0)


# -- power cut -------------------------------------------------------------------------------


def test_after_a_power_cut_every_program_that_opens_by_path_writes_again(followed: Cluster) -> None:
    c1, n1, n2 = followed["c1"], followed["n1"], followed["n2"]
    FRESH.append(fresh_mount_s(followed, "n1"))
    running = {kind: workloads.start(c1, kind) for kind in workloads.KINDS}
    OLD.extend(running[kind] for kind in KEPT)
    c1.sh(f"mkdir -p {LEFT} && mount --bind {MOUNTED}/sub {LEFT}")
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
    # A client waits for its turn, up to client.spread.
    limit_s = took_over_s + 5 * FRESH[0] + SPREAD_S
    back = {}
    for kind in PATH_BASED:
        # Before the port answered nobody can have been served by n2.
        first = running[kind].wait_until_done(cut_s + took_over_s, timeout_s=45.0)
        back[kind] = first.t_s - cut_s
    note(
        f"clients: power cut: taken over after {took_over_s:.1f} s; a fresh mount takes "
        f"{FRESH[0]:.2f} s; written again by path after "
        + ", ".join(f"{kind} {s:.1f} s" for kind, s in back.items())
        + f" (limit {limit_s:.1f} s, of which {SPREAD_S:.1f} s are client.spread)"
    )
    for kind in ("reopened", "bound", "kept_open", "flock", "contained"):
        acknowledged = [e for e in running[kind].done() if e.t_s < safe_s]
        assert missing_records(content(n2, running[kind]), acknowledged) == [], kind
    for kind in KEPT:
        assert running[kind].done(cut_s + 1.0) == [], f"{kind} has written with an old handle"
    said = followed.standfast("c1", "doctor", check=False, timeout_s=120.0)
    for kind in PATH_BASED:
        running[kind].stop()
    for kind in ("kept_open", "flock"):
        assert f"pid {running[kind].pid}" in said, said
    assert f"{LEFT} still shows {n1.address}" in said, said
    assert "an earlier server is still mounted in" in said, said
    LATE.update({kind: s - limit_s for kind, s in back.items() if s > limit_s})


@pytest.mark.xfail(reason="0.4 s late where the machine is busy, bind mounts 1-3 s: made last")
def test_after_a_power_cut_they_write_again_in_time(followed: Cluster) -> None:
    assert followed.primary() == "n2"
    assert LATE == {}


# -- the handler -----------------------------------------------------------------------------


def test_called_twice_late_or_with_old_news_the_handler_leaves_a_healthy_mount(
    followed: Cluster,
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


def test_without_consul_the_handler_leaves_the_mount(followed: Cluster) -> None:
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


def test_a_flapping_server_keeps_its_clients(followed: Cluster) -> None:
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


# -- switchover, and the primary as its own client ---------------------------------------------


@pytest.mark.xfail(reason="the writer on the demoted node itself was not back within 90 s")
def test_a_switchover_under_load_loses_no_acknowledged_write(followed: Cluster) -> None:
    followed["n1"].wait_until_booted()
    followed.wait_for_role("n1", "standby")
    followed.wait_until_replicated("n2")
    wait_until_on(followed, "n1", "n2")
    running = [
        workloads.start(followed["c1"], "reopened"),
        workloads.start(followed["c1"], "bound"),
        workloads.start(followed["n1"], "reopened"),
        workloads.start(followed["n2"], "reopened"),
    ]
    for workload in running:
        workload.wait_until_done(time.monotonic())
    began_s = time.monotonic()
    followed.standfast("n2", "switchover", "--to", "n1", timeout_s=240.0)
    took_s = time.monotonic() - began_s
    for workload in running:
        workload.wait_until_done(time.monotonic(), timeout_s=90.0)
    assert followed.primary() == "n1"
    for name in ("n1", "n2", "c1"):
        assert is_on(followed, name, "n1"), followed.mount_id(name)
    pauses = []
    for workload in running:
        workload.stop()
        assert missing_records(content(followed["n1"], workload), workload.done()) == []
        pauses.append(f"{workload.kind} on {workload.node.name} {workload.longest_gap_s():.1f} s")
    note(f"clients: switchover: the command {took_s:.1f} s; pauses: {', '.join(pauses)}")
    # n1 is back at its old address with another tree: who held files of its last reign gets an
    # error, and nobody another file.
    for workload in OLD:
        assert workload.done(began_s) == [], f"{workload.kind} has written with an old handle"
    note(
        "clients: programs with handles of n1's last reign, n1 serving again: "
        + ", ".join(f"{w.kind} {w.errors()[-1].error if w.errors() else 'hangs'}" for w in OLD)
    )


# -- who missed it, and what doctor says of it ---------------------------------------------------


@pytest.mark.xfail(reason="the bind mount left behind is not named in this order of things")
def test_doctor_names_what_a_client_without_its_handler_is_left_with(followed: Cluster) -> None:
    c1 = followed["c1"]
    c1.sh(f"umount -l {LEFT}; umount -l {BOUND}; mkdir -p {MOUNTED}/sub")
    wait_until_on(followed, "c1", "n1")
    c1.sh(f"mount --bind {MOUNTED}/sub {LEFT}; systemctl stop {WATCH} {TIMER}")
    try:
        followed.wait_until_replicated("n1")
        followed.standfast("n1", "switchover", "--to", "n2", timeout_s=240.0)
        found = doctor(followed, "c1")
        assert not found["mount"]["ok"]
        assert "a mount of another server is still there" in found["mount"]["evidence"]
        assert "standfast remount" in found["mount"]["fix"]
        assert not found["binds"]["ok"]
        assert f"{LEFT} still shows {followed['n1'].address}" in found["binds"]["evidence"]
        followed.wait_for_role("n1", "standby")
        followed.wait_until_replicated("n2")
        followed.standfast("n2", "switchover", "--to", "n1", timeout_s=240.0)
        found = doctor(followed, "c1")
        assert not found["mount"]["ok"]
        assert found["mount"]["evidence"].startswith("stale: "), found["mount"]
        told = json.loads(followed.standfast("c1", "remount", "--json"))
        assert told["trouble"] is None, told
        assert is_on(followed, "c1", "n1")
        assert doctor(followed, "c1")["mount"]["ok"]
    finally:
        c1.sh(f"systemctl start {WATCH} {TIMER}; umount -l {LEFT}")


@pytest.mark.xfail(reason="its start depends on how the tests before it ended")
def test_a_client_that_missed_it_all_is_right_within_a_minute(followed: Cluster) -> None:
    c1 = followed["c1"]
    wait_until_on(followed, "c1", "n1")
    followed.wait_for_role("n2", "standby")
    followed.wait_until_replicated("n1")
    with workloads.start(c1, "reopened") as writer:
        c1.partition()
        followed.standfast("n1", "switchover", "--to", "n2", timeout_s=240.0)
        followed.lab.heal()
        healed_s = time.monotonic()
        back = writer.wait_until_done(healed_s, timeout_s=150.0)
        note(f"clients: partitioned during a switchover: writes {back.t_s - healed_s:.1f} s later")
        assert is_on(followed, "c1", "n2")
        assert back.t_s - healed_s < 60.0
        assert content(followed["n2"], writer)
