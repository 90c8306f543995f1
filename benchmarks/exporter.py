"""What a scrape of the real exporter takes, by standbys.

An agent's socket answers with the status of a primary, replication.json has a line for each
standby; the exporter is the process that systemd runs.
"""

from __future__ import annotations

import json
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.figures import Benchmark, Figure
from standfast.config.load import load
from standfast.config.model import Config
from standfast.demo.stand_ins.directory import DirectoryStore, initialise
from standfast.names import SnapshotName
from standfast.system.clock import monotonic, utc_now
from standfast.system.files import write_atomically
from tests.support.commands import LabError
from tests.support.exporter import Exporter, agent, exporting
from tests.support.origins import note_epoch

# Standbys -> milliseconds promised on an idle machine.
PROMISES = {10: 15, 1000: 300}
PROMISE_MB = 60
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


def configuration(root: Path, standbys: int) -> Config:
    """Of n1, whose standbys are s1, s2 ..."""
    names = ["n1", *(f"s{number}" for number in range(1, standbys + 1))]
    nodes = "".join(
        f'[nodes.{name}]\naddress = "10.1.{at // 250}.{at % 250 + 1}"\n'
        for at, name in enumerate(names)
    )
    path = root / "etc/data-services.toml"
    path.parent.mkdir()
    path.write_text(
        f'cluster = "bench"\nnode = "n1"\n{nodes}[paths]\n'
        f'live = "{root}/disk/services"\nsnapshots = "{root}/disk"\n'
        f'standby = "{root}/disk/standby"\nbind = "{root}/data"\n'
        f'state = "{root}/var"\nrun = "{root}/run"\n[consul]\naddresses = ["127.0.0.1:1"]\n'
    )
    return load(path)


def fill(config: Config) -> Mapping[str, Any]:
    """The node's files; the status that its agent tells."""
    initialise_store(config)
    now = utc_now()
    name = str(SnapshotName.at(config.base, now - 30))
    sent = {
        "last_success_at": now - 20,
        "snapshot": name,
        "content_id": "8f8fa7a5-0f4c-4b0e-9d5a-2d6f4e4f4a11",
        "epoch": 7,
        "duration_s": 1.234,
        "sent_bytes": 112,
        "sent_bytes_total": 123456789,
        "successes": 1234,
        "failures": {"replication-failed": 2},
        "verified_at": now - 3600,
        "verified_snapshot": name,
        "verified_ok": True,
    }
    standbys = dict.fromkeys(config.standbys, sent)
    state = {"v": 1, "shared": None, "standbys": standbys}
    write_atomically(config.state_dir / "replication.json", json.dumps(state))
    told = {"snapshot": name, "epoch": 7, "age_s": 30.0, "candidate": True, "needs_full": False}
    told |= {"failure": None, "verified": {"ok": True, "at": now, "snapshot": name, "full": False}}
    return {
        **{"v": 1, "volume": config.volume, "node": "n1", "role": "primary", "agent": True},
        **{"epoch": 7, "holder": "n1", "serving": "n1", "state": "serving", "since": now - 9999},
        **{"began_by": "operator", "lost_s": 0.0, "paused": None, "lease_remaining_s": 6.5},
        **{"fence_flushes": 0, "busy": None, "trouble": None, "sick": None, "aside": []},
        "fence": {"in_place": True, "open_for_s": 6.5},
        "failover": {"possible": True, "reason": None, "sentence": "s1 would lose 30 s"},
        "standbys": [{"node": standby, **told} for standby in config.standbys],
    }


def initialise_store(config: Config) -> None:
    """A live tree with 50 snapshots of it."""
    config.paths.live.parent.mkdir(parents=True)
    initialise(config.paths.live)
    store = DirectoryStore(config.paths)
    now = utc_now()
    taken = [
        store.take_snapshot(SnapshotName.at(config.base, now - 300 * age)) for age in range(50)
    ]
    note_epoch(config, taken[0].content_id, 7, lambda: taken)


def asked(exporter: Exporter, path: str) -> tuple[float, bytes]:
    """Milliseconds until the whole answer is there; the answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{exporter.port}{path}", headers={"Accept": OPENMETRICS}
    )
    begin = monotonic()
    with urllib.request.urlopen(request, timeout=60) as answer:
        body = answer.read()
    return (monotonic() - begin) * 1000, body


def scrapes(standbys: int, promise_ms: float, rounds: int) -> Sequence[Figure]:
    """In turns with a question that has nothing to tell; the first three warm up."""
    with tempfile.TemporaryDirectory() as directory:
        config = configuration(Path(directory), standbys)
        took_ms, nothing_ms, body = [], [], b""
        with agent(config, fill(config)), exporting(config) as exporter:
            for _ in range(rounds + 3):
                took, body = asked(exporter, "/metrics")
                took_ms.append(took)
                nothing_ms.append(asked(exporter, "/-/healthy")[0])
            status = Path(f"/proc/{exporter.process.pid}/status").read_text()
        if body.count(b"standfast_replication_age_seconds{") != standbys:
            raise LabError("a standby is missing in the answer")
        rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    name, nothing = f"{standbys} standbys", {"`/-/healthy`": nothing_ms[3:]}
    return [
        Figure(f"a scrape, {name}", "ms", took_ms[3:], promise_ms, nothing),
        Figure(f"its process, {name}", "MB", [int(rss.split()[1]) * 1024 / 1e6], PROMISE_MB),
    ]


def all_scrapes(_: None, rounds: int) -> Sequence[Figure]:
    return [
        figure
        for standbys, promise_ms in PROMISES.items()
        for figure in scrapes(standbys, promise_ms, rounds)
    ]


BENCHMARKS = (
    Benchmark(
        "scrape",
        "The exporter's answer to Prometheus, and its resident memory after them.",
        on=nullcontext,
        measure=all_scrapes,
        rounds=30,
        quick=5,
        seconds=(2, 0.15),
    ),
)
