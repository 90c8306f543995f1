"""The stand-in's HTTP API: which path does what, who may, and how the answers look."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tests.fakes.nomad_acl import Acl, Policy
from tests.fakes.nomad_jobs import Doc
from tests.fakes.nomad_objects import STATIC_META, Alloc, NomadNode, Refusal
from tests.fakes.nomad_state import NomadState

READ = ("read", "write")
_META_KEY = re.compile(r"^[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*$")
NO_LEADER = Refusal(500, "No cluster leader")
NO_SERVER = Refusal(500, "failed to get conn: dial tcp 127.0.0.1:4647: connect: connection refused")


class Manner(Enum):
    """How all agents answer."""

    NORMAL = "normal"
    ERROR = "error"
    HANG = "hang"
    DENY = "deny"
    NO_LEADER = "no-leader"
    """Clients still answer for themselves."""


@dataclass(frozen=True)
class Call:
    agent: str
    method: str
    path: Sequence[str]
    query: Mapping[str, str]
    doc: Any
    token: str


class Api:
    """Answers, or raises a Refusal."""

    def __init__(self, state: NomadState, acl: Acl) -> None:
        self._state = state
        self._acl = acl
        self._tokens: dict[str, set[str]] = {}
        """Agent -> the tokens that it has asked the servers about in this life."""

    def forget(self, agent: str) -> None:
        """The agent died, and with it what it knew of tokens."""
        self._tokens.pop(agent, None)

    def answer(self, call: Call, *, leaderless: bool, serverless: bool = False) -> Any:
        """What a client's agent has from the servers, and has no word of its own for, is marked."""
        try:
            return self._answer(call, leaderless=leaderless, serverless=serverless)
        except Refusal as refusal:
            asked_a_client = call.agent in self._state.nodes
            if asked_a_client and (refusal.status == 500 or "Unknown" in str(refusal)):
                raise Refusal(refusal.status, f"rpc error: {refusal}") from None
            raise

    def _answer(self, call: Call, *, leaderless: bool, serverless: bool) -> Any:
        head, rest = call.path[0], list(call.path[1:])
        local = (head == "client" and rest[:1] == ["metadata"]) or head == "agent"
        known = self._tokens.setdefault(call.agent, set())
        if serverless and not (local and (call.token in known or not self._acl.management)):
            raise NO_SERVER
        known.add(call.token)
        if leaderless and not local:
            raise NO_LEADER
        if not local and call.query.get("region", "global") != "global":
            raise Refusal(500, "No path to region")
        method = {
            "agent": self._agent,
            "client": self._client,
            "status": self._status,
            "nodes": self._nodes,
            "node": self._node,
            "allocation": self._allocation,
            "jobs": self._jobs,
            "job": self._job,
            "evaluation": self._evaluation,
            "volume": self._volume,
            "acl": self._acls,
            "namespace": self._namespace,
        }.get(head)
        if method is None:
            raise Refusal(404, "")
        handler: Callable[[Call, list[str]], Any] = method
        return handler(call, rest)

    # The agent and its client

    def _agent(self, call: Call, rest: list[str]) -> Any:
        self._only(call, "GET")
        self._acl.must(call.token, "agent", *READ)
        node = self._state.nodes.get(call.agent)
        version = {"Version": "2.0.6", "VersionPrerelease": "", "VersionMetadata": ""}
        config = {"NodeName": call.agent, "Region": "global", "Datacenter": "dc1",
                  "Version": version,
                  "Server": {"Enabled": node is None, "FailoverHeartbeatTTL": 0}}  # fmt: skip
        if node is None:
            tags = {"role": "nomad", "rpc_addr": "127.0.0.1", "port": "4647", "region": "global"}
            member = {"Name": "server.global", "Addr": "127.0.0.1", "Port": 4648, "Tags": tags}
            return {"member": member, "config": config, "stats": {"nomad": {"server": "true"}}}
        member = {"Name": "", "Addr": None, "Port": 0, "Tags": None}
        return {"member": member, "config": config, "stats": {"client": {"node_id": node.id}}}

    def _client(self, call: Call, rest: list[str]) -> Any:
        if rest == ["metadata"]:
            return self._metadata(call)
        if len(rest) == 3 and rest[0] == "allocation":
            self._only(call, "POST", "PUT")
            alloc = self._state.allocs.get(rest[1])
            if alloc is None:
                raise Refusal(404, f'Unknown allocation "{rest[1]}"')
            self._acl.must_may(call.token, "alloc-lifecycle", alloc.job["Namespace"])
            self._reach(alloc.node)
            if rest[2] == "restart":
                self._state.restart(alloc)
                return {"Index": 0}
            if rest[2] == "signal":
                self._state.signal(alloc, (call.doc or {}).get("Task") or "")
                return {"Index": 0}
        raise Refusal(404, "")

    def _metadata(self, call: Call) -> Any:
        self._only(call, "GET", "POST")
        given = call.doc or {}
        node_id = given.get("NodeID") or call.query.get("node_id") or ""
        node = self._by_id(node_id) if node_id else self._state.nodes.get(call.agent)
        if node is None:
            raise Refusal(400, "No local Node and node_id not provided")
        self._acl.must(call.token, "node", *(READ if call.method == "GET" else ("write",)))
        if call.method == "POST":
            meta = given.get("Meta")
            if not isinstance(meta, dict):
                raise Refusal(400, "missing required Meta object")
            for key in meta:
                if not _META_KEY.match(key):
                    raise Refusal(
                        400,
                        f'"{key}" is invalid; metadata keys must be valid dotted hcl identifiers',
                    )
            self._reach(node)
            self._state.set_meta(node, meta)
        return {"Dynamic": node.dynamic, "Static": STATIC_META, "Meta": node.meta}

    def _reach(self, node: NomadNode) -> None:
        """What a server says that can't pass a call on to a client."""
        if node.status == "down":
            raise Refusal(404, "No path to node")
        if not node.beats:
            raise Refusal(500, "EOF")

    # Nodes

    def _status(self, call: Call, rest: list[str]) -> Any:
        self._only(call, "GET")
        return "127.0.0.1:4647"

    def _nodes(self, call: Call, rest: list[str]) -> Any:
        self._only(call, "GET")
        self._acl.must(call.token, "node", *READ)
        left_out = ("Meta", "Attributes")
        return [
            {key: value for key, value in _node_doc(node).items() if key not in left_out}
            for node in self._state.nodes.values()
        ]

    def _node(self, call: Call, rest: list[str]) -> Any:
        if rest[1:] == ["eligibility"] and not self._known(rest[0]):
            raise Refusal(500, "node not found")
        node = self._by_id(rest[0])
        if rest[1:] == []:
            self._only(call, "GET")
            self._acl.must(call.token, "node", *READ)
            return _node_doc(node)
        if rest[1:] == ["allocations"]:
            self._only(call, "GET")
            self._acl.must(call.token, "node", *READ)
            return [
                {**_alloc_doc(alloc), "Job": alloc.job}
                for alloc in self._state.allocs.values()
                if alloc.node is node
                and self._acl.may(call.token, "read-job", alloc.job["Namespace"])
            ]
        if rest[1:] == ["eligibility"]:
            self._only(call, "POST", "PUT")
            self._acl.must(call.token, "node", "write")
            word = (call.doc or {}).get("Eligibility")
            if word not in ("eligible", "ineligible"):
                raise Refusal(
                    500, f'1 error occurred:\n\t* invalid scheduling eligibility "{word}"'
                )
            evals = self._state.set_eligible(node, word == "eligible")
            index = self._state.index()
            return {"EvalCreateIndex": index if evals else 0, "EvalIDs": evals or None,
                    "Index": index, "NodeModifyIndex": 0}  # fmt: skip
        raise Refusal(404, "")

    def _known(self, node_id: str) -> bool:
        return any(node.id == node_id for node in self._state.nodes.values())

    def _by_id(self, node_id: str) -> NomadNode:
        for node in self._state.nodes.values():
            if node.id == node_id:
                return node
        raise Refusal(404, "node not found")

    # Allocations, jobs, evaluations

    def _allocation(self, call: Call, rest: list[str]) -> Any:
        alloc = self._state.allocs.get(rest[0])
        reading = rest[1:] == []
        if alloc is None:
            raise Refusal(404, "alloc not found" if reading else "allocation not found")
        if reading and not self._acl.may(call.token, "read-job", alloc.job["Namespace"]):
            raise Refusal(500, f'Unknown allocation "{rest[0]}"')
        if reading:
            self._only(call, "GET")
            return {**_alloc_doc(alloc), "Job": alloc.job}
        if rest[1:] == ["stop"]:
            self._acl.must_may(call.token, "alloc-lifecycle", alloc.job["Namespace"])
            self._only(call, "POST", "PUT")
            return {"EvalID": self._state.stop(alloc), "Index": self._state.index()}
        raise Refusal(404, "")

    def _jobs(self, call: Call, rest: list[str]) -> Any:
        if call.method == "GET":
            asked = call.query.get("namespace", "default")
            readable = [
                job
                for (namespace, _), job in self._state.jobs.items()
                if asked in ("*", namespace) and self._acl.may(call.token, "list-jobs", namespace)
            ]
            if asked != "*":
                self._acl.must_may(call.token, "list-jobs", asked)
            return [
                {key: job[key] for key in ("ID", "Namespace", "Type", "Status", "Stop")}
                for job in readable
            ]
        self._only(call, "POST", "PUT")
        self._acl.must_manage(call.token)
        eval_id = self._state.register(call.doc["Job"])
        return {"EvalID": eval_id, "Index": self._state.index(), "Warnings": ""}

    def _job(self, call: Call, rest: list[str]) -> Any:
        key = (call.query.get("namespace", "default"), rest[0])
        if call.method == "DELETE":
            self._acl.must_manage(call.token)
            if key not in self._state.jobs:
                return {"EvalID": "", "Index": self._state.index()}
            purge = call.query.get("purge") == "true"
            return {"EvalID": self._state.deregister(key, purge=purge),
                    "Index": self._state.index()}  # fmt: skip
        if rest[1:] == ["evaluate"]:
            self._acl.must_manage(call.token)
            return {"EvalID": self._state.evaluate(key), "Index": self._state.index()}
        self._only(call, "GET")
        self._acl.must_may(call.token, "read-job", key[0])
        if rest[1:] == ["allocations"]:
            return [
                _alloc_doc(alloc)
                for alloc in self._state.allocs.values()
                if (alloc.job["Namespace"], alloc.job["ID"]) == key
            ]
        if rest[1:] == ["evaluations"]:
            return [
                doc for doc in self._state.evals.values() if (doc["Namespace"], doc["JobID"]) == key
            ]
        job = self._state.jobs.get(key)
        if job is None:
            raise Refusal(404, "job not found")
        return job

    def _evaluation(self, call: Call, rest: list[str]) -> Any:
        self._only(call, "GET")
        self._acl.must_may(call.token, "read-job", call.query.get("namespace", "default"))
        doc = self._state.evals.get(rest[0])
        if doc is None:
            raise Refusal(404, "eval not found")
        self._acl.must_may(call.token, "read-job", doc["Namespace"])
        return doc

    def _volume(self, call: Call, rest: list[str]) -> Any:
        """CSI volumes, without plugins, which a real one wants before it takes a volume in."""
        if rest[:1] != ["csi"] or len(rest) != 2:
            raise Refusal(404, "")
        key = (call.query.get("namespace", "default"), rest[1])
        if call.method == "PUT":
            self._acl.must_manage(call.token)
            (doc,) = call.doc["Volumes"]
            self._state.csi_volumes[key] = {"Secrets": None, "MountOptions": None, **doc}
            return None
        self._only(call, "GET")
        may = ("csi-read-volume", "csi-mount-volume", "read-job")
        if not any(self._acl.may(call.token, capability, key[0]) for capability in may):
            raise Refusal(403, "Permission denied")
        if key not in self._state.csi_volumes:
            raise Refusal(404, "volume not found")
        return self._state.csi_volumes[key]

    # ACLs and namespaces, of which there are as many as somebody uses

    def _namespace(self, call: Call, rest: list[str]) -> Any:
        self._only(call, "POST", "PUT")
        self._acl.must_manage(call.token)
        return None

    def _acls(self, call: Call, rest: list[str]) -> Any:
        self._only(call, "POST", "PUT")
        self._acl.must_manage(call.token)
        if rest[0] == "policy":
            self._acl.policies[rest[1]] = Policy.parse(call.doc["Rules"])
            return {}
        return {"SecretID": self._acl.make_token(call.doc["Policies"])}

    @staticmethod
    def _only(call: Call, *methods: str) -> None:
        if call.method not in methods:
            raise Refusal(405, "Invalid method")


def _node_doc(node: NomadNode) -> Doc:
    return {
        "ID": node.id,
        "Name": node.name,
        "Status": node.status,
        "SchedulingEligibility": "eligible" if node.eligible else "ineligible",
        "Drain": False,
        "Meta": node.seen,
        "Attributes": {"kernel.name": "linux", "unique.hostname": node.name},
        "HostVolumes": {
            name: {"ID": "", "Name": name, "Path": path, "ReadOnly": False}
            for name, path in node.volumes.items()
        }
        or None,
        "Datacenter": "dc1",
        "NodeClass": "",
        "NodePool": "default",
    }


def _alloc_doc(alloc: Alloc) -> Doc:
    return {
        "ID": alloc.id,
        "Name": f"{alloc.job['ID']}.{alloc.group}[0]",
        "Namespace": alloc.job["Namespace"],
        "JobID": alloc.job["ID"],
        "TaskGroup": alloc.group,
        "NodeID": alloc.node.id,
        "NodeName": alloc.node.name,
        "EvalID": alloc.eval_id,
        "DesiredStatus": alloc.desired,
        "ClientStatus": alloc.client_status,
        "NextAllocation": alloc.next_id,
        "PreviousAllocation": alloc.previous,
        "ModifyIndex": alloc.index,
        "TaskStates": {
            task.name: {
                "State": task.state,
                "Failed": False,
                "Restarts": task.restarts,
                "StartedAt": task.started_at or None,
                "FinishedAt": task.finished_at or None,
                "Events": [],
            }
            for task in alloc.tasks.values()
        }
        if alloc.client_status != "pending"
        else None,
    }
