"""Look, decide, act: a client's mount is brought to the server that Consul names.

Invariants: an event only makes the look come sooner; everything is done under one lock of the
volume, each time from a fresh look. With the same state as before, nothing is done.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from standfast.clients import dependants, notes
from standfast.clients.decide import CHANGES, Action, Decision, decide
from standfast.clients.observation import (
    NoServer,
    Observed,
    Role,
    Server,
    Service,
    Tree,
    Unreadable,
    tree_of,
)
from standfast.clients.plan import Step, plan_for
from standfast.clients.ports import Consul, Mounts, MountUnits, Processes
from standfast.clients.steps import PROBE_S, Steps
from standfast.config.model import Config
from standfast.consul.blindness import blindness
from standfast.consul.gateway import Instance
from standfast.consul.records import Leader, parse_epoch
from standfast.errors import ConsulError, ForeignValue, Refused, StandfastError, ours
from standfast.node.other_server import epoch_of, is_well, registered_by
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.locks import exclusive
from standfast.system.mountinfo import canonical, elsewhere, stack_at
from standfast.text import some

log = logging.getLogger(__name__)

RESOLVE_S = 3.0
RETRY_S = 2.0
# Within the minute of the timer, so that two runs of it don't queue.
LIMIT_S = 50.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a client is made of, each behind a narrow protocol."""

    config: Config
    consul: Consul
    mounts: Mounts
    units: MountUnits
    processes: Processes
    hooks: Sequence[dependants.Hook] = ()
    """What else is told of a change, in this order: `assembly.client` names it. The operator's
    hooks (events/hooks.py) are others."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: the last decision, the steps that were done and what they said."""

    decision: Decision
    steps: tuple[Step, ...] = ()
    said: tuple[str, ...] = ()
    trouble: str | None = None
    """Why it isn't done; None: there is nothing left to do."""


def server_of(parts: Parts) -> Service:
    """Tells who serves: the holder of the epoch that Consul's key names, by the entry that it made.

    An entry is made after the keys of its epoch were written, so it is looked at before them: of
    the current epoch's, none is taken for one of a later epoch.
    """
    config, consul = parts.config, parts.consul
    try:
        instances = consul.instances(config.service)
        epoch, leader = _leader(config, consul)
    except ConsulError as error:
        blind = blindness(error)
        return Unreadable(blind.reason, blind.sentence)
    except ForeignValue as error:
        return Unreadable(Reason.FOREIGN_VALUE, str(error))
    if leader is None:
        return NoServer(f"in Consul nobody holds the lease of {config.volume}, epoch {epoch}")
    holder = leader.holder.node
    for instance in instances:
        right = epoch_of(instance) == epoch and registered_by(holder, instance, config)
        if right and is_well(instance):
            addresses = parts.mounts.resolve(instance.address, Deadline.after(RESOLVE_S))
            fsid = instance.meta.get("fsid")
            strangers = tuple(node for node in leader.candidates if node not in config.nodes)
            return Server(holder, instance.address, addresses, epoch or 0, fsid, strangers)
    return NoServer(_nobody(instances, holder, epoch, config))


def _leader(config: Config, consul: Consul) -> tuple[int | None, Leader | None]:
    """Returns the current epoch, and its last heartbeat, unless its holder gave it up; ConsulError,
    ForeignValue.

    Each key by itself: so a token that may not read it is told that, instead of that there is none.
    """
    epoch_key, leader_key = config.key("epoch"), config.key("leader")
    found = consul.get(leader_key, consistent=True)
    leader = None if found is None else Leader.parse(found.value, leader_key)
    found = consul.get(epoch_key, consistent=True)
    epoch = None if found is None else parse_epoch(found.value, epoch_key)
    held = leader is not None and leader.epoch == epoch and not leader.is_clean
    return epoch, leader if held else None


def _nobody(instances: Sequence[Instance], holder: str, epoch: int | None, config: Config) -> str:
    """Says why none of the entries is followed."""
    known = config.nodes.get(holder)
    where = "which is no node of [nodes] here" if known is None else f"at {known.address}"
    told = [
        f"{each.node} ({each.address}, epoch {each.meta.get('epoch', 'none')}"
        f"{'' if is_well(each) else ', not passing'})"
        for each in instances
    ]
    beside = f": there is {some(told)}" if told else ""
    return (
        f"{holder}, {where}, holds epoch {epoch}, and Consul lists no healthy instance of "
        f"{config.service} that it registered{beside}"
    )


def role_of(config: Config) -> Role:
    """Returns this node's own part; a file of it that can't be read counts as a role: hands off."""
    try:
        own = OwnEpoch.load(config.state_dir)
    except StandfastError as error:
        log.warning("%s", error)
        return Role.CHANGING
    if own is None:
        return Role.NONE
    if own.stage is not Stage.READY:
        return Role.CHANGING
    try:
        with exclusive(config.run_dir / "plan.lock", "a change of the role"):
            return Role.PRIMARY
    except Refused:
        return Role.CHANGING


def look(parts: Parts, *, thorough: bool = True) -> Observed:
    """Looks at everything that is known now. Without `thorough`, a mount that an automount made and
    that seems right is not asked: each look would keep it from being let go of when idle."""
    config = parts.config
    here = parts.mounts.here()
    stack = stack_at(here, config.paths.bind)
    seen = Observed(
        NoServer("not asked"),
        stack=stack,
        note=notes.load(config.run_dir),
        role=role_of(config),
        stopped=dependants.stopped(config.run_dir),
    )
    if seen.role is not Role.NONE or config.client.manage == "never":
        return seen
    seen = replace(
        seen,
        service=server_of(parts),
        tie=parts.units.tie(config.paths.bind),
        wires=parts.mounts.wires(),
        elsewhere=elsewhere(here, config.paths.bind, str(config.paths.live)),
    )
    if not _worth_asking(seen, config, thorough):
        return seen
    deadline = Deadline.after(PROBE_S)
    answer, detail = parts.mounts.probe(config.paths.bind, deadline)
    return replace(seen, answer=answer, detail=detail)


def _worth_asking(seen: Observed, config: Config, thorough: bool) -> bool:
    """Tells whether the mount is asked: only the answer of a mount that may stay matters."""
    top, server = seen.top, seen.service
    if top is None or not isinstance(server, Server) or top.export != str(config.paths.live):
        return False
    if not top.is_nfs or canonical(top.address or "") not in server.addresses:
        return False
    tree = tree_of(seen, server, top)
    automounted = any(mount.is_autofs for mount in seen.stack)
    return tree is Tree.UNKNOWN or (tree is Tree.CURRENT and (thorough or not automounted))


@dataclass(slots=True)
class Remount:
    """One run: until there is nothing left to do, or the time is over."""

    parts: Parts
    thorough: bool = True
    limit: Deadline = field(default_factory=lambda: Deadline.after(LIMIT_S))
    first_seen: dict[tuple[str, int], float] = field(default_factory=dict)
    made: set[tuple[str, int]] = field(default_factory=set)
    done: list[Step] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def run(self) -> Outcome:
        """Runs until nothing is left to do; Refused (busy) when another run doesn't end in time."""
        lock = self.parts.config.run_dir / "remount.lock"
        with exclusive(lock, "another run of `standfast remount`", self.limit):
            while True:
                outcome = self._turn()
                if outcome is not None:
                    return outcome

    def _turn(self) -> Outcome | None:
        """Takes one look and does what follows from it; None: look again."""
        observed, decision = self.decide()
        plan = plan_for(decision, observed, self.parts.config)
        if not plan:
            return self._outcome(decision)
        aim = self._aim(decision)
        if aim in self.made:
            trouble = f"{aim[0]} was mounted and isn't right again already: left to the next run"
            return replace(self._outcome(decision), trouble=trouble)
        if decision.later_s > 0:
            sleep(min(decision.later_s, self.limit.remaining_s() + 0.01))
            return self._late(decision, "its turn among the clients has not come yet")
        try:
            self._act(decision, observed, plan)
        except Exception as error:  # noqa: BLE001  # looked at again, whatever it was
            failure = str(ours(error))
            log.warning("%s; looking again", failure)
            sleep(min(RETRY_S, self.limit.remaining_s()))
            return self._late(decision, failure)
        # Bind mounts and users were seen to; what is still left is for the next event.
        if aim is None:
            return self._outcome(decision)
        self.made.add(aim)
        return None

    def _late(self, decision: Decision, trouble: str) -> Outcome | None:
        if not self.limit.expired:
            return None
        return replace(self._outcome(decision), trouble=trouble)

    def _outcome(self, decision: Decision) -> Outcome:
        return Outcome(decision, tuple(self.done), tuple(self.said))

    @staticmethod
    def _aim(decision: Decision) -> tuple[str, int] | None:
        """Returns where a change leads: address and epoch; None: to no mount."""
        if decision.action not in CHANGES or decision.server is None:
            return None
        return decision.server.address, decision.server.epoch

    def decide(self) -> tuple[Observed, Decision]:
        """Takes a fresh look, and decides with this node's turn taken into account."""
        observed = look(self.parts, thorough=self.thorough)
        decision = decide(observed, self.parts.config)
        aim = self._aim(decision)
        if aim is None:
            return observed, decision
        now = monotonic()
        observed = replace(observed, waited_s=now - self.first_seen.setdefault(aim, now))
        return observed, decide(observed, self.parts.config)

    def _act(self, decision: Decision, observed: Observed, plan: Sequence[Step]) -> None:
        config = self.parts.config
        log.info("%s: %s", decision.reason, decision.sentence)
        steps = Steps(
            config,
            decision,
            observed,
            self.parts.mounts,
            self.parts.units,
            self.parts.processes,
            self.parts.hooks,
            still_client=lambda: decision.action is Action.UNCOVER or role_of(config) is Role.NONE,
        )
        table = steps.table()
        try:
            for step in plan:
                log.info("%s", step.says)
                table[step.do](step)
                self.done.append(step)
        finally:
            for text in steps.said:
                log.info("%s", text)
            self.said += steps.said
