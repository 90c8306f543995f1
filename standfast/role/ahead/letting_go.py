"""What giving the role up in order will ask of this node, asked while its clients are served.

Invariant: nothing is changed. What the plan itself may end (jobs of the primary, what a hook stops,
services that require the volume's path) refuses nothing. A look that fails is told and ends no
other: the plan's own steps have the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from standfast.errors import StandfastError, ours
from standfast.events.hooks import Occasion, programs
from standfast.node.node import Machine
from standfast.node.obstacle import Obstacle, Weight
from standfast.node.ports import Writer
from standfast.node.space import shortages
from standfast.role import volume
from standfast.role.volume import LAST_WRITES_S, LOOK_S
from standfast.system.clock import Deadline, sleep

BIND_S = 10.0
"""For systemd's word on the mount unit of the volume's path."""
AGAIN_S = 0.5
"""Between two looks at who writes: each reads what every process has open."""
MOST_NAMED = 5
GANESHA = "ganesha.nfsd"

Look = Callable[[Machine], Iterator[Obstacle]]


def in_the_way(machine: Machine) -> tuple[Obstacle, ...]:
    """Makes every check, one after the other."""
    return tuple(chain.from_iterable(_looked(check, machine) for check in LOOKS))


def _looked(check: str, machine: Machine) -> list[Obstacle]:
    seen: list[Obstacle] = []
    try:
        seen.extend(LOOKS[check](machine))
    except Exception as error:  # noqa: BLE001  # told, whatever it was
        evidence = f"it could not be looked at: {ours(error)}"
        fix = f"`standfast doctor` on {machine.config.node}"
        seen.append(Obstacle(check, evidence, fix, Weight.TOLD))
    return seen


def _disk(machine: Machine) -> Iterator[Obstacle]:
    """Could the tree be put away, when the lease is given up?"""
    try:
        volume.check_place(machine)
    except StandfastError as error:
        yield Obstacle("disk", str(error), "mount the volume's file system")
        return
    if (wrong := machine.store.obstacle()) is not None:
        yield Obstacle("disk", wrong, "as said there")


def _snapshot(machine: Machine) -> Iterator[Obstacle]:
    """Without a copy while this node still serves nothing else tries it before clients wait."""
    if (wrong := machine.store.snapshot_obstacle()) is not None:
        evidence = f"no final snapshot could be taken: {wrong}"
        yield Obstacle("snapshot", evidence, "as said there")


def _space(machine: Machine) -> Iterator[Obstacle]:
    """A snapshot takes metadata alone; when only the kernel's reserve is left it gets none."""
    space = machine.store.space()
    weight = Weight.REFUSES if space.metadata == 0 else Weight.TOLD
    for shortage in shortages(space):
        yield Obstacle("space", shortage.evidence, shortage.fix, weight)


def _bind(machine: Machine) -> Iterator[Obstacle]:
    if below := machine.bind.mounts_below(Deadline.after(BIND_S)):
        evidence = (
            f"{machine.config.paths.bind} can't be unmounted while something else is mounted "
            f"below it: {', '.join(below[:MOST_NAMED])}"
        )
        fix = "; ".join(f"umount {point}" for point in reversed(below[:MOST_NAMED]))
        yield Obstacle("bind", evidence, fix, _unless_it_ends(machine))


def _writers(machine: Machine) -> Iterator[Obstacle]:
    writers = _lasting_writers(machine)
    stopped = machine.bind.stops(Deadline.after(BIND_S)) if writers else ()
    if writers := [writer for writer in writers if writer.unit not in stopped]:
        evidence = (
            f"{machine.config.paths.live} is open for writing on this node itself: "
            f"{', '.join(map(str, writers[:MOST_NAMED]))}"
        )
        services = sorted({each.unit for each in writers if each.unit.endswith(".service")})
        stop = f"systemctl stop {' '.join(services)}" if services else "a container? an image?"
        yield Obstacle(
            "writers", evidence, f"end what writes ({stop}) before", _unless_it_ends(machine)
        )


def _lasting_writers(machine: Machine) -> Sequence[Writer]:
    """Returns who keeps the same file open; who is just ending, or opens one now and then, doesn't
    keep the tree from being given away."""
    patience = Deadline.after(LAST_WRITES_S)
    lasting = _others_writing(machine)
    while lasting and not patience.expired:
        sleep(AGAIN_S)
        now = set(_others_writing(machine))
        lasting = [writer for writer in lasting if writer in now]
    return lasting


def _others_writing(machine: Machine) -> list[Writer]:
    """Returns those that aren't the NFS server, which the plan stops: one outside the kernel has
    its clients' files open itself."""
    return [
        writer
        for writer in machine.store.writers(Deadline.after(LOOK_S))
        if writer.unit != machine.config.nfs.unit and writer.name != GANESHA
    ]


def _unless_it_ends(machine: Machine) -> Weight:
    """Whether a process or a mount is of a job of the primary's, or of what a hook stops, is only
    seen when the plan has come to that."""
    config = machine.config
    is_ended = config.nomad.enabled or any(
        hook.wrong is None for hook in programs(config, Occasion.PRE_DEMOTE)
    )
    return Weight.TOLD if is_ended else Weight.REFUSES


LOOKS: Mapping[str, Look] = {
    "disk": _disk,
    "snapshot": _snapshot,
    "space": _space,
    "bind": _bind,
    "writers": _writers,
}
"""What each check looks at; the slowest last."""
