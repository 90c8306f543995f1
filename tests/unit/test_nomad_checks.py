"""What doctor says of Nomad."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from standfast.config.nomad import NomadAccess
from standfast.consul.records import NomadNote
from standfast.doctor.nomad_checks import FORGOTTEN_S, Facts, examine, look, stops_when_cut_off
from standfast.nomad import reports
from standfast.nomad.observation import Noted
from standfast.nomad.path_use import Way
from standfast.nomad.ports import Allocation, Node
from standfast.nomad.remounted import User
from standfast.reasons import Reason
from tests.support.observations import config

CONFIG = config("a", nomad=NomadAccess())


def node(name: str, *, shown: bool = False, eligible: bool = True, status: str = "ready") -> Node:
    meta = {"storage_role": "primary"} if shown else {}
    return Node(
        id=f"id-{name}",
        name=name,
        status=status,
        eligible=eligible,
        meta=meta,
        host_volumes={},
        datacenter="dc1",
    )


def noted(name: str, at: float) -> dict[str, Noted]:
    return {f"id-{name}": Noted(NomadNote(name, "a", 5, at), 1)}


A = node("a", shown=True)
WELL = Facts(CONFIG, A, (A, node("b")), ttl_s=30.0, serving="a", constrained=2, now=10_000.0)


def test_all_is_well() -> None:
    findings = examine(WELL)
    assert all(finding.ok and not finding.fix for finding in findings)
    assert {finding.check for finding in findings} == {
        "nomad",
        "meta",
        "cut-off",
        "heartbeat",
        "leaders",
    }


def test_who_uses_the_volume_is_named_with_what_becomes_of_it() -> None:
    allocation = Allocation(
        id="0123456789", name="db.g[0]", namespace="default", job_id="db", group="g",
        node_id="id-a", desired="run", client_status="running", tasks=(), modify_index=1,
    )  # fmt: skip
    user = User(allocation, {"t": Way("CSI volume pg", of_allocation=True)}, "restart")
    [told] = [
        finding for finding in examine(replace(WELL, users=[user] * 12)) if finding.check == "users"
    ]
    assert told.ok and "db.g (01234567): t: CSI volume pg [restart]" in told.evidence
    assert told.evidence.endswith(" and 2 more")


@pytest.mark.parametrize(
    ("change", "check", "evidence"),
    [
        ({"own": node("zippy")}, "nomad", "zippy in Nomad and a in Consul"),
        ({"nodes": (A, node("b", shown=True))}, "meta", "several nodes that take jobs: a, b"),
        ({"nodes": (node("a"), node("b", shown=True))}, "meta", "on b, and a serves"),
        (
            {
                "nodes": (A, node("b", eligible=False)),
                "notes": noted("b", WELL.now - FORGOTTEN_S - 1),
            },
            "quarantine",
            "b was made ineligible by a 10 min ago, is back, and still in quarantine",
        ),
        ({"unguarded": ("db.g", "web.g")}, "cut-off", "db.g, web.g"),
        ({"ttl_s": 300.0}, "heartbeat", "300 s"),
        ({"leads_nomad": True}, "leaders", "a is primary and leader of Nomad:"),
        ({"leads_nomad": True, "leads_consul": True}, "leaders", "Nomad and Consul"),
    ],
)
def test_what_is_wrong_is_named_with_a_fix(
    change: dict[str, Any], check: str, evidence: str
) -> None:
    [bad] = [finding for finding in examine(replace(WELL, **change)) if not finding.ok]
    assert bad.check == check
    assert evidence in bad.evidence
    assert bad.fix


@pytest.mark.parametrize(
    ("other", "notes", "evidence"),
    [
        (node("b", shown=True, eligible=False), noted("b", 9_990.0), "until it doesn't show"),
        (
            node("b", shown=True, eligible=False, status="down"),
            noted("b", 0.0),
            "is down: until it is back",
        ),
        (node("b", eligible=False), {}, "by an operator's choice"),
    ],
)
def test_a_quarantine_at_work_and_a_word_of_the_operator_are_told_and_well(
    other: Node, notes: dict[str, Noted], evidence: str
) -> None:
    findings = examine(replace(WELL, nodes=(A, other), notes=notes))
    assert all(finding.ok for finding in findings)
    assert any(evidence in finding.evidence for finding in findings)


def test_an_agent_that_is_no_server_says_nothing_of_the_heartbeat() -> None:
    assert "heartbeat" not in {finding.check for finding in examine(replace(WELL, ttl_s=None))}


@pytest.mark.parametrize(
    ("group", "stops"),
    [
        ({"Disconnect": {"StopOnClientAfter": 25_000_000_000}}, True),
        ({"StopAfterClientDisconnect": 25_000_000_000}, True),
        ({"Disconnect": {"LostAfter": 1, "StopOnClientAfter": None}}, False),
        ({"Disconnect": None, "StopAfterClientDisconnect": None}, False),
        ({}, False),
    ],
)
def test_which_groups_end_on_a_node_that_is_cut_off(group: dict[str, Any], stops: bool) -> None:
    assert stops_when_cut_off(group) is stops


def test_without_nomad_there_is_nothing_to_say() -> None:
    assert look(config("a"), "a") == []


def test_a_nomad_that_is_away_is_a_finding_and_so_is_the_last_round(tmp_path: Any) -> None:
    from standfast.config.model import Paths

    away = config(
        "a",
        nomad=NomadAccess(address="127.0.0.1:1"),
        paths=Paths(state=tmp_path, run=tmp_path),
    )
    reports.save(away, reports.none("403", Reason.NOMAD_DENIED))
    round_, now = look(away, "a")
    assert (round_.ok, round_.evidence) == (False, "403")
    assert (now.ok, now.check) == (False, "nomad") and now.fix
