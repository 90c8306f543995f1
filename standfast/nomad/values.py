"""Answers of Nomad as values: a foreign shape is a ValueError or TypeError, never a guess."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from standfast.nomad.ports import Agent, Allocation, Evaluation, Job, LocalMeta, Node, TaskState

ELIGIBLE = "eligible"
_NS_PER_S = 1_000_000_000
_DEFAULT_FAILOVER_TTL_S = 300.0
"""Nomad's own, which the agent tells as 0."""


def parse_agent(doc: Any) -> Agent:
    """Parses GET /v1/agent/self."""
    doc = _table(doc, "the agent")
    stats = _table(doc.get("stats"), "stats")
    config = _table(doc.get("config"), "config")
    member = _table(doc.get("member"), "member")
    is_server = "nomad" in stats
    return Agent(
        name=_text(config, "NodeName", ""),
        region=_text(config, "Region"),
        version=_text(_table(config.get("Version"), "config.Version"), "Version"),
        node_id=_text(_table(stats.get("client"), "stats.client"), "node_id", ""),
        server=is_server,
        rpc_address=_rpc_address(member) if is_server else "",
        failover_heartbeat_ttl_s=_failover_ttl_s(config) if is_server else None,
    )


def parse_local_meta(doc: Any) -> LocalMeta:
    """Parses GET or POST /v1/client/metadata."""
    doc = _table(doc, "the metadata", must=True)
    dynamic = _table(doc.get("Dynamic"), "Dynamic", must=True)
    _table(doc.get("Meta"), "Meta", must=True)
    for key, value in dynamic.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"Dynamic.{key} is not a text")
    return LocalMeta(dynamic, _texts(doc.get("Static"), "Static"), _texts(doc.get("Meta"), "Meta"))


def parse_node(doc: Any) -> Node:
    """Parses GET /v1/node/:id."""
    doc = _table(doc, "the node", must=True)
    volumes = _table(doc.get("HostVolumes"), "HostVolumes")
    return Node(
        id=_text(doc, "ID"),
        name=_text(doc, "Name"),
        status=_text(doc, "Status"),
        eligible=_text(doc, "SchedulingEligibility") == ELIGIBLE,
        draining=doc.get("Drain") is True,
        meta=_texts(doc.get("Meta"), "Meta"),
        host_volumes={
            name: _text(_table(volume, f"HostVolumes.{name}"), "Path")
            for name, volume in volumes.items()
        },
        attributes=_texts(doc.get("Attributes"), "Attributes"),
        datacenter=_text(doc, "Datacenter"),
        node_class=_text(doc, "NodeClass", ""),
        pool=_text(doc, "NodePool", ""),
    )


def parse_node_names(doc: Any) -> list[tuple[str, str]]:
    """Returns (name, id) of each node of GET /v1/nodes, sorted."""
    return sorted((_text(node, "Name"), _text(node, "ID")) for node in _rows(doc))


def parse_allocations(doc: Any) -> tuple[Allocation, ...]:
    """Parses a list of allocations, whole ones or stubs; sorts by name, then by age."""
    allocations = [parse_allocation(row) for row in _rows(doc)]
    return tuple(sorted(allocations, key=lambda each: (each.name, each.modify_index)))


def parse_allocation(doc: Any) -> Allocation:
    doc = _table(doc, "the allocation", must=True)
    states = _table(doc.get("TaskStates"), "TaskStates")
    return Allocation(
        id=_text(doc, "ID"),
        name=_text(doc, "Name"),
        namespace=_text(doc, "Namespace"),
        job_id=_text(doc, "JobID"),
        group=_text(doc, "TaskGroup"),
        node_id=_text(doc, "NodeID"),
        desired=_text(doc, "DesiredStatus"),
        client_status=_text(doc, "ClientStatus"),
        job=_table(doc.get("Job"), "Job"),
        tasks=tuple(_task(name, states[name]) for name in sorted(states)),
        modify_index=_number(doc, "ModifyIndex"),
        next_id=_text(doc, "NextAllocation", ""),
    )


def parse_jobs(doc: Any) -> tuple[Job, ...]:
    """Parses GET /v1/jobs."""
    jobs = [
        Job(
            namespace=_text(row, "Namespace", "default"),
            id=_text(row, "ID"),
            type=_text(row, "Type"),
            status=_text(row, "Status"),
            stopped=row.get("Stop") is True,
        )
        for row in _rows(doc)
    ]
    return tuple(sorted(jobs, key=lambda job: (job.namespace, job.id)))


def parse_job(doc: Any) -> Mapping[str, Any]:
    """Returns GET /v1/job/:id as it is."""
    job = _table(doc, "the job", must=True)
    _text(job, "ID")
    return job


def parse_evaluation(doc: Any) -> Evaluation:
    """Parses GET /v1/evaluation/:id."""
    doc = _table(doc, "the evaluation", must=True)
    failed = _table(doc.get("FailedTGAllocs"), "FailedTGAllocs")
    return Evaluation(
        id=_text(doc, "ID"),
        namespace=_text(doc, "Namespace"),
        job_id=_text(doc, "JobID"),
        status=_text(doc, "Status"),
        blocked_id=_text(doc, "BlockedEval", ""),
        unplaced={group: _why(_table(failed[group], group)) for group in sorted(failed)},
    )


def parse_stopped(doc: Any) -> str:
    """Returns the evaluation's id from POST /v1/allocation/:id/stop."""
    return _text(_table(doc, "the answer", must=True), "EvalID")


def parse_leader(doc: Any) -> str:
    if not isinstance(doc, str):
        raise TypeError("the leader is not a text")
    return doc


def check_done(doc: Any) -> None:
    """Checks that a write whose answer holds nothing of use was answered with an object."""
    _table(doc, "the answer", must=True)


def _task(name: str, doc: Any) -> TaskState:
    doc = _table(doc, f"TaskStates.{name}", must=True)
    return TaskState(
        name=name,
        state=_text(doc, "State"),
        failed=doc.get("Failed") is True,
        restarts=_number(doc, "Restarts"),
        started_at=_text(doc, "StartedAt", ""),
        finished_at=_text(doc, "FinishedAt", ""),
    )


def _why(metric: Mapping[str, Any]) -> str:
    """Says why a group found no node, from the scheduler's counts."""
    evaluated = metric.get("NodesEvaluated")
    if not evaluated:
        return "no node was eligible"
    parts = []
    for key, says in (
        ("ConstraintFiltered", "don't meet"),
        ("ClassFiltered", "are of the class"),
        ("DimensionExhausted", "have no room for"),
        ("QuotaExhausted", "are over the quota"),
    ):
        counts = metric.get(key)
        if isinstance(counts, Mapping):
            parts += [f"{counts[name]} {says} {name}" for name in sorted(counts)]
        elif isinstance(counts, list):
            parts += [f"the quota {name} is used up" for name in counts]
    return f"of {evaluated} nodes, {', '.join(parts) or 'none fits'}"


def _rpc_address(member: Mapping[str, Any]) -> str:
    tags = _texts(member.get("Tags"), "member.Tags")
    address = tags.get("rpc_addr") or _text(member, "Addr")
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{tags['port']}"


def _failover_ttl_s(config: Mapping[str, Any]) -> float:
    server = _table(config.get("Server"), "config.Server", must=True)
    return _number(server, "FailoverHeartbeatTTL") / _NS_PER_S or _DEFAULT_FAILOVER_TTL_S


def _rows(doc: Any) -> list[Mapping[str, Any]]:
    if not isinstance(doc, list):
        raise TypeError("a list was expected")
    return [_table(row, "a row", must=True) for row in doc]


def _table(value: Any, what: str, *, must: bool = False) -> Mapping[str, Any]:
    """Returns an object; null and what is missing are an empty one unless it must be there."""
    if value is None and not must:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} is not an object")
    return value


def _texts(value: Any, what: str) -> Mapping[str, str]:
    table = _table(value, what)
    for key, text in table.items():
        if not isinstance(text, str):
            raise TypeError(f"{what}.{key} is not a text")
    return table


def _text(doc: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = doc.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or (not value and default is None):
        raise ValueError(f"{key} is {value!r} and not a text")
    return value


def _number(doc: Mapping[str, Any], key: str) -> int:
    value = doc.get(key)
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} is {value!r} and not a number")
    return value
