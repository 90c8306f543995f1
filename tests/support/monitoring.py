"""Prometheus and Alertmanager as a test's own processes, here or in a network namespace.

Invariant: they listen on loopback only, keep their data in the given directory, and are ended by
their process when the context is left. The rules are the shipped ones; `quicker` alone may change
how long they wait.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from tests.support.checkout import CHECKOUT
from tests.support.commands import LabTimeout, Process, sh, wait_for

RULES = CHECKOUT / "exporters/prometheus/standfast-alerts.yml"
DASHBOARD = CHECKOUT / "exporters/grafana/dashboard.json"
_SECONDS = {"s": 1, "m": 60, "h": 3600}
READY_S = 60.0


def quicker(rules: str, factor: float) -> str:
    """The rules with every `for:` and every range, `[15m]`, divided by the factor; nothing else."""

    def shorter(match: re.Match[str]) -> str:
        return f"{int(int(match[1]) * _SECONDS[match[2]] * 1000 / factor)}ms"

    return re.sub(r"(?:(?<=for: )|(?<=\[))(\d+)([smh])(?=\]|\n)", shorter, rules)


def names_in(expression: str) -> set[str]:
    """The product's metrics that a query asks for."""
    return set(re.findall(r"\bstandfast_\w+", expression))


def dashboard_queries(volume: str) -> dict[str, str]:
    """`panel (letter)` -> query, with the dashboard's variables filled in as Grafana does."""
    doc = json.loads(DASHBOARD.read_text())
    queries = {
        f"annotation {annotation['name']}": annotation["expr"]
        for annotation in doc["annotations"]["list"]
    }
    for panel in doc["panels"]:
        for target in panel.get("targets", ()):
            queries[f"{panel['title']} ({target['refId']})"] = target["expr"]
    return {
        name: text.replace("$volume", volume).replace("$__rate_interval", "1m")
        for name, text in queries.items()
    }


class Monitoring:
    """One Prometheus that scrapes the targets and tells its Alertmanager."""

    def __init__(
        self,
        directory: Path,
        targets: Sequence[str],
        rules: str,
        *,
        interval_s: int = 2,
        netns: str | None = None,
        ports: tuple[int, int] = (9090, 9093),
    ) -> None:
        """`ports`: of Prometheus and of Alertmanager; `netns`: where both run, None: here."""
        self._directory = directory
        self._enter = [] if netns is None else ["nsenter", f"--net=/run/netns/{netns}"]
        self._ports = ports
        self._stack = ExitStack()
        (directory / "rules.yml").write_text(rules)
        (directory / "prometheus.yml").write_text(_configuration(targets, interval_s, ports[1]))

    def __enter__(self) -> Self:
        prometheus, alertmanager = self._ports
        config = CHECKOUT / "exporters/prometheus/alertmanager.yml"
        try:
            self._spawn(
                "prometheus-alertmanager",
                *(f"--config.file={config}", f"--storage.path={self._directory}/alertmanager"),
                *(f"--web.listen-address=127.0.0.1:{alertmanager}", "--cluster.listen-address="),
            )
            self._spawn(
                "prometheus",
                f"--config.file={self._directory}/prometheus.yml",
                f"--storage.tsdb.path={self._directory}/prometheus",
                f"--web.listen-address=127.0.0.1:{prometheus}",
            )
            wait_for(self._ready, READY_S, "Prometheus and Alertmanager are ready", 0.2)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _spawn(self, name: str, *argv: str) -> None:
        log = self._stack.enter_context((self._directory / f"{name}.log").open("wb"))
        process = Process([*self._enter, name, *argv], out=log)
        self._stack.callback(process.wait, 60.0)
        self._stack.callback(process.kill)

    def _ready(self) -> bool:
        return all(self._get(port, "/-/ready", check=False).strip() for port in self._ports)

    def _get(self, port: int, path: str, *, check: bool = True) -> str:
        url = f"http://127.0.0.1:{port}{path}"
        return sh(*self._enter, "curl", "-sfS", "--max-time", "10", url, check=check)

    def query(self, expression: str) -> list[Mapping[str, Any]]:
        """The samples of an instant query; LabError when Prometheus refuses it."""
        text = self._get(self._ports[0], f"/api/v1/query?query={quote(expression, safe='')}")
        samples: list[Mapping[str, Any]] = json.loads(text)["data"]["result"]
        return samples

    def unanswered(self, queries: Mapping[str, str], within_s: float = 30.0) -> dict[str, str]:
        """Those that returned nothing all the time: after one scrape that failed all are empty."""
        left = dict(queries)

        def ask() -> bool:
            for name in [name for name, text in left.items() if self.query(text)]:
                del left[name]
            return not left

        with suppress(LabTimeout):
            wait_for(ask, within_s, "every query has an answer", 1.0)
        return left

    def value(self, expression: str) -> float:
        """The one value of a query."""
        (sample,) = self.query(expression)
        return float(sample["value"][1])

    def evaluated_rules(self) -> dict[str, Mapping[str, Any]] | None:
        """Each rule by name, with its health and state; None before all were evaluated."""
        groups = json.loads(self._get(self._ports[0], "/api/v1/rules"))["data"]["groups"]
        rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
        unknown = any(rule["health"] == "unknown" for rule in rules.values())
        return None if unknown or not rules else rules

    def alerts(self) -> dict[str, Mapping[str, Any]]:
        """What Alertmanager was told and is not over, by the alert's name."""
        told = json.loads(self._get(self._ports[1], "/api/v2/alerts?active=true"))
        return {alert["labels"]["alertname"]: alert for alert in told}

    def telling(self, part: str) -> set[str]:
        """The alerts with that part in their names."""
        return {name for name in self.alerts() if part in name}

    def wait_for(self, look: Callable[[], Any], what: str, timeout_s: float) -> Any:
        return wait_for(look, timeout_s, what, 0.5)

    def wait_for_alert(self, name: str, timeout_s: float) -> Mapping[str, Any]:
        """The alert, once Alertmanager has been told."""
        alert: Mapping[str, Any] = self.wait_for(
            lambda: self.alerts().get(name), f"{name} is told ({sorted(self.alerts())})", timeout_s
        )
        return alert


def _configuration(targets: Sequence[str], interval_s: int, alertmanager: int) -> str:
    """As the shipped example, but at the test's pace and with its addresses."""
    return f"""\
global:
  scrape_interval: {interval_s}s
  scrape_timeout: {interval_s}s
  evaluation_interval: {interval_s}s
rule_files: [rules.yml]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{alertmanager}"]}}]}}]}}
scrape_configs:
  - job_name: standfast
    static_configs: [{{targets: {json.dumps(list(targets))}}}]
"""
