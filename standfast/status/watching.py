"""`standfast status --watch`: the same answer again and again, until ^C.

Invariant: a look that fails ends nothing: what was seen last is shown with its age still growing,
and why there is nothing newer. On a terminal it is drawn in place; elsewhere blocks follow each
other, and with `--json` each look at a volume is one line.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from msgspec.structs import replace

from standfast.errors import Refused, StandfastError
from standfast.status.document import Status
from standfast.status.text import render
from standfast.system.clock import format_utc, monotonic, sleep, utc_now
from standfast.system.lines import lines_of
from standfast.text import duration

Fetch = Callable[[], Status]
_INDENT = " " * 11
"""As wide as the labels of `status.text`."""
_HOME, _END_OF_LINE, _REST = "\033[H", "\033[K", "\033[J"


@dataclass(slots=True)
class Watched:
    """One volume, and what was seen of it last."""

    volume: str
    fetch: Fetch
    last: Status | None = None
    seen_at: float = 0.0
    error: StandfastError | None = None

    def look(self) -> None:
        """Looks once more; what fails is shown beside what was seen before."""
        try:
            self.last, self.seen_at, self.error = self.fetch(), monotonic(), None
        except StandfastError as error:
            self.error = error

    def document(self) -> dict[str, Any]:
        """Returns what --json prints of the last look."""
        if self.error is None:
            return {} if self.last is None else self.last.as_json()
        error = self.error
        reason = str(error.reason) if isinstance(error, Refused) else None
        failure = {"error": str(error), "reason": reason, "exit_code": error.exit_code}
        return {"volume": self.volume, **failure}

    def lines(self) -> list[str]:
        """Returns what is shown to people of the last look, and why there is no newer one."""
        lines = []
        if self.error is not None:
            lines += [f"NO ANSWER: {line}" for line in lines_of(str(self.error))]
        if self.last is not None:
            old_s = monotonic() - self.seen_at
            if self.error is not None:
                lines.append(f"what follows was seen {duration(old_s)} ago:")
            lines += lines_of(render(aged(self.last, old_s)))
        return lines


@dataclass(slots=True)
class Watch:
    """Shows what was seen last of each volume, again and again."""

    volumes: Sequence[Watched]
    out: TextIO
    every_s: float
    as_json: bool = False

    def run(self) -> None:
        """Looks and shows until KeyboardInterrupt."""
        while True:
            due = monotonic() + self.every_s
            self.turn()
            sleep(due - monotonic())

    def turn(self) -> None:
        """Looks once and shows it."""
        for volume in self.volumes:
            volume.look()
        if self.as_json:
            self.out.writelines(json.dumps(each.document()) + "\n" for each in self.volumes)
        elif self.out.isatty():
            self.out.write(self._drawn(self._lines()))
        else:
            self.out.write("\n".join([*self._lines(), "", ""]))
        self.out.flush()

    def _lines(self) -> list[str]:
        lines = [f"{format_utc(utc_now())}, every {self.every_s:g} s"]
        for volume in self.volumes:
            if len(self.volumes) > 1:
                lines += ["", f"volume {volume.volume}"]
            lines += volume.lines()
        return lines

    def _drawn(self, lines: list[str]) -> str:
        """Over what is there: without a flicker, and without what was longer before."""
        width, height = shutil.get_terminal_size()
        wrapped = [
            part
            for line in lines
            for part in textwrap.wrap(line, width - 1, subsequent_indent=_INDENT) or [""]
        ]
        fit = [line + _END_OF_LINE for line in wrapped[: height - 1]]
        return _HOME + "\n".join(fit) + f"\n{_REST}"


def aged(status: Status, seconds: float) -> Status:
    """Returns a document that was seen `seconds` ago: what grows with time has grown."""
    consul = status.consul
    if consul is None:
        return status
    seen_s = _later(consul.last_heartbeat_seen_s, seconds)
    standbys = tuple(
        replace(standby, age_s=_later(standby.age_s, seconds)) for standby in consul.standbys
    )
    older = replace(consul, last_heartbeat_seen_s=seen_s, standbys=standbys)
    return replace(status, consul=older)


def _later(age_s: float | None, seconds: float) -> float | None:
    return None if age_s is None else age_s + seconds
