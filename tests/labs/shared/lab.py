"""Machines on one network, with a claim that lets every trace of them be found again.

Invariant: leaving the context undoes everything, after a failure too; what even a killed run
left behind is undone by the next lab. A lab is in `alive` from its first trace to its last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from tests.labs.shared.client import Client
from tests.labs.shared.host import Claim, load_modules
from tests.labs.shared.network import CLIENT, Network
from tests.labs.shared.node import Machine, Pace
from tests.support.commands import wait_for

T = TypeVar("T")
N = TypeVar("N", bound=Machine)
SUBNET = "192.168.1"
CLIENT_ADDRESS = f"{SUBNET}.100"


def addresses(names: Sequence[str]) -> dict[str, str]:
    """The nodes' addresses by name: 192.168.1.2, .3, ..."""
    return {name: f"{SUBNET}.{2 + i}" for i, name in enumerate(names)}


class Machines(ABC, Generic[N]):
    """Nodes by name, each a Consul server; a client without a kernel at 192.168.1.100."""

    pace: ClassVar[Pace]
    network: Network
    client: Client

    def __init__(self, storage: Sequence[str]) -> None:
        """storage: the nodes that have a data disk, and so can have a volume's role."""
        self.storage = tuple(storage)
        self.nodes: dict[str, N] = {}
        self._claim: Claim | None = None

    # -- life --------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Make and boot every node, and wait for a Consul leader; after a failure `close` it."""
        self.create()
        self.boot(self)
        self.wait_for_leader()

    def create(self) -> None:
        """Everything but power; nodes can be written to before their first boot."""
        load_modules()
        self._claim = claim = Claim()
        alive.append(self)
        self._build(claim)

    @abstractmethod
    def _build(self, claim: Claim) -> None:
        """Make the network, the client and the nodes."""

    def _connect(self, network: Network) -> None:
        self.network = network
        network.start()
        self.client = Client(network.plug(CLIENT, CLIENT_ADDRESS))

    def close(self) -> None:
        """Undo everything; may be called again."""
        if self._claim is not None:
            claim, self._claim = self._claim, None
            alive.remove(self)
            self._undo(claim)

    @abstractmethod
    def _undo(self, claim: Claim) -> None:
        """End every node, and release the claim."""

    # -- the nodes ---------------------------------------------------------------------

    def __getitem__(self, name: str) -> N:
        return self.nodes[name]

    def __iter__(self) -> Iterator[N]:
        return iter(list(self.nodes.values()))

    def __len__(self) -> int:
        return len(self.nodes)

    def together(self, do: Callable[[N], object], nodes: Iterable[N]) -> None:
        """Do something on several nodes at the same time."""
        nodes = list(nodes)
        with ThreadPoolExecutor(len(nodes)) as pool:
            list(pool.map(do, nodes))

    def boot(self, nodes: Iterable[N]) -> None:
        """Boot several nodes at the same time."""
        self.together(lambda node: node.boot(), nodes)

    def wait_for_leader(self, timeout_s: float | None = None) -> str:
        """The Consul leader's address, once every node that is up knows it."""

        def agreed() -> str:
            leaders = {node.consul_leader() for node in self if node.pid}
            return leaders.pop() if len(leaders) == 1 else ""

        within_s = self.pace.election_s if timeout_s is None else timeout_s
        return self.wait_for(agreed, within_s, "every node knows the Consul leader")

    def consul_leader(self) -> N:
        """The node that is the Consul leader."""
        address = self.wait_for_leader().rpartition(":")[0]
        return next(node for node in self if node.address == address)

    def wait_for(
        self,
        predicate: Callable[[], T],
        timeout_s: float,
        what: str,
        interval_s: float | None = None,
    ) -> T:
        """The first truthy answer; else LabTimeout that names what was waited for."""
        pause_s = self.pace.poll_s if interval_s is None else interval_s
        return wait_for(predicate, timeout_s, what, pause_s)

    def partition(self, first: str, second: str) -> None:
        """Nothing gets from one to the other any more, in both directions."""
        self.network.cut([(first, second), (second, first)])

    def heal(self) -> None:
        """Undo every partition."""
        self.network.heal_all()


alive: list[Machines[Any]] = []
"""The labs of this process."""
