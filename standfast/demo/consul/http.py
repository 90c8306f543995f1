"""Consul's HTTP API, as far as Standfast uses it, over the embedded cluster.

Invariant: status, headers and body are those of a Consul 1.8 server (tests/contract compares
them); what isn't offered is refused in words, never answered by a guess.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote

from standfast.demo.consul.agents import STATUSES, Agent, BadRegistration, UnknownCheck
from standfast.demo.consul.calls import BadRequest, Call, NoLeader, Reply
from standfast.demo.consul.shapes import (
    DATACENTER,
    catalog_shape,
    check_shape,
    health_shape,
    node_id,
    node_shape,
    service_shape,
)
from standfast.demo.consul.state import CheckRow, ClusterState
from standfast.system.clock import monotonic

MAX_VALUE_BYTES = 512 * 1024
MAX_OPS = 64


class Cluster(Protocol):
    """What the endpoints need of the embedded server."""

    state: ClusterState

    def read(self, call: Call, compute: Callable[[], tuple[int, Any]]) -> tuple[int, Any, bool]:
        """(index, payload, leader known); waits as a blocking query; may raise NoLeader."""

    def write(self, change: Callable[[], Any]) -> Any:
        """Carry out a change of the cluster's state, or raise NoLeader."""

    def local(self, agent: Agent, change: Callable[[], Any]) -> Any:
        """Carry out a change of the agent and bring it to the catalog."""

    def has_quorum(self) -> bool: ...


def answer(cluster: Cluster, call: Call) -> Reply:
    """The reply to a call; every refusal is a Reply as well."""
    try:
        for prefix, methods in _ROUTES:
            if call.path == prefix or (prefix.endswith("/") and call.path.startswith(prefix)):
                endpoint = methods.get(call.method)
                if endpoint is None:
                    return _plain(405, f"method {call.method} not allowed")
                return endpoint(cluster, call)
        return Reply(404)
    except BadRequest as refusal:
        return _plain(refusal.status, str(refusal))
    except BadRegistration as refusal:
        return _plain(400, str(refusal))
    except UnknownCheck as refusal:
        return _plain(500, str(refusal))
    except NoLeader:
        return _plain(500, "No cluster leader")


# KV


def _kv_get(cluster: Cluster, call: Call) -> Reply:
    key, state = call.rest("/v1/kv/"), cluster.state
    if "keys" in call.query or "recurse" in call.query:
        index, rows, known = cluster.read(call, lambda: state.keys_under(key))
        if "keys" in call.query:
            found: list[Any] = _key_names(rows, key, call.query.get("separator", ""))
        else:
            found = [row.dump() for row in rows]
        return _read_reply(found, index, known) if found else _missing(index, known)
    if not key:
        raise BadRequest("Missing key name")
    index, row, known = cluster.read(call, lambda: state.key(key))
    if row is None:
        return _missing(index, known)
    if "raw" in call.query:
        return Reply(200, row.value, "text/plain", _read_headers(index, known))
    return _read_reply([row.dump()], index, known)


def _key_names(rows: list[Any], prefix: str, separator: str) -> list[str]:
    names = []
    for row in rows:
        end = row.key.find(separator, len(prefix)) if separator else -1
        names.append(row.key if end < 0 else row.key[: end + len(separator)])
    return list(dict.fromkeys(names))


def _kv_put(cluster: Cluster, call: Call) -> Reply:
    key, state = call.rest("/v1/kv/"), cluster.state
    if not key:
        raise BadRequest("Missing key name")
    if {"acquire", "release"} & call.query.keys():
        raise BadRequest("sessions are not offered by the embedded server")
    if len(call.body) > MAX_VALUE_BYTES:
        size = f"Request body({len(call.body)} bytes) too large, max size: {MAX_VALUE_BYTES} bytes."
        raise BadRequest(size, 413)
    flags = call.number("flags")
    if "cas" in call.query:
        expected = call.number("cas")
        done = cluster.write(
            lambda: state.cas_key(state.next_index(), key, call.body, expected, flags)
        )
        return _json(bool(done))
    cluster.write(lambda: state.set_key(state.next_index(), key, call.body, flags))
    return _json(True)


def _kv_delete(cluster: Cluster, call: Call) -> Reply:
    key, state = call.rest("/v1/kv/"), cluster.state
    if "recurse" in call.query:
        cluster.write(lambda: state.delete_under(state.next_index(), key))
        return _json(True)
    if not key:
        raise BadRequest("Missing key name")
    if "cas" in call.query:
        expected = call.number("cas")
        return _json(
            bool(cluster.write(lambda: state.cas_delete_key(state.next_index(), key, expected)))
        )
    cluster.write(lambda: state.delete_key(state.next_index(), key))
    return _json(True)


def _txn(cluster: Cluster, call: Call) -> Reply:
    ops = call.json()
    if not isinstance(ops, list) or not all(
        isinstance(op, dict) and isinstance(op.get("KV"), dict) for op in ops
    ):
        raise BadRequest("Failed to parse body: a list of KV operations was expected")
    if len(ops) > MAX_OPS:
        text = f"Transaction contains too many operations ({len(ops)} > {MAX_OPS})"
        raise BadRequest(text, 413)
    for op in ops:
        if not isinstance(op["KV"].get("Key"), str) or not isinstance(op["KV"].get("Verb"), str):
            raise BadRequest("Failed to parse body: Key and Verb are texts")
    try:
        results, errors = cluster.write(lambda: cluster.state.transact(ops))
    except (
        ValueError,
        TypeError,
    ) as error:  # a value that isn't base64, an index that isn't a number
        raise BadRequest(f"Failed to parse body: {error}") from error
    if errors:
        return _json({"Results": None, "Errors": errors}, 409)
    return _json({"Results": results, "Errors": None})


# Agent


def _agent_self(_cluster: Cluster, call: Call) -> Reply:
    agent = call.agent
    config = {
        "Datacenter": DATACENTER,
        "NodeName": agent.node,
        "NodeID": node_id(agent.node),
        "Server": True,
        "Version": "1.8.7",
    }
    return _json({"Config": config, "Member": {"Name": agent.node, "Addr": agent.address}})


def _agent_services(_cluster: Cluster, call: Call) -> Reply:
    return _json({key: service_shape(row) for key, row in call.agent.services().items()})


def _agent_checks(_cluster: Cluster, call: Call) -> Reply:
    return _json({row.check_id: check_shape(row) for row in call.agent.checks()})


def _register(cluster: Cluster, call: Call) -> Reply:
    doc = call.json()
    cluster.local(call.agent, lambda: call.agent.register(doc, monotonic()))
    return Reply(200)


def _deregister(cluster: Cluster, call: Call) -> Reply:
    service_id = call.rest("/v1/agent/service/deregister/")
    cluster.local(call.agent, lambda: call.agent.deregister(service_id))
    return Reply(200)


def _check_verb(status: str) -> Callable[[Cluster, Call], Reply]:
    def endpoint(cluster: Cluster, call: Call) -> Reply:
        check_id = call.path.split("/", 5)[5]
        return _update(cluster, call, unquote(check_id), status, call.query.get("note", ""))

    return endpoint


def _check_update(cluster: Cluster, call: Call) -> Reply:
    doc = call.json()
    if not isinstance(doc, dict) or doc.get("Status") not in STATUSES:
        shown = doc.get("Status") if isinstance(doc, dict) else doc
        raise BadRequest(f"Invalid check status: '{shown}'")
    check_id = call.rest("/v1/agent/check/update/")
    return _update(cluster, call, check_id, doc["Status"], str(doc.get("Output") or ""))


def _update(cluster: Cluster, call: Call, check_id: str, status: str, output: str) -> Reply:
    cluster.local(
        call.agent, lambda: call.agent.update_check(check_id, status, output, monotonic())
    )
    return Reply(200)


# Catalog and health


def _catalog_nodes(cluster: Cluster, call: Call) -> Reply:
    index, rows, known = cluster.read(call, cluster.state.nodes)
    return _read_reply([node_shape(row) for row in rows], index, known)


def _catalog_services(cluster: Cluster, call: Call) -> Reply:
    index, names, known = cluster.read(call, cluster.state.service_names)
    return _read_reply(names, index, known)


def _catalog_service(cluster: Cluster, call: Call) -> Reply:
    name, state = call.rest("/v1/catalog/service/"), cluster.state

    def compute() -> tuple[int, list[Any]]:
        index, rows = state.services(name)
        return index, [catalog_shape(state, row) for row in rows]

    return _found(cluster, call, compute)


def _health_service(cluster: Cluster, call: Call) -> Reply:
    name, state = call.rest("/v1/health/service/"), cluster.state
    passing_only = call.query.get("passing", "0") not in ("0", "false")

    def compute() -> tuple[int, list[Any]]:
        index, rows = state.services(name)
        found = [health_shape(state, row) for row in rows]
        if passing_only:
            found = [one for one in found if all(c["Status"] == "passing" for c in one["Checks"])]
        return index, found

    return _found(cluster, call, compute)


def _health_checks_of(
    prefix: str, choose: Callable[[CheckRow, str], bool]
) -> Callable[[Cluster, Call], Reply]:
    def endpoint(cluster: Cluster, call: Call) -> Reply:
        wanted = call.rest(prefix)
        index, rows, known = cluster.read(
            call, lambda: cluster.state.checks(lambda row: choose(row, wanted))
        )
        return _read_reply([check_shape(row) for row in rows], index, known)

    return endpoint


def _leader(cluster: Cluster, _call: Call) -> Reply:
    return _json("127.0.0.1:8300" if cluster.has_quorum() else "")


# Replies


def _json(doc: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    body = json.dumps(doc, separators=(",", ":")).encode()
    return Reply(status, body, "application/json", headers or {})


def _plain(status: int, text: str) -> Reply:
    return Reply(status, text.encode(), "text/plain; charset=utf-8")


def _read_headers(index: int, known: bool) -> dict[str, str]:
    return {
        "X-Consul-Index": str(index),
        "X-Consul-Knownleader": "true" if known else "false",
        "X-Consul-Lastcontact": "0",
    }


def _read_reply(doc: Any, index: int, known: bool) -> Reply:
    return _json(doc, headers=_read_headers(index, known))


def _found(cluster: Cluster, call: Call, compute: Callable[[], tuple[int, Any]]) -> Reply:
    index, doc, known = cluster.read(call, compute)
    return _read_reply(doc, index, known)


def _missing(index: int, known: bool) -> Reply:
    return Reply(404, headers=_read_headers(index, known))


_ROUTES: tuple[tuple[str, Mapping[str, Callable[[Cluster, Call], Reply]]], ...] = (
    ("/v1/kv/", {"GET": _kv_get, "PUT": _kv_put, "DELETE": _kv_delete}),
    ("/v1/txn", {"PUT": _txn}),
    ("/v1/agent/self", {"GET": _agent_self}),
    ("/v1/agent/services", {"GET": _agent_services}),
    ("/v1/agent/checks", {"GET": _agent_checks}),
    ("/v1/agent/service/register", {"PUT": _register}),
    ("/v1/agent/service/deregister/", {"PUT": _deregister}),
    ("/v1/agent/check/pass/", {"PUT": _check_verb("passing")}),
    ("/v1/agent/check/warn/", {"PUT": _check_verb("warning")}),
    ("/v1/agent/check/fail/", {"PUT": _check_verb("critical")}),
    ("/v1/agent/check/update/", {"PUT": _check_update}),
    ("/v1/catalog/nodes", {"GET": _catalog_nodes}),
    ("/v1/catalog/services", {"GET": _catalog_services}),
    ("/v1/catalog/service/", {"GET": _catalog_service}),
    ("/v1/health/service/", {"GET": _health_service}),
    (
        "/v1/health/node/",
        {"GET": _health_checks_of("/v1/health/node/", lambda row, name: row.node == name)},
    ),
    (
        "/v1/health/checks/",
        {
            "GET": _health_checks_of(
                "/v1/health/checks/", lambda row, name: row.service_name == name
            )
        },
    ),
    (
        "/v1/health/state/",
        {
            "GET": _health_checks_of(
                "/v1/health/state/", lambda row, state: state in ("any", row.status)
            )
        },
    ),
    ("/v1/status/leader", {"GET": _leader}),
)
