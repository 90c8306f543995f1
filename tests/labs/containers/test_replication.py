"""Replication between real machines: ssh, its forced command, timers, cuts and failovers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.labs.containers.cluster import VOLUME
from tests.labs.containers.node import Container
from tests.labs.containers.nomad import WithNomad
from tests.labs.containers.replication import (
    HEALS,
    cut_in_mid_stream,
    progress,
    published,
    ssh,
    wait_for_success,
)
from tests.support.checkout import CHECKOUT
from tests.support.figures import note

TREE_MIB = 64
"""What a full send would carry at least."""
LITTLE = 40 * 2**20
"""No increment of these tests carries more, in bytes."""
# Seconds of work for the receiving end, and more behind them than all buffers on the way hold.
MANY = (
    "make() { mkdir /persist/services/$1; cd /persist/services/$1;"
    " seq 10000001 $((10000000 + ${2:-5000})) | split -l 1 -a 4 -;"
    " head -c 24M /dev/urandom >zzzz.last; }; make"
)


@pytest.fixture(scope="module", autouse=True)
def much_data(shared: WithNomad) -> Iterator[None]:
    """A volume so large that an increment and a full send can't be taken for each other."""
    shared.repair()
    primary = shared.primary()
    shared[primary].sh(f"head -c {TREE_MIB}M /dev/urandom >/persist/services/big; sync")
    shared.wait_until_replicated(primary)
    yield
    shared.repair()
    shared[shared.primary()].sh("cd /persist/services; rm -rf big killed dropped meanwhile lost")


def roles(cluster: WithNomad) -> tuple[str, str, str]:
    """The primary, and two standbys."""
    primary = cluster.primary()
    one, other = (node.name for node in cluster.lab if node.name != primary)
    return primary, one, other


def test_the_replication_key_opens_neither_a_terminal_nor_a_tunnel(cluster: WithNomad) -> None:
    primary, standby, _ = roles(cluster)
    sender, to = cluster[primary], cluster[standby]
    status, said = ssh(sender, to, "id", options=("-tt",))
    assert status != 0
    assert "PTY allocation request failed" in said
    status, said = ssh(sender, to, options=("-W", "127.0.0.1:8500"))
    assert status != 0
    assert "administratively prohibited" in said


def test_cycles_are_taken_over_by_the_process_that_is_loaded(cluster: WithNomad) -> None:
    _, standby, _ = roles(cluster)
    node = cluster[standby]
    node.wait_for(lambda: node.is_active("standfast-receive"), 60.0, "its socket has started it")
    pid = node.run("systemctl", "show", "-P", "MainPID", "standfast-receive").stdout.strip()
    there = published(node)
    # A process of its own for each cycle; one comes every few seconds.
    node.sh(
        f"for _ in $(seq 1000); do pgrep -P {pid} && exit; sleep 0.02; done; exit 1", timeout_s=60.0
    )
    node.wait_for(lambda: published(node) != there, 60.0, "a snapshot came in that way")
    assert node.run("systemctl", "show", "-P", "NRestarts", "standfast-receive").stdout == "0\n"


EVERY_KIND = """cd /persist/services; mkdir kinds; cd kinds
cp /usr/bin/id set-uid; chown 65534:65534 set-uid; chmod 6755 set-uid
mknod -m 0666 zero c 1 5; mknod -m 0600 disk b 7 0; mknod pipe p; ln -s nowhere link
touch owned; mkdir -m 1777 sticky; ln owned again
python3 -c '
import os
os.setxattr("owned", "user.a", b"b")
os.setxattr("owned", "trusted.a", b"b")
os.setxattr("owned", "security.a", b"b")
os.setxattr("owned", "security.capability", bytes.fromhex("01000002" + "00040000" + "00" * 12))'
chown -h 12345:54321 link sticky; sync"""
SHOW = "cd {}/kinds; stat -c '%n %A %u:%g %t,%T' *; getcap owned; getfattr -d -m - owned || true"


def test_a_file_of_every_kind_goes_through_the_units_and_one_compares_it(
    cluster: WithNomad,
) -> None:
    """What the sandboxes of sender, receiver and comparison might refuse."""
    primary, standby, _ = roles(cluster)
    node, to = cluster[primary], cluster[standby]
    node.sh(EVERY_KIND)
    cluster.wait_until_replicated(primary)
    there = published(to)[-1]
    wanted = node.sh(SHOW.format("/persist/services"))
    assert "crw-rw-rw-" in wanted and "-rwsr-sr-x" in wanted
    assert to.sh(SHOW.format(f"/persist/services-standby/{there}")) == wanted
    for unit in (f"standfast-verify@{VOLUME}", "standfast-resync", "standfast-textfile"):
        node.sh(f"mkdir -p /var/lib/prometheus/node-exporter; systemctl start {unit}", timeout_s=90)
        assert node.run("systemctl", "show", "-P", "Result", unit).stdout == "success\n"
    assert "standfast_" in node.sh("cat /var/lib/prometheus/node-exporter/standfast.prom")
    node.sh("rm -r /persist/services/kinds")
    # By what its unit may call, the receiver can shut what a stream may open.
    allowed = to.sh("systemctl show -P SystemCallFilter standfast-receive.service").split()
    argv = ["systemd-run", "--wait", "--pipe", "-q", "-p", "SystemCallErrorNumber=EPERM"]
    argv += ["-p", f"SystemCallFilter={' '.join(allowed)}", f"{CHECKOUT}/.venv/bin/python", "-c"]
    code = "from standfast.system import landlock; print(landlock.is_there())"
    assert to.run(*argv, code).stdout == "True\n"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["killed", "dropped"])
def test_a_connection_cut_in_mid_stream_is_made_good_by_the_next_cycle(
    cluster: WithNomad, how: str
) -> None:
    primary, standby, _ = roles(cluster)
    sender, node = cluster[primary], cluster[standby]
    before = progress(sender, standby)
    sender.sh(f"{MANY} {how}")
    cut_in_mid_stream(node, how)
    cut, there = time.monotonic(), published(node)
    failed = sender.wait_for(
        lambda: (
            latest if (latest := progress(sender, standby)).failures > before.failures else None
        ),
        60.0,
        "the cut is noticed",
    )
    assert failed is not None
    noticed_s = time.monotonic() - cut
    assert published(node) == there, "something was published after the cut"
    node.sh(HEALS[how])
    healed = time.monotonic()
    after = wait_for_success(cluster, primary, standby, more_than=failed.successes)
    note(
        f"ssh {how} in mid-stream: noticed after {noticed_s:.1f} s, replicated again "
        f"{time.monotonic() - healed:.1f} s after the way was free"
    )
    assert after.sent_bytes - before.sent_bytes < LITTLE
    newest = f"/persist/services-standby/{published(node)[-1]}"
    assert summed(sender, f"/persist/services/{how}") == summed(node, f"{newest}/{how}")


def summed(node: Container, path: str) -> str:
    """One sum of all files below a directory."""
    return node.sh(f"cd {path}; ls | wc -l; cat * | sha256sum")


@pytest.mark.parametrize("how", ["frozen", "power cut"])
def test_a_standby_that_is_away_delays_nobody_and_catches_up_by_itself(
    cluster: WithNomad, how: str
) -> None:
    primary, away, other = roles(cluster)
    sender, node = cluster[primary], cluster[away]
    before, gone = progress(sender, other), progress(sender, away)
    (node.power_cut if how == "power cut" else node.freeze)()
    sender.sh(f"echo {how} >/persist/services/meanwhile; sync")
    done = wait_for_success(cluster, primary, other, more_than=before.successes + 2)
    assert done.failures == before.failures
    if how == "frozen":  # nothing answers, and nothing says so: each cycle there takes its time
        tried = progress(sender, away).failures - gone.failures
        assert done.successes - before.successes > tried + 1, "they wait for each other"
    back = progress(sender, away)
    returned = time.monotonic()
    (node.boot if how == "power cut" else node.thaw)()
    after = wait_for_success(cluster, primary, away, more_than=back.successes)
    note(f"{how} standby: caught up {time.monotonic() - returned:.1f} s after its return")
    assert after.sent_bytes - gone.sent_bytes < LITTLE
    there = "cat $(ls -d /persist/services-standby/services@* | tail -n 1)/meanwhile"
    node.wait_for(lambda: how in node.sh(there, check=False), 60.0, "what was written meanwhile")


@pytest.fixture
def shut_door(cluster: WithNomad) -> Iterator[str]:
    """A standby to which no key opens the way; its own keys come back in the end."""
    node = cluster.standby()
    node.sh("mv /root/.ssh/authorized_keys /root/.ssh/away")
    yield node.name
    node.sh("mv /root/.ssh/away /root/.ssh/authorized_keys")


def test_a_standby_with_a_shut_door_says_what_opens_it_and_is_added(
    cluster: WithNomad, shut_door: str
) -> None:
    primary, standby = cluster.primary(), shut_door
    sender, node = cluster[primary], cluster[standby]
    said = cluster.standfast(primary, "standby", "add", standby, check=False)
    match = re.search(r"standfast standby authorize .*", said)
    assert match, said
    node.sh(match[0])
    assert 'restrict,from="' in node.read("/root/.ssh/authorized_keys")
    before = progress(sender, standby)
    cluster.standfast(primary, "standby", "add", standby)
    wait_for_success(cluster, primary, standby, more_than=before.successes)
    status, said = ssh(sender, node, "touch /root/stolen; id")
    assert status != 0 and "this key may only run `standfast receive data-services`" in said


@pytest.mark.timeout(180)
def test_after_a_failover_nobody_needs_everything_sent_again(cluster: WithNomad) -> None:
    old = cluster.primary()
    cluster.wait_for_voters()
    cluster[old].sh(f"{MANY} lost 20000")
    # In mid-stream, so that the standbys' ends of the connections are left hanging.
    cut_in_mid_stream(next(n for n in cluster.lab if n.name != old), "not")
    cluster.power_cut(old)
    cluster.lab.wait_for(lambda: cluster.primary() not in ("", old), 60.0, "a new primary", 0.2)
    new = cluster.primary()
    other = next(node.name for node in cluster.lab if node.name not in (old, new))
    sender = cluster[new]
    gone = sender.run("test", "-e", "/persist/services/lost/zzzz.last", check=False)
    assert gone.returncode == 1, "it was no cut in mid-stream"
    took_over = time.monotonic()
    before = progress(sender, other), progress(sender, old)
    done = wait_for_success(cluster, new, other, more_than=before[0].successes)
    note(f"failover: the other standby has the new epoch's data {time.monotonic() - took_over:.1f} "
         f"s later, {done.sent_bytes - before[0].sent_bytes} bytes sent")  # fmt: skip
    assert done.sent_bytes - before[0].sent_bytes < LITTLE
    cluster.lab.boot([cluster[old]])
    cluster.wait_for_role(old, "standby")
    back = wait_for_success(cluster, new, old, more_than=before[1].successes)
    assert back.sent_bytes - before[1].sent_bytes < LITTLE
    shown = json.loads(cluster[old].run("standfast", "snapshots", "--json").stdout)
    assert [kept for kept in shown["kept_aside"] if ".diverged-" in kept["path"]], shown
    assert back.snapshot in [snapshot["name"] for snapshot in shown["snapshots"]]
    listed = json.loads(sender.run("standfast", "standby", "list", "--json").stdout)["standbys"]
    epochs = {item["node"]: item["epoch"] for item in listed if item["snapshot"]}
    assert {epochs[other], epochs[old]} == {cluster.epoch(new)}
