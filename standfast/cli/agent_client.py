"""Asks this node's agent to do something, and passes on what it says while it works.

Invariant: only a final line of the agent counts as success; a connection that ends without one
means that the outcome is unknown, and the message says so.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from standfast.config.model import Config
from standfast.errors import Refused, StandfastError, TimedOut, Unreachable
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from standfast.system.local_socket import MAX_LINE, connect, parse, send

SOCKET = "agent.sock"
CONNECT_S = 5.0


class AgentFailed(StandfastError):
    """Says in the agent's words why it could not do it, with its exit code and reason code."""

    def __init__(self, message: str, *, exit_code: int, reason: str | None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    """Holds one command for the agent."""

    command: str
    args: Mapping[str, Any] = field(default_factory=dict)
    dry_run: bool = False


def ask_agent(
    config: Config, request: Request, *, timeout_s: float, on_progress: Callable[[str], None]
) -> Mapping[str, Any]:
    """Returns the agent's last line, which has `done`.

    Raises Refused and AgentFailed in the agent's words, Unreachable when no agent runs here,
    TimedOut after `timeout_s` seconds: what the agent began, it finishes all the same.
    """
    deadline = Deadline.after(timeout_s)
    try:
        with connect(config.run_dir / SOCKET, deadline.within(CONNECT_S)) as connection:
            doc = {"v": 1, "command": request.command, "args": dict(request.args)}
            connection.settimeout(max(0.001, deadline.remaining_s()))
            send(connection, doc | {"dry_run": request.dry_run})
            for line in _lines(connection, deadline):
                answer = _parse(line)
                if "progress" in answer:
                    on_progress(str(answer["progress"]))
                elif "error" in answer:
                    raise error_of(answer)
                elif answer.get("done") is True:
                    return answer
                else:
                    raise Unreachable(
                        f"the agent said {line[:80]!r}, which is not an answer. Are both of one "
                        "version? Restart it: "
                        f"systemctl restart standfast-agent@{config.volume}"
                    )
    except Unreachable as error:
        raise _with_next_step(error, config) from error
    except (TimedOut, TimeoutError) as error:
        raise TimedOut(
            f"the agent did not finish `{request.command}` within {timeout_s:g} s; what it began "
            "goes on. Look with `standfast status`"
        ) from error
    except OSError as error:
        raise Unreachable(_cut(request.command)) from error
    raise Unreachable(_cut(request.command))


def _lines(connection: socket.socket, deadline: Deadline) -> Iterator[bytes]:
    data = bytearray()
    while True:
        end = data.find(b"\n")
        if end >= 0:
            line = bytes(data[:end])
            del data[: end + 1]
            yield line
            continue
        if len(data) > MAX_LINE:
            raise AgentFailed(f"the agent's line is longer than {MAX_LINE} bytes", **_UNKNOWN)
        deadline.check("the agent's answer")
        connection.settimeout(max(0.001, deadline.remaining_s()))
        more = connection.recv(65536)
        if not more:
            return
        data += more


_UNKNOWN: dict[str, Any] = {"exit_code": 4, "reason": str(Reason.PROTOCOL)}


def _parse(line: bytes) -> Mapping[str, Any]:
    try:
        return parse(line)
    except StandfastError as error:
        raise AgentFailed(
            f"the agent's answer is {error}. Look with `standfast status`", **_UNKNOWN
        ) from error


def error_of(answer: Mapping[str, Any]) -> StandfastError:
    """Returns what an answer with `error` says, as what this command ends with."""
    text = str(answer["error"])
    code = answer.get("exit_code")
    reason = answer.get("reason")
    if code == 1 and isinstance(reason, str) and reason in {str(known) for known in Reason}:
        return Refused(Reason(reason), text)
    return AgentFailed(
        text,
        exit_code=code if type(code) is int and 1 <= code <= 4 else 4,
        reason=reason if isinstance(reason, str) else None,
    )


def _with_next_step(error: Unreachable, config: Config) -> Unreachable:
    cause = error.__cause__
    if isinstance(cause, TimeoutError):
        return Unreachable(f"{error}: the agent is stuck, see journalctl -u "
                           f"standfast-agent@{config.volume}")  # fmt: skip
    if isinstance(cause, OSError):
        return type(error)(
            f"{error}. Is the agent running? systemctl start standfast-agent@{config.volume}"
        )
    return error


def _cut(command: str) -> str:
    return (
        f"the agent ended in the middle of `{command}`; whether it was done is not known. "
        f"Look with `standfast status`; the agent continues what it began, and "
        f"`standfast {command}` can be run again"
    )
