"""What happens to serving when the lease has run out: the fence's stages, in their order.

1. The kernel has shut the port by itself when the set element's timeout ended.
2. When that can't be confirmed, the rules are put back shut; failing that, the server is stopped,
   as is one that listens at another port beside the fence's.
3. Not confirmed by `valid_until + F`: the machine is rebooted, where configured.

It is confirmed again and again for as long as the lease isn't valid: somebody who flushes the
firewall opens the port, and may do so *because* it is shut.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from standfast.errors import StandfastError, ours
from standfast.node.ports import Fence, NfsServer
from standfast.system.clock import Deadline, monotonic

log = logging.getLogger(__name__)
SYSRQ = Path("/proc/sysrq-trigger")
SHUT_S = 2.0
GIVE_UP_S = 15.0
"""For shutting the port, and stopping the server where that fails; below `WatchdogSec=`."""


class Found(Enum):
    """How it came that nobody is served."""

    SHUT = "the port was shut"
    OPEN = "the port was open, and is shut now"
    FLUSHED = "the fence's rules were gone (flushed by somebody), and are back with the port shut"
    NO_SERVER = "no NFS server runs"


def put_back_shut(fence: Fence) -> Found:
    """Makes sure that the port is shut, whoever opened it; StandfastError when it can't be."""
    state = fence.state()
    if state.in_place and state.open_for_s == 0:
        return Found.SHUT
    # Not for long: stopping the server is what still can be done in time.
    fence.ensure_closed(Deadline.after(SHUT_S))
    return Found.OPEN if state.in_place else Found.FLUSHED


def confirm_shut(fence: Fence, nfs: NfsServer, by: float) -> Found:
    """Makes sure that nobody is served any more; StandfastError when that is not certain.

    `by` is the monotonic time at which it has to be certain.
    """
    return _or_stop(lambda: put_back_shut(fence), nfs, by)


def shut_to_give_up(fence: Fence, nfs: NfsServer) -> None:
    """Does the same before the lease is void: whatever the port's state is, nobody opens it again
    by this volume's claim."""

    def shut() -> Found:
        fence.ensure_closed()
        return Found.SHUT

    _or_stop(shut, nfs, monotonic() + GIVE_UP_S)


def _or_stop(shut: Callable[[], Found], nfs: NfsServer, by: float) -> Found:
    try:
        found = shut()
        elsewhere = nfs.unfenced()
        if elsewhere is None:
            return found
        fence_error = elsewhere
    except Exception as error:  # noqa: BLE001  # doubt, whatever it comes from
        fence_error = str(ours(error))
    try:
        if nfs.is_running():
            log.error("the fence can't be confirmed (%s): stopping the NFS server", fence_error)
            nfs.stop(Deadline(max(by, monotonic() + 1.0)))
    except Exception as error:
        raise StandfastError(
            f"the fence can't be confirmed ({fence_error}) and the server not stopped "
            f"({ours(error)})"
        ) from error
    return Found.NO_SERVER


def stop_for_good(fence: Fence, nfs: NfsServer, deadline: Deadline) -> None:
    """Shuts the port, then stops the server, as the lease is lost. Raises what could not be
    done."""
    problems = []
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("shutting the port", fence.ensure_closed),
        ("stopping the NFS server", lambda: nfs.stop(deadline)),
    )
    for what, step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001  # the other one is tried all the same
            problems.append(f"{what} failed: {ours(error)}")
    if len(problems) == len(steps):
        raise StandfastError("; ".join(problems))
    for problem in problems:
        log.error("%s", problem)


def reboot_now() -> None:
    """Reboots at once by the kernel, without sync or shutdown: the last resort."""
    log.critical("serving could not be stopped in time: rebooting this machine")
    SYSRQ.write_text("b")
