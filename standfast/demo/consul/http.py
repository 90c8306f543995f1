"""Consul's HTTP API, as far as Standfast and `consul watch` use it, over the embedded cluster.

Invariant: status, headers and body are those of a Consul 1.8 server (tests/contract compares
them); what isn't offered is refused in words, never answered by a guess.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote

from standfast.demo.consul.agents import Agent, BadRegistration, UnknownCheck
from standfast.demo.consul.calls import BadRequest, Call, NoLeader, Reply
from standfast.demo.consul.shapes import (
    DATACENTER,
    check_shape,
    health_shape,
    node_id,
    service_shape,
)
from standfast.demo.consul.state import ClusterState
from standfast.system.clock import monotonic

MAX_VALUE_BYTES = 512 * 1024
MAX_OPS = 64
READS = "get-tree"


class Cluster(Protocol):
    """What the endpoints need of the embedded server."""

    state: ClusterState

    def read(self, call: Call, compute: Callable[[], tuple[int, Any]]) -> tuple[int, Any, bool]:
        """(index, payload, leader known); waits as a blocking query; may raise NoLeader."""

    def write(self, change: Callable[[], Any]) -> Any:
        """Carries out a change of the cluster's state, or raises NoLeader."""

    def local(self, agent: Agent, change: Callable[[], Any]) -> Any:
        """Carries out a change of the agent and brings it to the catalog."""

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
    if "recurse" in call.query:
        index, rows, known = cluster.read(call, lambda: state.keys_under(key))
        if not rows:
            return _missing(index, known)
        return _read_reply(index, [row.dump() for row in rows], known)
    if not key:
        raise BadRequest("Missing key name")
    index, row, known = cluster.read(call, lambda: state.key(key))
    if row is None:
        return _missing(index, known)
    return _read_reply(index, [row.dump()], known)


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
    cluster.write(lambda: state.set_key(state.next_index(), key, call.body, flags))
    return _json(True)


def _kv_delete(cluster: Cluster, call: Call) -> Reply:
    key, state = call.rest("/v1/kv/"), cluster.state
    if not key:
        raise BadRequest("Missing key name")
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
    if all(op["KV"]["Verb"] == READS for op in ops):
        return _read_txn(cluster, call, [op["KV"]["Key"] for op in ops])
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


def _read_txn(cluster: Cluster, call: Call, prefixes: Sequence[str]) -> Reply:
    """As Consul: it moves no index, and tells none."""

    def compute() -> tuple[int, list[Any]]:
        trees = [cluster.state.keys_under(prefix)[1] for prefix in prefixes]
        return 0, [{"KV": row.dump()} for rows in trees for row in rows]

    _, results, known = cluster.read(call, compute)
    headers = _read_headers(0, known)
    del headers["X-Consul-Index"]
    return _json({"Results": results, "Errors": None, "Index": 0}, headers=headers)


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
    member = {"Name": agent.node, "Addr": agent.address}
    return _json({"Config": config, "Member": member, "Stats": {"consul": {"leader": "true"}}})


def _agent_services(_cluster: Cluster, call: Call) -> Reply:
    return _json({key: service_shape(row) for key, row in call.agent.services().items()})


def _register(cluster: Cluster, call: Call) -> Reply:
    doc = call.json()
    cluster.local(call.agent, lambda: call.agent.register(doc, monotonic()))
    return Reply(200)


def _deregister(cluster: Cluster, call: Call) -> Reply:
    service_id = call.rest("/v1/agent/service/deregister/")
    cluster.local(call.agent, lambda: call.agent.deregister(service_id))
    return Reply(200)


def _check(status: str) -> Callable[[Cluster, Call], Reply]:
    def endpoint(cluster: Cluster, call: Call) -> Reply:
        agent, note = call.agent, call.query.get("note", "")
        check_id = unquote(call.path.split("/", 5)[5])
        cluster.local(agent, lambda: agent.update_check(check_id, status, note, monotonic()))
        return Reply(200)

    return endpoint


# Health


def _health_service(cluster: Cluster, call: Call) -> Reply:
    name, state = call.rest("/v1/health/service/"), cluster.state

    def compute() -> tuple[int, list[Any]]:
        index, rows = state.services(name)
        return index, [health_shape(state, row) for row in rows]

    return _read_reply(*cluster.read(call, compute))


def _health_node(cluster: Cluster, call: Call) -> Reply:
    name, state = call.rest("/v1/health/node/"), cluster.state

    def compute() -> tuple[int, list[Any]]:
        index, rows = state.checks(lambda row: row.node == name)
        return index, [check_shape(row) for row in rows]

    return _read_reply(*cluster.read(call, compute))


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


def _read_reply(index: int, doc: Any, known: bool) -> Reply:
    return _json(doc, headers=_read_headers(index, known))


def _missing(index: int, known: bool) -> Reply:
    return Reply(404, headers=_read_headers(index, known))


_ROUTES: tuple[tuple[str, Mapping[str, Callable[[Cluster, Call], Reply]]], ...] = (
    ("/v1/kv/", {"GET": _kv_get, "PUT": _kv_put, "DELETE": _kv_delete}),
    ("/v1/txn", {"PUT": _txn}),
    ("/v1/agent/self", {"GET": _agent_self}),
    ("/v1/agent/services", {"GET": _agent_services}),
    ("/v1/agent/service/register", {"PUT": _register}),
    ("/v1/agent/service/deregister/", {"PUT": _deregister}),
    ("/v1/agent/check/pass/", {"PUT": _check("passing")}),
    ("/v1/agent/check/fail/", {"PUT": _check("critical")}),
    ("/v1/health/service/", {"GET": _health_service}),
    ("/v1/health/node/", {"GET": _health_node}),
    ("/v1/status/leader", {"GET": _leader}),
)
