"""What this node's promotion and its guard will ask, asked ahead: the one list of readiness checks.

Invariant: nothing is changed; a look that fails is an obstacle itself, and ends no other. Each
answers for this moment: the promotion's own steps and the guard have the last word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from standfast.config.model import Config
from standfast.consul.blindness import Blind
from standfast.consul.gateway import ConsulBlind
from standfast.consul.node_name import misnamed
from standfast.consul.records import Leader
from standfast.consul.values import Instance
from standfast.errors import ConfigError, ConsulError, StandfastError, ours
from standfast.events import hooks
from standfast.node.node import Machine
from standfast.node.obstacle import Obstacle, Weight
from standfast.node.other_server import (
    DOORS_S,
    MOST_ASKED,
    Answering,
    active_elsewhere,
    is_foreign,
    is_listed,
    nobody,
    taken_away,
    unasked,
    words,
)
from standfast.node.own_epoch import OwnEpoch
from standfast.node.space import shortages
from standfast.role import registration, volume
from standfast.role.candidacy import on_hold
from standfast.role.decision import Action, Moment
from standfast.role.observation import Cluster, Local
from standfast.role.patience import heard_within_s
from standfast.role.readiness import if_handed_over
from standfast.system.clock import Deadline
from standfast.system.mountinfo import canonical

ASK_S = 20.0
"""For one look's question to another machine: a login by ssh, and a program's start there that asks
Consul. 10 s were too few in a virtual machine without hardware's help."""
BIND_S = 10.0
"""For systemd's word on the mount unit of the volume's path."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the looks look at."""

    machine: Machine
    view: Cluster | Blind
    local: Local
    now: Moment
    answering: Answering = nobody
    volumes: Callable[[], Sequence[Config]] = tuple
    """Reads the configurations of all volumes that are stored here; ConfigError."""
    unshut: str | None = None
    """Why the fence's rules could not be put in place, when that was last tried."""

    @property
    def config(self) -> Config:
        return self.machine.config

    @property
    def leader(self) -> Leader | None:
        return None if isinstance(self.view, Blind) else self.view.leader


def inspect(scene: Scene) -> tuple[Obstacle, ...]:
    """Makes every check, one after the other."""
    looked = (_looked(check, look, scene) for check, look in LOOKS.items())
    return tuple(chain.from_iterable(looked))


def _looked(check: str, look: Look, scene: Scene) -> list[Obstacle]:
    seen: list[Obstacle] = []
    try:
        seen.extend(look(scene))
        return seen
    except Exception as error:  # noqa: BLE001  # told, whatever it was
        evidence = f"it could not be looked at: {ours(error)}"
        fix = f"`standfast doctor` on {scene.config.node}"
        return [*seen, Obstacle(check, evidence, fix, Weight.REFUSES)]


def _snapshot(scene: Scene) -> Iterator[Obstacle]:
    """Would it take the role over, if that was handed to it in order?"""
    view = scene.view
    if isinstance(view, Blind):
        # `decide` does nothing blindly, and what it sees is newer than this look.
        fix = f"see `{view.reason}` in docs/reason-codes.md"
        yield Obstacle("consul", view.sentence, fix, Weight.REFUSES)
        return
    if scene.leader is None:
        return  # what it says then is about the cluster, and nobody can hand anything over
    # These are told by their own.
    local, view = replace(scene.local, obstacles=()), replace(view, named=None)
    decision = if_handed_over(view, local, scene.config, scene.now)
    if decision.action in (Action.BLOCKED, Action.NOTHING):
        fix = f"see `{decision.reason}` in docs/reason-codes.md"
        yield Obstacle("snapshot", decision.sentence, fix, Weight.REFUSES)


def _token(scene: Scene) -> Iterator[Obstacle]:
    """The guard believes no answer of a token that sees too little."""
    if isinstance(scene.view, Blind):
        return  # `snapshot` tells it
    try:
        scene.machine.consul.self_check()
    except ConsulBlind as error:
        yield Obstacle("consul", str(error), "see `consul-blind-token` in docs/reason-codes.md")


def _volumes(scene: Scene) -> Iterator[Obstacle]:
    """The guard answers for all volumes of this node at once, as its NFS server is one."""
    fix = f"`standfast config check` on {scene.config.node}"
    try:
        others = [each for each in scene.volumes() if each.volume != scene.config.volume]
    except ConfigError as error:
        text = f"the guard would let no NFS server start: {error}"
        yield Obstacle("volumes", text, fix)
        return
    for config in others:
        try:
            OwnEpoch.load(config.state_dir)
        except StandfastError as error:
            text = f"the guard may let no NFS server start: of the volume {config.volume}, {error}"
            yield Obstacle("volumes", text, "as said there")


def _name(scene: Scene) -> Iterator[Obstacle]:
    """Consul's agent may have been renamed since the view last asked it; but the view is what the
    promotion goes by."""
    node = scene.config.node
    wrong = None if isinstance(scene.view, Blind) else misnamed(node, scene.view.named)
    with contextlib.suppress(ConsulError):
        wrong = wrong or misnamed(node, scene.machine.consul.node_name())
    if wrong is not None:
        yield Obstacle("name", f"{node}: {wrong}", "as said there")


def _disk(scene: Scene) -> Iterator[Obstacle]:
    try:
        volume.check_place(scene.machine)
    except StandfastError as error:
        yield Obstacle("disk", str(error), "mount the volume's file system")
        return
    if (wrong := scene.machine.store.obstacle()) is not None:
        yield Obstacle("disk", wrong, "as said there")


def _bind(scene: Scene) -> Iterator[Obstacle]:
    wrong = scene.machine.bind.obstacle(Deadline.after(BIND_S))
    if wrong is not None:
        yield Obstacle("bind", wrong, f"nothing else is at {scene.config.paths.bind}")


def _space(scene: Scene) -> Iterator[Obstacle]:
    for shortage in shortages(scene.machine.store.space()):
        yield Obstacle("space", shortage.evidence, shortage.fix, Weight.REFUSES)


def _server(scene: Scene) -> Iterable[Obstacle]:
    return scene.machine.nfs.obstacles()


def _lease_unit(scene: Scene) -> Iterator[Obstacle]:
    unit = scene.machine.lease_unit
    wrong = scene.machine.units.obstacle(unit)
    if wrong is not None:
        yield Obstacle("lease", wrong, f"`systemctl unmask {unit}`, or install Standfast's units")


def _fence(scene: Scene) -> Iterator[Obstacle]:
    """Of a kernel without ipset it is seen only that no rules are in place: upkeep, which puts them
    there, knows more."""
    fix = f"`standfast doctor` on {scene.config.node}; fence.backend in the configuration"
    try:
        if scene.machine.fence.state().in_place:
            return
    except StandfastError as error:
        yield Obstacle("fence", f"the fence can't be used: {error}", fix)
        return
    if scene.unshut is not None:
        yield Obstacle("fence", f"the fence's rules can't be put in place: {scene.unshut}", fix)
    else:
        evidence = "the fence's rules are not in place yet: the agent puts them there in seconds"
        yield Obstacle("fence", evidence, fix, Weight.REFUSES)


def _service(scene: Scene) -> Iterator[Obstacle]:
    """Asks as the guard will, with the epoch that this node would get. Of the entries that are
    gone by then, or answered by then from here alone, it isn't asked."""
    config, leader, view = scene.config, scene.leader, scene.view
    if isinstance(view, Blind):
        return  # the epoch isn't known, and `snapshot` tells it
    holder = None if leader is None or leader.is_clean else leader.holder.node
    known = {config.node, holder}
    addresses = {canonical(node.address) for name, node in config.nodes.items() if name in known}
    entries = [
        entry
        for entry in scene.machine.consul.instances(config.service)
        # It is deregistered before, or its node is dead.
        if (entry.node, entry.service_id) != (holder, config.service_id)
    ]

    def is_expected(entry: Instance) -> bool:
        # There it is the primary's own server that answers, or this node's with another volume.
        return entry.node in known or canonical(entry.address) in addresses

    others = [entry for entry in entries if not is_expected(entry)]
    asked = (config, config.node, (view.epoch or 0) + 1)
    limit = Deadline.after(DOORS_S)
    active = (
        *active_elsewhere(list(filter(is_expected, entries)), *asked, nobody, limit),
        *active_elsewhere(others, *asked, scene.answering, limit),
    )
    for entry in active:
        yield Obstacle("service", words(config, entry), "as said there")
    leftovers = [
        entry
        for entry in entries
        if entry not in active and is_foreign(entry, config) and is_listed(entry)
    ]
    for entry in leftovers[:MOST_ASKED]:
        at = f"{entry.address}:{entry.port}"
        text = f"a leftover of {config.service} at {at}, where Consul's DNS sends clients, too"
        yield Obstacle("service", text, taken_away(entry), Weight.TOLD)
    if more := len(leftovers[MOST_ASKED:]):
        text = unasked(others, *asked) or f"{more} more leftovers of {config.service}"
        fix = "find the token that makes them, revoke it, and deregister them"
        yield Obstacle("service", text, fix, Weight.TOLD)


def _hidden(scene: Scene) -> Iterator[Obstacle]:
    hidden = registration.hidden(scene.machine)
    if hidden is not None:
        fix = "`consul maint -disable` there, or mend what the check is about"
        yield Obstacle("hidden", hidden, fix, Weight.REFUSES)


def _hold(scene: Scene) -> Iterator[Obstacle]:
    node = scene.config.node
    if isinstance(scene.view, Blind) or (hold := scene.view.holds.get(node)) is None:
        return
    fix = f"`standfast standby release {node}` when it is fit to serve"
    yield Obstacle("hold", on_hold(hold), fix, Weight.REFUSES)


def _hooks(scene: Scene) -> Iterator[Obstacle]:
    """What they would say themselves is asked only by the promotion: they may have effects."""
    for hook in hooks.vetoes_foreseen(scene.config):
        text = f"{hook.name} would be a veto, as hooks.pre_promote_failure has it: {hook.wrong}"
        yield Obstacle("hooks", text, "as said there, or remove it")


def _way_back(scene: Scene) -> Iterator[Obstacle]:
    """What is written here after a takeover has to get to the node that has the role now."""
    leader, view, lease = scene.leader, scene.view, scene.config.lease
    if leader is None or isinstance(view, Blind):
        return
    silent_s = scene.now.monotonic - view.last_heartbeat.first_seen
    if leader.holder.node not in scene.config.standbys or silent_s > heard_within_s(lease):
        return  # one that is dead has no say, and would be waited for
    other = leader.holder.node
    try:
        scene.machine.sender.greet(other, Deadline.after(ASK_S))
    except StandfastError as error:
        fix = f"on {scene.config.node}: `standfast standby add {other}` goes through it"
        evidence = f"nothing can be replicated to {other}: {error}"
        yield Obstacle("way-back", evidence, fix, Weight.REFUSES)


Look = Callable[[Scene], Iterable[Obstacle]]
LOOKS: Mapping[str, Look] = {
    "snapshot": _snapshot,
    "consul": _token,
    "volumes": _volumes,
    "name": _name,
    "disk": _disk,
    "bind": _bind,
    "space": _space,
    "server": _server,
    "lease": _lease_unit,
    "fence": _fence,
    "service": _service,
    "hidden": _hidden,
    "hold": _hold,
    "hooks": _hooks,
    "way-back": _way_back,
}
