"""What the demo shows: events with their time, and on a terminal a table that refreshes below them.

Invariant: everything that matters is an event line, so a log file tells the same story.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from standfast.system.clock import monotonic
from standfast.system.lines import lines_of

_CLEAR_BELOW = "\033[J"
_BOLD, _DIM, _RED, _GREEN, _END = "\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[0m"


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node at one moment."""

    name: str
    address: str
    is_on: bool
    serving_epoch: int | None
    status: Mapping[str, Any] | None
    has_answered: bool = False
    """Its agent, since the node was booted."""
    faults: tuple[str, ...] = ()


def node_line(row: NodeRow) -> str:
    """One line of the table."""
    head = f"{row.name:<6} {row.address:<10}"
    if not row.is_on:
        return f"{head} POWER OFF"
    if row.status is None:
        return f"{head} starting"
    status = row.status
    port = "closed" if row.serving_epoch is None else f"SERVES epoch {row.serving_epoch}"
    lease = status.get("lease_remaining_s")
    left = "" if lease is None else f"lease {lease:.1f} s"
    what = status.get("busy") or status.get("decision", {}).get("sentence", "")
    return f"{head} {status.get('role', ''):<8} port {port:<15} {left:<12} {what}"


def node_word(row: NodeRow) -> str:
    """The same in few words, for a log line."""
    if not row.is_on:
        return f"{row.name} OFF"
    role = "silent" if row.has_answered else "starting"
    if row.status is not None:
        role = row.status.get("role", role)
    more = [*(["serves"] if row.serving_epoch is not None else []), *row.faults]
    return f"{row.name} {role}" + (f" ({', '.join(more)})" if more else "")


class Screen:
    """Writes to one stream; thread-safe."""

    def __init__(self, out: TextIO, started: float, *, live: bool | None = None) -> None:
        self._out = out
        self._live = out.isatty() if live is None else live
        self._colored = self._live
        self._started = started
        self._drawn = 0
        self._table: tuple[str, ...] = ()
        self._told = ""
        self._closed = False
        self._lock = threading.Lock()

    def say(self, text: str, *, mark: str = " ") -> None:
        """An event; further lines of the text are indented below it."""
        stamp = f"[{monotonic() - self._started:5.1f} s] {mark} "
        if self._closed:
            return
        lines = lines_of(text) or [""]
        shown = [stamp + lines[0], *(" " * len(stamp) + line for line in lines[1:])]
        self.raw("\n".join(self._paint(line, mark) for line in shown))

    def chapter(self, title: str) -> None:
        """A heading."""
        self.raw(f"\n{_BOLD}{title}{_END}" if self._colored else f"\n{title}")

    def raw(self, text: str) -> None:
        """Lines as they are."""
        with self._lock:
            self._put(text)

    def _put(self, text: str) -> None:
        self._erase()
        self._out.write(f"{text}\n")
        self._draw()

    def table(self, rows: Sequence[NodeRow], client: str) -> None:
        """The state of now: redrawn on a terminal, else one line whenever the roles change."""
        if self._closed:
            return
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            lines = ["-" * min(width, 72), *map(node_line, rows), client]
            with self._lock:
                self._erase()
                self._table = tuple(line[:width] for line in lines)
                self._draw()
            return
        told = " | ".join(map(node_word, rows))
        if told != self._told:
            self._told = told
            self.say(told, mark="=")

    def close(self) -> None:
        """The table goes, the events stay; what the threads still see is not shown any more."""
        with self._lock, contextlib.suppress(OSError):  # nobody is there any more
            self._closed = True
            self._erase()
            self._table = ()
            self._out.flush()

    def _paint(self, line: str, mark: str) -> str:
        if not self._colored:
            return line
        color = {"!": _RED, "+": _GREEN, ".": _DIM}.get(mark, "")
        return f"{color}{line}{_END}" if color else line

    def _erase(self) -> None:
        if self._drawn:
            self._out.write(f"\033[{self._drawn}A\r{_CLEAR_BELOW}")
            self._drawn = 0

    def _draw(self) -> None:
        if self._live and self._table:
            self._out.write("\n".join(self._table) + "\n")
            self._drawn = len(self._table)
        self._out.flush()
