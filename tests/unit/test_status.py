"""`standfast status`: can we fail over now, and if not, why; the first line has the answer."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.agent.document import build, can_fail_over, document, times
from standfast.ages import UNKNOWN
from standfast.config.model import Config
from standfast.consul.blindness import Blind
from standfast.consul.records import (
    CandidateRecord,
    HistoryEntry,
    Holder,
    Leader,
    LeaderState,
    Pause,
    StandbyRecord,
    dump_epoch,
)
from standfast.errors import ConsulError, StandfastError
from standfast.exporter import samples
from standfast.lease.files import LeaseStatus
from standfast.lease.surrender import FRESH_S, Sign
from standfast.names import SnapshotName
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import FenceState, Snapshot
from standfast.reasons import Reason
from standfast.replication.state import ReplicationState, StandbyState
from standfast.role.observation import Available, Cluster, LastHeartbeat, Local
from standfast.status.document import Decision, Fence, Obstacle, Work
from standfast.status.text import render
from standfast.system.clock import monotonic
from standfast.text import duration
from tests.fakes.consul import MemoryConsul
from tests.support.configs import config_in
from tests.support.status_documents import parsed, served
from tests.support.terminal import a_desk
from tests.unit.agents import SERVING, agent

NOW = 1_795_000_000.0
# The tables below are made long before their tests run.
SEEN_JUST_NOW = monotonic() + 1e6


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path)


def record(name: str, age_s: float) -> StandbyRecord:
    return StandbyRecord(name, 4, str(SnapshotName.at("services", NOW - age_s)), "c0ffee", NOW)


def view(**changes: Any) -> Cluster:
    leader = Leader(4, Holder("n1", "boot-1"), 9, LeaderState.SERVING, ("n2", "n3"))
    history_entry = HistoryEntry(4, "n1", None, "takeover", None, 3.0, NOW - 7200)
    made = Cluster(
        4,
        leader,
        LastHeartbeat(leader.identity, 9, SEEN_JUST_NOW),
        history={4: history_entry},
        standbys={"n2": record("n2", 30), "n3": record("n3", 300)},
    )
    return replace(made, **changes)


def led(**changes: Any) -> Cluster:
    leader = view().leader
    assert leader is not None
    return view(leader=structs.replace(leader, **changes))


def word(name: str, **changes: Any) -> Sign:
    """What a candidate said just now: it would take over."""
    stamp = str(SnapshotName.at("services", NOW - (30 if name == "n2" else 300)))
    said = CandidateRecord(
        name, 4, True, "surrendered", stamp, 4, NOW, takes_over=True, because="takeover"
    )
    return Sign(structs.replace(said, **changes), 1)


def no(name: str, reason: Reason, sentence: str) -> Sign:
    return word(name, takes_over=False, because=str(reason), sentence=sentence)


def said(*signs: Sign, **changes: Any) -> Cluster:
    return view(words={sign.record.node: sign for sign in signs}, **changes)


ANSWERS: Mapping[str, tuple[Cluster | Blind, Reason | None, str]] = {
    "both would: the better one is told": (
        said(word("n2"), word("n3")),
        None,
        "n2 would lose 30 s",
    ),
    "the worse one alone would": (
        said(no("n2", Reason.NOT_READY, "masked"), word("n3")),
        None,
        "n3 would lose 5 min",
    ),
    "blind": (Blind(Reason.CONSUL_TIMEOUT, "Consul hangs"), Reason.CONSUL_TIMEOUT, "hangs"),
    "foreign": (Blind(Reason.FOREIGN_VALUE, "what?"), Reason.FOREIGN_VALUE, "what?"),
    "no epoch": (view(epoch=None, leader=None), Reason.NOT_INITIALISED, "no primary yet"),
    "nobody says anything": (said(), Reason.NO_STANDBY_READY, "a word counts 45 s"),
    "there is nobody": (
        replace(led(candidates=()), words={}),
        Reason.NO_STANDBY_READY,
        "there is no standby",
    ),
    "none would: the better one's reason is told": (
        said(no("n2", Reason.COOLDOWN, "no second time yet"), no("n3", Reason.TOO_OLD, "300 s")),
        Reason.COOLDOWN,
        "no second time yet",
    ),
    "it speaks of another epoch": (
        said(word("n2", epoch=3), no("n3", Reason.PAUSED, "paused by ann")),
        Reason.PAUSED,
        "by ann",
    ),
    "it has been silent for too long": (
        said(word("n2", at=NOW - FRESH_S - 1)),
        Reason.NO_STANDBY_READY,
        "n2, n3",
    ),
    "its clock is far ahead": (
        said(word("n2", at=NOW + FRESH_S + 1)),
        Reason.NO_STANDBY_READY,
        "n2, n3",
    ),
    "its clock is wrong, and its word was seen to change": (
        said(replace(word("n2", at=NOW - 9000), changed_at=monotonic() + 1e6)),
        None,
        "n2 would lose 30 s",
    ),
    "it was seen to change, and that is long ago": (
        said(replace(word("n2"), changed_at=monotonic() - FRESH_S)),
        Reason.NO_STANDBY_READY,
        "n2, n3",
    ),
    "an older version that would take a surrender": (
        said(word("n2", takes_over=None, because=None)),
        None,
        "n2 would lose 30 s",
    ),
    "an older version that would not": (
        said(word("n2", takes_over=None, because=None, ready=False, reason="too-old")),
        Reason.TOO_OLD,
        "n2 says too-old",
    ),
    "what bars it from nothing is told, and not as if it did": (
        said(word("n2", obstacles=("space: 2 % are left", "a:\x1b[2J", "b"))),
        None,
        "n2 would lose 30 s of data at most; it also tells: space: 2 % are left, and 2 more",
    ),
    "its record is gone": (said(word("n2"), standbys={}), None, "n2 would take over"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_can_we_fail_over_now(config: Config, case: str) -> None:
    """As the candidates say it."""
    what, reason, words = ANSWERS[case]
    verdict = can_fail_over(what, config, NOW)
    assert (verdict.possible, verdict.reason) == (reason is None, reason)
    assert words in verdict.sentence
    assert (verdict.to is not None) == verdict.possible


def test_what_a_candidate_says_is_cleaned_before_it_is_shown(config: Config) -> None:
    evil = no("n2", Reason.TOO_OLD, "old\x1b[2J")
    record = structs.replace(evil.record, obstacles=("unit: \x1b[2J",))
    read = CandidateRecord.parse(record.dump())
    doc = build(said(replace(evil, record=read)), None, config, NOW)
    assert "\x1b" not in render(doc) and "it tells: unit" in render(doc)


def test_what_is_only_told_of_this_node_is_not_said_to_be_in_the_way(config: Config) -> None:
    seen = tuple(
        Obstacle(weight, f"{weight} it", "mend it", weight) for weight in ("told", "refuses")
    )
    text = render(structs.replace(build(said(word("n2")), None, config, NOW), obstacles=seen))
    assert "IN THE WAY: of a promotion here: refuses: refuses it" in text
    assert "told:       of a promotion here: told: told it" in text


def test_a_candidate_that_says_nothing_is_told(config: Config) -> None:
    text = render(build(said(word("n2")), None, config, NOW))
    assert text.count("SAYS NOTHING OF ITSELF") == 1


def test_why_one_of_them_would_not_take_over_is_told_beside_the_other(config: Config) -> None:
    seen = said(
        no("n2", Reason.NOT_READY, "a promotion of n2 would fail:\n  unit: masked"), word("n3")
    )
    text = render(build(seen, None, config, NOW))
    assert "WOULD NOT TAKE OVER (not-ready): a promotion of n2 would fail:" in text


def test_a_leader_key_deleted_by_hand_is_not_the_first_day(config: Config) -> None:
    verdict = can_fail_over(view(leader=None), config, NOW)
    assert (verdict.possible, verdict.reason) == (False, Reason.LEADER_MISSING)


def test_the_holder_has_no_replication_age(config: Config) -> None:
    assert times(view(), config, NOW) == {"n2": NOW - 30, "n3": NOW - 300}
    assert times(view(leader=None), config, NOW) == {"n1": None, "n2": NOW - 30, "n3": NOW - 300}


def test_a_snapshot_of_the_future_is_of_unknown_age(config: Config) -> None:
    """A clock was wrong; it is told as too old, not as new."""
    seen = view(standbys={"n2": record("n2", -500)})
    told = {standby.node: standby for standby in build(seen, None, config, NOW).standbys}
    assert told["n2"].age_s is None


def test_a_record_of_a_clock_that_was_ahead_tells_no_age(config: Config) -> None:
    """By an hour, of a snapshot that would look two hours younger than it is when it is an hour."""
    ahead = structs.replace(record("n2", 300), taken_at=NOW - 300, at=NOW + 3600)
    told = build(view(standbys={"n2": ahead}), None, config, NOW).standbys
    assert told[0].age_s is None and told[0].snapshot == ahead.snapshot


def test_a_client_whose_clock_is_behind_tells_no_failover_by_its_own_clock_alone(
    config: Config,
) -> None:
    """Each replication makes it unknown there again, though the standbys are well."""
    status = structs.replace(build(said(word("n2")), None, config, NOW - 400), agent=False)
    assert status.failover is not None and status.failover.reason == Reason.NO_STANDBY_READY
    assert "failover:  NO by this node's clock (no-standby-ready): no standby" in render(status)
    by_agent = structs.replace(status, agent=True)
    assert "failover:  NO (no-standby-ready): no standby" in render(by_agent)


def test_of_the_record_and_the_time_in_its_name_the_older_counts(config: Config) -> None:
    ahead = structs.replace(record("n2", -500), taken_at=NOW - 100)
    behind = structs.replace(record("n3", 300), taken_at=NOW - 100)
    seen = view(standbys={"n2": ahead, "n3": behind})
    assert times(seen, config, NOW) == {"n2": NOW - 100, "n3": NOW - 300}


def test_a_node_that_has_the_same_snapshot_knows_how_old_it_really_is(config: Config) -> None:
    """The record was written by a clock that was set back since; this node counts by its uptime."""
    name = SnapshotName.at("services", NOW - 10)
    mine = Available(Snapshot(name, Path("/x"), "c0ffee", False), 4, taken_at=NOW - 3610)
    here = replace(local(config), snapshots=(mine,))
    told = build(view(standbys={"n2": record("n2", 10)}), here, config, NOW)
    assert told.standbys[0].age_s == 3610


def test_a_time_that_nobody_knows_is_told_as_none_and_blocks_a_takeover(config: Config) -> None:
    """This node started with its clock behind: the name of the snapshot says nothing any more."""
    name = SnapshotName.at("services", NOW - 10)
    mine = Available(Snapshot(name, Path("/x"), "c0ffee", False), 4, taken_at=UNKNOWN)
    here = replace(local(config), snapshots=(mine,))
    told = build(view(standbys={"n2": record("n2", 10)}), here, config, NOW)
    assert (told.standbys[0].age_s, told.standbys[0].taken_at) == (None, None)
    newest = samples.newest_of_standbys(config, told.standbys, None, {})
    assert newest["n2"] == samples.Copy(name, UNKNOWN)
    sent = ReplicationState(standbys={"n2": StandbyState(snapshot=str(name))})
    assert samples.newest_of_standbys(config, told.standbys, sent, {})["n2"] == newest["n2"]


def test_a_holder_tells_why_it_keeps_a_role_that_it_can_not_serve() -> None:
    status = parsed(served(serving=None, unserved_s=70.0, not_surrendered="no-standby-ready"))
    assert "surrender: NO (no-standby-ready)" in render(status).splitlines()
    assert "surrender" not in render(parsed(served()))


def test_the_keys_of_the_document_are_stable(config: Config) -> None:
    doc = build(view(), local(config), config, NOW).as_json()
    assert sorted(doc) == [
        "began_by",
        "epoch",
        "failover",
        "fence_flushes",
        "given_up",
        "highest_epoch",
        "holder",
        "is_holder",
        "last_heartbeat_seen_s",
        "lease_remaining_s",
        "lease_trouble",
        "lost_s",
        "newest_snapshot",
        "node",
        "not_surrendered",
        "paused",
        "role",
        "serving",
        "since",
        "standbys",
        "state",
        "unserved_s",
        "v",
        "volume",
    ]
    assert sorted(doc["failover"]) == ["possible", "reason", "sentence", "to"]
    assert [sorted(standby) for standby in doc["standbys"]] == [
        ["age_s", "candidate", "epoch", "node", "on_hold", "snapshot", "taken_at", "word"]
    ] * 2


def local(config: Config, **changes: Any) -> Local:
    until = monotonic() + 6
    lease = LeaseStatus(4, "boot-1", 1, LeaderState.SERVING, True, until, until, 9, 0.0)
    made = Local("n1", "boot-1", 4, lease=lease, lease_alive=True)
    return replace(made, **changes)


def own(stage: Stage) -> OwnEpoch:
    return OwnEpoch(4, stage, "fsid", None, True)


ROLES: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "serves": ({}, "primary"),
    "holds the lease and doesn't serve yet": ({"serving": False}, "changing"),
    "lost its lease process": ({"lease_alive": False}, "standby"),
    "lost its lease process, and has a tree": (
        {"lease_alive": False, "own": own(Stage.READY)},
        "changing",
    ),
    "rebooted": ({"instance": "boot-2"}, "standby"),
    "is a plain standby": ({"lease": None, "lease_alive": False}, "standby"),
}


@pytest.mark.parametrize("case", ROLES)
def test_the_role_of_a_node_that(config: Config, case: str) -> None:
    changes, role = ROLES[case]
    changes = dict(changes)
    me = local(config)
    if "serving" in changes:
        assert me.lease is not None
        changes = {"lease": structs.replace(me.lease, serving=changes["serving"])}
    status = build(view(), replace(me, **changes), config, NOW)
    assert status.role == role and status.files is not None
    holds = status.files.lease_remaining_s is not None
    assert holds == (role == "primary" or "yet" in case)


@pytest.mark.parametrize(
    ("what", "first"),
    [
        (view(), "data-services: n1 is primary, epoch 4 since 2026-11-18 "),
        (
            led(state=LeaderState.CLEAN),
            "data-services: NOBODY SERVES: n1 gave epoch 4 up in order, to nobody. Nobody takes",
        ),
        (
            led(state=LeaderState.CLEAN, to="n2", surrendered=True),
            "data-services: NOBODY SERVES: n1 gave epoch 4 up without a final snapshot, to n2. A",
        ),
        (led(state=LeaderState.STARTING), "data-services: NOBODY SERVES: n1 holds epoch 4"),
        (
            view(last_heartbeat=LastHeartbeat(view().last_heartbeat.identity, 9, monotonic() - 60)),
            "data-services: NOBODY SERVES: n1 holds epoch 4 (serving), its last heartbeat was seen",
        ),
        (view(epoch=None, leader=None), "data-services: NOBODY SERVES: there has been no primary"),
        (Blind(Reason.CONSUL_TIMEOUT, "Consul hangs"), "data-services: "),
    ],
    ids=["serving", "demoted", "surrendered", "starting", "silent", "new", "blind"],
)
def test_the_answer_stands_in_the_first_line(
    config: Config, what: Cluster | Blind, first: str
) -> None:
    assert render(build(what, None, config, NOW)).splitlines()[0].startswith(first)


def test_who_can_not_see_does_not_claim_that_nobody_serves(config: Config) -> None:
    text = render(build(Blind(Reason.CONSUL_TIMEOUT, "Consul hangs"), None, config, NOW))
    assert "NOBODY SERVES" not in text
    assert "Consul hangs" in text.splitlines()[0]


def test_the_text_says_what_can_not_be_done_and_why(config: Config) -> None:
    paused = no("n2", Reason.PAUSED, "paused by ann")
    seen = said(paused, pause=Pause("ann", "disk swap", NOW))
    text = render(build(seen, None, config, NOW))
    assert "failover:  NO (paused): paused by ann" in text
    assert "paused:    by ann since 2026-11-18 " in text and text.endswith("disk swap")
    assert "standby:   n2: 30 s behind (services@" in text


def test_the_text_shows_trouble(config: Config) -> None:
    status = structs.replace(
        build(view(), local(config), config, NOW),
        decision=Decision("nothing", "serving", "n1 serves"),
        fence=Fence(in_place=False, open_for_s=0.0),
        aside=("/persist/services.diverged-3-20261122T101500Z",),
        work=Work(busy="promotion 3/9", trouble="no route", sick="0 threads"),
    )
    lines = render(status).splitlines()
    assert "fence:     RULES MISSING: somebody flushed the firewall" in lines
    assert "kept:      /persist/services.diverged-3-20261122T101500Z" in lines
    assert lines[-3:] == ["doing:     promotion 3/9", "TROUBLE:   no route", "SICK:      0 threads"]


def test_a_disk_that_can_not_be_read_leaves_the_rest_of_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = agent(tmp_path, SERVING)
    made.seen = made.look()

    def fails() -> list[Path]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/persist")

    monkeypatch.setattr(made.machine.store, "aside", fails)
    status = document(made)
    doc = status.as_json()
    assert doc["agent"] is True
    assert "aside" not in doc, "what is not known is not none"
    assert doc["trouble"] == "/persist: Input/output error (EIO)"
    assert "TROUBLE:   /persist: Input/output error (EIO)" in render(status).splitlines()


def test_a_node_that_consul_calls_otherwise_is_in_trouble_and_serves_on(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING)
    made.view = view(named="N1.lan")
    made.seen = made.look()
    status = document(made)
    assert "called N1.lan" in (status.as_json()["trouble"] or "")
    assert (status.serving, status.as_json()["decision"]["reason"]) == ("n1", Reason.SERVING)


def test_who_asks_is_told_what_the_keys_say_now(tmp_path: Path) -> None:
    """A replication has just ended, and the agent's details are some seconds old."""
    made = agent(tmp_path, SERVING)
    made.seen = made.look()
    config, consul, old = made.config, made.machine.consul, made.seen.view
    assert isinstance(old, Cluster) and old.leader is not None and isinstance(consul, MemoryConsul)
    just_now = structs.replace(record("n3", 1), epoch=4)
    consul.put(config.key("epoch"), dump_epoch(4))
    consul.put(config.key("leader"), old.leader.dump())
    consul.put(config.key("standbys/n3"), just_now.dump())
    consul.put(config.key("candidates/n3"), word("n3").record.dump())
    assert [each.snapshot for each in document(made, fresh=True).standbys if each.node == "n3"] == [
        just_now.snapshot
    ]
    assert made.seen.view is old, "what is decided by is the look's own"
    consul.error = ConsulError("no answer")
    told = {each.node: each.snapshot for each in document(made, fresh=True).standbys}
    assert told["n3"] == old.standbys["n3"].snapshot


def test_a_fence_that_can_not_be_asked_leaves_the_rest_of_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = agent(tmp_path, SERVING)
    made.seen = made.look()

    def fails() -> FenceState:
        raise StandfastError("nft can't list the table")

    monkeypatch.setattr(made.machine.fence, "state", fails)
    status = structs.replace(document(made), role="primary")
    doc = status.as_json()
    assert (doc["trouble"], "fence" in doc) == ("nft can't list the table", False)
    told = {sample[0] for sample in samples.from_status(status, made.config, NOW)}
    assert {"serving", "trouble"} <= told
    assert "fence_armed" not in told


def test_a_port_that_was_opened_by_hand_has_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = agent(tmp_path, SERVING)
    made.seen = made.look()
    monkeypatch.setattr(made.machine.fence, "state", lambda: FenceState(True, math.inf))
    status = document(made)
    assert status.fence is not None and status.fence.open_for_s is None
    json.dumps(status.as_json(), allow_nan=False)
    assert any("WITHOUT END" in line for line in render(status).splitlines())


def test_the_text_of_a_client_says_whose_word_it_is(config: Config) -> None:
    status = structs.replace(build(view(), None, config, NOW), agent=False)
    assert "no agent runs here" in render(status).splitlines()[1]


def test_a_document_of_an_agent_that_has_just_started_can_be_shown() -> None:
    doc = {"v": 1, "volume": "data-services", "node": "n1", "role": "starting"}
    status = parsed(doc)
    assert render(status).splitlines()[0].startswith("data-services: UNKNOWN WHO SERVES: the agent")
    assert status.as_json() == doc


def test_a_document_survives_the_socket_and_keys_of_another_version(config: Config) -> None:
    doc = build(view(), local(config), config, NOW).as_json()
    sent = json.loads(json.dumps(doc))
    assert json.dumps(parsed(sent).as_json()) == json.dumps(doc)
    newer = {
        **sent,
        "files": 7,
        "standbys": [{**standby, "more": 1} for standby in sent["standbys"]],
    }
    assert parsed(newer) == parsed(sent)
    older = {key: value for key, value in sent.items() if key not in ("given_up", "serving")}
    assert render(parsed(older)) == render(parsed(sent))


@pytest.mark.parametrize(
    "change", [{"role": None}, {"standbys": 5}, {"fence": []}, {"since": "x"}, {"failover": "yes"}]
)
def test_an_answer_of_another_shape_is_no_status(change: Mapping[str, Any]) -> None:
    with pytest.raises(StandfastError, match="is it of this version"):
        parsed(served(**change))


@pytest.mark.parametrize("key", ["volume", "role", "holder", "state", "trouble"])
def test_what_has_to_be_told_is_not_made_up(key: str) -> None:
    """Without `sick`, say, nobody says that this node is well."""
    with pytest.raises(StandfastError, match=key):
        parsed({name: value for name, value in served().items() if name != key})
    assert not parsed({k: v for k, v in served().items() if k != "sick"}).node_serves


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "never"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2.0 h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("state", "code"),
    [(LeaderState.DRAINING, 1), (LeaderState.CLEAN, 1), (None, 1)],
)
def test_a_script_can_ask_whether_nobody_serves(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: LeaderState | None,
    code: int,
) -> None:
    with a_desk(tmp_path, monkeypatch, capsys) as desk:
        if state is not None:
            desk.put("epoch", dump_epoch(4))
            desk.put("leader", Leader(4, Holder("c1", "boot-1"), 9, state, ("zippy",)).dump())
        for form in ((), ("--json",)):
            assert desk.run("status", *form)[0] == code
