"""The demo's cluster: an embedded Consul, three nodes, a client, and the eyes on all of them.

Invariant: nothing outlives `close`: neither a process nor, unless it is to be kept, a file.
"""

from __future__ import annotations

import contextlib
import shlex
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
from standfast.demo.ledger import Client, Every, Ledger, Line, poll
from standfast.demo.nodes import LIVELY, Node, Pace, Place, config_text
from standfast.demo.screen import NodeRow, Screen
from standfast.demo.watches import Watches
from standfast.errors import StandfastError, TimedOut
from standfast.role.observation import LastHeartbeat
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.lines import lines_of

ADDRESSES = {"zippy": "127.0.0.1", "c1": "127.0.0.2", "c2": "127.0.0.3"}
# The client's machine has a Consul agent, too; by it the cluster is looked at.
CLIENT, CLIENT_ADDRESS = "client", "127.0.0.4"
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

    def __init__(
        self, screen: Screen, started: float, *, keep: bool = False, pace: Pace = LIVELY
    ) -> None:
        self.screen = screen
        self.invariants = Invariants(started=started)
        self.ledger = Ledger()
        self.base = Path(tempfile.mkdtemp(prefix="standfast-demo-"))
        self.replicated: dict[str, tuple[float, str]] = {}
        """Standby -> (monotonic s before which what was acknowledged is there, snapshot)."""
        self.cycles = 0
        self._keep = keep
        self._pace = pace
        self._serving: dict[str, int | None] = {}
        self.consul = EmbeddedConsul(alive_timeout_s=GOSSIP_S)
        self.nodes: dict[str, Node] = {}
        try:
            self.nodes = self._make_nodes()
        except BaseException:
            self.consul.close()
            shutil.rmtree(self.base, ignore_errors=True)
            raise
        self.config = self["c2"].config
        """What is the same on all nodes."""
        self.gateway = ConsulGateway([self.consul.address(CLIENT)], timeout_s=1.0)
        self.client = Client(
            self.gateway, self.config.service, self.ledger, self.invariants, pace.line_s
        )
        self.watches = Watches(self.consul, self.config, self.nodes, screen)
        self.timers = [
            Every(LIVELY.interval_s, f"timer {name}", partial(self._replicate, name))
            for name in ADDRESSES
        ]
        """At the pace of the beginning, until `settle_down`."""
        self._eyes = [
            Every(0.4, "gossip", self._gossip),
            Every(0.1, "ports", self._look_at_ports),
            Every(0.2, "keys", self._look_at_keys),
            Every(0.5, "trees", self._look_at_trees),
            Every(0.4, "view", self._show),
            *self.timers,
            *self.watches.eyes,
        ]

    def _make_nodes(self) -> dict[str, Node]:
        port = free_port(tuple(ADDRESSES.values()))
        self.consul.add_agent(CLIENT, CLIENT_ADDRESS)
        places = []
        for name, address in ADDRESSES.items():
            self.consul.add_agent(name, address)
            # With its scheme: the user's own CONSUL_CACERT must not turn it into https.
            places.append(Place(name, address, f"http://{self.consul.address(name)}"))
        nodes = {}
        for place in places:
            text = config_text(place, places, self.base, port, self._pace)
            nodes[place.name] = Node.make(place, self.base / place.name, text, self.consul)
        return nodes

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
        for eye in self._eyes:
            eye.start()

    def settle_down(self) -> None:
        """Everybody has something now: from here on replication keeps its interval."""
        for timer in self.timers:
            timer.seconds = self._pace.interval_s

    def look(self, eye: Every) -> None:
        """One more eye, that ends with the others."""
        self._eyes.append(eye)
        eye.start()

    def close(self) -> None:
        """Ends every process and thread, by pid; the directory goes unless it is to be kept."""
        with contextlib.ExitStack() as last:  # from below; each whatever becomes of the others
            if not self._keep:
                last.callback(shutil.rmtree, self.base, ignore_errors=True)
            last.callback(self.consul.close)
            for thread in self._threads():
                last.callback(thread.join)
            for node in self.nodes.values():
                last.callback(node.cut_power)
            last.callback(self.screen.close)
            for thread in self._threads():
                last.callback(thread.stop)

    def _threads(self) -> tuple[Every, ...]:
        return (*self._eyes, self.client)

    # The eyes

    def _gossip(self) -> None:
        for node in self.nodes.values():
            if node.is_on and not node.is_cut_off:
                self.consul.node_alive(node.name)

    def _look_at_ports(self) -> None:
        for node in self.nodes.values():
            place, port = node.place, node.config.nfs.port
            self._serving[node.name] = poll(node.name, place.address, port, self.invariants)

    def _look_at_keys(self) -> None:
        entries = read_volume(self.gateway, self.config)
        view = assemble(self.config, entries, LastHeartbeat(None, 0, 0.0))
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
                node.has_answered,
                (
                    *(f"{what} frozen" for what in node.frozen()),
                    *(["cut off"] if node.is_cut_off else []),
                ),
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
        covered = monotonic() - self._pace.interval_s / 2
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
        key = self.config.key("leader")
        entry = self.gateway.get(key)
        return None if entry is None else Leader.parse(entry.value, key)

    def record(self, standby: str) -> StandbyRecord | None:
        key = self.config.key(f"standbys/{standby}")
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

    def covered(self, standby: str) -> tuple[Line, ...]:
        """Lines that were acknowledged before a snapshot that this standby acknowledged."""
        known = self.replicated.get(standby)
        return () if known is None else self.ledger.before(known[0])

    def command(self, node: Node, *words: str) -> int:
        """An operator's command; it is shown with what it says, paths as that node has them.
        Returns its exit status."""
        self.screen.say(f"{node.name}# standfast {shlex.join(words)}")
        disk = str(node.root)
        return node.standfast(
            *words, progress=lambda line: self.screen.say(line.replace(disk, ""), mark="|")
        ).returncode

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
