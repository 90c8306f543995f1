"""What can go wrong, by name. Libraries raise these; only `main()` turns them into exit codes.

Exit codes are an interface: 0 done, 1 refused, 2 usage or config, 3 unreachable or timed out,
4 a step failed half-way.
"""

from __future__ import annotations

from enum import StrEnum

from standfast.reasons import Reason


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
