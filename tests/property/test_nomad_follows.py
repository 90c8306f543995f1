"""Whatever happens, in any order and with cuts anywhere: jobs end up on the primary, none is
stopped where it could come back, and what an operator said of a node stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from standfast.config.nomad import NomadAccess
from standfast.errors import StandfastError
from standfast.nomad import notes
from standfast.nomad.loop import Follower
from standfast.nomad.observation import Role
from standfast.nomad.ports import LocalMeta
from standfast.system import clock
from standfast.system.clock import Deadline
from tests.fakes.nomad_world import FollowerCut, NomadClient, NomadWorld, job
from tests.support.configs import config_of
from tests.support.examples import examples

NAMES = ("a", "b", "c")
BASE = config_of(*NAMES, nomad=NomadAccess(kill_timeout_limit=0.0))
ROUNDS = 12
ROUND_S = 20.0


class FollowedCluster:
    """Three nodes, one of them primary, and a follower's process on each."""

    def __init__(self, kind: str) -> None:
        self.world = NomadWorld(
            {name: NomadClient(name) for name in NAMES}, [job("db", kind), job("sys")]
        )
        self.world.jobs.append(job("free", bound=False))
        self.configs = {name: replace(BASE, node=name) for name in NAMES}
        self.followers: dict[str, Follower] = {}
        self.primary: str | None = None
        self.epoch = 0
        for name in NAMES:
            self.restart(name)

    def restart(self, name: str) -> None:
        self.followers[name] = self.world.follower(self.configs[name])

    def promote(self, name: str) -> None:
        if self.world.clients[name].alive:
            self.primary, self.epoch = name, self.epoch + 1
            self.world.set_epoch(BASE, self.epoch)

    def round(self, name: str, cut_after: int | None = None) -> None:
        if not self.world.clients[name].alive:
            return
        role = Role.PRIMARY if self.primary == name else Role.STANDBY
        self.world.budget = cut_after
        try:
            self.followers[name].round(role, self.epoch)
        except FollowerCut:
            self.restart(name)
        finally:
            self.world.budget = None

    def switch(self, name: str, cut_after: int | None = None) -> None:
        """The primary releases its jobs, then gives the storage to `name`."""
        old = self.primary
        if old is None or old == name or not self.world.clients[old].alive:
            return
        self.world.budget = cut_after
        try:
            self.followers[old].release(Deadline.after(1.0))
        except FollowerCut:
            self.world.budget = None
            self.restart(old)
            return  # its agent starts again, as primary
        except StandfastError:
            pass
        finally:
            self.world.budget = None
        self.promote(name)
        self.followers[old].resume()

    def prepare(self, name: str, cut_after: int | None = None) -> None:
        """The primary has `name` show the meta ahead; the servers hear of it later."""
        old = self.primary
        if old is None or old == name or not self.world.clients[old].alive:
            return
        self.world.budget = cut_after
        try:
            self.followers[old].prepare(name, self.epoch, Deadline.after(1.0))
        except FollowerCut:
            self.restart(old)
        except StandfastError:
            pass
        finally:
            self.world.budget = None

    def kill(self, name: str) -> None:
        self.world.kill(name)
        self.restart(name)
        if self.primary == name:
            self.primary = None

    def do(self, move: tuple[str, str, int | None]) -> None:
        what, name, number = move
        match what:
            case "promote":
                self.promote(name)
            case "switch":
                self.switch(name, number)
            case "prepare":
                self.prepare(name, number)
            case "round":
                self.round(name, number)
            case "kill":
                self.kill(name)
            case "revive":
                self.world.revive(name)
            case "propagate":
                self.world.propagate()
            case "disable":
                self.world.disable(name)
            case "enable":
                self.world.enable(name)
        self.world.now_s += 1.0

    def settle(self) -> None:
        for _ in range(ROUNDS):
            self.world.now_s += ROUND_S
            self.world.propagate()
            for name in NAMES:
                self.round(name)

    def check(self) -> None:
        world = self.world
        for name, client in world.clients.items():
            if not client.alive:
                assert not (client.visible and client.eligible), f"{name} would attract jobs"
                continue
            assert client.visible is (name == self.primary), f"{name}: {client}"
            assert client.eligible is (name not in world.by_operator), f"{name}: {world.log}"
            assert not any(key.endswith(f"/nomad/id-{name}") for key in world.notes), name
        here = [self.primary] if self.primary is not None else []
        for bound in ("db", "sys"):
            allowed = [] if self.primary in world.by_operator else here
            assert set(world.where(bound)) <= set(here), f"{bound}: {world.where(bound)}"
            if allowed:
                assert world.where(bound) == allowed, f"{bound}: {world.log}"


@dataclass(frozen=True, slots=True)
class WorldTime:
    """Stands in for `time` in `standfast.system.clock`: nothing waits, and a sleep is over at once,
    a little later on the world's clock."""

    world: NomadWorld

    def monotonic(self) -> float:
        return self.world.now_s

    def time(self) -> float:
        return self.world.now_s

    def sleep(self, seconds: float) -> None:
        self.world.now_s += seconds


@contextmanager
def settled(kind: str) -> Iterator[FollowedCluster]:
    """A cluster with a as primary, on its world's clock; db is a job of this kind."""
    cluster = FollowedCluster(kind)
    with patch.object(clock, "time", WorldTime(cluster.world)):
        cluster.promote("a")
        cluster.settle()
        yield cluster


CUTS = st.none() | st.integers(0, 6)
MOVES = st.tuples(
    st.sampled_from(
        ("promote", "prepare", "switch", "kill", "revive", "disable", "enable")
        + 3 * ("round",)
        + 2 * ("propagate",)
    ),
    st.sampled_from(NAMES),
    CUTS,
)


@examples(150)
@given(kind=st.sampled_from(["service", "system"]), moves=st.lists(MOVES, max_size=25))
@example(
    kind="service",
    moves=[
        ("promote", "a", None), ("round", "a", None), ("propagate", "a", None),
        ("round", "a", None), ("kill", "a", None), ("promote", "b", None), ("round", "b", 1),
        ("revive", "a", None), ("round", "b", None), ("round", "a", None),
    ],
)  # fmt: skip
def test_jobs_end_up_on_the_primary_whatever_happened(
    kind: str, moves: list[tuple[str, str, int | None]]
) -> None:
    with settled(kind) as cluster:
        for move in moves:
            cluster.do(move)
        # A dead node that nobody serves beside is nobody's to quarantine.
        if cluster.primary is None:
            alive = [name for name in NAMES if cluster.world.clients[name].alive]
            if not alive:
                return
            cluster.promote(alive[0])
        cluster.settle()
        cluster.check()


@given(
    st.integers(0, 6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 12),
    st.integers(0, 6),
    st.sampled_from(["service", "system"]),
)
def test_a_switchover_that_is_cut_anywhere_runs_nothing_twice(
    cut_prepare: int, heard: bool, stubborn: bool, cut_release: int, cut_round: int, kind: str
) -> None:
    with settled(kind) as cluster:
        world = cluster.world
        assert world.where("db") == world.where("sys") == ["a"]
        cluster.prepare("b", cut_prepare)
        if heard:
            world.propagate()
        assert world.where("db") == world.where("sys") == ["a"]
        # What is told to end takes longer than the demotion waits, and than the way of a meta.
        world.lingering = stubborn
        cluster.switch("b", cut_release)
        for turn in range(2 * ROUNDS):
            if turn == ROUNDS // 2:
                world.lingering = False
            for name in NAMES:
                cluster.round(name, cut_round if turn == 0 else None)
                for bound in ("db", "sys"):
                    assert len(world.where(bound)) <= 1, f"{bound} runs twice: {world.log}"
            world.now_s += ROUND_S
            world.propagate()
        cluster.check()


def test_a_dead_primary_that_returns_with_its_meta_attracts_no_job() -> None:
    with settled("service") as cluster:
        world = cluster.world
        cluster.kill("a")
        cluster.promote("b")
        cluster.settle()
        assert world.clients["a"].visible and not world.clients["a"].eligible
        world.revive("a")
        assert world.where("db") == ["b"]
        world.propagate()
        assert world.where("db") == ["b"]
        cluster.settle()
        cluster.check()
        assert world.clients["a"].eligible


@given(st.sampled_from(["service", "system"]))
def test_with_the_meta_ahead_the_jobs_run_in_the_first_round_of_the_new_primary(kind: str) -> None:
    with settled(kind) as cluster:
        world = cluster.world
        cluster.prepare("b")
        world.propagate()
        cluster.round("b")
        assert world.clients["b"].visible and not world.clients["b"].eligible
        cluster.switch("b")
        assert world.where("db") == world.where("sys") == []
        cluster.round("b")
        assert world.where("db") == world.where("sys") == ["b"]
        cluster.settle()
        cluster.check()


def test_a_node_whose_role_does_not_come_takes_the_meta_away_again() -> None:
    with settled("service") as cluster:
        world = cluster.world
        cluster.prepare("b")
        world.propagate()
        cluster.round("b")
        world.now_s += notes.AHEAD_S
        cluster.round("b")
        assert world.clients["b"].local
        world.now_s += 1.0
        cluster.settle()
        assert world.where("db") == ["a"]
        cluster.check()


def test_a_second_switchover_begins_the_time_of_the_first_anew() -> None:
    with settled("service") as cluster:
        world = cluster.world
        for _ in range(3):
            cluster.prepare("b")
            world.propagate()
            cluster.round("b")
            world.now_s += notes.AHEAD_S
            cluster.round("b")
            assert world.clients["b"].visible and not world.clients["b"].eligible
        cluster.switch("b")
        cluster.round("b")
        assert world.where("db") == ["b"]
        cluster.settle()
        cluster.check()


@pytest.mark.parametrize("trouble", ["disabled", "dead", "no jobs"])
def test_a_node_that_can_not_be_made_ready_is_left_as_it_is(trouble: str) -> None:
    with settled("service") as cluster:
        world = cluster.world
        match trouble:
            case "disabled":
                world.disable("b")
            case "dead":
                world.kill("b")
            case _:
                world.placed.clear()
        before = list(world.log)
        cluster.prepare("b")
        assert world.log == before


@pytest.mark.parametrize("comes", [True, False], ids=["the role comes", "it doesn't"])
def test_a_node_that_is_prepared_while_it_looks_is_not_left_out(comes: bool) -> None:
    with settled("service") as cluster:
        world, follower = cluster.world, cluster.followers["b"]
        plain = follower.nomad.local_meta

        def meanwhile(*, deadline: Deadline | None = None) -> LocalMeta:
            seen = plain()
            cluster.prepare("b")
            return seen

        with patch.object(follower.nomad, "local_meta", meanwhile):
            cluster.round("b")
        assert any(key.endswith("/nomad/id-b") for key in world.notes), "the note was taken away"
        world.propagate()
        if comes:
            cluster.switch("b")
        world.now_s += notes.AHEAD_S
        cluster.settle()
        assert world.where("db") == (["b"] if comes else ["a"])
        cluster.check()


def test_who_drains_a_node_that_was_prepared_has_taken_it_over() -> None:
    with settled("service") as cluster:
        world = cluster.world
        cluster.prepare("b")
        world.propagate()
        world.clients["b"].draining = True
        cluster.round("b")
        world.clients["b"].draining = False
        world.by_operator.add("b")
        world.now_s += notes.AHEAD_S
        cluster.settle()
        cluster.check()


def test_a_primary_that_was_prepared_and_gives_the_role_back_is_no_next_one() -> None:
    with settled("service") as cluster:
        world = cluster.world
        cluster.prepare("b")
        world.propagate()
        cluster.switch("b")  # and back, before its first round
        cluster.switch("a")
        for _ in range(6):
            world.now_s += notes.AHEAD_S / 10
            world.propagate()
            for name in NAMES:
                cluster.round(name)
        cluster.check()
