"""The demo has no timers: its script replicates when the story says so."""

from __future__ import annotations


class OnDemand:
    """A schedule that does nothing by itself."""

    def start(self) -> None:
        return

    def stop(self) -> None:
        return
