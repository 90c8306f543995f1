"""The exporter: what a scrape says, and that it says so whatever is broken."""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from standfast.adapters.directory import DirectoryStore, initialise
from standfast.config.load import load
from standfast.config.model import Config
from standfast.errors import StandfastError, Unreachable, UsageError
from standfast.lease.epochs import EpochFile
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.replication import state
from standfast.replication.published import note_epoch
from standfast.views.metrics import (
    FAMILIES,
    Readers,
    Replica,
    VolumeCollector,
    address_of,
    read_replica,
    serve,
)
from tests.unit.cli_helpers import write_config

ROOT = Path(__file__).parents[2]
NOW = 1_700_000_000.0
STANDBY = "standfast_replication_age_seconds"


def name_of(age_s: float) -> str:
    return str(SnapshotName.at("services", NOW - age_s))


PRIMARY: Mapping[str, Any] = {
    "v": 1,
    "agent": True,
    "role": "primary",
    "epoch": 7,
    "holder": "zippy",
    "lease_remaining_s": 6.5,
    "fence_flushes": 2,
    "sick": None,
    "failover": {"possible": True, "reason": None, "sentence": ""},
    "standbys": [{"node": "c1", "snapshot": name_of(42)}],
}
ON_STANDBY = {**PRIMARY, "role": "standby", "holder": "c1", "lease_remaining_s": None}
WITHOUT_CONSUL = {
    key: value for key, value in PRIMARY.items() if key not in ("epoch", "holder", "standbys")
} | {"failover": {"possible": False, "reason": "consul-unreachable", "sentence": ""}}
SENT = state.ReplicationState(
    standbys={
        "c1": state.StandbyState(
            last_success_at=NOW - 40,
            snapshot=name_of(42),
            duration_s=1.5,
            sent_bytes_total=4096,
            failures={"replication-failed": 3},
        )
    }
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"]))


def breaks(error: Exception) -> Callable[[Config], Any]:
    def read(config: Config) -> Any:
        raise error

    return read


WELL = Readers(
    fetch=lambda config: PRIMARY,
    from_consul=lambda config: {**PRIMARY, "agent": False, "role": "unknown"},
    replication=lambda config: SENT,
    replica=lambda config: Replica(SnapshotName.parse(name_of(100)), 1),
    has_reign=lambda config: True,
    utc=lambda: NOW,
)


def scrape(config: Config, **readers: Any) -> dict[str, float]:
    """`name{label,label}` (values of the labels other than the volume) -> value."""
    registry = CollectorRegistry()
    registry.register(VolumeCollector([config], replace(WELL, **readers)))
    return values(generate_latest(registry).decode())


def values(text: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("volume") == "data-services"
            found[f"{sample.name}{{{','.join(labels.values())}}}"] = sample.value
    return found


def test_a_primary_tells_all_it_knows(config: Config) -> None:
    assert scrape(config) == {
        "standfast_up{agent}": 1,
        "standfast_up{consul}": 1,
        "standfast_up{replication}": 1,
        "standfast_up{store}": 1,
        "standfast_role{primary}": 1,
        "standfast_role{standby}": 0,
        "standfast_role{changing}": 0,
        "standfast_role{starting}": 0,
        "standfast_role{unknown}": 0,
        "standfast_epoch{}": 7,
        "standfast_serving{}": 1,
        "standfast_lease_remaining_seconds{}": 6.5,
        "standfast_fence_flushes_total{}": 2,
        "standfast_failover_possible{}": 1,
        "standfast_diverged_subvolumes{}": 1,
        "standfast_replication_age_seconds{c1}": 42,
        "standfast_replica_newest_snapshot_timestamp_seconds{c1}": NOW - 42,
        "standfast_replication_last_success_timestamp_seconds{c1}": NOW - 40,
        "standfast_replication_duration_seconds{c1}": 1.5,
        "standfast_replication_sent_bytes_total{c1}": 4096,
        "standfast_replication_failures_total{replication-failed,c1}": 3,
        "standfast_replication_needs_full{c1}": 0,
    }


def test_a_standby_speaks_of_its_own_data_so_that_the_age_grows_without_a_primary(
    config: Config,
) -> None:
    ages = [
        scrape(config, fetch=lambda config: ON_STANDBY, utc=lambda s=s: NOW + s)[
            f"{STANDBY}{{zippy}}"
        ]
        for s in (0, 60)
    ]
    assert ages == [100, 160]
    assert f"{STANDBY}{{c1}}" not in scrape(config, fetch=lambda config: ON_STANDBY)


def test_a_standby_without_a_snapshot_is_infinitely_old(config: Config) -> None:
    empty = Replica(None, 0)
    found = scrape(config, fetch=lambda config: ON_STANDBY, replica=lambda config: empty)
    assert found[f"{STANDBY}{{zippy}}"] == math.inf
    none = {**PRIMARY, "standbys": [{"node": "c1", "snapshot": None}]}
    found = scrape(
        config, fetch=lambda config: none, replication=lambda config: state.ReplicationState()
    )
    assert found[f"{STANDBY}{{c1}}"] == math.inf


def test_a_primary_without_consul_still_knows_what_it_sent(config: Config) -> None:
    found = scrape(config, fetch=lambda config: WITHOUT_CONSUL)
    assert found["standfast_up{agent}"] == 1
    assert found["standfast_up{consul}"] == 0
    assert found[f"{STANDBY}{{c1}}"] == 42
    assert found["standfast_failover_possible{}"] == 0
    assert found["standfast_failover_blocked{consul-unreachable}"] == 1
    assert "standfast_epoch{}" not in found


def test_what_is_unknown_is_not_called_infinite(config: Config) -> None:
    found = scrape(
        config,
        fetch=lambda config: WITHOUT_CONSUL,
        replication=lambda config: state.ReplicationState(),
    )
    assert not any(name.startswith(STANDBY) for name in found)


@pytest.mark.parametrize("error", [StandfastError("no"), OSError(5, "I/O"), KeyError("bug")])
@pytest.mark.parametrize(
    ("reader", "source"),
    [("fetch", "agent"), ("replication", "replication"), ("replica", "store")],
)
def test_one_broken_source_is_down_and_the_others_are_told(
    config: Config, reader: str, source: str, error: Exception
) -> None:
    found = scrape(config, **{reader: breaks(error)})
    up = {name: value for name, value in found.items() if name.startswith("standfast_up")}
    assert up == {
        f"standfast_up{{{one}}}": float(one != source)
        for one in ("agent", "consul", "replication", "store")
    }
    assert found["standfast_epoch{}"] == 7


def test_when_everything_is_broken_the_scrape_says_so(config: Config) -> None:
    no = breaks(Unreachable("nothing answers"))
    found = scrape(config, fetch=no, from_consul=no, replication=no, replica=no, has_reign=no)
    assert found == {
        f"standfast_up{{{one}}}": 0 for one in ("agent", "consul", "replication", "store")
    }


@pytest.mark.parametrize(
    "doc", [{}, {"role": "primary", "agent": True}, {**PRIMARY, "failover": "yes"}]
)
def test_an_answer_that_cannot_be_understood_is_no_answer(
    config: Config, doc: Mapping[str, Any]
) -> None:
    found = scrape(config, fetch=lambda config: doc)
    assert found["standfast_up{agent}"] == 0
    assert found["standfast_up{consul}"] == 1
    assert "standfast_serving{}" not in found


def test_a_sick_primary_does_not_serve(config: Config) -> None:
    sick = {**PRIMARY, "sick": "the NFS port is shut"}
    assert scrape(config, fetch=lambda config: sick)["standfast_serving{}"] == 0


def test_only_a_lasting_failure_s_beginning_is_logged(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    broken = breaks(StandfastError("the disk is gone"))
    collector = VolumeCollector([config], replace(WELL, replica=broken))
    for _ in range(3):
        list(collector.collect())
    assert [record.getMessage() for record in caplog.records] == [
        "metrics of data-services: store can't be read: the disk is gone"
    ]


def test_the_newest_reign_s_snapshot_counts_and_one_of_unknown_origin_does_not(
    config: Config,
) -> None:
    store = DirectoryStore(config.paths, utc=lambda: NOW)
    assert read_replica(config) == Replica(None, 0)
    config.paths.live.parent.mkdir()
    initialise(config.paths.live)
    taken = [store.take_snapshot(SnapshotName.at("services", NOW - age)) for age in (300, 200, 100)]
    for snapshot, epoch in zip(taken, (2, 1), strict=False):
        note_epoch(config, snapshot.content_id, epoch, lambda: taken)
    store.keep_aside("services.diverged-1-20261122T101500Z")
    assert read_replica(config) == Replica(taken[0].name, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:9756", ("127.0.0.1", 9756)), ("[::1]:80", ("::1", 80)), ("host:1", ("host", 1))],
)
def test_an_address_is_read(text: str, expected: tuple[str, int]) -> None:
    assert address_of(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":9756", "9756", "127.0.0.1", "127.0.0.1:", "a:99999", "[]:1"]
)
def test_an_address_that_could_mean_every_interface_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="ADDRESS:PORT"):
        address_of(text)


def test_an_address_in_use_is_named(config: Config) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unreachable, match=listen):
            serve([config], listen)


# The real process


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def exporter(config: Config) -> Iterator[int]:
    """Port of a running `standfast-exporter` on a node with a store and nothing else."""
    EpochFile(config.state_dir / "epoch").raise_to(3)
    state.note_failure(config, "c1", Reason.REPLICATION_FAILED, "no route")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, ROOT / "exporters/standfast-exporter", "--listen", f"127.0.0.1:{port}"],
        env={"STANDFAST_CONFIG_DIR": str(config.source.parent), "PYTHONPATH": str(ROOT)},
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


def real_scrape(port: int) -> str:
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=15) as answer:
                return str(answer.read().decode())
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_the_exporter_answers_on_loopback_alone_where_nothing_else_runs(exporter: int) -> None:
    found = values(real_scrape(exporter))
    assert found["standfast_up{agent}"] == found["standfast_up{consul}"] == 0
    assert found["standfast_up{store}"] == found["standfast_up{replication}"] == 1
    assert found["standfast_failover_blocked{consul-unreachable}"] == 1
    assert found["standfast_replication_failures_total{replication-failed,c1}"] == 1
    assert found[f"{STANDBY}{{zippy}}"] == math.inf
    listening = [
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{exporter:04X}")
    ]
    assert listening == [f"0100007F:{exporter:04X}"]


def test_promtool_has_nothing_to_say_about_a_real_scrape(exporter: int, config: Config) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    registry = CollectorRegistry()
    registry.register(VolumeCollector([config], WELL))
    for text in (real_scrape(exporter), generate_latest(registry).decode()):
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_the_page_names_every_metric_and_no_other() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    rows = {
        line.split("`")[1].split("{")[0]
        for line in page.splitlines()
        if line.startswith("| `standfast_")
    }
    assert rows == {
        f"standfast_{name}" + ("_total" if kind == "counter" else "")
        for name, (kind, _, _) in FAMILIES.items()
    }


def test_the_executable_holds_no_logic() -> None:
    lines = (ROOT / "exporters/standfast-exporter").read_text().splitlines()
    assert len(lines) <= 15
