"""The product on the container lab: what it takes while nothing happens, and how long nobody serves
when something does. Seconds are the client's: from one acknowledged write to the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from benchmarks.figures import Benchmark, Figure
from tests.labs.containers.cluster import (
    AGENT,
    DEFAULT,
    FAST,
    LEASE,
    PRIMARY,
    ContainerCluster,
    Timing,
)
from tests.labs.containers.lab import NEEDS, Lab, ganesha_export
from tests.labs.containers.node import Container
from tests.labs.shared.client import EXPORT, Stream
from tests.labs.shared.host import why_not
from tests.support.checkout import CHECKOUT
from tests.support.commands import LabError

FIRST_WRITE_S = {DEFAULT: 20.0, FAST: 9.0}
IDLE_PERCENT = 1.0
IDLE_WAKE_UPS = 30.0
"""Per second."""
IDLE_MB = 90.0
GUARD_MS = 250.0
GUARDS = 15
"""Starts of the guard in a round."""
SETTLE_S = 10.0
IDLE_S = 15.0
BARE_ROUNDS = 3
EXPORTS = "/etc/ganesha/exports.d/services.conf"
TIMED = (
    f"for _ in $(seq {GUARDS}); do s=$EPOCHREALTIME; %s 2>/dev/null; "
    "e=$EPOCHREALTIME; echo $(( (${e/./} - ${s/./}) / 1000 )); done"
)


@dataclass(frozen=True)
class Scene:
    """A cluster whose primary is n1, and what its lab did before the product was there."""

    cluster: ContainerCluster
    bare_pauses_s: Sequence[float]
    """Of a client whose NFS server was only restarted."""


@contextmanager
def installed(timing: Timing) -> Iterator[Scene]:
    """Three nodes that replicate every 3 s; each failover may follow the last at once."""
    with Lab() as lab:
        bare = bare_pauses(lab)
        cluster = ContainerCluster(lab, timing, extra="failover_cooldown = 0\nfailover_after = 15")
        cluster.install()
        cluster.begin()
        yield Scene(cluster, bare)


@contextmanager
def default_timings() -> Iterator[Scene]:
    with installed(DEFAULT) as scene:
        yield scene


@contextmanager
def fast_timings() -> Iterator[Scene]:
    with installed(FAST) as scene:
        yield scene


def writing(lab: Lab, servers: Sequence[str], path: str) -> Stream:
    """A client that writes 20 records a second, and tries the next server after half a second."""
    return lab.client.stream(servers, path, interval_s=0.05, silence_s=0.5)


def bare_pauses(lab: Lab) -> Sequence[float]:
    """What a mere restart of the NFS server is for a client; n1 is as empty after it as before."""
    n1, pauses_s = lab[PRIMARY], []
    n1.sh(f"btrfs subvolume create {EXPORT}; mount --bind {EXPORT} {EXPORT}")
    n1.write(EXPORTS, ganesha_export(1))
    n1.run("systemctl", "start", "nfs-server")
    with writing(lab, [n1.address], "bare") as stream:
        for _ in range(BARE_ROUNDS):
            began_s = stream.wait_for_ack(after_s=time.monotonic()).t_s
            n1.run("systemctl", "restart", "nfs-server")
            stream.wait_for_ack(after_s=time.monotonic())
            pauses_s.append(stream.longest_gap_s(began_s))
    n1.sh(f"systemctl stop nfs-server; rm {EXPORTS}; umount {EXPORT}; rm -r {EXPORT}")
    return pauses_s


# -- while nothing happens -------------------------------------------------------------------------


@dataclass(frozen=True)
class Used:
    """What processes of a node have used so far."""

    at_s: float
    cpu_s: float
    wake_ups: int

    @classmethod
    def read(cls, node: Container, pids: Sequence[str]) -> Used:
        """User and system time with reaped children; waits of those threads that are there now."""
        ticks = 0
        for pid in pids:
            fields = node.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            ticks += sum(int(fields[index]) for index in (11, 12, 13, 14))
        paths = " ".join(f"/proc/{pid}/task/*/status" for pid in pids)
        woken = node.sh(f"grep -h ^voluntary_ctxt_switches {paths}").splitlines()
        return cls(time.monotonic(), ticks / 100, sum(int(line.split()[1]) for line in woken))


def main_pids(node: Container, *units: str) -> list[str]:
    """The lease process runs on the primary only."""
    shown = [node.run("systemctl", "show", "-P", "MainPID", unit).stdout.strip() for unit in units]
    return [pid for pid in shown if pid != "0"]


def resident_mb(node: Container, pids: Sequence[str]) -> float:
    files = " ".join(f"/proc/{pid}/status" for pid in pids)
    lines = node.sh(f"grep -h ^VmRSS {files}").splitlines()
    return sum(int(line.split()[1]) for line in lines) * 1024 / 1e6


def idle(scene: Scene, rounds: int) -> Sequence[Figure]:
    """Of the agent and the lease process, and beside them the node's Consul, at the same time."""
    cluster = scene.cluster
    names = {"the primary": PRIMARY, "a standby": cluster.standby().name}
    figures = []
    for role, name in names.items():
        node = cluster[name]
        ours, consul = main_pids(node, AGENT, LEASE), main_pids(node, "consul")
        time.sleep(SETTLE_S)
        share: dict[str, list[float]] = {"ours": [], "Consul": []}
        woken: dict[str, list[float]] = {"ours": [], "Consul": []}
        for _ in range(rounds):
            before = {"ours": Used.read(node, ours), "Consul": Used.read(node, consul)}
            time.sleep(IDLE_S)
            after = {"ours": Used.read(node, ours), "Consul": Used.read(node, consul)}
            for who, start in before.items():
                passed_s = after[who].at_s - start.at_s
                share[who].append(100 * (after[who].cpu_s - start.cpu_s) / passed_s)
                woken[who].append((after[who].wake_ups - start.wake_ups) / passed_s)
        memory = {"Consul": [resident_mb(node, consul)]}
        figures += [
            Figure(f"{role}: share of a core", "%", share["ours"], IDLE_PERCENT, beside(share)),
            Figure(f"{role}: wake-ups", "per second", woken["ours"], IDLE_WAKE_UPS, beside(woken)),
            Figure(f"{role}: memory", "MB", [resident_mb(node, ours)], IDLE_MB, memory),
        ]
    return figures


def beside(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    return {"the node's Consul": samples["Consul"]}


def guard(scene: Scene, rounds: int) -> Sequence[Figure]:
    """Beside the same interpreter that does nothing."""
    node = scene.cluster[PRIMARY]

    def taken_ms(command: str) -> list[float]:
        return [float(line) for line in node.sh(TIMED % command).split()]

    healthy, nothing = [], []
    for _ in range(rounds):
        healthy += taken_ms("nfs-server-guard")
        nothing += taken_ms(f"{CHECKOUT}/.venv/bin/python -I -c pass")
    return [
        Figure("a healthy primary's yes", "ms", healthy, GUARD_MS, {"`python -I -c pass`": nothing})
    ]


# -- when something does ---------------------------------------------------------------------------


def first_writes(scene: Scene, rounds: int) -> Sequence[Figure]:
    cluster = scene.cluster
    taken_s = [power_cut(cluster, f"cut{number}") for number in range(rounds)]
    return [
        Figure(
            "power cut to the first acknowledged write on a standby",
            "s",
            taken_s,
            FIRST_WRITE_S[cluster.timing],
            {"a restart of the bare server": scene.bare_pauses_s},
        )
    ]


def power_cut(cluster: ContainerCluster, path: str) -> float:
    """Of the primary; seconds to the next acknowledged write. All nodes are well again after it."""
    lab, old = cluster.lab, cluster.primary()
    cluster.wait_for_voters()
    with writing(lab, lab.servers(), path) as stream:
        stream.wait_for_ack(lab[old].address)
        cluster.wait_until_replicated(old)
        cut_s = stream.wait_for_ack(lab[old].address, after_s=time.monotonic()).t_s
        lab[old].power_cut()
        others = [node.address for node in lab if node.name != old]
        first_s = lab.wait_for(
            lambda: [e.t_s for e in stream.acknowledged() if e.t_s > cut_s and e.server in others],
            120.0,
            "a write acknowledged by a standby",
            0.01,
        )[0]
    cluster.repair()
    cluster.wait_until_replicated(cluster.primary())
    return first_s - cut_s


def handovers(scene: Scene, rounds: int) -> Sequence[Figure]:
    """There by `standfast switchover`, and back by `standfast failback`."""
    cluster = scene.cluster
    pauses_s: dict[str, list[float]] = {"switchover": [], "failback": []}
    commands_s: dict[str, list[float]] = {"switchover": [], "failback": []}
    if cluster.primary() != PRIMARY:
        cluster.standfast(cluster.primary(), "failback", timeout_s=120)
    for number in range(rounds):
        to = cluster.standby().name
        for verb, source, target, words in (
            ("switchover", PRIMARY, to, ("switchover", "--to", to)),
            ("failback", to, PRIMARY, ("failback",)),
        ):
            cluster.wait_for_role(target, "standby")
            cluster.wait_until_replicated(source)
            pause_s, command_s = handover(cluster, source, target, words, f"{verb}{number}")
            pauses_s[verb].append(pause_s)
            commands_s[verb].append(command_s)
    bare = {"a restart of the bare server": scene.bare_pauses_s}
    return [
        *(Figure(f"{verb}: the pause", "s", s, baselines=bare) for verb, s in pauses_s.items()),
        *(Figure(f"{verb}: the command", "s", s) for verb, s in commands_s.items()),
    ]


def handover(
    cluster: ContainerCluster, source: str, target: str, words: Sequence[str], path: str
) -> tuple[float, float]:
    """Seconds for which nothing was acknowledged, and that the command took."""
    lab = cluster.lab
    with writing(lab, lab.servers(), path) as stream:
        stream.wait_for_ack(lab[source].address)
        began_s = stream.wait_for_ack(after_s=time.monotonic()).t_s
        cluster.standfast(source, *words, timeout_s=120)
        ended_s = time.monotonic()
        stream.wait_for_ack(lab[target].address, after_s=ended_s)
        pause_s = stream.longest_gap_s(began_s)
    if cluster.primary() != target:
        raise LabError(f"{target} is not primary after {' '.join(words)} on {source}")
    return pause_s, ended_s - began_s


# -- the benchmarks ------------------------------------------------------------------------


def benchmark(
    name: str,
    about: str,
    on: Callable[[], AbstractContextManager[Scene]],
    measure: Callable[[Scene, int], Sequence[Figure]],
    rounds: int,
    round_s: float,
) -> Benchmark[Scene]:
    return Benchmark(
        name,
        about,
        on=on,
        measure=measure,
        rounds=rounds,
        quick=1,
        seconds=(30, round_s),
        why_not=lambda: why_not(NEEDS),
    )


ABOUT_CUT = "The primary of three nodes with real parts loses power; {}."
ABOUT_HANDOVER = "A client that writes all the time, with real parts; {}."
DEFAULTS, FASTER = "default timings", "fast timings"
BENCHMARKS = (
    benchmark(
        "idle",
        "Agent and lease process together while nothing happens, 15 s at a time; default timings.",
        default_timings,
        idle,
        3,
        35,
    ),
    benchmark(
        "guard-lab",
        "The same as `guard`, on a node with real parts.",
        default_timings,
        guard,
        1,
        5,
    ),
    benchmark("handover", ABOUT_HANDOVER.format(DEFAULTS), default_timings, handovers, 3, 10),
    benchmark("failover", ABOUT_CUT.format(DEFAULTS), default_timings, first_writes, 5, 25),
    benchmark("handover-fast", ABOUT_HANDOVER.format(FASTER), fast_timings, handovers, 3, 8),
    benchmark("failover-fast", ABOUT_CUT.format(FASTER), fast_timings, first_writes, 5, 17),
)
