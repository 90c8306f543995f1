"""A volume's export and its say in the port change together, and only while this node may serve.

Invariants: nothing is exported for a lease that has been given up or has run out, whoever looked
when; what is exported has its claim to the port before. The lock is held for these few calls alone,
so that a plan that hangs with a disk keeps nobody from taking an export away.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from standfast.act.ports import Fence, NfsServer
from standfast.clock import Deadline, monotonic
from standfast.config.model import Config
from standfast.errors import Refused, ours
from standfast.lease.files import LeaseStatus, others_serving
from standfast.locks import exclusive
from standfast.reasons import Reason
from standfast.reign import OwnReign

log = logging.getLogger(__name__)

LOCK_S = 10.0
"""Longer than a change of the export and of the claim takes on a machine that is well."""


def export(config: Config, fence: Fence, nfs: NfsServer, epoch: int, fsid: str) -> None:
    """Refused when this node's lease isn't valid, or is another epoch's; StandfastError."""
    with _alone(config):
        lease = LeaseStatus.load(config.run_dir)
        if lease is None or lease.epoch != epoch or lease.remaining_s(monotonic()) <= 0:
            raise Refused(
                Reason.LEASE_NOT_HELD,
                f"{config.volume} is not exported: the lease of epoch {epoch} is over",
            )
        fence.claim()
        nfs.export(fsid)


def unexport(config: Config, fence: Fence, nfs: NfsServer) -> None:
    """While the lease is held: the server goes on for other volumes, and the port is theirs alone.

    StandfastError: it may still be exported; what is left of the claim keeps the port shut for all.
    """
    with _alone(config):
        nfs.unexport()
        fence.release()


def end(config: Config, fence: Fence, nfs: NfsServer, deadline: Deadline) -> None:
    """After the lease: a server that exports the volume doesn't go on, also not for other volumes,
    whose agents start it again.

    What it was asked before the end is answered as soon as the port is open, and for this volume
    that would be a promise about data that nobody has any more. StandfastError as above.
    """
    with _alone(config):
        shared = bool(others_serving(config))
        if not shared or _may_be_exported(config, nfs):
            nfs.stop(deadline)
        if shared:
            nfs.unexport()  # only now: the guard lets nobody start a server that exports it
        fence.release()


def _may_be_exported(config: Config, nfs: NfsServer) -> bool:
    """A server that was started without this volume was asked nothing for it."""
    try:
        own = OwnReign.load(config.state_dir)
        return own is not None and nfs.is_exported(own.fsid)
    except Exception as error:  # noqa: BLE001  # in doubt it is
        log.warning("whether %s is exported can't be found out: %s", config.volume, ours(error))
        return True


def _alone(config: Config) -> AbstractContextManager[None]:
    limit = Deadline.after(LOCK_S)
    return exclusive(config.run_dir / "export.lock", "a change of the export", limit)
