"""The status document as this node's agent tells it, over its socket."""

from __future__ import annotations

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.status.document import Status
from standfast.system.clock import Deadline
from standfast.system.local_socket import ask

ANSWER_S = 3.0
"""For the agent's answer; it takes a few milliseconds."""


def of_agent(config: Config) -> Status:
    """Asks this node's agent; Unreachable when none runs, TimedOut when it hangs, StandfastError
    for an answer that is no status."""
    path = config.run_dir / "agent.sock"
    reply = ask(path, {"v": 1, "command": "status"}, Deadline.after(ANSWER_S))
    status = reply.get("status")
    if not isinstance(status, dict):
        raise StandfastError(f"the agent's answer is not a status: {reply!r}")
    return Status.parse(status)
