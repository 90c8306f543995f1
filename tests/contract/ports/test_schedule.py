"""What a plan relies on in the schedule of the replication: starts and stops may be repeated.

Run on the demo's, which only does what its script says, on the tests' fake and on the
simulation's timers. The real one is systemd's: tests/labs/containers/test_ports.py runs this suite
in a node of the container lab.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.demo.stand_ins.schedule import OnDemand
from standfast.node.ports import Schedule
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.machine import FakeSchedule
from tests.sim.one_node import on_a_node
from tests.sim.systemd import SimSchedule

PORTS = (Schedule,)


@dataclass
class Scene:
    """A schedule that does not run."""

    schedule: Schedule
    runs: Callable[[], bool] | None = None
    """None: nothing runs by itself there."""


@contextlib.contextmanager
def demo(_directory: Path) -> Iterator[Scene]:
    yield Scene(OnDemand())


@contextlib.contextmanager
def fake(_directory: Path) -> Iterator[Scene]:
    schedule = FakeSchedule()
    yield Scene(schedule, lambda: schedule.runs)


@contextlib.contextmanager
def simulated(directory: Path) -> Iterator[Scene]:
    with on_a_node(directory) as node:
        yield Scene(SimSchedule(node.seat), lambda: bool(node.seat.timers))


IMPLEMENTATIONS = (
    Implementation((OnDemand,), demo),
    Implementation((FakeSchedule,), fake),
    Implementation((SimSchedule,), simulated),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        yield made


def test_it_runs_from_its_start_to_its_stop(scene: Scene) -> None:
    schedule = scene.schedule
    for act, should in ((schedule.stop, False), (schedule.start, True), (schedule.stop, False)):
        for _ in range(2):
            act()
            if scene.runs is not None:
                assert scene.runs() is should
    if scene.runs is None:
        pytest.skip("nothing runs by itself there: starts and stops can be repeated, that is all")
