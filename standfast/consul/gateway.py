"""The only module that speaks to Consul.

Invariants: every call ends by its deadline. An answer is believed only in the shape that Consul
sends. A write that may have been applied is never repeated by itself, here or at another address:
`ConsulError.maybe_applied` tells the caller to read back. The token appears in no message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from standfast.consul.client import NEXT_STEP, TRANSFER, Client, Failed, Question
from standfast.consul.keys import KeyGateway
from standfast.consul.values import (
    Cas,
    Check,
    CheckIndex,
    CheckNotExists,
    Committed,
    Conflict,
    Delete,
    Entry,
    Instance,
    Registration,
    Set,
    parse_critical,
    parse_election_timeout,
    parse_instance,
    parse_is_leader,
    parse_local_services,
    parse_node_health,
    parse_node_name,
    parse_success,
)
from standfast.errors import ConsulDenied, ConsulError
from standfast.system.clock import Deadline

__all__ = [
    "Cas",
    "CheckIndex",
    "CheckNotExists",
    "Committed",
    "Conflict",
    "ConsulBlind",
    "ConsulGateway",
    "Delete",
    "Entry",
    "Instance",
    "Set",
]


class ConsulBlind(ConsulDenied):
    """The token is accepted but sees nothing: `[]` from Consul would prove nothing."""


PATIENT_S = 5.0
"""For commands that hold no lease: with a fast profile a heartbeat's deadline is too short."""


class ConsulGateway(KeyGateway):
    """Speaks to Consul: its keys, its services and nodes, and the node's own agent."""

    # Services and nodes

    def instances(
        self, service: str, *, consistent: bool = True, deadline: Deadline | None = None
    ) -> tuple[Instance, ...]:
        """Returns all instances of a service, healthy or not. `()` never proves that nobody
        serves."""
        path = f"/v1/health/service/{service}"
        return self._ask(
            f"reading the health of service {service}",
            deadline,
            lambda client: tuple(parse_instance(item) for item in _list(client, path, consistent)),
        )

    def node_health(self, node: str, *, deadline: Deadline | None = None) -> str:
        """Returns passing, critical, or absent: gossip knows no such node (or the token can't see
        it)."""
        path = f"/v1/health/node/{node}"
        return self._ask(
            f"reading the health of node {node}",
            deadline,
            lambda client: parse_node_health(_list(client, path, True)),
        )

    def critical_on(self, node: str, *, deadline: Deadline | None = None) -> tuple[Check, ...]:
        """Returns the critical checks of a node and of the services on it, those of maintenance
        among them, but for what gossip says."""
        path = f"/v1/health/node/{node}"
        return self._ask(
            f"reading the checks of node {node}",
            deadline,
            lambda client: parse_critical(_list(client, path, False)),
        )

    def leader(self, *, deadline: Deadline | None = None) -> str:
        """Returns the address of the server that leads the others, as the agent knows it; empty:
        none."""

        def call(client: Client) -> str:
            leader = client.status.leader()
            if not isinstance(leader, str):
                raise ValueError(f"{leader!r} is no address")
            return leader

        return self._ask("asking for the leader", deadline, call)

    def self_check(self, *, deadline: Deadline | None = None) -> None:
        """Raises ConsulBlind when the token can't see the passing instances of service `consul`."""
        seen = self.instances("consul", deadline=deadline)
        if not any(server.node_health == server.checks == "passing" for server in seen):
            raise ConsulBlind(
                f"The Consul token sees {len(seen)} instances of the service `consul` and none "
                "of them passing, so an empty answer would prove nothing. "
                + NEXT_STEP[ConsulDenied]
            )

    # The node's own agent

    def register(self, entry: Registration, *, deadline: Deadline | None = None) -> None:
        """Registers a service; its check is critical until `pass_check`."""
        self._write(
            f"registering the service {entry.service_id}",
            deadline,
            lambda client: client.agent.service.register(
                entry.name,
                entry.service_id,
                address=entry.address,
                port=entry.port,
                meta=dict(entry.meta),
                check={"name": entry.check_name, "ttl": f"{entry.check_ttl_s:.3f}s"},
            ),
            local=True,
        )

    def deregister(self, service_id: str, *, deadline: Deadline | None = None) -> None:
        """Deregisters a service; one that the agent doesn't know is fine."""

        def call(client: Client) -> Any:
            try:
                return client.agent.service.deregister(service_id)
            except Failed as failed:
                if "unknown service" not in str(failed).lower():  # 404 or 500, by version
                    raise
            return True

        self._write(f"deregistering the service {service_id}", deadline, call, local=True)

    def pass_check(self, check_id: str, note: str, *, deadline: Deadline | None = None) -> None:
        """Sets a TTL check of the agent to passing, with a note."""
        self._write(
            f"passing the check {check_id}",
            deadline,
            lambda client: client.agent.check.ttl_pass(check_id, notes=note),
            local=True,
        )

    def fail_check(self, check_id: str, note: str, *, deadline: Deadline | None = None) -> None:
        """Sets a TTL check of the agent to critical, with a note."""
        self._write(
            f"failing the check {check_id}",
            deadline,
            lambda client: client.agent.check.ttl_fail(check_id, notes=note),
            local=True,
        )

    def local_services(
        self, *, deadline: Deadline | None = None
    ) -> Mapping[str, Mapping[str, str]]:
        """Returns the services registered with the node's own agent: id -> meta."""
        return self._ask(
            "reading the agent's services",
            deadline,
            lambda client: parse_local_services(client.agent.services()),
            local=True,
        )

    def node_name(self, *, deadline: Deadline | None = None) -> str:
        """Returns what the node's own agent is called, which is the node's name in Consul."""
        return self._ask(
            "asking the agent for its name",
            deadline,
            lambda client: parse_node_name(client.agent.self()),
            local=True,
        )

    def election_timeout_s(self, *, deadline: Deadline | None = None) -> float | None:
        """Returns the Raft election timeout of the node's own agent, seconds; None: it tells none,
        or is no server."""
        return self._ask(
            "asking the agent for its Raft timing",
            deadline,
            lambda client: parse_election_timeout(client.agent.self()),
            local=True,
        )

    def is_leader(self, *, deadline: Deadline | None = None) -> bool:
        """Tells whether the node's own agent is the server that leads the others."""
        return self._ask(
            "asking the agent whether it leads",
            deadline,
            lambda client: parse_is_leader(client.agent.self()),
            local=True,
        )

    def transfer_leadership(self, *, deadline: Deadline | None = None) -> None:
        """Has the leading server hand over to another one that has all of its log: Consul 1.15 or
        later, and a token with `operator = "write"`."""

        def parse(response: Any) -> bool:
            if response.code == 404:
                raise Failed(ConsulError, "before 1.15 it can't transfer its leadership")
            return parse_success(json.loads(response.body))

        def call(client: Client) -> None:
            if client.http.post(parse, TRANSFER) is not True:
                raise ValueError("no success")

        # Raft waits until the other server has all of its log.
        until = deadline or Deadline.after(PATIENT_S)
        step = (
            "Take consul.transfer_leadership out, or see `consul operator raft list-peers`: it "
            "needs Consul 1.15 and another server that votes."
        )
        what = "transferring its leadership"
        self._addresses.ask(
            Question(what, until, write=True, patient=True, local=True, next_step=step), call
        )


def _list(client: Client, path: str, consistent: bool) -> list[Mapping[str, Any]]:
    """The library has no consistency on the health endpoints: the parameter is set here."""
    params = [("consistent", "1")] if consistent else None
    doc = client.http.get(lambda response: json.loads(response.body), path, params=params)
    if isinstance(doc, list):
        return doc
    raise TypeError("a list was expected")
