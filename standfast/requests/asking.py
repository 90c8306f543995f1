"""The requester's side: a request lives for as long as whoever asks is there, and no longer.

Invariant: the beat is raised only by one who read the clock right before the last time, and not
long ago: at most one late beat comes of a process that stood still. Once a request was seen taken,
or was to be withdrawn, its beat is never raised again.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable

from standfast.errors import (
    ConsulError,
    Refused,
    StandfastError,
    TimedOut,
    Unreachable,
)
from standfast.reasons import Reason
from standfast.requests.decide import LATE_S, stood_still
from standfast.requests.folder import MOST, Folder, Found
from standfast.requests.record import REQUESTS, Arguments, Outcome, Request, Verb
from standfast.system.clock import sleep, up

ACCEPT_S = 30.0
"""So long a request waits for its node."""
BEAT_S = 0.5
WATCH_S = 0.5
WITHDRAW_S = 10.0
SILENT_S = 60.0
"""A node at work says so every two seconds; Consul may elect a leader meanwhile."""


class NotTaken(StandfastError):
    """Nobody took the request, and nobody can any more."""

    exit_code = 3
    reason = Reason.NOT_TAKEN


def new_request(verb: Verb, node: str, operator: str, arguments: Arguments) -> Request:
    """Returns a request of a new id."""
    by = f"{operator}@{socket.gethostname()}"
    return Request(secrets.token_hex(16), verb, node, by, 0, arguments)


class Asker:
    """One request of ours."""

    def __init__(self, folder: Folder, request: Request) -> None:
        self._folder = folder
        self._request = request
        self._is_made = False
        self.is_taken = False

    @property
    def id(self) -> str:
        return self._request.id

    def until_taken(self, accept_s: float = ACCEPT_S) -> None:
        """Makes the request, and returns when its node has taken it; NotTaken when it hasn't within
        `accept_s`, Unreachable, Refused (busy) where too many are there."""
        end = up() + accept_s
        before = self._make(end)
        while True:
            sleep(BEAT_S)
            trouble = ""
            try:
                found, _ = self._folder.both(self.id)
                if found is None:
                    raise Unreachable(
                        "the request is gone from Consul: somebody deleted it, or Consul was "
                        "restored; nothing is begun any more. Look with `standfast status`"
                    )
                if self._is_taken(found):
                    return
                now = up()
                if not stood_still(before, now) and now < end and self._folder.beat(found):
                    before = now
            except ConsulError as error:
                trouble = f" ({error})"
            if stood_still(before, up()):
                why = f"Consul gave no answer, or this command stood still, for too long{trouble}"
                self._give_up(f"{why}; nothing was done. Run it again")
                return
            if up() >= end:
                self._give_up(self._not_taken(accept_s))
                return

    def _make(self, end: float) -> float:
        """Makes the request, after an election of Consul's where there is one just now; returns
        when the clock was read right before."""
        while True:
            before = up()
            try:
                if not self._is_made and len(self._folder.entries(REQUESTS)) >= MOST:
                    raise Refused(
                        Reason.BUSY,
                        f"{MOST} requests are there already (`standfast requests`): look at what "
                        "makes them; what nobody changes is deleted after an hour",
                    )
                self._is_made = True  # as far as is known: the answer may be lost
                self._folder.create(self._request)
            except ConsulError:
                if up() >= end:
                    raise
                sleep(BEAT_S)
            else:
                return before

    def _not_taken(self, accept_s: float) -> str:
        node = self._request.node
        return (
            f"{node} didn't take the request within {accept_s:g} s; nothing was done, and nothing "
            f"will be. Is its agent running, and of this version? `standfast status`, and there: "
            f"systemctl status standfast-agent@{self._folder.volume}"
        )

    def _is_taken(self, found: Found) -> bool:
        self.is_taken = self.is_taken or found.request.taken is not None
        return self.is_taken

    def _give_up(self, why: str) -> None:
        if self.withdraw():
            raise NotTaken(why)

    def withdraw(self) -> bool:
        """Takes the request back; False: it is taken. NotTaken when Consul doesn't say which."""
        if self.is_taken or not self._is_made:
            return not self.is_taken
        end = up() + WITHDRAW_S
        trouble = ""
        while up() < end:
            try:
                found, _ = self._folder.both(self.id)
                if found is None:
                    return True
                if self._is_taken(found):
                    return False
                if self._folder.withdraw(found):
                    return True
            except ConsulError as error:
                trouble = str(error)
                sleep(BEAT_S)
        raise NotTaken(
            f"the request could not be withdrawn ({trouble}); {self._request.node} begins nothing "
            f"{LATE_S:g} s after the last sign of this command: look with `standfast status`"
        )

    def watch(self, on_progress: Callable[[str], None], timeout_s: float) -> Outcome:
        """Returns what came of it, and deletes both keys; Unreachable, TimedOut."""
        outcome = watch(self._folder, self._request, on_progress, timeout_s)
        with contextlib.suppress(ConsulError):  # the nodes delete what nobody changes
            self._folder.clear(self.id)
        return outcome


def watch(
    folder: Folder, request: Request, on_progress: Callable[[str], None], timeout_s: float
) -> Outcome:
    """Passes on what its node says; returns the end. Unreachable when the node, or Consul, falls
    silent, TimedOut: what was begun goes on all the same."""
    look = f"look with `standfast status` and `standfast requests {request.id} --follow`"
    end, heard_at = up() + timeout_s, up()
    last: Outcome | None = None
    shown, trouble = 0, ""
    while True:
        try:
            found, outcome = folder.both(request.id)
            trouble = ""
            if outcome is None and found is None:
                raise Unreachable(
                    f"the request and its outcome are gone from Consul: what came of it is not "
                    f"known; {look}"
                )
            if outcome is not None and outcome != last:
                last, heard_at = outcome, up()
                for line in outcome.progress[max(0, shown - outcome.first) :]:
                    on_progress(line)
                shown = max(shown, outcome.first + len(outcome.progress))
                if outcome.ended:
                    return outcome
        except ConsulError as error:
            trouble = f" ({error})"
        if up() - heard_at > SILENT_S:
            raise Unreachable(
                f"{request.node} has said nothing for {SILENT_S:g} s{trouble}; whether "
                f"`{request.verb}` was done is not known: {look}"
            )
        if up() >= end:
            raise TimedOut(
                f"{request.node} did not finish `{request.verb}` within {timeout_s:g} s; what it "
                f"began goes on: {look}"
            )
        sleep(WATCH_S)
