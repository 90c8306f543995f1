"""The agent's socket: one thread takes requests in, the agent's own thread carries them out.

`status` is answered at once, with what the keys in Consul say now; `wake` only makes the next look
come sooner.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from msgspec import to_builtins

from standfast.agent.command import Command
from standfast.agent.document import document
from standfast.errors import StandfastError, ours
from standfast.system.clock import Deadline, sleep
from standfast.system.local_socket import listen, parse, read_line, send
from standfast.system.threads import start

if TYPE_CHECKING:
    from standfast.agent.loop import Agent

log = logging.getLogger(__name__)

ACCEPT_AGAIN_S = 0.2


class Listener:
    """Listens on `agent.sock` while the context lasts."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._path = agent.config.run_dir / "agent.sock"
        self._server = listen(self._path)
        self._closing = False

    def __enter__(self) -> Self:
        start("agent-socket", self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError as error:
                if self._closing or self._server.fileno() < 0:
                    return
                log.warning("the agent's socket: %s", error)
                sleep(ACCEPT_AGAIN_S)
                continue
            try:
                self._take(connection)
            except (StandfastError, OSError) as error:
                log.warning("a request on the agent's socket failed: %s", error)
                connection.close()
            except Exception:
                log.exception("a request on the agent's socket failed unexpectedly")
                connection.close()

    def _take(self, connection: socket.socket) -> None:
        request: dict[str, Any] = dict(parse(read_line(connection, Deadline.after(2.0))))
        name = request.get("command")
        if name == "status":
            with connection:
                send(
                    connection,
                    {"done": True, "status": document(self._agent, fresh=True).as_json()},
                )
            return
        if name == "inspect":
            start("agent-inspect", lambda: _inspect(self._agent, connection))
            return
        if name == "wake":
            self._agent.woken.set()
            with connection:
                send(connection, {"done": True})
            return
        self._agent.commands.put(Command(connection, request))


def _inspect(agent: Agent, connection: socket.socket) -> None:
    """Takes as long as the looks: whoever asks for something else isn't kept waiting."""
    with connection, contextlib.suppress(OSError):
        try:
            obstacles = agent.inspector.asked()
        except Exception as error:
            if not isinstance(error, StandfastError):
                log.exception("the inspection failed unexpectedly")
            send(connection, {"error": str(ours(error)), "exit_code": 4})
            return
        send(connection, {"done": True, "obstacles": to_builtins(obstacles)})
