"""What goes to Consul and what comes back, as values.

Invariant: nothing of an answer is believed without a look at its shape; ValueError, KeyError or
TypeError from here means that the answer isn't Consul's. Nothing here speaks to the network.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

SERF_HEALTH = "serfHealth"
_WORST_FIRST = ("critical", "warning", "passing")


class Entry(Struct, frozen=True):
    """One KV entry."""

    key: str
    value: bytes
    modify_index: int


class Instance(Struct, frozen=True):
    """One instance of a service with its health."""

    service_id: str
    node: str
    address: str
    """The service's own address, or else its node's."""
    port: int
    meta: Mapping[str, str]
    node_health: str
    """serfHealth of its node: passing, critical or unknown."""
    checks: str
    """The worst of the service's own checks: passing, warning or critical."""


class CheckIndex(Struct, frozen=True):
    """The key exists and its ModifyIndex is `index`."""

    key: str
    index: int


class CheckNotExists(Struct, frozen=True):
    """Nobody has made the key."""

    key: str


class Cas(Struct, frozen=True):
    """Set the key if its ModifyIndex is `index`; 0: if it doesn't exist."""

    key: str
    index: int
    value: bytes


class Registration(Struct, frozen=True):
    """A service of the node's own agent, with a TTL check `service:<service_id>`."""

    service_id: str
    name: str
    address: str
    port: int
    meta: Mapping[str, str]
    check_ttl_s: float
    check_name: str


class Set(Struct, frozen=True):
    """Write the key whatever it holds."""

    key: str
    value: bytes


class Delete(Struct, frozen=True):
    """Have the key gone."""

    key: str


Op = CheckIndex | CheckNotExists | Cas | Set | Delete


class Committed(Struct, frozen=True):
    """Everything was done; the new ModifyIndex of each key that was written."""

    indexes: Mapping[str, int]


class Conflict(Struct, frozen=True):
    """Nothing was done: a condition didn't hold."""

    errors: tuple[str, ...]


def dump_op(op: Op) -> dict[str, Any]:
    match op:
        case CheckIndex(key, index):
            return {"KV": {"Verb": "check-index", "Key": key, "Index": index}}
        case CheckNotExists(key):
            return {"KV": {"Verb": "check-not-exists", "Key": key}}
        case Cas(key, index, value):
            return {"KV": {"Verb": "cas", "Key": key, "Index": index, "Value": _encode(value)}}
        case Set(key, value):
            return {"KV": {"Verb": "set", "Key": key, "Value": _encode(value)}}
        case Delete(key):
            return {"KV": {"Verb": "delete", "Key": key}}


def parse_entry(raw: Mapping[str, Any]) -> Entry:
    """`Value` has been decoded; Consul sends null for an empty one."""
    value = raw["Value"]
    if value is not None and not isinstance(value, bytes):
        raise TypeError("Value is neither text nor null")
    return Entry(_text(raw["Key"]), value or b"", _index(raw["ModifyIndex"]))


def parse_committed(doc: Any, ops: Sequence[Op]) -> Committed:
    """The answer to a txn with status 200."""
    if doc["Errors"]:
        raise ValueError("it reports errors although it says 200")
    indexes = {}
    for result in _items(doc["Results"] or []):
        entry = result.get("KV")
        if entry is not None:
            indexes[_text(entry["Key"])] = _index(entry["ModifyIndex"])
    written = {op.key for op in ops if isinstance(op, Cas | Set)}
    missing = sorted(written - indexes.keys())
    if missing:
        raise ValueError(f"no result for {missing}")
    return Committed({key: indexes[key] for key in sorted(written)})


def parse_conflict(doc: Any) -> Conflict:
    """The answer to a txn with status 409."""
    errors = tuple(
        f"operation {int(error['OpIndex'])}: {_text(error['What'])}"
        for error in _items(doc["Errors"])
    )
    if not errors:
        raise ValueError("409 without an error")
    return Conflict(errors)


def parse_instance(raw: Mapping[str, Any]) -> Instance:
    node, service = raw["Node"], raw["Service"]
    service_id = _text(service["ID"])
    checks = _items(raw["Checks"])
    serf = [c["Status"] for c in checks if c["CheckID"] == SERF_HEALTH and not c["ServiceID"]]
    port = service["Port"]
    if type(port) is not int:
        raise TypeError("Port is not a number")
    return Instance(
        service_id=service_id,
        node=_text(node["Node"]),
        address=service["Address"] or _text(node["Address"]),
        port=port,
        meta=_meta(service["Meta"]),
        node_health=worst(serf) if serf else "unknown",
        checks=worst([c["Status"] for c in checks if c["ServiceID"] == service_id]),
    )


def parse_node_health(doc: Any) -> str:
    """passing or critical by serfHealth; absent when gossip says nothing about the node."""
    serf = [check["Status"] for check in _items(doc) if check["CheckID"] == SERF_HEALTH]
    return "absent" if not serf else worst(serf)


def parse_local_services(doc: Any) -> Mapping[str, Mapping[str, str]]:
    return {_text(service_id): _meta(service["Meta"]) for service_id, service in dict(doc).items()}


def worst(statuses: Sequence[str]) -> str:
    """The worst status; passing when there is none. ValueError for one that Consul has not."""
    for status in statuses:
        if status not in _WORST_FIRST:
            raise ValueError(f"the check status {status!r} is unknown")
    return next((status for status in _WORST_FIRST if status in statuses), "passing")


def _items(raw: Any) -> list[Mapping[str, Any]]:
    if not isinstance(raw, list) or not all(isinstance(item, dict) for item in raw):
        raise TypeError("a list of objects was expected")
    return raw


def _meta(raw: Any) -> Mapping[str, str]:
    return {_text(key): str(value) for key, value in dict(raw or {}).items()}


def _text(raw: Any) -> str:
    if not isinstance(raw, str) or not raw:
        raise TypeError(f"{raw!r} is not a non-empty text")
    return raw


def _index(raw: Any) -> int:
    if type(raw) is not int or raw < 1:
        raise ValueError(f"{raw!r} is not an index")
    return raw


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
