"""The demo's fence: a file with the end of the permit."""

from __future__ import annotations

import contextlib
from pathlib import Path

from standfast.config.model import Config
from standfast.errors import StandfastError, TimedOut
from standfast.node.ports import FenceState
from standfast.system.clock import Deadline, monotonic
from standfast.system.files import read_json, write_atomically


class FileFence:
    """The demonstration's fence, without root: a file with the end of the permit.

    The embedded NFS server looks at it before each answer. The end is an absolute time of this
    machine's clock, so a late write opens nothing.
    """

    def __init__(self, run_dir: Path, port: int) -> None:
        self.path = run_dir / f"port-{port}.fence"

    def ensure_closed(
        self,
        deadline: Deadline | None = None,  # noqa: ARG002 - a file is written at once
    ) -> None:
        write_atomically(self.path, '{"v": 1, "until": 0.0}\n')

    def arm(self, until: float, latest: float) -> bool:
        missing = not self.state().in_place
        if monotonic() >= min(until, latest):
            raise TimedOut("opening the port took too long, or its lease is over: it stays shut")
        write_atomically(self.path, f'{{"v": 1, "until": {until!r}}}\n')
        return missing

    def claim(self) -> None:
        """Nothing to do: one volume has the port for itself."""

    def release(self) -> None:
        """Nothing to do: one volume has the port for itself."""

    def state(self) -> FenceState:
        with contextlib.suppress(StandfastError, KeyError, TypeError, ValueError):
            doc = read_json(self.path)
            if doc is not None:
                return FenceState(True, max(0.0, float(doc["until"]) - monotonic()))
        return FenceState(in_place=False, open_for_s=0.0)


def fence_of(config: Config) -> FileFence:
    """The node's: the file server and the lease process look at the same file."""
    return FileFence(config.paths.run / "fence", config.nfs.port)
