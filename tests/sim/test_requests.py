"""Requests through the simulated Consul, by the shipped agents and the shipped command: whatever
happens to both, nothing is begun twice, or long after whoever asked was there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from standfast.consul.ports import Keys
from standfast.errors import StandfastError
from standfast.reasons import Reason
from standfast.requests.asking import SILENT_S, Asker, NotTaken, new_request
from standfast.requests.decide import CLOSE_S, LATE_S
from standfast.requests.folder import Folder
from standfast.requests.record import Arguments, Outcome, Verb
from standfast.requests.work import Work
from tests.sim.clockwork import SimProcess
from tests.sim.world import SimWorld
from tests.support.examples import times

MOST_AFTER_S = LATE_S + 3 * CLOSE_S + 5.0
"""As in tests/property/test_requests_taken.py, and the way there and back."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SimWorld]:
    with SimWorld(tmp_path) as world:
        yield world
        world.check_no_bug()


@dataclass
class Asked:
    """The command on one machine, and what became of it."""

    world: SimWorld
    asker: Asker
    process: SimProcess
    told: list[Outcome | StandfastError] = field(default_factory=list)
    there_at: float = 0.0
    """When it was last able to do something."""
    begun: list[float] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        [outcome] = self.told
        assert isinstance(outcome, Outcome), outcome
        return outcome


def ask(world: SimWorld, at: str, verb: Verb, node: str, **arguments: Any) -> Asked:
    machine = world[at]
    folder = Folder(machine.config, cast(Keys, machine.seat.client(5.0)))
    asker = Asker(folder, new_request(verb, node, "ann", Arguments(**arguments)))
    asked = Asked(world, asker, cast(SimProcess, None))

    def command() -> None:
        try:
            asker.until_taken()
            asked.told.append(asker.watch(lambda _: None, 300.0))
        except StandfastError as error:
            asked.told.append(error)

    asked.process = machine.spawn("standfast", command)
    return asked


def test_a_standby_has_the_primary_hand_over_to_the_third_node(world: SimWorld) -> None:
    world.begin("a")
    asked = ask(world, "c", Verb.SWITCHOVER, "a", to="b", reason="rack")
    world.wait_for("the command ends", lambda: bool(asked.told), 120.0)
    assert asked.outcome.exit_code == 0, asked.outcome
    assert world.primary() is world["b"]
    epoch = world.epoch()
    entry = world.invariants.history_entries["data", epoch]
    assert entry.tree is world["b"].live
    world.check_settled()


def test_a_dead_node_takes_nothing_and_does_nothing_when_it_is_back(world: SimWorld) -> None:
    world.begin("a")
    world["b"].power_cut()
    asked = ask(world, "c", Verb.PROMOTE, "b", accept_data_loss=True)
    world.wait_for("the command ends", lambda: bool(asked.told), 120.0)
    assert isinstance(asked.told[0], NotTaken)
    world["b"].boot()
    world.run(60.0)
    assert world.primary() is world["a"]
    world.check_settled()


def test_a_command_that_died_with_its_machine_is_not_carried_out_later(world: SimWorld) -> None:
    world.begin("a")
    world["a"].kill_agent()
    ask(world, "c", Verb.DEMOTE, "a")
    world.run(3.0)
    world["c"].power_cut()
    world["a"].start_agent()
    world.run(60.0)
    assert world.primary() is world["a"]
    world["c"].boot()
    world.check_settled()


def test_an_agent_that_is_killed_in_the_middle_is_told_and_its_successor_goes_on(
    world: SimWorld,
) -> None:
    world.begin("a")
    asked = ask(world, "c", Verb.SWITCHOVER, "a", to="b")
    world.wait_for("it is taken", lambda: asked.asker.is_taken, 30.0)
    world["a"].kill_agent(again=True)
    world.wait_for("the command ends", lambda: bool(asked.told), SILENT_S + 60.0)
    told = asked.told[0]
    if isinstance(told, Outcome) and told.exit_code:
        assert told.reason in (Reason.INTERRUPTED, Reason.BUSY), told
    world.check_settled()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_nothing_is_begun_twice_or_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for number in range(times()):
        _try(tmp_path / str(number), monkeypatch, seed + 1000 * number)


def _try(directory: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    directory.mkdir()
    chance = random.Random(seed)
    with SimWorld(directory, seed=seed) as world, monkeypatch.context() as patched:
        all_asked: list[Asked] = []
        begin = Work.begin

        def begins(work: Work) -> bool:
            may = begin(work)
            for asked in all_asked:
                if may and asked.asker.id == work.request.id:
                    asked.begun.append(world.now)
            return may

        patched.setattr(Work, "begin", begins)
        world.begin("a")
        for _ in range(6):
            at, node = chance.choice("abc"), chance.choice("abc")
            asked = ask(world, at, Verb.DEMOTE, node, dry_run=True)
            all_asked.append(asked)
            asked.there_at = world.now + _spoil(world, chance, asked, at, node)
            world.run(chance.choice([5.0, 20.0, 70.0]))
        world.run(120.0)
        for asked in all_asked:
            assert len(asked.begun) <= 1, seed
            if asked.begun:
                assert asked.begun[0] - asked.there_at <= MOST_AFTER_S, seed
        assert any(asked.begun for asked in all_asked)
        world.check_no_bug()


def _spoil(world: SimWorld, chance: random.Random, asked: Asked, at: str, node: str) -> float:
    """Something happens soon; returns for how long the command goes on undisturbed."""
    after_s = chance.choice([0.1, 0.6, 1.1, 1.6, 2.5])
    deed = chance.choice(["nothing", "kill", "freeze", "cut", "agent", "agent away", "quorum"])

    def later(seconds: float, act: Any) -> None:
        world.after(seconds, act)

    if deed == "kill":
        later(after_s, lambda: world.clockwork.kill(asked.process))
    elif deed == "freeze":
        later(after_s, lambda: world[at]._freeze(asked.process, chance.choice([3.0, 8.0, 50.0])))
    elif deed == "cut":
        later(after_s, lambda: setattr(world[at].link, "cut", True))
        later(after_s + chance.choice([2.0, 15.0]), lambda: setattr(world[at].link, "cut", False))
    elif deed == "agent":
        later(after_s, lambda: world[node].kill_agent(again=True))
    elif deed == "agent away":
        world[node].kill_agent()
        later(chance.choice([3.0, 25.0, 50.0]), world[node].start_agent)
        return float("inf")  # it withdraws, or is there
    elif deed == "quorum":
        later(after_s, lambda: setattr(world.store, "quorum", False))
        later(after_s + chance.choice([2.0, 9.0]), lambda: setattr(world.store, "quorum", True))
    return after_s if deed in ("kill", "freeze", "cut") else float("inf")
