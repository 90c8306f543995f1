"""The lab's network: a bridge in a namespace of its own, a cable to each host on it.

Invariant: a host that is plugged in starts with a fresh namespace (no firewall, no
addresses of an earlier life); what `cut` says is dropped on the bridge, not in the hosts.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.labs.shared.host import namespace
from tests.support.commands import sh

PREFIX = 24
CLIENT = "client"
"""The host on the bridge that is no node."""
_RULES = """
table bridge lab {
  set cut {
    type ifname . ifname
  }
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname . oifname @cut drop
  }
}
"""


def mac(address: str) -> str:
    """A machine keeps its MAC over a reboot, and so its place in its neighbours' caches."""
    return "02:5f:" + ":".join(f"{int(byte):02x}" for byte in address.split("."))


class Network:
    """Hosts are named; their port on the bridge is `v-NAME`."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.bridge = namespace(tag, "bridge")

    def start(self) -> None:
        sh("ip", "netns", "add", self.bridge)
        sh("ip", "-n", self.bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        sh("ip", "-n", self.bridge, "link", "set", "br0", "up")
        sh("ip", "netns", "exec", self.bridge, "nft", "-f", "-", input_text=_RULES)

    def plug(self, host: str, address: str) -> str:
        """A new namespace with the address, on the bridge; its name."""
        netns = namespace(self.tag, host)
        sh("ip", "netns", "add", netns)
        port = f"v-{host}"
        sh(
            *("ip", "-n", self.bridge, "-batch", "-"),
            input_text=f"link add {port} type veth peer name eth0"
            f" address {mac(address)} netns {netns}\n"
            f"link set {port} master br0 up\n",
        )
        sh(
            *("ip", "-n", netns, "-batch", "-"),
            input_text="link set lo up\n"
            f"address add {address}/{PREFIX} dev eth0\n"
            "link set eth0 up\n",
        )
        return netns

    def unplug(self, host: str) -> None:
        """Pull the cable: the port is gone, the other end loses its carrier at once."""
        sh("ip", "-n", self.bridge, "link", "del", f"v-{host}", check=False)

    def discard(self, host: str) -> None:
        """Forget the namespace of a host whose processes are gone."""
        sh("ip", "netns", "del", namespace(self.tag, host), check=False)

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Drop what goes from the first to the second host of each pair."""
        self._element("add", pairs)

    def _element(self, verb: str, pairs: Iterable[tuple[str, str]]) -> None:
        words = ", ".join(f'"v-{sender}" . "v-{receiver}"' for sender, receiver in pairs)
        if words:
            rule = f"{verb} element bridge lab cut {{ {words} }}\n"
            sh("ip", "netns", "exec", self.bridge, "nft", "-f", "-", input_text=rule)

    def heal(self, host: str, hosts: Iterable[str]) -> None:
        """Undo every cut that names the host."""
        pairs = [pair for other in hosts for pair in ((host, other), (other, host))]
        # Adding first makes deleting what was never cut no error.
        self._element("add", pairs)
        self._element("delete", pairs)

    def heal_all(self) -> None:
        sh("ip", "netns", "exec", self.bridge, "nft", "flush", "set", "bridge", "lab", "cut")
