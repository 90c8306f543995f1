"""A cluster whose jobs follow the primary: Standfast and the nodes are real, Nomad is a stand-in on
the client's host, with an agent for each node.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.fakes.nomad_api import Manner
from tests.labs.containers.cluster import ContainerCluster, Timing
from tests.labs.containers.lab import Lab
from tests.labs.containers.node import Container
from tests.support.checkout import CHECKOUT
from tests.support.commands import Process, sh, wait_for
from tests.support.nomad_clusters import job

ADDRESS = "192.168.1.100"
PORT = 4646
SERVER = f"http://{ADDRESS}:{PORT}"
JOBS = {"db": "service", "sys": "system"}
"""Those that are constrained to the primary."""
ENDS_WHEN_CUT_OFF = {"StopOnClientAfter": 25 * 10**9, "Replace": True}
"""Of each group, as docs/nomad.md asks for it."""
TIMES = ("--meta-delay", "1", "2", "--down-after", "5")
OF_THE_HOST = f"""
device=$(ip -o -4 addr show to {ADDRESS} | awk '{{print $2}}')
for address; do ip addr add "$address/24" dev "$device"; done
"""
ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[2], method=sys.argv[1], data=sys.stdin.buffer.read())
sys.stdout.buffer.write(urllib.request.urlopen(request, timeout=10).read())
"""


class Nomad:
    """The stand-in: an agent for each node, and a server."""

    def __init__(self, lab: Lab) -> None:
        self._netns = f"--net=/run/netns/{lab.client.netns}"
        self.addresses = {name: f"192.168.1.{101 + n}" for n, name in enumerate(lab.storage)}
        sh("nsenter", self._netns, "sh", "-euc", OF_THE_HOST, "sh", *self.addresses.values())
        everybody = {"server": ADDRESS, **self.addresses}
        agents = [f"{name}={address}:{PORT}" for name, address in everybody.items()]
        said: list[str] = []
        self._process = Process(
            ["nsenter", self._netns, sys.executable, "-m", "tests.fakes.nomad", *agents, *TIMES],
            cwd=CHECKOUT,
            out=said.append,
        )
        self._dead: set[str] = set()
        wait_for(lambda: said == ["ready\n"], 30.0, "the stand-in for Nomad listens")
        for name, kind in JOBS.items():
            made = job(name, meta_key="storage_role", kind=kind)
            made["TaskGroups"][0]["Disconnect"] = ENDS_WHEN_CUT_OFF
            self.ask("POST", "/v1/jobs", {"Job": made})

    def close(self) -> None:
        self._process.kill()
        self._process.wait(30.0)

    def ask(self, method: str, path: str, doc: Any = None) -> Any:
        """What the server answers."""
        argv = ("nsenter", self._netns, sys.executable, "-ISc", ASK, method, f"{SERVER}{path}")
        return json.loads(sh(*argv, input_text="" if doc is None else json.dumps(doc)))

    # -- what is done to it --------------------------------------------------------------

    def be(self, manner: Manner) -> None:
        """How every agent answers from now on."""
        self.ask("POST", f"/stand-in/manner/{manner.value}")

    def kill(self, node: str) -> None:
        """The node's agent dies."""
        self.ask("POST", f"/stand-in/kill/{node}")
        self._dead.add(node)

    def start(self, node: str) -> None:
        """Start the node's agent again, if it is dead."""
        if node in self._dead:
            self.ask("POST", f"/stand-in/start/{node}")
            self._dead.remove(node)

    # -- what it shows -------------------------------------------------------------------

    def where(self, job_id: str) -> list[str]:
        """The nodes on which a job runs."""
        allocations = self.ask("GET", f"/v1/job/{job_id}/allocations")
        names = {node["ID"]: node["Name"] for node in self.ask("GET", "/v1/nodes")}
        return sorted(names[a["NodeID"]] for a in allocations if a["ClientStatus"] == "running")

    def node(self, name: str) -> Any:
        (listed,) = [node for node in self.ask("GET", "/v1/nodes") if node["Name"] == name]
        return self.ask("GET", f"/v1/node/{listed['ID']}")

    def is_plain(self, name: str) -> bool:
        """The node takes jobs and doesn't show the primary's meta."""
        node = self.node(name)
        return node["SchedulingEligibility"] == "eligible" and "storage_role" not in node["Meta"]


class WithNomad(ContainerCluster):
    """Each node has its own agent's address."""

    def __init__(self, lab: Lab, timing: Timing, nomad: Nomad, extra: str = "") -> None:
        super().__init__(lab, timing, extra)
        self.nomad = nomad

    def configuration(self, node: Container) -> str:
        address = f"{self.nomad.addresses[node.name]}:{PORT}"
        table = f'\n[nomad]\naddress = "{address}"\nkill_timeout_limit = 5\n'
        return super().configuration(node) + table

    def power_cut(self, name: str) -> None:
        """A node and its Nomad client are off."""
        self.nomad.kill(name)
        self[name].power_cut()

    def repair(self) -> None:
        self.nomad.be(Manner.NORMAL)
        super().repair()
        for node in self.lab:
            self.nomad.start(node.name)

    def wait_until_followed(self, name: str) -> None:
        """The jobs run on this node; at no look one of them runs on two."""

        def there() -> bool:
            running = [self.nomad.where(job_id) for job_id in JOBS]
            assert all(len(nodes) <= 1 for nodes in running), f"a job runs twice: {running}"
            return all(nodes == [name] for nodes in running)

        self.lab.wait_for(there, 60.0, f"the jobs run on {name}", 0.3)

    def wait_until_plain(self, name: str) -> None:
        """The node takes jobs again, and none that is constrained to the primary comes to it."""
        self.lab.wait_for(lambda: self.nomad.is_plain(name), 60.0, f"{name} is a plain standby")


@contextmanager
def with_nomad(lab: Lab, timing: Timing, extra: str) -> Iterator[WithNomad]:
    """Standfast on the lab with n1 as its primary, on which the jobs run."""
    nomad = Nomad(lab)
    try:
        cluster = WithNomad(lab, timing, nomad, extra)
        cluster.install()
        cluster.begin()
        yield cluster
    finally:
        nomad.close()
