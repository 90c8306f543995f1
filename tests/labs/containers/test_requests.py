"""Commands through Consul, with real agents and a real Consul: from a node that is neither primary
nor target, and from a workstation, which has a configuration, a way to Consul and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.labs.containers.cluster import AGENT, PRIMARY, VOLUME
from tests.labs.containers.drills import Writers
from tests.labs.containers.node import Container
from tests.labs.containers.nomad import WithNomad
from tests.support.commands import Finished

HOME = "/root/workstation"
NOT_TAKEN, INTERRUPTED = 3, 130


@dataclass(frozen=True)
class Workstation:
    """A place on a node that is no node: another name, no agent."""

    node: Container

    def run(self, command: str, *, check: bool = True, timeout_s: float = 150.0) -> Finished:
        return self.node.run(*self.line(command), check=check, timeout_s=timeout_s)

    def line(self, command: str) -> tuple[str, ...]:
        """With a host name of its own, by which a machine without `node` in its file goes."""
        script = f"cd /; hostname ws1; export STANDFAST_CONFIG_DIR={HOME}; {command}"
        return ("unshare", "--uts", "sh", "-c", script)

    def standfast(self, words: str, **options: Any) -> str:
        done = self.run(f"standfast {words}", **options)
        return done.stdout + done.stderr


@pytest.fixture
def third(cluster: WithNomad) -> Iterator[Workstation]:
    """On a node that is neither the primary nor the one that is to become it."""
    if cluster.primary() != PRIMARY:
        cluster.standfast(cluster.primary(), "failback", timeout_s=120)
        cluster.wait_for_role(PRIMARY, "primary")
    cluster.wait_until_replicated(PRIMARY)
    node = cluster["n3"]
    text = cluster.configuration(node).replace('node = "n3"\n', "")
    paths = f'[paths]\nrun = "{HOME}/run"\nstate = "{HOME}/state"\n'
    node.write(f"{HOME}/{VOLUME}.toml", text + paths)
    yield Workstation(node)
    node.sh(f"rm -rf {HOME}; standfast resume")


def left(cluster: WithNomad) -> str:
    node = next(node for node in cluster.lab if node.pid)
    folders = (f"standfast/{VOLUME}/{name}/" for name in ("requests", "outcomes"))
    return "".join(node.consul("kv", "get", "-keys", folder, check=False) for folder in folders)


@pytest.mark.timeout(600)
def test_every_command_goes_from_a_node_that_is_neither_primary_nor_target(
    cluster: WithNomad, third: Workstation
) -> None:
    epoch = cluster.epoch(PRIMARY)
    assert "is primary" in third.standfast("status")
    assert "n2: services@" in third.standfast("replicate n2")
    plan = json.loads(third.run("standfast switchover --to n2 --dry-run --json").stdout)
    assert plan["dry_run"] and plan["steps"] and cluster.primary() == PRIMARY
    with Writers(cluster.lab, "asked") as writers:
        writers.wait_for_ack(PRIMARY)
        # From a standby's own command line, and from the workstation.
        words = ("switchover", "--to", "n2", "--reason", "rack")
        said = cluster.standfast("n3", *words, timeout_s=120)
        assert "n2 is primary" in said and "asking it through Consul" in said
        writers.wait_for_ack("n2", after_s=time.monotonic())
        assert "n1 is primary" in third.standfast("failback")
        writers.wait_for_ack(PRIMARY, after_s=time.monotonic())
        assert "is a standby" in third.standfast("demote")
        refused = third.run("standfast demote", check=False)
        assert refused.returncode == 1 and "nobody has the role" in refused.stderr
        lacks = third.run("standfast promote --on n2 --json", check=False)
        assert (lacks.returncode, json.loads(lacks.stdout)["reason"]) == (1, "too-old")
        said = third.standfast(f"promote --on {PRIMARY} --reason 'rack is back'")
        assert f"{PRIMARY} is primary" in said
        writers.wait_for_ack(PRIMARY, after_s=time.monotonic())
    path = [PRIMARY, "n2", PRIMARY]
    assert writers.served() == path
    assert writers.missing(PRIMARY, path) == []
    history = third.standfast("history")
    assert "root@n3" in history and "root@ws1" in history and "rack is back" in history
    assert cluster.epoch(PRIMARY) == epoch + 3
    assert left(cluster) == ""


@pytest.mark.timeout(300)
def test_the_doctor_of_every_node_is_asked_and_one_that_is_away_is_told(
    cluster: WithNomad, third: Workstation
) -> None:
    done = third.run("standfast doctor --all --json", check=False)
    told = {each["node"]: each for each in json.loads(done.stdout)}
    assert set(told) == {"n1", "n2", "n3"}
    for name, each in told.items():
        here = json.loads(cluster[name].run("standfast", "doctor", "--json", check=False).stdout)
        # The same checks as on the node itself; what a moment changes, differs.
        assert {(f["group"], f["check"], f["subject"]) for f in here["findings"]} == {
            (f["group"], f["check"], f["subject"]) for f in each["findings"]
        }
    cluster["n2"].run("systemctl", "stop", AGENT)
    try:
        away = third.run("standfast doctor --all", check=False)
        assert away.returncode == NOT_TAKEN
        assert "n2: not-taken: n2 didn't take the request within 30 s" in away.stderr
        assert "node n1\n" in away.stdout and "node n3\n" in away.stdout
    finally:
        cluster["n2"].run("systemctl", "start", AGENT)
    assert left(cluster) == ""


@pytest.mark.timeout(300)
def test_a_dead_node_is_told_and_carries_nothing_out_when_it_comes_back(
    cluster: WithNomad, third: Workstation
) -> None:
    epoch = cluster.epoch(PRIMARY)
    cluster["n2"].power_cut()
    done = third.run("standfast promote --on n2 --accept-data-loss --json", check=False)
    assert (done.returncode, json.loads(done.stdout)["reason"]) == (NOT_TAKEN, "not-taken")
    assert "nothing was done, and nothing will be" in done.stderr
    cluster.lab.boot([cluster["n2"]])
    cluster.wait_for_role("n2", "standby")
    cluster.wait_for_heartbeats(20)
    assert (cluster.primary(), cluster.epoch(PRIMARY)) == (PRIMARY, epoch)
    assert left(cluster) == ""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_who_is_killed_or_stands_still_has_nothing_carried_out_later(
    cluster: WithNomad, third: Workstation, signal: str
) -> None:
    epoch = cluster.epoch(PRIMARY)
    cluster[PRIMARY].run("systemctl", "stop", AGENT)
    third.run(
        f"standfast demote >{HOME}/said 2>&1 & "
        f"echo $! >{HOME}/pid; sleep 3; kill -{signal} $(cat {HOME}/pid)"
    )
    time.sleep(8.0)
    cluster[PRIMARY].run("systemctl", "start", AGENT)
    cluster.wait_for_role(PRIMARY, "primary")
    cluster.wait_for_heartbeats(20)
    third.node.sh(f"kill -CONT $(cat {HOME}/pid) 2>/dev/null || true; sleep 3")
    cluster.wait_for_heartbeats(20)
    assert (cluster.primary(), cluster.epoch(PRIMARY)) == (PRIMARY, epoch)
    if signal == "STOP":
        assert "stood still" in third.node.read(f"{HOME}/said")
        assert left(cluster) == ""
    else:
        assert "open" in third.standfast("requests")
        third.node.consul("kv", "delete", "-recurse", f"standfast/{VOLUME}/requests/")


@pytest.mark.timeout(300)
def test_ctrl_c_withdraws_what_nobody_took_and_leaves_the_rest_running(
    cluster: WithNomad, third: Workstation
) -> None:
    interrupted = "timeout --foreground --preserve-status -s INT"
    cluster["n2"].run("systemctl", "stop", AGENT)
    try:
        done = third.run(f"{interrupted} 12 standfast promote --on n2", check=False)
        assert (done.returncode, done.stdout) == (INTERRUPTED, "")
        assert "`promote` is withdrawn: n2 had not taken it, and nothing was done" in done.stderr
        assert left(cluster) == ""
    finally:
        cluster["n2"].run("systemctl", "start", AGENT)
    # `promote` of a node that can't be promoted yet waits; nobody serves meanwhile.
    third.standfast("demote")
    done = third.run(f"{interrupted} 8 standfast promote --on {PRIMARY}", check=False)
    if done.returncode == INTERRUPTED:
        assert f"{PRIMARY} goes on with `promote`: look at it with `standfast req" in done.stderr
        name = done.stderr.partition("standfast requests ")[2].split()[0]
        followed = third.run(f"standfast requests {name} --follow", check=False)
        assert followed.returncode == 0 and f"{PRIMARY} is primary" in followed.stdout
        assert "ended (0)" in third.standfast("requests")
    cluster.wait_for_role(PRIMARY, "primary")


@pytest.mark.timeout(300)
def test_an_agent_that_restarts_in_the_middle_says_so_and_the_role_is_whole(
    cluster: WithNomad, third: Workstation
) -> None:
    process = third.node.start(*third.line("exec standfast switchover --to n2"))

    def is_at_work() -> bool:
        return "at work" in third.standfast("requests")

    cluster.lab.wait_for(is_at_work, 30.0, "it is taken")
    cluster[PRIMARY].run("systemctl", "kill", "--signal=KILL", AGENT)
    done = process.finish(150.0)
    if done.returncode:
        assert "in the middle of `standfast switchover`" in done.stderr
        assert "standfast status" in done.stderr
    cluster.wait_until_settled(90.0)


@pytest.mark.timeout(300)
def test_a_pause_for_a_time_ends_by_itself(cluster: WithNomad, third: Workstation) -> None:
    assert "until about" in third.standfast("pause --for 20s --reason lab")
    began = time.monotonic()

    def is_paused() -> bool:
        return cluster.status("n2").get("paused") is not None

    cluster.lab.wait_for(is_paused, 30.0, "a standby knows")
    assert "until about" in third.standfast("status")
    cluster.lab.wait_for(lambda: not is_paused(), 90.0, "it is over")
    assert time.monotonic() - began >= 19.0
    assert "is over: automatic failover is enabled again" in "".join(
        node.journal(AGENT) for node in cluster.lab
    )
