"""After a remount: which allocations are restarted, how, and what happens while Nomad is away."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.assembly.client import restart_allocations
from standfast.clients import dependants
from standfast.clients.dependants import Change
from standfast.config.model import Config, Paths
from standfast.config.nomad import NomadAccess
from standfast.errors import NomadError, NomadOutcome, Refused, StandfastError
from standfast.nomad import remounted
from standfast.nomad.ports import Allocation, CsiVolume, Node, TaskState
from standfast.system.clock import Deadline, parse_rfc3339, utc_now
from standfast.system.locks import exclusive
from tests.support.observations import config
from tests.support.pace import patient

LONG_AGO = "2026-11-22T14:46:17.246234081Z"
LATER = "2126-11-22T14:46:17Z"


def job(name: str, policy: str | None = None, path: str = "/data/services") -> dict[str, Any]:
    task = {"Name": "t", "Driver": "raw_exec", "Config": {"command": f"{path}/run"}}
    return {
        "ID": name,
        "Meta": None if policy is None else {"standfast_on_remount": policy},
        "TaskGroups": [{"Name": "g", "Tasks": [task, {"Name": "side"}]}],
    }


def allocation(document: dict[str, Any], started: str = LONG_AGO, **more: Any) -> Allocation:
    base = Allocation(
        id=f"{document['ID']}-0123456789",
        name="x",
        namespace="default",
        job_id=document["ID"],
        group="g",
        node_id="id-a",
        desired="run",
        client_status="running",
        job=document,
        tasks=(TaskState(name="t", state="running", restarts=0, started_at=started),),
        modify_index=1,
        next_id="",
    )
    return structs.replace(base, **more)


@dataclass
class FakeAllocations:
    found: list[Allocation]
    broken: dict[str, NomadError] = field(default_factory=dict)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    csi: dict[str, CsiVolume | NomadError] = field(default_factory=dict)

    def csi_volume(self, namespace: str, volume_id: str) -> CsiVolume:
        known = self.csi[f"{namespace}/{volume_id}"]
        if isinstance(known, NomadError):
            raise known
        return known

    def stop(self, alloc_id: str) -> str:
        self._ask("stop", alloc_id.partition("-")[0])
        return "an evaluation"

    def own_node(self) -> Node:
        if "*" in self.broken:
            raise self.broken["*"]
        return Node(
            id="id-a", name="a", status="ready", eligible=True, host_volumes={}, datacenter="dc1"
        )

    def allocations(self, node_id: str) -> list[Allocation]:
        return self.found

    def _ask(self, *words: str) -> None:
        if words[1] in self.broken:
            raise self.broken[words[1]]
        self.asked.append(words)

    def restart(self, alloc_id: str, *, deadline: Deadline) -> None:
        self._ask("restart", alloc_id.partition("-")[0])

    def signal(self, alloc_id: str, task: str, signal: str, *, deadline: Deadline) -> None:
        self._ask("signal", alloc_id.partition("-")[0], task, signal)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(remounted, "JITTER_S", 0.0)
    return config(paths=Paths(run=tmp_path, state=tmp_path), nomad=NomadAccess())


def after(made: Config, nomad: FakeAllocations) -> list[str]:
    return list(remounted.after(made, Deadline.after(5), nomad))  # type: ignore[arg-type]


def retry(made: Config, nomad: FakeAllocations) -> list[str]:
    return list(remounted.retry(made, Deadline.after(5), nomad))  # type: ignore[arg-type]


def test_who_uses_the_path_is_restarted_and_nobody_else(made: Config) -> None:
    nomad = FakeAllocations([allocation(job("db")), allocation(job("web", path="/srv"))])
    assert after(made, nomad) == ["restarted db.g (db-01234): t: raw_exec configuration"]
    assert nomad.asked == [("restart", "db")]


def claims(volume_id: str, policy: str | None = None, **more: Any) -> Allocation:
    """An allocation whose task has a CSI volume."""
    document = job("db", policy, path="/srv")
    group = document["TaskGroups"][0]
    group["Volumes"] = {"v": {"Type": "csi", "Source": volume_id, **more}}
    group["Tasks"][0]["VolumeMounts"] = [{"Volume": "v"}]
    return allocation(document, name="db.g[1]")


OURS = {"server": "data.service.consul", "share": "/persist/services"}


def test_who_has_the_volume_by_csi_is_replaced_as_no_restart_mounts_that_anew(
    made: Config,
) -> None:
    known = {"default/pg[1]": CsiVolume(id="pg[1]", context=OURS)}
    nomad = FakeAllocations([claims("pg", PerAlloc=True)], csi=dict(known))
    assert after(made, nomad) == ["had another placed for db.g (db-01234): t: CSI volume pg[1]"]
    assert nomad.asked == [("stop", "db")]
    nomad = FakeAllocations([claims("pg", "signal", PerAlloc=True)], csi=dict(known))
    after(made, nomad)
    assert nomad.asked == [("signal", "db", "t", "SIGHUP")], "a job's own word"
    elsewhere = CsiVolume(id="pg", context={**OURS, "server": "nas"})
    nomad = FakeAllocations([claims("pg")], csi={"default/pg": elsewhere})
    assert after(made, nomad) == [] == nomad.asked


def test_a_csi_volume_that_can_not_be_read_is_anothers_and_a_nomad_that_is_away_is_asked_again(
    made: Config,
) -> None:
    gone = NomadError("403 'Permission denied'", NomadOutcome.DENIED)
    nomad = FakeAllocations([claims("pg"), allocation(job("web"))], csi={"default/pg": gone})
    after(made, nomad)
    assert nomad.asked == [("restart", "web")]
    away = NomadError("no answer", NomadOutcome.TIMEOUT)
    nomad = FakeAllocations([claims("pg")], csi={"default/pg": away})
    with pytest.raises(StandfastError, match="restarted once Nomad answers"):
        after(made, nomad)
    nomad.csi = {"default/pg": CsiVolume(id="pg", context=OURS)}
    retry(made, nomad)
    assert nomad.asked == [("stop", "db")]


@pytest.mark.parametrize(
    "exempt",
    [
        allocation(job("db"), desired="stop"),
        allocation(job("db"), client_status="pending"),
        allocation(job("db"), client_status="complete"),
        allocation(job("db"), started=LATER),
        allocation(job("db"), started=""),
    ],
    ids=["ending", "not-begun", "over", "begun-after", "no-task-begun"],
)
def test_who_has_the_new_mount_anyway_is_left_alone(made: Config, exempt: Allocation) -> None:
    nomad = FakeAllocations([exempt])
    assert after(made, nomad) == []
    assert nomad.asked == []


def test_who_can_not_say_when_it_began_is_restarted(made: Config) -> None:
    nomad = FakeAllocations(
        [allocation(job("db"), started="yesterday"), allocation(job("x"), tasks=())]
    )
    after(made, nomad)
    assert sorted(nomad.asked) == [("restart", "db"), ("restart", "x")]


def test_the_own_word_of_a_job_goes_before_the_configuration(made: Config) -> None:
    jobs = [job("a"), job("b", "none"), job("c", "signal"), job("d", "restart"), job("e", "odd")]
    nomad = FakeAllocations([allocation(job_spec) for job_spec in jobs])
    said = after(made, nomad)
    assert sorted(nomad.asked) == [
        ("restart", "a"),
        ("restart", "d"),
        ("restart", "e"),
        ("signal", "c", "t", "SIGHUP"),
    ]
    assert "left b.g (b-012345) alone: t: raw_exec configuration" in said
    nomad.asked.clear()
    after(structs.replace(made, nomad=structs.replace(made.nomad, on_remount="none")), nomad)
    assert sorted(nomad.asked) == [("restart", "d"), ("signal", "c", "t", "SIGHUP")]


def test_as_many_are_restarted_at_once_as_may_be(made: Config) -> None:
    lock, running, most = threading.Lock(), 0, 0
    both, third = threading.Barrier(2), threading.Event()

    class Slow(FakeAllocations):
        def restart(self, alloc_id: str, *, deadline: Deadline) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            if most < 3:
                both.wait(patient(10))
                third.wait(0.1)  # none comes; time for one that should not
            else:
                third.set()
            with lock:
                running -= 1

    nomad = Slow([allocation(job(name)) for name in "abcd"])
    assert len(after(made, nomad)) == 4
    assert most == 2


def test_nodes_begin_at_different_moments_and_the_second_half_of_a_run_is_never_waited_for(
    made: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []
    waited: list[float] = []

    def uniform(least: float, most: float) -> float:
        drawn.append((least, most))
        return most

    monkeypatch.setattr(random, "uniform", uniform)
    monkeypatch.setattr(remounted, "sleep", waited.append)
    for jitter_s in (2.0, 600.0):
        nomad = FakeAllocations([allocation(job("db"))])
        monkeypatch.setattr(remounted, "JITTER_S", jitter_s)
        remounted.after(made, Deadline.after(100), nomad)  # type: ignore[arg-type]
        assert nomad.asked == [("restart", "db")]
    assert drawn == [(0.0, 2.0), (0.0, 600.0)]
    assert waited[0] == 2.0 and 0 < waited[1] <= 50.0


def test_while_nomad_is_away_it_is_written_down_and_done_later(made: Config) -> None:
    nomad = FakeAllocations([allocation(job("db"))])
    nomad.broken["*"] = NomadError("refused", NomadOutcome.UNREACHABLE)
    with pytest.raises(StandfastError, match="once Nomad answers: refused"):
        after(made, nomad)
    with pytest.raises(StandfastError):
        retry(made, nomad)
    nomad.broken.clear()
    assert len(retry(made, nomad)) == 1
    assert retry(made, nomad) == []
    assert nomad.asked == [("restart", "db")]


def test_one_that_fails_is_asked_again_and_the_others_are_not(made: Config) -> None:
    nomad = FakeAllocations([allocation(job("db")), allocation(job("web"))])
    nomad.broken["web"] = NomadError("no path to node", NomadOutcome.NOT_FOUND)
    said = after(made, nomad)
    assert "web.g (web-0123) uses the old mount (t: raw_exec configuration): no path" in said[-1]
    nomad.broken.clear()
    retry(made, nomad)
    assert sorted(nomad.asked) == [("restart", "db"), ("restart", "web")]
    assert not (made.run_dir / remounted.PENDING).exists()


def test_a_late_restart_spares_who_began_after_the_change(made: Config) -> None:
    nomad = FakeAllocations([])
    nomad.broken["*"] = NomadError("refused", NomadOutcome.UNREACHABLE)
    with pytest.raises(StandfastError):
        after(made, nomad)
    path = made.run_dir / remounted.PENDING
    path.write_text(json.dumps({"v": 1, "at": parse_rfc3339(LONG_AGO) - 60, "done": []}))
    nomad.broken.clear()
    nomad.found = [allocation(job("db"))]
    assert retry(made, nomad) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"at": "x", "done": 1}'])
def test_a_damaged_list_of_what_is_due_means_everything(made: Config, text: str) -> None:
    (made.run_dir).mkdir(parents=True)
    (made.run_dir / remounted.PENDING).write_text(text)
    nomad = FakeAllocations([allocation(job("db"))])
    retry(made, nomad)
    assert nomad.asked == [("restart", "db")]


def test_the_remount_calls_it_and_only_where_nomad_is_configured(
    made: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Config] = []

    def noted(config: Config, deadline: Deadline) -> list[str]:
        calls.append(config)
        return ["restarted db"]

    monkeypatch.setattr(remounted, "after", noted)
    change = Change("data", Path("/data/services"), "10.0.0.1", 5)
    hooks = (restart_allocations,)
    assert dependants.call_hooks(made, hooks, change) == ["restarted db"]
    off = structs.replace(made, nomad=NomadAccess(enabled=False))
    assert dependants.call_hooks(off, hooks, change) == []
    assert calls == [made]


def test_times_are_read_as_nomad_writes_them() -> None:
    assert parse_rfc3339("1970-01-01T00:00:01.500000000Z") == 1.5
    assert parse_rfc3339("1970-01-01T01:00:00+01:00") == 0.0
    assert parse_rfc3339(LONG_AGO) < utc_now() + 10**9
    for wrong in ("", "x", "2026-11-22T14:46:17"):
        with pytest.raises(ValueError, match=r"."):
            parse_rfc3339(wrong)


def test_an_event_and_the_timer_do_not_restart_the_same_twice(made: Config) -> None:
    nomad = FakeAllocations([allocation(job("db"))])
    nomad.broken["*"] = NomadError("refused", NomadOutcome.UNREACHABLE)
    with pytest.raises(StandfastError, match="once Nomad answers"):
        after(made, nomad)
    nomad.broken.clear()
    with exclusive(made.run_dir / remounted.LOCK, "the other one"), pytest.raises(Refused):
        remounted.retry(made, Deadline.after(0.1), nomad)  # type: ignore[arg-type]
    assert nomad.asked == []
    assert len(retry(made, nomad)) == 1
    assert retry(made, nomad) == []
