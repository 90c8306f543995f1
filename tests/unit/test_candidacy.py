"""Who goes first, and how long the others give them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from standfast.config.model import Node as NodeConfig
from standfast.consul.records import Hold
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.role.candidacy import consider
from standfast.role.decision import NO_REQUEST, Action, Moment, Request
from standfast.role.observation import Available, Beginning, Cluster
from standfast.role.patience import is_behind, still_waiting
from tests.support.observations import (
    NOW_S,
    UTC,
    cluster,
    config,
    history_entry,
    local,
    record,
    snap,
)

ALIVE = "e5 a/a1 #7 serving"
NOW = Moment(NOW_S, UTC)
HEAD_START_S = 4.0


def goes_at(standbys: dict[str, float], mine_ago_s: float, *, priority: int = 100) -> float:
    """Seconds of silence after which b takes over, with these ages known of the others."""
    settings = config()
    nodes = {**settings.nodes, "b": structs.replace(settings.nodes["b"], priority=priority)}
    settings = structs.replace(settings, nodes=nodes)
    known = {name: record(name, ago)[name] for name, ago in standbys.items()}
    for tenths in range(100, 300):
        view = cluster(
            ALIVE,
            silent=tenths / 10,
            standbys=known,
            holder_health="critical",
            alive=frozenset("abc"),
        )
        decision = consider(view, local("b", [snap(mine_ago_s)]), settings, NOW, NO_REQUEST)
        if decision.action is Action.PROMOTE:
            return tenths / 10
    raise AssertionError("never")


@pytest.mark.parametrize(
    ("standbys", "mine_ago_s", "priority", "at_s"),
    [
        ({}, 60, 100, 12.0),
        ({"c": 90}, 60, 100, 12.0),
        ({"c": 30}, 60, 100, 12.0 + HEAD_START_S),
        ({"c": 60}, 60, 100, 12.0 + HEAD_START_S),
        ({"c": 60}, 60, 101, 12.0),
        ({"b": 30}, 60, 100, 12.0),
        ({"stranger": 30}, 60, 100, 12.0),
    ],
    ids=[
        "alone",
        "mine is newer",
        "theirs is newer",
        "equal: by name",
        "equal: by priority",
        "my own record",
        "not a node of ours",
    ],
)
def test_a_better_candidate_gets_a_head_start(
    standbys: dict[str, float], mine_ago_s: float, priority: int, at_s: float
) -> None:
    assert goes_at(standbys, mine_ago_s, priority=priority) == pytest.approx(at_s, abs=0.11)


@pytest.mark.parametrize(
    ("heartbeat", "asked"),
    [
        (ALIVE, NO_REQUEST),
        (ALIVE, Request(promote=True, accept_data_loss=True)),
        ("e5 a/a1 #7 clean ->b", NO_REQUEST),
        ("e5 a/a1 #7 clean ->b surrendered", NO_REQUEST),
        ("e5 a/a1 #7 clean ->c", NO_REQUEST),
    ],
)
def test_nobody_takes_over_on_a_disk_that_takes_no_writes(heartbeat: str, asked: Request) -> None:
    view = cluster(heartbeat, silent=500, holder_health="critical")
    good = local("b", [snap(60)])
    assert consider(view, good, config(), NOW, asked).action is Action.PROMOTE
    decision = consider(view, replace(good, read_only=True), config(), NOW, asked)
    assert (decision.action, decision.reason) == (Action.BLOCKED, Reason.VOLUME_READ_ONLY)


def test_the_wait_is_over_to_the_tenth() -> None:
    assert still_waiting(cluster(ALIVE, silent=11.99), config(), NOW) is not None
    assert still_waiting(cluster(ALIVE, silent=12.01), config(), NOW) is None


def test_a_clean_of_an_earlier_epoch_does_not_end_the_wait() -> None:
    """`accept-epoch` has raised the epoch since: whoever was primary in between may still serve."""
    view = cluster("e5 a/a1 #7 clean ->b", silent=5, epoch=6)
    assert still_waiting(view, config(), NOW) is not None
    assert still_waiting(cluster("e5 a/a1 #7 clean ->b", silent=5), config(), NOW) is None


@pytest.mark.parametrize(
    "asked", [NO_REQUEST, Request(promote=True)], ids=["handed over", "by a word"]
)
def test_a_clean_that_this_node_did_not_see_arrive_does_not_end_the_wait(asked: Request) -> None:
    """Consul may have been restored to it, and have forgotten a successor that still serves."""
    here = local("b", [snap(60)])
    for silent, action in ((11.9, Action.WAIT), (12.1, Action.PROMOTE)):
        view = cluster("e5 a/a1 #7 clean ->b final:60", silent=silent, witnessed=False)
        decision = consider(view, here, config(), NOW, asked)
        assert decision.action is action
    view = cluster("e5 a/a1 #7 clean ->b final:60", silent=0.1)
    assert consider(view, here, config(), NOW, asked).action is Action.PROMOTE


@pytest.mark.parametrize(
    ("text", "asked", "unless_paused"),
    [
        (ALIVE, NO_REQUEST, True),
        (ALIVE, Request(promote=True), False),
        ("e5 a/a1 #7 clean ->b final:60", NO_REQUEST, False),
        ("e5 a/a1 #7 clean ->c final:60", NO_REQUEST, True),
    ],
    ids=["by itself", "by a word", "handed over", "handed to another, who stays away"],
)
def test_a_pause_ends_what_nobody_asked_for(text: str, asked: Request, unless_paused: bool) -> None:
    view = cluster(text, silent=200, holder_health="critical")
    decision = consider(view, local("b", [snap(60)]), config(), NOW, asked)
    assert decision.action is Action.PROMOTE
    assert decision.unless_paused is unless_paused


HOLDS = {name: Hold(name, "ann", "a new disk", 1e9) for name in "abc"}


def test_a_node_on_hold_does_not_take_over_by_itself() -> None:
    view = replace(cluster(ALIVE, silent=500, holder_health="critical"), holds={"b": HOLDS["b"]})
    decision = consider(view, local("b", [snap(60)]), config(), NOW, NO_REQUEST)
    assert (decision.action, decision.reason) == (Action.BLOCKED, Reason.ON_HOLD)
    assert "ann" in decision.sentence and "a new disk" in decision.sentence
    assert "`standfast standby release b`" in decision.sentence
    other = consider(view, local("c", [snap(60)]), config(), NOW, NO_REQUEST)
    assert other.action is Action.PROMOTE


@pytest.mark.parametrize(
    ("heartbeat", "asked"),
    [(ALIVE, Request(promote=True)), ("e5 a/a1 #7 clean ->b final:60", NO_REQUEST)],
    ids=["by a word", "handed over"],
)
def test_what_somebody_decided_goes_on_in_spite_of_a_hold(heartbeat: str, asked: Request) -> None:
    """Of what is handed over already there is nobody else to serve it."""
    view = replace(cluster(heartbeat, silent=500, holder_health="critical"), holds=HOLDS)
    decision = consider(view, local("b", [snap(60)]), config(), NOW, asked)
    assert (decision.action, decision.unless_paused) == (Action.PROMOTE, False)


def test_a_holder_that_comes_back_to_its_own_tree_goes_on_in_spite_of_a_hold() -> None:
    """It was promoted while on hold; nobody else has what it wrote last."""
    own = OwnEpoch(5, Stage.READY, "fsid", None, in_place=False)
    back = replace(local("a", [snap(60)]), own=own, has_live=True)
    view = cluster("e5 a/a1 #7 serving", silent=500, holder_health="critical")
    before = consider(view, back, config(), NOW, NO_REQUEST)
    held = consider(replace(view, holds=HOLDS), back, config(), NOW, NO_REQUEST)
    assert before.in_place and held == before


def test_nobody_waits_for_a_better_candidate_on_hold() -> None:
    def at(holds: dict[str, Hold], heartbeat: str) -> Action:
        view = replace(
            cluster(
                heartbeat,
                silent=12.5,
                standbys=record("c", 30),
                holder_health="critical",
                alive=frozenset("abc"),
            ),
            holds=holds,
        )
        return consider(view, local("b", [snap(60)]), config(), NOW, NO_REQUEST).action

    assert at({}, ALIVE) is Action.WAIT
    assert at({"c": HOLDS["c"]}, ALIVE) is Action.PROMOTE
    assert at({"a": HOLDS["a"]}, ALIVE) is Action.WAIT


def test_behind_is_who_lacks_a_snapshot_that_another_is_known_to_have() -> None:
    clean = "e5 a/a1 #7 clean ->b"
    assert is_behind(snap(60), cluster(clean, standbys=record("b", 10)))
    assert not is_behind(snap(10), cluster(clean, standbys=record("b", 10)))
    assert not is_behind(snap(60), cluster(clean, standbys=record("b", 10, epoch=4)))
    assert not is_behind(None, cluster(clean, standbys=record("b", 10)))
    garbled = {"b": structs.replace(record("b", 10)["b"], snapshot="zzz")}
    assert not is_behind(snap(60), cluster(clean, standbys=garbled))


def handed(final_id: str | None = None) -> Cluster:
    """a gave epoch 5 up to b; its final snapshot is 10 s old."""
    view = cluster("e5 a/a1 #7 clean ->b final:10")
    assert view.leader is not None
    return replace(view, leader=structs.replace(view.leader, final_id=final_id))


LOSSY = Request(promote=True, accept_data_loss=True)


def test_a_handover_is_clean_only_from_the_final_snapshot_by_its_content() -> None:
    here, elsewhere = handed("id-10"), handed("of another tree with the same name")
    decision = consider(here, local("b", [snap(10), snap(60)]), config(), NOW, NO_REQUEST)
    assert (decision.action, decision.base) == (Action.PROMOTE, snap(10))
    assert (decision.reason, decision.lost_s) == (Reason.CLEAN_HANDOVER, 0.0)
    decision = consider(elsewhere, local("b", [snap(10)]), config(), NOW, NO_REQUEST)
    assert (decision.action, decision.reason) == (Action.BLOCKED, Reason.TOO_OLD)
    decision = consider(elsewhere, local("b", [snap(10)]), config(), NOW, LOSSY)
    assert (decision.action, decision.reason, decision.lost_s) == (
        Action.PROMOTE,
        Reason.OPERATOR,
        10.0,
    )


def test_an_older_versions_final_snapshot_is_known_by_its_name() -> None:
    decision = consider(handed(), local("b", [snap(10)]), config(), NOW, NO_REQUEST)
    assert decision.reason is Reason.CLEAN_HANDOVER


def test_a_snapshot_from_the_future_is_not_taken_for_the_final_one() -> None:
    """Clocks were an hour ahead: what was taken then has the later name and the older content."""
    early = snap(-3600)
    for view in (handed("id-10"), handed()):
        assert is_behind(early, view)
        decision = consider(view, local("b", [early]), config(), NOW, NO_REQUEST)
        assert (decision.action, decision.reason) == (Action.BLOCKED, Reason.TOO_OLD)
        decision = consider(view, local("b", [early, snap(10)]), config(), NOW, NO_REQUEST)
        assert (decision.action, decision.base) == (Action.PROMOTE, snap(10))


def unseen_for_13_s() -> Cluster:
    return cluster(ALIVE, silent=13, holder_health="critical")


@pytest.mark.parametrize(
    ("base", "age_s"),
    [
        (snap(60), 60),
        (replace(snap(-3000), taken_at=UTC - 500), 500),
        (replace(snap(60), taken_at=UTC - 500), 500),
        (replace(snap(3600), taken_at=UTC - 60), 60),
    ],
    ids=["by its name", "a name from the future", "noted as older", "a name that is behind"],
)
def test_what_a_failover_loses_is_told_by_when_the_base_was_really_taken(
    base: Available, age_s: float
) -> None:
    """A primary that was cut off may have served until its lease was over."""
    decision = consider(unseen_for_13_s(), local("b", [base]), config(), NOW, NO_REQUEST)
    assert (decision.action, decision.base) == (Action.PROMOTE, base)
    assert decision.lost_s == pytest.approx(age_s - (13 - config().lease.wait))


def test_what_was_surrendered_was_written_until_then_and_no_longer() -> None:
    """Its port was shut before: no lease is to be counted on top."""
    view = cluster("e5 a/a1 #7 clean ->b surrendered", silent=20)
    decision = consider(view, local("b", [snap(500)]), config(), NOW, NO_REQUEST)
    assert decision.reason is Reason.SURRENDERED and decision.lost_s == pytest.approx(480)


@pytest.mark.parametrize(
    ("word", "mine", "age_s", "follows", "lost_s"),
    [
        ("surrendered idle", [snap(60, 4), snap(40, 4)], 40, 4, 0),
        ("surrendered idle", [snap(60, 4)], 60, 4, 0),
        ("surrendered idle", [snap(60, 4), snap(50, 5)], 50, None, 0),
        ("surrendered", [snap(60, 4), snap(40, 4)], 60, None, 60),
        ("final:60 idle", [snap(60, 4), snap(40, 4)], 40, 4, 0),
        ("final:60", [snap(60, 4), snap(40, 4)], 60, None, 0),
        ("final:50 idle", [snap(60, 4)], 60, None, 60),
    ],
    ids=[
        "more",
        "the same",
        "its own",
        "it served",
        "handed over",
        "handed over, it served",
        "it went on in a tree that had more",
    ],
)
def test_who_follows_an_epoch_that_never_served_goes_on_from_the_one_before(
    word: str, mine: list[Available], age_s: float, follows: int | None, lost_s: float
) -> None:
    view = cluster(f"e5 a/a1 #7 clean ->b {word}", history={5: history_entry(5, 60)})
    asked = (
        Request(promote=True, accept_data_loss=True) if lost_s and "final" in word else NO_REQUEST
    )
    decision = consider(view, local("b", mine), config(), NOW, asked)
    assert decision.action is Action.PROMOTE and decision.base is not None
    assert decision.base.age_s(NOW.utc) == pytest.approx(age_s)
    assert decision.follows == follows
    assert decision.lost_s == pytest.approx(lost_s)


def test_a_primary_with_a_longer_wait_may_have_written_for_longer() -> None:
    """The configuration is changed node by node."""
    view = cluster(ALIVE, silent=25, holder_health="critical")
    assert view.leader is not None
    view = replace(view, leader=structs.replace(view.leader, wait=20.0))
    decision = consider(view, local("b", [snap(60)]), config(), NOW, NO_REQUEST)
    assert decision.reason is Reason.TAKEOVER and decision.lost_s == pytest.approx(60 - (25 - 20))


def test_data_is_too_old_by_when_it_was_really_taken() -> None:
    hour_old = replace(snap(10), taken_at=UTC - 3600)
    decision = consider(unseen_for_13_s(), local("b", [hour_old]), config(), NOW, NO_REQUEST)
    assert (decision.action, decision.reason) == (Action.BLOCKED, Reason.TOO_OLD)
    assert "3600 s old" in decision.sentence


def test_a_loss_that_nobody_knows_is_told_as_unknown_and_never_as_nothing() -> None:
    decision = consider(unseen_for_13_s(), local("b", [snap(-3600)]), config(), NOW, NO_REQUEST)
    assert (decision.action, decision.reason) == (Action.BLOCKED, Reason.TOO_OLD)
    assert "of unknown age (this node started with its clock behind" in decision.sentence
    decision = consider(unseen_for_13_s(), local("b", [snap(-3600)]), config(), NOW, LOSSY)
    assert (decision.action, decision.lost_s) == (Action.PROMOTE, None)


def test_a_first_takeover_within_failover_cooldown_of_an_operators_promotion_is_allowed() -> None:
    view = cluster(
        "e6 a/a1 #7 serving",
        silent=13,
        history={6: history_entry(6, 60, "operator", age_s=10)},
        holder_health="critical",
    )
    decision = consider(view, local("b", [snap(60)], highest=6), config(), NOW, NO_REQUEST)
    assert decision.reason is Reason.TAKEOVER


@pytest.mark.parametrize(
    ("began_ago_s", "seen_ago_s", "witnessed", "barred"),
    [
        (100, 100, True, True),
        (700, 700, True, False),
        # Of a node that saw it begin, no clock has a say.
        (-9e6, 100, True, True),
        (9e6, 100, True, True),
        (-9e6, 700, True, False),
        # One that came later knows at least for how long it has seen it.
        (700, 100, False, False),
        (100, 700, False, False),
        (-9e6, 100, False, True),
        (-9e6, 700, False, False),
    ],
)
def test_a_wrong_clock_neither_bars_a_second_takeover_for_ever_nor_lets_it_be(
    began_ago_s: float, seen_ago_s: float, witnessed: bool, barred: bool
) -> None:
    view = cluster(
        "e6 a/a1 #7 serving",
        silent=13,
        history={6: history_entry(6, 60, "takeover", age_s=began_ago_s)},
        holder_health="critical",
        beginning=Beginning(6, NOW_S - seen_ago_s, witnessed),
    )
    decision = consider(view, local("b", [snap(60)], highest=6), config(), NOW, NO_REQUEST)
    assert decision.reason is (Reason.COOLDOWN if barred else Reason.TAKEOVER)
    assert "-" not in decision.sentence.partition(" s ago")[0]


@pytest.mark.parametrize(
    ("word", "left"), [("", False), ("surrendered", True), ("surrendered idle", False)]
)
def test_after_a_demotion_it_is_said_what_no_other_node_has(word: str, left: bool) -> None:
    view = cluster(f"e5 a/a1 #7 clean {word}", silent=20)
    decision = consider(view, local("b", [snap(60)]), config(), NOW, NO_REQUEST)
    assert decision.reason is Reason.DEMOTED
    assert ("without a final snapshot (what a wrote since" in decision.sentence) is left


@pytest.mark.parametrize("reason", ["takeover", "surrendered"])
def test_an_epoch_that_nobody_here_saw_begin_is_told_by_how_it_began_and_at_its_least(
    reason: str,
) -> None:
    """The clock is behind, and this node came 3 s ago: it may have begun long before that."""
    view = cluster(
        "e6 a/a1 #7 serving",
        silent=13,
        history={6: history_entry(6, 60, reason, age_s=-50)},
        holder_health="critical",
        beginning=Beginning(6, NOW_S - 3),
    )
    sentence = consider(view, local("b", [snap(60)], highest=6), config(), NOW, NO_REQUEST).sentence
    assert f"began by itself ({reason}) at least 3 s ago, as far as b has seen" in sentence


def test_a_node_outside_the_configuration_is_not_asked_about() -> None:
    settings = structs.replace(config(), nodes={"b": NodeConfig(address="10.0.0.2")})
    view = cluster(ALIVE, silent=13, standbys=record("c", 10), holder_health="critical")
    decision = consider(view, local("b", [snap(60)]), settings, NOW, NO_REQUEST)
    assert decision.action is Action.PROMOTE
