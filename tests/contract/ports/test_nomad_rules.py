"""What following relies on in Nomad's rules: when a meta counts, and where a job is placed.

Run on the stand-in, which test_nomad.py beside this holds to a real Nomad, and on the world in
memory in which the follower's histories are made (tests/fakes/nomad_world.py): that one knows one
meta, and time passes there when the test says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.errors import NomadError
from standfast.nomad.gateway import NomadAgent
from standfast.nomad.ports import Allocation, Node, NomadGateway
from tests.contract.ports.implementations import Implementation, each
from tests.fakes import nomad_world
from tests.fakes.nomad import NomadStandIn
from tests.fakes.nomad_world import FakeNomad, NomadClient, NomadWorld
from tests.support.nomad_clusters import NODES, SERVER, job, stand_in_cluster
from tests.support.waiting import wait_for

PORTS = (NomadGateway,)
KEY, VALUE = nomad_world.KEY, nomad_world.VALUE
OLD, NEW = NODES
SOON_S = 10.0


@dataclass
class Scene:
    """Two nodes and the job `db`, which wants the primary's meta; nobody has that."""

    on: Callable[[str], NomadGateway]
    """By a node's own agent."""
    submit: Callable[[], object]
    kill: Callable[[str], object]
    start: Callable[[str], object]
    pass_time: Callable[[], object]
    """What is on its way arrives."""

    def node(self, name: str) -> Node:
        (node,) = self.on(NEW).nodes([name])
        return node

    def allocations(self, name: str) -> list[Allocation]:
        return [
            allocation
            for allocation in self.on(NEW).allocations(self.node(name).id)
            if allocation.job_id == "db"
        ]

    def runs_on(self, name: str) -> bool:
        return [
            allocation.client_status for allocation in self.allocations(name) if not allocation.over
        ] == ["running"]

    def eventually(self, what: Callable[[], bool], text: str) -> None:
        def looked() -> bool:
            self.pass_time()
            return what()

        wait_for(looked, SOON_S, text)

    def begin_with_primary(self) -> None:
        """OLD is it, the servers know, and the job runs there."""
        self.on(OLD).set_meta(KEY, VALUE)
        self.submit()
        self.eventually(lambda: self.runs_on(OLD), "the job runs")


@contextlib.contextmanager
def stand_in(_directory: Path) -> Iterator[Scene]:
    with stand_in_cluster() as cluster:
        yield Scene(
            lambda name: cluster.gateway(SERVER if name == NEW else name),
            lambda: cluster.submit(job("db", meta_key=KEY)),
            cluster.machines.kill,
            cluster.machines.start,
            lambda: None,
        )


@contextlib.contextmanager
def in_memory(_directory: Path) -> Iterator[Scene]:
    world = NomadWorld({name: NomadClient(name) for name in NODES}, [])

    def submit() -> None:
        world.jobs.append(nomad_world.job("db"))
        world.schedule()

    yield Scene(
        lambda name: FakeNomad(world, name), submit, world.kill, world.revive, world.propagate
    )


IMPLEMENTATIONS = (
    Implementation((NomadAgent, NomadStandIn), stand_in, name="stand-in"),
    Implementation((FakeNomad,), in_memory),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        yield made


def test_a_meta_counts_at_once_for_the_agent_and_later_for_the_servers(scene: Scene) -> None:
    own = scene.on(OLD)
    assert own.set_meta(KEY, VALUE).meta[KEY] == VALUE
    assert own.local_meta().dynamic[KEY] == VALUE
    assert KEY not in scene.node(OLD).meta
    scene.eventually(lambda: scene.node(OLD).meta.get(KEY) == VALUE, "the servers know of it")
    assert KEY not in own.set_meta(KEY, None).meta
    assert scene.node(OLD).meta.get(KEY) == VALUE
    scene.eventually(lambda: KEY not in scene.node(OLD).meta, "the servers know that it is gone")


def test_a_job_waits_for_its_meta_and_stays_when_that_goes(scene: Scene) -> None:
    scene.submit()
    scene.pass_time()
    assert scene.allocations(OLD) == scene.allocations(NEW) == []
    scene.on(OLD).set_meta(KEY, VALUE)
    scene.eventually(lambda: scene.runs_on(OLD), "it runs")
    scene.on(OLD).set_meta(KEY, None)
    scene.eventually(lambda: KEY not in scene.node(OLD).meta, "the servers know that it is gone")
    assert scene.runs_on(OLD)


def test_a_stopped_job_goes_nowhere_that_takes_no_jobs(scene: Scene) -> None:
    scene.begin_with_primary()
    gateway, (first,) = scene.on(NEW), scene.allocations(OLD)
    gateway.set_eligible(first.node_id, False)
    assert not scene.node(OLD).eligible and scene.runs_on(OLD), "what runs there goes on"
    gateway.stop(first.id)
    scene.eventually(lambda: gateway.allocation(first.id).over, "it has ended")
    assert all(allocation.over for allocation in scene.allocations(OLD))
    gateway.set_eligible(first.node_id, True)
    scene.eventually(lambda: scene.runs_on(OLD), "another one runs there")


def test_who_takes_no_jobs_takes_none_after_its_death_and_shows_its_meta_still(
    scene: Scene,
) -> None:
    scene.begin_with_primary()
    gateway, node_id = scene.on(NEW), scene.node(OLD).id
    (first,) = scene.allocations(OLD)
    scene.kill(OLD)
    gateway.set_eligible(node_id, False)
    scene.eventually(lambda: scene.node(OLD).status == "down", "it is down")
    scene.eventually(lambda: gateway.allocation(first.id).client_status == "lost", "it is lost")
    with pytest.raises(NomadError):
        scene.on(OLD).local_meta()
    with pytest.raises(NomadError):
        gateway.set_meta(KEY, None, node_id=node_id)
    scene.start(OLD)
    scene.eventually(lambda: scene.node(OLD).status == "ready", "it is ready")
    assert (scene.node(OLD).eligible, scene.node(OLD).meta.get(KEY)) == (False, VALUE)
    scene.pass_time()
    assert not scene.runs_on(OLD)
    assert scene.on(OLD).local_meta().meta[KEY] == VALUE
