"""The service manager, through systemctl: units are started, stopped and asked, never parsed.

Whether a unit is active is known or an error: a manager that doesn't answer is not "inactive".
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from standfast.errors import StandfastError
from standfast.system.clock import Deadline
from standfast.system.files import read_foreign_text
from standfast.system.run import run

RUNTIME_UNITS = Path("/run/systemd/system")
ASK_S = 5.0
"""Deadline of a question."""


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One message and the program that said it."""

    program: str
    text: str


class SystemdUnits:
    """Units of this machine; drop-ins are written below `runtime` and are gone at reboot."""

    def __init__(self, runtime: Path = RUNTIME_UNITS) -> None:
        self._runtime = runtime

    def _systemctl(self, verb: str, args: Sequence[str], deadline: Deadline) -> str:
        op = f"{verb}:{args[-1]}" if args else verb
        return run(["systemctl", verb, *args], deadline=deadline, op=op).stdout

    def start(self, unit: str, deadline: Deadline) -> None:
        """Start and wait; CommandFailed for a unit that crashed too often, as systemd decided."""
        self._systemctl("start", ["--", unit], deadline)

    def stop(self, unit: str, deadline: Deadline) -> None:
        self._systemctl("stop", ["--", unit], deadline)

    def start_soon(self, unit: str, deadline: Deadline) -> None:
        """Queue the start, for a caller that the unit's own start would wait for."""
        self._systemctl("start", ["--no-block", "--", unit], deadline)

    def stop_soon(self, unit: str, deadline: Deadline) -> None:
        self._systemctl("stop", ["--no-block", "--", unit], deadline)

    def reload(self, unit: str, deadline: Deadline) -> None:
        self._systemctl("reload", ["--", unit], deadline)

    def daemon_reload(self, deadline: Deadline) -> None:
        self._systemctl("daemon-reload", [], deadline)

    def reset_failed(self, unit: str, deadline: Deadline) -> None:
        """Forget failures, and with them the start limit; nothing to forget is no error."""
        argv = ["systemctl", "reset-failed", "--", unit]
        run(argv, deadline=deadline, op=f"reset-failed:{unit}", check=False)

    def is_active(self, unit: str) -> bool:
        return self.show(unit, "ActiveState") in ("active", "reloading", "refreshing")

    def exists(self, unit: str) -> bool:
        return self.show(unit, "LoadState") == "loaded"

    def show(self, unit: str, prop: str) -> str:
        """A property of a unit; StandfastError when the manager doesn't say."""
        value = self._systemctl(
            "show", [f"--property={prop}", "--value", "--", unit], Deadline.after(ASK_S)
        ).strip()
        if not value:
            raise StandfastError(f"systemd does not tell {prop} of {unit}: is the name right?")
        return value

    def write_drop_in(self, unit: str, name: str, text: str, deadline: Deadline) -> None:
        """A drop-in until the next boot, in force when this returns."""
        path = self._drop_in(unit, name)
        if path.exists() and read_foreign_text(path) == text:
            return
        before = read_foreign_text(path) if path.exists() else None
        self._put(path, text)
        self._reload_or(lambda: self._put(path, before), deadline)

    def remove_drop_in(self, unit: str, name: str, deadline: Deadline) -> None:
        path = self._drop_in(unit, name)
        if not path.exists():
            return
        before = read_foreign_text(path)
        self._put(path, None)
        self._reload_or(lambda: self._put(path, before), deadline)

    @staticmethod
    def _put(path: Path, text: str | None) -> None:
        """Write a drop-in, or take it away."""
        if text is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
            return
        path.unlink(missing_ok=True)
        if path.parent.exists() and not any(path.parent.iterdir()):
            path.parent.rmdir()

    def _reload_or(self, undo: Callable[[], None], deadline: Deadline) -> None:
        """A file that systemd hasn't read yet would be taken for one in force the next time."""
        try:
            self.daemon_reload(deadline)
        except BaseException:
            undo()
            raise

    def _drop_in(self, unit: str, name: str) -> Path:
        return self._runtime / f"{unit}.d" / f"{name}.conf"

    def journal(self, unit: str, since_utc: float, deadline: Deadline) -> list[JournalLine]:
        """What a unit's programs said since then, oldest first; best effort, never an error."""
        argv = [
            *("journalctl", "--no-pager", "--output=json", "--lines=60"),
            *(f"--since=@{since_utc:.0f}", f"--unit={unit}"),
        ]
        if shutil.which("journalctl") is None:
            return []
        try:
            listing = run(argv, deadline=deadline, op="journal", check=False).stdout
        except StandfastError:
            return []
        return parse_journal(listing)


def parse_journal(listing: str) -> list[JournalLine]:
    """Lines of `journalctl -o json`; what is no text is left out."""
    found = []
    for line in listing.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        text = entry.get("MESSAGE") if isinstance(entry, dict) else None
        if isinstance(text, str):
            found.append(JournalLine(str(entry.get("SYSLOG_IDENTIFIER", "")), text))
    return found
