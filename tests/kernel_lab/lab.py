"""Machines with real kernels, made in seconds and gone without a trace.

Invariant: leaving the context undoes everything, after a failure too; a watchdog undoes it when
the test run is killed, and the next lab what even that left behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from tests.kernel_lab.image import CHECKOUT, KERNEL, base_image, preload
from tests.kernel_lab.network import KernelNetwork
from tests.kernel_lab.node import Node, Place
from tests.kernel_lab.product import lay_out
from tests.machines.client import Client
from tests.machines.host import Claim, load_modules, wait_for
from tests.machines.spec import Spec, consul_config

T = TypeVar("T")
SUBNET = "192.168.1"
CLIENT_ADDRESS = f"{SUBNET}.100"
STORAGE = ("n1", "n2")
CLIENTS = ("c1",)
TOOLS = {
    "btrfs": "btrfs-progs",
    "debootstrap": "debootstrap",
    "gcc": "gcc",
    "ip": "iproute2",
    "linux.uml": "user-mode-linux",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "nft": "nftables",
    "ssh-keygen": "openssh-client",
}


def why_not() -> str | None:
    """The reason why this machine can't run the kernel lab, or None."""
    if os.geteuid() != 0:
        return (
            "the kernel lab needs root: tap devices, network namespaces and cgroups for its "
            "virtual machines (sudo make kernel-lab)"
        )
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({pkg for tool, pkg in TOOLS.items() if not shutil.which(tool, path=path)})
    if missing:
        return f"the kernel lab lacks {', '.join(missing)}: run tests/tools/lab-packages"
    if not Path("/dev/net/tun").exists():
        return f"the kernel lab needs tap devices for {KERNEL.name}: /dev/net/tun is missing"
    return None


class KernelLab:
    """Storage nodes n1, n2 and client c1 at 192.168.1.2, .3, .4, each a Consul server.

    On the host's side of their network there is a client without a kernel at 192.168.1.100
    (`client`; it tells whether a port lets somebody in).
    """

    def __init__(
        self,
        storage: Sequence[str] = STORAGE,
        clients: Sequence[str] = CLIENTS,
        *,
        product: bool = True,
        memory_mib: int = 320,
        disk_bytes: int = 1 << 30,
    ) -> None:
        """product: the wheel is installed; without it the nodes are bare machines."""
        self.storage = tuple(storage)
        self.clients = tuple(clients)
        self._product = product
        self._memory_mib = memory_mib
        self._disk_bytes = disk_bytes
        self._claim: Claim | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.nodes: dict[str, Node] = {}

    # -- life --------------------------------------------------------------------------

    def __enter__(self) -> KernelLab:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Make and boot every node, and wait for a Consul leader."""
        self.create()
        try:
            self.boot(self)
            self.wait_for_leader()
        except BaseException:
            self.close()
            raise

    def create(self) -> None:
        """Everything but power; nodes can be written to before their first boot."""
        load_modules()
        base = base_image()
        self._claim = claim = Claim()
        try:
            self._watchdog = _watch(claim.tag)
            self._build(claim, base)
        except BaseException:
            self.close()
            raise

    def _build(self, claim: Claim, base: Path) -> None:
        names = (*self.storage, *self.clients)
        cluster = {name: f"{SUBNET}.{2 + i}" for i, name in enumerate(names)}
        self.network = KernelNetwork(claim.tag)
        self.network.start()
        self.client = Client(self.network.plug("client", CLIENT_ADDRESS))
        place = Place(claim.tag, claim.directory, self.network, base, preload(), self._memory_mib)
        tree = lay_out(claim.directory / "product") if self._product else None
        for name, address in cluster.items():
            disk_bytes = self._disk_bytes if name in self.storage else 0
            node = self.nodes[name] = Node(Spec(name, address, cluster), place, disk_bytes)
            node.create()
            node.write("/etc/consul.d/lab.json", consul_json(node.spec))
            if disk_bytes:
                node.write("/etc/systemd/system/local-fs.target.d/lab.conf", _WANTS_PERSIST)
            if tree is not None:
                node.add_tree(tree)
        known = "".join(f"{n.name},{n.address} {n.public_key('host')}\n" for n in self)
        for node in self:
            node.write("/etc/ssh/ssh_known_hosts", known)

    def close(self) -> None:
        """Undo everything; may be called again."""
        if self._claim is None:
            return
        claim, self._claim = self._claim, None
        for node in self:
            if node.pid:
                node.power_cut()
        claim.release()
        if self._watchdog is not None:
            self._watchdog.communicate(b"released", 10.0)

    # -- the nodes ---------------------------------------------------------------------

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self.nodes.values()))

    def __len__(self) -> int:
        return len(self.nodes)

    def together(self, do: Callable[[Node], object], nodes: Iterable[Node]) -> None:
        """Do something on several nodes at the same time."""
        nodes = list(nodes)
        with ThreadPoolExecutor(len(nodes)) as pool:
            list(pool.map(do, nodes))

    def boot(self, nodes: Iterable[Node]) -> None:
        """Boot several nodes at the same time."""
        self.together(Node.boot, nodes)

    def wait_for_leader(self, timeout_s: float = 90.0) -> str:
        """The Consul leader's address, once every node that is up knows it."""

        def agreed() -> str:
            leaders = {node.consul_leader() for node in self if node.pid}
            return leaders.pop() if len(leaders) == 1 else ""

        return wait_for(agreed, timeout_s, "every node knows the Consul leader", 0.3)

    def wait_for(
        self, predicate: Callable[[], T], timeout_s: float, what: str, interval_s: float = 0.3
    ) -> T:
        """The first truthy answer; else LabTimeout that names what was waited for."""
        return wait_for(predicate, timeout_s, what, interval_s)

    def partition(self, first: str, second: str) -> None:
        """Nothing gets from one to the other any more, in both directions."""
        self.network.cut([(first, second), (second, first)])

    def heal(self) -> None:
        """Undo every partition."""
        self.network.heal_all()


_WANTS_PERSIST = "[Unit]\nWants=persist.mount\n"


def consul_json(spec: Spec, **more: Any) -> str:
    """The container lab's Consul server, answering names at the resolver's port."""
    import json

    config: Mapping[str, Any] = consul_config(spec)
    return json.dumps({**config, "ports": {**config["ports"], "dns": 53}, **more}, indent=1)


def _watch(tag: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "tests.kernel_lab.watchdog", tag]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, cwd=CHECKOUT, start_new_session=True)
