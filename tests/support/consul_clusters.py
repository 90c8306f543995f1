"""Consul clusters for tests: the embedded one, and a real single server (not `-dev`)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from standfast.consul.gateway import ConsulGateway
from standfast.consul.http import Answer, Endpoint, Request, TransportError, exchange
from standfast.demo.consul.server import EmbeddedConsul
from tests.support.checkout import CHECKOUT
from tests.support.pace import patient
from tests.support.waiting import soon, wait_for

NODE = "n1"
START_S = 30.0
NOT_HERE = 3
"""The script's status where it can't fetch one: what fails on the way is another."""


@cache
def consul_binary() -> str:
    """The path of a consul binary; skips, with the script's own words, where none can be had."""
    fetched = subprocess.run(
        [CHECKOUT / "tests/tools/consul"], capture_output=True, text=True, timeout=patient(300.0)
    )
    if fetched.returncode == NOT_HERE:
        pytest.skip(fetched.stderr.strip()[-300:])
    if fetched.returncode:
        pytest.fail(f"no consul binary: {fetched.stderr.strip()[-2000:]}")
    return fetched.stdout.strip()


@dataclass(frozen=True)
class ConsulCluster:
    """One agent's HTTP address, host:port; its node is NODE."""

    kind: str
    address: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def gateway(self, **options: Any) -> ConsulGateway:
        return ConsulGateway([self.address], timeout_s=patient(5.0), **options)

    def ask(self, method: str, target: str, body: bytes | None = None) -> Answer:
        request = Request(method, target, self.headers, body)
        return exchange(Endpoint.parse(self.address), request, soon(120.0))

    def get_json(self, target: str) -> Any:
        answer = self.ask("GET", target)
        assert answer.status == 200, answer
        return json.loads(answer.body)

    def cli(self, *args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """The real `consul` command against this cluster."""
        return subprocess.run(
            [consul_binary(), *args],
            env=self.cli_env(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=patient(20.0),
        )

    def cli_env(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if "CONSUL" not in key}
        return {**kept, "CONSUL_HTTP_ADDR": self.address}


@contextmanager
def embedded_cluster() -> Iterator[ConsulCluster]:
    with EmbeddedConsul() as consul:
        consul.add_agent(NODE)
        yield ConsulCluster("embedded", consul.address(NODE))


@contextmanager
def real_cluster(
    directory: Path, settings: Mapping[str, Any] | None = None, token: str = ""
) -> Iterator[ConsulCluster]:
    """A server agent with `settings` added to its configuration; ended by its process id."""
    binary = consul_binary()
    http, server, lan, wan = free_ports(4)
    headers = {"X-Consul-Token": token} if token else {}
    cluster = ConsulCluster("real", f"127.0.0.1:{http}", headers)
    (directory / "agent.json").write_text(
        json.dumps(
            {
                "node_name": NODE,
                "server": True,
                "bootstrap_expect": 1,
                "bind_addr": "127.0.0.1",
                "client_addr": "127.0.0.1",
                "data_dir": str(directory / "data"),
                "performance": {"raft_multiplier": 1},
                **(settings or {}),
                "ports": {
                    "http": http,
                    "server": server,
                    "serf_lan": lan,
                    "serf_wan": wan,
                    "dns": -1,
                    "grpc": -1,
                    **(settings or {}).get("ports", {}),
                },
            }
        )
    )
    with ExitStack() as stack:
        log = stack.enter_context((directory / "log").open("wb"))
        agent = subprocess.Popen(
            [binary, "agent", "-config-file", directory / "agent.json"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=cluster.cli_env(),
        )
        try:
            _wait_until_ready(cluster, agent, directory / "log")
            yield cluster
        finally:
            agent.kill()
            agent.wait(patient(20.0))


@dataclass(frozen=True)
class Server:
    """One of several real servers; `address` is that of its HTTP."""

    cluster: ConsulCluster
    rpc: str
    process: subprocess.Popen[bytes]


@contextmanager
def real_servers(directory: Path, count: int = 3) -> Iterator[Sequence[Server]]:
    """Real servers that elected a leader; ended by their process ids, stopped ones too."""
    ports = [free_ports(4) for _ in range(count)]
    with ExitStack() as stack:
        servers = []
        for number, (http, rpc, lan, wan) in enumerate(ports, 1):
            settings = {
                "node_name": f"n{number}",
                "server": True,
                "bootstrap_expect": count,
                "bind_addr": "127.0.0.1",
                "client_addr": "127.0.0.1",
                "data_dir": str(directory / f"data{number}"),
                "retry_join": [f"127.0.0.1:{other[2]}" for other in ports],
                "retry_interval": "1s",
                "performance": {"raft_multiplier": 1},
                "ports": {
                    **{"http": http, "server": rpc, "serf_lan": lan, "serf_wan": wan},
                    **{"dns": -1, "grpc": -1},
                },
            }
            file = directory / f"n{number}.json"
            file.write_text(json.dumps(settings))
            cluster = ConsulCluster("real", f"127.0.0.1:{http}")
            log = stack.enter_context((directory / f"n{number}.log").open("wb"))
            process = subprocess.Popen(
                [consul_binary(), "agent", "-config-file", file],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=cluster.cli_env(),
            )
            stack.callback(process.wait, patient(20.0))
            stack.callback(process.kill)
            servers.append(Server(cluster, f"127.0.0.1:{rpc}", process))

        def agreed() -> bool:
            seen = {leader_seen_by(server) for server in servers}
            return len(seen) == 1 and "" not in seen

        wait_for(agreed, START_S, f"{count} consul servers have elected a leader", 0.2)
        yield servers


def leader_seen_by(server: Server) -> str:
    """The leader's RPC address; empty: none, or no answer."""
    try:
        return str(server.cluster.get_json("/v1/status/leader"))
    except (TransportError, AssertionError):
        return ""


def _wait_until_ready(cluster: ConsulCluster, agent: subprocess.Popen[bytes], log: Path) -> None:
    try:
        wait_for(
            lambda: _is_ready(cluster) or agent.poll() is not None, START_S, "consul is ready", 0.1
        )
        assert agent.poll() is None, "consul ended"
    except AssertionError as error:
        pytest.fail(f"{error}:\n{log.read_text(errors='replace')[-2000:]}")


def _is_ready(cluster: ConsulCluster) -> bool:
    try:
        answer = cluster.ask("GET", f"/v1/health/node/{NODE}?consistent")
    except TransportError:
        return False
    return answer.status == 200 and b"serfHealth" in answer.body


def free_ports(count: int) -> Sequence[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for snapshot in taken:
            snapshot.bind(("127.0.0.1", 0))
        return [snapshot.getsockname()[1] for snapshot in taken]
