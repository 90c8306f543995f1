"""Jobs follow the storage on a Nomad cluster: the stand-in, and a real one where there is one.

The storage is a word here: which node has it, and for how long nobody does. Everything else is the
agent's: a follower for each node, called as its thread calls it.
"""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.cli import nomad_boot
from standfast.config.consul import ConsulAccess
from standfast.config.model import Config, Paths
from standfast.config.nomad import NomadAccess
from standfast.consul.values import Registration
from standfast.doctor.nomad_checks import constrained_groups, look, stops_when_cut_off
from standfast.errors import StandfastError
from standfast.nomad import remounted
from standfast.nomad.constraints import Meta, Tie, placement
from standfast.nomad.loop import Follower
from standfast.nomad.notes import Notes
from standfast.nomad.observation import Role, kill_timeout_s
from standfast.nomad.path_use import Shown, uses
from standfast.nomad.ports import Allocation
from standfast.system.clock import monotonic, sleep
from standfast.system.environment import TAKEN
from tests.fakes.nomad import NomadStandIn
from tests.fakes.nomad_api import Manner
from tests.fakes.nomad_world import NomadWorld
from tests.support.checkout import CHECKOUT
from tests.support.configs import config_of
from tests.support.consul_clusters import embedded_cluster
from tests.support.figures import note
from tests.support.nomad_clusters import (
    MANAGEMENT,
    NODES,
    REAL,
    SERVER,
    NomadCluster,
    job,
    nomad_binary,
    real_cluster,
    stand_in_cluster,
)
from tests.support.pace import patient
from tests.support.waiting import soon, wait_for

KEY = "storage_role"
EXAMPLE = CHECKOUT / "docs/examples/postgres-on-primary.nomad.hcl"
ONE, TWO = NODES
TICK_S = 0.2
PATIENCE_S = 90.0
"""On a busy machine; what takes how long is told, not judged."""
PAUSE_S = 0.3
"""The storage's, from one primary to the next."""
JOBS = ("db", "web", "sys")


@pytest.fixture(scope="module", params=["stand-in", REAL])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NomadCluster]:
    if request.param == "stand-in":
        with stand_in_cluster() as made:
            yield made
    else:
        with real_cluster(tmp_path_factory.mktemp("nomad-follow")) as made:
            yield made


@dataclass
class TwoFollowers:
    """Two storage nodes; each has a thread that follows, as the agent's does."""

    cluster: NomadCluster
    consul: NomadWorld = field(default_factory=lambda: NomadWorld({}, []))
    primary: str | None = None
    epoch: int = 0
    dead: set[str] = field(default_factory=set)
    followers: dict[str, Follower] = field(default_factory=dict)
    rounds: Counter[str] = field(default_factory=Counter)
    ended: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def config(self, name: str) -> Config:
        return config_of(*NODES, node=name, nomad=NomadAccess())

    def boot(self, name: str) -> None:
        """The node's agent starts."""
        gateway = self.cluster.gateway(name)
        gateway.timeout_s = patient(5.0)
        follower = Follower(self.config(name), gateway, self.consul.consul)
        self.followers[name] = follower
        self.dead.discard(name)
        thread = threading.Thread(target=self._follow, args=(name, follower), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _follow(self, name: str, follower: Follower) -> None:
        last, due = None, 0.0
        while not self.ended.wait(TICK_S) and self.followers.get(name) is follower:
            role = self.role(name)
            if role == last and monotonic() < due:
                continue
            last = role
            report = follower.round(*role)
            self.rounds[name] += 1
            due = monotonic() + min(follower.pause_s(report), 0.5)

    def role(self, name: str) -> tuple[Role, int]:
        if self.primary == name:
            return Role.PRIMARY, self.epoch
        return Role.STANDBY, 0

    def serve(self, name: str) -> None:
        self.epoch += 1
        self.consul.set_epoch(self.config(name), self.epoch)
        self.primary = name

    def switchover(self, name: str, *, ahead: bool = True) -> tuple[float, bool]:
        """How long the release took, and whether it was in order."""
        old = self.followers[str(self.primary)]
        if ahead:
            with suppress(StandfastError):
                old.prepare(name, self.epoch, soon(30.0))
        started, orderly = monotonic(), True
        try:
            old.release(soon(old.release_limit_s()))
        except StandfastError:
            orderly = False
        took_s = monotonic() - started
        self.primary = None
        sleep(PAUSE_S)
        self.serve(name)
        old.resume()
        return took_s, orderly

    def cut(self, name: str) -> None:
        """The node is gone, its Nomad too."""
        del self.followers[name]
        self.dead.add(name)
        if self.primary == name:
            self.primary = None
        self.cluster.machines.kill(name)

    def end(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(patient(60.0))
            assert not thread.is_alive()


@pytest.fixture
def site(cluster: NomadCluster) -> Iterator[TwoFollowers]:
    made = TwoFollowers(cluster)
    cluster.submit(job("db", meta_key=KEY, level="job"))
    cluster.submit(job("web", meta_key=KEY, level="task", tasks=("t", "u")))
    cluster.submit(job("sys", meta_key=KEY, kind="system"))
    for name in NODES:
        made.boot(name)
    made.serve(ONE)
    wait_for(lambda: all_on(made, ONE), PATIENCE_S, "all jobs run on the primary")
    try:
        yield made
    finally:
        made.end()
        for job_id in JOBS:
            cluster.purge(job_id)
        for name in NODES:
            cluster.gateway(name).set_meta(KEY, None)
            cluster.gateway(SERVER).set_eligible(cluster.node_id(name), True)
        wait_for(
            lambda: not any(shows(made, name) for name in NODES),
            PATIENCE_S,
            "no node shows the meta",
        )
        wait_for(lambda: not any(where(made, job_id) for job_id in JOBS), PATIENCE_S, "no job runs")


def allocations(site: TwoFollowers, job_id: str) -> list[Allocation]:
    return list(site.cluster.gateway(SERVER).job_allocations("default", job_id))


def where(site: TwoFollowers, job_id: str) -> list[str]:
    """Nodes on which a job really runs, by the servers' word."""
    names = {site.cluster.node_id(name): name for name in NODES}
    return sorted(
        names[allocation.node_id]
        for allocation in allocations(site, job_id)
        if allocation.client_status == "running"
    )


def all_on(site: TwoFollowers, name: str) -> bool:
    return all(where(site, job_id) == [name] for job_id in JOBS)


def shows(site: TwoFollowers, name: str) -> bool:
    (node,) = site.cluster.gateway(SERVER).nodes([name])
    return KEY in node.meta


def eligible(site: TwoFollowers, name: str) -> bool:
    (node,) = site.cluster.gateway(SERVER).nodes([name])
    return node.eligible


class JobSampler:
    """Where each job runs, looked at all the time: moments on both, and the time on neither."""

    def __init__(self, site: TwoFollowers) -> None:
        self._site = site
        self._ids = {site.cluster.node_id(name): name for name in NODES}
        self._gateway = site.cluster.gateway(SERVER)
        self._ended = threading.Event()
        self.seen: dict[str, list[tuple[float, tuple[str, ...]]]] = {job_id: [] for job_id in JOBS}
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> JobSampler:
        self._thread.start()
        wait_for(lambda: all(self.seen.values()), PATIENCE_S, "a look at each job")
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(patient(60.0))

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            for job_id in JOBS:
                with suppress(StandfastError):
                    listed = self._gateway.job_allocations("default", job_id)
                    nodes = sorted(
                        self._ids[a.node_id] for a in listed if a.client_status == "running"
                    )
                    self.seen[job_id].append((monotonic(), tuple(nodes)))

    def twice(self) -> list[str]:
        return [job_id for job_id, seen in self.seen.items() if any(len(n) > 1 for _, n in seen)]

    def down_s(self, job_id: str, source: str, target: str) -> float:
        """From the last moment on the one to the first on the other."""
        seen = self.seen[job_id]
        left = max(at for at, nodes in seen if nodes == (source,))
        return min(at for at, nodes in seen if nodes == (target,) and at > left) - left

    def came_back(self, job_id: str, source: str) -> bool:
        path = [nodes for _, nodes in self.seen[job_id] if nodes]
        changes = [n for n, before in zip(path[1:], path, strict=False) if n != before]
        return (source,) in changes


@pytest.mark.parametrize("ahead", [True, False], ids=["meta ahead", "meta afterwards"])
def test_a_switchover_takes_the_jobs_along_one_after_the_other_and_none_comes_back(
    site: TwoFollowers, ahead: bool
) -> None:
    with JobSampler(site) as watch:
        release_s, orderly = site.switchover(TWO, ahead=ahead)
        wait_for(lambda: all_on(site, TWO), PATIENCE_S, "all jobs run on the new primary")
        wait_for(lambda: eligible(site, ONE), PATIENCE_S, "the old one takes jobs again")
        site.cluster.stays(lambda: where(site, "db") == [TWO])
    assert orderly
    assert watch.twice() == []
    assert not any(watch.came_back(job_id, ONE) for job_id in JOBS)
    assert not shows(site, ONE)
    assert site.consul.notes == []
    downtimes = site.followers[ONE].downtimes
    wait_for(lambda: not downtimes.pending, PATIENCE_S, "all moves are told")
    told = list(downtimes.known.values())
    assert {downtime.job: downtime.target for downtime in told} == {
        f"{job_id}.g": TWO for job_id in JOBS
    }
    down = {job_id: round(watch.down_s(job_id, ONE, TWO), 1) for job_id in JOBS}
    note(
        f"{site.cluster.kind}: switchover with a pause of {PAUSE_S:g} s, the meta "
        f"{'ahead' if ahead else 'afterwards'}: release "
        f"{release_s:.1f} s, jobs down {down} s, told {[downtime.down_s for downtime in told]}"
    )


def test_a_dead_primary_that_returns_with_its_meta_attracts_no_job(site: TwoFollowers) -> None:
    site.cut(ONE)
    site.serve(TWO)
    wait_for(lambda: not eligible(site, ONE), PATIENCE_S, "the dead one is in quarantine")
    wait_for(
        lambda: all(TWO in where(site, job_id) for job_id in JOBS),
        PATIENCE_S,
        "all jobs run on the other",
    )
    before = {a.id for job_id in JOBS for a in allocations(site, job_id)}
    site.cluster.machines.start(ONE)
    assert shows(site, ONE), "it returned without its meta: nothing is shown by this"
    started = monotonic()
    # Its agent is late: until then the quarantine alone keeps the jobs away.
    site.cluster.stays(lambda: not eligible(site, ONE))
    site.boot(ONE)
    wait_for(lambda: eligible(site, ONE) and not shows(site, ONE), PATIENCE_S, "it is a standby")
    took_s = monotonic() - started
    site.cluster.stays(lambda: TWO in where(site, "db"))
    new = [a for job_id in JOBS for a in allocations(site, job_id) if a.id not in before]
    assert not [a for a in new if a.node_id == site.cluster.node_id(ONE)]
    wait_for(lambda: all_on(site, TWO), PATIENCE_S, "all jobs run on the new primary alone")
    assert site.consul.notes == []
    note(f"{site.cluster.kind}: a standby like any other {took_s:.1f} s after its return")


def down(cluster: NomadCluster) -> None:
    if isinstance(cluster.machines, NomadStandIn):
        cluster.machines.misbehave(Manner.ERROR)
    else:
        cluster.machines.kill(SERVER)


def back(cluster: NomadCluster) -> None:
    if isinstance(cluster.machines, NomadStandIn):
        cluster.machines.misbehave(Manner.NORMAL)
    else:
        cluster.machines.start(SERVER)


def test_with_nomad_down_the_storage_moves_and_the_jobs_follow_later(site: TwoFollowers) -> None:
    down(site.cluster)
    try:
        took_s, orderly = site.switchover(TWO)
        assert not orderly
        assert site.primary == TWO
        before = site.rounds[TWO]
        wait_for(lambda: site.rounds[TWO] > before, PATIENCE_S, "the new primary found no Nomad")
    finally:
        back(site.cluster)
    started = monotonic()
    wait_for(lambda: all_on(site, TWO), PATIENCE_S, "all jobs run on the new primary")
    waited_s = monotonic() - started
    wait_for(lambda: eligible(site, ONE) and not shows(site, ONE), PATIENCE_S, "it is a standby")
    note(
        f"{site.cluster.kind}: Nomad down: the release gave up after {took_s:.1f} s, the "
        f"jobs were there {waited_s:.1f} s after Nomad was back"
    )


def test_a_switchover_while_nomad_is_down_on_the_new_primary(site: TwoFollowers) -> None:
    site.cluster.machines.kill(TWO)
    _, orderly = site.switchover(TWO)
    assert orderly
    site.cluster.stays(lambda: all(where(site, job_id) == [] for job_id in JOBS), nodes=[ONE])
    site.cluster.machines.start(TWO)
    wait_for(lambda: all_on(site, TWO), PATIENCE_S, "all jobs run on the new primary")


def test_doctor_counts_the_constrained_groups_and_names_those_that_run_on_when_cut_off(
    site: TwoFollowers,
) -> None:
    guarded = job("guarded", meta_key=KEY)
    guarded["TaskGroups"][0]["Disconnect"] = {"StopOnClientAfter": 25 * 10**9, "Replace": True}
    site.cluster.submit(guarded)
    site.cluster.submit(job("free"))
    try:
        gateway = site.cluster.gateway()
        constrained = constrained_groups(site.config(ONE), gateway, gateway.own_node())
    finally:
        site.cluster.purge("guarded")
        site.cluster.purge("free")
    assert constrained == (4, ("db.g", "sys.g", "web.g"))


@pytest.mark.parametrize("cluster", [REAL], indirect=True)  # a stand-in reads no HCL
def test_the_example_job_is_accepted_and_bound_to_the_primary(cluster: NomadCluster) -> None:
    text = EXAMPLE.read_text()
    where_and_who = (
        f"-address=http://{cluster.machines.address(SERVER)}",
        f"-token={MANAGEMENT}",
    )
    done = subprocess.run(
        [nomad_binary(), "job", "validate", *where_and_who, str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=patient(60.0),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Job validation successful" in done.stdout
    assert "Warning" not in done.stdout, done.stdout
    parsed = cluster.must("POST", "/v1/jobs/parse", {"JobHCL": text, "Canonicalize": True})
    node = cluster.gateway().own_node()
    assert placement(parsed, "db", Meta(KEY, "primary"), node).tie is Tie.PRIMARY
    volumes = {"services": "/data/services"}
    assert "postgres" in uses(parsed, "db", Shown("/data/services", host_volumes=volumes))
    assert stops_when_cut_off(parsed["TaskGroups"][0])
    assert kill_timeout_s(parsed, "db") == 26.0


def test_after_a_remount_who_uses_the_path_is_restarted_and_nobody_else(
    cluster: NomadCluster, tmp_path: Path
) -> None:
    """Not the followers' work: a client's, by its own agent."""
    path = "/data/services"
    jobs = {"user": "restart", "idle": None, "spared": "none"}
    for name, policy in jobs.items():
        document = job(name)
        document["Constraints"] = [
            {"LTarget": "${node.unique.name}", "Operand": "=", "RTarget": ONE}
        ]
        document["Meta"] = {"standfast_on_remount": policy} if policy else None
        if name != "idle":
            document["TaskGroups"][0]["Tasks"][0]["Env"] = {"DIRECTORY": f"{path}/x"}
        cluster.submit(document)
    try:
        wait_for(
            lambda: all(cluster.running(name) == [ONE] for name in jobs), PATIENCE_S, "all run"
        )
        wait_for(
            lambda: all(_started(cluster, name) for name in jobs), PATIENCE_S, "all have begun"
        )
        before = {name: _started(cluster, name) for name in jobs}
        sleep(1.1)
        made = replace(
            TwoFollowers(cluster).config(ONE),
            paths=Paths(bind=Path(path), run=tmp_path, state=tmp_path),
            nomad=NomadAccess(),
        )
        said = remounted.after(made, soon(30.0), cluster.gateway(ONE))
        assert len(said) == 2
        wait_for(
            lambda: _started(cluster, "user") != before["user"], PATIENCE_S, "the user is restarted"
        )
        assert remounted.retry(made, soon(30.0), cluster.gateway(ONE)) == ()
        assert {n: _started(cluster, n) for n in ("idle", "spared")} == {
            n: before[n] for n in ("idle", "spared")
        }
    finally:
        for name in jobs:
            cluster.purge(name)


def _started(cluster: NomadCluster, job_id: str) -> str:
    """When the running task of a job began, as Nomad writes it; empty: none runs."""
    listed = cluster.gateway(SERVER).job_allocations("default", job_id)
    running = [alloc.tasks for alloc in listed if alloc.client_status == "running"]
    return running[0][0].started_at if running and running[0] else ""


def test_doctor_can_read_everything_that_it_judges(
    cluster: NomadCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TAKEN, "NOMAD_TOKEN", cluster.secret)
    with embedded_cluster() as consul:
        made = replace(
            TwoFollowers(cluster).config(ONE),
            paths=Paths(run=tmp_path, state=tmp_path),
            consul=ConsulAccess(addresses=(consul.address,)),
            nomad=NomadAccess(address=cluster.machines.address(ONE), request_timeout=20.0),
        )
        findings = {verdict.check: verdict for verdict in look(made, ONE)}
    assert set(findings) == {"following", "nomad", "meta", "cut-off", "leaders"}
    assert all(finding.ok for finding in findings.values()), findings
    assert "it answers; node1 is ready and eligible" in findings["nomad"].evidence


def test_before_its_nomad_starts_a_former_primary_is_made_ineligible_by_another_agent(
    cluster: NomadCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TAKEN, "NOMAD_TOKEN", cluster.secret)
    there = cluster.machines.address(TWO)
    host, _, port = there.rpartition(":")
    cluster.gateway(ONE).set_meta(KEY, "primary")
    site = TwoFollowers(cluster)
    wait_for(lambda: shows(site, ONE), PATIENCE_S, "the servers know of its meta")
    cluster.machines.kill(ONE)
    try:
        with embedded_cluster() as consul:
            made = replace(
                site.config(ONE),
                paths=Paths(run=tmp_path, state=tmp_path),
                consul=ConsulAccess(addresses=(consul.address,)),
                nomad=NomadAccess(address=there, request_timeout=20.0),
            )
            with pytest.raises(StandfastError, match="Consul knows no other agent"):
                nomad_boot.attempt(made)
            consul.gateway().register(
                Registration("nomad-http", "nomad", host, int(port), {}, 60.0, "http")
            )
            (said,) = nomad_boot.attempt(made)
            assert nomad_boot.attempt(made) == []
            (noted,) = Notes(made, consul.gateway()).load().values()
        assert "takes no jobs" in said
        assert not eligible(site, ONE)
        assert (noted.note.node, noted.note.by, noted.firm) == (ONE, ONE, True)
    finally:
        cluster.machines.start(ONE)
        cluster.gateway(ONE).set_meta(KEY, None)
        wait_for(lambda: not shows(site, ONE), PATIENCE_S, "its meta is gone")
        cluster.gateway(SERVER).set_eligible(cluster.node_id(ONE), True)
