"""The fence for kernels without nftables' families: ipset and the legacy tables.

The same rules as in `fence`: a set element with a kernel timeout lets the port pass. Here timeouts
have whole seconds, always rounded down. The two chains are our own; INPUT and OUTPUT have one jump
each to them, and nothing else of the firewall is changed.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from standfast.fence.kernel import COMMAND_S, TABLE, KernelFence, left_for, refuse_late
from standfast.node.ports import FenceState
from standfast.system.clock import Deadline
from standfast.system.lines import lines_of
from standfast.system.run import exec_before, run

HAS_IPV6 = Path("/proc/net/if_inet6")


def ipset_installed() -> bool:
    """Tells whether the programs of this backend are there."""
    return shutil.which("ipset") is not None and shutil.which("iptables-legacy") is not None


class IpsetFence(KernelFence):
    """Uses ipset `bitmap:port` and a chain of iptables-legacy, for IPv6 too where the kernel has
    it."""

    backend = "ipset"

    def __init__(self, port: int, run_dir: Path, volume: str, name: str = TABLE) -> None:
        super().__init__(port, run_dir, volume)
        self.name = name

    @property
    def _families(self) -> tuple[str, ...]:
        return ("iptables", "ip6tables") if HAS_IPV6.exists() else ("iptables",)

    @property
    def _chains(self) -> Sequence[_Chain]:
        return (
            _Chain("INPUT", self.name, "-i lo", f"--dport {self.port}", f"{self.name} dst"),
            _Chain(
                "OUTPUT", f"{self.name}-out", "-o lo", f"--sport {self.port}", f"{self.name} src"
            ),
        )

    def _state(self) -> FenceState:
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
            chain.is_in_place(rules)
            for rules in (self._rules(family, deadline) for family in self._families)
            for chain in self._chains
        )

    def _rules(self, family: str, deadline: Deadline) -> list[str]:
        listing = run([f"{family}-legacy", "-w", "2", "-S"], deadline=deadline, op="fence:state")
        return list(lines_of(listing.stdout))

    def _build(self, deadline: Deadline) -> None:
        script = (
            f"create {self.name} bitmap:port range {self.port}-{self.port} timeout 1 -exist\n"
            f"flush {self.name}\n"
        )
        run(["ipset", "restore"], deadline=deadline, op="fence:close", input=script)
        for family in self._families:
            rules = self._rules(family, deadline)
            lines = [line for chain in self._chains for line in chain.lines(rules)]
            self._restore(family, lines, deadline)

    def remove(self, deadline: Deadline) -> None:
        for family in self._families:
            rules = self._rules(family, deadline)
            lines = [line for chain in self._chains for line in chain.lines_without(rules)]
            if lines:
                self._restore(family, lines, deadline)
        there = ["ipset", "list", "-name", self.name]
        if run(there, deadline=deadline, op="fence:remove", check=False).returncode == 0:
            run(["ipset", "destroy", self.name], deadline=deadline, op="fence:remove")

    def _restore(self, family: str, lines: Sequence[str], deadline: Deadline) -> None:
        run(
            [f"{family}-legacy-restore", "-w", "2", "--noflush"],
            deadline=deadline,
            op="fence:close",
            input="\n".join(["*filter", *lines, "COMMIT", ""]),
        )

    def _permit(self, until: float, latest: float) -> bool:
        seconds = int(left_for(until))
        entry = ["ipset", "-exist", "add", self.name, str(self.port), "timeout", str(seconds)]
        if seconds == 0:  # it would never end
            entry = ["ipset", "-exist", "del", self.name, str(self.port)]
        done = exec_before(latest, entry, op="fence:arm")
        refuse_late(done)
        if done.returncode != 0:
            return False
        return self._rules_in_place(Deadline.after(COMMAND_S))


@dataclass(frozen=True, slots=True)
class _Chain:
    """A chain of ours: `builtin` jumps there first of all."""

    builtin: str
    name: str
    loopback: str
    port: str
    members: str

    @property
    def rules(self) -> list[str]:
        """Returns the chain's rules, as `iptables -S` shows them."""
        match = f"{self.port} -m set ! --match-set {self.members} -j DROP"
        return [
            f"-A {self.name} {self.loopback} -j RETURN",
            f"-A {self.name} -p tcp -m tcp {match}",
            f"-A {self.name} -p udp -m udp {match}",
        ]

    @property
    def jump(self) -> str:
        return f"{self.builtin} -j {self.name}"

    def is_in_place(self, rules: Sequence[str]) -> bool:
        """Tells whether nothing before ours, there or in the built-in chain, could accept the
        port."""
        ours = [rule for rule in rules if rule.startswith(f"-A {self.name} ")]
        return self._jumps_first(rules) and ours == self.rules

    def _jumps_first(self, rules: Sequence[str]) -> bool:
        first = next((rule for rule in rules if rule.startswith(f"-A {self.builtin} ")), "")
        return first == f"-A {self.jump}"

    def lines(self, rules: Sequence[str]) -> list[str]:
        """Returns lines for iptables-restore, which empties the chain when it is named."""
        lines = [f":{self.name} - [0:0]", *self.rules]
        if not self._jumps_first(rules):
            lines += self._without_jump(rules)
            lines.append(f"-I {self.builtin} 1 -j {self.name}")
        return lines

    def lines_without(self, rules: Sequence[str]) -> list[str]:
        """Returns lines for iptables-restore after which nothing of ours is left."""
        if f"-N {self.name}" not in rules:
            return []
        return [*self._without_jump(rules), f"-F {self.name}", f"-X {self.name}"]

    def _without_jump(self, rules: Sequence[str]) -> list[str]:
        return [f"-D {self.jump}"] * list(rules).count(f"-A {self.jump}")


def parse_members(listing: str, name: str, port: int) -> float:
    """Returns the seconds for which the port passes, from `ipset save`; infinite for an entry
    without end."""
    entry = re.search(rf"^add {re.escape(name)} {port}(?: timeout (\d+))?$", listing, re.MULTILINE)
    if entry is None:
        return 0.0
    return float(entry[1] or 0) or math.inf
