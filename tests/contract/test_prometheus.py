"""Every query of dashboard and alerts, asked of a real Prometheus that scraped two real exporters.

The agents beside the exporters are stand-ins that say all that an agent can say, so that no query
may come back empty.
"""

from __future__ import annotations

import json
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from standfast.config.load import load
from standfast.config.model import Config
from standfast.demo.commands import command
from standfast.demo.stand_ins.directory import DirectoryStore, initialise
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.replication import state
from tests.support import needs
from tests.support.checkout import CHECKOUT
from tests.support.consul_clusters import free_ports
from tests.support.monitoring import RULES, Monitoring, dashboard_queries, names_in
from tests.support.origins import note_epoch
from tests.support.pace import factor, patient
from tests.support.terminal import write_node
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("demo_parts")

VOLUME = "data-services"
TOOLS = {name: name for name in ("prometheus", "prometheus-alertmanager", "curl")}
LATE_S = 90.0


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    needs.require(TOOLS)


def document(node: str, now: float) -> Mapping[str, Any]:
    """What the agent of zippy, the primary, or of c1 says."""
    primary = node == "zippy"
    return {
        "v": 1,
        "agent": True,
        "volume": VOLUME,
        "node": node,
        "role": "primary" if primary else "standby",
        "epoch": 7,
        "holder": "zippy",
        "state": "serving",
        "since": now - 3600,
        "began_by": str(Reason.TAKEOVER),
        "paused": None,
        "lease_remaining_s": 6.5 if primary else None,
        "fence": {"in_place": primary, "open_for_s": 6.5},
        "fence_flushes": 0,
        "busy": None,
        "trouble": None,
        "sick": None,
        "serving": "zippy",
        # Two views at the same time: each reason is somebody's.
        "failover": {
            "possible": primary,
            "reason": None if primary else str(Reason.TOO_OLD),
            "sentence": "",
        },
        "standbys": [
            {
                "node": "c1",
                "snapshot": str(SnapshotName.at("services", now - 42)),
                "on_hold": None,
                "word": {
                    "takes_over": primary,
                    "reason": str(Reason.TOO_OLD),
                    "sentence": None,
                    "obstacles": ["unit: nfs-server.service is masked"],
                },
            }
        ],
        "nomad": {"at": now, "role": "primary", "reason": "serving", "settled": True},
    }


@contextmanager
def agent(config: Config, say: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Answers each question on agent.sock with the status."""

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(json.dumps({"v": 1, "status": say()}).encode() + b"\n")

    config.run_dir.mkdir(parents=True, exist_ok=True)
    path = str(config.run_dir / "agent.sock")
    with socketserver.ThreadingUnixStreamServer(path, Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield
        server.shutdown()
        thread.join(patient(20.0))


@contextmanager
def exporting(root: Path, node: str, other: str, port: int) -> Iterator[None]:
    """A node of which everything is known, and its exporter."""
    config = load(write_node(root / "etc", root, node, ""))
    newest = SnapshotName.at("services", time.time())
    config.paths.live.parent.mkdir(parents=True)
    initialise(config.paths.live)
    taken = DirectoryStore(config.paths).take_snapshot(newest)
    note_epoch(config, taken.content_id, 7, lambda: [taken])
    sent = state.Shared(str(newest), taken.content_id, 7)
    state.note_success(config, other, sent, duration_s=1.5, sent_bytes=4096)
    state.note_failure(config, other, Reason.REPLICATION_FAILED, "no route")
    state.note_verified(config, other, str(newest), ok=True, full=True)
    with agent(config, lambda: document(node, time.time())):
        process = subprocess.Popen(
            [
                *command(str(CHECKOUT / "exporters/standfast-exporter")),
                *("--listen", f"127.0.0.1:{port}"),
            ],
            env={"STANDFAST_CONFIG_DIR": str(config.source.parent), "PYTHONPATH": str(CHECKOUT)},
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(patient(20.0))


@pytest.fixture(scope="module")
def monitoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitoring]:
    one, other, prometheus, alertmanager = free_ports(4)
    with ExitStack() as stack:
        for node, standby, port in (("zippy", "c1", one), ("c1", "zippy", other)):
            root = tmp_path_factory.mktemp(node)
            stack.enter_context(exporting(root, node, standby, port))
        made = stack.enter_context(
            Monitoring(
                tmp_path_factory.mktemp("monitoring"),
                [f"127.0.0.1:{port}" for port in (one, other)],
                RULES.read_text(),
                interval_s=min(4, round(factor())),
                ports=(prometheus, alertmanager),
            )
        )
        wait_for(
            lambda: len(made.query("count_over_time(standfast_serving[1m]) > 2")) == 2,
            LATE_S,
            "a few scrapes of both",
            0.2,
        )
        yield made


def test_every_query_of_the_dashboard_returns_data(monitoring: Monitoring) -> None:
    queries = dashboard_queries(VOLUME)
    assert len(queries) > 20
    assert monitoring.unanswered(queries) == {}


def test_every_metric_that_an_alert_asks_for_is_there(monitoring: Monitoring) -> None:
    assert monitoring.unanswered({name: name for name in names_in(RULES.read_text())}) == {}


def test_every_rule_is_evaluated_without_an_error_and_none_fires(monitoring: Monitoring) -> None:
    rules = wait_for(monitoring.evaluated_rules, LATE_S, "all rules are evaluated", 0.2)
    assert rules
    assert {name: rule for name, rule in rules.items() if rule["health"] != "ok"} == {}
    assert {name for name, rule in rules.items() if rule["state"] == "firing"} == set()
