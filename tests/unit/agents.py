"""An agent whose looks are written down beforehand and whose plans are noted, not run."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from standfast.agent.command import Command
from standfast.agent.commands import answer
from standfast.agent.local_view import LocalView
from standfast.agent.loop import Agent, Seen
from standfast.agent.watcher import Watcher
from standfast.consul.blindness import Blind
from standfast.consul.records import Holder, Leader, LeaderState, StandbyRecord
from standfast.names import SnapshotName
from standfast.node.ports import LiveTree, Snapshot
from standfast.reasons import Reason
from standfast.role.decision import NO_REQUEST, Action, Decision, Moment, Request
from standfast.role.observation import Available, Cluster, LastHeartbeat, Local
from standfast.role.plan import Plan
from standfast.role.steps import Effects
from standfast.system.clock import monotonic, utc_now
from tests.fakes.machine import fake_node

SERVING = Decision(Action.NOTHING, Reason.SERVING, "n1 serves data-services with epoch 4")
RESUMED = Decision(Action.FINISH_PROMOTION, Reason.RESUME_PROMOTION, "n1 holds epoch 5")
STANDING_BY = Decision(Action.NOTHING, Reason.PRIMARY_ALIVE, "n2 is primary with epoch 4")
BLIND = Blind(Reason.CONSUL_TIMEOUT, "Consul hangs")


@dataclass
class FakeAgent(Agent):
    """Looks that were written down beforehand; a plan is noted, not run."""

    decisions: list[Decision] = field(default_factory=list)
    view: Cluster | Blind = BLIND
    views: list[Cluster | Blind] = field(default_factory=list)
    """What the next looks see; the last of them stays."""
    requests: list[Request] = field(default_factory=list)
    ran: list[tuple[Plan, Effects]] = field(default_factory=list)
    broken: Exception | None = None
    breaks: list[Exception] = field(default_factory=list)
    """How the next plans end."""
    tells: bool = True
    """Consul shows what a plan has reached."""

    def look(
        self, wait_s: float = 0.0, *, fresh: bool = False, request: Request = NO_REQUEST
    ) -> Seen:
        self.requests.append(request)
        self.view = self.views.pop(0) if self.views else self.view
        decision = self.decisions[0] if len(self.decisions) == 1 else self.decisions.pop(0)
        local = Local("n1", "boot-1", 4)
        return Seen(self.view, local, decision, Moment(monotonic(), utc_now()))

    def run_plan(self, plan: Plan, effects: Effects, progress: Any = None) -> None:
        self.ran.append((plan, effects))
        if progress is not None:
            progress(f"{plan.name} 1/1")
        if self.breaks:
            raise self.breaks.pop(0)
        if self.broken is not None:
            raise self.broken
        if self.tells and isinstance(self.view, Cluster):
            self.view = served_by(self.view, effects.to or self.config.node)


def served_by(view: Cluster, node: str) -> Cluster:
    """What Consul tells once `node` serves the next epoch."""
    leader = Leader(5, Holder(node, "boot-9"), 1, LeaderState.SERVING, ())
    return replace(
        view,
        epoch=5,
        leader=leader,
        last_heartbeat=LastHeartbeat(leader.identity, 99, monotonic()),
    )


def view(*standbys: str, ages: tuple[float, ...] = ()) -> Cluster:
    now = utc_now()
    records = {}
    for number, name in enumerate(standbys):
        taken_at = now - (ages[number] if ages else 10.0)
        records[name] = StandbyRecord(
            name, 4, str(SnapshotName.at("services", taken_at)), "c0ffee", now
        )
    leader = Leader(4, Holder("n2", "boot-2"), 9, LeaderState.SERVING, ("n1", "n3"))
    return Cluster(4, leader, LastHeartbeat(leader.identity, 9, 0.0), standbys=records)


def agent(
    directory: Path, *decisions: Decision, standbys: tuple[str, ...] = ("n2", "n3")
) -> FakeAgent:
    node = fake_node(directory)
    node.store.tree = LiveTree(node.config.paths.live, "uuid", writable=True)
    machine = node.machine
    made = FakeAgent(machine, Watcher(machine.config, machine.consul), LocalView(machine))
    made.decisions = list(decisions)
    made.view = view(*standbys)
    return made


def with_config(agent: FakeAgent, **changes: Any) -> FakeAgent:
    agent.machine = replace(agent.machine, config=structs.replace(agent.machine.config, **changes))
    return agent


def say(agent: Agent, name: Any, *, dry_run: bool = False, **args: Any) -> list[dict[str, Any]]:
    """All lines of the answer."""
    ours, theirs = socket.socketpair()
    with ours:
        request = {"v": 1, "command": name, "args": args, "dry_run": dry_run}
        answer(agent, Command(theirs, request))
        ours.settimeout(5)
        data = b""
        while chunk := ours.recv(65536):
            data += chunk
    return [json.loads(line) for line in data.splitlines()]


def refusal(lines: list[dict[str, Any]]) -> tuple[str | None, str]:
    last = lines[-1]
    assert last["exit_code"] == 1 and "done" not in last, last
    return last["reason"], last["error"]


def promotion(epoch: int = 4) -> Decision:
    name = SnapshotName.at("services", utc_now() - 60)
    base = Available(Snapshot(name, Path(str(name)), "c0ffee", received=True), 4)
    return Decision(Action.PROMOTE, Reason.OPERATOR, "n1 takes over", base=base, epoch=epoch)
