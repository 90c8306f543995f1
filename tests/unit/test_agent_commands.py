"""What an operator may ask of the agent: answers, refusals with reasons, plans told, not run."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.agent import commands
from standfast.agent.command import Command
from standfast.agent.commands import PASSING, answer
from standfast.agent.handover import best_standby
from standfast.config.model import LeaseTiming
from standfast.consul.records import CandidateRecord, Hold, Holder, LeaderState, StandbyRecord
from standfast.consul.values import Instance, Set
from standfast.errors import Refused, StepFailed, UsageError
from standfast.lease.files import LeaseStatus
from standfast.node.obstacle import Obstacle, Weight
from standfast.node.ports import Ailment
from standfast.reasons import Reason
from standfast.role.decision import Action, Decision, Request
from standfast.role.observation import Cluster
from standfast.role.plan import Do
from standfast.system.clock import monotonic
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.consul import MemoryConsul
from tests.fakes.machine import FakeSender
from tests.unit.agents import (
    BLIND,
    RESUMED,
    SERVING,
    STANDING_BY,
    FakeAgent,
    agent,
    promotion,
    refusal,
    say,
    served_by,
    view,
    with_config,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.mark.parametrize("name", ["explode", None, 7, ["promote"], {}])
def test_an_unknown_command_is_a_usage_error(tmp_path: Path, name: Any) -> None:
    [last] = say(agent(tmp_path, SERVING), name)
    assert (last["exit_code"], last["reason"]) == (2, None)
    assert "knows no command" in last["error"]


@pytest.mark.parametrize("command", ["demote", "switchover"])
def test_an_argument_of_a_wrong_type_is_a_usage_error(tmp_path: Path, command: str) -> None:
    made = agent(tmp_path, SERVING)
    [last] = say(made, command, operator=7, to="n2", reason=["x"])
    assert last["exit_code"] == 2
    assert "is a text" in last["error"]
    assert made.ran == []


@pytest.mark.parametrize("args", [None, [], "x", 7])
def test_arguments_that_are_no_object_count_as_none(args: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert Command(theirs, {"args": args}).text("to") is None


def test_an_operator_who_hung_up_stops_nothing(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING)
    ours, theirs = socket.socketpair()
    ours.close()
    answer(made, Command(theirs, {"command": "demote"}))
    assert len(made.ran) == 1


def test_what_may_not_begin_any_more_is_not_carried_out(tmp_path: Path) -> None:
    """Whoever asked through Consul was told that nothing is done."""
    made = agent(tmp_path, SERVING)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        answer(made, Command(theirs, {"command": "demote"}, may_begin=lambda: False))
    assert made.ran == []


@pytest.mark.parametrize("command", ["switchover", "demote", "failback"])
def test_a_switchover_from_a_disk_that_takes_no_writes_needs_a_word(
    tmp_path: Path, command: str
) -> None:
    made = with_config(agent(tmp_path, SERVING, standbys=("n2",)), preferred="n2")
    made.machine.store.read_only = True  # type: ignore[attr-defined]
    reason, text = refusal(say(made, command))
    assert reason == Reason.VOLUME_READ_ONLY
    assert f"standfast {command} --accept-data-loss" in text
    assert made.ran == []
    word = CandidateRecord("n2", 4, True, "surrendered", None, 0, 0.0)
    made.machine.consul.txn([Set(made.config.key("candidates/n2"), word.dump())])
    [*_, last] = say(made, command, accept_data_loss=True)
    assert last["done"] is True
    [(plan, effects)] = made.ran
    assert plan.name == "surrender"
    assert effects.to == (None if command == "demote" else "n2")
    assert not {Do.FINAL_SNAPSHOT, Do.READ_ONLY} & {step.do for step in plan.steps}


def test_a_disk_that_can_not_be_read_is_no_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = agent(tmp_path, SERVING, standbys=("n2",))
    sick = Ailment(Reason.VOLUME_UNREADABLE, "it can't be read: EIO")
    monkeypatch.setattr(made.machine.store, "ailment", lambda _deadline: sick)
    reason, text = refusal(say(made, "demote"))
    assert (reason, made.ran) == (Reason.VOLUME_UNREADABLE, [])
    assert text.startswith("it can't be read: EIO: the final snapshot can't be written.")


@pytest.mark.parametrize(("command", "where"), [("demote", "elsewhere"), ("switchover", "n2")])
def test_a_tree_that_is_gone_is_to_be_put_back_and_no_disk_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, where: str
) -> None:
    made = agent(tmp_path, SERVING, standbys=("n2",))
    sick = Ailment(Reason.VOLUME_MISSING, "there is no /p/services")
    monkeypatch.setattr(made.machine.store, "ailment", lambda _deadline: sick)
    reason, text = refusal(say(made, command, to=None if command == "demote" else "n2"))
    assert (reason, made.ran) == (Reason.VOLUME_MISSING, [])
    assert text.startswith("there is no /p/services: there is nothing to take the final snapshot")
    assert "Put it back (`standfast snapshots` shows what there is)" in text
    assert f"standfast {command} --accept-data-loss` gives the role up without it" in text
    assert f"would be missing {where} " in text
    assert "repair" not in text and "this node's disk" not in text


def test_a_disk_that_is_only_slow_is_not_said_to_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = agent(tmp_path, SERVING, standbys=("n2",))
    sick = Ailment(Reason.VOLUME_HANGS, "no answer in 3 s")
    monkeypatch.setattr(made.machine.store, "ailment", lambda _deadline: sick)
    reason, text = refusal(say(made, "demote"))
    assert (reason, made.ran) == (Reason.VOLUME_HANGS, [])
    assert text.startswith(
        "no answer in 3 s: the final snapshot may not come about: try again in a moment."
    )


@pytest.mark.parametrize("command", ["switchover", "failback"])
def test_a_node_of_an_older_version_gets_no_role_without_a_final_snapshot(
    tmp_path: Path, command: str
) -> None:
    """It would call the loss a clean handover."""
    made = with_config(agent(tmp_path, SERVING, standbys=("n2",)), preferred="n2")
    made.machine.store.read_only = True  # type: ignore[attr-defined]
    reason, text = refusal(say(made, command, accept_data_loss=True))
    assert (reason, made.ran) == (Reason.NO_STANDBY_READY, [])
    assert "Upgrade it" in text
    made.machine.store.read_only = False  # type: ignore[attr-defined]
    assert say(made, command)[-1]["done"] is True, "in order it gets it"


# promote


def test_promote_tells_its_steps_and_its_end(tmp_path: Path) -> None:
    made = agent(tmp_path, promotion())
    *progress, last = say(made, "promote", operator="ann", reason="disk swap")
    assert last["done"] is True and last["text"].startswith("n1 is primary (")
    assert progress == [{"progress": "promotion 1/1"}]
    [(plan, effects)] = made.ran
    assert plan.name == "promotion"
    assert (effects.operator, effects.note) == ("ann", "disk swap")


def test_promote_carries_the_request_of_the_operator_into_every_look(tmp_path: Path) -> None:
    waiting = Decision(Action.WAIT, Reason.WAITING_FOR_LEASE_END, "the lease is over in 0.1 s")
    made = agent(tmp_path, waiting, waiting, promotion())
    say(made, "promote", accept_data_loss=True)
    assert {request for request in made.requests if request.promote} == {
        Request(promote=True, accept_data_loss=True)
    }


@pytest.mark.parametrize("word", [None, False, 1, "yes"])
def test_data_loss_is_accepted_by_true_alone(tmp_path: Path, word: Any) -> None:
    made = agent(tmp_path, promotion())
    say(made, "promote", accept_data_loss=word)
    assert {request for request in made.requests if request.promote} == {Request(promote=True)}


def test_promote_says_what_it_waits_for_once(tmp_path: Path) -> None:
    waiting = Decision(Action.WAIT, Reason.WAITING_FOR_LEASE_END, "the lease is over in 0.1 s")
    made = agent(tmp_path, *[waiting] * 6, promotion())
    lines = say(made, "promote")
    assert lines[0] == {"progress": waiting.sentence}
    assert lines.count(lines[0]) == 1


def test_promote_gives_up_waiting_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "PROMOTE_SLACK_S", 0.0)
    waiting = Decision(Action.WAIT, Reason.CONSUL_TIMEOUT, "Consul hangs")
    made = with_config(agent(tmp_path, waiting), lease=structs.replace(LeaseTiming(), wait=0.01))
    [*_, last] = say(made, "promote")
    assert (last["exit_code"], last["error"]) == (3, "not promoted: Consul hangs")
    assert made.ran == []


def test_promote_shows_its_plan_in_a_dry_run(tmp_path: Path) -> None:
    made = agent(tmp_path, promotion())
    [last] = say(made, "promote", dry_run=True)
    assert last["text"].startswith("n1 takes over\npromotion, nothing is done now:\n1. ")
    assert [step["do"] for step in last["steps"]][:2] == ["ask-hooks", "claim-lease"]
    assert f"2. {last['steps'][1]['says']}\n" in last["text"]
    assert made.ran == []


def test_promote_in_a_dry_run_does_not_wait(tmp_path: Path) -> None:
    waiting = Decision(Action.WAIT, Reason.WAITING_FOR_LEASE_END, "the lease is over in 9 s")
    [last] = say(agent(tmp_path, waiting), "promote", dry_run=True)
    assert last["text"] == "the lease is over in 9 s; then it would be promoted"


REFUSED = {
    "serving": (SERVING, Reason.ALREADY_PRIMARY),
    "a living primary": (STANDING_BY, Reason.PRIMARY_ALIVE),
    "half promoted": (
        Decision(Action.FINISH_PROMOTION, Reason.RESUME_PROMOTION, "going on"),
        Reason.ALREADY_PRIMARY,
    ),
    "without its lease process": (
        Decision(Action.HOLD_LEASE, Reason.LEASE_LAPSED, "not running"),
        Reason.ALREADY_PRIMARY,
    ),
    "too old": (Decision(Action.BLOCKED, Reason.TOO_OLD, "too old"), Reason.TOO_OLD),
    "foreign": (Decision(Action.BLOCKED, Reason.FOREIGN_VALUE, "what?"), Reason.FOREIGN_VALUE),
    "a former primary": (Decision(Action.STEP_DOWN, Reason.RETURNED, "over"), Reason.RETURNED),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("dry_run", [False, True])
def test_promote_is_refused_when(tmp_path: Path, case: str, dry_run: bool) -> None:
    decision, reason = REFUSED[case]
    made = agent(tmp_path, decision)
    told, text = refusal(say(made, "promote", dry_run=dry_run))
    assert told == reason and decision.sentence in text
    assert made.ran == []


def test_promote_against_a_living_primary_names_the_way_without_loss(tmp_path: Path) -> None:
    _, text = refusal(say(agent(tmp_path, STANDING_BY), "promote"))
    assert "`standfast switchover --to n1`" in text


# demote, switchover, failback


@pytest.mark.parametrize("command", ["demote", "switchover", "failback"])
def test_only_the_primary_gives_the_role_up(tmp_path: Path, command: str) -> None:
    made = with_config(agent(tmp_path, STANDING_BY), preferred="n3")
    reason, text = refusal(say(made, command))
    assert reason == Reason.NOT_PRIMARY
    assert "n2 has the role: run this there" in text
    assert made.ran == []


def test_who_is_blind_does_not_say_whose_lease_it_is(tmp_path: Path) -> None:
    made = agent(tmp_path, Decision(Action.WAIT, Reason.CONSUL_TIMEOUT, "Consul hangs"))
    made.view = BLIND
    reason, text = refusal(say(made, "demote"))
    assert reason == Reason.NOT_PRIMARY
    assert text.endswith("(Consul hangs), and can't see who has the role")


@pytest.mark.parametrize(
    ("heartbeat", "what_now"),
    [
        ("starting", "`standfast demote` here gives it up, then `standfast promote`"),
        ("clean", "nobody has the role: `standfast promote` on the node"),
    ],
)
def test_who_can_not_move_the_role_in_order_is_told_how_else(
    tmp_path: Path, heartbeat: str, what_now: str
) -> None:
    """`run this there` would send an operator to the node that he is on."""
    made = agent(tmp_path, Decision(Action.WAIT, Reason.LEASE_LAPSED, "not yet"))
    assert isinstance(made.view, Cluster) and made.view.leader is not None
    leader = structs.replace(
        made.view.leader, holder=Holder("n1", "1"), state=LeaderState(heartbeat)
    )
    made.view = replace(made.view, leader=leader)
    reason, text = refusal(say(made, "switchover", to="n2"))
    assert reason == Reason.NOT_PRIMARY
    assert what_now in text and made.ran == []


@pytest.mark.parametrize(
    ("command", "args", "to"),
    [
        ("demote", {}, None),
        ("switchover", {"to": "n3"}, "n3"),
        ("switchover", {}, "n2"),
        ("switchover", {"to": ""}, "n2"),
        ("failback", {}, "n3"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_the_role_is_given_to(
    tmp_path: Path, command: str, args: dict[str, Any], to: str | None, dry_run: bool
) -> None:
    made = with_config(agent(tmp_path, SERVING), preferred="n3")
    made.view = view("n2", "n3", ages=(5.0, 60.0))
    lines = say(made, command, dry_run=dry_run, **args)
    if dry_run:
        assert "nothing is done now" in lines[-1]["text"]
        assert (to or "demotion") in lines[-1]["text"]
        assert made.ran == []
        return
    [(_plan, effects)] = made.ran
    assert effects.to == to
    expected = "n1 is a standby (" if to is None else f"{to} is primary ("
    assert lines[-1]["text"].startswith(expected)


@pytest.mark.parametrize("to", ["n1", "n9", "N2"])
def test_the_role_is_given_to_no_stranger(tmp_path: Path, to: str) -> None:
    made = agent(tmp_path, SERVING)
    reason, text = refusal(say(made, "switchover", to=to))
    assert reason == Reason.UNKNOWN_NODE and "n2, n3" in text
    assert ("did you mean n2?" in text) == (to == "N2")
    assert made.ran == []


@pytest.mark.parametrize("health", ["critical", "absent", "unknown"])
def test_the_role_is_given_to_no_dead_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, health: str
) -> None:
    made = agent(tmp_path, SERVING)
    monkeypatch.setattr(made.machine.consul, "node_health", lambda *_: health)
    for to in ("n2", None):
        reason, _ = refusal(say(made, "switchover", to=to))
        assert reason == Reason.NO_STANDBY_READY
    assert made.ran == []


def test_the_role_is_given_to_no_node_in_maintenance_and_chosen_elsewhere(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING)
    consul = made.machine.consul
    assert isinstance(consul, MemoryConsul)
    chosen = best_standby(made, made.look())
    consul.maintain(chosen)
    assert best_standby(made, made.look()) not in ("n1", chosen)
    for name in ("n2", "n3"):
        consul.maintain(name)
    assert best_standby(made, made.look()) in ("n2", "n3"), "it says itself what is in its way"


def test_without_any_snapshot_elsewhere_nobody_is_chosen(tmp_path: Path) -> None:
    reason, text = refusal(say(agent(tmp_path, SERVING, standbys=()), "switchover"))
    assert reason == Reason.NO_STANDBY_READY and "standfast replicate" in text


def test_failback_without_a_preferred_node(tmp_path: Path) -> None:
    reason, text = refusal(say(agent(tmp_path, SERVING), "failback"))
    assert reason == Reason.UNKNOWN_NODE and "preferred" in text


def test_failback_on_the_preferred_node_itself(tmp_path: Path) -> None:
    made = with_config(agent(tmp_path, SERVING), preferred="n1")
    assert refusal(say(made, "failback"))[0] == Reason.ALREADY_PRIMARY
    assert made.ran == []


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (StepFailed("stopped at the step final-copy"), 4, None),
        (Refused(Reason.LEASE_NOT_HELD, "gone"), 1, "lease-not-held"),
        (UsageError("no"), 2, None),
    ],
)
def test_how_a_plan_failed_is_told(
    tmp_path: Path, error: Exception, code: int, reason: str | None
) -> None:
    made = agent(tmp_path, SERVING)
    made.broken = error
    last = say(made, "demote")[-1]
    assert (last["exit_code"], last["reason"], last["error"]) == (code, reason, str(error))


def test_the_best_standby_has_the_newest_data_then_the_priority(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING)
    newer = view("n2", "n3", ages=(60.0, 5.0))
    seen = replace(made.look(), view=newer)
    assert best_standby(made, seen) == "n3"
    nodes = made.config.nodes
    with_config(made, nodes={**nodes, "n2": structs.replace(nodes["n2"], priority=200)})
    same = StandbyRecord("x", 4, "services@20261122T101500Z", "c0ffee", 0.0)
    seen = replace(seen, view=replace(newer, standbys={"n2": same, "n3": same}))
    assert best_standby(made, seen) == "n2"


def test_the_best_standby_is_none_that_is_on_hold(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING)
    hold = Hold("n3", "ann", "a new disk", 1e9)
    seen = replace(
        made.look(), view=replace(view("n2", "n3", ages=(60.0, 5.0)), holds={"n3": hold})
    )
    assert best_standby(made, seen) == "n2"


def test_a_switchover_goes_to_no_node_on_hold_unless_told(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING, standbys=("n2",))
    hold = Hold("n2", "ann", "a new disk", 1e9)
    assert isinstance(made.view, Cluster)
    made.view = replace(made.view, holds={"n2": hold})
    reason, text = refusal(say(made, "switchover", to="n2"))
    assert (reason, made.ran) == (Reason.ON_HOLD, [])
    assert "a new disk" in text and "`--despite hold`" in text
    assert refusal(say(made, "switchover"))[0] == Reason.NO_STANDBY_READY
    assert say(made, "switchover", to="n2", despite="hold")[-1]["done"] is True


def test_the_best_standby_is_of_the_latest_epoch_whatever_the_names_say(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING)
    good = view("n2", "n3")
    late = structs.replace(good.standbys["n2"], epoch=3, snapshot="services@20991122T101500Z")
    seen = replace(made.look(), view=replace(good, standbys={**good.standbys, "n2": late}))
    assert best_standby(made, seen) == "n3"


def test_a_record_written_by_hand_does_not_stop_the_choice(tmp_path: Path) -> None:
    """The name of its snapshot can't be read: it counts as having none."""
    made = agent(tmp_path, SERVING)
    good = view("n2", "n3")
    odd = structs.replace(good.standbys["n3"], snapshot="yesterday's")
    made.view = replace(good, standbys={**good.standbys, "n3": odd})
    say(made, "switchover")
    [(_, effects)] = made.ran
    assert effects.to == "n2"


# What the target finds in its way

MASKED = Obstacle("unit", "nfs-server.service is masked", "systemctl unmask nfs-server.service")
NAMELESS = Obstacle("clients", "no address is known of web1", "mend the DNS", Weight.REFUSES)
LEFTOVER = Obstacle("service", "a leftover", "consul services deregister", Weight.TOLD)


def with_obstacles(made: FakeAgent, *obstacles: Obstacle) -> FakeSender:
    sender = made.machine.sender
    assert isinstance(sender, FakeSender)
    sender.in_the_way = obstacles
    return sender


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("command", ["switchover", "failback"])
def test_a_target_that_is_not_ready_is_refused_before_anything_stops(
    tmp_path: Path, command: str, dry_run: bool
) -> None:
    made = with_config(agent(tmp_path, SERVING), preferred="n2")
    with_obstacles(made, MASKED, LEFTOVER)
    reason, error = refusal(say(made, command, to="n2", dry_run=dry_run))
    assert (reason, made.ran) == ("not-ready", [])
    assert "nothing was stopped" in error and "nfs-server.service is masked" in error
    assert "systemctl unmask" in error and "leftover" not in error


def test_what_only_refuses_is_gone_past_by_a_word_for_that_check_alone(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING)
    with_obstacles(made, NAMELESS)
    reason, error = refusal(say(made, "switchover", to="n2", despite="way-back"))
    assert (reason, made.ran) == ("not-ready", [])
    assert "--despite clients" in error
    lines = say(made, "switchover", to="n2", despite="clients")
    assert lines[-1]["done"] is True and len(made.ran) == 1
    assert "in spite of clients: no address is known of web1" in lines[0]["progress"]


def test_no_word_hands_the_role_to_who_can_not_take_it(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING)
    with_obstacles(made, MASKED)
    reason, _ = refusal(say(made, "switchover", to="n2", despite="unit"))
    assert (reason, made.ran) == ("not-ready", [])


def test_what_is_only_told_keeps_nothing_from_happening(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING)
    with_obstacles(made, LEFTOVER)
    lines = say(made, "switchover", to="n2")
    assert lines[-1]["done"] is True and "a leftover" in lines[0]["progress"]


def test_a_target_that_can_not_be_asked_gets_no_role_without_a_word(tmp_path: Path) -> None:
    """Of an older version, say."""
    made = agent(tmp_path, SERVING)
    with_obstacles(made).broken = True
    reason, error = refusal(say(made, "switchover", to="n2"))
    assert (reason, made.ran) == ("not-ready", [])
    assert "inspection: n2 could not be asked" in error and "Upgrade it first" in error
    assert say(made, "switchover", to="n2", despite="inspection")[-1]["done"] is True


def serves_another(made: FakeAgent, volume: str = "media") -> None:
    """Its server goes on for that one."""
    until = monotonic() + 60
    status = LeaseStatus(1, "boot-1", 1, LeaderState.SERVING, True, until, until, 1, monotonic())
    (made.config.paths.run / volume).mkdir(parents=True)
    status.save(made.config.paths.run / volume)


BY_HAND = Instance("by-hand", "n1", "10.0.0.2", 2049, {}, "passing", "passing")
"""An entry of a runbook's, of n1 by another of its addresses."""


@pytest.mark.parametrize(
    ("change", "shared", "answers", "is_refused"),
    [
        ({}, True, True, True),
        ({"node": "n9"}, True, True, False),
        ({"node": "n9", "address": "192.168.1.2"}, True, True, True),
        ({"node": "n9", "address": "::ffff:192.168.1.2"}, True, True, True),
        ({"meta": {"epoch": "4"}}, True, True, True),  # the guard asks at one of an older epoch
        ({}, False, True, False),
        ({}, True, False, False),
        ({"checks": "critical"}, True, True, False),
        ({"node": "n2"}, True, True, False),
        ({"service_id": "standfast-data-services", "meta": {"epoch": "4"}}, True, True, False),
    ],
)
@pytest.mark.parametrize("command", ["switchover", "failback"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_where_this_server_goes_on_an_entry_of_another_at_it_is_in_the_way_of_a_handover(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    change: dict[str, Any],
    *,
    shared: bool,
    answers: bool,
    is_refused: bool,
    dry_run: bool,
) -> None:
    """The target sees only that the primary's own server answers; its guard would refuse it."""
    made = with_config(agent(tmp_path, SERVING), preferred="n2")
    entry = structs.replace(BY_HAND, **change)
    monkeypatch.setattr(made.machine.consul, "instances", lambda _service: (entry,))
    made.answering = lambda doors, _deadline: doors if answers else ()
    if shared:
        serves_another(made)
    lines = say(made, command, to="n2", dry_run=dry_run, despite="service")
    if not is_refused:
        assert lines[-1]["done"] is True and len(made.ran) == (not dry_run)
        return
    reason, error = refusal(lines)
    assert (reason, made.ran) == ("not-ready", [])
    assert "nothing was stopped" in error and "goes on for media" in error
    assert f"on {entry.node}: consul services deregister -id=by-hand" in error


def test_a_check_that_nobody_knows_is_a_usage_error(tmp_path: Path) -> None:
    made = agent(tmp_path, SERVING)
    [last] = say(made, "switchover", to="n2", despite="unti")
    assert (last["exit_code"], made.ran) == (2, [])
    assert "no check is called 'unti'" in last["error"] and "way-back" in last["error"]


# Until it serves


def test_a_promotion_that_fails_for_a_passing_reason_goes_on_by_itself(
    tmp_path: Path, clock: StoppedClock
) -> None:
    """One read of Consul that took too long, say."""
    made = agent(tmp_path, promotion(), promotion(), RESUMED, SERVING)
    made.breaks = [StepFailed("the promotion stopped at the step claim-lease: no answer")]
    lines = say(made, "promote")
    assert lines[-1]["done"] is True and lines[-1]["text"].startswith("n1 is primary")
    assert [plan.name for plan, _ in made.ran] == ["promotion", "go-on"]
    assert any("claim-lease" in line.get("progress", "") for line in lines)


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_of_the_guard_that_may_pass_is_no_end_of_a_promotion(
    tmp_path: Path, clock: StoppedClock, reason: Reason
) -> None:
    made = agent(tmp_path, promotion(), promotion(), RESUMED, SERVING)
    made.breaks = [Refused(reason, f"refused [{reason}]")]
    last = say(made, "promote")[-1]
    assert (last.get("done") is True) == (reason in PASSING)
    assert len(made.ran) == (2 if reason in PASSING else 1)
    assert reason in PASSING or (last["reason"], last["exit_code"]) == (reason, 1)


def test_a_promotion_that_goes_on_failing_is_told_when_the_time_is_up(
    tmp_path: Path, clock: StoppedClock
) -> None:
    made = agent(tmp_path, promotion())
    made.broken = StepFailed("the promotion stopped at the step start-nfs")
    lines = say(made, "promote", timeout_s=20.0)
    assert lines[-1]["exit_code"] == 4 and "start-nfs" in lines[-1]["error"]
    assert len(made.ran) > 2


def test_a_promotion_that_somebody_else_won_is_no_passing_failure(
    tmp_path: Path, clock: StoppedClock
) -> None:
    made = agent(tmp_path, promotion(), promotion(), STANDING_BY)
    made.breaks = [StepFailed("the promotion stopped at the step claim-lease")]
    assert "claim-lease" in say(made, "promote")[-1]["error"]
    assert len(made.ran) == 1


@pytest.mark.parametrize("command", ["promote", "switchover"])
def test_a_command_is_done_when_consul_tells_everybody(
    tmp_path: Path, clock: StoppedClock, command: str
) -> None:
    """A look of now at Consul that still shows the epoch before is no success."""
    made = agent(tmp_path, promotion() if command == "promote" else SERVING)
    made.tells = False
    [*_, last] = say(made, command, to="n2", timeout_s=20.0)
    assert last["exit_code"] == 3 and "doesn't tell yet that it serves" in last["error"]


PUT_AWAY = Decision(Action.FINISH_DEMOTION, Reason.RESUME_DEMOTION, "n1 gave epoch 4 up")
GIVEN = Decision(Action.WAIT, Reason.WAITING_FOR_BETTER_CANDIDATE, "n2 may take over first")


def given_up(made: FakeAgent, *after: Decision) -> Cluster:
    """The next plan gives epoch 4 up and then fails; what this node decides after it."""
    made.breaks = [StepFailed("the switchover stopped at the step stop-lease: it hangs")]
    serving = made.view
    assert isinstance(serving, Cluster) and serving.leader is not None
    gone = replace(serving, leader=structs.replace(serving.leader, state=LeaderState.CLEAN))
    made.views, made.decisions = [serving, serving, gone], [SERVING, SERVING, *after]
    return gone


def test_a_handover_that_fails_on_its_way_after_the_release_goes_on_by_itself(
    tmp_path: Path, clock: StoppedClock
) -> None:
    """What is left here is put away, again where that fails once more, and the role gets there."""
    made = agent(tmp_path, SERVING)
    gone = given_up(made, PUT_AWAY, PUT_AWAY, GIVEN, STANDING_BY)
    made.breaks.append(StepFailed("the put-away stopped at the step stop-lease: it hangs"))
    made.tells = False
    made.views += [gone, gone, BLIND, served_by(gone, "n2")]
    lines = say(made, "switchover", to="n2")
    assert lines[-1].get("text", lines[-1]).startswith("n2 is primary")
    assert [plan.name for plan, _ in made.ran] == ["switchover", "put-away", "put-away"]
    assert any("stop-lease" in line.get("progress", "") for line in lines)


def test_a_demotion_that_fails_after_the_release_is_done_when_this_node_is_a_standby(
    tmp_path: Path, clock: StoppedClock
) -> None:
    made = agent(tmp_path, SERVING)
    gone = given_up(made, PUT_AWAY, STANDING_BY)
    made.views += [served_by(gone, "n3")]  # somebody was quick to take it
    made.tells = False
    assert say(made, "demote")[-1]["text"].startswith("n1 is a standby")
    assert [plan.name for plan, _ in made.ran] == ["demotion", "put-away"]


def test_a_wait_for_who_was_given_the_role_keeps_nobody_else_from_it(
    tmp_path: Path, clock: StoppedClock
) -> None:
    made = agent(tmp_path, SERVING)
    given_up(made, GIVEN, GIVEN, promotion())
    [*_, last] = say(made, "switchover", to="n2", timeout_s=600.0)
    assert last["exit_code"] == 4 and "stop-lease" in last["error"]
    assert clock.slept < 10.0
    made = agent(tmp_path, SERVING)
    given_up(made, GIVEN)
    [*_, last] = say(made, "switchover", to="n2", timeout_s=20.0)
    assert last["exit_code"] == 4, "the time is up"


def test_a_handover_that_was_undone_is_told_at_once(tmp_path: Path, clock: StoppedClock) -> None:
    made = agent(tmp_path, SERVING)
    made.breaks = [StepFailed("the switchover stopped at the step final-copy\nserves again")]
    assert "serves again" in say(made, "switchover", to="n2", timeout_s=600.0)[-1]["error"]
    assert clock.slept < 5.0


def test_whoever_asks_for_something_else_is_not_kept_waiting_by_a_promotion(
    tmp_path: Path, clock: StoppedClock
) -> None:
    """`demote` is the way out of one that goes on failing."""
    made = agent(tmp_path, promotion())
    made.broken = StepFailed("the promotion stopped at the step start-nfs")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made.commands.put(Command(theirs, {"command": "demote"}))
        assert "start-nfs" in say(made, "promote", timeout_s=600.0)[-1]["error"]
    assert len(made.ran) == 1


def test_from_a_disk_that_is_dying_the_role_goes_where_nothing_can_be_replicated_back_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is its own node that can't be replicated to."""
    made = agent(tmp_path, SERVING)
    sick = Ailment(Reason.VOLUME_READ_ONLY, "/persist takes no writes")
    monkeypatch.setattr(made.machine.store, "ailment", lambda _deadline: sick)
    way_back = Obstacle("way-back", "n1: EIO", "mend the disk", Weight.REFUSES)
    with_obstacles(made, way_back, NAMELESS)
    key = made.config.key("candidates/n2")
    word = CandidateRecord("n2", 4, True, "surrendered", None, 4, 1e9)
    made.machine.consul.txn([Set(key, word.dump())])
    assert refusal(say(made, "switchover", to="n2"))[0] == Reason.VOLUME_READ_ONLY
    reason, error = refusal(say(made, "switchover", to="n2", accept_data_loss=True))
    assert reason == Reason.NOT_READY and "clients" in error and "EIO" not in error
    with_obstacles(made, way_back)
    assert say(made, "switchover", to="n2", accept_data_loss=True)[-1]["done"] is True
