"""What a scrape of the real exporter takes, by standbys: python -m tests.bench_exporter [ROUNDS].

An agent's socket answers with the status of a primary, replication.json has a line for each
standby; the exporter is the process that systemd runs.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from standfast.adapters.directory import DirectoryStore, initialise
from standfast.clock import monotonic, utc_now
from standfast.config.load import load
from standfast.config.model import Config
from standfast.files import write_atomically
from standfast.names import SnapshotName
from standfast.replication.published import note_epoch
from tests.contract.test_exporter import agent, exporting

# Standbys -> milliseconds promised on an idle machine.
PROMISES = {10: 10, 1000: 60}
PROMISE_MB = 40
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
        f'cluster = "bench"\nnode = "n1"\nstore = "directory"\n{nodes}[paths]\n'
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
        "standbys": [{"node": one, **told} for one in config.standbys],
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


def measure(standbys: int, rounds: int) -> tuple[list[float], float, int]:
    """Milliseconds of each scrape, MB of the process (resident), bytes of an answer."""
    with tempfile.TemporaryDirectory() as directory:
        config = configuration(Path(directory), standbys)
        with agent(config, fill(config)), exporting(config) as exporter:
            request = urllib.request.Request(
                f"http://127.0.0.1:{exporter.port}/metrics", headers={"Accept": OPENMETRICS}
            )
            took_ms, body = [], b""
            for _ in range(rounds + 3):  # the first three warm up
                begin = monotonic()
                with urllib.request.urlopen(request, timeout=60) as answer:
                    body = answer.read()
                took_ms.append((monotonic() - begin) * 1000)
            status = Path(f"/proc/{exporter.pid}/status").read_text()
            rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        if body.count(b"standfast_replication_age_seconds{") != standbys:
            raise SystemExit("a standby is missing in the answer")
        return took_ms[3:], int(rss.split()[1]) / 1000, len(body)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    for standbys, promise_ms in PROMISES.items():
        took, mb, size = measure(standbys, rounds)
        print(
            f"exporter: {standbys} standbys, {len(took)} scrapes of {size // 1000} kB: median "
            f"{statistics.median(took):.1f} ms, least {min(took):.1f}, most {max(took):.1f} "
            f"(promised on an idle machine: {promise_ms}), {mb:.0f} MB ({PROMISE_MB})"
        )


if __name__ == "__main__":
    main()
