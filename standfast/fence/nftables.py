"""The kernel's cut-off of the NFS port, by nftables: without a fresh permit the port is dropped.

The permit is a set element with a kernel timeout, so a frozen process is cut off all the same, and
established connections with it: no request comes in without a permit, and no answer goes out, also
to a request of before its end. All of it lives in a table of its own, which is replaced in one
transaction; nothing else of the firewall is read or changed. A permit is relative to the moment the
kernel takes it: it goes through `exec_before`, so it is never given after `latest`, and the port is
shut by `until + (latest - now)` at the worst.

Several volumes share the one port: each has a claim (a file with the end of its lease), and the
port is open until the least of them. A permit given before a claim was made is taken back when it
is made, so the port is never open for longer than any of the claims says.

The rules are for one port and by one backend, whoever puts them up: see `fence.made_for`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from standfast.errors import CommandFailed
from standfast.fence.kernel import (
    COMMAND_S,
    PROBE_S,
    TABLE,
    KernelFence,
    left_for,
    refuse_late,
)
from standfast.node.ports import FenceState
from standfast.system.clock import Deadline
from standfast.system.lines import clean, fields_of, lines_of
from standfast.system.run import exec_before, run


class NftFence(KernelFence):
    """Uses nftables; the permit ends to the millisecond (rounded down)."""

    def __init__(self, port: int, run_dir: Path, volume: str, table: str = TABLE) -> None:
        super().__init__(port, run_dir, volume)
        self.table = table

    def _state(self) -> FenceState:
        done = run(
            ["nft", "list", "table", "inet", self.table],
            deadline=Deadline.after(COMMAND_S),
            op="fence:state",
            check=False,
        )
        if done.returncode != 0:
            if "No such file or directory" in done.stderr:
                return FenceState(in_place=False, open_for_s=0.0)
            raise CommandFailed(
                f"nft can't list the table inet {self.table}: {clean(done.stderr.strip())}",
                returncode=done.returncode,
                stderr=done.stderr,
            )
        return parse_table(done.stdout, self.port)

    def _build(self, deadline: Deadline) -> None:
        run(["nft", build_script(self.table, self.port)], deadline=deadline, op="fence:close")

    def remove(self, deadline: Deadline) -> None:
        script = f"add table inet {self.table}; delete table inet {self.table}"
        run(["nft", script], deadline=deadline, op="fence:remove")

    def _permit(self, until: float, latest: float) -> bool:
        done = exec_before(latest, ["nft", self._permit_script(left_for(until))], op="fence:arm")
        refuse_late(done)
        return done.returncode == 0 and parse_table(done.stdout, self.port).in_place

    def _permit_script(self, left_s: float) -> str:
        # An element's timeout can't be changed in old kernels: put it in anew. The first line is
        # there because deleting what isn't there fails; the listing shows that the rules are.
        element = f"element inet {self.table} open"
        return (
            f"add {element} {{ {self.port} timeout 1ms }}; "
            f"delete {element} {{ {self.port} }}; "
            f"add {element} {{ {self.port} timeout {int(left_s * 1000)}ms }}; "
            f"list table inet {self.table}"
        )


def build_script(table: str, port: int) -> str:
    """Returns the table as one transaction: it is replaced as a whole, with the set empty.

    `input` and `output` see all that this machine's own server takes in and sends, retransmissions
    and resets too. `forward` is for packets of others (another machine, a container with a network
    of its own), none of which reach the server of this network namespace.
    """
    return (
        f"add table inet {table}; delete table inet {table}; "
        f"add table inet {table} {{ "
        f"set open {{ type inet_service; flags timeout; }}; "
        f"chain input {{ "
        f"type filter hook input priority filter - 10; policy accept; "
        f'iif "lo" accept; '
        f"meta l4proto {{ tcp, udp }} th dport {port} th dport != @open drop; "
        f"}}; "
        f"chain output {{ "
        f"type filter hook output priority filter - 10; policy accept; "
        f'oif "lo" accept; '
        f"meta l4proto {{ tcp, udp }} th sport {port} th sport != @open drop; "
        f"}}; }}"
    )


_CHAINS = {"input": ("iif", "dport"), "output": ("oif", "sport")}
_ELEMENT = re.compile(r"\b(?P<port>\d{1,5})(?: timeout \w+)?(?: expires (?P<left>\w+))?")
_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def parse_table(listing: str, port: int) -> FenceState:
    """Returns the state from nft's listing of the table; anything unexpected is "not in place"."""
    lines = [" ".join(fields_of(line)) for line in lines_of(listing)]
    in_place = not any(line.startswith("flags dormant") for line in lines)
    for hook, (interface, end) in _CHAINS.items():
        rules = _rules_of(hook, lines)
        in_place = (
            in_place
            and len(rules) >= 2
            and rules[0] == f'{interface} "lo" accept'
            and rules[1].endswith(f"th {end} {port} th {end} != @open drop")
        )
    return FenceState(in_place=in_place, open_for_s=_open_for_s(listing, port))


def _rules_of(hook: str, lines: Sequence[str]) -> Sequence[str]:
    """Returns the rules of the chain at that hook, in their order; none without such a chain."""
    starts = [n for n, line in enumerate(lines) if line.startswith(f"type filter hook {hook} ")]
    if len(starts) != 1:
        return ()
    return tuple(takewhile(lambda line: line != "}", filter(None, lines[starts[0] + 1 :])))


def _open_for_s(listing: str, port: int) -> float:
    inside = re.search(r"elements = \{(.*?)\}", listing, re.DOTALL)
    for match in _ELEMENT.finditer(inside[1] if inside else ""):
        if int(match["port"]) == port:
            # No end of its own: put there by hand, and open for ever.
            return math.inf if match["left"] is None else parse_time(match["left"])
    return 0.0


def parse_time(text: str) -> float:
    """Returns the seconds of nft's `1m8s432ms`."""
    parts = re.findall(r"(?<!\d)(\d+)(ms|[dhms])", text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def nft_works() -> bool:
    """Tells whether nft is installed and this kernel has what the fence needs; leaves no trace.

    TimedOut when that is not known: a guess would be kept until the next boot, and with the wrong
    backend no port is ever shut.
    """
    probe = f"{TABLE}-probe"
    script = f"{build_script(probe, 2049)}; delete table inet {probe}"
    try:
        run(["nft", script], deadline=Deadline.after(PROBE_S), op="fence:probe")
    except CommandFailed as error:
        # Not being root says nothing about the kernel: let nft itself complain later.
        return "Operation not permitted" in error.stderr
    return True
