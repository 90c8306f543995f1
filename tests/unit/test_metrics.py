"""The exporter: what a scrape says, and that it says so whatever is broken."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from prometheus_client import generate_latest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from standfast import __version__
from standfast.config.load import load
from standfast.config.model import Config
from standfast.demo.stand_ins.directory import DirectoryStore, initialise
from standfast.errors import StandfastError, Unreachable
from standfast.exporter import samples
from standfast.exporter.exporter import metrics_route
from standfast.exporter.families import FAMILIES
from standfast.exporter.metrics import Readers, Replica, VolumeMetrics, read_replica
from standfast.exporter.samples import Copy
from standfast.exporter.web import Request
from standfast.names import SnapshotName
from standfast.replication import state
from standfast.status.document import Status
from standfast.system.clock import Deadline
from standfast.text import clean
from tests.support.checkout import CHECKOUT
from tests.support.metrics import NOW, PRIMARY, name_of, values
from tests.support.origins import note_epoch
from tests.support.status_documents import parsed, served, standby
from tests.support.terminal import write_config

pytestmark = pytest.mark.usefixtures("demo_parts")

STANDBY = "standfast_replication_age_seconds"
HAS_SNAPSHOT = "standfast_replica_has_snapshot"
# The library has no types for it.
openmetrics_families: Any = openmetrics_parser.text_string_to_metric_families


def copy_of(age_s: float) -> Copy:
    return Copy(SnapshotName.parse(name_of(age_s)), NOW - age_s)


ON_STANDBY = {**PRIMARY, "role": "standby", "holder": "c1", "lease_remaining_s": None}
WITHOUT_CONSUL = {
    key: value
    for key, value in PRIMARY.items()
    if key not in ("epoch", "holder", "standbys", "since", "began_by", "paused")
} | {"failover": {"possible": False, "reason": "consul-unreachable", "sentence": ""}}
MISSING = {"in_place": False, "open_for_s": 0.0}
PAUSED = {"by": "ann", "reason": "disk", "at": NOW}
SENT = state.ReplicationState(
    standbys={
        "c1": state.StandbyState(
            last_success_at=NOW - 40,
            snapshot=name_of(42),
            duration_s=1.5,
            sent_bytes_total=4096,
            failures={"replication-failed": 3},
            verified_at=NOW - 1000,
            verified_ok=True,
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
    fetch=lambda config: parsed(PRIMARY),
    from_consul=lambda config: parsed({**PRIMARY, "agent": False, "role": "unknown"}),
    replication=lambda config: SENT,
    replica=lambda config: Replica(copy_of(100), 1),
    has_epoch=lambda config: True,
    utc=lambda: NOW,
)


def scrape(config: Config, **readers: Any) -> dict[str, float]:
    """`name{label,label}` (values of the labels other than the volume) -> value."""
    return values(text_of(VolumeMetrics([config], replace(WELL, **readers))))


def text_of(metrics: VolumeMetrics, within_s: float = 600.0) -> str:
    return generate_latest(metrics.registry(Deadline.after(within_s))).decode()


CONFIGURED = {
    "standfast_lease_length_seconds{}": 8,
    "standfast_replication_interval_seconds{}": 300,
}


def test_a_primary_tells_all_it_knows(config: Config) -> None:
    assert scrape(config) == {
        **CONFIGURED,
        "standfast_up{agent}": 1,
        "standfast_up{consul}": 1,
        "standfast_up{replication}": 1,
        "standfast_up{store}": 1,
        "standfast_role{primary}": 1,
        "standfast_role{standby}": 0,
        "standfast_role{changing}": 0,
        "standfast_role{starting}": 0,
        "standfast_role{unknown}": 0,
        "standfast_mode{auto}": 1,
        "standfast_mode{manual}": 0,
        "standfast_mode{paused}": 0,
        "standfast_epoch{}": 7,
        "standfast_epoch_start_timestamp_seconds{operator}": NOW - 3600,
        "standfast_serving{}": 1,
        "standfast_trouble{}": 0,
        "standfast_fence_armed{}": 1,
        "standfast_nomad_up{}": 1,
        "standfast_nomad_pending{}": 0,
        "standfast_lease_remaining_seconds{}": 6.5,
        "standfast_fence_flushes_total{}": 2,
        "standfast_failover_possible{}": 1,
        "standfast_diverged_subvolumes{}": 1,
        "standfast_replication_age_seconds{c1}": 42,
        "standfast_replica_has_snapshot{c1}": 1,
        "standfast_replica_newest_snapshot_timestamp_seconds{c1}": NOW - 42,
        "standfast_replication_last_success_timestamp_seconds{c1}": NOW - 40,
        "standfast_replication_duration_seconds{c1}": 1.5,
        "standfast_replication_sent_bytes_total{c1}": 4096,
        "standfast_replication_failures_total{replication-failed,c1}": 3,
        "standfast_replication_needs_full{c1}": 0,
        "standfast_replication_verified_timestamp_seconds{c1}": NOW - 1000,
        "standfast_replication_verify_failed{c1}": 0,
    }


def test_a_standby_speaks_of_its_own_data_so_that_the_age_grows_without_a_primary(
    config: Config,
) -> None:
    ages = [
        scrape(config, fetch=lambda config: parsed(ON_STANDBY), utc=lambda s=s: NOW + s)[
            f"{STANDBY}{{zippy}}"
        ]
        for s in (0, 60)
    ]
    assert ages == [100, 160]
    assert f"{STANDBY}{{c1}}" not in scrape(config, fetch=lambda config: parsed(ON_STANDBY))


def test_a_standby_without_a_snapshot_is_infinitely_old(config: Config) -> None:
    empty = Replica(None, 0)
    scraped = scrape(config, fetch=lambda config: parsed(ON_STANDBY), replica=lambda config: empty)
    assert scraped[f"{STANDBY}{{zippy}}"] == math.inf
    assert scraped[f"{HAS_SNAPSHOT}{{zippy}}"] == 0
    none = {**PRIMARY, "standbys": [{"node": "c1", "snapshot": None}]}
    scraped = scrape(
        config,
        fetch=lambda config: parsed(none),
        replication=lambda config: state.ReplicationState(),
    )
    assert scraped[f"{STANDBY}{{c1}}"] == math.inf
    assert scraped[f"{HAS_SNAPSHOT}{{c1}}"] == 0


def test_a_snapshot_of_unknown_age_is_there_all_the_same(config: Config) -> None:
    """Its only word is a name from the future: an age that nobody knows, and no empty standby."""
    there = Replica(copy_of(-3600), 0)
    scraped = scrape(config, fetch=lambda config: parsed(ON_STANDBY), replica=lambda config: there)
    assert scraped[f"{STANDBY}{{zippy}}"] == math.inf
    assert scraped[f"{HAS_SNAPSHOT}{{zippy}}"] == 1


def test_a_primary_without_consul_still_knows_what_it_sent(config: Config) -> None:
    scraped = scrape(config, fetch=lambda config: parsed(WITHOUT_CONSUL))
    assert scraped["standfast_up{agent}"] == 1
    assert scraped["standfast_up{consul}"] == 0
    assert scraped[f"{STANDBY}{{c1}}"] == 42
    assert scraped["standfast_failover_possible{}"] == 0
    assert scraped["standfast_failover_blocked{consul-unreachable}"] == 1
    assert "standfast_epoch{}" not in scraped


def test_what_is_unknown_is_not_called_infinite(config: Config) -> None:
    scraped = scrape(
        config,
        fetch=lambda config: parsed(WITHOUT_CONSUL),
        replication=lambda config: state.ReplicationState(),
    )
    assert not any(name.startswith(STANDBY) for name in scraped)


@pytest.mark.parametrize("error", [StandfastError("no"), OSError(5, "I/O"), KeyError("bug")])
@pytest.mark.parametrize(
    ("reader", "source"),
    [("fetch", "agent"), ("replication", "replication"), ("replica", "store")],
)
def test_one_broken_source_is_down_and_the_others_are_told(
    config: Config, reader: str, source: str, error: Exception
) -> None:
    scraped = scrape(config, **{reader: breaks(error)})
    up = {name: value for name, value in scraped.items() if name.startswith("standfast_up")}
    assert up == {
        f"standfast_up{{{known_source}}}": float(known_source != source)
        for known_source in ("agent", "consul", "replication", "store")
    }
    assert scraped["standfast_epoch{}"] == 7


def test_when_everything_is_broken_the_scrape_says_so(config: Config) -> None:
    no = breaks(Unreachable("nothing answers"))
    scraped = scrape(config, fetch=no, from_consul=no, replication=no, replica=no, has_epoch=no)
    down = {
        f"standfast_up{{{source}}}": 0 for source in ("agent", "consul", "replication", "store")
    }
    assert scraped == CONFIGURED | down


@pytest.mark.parametrize(
    "doc", [{}, {"role": "primary", "agent": True}, {**PRIMARY, "failover": "yes"}]
)
def test_an_answer_that_cannot_be_understood_is_no_answer(
    config: Config, doc: Mapping[str, Any]
) -> None:
    scraped = scrape(config, fetch=lambda config: parsed(doc))
    assert scraped["standfast_up{agent}"] == 0
    assert scraped["standfast_up{consul}"] == 1
    assert "standfast_serving{}" not in scraped


def test_a_sick_primary_does_not_serve(config: Config) -> None:
    sick = {**PRIMARY, "sick": "the NFS port is shut"}
    assert scrape(config, fetch=lambda config: parsed(sick))["standfast_serving{}"] == 0


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ({"fence": MISSING}, "fence_armed{}", 0),
        ({"role": "standby", "fence": MISSING}, "fence_armed{}", None),
        ({"trouble": "start NFS: no"}, "trouble{}", 1),
        ({"paused": PAUSED}, "mode{paused}", 1),
        ({"paused": PAUSED}, "mode{auto}", 0),
        ({"nomad": {"reason": "nomad-denied"}}, "nomad_up{}", 0),
        ({"nomad": {"at": NOW - 3600}}, "nomad_up{}", 0),
        ({"nomad": {"at": None}}, "nomad_up{}", None),
        ({"nomad": {"role": "changing"}}, "nomad_pending{}", None),
        ({"nomad": {"settled": False}}, "nomad_pending{}", 1),
        ({"nomad": None}, "nomad_up{}", None),
        ({"since": None}, "epoch_start_timestamp_seconds{operator}", None),
    ],
)
def test_a_status_tells_what_is_known_and_leaves_out_the_rest(
    config: Config, change: Mapping[str, Any], name: str, value: float | None
) -> None:
    doc = {**PRIMARY, **change}
    if change.get("nomad"):
        doc["nomad"] = {**PRIMARY["nomad"], **change["nomad"]}
    scraped = scrape(config, fetch=lambda config: parsed(doc))
    assert scraped["standfast_up{agent}"] == 1
    assert scraped.get(f"standfast_{name}") == value


def test_a_difference_that_a_comparison_found_is_told(config: Config) -> None:
    bad = state.StandbyState(verified_at=NOW, verified_ok=False)
    sent = state.ReplicationState(standbys={"c1": bad})
    scraped = scrape(config, replication=lambda config: sent)
    assert scraped["standfast_replication_verify_failed{c1}"] == 1


def test_the_clock_and_version_of_a_node_have_no_volume(config: Config) -> None:
    lines = text_of(VolumeMetrics([config], WELL)).splitlines()
    assert f"standfast_time_seconds {NOW / 1e9}e+09" in lines
    assert f'standfast_build_info{{version="{__version__}"}} 1.0' in lines


def test_a_source_that_hangs_is_down_by_the_deadline_and_is_not_asked_twice(
    config: Config,
) -> None:
    let_go, asked = threading.Event(), []

    def hangs(config: Config) -> Status:
        asked.append(config)
        let_go.wait(60)
        return parsed(PRIMARY)

    metrics = VolumeMetrics([config], replace(WELL, fetch=hangs))
    try:
        for _ in range(3):
            assert values(text_of(metrics, within_s=0.05))["standfast_up{agent}"] == 0
        assert len(asked) == 1
    finally:
        let_go.set()
    assert values(text_of(metrics, within_s=60))["standfast_up{agent}"] == 1


def test_volumes_that_hang_do_not_hide_another(config: Config) -> None:
    hanging = [structs.replace(config, volume=f"media-{number}") for number in range(3)]
    let_go = threading.Event()

    def fetch(asked: Config) -> Status:
        let_go.wait(0.1 if asked is config else 60)
        return parsed(PRIMARY)

    metrics = VolumeMetrics([*hanging, config], replace(WELL, fetch=fetch))
    try:
        text = text_of(metrics, within_s=4)
    finally:
        let_go.set()
    assert 'standfast_up{source="agent",volume="media-0"} 0.0' in text
    assert 'standfast_up{source="agent",volume="data-services"} 1.0' in text


def test_labels_of_any_text_can_be_read_again(config: Config) -> None:
    reasons = {'a"b': 1, "c\\d": 2, "e\nf": 3, "g\udcffh": 4}
    sent = state.ReplicationState(standbys={"c1": state.StandbyState(failures=reasons)})
    told = scrape(config, replication=lambda _: sent)
    for reason, count in reasons.items():
        shown = clean(reason)
        assert told[f"standfast_replication_failures_total{{{shown},c1}}"] == count


PLAIN = "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/plain;version=soon,application/openmetrics-text;version=soon", PLAIN),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
        ),
    ],
)
def test_the_scraper_gets_the_format_that_it_asks_for(
    accept: str, kind: str, config: Config
) -> None:
    response = metrics_route(VolumeMetrics([config], WELL))(
        Request("/metrics", headers={"accept": accept})
    )
    assert response.content_type == kind
    text = response.body.decode()
    parse = openmetrics_families if "openmetrics" in kind else text_string_to_metric_families
    assert {family.name for family in parse(text)} >= {"standfast_up", "standfast_build_info"}
    assert text.endswith("# EOF\n") == ("openmetrics" in kind)


def test_only_the_beginning_of_a_lasting_failure_is_logged(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    broken = breaks(StandfastError("the disk is gone"))
    metrics = VolumeMetrics([config], replace(WELL, replica=broken))
    for _ in range(3):
        text_of(metrics)
    assert [record.getMessage() for record in caplog.records] == [
        "metrics of data-services: store can't be read: the disk is gone"
    ]


def test_a_snapshot_of_the_newest_epoch_counts_and_one_of_unknown_origin_does_not(
    config: Config,
) -> None:
    store = DirectoryStore(config.paths)
    assert read_replica(config) == Replica(None, 0)
    config.paths.live.parent.mkdir()
    initialise(config.paths.live)
    taken = [store.take_snapshot(SnapshotName.at("services", NOW - age)) for age in (300, 200, 100)]
    for snapshot, epoch in zip(taken, (2, 1), strict=False):
        note_epoch(config, snapshot.content_id, epoch, lambda: taken)
    store.keep_aside("services.diverged-1-20261122T101500Z")
    replica = read_replica(config)
    assert replica.newest == Copy(taken[0].name, taken[0].name.stamp)
    assert replica.diverged == 1


def test_the_page_names_every_metric_and_no_other() -> None:
    page = (CHECKOUT / "docs/metrics.md").read_text()
    rows = {
        line.split("`")[1].split("{")[0]
        for line in page.splitlines()
        if line.startswith("| `standfast_")
    }
    assert rows == {family.full_name for family in FAMILIES.values()}


def test_a_standby_on_hold_is_told(config: Config) -> None:
    hold = {"by": "ann", "reason": "a new disk", "at": NOW}
    standbys = [
        standby("n2", 4.0, on_hold=hold),
        standby("n3", 4.0, on_hold=None),
        {key: value for key, value in standby("n4", 4.0).items() if key != "on_hold"},
    ]  # the last one is of an older agent
    told = samples.from_status(parsed(served(standbys=standbys)), config, NOW)
    assert [(value, labels) for name, value, labels in told if name == "standby_on_hold"] == [
        (1.0, ("n2",)),
        (0.0, ("n3",)),
    ]


def test_what_standbys_find_in_their_way_is_counted_and_silence_is_no_zero(
    config: Config,
) -> None:
    well = {"takes_over": True, "reason": "takeover", "sentence": None, "obstacles": []}
    words = {"n2": {**well, "obstacles": ["unit: masked", "port: taken"]}, "n3": well, "n4": None}
    standbys = [standby(name, 4.0, word=word) for name, word in words.items()]
    status = parsed(served(standbys=standbys))
    told = [
        (value, labels)
        for name, value, labels in samples.from_status(status, config, NOW)
        if name == "takeover_obstacles"
    ]
    assert told == [(2, ("n2",)), (0, ("n3",))]
