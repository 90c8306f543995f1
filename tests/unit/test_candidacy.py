"""Who goes first, and how long the others give them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from standfast.candidacy import consider, is_behind, still_waiting
from standfast.config.model import Node as NodeConfig
from standfast.decision import NO_WISH, Action, Moment, Wish
from standfast.reasons import Reason
from tests.unit.deciding import NOW_S, UTC, cluster, config, local, record, reign, snap

ALIVE = "e5 a/a1 #7 serving"
NOW = Moment(NOW_S, UTC)
HEAD_START_S = 4.0


def goes_at(standbys: dict[str, float], mine_ago_s: float, *, priority: int = 100) -> float:
    """Seconds of silence after which b takes over, with these ages known of the others."""
    settings = config()
    nodes = {**settings.nodes, "b": replace(settings.nodes["b"], priority=priority)}
    settings = replace(settings, nodes=nodes)
    known = {name: record(name, ago)[name] for name, ago in standbys.items()}
    for tenths in range(100, 300):
        view = cluster(
            ALIVE,
            silent=tenths / 10,
            standbys=known,
            holder_health="critical",
            alive=frozenset("abc"),
        )
        decision = consider(view, local("b", [snap(mine_ago_s)]), settings, NOW, NO_WISH)
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


def test_the_wait_is_over_to_the_tenth() -> None:
    assert still_waiting(cluster(ALIVE, silent=11.99), config(), NOW) is not None
    assert still_waiting(cluster(ALIVE, silent=12.01), config(), NOW) is None


def test_a_clean_of_an_earlier_reign_does_not_end_the_wait() -> None:
    """`accept-epoch` has raised the epoch since: whoever reigned in between may still serve."""
    view = cluster("e5 a/a1 #7 clean ->b", silent=5, epoch=6)
    assert still_waiting(view, config(), NOW) is not None
    assert still_waiting(cluster("e5 a/a1 #7 clean ->b", silent=5), config(), NOW) is None


@pytest.mark.parametrize(
    ("text", "wish", "unless_paused"),
    [
        (ALIVE, NO_WISH, True),
        (ALIVE, Wish(promote=True), False),
        ("e5 a/a1 #7 clean ->b final:60", NO_WISH, False),
        ("e5 a/a1 #7 clean ->c final:60", NO_WISH, True),
    ],
    ids=["by itself", "by a word", "handed over", "handed to another, who stays away"],
)
def test_a_pause_ends_what_nobody_asked_for(text: str, wish: Wish, unless_paused: bool) -> None:
    view = cluster(text, silent=200, holder_health="critical")
    decision = consider(view, local("b", [snap(60)]), config(), NOW, wish)
    assert decision.action is Action.PROMOTE
    assert decision.unless_paused is unless_paused


def test_behind_is_who_lacks_a_snapshot_that_another_is_known_to_have() -> None:
    clean = "e5 a/a1 #7 clean ->b"
    assert is_behind(snap(60), cluster(clean, standbys=record("b", 10)))
    assert not is_behind(snap(10), cluster(clean, standbys=record("b", 10)))
    assert not is_behind(snap(60), cluster(clean, standbys=record("b", 10, epoch=4)))
    assert not is_behind(None, cluster(clean, standbys=record("b", 10)))
    garbled = {"b": replace(record("b", 10)["b"], snapshot="zzz")}
    assert not is_behind(snap(60), cluster(clean, standbys=garbled))


def test_a_first_takeover_within_min_reign_of_an_operators_promotion_is_allowed() -> None:
    view = cluster(
        "e6 a/a1 #7 serving",
        silent=13,
        history={6: reign(6, 60, "operator", age_s=10)},
        holder_health="critical",
    )
    decision = consider(view, local("b", [snap(60)], highest=6), config(), NOW, NO_WISH)
    assert decision.reason is Reason.TAKEOVER


def test_a_node_outside_the_configuration_is_not_asked_about() -> None:
    settings = replace(config(), nodes={"b": NodeConfig(address="10.0.0.2")})
    view = cluster(ALIVE, silent=13, standbys=record("c", 10), holder_health="critical")
    decision = consider(view, local("b", [snap(60)]), settings, NOW, NO_WISH)
    assert decision.action is Action.PROMOTE
