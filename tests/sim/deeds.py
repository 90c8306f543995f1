"""What may happen to a cluster, as data: a schedule is a seed's list of deeds, and can be shown.

Deeds are what the promises allow. What they don't is left out here, each with its reason, so that
every violation is a fault of the program:

- The firewall is not flushed while both the lease process and the agent of that node stand still:
  nobody is left who could notice (README, "What breaks it"). Otherwise a node whose lease is over
  may serve until its next look (the same place; see `Invariants`).
- A machine is not paused together with its kernel's timers, nor while the kernel opens the port
  (the same place).
- Clocks' rates differ by no more than `lease.drift`.
- A restored backup doesn't hold the very last heartbeat of a holder that was replaced (the same
  place).
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from msgspec import structs

from standfast.config.model import LeaseTiming
from standfast.config.model import Node as NodeConfig
from standfast.consul.records import Leader
from standfast.lease.keeper import FENCE_MARGIN_S
from tests.sim.model_consul import ConsulFault
from tests.sim.node import Seat, SimNode
from tests.sim.systemd import SimService
from tests.sim.world import FAST, SimWorld

SLOW = LeaseTiming()
MIDDLE = LeaseTiming(heartbeat=1.0, request_timeout=1.0, length=4.0, fence=2.0, wait=7.2)
TIMINGS = {"fast": FAST, "middle": MIDDLE, "slow": SLOW}
KERNEL_S = FENCE_MARGIN_S + 1.0
"""The rule's one second, and what of F is kept back: so late the kernel may do what it was told."""


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing that happens, `pause_s` after the one before."""

    pause_s: float
    name: str
    node: str
    length_s: float
    number: int
    """Chooses between the ways in which it can happen."""

    def __str__(self) -> str:
        return f"{self.name} {self.node} {self.length_s:g} s ({self.number})"


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that is random about one run."""

    seed: int
    timing: str
    volumes: tuple[str, ...]
    rates: tuple[float, ...]
    failover_cooldown_s: float
    quick: bool
    """Programs and replies take next to no time."""
    deeds: tuple[Deed, ...]
    lasting: str = ""
    """A node whose faults of disk and server stay when all others stop."""

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: lease {self.timing}, volumes {', '.join(self.volumes)}, clocks at "
            f"{self.rates}, failover_cooldown {self.failover_cooldown_s:g} s"
            f"{', quick' if self.quick else ''}"
            f"{f', faults of {self.lasting} last' if self.lasting else ''}"
        ]
        return "\n".join([*lines, *(f"  after {d.pause_s:6.2f} s: {d}" for d in self.deeds)])


Act = Callable[[SimWorld, Deed], None]
NAMES = ("a", "b", "c")


def chosen(world: SimWorld, deed: Deed) -> SimNode:
    return world[deed.node]


def seat_of(world: SimWorld, deed: Deed) -> Seat:
    seats = list(chosen(world, deed).seats.values())
    return seats[deed.number % len(seats)]


def services_of(node: SimNode) -> list[SimService]:
    return [service for seat in node.seats.values() for service in (seat.lease, seat.agent_service)]


# Machines and processes


def power(world: SimWorld, deed: Deed) -> None:
    chosen(world, deed).power_cut()
    world.after(deed.length_s, chosen(world, deed).boot)


def everything(world: SimWorld, deed: Deed) -> None:
    for node in world.nodes.values():
        node.power_cut()
        world.after(deed.length_s * (1 + deed.number % 3) / 3, node.boot)


def kill(world: SimWorld, deed: Deed) -> None:
    services = services_of(chosen(world, deed))
    services[deed.number % len(services)].killed()


def crash_loop(world: SimWorld, deed: Deed) -> None:
    lease = seat_of(world, deed).lease
    for number in range(deed.number % 8):
        world.after(number * 0.5, lease.killed)


def kill_transfer(world: SimWorld, deed: Deed) -> None:
    node = chosen(world, deed)
    transfers = [
        process for process in node.processes if "rece" in process.name or "repl" in process.name
    ]
    living = [transfer for transfer in transfers if not transfer.dead]
    if living:
        world.clockwork.kill(living[deed.number % len(living)])


def freeze(world: SimWorld, deed: Deed) -> None:
    services = services_of(chosen(world, deed))
    chosen(world, deed).freeze(services[deed.number % len(services)], deed.length_s)


def freeze_all(world: SimWorld, deed: Deed) -> None:
    chosen(world, deed).freeze_all(deed.length_s)


def stall(world: SimWorld, deed: Deed) -> None:
    """At the n-th look at a clock, or call, from now: mostly soon."""
    living = [process for process in chosen(world, deed).processes if not process.dead]
    if living:
        process = living[deed.number % len(living)]
        process.stall_in, process.stall_s = deed.number // 7 % 40, deed.length_s


def pause_vm(world: SimWorld, deed: Deed) -> None:
    node = chosen(world, deed)
    if node.powered and not node.rules.slow_s:
        node.pause_vm(deed.length_s, clock_stops=False)


# Networks and Consul


def isolate(world: SimWorld, deed: Deed) -> None:
    world.isolate(deed.node, standbys=deed.number % 3 > 0)
    world.after(deed.length_s, lambda: world.join(deed.node))


def one_way(world: SimWorld, deed: Deed) -> None:
    others = [name for name in world.nodes if name != deed.node]
    other = others[deed.number % len(others)]
    way = (deed.node, other) if deed.number % 4 < 2 else (other, deed.node)
    world.cut_ways.add(way)
    world.after(deed.length_s, lambda: world.cut_ways.discard(way))


def deaf(world: SimWorld, deed: Deed) -> None:
    chosen(world, deed).link.replies_cut = True
    world.after(deed.length_s, lambda: world.join(deed.node))


def consul_agent(world: SimWorld, deed: Deed) -> None:
    link = chosen(world, deed).link
    link.agent_down = True
    world.after(deed.length_s, lambda: setattr(link, "agent_down", False))


def election(world: SimWorld, deed: Deed) -> None:
    world.store.quorum = False
    world.after(deed.length_s / 2, lambda: setattr(world.store, "quorum", True))


def delete(world: SimWorld, deed: Deed) -> None:
    volume = world.volumes[deed.number % len(world.volumes)]
    keys = (("leader",), ("epoch",), ("leader", "epoch"))[deed.number % 3]
    world.store.delete(*(world.key(key, volume) for key in keys))


def restore(world: SimWorld, deed: Deed) -> None:
    """A backup of some time ago, or an export of the keys."""
    ago_s = 2 * SLOW.length + deed.length_s * 2
    entries = world.store.at(world.now - ago_s)
    if not entries:
        return
    if deed.number % 3 == 0:
        world.import_(entries)
    elif not any(_holds_the_last(world, volume, ago_s) for volume in world.volumes):
        index = max(entry.modify_index for entry in entries.values())
        world.restore((dict(entries), index, world.now - ago_s))


def _holds_the_last(world: SimWorld, volume: str, ago_s: float) -> bool:
    """Whether the backup has the very last heartbeat of an epoch that was followed: a holder's that
    was dead or frozen by then, and had not given the role up."""
    key = world.key("leader", volume)
    entries = [state.get(key) for state in world.store.since(world.now - ago_s)]
    told = [Leader.parse(entry.value) for entry in entries if entry is not None]
    if not told:
        return False
    then, *later = told
    # By what was told, as the keys may have been deleted since.
    followed = any(leader.epoch > then.epoch for leader in later) and not then.is_clean
    return followed and all(leader == then for leader in later if leader.epoch == then.epoch)


def stale(world: SimWorld, deed: Deed) -> None:
    link = chosen(world, deed).link
    link.stale_s = min(deed.length_s, 8.0)
    world.after(deed.length_s, lambda: setattr(link, "stale_s", 0.0))


def fault(world: SimWorld, deed: Deed) -> None:
    kinds = ("heartbeat", "heartbeat", "clean", "acquire", "acquire")
    ways = ("lost", "late", "reply-lost", "freeze-before", "freeze-after")
    kind, way = kinds[deed.number % 5], ways[deed.number // 5 % 5]
    count = 1 + deed.number // 25 % 3
    chosen(world, deed).link.faults.append(ConsulFault(kind, way, deed.length_s, count))


# The fence


def flush(world: SimWorld, deed: Deed) -> None:
    """Once, or again and again for as long as it lasts."""
    node = chosen(world, deed)
    half = ("both", "both", "asks", "answers")[deed.number % 4]

    def once() -> None:
        if node.powered and not node.everybody_frozen():
            world.log(f"{node.name}: the rules are flushed ({half})")
            node.rules.flush(half, world.now)

    times = 1 if deed.number % 3 else max(1, int(deed.length_s / 3))
    for number in range(times):
        world.after(3.0 * number, once)


def cut_off_and_flush(world: SimWorld, deed: Deed) -> None:
    """An admin restarts the firewall because the port is shut, soon or when another node serves."""
    lease = seat_of(world, deed).config.lease
    after_s = lease.length + lease.fence + deed.number % 7 / 2 * lease.wait
    isolate(world, replace(deed, length_s=max(deed.length_s, after_s + lease.wait)))
    world.after(after_s, lambda: flush(world, replace(deed, length_s=1.0)))


def arm_late(world: SimWorld, deed: Deed) -> None:
    """The next arming is slow, and all that this node does afterwards."""
    node = chosen(world, deed)
    lease = seat_of(world, deed).config.lease
    rules = node.rules
    if deed.number % 2:
        rules.freeze_in_arm_s = deed.length_s
        return
    # The last moment at which the port may be opened, by a heartbeat that was the last one.
    rules.freeze_in_arm_s = lease.fence - FENCE_MARGIN_S - 0.05
    rules.slow_s = KERNEL_S

    def then() -> None:
        if not node.powered:
            rules.freeze_in_arm_s = rules.slow_s = 0.0
        elif rules.freeze_in_arm_s:
            world.after(0.02, then)
        else:
            world.isolate(node.name)
            world.after(lease.fence + KERNEL_S, still)
            world.after(5 * lease.wait, lambda: world.join(node.name))

    def still() -> None:
        """From then on the kernel alone ends the permit."""
        rules.slow_s = 0.0
        node.freeze_all(4 * lease.wait)

    world.after(0.02, then)


# Clocks


def clock_step(world: SimWorld, deed: Deed) -> None:
    clock = chosen(world, deed).clock
    step_s = (3600.0, 3600.0, -3600.0, 90.0, -90.0, 7200.0)[deed.number % 6]
    clock.utc_step_s += step_s
    if deed.number // 6 % 3:
        world.after(deed.length_s * 2, lambda: setattr(clock, "utc_step_s", 0.0))


# Disks and the server


def disk_full(world: SimWorld, deed: Deed) -> None:
    _disk(world, deed, "full")


def disk_broken(world: SimWorld, deed: Deed) -> None:
    _disk(world, deed, "broken")


def disk_frozen(world: SimWorld, deed: Deed) -> None:
    _disk(world, deed, "frozen")


def _disk(world: SimWorld, deed: Deed, what: str) -> None:
    """Of the node's one disk, or of two volumes on disks of their own one's."""
    disk = chosen(world, deed).disk
    setattr(disk, what, True)
    own = deed.number % 3 and len(world.volumes) > 1
    disk.only = seat_of(world, deed).volume if own else ""
    if not lasts(world, deed):
        world.after(deed.length_s, lambda: setattr(disk, what, False))


def lasts(world: SimWorld, deed: Deed) -> bool:
    return world.lasting == deed.node


def var_error(world: SimWorld, deed: Deed) -> None:
    node = chosen(world, deed)
    node.var_error = (errno.ENOSPC, errno.EIO, errno.EROFS)[deed.number % 3]
    if not lasts(world, deed):
        world.after(deed.length_s, lambda: setattr(node, "var_error", 0))


def late_mount(world: SimWorld, deed: Deed) -> None:
    node = chosen(world, deed)
    node.power_cut()
    node.late_mount_s = deed.length_s
    world.after(1.0 + deed.number % 20, node.boot)


def server(world: SimWorld, deed: Deed) -> None:
    nfsd = chosen(world, deed).nfsd
    what = ("broken", "broken", "stuck")[deed.number % 3]
    setattr(nfsd, what, True)
    if what == "broken" and deed.number % 2:
        nfsd.running, nfsd.table = False, {}
    if what == "stuck" or not lasts(world, deed):
        world.after(deed.length_s, lambda: setattr(nfsd, what, False))


def mask(world: SimWorld, deed: Deed) -> None:
    """systemctl mask of the server's unit, or of a lease process's: what is found by a look."""
    nfsd, lease = chosen(world, deed).nfsd, seat_of(world, deed).lease
    what: object = lease if deed.number % 3 == 0 else nfsd
    setattr(what, "masked", True)  # noqa: B010  # either has it
    if not lasts(world, deed):
        world.after(deed.length_s, lambda: setattr(what, "masked", False))


def slow_answers(world: SimWorld, deed: Deed) -> None:
    """Half of the time the primary is cut off meanwhile."""
    nfsd = chosen(world, deed).nfsd
    nfsd.answer_s = (
        seat_of(world, deed).config.lease.wait * (0.1, 0.5, 1, 1.5, 2, 3, 8, 20)[deed.number % 8]
    )
    world.after(deed.length_s, lambda: setattr(nfsd, "answer_s", 0.0))
    if deed.number % 2:
        isolate(world, deed)


def busy(world: SimWorld, deed: Deed) -> None:
    node = chosen(world, deed)
    node.busy = True
    world.after(deed.length_s, lambda: setattr(node, "busy", False))


def start_by_hand(world: SimWorld, deed: Deed) -> None:
    """systemctl start nfs-server."""
    node = chosen(world, deed)
    if node.powered and not node.nfsd.running:
        node.systemd.begin_nfs()


def slow_copies(world: SimWorld, deed: Deed) -> None:
    world.copy_s = deed.length_s
    world.after(deed.length_s, lambda: setattr(world, "copy_s", 0.2))


# Operators


def rename(world: SimWorld, deed: Deed) -> None:
    """[nodes.a] and `node` get another name on one node, and the old one back later."""
    node = chosen(world, deed)
    for seat in node.seats.values():
        before, other = seat.config, f"{node.name}-renamed"
        if before.node == other:
            continue  # going back to these names would be a file that nobody can load
        nodes = {
            other if name == node.name else name: entry for name, entry in before.nodes.items()
        }
        seat.configure(structs.replace(before, node=other, nodes=nodes))

        def back(seat: Seat = seat, nodes: dict[str, NodeConfig] = before.nodes) -> None:
            seat.configure(structs.replace(seat.config, node=node.name, nodes=nodes))

        world.after(deed.length_s, back)


def standby_added(world: SimWorld, deed: Deed) -> None:
    """The others don't know the node, and learn of it one after the other."""
    others = [node for name, node in world.nodes.items() if name != deed.node]

    def know(node: SimNode, entry: NodeConfig | None) -> None:
        for seat in node.seats.values():
            nodes = {name: known for name, known in seat.config.nodes.items() if name != deed.node}
            nodes |= {} if entry is None else {deed.node: entry}
            seat.configure(structs.replace(seat.config, nodes=nodes))

    entry = seat_of(world, deed).config.nodes.get(deed.node)
    if entry is None:
        return  # it has another name at the moment
    for position, node in enumerate(others):
        know(node, None)
        world.after((1 + position) * deed.length_s / 2, partial(know, node, entry))


def configure(world: SimWorld, deed: Deed) -> None:
    """Another [lease], node by node; sometimes it is rolled back half-way."""
    timing = TIMINGS[("fast", "middle", "slow")[deed.number % 3]]
    names = list(world.nodes)
    first = names.index(deed.node)
    order = names[first:] + names[:first]
    for position, name in enumerate(order):
        world.after(position * deed.length_s / 3, partial(world.configure, name, timing))
    if deed.number // 3 % 4 == 0:
        world.after(deed.length_s / 2, lambda: world.configure(order[0], world.timing))


def configure_and_cut(world: SimWorld, deed: Deed) -> None:
    """A shorter lease on one node, the last to get it or the first, and a partition soon after."""
    timing = FAST if world.timing is not FAST else MIDDLE
    if deed.number % 2:
        for name in world.nodes:
            world.configure(name, timing)
    world.configure(deed.node, timing)
    pause_s = 0.2 + deed.number % 12 / 4
    world.after(pause_s, lambda: isolate(world, deed))


def promote(world: SimWorld, deed: Deed) -> None:
    loss = deed.number % 4 == 0
    seat_of(world, deed).ask("promote", accept_data_loss=loss)


def demote(world: SimWorld, deed: Deed) -> None:
    seat_of(world, deed).ask("demote")


def switchover(world: SimWorld, deed: Deed) -> None:
    seat = seat_of(world, deed)
    for candidate in world.seats(seat.volume):
        if candidate.serves and candidate.node.name != deed.node:
            candidate.ask("switchover", to=deed.node)


def pause(world: SimWorld, deed: Deed) -> None:
    volume = world.volumes[deed.number % len(world.volumes)]
    world.pause_failover(volume)
    world.after(deed.length_s, lambda: world.store.delete(world.key("pause", volume)))


def accept_epoch(world: SimWorld, deed: Deed) -> None:
    if chosen(world, deed).powered:
        world.accept_epoch(deed.node, seat_of(world, deed).volume)


DEEDS: dict[str, tuple[int, Act]] = {
    "power": (4, power),
    "power-of-all": (1, everything),
    "kill": (4, kill),
    "crash-loop": (1, crash_loop),
    "kill-transfer": (1, kill_transfer),
    "freeze": (4, freeze),
    "freeze-all": (2, freeze_all),
    "stall": (6, stall),
    "pause-vm": (1, pause_vm),
    "isolate": (5, isolate),
    "one-way": (2, one_way),
    "deaf": (2, deaf),
    "consul-agent": (2, consul_agent),
    "election": (2, election),
    "delete": (2, delete),
    "restore": (1, restore),
    "stale": (2, stale),
    "fault": (6, fault),
    "flush": (3, flush),
    "cut-off-and-flush": (2, cut_off_and_flush),
    "arm-late": (2, arm_late),
    "clock-step": (3, clock_step),
    "disk-full": (1, disk_full),
    "disk-broken": (1, disk_broken),
    "disk-read-only": (2, disk_frozen),
    "var-error": (3, var_error),
    "late-mount": (2, late_mount),
    "server": (3, server),
    "mask": (2, mask),
    "slow-answers": (2, slow_answers),
    "busy": (1, busy),
    "start-by-hand": (1, start_by_hand),
    "slow-copies": (1, slow_copies),
    "rename": (1, rename),
    "standby-added": (1, standby_added),
    "configure": (2, configure),
    "configure-and-cut": (2, configure_and_cut),
    "promote": (3, promote),
    "demote": (1, demote),
    "switchover": (5, switchover),
    "pause": (1, pause),
    "accept-epoch": (1, accept_epoch),
}
LASTING_SHARE = 0.15
LASTING = ("disk-read-only", "var-error", "server", "mask")
_NAMES = list(DEEDS)
_WEIGHTS = [weight for weight, _ in DEEDS.values()]


def schedule_of(seed: int, *, only: str = "") -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(seed)
    timing = rng.choices(("fast", "middle", "slow"), (6, 2, 2))[0]
    wait_s = TIMINGS[timing].wait
    rates = tuple(rng.choice((0.99, 1.0, 1.0, 1.01)) for _ in NAMES)
    volumes = ("data", "media") if rng.random() < 0.2 else ("data",)
    deeds = []
    for _ in range(rng.randint(2, 7)):
        name = only if only and rng.random() < 0.3 else rng.choices(_NAMES, _WEIGHTS)[0]
        node = rng.choices(NAMES, (3, 1, 1))[0]
        pause_s = round(rng.choice((0.3, wait_s / 2, wait_s * 2)) * rng.random(), 2)
        length_s = round(rng.choice((1.0, wait_s, 3 * wait_s)) * (0.1 + rng.random()), 2)
        deeds.append(Deed(pause_s, name, node, length_s, rng.randrange(10_000)))
    lasting = rng.choice(NAMES) if rng.random() < LASTING_SHARE else ""
    if lasting:
        deeds.append(
            Deed(1.0, rng.choice(LASTING), lasting, round(wait_s, 2), rng.randrange(10_000))
        )
    return Schedule(
        seed, timing, volumes, rates, rng.choice((0.0, 0.0, 600.0)), rng.random() < 0.5,
        tuple(deeds), lasting,
    )  # fmt: skip
