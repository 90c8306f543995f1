"""The unit of the NFS server: started with the guard in front, whose refusal is told."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from standfast.errors import CommandFailed, Refused
from standfast.node.obstacle import Obstacle
from standfast.reasons import Reason
from standfast.system.clock import Deadline, utc_now
from standfast.system.systemd import JournalLine


class ServerUnits(Protocol):
    """What the servers need of the service manager."""

    def start(self, unit: str, deadline: Deadline) -> None: ...

    def stop(self, unit: str, deadline: Deadline) -> None: ...

    def reset_failed(self, unit: str, deadline: Deadline) -> None: ...

    def obstacle(self, unit: str) -> str | None: ...

    def has_ended(self, unit: str) -> bool: ...

    def kill(self, unit: str, deadline: Deadline) -> None: ...

    def journal(self, unit: str, since_utc: float, deadline: Deadline) -> list[JournalLine]: ...


def start_server(units: ServerUnits, unit: str, deadline: Deadline) -> None:
    """Starts the unit with the guard in front; its refusal comes back as Refused."""
    since = utc_now() - 1
    # The guard's refusals count as failures; they must not use up the start limit.
    units.reset_failed(unit, deadline)
    try:
        units.start(unit, deadline)
    except CommandFailed as error:
        said = guard_s_words(units.journal(unit, since, Deadline.after(2.0)))
        if said:
            raise Refused(reason_in(said), said) from error
        raise CommandFailed(
            f"{error}; see `journalctl -u {unit}`",
            returncode=error.returncode,
            stderr=error.stderr,
        ) from error


def unit_obstacle(units: ServerUnits, unit: str) -> Iterator[Obstacle]:
    """Looks whether the unit could be started at all; StandfastError."""
    wrong = units.obstacle(unit)
    if wrong is not None:
        fix = f"`systemctl unmask {unit}`, or install the NFS server; `systemctl status {unit}`"
        yield Obstacle("unit", wrong, fix)


def guard_s_words(lines: Sequence[JournalLine]) -> str:
    """Returns what the guard said at the last start, without a repetition; empty when it said
    nothing."""
    said = [line.text for line in lines if "guard" in line.program or "standfast" in line.program]
    return "\n".join(dict.fromkeys(said))


def reason_in(text: str) -> Reason:
    """Returns the reason code that a refusal carries in brackets."""
    for word in re.findall(r"[\[(]([a-z-]+)[\])]", text):
        with contextlib.suppress(ValueError):
            return Reason(word)
    if "Another NFS server is already active" in text:
        return Reason.OTHER_SERVER_ACTIVE
    return Reason.UNEXPECTED
