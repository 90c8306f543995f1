"""Which jobs have to be on the primary: by operand, level and side; tables of cases."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from standfast.nomad.constraints import Meta, Placement, Tie, holds, placement
from standfast.nomad.ports import Node

META = Meta("storage_role", "primary")
ROLE = "${meta.storage_role}"
NODE = Node(
    id="id-1",
    name="node1",
    status="ready",
    eligible=True,
    draining=False,
    meta={"wanted": "primary", "rack": "r1", "storage_role": "primary"},
    host_volumes={},
    attributes={"kernel.name": "linux"},
    datacenter="dc1",
    node_class="",
    pool="default",
)


OTHER_OPERANDS = (
    "<",
    "<=",
    ">",
    ">=",
    "regexp",
    "version",
    "semver",
    "set_contains",
    "set_contains_all",
    "set_contains_any",
    "distinct_hosts",
    "distinct_property",
    "odd",
)


def line(text: str) -> dict[str, Any]:
    """`LEFT OPERAND RIGHT`; `-` is an empty side."""
    left, operand, right = text.split(maxsplit=2)
    return {
        "LTarget": "" if left == "-" else left,
        "Operand": "" if operand == "-" else operand,
        "RTarget": "" if right == "-" else right,
    }


def job(**levels: str | None) -> dict[str, Any]:
    """A job of two groups with constraints at job, group, task; affinities at the same, `a_…`."""

    def at(name: str) -> list[dict[str, Any]] | None:
        text = levels.get(name)
        return None if text is None else [line(word) for word in text.split("; ")]

    return {
        "ID": "db",
        "Constraints": at("job"),
        "Affinities": at("a_job"),
        "TaskGroups": [
            {
                "Name": "g",
                "Constraints": at("group"),
                "Affinities": at("a_group"),
                "Tasks": [
                    {"Name": "side"},
                    {"Name": "t", "Constraints": at("task"), "Affinities": at("a_task")},
                ],
            },
            {"Name": "other", "Constraints": at("other"), "Tasks": [{"Name": "o"}]},
        ],
    }


@pytest.mark.parametrize(
    ("text", "tie"),
    [
        (f"{ROLE} = primary", Tie.PRIMARY),
        (f"{ROLE} == primary", Tie.PRIMARY),
        (f"{ROLE} is primary", Tie.PRIMARY),
        (f"{ROLE} - primary", Tie.PRIMARY),
        (f"primary = {ROLE}", Tie.PRIMARY),
        (f"{ROLE} != primary", Tie.ELSEWHERE),
        (f"{ROLE} not primary", Tie.ELSEWHERE),
        (f"primary != {ROLE}", Tie.ELSEWHERE),
        (f"{ROLE} != standby", Tie.NONE),
        (f"{ROLE} = standby", Tie.NONE),  # nowhere, with the meta and without
        (f"{ROLE} is_set -", Tie.PRIMARY),
        (f"{ROLE} is_not_set -", Tie.ELSEWHERE),
        # Every other operator: it can't be told, so the job counts as constrained.
        *((f"{ROLE} {operand} standby", Tie.PRIMARY) for operand in OTHER_OPERANDS),
        *((f"standby {operand} {ROLE}", Tie.PRIMARY) for operand in OTHER_OPERANDS),
        ("${meta.rack} regexp ^r2", Tie.NONE),  # not of the meta
        (f"{ROLE} = ${{meta.wanted}}", Tie.PRIMARY),
        (f"${{meta.wanted}} = {ROLE}", Tie.PRIMARY),
        (f"{ROLE} = ${{meta.rack}}", Tie.NONE),
        (f"{ROLE} = ${{attr.kernel.name}}", Tie.NONE),
        ("${meta.storage_roles} = primary", Tie.NONE),
        ("${attr.storage_role} = primary", Tie.NONE),
        ("storage_role = primary", Tie.NONE),
        ("meta.storage_role = primary", Tie.NONE),
        ("${meta.rack} = r1", Tie.NONE),
        ("${node.unique.name} = node1", Tie.NONE),
    ],
)
def test_what_a_constraint_ties_a_job_to(text: str, tie: Tie) -> None:
    assert placement(job(group=text), "g", META, NODE).tie is tie


def test_spaces_inside_the_braces_are_no_part_of_the_name() -> None:
    spaced = {"LTarget": "${ meta.storage_role }", "Operand": "=", "RTarget": "primary"}
    document = job()
    document["TaskGroups"][0]["Constraints"] = [spaced]
    assert placement(document, "g", META, NODE).tie is Tie.PRIMARY


@pytest.mark.parametrize("level", ["job", "group", "task"])
def test_a_constraint_counts_at_each_level_and_is_named_by_it(level: str) -> None:
    name = "task t" if level == "task" else level
    assert placement(job(**{level: f"{ROLE} = primary"}), "g", META, NODE) == Placement(
        Tie.PRIMARY, name, f"{ROLE} = primary"
    )


def test_another_groups_constraint_is_none_of_this_one() -> None:
    assert placement(job(other=f"{ROLE} = primary"), "g", META, NODE).tie is Tie.NONE
    assert placement(job(other=f"{ROLE} = primary"), "other", META, NODE).tie is Tie.PRIMARY


@pytest.mark.parametrize("level", ["a_job", "a_group", "a_task"])
def test_an_affinity_is_a_request_and_stops_nothing(level: str) -> None:
    assert placement(job(**{level: f"{ROLE} = primary"}), "g", META, NODE).tie is Tie.PREFERS


def test_a_constraint_goes_before_an_affinity() -> None:
    both = job(a_job=f"{ROLE} = primary", task=f"{ROLE} = primary")
    assert placement(both, "g", META, NODE).tie is Tie.PRIMARY


def test_whoever_may_not_be_on_the_primary_is_not_bound_to_it() -> None:
    torn = job(job=f"{ROLE} is_set -", group=f"{ROLE} != primary")
    assert placement(torn, "g", META, NODE).tie is Tie.ELSEWHERE


def test_it_is_the_same_whether_the_node_has_the_meta_now_or_not() -> None:

    bare = replace(NODE, meta={"wanted": "primary"})
    for text in (f"{ROLE} = primary", f"{ROLE} != primary", f"{ROLE} = ${{meta.wanted}}"):
        assert placement(job(job=text), "g", META, NODE) == placement(
            job(job=text), "g", META, bare
        )


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"Constraints": "x", "TaskGroups": None},
        {"Constraints": [None, 1, {}], "TaskGroups": [None, {"Name": "g", "Tasks": [None]}]},
        {"TaskGroups": [{"Name": "g", "Constraints": [{"LTarget": 1, "Operand": None}]}]},
    ],
)
def test_a_document_of_another_shape_ties_to_nothing(document: Any) -> None:
    assert placement(document, "g", META, NODE).tie is Tie.NONE


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("${node.unique.id} = id-1", True),
        ("${node.unique.name} = node2", False),
        ("${node.datacenter} = dc1", True),
        ("${node.class} is_set -", True),
        ("${node.pool} = default", True),
        ("${attr.kernel.name} = linux", True),
        ("${attr.nothing} != linux", True),
        ("${attr.nothing} = linux", False),
        ("${attr.nothing} = ${attr.nothing}", False),
        ("${attr.nothing} not -", False),
        ("${attr.nothing} is_not_set -", True),
    ],
)
def test_equality_and_presence_follow_nomads_rules(text: str, met: bool) -> None:
    assert holds(line(text), NODE) is met


@pytest.mark.parametrize("operand", OTHER_OPERANDS)
def test_no_other_operator_is_told(operand: str) -> None:
    assert holds(line(f"x {operand} x"), NODE) is None
    assert holds(line(f"${{attr.nothing}} {operand} x"), NODE) is None


WORDS = st.sampled_from(
    ["primary", "standby", "", "pri", ".*", ROLE, "${meta.wanted}", "${attr.x}", "9", "a,primary"]
)
OPERANDS = st.sampled_from(["=", "==", "is", "!=", "not", "is_set", "is_not_set", *OTHER_OPERANDS])


@given(left=WORDS, operand=OPERANDS, right=WORDS)
def test_no_constraint_binds_a_job_that_could_run_without_the_meta(
    left: str, operand: str, right: str
) -> None:

    constraint = {"LTarget": left, "Operand": operand, "RTarget": right}
    bare = replace(NODE, meta={"wanted": "primary", "rack": "r1"})
    tie = placement({"Constraints": [constraint], "TaskGroups": []}, "g", META, NODE).tie
    if tie is Tie.PRIMARY:
        assert ROLE in (left, right)
        assert holds(constraint, bare) is not True
        assert holds(constraint, NODE) is not False
    if tie is Tie.ELSEWHERE:
        assert holds(constraint, NODE) is False
