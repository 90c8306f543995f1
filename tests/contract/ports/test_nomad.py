"""What Standfast relies on in Nomad, by the calls of the gateway: a stand-in and a real one.

Everything is asked with a token that has the shipped policy alone. Each test has a meta key of its
own, so that nobody waits for a meta of an earlier one to go.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from standfast.errors import NomadError, NomadOutcome
from standfast.nomad.gateway import NomadAgent
from standfast.nomad.ports import Allocation, Evaluation, Node, NomadGateway
from standfast.system.clock import monotonic
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.nomad import NomadStandIn
from tests.support.figures import note
from tests.support.nomad_clusters import (
    CLIENT_POLICY,
    NODES,
    ONE_AT_A_TIME,
    POLICY,
    SERVER,
    NomadCluster,
    job,
    real_cluster,
    stand_in_cluster,
)
from tests.support.pace import patient
from tests.support.waiting import wait_for

PORTS = (NomadGateway,)
NOBODY = "00000000-0000-0000-0000-000000000000"
OLD, NEW = NODES
_numbers = itertools.count(1)


IMPLEMENTATIONS = (
    Implementation((NomadAgent, NomadStandIn), lambda _: stand_in_cluster(), name="stand-in"),
    Implementation((NomadAgent,), real_cluster, (ONE_AT_A_TIME,), name="real"),
)


@pytest.fixture(scope="module", params=each(IMPLEMENTATIONS))
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NomadCluster]:
    with request.param.make(tmp_path_factory.mktemp("nomad")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def prepared(cluster: NomadCluster) -> list[str]:
    """Keys of metas that OLD has and the servers know of: one wait for all tests together."""
    keys = [f"prepared_{next(_numbers)}" for _ in range(10)]
    for key in keys:
        cluster.gateway(OLD).set_meta(key, "primary")
    wait_for(
        lambda: set(keys) <= set(cluster.gateway(OLD).own_node().meta),
        cluster.meta_s,
        "the servers know of all of them",
    )
    return keys


class Scene:
    """One test's meta key and jobs; they are gone and both nodes in order when it is over."""

    def __init__(self, cluster: NomadCluster, prepared: list[str]) -> None:
        self.cluster = cluster
        self.prepared = prepared
        self.key = f"role_{next(_numbers)}"
        self.jobs: list[str] = []

    def submit(self, name: str, *, bound: bool = True, **options: Any) -> str:
        job_id = f"{name}-{self.key}"
        self.jobs.append(job_id)
        self.cluster.submit(job(job_id, meta_key=self.key if bound else None, **options))
        return job_id

    def post(self, node: str, value: str | None = "primary") -> None:
        self.cluster.gateway(node).set_meta(self.key, value)

    def seen(self, node: str) -> str | None:
        """What the servers know of the node's meta."""
        return self.node(node).meta.get(self.key)

    def node(self, name: str) -> Node:
        (node,) = self.cluster.gateway(SERVER).nodes([name])
        return node

    def wait_until_seen(self, node: str, value: str | None = "primary") -> None:
        wait_for(lambda: self.seen(node) == value, self.cluster.meta_s, f"{node}'s meta is {value}")

    def begin_with_primary(self) -> None:
        """OLD is it, and the servers know."""
        self.key = self.prepared.pop()
        assert self.seen(OLD) == "primary"

    def make_primary(self, node: str) -> None:
        self.post(node)
        self.wait_until_seen(node)

    def change_a_node(self) -> None:
        """A node changes, and the servers know; no job of this test is concerned."""
        key = f"unrelated_{next(_numbers)}"
        self.cluster.gateway(OLD).set_meta(key, "primary")
        wait_for(lambda: key in self.node(OLD).meta, self.cluster.meta_s, f"{OLD} has another meta")

    def eligible(self, node: str, eligible: bool) -> None:
        self.cluster.gateway(SERVER).set_eligible(self.cluster.node_id(node), eligible)

    def allocs(self, job_id: str) -> list[Allocation]:
        return list(self.cluster.gateway(SERVER).job_allocations("default", job_id))

    def on(self, job_id: str, node: str) -> list[Allocation]:
        node_id = self.cluster.node_id(node)
        return [alloc for alloc in self.allocs(job_id) if alloc.node_id == node_id]

    def runs_on(self, job_id: str, node: str) -> bool:
        """There, by the client's word, and nowhere else."""
        live = [alloc for alloc in self.allocs(job_id) if not alloc.over]
        node_id = self.cluster.node_id(node)
        return [(allocation.node_id, allocation.client_status) for allocation in live] == [
            (node_id, "running")
        ]

    def runs_nowhere(self, job_id: str) -> bool:
        return all(alloc.over for alloc in self.allocs(job_id))

    def wait_until_runs_on(self, job_id: str, node: str, within_s: float | None = None) -> None:
        limit_s = within_s or self.cluster.meta_s
        wait_for(lambda: self.runs_on(job_id, node), limit_s, f"{job_id} runs on {node}")

    def running(self, job_id: str, node: str) -> Allocation:
        (alloc,) = [
            allocation
            for allocation in self.on(job_id, node)
            if allocation.client_status == "running"
        ]
        return alloc

    def stop(self, job_id: str, node: str) -> str:
        alloc = self.running(job_id, node)
        return self.cluster.gateway(OLD).stop(alloc.id)

    def end(self) -> None:
        for job_id in self.jobs:
            self.cluster.purge(job_id)
        for node in NODES:
            self.eligible(node, True)


@pytest.fixture
def scene(cluster: NomadCluster, prepared: list[str]) -> Iterator[Scene]:
    made = Scene(cluster, prepared)
    yield made
    made.end()


def outcome_of(call: Callable[[], object]) -> tuple[NomadOutcome, str]:
    with pytest.raises(NomadError) as caught:
        call()
    return caught.value.outcome, str(caught.value)


# The own agent and its meta


def test_the_own_agent_knows_its_node_and_the_servers_know_it_too(cluster: NomadCluster) -> None:
    for name in NODES:
        gateway = cluster.gateway(name)
        agent, node = gateway.agent(), gateway.own_node()
        assert (agent.name, agent.server, agent.region) == (name, False, "global")
        assert (node.name, node.id, node.status, node.eligible) == (
            name,
            agent.node_id,
            "ready",
            True,
        )


def test_a_server_is_no_node_and_may_be_the_leader(cluster: NomadCluster) -> None:
    gateway = cluster.gateway(SERVER)
    agent = gateway.agent()
    assert (agent.server, agent.node_id, agent.failover_heartbeat_ttl_s) == (True, "", 300.0)
    assert agent.rpc_address == gateway.leader() == cluster.gateway(NEW).leader()
    assert outcome_of(gateway.own_node)[0] is NomadOutcome.NOT_FOUND
    assert outcome_of(gateway.local_meta) == (
        NomadOutcome.BAD_REQUEST,
        f"Nomad at {cluster.machines.address(SERVER)}, reading this node's meta: 400 'No local "
        "Node and node_id not provided'. Check that the agent is Nomad 1.5 or later and runs a "
        "client.",
    )


def test_a_new_meta_is_there_at_once_for_the_agent_and_late_for_the_servers(scene: Scene) -> None:
    gateway = scene.cluster.gateway(OLD)
    started = monotonic()
    assert gateway.set_meta(scene.key, "primary").meta[scene.key] == "primary"
    assert gateway.local_meta().dynamic[scene.key] == "primary"
    assert scene.seen(OLD) is None
    scene.wait_until_seen(OLD)
    note(f"{scene.cluster.kind}: a meta is visible after {monotonic() - started:.1f} s")
    assert scene.seen(NEW) is None
    assert scene.key not in gateway.set_meta(scene.key, None).meta
    assert scene.seen(OLD) == "primary"
    scene.wait_until_seen(OLD, None)


def test_a_static_meta_that_is_unset_is_null(scene: Scene) -> None:
    gateway = scene.cluster.gateway(NEW)
    try:
        made = gateway.set_meta("class_note", None)
        assert (made.dynamic["class_note"], "class_note" in made.meta) == (None, False)
        assert made.static["class_note"] == "x"
    finally:
        gateway.set_meta("class_note", "x")


def test_a_meta_survives_the_death_of_its_agent_and_so_do_the_tasks(scene: Scene) -> None:
    scene.begin_with_primary()
    job_id = scene.submit("steady")
    scene.wait_until_runs_on(job_id, OLD)
    before = scene.running(job_id, OLD)
    scene.cluster.machines.kill(OLD)
    assert outcome_of(scene.cluster.gateway(OLD).local_meta)[0] is NomadOutcome.UNREACHABLE
    scene.cluster.machines.start(OLD)
    assert scene.cluster.gateway(OLD).local_meta().dynamic[scene.key] == "primary"
    wait_for(lambda: scene.node(OLD).status == "ready", scene.cluster.down_s, "it is ready again")
    assert scene.seen(OLD) == "primary"
    after = scene.running(job_id, OLD)
    assert (after.id, [task.started_at for task in after.tasks]) == (
        before.id,
        [task.started_at for task in before.tasks],
    )


# Which moves there are


@pytest.mark.parametrize("level", ["job", "group", "task"])
def test_what_finds_no_node_waits_blocked_and_says_why(scene: Scene, level: str) -> None:
    job_id = scene.submit("waiting", level=level)
    assert scene.allocs(job_id) == []
    gateway = scene.cluster.gateway(NEW)

    def waiting_and_its_cause() -> list[Evaluation]:
        """The blocked evaluation and the one that left it; a node's change adds more of these."""
        listed = scene.cluster.must("GET", f"/v1/job/{job_id}/evaluations")
        evaluations = [gateway.evaluation(doc["ID"]) for doc in listed]
        blocked = [each for each in evaluations if each.status == "blocked"]
        causes = [each for each in evaluations if each.blocked_id in {b.id for b in blocked}]
        return [*blocked, *causes]

    def both() -> bool:
        return [each.status for each in waiting_and_its_cause()] == ["blocked", "complete"]

    wait_for(both, 20.0, "one evaluation is blocked, by one that is complete")
    scene.change_a_node()
    wait_for(both, 20.0, "so it is after a change of a node that doesn't help")
    unplaced = waiting_and_its_cause()[0].unplaced
    assert unplaced == {"g": f"of 2 nodes, 2 don't meet ${{meta.{scene.key}}} = primary"}
    assert gateway.job("default", job_id)["ID"] == job_id
    assert job_id in [listed_job.id for listed_job in gateway.jobs()]


def test_a_node_that_gains_the_meta_gets_what_waits_and_keeps_what_runs(scene: Scene) -> None:
    service, system = scene.submit("service"), scene.submit("system", kind="system")
    assert scene.allocs(service) == scene.allocs(system) == []
    scene.post(OLD)
    scene.wait_until_runs_on(service, OLD)
    scene.wait_until_runs_on(system, OLD)
    ids = {alloc.id for job_id in (service, system) for alloc in scene.allocs(job_id)}

    scene.post(OLD, None)
    scene.post(NEW)
    scene.wait_until_seen(OLD, None)
    scene.wait_until_seen(NEW)
    scene.cluster.must("POST", f"/v1/job/{service}/evaluate",
                       {"JobID": service, "EvalOptions": {"ForceReschedule": True}})  # fmt: skip
    scene.cluster.stays(lambda: scene.runs_on(service, OLD))
    # A system job starts on the new node while the old copy runs on: it would run twice.
    wait_for(
        lambda: len([alloc for alloc in scene.allocs(system) if not alloc.over]) == 2,
        5.0,
        "two copies",
    )
    assert ids <= {alloc.id for job_id in (service, system) for alloc in scene.allocs(job_id)}


def test_a_planned_move_never_runs_a_job_twice_and_nothing_comes_back(scene: Scene) -> None:
    scene.begin_with_primary()
    jobs = [scene.submit("service", stubborn_s=1.0), scene.submit("system", kind="system"),
            scene.submit("task", level="task")]  # fmt: skip
    elsewhere = scene.submit("elsewhere", bound=False)
    for job_id in jobs:
        scene.wait_until_runs_on(job_id, OLD)
    wait_for(lambda: len(scene.cluster.running(elsewhere)) == 1, 5.0, "the other one runs")
    stayed = [alloc.id for alloc in scene.allocs(elsewhere)]
    twice: list[str] = []

    def check() -> None:
        for job_id in jobs:
            if (
                len([alloc for alloc in scene.allocs(job_id) if alloc.client_status == "running"])
                > 1
            ):
                twice.append(job_id)

    started = monotonic()
    scene.eligible(OLD, False)
    assert not scene.node(OLD).eligible
    evaluations = [scene.stop(job_id, OLD) for job_id in jobs]

    def all_over() -> bool:
        check()
        return all(scene.runs_nowhere(job_id) for job_id in jobs)

    wait_for(all_over, 10.0, "all are over")
    over_s = monotonic() - started
    evaluation = scene.cluster.gateway(NEW).evaluation(evaluations[0])
    assert evaluation.blocked_id
    assert list(evaluation.unplaced) == ["g"]
    scene.post(OLD, None)
    scene.post(NEW)

    def all_moved() -> bool:
        check()
        return all(scene.runs_on(job_id, NEW) for job_id in jobs)

    wait_for(all_moved, scene.cluster.meta_s, "all have moved")
    moved_s = monotonic() - started
    scene.wait_until_seen(OLD, None)
    scene.eligible(OLD, True)
    scene.cluster.stays(all_moved)
    note(f"{scene.cluster.kind}: a planned move: over {over_s:.1f} s, there {moved_s:.1f} s later")
    assert twice == []
    assert [alloc.id for alloc in scene.allocs(elsewhere)] == stayed
    # What waited blocked has no link to what it replaces.
    assert [allocation.next_id for allocation in scene.on(jobs[0], OLD)] == [""]


def test_with_the_new_meta_visible_a_stopped_job_moves_and_starts_after_its_end(
    scene: Scene,
) -> None:
    scene.begin_with_primary()
    job_id = scene.submit("stubborn", stubborn_s=patient(1.5))
    scene.wait_until_runs_on(job_id, OLD)
    scene.make_primary(NEW)
    scene.eligible(OLD, False)
    started = monotonic()
    scene.stop(job_id, OLD)
    wait_for(lambda: scene.on(job_id, NEW), 5.0, "it is placed on the new node")
    assert scene.on(job_id, NEW)[0].client_status == "pending"
    assert scene.on(job_id, OLD)[0].client_status == "running"
    scene.wait_until_runs_on(job_id, NEW, 20.0)
    (old,), (new,) = scene.on(job_id, OLD), scene.on(job_id, NEW)
    assert old.tasks[0].finished_at < new.tasks[0].started_at
    note(f"{scene.cluster.kind}: a stubborn job has moved in {monotonic() - started:.1f} s")


def test_what_waited_blocked_runs_twice_when_the_meta_comes_before_the_old_ones_end(
    scene: Scene,
) -> None:
    """So everything has to be over before a new meta is on its way."""
    scene.begin_with_primary()
    jobs = [
        scene.submit(kind, kind=kind, stubborn_s=scene.cluster.stubborn_s)
        for kind in ("service", "system")
    ]
    for job_id in jobs:
        scene.wait_until_runs_on(job_id, OLD)
    scene.eligible(OLD, False)
    for job_id in jobs:
        scene.stop(job_id, OLD)
    scene.post(NEW)

    def twice(job_id: str) -> bool:
        both = [*scene.on(job_id, OLD), *scene.on(job_id, NEW)]
        return [alloc.client_status for alloc in both] == ["running", "running"]

    wait_for(lambda: all(map(twice, jobs)), scene.cluster.meta_s, "both run twice")


def test_a_meta_ahead_places_nothing_until_its_node_takes_jobs_and_then_at_once(
    scene: Scene,
) -> None:
    """Through another node's agent, as the old primary prepares the new one."""
    scene.begin_with_primary()
    service = scene.submit("service")
    system = scene.submit("system", kind="system")
    for job_id in (service, system):
        scene.wait_until_runs_on(job_id, OLD)
    old, new = (scene.cluster.node_id(node) for node in (OLD, NEW))
    gateway = scene.cluster.gateway(OLD)
    gateway.set_eligible(new, False)
    assert gateway.set_meta(scene.key, "primary", node_id=new).meta[scene.key] == "primary"
    scene.wait_until_seen(NEW)
    scene.cluster.stays(lambda: not scene.on(system, NEW))
    gateway.set_eligible(old, False)
    for job_id in (service, system):
        scene.stop(job_id, OLD)
    wait_for(lambda: all(map(scene.runs_nowhere, (service, system))), 10.0, "both are over")
    scene.cluster.stays(lambda: not scene.on(service, NEW) and not scene.on(system, NEW))
    started = monotonic()
    gateway.set_eligible(new, True)
    for job_id in (service, system):
        scene.wait_until_runs_on(job_id, NEW)
    note(f"{scene.cluster.kind}: with the meta ahead both run after {monotonic() - started:.1f} s")
    scene.cluster.machines.kill(NEW)
    with pytest.raises(NomadError):
        gateway.set_meta(scene.key, None, node_id=new)
    scene.cluster.machines.start(NEW)


def test_a_stop_before_the_servers_see_the_new_meta_puts_the_job_back(scene: Scene) -> None:
    scene.begin_with_primary()
    job_id = scene.submit("early")
    scene.wait_until_runs_on(job_id, OLD)
    first = scene.running(job_id, OLD).id
    scene.post(OLD, None)
    scene.post(NEW)
    scene.stop(job_id, OLD)

    def another() -> bool:
        return scene.runs_on(job_id, OLD) and scene.running(job_id, OLD).id != first

    wait_for(another, 5.0, "another one runs there")
    scene.wait_until_seen(NEW)
    scene.wait_until_seen(OLD, None)
    scene.cluster.stays(lambda: scene.runs_on(job_id, OLD))


def test_a_dead_primary_in_quarantine_attracts_nothing_when_it_returns(scene: Scene) -> None:
    scene.begin_with_primary()
    gateway = scene.cluster.gateway(NEW)
    old_id = scene.cluster.node_id(OLD)
    job_id = scene.submit("lost")
    scene.wait_until_runs_on(job_id, OLD)
    lost = scene.running(job_id, OLD)
    scene.cluster.machines.kill(OLD)
    try:
        gateway.set_eligible(old_id, False)  # the servers do that without the node
        assert outcome_of(lambda: gateway.restart(lost.id))[0] in (
            NomadOutcome.SERVER_ERROR,  # the servers still think that there is a way
            NomadOutcome.NOT_FOUND,
        )
        wait_for(
            lambda: gateway.node(old_id).status == "down", scene.cluster.down_s, "it counts as down"
        )
        wait_for(lambda: gateway.allocation(lost.id).client_status == "lost", 5.0, "it is lost")
        assert gateway.node(old_id).meta[scene.key] == "primary"
        outcome, text = outcome_of(lambda: gateway.restart(lost.id))
        assert (outcome, "404 " in text) == (NomadOutcome.NOT_FOUND, True)
    finally:
        scene.cluster.machines.start(OLD)
    wait_for(
        lambda: gateway.node(old_id).status == "ready", scene.cluster.down_s, "it is ready again"
    )
    node = gateway.node(old_id)
    assert (node.eligible, node.meta[scene.key]) == (False, "primary")
    later = scene.submit("later")
    scene.cluster.stays(lambda: scene.runs_nowhere(later) and not scene.on(later, OLD))
    # Lifted too early, the old meta draws everything there: unset it first.
    gateway.set_eligible(old_id, True)
    wait_for(lambda: scene.runs_on(later, OLD), 10.0, "it is drawn there")


def test_a_frozen_agent_is_a_node_that_the_servers_can_not_reach(scene: Scene) -> None:
    old_id = scene.cluster.node_id(OLD)
    gateway = scene.cluster.gateway(NEW)
    machines = scene.cluster.machines
    machines.freeze(OLD)
    try:
        own = NomadAgent(machines.address(OLD), token=scene.cluster.secret, timeout_s=0.5)
        assert outcome_of(own.local_meta)[0] is NomadOutcome.TIMEOUT
        gateway.set_eligible(old_id, False)
        wait_for(
            lambda: gateway.node(old_id).status == "down", scene.cluster.down_s, "it counts as down"
        )
    finally:
        machines.thaw(OLD)
    wait_for(
        lambda: gateway.node(old_id).status == "ready", scene.cluster.down_s, "it is ready again"
    )
    assert not gateway.node(old_id).eligible


def test_without_servers_a_client_answers_for_itself_to_those_it_knows_alone(scene: Scene) -> None:
    """So with ACLs a client that has just booted can't be asked before it has found a server."""
    machines = scene.cluster.machines
    known = scene.cluster.gateway(OLD)
    stranger = scene.cluster.gateway(OLD, token=scene.cluster.token(POLICY.read_text()))
    old_id = known.own_node().id
    machines.kill(SERVER)
    try:
        assert known.set_meta(scene.key, "primary").meta[scene.key] == "primary"
        assert known.agent().node_id == old_id
        calls: list[Callable[[], object]] = [
            known.leader,
            known.nodes,
            known.own_node,
            lambda: known.set_eligible(old_id, False),
            stranger.agent,
            stranger.local_meta,
            lambda: stranger.set_meta(scene.key, None),
        ]
        for call in calls:
            with pytest.raises(NomadError) as caught:
                call()
            error = caught.value
            assert (error.outcome, error.maybe_applied) == (NomadOutcome.SERVER_ERROR, False)
        machines.kill(OLD)
        machines.launch(OLD)
        wait_for(
            lambda: outcome_of(known.local_meta)[0] is not NomadOutcome.UNREACHABLE,
            20.0,
            "the agent answers",
        )
        assert outcome_of(known.local_meta)[0] is NomadOutcome.SERVER_ERROR
    finally:
        machines.start(SERVER)

    def back() -> bool:
        try:
            return known.own_node().status == "ready"
        except NomadError:
            return False

    wait_for(back, 30.0, "the servers are back")
    assert known.local_meta().dynamic[scene.key] == "primary"


# Allocations


def test_a_restart_is_one_of_every_task_in_place(scene: Scene) -> None:
    job_id = scene.submit("pair", bound=False, tasks=("t", "u"))
    wait_for(
        lambda: [alloc.client_status for alloc in scene.allocs(job_id)] == ["running"],
        10.0,
        "it runs",
    )
    before = scene.allocs(job_id)[0]
    gateway = scene.cluster.gateway(NEW)
    gateway.restart(before.id)

    def again() -> bool:
        tasks = gateway.allocation(before.id).tasks
        return all(task.state == "running" and task.restarts == 1 for task in tasks)

    wait_for(again, 10.0, "both tasks run again")
    after = gateway.allocation(before.id)
    assert [task.name for task in after.tasks] == ["t", "u"]
    for old, new in zip(before.tasks, after.tasks, strict=True):
        assert new.started_at > old.started_at
    assert [alloc.id for alloc in scene.allocs(job_id)] == [before.id]
    (listed,) = [
        allocation
        for allocation in gateway.allocations(before.node_id)
        if allocation.id == before.id
    ]
    assert listed.job["TaskGroups"][0]["Tasks"][1]["Name"] == "u"
    gateway.signal(before.id, "t", "SIGCONT")
    gateway.signal(before.id, None, "SIGCONT")
    assert outcome_of(lambda: gateway.signal(before.id, "x", "SIGCONT"))[0] == "not-found"
    gateway.stop(before.id)
    wait_for(lambda: gateway.allocation(before.id).over, 10.0, "it is over")
    refusal = outcome_of(lambda: gateway.restart(before.id))
    assert (refusal[0], "that should not run" in refusal[1]) == ("server-error", True)


def test_what_does_not_exist_has_a_name(cluster: NomadCluster) -> None:
    gateway = cluster.gateway(NEW)
    calls: list[Callable[[], object]] = [
        lambda: gateway.node(NOBODY),
        lambda: gateway.allocation(NOBODY),
        lambda: gateway.stop(NOBODY),
        lambda: gateway.restart(NOBODY),
        lambda: gateway.signal(NOBODY, None, "SIGHUP"),
        lambda: gateway.evaluation(NOBODY),
        lambda: gateway.job("default", "nobody/knows"),
        lambda: gateway.csi_volume("default", "nobody[0]"),
        lambda: gateway.set_eligible(NOBODY, False),
    ]
    assert [outcome_of(call)[0] for call in calls] == [NomadOutcome.NOT_FOUND] * len(calls)
    assert gateway.nodes(["nobody"]) == ()
    assert gateway.job_allocations("default", "nobody") == ()
    outcome, text = outcome_of(lambda: gateway.set_meta("bad key!", "x"))
    assert outcome is NomadOutcome.BAD_REQUEST
    assert "must be valid dotted hcl identifiers" in text


def test_a_region_that_nobody_knows_is_no_way_to_the_servers(cluster: NomadCluster) -> None:
    gateway = cluster.gateway(region="nowhere")
    outcome, text = outcome_of(gateway.nodes)
    assert (outcome, "No path to region" in text) == (NomadOutcome.SERVER_ERROR, True)
    assert cluster.gateway(region="global").nodes()


# ACLs and namespaces


def test_a_namespace_that_can_not_be_read_is_left_out_without_a_word(scene: Scene) -> None:
    cluster = scene.cluster
    cluster.must("POST", "/v1/namespace/web", {"Name": "web"})
    here = scene.submit("here", bound=False, kind="system")
    there = f"night/ly-{scene.key}"
    cluster.submit(job(there, namespace="web", kind="system"))
    gateway = cluster.gateway(NEW)
    node_id = cluster.node_id(OLD)

    def jobs(nomad: NomadAgent) -> set[tuple[str, str]]:
        running = [
            allocation
            for allocation in nomad.allocations(node_id)
            if allocation.client_status == "running"
        ]
        return {(alloc.namespace, alloc.job_id) for alloc in running} & both

    try:
        both = {("default", here), ("web", there)}
        wait_for(lambda: jobs(gateway) == both, 10.0, "both run")
        assert {(listed_job.namespace, listed_job.id) for listed_job in gateway.jobs()} >= both
        assert gateway.job("web", there)["ID"] == there
        of_web = cluster.gateway(NEW, namespace="web")
        assert jobs(of_web) == {("web", there)}
        assert {listed_job.namespace for listed_job in of_web.jobs()} == {"web"}

        rules = POLICY.read_text().replace('namespace "*"', 'namespace "web"')
        narrow = cluster.gateway(NEW, token=cluster.token(rules))
        assert jobs(narrow) == {("web", there)}
        assert {listed_job.namespace for listed_job in narrow.jobs()} == {"web"}
        assert outcome_of(lambda: narrow.job("default", here))[0] is NomadOutcome.DENIED
        (hidden, *_) = scene.allocs(here)
        assert outcome_of(lambda: narrow.stop(hidden.id))[0] is NomadOutcome.DENIED
        (shown, *_) = narrow.job_allocations("web", there)
        assert narrow.allocation(shown.id).job_id == there
        eval_id = narrow.stop(shown.id)
        assert narrow.evaluation(eval_id, namespace="web").namespace == "web"
        assert outcome_of(lambda: narrow.evaluation(eval_id))[0] is NomadOutcome.DENIED
    finally:
        cluster.purge(there, "web")


def test_no_token_and_an_unknown_one_are_denied_alike(cluster: NomadCluster) -> None:
    for secret in ("", NOBODY):
        gateway = cluster.gateway(OLD, token=secret)
        for call in (gateway.local_meta, gateway.nodes, gateway.agent):
            outcome, text = outcome_of(call)
            assert outcome is NomadOutcome.DENIED
            assert "403 'Permission denied'" in text


STORAGE, CLIENT = POLICY.read_text(), CLIENT_POLICY.read_text()
NODE_WRITES = {"set_meta", "set_meta elsewhere", "set_eligible"}
NODE_READS = {"own_node", "local_meta", "nodes", "node", "allocations"}
JOB_READS = {"allocation", "allocations", "job", "job_allocations", "evaluation", "csi_volume"}
CHANGES = {"stop", "restart", "signal"}
NOT_A_CLIENT_S = NODE_WRITES | {"jobs"}


def without(policy: str, rule: str) -> str:
    """A policy without one of its blocks or capabilities."""
    block = re.compile(
        rf"^{rule} \{{.*?^\}}$" if rule in ("node", "agent") else rf'"{rule}",? ?', re.M | re.S
    )
    left, count = block.subn("", policy)
    assert count == 1, rule
    return left


@pytest.mark.parametrize(
    ("rules", "missing"),
    [
        (STORAGE.replace('"write"', '"read"'), NODE_WRITES),
        (without(STORAGE, "node"), NODE_WRITES | NODE_READS),
        (without(STORAGE, "read-job"), JOB_READS),
        (without(STORAGE, "list-jobs"), {"jobs"}),
        (without(STORAGE, "alloc-lifecycle"), CHANGES),
        (without(STORAGE, "agent"), {"agent", "own_node"}),
        (STORAGE, set()),
        (without(CLIENT, "node"), NOT_A_CLIENT_S | NODE_READS),
        (without(CLIENT, "read-job"), NOT_A_CLIENT_S | JOB_READS),
        (without(CLIENT, "alloc-lifecycle"), NOT_A_CLIENT_S | CHANGES),
        (without(CLIENT, "agent"), NOT_A_CLIENT_S | {"agent", "own_node"}),
        (CLIENT, NOT_A_CLIENT_S),
    ],
    ids=["node read", "no node", "no read-job", "no list-jobs", "no alloc-lifecycle", "no agent",
         "shipped", "client: no node", "client: no read-job", "client: no alloc-lifecycle",
         "client: no agent", "client: shipped"],
)  # fmt: skip
def test_a_shipped_policy_is_enough_and_nothing_of_it_too_much(
    scene: Scene, rules: str, missing: set[str]
) -> None:
    job_id = scene.submit("acl", bound=False)
    wait_for(
        lambda: [alloc.client_status for alloc in scene.allocs(job_id)] == ["running"],
        10.0,
        "it runs",
    )
    (alloc,) = scene.allocs(job_id)
    (doc, *_) = scene.cluster.must("GET", f"/v1/job/{job_id}/evaluations")
    gateway = scene.cluster.gateway(OLD, token=scene.cluster.token(rules))
    calls: dict[str, Callable[[], object]] = {
        "agent": gateway.agent,
        "own_node": gateway.own_node,
        "local_meta": gateway.local_meta,
        "set_meta": lambda: gateway.set_meta(scene.key, None),
        "set_meta elsewhere": lambda: gateway.set_meta(
            scene.key, None, node_id=scene.cluster.node_id(NEW)
        ),
        "leader": gateway.leader,
        "nodes": gateway.nodes,
        "node": lambda: gateway.node(alloc.node_id),
        "set_eligible": lambda: gateway.set_eligible(alloc.node_id, True),
        "allocations": lambda: _some(gateway.allocations(alloc.node_id)),
        "allocation": lambda: gateway.allocation(alloc.id),
        "jobs": lambda: _some(gateway.jobs()),
        "job": lambda: gateway.job("default", job_id),
        "job_allocations": lambda: gateway.job_allocations("default", job_id),
        "evaluation": lambda: gateway.evaluation(doc["ID"]),
        "csi_volume": lambda: _even_if_gone(lambda: gateway.csi_volume("default", "nobody")),
        "restart": lambda: gateway.restart(alloc.id),
        "signal": lambda: _when_it_runs(lambda: gateway.signal(alloc.id, None, "SIGCONT")),
        "stop": lambda: gateway.stop(alloc.id),
    }
    denied = set()
    for name, call in calls.items():
        try:
            call()
        except NomadError as error:
            unseen = name == "allocation" and error.outcome is NomadOutcome.NOT_FOUND
            assert error.outcome is NomadOutcome.DENIED or unseen, error
            denied.add(name)
    assert denied == missing


def _some(listed: object) -> None:
    """A namespace that can't be read is left out of a list without a word."""
    if not listed:
        raise NomadError("an empty list", NomadOutcome.DENIED)


def _even_if_gone(call: Callable[[], object]) -> None:
    """Whether it is there is told only to who may read it."""
    try:
        call()
    except NomadError as error:
        if error.outcome is not NomadOutcome.NOT_FOUND:
            raise


def _when_it_runs(call: Callable[[], None]) -> None:
    """Right after a restart there is nothing to be signalled for a moment."""

    def signalled() -> bool:
        try:
            call()
        except NomadError as error:
            if error.outcome is NomadOutcome.DENIED:
                raise
            return False
        return True

    wait_for(signalled, 10.0, "there is something to be signalled")
