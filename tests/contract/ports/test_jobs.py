"""What a plan relies on in the jobs that run on the primary.

Run on the follower of Nomad, with Nomad's rules in memory, and on the tests' fake. The follower on
a real Nomad is in tests/contract/test_nomad_follow.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from standfast.config.nomad import NomadAccess
from standfast.errors import NomadOutcome, StandfastError
from standfast.node.ports import Jobs
from standfast.nomad import steps
from standfast.nomad.loop import Follower
from standfast.nomad.observation import Role
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.machine import FakeJobs
from tests.fakes.nomad_world import NomadClient, NomadWorld, job
from tests.support.observations import config
from tests.support.waiting import soon

PORTS = (Jobs,)
EPOCH = 1


@dataclass
class Scene:
    """The primary `a` of EPOCH, whose jobs run; `b` is the other storage node."""

    jobs: Jobs
    run_here: Callable[[], bool]
    """Whether jobs of the primary run on this node, or come back to it."""
    cut: Callable[[], object]
    """From now on the scheduler does not answer."""


@contextlib.contextmanager
def nomad(_directory: Path) -> Iterator[Scene]:
    where = NomadWorld({name: NomadClient(name) for name in "ab"}, [job("db"), job("web")])
    base = config("a", nomad=NomadAccess(kill_timeout_limit=0.5))
    where.set_epoch(base, EPOCH)
    follower = where.follower(base)
    follower.round(Role.PRIMARY, EPOCH)
    where.propagate()

    def run_here() -> bool:
        where.propagate()
        return "a" in where.where("db") + where.where("web")

    def cut() -> None:
        where.broken["*"] = NomadOutcome.UNREACHABLE

    with patch.object(steps, "POLL_S", 0.01):
        yield Scene(follower, run_here, cut)


@contextlib.contextmanager
def fake(_directory: Path) -> Iterator[Scene]:
    jobs = FakeJobs()

    def cut() -> None:
        jobs.error = StandfastError("a test says so")

    yield Scene(jobs, lambda: jobs.running, cut)


IMPLEMENTATIONS = (
    Implementation((Follower,), nomad),
    Implementation((FakeJobs,), fake),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        assert made.run_here()
        yield made


def test_what_was_released_has_ended_and_does_not_come_back(scene: Scene) -> None:
    for _ in range(2):
        scene.jobs.release(soon(10))
        assert not scene.run_here()
    scene.jobs.resume()
    scene.jobs.resume()


def test_another_node_is_prepared_while_the_jobs_go_on_here(scene: Scene) -> None:
    assert scene.jobs.prepare("b", EPOCH, soon(10))
    assert scene.run_here()


def test_a_scheduler_that_does_not_answer_is_an_error_in_bounded_time(scene: Scene) -> None:
    scene.cut()
    with pytest.raises(StandfastError):
        scene.jobs.prepare("b", EPOCH, soon(1))
    with pytest.raises(StandfastError):
        scene.jobs.release(soon(1))
    scene.jobs.resume()


def test_how_long_a_release_may_take_is_known_before(scene: Scene) -> None:
    assert 0 < scene.jobs.release_limit_s() < float("inf")
