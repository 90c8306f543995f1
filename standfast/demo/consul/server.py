"""An embedded Consul-compatible server: a whole cluster in one process, for the demo and the tests.

Invariant: it binds loopback only, every wait in it ends when it is closed, and what it answers is
what a Consul 1.8 cluster answers (tests/contract runs one suite on both). Each node has an agent
with a port of its own; gossip, quorum and lost replies are set by methods.
"""

from __future__ import annotations

import random
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from standfast.demo.consul.agents import Agent
from standfast.demo.consul.calls import BadRequest, Call, Held, NoLeader, Predicate, Reply, is_write
from standfast.demo.consul.http import answer
from standfast.demo.consul.state import ClusterState
from standfast.system.clock import Deadline, monotonic

HEALTHS = ("passing", "critical", "absent")
MAX_BODY_BYTES = 4 * 1024 * 1024
_LONGEST_TICK_S = 1.0


class EmbeddedConsul:
    """A cluster. Use as a context manager; all methods can be called from any thread.

    `no_leader_after_s`: how long a request waits for a quorum before its 500 (Consul: about 7 s).
    `alive_timeout_s`: how long after its last `node_alive` a node becomes critical.
    """

    def __init__(self, *, no_leader_after_s: float = 7.0, alive_timeout_s: float = 2.0) -> None:
        self.state = ClusterState()
        self._lock = threading.Condition(threading.RLock())
        self._no_leader_after_s = no_leader_after_s
        self._alive_timeout_s = alive_timeout_s
        self._quorum = True
        self._closing = False
        self._agents: dict[str, Agent] = {}
        self._servers: dict[str, _AgentServer] = {}
        self._ports: dict[str, int] = {}
        self._last_alive: dict[str, float] = {}
        self._drops: list[Predicate] = []
        self._holds: list[Held] = []
        self._timer = threading.Thread(target=self._keep_time, name="consul timer", daemon=True)
        self._timer.start()

    def __enter__(self) -> EmbeddedConsul:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all agents, waiting queries and threads."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        for node in list(self._servers):
            self.stop_agent(node)
        self._timer.join()

    # Nodes

    def add_agent(self, node: str, address: str = "127.0.0.1", *, port: int = 0) -> int:
        """Lets a node join; its agent listens on the returned loopback port.

        `address` is what the catalog says of the node.
        """
        with self._lock:
            agent = Agent(node, address)
            self._agents[node] = agent
            agent.publish_health(self.state)
            self._lock.notify_all()
        self._ports[node] = port
        self.start_agent(node)
        return self._ports[node]

    def address(self, node: str) -> str:
        """`127.0.0.1:PORT` of the node's agent."""
        return f"127.0.0.1:{self._ports[node]}"

    def stop_agent(self, node: str) -> None:
        """Its port refuses connections and its checks stand still; gossip isn't touched."""
        server = self._servers.pop(node, None)
        if server is not None:
            with self._lock:
                self._agents[node].up = False
                server.stopping = True
                self._lock.notify_all()
            server.end()

    def start_agent(self, node: str) -> None:
        """Listens again, on the same port; nothing while it does."""
        if node in self._servers:
            return
        agent = self._agents[node]
        server = _AgentServer(("127.0.0.1", self._ports[node]), self, agent)
        self._ports[node] = int(server.server_address[1])
        self._servers[node] = server
        with self._lock:
            agent.up = True
            self._sync(agent)
        server.begin()

    def set_node_health(self, node: str, health: str) -> None:
        """What gossip says: passing, critical (died), absent (left, or reaped by autopilot)."""
        if health not in HEALTHS:
            raise ValueError(f"{health!r} is none of {HEALTHS}")
        with self._lock:
            agent = self._agents[node]
            if agent.health == health:
                return
            agent.health = health
            agent.publish_health(self.state)
            if health == "passing":
                self._sync(agent)
            self._lock.notify_all()

    def node_alive(self, node: str) -> None:
        """A sign of life; after the first, the node is critical whenever they stop."""
        with self._lock:
            self._last_alive[node] = monotonic()
        self.set_node_health(node, "passing")

    def request(self, node: str, method: str, target: str, body: bytes = b"") -> Reply | None:
        """What the node's agent answers, without a connection; blocking queries block."""
        return self.serve(self._agents[node], method, target, body)

    # Faults

    def set_quorum(self, quorum: bool) -> None:
        """Without: KV, catalog and health answer 500; agents keep what they are told."""
        with self._lock:
            self._quorum = quorum
            if quorum:
                for agent in self._agents.values():
                    self._sync(agent)
            self._lock.notify_all()

    def drop_next_reply(self, applies: Predicate = is_write) -> None:
        """The next request that `applies` is carried out, and its connection closed unanswered."""
        with self._lock:
            self._drops.append(applies)

    def hold_next(self, applies: Predicate) -> Held:
        """The next request that `applies` is carried out when `let_go` says so, or at the end."""
        with self._lock:
            held = Held(applies)
            self._holds.append(held)
            return held

    def let_go(self, held: Held, deadline: Deadline) -> Reply:
        """Carries it out now; returns what the answer to it was. TimedOut when it never came."""
        with self._lock:
            held.free = True
            self._lock.notify_all()
            while held.reply is None:
                deadline.check("a request that was held")
                self._lock.wait(deadline.remaining_s())
            return held.reply

    def snapshot(self) -> Any:
        """A backup of keys, catalog and indexes."""
        with self._lock:
            return self.state.snapshot()

    def restore(self, backup: Any) -> None:
        """Back to a snapshot: values and indexes go back, then the agents sync theirs."""
        with self._lock:
            self.state.restore(backup)
            for agent in self._agents.values():
                agent.publish_health(self.state)
                self._sync(agent)
            self._lock.notify_all()

    # For the endpoints

    def has_quorum(self) -> bool:
        with self._lock:
            return self._quorum

    def read(self, call: Call, compute: Callable[[], tuple[int, Any]]) -> tuple[int, Any, bool]:
        min_index, wait_s, stale = call.min_index, call.wait_s, call.stale
        deadline = Deadline.after(wait_s * (1 + random.random() / 16))
        with self._lock:
            generation = self.state.generation
            while True:
                if not stale:
                    self._require_quorum()
                index, payload = compute()
                if not 0 < index <= min_index or deadline.expired or self._ends(call.agent):
                    return index, payload, self._quorum
                self._lock.wait(deadline.remaining_s())
                if self.state.generation != generation:  # as Consul: the answer from before
                    return index, payload, self._quorum

    def write(self, change: Callable[[], Any]) -> Any:
        with self._lock:
            self._require_quorum()
            result = change()
            self._lock.notify_all()
            return result

    def local(self, agent: Agent, change: Callable[[], Any]) -> Any:
        with self._lock:
            result = change()
            self._sync(agent)
            self._lock.notify_all()
            return result

    def serve(self, agent: Agent, method: str, target: str, body: bytes) -> Reply | None:
        """The reply to a request, or None when it is to be lost."""
        path, _, query = target.partition("?")
        told = "GET" if query.startswith("consistent") else method  # a transaction that only reads
        held = self._hold(told, path)
        dropped = self._is_dropped(told, path)
        try:
            reply = answer(self, Call.parse(agent, method, target, body))
        except BadRequest as refusal:
            reply = Reply(refusal.status, str(refusal).encode(), "text/plain")
        if held is not None:
            with self._lock:
                held.reply = reply
                self._lock.notify_all()
        return None if dropped else reply

    def _is_dropped(self, method: str, path: str) -> bool:
        with self._lock:
            drop = next((drop for drop in self._drops if drop(method, path)), None)
            if drop is not None:
                self._drops.remove(drop)
            return drop is not None

    def _hold(self, method: str, path: str) -> Held | None:
        with self._lock:
            held = next((held for held in self._holds if held.applies(method, path)), None)
            if held is not None:
                self._holds.remove(held)
                held.arrived = True
                while not held.free and not self._closing:
                    self._lock.wait()
            return held

    def _require_quorum(self) -> None:
        deadline = Deadline.after(self._no_leader_after_s)
        while not self._quorum:
            if deadline.expired or self._closing:
                raise NoLeader
            self._lock.wait(deadline.remaining_s())

    def _ends(self, agent: Agent) -> bool:
        return self._closing or not agent.up

    def _sync(self, agent: Agent) -> None:
        if self._quorum and agent.up:
            agent.sync(self.state)

    def _keep_time(self) -> None:
        """TTL checks expire, and nodes whose signs of life stopped become critical."""
        with self._lock:
            while not self._closing:
                self._lock.wait(self._tick(monotonic()))

    def _tick(self, now: float) -> float:
        """Does what is due; seconds until the next thing is."""
        due = [now + _LONGEST_TICK_S]
        for node, agent in self._agents.items():
            if agent.up and agent.health == "passing":
                if agent.expire(now):
                    self._sync(agent)
                    self._lock.notify_all()
                expiry = agent.next_expiry()
                due.append(expiry if expiry is not None else due[0])
            if agent.health == "passing" and node in self._last_alive:
                silent_at = self._last_alive[node] + self._alive_timeout_s
                if silent_at <= now:
                    self.set_node_health(node, "critical")
                else:
                    due.append(silent_at)
        return max(0.001, min(due) - now)


class _AgentServer(ThreadingHTTPServer):
    """One agent's port."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, where: tuple[str, int], cluster: EmbeddedConsul, agent: Agent) -> None:
        self.cluster = cluster
        self.agent = agent
        self.stopping = False
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(where, _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.05,), name=f"consul {agent.node}", daemon=True
        )

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Closes the port and every connection; returns when all threads are gone."""
        self.shutdown()
        with self._guard:
            for connection in self._open:
                _shut(connection)
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is nobody's error; anything else is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body leave in one packet
    disable_nagle_algorithm = True
    server: _AgentServer

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, *_args: Any) -> None:
        """Silent: the demo has the terminal."""

    def _serve(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            self._send(Reply(413, b"the body's length is missing or too large", "text/plain"))
            return
        body = self.rfile.read(int(length))
        server = self.server
        reply = server.cluster.serve(server.agent, self.command, self.path, body)
        if reply is None or server.stopping:
            self.close_connection = True
            _shut(self.connection)
            return
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        if reply.content_type:
            self.send_header("Content-Type", reply.content_type)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
