"""A Nomad cluster in memory: what its servers know, what its clients do, and how late.

It keeps to what a real 2.0.6 was seen to do (tests/contract/ports/test_nomad.py holds it to
that): a client's new meta reaches the servers late, nothing running moves because of it, it
survives the death of the agent, as does an eligibility; what can't be placed waits blocked until a
node changes. Not kept to: resources, deployments, drains, disconnected clients, reschedule delays.
Time passes when somebody asks: what was due until then has happened.
"""

from __future__ import annotations

import heapq
import itertools
import random
import uuid
from collections.abc import Callable, Iterator, Mapping

from standfast.system.clock import monotonic
from tests.fakes.nomad_jobs import Doc, canonical, end_s, misfits, stamp
from tests.fakes.nomad_objects import STATIC_META, Alloc, NomadNode, NomadTask, Refusal


class NomadState:
    """Not thread-safe: the HTTP server takes one request after the other."""

    def __init__(
        self,
        names: tuple[str, ...],
        *,
        meta_delay_s: tuple[float, float] = (5.0, 10.0),
        down_after_s: float = 20.0,
        start_s: float = 0.5,
        volumes: Mapping[str, str] | None = None,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.meta_delay_s = meta_delay_s
        self.down_after_s = down_after_s
        self.start_s = start_s
        self._now = now
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._index = 10
        self.nodes = {name: NomadNode(name, volumes=dict(volumes or {})) for name in names}
        self.jobs: dict[tuple[str, str], Doc] = {}
        self.allocs: dict[str, Alloc] = {}
        self.evals: dict[str, Doc] = {}
        self.csi_volumes: dict[tuple[str, str], Doc] = {}

    # Time

    def advance(self) -> None:
        """Let happen what was due until now."""
        while self._due and self._due[0][0] <= self._now():
            heapq.heappop(self._due)[2]()

    def _later(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self._now() + seconds, next(self._order), event))

    def index(self) -> int:
        self._index += 1
        return self._index

    # Machines

    def kill(self, name: str) -> None:
        """As kill -9 of the agent: its tasks run on, its dynamic meta is on its disk."""
        node = self.nodes[name]
        node.alive = False
        self._silent(node)

    def start(self, name: str) -> None:
        node = self.nodes[name]
        node.alive = True
        self._heard(node)

    def freeze(self, name: str) -> None:
        node = self.nodes[name]
        node.frozen = True
        self._silent(node)

    def thaw(self, name: str) -> None:
        node = self.nodes[name]
        node.frozen = False
        self._heard(node)

    def _silent(self, node: NomadNode) -> None:
        node.life += 1
        life = node.life
        self._later(self.down_after_s, lambda: self._down(node, life))

    def _down(self, node: NomadNode, life: int) -> None:
        if node.life != life:
            return
        node.status = "down"
        hit = [allocation for allocation in self._on(node) if allocation.live]
        for alloc in hit:
            alloc.client_status, alloc.desired = "lost", "stop"
            alloc.index = self.index()
        self._evaluate_jobs({self._key(allocation.job) for allocation in hit}, "node-update")

    def _heard(self, node: NomadNode) -> None:
        """A registration tells the servers the meta at once."""
        node.life += 1
        node.status = "ready"
        node.seen = node.meta
        for alloc in self._on(node):
            if alloc.desired == "stop":
                self._end(alloc)
            elif alloc.client_status == "pending":
                self._begin(alloc)
        self._node_changed(node)

    # What is asked of a client

    def set_meta(self, node: NomadNode, meta: Mapping[str, str | None]) -> None:
        node.dynamic = {
            key: value
            for key, value in {**node.dynamic, **meta}.items()
            if value is not None or key in STATIC_META
        }
        node.post += 1
        post, life = node.post, node.life

        def visible() -> None:
            if (node.post, node.life) == (post, life):
                node.seen = node.meta
                self._node_changed(node)

        self._later(random.uniform(*self.meta_delay_s), visible)

    def restart(self, alloc: Alloc) -> None:
        if not alloc.live:
            raise Refusal(500, "restart of an alloc that should not run")
        for task in alloc.tasks.values():
            task.restarts += 1
            task.state, task.started_at = "running", stamp()
        alloc.index = self.index()

    def signal(self, alloc: Alloc, task: str) -> None:
        if task and task not in alloc.tasks:
            raise Refusal(500, "Task not found")
        if alloc.client_status != "running" or not alloc.node.beats:
            raise Refusal(500, "Task not running")

    # What is asked of the servers

    def set_eligible(self, node: NomadNode, eligible: bool) -> list[str]:
        was, node.eligible = node.eligible, eligible
        return self._node_changed(node) if eligible and not was else []

    def stop(self, alloc: Alloc) -> str:
        """Only what still has to run is replaced."""
        if not alloc.live or alloc.desired != "run":
            return self._evaluate(self._key(alloc.job), "alloc-stop")
        return self._evaluate(self._key(alloc.job), "alloc-stop", moved=alloc)

    def evaluate(self, key: tuple[str, str]) -> str:
        return self._evaluate(key, "job-register")

    def register(self, doc: Doc) -> str:
        doc = canonical(doc)
        doc["JobModifyIndex"] = self.index()
        self.jobs[self._key(doc)] = doc
        return self._evaluate(self._key(doc), "job-register")

    def deregister(self, key: tuple[str, str], *, purge: bool) -> str:
        job = self.jobs[key]
        job["Stop"] = True
        eval_id = self._evaluate(key, "job-deregister")
        if purge:
            del self.jobs[key]
        return eval_id

    # The scheduler

    def _node_changed(self, node: NomadNode) -> list[str]:
        """System jobs, jobs with something on the node, and what waits blocked."""
        keys = {self._key(alloc.job) for alloc in self._on(node) if alloc.live}
        keys |= {key for key, job in self.jobs.items() if job["Type"] == "system"}
        keys |= {
            (doc["Namespace"], doc["JobID"])
            for doc in self.evals.values()
            if doc["Status"] == "blocked"
        }
        return self._evaluate_jobs(keys, "node-update")

    def _evaluate_jobs(self, keys: set[tuple[str, str]], why: str) -> list[str]:
        return [self._evaluate(key, why) for key in sorted(keys) if key in self.jobs]

    def _evaluate(self, key: tuple[str, str], why: str, moved: Alloc | None = None) -> str:
        job = self.jobs[key]
        made: Doc = {
            "ID": str(uuid.uuid4()),
            "JobID": job["ID"],
            "Namespace": job["Namespace"],
            "Type": job["Type"],
            "TriggeredBy": why,
            "Status": "complete",
            "CreateIndex": self.index(),
        }
        self.evals[made["ID"]] = made
        waited = False
        for doc in self.evals.values():
            if doc["Status"] == "blocked" and (doc["Namespace"], doc["JobID"]) == key:
                doc["Status"] = "complete"
                waited = True
        failed: Doc = {}
        for group in job["TaskGroups"]:
            metric = self._schedule(job, group, made["ID"], moved, waited)
            if metric:
                failed[group["Name"]] = metric
        if failed:
            waiting = {**made, "ID": str(uuid.uuid4()), "Status": "blocked",
                       "TriggeredBy": "queued-allocs", "PreviousEval": made["ID"],
                       "FailedTGAllocs": failed}  # fmt: skip
            made |= {"BlockedEval": waiting["ID"], "FailedTGAllocs": failed}
            self.evals[waiting["ID"]] = waiting
        return str(made["ID"])

    def _schedule(
        self, job: Doc, group: Doc, eval_id: str, moved: Alloc | None, waited: bool
    ) -> Doc | None:
        """Place what is missing of a group; what the scheduler counted when it couldn't.

        What `waited` has lost the link to its predecessor, and doesn't wait for its end.
        """
        mine = [
            alloc
            for alloc in self.allocs.values()
            if self._key(alloc.job) == self._key(job) and alloc.group == group["Name"]
        ]
        running = [alloc for alloc in mine if alloc.live and alloc.desired == "run"]
        if job["Stop"]:
            for alloc in running:
                self._tell_to_end(alloc)
            return None
        previous = ""
        if moved is not None and moved in running:
            self._tell_to_end(moved)
            running.remove(moved)
            previous = moved.id
        fitting = [node for node in self._candidates() if not misfits(job, group, node.facts)]
        if job["Type"] == "system":
            for node in fitting:
                if not any(alloc.node is node for alloc in running):
                    self._place(job, group, node, eval_id, "")
            return None
        for _ in range(group["Count"] - len(running)):
            if not fitting:
                return self._metric(job, group)
            node = min(
                fitting,
                key=lambda candidate: (sum(a.live for a in self._on(candidate)), candidate.name),
            )
            replaced = previous or ("" if waited else _last_lost(mine))
            self._place(job, group, node, eval_id, replaced)
            previous = ""
        return None

    def _place(self, job: Doc, group: Doc, node: NomadNode, eval_id: str, previous: str) -> None:
        tasks = {task["Name"]: NomadTask(task["Name"]) for task in group["Tasks"]}
        alloc = Alloc(str(uuid.uuid4()), job, group["Name"], node, eval_id, previous, tasks)
        alloc.index = self.index()
        self.allocs[alloc.id] = alloc
        if previous:
            self.allocs[previous].next_id = alloc.id
        self._begin(alloc)

    def _begin(self, alloc: Alloc) -> None:
        """It starts when its predecessor is over: a job never runs twice because of a move."""
        before = self.allocs.get(alloc.previous)

        def running() -> None:
            if alloc.client_status != "pending" or alloc.desired != "run":
                return
            if not alloc.node.beats:
                return
            if before is not None and before.live:
                self._later(self.start_s, running)
                return
            alloc.client_status, alloc.index = "running", self.index()
            for task in alloc.tasks.values():
                task.state, task.started_at = "running", stamp()

        self._later(self.start_s, running)

    def _tell_to_end(self, alloc: Alloc) -> None:
        alloc.desired, alloc.index = "stop", self.index()
        if alloc.node.beats:
            self._end(alloc)

    def _end(self, alloc: Alloc) -> None:
        life = alloc.node.life

        def over() -> None:
            if alloc.node.life != life and not alloc.node.beats:
                return
            alloc.client_status, alloc.index = "complete", self.index()
            for task in alloc.tasks.values():
                task.state, task.finished_at = "dead", stamp()

        self._later(end_s(alloc.job, alloc.group), over)

    def _metric(self, job: Doc, group: Doc) -> Doc:
        counts: dict[str, int] = {}
        candidates = list(self._candidates())
        for node in candidates:
            for text in misfits(job, group, node.facts):
                counts[text] = counts.get(text, 0) + 1
                break
        return {
            "NodesEvaluated": len(candidates),
            "NodesFiltered": sum(counts.values()),
            "ConstraintFiltered": counts or None,
            "DimensionExhausted": None,
        }

    def _candidates(self) -> Iterator[NomadNode]:
        return (node for node in self.nodes.values() if node.status == "ready" and node.eligible)

    def _on(self, node: NomadNode) -> list[Alloc]:
        return [alloc for alloc in self.allocs.values() if alloc.node is node]

    @staticmethod
    def _key(job: Doc) -> tuple[str, str]:
        return job["Namespace"], job["ID"]


def _last_lost(mine: list[Alloc]) -> str:
    lost = [alloc for alloc in mine if alloc.client_status == "lost" and not alloc.next_id]
    return lost[-1].id if lost else ""
