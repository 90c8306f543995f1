"""What the container lab's own parts take, without the product."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from benchmarks.figures import Benchmark, Figure
from standfast.system.clock import monotonic
from tests.labs.containers.lab import NEEDS, Lab, ganesha_export
from tests.labs.shared.host import why_not


def timed(do: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    start_s = monotonic()
    do()
    return (monotonic() - start_s) * 1000


@contextmanager
def whole_lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def parts(lab: Lab, rounds: int) -> Sequence[Figure]:
    """Whole labs beside this one, from nothing to a Consul leader and back; one node's life."""
    samples: dict[str, list[float]] = {}

    def note(what: str, do: Callable[[], object]) -> None:
        samples.setdefault(what, []).append(timed(do))

    n1 = lab["n1"]
    n1.sh("btrfs subvolume create /persist/services; sync")
    n1.write("/etc/ganesha/exports.d/services.conf", ganesha_export(1))
    for _ in range(rounds):
        another = Lab()
        note("three nodes to a Consul leader", another.start)
        note("everything undone", another.close)
        note("a command in a node", lambda: n1.run("true"))
        n1.sh("mount --bind /persist/services /persist/services")
        note("nfs-server starts", lambda: n1.run("systemctl", "start", "nfs-server"))
        note("a client mounts and writes", lambda: lab.nfs_write(n1.address, "f", b"x"))
        note("nfs-server stops", lambda: n1.run("systemctl", "stop", "nfs-server"))
        note("power cut", n1.power_cut)
        note("boot after a power cut", n1.boot)
        note("Consul leader known again", lab.wait_for_leader)
    return [Figure(what, "ms", taken) for what, taken in samples.items()]


BENCHMARKS = (
    Benchmark(
        "lab",
        "The container lab's own parts, without the product.",
        on=whole_lab,
        measure=parts,
        rounds=5,
        quick=1,
        seconds=(5, 10),
        why_not=lambda: why_not(NEEDS),
    ),
)
