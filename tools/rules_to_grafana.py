"""`python -m tools.rules_to_grafana` makes exporters/grafana/alerts.yaml of Prometheus' rules.

Invariant: the rules for Prometheus are the only ones that anybody edits. Grafana's file names each
of them with the same expression, `for`, labels and texts; a test keeps the two in step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "exporters/prometheus/standfast-alerts.yml"
GRAFANA = ROOT / "exporters/grafana/alerts.yaml"
DATASOURCE = "prometheus"
"""The uid that an operator replaces by that of their own datasource."""
LOOK_BACK_S = 86400
"""As long as the longest range in a rule."""
HEAD = """\
# Made of exporters/prometheus/standfast-alerts.yml by `python -m tools.rules_to_grafana`.
# File provisioning of Grafana 10 or later: copy it to /etc/grafana/provisioning/alerting/ and
# replace the datasource's uid (`datasourceUid: prometheus`) by yours. See docs/alerts.md.
"""


def provisioning(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Grafana's document; `rules`: that of Prometheus."""
    return {
        "apiVersion": 1,
        "groups": [
            {
                "orgId": 1,
                "name": group["name"],
                "folder": "Standfast",
                "interval": "15s",
                "rules": [_rule(rule) for rule in group["rules"]],
            }
            for group in rules["groups"]
        ],
    }


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "uid": re.sub(r"(?<!^)(?=[A-Z])", "-", rule["alert"]).lower(),
        "title": rule["alert"],
        "condition": "B",
        "data": [
            {
                "refId": "A",
                "relativeTimeRange": {"from": LOOK_BACK_S, "to": 0},
                "datasourceUid": DATASOURCE,
                "model": {"refId": "A", "expr": rule["expr"], "instant": True, "range": False},
            },
            # Each series that the expression returns is an alert, whatever its value: none of
            # them is negative.
            {
                "refId": "B",
                "relativeTimeRange": {"from": 0, "to": 0},
                "datasourceUid": "__expr__",
                "model": {
                    "refId": "B",
                    "type": "threshold",
                    "expression": "A",
                    "conditions": [{"evaluator": {"type": "gt", "params": [-1]}}],
                },
            },
        ],
        # An expression without a result is a rule that has nothing to say.
        "noDataState": "OK",
        "execErrState": "Error",
        "for": rule.get("for", "0s"),
        "annotations": {name: _text(text) for name, text in rule["annotations"].items()},
        "labels": dict(rule["labels"]),
    }


def _text(text: str) -> str:
    """A text's template as Grafana writes it; it would take a single `$` for its environment."""
    looked_up = r" ?\{\{ range query .*?\{\{ end \}\}"
    text = re.sub(looked_up, " `standfast_failover_blocked` has the reason.", text)
    return text.replace("$value ", "$values.A.Value ").replace("$", "$$")


def written(rules: str) -> str:
    """The file's text for the text of the rules."""
    document = provisioning(yaml.safe_load(rules))
    return HEAD + str(yaml.safe_dump(document, sort_keys=False, width=1000))


if __name__ == "__main__":
    GRAFANA.write_text(written(RULES.read_text()))
