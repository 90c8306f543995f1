"""The simulation in the ports' suites: the test is a process of a node, and time is virtual.

Nothing runs beside it on that node but what the test itself starts: no agent, no invariants.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

from standfast.consul.records import Holder, Leader, LeaderState, dump_epoch
from standfast.lease.epochs import EpochFile
from standfast.lease.files import LeaseStatus, holder_of
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.system.clock import monotonic
from tests.sim.clockwork import SimProcess, SimTime
from tests.sim.disk import SimTree
from tests.sim.invariants import Invariants
from tests.sim.node import Seat, SimNode
from tests.sim.world import SimWorld
from tests.support import waiting

EPOCH = 1
BOOTED_S = 2.0
"""The guard has refused the start of the NFS server at boot by then."""


@contextlib.contextmanager
def on_a_node(
    directory: Path,
    *,
    names: Sequence[str] = ("a", "b", "c"),
    volumes: Sequence[str] = ("data",),
) -> Iterator[SimNode]:
    """The first of these nodes, all of them up, with nothing on their disks."""
    no_invariants = patch.multiple(
        Invariants,
        look=lambda *_: None,
        committed=lambda *_: None,
        published=lambda *_: None,
    )
    with no_invariants, SimWorld(directory, names, volumes=volumes) as world:
        clockwork = world.clockwork
        for node in world.nodes.values():
            node.boot()
        world.run(0.0)
        for seat in world.seats():
            seat.node.kill_agent(seat.volume)
        world.run(BOOTED_S)
        node = world[names[0]]
        process = SimProcess(f"{node.name}/test", node.clock, node, booted_at=node.booted_at)
        virtual = patch.object(waiting, "time", SimTime(clockwork))
        with virtual, clockwork.joined_by(process):
            yield node


def make_live(seat: Seat) -> SimTree:
    """An empty live subvolume."""
    live, disk = seat.config.paths.live, seat.node.disk
    live.mkdir()
    tree = SimTree(disk.new_uuid(), [])
    disk.data.put(live, tree)
    return tree


def give_the_lease(seat: Seat, holder: Holder | None = None) -> None:
    """Consul says that this boot, or somebody else, holds the lease."""
    store, config = seat.node.world.store, seat.config
    leader = Leader(EPOCH, holder or holder_of(config), 3, LeaderState.STARTING, ())
    store.put(config.key("epoch"), dump_epoch(EPOCH))
    store.put(config.key("leader"), leader.dump())


def let_serve(seat: Seat) -> None:
    """All that makes the guard say yes."""
    config, live, now = seat.config, make_live(seat), monotonic()
    holder, until = holder_of(config), now + 60.0
    give_the_lease(seat)
    EpochFile(config.state_dir / "epoch").raise_to(EPOCH)
    fsid = "00000000-0000-4000-8000-000000000007"
    OwnEpoch(EPOCH, Stage.READY, fsid, None, True, live_uuid=live.uuid).save(config.state_dir)
    LeaseStatus(
        EPOCH, holder.instance, 0, LeaderState.STARTING, False, until, until, 3, now
    ).save(config.run_dir)  # fmt: skip
    seat.fence().claim()
    seat.fence().arm(until, until)
