"""Answers of Nomad as values: a foreign shape is a ValueError or TypeError, never a guess.

`ports` says how each field is called in Nomad's API; here is what isn't told in one field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec import Struct, convert, field

from standfast.nomad.ports import (
    Agent,
    Allocation,
    Count,
    CsiVolume,
    Evaluation,
    Job,
    LocalMeta,
    Node,
    TaskState,
    Text,
)

T = TypeVar("T")
ELIGIBLE = "eligible"
_NS_PER_S = 1_000_000_000
_DEFAULT_FAILOVER_TTL_S = 300.0
"""Nomad's own, which the agent tells as 0."""


def _value(kind: type[T], doc: Any, **more: Any) -> T:
    """Returns the object `doc`, with `more` fields; null and what is missing are the same in it."""
    told = {key: value for key, value in convert(doc, dict[str, Any]).items() if value is not None}
    return convert(told | more, kind)


def _table(value: Any) -> Mapping[str, Any]:
    """Returns an object of any keys; null is an empty one."""
    return convert(value, dict[str, Any] | None) or {}


class _Version(Struct, frozen=True):
    version: Text = field(name="Version")


class _Config(Struct, frozen=True):
    region: Text = field(name="Region")
    version: _Version = field(name="Version")
    node_name: str = field(name="NodeName", default="")


class _Client(Struct, frozen=True):
    node_id: str = ""


class _Member(Struct, frozen=True):
    tags: Mapping[str, str] = field(name="Tags")
    address: Text = field(name="Addr")

    @property
    def rpc_address(self) -> str:
        address = self.tags.get("rpc_addr") or self.address
        host = f"[{address}]" if ":" in address else address
        return f"{host}:{self.tags['port']}"


class _Server(Struct, frozen=True):
    failover_ttl_ns: Count = field(name="FailoverHeartbeatTTL")

    @property
    def failover_ttl_s(self) -> float:
        return self.failover_ttl_ns / _NS_PER_S or _DEFAULT_FAILOVER_TTL_S


def parse_agent(doc: Any) -> Agent:
    """Parses GET /v1/agent/self."""
    doc = _table(doc)
    stats, config = _table(doc.get("stats")), _table(doc.get("config"))
    told = _value(_Config, config)
    is_server = "nomad" in stats
    return Agent(
        name=told.node_name,
        region=told.region,
        version=told.version.version,
        node_id=_value(_Client, _table(stats.get("client"))).node_id,
        server=is_server,
        rpc_address=_value(_Member, doc.get("member")).rpc_address if is_server else "",
        failover_heartbeat_ttl_s=(
            _value(_Server, config.get("Server")).failover_ttl_s if is_server else None
        ),
    )


def parse_local_meta(doc: Any) -> LocalMeta:
    """Parses GET or POST /v1/client/metadata."""
    return _value(LocalMeta, doc)


class _HostVolume(Struct, frozen=True):
    path: Text = field(name="Path")


def parse_node(doc: Any) -> Node:
    """Parses GET /v1/node/:id."""
    volumes = convert(_table(doc).get("HostVolumes"), dict[str, _HostVolume] | None) or {}
    return _value(
        Node,
        doc,
        eligible=convert(doc.get("SchedulingEligibility"), Text) == ELIGIBLE,
        host_volumes={name: volume.path for name, volume in volumes.items()},
    )


class _NodeName(Struct, frozen=True, order=True):
    name: Text = field(name="Name")
    id: Text = field(name="ID")


def parse_node_names(doc: Any) -> list[tuple[str, str]]:
    """Returns (name, id) of each node of GET /v1/nodes, sorted."""
    return [(node.name, node.id) for node in sorted(convert(doc, list[_NodeName]))]


def parse_allocations(doc: Any) -> tuple[Allocation, ...]:
    """Parses a list of allocations, whole ones or stubs; sorts by name, then by age."""
    allocations = [parse_allocation(row) for row in convert(doc, list[Any])]
    return tuple(sorted(allocations, key=lambda each: (each.name, each.modify_index)))


def parse_allocation(doc: Any) -> Allocation:
    states = _table(_table(doc).get("TaskStates"))
    tasks = [_value(TaskState, states[name], name=name) for name in sorted(states)]
    return _value(Allocation, doc, tasks=tasks)


def parse_jobs(doc: Any) -> tuple[Job, ...]:
    """Parses GET /v1/jobs."""
    jobs = [_value(Job, row) for row in convert(doc, list[Any])]
    return tuple(sorted(jobs, key=lambda job: (job.namespace, job.id)))


class _Named(Struct, frozen=True):
    id: Text = field(name="ID")


def parse_job(doc: Any) -> Mapping[str, Any]:
    """Returns GET /v1/job/:id as it is."""
    convert(doc, _Named)
    return _table(doc)


def parse_evaluation(doc: Any) -> Evaluation:
    """Parses GET /v1/evaluation/:id."""
    failed = _table(_table(doc).get("FailedTGAllocs"))
    unplaced = {group: _why(_table(failed[group])) for group in sorted(failed)}
    return _value(Evaluation, doc, unplaced=unplaced)


def parse_csi_volume(doc: Any) -> CsiVolume:
    """Parses GET /v1/volume/csi/:id."""
    return _value(CsiVolume, doc)


class _Stopped(Struct, frozen=True):
    evaluation: Text = field(name="EvalID")


def parse_stopped(doc: Any) -> str:
    """Returns the evaluation's id from POST /v1/allocation/:id/stop."""
    return convert(doc, _Stopped).evaluation


def parse_leader(doc: Any) -> str:
    return convert(doc, str)


def check_done(doc: Any) -> None:
    """Checks that a write whose answer holds nothing of use was answered with an object."""
    convert(doc, dict[str, Any])


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
