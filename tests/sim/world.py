"""Two or three storage nodes, a Consul, clients that write, and the invariants that must hold.

`with World(tmp_path) as world:` puts the program on virtual time. After each event it is checked
that at most one node serves clients; at each transaction that epochs only grow and have one owner;
at each promotion that its data is a part of its predecessor's, and all of it after a handover.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from unittest.mock import patch

from standfast import clock, watcher
from standfast.adapters.consul_wire import Cas, CheckIndex, Op, Set
from standfast.config.model import Config, Hooks, LeaseTiming, Paths
from standfast.config.model import Node as NodeConfig
from standfast.decision import Action, Decision, Wish
from standfast.errors import ConsulError
from standfast.lease import cutoff, files, holding, keeper
from standfast.observe import Available
from standfast.reasons import Reason
from standfast.records import Leader, Pause, Reign, StandbyRecord, parse_epoch
from tests.sim import node as node_module
from tests.sim import steps
from tests.sim.clockwork import UTC_START, Clockwork, NodeClock, Violation
from tests.sim.machine import KernelFence, KernelNfs, Tree
from tests.sim.model_consul import Client, Fault, Store
from tests.sim.node import Node

CRITICAL_AFTER_S = 6.0
WRITE_EVERY_S = 0.5
FAST = LeaseTiming(heartbeat=0.5, request_timeout=0.5, length=2.0, fence=1.0, wait=4.1, drift=0.01)


@dataclass(slots=True)
class Prepared:
    """A reign whose subvolume was made."""

    node: str
    tree: Tree


class World:
    def __init__(
        self,
        directory: Path,
        names: Sequence[str] = ("a", "b", "c"),
        *,
        timing: LeaseTiming | None = None,
        timings: Mapping[str, LeaseTiming] | None = None,
        rates: Sequence[float] = (1.0, 1.0, 1.0),
        mode: str = "auto",
        min_reign_s: float = 0.0,
        max_data_loss_s: float = 600.0,
    ) -> None:
        self.clockwork = Clockwork()
        self.clockwork.after_event = self._check_serving
        self.store = Store()
        self.store.on_commit = self._check_commit
        self.cut_links: set[frozenset[str]] = set()
        self.removed: set[str] = set()
        self.lines: list[str] = []
        self.written = 0
        self.reigns: dict[int, Prepared] = {}
        self.owners: dict[int, str] = {}
        self.nodes: dict[str, Node] = {}
        self._patches = ExitStack()
        self._writing = True
        settings = {name: NodeConfig(address=f"10.0.0.{n}") for n, name in enumerate(names, 1)}
        for number, name in enumerate(names):
            config = Config(
                volume="data",
                source=directory / "data.toml",
                cluster="sim",
                node=name,
                mode=mode,
                min_reign=min_reign_s,
                max_data_loss=max_data_loss_s,
                nodes=settings,
                lease=(timings or {}).get(name) or timing or LeaseTiming(),
                hooks=Hooks(enabled=False),
                paths=Paths(state=directory / name / "state", run=directory / name / "run"),
            )
            self.nodes[name] = self._node(config, NodeClock(rates[number], origin=1000.0 * number))

    def _node(self, config: Config, node_clock: NodeClock) -> Node:
        client = Client(self.clockwork, self.store, config.lease.request_timeout)
        client.health = self._health
        fence = KernelFence(self.clockwork, node_clock)
        return Node(self, config, node_clock, client, fence, KernelNfs(self.clockwork))

    def __enter__(self) -> World:
        def monotonic() -> float:
            return self.clockwork.active.clock.monotonic(self.now)

        def utc_now() -> float:
            return self.clockwork.active.clock.utc(self.now)

        for module in (clock, files, holding, keeper, cutoff, watcher):
            self._patches.enter_context(patch.object(module, "monotonic", monotonic))
        for module in (clock, holding):
            self._patches.enter_context(patch.object(module, "utc_now", utc_now))
        for module in (node_module, steps):
            self._patches.enter_context(patch.object(module, "monotonic", monotonic))
            self._patches.enter_context(patch.object(module, "utc_now", utc_now))
        self._patches.enter_context(patch.object(watcher, "answers", self._answers))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patches.close()

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    # Time

    @property
    def now(self) -> float:
        return self.clockwork.now

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        self.clockwork.after(delay_s, what)

    def run(self, seconds: float) -> None:
        self.clockwork.run_until(self.now + seconds)

    def wait_for(self, what: str, happened: Callable[[], bool], limit_s: float = 60.0) -> float:
        """Run until it happened; the seconds that it took."""
        started = self.now
        while not happened():
            if self.now - started > limit_s:
                raise Violation(f"{what}: not within {limit_s:g} s\n{self.story()}")
            self.run(0.1)
        return self.now - started

    def log(self, line: str) -> None:
        self.lines.append(f"{self.now:8.3f} {line}")

    def story(self) -> str:
        nodes = "\n".join(
            f"{node.name}: {node.decision.action}, {node.decision.sentence}; {node.failures[-3:]}"
            for node in self.nodes.values()
            if node.decision is not None
        )
        return "\n".join([*self.lines[-40:], nodes])

    # How it begins

    def begin(self) -> Node:
        """All nodes up, the first one serves, and every standby has a snapshot."""
        for node in self.nodes.values():
            node.boot()
        first = next(iter(self.nodes.values()))
        first.disk.live = Tree([])
        first.wish = Wish(promote=True)
        self.after(WRITE_EVERY_S, self._write)
        self.wait_for_primary(first.name)
        self.wait_for(
            "a first replication", lambda: all(self.nodes[n].disk.snapshots for n in self.nodes)
        )
        self.run(1.0)
        return first

    def wait_for_primary(self, name: str | None = None, limit_s: float = 60.0) -> float:
        def happened() -> bool:
            primary = self.primary()
            return primary is not None and (name is None or primary.name == name)

        return self.wait_for(f"{name or 'somebody'} serves", happened, limit_s)

    def primary(self) -> Node | None:
        """The node that serves and says so."""
        for node in self.nodes.values():
            if node.serves and node.registered is not None:
                return node
        return None

    def check_settled(self, limit_s: float = 120.0) -> None:
        """Somebody serves, or every node that lives says who has to do what."""

        def settled() -> bool:
            if self.primary() is not None:
                return True
            living = [node for node in self.nodes.values() if node.runs]
            return bool(living) and all(
                node.decision is not None and node.decision.action is Action.BLOCKED
                for node in living
            )

        self.wait_for("a primary again, or a reason why not", settled, limit_s)

    # What happens to it

    def isolate(self, name: str, *, standbys: bool = True) -> None:
        """Cut off from Consul, and from the other nodes."""
        self[name].client.cut = True
        self[name].down_since = self.now
        if standbys:
            self.cut_links |= {frozenset((name, other)) for other in self.nodes if other != name}

    def join(self, name: str) -> None:
        self[name].client.cut = self[name].client.replies_cut = False
        self.cut_links = {link for link in self.cut_links if name not in link}

    def fault(self, name: str, kind: str, what: str, delay_s: float = 0.0, count: int = 1) -> None:
        self[name].client.faults.append(Fault(kind, what, delay_s, count))

    def pause_failover(self) -> None:
        self.store.put(self.key("pause"), Pause("op", "maintenance", UTC_START).dump())

    def key(self, name: str) -> str:
        return next(iter(self.nodes.values())).config.key(name)

    def leader(self) -> Leader | None:
        entry = self.store.get(self.key("leader"))
        return None if entry is None else Leader.parse(entry.value)

    def epoch(self) -> int:
        entry = self.store.get(self.key("epoch"))
        return 0 if entry is None else parse_epoch(entry.value)

    # What the nodes see of each other

    def linked(self, one: str, other: str) -> bool:
        return frozenset((one, other)) not in self.cut_links

    def _health(self, name: str) -> str:
        node = self.nodes[name]
        if node.runs and not node.client.cut:
            return "passing"
        if name in self.removed:
            return "absent"
        return "critical" if self.now - node.down_since >= CRITICAL_AFTER_S else "passing"

    def _answers(self, address: str, port: int) -> bool:
        asking = self.clockwork.active.name.partition("/")[0]
        name = next(n for n, node in self.nodes.items() if node.config.me.address == address)
        return self.nodes[name].runs and self.linked(asking, name)

    def may_receive(self, sender: Node, receiver: Node, epoch: int) -> bool:
        """What a receiver asks Consul right before it publishes a snapshot."""
        if receiver.client.cut or not self.store.quorum:
            return False
        leader = self.leader()
        return leader is not None and (leader.epoch, leader.holder) == (epoch, sender.holder)

    def note_standby(self, sender: Node, to: str, taken: Available, epoch: int) -> None:
        snapshot = taken.snapshot
        record = StandbyRecord(to, epoch, str(snapshot.name), snapshot.content_id, UTC_START)
        try:
            held = sender.client.read([self.key("epoch")])[self.key("epoch")]
            if held is not None and parse_epoch(held.value) == epoch:
                sender.client.txn(
                    [
                        CheckIndex(self.key("epoch"), held.modify_index),
                        Set(self.key(f"standbys/{to}"), record.dump()),
                    ]
                )
        except ConsulError as error:
            sender.failures.append(f"the record of {to}: {error}")

    # Clients

    def _write(self) -> None:
        for node in self.nodes.values():
            if self._writing and node.serves and node.disk.live is not None:
                if not node.disk.live.writable:
                    continue
                self.written += 1
                node.disk.live.writes.append(self.written)
        self.after(WRITE_EVERY_S, self._write)

    # Invariants

    def _check_serving(self) -> None:
        serving = [node.name for node in self.nodes.values() if node.serves]
        if len(serving) > 1:
            raise Violation(f"{' and '.join(serving)} serve at {self.now:.3f}\n{self.story()}")

    def _check_commit(self, ops: Sequence[Op]) -> None:
        written = {op.key: op.value for op in ops if isinstance(op, (Cas, Set))}
        raw = written.get(self.key("epoch"))
        if raw is None:
            return
        epoch = parse_epoch(raw)
        leader = Leader.parse(written[self.key("leader")])
        if epoch < max(self.owners, default=0):
            raise Violation(f"epoch {epoch} after {max(self.owners)}\n{self.story()}")
        owner = f"{leader.holder.node}/{leader.holder.instance}"
        if self.owners.setdefault(epoch, owner) != owner:
            raise Violation(f"epoch {epoch} has two owners: {self.owners[epoch]} and {owner}")
        self.log(f"epoch {epoch} is {owner}'s")

    def reign_prepared(self, node: Node, epoch: int, tree: Tree, *, in_place: bool) -> None:
        """A live subvolume is ready for `epoch`: look at where its data comes from."""
        known = self.reigns.get(epoch)
        if known is not None:
            if known.tree is not tree:
                raise Violation(f"epoch {epoch} has two trees")
            return
        self.reigns[epoch] = Prepared(node.name, tree)
        before = max((number for number in self.reigns if number < epoch), default=None)
        if before is None:
            return
        old = self.reigns[before].tree.writes
        new = tree.writes
        if old[: len(new)] != new:
            raise Violation(
                f"epoch {epoch} on {node.name} starts from data outside the lineage of {before}:"
                f" {sorted(set(new) - set(old))}\n{self.story()}"
            )
        entry = self.store.get(self.key(f"history/{epoch}"))
        clean = entry is not None and Reign.parse(entry.value).reason == Reason.CLEAN_HANDOVER
        if clean and new != old:
            raise Violation(
                f"the handover to epoch {epoch} lost {len(old) - len(new)} acknowledged writes"
                f"\n{self.story()}"
            )

    def check_decision(self, decision: Decision) -> None:
        if len(decision.sentence) < 10:
            raise Violation(f"{decision.reason} has no sentence")

    def check_nothing_deleted(self) -> None:
        kept = set().union(*(node.disk.everything() for node in self.nodes.values()))
        lost = set(range(1, self.written + 1)) - kept
        if lost:
            raise Violation(f"writes {sorted(lost)[:10]} are on no disk any more")
