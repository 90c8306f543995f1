"""Requests through Consul: whoever asks and whoever takes, the shipped code on a clock that only a
test moves. While one sleeps, the others have their turns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from standfast.agent import main as agent_main
from standfast.agent.command import Command
from standfast.agent.commands import answer
from standfast.consul.records import dump_epoch
from standfast.consul.values import Committed, Conflict, Entry, Op
from standfast.consul.volume_keys import CANDIDATES, read_volume
from standfast.errors import ConsulTimedOut, Refused, TimedOut, Unreachable
from standfast.reasons import Reason
from standfast.requests import asking, programs, taking
from standfast.requests.asking import ACCEPT_S, Asker, NotTaken, new_request
from standfast.requests.decide import CLOSE_S
from standfast.requests.folder import MOST, Folder
from standfast.requests.programs import words_of
from standfast.requests.record import Arguments, Outcome, Request, Verb
from standfast.requests.taking import FORGOTTEN_S, TIDY_EVERY_S, Node, Taker
from standfast.requests.work import QUEUE_S, Work
from standfast.system import clock, environment
from standfast.system.clock import Deadline
from tests.fakes.clock import StoppedClock
from tests.fakes.consul import MemoryConsul
from tests.support.configs import config_in
from tests.support.waiting import wait_for
from tests.unit.agents import SERVING, STANDING_BY, agent, say

ID = "0f" * 16


class Keys(MemoryConsul):
    """A Consul of which nothing is waited for really, and whose answers may get lost."""

    lose: Callable[[Op], bool] = staticmethod(lambda _: False)
    """Of which transactions, by their last operation, the answer gets lost."""

    def wait(self, key: str, index: int, *, wait_s: float) -> tuple[int, Entry | None]:
        return super().wait(key, index, wait_s=0.0)

    def txn(self, ops: Any, *, deadline: Deadline | None = None) -> Committed | Conflict:
        done = super().txn(ops, deadline=deadline)
        if self.lose(ops[-1]):
            raise ConsulTimedOut("no answer", maybe_applied=True)
        return done


@dataclass
class World(StoppedClock):
    """The clock, and who has a turn while somebody sleeps."""

    turns: list[Callable[[], object]] = field(default_factory=list)
    step_s: float = 0.25
    asleep: bool = False

    def sleep(self, seconds: float) -> None:
        self.pass_(seconds)

    def pass_(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + self.step_s)
            if not self.asleep:
                self.asleep = True
                try:
                    for turn in list(self.turns):
                        turn()
                finally:
                    self.asleep = False


@dataclass
class Station:
    """A storage node that takes requests."""

    taker: Taker = field(init=False)
    begun: list[Work] = field(default_factory=list)
    answers: Callable[[Work], None] = lambda work: None
    """What the agent does with it."""

    def door(self, work: Work) -> None:
        self.begun.append(work)
        self.answers(work)


def done(text: str) -> Callable[[Work], None]:
    def answer(work: Work) -> None:
        if work.begin():
            with work:
                work.sendall(json.dumps({"progress": "1/2 stop"}).encode() + b"\n")
                work.sendall(json.dumps({"done": True, "text": text}).encode() + b"\n")

    return answer


def begins(work: Work) -> None:
    assert work.begin()


@dataclass
class Scene:
    """Three nodes and their Consul."""

    world: World
    consul: Keys
    directory: Path

    @property
    def folder(self) -> Folder:
        return Folder(config_in(self.directory, "n1", "n2", "n3"), self.consul)

    def station(
        self, name: str, run: str | None = None, *, program: tuple[str, ...] = ()
    ) -> Station:
        others = [other for other in ("n1", "n2", "n3") if other != name]
        config = config_in(self.directory, name, *others)
        made = Station()
        node = Node(run or f"run of {name}", made.door, lambda: f"{name} stands by")
        made.taker = Taker(config, self.consul, node)
        self.world.turns.append(made.taker.turn)
        return made

    def asker(self, verb: Verb = Verb.DEMOTE, node: str = "n1", **arguments: Any) -> Asker:
        return Asker(self.folder, new_request(verb, node, "ann", Arguments(**arguments)))

    def keys(self) -> list[str]:
        prefix = "standfast/data-services/"
        names = [entry.key.removeprefix(prefix) for entry in self.consul.get_many(prefix)]
        return [name for name in names if "/" in name]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    world = World()
    monkeypatch.setattr(clock, "time", world)
    return Scene(world, Keys("n1", "n2", "n3"), tmp_path)


# What is taken


def test_a_request_is_carried_out_by_its_node_alone_and_leaves_nothing(scene: Scene) -> None:
    one, two = scene.station("n1"), scene.station("n2")
    one.answers = done("n1 is a standby")
    asker = scene.asker(reason="disks", dry_run=True)
    asker.until_taken()
    said: list[str] = []
    outcome = asker.watch(said.append, 60.0)
    assert (outcome.exit_code, outcome.text, said) == (0, "n1 is a standby", ["1/2 stop"])
    assert (len(one.begun), two.begun, scene.keys()) == (1, [], [])
    assert one.begun[0].request.by.startswith("ann@")
    doc = one.begun[0].document()
    assert (doc["command"], doc["dry_run"], doc["args"]["reason"]) == ("demote", True, "disks")
    assert doc["args"]["operator"] == one.begun[0].request.by
    Command(one.begun[0], doc).limit()


def test_of_two_that_would_take_it_one_does(scene: Scene) -> None:
    """Two machines with one name, or an agent that was not quite gone."""
    both = [scene.station("n1", f"run {number}") for number in range(2)]
    for each in both:
        each.answers = done("done")
    asker = scene.asker()
    asker.until_taken()
    asker.watch(lambda _: None, 60.0)
    assert sorted(len(each.begun) for each in both) == [0, 1]


def test_what_nobody_takes_is_withdrawn_and_never_carried_out(scene: Scene) -> None:
    others = [scene.station("n2"), scene.station("n3")]
    asker, began = scene.asker(), scene.world.now
    with pytest.raises(NotTaken, match="n1 didn't take the request within 30 s; nothing was done"):
        asker.until_taken()
    assert ACCEPT_S <= scene.world.now - began < ACCEPT_S + 1
    assert scene.keys() == []
    station = scene.station("n1")
    scene.world.pass_(60.0)
    assert [each.begun for each in (station, *others)] == [[], [], []]


@pytest.mark.parametrize("beats", [0, 1, 2, 5])
def test_a_request_of_one_who_died_is_not_carried_out_when_the_node_comes_back(
    scene: Scene, beats: int
) -> None:
    request = new_request(Verb.PROMOTE, "n1", "ann", Arguments())
    scene.folder.create(request)
    for _ in range(beats):
        scene.folder.beat(scene.folder.look()[request.id])
    station = scene.station("n1")
    scene.world.pass_(600.0)
    assert station.begun == []


def test_who_stood_still_asks_for_nothing_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended before it was taken: the node is there all the time, and nothing is done late."""
    asker = scene.asker()
    station: list[Station] = []
    naps = iter([3600.0])

    def sleep(seconds: float) -> None:
        scene.world.pass_(next(naps, seconds))
        if not station:
            station.append(scene.station("n1"))

    monkeypatch.setattr(asking, "sleep", sleep)
    with pytest.raises(NotTaken, match="stood still"):
        asker.until_taken()
    scene.world.pass_(60.0)
    assert (station[0].begun, scene.keys()) == ([], [])


def test_the_answer_to_a_take_may_get_lost(scene: Scene) -> None:
    station = scene.station("n1")
    station.answers = done("done")
    left = [1]

    def lose(op: Op) -> bool:
        is_take = "/outcomes/" in op.key and left[0] > 0
        left[0] -= is_take
        return is_take

    scene.consul.lose = lose
    asker = scene.asker()
    asker.until_taken()
    assert asker.watch(lambda _: None, 60.0).exit_code == 0
    assert (left, len(station.begun)) == ([0], 1)


def test_a_take_whose_answer_comes_long_after_begins_nothing(scene: Scene) -> None:
    station = scene.station("n1")
    station.answers = done("done")
    take = Folder.take

    def late(self: Folder, found: Any, run: str) -> bool:
        taken = take(self, found, run)
        scene.world.now += 600.0
        return taken

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Folder, "take", late)
        asker = scene.asker()
        with pytest.raises(NotTaken):
            asker.until_taken()
            raise NotTaken("it was taken, see its outcome")
    scene.world.pass_(5.0)
    assert station.begun == []
    _, outcome = scene.folder.both(asker.id)
    assert outcome is not None and (outcome.exit_code, outcome.reason) == (3, "not-taken")


def test_lost_answers_to_beats_keep_nobody_from_being_taken(scene: Scene) -> None:
    station = scene.station("n1")
    station.answers = done("done")
    count = [0]

    def lose(op: Op) -> bool:
        count[0] += op.key.endswith(asker.id) and "/requests/" in op.key
        return op.key.endswith(asker.id) and "/requests/" in op.key and count[0] % 2 == 0

    asker = scene.asker()
    scene.consul.lose = lose
    asker.until_taken()
    assert asker.watch(lambda _: None, 60.0).exit_code == 0 and count[0] > 1


# Withdrawing and watching


def test_what_is_withdrawn_is_gone_and_what_is_taken_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker = scene.asker()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(asking, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            asker.until_taken()
    assert len(scene.keys()) == 1
    assert asker.withdraw() and scene.keys() == []
    station = scene.station("n1")
    taken = scene.asker()
    taken.until_taken()
    assert not taken.withdraw()
    assert len(station.begun) == 1 and not station.begun[0].ended


def test_a_request_that_somebody_deleted_is_told(scene: Scene) -> None:
    asker = scene.asker()
    scene.world.turns.append(lambda: scene.consul.delete(scene.folder.key(asker.id)))
    with pytest.raises(Unreachable, match="the request is gone from Consul"):
        asker.until_taken()


def test_a_withdrawal_that_consul_does_not_answer_says_what_is_known(scene: Scene) -> None:
    asker = scene.asker()
    asker._is_made = True
    scene.consul.error = ConsulTimedOut("hangs")
    with pytest.raises(NotTaken, match="could not be withdrawn"):
        asker.withdraw()


def test_a_node_that_falls_silent_leaves_the_outcome_unknown(scene: Scene) -> None:
    station = scene.station("n1")
    asker = scene.asker()
    asker.until_taken()
    scene.world.turns.remove(station.taker.turn)  # the power fails
    with pytest.raises(Unreachable, match="has said nothing for 60 s; whether `demote` was done"):
        asker.watch(lambda _: None, 900.0)


def test_a_node_at_work_is_waited_for(scene: Scene) -> None:
    station = scene.station("n1")
    station.answers = begins
    asker = scene.asker()
    asker.until_taken()
    with pytest.raises(TimedOut, match="did not finish `demote` within 300 s; what it"):
        asker.watch(lambda _: None, 300.0)
    done("late")(station.begun[0])
    assert asker.watch(lambda _: None, 300.0).text == "late"


def test_progress_is_told_once_in_order_and_bounded(scene: Scene) -> None:
    station = scene.station("n1")
    lines = [f"step {number}" for number in range(200)]

    def answer(work: Work) -> None:
        assert work.begin()

        def some() -> None:
            for line in lines[:7]:
                work.say(line)
            del lines[:7]
            if not lines:
                work.end(0, text="done")

        scene.world.turns.append(some)

    station.answers = answer
    asker = scene.asker()
    asker.until_taken()
    said: list[str] = []
    asker.watch(said.append, 60.0)
    numbers = [int(line.split()[1]) for line in said]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 199


# The agent


def test_the_agent_answers_a_request_as_it_answers_its_socket(scene: Scene, tmp_path: Path) -> None:
    made = agent(tmp_path / "n1", SERVING)
    station = scene.station("n1")
    station.answers = lambda work: answer(made, Command(work, work.document(), work.begin))
    [last] = say(made, "demote", dry_run=True, timeout_s=900.0)
    asker = scene.asker(Verb.DEMOTE, dry_run=True)
    asker.until_taken()
    outcome = asker.watch(lambda _: None, 60.0)
    assert outcome.text == last["text"]
    assert json.loads(outcome.document or "") == {"steps": last["steps"]}
    made.decisions = [STANDING_BY]
    [last] = say(made, "demote")
    asker = scene.asker(Verb.DEMOTE)
    asker.until_taken()
    outcome = asker.watch(lambda _: None, 60.0)
    told = (outcome.error, outcome.reason, outcome.exit_code)
    assert told == (last["error"], last["reason"], last["exit_code"])


def test_an_agent_goes_on_when_its_look_for_requests_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, turns = agent(tmp_path, SERVING), []

    def turn(self: Taker) -> float:
        turns.append(1)
        if len(turns) == 3:
            made.stopping.set()
        raise ValueError("a bug")

    monkeypatch.setattr(Taker, "turn", turn)
    monkeypatch.setattr(agent_main, "UPKEEP_EVERY_S", 0.0)
    agent_main.keep_taking(made)
    assert len(turns) == 3


def test_what_an_agent_has_no_time_for_is_told_and_not_done_later(scene: Scene) -> None:
    station = scene.station("n1")  # its loop takes nothing out of the queue
    asker = scene.asker()
    asker.until_taken()
    outcome = asker.watch(lambda _: None, 900.0)
    assert (outcome.exit_code, outcome.reason) == (3, Reason.BUSY)
    assert not station.begun[0].begin()
    assert QUEUE_S == 60.0


def test_what_waited_too_long_is_not_begun_though_nobody_has_said_so_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Consul was away, and nobody looked after it: the loop is free before that is back."""
    now = 1000.0
    monkeypatch.setattr("standfast.requests.work.up", lambda: now)
    asked = Request(ID, Verb.DEMOTE, "n1", "ann@desk", 0, Arguments())
    soon, late = Work(asked, "run"), Work(asked, "run")
    now += QUEUE_S
    assert soon.begin()
    now += 1.0
    assert not late.begin() and late.ended


def test_an_agent_that_ended_in_the_middle_is_told_by_the_next_one(scene: Scene) -> None:
    first = scene.station("n1", "first")
    first.answers = lambda work: work.say("2/9 stop") if work.begin() else None
    asker = scene.asker()
    asker.until_taken()
    scene.world.pass_(2.0)
    scene.world.turns.remove(first.taker.turn)
    second = scene.station("n1", "second")
    outcome = asker.watch(lambda _: None, 900.0)
    assert (outcome.exit_code, outcome.reason) == (4, Reason.INTERRUPTED)
    assert "goes on with what was begun (now: n1 stands by)" in (outcome.error or "")
    assert outcome.progress == ("2/9 stop",) and second.begun == []


def test_a_request_that_ended_well_is_not_called_interrupted(scene: Scene) -> None:
    first = scene.station("n1", "first")
    first.answers = done("n1 is a standby")
    asker = scene.asker()
    asker.until_taken()
    scene.world.pass_(5.0)
    scene.world.turns.remove(first.taker.turn)
    scene.station("n1", "second")
    scene.world.pass_(5.0)
    assert asker.watch(lambda _: None, 60.0).text == "n1 is a standby"


def test_an_error_and_its_reason_come_back(scene: Scene) -> None:
    station = scene.station("n1")

    def refuse(work: Work) -> None:
        work.begin()
        doc = {"error": "too\x1b[31m old", "reason": "too-old", "exit_code": 1}
        work.sendall(json.dumps(doc).encode() + b"\n")

    station.answers = refuse
    asker = scene.asker(Verb.PROMOTE)
    asker.until_taken()
    outcome = asker.watch(lambda _: None, 60.0)
    assert (outcome.exit_code, outcome.reason) == (1, "too-old")
    assert "\x1b" not in (outcome.error or "\x1b")


def test_a_document_that_is_too_large_is_told(scene: Scene) -> None:
    work = Work(new_request(Verb.DOCTOR, "n1", "ann", Arguments()), "run")
    work.end(0, document={"x": "y" * 300_000})
    outcome = work.due(0.0)
    assert outcome is not None and outcome.exit_code == 4 and outcome.document is None
    assert "too large" in (outcome.error or "") and len(outcome.dump()) < 1000


# What else lies there


def test_what_nobody_changes_is_deleted_after_an_hour_and_what_is_not_ours_stays(
    scene: Scene,
) -> None:
    dead = new_request(Verb.PROMOTE, "n3", "ann", Arguments())
    scene.folder.create(dead)
    scene.folder.tell(Outcome("1f" * 16, "n3", "run", ended=True))
    foreign = "standfast/data-services/requests/mine"
    scene.consul.put(foreign, b"keep")
    scene.station("n2")
    scene.world.step_s = 30.0
    scene.world.pass_(FORGOTTEN_S)
    assert len(scene.keys()) == 3
    scene.world.pass_(2 * TIDY_EVERY_S)
    assert scene.keys() == ["requests/mine"]


def test_a_full_folder_keeps_nobody_out_who_was_there_first(scene: Scene) -> None:
    station = scene.station("n1")
    station.answers = done("done")
    asker = scene.asker()
    created = Folder.create

    def create(self: Folder, request: Request) -> bool:
        made = created(self, request)
        for number in range(300):
            junk = replace(request, id=f"{number:032x}", node="n2")
            scene.consul.put(self.key(junk.id), junk.dump())
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Folder, "create", create)
        asker.until_taken()
    assert asker.watch(lambda _: None, 60.0).exit_code == 0
    with pytest.raises(Refused, match=f"{MOST} requests are there already") as refused:
        scene.asker().until_taken()
    assert refused.value.reason is Reason.BUSY


def test_what_lies_there_is_read_by_nothing_that_decides_about_the_role(scene: Scene) -> None:
    for number in range(100):
        scene.consul.put(scene.folder.key(f"{number:032x}"), b"x" * 10_000)
        scene.consul.put(scene.folder.outcome_key(f"{number:032x}"), b"x" * 10_000)
    scene.consul.put(scene.folder.bell, b"x")
    config = config_in(scene.directory, "n1", "n2", "n3")
    scene.consul.put(config.key("epoch"), dump_epoch(7))
    assert set(read_volume(scene.consul, config, CANDIDATES)) == {"epoch"}


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": {"later": True}},
        {"arguments": {"to": "--full"}},
        {"arguments": {"standby": "c1"}},
        {"arguments": {"timeout_s": 0}},
        {"verb": "explode"},
        {"by": "x" * 9000},
        {"node": "-x"},
        {"id": "../epoch"},
    ],
)
def test_a_request_that_this_version_does_not_understand_is_not_carried_out(
    scene: Scene, change: Mapping[str, Any]
) -> None:
    station = scene.station("n1")
    doc = json.loads(Request(ID, Verb.DEMOTE, "n1", "ann@desk", 0, Arguments()).dump()) | change
    for beat in range(20):
        scene.consul.put(scene.folder.key(doc["id"]), json.dumps({**doc, "beat": beat}).encode())
        scene.world.pass_(0.5)
    assert station.begun == []


def test_a_dead_request_keeps_no_node_awake(scene: Scene) -> None:
    scene.folder.create(new_request(Verb.PROMOTE, "n1", "ann", Arguments()))
    taker = scene.station("n1").taker
    scene.world.pass_(1.0)
    assert taker.turn() == taking.BUSY_S
    scene.world.pass_(CLOSE_S + 1.0)
    assert taker.turn() == 0.0


def test_before_the_first_request_no_node_waits_for_its_bell(scene: Scene) -> None:
    """It would be woken by every change of any key."""
    taker = scene.station("n1").taker
    assert [taker.turn() for _ in range(3)] == [taking.NO_BELL_S] * 3


def test_a_node_without_consul_goes_on_when_it_is_back(scene: Scene) -> None:
    station = scene.station("n1")
    station.answers = done("done")
    scene.consul.error = ConsulTimedOut("hangs")
    scene.world.pass_(10.0)
    scene.consul.error = None
    asker = scene.asker()
    asker.until_taken()
    assert asker.watch(lambda _: None, 60.0).exit_code == 0


def test_a_request_is_made_after_an_election_of_consul(scene: Scene) -> None:
    station = scene.station("n1")
    station.answers = done("done")
    began = scene.world.now

    def election() -> None:
        away = scene.world.now - began < 14.0
        scene.consul.error = ConsulTimedOut("hangs") if away else None

    scene.consul.error = ConsulTimedOut("hangs")
    scene.world.turns.insert(0, election)
    asker = scene.asker()
    asker.until_taken()
    assert asker.watch(lambda _: None, 60.0).exit_code == 0
    scene.world.turns.remove(election)
    scene.consul.error = ConsulTimedOut("hangs")
    with pytest.raises(ConsulTimedOut):
        scene.asker().until_taken()


def test_a_short_outage_of_consul_is_sat_out_and_a_long_one_withdraws(scene: Scene) -> None:
    station = scene.station("n1")
    began = scene.world.now

    def outage() -> None:
        away = 0.4 < scene.world.now - began < 0.4 + CLOSE_S + 1
        scene.consul.error = ConsulTimedOut("hangs") if away else None

    scene.world.turns.insert(0, outage)
    with pytest.raises(NotTaken, match="Consul gave no answer"):
        scene.asker().until_taken()
    assert station.begun == []


# Programs

SAYS = """
import json, os, sys
told = sorted(name for name in os.environ if "CONSUL" in name or "NOMAD" in name)
print(json.dumps({"words": sys.argv[1:], "environment": told}))
print("standfast: not-primary: no", file=sys.stderr)
sys.exit(1)
"""


def carried_out(script: str, **arguments: Any) -> Outcome:
    work = Work(new_request(Verb.DOCTOR, "n1", "ann", Arguments(**arguments)), "run")
    programs.begin((sys.executable, "-c", script), "v", work)
    wait_for(lambda: work.ended, 30.0, "the program ends")
    outcome = work.due(0.0)
    assert outcome is not None and outcome.ended
    return outcome


def test_what_a_program_says_and_its_status_come_back_and_it_gets_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "s3cret")
    monkeypatch.setattr(environment, "TAKEN", {})
    environment.take()
    told = carried_out(SAYS)
    assert json.loads(told.text or "") == {"words": ["doctor", "--volume", "v"], "environment": []}
    assert (told.exit_code, told.error) == (1, "standfast: not-primary: no")
    told = carried_out(SAYS, as_json=True)
    assert json.loads(told.document or "")["words"] == ["doctor", "--volume", "v", "--json"]
    assert told.text is None


@pytest.mark.parametrize(
    ("script", "exit_code", "text"),
    [("import os; os.kill(os.getpid(), 9)", 4, ""), ("import sys; sys.exit(77)", 4, "")],
)
def test_a_status_that_is_none_of_ours_is_a_failure(script: str, exit_code: int, text: str) -> None:
    told = carried_out(script)
    assert (told.exit_code, told.text) == (exit_code, text)


def test_a_program_that_hangs_is_ended_and_told() -> None:
    told = carried_out("import time; time.sleep(60)", timeout_s=0.3)
    assert told.exit_code == 3 and "did not end before its deadline" in (told.error or "")


def test_a_node_that_starts_no_programs_says_so(scene: Scene) -> None:
    scene.station("n1")
    asker = scene.asker(Verb.DOCTOR)
    asker.until_taken()
    outcome = asker.watch(lambda _: None, 60.0)
    assert outcome.exit_code == 1 and "starts no programs" in (outcome.error or "")


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        (Verb.DOCTOR, {"as_json": True}, "doctor --volume v --json"),
        (
            Verb.REPLICATE,
            {"full": True, "dry_run": True},
            "replicate --volume v --dry-run --full --quiet",
        ),
        (
            Verb.STANDBY_ADD,
            {"standby": "c2", "timeout_s": 60.0},
            "standby add --volume v --quiet --timeout 60 c2",
        ),
        (Verb.STANDBY_REMOVE, {"standby": "c2"}, "standby remove --volume v c2"),
    ],
)
def test_a_program_gets_the_words_of_the_command_line(
    verb: Verb, arguments: dict[str, Any], words: str
) -> None:
    from standfast.cli.parser import build

    request = new_request(verb, "n1", "ann", Arguments(**arguments))
    assert " ".join(words_of(request, "v")) == words
    build().parse_args(words_of(request, "v"))
