"""What each observation leads to, as a table; every reason that can be given is given here."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

import standfast
from standfast.config.model import Config
from standfast.consul.blindness import Blind
from standfast.consul.records import Hold, Pause
from standfast.node.obstacle import Obstacle
from standfast.node.own_epoch import Stage
from standfast.reasons import Reason
from standfast.role.decide import decide
from standfast.role.decision import NO_REQUEST, Action, Moment, Request
from standfast.role.observation import Cluster, Local
from tests.support.observations import (
    NOW_S,
    UTC,
    cluster,
    config,
    history_entry,
    lease,
    local,
    own,
    record,
    snap,
)

ALIVE = "e5 a/a1 #7 serving"
CLEAN_B = "e5 a/a1 #7 clean ->b"
CLEAN = "e5 a/a1 #7 clean"
PROMOTE = Request(promote=True)
PRIMARY = local("a", own=own(), lease=lease(), lease_alive=True, nfs_running=True)
READY = local("b", [snap(60)])
MASKED = Obstacle("unit", "nfs-server.service is masked", "systemctl unmask it")
COPY = Path("/persist/services-standby/services@20261122T101500Z")
DEAD = {"holder_health": "critical", "alive": frozenset("bc")}


@dataclass(frozen=True)
class Case:
    says: str
    view: Cluster | Blind
    local: Local
    action: Action
    reason: Reason
    request: Request = NO_REQUEST
    config: Config = field(default_factory=config)


CASES = [
    Case(
        "the holder serves",
        cluster(ALIVE),
        PRIMARY,
        Action.NOTHING,
        Reason.SERVING,
    ),
    Case(
        "a standby leaves a living primary alone",
        cluster(ALIVE),
        READY,
        Action.NOTHING,
        Reason.PRIMARY_ALIVE,
    ),
    Case(
        "even an operator's word promotes nobody beside a living primary",
        cluster(ALIVE, silent=5),
        READY,
        Action.NOTHING,
        Reason.PRIMARY_ALIVE,
        PROMOTE,
    ),
    Case(
        "a silent primary's lease is waited for",
        cluster(ALIVE, silent=11.9, **DEAD),
        READY,
        Action.WAIT,
        Reason.WAITING_FOR_LEASE_END,
    ),
    Case(
        "an operator's word does not shorten the wait",
        cluster(ALIVE, silent=11.9, **DEAD),
        READY,
        Action.WAIT,
        Reason.WAITING_FOR_LEASE_END,
        PROMOTE,
    ),
    Case(
        "a dead primary is replaced when the wait is over",
        cluster(ALIVE, silent=12.1, **DEAD),
        READY,
        Action.PROMOTE,
        Reason.TAKEOVER,
    ),
    Case(
        "silence alone is no evidence",
        cluster(ALIVE, silent=59, holder_health="passing"),
        READY,
        Action.WAIT,
        Reason.WAITING_FOR_EVIDENCE,
    ),
    Case(
        "long silence is evidence",
        cluster(ALIVE, silent=61, holder_health="passing"),
        READY,
        Action.PROMOTE,
        Reason.TAKEOVER,
    ),
    Case(
        "vanished from the catalog and answering no probe is dead",
        cluster(ALIVE, silent=13, holder_health="absent", holder_unanswered_s=11),
        READY,
        Action.PROMOTE,
        Reason.TAKEOVER,
    ),
    Case(
        "after an outage of Consul a living primary gets its chance",
        cluster(ALIVE, silent=70, readable_since=NOW_S - 1, holder_health="passing"),
        READY,
        Action.WAIT,
        Reason.WAITING_FOR_EVIDENCE,
    ),
    Case(
        "a better candidate goes first",
        cluster(ALIVE, silent=13, standbys=record("c", 30), **DEAD),
        READY,
        Action.WAIT,
        Reason.WAITING_FOR_BETTER_CANDIDATE,
    ),
    Case(
        "a better candidate that is dead is not waited for",
        cluster(ALIVE, silent=13, standbys=record("c", 30), holder_health="critical"),
        READY,
        Action.PROMOTE,
        Reason.TAKEOVER,
    ),
    Case(
        "a better candidate that does nothing is waited for a while",
        cluster(ALIVE, silent=16.1, standbys=record("c", 30), **DEAD),
        READY,
        Action.PROMOTE,
        Reason.TAKEOVER,
    ),
    Case(
        "the one that the role is handed to takes it at once",
        cluster(CLEAN_B, standbys=record("b", 60)),
        READY,
        Action.PROMOTE,
        Reason.CLEAN_HANDOVER,
    ),
    Case(
        "the one that the role is surrendered to takes it at once, and claims no handover",
        cluster("e5 a/a1 #9 clean ->b surrendered", standbys=record("b", 10)),
        READY,
        Action.PROMOTE,
        Reason.SURRENDERED,
    ),
    Case(
        "what is surrendered may have become too old all the same",
        cluster("e5 a/a1 #9 clean ->b surrendered"),
        local("b", [snap(601)]),
        Action.BLOCKED,
        Reason.TOO_OLD,
    ),
    Case(
        "a disk that takes no writes can't be served from",
        cluster("e5 a/a1 #9 clean ->b surrendered", standbys=record("b", 10)),
        replace(READY, read_only=True),
        Action.BLOCKED,
        Reason.VOLUME_READ_ONLY,
    ),
    Case(
        "a promotion that would fail is not begun",
        cluster("e5 a/a1 #9 clean ->b surrendered", standbys=record("b", 10)),
        replace(READY, obstacles=(MASKED,)),
        Action.BLOCKED,
        Reason.NOT_READY,
    ),
    Case(
        "an operator is told as well what a promotion would fail at",
        cluster("e5 a/a1 #9 clean ->b surrendered", standbys=record("b", 10)),
        replace(READY, obstacles=(MASKED,)),
        Action.BLOCKED,
        Reason.NOT_READY,
        Request(promote=True, accept_data_loss=True),
    ),
    Case(
        "it is tried in spite of what an operator has seen",
        cluster("e5 a/a1 #9 clean ->b surrendered", standbys=record("b", 10)),
        replace(READY, obstacles=(MASKED,)),
        Action.PROMOTE,
        Reason.OPERATOR,
        Request(promote=True, despite=frozenset({"unit"})),
    ),
    Case(
        "another one takes a surrendered role when the one it is given to doesn't",
        cluster("e5 a/a1 #9 clean ->c surrendered", silent=13, standbys=record("c", 10)),
        READY,
        Action.PROMOTE,
        Reason.SURRENDERED,
    ),
    Case(
        "an epoch that began by a surrender is not followed by a takeover within failover_cooldown",
        cluster(
            "e5 a/a1 #7 serving",
            silent=61,
            history={5: history_entry(5, 60, "surrendered: n9 could not serve", age_s=100)},
            **DEAD,
        ),
        READY,
        Action.BLOCKED,
        Reason.COOLDOWN,
    ),
    Case(
        "a handover without the final snapshot is refused",
        cluster(CLEAN_B, standbys=record("b", 10)),
        READY,
        Action.BLOCKED,
        Reason.TOO_OLD,
    ),
    Case(
        "others wait for the one that the role is handed to",
        cluster(CLEAN_B, silent=11),
        local("c", [snap(60)]),
        Action.WAIT,
        Reason.WAITING_FOR_BETTER_CANDIDATE,
        config=config("c"),
    ),
    Case(
        "without the final snapshot others wait longer",
        cluster(CLEAN_B, silent=90, standbys=record("b", 10)),
        local("c", [snap(60)]),
        Action.WAIT,
        Reason.WAITING_FOR_BETTER_CANDIDATE,
        config=config("c"),
    ),
    Case(
        "without the final snapshot others take over in the end, with a loss",
        cluster(CLEAN_B, silent=97, standbys=record("b", 10)),
        local("c", [snap(60)]),
        Action.PROMOTE,
        Reason.TAKEOVER,
        config=config("c"),
    ),
    Case(
        "the one that gave the role up takes it back when its heir stays away",
        cluster(CLEAN_B, silent=25, standbys=record("b", 60)),
        local("a", [snap(60)]),
        Action.PROMOTE,
        Reason.CLEAN_HANDOVER,
        config=config("a"),
    ),
    Case(
        "the one that was demoted by an operator stays a standby",
        cluster(CLEAN, silent=90),
        local("a", [snap(60)]),
        Action.BLOCKED,
        Reason.DEMOTED,
        config=config("a"),
    ),
    Case(
        "nobody takes over by itself what was given up to nobody",
        cluster(CLEAN, silent=900),
        READY,
        Action.BLOCKED,
        Reason.DEMOTED,
    ),
    Case(
        "an operator's promote without the final snapshot is refused",
        cluster(CLEAN + " final:30", silent=1),
        local("b", [snap(60)]),
        Action.BLOCKED,
        Reason.TOO_OLD,
        request=Request(promote=True),
    ),
    Case(
        "an operator's promote with the final snapshot loses nothing",
        cluster(CLEAN + " final:60", silent=1),
        local("b", [snap(60)]),
        Action.PROMOTE,
        Reason.CLEAN_HANDOVER,
        request=Request(promote=True),
    ),
    Case(
        "an operator may accept the loss of what only the final snapshot has",
        cluster(CLEAN + " final:30", silent=1),
        local("b", [snap(60)]),
        Action.PROMOTE,
        Reason.OPERATOR,
        request=Request(promote=True, accept_data_loss=True),
    ),
    Case(
        "a machine with the holder's name and without its data does not go on by itself",
        cluster("e5 b/b0 #7 starting", silent=90),
        READY,
        Action.BLOCKED,
        Reason.NOT_A_CANDIDATE,
    ),
    Case(
        "an operator promotes where there is a snapshot",
        cluster(ALIVE, silent=13),
        READY,
        Action.PROMOTE,
        Reason.OPERATOR,
        PROMOTE,
    ),
    Case(
        "an old snapshot is not promoted",
        cluster(ALIVE, silent=13, **DEAD),
        local("b", [snap(601)]),
        Action.BLOCKED,
        Reason.TOO_OLD,
    ),
    Case(
        "an old snapshot is promoted at an explicit word",
        cluster(ALIVE, silent=13, **DEAD),
        local("b", [snap(601)]),
        Action.PROMOTE,
        Reason.OPERATOR,
        Request(promote=True, accept_data_loss=True),
    ),
    Case(
        "without a snapshot nothing is promoted",
        cluster(ALIVE, silent=13, **DEAD),
        local("b"),
        Action.BLOCKED,
        Reason.NO_PUBLISHED_SNAPSHOT,
        Request(promote=True, accept_data_loss=True),
    ),
    Case(
        "a snapshot of a diverged epoch does not count",
        cluster("e6 a/a1 #7 serving", silent=13, history={6: history_entry(6, 100)}, **DEAD),
        local("b", [snap(60, epoch=5)]),
        Action.BLOCKED,
        Reason.NO_PUBLISHED_SNAPSHOT,
    ),
    Case(
        "a snapshot from the future is of unknown age, which is too old",
        cluster(ALIVE, silent=13, **DEAD),
        local("b", [snap(-3600)]),
        Action.BLOCKED,
        Reason.TOO_OLD,
    ),
    Case(
        "a node that the primary doesn't list is no candidate",
        cluster("e5 c/c1 #7 serving", silent=13, **DEAD),
        local("stranger", [snap(60)]),
        Action.BLOCKED,
        Reason.NOT_A_CANDIDATE,
    ),
    Case(
        "a namesake of the holder is no candidate",
        cluster(ALIVE, silent=13, **DEAD),
        local("a", [snap(60)], instance="a2"),
        Action.BLOCKED,
        Reason.NOT_A_CANDIDATE,
        config=config("a"),
    ),
    Case(
        "a pause keeps everybody",
        cluster(ALIVE, silent=13, pause=Pause("op", "work", UTC), **DEAD),
        READY,
        Action.BLOCKED,
        Reason.PAUSED,
    ),
    Case(
        "a node on hold isn't promoted",
        replace(cluster(ALIVE, silent=13, **DEAD), holds={"b": Hold("b", "op", "work", UTC)}),
        READY,
        Action.BLOCKED,
        Reason.ON_HOLD,
    ),
    Case(
        "manual mode promotes nobody",
        cluster(ALIVE, silent=13, **DEAD),
        READY,
        Action.BLOCKED,
        Reason.MANUAL_MODE,
        config=config(mode="manual"),
    ),
    Case(
        "two takeovers in a row need a word",
        cluster(
            "e6 a/a1 #7 serving",
            silent=13,
            history={6: history_entry(6, 60, "takeover", age_s=599)},
            **DEAD,
        ),
        READY,
        Action.BLOCKED,
        Reason.COOLDOWN,
    ),
    Case(
        "a holder without its lease process gets one",
        cluster(ALIVE),
        local("a", own=own(), lease=lease()),
        Action.HOLD_LEASE,
        Reason.LEASE_LAPSED,
        config=config("a"),
    ),
    Case(
        "a promotion that was cut is gone on with",
        cluster(ALIVE),
        local("a", own=own(5, Stage.CREATING), lease=lease(serving=False), lease_alive=True),
        Action.FINISH_PROMOTION,
        Reason.RESUME_PROMOTION,
        config=config("a"),
    ),
    Case(
        "a demotion that was cut before its end is rolled back",
        cluster("e5 a/a1 #7 draining"),
        local("a", own=own(5, Stage.DRAINING), lease=lease(), lease_alive=True, nfs_running=True),
        Action.FINISH_PROMOTION,
        Reason.RESUME_PROMOTION,
        config=config("a"),
    ),
    Case(
        "after clean the rest is put away",
        cluster(CLEAN_B),
        local("a", own=own(5, Stage.RELEASED)),
        Action.FINISH_DEMOTION,
        Reason.RESUME_DEMOTION,
        config=config("a"),
    ),
    Case(
        "a primary that was replaced stops serving",
        cluster("e6 b/b1 #1 starting"),
        local("a", own=own(5), nfs_running=True),
        Action.STEP_DOWN,
        Reason.LEASE_LOST,
        config=config("a"),
    ),
    Case(
        "an old primary that returns becomes a standby",
        cluster("e6 b/b1 #9 serving"),
        local("a", own=own(5), instance="a2", has_live=True),
        Action.STEP_DOWN,
        Reason.RETURNED,
        config=config("a"),
    ),
    Case(
        "a rebooted primary whom nobody followed goes on with its tree",
        cluster(ALIVE, silent=13),
        local("a", own=own(5), instance="a2", has_live=True),
        Action.PROMOTE,
        Reason.TAKEOVER,
        config=config("a"),
    ),
    Case(
        "a rebooted primary waits for its own last lease, too",
        cluster(ALIVE, silent=11),
        local("a", own=own(5), instance="a2", has_live=True),
        Action.WAIT,
        Reason.WAITING_FOR_LEASE_END,
        config=config("a"),
    ),
    Case(
        "a deleted leader key blocks",
        cluster(None, epoch=5, silent=90),
        READY,
        Action.BLOCKED,
        Reason.LEADER_MISSING,
    ),
    Case(
        "a deleted leader key is got over by a word and the wait",
        cluster(None, epoch=5, silent=13),
        READY,
        Action.PROMOTE,
        Reason.OPERATOR,
        PROMOTE,
    ),
    Case(
        "a deleted leader key does not shorten the wait",
        cluster(None, epoch=5, silent=11),
        READY,
        Action.WAIT,
        Reason.WAITING_FOR_LEASE_END,
        PROMOTE,
    ),
    Case(
        "a deleted epoch blocks",
        cluster(None, silent=90),
        READY,
        Action.BLOCKED,
        Reason.EPOCH_MISSING,
        PROMOTE,
    ),
    Case(
        "an epoch that is gone while its history is there blocks a node that has seen nothing",
        cluster(None, silent=90, highest_epoch=5),
        local(highest=0, has_live=True),
        Action.BLOCKED,
        Reason.EPOCH_MISSING,
        PROMOTE,
    ),
    Case(
        "an epoch that is gone blocks though the last epoch ended in order",
        cluster("e5 a/a1 #7 clean ->b", silent=90, epoch=None, highest_epoch=5),
        local(highest=0, has_live=True),
        Action.BLOCKED,
        Reason.EPOCH_MISSING,
        PROMOTE,
    ),
    Case(
        "an epoch below what its history tells of blocks",
        cluster("e4 a/a1 #7 serving", silent=90, highest_epoch=5),
        local("b", [snap(60)], highest=4),
        Action.BLOCKED,
        Reason.EPOCH_WENT_BACK,
        PROMOTE,
    ),
    Case(
        "an epoch that went back blocks",
        cluster("e4 a/a1 #7 serving", silent=90),
        READY,
        Action.BLOCKED,
        Reason.EPOCH_WENT_BACK,
        PROMOTE,
    ),
    Case(
        "an epoch that went back blocks its holder, too",
        cluster("e4 a/a1 #7 serving"),
        PRIMARY,
        Action.BLOCKED,
        Reason.EPOCH_WENT_BACK,
        config=config("a"),
    ),
    Case(
        "before the first primary nothing happens",
        cluster(None, silent=90),
        local(highest=0),
        Action.BLOCKED,
        Reason.NOT_INITIALISED,
    ),
    Case(
        "the first primary needs a subvolume",
        cluster(None, silent=90),
        local(highest=0),
        Action.BLOCKED,
        Reason.VOLUME_MISSING,
        PROMOTE,
    ),
    Case(
        "the first primary's empty tree doesn't stand in for a copy that lies here",
        cluster(None, silent=13),
        local(highest=0, has_live=True, live_is_empty=True, copies=(COPY,)),
        Action.BLOCKED,
        Reason.VOLUME_EMPTY,
        PROMOTE,
    ),
    Case(
        "nor does a tree that is yet to be made",
        cluster(None, silent=13),
        local(highest=0, copies=(COPY,)),
        Action.BLOCKED,
        Reason.VOLUME_MISSING,
        PROMOTE,
    ),
    Case(
        "nor does it for one that a standby is said to have",
        cluster(None, silent=13, standbys=record("c", 60, epoch=0)),
        local(highest=0, has_live=True, live_is_empty=True),
        Action.BLOCKED,
        Reason.VOLUME_EMPTY,
        PROMOTE,
    ),
    Case(
        "a tree with data is begun with, whatever lies beside it",
        cluster(None, silent=13),
        local(highest=0, has_live=True, copies=(COPY,)),
        Action.PROMOTE,
        Reason.FIRST_PRIMARY,
        PROMOTE,
    ),
    Case(
        "a new volume begins empty",
        cluster(None, silent=13),
        local(highest=0, has_live=True, live_is_empty=True),
        Action.PROMOTE,
        Reason.FIRST_PRIMARY,
        PROMOTE,
    ),
    Case(
        "what would end the first promotion with the lease in its hands keeps it from its begin",
        cluster(None, silent=13),
        local(highest=0, has_live=True, obstacles=(MASKED,)),
        Action.BLOCKED,
        Reason.NOT_READY,
        PROMOTE,
    ),
    Case(
        "somebody who has seen it may have it tried",
        cluster(None, silent=13),
        local(highest=0, has_live=True, obstacles=(MASKED,)),
        Action.PROMOTE,
        Reason.FIRST_PRIMARY,
        Request(promote=True, despite=frozenset({"unit"})),
    ),
    Case(
        "a file system that takes no writes has no first primary",
        cluster(None, silent=13),
        local(highest=0, has_live=True, read_only=True),
        Action.BLOCKED,
        Reason.VOLUME_READ_ONLY,
        PROMOTE,
    ),
    Case(
        "a node that Consul calls otherwise is no first primary",
        cluster(None, silent=13, named="B"),
        local(highest=0, has_live=True),
        Action.BLOCKED,
        Reason.NODE_MISNAMED,
        PROMOTE,
    ),
    Case(
        "a node that Consul calls otherwise does not take over",
        cluster(ALIVE, silent=13, named="b.lan", **DEAD),
        READY,
        Action.BLOCKED,
        Reason.NODE_MISNAMED,
    ),
    Case(
        "nor is the role handed to it",
        cluster(CLEAN_B, named="b.lan"),
        READY,
        Action.BLOCKED,
        Reason.NODE_MISNAMED,
    ),
    Case(
        "nor does a word promote it",
        cluster(ALIVE, silent=13, named="B", **DEAD),
        READY,
        Action.BLOCKED,
        Reason.NODE_MISNAMED,
        PROMOTE,
    ),
    Case(
        "who is called otherwise since it serves goes on serving",
        cluster(ALIVE, named="A"),
        PRIMARY,
        Action.NOTHING,
        Reason.SERVING,
    ),
    Case(
        "the first primary waits, too",
        cluster(None, silent=3),
        local(highest=0, has_live=True),
        Action.WAIT,
        Reason.WAITING_FOR_LEASE_END,
        PROMOTE,
    ),
    Case(
        "the first primary starts with what is there",
        cluster(None, silent=13),
        local(highest=0, has_live=True),
        Action.PROMOTE,
        Reason.FIRST_PRIMARY,
        PROMOTE,
    ),
    Case(
        "who can't see waits",
        Blind(Reason.CONSUL_NO_QUORUM, "Consul has no leader"),
        READY,
        Action.WAIT,
        Reason.CONSUL_NO_QUORUM,
    ),
    Case(
        "what can't be understood blocks",
        Blind(Reason.FOREIGN_VALUE, "the key leader holds something else"),
        READY,
        Action.BLOCKED,
        Reason.FOREIGN_VALUE,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.says for case in CASES])
def test_what_is_seen_leads_to(case: Case) -> None:
    decision = decide(case.view, case.local, case.config, Moment(NOW_S, UTC), case.request)
    assert (decision.action, decision.reason) == (case.action, case.reason), decision.sentence
    assert decision.sentence.strip() == decision.sentence != ""


def given_in(module: str) -> set[Reason]:
    """Every Reason.X that the module's source names."""
    source = (Path(standfast.__file__).parent / f"{module}.py").read_text()
    return {
        Reason[node.attr]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Reason"
    }


def test_every_reason_that_can_be_given_is_in_the_table() -> None:
    possible = given_in("role/decide") | given_in("role/candidacy")
    assert possible - {case.reason for case in CASES} == set()


def the(case_says: str, now: Moment) -> tuple[object, ...]:
    case = next(case for case in CASES if case.says == case_says)
    decision = decide(case.view, case.local, case.config, now, case.request)
    return decision.base, decision.in_place, decision.epoch, decision.lost_s


NOW = Moment(NOW_S, UTC)


def test_a_takeover_counts_its_loss_from_the_end_of_the_lease() -> None:
    """Until then a primary that is cut off goes on serving."""
    base, in_place, epoch, lost_s = the("a dead primary is replaced when the wait is over", NOW)
    assert (base, in_place, epoch) == (snap(60), False, 5)
    assert lost_s == pytest.approx(60, abs=1.1)


def test_a_handover_loses_nothing() -> None:
    assert the("the one that the role is handed to takes it at once", NOW)[3] == 0.0


def test_a_surrender_counts_its_loss_from_the_last_heartbeat() -> None:
    """It may have served until then for all that anybody knows."""
    words = "the one that the role is surrendered to takes it at once, and claims no handover"
    assert the(words, NOW)[3] == pytest.approx(60, abs=1.1)


def test_a_rebooted_primary_promotes_its_own_tree() -> None:
    base, in_place, epoch, lost_s = the(
        "a rebooted primary whom nobody followed goes on with its tree", NOW
    )
    assert (base, in_place, epoch, lost_s) == (None, True, 5, 0.0)


def test_a_promotion_over_a_deleted_leader_key_follows_the_epoch_in_consul() -> None:
    assert the("a deleted leader key is got over by a word and the wait", NOW)[2] == 5


@pytest.mark.parametrize("restored", [False, True], ids=["deleted", "an older epoch's"])
def test_the_last_holder_goes_on_in_place_when_consul_knows_nothing_of_its_epoch(
    restored: bool,
) -> None:
    """The epoch alone, which was accepted after a restore, tells that nobody followed it."""
    node = local("a", [snap(60)], own=own(5), instance="a2", has_live=True)
    old = "e4 c/c1 #7 serving" if restored else None
    decision = decide(cluster(old, epoch=5, silent=13), node, config("a"), NOW, PROMOTE)
    assert (decision.action, decision.in_place) == (Action.PROMOTE, True)


@pytest.mark.parametrize(
    ("given_up", "action"),
    [
        ({"final": "final", "final_id": "c0ffee"}, Action.FINISH_DEMOTION),
        ({"final": "final"}, Action.FINISH_DEMOTION),  # by an older version
        ({"final": "final", "final_id": "another"}, Action.STEP_DOWN),
        ({"surrendered": True}, Action.STEP_DOWN),
        ({"final": "final", "surrendered": True}, Action.STEP_DOWN),
        ({}, Action.STEP_DOWN),
    ],
)
def test_a_tree_is_as_its_final_snapshot_only_where_that_was_handed_over(
    given_up: dict[str, Any], action: Action
) -> None:
    """The lease process may have surrendered while the agent was between the snapshot and its
    release: what is in the tree is nowhere else then."""
    view = cluster(CLEAN_B)
    assert view.leader is not None
    view = replace(view, leader=structs.replace(view.leader, **given_up))
    ended = structs.replace(own(5, Stage.RELEASED), final="final", final_id="c0ffee")
    decision = decide(view, local("a", own=ended), config("a"), NOW)
    assert (decision.action, decision.reason) == (action, Reason.RESUME_DEMOTION)


@pytest.mark.parametrize(
    ("has_live", "command"),
    [
        (True, f"mv {{live}} {{live}}.empty && btrfs subvolume snapshot {COPY} {{live}}"),
        (False, f"`btrfs subvolume snapshot {COPY} {{live}}"),
    ],
)
def test_a_first_epoch_is_told_how_to_begin_with_the_newest_copy(
    has_live: bool, command: str
) -> None:
    older = COPY.with_name("services@20261122T101400Z")
    node = local(highest=0, has_live=has_live, live_is_empty=has_live, copies=(older, COPY))
    sentence = decide(cluster(None, silent=13), node, config(), NOW, PROMOTE).sentence
    assert command.format(live=config().paths.live) in sentence
    assert "and 1 more beside it" in sentence and "subvolume create" not in sentence


def test_a_sentence_names_values_and_the_way_on() -> None:
    decision = decide(
        cluster(ALIVE, silent=13, **DEAD), local("b", [snap(601)]), config(), NOW, NO_REQUEST
    )
    assert decision.sentence == (
        "the newest snapshot on b (services@20261122T100459Z) is 601 s old and max_data_loss is "
        "600 s: `standfast promote --accept-data-loss` takes it all the same"
    )
