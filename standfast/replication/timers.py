"""Replication on the primary: one systemd timer for each standby, at the configured interval."""

from __future__ import annotations

from standfast.config.model import Config
from standfast.system.clock import Deadline
from standfast.system.systemd import SystemdUnits

DEADLINE_S = 15.0


def timer_of(config: Config, standby: str) -> str:
    """Returns the name of the unit."""
    return f"standfast-replicate@{config.volume}:{standby}.timer"


class ReplicationTimers:
    """Starts and stops `standfast-replicate@V:STANDBY.timer` of every standby."""

    def __init__(self, config: Config, units: SystemdUnits) -> None:
        self._config = config
        self._units = units

    def _names(self) -> list[str]:
        return [timer_of(self._config, name) for name in self._config.standbys]

    def start(self) -> None:
        """Makes them run, at the interval of now; nothing else happens to those that do."""
        deadline = Deadline.after(DEADLINE_S)
        interval_s = self._config.replication.interval
        # From start to start: what a cycle takes doesn't add to the standby's age.
        # An empty value resets every trigger of the timer, not only its own.
        text = f"[Timer]\nOnActiveSec=\nOnActiveSec=1s\nOnUnitActiveSec={interval_s:g}s\n"
        for name in self._names():
            self._units.write_drop_in(name, "interval", text, deadline)
            if not self._units.is_active(name):
                self._units.start(name, deadline)

    def stop(self) -> None:
        """Ends them; a cycle under way is refused by the standby, for its epoch is over."""
        for name in self._names():
            if self._units.is_active(name):
                self._units.stop(name, Deadline.after(DEADLINE_S))

    def forget(self, standby: str) -> None:
        """Ends the timer of a node that is no standby any more, and a cycle that it began."""
        timer = timer_of(self._config, standby)
        deadline = Deadline.after(DEADLINE_S)
        for unit in (timer, timer.removesuffix("timer") + "service"):
            if self._units.is_active(unit):
                self._units.stop(unit, deadline)
        self._units.remove_drop_in(timer, "interval", deadline)
