"""/api/v1/status: the first line has the answer, and what can't be read is never taken for well."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs, to_builtins

from standfast.config.model import Config
from standfast.consul.records import ClientRecord
from standfast.errors import StandfastError, TimedOut
from standfast.exporter.status_cache import KEEP_S, Readers, StatusCache, sort_keys, with_clients
from standfast.exporter.trend import BUCKETS, MOST_STANDBYS, STEP_S, Trend
from standfast.reasons import Reason
from standfast.replication.state import ReplicationState, StandbyState
from standfast.status.advice import NEXT, next_step
from standfast.status.document import Status
from standfast.status.headline import time_of
from standfast.status.overview import MOST_EPOCHS, SILENT_S, Keys, Seen, describe, document
from standfast.status.volume import Level, Volume
from tests.support.checkout import CHECKOUT
from tests.support.configs import config_in
from tests.support.status_documents import (
    NOW,
    blind,
    clients,
    dead,
    keys,
    known_keys,
    parsed,
    served,
    snapshot,
    standby,
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path)


def volume_of(status: Mapping[str, Any] | str, config: Config, **changes: Any) -> Volume:
    seen_status = status if isinstance(status, str) else parsed(status)
    return describe(replace(Seen(NOW, seen_status, keys=known_keys()), **changes), config)


def told(status: Mapping[str, Any] | str, config: Config, **changes: Any) -> dict[str, Any]:
    """The same as a page has it."""
    volume = volume_of(status, config, **changes)
    shown: dict[str, Any] = json.loads(json.dumps(to_builtins(volume), allow_nan=False))
    return shown


def given_up(by: str, to: str | None, *, surrendered: bool = False) -> dict[str, Any]:
    return {"by": by, "to": to, "surrendered": surrendered}


NOT_SERVING: dict[str, Any] = {"serving": None, "holder": None}
LINES: Mapping[str, tuple[Mapping[str, Any] | str, str, str, str | None]] = {
    "well": (
        served(),
        "ok",
        "n1 serves data-services since 12:06 UTC (epoch 7). A failover would lose 4 s.",
        None,
    ),
    "yesterday": (
        served(since=NOW - 86400),
        "ok",
        "n1 serves data-services since 2026-11-21 14:06 UTC (epoch 7). A failover would lose 4 s.",
        None,
    ),
    "no failover": (
        served(failover={"possible": False, "reason": "too-old", "sentence": "n2 is 700 s old"}),
        "warning",
        "n1 serves data-services since 12:06 UTC (epoch 7). No failover is possible now.",
        "Why: n2 is 700 s old. `standfast replicate` on the primary;",
    ),
    "by hand": (
        served(failover={"possible": False, "reason": "manual-mode", "sentence": "mode is manual"}),
        "ok",
        "A failover is done by hand and would lose 4 s.",
        None,
    ),
    "can't serve": (
        served(serving=None, unserved_s=40.0),
        "alarm",
        "Nobody serves data-services: n1 holds epoch 7 and has not served for 40 s.",
        "It gives the role up by itself after 60 s if a standby is ready. `standfast status` on n1",
    ),
    "keeps the role": (
        served(serving=None, unserved_s=70.0, not_surrendered="no-standby-ready"),
        "alarm",
        "has not served for 70 s.",
        "It keeps the role (no-standby-ready). `standfast status` on n1",
    ),
    "dead": (
        dead(),
        "alarm",
        "Nobody serves data-services: the last heartbeat of n1 (epoch 7) was seen 14 s ago.",
        "takes over by itself, losing 4 s at most, 60 s after the last heartbeat at the latest",
    ),
    "dead and stuck": (
        dead(failover={"possible": False, "reason": "paused", "sentence": "paused by ann"}),
        "alarm",
        "Nobody serves",
        "No failover by itself: paused by ann. `standfast resume`",
    ),
    "given up": (
        served(**NOT_SERVING, state="clean", given_up=given_up("n1", None)),
        "alarm",
        "Nobody serves data-services: n1 gave epoch 7 up in order, to nobody.",
        "Nobody takes over by itself after `standfast demote`: `standfast promote`",
    ),
    "between two": (
        served(**NOT_SERVING, state="clean", given_up=given_up("n1", "n2")),
        "alarm",
        "n1 gave epoch 7 up in order, to n2.",
        "Another one serves within seconds; if none does: `standfast promote`",
    ),
    "surrendered": (
        served(**NOT_SERVING, state="clean", given_up=given_up("n1", "n2", surrendered=True)),
        "alarm",
        "n1 gave epoch 7 up without a final snapshot, to n2.",
        "Another one serves within seconds",
    ),
    "given up, by an older agent": (
        served(**NOT_SERVING, state="clean"),
        "alarm",
        "Nobody serves data-services: epoch 7 was given up.",
        "In a switchover another one serves within seconds. After `standfast demote`:",
    ),
    "no heartbeat key": (
        served(
            **NOT_SERVING,
            state=None,
            failover={"possible": False, "reason": "leader-missing", "sentence": "no heartbeat"},
        ),
        "alarm",
        "Nobody is known to serve data-services: no heartbeat.",
        "A living primary writes it again.",
    ),
    "the first day": (
        served(
            **NOT_SERVING,
            state=None,
            epoch=None,
            failover={"possible": False, "reason": "not-initialised", "sentence": "none yet"},
        ),
        "warning",
        "data-services has never had a primary.",
        "`standfast promote`",
    ),
    "starting": (served(state="starting", serving=None), "warning", "n1 is about to serve", None),
    "draining": (served(state="draining", serving=None), "warning", "n1 is giving", None),
    "blind standby": (
        blind("n2", lease_remaining_s=None),
        "unknown",
        "It is not known who serves data-services: Consul at 127.0.0.1:8500 has no leader.",
        "Bring back a majority",
    ),
    "blind primary": (
        blind(),
        "warning",
        "n1 serves data-services by its own lease for another 7 s, and can't read Consul.",
        "Bring back a majority",
    ),
    "blind primary at its end": (
        blind(lease_remaining_s=-1.0),
        "unknown",
        "It is not known who serves",
        None,
    ),
    "just started": (
        {"v": 1, "volume": "data-services", "node": "n1", "role": "starting"},
        "unknown",
        "It is not known who serves data-services: the agent has just started.",
        "systemctl status standfast-agent@data-services",
    ),
    "nothing": ("permission denied", "unknown", "not known who serves", "systemctl status"),
}


@pytest.mark.parametrize("case", LINES)
def test_the_first_line_says_who_serves_or_what_to_do(config: Config, case: str) -> None:
    status, level, text, advice = LINES[case]
    line = told(status, config)["headline"]
    assert line["level"] == level, line
    assert text in line["text"]
    if advice is None:
        assert level != "alarm"
    else:
        assert advice in (line["advice"] or "")


def test_all_is_well_only_when_nothing_else_is_wrong(config: Config) -> None:
    doc = told(served(), config)
    assert (doc["level"], doc["notices"]) == ("ok", [])


HOLD = {"by": "ann", "reason": "a new disk", "at": NOW}
TROUBLES: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    "sick": ({"sick": "nfsd gone"}, "alarm", "sick"),
    "hidden": ({"hidden": "in Consul 'x' of n1 is critical"}, "alarm", "hidden"),
    "stuck": ({"trouble": "umount: busy"}, "alarm", "trouble"),
    "heartbeats": ({"lease_trouble": "timed out"}, "warning", "lease"),
    "fence gone": ({"fence": {"in_place": False, "open_for_s": 0.0}}, "alarm", "fence"),
    "open by hand": ({"fence": {"in_place": True, "open_for_s": None}}, "alarm", "fence-open"),
    "flushed": ({"fence_flushes": 2}, "warning", "firewall"),
    "paused": ({"paused": {"by": "ann", "reason": "disk", "at": NOW}}, "warning", "paused"),
    "late": ({"standbys": [standby("n2", 4.0), standby("n3", 601.0)]}, "warning", "standby"),
    "never": ({"standbys": [standby("n2", 4.0), standby("n3", None)]}, "warning", "standby"),
    "not asked": (
        {"standbys": [standby("n2", 4.0), standby("n3", 4.0, candidate=False)]},
        "warning",
        "standby",
    ),
    "on hold": (
        {"standbys": [standby("n2", 4.0), standby("n3", 4.0, candidate=False, on_hold=HOLD)]},
        "warning",
        "on-hold",
    ),
    "nomad": ({"nomad": {"failed": ["no route"], "jobs": []}}, "warning", "nomad"),
    "diverged": ({"aside": ["/p/services.diverged-6-x"]}, "note", "diverged"),
    "busy": ({"busy": "demotion"}, "note", "busy"),
    "no agent": ({"agent": False}, "unknown", "source-agent"),
}


@pytest.mark.parametrize("case", TROUBLES)
def test_what_is_wrong_beside_it_is_a_notice_and_counts(config: Config, case: str) -> None:
    changes, level, what = TROUBLES[case]
    doc = told(served(**changes), config)
    assert [(notice["level"], notice["what"]) for notice in doc["notices"]] == [(level, what)]
    assert doc["level"] == level
    assert doc["headline"]["level"] == "ok"


def test_the_gravest_comes_first(config: Config) -> None:
    notices = told(served(sick="gone", busy="demotion", fence_flushes=1), config)["notices"]
    assert [notice["level"] for notice in notices] == ["alarm", "warning", "note"]


def test_what_consul_did_not_tell_is_null_and_not_a_no(config: Config) -> None:
    doc = told(blind("n2"), config, keys="timed out")
    assert doc["failover"]["possible"] is None
    nulls = ("serving", "holder", "epoch", "standbys", "history", "clients")
    assert [doc[key] for key in nulls] == [None] * len(nulls)
    assert not doc["sources"]["consul"]["ok"] and doc["sources"]["keys"]["text"] == "timed out"
    assert doc["level"] == "unknown"


def test_a_silent_agent_is_told_though_consul_answers(config: Config) -> None:
    doc = told(served(agent=False), config, agent_error="no whole line arrived in time")
    assert doc["headline"]["level"] == "ok"
    assert doc["sources"]["agent"] == {"ok": False, "text": "no whole line arrived in time"}
    assert doc["level"] == "unknown"


def test_only_the_notes_of_the_primary_itself_tell_of_its_replications(config: Config) -> None:
    failing = StandbyState(
        last_success_at=NOW - 900,
        last_failure_at=NOW - 10,
        last_failure_reason="no-space",
        last_failure="the disk is full",
        verified_ok=False,
        verified_at=NOW - 950,
    )
    notes = ReplicationState(standbys={"n2": failing})
    doc = told(served(), config, replication=notes)
    [n2, n3] = doc["standbys"]
    assert n2["replication"]["failure"]["reason"] == "no-space"
    assert n3["replication"]["failure"] is None
    assert [notice["what"] for notice in doc["notices"]] == ["verify", "replication"]
    from_n2 = told(served("n1", "n2"), structs.replace(config, node="n2"), replication=notes)
    assert [standby["replication"] for standby in from_n2["standbys"]] == [None, None]
    healed = structs.replace(failing, last_success_at=NOW - 1, verified_ok=True)
    doc = told(served(), config, replication=ReplicationState(standbys={"n2": healed}))
    assert doc["notices"] == []


def test_a_standby_is_late_after_two_intervals_and_no_use_beyond_the_allowed_loss(
    config: Config,
) -> None:
    ages = {"n1": None, "n2": 599.0, "n3": 601.0, "n4": 901.0, "n5": 4.0}
    standbys = [standby(name, age_s, candidate=name != "n5") for name, age_s in ages.items()]
    doc = told(served("n9", standbys=standbys), structs.replace(config, max_data_loss=900.0))
    levels = {shown["node"]: shown["level"] for shown in doc["standbys"]}
    assert levels == {
        "n1": "alarm",
        "n2": "ok",
        "n3": "warning",
        "n4": "alarm",
        "n5": "warning",
    }


def test_an_age_that_nobody_knows_is_a_matter_of_clocks_and_none_of_a_replication(
    config: Config,
) -> None:
    unknown = standby("n2", None, snapshot="services@20270115T080000Z")
    [notice] = told(served(standbys=[unknown]), config)["notices"]
    assert notice["text"].startswith(
        "nobody here knows how old n2's newest snapshot is: this node's"
    )
    assert notice["next"] == "`timedatectl` on both; `standfast snapshots` on n2: its own count."
    [notice] = told(served(standbys=[standby("n2", None)]), config)["notices"]
    assert notice["next"] == "`standfast replicate n2`."


def test_a_client_is_well_on_the_server_that_serves_and_unknown_when_silent(
    config: Config,
) -> None:
    clients = [
        ClientRecord("well", "n1", 7, "mount-current", NOW - 60),
        ClientRecord("behind", "n2", 6, "mount-current", NOW - 60),
        ClientRecord("hangs", "n1", 7, "server-away", NOW - 60),
        ClientRecord("silent", "n1", 7, "mount-current", NOW - SILENT_S - 1),
        ClientRecord("none", None, None, "not-a-client", NOW),
        ClientRecord("idle", None, None, "automount-idle", NOW),
    ]
    doc = told(served(), config, keys=Keys(clients=clients))
    assert {client["node"]: client["level"] for client in doc["clients"]} == {
        "well": "ok",
        "behind": "warning",
        "hangs": "warning",
        "silent": "unknown",
        "idle": "ok",
    }
    texts = [notice["text"] for notice in doc["notices"]]
    assert texts == [
        "2 of 5 clients are not well on n1: behind, hangs",
        "Nothing was heard for long of silent",
    ]
    waiting = told(dead(), config, keys=Keys(clients=clients))
    assert waiting["notices"] == []
    assert {client["level"] for client in waiting["clients"]} == {"note", "unknown"}


def test_the_newest_twenty_epochs_are_told(config: Config) -> None:
    [seventh] = [entry for entry in known_keys().history if entry.epoch == 7]
    many = [structs.replace(seventh, epoch=epoch) for epoch in range(1, 100)]
    history = told(served(), config, keys=Keys(history=many))["history"]
    assert [row["epoch"] for row in history] == list(range(99, 99 - MOST_EPOCHS, -1))


def test_a_value_by_hand_hides_nothing_but_itself() -> None:
    values = {**keys(), "history/8": b"{}", "standbys/n9": b"7"}
    sorted_out = with_clients(sort_keys(values), {**clients(), "web-3": b"hello"})
    assert sorted(sorted_out.foreign) == ["history/8", "standbys/n9"]
    assert sorted_out.foreign_clients == ["web-3"]
    assert len(sorted_out.history) == 3 and len(sorted_out.clients) == 2


def test_what_clients_say_is_a_source_of_its_own(config: Config) -> None:
    """It can't be read, or one of them wrote something else: nothing else is any less known."""
    for changes, shown in (
        ({"clients": "too much of it"}, None),
        ({"foreign_clients": ["web-3"]}, 2),
    ):
        doc = told(served(), config, keys=replace(known_keys(), **changes))
        assert (None if doc["clients"] is None else len(doc["clients"])) == shown
        assert len(doc["history"]) == 3
        bad = [name for name, source in doc["sources"].items() if not source["ok"]]
        assert bad == ["clients"]
        assert [notice["what"] for notice in doc["notices"]] == ["source-clients"]
        assert doc["level"] == "note", "no client makes the volume look any worse"


def test_the_whole_is_as_well_as_its_worst_volume(config: Config) -> None:
    well, sick = volume_of(served(), config), volume_of(dead(), config)
    assert document([well, sick, well], NOW)["level"] == "alarm"
    assert document([], NOW)["level"] == "unknown"


def test_every_next_step_is_the_one_of_the_page_of_codes() -> None:
    page = (CHECKOUT / "docs/reason-codes.md").read_text()
    for reason, step in NEXT.items():
        row = re.search(rf"(?m)^\| `{reason}` \| .* \| (.*) \|$", page)
        assert row is not None and row[1] == step, reason
    assert next_step("too-old") == NEXT[Reason.TOO_OLD]
    assert next_step("no-such-code") is None and next_step(None) is None


def test_a_time_of_another_day_has_its_date() -> None:
    assert time_of(NOW, NOW) == "14:06 UTC"
    assert time_of(NOW - 86400, NOW) == "2026-11-21 14:06 UTC"


def test_an_agent_that_still_waits_quietly_is_not_quoted_in_an_alarm(config: Config) -> None:
    assert "n1 says: n1 is silent" in told(dead(), config)["headline"]["advice"]
    calm = {"reason": "primary-alive", "sentence": "n1 is primary with epoch 7", "action": "wait"}
    assert "says" not in told(dead(decision=calm), config)["headline"]["advice"]


def test_a_sentence_ends_once(config: Config) -> None:
    why = "connection refused. Check that the agent runs."
    failover = {"possible": False, "reason": "consul-unreachable", "sentence": why}
    line = told(blind("n2", failover=failover, lease_remaining_s=None), config)["headline"]
    assert line["text"] == f"It is not known who serves data-services: {why}"


def test_the_levels_go_from_well_to_alarm() -> None:
    assert list(map(str, Level)) == ["ok", "note", "warning", "unknown", "alarm"]


# The trend


def test_the_trend_keeps_the_highest_age_of_each_bucket_for_an_hour() -> None:
    trend = Trend()
    start = 1_000_000 * STEP_S
    for second in (0, 10, 20):
        trend.note({"n2": [5.0, 9.0, 2.0][second // 10]}, start + second)
    trend.note({"n2": 4.0, "n3": None}, start + 2 * STEP_S)
    assert trend.ages(start + 2 * STEP_S) == {"n2": [9.0, None, 4.0], "n3": []}
    end = start + (BUCKETS + 1) * STEP_S
    assert trend.ages(end) == {"n2": [4.0, *[None] * (BUCKETS - 1)]}
    assert trend.ages(end + 10 * BUCKETS * STEP_S) == {}


def test_the_trend_of_many_standbys_stays_small() -> None:
    trend = Trend()
    for hour in range(3):
        ages = {f"n{number}": 1.0 for number in range(MOST_STANDBYS + 500)}
        trend.note(ages, hour * 3600.0)
        kept = trend.ages(hour * 3600.0)
        assert len(kept) == MOST_STANDBYS
        assert all(len(ages) <= BUCKETS for ages in kept.values())


# The looks


def readers(**changes: Any) -> Readers:
    calm = Readers(
        fetch=lambda config: parsed(served()),
        from_consul=lambda config: parsed(served(agent=False)),
        keys=lambda config: known_keys(),
        replication=lambda config: ReplicationState(),
        utc=lambda: NOW,
        now=lambda: 5000.0,
    )
    return replace(calm, **changes)


def raises(error: Exception) -> Any:
    def read(config: Config) -> Any:
        raise error

    return read


def answer(looks: StatusCache) -> dict[str, Any]:
    doc: dict[str, Any] = json.loads(looks.body())
    return doc


def test_many_pages_cost_one_look_a_second(config: Config) -> None:
    asked: list[str] = []
    now = [100.0]

    def fetch(config: Config) -> Status:
        asked.append(config.volume)
        now[0] += 3.0  # a slow look is fresh when it ends
        return parsed(served())

    looks = StatusCache([config], readers(fetch=fetch, now=lambda: now[0]))
    assert len({looks.body() for _ in range(10)}) == 1
    assert len(asked) == 1
    now[0] += KEEP_S
    looks.body()
    assert len(asked) == 2


def test_who_asks_during_a_look_gets_the_same_one(config: Config) -> None:
    asked: list[int] = []
    go_on = threading.Event()

    def fetch(config: Config) -> Status:
        asked.append(1)
        assert go_on.wait(30)
        return parsed(served())

    looks = StatusCache([config], readers(fetch=fetch))
    bodies: list[bytes] = []
    threads = [threading.Thread(target=lambda: bodies.append(looks.body())) for _ in range(5)]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert (len(bodies), len(set(bodies)), len(asked)) == (5, 1, 1)


@pytest.mark.parametrize(
    "error", [StandfastError("odd"), OSError("no"), KeyError("bug"), TimedOut("late")], ids=repr
)
def test_a_source_that_fails_is_named_and_the_others_are_shown(
    config: Config, error: Exception
) -> None:
    for source, names in (
        ("fetch", {"agent"}),
        ("keys", {"keys", "clients"}),
        ("replication", {"replication"}),
    ):
        [volume] = answer(StatusCache([config], readers(**{source: raises(error)})))["volumes"]
        assert volume["serving"] == "n1"
        bad = {key for key, outcome in volume["sources"].items() if not outcome["ok"]}
        assert bad == names
        assert volume["level"] == "unknown"
    everything = {name: raises(error) for name in ("fetch", "from_consul", "keys", "replication")}
    [volume] = answer(StatusCache([config], readers(**everything)))["volumes"]
    assert volume["headline"]["level"] == "unknown"


def test_a_consul_that_is_silent_is_waited_for_once(config: Config) -> None:
    asked: list[Config] = []

    def read(config: Config) -> Keys:
        asked.append(config)
        return known_keys()

    silent = parsed(blind("n2", agent=False))
    for reads in (
        {"fetch": lambda config: silent},
        {"fetch": raises(TimedOut("late")), "from_consul": lambda config: silent},
        {"fetch": raises(TimedOut("late")), "from_consul": raises(OSError("no"))},
    ):
        [volume] = answer(StatusCache([config], readers(keys=read, **reads)))["volumes"]
        assert (volume["history"], volume["headline"]["level"]) == (None, "unknown")
    assert not asked
    # An agent's blindness is its own: this process may see more.
    [volume] = answer(
        StatusCache([config], readers(keys=read, fetch=lambda config: parsed(blind("n2"))))
    )["volumes"]
    assert asked and volume["history"]


@pytest.mark.parametrize(
    "odd", [{}, {"epoch": 7}, served(standbys=5), served(fence=[]), served(since="x")], ids=repr
)
def test_an_answer_of_an_agent_in_another_shape_is_no_answer(config: Config, odd: Any) -> None:
    other = structs.replace(config, volume="other")
    looks = StatusCache(
        [config, other], readers(fetch=lambda asked: parsed(odd if asked == config else served()))
    )
    first, second = answer(looks)["volumes"]
    assert "is it of this version?" in first["sources"]["agent"]["text"]
    assert first["serving"] == "n1", "Consul is asked instead"
    assert (second["serving"], second["sources"]["agent"]["ok"]) == ("n1", True)


def test_the_trend_is_sampled_for_the_standbys_and_has_gaps_where_nothing_was_read(
    config: Config,
) -> None:
    now = [100 * STEP_S]
    answers: list[Any] = [
        served(),
        StandfastError("no agent"),
        served(standbys=5),
        served(standbys=[standby("n2", 30.0)]),
    ]

    def fetch(config: Config) -> Status:
        reply = answers.pop(0) if answers else served()
        if isinstance(reply, Exception):
            raise reply
        return parsed(reply)

    looks = StatusCache(
        [config], readers(fetch=fetch, from_consul=raises(OSError("no")), now=lambda: now[0])
    )
    for _ in range(4):
        looks.sample()
        now[0] += STEP_S
    now[0] -= STEP_S
    [volume] = answer(looks)["volumes"]
    trends = {shown["node"]: shown["trend"] for shown in volume["standbys"]}
    assert trends["n2"] == {"step_s": STEP_S, "ages_s": [4.0, None, None, 30.0]}
    assert trends["n3"] == {"step_s": STEP_S, "ages_s": [4.0, None, None, None]}


def test_the_trend_is_of_the_ages_that_status_tells(config: Config) -> None:
    """The record in Consul goes by the primary's clock, an hour ahead; the agent counts."""
    told = parsed(served(standbys=[standby("n2", 3700.0)]))
    looks = StatusCache([config], readers(fetch=lambda config: told))
    looks.sample()
    [volume] = answer(looks)["volumes"]
    assert volume["standbys"][0]["trend"]["ages_s"] == [3700]


def test_an_age_without_end_is_no_json(config: Config) -> None:
    doc = told(served(), config, trends={"n2": [math.inf, 3.14159, 12.7, None]})
    assert doc["standbys"][0]["trend"]["ages_s"] == [None, 3.1, 13, None]


def test_snapshots_of_the_pictures_are_as_old_as_they_say() -> None:
    assert snapshot(400) == "services@20261122T140000Z"


def paths_of(value: Any, path: str = "") -> set[str]:
    """Every key of a document as docs/status-page.md writes it."""
    if isinstance(value, Mapping):
        return {
            below for key in value for below in paths_of(value[key], f"{path}.{key}".lstrip("."))
        }
    if isinstance(value, list) and not path.endswith("ages_s"):
        return {below for item in value for below in paths_of(item, f"{path}[]")}
    return {path}


def test_every_key_is_in_the_docs_and_the_other_way_round(config: Config) -> None:
    page = (CHECKOUT / "docs/status-page.md").read_text()
    rows = dict(re.findall(r"(?m)^\| `([^`]+)` \| (.+) \|$", page))
    objects = {path for path, text in rows.items() if text.startswith("object")}
    full = served(
        sick="x",
        aside=["/a"],
        paused={"by": "ann", "reason": "disk", "at": NOW},
        nomad={"role": "primary", "failed": [], "jobs": []},
        given_up=given_up("n1", "n2"),
        standbys=[standby("n2", 4.0, on_hold=HOLD), standby("n3", 4.0, on_hold=None)],
    )
    notes = ReplicationState(standbys={"n2": StandbyState(last_failure_at=NOW)})
    trends = {"n2": [1.0], "n3": [1.0]}
    doc = document([volume_of(full, config, trends=trends, replication=notes)], NOW)
    in_document = {
        next((parent for parent in objects if path.startswith(f"{parent}.")), path)
        for path in paths_of(json.loads(json.dumps(doc)))
    }
    assert in_document == set(rows)
    whats = re.search(r"a stable name: (.*) \|", page)
    assert whats is not None
    source = (CHECKOUT / "standfast/status/notices.py").read_text()
    named = set(re.findall(r'Notice\(\s*Level\.[A-Z]+,\s*"([a-z-]+)"', source))
    assert named == set(re.findall(r"`([a-z-]+)`", whats[1]))
