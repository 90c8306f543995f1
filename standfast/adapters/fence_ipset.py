"""The fence for kernels without nftables' families: ipset and the legacy tables.

The same rule as in `fence`: a set element with a kernel timeout lets the port pass. Here timeouts
have whole seconds, always rounded down. The chain is our own; in INPUT there is one jump to it, and
nothing else of the firewall is changed.
"""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

from standfast.act.ports import FenceState
from standfast.adapters.fence import COMMAND_S, TABLE, KernelFence, left_for, refuse_late
from standfast.clock import Deadline
from standfast.run import exec_before, run

HAS_IPV6 = Path("/proc/net/if_inet6")


def ipset_installed() -> bool:
    return shutil.which("ipset") is not None and shutil.which("iptables-legacy") is not None


class IpsetFence(KernelFence):
    """ipset `bitmap:port` and a chain of iptables-legacy, for IPv6 too where the kernel has it."""

    def __init__(self, port: int, run_dir: Path, volume: str, name: str = TABLE) -> None:
        super().__init__(port, run_dir, volume)
        self.name = name

    @property
    def _families(self) -> tuple[str, ...]:
        return ("iptables", "ip6tables") if HAS_IPV6.exists() else ("iptables",)

    @property
    def _chain(self) -> list[str]:
        match = f"--dport {self.port} -m set ! --match-set {self.name} dst -j DROP"
        return [
            f"-A {self.name} -i lo -j RETURN",
            f"-A {self.name} -p tcp -m tcp {match}",
            f"-A {self.name} -p udp -m udp {match}",
        ]

    def state(self) -> FenceState:
        deadline = Deadline.after(COMMAND_S)
        listing = run(
            ["ipset", "save", self.name], deadline=deadline, op="fence:state", check=False
        )
        if listing.returncode != 0:
            # No set, or no ipset in this kernel: either way nothing drops the port.
            return FenceState(in_place=False, open_for_s=0.0)
        return FenceState(
            in_place=self._rules_in_place(deadline),
            open_for_s=parse_members(listing.stdout, self.name, self.port),
        )

    def _rules_in_place(self, deadline: Deadline) -> bool:
        return all(
            self._jumps_first(rules) and [r for r in rules if r in self._chain] == self._chain
            for rules in (self._rules(family, deadline) for family in self._families)
        )

    def _rules(self, family: str, deadline: Deadline) -> list[str]:
        listing = run([f"{family}-legacy", "-w", "2", "-S"], deadline=deadline, op="fence:state")
        return listing.stdout.splitlines()

    def _jumps_first(self, rules: list[str]) -> bool:
        """An earlier rule of INPUT could accept the port before ours drops it."""
        first = next((rule for rule in rules if rule.startswith("-A INPUT ")), "")
        return first == f"-A INPUT -j {self.name}"

    def _build(self, deadline: Deadline) -> None:
        script = (
            f"create {self.name} bitmap:port range {self.port}-{self.port} timeout 1 -exist\n"
            f"flush {self.name}\n"
        )
        run(["ipset", "restore"], deadline=deadline, op="fence:close", input=script)
        for family in self._families:
            rules = self._rules(family, deadline)
            lines = ["*filter", f":{self.name} - [0:0]", *self._chain]
            if not self._jumps_first(rules):
                lines += [f"-D INPUT -j {self.name}"] * rules.count(f"-A INPUT -j {self.name}")
                lines.append(f"-I INPUT 1 -j {self.name}")
            run(
                [f"{family}-legacy-restore", "-w", "2", "--noflush"],
                deadline=deadline,
                op="fence:close",
                input="\n".join([*lines, "COMMIT", ""]),
            )

    def _permit(self, until: float, latest: float) -> bool:
        seconds = int(left_for(until))
        # An entry with "timeout 0" would never end; the one that is there ends by itself.
        if seconds > 0:
            entry = ["ipset", "-exist", "add", self.name, str(self.port), "timeout", str(seconds)]
            done = exec_before(latest, entry, op="fence:arm")
            refuse_late(done)
            if done.returncode != 0:
                return False
        return self._rules_in_place(Deadline.after(COMMAND_S))


def parse_members(listing: str, name: str, port: int) -> float:
    """Seconds for which the port passes, from `ipset save`; infinite for an entry without end."""
    entry = re.search(rf"^add {re.escape(name)} {port}(?: timeout (\d+))?$", listing, re.MULTILINE)
    if entry is None:
        return 0.0
    return float(entry[1] or 0) or math.inf
