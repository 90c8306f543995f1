"""The service manager, through systemctl: units are started, stopped and asked, never parsed.

Whether a unit is active is known or an error: a manager that doesn't answer is not "inactive".
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from standfast.errors import StandfastError
from standfast.system.clock import Deadline
from standfast.system.files import read_foreign_text, write_atomically
from standfast.system.lines import fields_of, lines_of
from standfast.system.run import run

RUNTIME_UNITS = Path("/run/systemd/system")
ASK_S = 5.0
"""Deadline of a question."""
REQUIREMENTS = ("Requires", "BindsTo")
"""Without whose start a unit isn't started."""


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
        """Starts the unit and waits; CommandFailed for one that crashed too often, as systemd
        decided."""
        self._systemctl("start", ["--", unit], deadline)

    def stop(self, unit: str, deadline: Deadline) -> None:
        self._systemctl("stop", ["--", unit], deadline)

    def daemon_reload(self, deadline: Deadline) -> None:
        self._systemctl("daemon-reload", [], deadline)

    def enable(self, units: Sequence[str], deadline: Deadline) -> None:
        """Has them started at boot; of one that is already nothing changes."""
        self._systemctl("enable", ["--quiet", "--", *units], deadline)

    def disable(self, units: Sequence[str], deadline: Deadline) -> None:
        """Has them started by nobody at boot. What runs goes on."""
        self._systemctl("disable", ["--quiet", "--", *units], deadline)

    def try_restart(self, unit: str, deadline: Deadline) -> None:
        """Restarts the unit if it is active."""
        self._systemctl("try-restart", ["--", unit], deadline)

    def enablement(self, unit: str) -> str:
        """Returns what `systemctl is-enabled` says: enabled, disabled, static, masked, ...; empty
        for a unit that isn't there."""
        argv = ["systemctl", "is-enabled", "--", unit]
        told = run(argv, deadline=Deadline.after(ASK_S), op=f"is-enabled:{unit}", check=False)
        state = told.stdout.strip()
        return "" if state == "not-found" else state

    def loaded(self, pattern: str) -> list[str]:
        """Returns the units that systemd has in memory and whose names match, sorted; templates'
        instances among them, inactive ones only where something refers to them."""
        argv = ["list-units", "--all", "--plain", "--no-legend", "--no-pager", "--", pattern]
        listing = self._systemctl(argv[0], argv[1:], Deadline.after(ASK_S))
        return sorted({words[0] for line in lines_of(listing) if (words := fields_of(line))})

    def reset_failed(self, unit: str, deadline: Deadline) -> None:
        """Forgets failures, and with them the start limit; nothing to forget is no error."""
        argv = ["systemctl", "reset-failed", "--", unit]
        run(argv, deadline=deadline, op=f"reset-failed:{unit}", check=False)

    def is_active(self, unit: str) -> bool:
        return self.show(unit, "ActiveState") in ("active", "reloading", "refreshing")

    def has_ended(self, unit: str) -> bool:
        """Tells whether a unit that could run doesn't, and isn't about to; one that is masked or
        that isn't installed couldn't."""
        asked = ["--property=LoadState", "--property=ActiveState", "--", unit]
        said = set(lines_of(self._systemctl("show", asked, Deadline.after(ASK_S))))
        ended = {"ActiveState=inactive", "ActiveState=failed"}
        return "LoadState=loaded" in said and bool(ended & said)

    def kill(self, unit: str, deadline: Deadline) -> None:
        """Kills all processes of a unit. What requires it goes on, other than after a stop."""
        self._systemctl("kill", ["--signal=KILL", "--", unit], deadline)

    def show(self, unit: str, prop: str) -> str:
        """Returns a property of a unit; StandfastError when the manager doesn't say."""
        value = self._systemctl(
            "show", [f"--property={prop}", "--value", "--", unit], Deadline.after(ASK_S)
        ).strip()
        if not value:
            raise StandfastError(f"systemd does not tell {prop} of {unit}: is the name right?")
        return value

    def obstacle(self, unit: str) -> str | None:
        """Says why a unit can't be started at all, whatever it would do, as it or what it requires
        is masked, say; None: it can.

        StandfastError when the manager doesn't say."""
        asked = [f"--property={','.join(('LoadState', *REQUIREMENTS))}", "--", unit]
        said = _properties(self._systemctl("show", asked, Deadline.after(ASK_S)))
        state = said.get("LoadState")
        if not state:
            raise StandfastError(f"systemd does not tell whether {unit} is loaded")
        if state != "loaded":
            return f"{unit} is {state}"
        names = [name for kind in REQUIREMENTS for name in fields_of(said.get(kind, ""))]
        # How systemctl writes a backslash (of a slice, a device) is another thing in each version.
        required = sorted({name for name in names if "\\" not in name})
        if not required:
            return None
        asked = ["--property=Id,LoadState", "--", *required]
        states = self._systemctl("show", asked, Deadline.after(ASK_S))
        wrong = {
            fields["Id"]: fields["LoadState"]
            for fields in map(_properties, states.split("\n\n"))
            if fields.get("LoadState", "loaded") != "loaded" and "Id" in fields
        }
        if not wrong:
            return None
        named = " and ".join(f"{name}, which is {state}" for name, state in wrong.items())
        return f"{unit} requires {named}"

    def write_drop_in(self, unit: str, name: str, text: str, deadline: Deadline) -> None:
        """Writes a drop-in that lasts until the next boot and is in force when this returns."""
        self._change_drop_in(unit, name, text, deadline)

    def remove_drop_in(self, unit: str, name: str, deadline: Deadline) -> None:
        """Deletes a drop-in; it is out of force when this returns."""
        self._change_drop_in(unit, name, None, deadline)

    def _change_drop_in(self, unit: str, name: str, text: str | None, deadline: Deadline) -> None:
        path = self._runtime / f"{unit}.d" / f"{name}.conf"
        before = read_foreign_text(path) if path.exists() else None
        if text == before:
            return
        self._put(path, text)
        try:
            self.daemon_reload(deadline)
        except BaseException:
            # A file that systemd hasn't read yet would be taken for one in force the next time.
            self._put(path, before)
            raise

    @staticmethod
    def _put(path: Path, text: str | None) -> None:
        """Writes a drop-in; None deletes it."""
        if text is not None:
            write_atomically(path, text)
            return
        path.unlink(missing_ok=True)
        if path.parent.exists() and not any(path.parent.iterdir()):
            path.parent.rmdir()

    def journal(self, unit: str, since_utc: float, deadline: Deadline) -> list[JournalLine]:
        """Returns what a unit's programs said since then, oldest first; best effort, never an
        error."""
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


def _properties(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in lines_of(block) if "=" in line)


def parse_journal(listing: str) -> list[JournalLine]:
    """Returns the lines of `journalctl -o json`; what is no text is left out."""
    lines = []
    for line in lines_of(listing):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        text = entry.get("MESSAGE") if isinstance(entry, dict) else None
        if isinstance(text, str):
            lines.append(JournalLine(str(entry.get("SYSLOG_IDENTIFIER", "")), text))
    return lines
