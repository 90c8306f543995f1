"""The storage never waits for Nomad: with one that fails in every way it moves as quickly, and the
jobs follow once it is well again. Nomad is a stand-in here, Standfast and the nodes are real."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract.nomad_clusters import job
from tests.fakes.nomad_api import Manner
from tests.lab.cluster import AGENT, FAST, VOLUME, Cluster
from tests.lab.lab import Lab
from tests.machines.host import CHECKOUT
from tests.machines.node import Machine
from tests.support.figures import note

ADDRESS = "192.168.1.100"
PORT = 4646
SERVER = f"http://{ADDRESS}:{PORT}"
OF_THE_HOST = f"""
device=$(ip -o -4 addr show to {ADDRESS} | awk '{{print $2}}')
for address; do ip addr add "$address/24" dev "$device"; done
"""
# In Nomad's place on a node: what the servers said of it when it was started.
STARTED = f"""[Unit]
Description=Nomad's client, as far as it starts
[Service]
Type=exec
ExecStart=/usr/bin/python3 -c 'import time, urllib.request as r; \
  print(r.urlopen("{SERVER}/v1/nodes", timeout=10).read().decode(), flush=True); time.sleep(1e6)'
StandardOutput=truncate:/run/nomad-started
[Install]
WantedBy=multi-user.target
"""
TIMES = ("--meta-delay", "1", "2", "--down-after", "5")
PROMISED_S = 9.0
"""Of a power cut with the fast timings, as in test_failover."""
BUSY = 2
"""So much slower a run may be, whose machine does something else as well."""
BEFORE_NOMAD = f"standfast-nomad@{VOLUME}"
ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[2], method=sys.argv[1], data=sys.stdin.buffer.read())
sys.stdout.buffer.write(urllib.request.urlopen(request, timeout=10).read())
"""


class Nomad:
    """The stand-in, on the client's host: an agent for each node, and a server."""

    def __init__(self, lab: Lab) -> None:
        self._netns = f"--net=/run/netns/{lab.client.netns}"
        self.addresses = {name: f"192.168.1.{101 + n}" for n, name in enumerate(lab.storage)}
        script = ["sh", "-euc", OF_THE_HOST, "sh", *self.addresses.values()]
        subprocess.run(["nsenter", self._netns, *script], check=True, timeout=20)
        everybody = {"server": ADDRESS, **self.addresses}
        agents = [f"{name}={address}:{PORT}" for name, address in everybody.items()]
        self._process = subprocess.Popen(
            ["nsenter", self._netns, sys.executable, "-m", "tests.fakes.nomad", *agents, *TIMES],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def ask(self, method: str, path: str, doc: Any = None) -> Any:
        done = subprocess.run(
            ["nsenter", self._netns, sys.executable, "-c", ASK, method, f"{SERVER}{path}"],
            input=b"" if doc is None else json.dumps(doc).encode(),
            capture_output=True,
            timeout=20,
            check=True,
        )
        return json.loads(done.stdout)

    def be(self, manner: Manner) -> None:
        self.ask("POST", f"/stand-in/manner/{manner.value}")

    def steer(self, verb: str, node: str) -> None:
        self.ask("POST", f"/stand-in/{verb}/{node}")

    def where(self, job_id: str) -> list[str]:
        found = self.ask("GET", f"/v1/job/{job_id}/allocations")
        names = {node["ID"]: node["Name"] for node in self.ask("GET", "/v1/nodes")}
        return sorted(names[a["NodeID"]] for a in found if a["ClientStatus"] == "running")

    def node(self, name: str) -> Any:
        (found,) = [one for one in self.ask("GET", "/v1/nodes") if one["Name"] == name]
        return self.ask("GET", f"/v1/node/{found['ID']}")

    def is_plain(self, name: str) -> bool:
        """The node takes jobs and doesn't show the primary's meta."""
        node = self.node(name)
        return node["SchedulingEligibility"] == "eligible" and "storage_role" not in node["Meta"]


class WithNomad(Cluster):
    """Each node has its own agent's address."""

    agents: dict[str, str]

    def configuration(self, node: Machine) -> str:
        address = f"{self.agents[node.name]}:{PORT}"
        table = f'\n[nomad]\naddress = "{address}"\nrequest_timeout = 2\nkill_timeout_limit = 5\n'
        return super().configuration(node) + table  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def site(lab_factory: Callable[..., Lab]) -> Iterator[tuple[WithNomad, Nomad]]:
    lab = lab_factory()
    nomad = Nomad(lab)
    try:
        made = WithNomad(lab, FAST, extra="min_reign = 0\nfailover_after = 6")
        made.agents = nomad.addresses
        made.install()
        made.begin()
        nomad.ask("POST", "/v1/jobs", {"Job": job("db", meta_key="storage_role")})
        nomad.ask("POST", "/v1/jobs", {"Job": job("sys", meta_key="storage_role", kind="system")})
        follows(made, nomad, "n1")
        yield made, nomad
    finally:
        nomad.close()
        lab.close()


def follows(cluster: WithNomad, nomad: Nomad, name: str) -> float:
    """Wait until the jobs run on the node and nowhere else; how long that took, seconds."""
    started = time.monotonic()
    cluster.lab.wait_for(
        lambda: nomad.where("db") == nomad.where("sys") == [name],
        60.0,
        f"the jobs run on {name}",
        0.3,
    )
    return time.monotonic() - started


def wait_until_plain(cluster: WithNomad, nomad: Nomad, name: str, timeout_s: float) -> None:
    cluster.lab.wait_for(lambda: nomad.is_plain(name), timeout_s, f"{name} is a plain standby")


def switch(cluster: WithNomad, to: str) -> tuple[float, float]:
    """Of a switchover: how long nothing was acknowledged, and how long the command took, s."""
    source = cluster.primary()
    with cluster.lab.client.stream(cluster.lab.servers(), f"to-{to}", 0.05, 0.5) as stream:
        stream.wait_for_ack(cluster[source].address)
        started = time.monotonic()
        cluster.standfast(source, "switchover", "--to", to)
        took_s = time.monotonic() - started
        stream.wait_for_ack(cluster[to].address, after_s=started)
        return stream.longest_gap_s(started - 0.2), took_s


@pytest.mark.timeout(180)
def test_a_switchover_takes_as_long_whatever_nomad_does_and_the_jobs_follow_later(
    site: tuple[WithNomad, Nomad],
) -> None:
    cluster, nomad = site
    pauses = {}
    target = "n2"
    for manner in (Manner.NORMAL, Manner.ERROR, Manner.HANG, Manner.DENY):
        source = cluster.primary()
        nomad.be(manner)
        pause_s, command_s = switch(cluster, target)
        pauses[manner] = pause_s
        if manner is not Manner.NORMAL:
            assert str(cluster.status(target)["nomad"]["reason"]).startswith("nomad-")
            nomad.be(Manner.NORMAL)
        later_s = follows(cluster, nomad, target)
        note(
            f"switchover with Nomad's answers {manner.value}: storage's pause {pause_s:.1f} s, "
            f"command {command_s:.1f} s, the jobs there {later_s:.1f} s after it was well"
        )
        wait_until_plain(cluster, nomad, source, 30.0)
        target = source
    text = cluster.standfast(cluster.primary(), "status")
    assert "nomad:" in text


@pytest.mark.timeout(240)
def test_a_failover_with_a_nomad_that_hangs_takes_as_long_as_without(
    site: tuple[WithNomad, Nomad],
) -> None:
    cluster, nomad = site
    took_s = {}
    for manner in (Manner.NORMAL, Manner.HANG):
        old = cluster.primary()
        cluster.wait_for_voters()
        nomad.be(manner)
        took_s[manner] = power_cut(cluster, nomad, manner.value)
        new = cluster.primary()
        nomad.be(Manner.NORMAL)
        later_s = follows(cluster, nomad, new)
        assert nomad.node(old)["SchedulingEligibility"] == "ineligible"
        cluster.lab.boot([cluster[old]])
        nomad.steer("start", old)
        returned = time.monotonic()
        wait_until_plain(cluster, nomad, old, 60.0)
        back_s = time.monotonic() - returned
        assert nomad.where("db") == [new]
        note(
            f"power cut, Nomad {manner.value}: first acknowledged write after "
            f"{took_s[manner]:.1f} s; the jobs were on {new} {later_s:.1f} s after Nomad was "
            f"asked to be well; {old} was a plain standby {back_s:.1f} s after its return"
        )
    assert max(took_s.values()) <= BUSY * PROMISED_S


@pytest.mark.timeout(180)
def test_a_former_primary_takes_no_jobs_before_its_nomad_starts(
    site: tuple[WithNomad, Nomad],
) -> None:
    """Nobody has taken over and made it ineligible, so that is left to the unit of its boot."""
    cluster, nomad = site
    old = cluster.primary()
    node = cluster[old]
    others = [one for one in cluster.lab if one.name != old]
    for one in others:
        one.run("systemctl", "stop", AGENT)
    others[0].sh(f"consul services register -name=nomad -address={ADDRESS} -port={PORT}")
    node.write("/etc/systemd/system/nomad.service", STARTED)
    node.sh(f"systemctl daemon-reload; systemctl enable nomad {BEFORE_NOMAD}; sync")
    nomad.steer("kill", old)
    node.power_cut()
    cluster.lab.wait_for(lambda: nomad.node(old)["Status"] == "down", 20.0, "the servers know")
    assert nomad.node(old)["SchedulingEligibility"] == "eligible"
    assert nomad.node(old)["Meta"]["storage_role"] == "primary"
    cluster.lab.boot([node])
    node.wait_for(lambda: node.is_active("nomad"), 40.0, "its Nomad has started")
    seen = json.loads(node.wait_for(lambda: node.read("/run/nomad-started"), 10.0, "it looks"))
    (itself,) = [one for one in seen if one["Name"] == old]
    assert itself["SchedulingEligibility"] == "ineligible"
    nomad.steer("start", old)
    for one in others:
        one.run("systemctl", "start", AGENT)
    cluster.lab.wait_for(lambda: cluster.serving() != [], 60.0, "somebody serves")
    follows(cluster, nomad, cluster.primary())
    node.sh(f"systemctl disable --now nomad {BEFORE_NOMAD}")
    others[0].sh("consul services deregister -id=nomad")


def power_cut(cluster: WithNomad, nomad: Nomad, path: str) -> float:
    """Of the primary and its Nomad client; seconds to the first write that a standby took."""
    lab, old = cluster.lab, cluster.primary()
    with lab.client.stream(lab.servers(), path, 0.05, 0.5) as stream:
        stream.wait_for_ack(lab[old].address)
        cluster.wait_until_replicated(old)
        cut = time.monotonic()
        nomad.steer("kill", old)
        lab[old].power_cut()
        others = [node.address for node in lab if node.name != old]
        lab.wait_for(
            lambda: any(e.t_s > cut and e.server in others for e in stream.acknowledged()),
            30.0,
            "a standby serves",
        )
        return time.monotonic() - cut
