"""What the fences that the kernel times share: the order of arming, and who may be late.

A fence has to end a permit by itself while every process of the node is frozen
(`node.ports.Fence`). A new one that the kernel times is a subclass of KernelFence, and `choice`
names it.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from signal import SIGALRM, SIGKILL

from standfast.errors import Refused, StandfastError, TimedOut
from standfast.fence.claims import Claims
from standfast.fence.made_for import MadeFor
from standfast.node.ports import FenceState
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from standfast.system.run import TOO_LATE, Completed

TABLE = "standfast"
COMMAND_S = 2.0
"""Deadline of a command that looks; opening has the caller's."""
BUILD_S = 10.0
"""For putting the rules in place: on a loaded machine a killed command would leave half of them."""
VOID_S = 1.0
"""For another volume's process that is just opening the port: it is quicker, or frozen."""
PROBE_S = 10.0
"""For finding out what the kernel has, once a boot: modules may have to be loaded for it."""


class KernelFence(ABC):
    """Opens and shuts the port by rules of the kernel, for all volumes that claim it."""

    backend = "nftables"

    def __init__(self, port: int, run_dir: Path, volume: str) -> None:
        self.port = port
        self.made_for = MadeFor(port, self.backend)
        self.claims = Claims(run_dir, volume, self.made_for)

    def ensure_closed(self, deadline: Deadline | None = None) -> None:
        """Puts the rules in place with the port shut, for every volume until its next `arm`.

        Refused when they are made for another port: what runs there has no other rules.
        """
        deadline = deadline or Deadline.after(BUILD_S)
        self.claims.refuse_other()
        # Shutting waits for nobody: a process frozen with the lock in its hand must not keep the
        # port open. One that is just opening it has counted the claim as it was: shut again after
        # it. A claim that can't be voided ends by itself, with the lease it was for.
        if not self._voided(Deadline.after(0)):
            self._build(deadline)
            self._voided(Deadline.after(VOID_S))
        self._build(deadline)

    def _voided(self, by: Deadline) -> bool:
        """Tells whether the own claim is over now: nobody opens the port by it any more."""
        with contextlib.suppress(StandfastError, OSError), self.claims.alone(by):
            self.claims.void()
            return True
        return False

    def arm(self, until: float, latest: float) -> bool:
        """Opens the port until `until`, and tells whether the rules had been flushed. See the Fence
        protocol.

        TimedOut: `latest` passed (nothing was opened after it). Refused: the volume is not
        exported here (a claim made now would outlive it, and nobody would drop it), or another
        volume on this node has no lease. CommandFailed: the rules can't be put in place.
        """
        with self.claims.locked(Deadline(latest)):
            if not self.claims.exists():
                raise Refused(
                    Reason.FENCE_NOT_ARMED,
                    f"{self.claims.volume} is not exported on this node (any more): the port is "
                    f"not opened for it",
                )
            self.claims.write(until)
            end, volume = self.claims.least()
            if end <= monotonic():
                raise Refused(
                    Reason.FENCE_NOT_ARMED,
                    f"the lease of {volume} has run out, and this node exports it: the port stays "
                    f"shut for all volumes until that lease is renewed or {volume} is demoted",
                )
            if self._permit(end, latest):
                return False
            self._build(Deadline(latest))
            if not self._permit(end, latest):
                raise StandfastError(
                    f"the rules for port {self.port} vanish as soon as they are put in place: "
                    f"find out what rewrites this machine's firewall"
                )
            return True

    def claim(self) -> None:
        """Claims the port before the volume is exported.

        A new claim shuts the port, for all volumes, until this one arms: what is open was given
        without it. Shut first: a claim is never there beside a permit that didn't count it.
        """
        deadline = Deadline.after(BUILD_S)
        with self.claims.locked(deadline):
            if not self.claims.exists():
                self._build(deadline)
                self.claims.write(0.0)

    def release(self) -> None:
        """Drops the claim of a volume that is not exported any more: the others' leases alone keep
        the port open."""
        with self.claims.alone(Deadline.after(BUILD_S)):
            self.claims.drop()

    def state(self) -> FenceState:
        """Returns what the kernel says now, and whether this volume has a claim to the port."""
        return replace(self._state(), claimed=self.claims.exists())

    @abstractmethod
    def _state(self) -> FenceState:
        """Returns what the kernel says now."""

    @abstractmethod
    def _build(self, deadline: Deadline) -> None:
        """Puts the rules in place, shut, whatever was there before."""

    @abstractmethod
    def remove(self, deadline: Deadline) -> None:
        """Takes the rules of this backend away, for whichever port they are."""

    @abstractmethod
    def _permit(self, until: float, latest: float) -> bool:
        """Renews the permit; False when the rules are not in place."""


def left_for(until: float) -> float:
    """Returns the seconds until `until`; TimedOut when that is over, as nothing must be opened
    after it."""
    left_s = until - monotonic()
    if left_s < 0.001:  # nft's smallest timeout
        raise TimedOut("the lease ran out before the port was opened: it stays shut")
    return left_s


def refuse_late(done: Completed) -> None:
    """Turns the end of an `exec_before` that was not in time into TimedOut."""
    if done.returncode in (TOO_LATE, -SIGALRM, -SIGKILL):
        raise TimedOut(
            "opening the port took too long and was given up; the next heartbeat retries"
        )
