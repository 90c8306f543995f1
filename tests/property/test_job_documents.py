"""Whoever may submit a job writes its document: whatever it says, it is judged soon, and by no
pattern but ours; a document of another shape is one that ties to nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from time import thread_time
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standfast.nomad.constraints import Meta, Tie, placement
from standfast.nomad.observation import kill_timeout_s
from standfast.nomad.path_use import Shown, csi_ids, uses
from standfast.nomad.ports import CsiVolume, Node
from standfast.nomad.remounted import policy_of
from tests.support.examples import examples
from tests.support.pace import patient

SOON_S = 0.02
"""Of processor time, for one allocation; Nomad takes job documents of up to 1 MiB."""
META = Meta("storage_role", "primary")
ROLE = "${meta.storage_role}"
NODE = Node(id="i", name="n", status="ready", eligible=True, draining=False, meta={"rack": "r1"},
            host_volumes={"services": "/data/services"}, attributes={"cpu.arch": "amd64"},
            datacenter="dc1", node_class="", pool="default")  # fmt: skip
OURS = CsiVolume(id="v", context={"server": "nas", "share": "/persist/services"})
SHOWN = Shown("/data/services", "nas", "/persist/services", NODE.host_volumes, {"v": OURS})
OPERANDS = ("=", "==", "is", "!=", "not", "is_set", "is_not_set", "<", ">=", "regexp", "version",
            "semver", "set_contains", "set_contains_any", "distinct_property", "")  # fmt: skip
PIECES = ("${", "}", "${meta.", "meta.", "storage_role", " ", "\t", "\n", "(", ")", "(.?)", "{32}",
          "z$", "a+", "*", "\\", "[", "1", ".", ">= 1", ",", "/", "/data/services", "é",
          "\x00")  # fmt: skip
LONG = st.builds(lambda piece, count: piece * count, st.sampled_from(PIECES), st.integers(1, 3000))
BRACES = st.builds(
    lambda count, end: "${" + " " * count + end,
    st.integers(0, 3000),
    st.sampled_from(["", "x", "}", "}}", " x }", "meta.storage_role }"]),
)
TEXTS = st.one_of(
    BRACES,
    st.sampled_from([ROLE, "primary", "(.?){32}z$", "(a+)+$", "${ meta.storage_role }", ""]),
    st.lists(st.one_of(st.sampled_from(PIECES), LONG), max_size=6).map("".join),
)
LINES = st.fixed_dictionaries(
    {"LTarget": TEXTS, "Operand": st.sampled_from(OPERANDS), "RTarget": TEXTS}
)
WORDS = st.sampled_from(
    ["ID", "Name", "g", "t", "Constraints", "Affinities", "TaskGroups", "Tasks", "Volumes", "Type",
     "csi", "host", "Source", "v", "PerAlloc", "VolumeMounts", "Volume", "Config", "volumes",
     "mount", "mounts", "volume_options", "driver_config", "options", "Env", "Templates", "Meta",
     "DestPath", "standfast_on_remount", "KillTimeout", "ShutdownDelay", "Priority", "LTarget",
     "/data/services"]
)  # fmt: skip
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), WORDS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=5)),
    max_leaves=25,
)


def judged(job: Mapping[str, Any]) -> tuple[Tie, Mapping[str, object], float, str]:
    """Everything that is made of a job's document."""
    csi_ids(job, "g", "[0]")
    return (
        placement(job, "g", META, NODE).tie,
        uses(job, "g", SHOWN, "[0]"),
        kill_timeout_s(job, "g"),
        policy_of(job, "restart"),
    )


def took_s(act: Callable[[], object]) -> float:
    """Of the processor, at best of three: another thread's turn is not the document's."""
    times = []
    for _ in range(3):
        started = thread_time()
        act()
        times.append(thread_time() - started)
        if times[-1] <= SOON_S:
            break
    return min(times)


def with_group(**group: Any) -> dict[str, Any]:
    return {"ID": "db", "TaskGroups": [{"Name": "g", "Tasks": [{"Name": "t"}], **group}]}


@examples(200)
@given(st.lists(LINES, max_size=5))
def test_constraints_are_judged_soon(lines: list[dict[str, str]]) -> None:
    job = with_group(Constraints=lines, Affinities=lines)
    assert took_s(lambda: judged(job)) <= patient(SOON_S)


@examples(100)
@given(st.lists(LINES, min_size=1, max_size=3), st.sampled_from(OPERANDS))
def test_no_pattern_of_a_job_is_compiled(lines: list[dict[str, str]], operand: str) -> None:
    def compiled(*_: object) -> NoReturn:
        raise AssertionError("a pattern was looked for in a constraint")

    job = with_group(Constraints=[*lines, {"LTarget": ROLE, "Operand": operand, "RTarget": "("}])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compile", "match", "search", "fullmatch", "findall", "sub", "split"):
            patch.setattr(re, name, compiled)
        placement(job, "g", META, NODE)


@examples(300)
@given(st.dictionaries(WORDS, ANYTHING, max_size=6), ANYTHING, ANYTHING, ANYTHING)
def test_a_document_of_any_shape_is_judged(
    job: dict[str, Any], first: Any, second: Any, third: Any
) -> None:
    judged(job)
    judged({**job, "TaskGroups": [first, {"Name": "g", "Tasks": first, "Volumes": second}]})
    task = {"Name": third, "Config": first, "Env": second, "Templates": third}
    mounts = [{"Volume": first}, {"Volume": "v"}, second]
    judged(with_group(Tasks=[{**task, "VolumeMounts": mounts}, second], Volumes={"v": first}))
    judged(with_group(Constraints=[{"LTarget": first, "Operand": second, "RTarget": third}, first]))


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_document_as_deep_as_any_that_is_read_is_judged(opening: str) -> None:
    depth = 1
    closing = "]" if opening == "[" else "}"
    deepest: Any = ""
    while depth < 2**16:
        try:
            deepest = json.loads(opening * depth + "1" + closing * depth)
        except RecursionError:
            break
        depth *= 2
    for key in ("Config", "Env", "Templates", "VolumeMounts", "Name", "Driver"):
        task = {"Name": "t", key: deepest}
        judged(with_group(Tasks=[task], Constraints=deepest, Volumes={"v": deepest}))
    judged({"ID": "db", "Meta": {"standfast_on_remount": deepest}, "TaskGroups": deepest})


def test_a_huge_document_is_judged_soon() -> None:
    """A mebibyte of the shortest texts, and one of the longest."""
    short = {"volumes": [f"/srv/{number}:/x" for number in range(15_000)], "args": ["a"] * 60_000}
    long = {"command": "/data/service" * 80_000}
    lines = [{"LTarget": ROLE, "Operand": "regexp", "RTarget": "x" * 1000}] * 1000
    for config in (short, long):
        job = with_group(Tasks=[{"Name": "t", "Config": config}], Constraints=lines)
        assert judged(job)[0] is Tie.PRIMARY
        assert took_s(lambda job=job: judged(job)) <= patient(25 * SOON_S)  # type: ignore[misc]
