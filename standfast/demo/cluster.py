"""The demo's cluster: an embedded Consul, three nodes, a client, and the eyes on all of them.

Invariant: nothing outlives `close`: neither a process nor, unless it is to be kept, a file.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from standfast.agent.watcher import assemble
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import HistoryEntry, Leader, StandbyRecord
from standfast.consul.volume_keys import read_volume
from standfast.demo.consul.server import EmbeddedConsul
from standfast.demo.invariants import Invariants
from standfast.demo.ledger import Client, Every, Ledger, poll
from standfast.demo.nodes import INTERVAL_S, Node, Place
from standfast.demo.screen import NodeRow, Screen
from standfast.demo.watches import Watches
from standfast.errors import StandfastError, TimedOut
from standfast.role.observation import LastHeartbeat
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.lines import lines_of

ADDRESSES = {"zippy": "127.0.0.1", "c1": "127.0.0.2", "c2": "127.0.0.3"}
# Gossip takes a node for dead when nothing was heard of it for so long, seconds.
GOSSIP_S = 2.5
FILES = {"README": "the volume of the demo\n", "settings.ini": "[mysql]\ndata = here\n"}


def free_port(addresses: tuple[str, ...]) -> int:
    """A port that is free on all of these addresses."""
    for _ in range(50):
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port = int(first.getsockname()[1])
        try:
            for address in addresses:
                with socket.socket() as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        return port
    raise StandfastError(f"no port is free on all of {', '.join(addresses)}")


class Cluster:
    """Use as a context manager."""

    def __init__(self, screen: Screen, started: float, *, keep: bool = False) -> None:
        self.screen = screen
        self.invariants = Invariants(started=started)
        self.ledger = Ledger()
        self.base = Path(tempfile.mkdtemp(prefix="standfast-demo-"))
        self.replicated: dict[str, tuple[float, str]] = {}
        """Standby -> (monotonic s before which what was acknowledged is there, snapshot)."""
        self.cycles = 0
        self._keep = keep
        self._serving: dict[str, int | None] = {}
        self.consul = EmbeddedConsul(alive_timeout_s=GOSSIP_S)
        self.nodes: dict[str, Node] = {}
        try:
            self.nodes = self._make_nodes()
        except BaseException:
            self.consul.close()
            shutil.rmtree(self.base, ignore_errors=True)
            raise
        config = self["c2"].config
        self.gateway = ConsulGateway(
            [self.consul.address(name) for name in ("c2", "c1")], timeout_s=1.0
        )
        self.client = Client(self.gateway, config.service, self.ledger, self.invariants)
        self.watches = Watches(self.consul, config, self.nodes, screen)
        self._eyes = (
            Every(0.4, "gossip", self._gossip),
            Every(0.1, "ports", self._look_at_ports),
            Every(0.2, "keys", self._look_at_keys),
            Every(0.5, "trees", self._look_at_trees),
            Every(0.4, "view", self._show),
            *(
                Every(INTERVAL_S, f"timer {name}", partial(self._replicate, name))
                for name in ADDRESSES
            ),
        )

    def _make_nodes(self) -> dict[str, Node]:
        port = free_port(tuple(ADDRESSES.values()))
        places = []
        for name, address in ADDRESSES.items():
            self.consul.add_agent(name, address)
            # With its scheme: the user's own CONSUL_CACERT must not turn it into https.
            places.append(Place(name, address, f"http://{self.consul.address(name)}"))
        return {
            place.name: Node.make(place, places, self.base, port, self.consul) for place in places
        }

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """All nodes boot; the first has a volume."""
        self.nodes["zippy"].create_volume(FILES)
        for node in self.nodes.values():
            node.boot()
            node.start_agent()
        for eye in (*self._eyes, *self.watches.eyes):
            eye.start()

    def close(self) -> None:
        """Ends every process and thread, by pid; the directory goes unless it is to be kept."""
        for thread in self._threads():
            thread.stop()
        for node in self.nodes.values():
            node.end()
        for thread in self._threads():
            thread.join()
        self.screen.close()
        self.consul.close()
        if not self._keep:
            shutil.rmtree(self.base, ignore_errors=True)

    def _threads(self) -> tuple[Every, ...]:
        return (*self._eyes, *self.watches.eyes, self.client)

    # The eyes

    def _gossip(self) -> None:
        for node in self.nodes.values():
            if node.is_on:
                self.consul.node_alive(node.name)

    def _look_at_ports(self) -> None:
        for node in self.nodes.values():
            place, port = node.place, node.config.nfs.port
            self._serving[node.name] = poll(node.name, place.address, port, self.invariants)

    def _look_at_keys(self) -> None:
        config = self["c2"].config
        entries = read_volume(self.gateway, config)
        view = assemble(config, entries, LastHeartbeat(None, 0, 0.0))
        self.invariants.consul(view.epoch, view.leader, view.history.values())

    def _look_at_trees(self) -> None:
        trees = self._trees()
        if self.invariants.lacks(trees):
            trees |= self._trees()  # one may have been renamed while the directory was read
        self.invariants.trees(trees)

    def _trees(self) -> dict[str, str]:
        trees: dict[str, str] = {}
        for node in self.nodes.values():
            trees |= {identity: str(path) for identity, path in node.trees().items()}
        return trees

    def rows(self) -> list[NodeRow]:
        return [
            NodeRow(
                node.name,
                node.place.address,
                node.is_on,
                self._serving.get(node.name),
                node.status(),
            )
            for node in self.nodes.values()
        ]

    def _show(self) -> None:
        last = self.ledger.last()
        ago = "" if last is None else f", the last {monotonic() - last.at:.1f} s ago on {last.node}"
        trouble = f" ({self.client.trouble})" if self.client.trouble else ""
        self.screen.table(self.rows(), f"client {len(self.ledger)} lines{ago}{trouble}")

    # What a timer does

    def _replicate(self, standby: str) -> None:
        """As a timer on the primary: one cycle to one standby."""
        primary = self.primary()
        if primary is None or standby == primary.name or not self[standby].is_on:
            return
        # A cycle may share a snapshot that is half an interval old.
        covered = monotonic() - INTERVAL_S / 2
        if primary.standfast("replicate", standby).returncode == 0:
            self.note_replicated(standby, covered)

    def note_replicated(self, standby: str, covered: float) -> None:
        record = self.record(standby)
        if record is None:
            return
        if standby not in self.replicated:
            self.screen.say(f"replicated to {standby}: {record.snapshot}", mark="+")
        self.replicated[standby] = (covered, record.snapshot)
        self.cycles += 1

    # What is known

    def leader(self) -> Leader | None:
        key = self["c2"].config.key("leader")
        entry = self.gateway.get(key)
        return None if entry is None else Leader.parse(entry.value, key)

    def record(self, standby: str) -> StandbyRecord | None:
        key = self["c2"].config.key(f"standbys/{standby}")
        entry = self.gateway.get(key)
        return None if entry is None else StandbyRecord.parse(entry.value, key)

    def history_entry(self, epoch: int) -> HistoryEntry | None:
        entries = {entry.epoch: entry for entry in self.invariants.history_entries()}
        return entries.get(epoch)

    def primary(self) -> Node | None:
        """The node that answers on its port now."""
        for name, epoch in self._serving.items():
            if epoch is not None:
                return self[name]
        return None

    def wait_for(self, what: str, limit_s: float, happened: Callable[[], bool]) -> float:
        """The seconds until it happened; TimedOut, Broken, or what a thread died of."""
        begun = monotonic()
        deadline = Deadline.after(limit_s)
        while not happened():
            self.check()
            if deadline.expired:
                raise TimedOut(f"{what}: not within {limit_s:g} s")
            sleep(0.02)
        return monotonic() - begun

    def check(self) -> None:
        """Raises what any of the eyes has found."""
        self.invariants.check()
        for thread in self._threads():
            if thread.error is not None:
                raise StandfastError(f"a thread of the demo died: {thread.error!r}")
        for node in self.nodes.values():
            node.check_agent()

    def logs(self, lines: int = 12) -> Mapping[str, str]:
        """The ends of all logs, for the report of a failure."""
        logs = {}
        for path in sorted(self.base.glob("*/var/log/*")):
            text = lines_of(path.read_text(errors="replace"))[-lines:]
            logs[str(path.relative_to(self.base))] = "\n".join(text)
        return logs
