"""Surroundings that nobody thought of: how Consul calls a node, what files can't take along to
another node, and names of any bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from standfast.events.events import Kind
from tests.labs.containers.cluster import AGENT, FAST, ContainerCluster
from tests.labs.containers.drills import Writers
from tests.labs.containers.lab import Lab
from tests.labs.containers.node import Container
from tests.labs.containers.nomad import WithNomad
from tests.labs.containers.replication import progress
from tests.labs.shared.client import EXPORT
from tests.support.pace import patient

CONSUL = "/etc/consul.d/lab.json"
OTHERWISE = "N2"
"""Consul finds n2's entry by it all the same: it ignores case where it looks a node up."""


def findings(node: Container) -> dict[str, Any]:
    """What doctor found, by group and check."""
    done = node.run("standfast", "doctor", "--json", timeout_s=120.0, check=False)
    return {f"{f['group']}/{f['check']}": f for f in json.loads(done.stdout)["findings"]}


def bad(node: Container) -> set[str]:
    """What isn't well, but for ages: of 3 s between two cycles a busy machine makes more."""
    found = findings(node).items()
    return {name for name, finding in found if not finding["ok"]} - {"replication/age"}


def standbys(cluster: ContainerCluster, asked: str) -> dict[str, Any]:
    """What a node's status says of each standby."""
    return {told["node"]: told for told in cluster.status(asked)["standbys"]}


def move(cluster: ContainerCluster, to: str) -> None:
    name = cluster.primary()
    cluster.standfast(name, "switchover", "--to", to, timeout_s=120)
    cluster.wait_for_role(to, "primary")
    cluster.wait_for_role(name, "standby")


# A node's name


@pytest.fixture
def misnamed() -> Iterator[ContainerCluster]:
    """Consul has called n2 otherwise ever since; in a lab of its own, as a Consul server that is
    renamed loses its place among the voters for a minute, both ways."""
    lab = Lab()
    try:
        lab.create()
        node = lab["n2"]
        node.write(CONSUL, json.dumps(json.loads(node.read(CONSUL)) | {"node_name": OTHERWISE}))
        lab.boot(lab)
        lab.wait_for_leader()
        cluster = ContainerCluster(lab, FAST, "failover_cooldown = 0\nfailover_after = 6")
        cluster.install()
        cluster.begin()
        yield cluster
    finally:
        lab.close()


@pytest.mark.timeout(300)
def test_a_node_that_consul_calls_otherwise_is_told_refused_and_passed_over(
    misnamed: ContainerCluster,
) -> None:
    lab, words = misnamed.lab, f"is called {OTHERWISE}"
    n1, n2, n3 = (lab[name] for name in ("n1", "n2", "n3"))

    def told() -> bool:
        known = standbys(misnamed, "n1")
        return all(known.get(name, {}).get("word") is not None for name in ("n2", "n3"))

    lab.wait_for(told, patient(60.0), "both standbys have said what they would do", 1.0)
    assert words in misnamed.status("n2")["trouble"]
    obstacles = misnamed.status("n2")["obstacles"]
    assert ("name", "bars") in [(seen["check"], seen["weight"]) for seen in obstacles]
    word = standbys(misnamed, "n1")["n2"]["word"]
    assert (word["takes_over"], word["reason"]) == (False, "node-misnamed")

    def passes_n2_over() -> bool:
        return bool(misnamed.status("n1")["failover"]["to"] == "n3")

    # It has the lower priority, and may have no snapshot yet.
    lab.wait_for(passes_n2_over, patient(60.0), "n3 would take over", 1.0)
    finding = findings(n2)["node/name"]
    assert not finding["ok"] and words in finding["evidence"]

    with lab.client.stream([n1.address], "misnamed", 0.05, patient(3.0)) as stream:
        stream.wait_for_ack()
        said = misnamed.standfast("n1", "switchover", "--to", "n2", check=False)
        assert "n2 is not ready to take over; nothing was stopped" in said and words in said
        stream.wait_for_ack(after_s=time.monotonic())
        assert stream.errors() == []
    assert misnamed.entries("n1", Kind.SWITCHOVER_BEGUN) == []

    misnamed.wait_until_replicated("n1")
    n3.run("systemctl", "stop", AGENT)
    n1.power_cut()

    def passes() -> bool:
        decision = misnamed.status("n2").get("decision") or {}
        return decision.get("reason") == "node-misnamed"

    lab.wait_for(passes, patient(90.0), "n2 would be next, and says why it isn't", 0.5)
    assert misnamed.role("n2") == "standby"
    n3.run("systemctl", "start", AGENT)
    misnamed.wait_for_role("n3", "primary")
    assert (misnamed.role("n2"), misnamed.epoch("n3")) == ("standby", 2)
    assert misnamed.entries("n2", Kind.FAILOVER_DECIDED) == []


# Flags and limits

FLAGGED = f"""
btrfs quota enable /persist
btrfs qgroup limit 700M {EXPORT}
mkdir {EXPORT}/flags && cd {EXPORT}/flags
echo one >fixed && chattr +i fixed
echo one >log && chattr +a log
mkdir nocow && chattr +C nocow
seq 9999 >nocow/table && cp nocow/table nocow/table.bak
sync
"""
UNFLAGGED = f"""
btrfs quota disable /persist || true
[ ! -e {EXPORT}/flags ] || {{ chattr -R -i -a {EXPORT}/flags; rm -r {EXPORT}/flags; }}
"""


@pytest.fixture
def flagged(cluster: WithNomad) -> Iterator[WithNomad]:
    """The primary's volume has files with flags, and a limit."""
    first = cluster.primary()
    cluster[first].sh(FLAGGED)
    yield cluster
    cluster.repair()
    cluster[first].sh("btrfs quota disable /persist || true")
    cluster[cluster.primary()].sh(UNFLAGGED)


@pytest.mark.timeout(300)
def test_flags_and_limits_are_named_before_and_in_nobodys_way_back(flagged: WithNomad) -> None:
    cluster, lab = flagged, flagged.lab
    first = cluster.primary()
    other = cluster.standby().name
    known = findings(cluster[first])
    for letters in ("+i flags/fixed", "+a flags/log", "+C flags/nocow"):
        assert letters in known["storage/flags"]["evidence"]
    assert "700 MiB" in known["storage/limit"]["evidence"]

    cluster.wait_until_replicated(first)
    move(cluster, other)
    there = cluster[other]
    kept = there.sh(f"cd {EXPORT}/flags; lsattr -d fixed log nocow nocow/table.bak").split()[::2]
    assert not set("".join(kept)) & set("iaC"), "no stream carries them"
    address = there.address
    table = lab.nfs_read(address, "flags/nocow/table.bak")
    assert table == "".join(f"{n}\n" for n in range(1, 10_000)).encode()
    lab.nfs_write(address, "flags/fixed", b"two")
    there.sh(f"cd {EXPORT}/flags; rm log; echo two >log; sed -i 1d nocow/table; sync")
    sent = progress(there, first)
    cluster.wait_until_replicated(other)
    assert not any(told["needs_full"] for told in standbys(cluster, other).values())
    assert progress(there, first).failures == sent.failures

    # No file with data can change whether it has checksums, and so can't be the reflink's source.
    there.sh(f"cd {EXPORT}/flags/nocow; cp --reflink=always table.bak table.copy; sync")

    def refused() -> bool:
        return bool(standbys(cluster, other)[first]["needs_full"])

    lab.wait_for(refused, patient(60.0), f"{first} needs everything", 0.5)
    said = cluster.standfast(other, "replicate", first, check=False)
    assert "table.copy: Invalid argument" in said and "+C" in said and "--full" in said
    cluster.standfast(other, "replicate", first, "--full", timeout_s=120)
    cluster.wait_until_replicated(other)
    assert not any(told["needs_full"] for told in standbys(cluster, other).values())

    move(cluster, first)
    address = cluster[first].address
    assert lab.nfs_read(address, "flags/fixed") == b"two"
    assert lab.nfs_read(address, "flags/log") == b"two\n"
    assert lab.nfs_read(address, "flags/nocow/table") == table.partition(b"\n")[2]
    assert lab.nfs_read(address, "flags/nocow/table.copy") == table
    cluster.wait_until_replicated(first)
    assert not any(told["needs_full"] for told in standbys(cluster, first).values())


# Names of any bytes

NAME = r"$'odd \x0b\x0c\x1c\x1d\x1e\x85\xc2\x85\xe2\x80\xa8\xe9\xff'"
"""As bash has it: what ends a line elsewhere, and bytes that are no UTF-8."""
MAP = r"""
import mmap, os, signal
name = os.fsencode("/persist/") + bytes.fromhex(os.environ["NAME"])
with open(name, "r+b") as file:
    area = mmap.mmap(file.fileno(), 1)
area[:1] = b"y"
print("mapped", flush=True)
signal.pause()
"""


def planted(node: Container) -> Callable[[], None]:
    """A mount point, and a file that a program has mapped, have NAME; returns what takes them away.

    Exports are in the kernel lab: nfs-ganesha has another table of them.
    """
    node.sh(f'name={NAME}; mkdir -p /srv/"$name"; mount -t tmpfs odd /srv/"$name"')
    node.sh(f'name={NAME}; printf x >/persist/"$name"')
    number = node.sh(f"name={NAME}; printf %s \"$name\" | od -An -v -tx1 | tr -d ' \\n'")
    said: list[str] = []
    process = node.start("python3", "-c", MAP, env={"NAME": number}, out=said.append)
    node.wait_for(lambda: said == ["mapped\n"], 30.0, "it has mapped the file")

    def take_away() -> None:
        process.kill()
        process.wait(30.0)
        node.sh(f'name={NAME}; umount /srv/"$name"; rmdir /srv/"$name"; rm /persist/"$name"')

    return take_away


@pytest.mark.timeout(300)
def test_names_of_any_bytes_are_in_the_way_of_nothing(cluster: WithNomad) -> None:
    first, other = cluster.primary(), cluster.standby().name
    both = [cluster[name] for name in (first, other)]
    before, since = bad(both[0]), cluster.moment(first)
    took_away: list[Callable[[], None]] = []
    try:
        for node in both:
            took_away.append(planted(node))
        table = both[0].sh("cat /proc/*/maps 2>/dev/null | grep -ac '/persist/odd' || true")
        assert int(table), "the process is seen"
        time.sleep(2.0)
        doc = cluster.status(first)
        assert (doc["role"], doc["serving"], doc["trouble"]) == ("primary", first, None)
        assert bad(both[0]) <= before, "nor is anything in the way of a promotion of the others"
        with Writers(cluster.lab, "odd") as writers:
            serves = first
            for to in (other, first):
                writers.wait_for_ack(serves, after_s=time.monotonic())
                cluster.wait_until_replicated(serves)
                move(cluster, to)
                writers.wait_for_ack(to, after_s=time.monotonic())
                serves = to
        assert writers.served() == [first, other, first]
        assert writers.missing(first, [first, other]) == []
        cluster.wait_until_replicated(first)
        for node in both:
            said = node.sh(f"journalctl -q -o cat --since='{since}' -u 'standfast-*'")
            assert "Traceback" not in said
    finally:
        for take_away in took_away:
            take_away()
