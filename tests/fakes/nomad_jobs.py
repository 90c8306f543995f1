"""Jobs as the stand-in's servers keep them, and what of a job the scheduler looks at."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from standfast.system.clock import utc_now

KILLED_S = 0.1
"""A task that doesn't refuse is gone this long after it was told to end."""
Doc = dict[str, Any]


def canonical(doc: Doc) -> Doc:
    """A registered job as the servers keep it."""
    made = {"Namespace": "default", "Type": "service", "Priority": 50, "Stop": False,
            "Status": "running", "Meta": None, "Constraints": None, "Affinities": None,
            "Region": "global", "Datacenters": ["dc1"]}  # fmt: skip
    made |= {key: value for key, value in doc.items() if value is not None}
    groups = []
    for group in doc.get("TaskGroups") or []:
        tasks = [
            {"Constraints": None, "Affinities": None, "Templates": None, "Meta": None, "Env": None,
             "KillTimeout": 5 * 10**9, "VolumeMounts": None, **task}
            for task in group.get("Tasks") or []
        ]  # fmt: skip
        groups.append({"Count": 1, "Constraints": None, "Affinities": None, "Meta": None,
                       "Volumes": None, "Disconnect": None, **group, "Tasks": tasks})  # fmt: skip
    return {**made, "TaskGroups": groups}


def misfits(job: Doc, group: Doc, facts: Mapping[str, str]) -> list[str]:
    """Constraints that the node doesn't meet, as the scheduler names them."""
    unmet = []
    for place in (job, group, *group["Tasks"]):
        for rule in place.get("Constraints") or []:
            left = _value(rule.get("LTarget") or "", facts)
            right = _value(rule.get("RTarget") or "", facts)
            operand = rule.get("Operand") or "="
            if not _holds(operand, left, right):
                unmet.append(f"{rule['LTarget']} {operand} {rule.get('RTarget', '')}".strip())
    return unmet


def _value(target: str, facts: Mapping[str, str]) -> str | None:
    if not (target.startswith("${") and target.endswith("}")):
        return target
    return facts.get(target[2:-1])


def _holds(operand: str, left: str | None, right: str | None) -> bool:
    if operand == "is_set":
        return left is not None
    if operand == "is_not_set":
        return left is None
    if operand in ("!=", "not"):
        return left != right
    if operand in ("=", "==", "is"):
        return left is not None and left == right
    raise ValueError(f"the stand-in doesn't know the operand {operand!r}")


def end_s(job: Doc, group_name: str) -> float:
    """A task whose script traps its signals is killed when its time is over."""
    group = next(taskgroup for taskgroup in job["TaskGroups"] if taskgroup["Name"] == group_name)
    seconds = KILLED_S
    for task in group["Tasks"]:
        if any("trap ''" in str(word) for word in (task.get("Config") or {}).get("args") or ()):
            seconds = max(seconds, task["KillTimeout"] / 1e9)
    return seconds


def stamp() -> str:
    """Now, as Nomad writes it; the digits make any two differ."""
    return datetime.fromtimestamp(utc_now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
