"""Each main event once, with real parts and the fast timings: part of `make test`.

Nothing here depends on how fast the machine is. What must be true at every moment is read from
clients' acknowledged writes: see `tests/labs/containers/drills.py`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from standfast.events.events import Kind
from tests.labs.containers.cluster import AGENT, FAST, LEASE, PRIMARY
from tests.labs.containers.drills import Takeover, Writers, kept_aside, power_cut
from tests.labs.containers.nomad import WithNomad
from tests.labs.containers.replication import published, ssh
from tests.support.figures import note
from tests.support.pace import patient

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(300)]
REFUSAL = """ERROR: Another NFS server is already active at {other}
This host ({me}) is configured as NFS server but should be standby.
To fix:
  1. If this is intentional (failback), first demote the other server
  2. Update this host's config to use nfs-services-standby.nix instead
  3. Sync data from active server before promoting this host
"""
THEFTS = (
    ("touch /root/stolen; id",),
    ("standfast receive data-services; id",),
    ("standfast", "receive", "other"),
    ("scp", "-t", "/root/stolen"),
)


@pytest.fixture(scope="module")
def takeover(shared: WithNomad) -> Takeover:
    """The primary loses power; the first two tests look at what follows."""
    shared.repair()
    return power_cut(shared, "cut")


def test_a_power_cut_is_taken_over_and_nothing_replicated_is_lost(
    shared: WithNomad, takeover: Takeover
) -> None:
    takeover.check(shared)
    assert shared.entries(takeover.new, Kind.FAILOVER_DECIDED, "takeover")
    note(f"power cut, fast timings: nobody served for {takeover.writers.longest_pause_s():.1f} s")


def test_the_old_primary_comes_back_is_refused_and_catches_up(
    shared: WithNomad, takeover: Takeover
) -> None:
    old, new = takeover.old, takeover.new
    node = shared[old]
    shared.lab.boot([node])
    shared.wait_for_role(old, "standby")
    refusal = REFUSAL.format(other=shared[new].address, me=node.address)

    def refused() -> bool:
        """On a busy machine the guard's three seconds may be over before it knows by whom."""
        assert node.run("systemctl", "start", "nfs-server", check=False).returncode != 0
        assert not node.is_active("nfs-server")
        return refusal in node.sh("journalctl -u nfs-server -o cat -b")

    node.wait_for(refused, 60.0, "it is refused with the runbook's words", interval_s=2.0)
    assert shared.primary() == new
    assert shared.entries(old, Kind.DEMOTED, "returned")
    assert takeover.writers.missing_aside(old, kept_aside(shared, old, takeover.epoch)) == []
    shared.wait_until_replicated(new)
    mine = takeover.writers.path(new)
    there = node.read(f"/persist/services-standby/{published(node)[-1]}/{mine}")
    assert there == shared[new].read(f"/persist/services/{mine}")


def test_switchover_and_failback_under_load_lose_no_acknowledged_write(cluster: WithNomad) -> None:
    lab, first, other = cluster.lab, cluster.primary(), cluster.standby().name
    steps = [(other, "switchover", "--to", other), (PRIMARY, "failback")]
    if first != PRIMARY:
        steps = [(PRIMARY, "failback"), (first, "switchover", "--to", first)]
    epoch, serves = cluster.epoch(first), first
    with Writers(lab, "moved") as writers:
        for to, *words in steps:
            writers.wait_for_ack(serves)
            cluster.standfast(serves, *words, timeout_s=120)
            writers.wait_for_ack(to, after_s=time.monotonic())
            cluster.wait_for_role(serves, "standby")
            serves = to
    path = [first, *(to for to, *_ in steps)]
    assert writers.served() == path
    assert writers.missing(serves, path) == []
    assert cluster.epoch(serves) == epoch + 2
    note(f"switchover and failback: the longest pause {writers.longest_pause_s():.1f} s")


@pytest.fixture
def without_watchdog(cluster: WithNomad) -> Iterator[str]:
    """The primary, whose frozen lease process and agent systemd leaves alone, however long it takes
    until somebody takes over."""
    name = cluster.primary()
    node = cluster[name]
    dropins = [f"/run/systemd/system/{unit}.service.d" for unit in (LEASE, AGENT)]
    for dropin in dropins:
        node.write(f"{dropin}/test.conf", "[Service]\nWatchdogSec=0\n")
    node.sh(f"systemctl daemon-reload; systemctl restart {LEASE} {AGENT}")
    cluster.wait_for_role(name, "primary")
    yield name
    node.sh(f"rm -r {' '.join(dropins)}; systemctl daemon-reload; systemctl restart {AGENT}")


def test_a_frozen_lease_process_is_cut_off_by_the_kernel_and_never_serves_again(
    cluster: WithNomad, without_watchdog: str
) -> None:
    name = without_watchdog
    node = cluster[name]
    cluster.wait_until_replicated(name)
    epoch, before = cluster.epoch(name), cluster.moment(name)
    with Writers(cluster.lab, "frozen") as writers:
        writers.wait_for_ack(name)
        node.freeze_unit(LEASE)
        node.freeze_unit(AGENT)  # it would end the frozen process as soon as it is replaced
        frozen_s = time.monotonic()
        new = writers.wait_for_successor(name)
        assert not cluster.lab.client.port_answers(node.address)
        node.thaw_unit(LEASE)
        node.wait_for(
            lambda: cluster.entries(name, Kind.LEASE_LOST, since=before),
            60.0,
            "it finds the lease lost",
        )
        node.thaw_unit(AGENT)
        cluster.wait_for_role(name, "standby")
        writers.wait_for_ack(new, after_s=time.monotonic())
    assert writers.served() == [name, new]
    # The kernel's own clock ends it, whoever is busy; what is read late is a busy client's.
    last_s = max(record.t_s for record in writers.acknowledged(name))
    assert last_s <= frozen_s + FAST.length + FAST.fence + patient(1.0)
    assert cluster.epoch(new) == epoch + 1


def test_a_primary_cut_off_from_consul_is_shut_before_its_successor_serves(
    cluster: WithNomad,
) -> None:
    lab, old = cluster.lab, cluster.primary()
    epoch = cluster.epoch(old)
    cluster.wait_until_replicated(old)
    with Writers(lab, "cut-off") as writers:
        writers.wait_for_ack(old)
        cluster[old].partition()  # the client still reaches it
        new = writers.wait_for_successor(old)
        assert not lab.client.port_answers(cluster[old].address)
        lab.heal()
        cluster.wait_for_role(old, "standby")
        writers.wait_for_ack(new, after_s=time.monotonic())
    assert writers.served() == [old, new]
    assert cluster.epoch(new) == epoch + 1
    assert writers.missing_aside(old, kept_aside(cluster, old, epoch)) == []


def test_a_snapshot_goes_over_ssh_and_its_key_opens_nothing_else(cluster: WithNomad) -> None:
    primary = cluster.primary()
    sender = cluster[primary]
    text = f"written {time.time()}"
    cluster.lab.nfs_write(sender.address, "told", text.encode(), 30.0)
    cluster.wait_until_replicated(primary)
    for standby in (node for node in cluster.lab if node is not sender):
        snapshot = f"/persist/services-standby/{published(standby)[-1]}"
        assert standby.read(f"{snapshot}/told") == text
        assert standby.sh(f"btrfs property get {snapshot} ro") == "ro=true\n"
        accepted = rf"Accepted publickey for root from {re.escape(sender.address)} "
        assert re.search(accepted, standby.journal("ssh"))
        for words in THEFTS:
            status, said = ssh(sender, standby, *words)
            assert status != 0
            assert "uid=" not in said
            assert "this key may only run `standfast receive data-services`" in said
        assert standby.run("test", "-e", "/root/stolen", check=False).returncode == 1


def test_jobs_of_nomad_follow_a_switchover_and_never_run_on_two_nodes(cluster: WithNomad) -> None:
    old = cluster.primary()
    to = cluster.standby().name
    cluster.wait_until_followed(old)
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(cluster.standfast, old, "switchover", "--to", to, timeout_s=120)
        cluster.wait_until_followed(to)
        moving.result()
    cluster.wait_until_plain(old)
