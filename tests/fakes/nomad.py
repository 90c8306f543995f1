"""A stand-in for Nomad: a server and its clients' agents, each an HTTP server on loopback.

It answers like the recorded ones in tests/contract/nomad_answers, out of `nomad_state.State`, and
can be made to answer badly: `misbehave`. As a program it does the same for other processes, with
POST /stand-in/{kill,start,freeze,thaw}/NODE and POST /stand-in/manner/NAME to steer it:

    python -m tests.fakes.nomad server=127.0.0.1:4646 node1=10.0.0.1:4646 node2=10.0.0.2:4646
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.nomad_acl import Acl
from tests.fakes.nomad_api import Api, Call, Manner
from tests.fakes.nomad_objects import Refusal
from tests.fakes.nomad_state import NomadState

SERVER = "server"
HANG_S = 60.0
"""Longer than any deadline of ours."""


class NomadStandIn:
    """Its agents are `server` and the nodes; use it as a context, or `close` it.

    Without `management`, the secret of a token that may do everything, ACLs are off.
    """

    def __init__(
        self,
        nodes: Sequence[str] = ("node1", "node2"),
        *,
        addresses: Mapping[str, tuple[str, int]] | None = None,
        meta_delay_s: tuple[float, float] = (5.0, 10.0),
        down_after_s: float = 20.0,
        start_s: float = 0.5,
        volumes: Mapping[str, str] | None = None,
        management: str = "",
    ) -> None:
        self.state = NomadState(
            tuple(nodes),
            meta_delay_s=meta_delay_s,
            down_after_s=down_after_s,
            start_s=start_s,
            volumes=volumes,
        )
        self.acl = Acl(management)
        self.manner = Manner.NORMAL
        self.requests: list[tuple[str, str, str]] = []
        """(agent, method, path with query) of everything that came in."""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._api = Api(self.state, self.acl)
        self._servers: dict[str, ThreadingHTTPServer] = {}
        self._addresses: dict[str, tuple[str, int]] = {}
        for agent in (SERVER, *nodes):
            self._listen(agent, (addresses or {}).get(agent, ("127.0.0.1", 0)))

    def __enter__(self) -> NomadStandIn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        for agent in list(self._servers):
            self._unlisten(agent)

    # What can be done to the agents

    def address(self, agent: str) -> str:
        host, port = self._addresses[agent]
        return f"{host}:{port}"

    def kill(self, node: str) -> None:
        """As kill -9 of the agent, which may be the server's: connections are refused."""
        self._unlisten(node)
        with self._lock:
            self._api.forget(node)
            if node in self.state.nodes:
                self.state.kill(node)

    def start(self, node: str) -> None:
        with self._lock:
            if node in self.state.nodes:
                self.state.start(node)
        self._listen(node, self._addresses[node])

    def launch(self, node: str) -> None:
        """It needs no waiting for."""
        self.start(node)

    def freeze(self, node: str) -> None:
        """As SIGSTOP: connections are accepted and nothing is answered."""
        with self._lock:
            self.state.freeze(node)

    def thaw(self, node: str) -> None:
        with self._lock:
            self.state.thaw(node)

    def misbehave(self, manner: Manner) -> None:
        """How every agent answers from now on."""
        self.manner = manner

    # HTTP

    def _listen(self, agent: str, address: tuple[str, int]) -> None:
        server = _Server(address, _handler(self, agent))
        self._servers[agent] = server
        host, port = server.server_address[:2]
        self._addresses[agent] = (str(host), int(port))
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def _unlisten(self, agent: str) -> None:
        server = self._servers.pop(agent, None)
        if server is not None:
            server.shutdown()
            server.server_close()

    def answer(
        self, agent: str, method: str, target: str, token: str, body: bytes
    ) -> tuple[int, Any]:
        """The status, and a document or a plain text; waits while it hangs."""
        parts = urlsplit(target)
        path = [unquote(part) for part in parts.path.strip("/").split("/")]
        if path[0] == "stand-in":
            return self._steer(path[1:])
        with self._lock:
            self.requests.append((agent, method, target))
        if self.manner is Manner.HANG or self._frozen(agent):
            self._closing.wait(HANG_S)
            return 500, "EOF"
        if self.manner is Manner.ERROR:
            return 500, "rpc error: EOF"
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        with self._lock:
            self.state.advance()
            try:
                if self.manner is Manner.DENY:
                    raise Refusal(403, "Permission denied")
                call = Call(agent, method, path[1:], query, self._doc(body), token)
                leaderless = self.manner is Manner.NO_LEADER
                serverless = SERVER not in self._servers
                return 200, self._api.answer(call, leaderless=leaderless, serverless=serverless)
            except Refusal as refusal:
                return refusal.status, str(refusal)

    def _frozen(self, agent: str) -> bool:
        node = self.state.nodes.get(agent)
        return node is not None and node.frozen

    def _steer(self, path: Sequence[str]) -> tuple[int, Any]:
        verb, name = path
        if verb == "manner":
            self.misbehave(Manner(name))
        else:
            act: Callable[[str], None] = {
                "kill": self.kill,
                "start": self.start,
                "freeze": self.freeze,
                "thaw": self.thaw,
            }[verb]
            act(name)
        return 200, {}

    @staticmethod
    def _doc(body: bytes) -> Any:
        try:
            return json.loads(body) if body else None
        except ValueError:
            raise Refusal(400, "Request body is not JSON") from None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64


def _handler(stand_in: NomadStandIn, agent: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            token = self.headers.get("X-Nomad-Token") or ""
            status, answer = stand_in.answer(agent, self.command, self.path, token, body)
            is_text = status != 200
            data = answer.encode() if is_text else json.dumps(answer).encode()
            try:
                self.send_response(status)
                kind = "text/plain; charset=utf-8" if is_text else "application/json"
                self.send_header("Content-Type", kind)
                self.send_header("X-Nomad-Index", str(stand_in.state.index()))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on stderr."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.nomad")
    parser.add_argument("agents", nargs="+", metavar="AGENT=HOST:PORT", help="server=… and nodes")
    parser.add_argument("--meta-delay", type=float, nargs=2, default=(5.0, 10.0), metavar="SECONDS")
    parser.add_argument("--down-after", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--management", default="", help="secret of the token that may do all")
    parser.add_argument("--manner", default="normal", choices=[manner.value for manner in Manner])
    given = parser.parse_args()
    parent = os.getppid()
    addresses = {}
    for text in given.agents:
        agent, _, where = text.partition("=")
        host, _, port = where.rpartition(":")
        addresses[agent] = (host, int(port))
    with NomadStandIn(
        [agent for agent in addresses if agent != SERVER],
        addresses=addresses,
        meta_delay_s=tuple(given.meta_delay),
        down_after_s=given.down_after,
        management=given.management,
    ) as stand_in:
        stand_in.misbehave(Manner(given.manner))
        print("ready", flush=True)
        # Its cluster's clean-up doesn't reach it: it ends with the run that started it.
        while os.getppid() == parent:
            time.sleep(1.0)


if __name__ == "__main__":
    main()
