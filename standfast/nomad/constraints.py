"""Which allocations have to be where the volume's meta is.

Invariant: pure. A constraint is evaluated twice, for the node with the meta and for the same node
without it. Only equality and presence are understood; what can't be told counts as constrained,
since a job in the wrong place is the worse end. Affinities are preferences: never a reason to stop
a job.

Whoever may submit a job writes these texts: each is compared, and none is a pattern or is searched
with one that tries its way back, which would hold up every thread of the agent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from msgspec.structs import replace

from standfast.nomad.ports import Node

PRIMARY = "primary"
"""The meta's value on the primary; elsewhere the meta is unset."""
MOST_SHOWN = 200
"""Characters of each side of a constraint, in what people are told."""


@dataclass(frozen=True, slots=True)
class Meta:
    """The node meta that says where the primary is."""

    key: str
    value: str


class Tie(StrEnum):
    """How a job is tied to the meta."""

    PRIMARY = "primary"
    """It may run only where the meta is."""
    ELSEWHERE = "elsewhere"
    """It may run only where the meta is not."""
    PREFERS = "prefers"
    """An affinity: it may run anywhere."""
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Placement:
    """A tie, and the line of the job that makes it."""

    tie: Tie
    level: str = ""
    """job, group or task NAME."""
    text: str = ""


def placement(job: Mapping[str, Any], group: str, meta: Meta, node: Node) -> Placement:
    """Returns how a group is tied to the meta; `node` is where its allocation is."""
    without = {key: value for key, value in node.meta.items() if key != meta.key}
    bare = replace(node, meta=without)
    marked = replace(node, meta={**without, meta.key: meta.value})
    primary = Placement(Tie.NONE)
    for level, line in lines(job, group, "Constraints"):
        if not speaks_of(line, meta.key):
            continue
        there, elsewhere = holds(line, marked), holds(line, bare)
        if there is False and elsewhere is not False:
            return Placement(Tie.ELSEWHERE, level, sentence(line))
        if there is not False and elsewhere is not True:
            primary = Placement(Tie.PRIMARY, level, sentence(line))
    if primary.tie is not Tie.NONE:
        return primary
    for level, line in lines(job, group, "Affinities"):
        if speaks_of(line, meta.key):
            return Placement(Tie.PREFERS, level, sentence(line))
    return primary


def lines(job: Mapping[str, Any], group: str, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the `Constraints` or `Affinities` of the job, the group and its tasks, by level."""
    yield from (("job", line) for line in dicts(job.get(kind)))
    for candidate in dicts(job.get("TaskGroups")):
        if candidate.get("Name") != group:
            continue
        yield from (("group", line) for line in dicts(candidate.get(kind)))
        for task in dicts(candidate.get("Tasks")):
            name = text_of(task, "Name")
            yield from ((f"task {name}", line) for line in dicts(task.get(kind)))


def dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the objects of a list and skips everything else."""
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def sentence(line: Mapping[str, Any]) -> str:
    """Returns the line as a job file has it; of a long text its beginning."""
    words = (text_of(line, "LTarget"), _operand(line), text_of(line, "RTarget"))
    return " ".join(word[:MOST_SHOWN] for word in words if word)


def speaks_of(line: Mapping[str, Any], key: str) -> bool:
    """Tells whether either side is the meta's name."""
    return f"meta.{key}" in (_name(text_of(line, "LTarget")), _name(text_of(line, "RTarget")))


def text_of(document: Mapping[str, Any], key: str) -> str:
    """Returns a text of a document; empty where there is none, or something else."""
    value = document.get(key)
    return value if isinstance(value, str) else ""


def _operand(line: Mapping[str, Any]) -> str:
    return text_of(line, "Operand") or "="


def _name(target: str) -> str | None:
    """Returns `meta.x` of `${meta.x}`; None for a literal.

    As Nomad reads them: spaces inside the braces are its HCL parser's, gone or not.
    """
    target = target.strip()
    if not (target.startswith("${") and target.endswith("}")):
        return None
    name = target[2:-1]
    return None if "}" in name else name.strip()


def resolve(target: str, node: Node) -> str | None:
    """Returns the value of a side of a constraint on a node; None when it has none there."""
    name = _name(target)
    if name is None:
        return target
    own = {
        "node.unique.id": node.id,
        "node.unique.name": node.name,
        "node.datacenter": node.datacenter,
        "node.class": node.node_class,
        "node.pool": node.pool,
    }
    if name.startswith("meta."):
        return node.meta.get(name.removeprefix("meta."))
    if name.startswith("attr."):
        return node.attributes.get(name.removeprefix("attr."))
    return own.get(name)


def holds(line: Mapping[str, Any], node: Node) -> bool | None:
    """Tells whether a constraint is met on a node; None when that can't be told.

    Equality and presence follow Nomad's rules. Every other operator (regexp, version, semver,
    set_contains, distinct_hosts, <, ...) can't be told.
    """
    left = resolve(text_of(line, "LTarget"), node)
    right = resolve(text_of(line, "RTarget"), node)
    match _operand(line):
        case "=" | "==" | "is":
            return left is not None and left == right
        case "!=" | "not":
            return (left or "") != (right or "")
        case "is_set":
            return left is not None
        case "is_not_set":
            return left is None
        case _:
            return None
