"""A kernel's fence over a note instead of a kernel: until when it lets the port pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from standfast.errors import CommandFailed, TimedOut
from standfast.fence.kernel import KernelFence
from standfast.node.ports import FenceState
from standfast.system.clock import Deadline, monotonic


@dataclass
class SharedPort:
    """What all volumes of a node have in common."""

    open_until: float = 0.0
    in_place: bool = True
    broken: bool = False


class VolumeFence(KernelFence):
    def __init__(self, kernel: SharedPort, directory: Path, volume: str) -> None:
        super().__init__(2049, directory, volume)
        self.kernel = kernel

    def _state(self) -> FenceState:
        return FenceState(self.kernel.in_place, max(0.0, self.kernel.open_until - monotonic()))

    def _build(self, deadline: Deadline) -> None:
        if self.kernel.broken:
            raise CommandFailed("nft: no memory", returncode=1)
        self.kernel.in_place, self.kernel.open_until = True, 0.0

    def remove(self, deadline: Deadline) -> None:
        self.kernel.in_place, self.kernel.open_until = False, 0.0

    def _permit(self, until: float, latest: float) -> bool:
        if self.kernel.broken:
            raise CommandFailed("nft: no memory", returncode=1)
        if monotonic() >= latest:
            raise TimedOut("too late: nothing was opened")
        if self.kernel.in_place:
            self.kernel.open_until = until
        return self.kernel.in_place
