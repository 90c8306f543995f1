"""Consul servers of 1.15 and later, as far as their leadership goes: no such version can be had for
the tests. The answers are those of OperatorRaftTransferLeader in its agent/operator_endpoint.go.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAMES = ("n1", "n2", "n3")


@dataclass
class ConsulServers:
    """Three servers; `leader` hands over to the next one when it is asked to."""

    leader: str = NAMES[0]
    knows_transfer: bool = True
    operator_tokens: Sequence[str] = ("",)
    """Those with `operator = "write"`."""
    has_peers: bool = True
    transfers: int = 0
    addresses: dict[str, str] = field(default_factory=dict)

    def answer(self, name: str, method: str, path: str, token: str) -> tuple[int, Any]:
        if (method, path) == ("GET", "/v1/agent/self"):
            stats = {"consul": {"leader": "true" if name == self.leader else "false"}}
            return 200, {"Config": {"NodeName": name}, "Stats": stats}
        if path != "/v1/operator/raft/transfer-leader" or not self.knows_transfer:
            return 404, "Invalid URL path"
        if method != "POST":
            return 405, "method not allowed"
        if token not in self.operator_tokens:
            return 403, "Permission denied: token with AccessorID 'x' lacks permission"
        if not self.has_peers:
            return 500, "cannot find peer"
        self.transfers += 1
        self.leader = NAMES[(NAMES.index(self.leader) + 1) % len(NAMES)]
        return 200, {"Success": True}


@contextmanager
def consul_servers(**manners: Any) -> Iterator[ConsulServers]:
    """They listen on loopback, each at an address of its own."""
    servers = ConsulServers(**manners)
    with ExitStack() as stack:
        for name in NAMES:
            servers.addresses[name] = stack.enter_context(_listening(servers, name))
        yield servers


@contextmanager
def _listening(servers: ConsulServers, name: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("X-Consul-Token") or ""
            status, said = servers.answer(name, self.command, self.path.split("?")[0], token)
            body = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = _serve

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
