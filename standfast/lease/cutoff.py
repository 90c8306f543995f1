"""What happens to serving when the lease has run out: the fence's stages, in their order.

1. The kernel has shut the port by itself when the set element's timeout ended.
2. When that can't be confirmed, the rules are put back shut; failing that, the server is stopped.
3. Not confirmed by `valid_until + F`: the machine is rebooted, where configured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from standfast.act.ports import Fence, NfsServer
from standfast.clock import Deadline, monotonic
from standfast.errors import StandfastError, ours

log = logging.getLogger(__name__)
SYSRQ = Path("/proc/sysrq-trigger")
SHUT_S = 2.0


def confirm_shut(fence: Fence, nfs: NfsServer, by: float) -> str | None:
    """Make sure that nobody is served any more; None once that is certain, else what is not.

    `by` is the monotonic time at which it has to be certain.
    """
    try:
        state = fence.state()
        if state.in_place and state.open_for_s == 0:
            return None
        # Not for long: stopping the server is what still can be done in time.
        fence.ensure_closed(Deadline.after(SHUT_S))
        log.warning("the port was not shut at the end of the lease: shut now")
        return None
    except Exception as error:  # noqa: BLE001  # doubt, whatever it comes from
        fence_error = str(ours(error))
    log.error("the fence can't be confirmed (%s): stopping the NFS server", fence_error)
    try:
        nfs.stop(Deadline(max(by, monotonic() + 1.0)))
    except Exception as error:  # noqa: BLE001
        return (
            f"the fence can't be confirmed ({fence_error}) and the server not stopped "
            f"({ours(error)})"
        )
    return None


def stop_for_good(fence: Fence, nfs: NfsServer, deadline: Deadline) -> None:
    """The lease is lost: shut the port, then stop the server. Raises what could not be done."""
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
    """The last resort: an immediate reboot by the kernel, without sync or shutdown."""
    log.critical("serving could not be stopped in time: rebooting this machine")
    SYSRQ.write_text("b")
