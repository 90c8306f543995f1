"""The highest epoch this node has ever seen, on disk: it only grows.

A lower epoch in Consul then shows that Consul was restored from a backup. A file that can't be
understood is an error, never 0: 0 would accept any history.
"""

from __future__ import annotations

import json
from pathlib import Path

from standfast.errors import StandfastError
from standfast.system.clock import Deadline
from standfast.system.files import write_atomically
from standfast.system.locks import exclusive

LOCK_WAIT_S = 5.0


class EpochFile:
    """`<state_dir>/epoch`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int:
        """Returns the highest epoch seen; 0 when none was ever seen here. StandfastError when
        unusable."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise StandfastError(f"{self._path} can't be read: {error}") from error
        try:
            doc = json.loads(text)
            epoch = doc["epoch"]
            if doc["v"] != 1 or type(epoch) is not int or epoch < 0:
                raise ValueError('it is not of the form {"v": 1, "epoch": 7}')
        except (ValueError, KeyError, TypeError) as error:
            raise StandfastError(
                f"{self._path} does not hold an epoch ({error!r}): {text[:80]!r}. Look at "
                f"`standfast history` and write the last epoch there as "
                f'{{"v": 1, "epoch": N}}'
            ) from error
        return epoch

    def raise_to(self, epoch: int) -> None:
        """Notes that `epoch` was seen; on disk when this returns. A lower one changes nothing."""
        if epoch <= self.read():
            return
        lock = self._path.with_name(f".{self._path.name}.lock")
        with exclusive(lock, "another writer of the epoch", Deadline.after(LOCK_WAIT_S)):
            if epoch > self.read():
                text = json.dumps({"v": 1, "epoch": epoch})
                write_atomically(self._path, text, durable=True, reserved=True)
