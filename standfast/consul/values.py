"""What goes to Consul and what comes back, as values.

Invariant: nothing of an answer is believed without a look at its shape; ValueError from here means
that the answer isn't Consul's. Nothing here speaks to the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct, convert, field, to_builtins

from standfast.text import MOST_NAME, MOST_SENTENCE, clean

SERF_HEALTH = "serfHealth"
_GO_SECONDS = re.compile(r"(\d+(?:\.\d+)?)(m?s)")
_WORST_FIRST = ("critical", "warning", "passing")

Text = Annotated[str, Meta(min_length=1)]
Index = Annotated[int, Meta(ge=1)]
T = TypeVar("T")


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
    has_own_check: bool = False
    """The check that `register` makes is among them."""


class Check(Struct, frozen=True):
    """A check of a node, or of a service on it (`service_id`; empty: the node's own)."""

    check_id: str
    name: str
    service_id: str


class _Op(Struct, frozen=True, tag_field="Verb", rename="pascal"):
    """One operation of a transaction, as Consul's HTTP API has it."""

    key: str


class CheckIndex(_Op, frozen=True, tag="check-index"):
    """The key exists and its ModifyIndex is `index`."""

    index: int


class CheckNotExists(_Op, frozen=True, tag="check-not-exists"):
    """Nobody has made the key."""


class Cas(_Op, frozen=True, tag="cas"):
    """Set the key if its ModifyIndex is `index`; 0: if it doesn't exist."""

    index: int
    value: bytes


class Set(_Op, frozen=True, tag="set"):
    """Write the key whatever it holds."""

    value: bytes


class Delete(_Op, frozen=True, tag="delete"):
    """Deletes the key."""


class GetTree(_Op, frozen=True, tag="get-tree"):
    """Reads the key, and every other one that begins with it. Only for transactions of these."""


Op = CheckIndex | CheckNotExists | Cas | Set | Delete


class Committed(Struct, frozen=True):
    """Everything was done; the new ModifyIndex of each key that was written."""

    indexes: Mapping[str, int]


class Conflict(Struct, frozen=True):
    """Nothing was done: a condition didn't hold."""

    errors: tuple[str, ...]


class Registration(Struct, frozen=True):
    """A service of the node's own agent, with a TTL check `service:<service_id>`."""

    service_id: str
    name: str
    address: str
    port: int
    meta: Mapping[str, str]
    check_ttl_s: float
    check_name: str


def check_id_of(service_id: str) -> str:
    """Returns what Consul calls the one check that a service is registered with."""
    return f"service:{service_id}"


def dump_op(op: Op | GetTree) -> dict[str, Any]:
    """Returns the operation as a transaction takes it; values go as base64."""
    return {"KV": to_builtins(op)}


# What comes back: as much of each answer as is used here.


class _Answer(Struct, frozen=True, rename="pascal"):
    """A part of an answer; a field without a default has to be there."""


class _Entry(_Answer, frozen=True):
    key: Text
    value: bytes | None
    modify_index: Index


class _Written(_Answer, frozen=True):
    key: Text
    modify_index: Index


class _Result(_Answer, frozen=True):
    kv: _Written | None = field(default=None, name="KV")


class _Got(_Answer, frozen=True):
    kv: _Entry = field(name="KV")


class _Read(_Answer, frozen=True):
    results: list[_Got] | None
    errors: None


class _Problem(_Answer, frozen=True):
    op_index: int
    what: Text


class _Done(_Answer, frozen=True):
    results: list[_Result] | None
    errors: list[_Problem] | None


class _Undone(_Answer, frozen=True):
    errors: Annotated[list[_Problem], Meta(min_length=1)]


class _Node(_Answer, frozen=True):
    node: Text
    address: Text


class _LocalService(_Answer, frozen=True):
    meta: dict[Text, str] | None


class _Service(_LocalService, frozen=True):
    id: Text = field(name="ID")
    address: str
    port: int


class _AgentConfig(_Answer, frozen=True):
    node_name: Text
    server: bool = True


class _AgentDebug(_Answer, frozen=True):
    election_timeout: str | None = field(default=None, name="ConsulRaftElectionTimeout")


class _Agent(_Answer, frozen=True):
    config: _AgentConfig
    debug_config: _AgentDebug = field(default=_AgentDebug(), name="DebugConfig")


class _Stats(_Answer, frozen=True):
    stats: dict[str, dict[str, str]]


class _Outcome(_Answer, frozen=True):
    success: bool


class _NodeCheck(_Answer, frozen=True):
    id: str = field(name="CheckID")
    status: str


class _Check(_NodeCheck, frozen=True):
    service_id: str = field(name="ServiceID")


class _NamedCheck(_Check, frozen=True):
    name: str


class _Health(_Answer, frozen=True):
    node: _Node
    service: _Service
    checks: list[_Check]


def is_folder(key: str) -> bool:
    """Tells whether a key is a folder that somebody made, in Consul's web interface say: to us it
    is none, whatever its value."""
    return key.endswith("/")


def parse_entry(raw: Any) -> Entry:
    """Returns one KV entry; its `Value` has been decoded, and is null for an empty one."""
    entry = _parsed(raw, _Entry)
    return Entry(entry.key, entry.value or b"", entry.modify_index)


def parse_entry_of(raw: Any, key: str) -> Entry | None:
    """Returns the entry of one key, or None where that doesn't exist."""
    if raw is None:
        return None
    entry = parse_entry(raw)
    if entry.key != key:
        raise ValueError(f"it sent the key {entry.key!r}")
    return entry


def parse_committed(doc: Any, ops: Sequence[Op]) -> Committed:
    """Returns what the answer to a txn with status 200 says."""
    done = _parsed(doc, _Done)
    if done.errors:
        raise ValueError("it reports errors although it says 200")
    results = [result.kv for result in done.results or () if result.kv is not None]
    indexes = {written.key: written.modify_index for written in results}
    written = {op.key for op in ops if isinstance(op, Cas | Set)}
    missing = sorted(written - indexes.keys())
    if missing:
        raise ValueError(f"no result for {missing}")
    return Committed({key: indexes[key] for key in sorted(written)})


def parse_read(doc: Any, trees: Sequence[GetTree]) -> tuple[Entry, ...]:
    """Returns the entries in the answer to a txn that read these; a value comes as base64."""
    prefixes = tuple(tree.key for tree in trees)
    entries = [
        Entry(got.kv.key, got.kv.value or b"", got.kv.modify_index)
        for got in convert(doc, _Read).results or ()
    ]
    if not all(entry.key.startswith(prefixes) for entry in entries):
        raise ValueError(f"keys outside {prefixes!r}")
    return tuple(entries)


def parse_conflict(doc: Any) -> Conflict:
    """Returns what the answer to a txn with status 409 says."""
    problems = _parsed(doc, _Undone).errors
    told = [f"operation {each.op_index}: {clean(each.what, MOST_SENTENCE)}" for each in problems]
    return Conflict(tuple(told))


def parse_instance(raw: Any) -> Instance:
    """Returns one item of /v1/health/service/..."""
    health = _parsed(raw, _Health)
    node, service = health.node, health.service
    of_node = [check for check in health.checks if not check.service_id]
    of_service = [check for check in health.checks if check.service_id == service.id]
    own = [check.status for check in of_service]
    meta = service.meta or {}
    # Made printable: none of our own names changes by that, and none comes out of another one.
    return Instance(
        service_id=_shown(service.id),
        node=_shown(node.node),
        address=_shown(service.address or node.address),
        port=service.port,
        meta={_shown(name): _shown(value) for name, value in meta.items()},
        node_health=_node_health(of_node) or "unknown",
        checks=worst(own),
        has_own_check=any(check.id == check_id_of(service.id) for check in of_service),
    )


def parse_node_health(doc: Any) -> str:
    """Returns passing or critical by serfHealth; absent when gossip says nothing about the node."""
    return _node_health(_parsed(doc, list[_NodeCheck])) or "absent"


def parse_critical(doc: Any) -> tuple[Check, ...]:
    """Returns the critical checks of /v1/health/node/..., but for what gossip says, sorted by
    id."""
    checks = _parsed(doc, list[_NamedCheck])
    worst([check.status for check in checks])
    critical = [each for each in checks if each.status == "critical" and each.id != SERF_HEALTH]
    told = [
        Check(_shown(each.id), _shown(each.name or each.id), _shown(each.service_id))
        for each in critical
    ]
    return tuple(sorted(told, key=lambda check: check.check_id))


def parse_local_services(doc: Any) -> Mapping[str, Mapping[str, str]]:
    """Returns the meta of each service of /v1/agent/services, by its id."""
    services = _parsed(doc, dict[Text, _LocalService])
    return {service_id: service.meta or {} for service_id, service in services.items()}


def parse_node_name(doc: Any) -> str:
    """Returns the agent's name of /v1/agent/self."""
    return _shown(_parsed(doc, _Agent).config.node_name)


def parse_election_timeout(doc: Any) -> float | None:
    """Returns the seconds of ConsulRaftElectionTimeout of /v1/agent/self (Go's form: `5s`,
    `1.5s`, `52ms`); None where there is none, and of a client agent, whose own says nothing."""
    agent = _parsed(doc, _Agent)
    match = _GO_SECONDS.fullmatch(agent.debug_config.election_timeout or "")
    return (
        None
        if match is None or not agent.config.server
        else float(match[1]) * (0.001 if match[2] == "ms" else 1.0)
    )


def parse_is_leader(doc: Any) -> bool:
    """Tells whether the agent of /v1/agent/self leads the servers; a client agent says nothing."""
    return _parsed(doc, _Stats).stats.get("consul", {}).get("leader") == "true"


def parse_success(doc: Any) -> bool:
    """Tells whether an operator's request to the servers was done."""
    return _parsed(doc, _Outcome).success


def check_key(key: str) -> None:
    """Raises ValueError for what is no key of Consul's, nor the beginning of one."""
    if not key or key.startswith("/"):
        raise ValueError(f"{key!r} is not a key or prefix")


def worst(statuses: Sequence[str]) -> str:
    """Returns the worst status; passing when there is none.

    ValueError for one that Consul doesn't have.
    """
    for status in statuses:
        if status not in _WORST_FIRST:
            raise ValueError(f"the check status {status!r} is unknown")
    return next((status for status in _WORST_FIRST if status in statuses), "passing")


def _shown(text: str) -> str:
    return clean(text, MOST_NAME)


def _node_health(checks: Sequence[_NodeCheck]) -> str | None:
    """Returns the worst serfHealth; None where there is none."""
    serf = [check.status for check in checks if check.id == SERF_HEALTH]
    return worst(serf) if serf else None


def _parsed(raw: Any, kind: type[T]) -> T:
    # Bytes stay bytes: a text in their place is not decoded.
    return convert(raw, kind, builtin_types=(bytes,))
