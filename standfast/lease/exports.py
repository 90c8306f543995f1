"""A volume's export and its say in the port change together, and only while this node may serve.

Invariants: nothing is exported for a lease that has been given up or has run out, whoever looked
when; what is exported has its claim to the port before. The lock is held for these few calls alone,
so that a plan that hangs with a disk keeps nobody from taking an export away.
"""

from __future__ import annotations

from standfast.act.ports import Fence, NfsServer
from standfast.clock import Deadline, monotonic
from standfast.config.model import Config
from standfast.errors import Refused
from standfast.lease.files import LeaseStatus
from standfast.locks import exclusive
from standfast.reasons import Reason

LOCK_S = 10.0
"""Longer than one change of the export and of the claim takes on a machine that is well."""


def export(config: Config, fence: Fence, nfs: NfsServer, epoch: int, fsid: str) -> None:
    """Refused when this node's lease isn't valid, or is another epoch's; StandfastError."""
    with exclusive(config.run_dir / "export.lock", "a change of the export", _patience()):
        lease = LeaseStatus.load(config.run_dir)
        if lease is None or lease.epoch != epoch or lease.remaining_s(monotonic()) <= 0:
            raise Refused(
                Reason.LEASE_NOT_HELD,
                f"{config.volume} is not exported: the lease of epoch {epoch} is over",
            )
        fence.claim()
        nfs.export(fsid)


def unexport(config: Config, fence: Fence, nfs: NfsServer) -> None:
    """The port is the other volumes' alone afterwards. StandfastError: it may still be exported,
    and what is left of the claim keeps the port shut for all of them."""
    with exclusive(config.run_dir / "export.lock", "a change of the export", _patience()):
        nfs.unexport()
        fence.release()


def _patience() -> Deadline:
    return Deadline.after(LOCK_S)
