"""Which volumes need the port, and until when each of their leases runs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from standfast.errors import Refused, StandfastError
from standfast.fence.made_for import MadeFor
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from standfast.system.files import read_json, write_atomically
from standfast.system.locks import exclusive


class Claims:
    """Knows which volumes the port serves, and until when each of their leases runs (monotonic
    s)."""

    def __init__(self, directory: Path, volume: str, made_for: MadeFor | None = None) -> None:
        self.directory = directory
        self.volume = volume
        self.made_for = made_for
        self._own = directory / f"{volume}.json"

    @contextlib.contextmanager
    def locked(self, by: Deadline) -> Iterator[None]:
        """Lets one volume's process at a time set the fence, and only as it is made for;
        Refused."""
        with self.alone(by):
            self.refuse_other()
            yield

    @contextlib.contextmanager
    def alone(self, by: Deadline) -> Iterator[None]:
        """Does the same for what opens nothing, and touches no rules."""
        with exclusive(self.directory / "lock", "the fence of another volume", by):
            yield

    def refuse_other(self) -> None:
        """Raises Refused when another process has made the fence for something else since this one
        began: putting up ours would take those rules away."""
        known = MadeFor.load(self.directory)
        if known is not None and self.made_for not in (None, known):
            raise Refused(
                Reason.FENCE_NOT_ARMED,
                f"this node's fence shuts {known} by now, and this process goes by "
                f"{self.made_for}: restart it, so that it has the configuration of now",
            )

    def write(self, until: float) -> None:
        try:
            write_atomically(self._own, f'{{"v": 1, "until": {until!r}}}\n')
        except OSError as error:
            raise StandfastError(
                f"the fence's claim {self._own} can't be written ({error}): make room there"
            ) from error

    def void(self) -> None:
        """Ends the own claim, if there is one: it keeps the port shut until it is renewed."""
        if self._own.exists():
            self.write(0.0)

    def exists(self) -> bool:
        """Tells whether the volume has a claim."""
        return self._own.exists()

    def holders(self) -> Sequence[str]:
        """Returns the volumes that have a claim."""
        return sorted(path.stem for path in self.directory.glob("*.json"))

    def drop(self) -> None:
        """Removes the claim: the volume is not exported any more."""
        self._own.unlink(missing_ok=True)

    def least(self) -> tuple[float, str]:
        """Returns the end of the first lease to end, and its volume; an unreadable claim has
        ended."""
        ends = []
        for path in sorted(self.directory.glob("*.json")):
            until = 0.0
            with contextlib.suppress(StandfastError, KeyError, TypeError, ValueError):
                until = float((read_json(path) or {})["until"])
            ends.append((until if math.isfinite(until) else 0.0, path.stem))
        return min(ends)
