"""Machines with real kernels, made in seconds and gone without a trace.

Invariant: leaving the context undoes everything, after a failure too; a watchdog undoes it when
the test run is killed, and the next lab what even that left behind.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.labs.kernels.image import KERNEL, base_image, preload
from tests.labs.kernels.network import KernelNetwork
from tests.labs.kernels.node import PACE, VirtualMachine, VirtualMachinePlace
from tests.labs.kernels.product import lay_out
from tests.labs.shared.host import Claim, Needs
from tests.labs.shared.lab import Machines, addresses
from tests.labs.shared.spec import Spec, consul_config
from tests.support.checkout import CHECKOUT
from tests.support.commands import Process

STORAGE = ("n1", "n2")
CLIENTS = ("c1",)
NEEDS = Needs(
    lab="the kernel lab",
    root="tap devices, network namespaces and cgroups for its virtual machines "
    "(sudo make kernel-lab)",
    tools={
        "btrfs": "btrfs-progs",
        "debootstrap": "debootstrap",
        "gcc": "gcc",
        "ip": "iproute2",
        "linux.uml": "user-mode-linux",
        "mkfs.btrfs": "btrfs-progs",
        "mkfs.ext4": "e2fsprogs",
        "nft": "nftables",
        "ssh-keygen": "openssh-client",
    },
    device=Path("/dev/net/tun"),
    device_for=f"tap devices for {KERNEL.name}",
)


class KernelLab(Machines[VirtualMachine]):
    """Storage nodes n1, n2 and client c1 at 192.168.1.2, .3, .4, each a Consul server.

    On the host's side of their network there is a client without a kernel at 192.168.1.100
    (`client`; it tells whether a port lets somebody in).
    """

    pace = PACE

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
        super().__init__(storage)
        self.clients = tuple(clients)
        self._product = product
        self._memory_mib = memory_mib
        self._disk_bytes = disk_bytes
        self._watchdog: Watchdog | None = None

    def create(self) -> None:
        """Everything but power; nodes can be written to before their first boot."""
        self._base = base_image()
        super().create()

    def _build(self, claim: Claim) -> None:
        self._watchdog = Watchdog(claim.tag)
        network = KernelNetwork(claim.tag)
        self._connect(network)
        place = VirtualMachinePlace(
            claim.tag, claim.directory, network, self._base, preload(), self._memory_mib
        )
        tree = lay_out(claim.directory / "product") if self._product else None
        cluster = addresses((*self.storage, *self.clients))
        for name, address in cluster.items():
            disk_bytes = self._disk_bytes if name in self.storage else 0
            node = self.nodes[name] = VirtualMachine(
                Spec(name, address, cluster), place, disk_bytes
            )
            node.create()
            node.write("/etc/consul.d/lab.json", consul_json(node.spec))
            if disk_bytes:
                node.write("/etc/systemd/system/local-fs.target.d/lab.conf", _WANTS_PERSIST)
            if tree is not None:
                node.add_tree(tree)
        known = "".join(f"{n.name},{n.address} {n.public_key('host')}\n" for n in self)
        for node in self:
            node.write("/etc/ssh/ssh_known_hosts", known)

    def _undo(self, claim: Claim) -> None:
        for node in self:
            if node.pid:
                node.power_cut()
        claim.release()
        if self._watchdog is not None:
            self._watchdog.release()


_WANTS_PERSIST = "[Unit]\nWants=persist.mount\n"


def consul_json(spec: Spec, **more: Any) -> str:
    """The container lab's Consul server, answering names at the resolver's port."""
    config: Mapping[str, Any] = consul_config(spec)
    return json.dumps({**config, "ports": {**config["ports"], "dns": 53}, **more}, indent=1)


class Watchdog:
    """A process that undoes a lab when this one ends without a word; see watchdog.py."""

    def __init__(self, tag: str) -> None:
        watched, self._word = os.pipe()
        argv = [sys.executable, "-m", "tests.labs.kernels.watchdog", tag]
        self._process = Process(argv, stdin=watched, cwd=CHECKOUT)
        os.close(watched)

    def release(self) -> None:
        """The lab is undone: nothing is left to watch."""
        os.write(self._word, b"released")
        os.close(self._word)
        self._process.wait(60.0)
