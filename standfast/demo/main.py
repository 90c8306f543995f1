"""`standfast demo`: a failover and the way back, on this machine, without root.

Three nodes run the agent, lease, guard, replication and handlers as they are deployed; stand-ins
are an embedded Consul, a directory for btrfs and a small file server for NFS. Whatever breaks an
invariant, or doesn't happen in time, ends it with status 1 and the evidence.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TextIO

from standfast.demo.cluster import Cluster
from standfast.demo.invariants import NAMES, Broken
from standfast.demo.screen import Screen
from standfast.demo.story import Times, tell
from standfast.errors import StandfastError
from standfast.system.clock import monotonic


def summary(times: Times, cluster: Cluster) -> str:
    """What was measured, for the end."""
    watched = cluster.invariants
    lines = [
        "",
        "Measured (lease: fast profile, W = 4.1 s; the defaults are 12 s)",
        *(f"  {what:<63} {value}" for what, value in times.rows()),
        "",
        "Invariants, checked all the time",
        *(f"  held: {name}" for name in NAMES),
        f"  ({watched.answers} answers of servers, {watched.looks} looks at Consul, "
        f"{len(cluster.ledger)} lines of the client checked one by one)",
        "",
        "What you saw was loopback processes: no kernel NFS, no btrfs, no systemd, one clock.",
        "`make lab` does it with real parts.",
    ]
    return "\n".join(lines)


def play(out: TextIO, *, keep: bool = False, live: bool | None = None) -> int:
    """The whole demo; 0 when everything went as it has to, else 1."""
    started = monotonic()
    screen = Screen(out, started, live=live)
    with Cluster(screen, started, keep=keep) as cluster:
        try:
            times = tell(cluster)
            cluster.check()
            result, report = 0, summary(times, cluster)
        except StandfastError as error:
            result, report = 1, failure(cluster, error)
    out.write(f"{report}\n")
    if keep:
        out.write(f"Kept: {cluster.base}\n")
    out.flush()
    return result


def failure(cluster: Cluster, error: StandfastError) -> str:
    """What went wrong and what the processes said last."""
    parts = [f"--- {name}\n{text}" for name, text in cluster.logs().items() if text]
    parts.append(f"\nTHE DEMO FAILED: {error}")
    if not isinstance(error, Broken):
        parts.append("On a slow or busy machine try again; `standfast demo --keep` keeps the files")
    return "\n".join(parts)


def run(args: argparse.Namespace) -> int:
    """`standfast demo`; Ctrl-C, SIGTERM and a closed terminal clean up as its end does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    return play(sys.stdout, keep=args.keep)


def _interrupt(*_: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the cleaning up is not interrupted again
    raise KeyboardInterrupt
