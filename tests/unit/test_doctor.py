"""What doctor makes of a status document."""

from __future__ import annotations

from typing import Any

import pytest

from standfast.doctor.finding import Finding
from standfast.doctor.run import listed, render
from standfast.doctor.service_checks import examine
from tests.support.status_documents import parsed

WELL: dict[str, Any] = {
    "volume": "data-services",
    "node": "n1",
    "role": "primary",
    "agent": True,
    "epoch": 4,
    "holder": "n1",
    "state": "serving",
    "serving": "n1",
    "fence": {"in_place": True, "open_for_s": 6.0},
    "fence_flushes": 0,
    "busy": None,
    "sick": None,
    "trouble": None,
    "failover": {"possible": True, "reason": None, "sentence": "n2 would lose 30 s"},
    "standbys": [{"node": "n2", "age_s": 30.0}],
    "aside": ["/persist/services.retired-3-20261122T101500Z"],
}


def shown(findings: list[Finding]) -> str:
    return render([listed("service", finding) for finding in findings])


def test_a_healthy_primary_has_no_finding_and_no_fix() -> None:
    findings = examine(parsed(WELL))
    assert all(finding.ok and not finding.fix for finding in findings)
    assert "BAD" not in shown(findings)


@pytest.mark.parametrize(
    ("change", "check", "evidence"),
    [
        ({"serving": None}, "serving", "nobody"),
        ({"agent": False}, "agent", "none answers"),
        ({"fence": {"in_place": False, "open_for_s": 0}}, "fence", "missing"),
        ({"fence_flushes": 2}, "firewall", "gone 2 times"),
        (
            {"failover": {"possible": False, "reason": "too-old", "sentence": "an hour old"}},
            "failover",
            "an hour old",
        ),
        ({"trouble": "the promotion stopped"}, "trouble", "the promotion stopped"),
        ({"aside": ["/persist/services.diverged-3-x"]}, "diverged", "services.diverged-3-x"),
    ],
)
def test_what_is_wrong_is_named_with_its_evidence_and_a_fix(
    change: dict[str, Any], check: str, evidence: str
) -> None:
    [bad] = [finding for finding in examine(parsed(WELL | change)) if not finding.ok]
    assert bad.check == check
    assert evidence in bad.evidence
    assert bad.fix
    assert f"BAD  {check}" in shown([bad])
    assert listed("service", bad).cause in shown([bad])


def test_without_consul_it_says_what_is_not_known() -> None:
    blind = {key: value for key, value in WELL.items() if key not in ("epoch", "serving")}
    blind["failover"] = {"possible": False, "reason": "consul-timeout", "sentence": "Consul hangs"}
    assert "not known: Consul hangs" in examine(parsed(blind))[0].evidence
