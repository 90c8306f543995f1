"""A storage node: the real keeper, watcher, decision and plans on a modelled machine.

The keeper's loop and the agent's loop are written again as routines that sleep by yielding; what
they call is the program's own code.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from standfast import plan as plans
from standfast.act.machine import Consul
from standfast.clock import monotonic, utc_now
from standfast.config.model import Config
from standfast.decide import decide
from standfast.decision import NO_WISH, Decision, Moment, Wish
from standfast.errors import StandfastError, TimedOut
from standfast.lease import keeper as keeping
from standfast.lease.epochs import EpochFile
from standfast.lease.files import LeaseStatus
from standfast.lease.holding import LeaseKeys
from standfast.observe import Available, Cluster, Local
from standfast.plan import Do, Plan, names_of, plan_for
from standfast.reasons import Reason
from standfast.records import Holder
from standfast.reign import OwnReign
from standfast.watcher import Watcher
from tests.sim.clockwork import Actor, NodeClock, Routine
from tests.sim.machine import Disk, KernelFence, KernelNfs
from tests.sim.model_consul import Client
from tests.sim.steps import Steps, Task

if TYPE_CHECKING:
    from tests.sim.world import World

AGENT_TICK_S = 0.25
RESTART_S = 1.0


@dataclass(slots=True, eq=False)
class Node:
    world: World
    config: Config
    clock: NodeClock
    client: Client
    fence: KernelFence
    nfs: KernelNfs
    disk: Disk = field(default_factory=Disk)
    powered: bool = False
    paused_until: float = 0.0
    down_since: float = 0.0
    boots: int = 0
    actors: list[Actor] = field(default_factory=list)
    keeper: keeping.Keeper | None = None
    keeper_actor: Actor | None = None
    agent_actor: Actor | None = None
    agent_busy: bool = False
    registered: int | None = None
    decision: Decision | None = None
    wish: Wish = NO_WISH
    hand_to: str | None = None
    """An operator asked for a switchover to this node."""
    cut_before: Do | None = None
    """The power fails when this step is about to begin."""
    cut_after: Do | None = None
    failures: list[str] = field(default_factory=list)
    copies: bool = True

    @property
    def name(self) -> str:
        return self.config.node

    @property
    def holder(self) -> Holder:
        return Holder(self.name, f"{self.name}{self.boots}")

    @property
    def runs(self) -> bool:
        return self.powered and self.world.now >= self.paused_until

    @property
    def serves(self) -> bool:
        """Whether a client that asks this node now gets an answer."""
        return self.runs and self.nfs.running and self.fence.passes()

    # Power and processes

    def boot(self) -> None:
        if self.powered:
            return
        self.boots += 1
        self.powered = True
        shutil.rmtree(self.config.paths.run, ignore_errors=True)
        self.config.run_dir.mkdir(parents=True)
        (self.config.paths.run / "instance").write_text(self.holder.instance)
        self.fence.ensure_closed()
        self.nfs.running = False
        self.start_agent()
        self._start("replicator", self._replicate())

    def power_cut(self) -> None:
        self.powered = False
        self.down_since = self.world.now
        for actor in self.actors:
            actor.dead = True
        self.actors = []
        self.keeper = self.keeper_actor = self.agent_actor = None
        self.nfs.running = False
        self.fence.in_place, self.fence.open_until = True, 0.0
        self.registered = None
        self.agent_busy = False

    def _start(self, what: str, routine: Routine) -> Actor:
        actor = Actor(f"{self.name}/{what}", self.clock)
        self.actors.append(actor)
        self.world.clockwork.start(actor, routine)
        return actor

    def start_agent(self) -> None:
        if self.powered and (self.agent_actor is None or self.agent_actor.dead):
            self.agent_busy = False
            self.agent_actor = self._start("agent", self._agent())

    def kill_agent(self) -> None:
        if self.agent_actor is not None:
            self.agent_actor.dead = True

    def start_keeper(self) -> None:
        if self.powered and (self.keeper_actor is None or self.keeper_actor.dead):
            self.keeper = None
            self.keeper_actor = self._start("lease", self._keep())

    def kill_keeper(self) -> None:
        """kill -9; the service manager starts it again."""
        if self.keeper_actor is not None and not self.keeper_actor.dead:
            self.stop_keeper()
            self.world.after(RESTART_S, self.start_keeper)

    def stop_keeper(self) -> None:
        if self.keeper_actor is not None:
            self.keeper_actor.dead = True
        self.keeper = None

    def freeze(self, actor: Actor | None, seconds: float) -> None:
        if actor is not None:
            actor.frozen_until = max(actor.frozen_until, self.world.now + seconds)

    def freeze_all(self, seconds: float) -> None:
        for actor in self.actors:
            self.freeze(actor, seconds)

    def pause_vm(self, seconds: float, *, clock_stops: bool) -> None:
        """The hypervisor stops the machine; its kernel's timers stop with it or catch up."""
        self.paused_until = self.world.now + seconds
        self.freeze_all(seconds)
        self.down_since = self.world.now
        if clock_stops:
            self.fence.open_until += seconds if self.fence.open_until > self.world.now else 0.0
            self.world.after(0.0, lambda: self._stop_clock(seconds))

    def _stop_clock(self, seconds: float) -> None:
        # Nobody on this node reads the clock before the end of the pause.
        self.clock.stopped_s += seconds

    # The lease process

    def _keep(self) -> Routine:
        yield 0.05
        keys = LeaseKeys(self.config, self.client, self.holder)
        try:
            keeper = self.keeper = keeping.build(self.config, keys, self.fence, self.nfs)
        except StandfastError as error:
            self.failures.append(f"lease: {error}")
            self.stop_keeper()
            return
        keeper.save()
        timing = self.config.lease
        next_beat = monotonic()
        while True:
            now = monotonic()
            if now >= next_beat and not keeper.holding_back:
                keeper.beat()
                next_beat = now + (timing.heartbeat if not keeper.trouble else keeping.RETRY_S)
            keeper.check_end()
            keeper.save()
            if keeper.over:
                break
            yield min(max(next_beat - monotonic(), 0.05), timing.heartbeat)
        self.stop_keeper()

    def ask_lease(self, request: Mapping[str, str | None]) -> Routine:
        """A command over the lease socket: it is carried out by the lease's process."""
        for _ in range(100):
            keeper, actor = self.keeper, self.keeper_actor
            free = keeper is not None and actor is not None and not actor.dead and not actor.busy
            if free and actor is not None and actor.frozen_until <= self.world.now:
                break
            yield 0.1
        else:
            raise TimedOut("the lease process doesn't answer")
        assert keeper is not None and actor is not None
        reply: dict[str, object] = {"ok": False, "error": "the lease process was killed"}
        with self.world.clockwork.acting(actor):
            reply = keeping.answer(keeper, request)
            keeper.save()
        if keeper.over:
            self.stop_keeper()
        if reply["ok"] is not True:
            raise StandfastError(str(reply.get("error")))

    # The agent

    def _agent(self) -> Routine:
        watcher = Watcher(self.config, cast(Consul, self.client))
        epochs = EpochFile(self.config.state_dir / "epoch")
        while True:
            view = watcher.look(0.0)
            if isinstance(view, Cluster) and view.epoch is not None:
                epochs.raise_to(view.epoch)
            local = self.local(epochs.read())
            moment = Moment(monotonic(), utc_now())
            decision = self.decision = decide(view, local, self.config, moment, self.wish)
            self.world.check_decision(decision)
            sighting = view.sighting if isinstance(view, Cluster) else None
            plan = plan_for(decision, self.config)
            task = Task(decision, sighting)
            if self.hand_to is not None and decision.reason is Reason.SERVING:
                task.to, self.hand_to = self.hand_to, None
                plan = plans.demotion(names_of(self.config), task.to)
            if plan is not None:
                yield from self.execute(plan, task)
            self._upkeep(local)
            yield AGENT_TICK_S

    def _upkeep(self, local: Local) -> None:
        """What the agent sees to beside its plans."""
        serving = self.decision is not None and self.decision.reason is Reason.SERVING
        if serving and local.own is not None:
            self.registered = local.own.epoch
        elif local.own is None:
            self.registered = None
            if not self.fence.in_place:
                self.fence.ensure_closed()

    def local(self, highest: int) -> Local:
        return Local(
            node=self.name,
            instance=self.holder.instance,
            highest_epoch=highest,
            own=OwnReign.load(self.config.state_dir),
            lease=LeaseStatus.load(self.config.run_dir),
            lease_alive=self.keeper_actor is not None and not self.keeper_actor.dead,
            snapshots=tuple(self.disk.snapshots),
            has_live=self.disk.live is not None,
            nfs_running=self.nfs.running,
        )

    def execute(self, plan: Plan, task: Task) -> Routine:
        """act.execute with sleeps in between; failures are noted, the next look goes on."""
        for step in plan.steps:
            try:
                yield from self._step(step.do, task)
            except StandfastError as error:
                self.failures.append(f"{plan.name} {step.do}: {error}")
                if plan.undo and step.do in plan.undoable_at:
                    yield from self._undo(plan, task)
                yield 1.0
                return
        if plan.name == "promotion":
            self.wish = NO_WISH

    def _undo(self, plan: Plan, task: Task) -> Routine:
        try:
            for undo in plan.undo:
                yield from self._step(undo.do, task)
        except StandfastError as error:
            self.failures.append(f"undo of {plan.name}: {error}")

    def _step(self, do: Do, task: Task) -> Routine:
        if self.cut_before is do:
            self.cut_before = None
            self.power_cut()
        yield 0.02
        self.world.log(f"{self.name}: {do}")
        effect: Callable[[Task], Routine] = getattr(Steps(self), f"do_{do.name.lower()}")
        yield from effect(task)
        if self.cut_after is do:
            self.cut_after = None
            self.power_cut()
            yield 0.02

    # Replication

    def _replicate(self) -> Routine:
        """A cycle to every standby, for as long as this node takes itself for the primary."""
        while True:
            yield 5.0
            keeper, own = self.keeper, OwnReign.load(self.config.state_dir)
            if keeper is None or own is None or not keeper.serving or not self.copies:
                continue
            taken = self.disk.snapshot("services", utc_now(), own.epoch)
            for standby in self.config.standbys:
                try:
                    yield from self.copy(taken, standby, own.epoch)
                except StandfastError as error:
                    self.failures.append(f"replication to {standby}: {error}")

    def copy(self, taken: Available, to: str, epoch: int) -> Routine:
        """One snapshot to one standby; the receiver asks Consul whether the sender reigns."""
        yield 0.2
        other = self.world.nodes[to]
        if not other.runs or not self.world.linked(self.name, to):
            yield 2.0
            raise TimedOut(f"{to} doesn't answer")
        if not self.world.may_receive(self, other, epoch):
            raise StandfastError(f"{to} refused: {self.name} doesn't hold epoch {epoch}")
        other.disk.receive(taken, self.disk.contents[taken.snapshot.content_id])
        self.world.note_standby(self, to, taken, epoch)
        yield 0.05
