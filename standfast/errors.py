"""What can go wrong, by name. Libraries raise these; only `main()` turns them into exit codes.

Exit codes are an interface: 0 done, 1 refused, 2 usage or config, 3 unreachable or timed out,
4 a step failed half-way.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from enum import StrEnum

from standfast.reasons import Reason

AS_ROOT = "This needs root: run it with sudo"
"""The next step after a refusal of the system's."""
MOST_COMPARED = 64
"""Characters of a word that is compared with others: more take long."""


class StandfastError(Exception):
    """Base of everything raised on purpose; its text is a whole message with the next step."""

    exit_code = 4


class Refused(StandfastError):
    """Not done because it would be unsafe or is not possible now; carries the stable code."""

    exit_code = 1

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(StandfastError):
    """The configuration can't be used; the text has the key's path, value, rule and way out."""

    exit_code = 2


class UsageError(StandfastError):
    """The command line can't be understood."""

    exit_code = 2


class TimedOut(StandfastError):
    """A deadline passed. Whether the effect happened is unknown unless the text says so."""

    exit_code = 3


class Unreachable(StandfastError):
    """Something this depends on doesn't answer."""

    exit_code = 3


class NotRunning(Unreachable):
    """No process of ours listens at its socket."""


class NeedsRoot(StandfastError):
    """Root could have done it; nothing is known of what was asked for."""

    exit_code = 3


class ConsulError(Unreachable):
    """Consul gave no usable answer.

    `maybe_applied` says whether a write may have been carried out all the same: a caller must
    read back before it draws a conclusion.
    """

    def __init__(self, message: str, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


class ConsulUnreachable(ConsulError):
    """No configured address accepted the connection: nothing was sent."""


class ConsulTimedOut(ConsulError):
    """No whole answer before the deadline (a hung server, or one that drips bytes)."""


class ConsulNoQuorum(ConsulError):
    """Consul answered 5xx: it has no leader, or is losing it."""


class ConsulLimited(ConsulError):
    """Consul takes no more requests now: one of its limits is reached. Nothing was done."""


class ConsulDenied(ConsulError):
    """403: the token is unknown or its policy is too small."""


class ConsulGarbled(ConsulError):
    """The answer is not what Consul sends: not JSON, a foreign shape, an unexpected status."""


class NomadOutcome(StrEnum):
    """Why Nomad gave no usable answer."""

    UNREACHABLE = "unreachable"
    """No connection: nothing was sent."""
    TIMEOUT = "timeout"
    """No whole answer before the deadline."""
    DENIED = "denied"
    """403: no token, an unknown one, or its policy is too small; Nomad doesn't say which."""
    NOT_FOUND = "not-found"
    """There is no such thing, or no way to the node."""
    BAD_REQUEST = "bad-request"
    SERVER_ERROR = "server-error"
    """5xx: no leader, a node that doesn't answer the servers, or what it says itself."""
    GARBLED = "garbled"
    """The answer is not what Nomad sends."""


class NomadError(Unreachable):
    """Nomad gave no usable answer. Storage never waits for it.

    `maybe_applied`: a write may have been carried out all the same; look before repeating it.
    """

    def __init__(self, message: str, outcome: NomadOutcome, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.maybe_applied = maybe_applied


class ForeignValue(StandfastError):
    """A key of ours holds something that Standfast did not write; nothing is changed."""

    exit_code = 1


class CommandFailed(StandfastError):
    """A program ended with a non-zero status; the text has its name, status and last words."""

    def __init__(self, message: str, *, returncode: int, stderr: str = "") -> None:
        super().__init__(message)
        self.returncode = returncode
        self.stderr = stderr


class StepFailed(StandfastError):
    """A plan stopped at a step; the text says which one and the command that goes on."""

    exit_code = 4


class Unexpected(StandfastError):
    """What nobody raised on purpose: the system refused something, or there is a bug.

    Made by `ours` where a step, a look or a request ends, so that all of them fail in one way.
    """


def ours(error: Exception) -> StandfastError:
    """Any exception as one that every caller understands; the traceback of a bug is logged.

    A disk that is full, read-only or broken and a name that isn't UTF-8 are states of the machine:
    what was begun failed, is undone and tried again, like everything else that fails.
    """
    if isinstance(error, StandfastError):
        return error
    if not isinstance(error, OSError):
        _tell_bug(error)
    unexpected = Unexpected(said(error))
    unexpected.__cause__ = error
    return unexpected


_bugs: set[str] = set()
"""Told already: a step is tried again every few seconds."""
_MOST_BUGS = 100


def _tell_bug(error: Exception) -> None:
    import logging  # a start-up without a bug is shorter

    text = said(error)
    if text not in _bugs and len(_bugs) < _MOST_BUGS:
        _bugs.add(text)
        logging.getLogger(__name__).error("unexpected: %s", text, exc_info=error)


def said(error: Exception) -> str:
    """Returns an exception as a message: ours as it is, the system's with path and code, else its
    name."""
    if isinstance(error, StandfastError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        paths = [str(name) for name in (error.filename, error.filename2) if name is not None]
        code = errno.errorcode.get(error.errno or 0, str(error.errno))
        return f"{' -> '.join(paths)}{': ' if paths else ''}{error.strerror} ({code})"
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean X?)`, for after a name that nobody knows; empty where none is
    close."""
    from difflib import get_close_matches  # no start-up without a typing error needs it

    names = {name.lower(): name for name in known}
    close = get_close_matches(word[:MOST_COMPARED].lower(), names, 1)
    return f" (did you mean {names[close[0]]}?)" if close else ""


def is_lack_of(error: BaseException | None, *codes: int) -> bool:
    """Tells whether the system's refusal behind an error, or behind what caused it, has such a
    code, or a program was refused so: its last words are the code's."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in codes:
            return True
        # Programs are run in the C locale.
        told = error.stderr if isinstance(error, CommandFailed) else ""
        if any(os.strerror(code) in told for code in codes):
            return True
        error = error.__cause__
    return False
