"""Nomad clusters for tests: one server and two clients with ACLs, the stand-in and a real one.

The real one's binary is named by NOMAD_BINARY or found on PATH. Everything listens on loopback,
and what was started is ended by its process id.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pytest

from standfast.consul.http import Answer, Endpoint, Request, TransportError, exchange
from standfast.nomad.gateway import NomadAgent
from tests.fakes.nomad import NomadStandIn
from tests.support.checkout import CHECKOUT
from tests.support.consul_clusters import free_ports
from tests.support.pace import patient
from tests.support.waiting import soon, wait_for

NODES = ("node1", "node2")
SERVER = "server"
MANAGEMENT = "3f1e0b7a-77c9-4d8c-8ad5-2e5f6ac4c7c1"
POLICY = CHECKOUT / "docs/nomad-policy.hcl"
CLIENT_POLICY = CHECKOUT / "docs/nomad-policy-client.hcl"
START_S = 60.0


class NomadMachines(Protocol):
    """What can be done to the agents of a cluster."""

    def address(self, agent: str) -> str: ...

    def kill(self, node: str) -> None:
        """As kill -9 of the node's (or the server's) agent: tasks run on."""

    def start(self, node: str) -> None: ...

    def launch(self, node: str) -> None:
        """Start it, and don't wait until it and the servers have found each other."""

    def freeze(self, node: str) -> None: ...

    def thaw(self, node: str) -> None: ...


@dataclass
class NomadCluster:
    """`kind` is "stand-in" or "real"; the times say how long one has to wait for what."""

    kind: str
    machines: NomadMachines
    meta_s: float
    """A new meta is visible to the servers by then."""
    down_s: float
    """A dead node is down by then."""
    stubborn_s: float
    """A task that lives this long after it was told to end outlives the way of a meta."""
    secret: str = ""
    """Of a token with the shipped policy."""
    _policies: int = field(default=0)
    _marks: int = field(default=0)

    def gateway(
        self, agent: str = NODES[0], *, token: str | None = None, **options: Any
    ) -> NomadAgent:
        """With the shipped policy's token, like Standfast has it."""
        secret = self.secret if token is None else token
        address = self.machines.address(agent)
        return NomadAgent(address, token=secret, timeout_s=patient(30.0), **options)

    def ask(self, method: str, target: str, doc: Any = None, *, agent: str = SERVER) -> Answer:
        """As an operator who may do everything."""
        body = None if doc is None else json.dumps(doc).encode()
        request = Request(method, target, {"X-Nomad-Token": MANAGEMENT}, body)
        endpoint = Endpoint.parse(self.machines.address(agent))
        return exchange(endpoint, request, soon(30.0))

    def must(self, method: str, target: str, doc: Any = None) -> Any:
        answer = self.ask(method, target, doc)
        assert answer.status == 200, (method, target, answer.status, answer.body[:300])
        return json.loads(answer.body) if answer.body.strip() else None

    def token(self, rules: str) -> str:
        """The secret of a new token with a policy of its own."""
        self._policies += 1
        name = f"p{self._policies}"
        self.must("POST", f"/v1/acl/policy/{name}", {"Name": name, "Rules": rules})
        made = self.must(
            "POST", "/v1/acl/token", {"Name": name, "Type": "client", "Policies": [name]}
        )
        return str(made["SecretID"])

    def submit(self, doc: dict[str, Any]) -> None:
        self.must("POST", "/v1/jobs", {"Job": doc})

    def purge(self, job_id: str, namespace: str = "default") -> None:
        self.must("DELETE", f"/v1/job/{quote(job_id, safe='')}?purge=true&namespace={namespace}")

    def node_id(self, name: str) -> str:
        (node,) = self.gateway(SERVER).nodes([name])
        return node.id

    def running(self, job_id: str) -> list[str]:
        """Names of the nodes on which the servers say that the job runs."""
        gateway = self.gateway(SERVER)
        allocations = gateway.job_allocations("default", job_id)
        names = {node.id: node.name for node in gateway.nodes()}
        return sorted(
            names[alloc.node_id]
            for alloc in allocations
            if alloc.client_status in ("running", "pending")
        )

    def stays(self, what: Callable[[], bool], nodes: Sequence[str] = NODES) -> None:
        """It is so at every look until the servers know of a meta that these nodes set now: what
        was on its way to them before that has arrived by then."""
        self._marks += 1
        mark = f"mark_{self._marks}"
        for node in nodes:
            self.gateway(node).set_meta(mark, "x")

        def arrived() -> bool:
            assert what()
            seen = self.gateway(SERVER).nodes(nodes)
            return len(seen) == len(nodes) and all(mark in node.meta for node in seen)

        wait_for(arrived, self.meta_s, "a meta that was set later is known to the servers")
        assert what()


def job(
    job_id: str,
    *,
    meta_key: str | None = None,
    kind: str = "service",
    level: str = "group",
    stubborn_s: float = 0.0,
    namespace: str = "default",
    tasks: Sequence[str] = ("t",),
) -> dict[str, Any]:
    """A raw_exec job of one allocation; `stubborn_s` is how long it ignores being told to end."""
    constraint = [{"LTarget": f"${{meta.{meta_key}}}", "RTarget": "primary", "Operand": "="}]
    script = "trap '' TERM INT; while :; do sleep 0.1; done" if stubborn_s else "exec sleep 3600"
    task: dict[str, Any] = {
        "Driver": "raw_exec",
        "Config": {"command": "/bin/sh", "args": ["-c", script]},
        "KillTimeout": int((stubborn_s or 2.0) * 1e9),
        "Resources": {"CPU": 20, "MemoryMB": 10},
        "LogConfig": {"Disabled": True},
        "Constraints": constraint if meta_key and level == "task" else None,
    }
    group: dict[str, Any] = {
        "Name": "g",
        "Count": 1,
        "Constraints": constraint if meta_key and level == "group" else None,
        "RestartPolicy": {"Attempts": 2, "Interval": 60 * 10**9, "Delay": 10**9, "Mode": "fail"},
        "Tasks": [{**task, "Name": name} for name in tasks],
    }
    if kind == "service":
        group["ReschedulePolicy"] = {
            "Unlimited": True,
            "Delay": 5 * 10**9,
            "DelayFunction": "constant",
        }
    return {
        "ID": job_id,
        "Name": job_id,
        "Namespace": namespace,
        "Type": kind,
        "Datacenters": ["dc1"],
        "Constraints": constraint if meta_key and level == "job" else None,
        "TaskGroups": [group],
    }


@contextmanager
def stand_in_cluster() -> Iterator[NomadCluster]:
    with NomadStandIn(
        NODES,
        meta_delay_s=(patient(0.2), patient(0.4)),
        down_after_s=patient(1.0),
        start_s=0.05,
        management=MANAGEMENT,
    ) as machines:
        cluster = NomadCluster("stand-in", machines, meta_s=5, down_s=10, stubborn_s=patient(1.5))
        cluster.secret = cluster.token(POLICY.read_text())
        yield cluster


# The real one


# Real agents share the kernel's control groups: one cluster at a time.
ONE_AT_A_TIME = pytest.mark.xdist_group("a real Nomad")
REAL = pytest.param("real", marks=ONE_AT_A_TIME)
"""Of a fixture's parameter."""


def nomad_binary() -> str:
    binary = os.environ.get("NOMAD_BINARY") or shutil.which("nomad")
    if not binary:
        pytest.skip("no nomad on PATH (NOMAD_BINARY=/path/to/nomad adds the tests on a real one)")
    return binary


@dataclass
class RealMachines:
    binary: str
    directory: Path
    ports: dict[str, int] = field(default_factory=dict)
    agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    groups_before: frozenset[Path] = field(default_factory=lambda: frozenset(_cgroups()))

    def address(self, agent: str) -> str:
        return f"127.0.0.1:{self.ports[agent]}"

    def kill(self, node: str) -> None:
        self.agents[node].kill()
        self.agents[node].wait(patient(20.0))

    def freeze(self, node: str) -> None:
        self.agents[node].send_signal(signal.SIGSTOP)

    def thaw(self, node: str) -> None:
        self.agents[node].send_signal(signal.SIGCONT)

    def start(self, node: str) -> None:
        self.launch(node)
        self.wait_for(node)

    def launch(self, node: str) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("NOMAD_")}
        with (self.directory / f"{node}.log").open("ab") as log:
            self.agents[node] = subprocess.Popen(
                [self.binary, "agent", f"-config={self.directory / node}.json"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=kept,
            )

    def wait_for(self, node: str) -> None:
        agent = self.agents[node]
        try:
            wait_for(
                lambda: self._answers(node) or agent.poll() is not None, START_S, "it answers", 0.1
            )
            assert agent.poll() is None, "it ended"
        except AssertionError as error:
            words = (self.directory / f"{node}.log").read_text(errors="replace")[-2000:]
            pytest.fail(f"nomad's {node} did not start: {error}:\n{words}")

    def configure(self, settings: Mapping[str, Any] | None = None) -> None:
        """`settings` are added to every agent's."""
        ports = iter(free_ports(9))
        base = {"region": "global", "datacenter": "dc1", "bind_addr": "127.0.0.1",
                "advertise": dict.fromkeys(("http", "rpc", "serf"), "127.0.0.1"),
                "acl": {"enabled": True}, "log_level": "INFO",
                "disable_update_check": True,
                "consul": {"auto_advertise": False, "server_auto_join": False,
                           "client_auto_join": False},
                **(settings or {})}  # fmt: skip
        server_ports = {name: next(ports) for name in ("http", "rpc", "serf")}
        self._write(SERVER, server_ports, {
            **base,
            "server": {"enabled": True, "bootstrap_expect": 1, "heartbeat_grace": "1s",
                       "min_heartbeat_ttl": "2s", "raft_multiplier": 1},
        })  # fmt: skip
        for node in NODES:
            volume = self.directory / f"{node}-volume"
            volume.mkdir()
            self._write(node, {name: next(ports) for name in ("http", "rpc", "serf")}, {
                **base,
                "plugin": [{"raw_exec": [{"config": [{"enabled": True}]}]}],
                "client": {
                    "enabled": True,
                    "servers": [f"127.0.0.1:{server_ports['rpc']}"],
                    "network_interface": "lo",
                    "no_host_uuid": True,
                    "meta": {"class_note": "x"},
                    "host_volume": [{"services": [{"path": str(volume)}]}],
                    "options": {
                        "driver.allowlist": "raw_exec",
                        "fingerprint.denylist": "env_aws,env_azure,env_digitalocean,env_gce",
                    },
                },
            })  # fmt: skip

    def _write(self, agent: str, ports: dict[str, int], settings: dict[str, Any]) -> None:
        self.ports[agent] = ports["http"]
        data = self.directory / f"{agent}-data"
        doc = {"name": agent, "data_dir": str(data), "ports": ports, **settings}
        (self.directory / f"{agent}.json").write_text(json.dumps(doc))

    def _answers(self, agent: str) -> bool:
        request = Request("GET", "/v1/status/leader")
        with suppress(TransportError):
            answer = exchange(Endpoint.parse(self.address(agent)), request, soon(2.0))
            return answer.status == 200 and len(answer.body) > 4
        return False

    def end(self) -> None:
        """Agents first, then what runs on without them, then what they mounted."""
        for agent in self.agents.values():
            with suppress(ProcessLookupError):
                agent.kill()
            agent.wait(patient(20.0))

        def all_gone() -> bool:
            left = _processes_below(self.directory)
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        wait_for(all_gone, 20.0, "what ran on without its agent is gone")
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            target = line.split()[4]
            if Path(target).is_relative_to(self.directory):
                subprocess.run(["umount", target], check=True, timeout=patient(20.0))
        for group in sorted(_cgroups() - self.groups_before, reverse=True):
            with suppress(OSError):  # the kernel takes no group away that is in use
                group.rmdir()


def _cgroups() -> set[Path]:
    """Nomad's control groups, all levels of them, in both layouts."""
    groups = set()
    for top in Path("/sys/fs/cgroup").glob("*"):
        for base in (top / "nomad", top):
            if base.name in ("nomad", "nomad.slice") and base.is_dir():
                groups |= {base, *(entry for entry in base.rglob("*") if entry.is_dir())}
    return groups


def _processes_below(directory: Path) -> list[int]:
    """Executors name their directory on the command line; tasks work in it."""
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            cwd = (entry / "cwd").readlink()
            executor = b"executor" in words and bytes(directory) + b"/" in words
            if executor or cwd.is_relative_to(directory):
                pids.append(int(entry.name))
    return pids


@contextmanager
def real_cluster(directory: Path) -> Iterator[NomadCluster]:
    machines = RealMachines(nomad_binary(), directory)
    machines.configure()
    try:
        for agent in (SERVER, *NODES):
            machines.launch(agent)
        for agent in (SERVER, *NODES):
            machines.wait_for(agent)
        cluster = NomadCluster("real", machines, meta_s=20, down_s=30, stubborn_s=15)
        _bootstrap(cluster)
        cluster.secret = cluster.token(POLICY.read_text())
        wait_for(lambda: _all_ready(cluster), START_S, "both nodes are ready", 0.1)
        yield cluster
    finally:
        machines.end()


def _bootstrap(cluster: NomadCluster) -> None:
    def done() -> bool:
        answer = cluster.ask("POST", "/v1/acl/bootstrap", {"BootstrapSecret": MANAGEMENT})
        return answer.status == 200

    wait_for(done, 20.0, "the ACLs are bootstrapped", 0.1)


def _all_ready(cluster: NomadCluster) -> bool:
    nodes = cluster.gateway(SERVER).nodes()
    return len(nodes) == len(NODES) and all(node.status == "ready" for node in nodes)
