"""The tree of a primary that is cut off: read-only once a successor may be serving.

On a node without standbys nobody follows, so its tree stays as it is.

The fence ends what clients do, not what local programs write through the bind mount or the live
path: from a takeover on that would be lost in silence. So the tree is made read-only when the lease
has been over for as long as a successor waits. The lease process lets go of the port before: it is
opened again by a plan alone (`go-on`), which first makes the tree writable, with a valid lease of
its epoch. So no client ever meets a read-only file system.

What was opened for writing before, and the kernel itself (a loop device on an image, a swap file),
can still write: btrfs refuses new opens only.
"""

from __future__ import annotations

import logging

from msgspec.structs import replace

from standfast.config.model import Config
from standfast.consul.records import LeaderState
from standfast.errors import Refused, StandfastError
from standfast.lease.files import LeaseStatus
from standfast.node.node import Machine
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.role import volume
from standfast.system.clock import Deadline, monotonic
from standfast.system.local_socket import ask
from standfast.system.locks import exclusive

log = logging.getLogger(__name__)

ASK_S = 5.0


def is_due(
    config: Config, own: OwnEpoch, lease: LeaseStatus | None, since: float, now: float
) -> bool:
    """Tells whether nobody may write into the tree any more: no lease has been valid for as long as
    a successor waits, and there can be one. Pure.

    `since` is a time (monotonic s, as `now`) up to which there may have been one that is not known.
    """
    ended = since if lease is None else max(since, lease.valid_until)
    over = now > ended + config.lease.wait
    # What a plan was about to put away and left (its node lost Consul, its agent died) counts, too.
    alive = own.stage in (Stage.READY, Stage.DRAINING, Stage.RELEASED)
    return bool(config.standbys) and alive and over


def freeze_if_due(machine: Machine, own: OwnEpoch, since: float) -> None:
    """Makes the tree read-only where it is due; to be called while no plan is at work. The next
    turn tries again what fails."""
    config = machine.config
    lease = LeaseStatus.load(config.run_dir)
    if not is_due(config, own, lease, since, monotonic()):
        return
    live = machine.store.live()
    if live is None or not live.writable or live.uuid != own.live_uuid:
        return
    _let_go_of_the_port(machine, lease)
    volume.freeze(machine)
    log.warning(
        "%s is read-only now: the lease of epoch %d is over for more than %g s: a successor may "
        "be serving. It is writable again when the lease is back without one",
        config.paths.live,
        own.epoch,
        config.lease.wait,
    )


def _let_go_of_the_port(machine: Machine, lease: LeaseStatus | None) -> None:
    """Keeps every lease process, this one and the next, from opening the port by itself."""
    run_dir = machine.config.run_dir
    if lease is not None and not lease.serving:
        return
    try:
        with exclusive(run_dir / "lease.lock", "the lease process"):
            if lease is not None and lease.serving:
                replace(lease, serving=False, state=LeaderState.DRAINING).save(run_dir)
            return
    except Refused:  # it runs
        reply = ask(run_dir / "lease.sock", {"cmd": "drain"}, Deadline.after(ASK_S))
    if reply.get("ok") is not True:
        raise StandfastError(f"the lease process does not let go of the port: {reply}")
