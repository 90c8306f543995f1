"""The lab's network: a bridge for what is tested, another one for the lab's own commands.

Invariant: partitions cut only the tested network; over the control network the lab reaches every
node that is up, and the nodes don't reach each other there.
"""

from __future__ import annotations

import ctypes
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.labs.shared.network import PREFIX, Network
from tests.support.commands import sh

CONTROL_SUBNET = "10.99.0"
CONTROL_HOST = f"{CONTROL_SUBNET}.254"
_CLONE_NEWNET = 0x40000000
_ISOLATED = """
table bridge control {
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname "t-*" drop
    oifname "t-*" drop
  }
}
"""


def control_address(address: str) -> str:
    """A node's address on the control network."""
    return f"{CONTROL_SUBNET}.{address.rpartition('.')[2]}"


class KernelNetwork(Network):
    """Ports of user-mode kernels are tap devices: `v-NAME` (tested) and `t-NAME` (control)."""

    def start(self) -> None:
        super().start()
        sh(
            *("ip", "-n", self.bridge, "-batch", "-"),
            input_text="link set lo up\n"
            "link add br1 type bridge mcast_snooping 0\n"
            f"address add {CONTROL_HOST}/{PREFIX} dev br1\n"
            "link set br1 up\n",
        )
        sh("ip", "netns", "exec", self.bridge, "nft", "-f", "-", input_text=_ISOLATED)

    def plug_kernel(self, host: str) -> list[str]:
        """Fresh ports for a node; the devices of its kernel's command line, without addresses."""
        self.unplug_kernel(host)
        batch = "".join(
            f"tuntap add dev {port} mode tap\nlink set {port} master {bridge} up\n"
            for port, bridge in self._ports(host)
        )
        sh("ip", "-n", self.bridge, "-batch", "-", input_text=batch)
        return [port for port, _ in self._ports(host)]

    def unplug_kernel(self, host: str) -> None:
        """Both cables are out at once, whatever still runs behind them."""
        for port, _ in self._ports(host):
            sh("ip", "-n", self.bridge, "link", "del", port, check=False)

    @staticmethod
    def _ports(host: str) -> tuple[tuple[str, str], ...]:
        return ((f"v-{host}", "br0"), (f"t-{host}", "br1"))

    def connect(self, address: str, port: int, timeout_s: float) -> socket.socket:
        """A TCP connection from the lab's namespace. OSError when there is none in time."""
        # A socket stays in the namespace in which its thread made it.
        with ThreadPoolExecutor(1) as thread:
            made = thread.submit(self._socket_inside).result()
        made.settimeout(timeout_s)
        try:
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def _socket_inside(self) -> socket.socket:
        namespace = os.open(Path("/run/netns") / self.bridge, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns to {self.bridge}")
        finally:
            os.close(namespace)
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
