"""The agents of the embedded cluster: each node's own services and checks.

Invariant: an agent is the only one that changes its services in the cluster's state, and does so
only while it is up and the cluster has a quorum; what it missed then, it makes up for afterwards.
A dead agent lets nothing expire: its services stay as they were, as in Consul. The caller holds
the cluster's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from standfast.demo.consul.state import SERF_HEALTH, CheckRow, ClusterState, ServiceRow

# Every node of the embedded cluster is a server, and Consul lists its servers as a service.
SERVER_SERVICE = "consul"
STATUSES = ("passing", "warning", "critical")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class BadRegistration(Exception):
    """Consul's 400 for a definition that it can't take."""


class UnknownCheck(Exception):
    """Consul's 500 for a check that has no TTL here."""


@dataclass(slots=True)
class _LocalCheck:
    check_id: str
    name: str
    service_id: str
    ttl_s: float
    status: str
    output: str
    expires_at: float
    """Monotonic seconds."""


class Agent:
    """One node's agent. `health` is what the cluster's gossip says of it."""

    def __init__(self, node: str, address: str) -> None:
        self.node = node
        self.address = address
        self.health = "passing"
        self.up = True
        self._services: dict[str, ServiceRow] = {}
        self._checks: dict[str, _LocalCheck] = {}

    def register(self, doc: Mapping[str, Any], now: float) -> None:
        """A service with its TTL checks; a check that is known keeps its status."""
        fields = _lowered(doc)
        name = fields.get("name")
        if not isinstance(name, str) or not name:
            raise BadRegistration("Missing service name")
        service_id = str(fields.get("id") or name)
        checks = [check for check in [fields.get("check"), *(fields.get("checks") or [])] if check]
        local = [
            self._parse_check(_lowered(check), service_id, position, len(checks))
            for position, check in enumerate(checks, start=1)
        ]
        self._services[service_id] = ServiceRow(
            node=self.node,
            service_id=service_id,
            name=name,
            address=str(fields.get("address") or ""),
            port=int(fields.get("port") or 0),
            tags=tuple(fields.get("tags") or ()),
            meta=dict(fields.get("meta") or {}),
        )
        for check in local:
            old = self._checks.get(check.check_id)
            if old is not None:
                check.status, check.output = old.status, old.output
            check.expires_at = now + check.ttl_s
            self._checks[check.check_id] = check

    def deregister(self, service_id: str) -> None:
        self._services.pop(service_id, None)
        self._checks = {
            key: check for key, check in self._checks.items() if check.service_id != service_id
        }

    def update_check(self, check_id: str, status: str, output: str, now: float) -> None:
        check = self._checks.get(check_id)
        if check is None:
            raise UnknownCheck(f'CheckID "{check_id}" does not have associated TTL')
        check.expires_at = now + check.ttl_s
        if check.status != status:  # Consul defers a mere change of output by minutes
            check.status, check.output = status, output

    def expire(self, now: float) -> bool:
        """Turns critical what was not refreshed; tells whether anything was."""
        expired = [
            check
            for check in self._checks.values()
            if check.status != "critical" and check.expires_at <= now
        ]
        for check in expired:
            check.output = f"TTL expired (last output before timeout follows): {check.output}"
            check.status = "critical"
        return bool(expired)

    def next_expiry(self) -> float | None:
        """Monotonic seconds at which `expire` has to be called."""
        times = [c.expires_at for c in self._checks.values() if c.status != "critical"]
        return min(times, default=None)

    def sync(self, state: ClusterState) -> None:
        """Makes the catalog say what this agent knows; nothing while gossip misses the node."""
        if self.health == "absent":
            return
        index = state.next_index()
        state.put_node(index, self.node, self.address)
        for service in self._services.values():
            state.put_service(index, service)
        for check in self._checks.values():
            state.put_check(index, self._row(check))
        for row in state.services_on(self.node):
            if row.service_id not in (SERVER_SERVICE, *self._services):
                state.remove_service(state.next_index(), self.node, row.service_id)

    def publish_health(self, state: ClusterState) -> None:
        """What the leader does when gossip changes its mind about the node."""
        index = state.next_index()
        if self.health == "absent":
            state.remove_node(index, self.node)
            return
        passing = self.health == "passing"
        output = "Agent alive and reachable" if passing else "Agent not live or unreachable"
        state.put_node(index, self.node, self.address)
        state.put_service(index, ServiceRow(self.node, SERVER_SERVICE, SERVER_SERVICE, port=8300))
        state.put_check(
            index, CheckRow(self.node, SERF_HEALTH, "Serf Health Status", self.health, output)
        )

    def services(self) -> Mapping[str, ServiceRow]:
        return dict(self._services)

    def _row(self, check: _LocalCheck) -> CheckRow:
        return CheckRow(
            node=self.node,
            check_id=check.check_id,
            name=check.name,
            status=check.status,
            output=check.output,
            service_id=check.service_id,
            service_name=self._services[check.service_id].name,
            kind="ttl",
        )

    def _parse_check(
        self, fields: Mapping[str, Any], service_id: str, position: int, count: int
    ) -> _LocalCheck:
        if not fields.get("ttl"):
            raise BadRegistration("Only checks with a TTL exist here")
        default_id = f"service:{service_id}" + (f":{position}" if count > 1 else "")
        status = str(fields.get("status") or "critical")
        if status not in STATUSES:
            raise BadRegistration(f"Invalid check status: '{status}'")
        return _LocalCheck(
            check_id=str(fields.get("checkid") or fields.get("id") or default_id),
            name=str(fields.get("name") or f"Service '{service_id}' check"),
            service_id=service_id,
            ttl_s=parse_duration(str(fields["ttl"])),
            status=status,
            output="",
            expires_at=0.0,
        )


def parse_duration(text: str) -> float:
    """Seconds of a simple Go duration: `10s`, `2.5s`, `300ms`; BadRegistration otherwise."""
    number = text.rstrip("msh")
    unit = _UNITS_S.get(text[len(number) :])
    try:
        if unit is None:
            raise ValueError("no unit")
        return float(number) * unit
    except ValueError as error:
        raise BadRegistration(f'time: invalid duration "{text}"') from error


def _lowered(doc: Any) -> dict[str, Any]:
    """Consul takes field names in any case, with or without underscores."""
    if not isinstance(doc, dict):
        raise BadRegistration("Request decode failed: an object was expected")
    return {key.lower().replace("_", ""): value for key, value in doc.items()}
