"""Following Nomad: what follows from what was seen, what a failure costs, what a demotion does."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import replace
from typing import Any

import pytest

from standfast.config.nomad import NomadAccess
from standfast.consul.records import NomadNote
from standfast.consul.values import Set
from standfast.errors import NomadError, NomadOutcome, Refused, StandfastError
from standfast.nomad import downtime, loop, notes, steps
from standfast.nomad.constraints import Meta
from standfast.nomad.decide import Decision, Do, decide
from standfast.nomad.gateway import NomadAgent
from standfast.nomad.loop import Follower
from standfast.nomad.notes import Notes
from standfast.nomad.observation import Constrained, Noted, Observed, Role, kill_timeout_s
from standfast.nomad.ports import Allocation, Evaluation, Node
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from tests.fakes.nomad_world import FakeNomad, NomadClient, NomadWorld, Placed, job
from tests.fakes.rude_server import hang, reply_json, rude_server
from tests.support.checkout import CHECKOUT
from tests.support.observations import config
from tests.support.pace import patient

ANSWERS = CHECKOUT / "tests/contract/nomad_answers"
META = Meta("storage_role", "primary")
NOTE = Noted(NomadNote("x", "b", 5, 0.0), 7)


def node(name: str, words: str = "") -> Node:
    """`shown ineligible draining down`, each as needed."""
    said = words.split()
    return Node(
        id=f"id-{name}",
        name=name,
        status="down" if "down" in said else "ready",
        eligible="ineligible" not in said and "draining" not in said,
        draining="draining" in said,
        meta={META.key: META.value} if "shown" in said else {},
        host_volumes={},
        attributes={},
        datacenter="dc1",
        node_class="",
        pool="default",
    )


def alloc(name: str, kind: str = "service", *, wanted: bool = True) -> Constrained:
    return Constrained(f"alloc-{name}", f"id-{name}", "default", "db", "g", kind, 50, wanted, 5.0)


def seen(
    role: Role,
    own: str,
    *,
    local: bool,
    other: str = "",
    jobs: tuple[Constrained, ...] = (),
    **more: object,
) -> Observed:
    base = Observed(role, META, node("a", own), local, (node("b", other),), constrained=jobs)
    return replace(base, **more)  # type: ignore[arg-type]


def steps_of(decision: Decision) -> list[tuple[Do, str]]:
    return [(step.do, "" if step.node is None else step.node.name) for step in decision.steps]


P, S = Role.PRIMARY, Role.STANDBY


@pytest.mark.parametrize(
    ("what", "expected", "reason"),
    [
        (seen(P, "", local=False), [(Do.SET_META, "")], Reason.NOMAD_META_ON_ITS_WAY),
        (seen(P, "", local=True), [], Reason.NOMAD_META_ON_ITS_WAY),
        (seen(P, "shown", local=True), [], Reason.NOMAD_FOLLOWS),
        (
            seen(P, "", local=False, other="shown down"),
            [(Do.QUARANTINE, "b"), (Do.SET_META, "")],
            Reason.NOMAD_META_ON_ITS_WAY,
        ),
        (seen(P, "shown", local=True, other="shown ineligible"), [], Reason.NOMAD_FOLLOWS),
        (  # jobs are moved when they have somewhere to go
            seen(P, "", local=True, other="shown ineligible", jobs=(alloc("b"),)),
            [],
            Reason.NOMAD_META_ON_ITS_WAY,
        ),
        (
            seen(P, "shown", local=True, other="shown", jobs=(alloc("b"),)),
            [(Do.QUARANTINE, "b"), (Do.STOP, "b")],
            Reason.NOMAD_MOVING,
        ),
        (
            seen(P, "shown", local=True, jobs=(alloc("b", wanted=False),)),
            [],
            Reason.NOMAD_MOVING,
        ),
        (  # a system job would start here while it runs there
            seen(P, "", local=False, other="shown", jobs=(alloc("b", "system"),)),
            [(Do.QUARANTINE, "b"), (Do.STOP, "b")],
            Reason.NOMAD_MOVING,
        ),
        (
            seen(P, "", local=False, other="shown ineligible",
                 jobs=(alloc("b", "system", wanted=False),)),
            [],
            Reason.NOMAD_MOVING,
        ),
        (  # any job would, as long as it still ends there, or here
            seen(P, "", local=False, other="shown ineligible", jobs=(alloc("b", wanted=False),)),
            [],
            Reason.NOMAD_MOVING,
        ),
        (seen(P, "", local=False, jobs=(alloc("a", wanted=False),)), [], Reason.NOMAD_MOVING),
        (  # of a node that is down nobody hears any more
            seen(P, "", local=False, other="shown down ineligible", jobs=(alloc("b", "system"),)),
            [(Do.SET_META, ""), (Do.STOP, "b")],
            Reason.NOMAD_META_ON_ITS_WAY,
        ),
        (seen(P, "shown ineligible", local=True), [], Reason.NOMAD_NOT_ELIGIBLE),
        (seen(P, "shown draining", local=True), [], Reason.NOMAD_NOT_ELIGIBLE),
        (
            seen(P, "shown ineligible", local=True, notes={"id-a": NOTE}),
            [(Do.LIFT, "a")],
            Reason.NOMAD_MOVING,
        ),
        (seen(S, "", local=False), [], Reason.NOMAD_FOLLOWS),
        (
            seen(S, "shown", local=True),
            [(Do.QUARANTINE, "a"), (Do.UNSET_META, "")],
            Reason.NOMAD_QUARANTINED,
        ),
        (seen(S, "shown ineligible", local=False), [], Reason.NOMAD_QUARANTINED),
        (
            seen(S, "", local=True),
            [(Do.QUARANTINE, "a"), (Do.UNSET_META, "")],
            Reason.NOMAD_QUARANTINED,
        ),
        (
            seen(S, "shown ineligible", local=True, jobs=(alloc("a"),)),
            [(Do.UNSET_META, ""), (Do.STOP, "a")],
            Reason.NOMAD_QUARANTINED,
        ),
        (  # the servers would hear of it yet
            seen(S, "ineligible", local=True, notes={"id-a": NOTE}),
            [(Do.UNSET_META, "")],
            Reason.NOMAD_QUARANTINED,
        ),
        (seen(S, "ineligible", local=False), [], Reason.NOMAD_FOLLOWS),  # an operator's word
        (
            seen(S, "ineligible", local=False, notes={"id-a": NOTE}),
            [(Do.LIFT, "a")],
            Reason.NOMAD_QUARANTINED,
        ),
        (  # whoever is just doing it isn't done
            seen(S, "ineligible", local=False, notes={"id-a": replace(NOTE, firm=False)}),
            [],
            Reason.NOMAD_QUARANTINED,
        ),
        (
            seen(S, "", local=False, notes={"id-a": NOTE}),
            [(Do.DROP_NOTE, "a")],
            Reason.NOMAD_QUARANTINED,
        ),
        (  # a drain is an operator's, and so is what it leaves
            seen(S, "draining", local=False, notes={"id-a": NOTE}),
            [(Do.DROP_NOTE, "a")],
            Reason.NOMAD_QUARANTINED,
        ),
        (seen(S, "", local=False, jobs=(alloc("a", wanted=False),)), [], Reason.NOMAD_MOVING),
        (seen(Role.CHANGING, "shown", local=True), [], Reason.NOMAD_ROLE_CHANGING),
    ],
)  # fmt: skip
def test_what_follows_from_what_was_seen(
    what: Observed, expected: list[tuple[Do, str]], reason: Reason
) -> None:
    decision = decide(what)
    assert (steps_of(decision), decision.reason) == (expected, reason)
    assert decision.sentence


def world(*jobs: str) -> NomadWorld:
    return NomadWorld({name: NomadClient(name) for name in "ab"}, [job(name) for name in jobs])


def follower(where: NomadWorld, name: str = "a") -> Follower:
    base = config(name, nomad=NomadAccess(kill_timeout_limit=0.5))
    where.set_epoch(base, 1)
    return where.follower(base)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "POLL_S", 0.01)
    monkeypatch.setattr(steps, "REPORT_S", 0.05)


def serving(*jobs: str) -> tuple[NomadWorld, Follower]:
    """`a` is primary and runs the jobs."""
    where = world(*jobs)
    follower_a = follower(where)
    follower_a.round(P, 1)
    where.propagate()
    assert follower_a.round(P, 1).reason is Reason.NOMAD_FOLLOWS
    where.log.clear()
    return where, follower_a


def test_a_release_makes_the_node_ineligible_then_stops_then_unsets() -> None:
    where, follower_a = serving("db", "web")
    follower_a.release(Deadline.after(5))
    assert [text.partition(" Set")[0] for text in where.log] == [
        "txn",
        "a: a eligible False",
        "a: stop db on a",
        "a: stop web on a",
        "a: meta None",
    ]
    assert where.where("db") == []


def test_while_a_demotion_goes_on_its_node_doesnt_get_its_jobs_back() -> None:
    where, follower_a = serving("db")
    follower_a.release(Deadline.after(5))
    where.log.clear()
    assert follower_a.round(P, 1).reason is Reason.NOMAD_ROLE_CHANGING
    assert where.log == []
    follower_a.resume()
    follower_a.round(P, 1)
    where.propagate()
    assert where.where("db") == ["a"]


def test_the_least_important_jobs_end_first() -> None:
    some = [replace(alloc("a"), job_id=name, priority=n) for name, n in (("x", 90), ("y", 10))]
    assert [allocation.job_id for allocation in steps.in_order(some)] == ["y", "x"]


def test_a_node_that_was_ineligible_before_is_left_so() -> None:
    where, follower_a = serving("db")
    where.disable("a")
    follower_a.release(Deadline.after(5))
    follower_a.resume()
    assert where.notes == []
    for _ in range(3):
        where.propagate()
        follower_a.round(S, 0)
    assert not where.clients["a"].eligible


@pytest.mark.parametrize("blind_looks", [1, 1000], ids=["an election", "until the end"])
def test_a_failed_answer_while_jobs_end_doesnt_end_the_wait_for_them(
    monkeypatch: pytest.MonkeyPatch, blind_looks: int
) -> None:
    where, follower_a = serving("db")
    looks: list[str] = []

    def constrained_on(*given: Any) -> tuple[Any, ...]:
        looks.append("look")
        if 2 <= len(looks) < 2 + blind_looks:
            raise NomadError("no cluster leader", NomadOutcome.SERVER_ERROR)
        return real(*given)

    real = steps.Steps.constrained_on
    monkeypatch.setattr(steps.Steps, "constrained_on", constrained_on)
    if blind_looks == 1:
        follower_a.release(Deadline.after(5))
        assert len(looks) == 3
    else:
        with pytest.raises(StandfastError, match="what still runs: no cluster leader"):
            follower_a.release(Deadline.after(5))
    assert where.log[-1] == "a: meta None"


def test_jobs_that_do_not_end_in_time_are_named_and_the_demotion_goes_on() -> None:
    where, follower_a = serving("db")
    where.lingering = True
    with pytest.raises(StandfastError, match=r"still running on a: db\.g"):
        follower_a.release(Deadline.after(5))
    assert where.log[-1] == "a: meta None"
    follower_a.resume()
    assert "still running" in follower_a.round(S, 0).failed[0]


def test_a_job_that_takes_hours_to_end_is_waited_for_no_longer_than_the_limit() -> None:
    where = world("db")
    where.jobs[0]["TaskGroups"][0]["Tasks"][0]["KillTimeout"] = 3600 * 10**9
    follower_a = follower(where)
    follower_a.round(P, 1)
    where.propagate()
    follower_a.round(P, 1)
    where.lingering = True
    demotion = Deadline.after(patient(3))
    with pytest.raises(StandfastError, match=r"still running on a: db\.g"):
        follower_a.release(demotion)
    assert not demotion.expired, "it was the demotion's own deadline that ended it"


@pytest.mark.parametrize("outcome", [NomadOutcome.UNREACHABLE, NomadOutcome.SERVER_ERROR])
def test_a_release_without_nomad_raises_and_is_told_in_the_next_report(
    outcome: NomadOutcome,
) -> None:
    where, follower_a = serving("db")
    where.broken["*"] = outcome
    with pytest.raises(NomadError):
        follower_a.release(Deadline.after(5))
    assert where.log == []
    report = follower_a.round(S, 0)
    assert report.reason == f"nomad-{outcome}" and not report.settled
    where.broken.clear()
    assert "not stopped in order" in follower_a.round(S, 0).failed[0]


@pytest.mark.parametrize("hung", ["from the start", "in the middle"])
def test_a_nomad_that_hangs_costs_a_switchover_two_request_timeouts_and_no_more(hung: str) -> None:
    timeout_s = 0.4
    where = world("db")
    agent = json.loads((ANSWERS / "agent_self_client.json").read_text())["answer"]
    answers = [reply_json(agent)] if hung == "in the middle" else []

    def manner(connection: socket.socket, ending: threading.Event) -> None:
        (answers.pop() if answers else hang)(connection, ending)

    with rude_server(manner) as server:
        follower_a = follower(where)
        follower_a = Follower(
            follower_a.config, NomadAgent(server.address, timeout_s=timeout_s), where.consul
        )
        started = monotonic()
        with pytest.raises(NomadError):
            follower_a.prepare("b", 1, Deadline.after(60))
        with pytest.raises(NomadError):
            follower_a.release(Deadline.after(60))
        assert monotonic() - started < 2 * timeout_s + patient(0.4)


def test_one_job_that_can_not_be_stopped_does_not_keep_the_others() -> None:
    where, follower_a = serving("db", "web")
    denied = {"alloc-1"}
    stop = follower_a.nomad.stop

    def refuse(alloc_id: str) -> str:
        if alloc_id in denied:
            raise NomadError("Permission denied", NomadOutcome.DENIED)
        return stop(alloc_id)

    follower_a.nomad.stop = refuse  # type: ignore[method-assign]
    with pytest.raises(StandfastError, match=r"db\.g was not stopped: Permission denied"):
        follower_a.release(Deadline.after(5))
    assert (where.where("db"), where.where("web")) == (["a"], [])


def test_what_was_stopped_is_known_when_nomad_goes_away_in_the_middle() -> None:
    where, follower_a = serving("db", "web")
    stop, asked = follower_a.nomad.stop, []

    def once(alloc_id: str) -> str:
        asked.append(alloc_id)
        if len(asked) > 1:
            where.broken["*"] = NomadOutcome.UNREACHABLE
        return stop(alloc_id)

    follower_a.nomad.stop = once  # type: ignore[method-assign]
    with pytest.raises(StandfastError, match="the release of the jobs was not finished"):
        follower_a.release(Deadline.after(5))
    assert list(follower_a.downtimes.known) == ["db.g"]


def test_what_was_decided_before_the_role_changed_is_not_done_after_it() -> None:
    where = world("db")
    where.clients["b"].local = where.clients["b"].visible = True
    where.broken.clear()
    follower_a = follower(where)
    follower_a.round(P, 1, still=lambda: False)
    assert where.log == []
    follower_a.round(P, 1)
    assert where.log != []


def test_where_the_quarantine_is_refused_nothing_is_stopped_on_that_node() -> None:
    where = world("db")
    where.clients["b"].local = True
    where.propagate()
    where.clients["a"].local = where.clients["a"].visible = True
    where.broken["set_eligible"] = NomadOutcome.DENIED
    follower_a = follower(where)
    report = follower_a.round(P, 1)
    assert "make b ineligible" in report.failed[0]
    assert where.where("db") == ["b"]
    where.broken.clear()
    follower_a.round(P, 1)
    assert where.where("db") == ["a"]


def test_a_primary_moves_what_is_left_on_a_node_whose_agent_is_away() -> None:
    where = world("db")
    where.clients["b"].local = True
    where.propagate()
    assert where.where("db") == ["b"]
    follower_a = follower(where)
    follower_a.round(P, 1)
    where.propagate()
    follower_a.round(P, 1)
    assert where.where("db") == ["a"]
    follower_a.round(P, 1)
    (move,) = follower_a.round(P, 1).jobs
    assert (move.source, move.target) == ("b", "a")


def test_a_primary_of_an_epoch_that_is_over_quarantines_nobody() -> None:
    where = world("db")
    where.clients["b"].local = True
    where.propagate()
    follower_a = follower(where)
    where.set_epoch(follower_a.config, 2)
    assert "epoch 1 is over" in follower_a.round(P, 1).failed[0]
    assert where.clients["b"].eligible


def test_a_note_that_was_written_anew_is_not_deleted_by_who_saw_the_old_one() -> None:
    where = world()
    notes_of_a = Notes(config("a"), where.consul)
    notes_of_a.write(node("a"), 0)
    old = notes_of_a.load()["id-a"]
    [key] = where.notes
    noted = where.consul.get(key)
    assert noted is not None
    where.consul.delete(key)
    where.consul.put(key, noted.value)
    notes_of_a.delete("id-a", old)
    assert "id-a" in notes_of_a.load()


def test_a_note_of_a_writer_that_died_counts_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(notes, "monotonic", lambda: now)
    notes_of_a = Notes(config("a"), world().consul)
    notes_of_a.write(node("a"), 0, firm=False)
    assert not notes_of_a.load()["id-a"].firm
    now = notes.FIRM_AFTER_S + 1
    assert notes_of_a.load()["id-a"].firm


def test_a_foreign_note_ends_the_round_and_changes_nothing() -> None:
    where = world()
    follower_a = follower(where)
    where.consul.txn([Set(follower_a.config.key("nomad/id-a"), b"[]")])
    where.log.clear()
    report = follower_a.round(P, 1)
    assert not report.settled
    assert "nomad/id-a in Consul" in report.sentence and "or delete it" in report.sentence
    assert where.log == []


@pytest.mark.parametrize("outcome", list(NomadOutcome))
def test_every_failure_of_nomad_has_a_reason_and_is_tried_again(outcome: NomadOutcome) -> None:
    where = world("db")
    follower_a = follower(where)
    where.broken["own_node"] = outcome
    report = follower_a.round(P, 1)
    assert report.reason == f"nomad-{outcome}"
    assert 0 < follower_a.pause_s(report) <= loop.SLOW_S
    where.broken.clear()
    follower_a.round(P, 1)
    assert where.clients["a"].local


def test_rounds_are_quick_while_something_moves_and_slow_afterwards() -> None:
    where = world("db")
    follower_a = follower(where)
    assert follower_a.pause_s(follower_a.round(P, 1)) == loop.QUICK_S
    where.propagate()
    assert follower_a.pause_s(follower_a.round(P, 1)) == loop.SLOW_S


def test_what_takes_too_long_is_looked_at_slowly() -> None:
    follower_a = follower(world("db"))
    for _ in range(loop.QUICK_ROUNDS + 1):
        report = follower_a.round(P, 1)
    assert follower_a.pause_s(report) == loop.SLOW_S


def test_a_settled_round_asks_for_no_allocations() -> None:
    where, follower_a = serving("db")
    follower_a.round(P, 1)
    where.broken["allocations"] = NomadOutcome.SERVER_ERROR
    assert follower_a.round(P, 1).settled


def test_the_time_that_a_job_was_down_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    where, follower_a = serving("db")
    now = 100.0
    monkeypatch.setattr(downtime, "monotonic", lambda: now)
    monkeypatch.setattr(steps, "monotonic", lambda: now)
    follower_a.release(Deadline.after(5))
    follower_a.resume()
    where.set_epoch(follower_a.config, 2)
    report = follower_a.round(S, 0)
    assert not report.settled
    follower_b = where.follower(config("b", nomad=follower_a.config.nomad))
    follower_b.round(P, 2)
    now = 109.5
    where.propagate()
    assert where.where("db") == ["b"]
    assert follower_a.round(S, 0).jobs == (downtime.Downtime("db.g", "a", "b", 9.5),)


def test_the_kill_timeout_is_the_longest_of_all_tasks_of_the_group_with_delays() -> None:
    second = 1_000_000_000
    tasks = [{"KillTimeout": 2 * second}, {"KillTimeout": 30 * second, "ShutdownDelay": second}]
    groups = [{"Name": "g", "ShutdownDelay": second, "Tasks": tasks}, {"Name": "h"}]
    assert kill_timeout_s({"TaskGroups": groups}, "g") == 32.0
    assert kill_timeout_s({"TaskGroups": [{"Name": "g", "Tasks": [{}]}]}, "g") == 5.0


def test_a_release_waits_for_a_round_and_not_for_ever() -> None:
    _, follower_a = serving("db")
    follower_a._lock.acquire()
    with pytest.raises(StandfastError, match="doesn't end"):
        follower_a.release(Deadline.after(0.1))


def test_an_unknown_state_is_no_refusal() -> None:
    assert loop.reason_of(Refused(Reason.WRONG_EPOCH, "x")) is Reason.WRONG_EPOCH
    assert loop.reason_of(StandfastError("x")) is Reason.UNEXPECTED


def test_the_quarantine_of_another_node_is_firm_only_once_it_is_in_force() -> None:
    where = world()
    where.clients["b"].local = True
    where.propagate()
    follower_a = follower(where)
    make = follower_a.nomad.set_eligible
    firm: list[bool] = []

    def look(node_id: str, eligible: bool) -> None:
        firm.append(follower_a.notes.load()[node_id].firm)
        make(node_id, eligible)

    follower_a.nomad.set_eligible = look  # type: ignore[method-assign]
    follower_a.round(P, 1)
    assert firm == [False]
    assert follower_a.notes.load()["id-b"].firm


def test_a_second_stop_of_a_job_does_not_begin_its_time_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(downtime, "monotonic", lambda: now)
    some = downtime.Downtimes()
    some.begin(downtime.Stopped(alloc("a"), 90.0, "e1"), node("a"))
    some.begin(downtime.Stopped(replace(alloc("a"), id="later"), 99.0, "e2"), node("a"))
    other = where_it_runs("new")
    assert [measured.down_s for measured in some.look({"db.g": other})] == [10.0]
    assert not some.pending


def test_a_job_that_has_not_ended_yet_has_not_arrived() -> None:
    some = downtime.Downtimes()
    some.begin(downtime.Stopped(alloc("a"), 0.0, "e1"), node("a"))
    assert some.look({"db.g": where_it_runs("alloc-a")}) == []


def where_it_runs(alloc_id: str) -> tuple[Node, Allocation]:
    base = FakeNomad._allocation(Placed(alloc_id, job("db"), "b"))
    return node("b", "shown"), base


def test_jobs_of_a_dead_primary_are_told_though_nomad_itself_moves_them() -> None:
    where = world("db")
    where.clients["b"].local = True
    where.propagate()
    follower_a = follower(where)
    assert [move.job for move in follower_a.round(P, 1).jobs] == ["db.g"]
    where.kill("b")
    where.propagate()
    (move,) = follower_a.round(P, 1).jobs
    assert (move.source, move.target) == ("b", "a")


def test_the_evaluation_of_the_stop_is_asked_for_the_reason_of_the_scheduler() -> None:
    some = downtime.Downtimes()
    some.begin(downtime.Stopped(alloc("b"), 0.0, ""), node("b"))
    some.begin(downtime.Stopped(alloc("b"), 5.0, "eval-7"), node("b"))
    asked: list[tuple[str, str]] = []

    class Scheduler:
        def evaluation(self, eval_id: str, *, namespace: str) -> Evaluation:
            asked.append((eval_id, namespace))
            return Evaluation(
                id=eval_id,
                namespace=namespace,
                job_id="db",
                status="blocked",
                unplaced={"g": "no node is left"},
            )

    some.ask_why(Scheduler())  # type: ignore[arg-type]
    assert asked == [("eval-7", "default")]
    assert some.known["db.g"].why == "no node is left"
