"""One request at work: what it says goes to Consul, by whoever looks after it.

The agent answers it as it answers its socket: with JSON lines, the last of which has `done` or
`error`. Thread-safe: who carries it out speaks, who looks after it reads.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from msgspec.structs import replace

from standfast.consul.record import MOST_SHOWN
from standfast.errors import StandfastError, ours
from standfast.reasons import Reason
from standfast.requests.record import MOST_DOCUMENT, MOST_TEXT, Outcome, Request
from standfast.system.clock import up
from standfast.system.local_socket import parse
from standfast.text import MOST_SENTENCE, clean_lines

TELL_EVERY_S = 0.5
BEAT_EVERY_S = 2.0
"""While nothing is said."""
QUEUE_S = 60.0
"""What was taken and hasn't begun by then isn't carried out: whoever asked has been told so."""


class Work:
    """Takes in what is said, as the end of a connection would."""

    def __init__(self, request: Request, run: str) -> None:
        self.request = request
        self._lock = threading.Lock()
        self._outcome = Outcome(request.id, request.node, run)
        self._lines: list[str] = []
        self._is_begun = False
        self._taken_at = up()
        self._first = 0
        self._told = self._outcome
        """As it stands in Consul."""
        self._told_at = float("-inf")

    # Who carries it out

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.ended:
            self.end(4, error="it ended without an answer: look with `standfast status`")

    def document(self) -> Mapping[str, Any]:
        """Returns the request as the agent's socket takes it."""
        request = self.request
        arguments = request.arguments
        return {
            "command": str(request.verb),
            "dry_run": arguments.dry_run,
            "args": {
                "operator": request.by,
                "reason": arguments.reason,
                "accept_data_loss": arguments.accept_data_loss,
                "to": arguments.to,
                "despite": arguments.despite,
                "timeout_s": arguments.timeout_s,
            },
        }

    def begin(self) -> bool:
        """Tells whether it may be carried out, now; `expire` can't end it any more then."""
        self.expire()
        with self._lock:
            self._is_begun = not self._outcome.ended
            return self._is_begun

    def sendall(self, data: bytes, /) -> None:
        """Takes whole JSON lines of the agent."""
        for line in data.removesuffix(b"\n").split(b"\n"):
            doc = parse(line)
            if "progress" in doc:
                self.say(str(doc["progress"]))
            elif "error" in doc:
                code, reason = doc.get("exit_code"), doc.get("reason")
                told = reason if isinstance(reason, str) else None
                self.end(code if type(code) is int else 4, error=str(doc["error"]), reason=told)
            else:
                more = {"steps": doc["steps"]} if "steps" in doc else None
                self.end(0, text=str(doc.get("text", "done")), document=more)

    def say(self, text: str) -> None:
        """A line of progress; of several, the last ones are kept."""
        with self._lock:
            self._lines.append(clean_lines(text, MOST_SENTENCE))
            surplus = max(0, len(self._lines) - MOST_SHOWN)
            self._first += surplus
            del self._lines[:surplus]

    def fail(self, error: Exception) -> None:
        """Ends it with what an exception says."""
        known = ours(error)
        self.end(known.exit_code, error=str(known), reason=_reason(known))

    def expire(self) -> None:
        """Ends it where it has waited for too long, unless it has begun."""
        with self._lock:
            if self._is_begun or self._outcome.ended or up() - self._taken_at <= QUEUE_S:
                return
            text = (
                f"the agent of {self.request.node} was busy with something else; nothing was done. "
                "Look with `standfast status`, and run it again"
            )
            told = self._outcome
            self._outcome = replace(
                told, ended=True, exit_code=3, error=text, reason=str(Reason.BUSY)
            )

    def end(
        self,
        exit_code: int,
        *,
        text: str | None = None,
        error: str | None = None,
        reason: str | None = None,
        document: Any = None,
    ) -> None:
        """Ends it; what comes later changes nothing."""
        told = None if document is None else json.dumps(document, separators=(",", ":"))
        if told is not None and len(told) > MOST_DOCUMENT:
            told, exit_code = None, exit_code or 4
            error = "the document is too large for Consul: run the command on the node itself"
        with self._lock:
            if self._outcome.ended:
                return
            self._outcome = replace(
                self._outcome,
                ended=True,
                exit_code=exit_code if 0 <= exit_code <= 4 else 4,
                text=None if text is None else clean_lines(text, MOST_TEXT),
                error=None if error is None else clean_lines(error, MOST_TEXT),
                reason=reason,
                document=told,
            )

    @property
    def ended(self) -> bool:
        with self._lock:
            return self._outcome.ended

    # Who looks after it

    def due(self, now: float) -> Outcome | None:
        """Returns what is to be written now, if anything is."""
        with self._lock:
            told = self._told
            outcome = replace(
                self._outcome, first=self._first, progress=tuple(self._lines), beat=told.beat
            )
            if outcome == told:
                if outcome.ended or now - self._told_at < BEAT_EVERY_S:
                    return None
                return replace(outcome, beat=told.beat + 1)
            if not outcome.ended and now - self._told_at < TELL_EVERY_S:
                return None
            return outcome

    def told(self, outcome: Outcome, now: float) -> None:
        """Notes that it stands in Consul."""
        with self._lock:
            self._told, self._told_at = outcome, now

    @property
    def is_over(self) -> bool:
        """Tells whether its end stands in Consul."""
        with self._lock:
            return self._told.ended


def _reason(error: StandfastError) -> str | None:
    reason = getattr(error, "reason", None)
    return str(reason) if isinstance(reason, Reason) else None
