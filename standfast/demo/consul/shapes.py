"""The JSON objects of Consul's answers, from the embedded cluster's rows."""

from __future__ import annotations

import uuid
from typing import Any

from standfast.demo.consul.state import CheckRow, ClusterState, NodeRow, ServiceRow

DATACENTER = "dc1"


def node_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def node_shape(row: NodeRow) -> dict[str, Any]:
    return {
        "ID": node_id(row.name),
        "Node": row.name,
        "Address": row.address,
        "Datacenter": DATACENTER,
        "TaggedAddresses": {"lan": row.address, "wan": row.address},
        "Meta": {"consul-network-segment": ""},
        "CreateIndex": row.create_index,
        "ModifyIndex": row.modify_index,
    }


def service_shape(row: ServiceRow) -> dict[str, Any]:
    return {
        "ID": row.service_id,
        "Service": row.name,
        "Tags": list(row.tags),
        "Address": row.address,
        "Meta": dict(row.meta),
        "Port": row.port,
        "Weights": {"Passing": 1, "Warning": 1},
        "EnableTagOverride": False,
    }


def check_shape(row: CheckRow) -> dict[str, Any]:
    return {
        "Node": row.node,
        "CheckID": row.check_id,
        "Name": row.name,
        "Status": row.status,
        "Notes": "",
        "Output": row.output,
        "ServiceID": row.service_id,
        "ServiceName": row.service_name,
        "ServiceTags": [],
        "Type": row.kind,
        "Definition": {},
        "CreateIndex": row.create_index,
        "ModifyIndex": row.modify_index,
    }


def health_shape(state: ClusterState, row: ServiceRow) -> dict[str, Any]:
    node = state.node(row.node)
    assert node is not None, "a service outlived its node"
    indexes = {"CreateIndex": row.create_index, "ModifyIndex": row.modify_index}
    _, checks = state.checks(lambda c: c.node == row.node and c.service_id in ("", row.service_id))
    return {
        "Node": node_shape(node),
        "Service": service_shape(row) | indexes,
        "Checks": [check_shape(check) for check in checks],
    }
