"""What the lab's own parts take: `make bench` (root). Medians in milliseconds.

Invariant: every figure is printed with the number of rounds it is a median of.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from tests.lab.lab import NEEDS, Lab, ganesha_export
from tests.machines.host import why_not

ROUNDS = 5


def timed(do: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    start_s = time.monotonic()
    do()
    return (time.monotonic() - start_s) * 1000


def report(what: str, samples_ms: list[float]) -> None:
    print(
        f"{what:<44} {statistics.median(samples_ms):7.0f} ms"
        f"  (median of {len(samples_ms)}, {min(samples_ms):.0f}-{max(samples_ms):.0f})"
    )


def start_and_stop() -> None:
    """A whole lab, from nothing to a Consul leader and back."""
    starts, stops = [], []
    for _ in range(ROUNDS):
        lab = Lab()
        starts.append(timed(lab.start))
        stops.append(timed(lab.close))
    report("three nodes to a Consul leader", starts)
    report("everything undone", stops)


def parts(lab: Lab) -> None:
    """One node's life, and its NFS server's."""
    n1 = lab["n1"]
    samples: dict[str, list[float]] = {}

    def note(what: str, do: Callable[[], object]) -> None:
        samples.setdefault(what, []).append(timed(do))

    n1.sh("btrfs subvolume create /persist/services; sync")
    n1.write("/etc/ganesha/exports.d/services.conf", ganesha_export(1))
    for _ in range(ROUNDS):
        note("a command in a node", lambda: n1.run("true"))
        n1.sh("mount --bind /persist/services /persist/services")
        note("nfs-server starts", lambda: n1.run("systemctl", "start", "nfs-server"))
        note("a client mounts and writes", lambda: lab.nfs_write(n1.address, "f", b"x"))
        note("nfs-server stops", lambda: n1.run("systemctl", "stop", "nfs-server"))
        note("power cut", n1.power_cut)
        note("boot after a power cut", n1.boot)
        note("Consul leader known again", lab.wait_for_leader)
    for what, taken in samples.items():
        report(what, taken)


def main() -> None:
    if reason := why_not(NEEDS):
        sys.exit(f"bench: {reason}")
    start_and_stop()
    with Lab() as lab:
        parts(lab)


if __name__ == "__main__":
    main()
