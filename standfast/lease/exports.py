"""A volume's export and its claim to the port change together, and only while this node may serve.

Invariants: nothing is exported for a lease that has been given up or has run out, whoever looked
when; what is exported has its claim to the port before. The lock is held for these few calls alone,
so that a plan that hangs with a disk keeps nobody from taking an export away.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager
from pathlib import Path

from standfast.config.model import Config
from standfast.errors import Refused, StandfastError, ours
from standfast.lease.files import LeaseStatus, others_serving
from standfast.node.own_epoch import OwnEpoch
from standfast.node.ports import Fence, NfsServer
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from standfast.system.files import write_atomically
from standfast.system.locks import exclusive

log = logging.getLogger(__name__)

LOCK_S = 10.0
"""For the other process's change. A stop of the server takes longer: who waits fails then, and
tries again."""


def export(config: Config, fence: Fence, nfs: NfsServer, epoch: int, fsid: str) -> None:
    """Exports the volume. Refused when this node's lease isn't valid, or is another epoch's;
    StandfastError: it can't be exported, and it is as it was before."""
    with _alone(config, Deadline.after(LOCK_S)):
        lease = LeaseStatus.load(config.run_dir)
        why = _why_not(lease, epoch)
        if why is not None:
            raise Refused(
                Reason.LEASE_NOT_HELD,
                f"{config.volume} is not exported: {why}; it is when the lease is back, see "
                f"`standfast status`",
            )
        was_claimed, was_marked = fence.state().claimed, _mark(config).exists()
        fence.claim()
        try:
            write_atomically(_mark(config), "")
            nfs.export(fsid)
        except BaseException:
            if not was_claimed:
                # Left behind, the claim would keep the port shut for other volumes.
                nfs.unexport()
                fence.release()
                if not was_marked:
                    _mark(config).unlink(missing_ok=True)
            raise


def _why_not(lease: LeaseStatus | None, epoch: int) -> str | None:
    if lease is None:
        return f"no lease process has said that it holds epoch {epoch}"
    if lease.epoch != epoch:
        return f"the lease is that of epoch {lease.epoch}, not of {epoch}"
    over_s = monotonic() - lease.valid_until
    if over_s < 0:
        return None
    since = f" {over_s:.1f} s ago" if math.isfinite(over_s) else ", as it was given up"
    return f"the lease of epoch {epoch} ended{since}"


def withdraw(config: Config, fence: Fence, nfs: NfsServer, deadline: Deadline) -> None:
    """Ends serving the volume here. StandfastError: it may still be served, and what is left of the
    claim keeps the port shut for all volumes.

    Within the lease, as in a handover, the server goes on for other volumes: what it was asked for
    this one is in the final snapshot. Without, it doesn't: it would answer as soon as the port is
    open for another volume, and that would be a promise about data that nobody has any more. The
    agents of the others start one without this export.
    """
    with _alone(config, deadline.within(LOCK_S)):
        if not others_serving(config) or not (_holds(config) or _was_asked_nothing(config, nfs)):
            nfs.stop(deadline)
            _mark(config).unlink(missing_ok=True)
        # Only now: the guard lets nobody start a server that would export it.
        nfs.unexport()
        fence.release()


def _holds(config: Config) -> bool:
    """Tells whether what the server is asked is still this epoch's, and goes into its data."""
    try:
        own = OwnEpoch.load(config.state_dir)
        lease = LeaseStatus.load(config.run_dir)
    except StandfastError:
        return False
    return own is not None and _why_not(lease, own.epoch) is None


def _was_asked_nothing(config: Config, nfs: NfsServer) -> bool:
    """Tells whether the server was asked nothing: one that was started without this volume was.
    That it isn't exported any more says nothing: a request may be stuck in it since before."""
    if _mark(config).exists():
        return False
    try:
        own = OwnEpoch.load(config.state_dir)
        return own is None or not nfs.is_exported(own.fsid)
    except Exception as error:  # noqa: BLE001  # in doubt it was
        log.warning("whether %s is exported can't be found out: %s", config.volume, ours(error))
        return False


def put_away(config: Config) -> None:
    """Notes that what the server was asked for this epoch is in the data that somebody has: nothing
    is left for which it would have to end."""
    _mark(config).unlink(missing_ok=True)


def _mark(config: Config) -> Path:
    """Returns the mark that is there while a server may run that exported the volume, whatever it
    exports now."""
    return config.run_dir / "exported"


def _alone(config: Config, patience: Deadline) -> AbstractContextManager[object]:
    return exclusive(config.run_dir / "export.lock", "a change of the export", patience)
