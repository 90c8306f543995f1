"""The alert rules, Grafana's copy of them, the dashboard and their pages: each in step.

What the rules say when is in tests/promtool, which `make check` runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from standfast.exporter.families import FAMILIES
from standfast.reasons import Reason
from tests.support.checkout import CHECKOUT
from tests.support.monitoring import DASHBOARD, RULES, dashboard_queries, names_in, quicker
from tools.rules_to_grafana import GRAFANA, written

PAGE = (CHECKOUT / "docs/alerts.md").read_text()
TESTS = sorted((CHECKOUT / "tests/promtool").glob("*.test.yml"))
METRICS = {family.full_name for family in FAMILIES.values()}


def rules(text: str = RULES.read_text()) -> dict[str, Mapping[str, Any]]:
    groups = yaml.safe_load(text)["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def sections() -> list[str]:
    return re.findall(r"(?m)^## (Standfast\w+)$", PAGE)


def test_each_alert_has_a_section_that_its_runbook_link_leads_to() -> None:
    assert sections() == list(rules())
    for name, rule in rules().items():
        assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{name.lower()}"


@pytest.mark.parametrize("name", rules())
def test_each_alert_says_how_grave_it_is_what_is_wrong_and_what_that_means(name: str) -> None:
    rule = rules()[name]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    summary, description = rule["annotations"]["summary"], rule["annotations"]["description"]
    # Only without any target there is nothing to name.
    assert "{{ $labels." in summary or name == "StandfastExporterAbsent"
    assert description.endswith((".", "?", "{{ end }}"))


def test_each_section_says_where_to_look_and_what_to_do() -> None:
    for name, text in zip(sections(), re.split(r"(?m)^## Standfast\w+$", PAGE)[1:], strict=True):
        assert "See:" in text or "See " in text or "`standfast history`" in text, name
        assert "Do:" in text or "do as for" in text or "history" in text, name


def test_alerts_and_dashboard_ask_for_metrics_that_exist() -> None:
    texts = [rule["expr"] for rule in rules().values()]
    asked = set().union(*map(names_in, [*texts, *dashboard_queries("v").values()]))
    assert asked <= METRICS
    # What nobody looks at needs no graph; what is looked at elsewhere is named here.
    elsewhere = {"standfast_build_info", "standfast_mode"}
    newest = "standfast_replica_newest_snapshot_timestamp_seconds"
    assert METRICS - asked == elsewhere | {newest}


def test_the_reasons_that_a_rule_names_are_reason_codes() -> None:
    codes = {str(reason) for reason in Reason}
    named = re.findall(r'(?:began_by|reason)=~?"([^"]+)"', RULES.read_text())
    assert named
    assert {code for text in named for code in text.split("|")} <= codes


def test_grafanas_rules_are_those_of_prometheus() -> None:
    text = GRAFANA.read_text()
    assert text == written(RULES.read_text()), "run `python -m tools.rules_to_grafana`"
    grafana_rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    assert [rule["title"] for rule in grafana_rules] == list(rules())
    uids = {rule["uid"] for rule in grafana_rules}
    assert len(uids) == len(grafana_rules)
    for rule in grafana_rules:
        assert len(rule["uid"]) <= 40
        assert rule["condition"] in [query["refId"] for query in rule["data"]]
        for written_text in rule["annotations"].values():
            assert not re.search(r"(?<!\$)\$(?!\$)", written_text), "Grafana's environment"
            assert "query" not in re.findall(r"\{\{ *(?:range )?(\w+)", written_text)


def test_the_dashboard_can_be_imported_anywhere() -> None:
    doc = json.loads(DASHBOARD.read_text())
    assert "id" not in doc
    names = [variable["name"] for variable in doc["templating"]["list"]]
    assert names == ["datasource", "volume"]
    panels = [panel for panel in doc["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in doc["panels"]}) == len(doc["panels"])
    for panel in panels:
        assert panel["description"]
        asked = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in asked)
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        taken = [other["gridPos"] for other in doc["panels"] if other is not panel]
        assert not any(overlap(place, snapshot) for snapshot in taken), panel["title"]


def overlap(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def test_every_alert_is_tested_to_fire_and_to_be_quiet() -> None:
    tests = [test for path in TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == set(rules())
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} >= (
        # A failed comparison isn't asked twice.
        set(rules()) - {"StandfastVerifyFailed"}
    )


def test_quicker_rules_differ_in_their_waits_alone() -> None:
    text = RULES.read_text()
    quick = rules(quicker(text, 15))
    assert quick["StandfastReplicationLag"]["for"] == "4000ms"
    assert "[60000ms]" in quick["StandfastFailoverHappened"]["expr"]
    for name, rule in rules(text).items():
        waits = r"\[\w+\]"
        assert re.sub(waits, "", rule["expr"]) == re.sub(waits, "", quick[name]["expr"])
        assert rule["annotations"] == quick[name]["annotations"]
        assert ("for" in rule) == ("for" in quick[name])
