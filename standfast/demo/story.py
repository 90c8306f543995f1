"""What happens in the demo, in its order; each step waits for what has to become true.

Invariant: what the client got acknowledged decides. At each change of the primary its lines are
looked for byte by byte where they have to be, on the disks themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from standfast.demo.cluster import Cluster
from standfast.demo.ledger import FILE, Line, missing
from standfast.demo.nodes import Node
from standfast.demo.stand_ins.directory import load_info
from standfast.demo.stand_ins.embedded import EmbeddedNfs
from standfast.errors import Refused, StandfastError
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from standfast.system.lines import lines_of

FIRST, OTHERS = "zippy", ("c1", "c2")
# The runbook's words, for the addresses of the demo. Kept apart from the guard's own on purpose.
REFUSAL = """ERROR: Another NFS server is already active at {active}
This host ({me}) is configured as NFS server but should be standby.
To fix:
  1. If this is intentional (failback), first demote the other server
  2. Update this host's config to use nfs-services-standby.nix instead
  3. Sync data from active server before promoting this host"""
GUARD_TRIES = 3
STEP_S = 30.0
"""The longest that anything here may take on a slow machine."""


@dataclass(slots=True)
class Times:
    """What was measured, seconds."""

    second: str = ""
    """The node that took over."""
    first_promotion: float = 0.0
    takeover: float = 0.0
    only_there: int = 0
    lost_window: float = 0.0
    refusal: float = 0.0
    became_standby: float = 0.0
    caught_up: float = 0.0
    failback: float = 0.0
    failback_pause: float = 0.0
    cycles: int = 0
    handlers: int = 0

    def rows(self) -> list[tuple[str, str]]:
        return [
            (
                f"power cut of {FIRST} -> the client's next line on {self.second}",
                f"{self.takeover:.1f} s",
            ),
            (
                "written in the last moments, not replicated yet",
                f"{self.only_there} lines ({self.lost_window:.1f} s), kept on {FIRST}",
            ),
            (f"{FIRST} is back: NFS server refused by the guard", f"{self.refusal * 1000:.0f} ms"),
            (
                f"{FIRST} is a standby, its own data kept, since the agent's start",
                f"{self.became_standby:.1f} s",
            ),
            (f"{FIRST} has caught up, since its boot", f"{self.caught_up:.1f} s"),
            ("`standfast failback`, start to end", f"{self.failback:.1f} s"),
            ("the client's pause in it; lines lost: 0", f"{self.failback_pause:.1f} s"),
            ("replication cycles; handler calls", f"{self.cycles}; {self.handlers}"),
        ]


def tell(cluster: Cluster) -> Times:
    """The whole story; Broken, TimedOut, StandfastError."""
    times = Times()
    first_promotion(cluster, times)
    first_lines(cluster)
    _pass_some_time(cluster, 1.0)
    lines_before = _power_cut(cluster, times)
    _return_of_the_old_primary(cluster, times, lines_before)
    _failback(cluster, times)
    last_look(cluster)
    times.cycles = cluster.cycles
    times.handlers = sum(cluster.watches.calls.values())
    return times


def first_promotion(cluster: Cluster, times: Times) -> None:
    """Everything starts, and the first node serves."""
    say, chapter = cluster.screen.say, cluster.screen.chapter
    chapter(f"1. Three nodes, one volume on {FIRST}, an embedded Consul")
    cluster.start()
    cluster.wait_for("the agents answer", STEP_S, lambda: all(n.status() for n in _nodes(cluster)))
    say("agents run on zippy, c1, c2; none of them is primary: a node boots as standby")
    begun = monotonic()
    _command(cluster, cluster[FIRST], "promote", "--reason", "demo")
    times.first_promotion = monotonic() - begun
    say(f"{FIRST} is primary of epoch 1 after {times.first_promotion:.1f} s", mark="+")


def first_lines(cluster: Cluster) -> None:
    """A client writes, and both standbys have something of it."""
    say, chapter = cluster.screen.say, cluster.screen.chapter
    chapter("2. A client writes, snapshots are replicated")
    cluster.client.start()
    cluster.wait_for("the client's first lines", STEP_S, lambda: len(cluster.ledger) >= 5)
    say(f"the client writes numbered lines to {FIRST}, found in Consul's catalog", mark="+")
    cluster.wait_for(
        "a snapshot with lines of the client on both standbys",
        STEP_S,
        lambda: all(cluster.covered(name) for name in OTHERS),
    )
    say(f"the client has {len(cluster.ledger)} lines acknowledged")


def _power_cut(cluster: Cluster, times: Times) -> tuple[Line, ...]:
    """Lines that were acknowledged by the old primary."""
    say, chapter = cluster.screen.say, cluster.screen.chapter
    chapter(f"3. {FIRST} loses power")
    replicated = {name: cluster.covered(name) for name in OTHERS}
    cut_at = monotonic()
    pids = cluster[FIRST].cut_power()
    last = cluster.ledger.last()
    assert last is not None
    say(
        f"SIGKILL to all of {FIRST}: agent, lease process, server... (pids {_joined(pids)})",
        mark="!",
    )
    cluster.wait_for(
        "a standby takes over and the client goes on",
        STEP_S,
        lambda: _served_by_another(cluster, FIRST),
    )
    first = next(line for line in cluster.ledger.lines() if line.epoch == 2)
    times.takeover = first.at - cut_at
    say(
        f"the client's next line is on {first.node}, epoch 2: {times.takeover:.1f} s after the "
        f"power cut",
        mark="+",
    )
    second = times.second = first.node
    there = replicated[second]
    before = tuple(line for line in cluster.ledger.lines() if line.epoch == 1)
    content = _read(cluster[second].config.paths.live / FILE)
    cluster.invariants.lines_kept(f"{second}'s volume after the takeover", missing(content, there))
    times.only_there = len(missing(content, before))
    history_entry = cluster.history_entry(2)
    base = None if history_entry is None or history_entry.base is None else history_entry.base
    kept = [line for line in before if line.number not in set(missing(content, before))]
    times.lost_window = before[-1].at - (kept[-1].at if kept else before[0].at)
    cluster.check()
    say(
        f"of {len(before)} lines, the {len(there)} known to be replicated are all there; the last "
        f"{times.only_there} ({times.lost_window:.1f} s) came after the snapshot\n"
        f"{base} and are on {FIRST}'s disk only. The history says so: "
        f"{_window(cluster)} s at most"
    )
    _pass_some_time(cluster, 1.0)
    return before


def _return_of_the_old_primary(cluster: Cluster, times: Times, before: tuple[Line, ...]) -> None:
    say, chapter = cluster.screen.say, cluster.screen.chapter
    node = cluster[FIRST]
    chapter(f"4. {FIRST} is back, and wants to serve")
    cluster.replicated.pop(FIRST, None)
    booted = monotonic()
    node.boot()
    begun = monotonic()
    said = _refused_start(node, cluster[times.second])
    times.refusal = monotonic() - begun
    say(f"its NFS server's start, refused by the guard ({times.refusal * 1000:.0f} ms):", mark="!")
    cluster.screen.raw("\n".join(f"    | {line}" for line in lines_of(said)))
    begun = monotonic()
    node.start_agent()
    cluster.wait_for(f"{FIRST} becomes a standby", STEP_S, lambda: _role(node) == "standby")
    cluster.wait_for("its own data is kept aside", STEP_S, lambda: bool(_diverged(node)))
    times.became_standby = monotonic() - begun
    aside = _diverged(node)[0]
    cluster.invariants.lines_kept(f"{FIRST}'s {aside.name}", missing(_read(aside / FILE), before))
    cluster.check()
    say(
        f"{FIRST} is a standby; all {len(before)} lines that it had acknowledged are in\n"
        f"/persist/{aside.name}",
        mark="+",
    )
    cluster.wait_for(f"{FIRST} catches up", STEP_S, lambda: FIRST in cluster.replicated)
    times.caught_up = monotonic() - booted
    say(f"{FIRST} has caught up from the snapshot that both have in common", mark="+")


def _failback(cluster: Cluster, times: Times) -> None:
    say, chapter = cluster.screen.say, cluster.screen.chapter
    second = times.second
    chapter(f"5. The way back: `standfast failback` on {second}, the client goes on writing")
    begun = monotonic()
    _command(cluster, cluster[second], "failback", "--reason", "zippy is repaired")
    times.failback = monotonic() - begun
    cluster.wait_for(
        "the client goes on", STEP_S, lambda: _served_by_another(cluster, second, epoch=3)
    )
    first = next(line for line in cluster.ledger.lines() if line.epoch == 3)
    times.failback_pause = cluster.ledger.longest_pause(begun, first.at + 0.5)
    _pass_some_time(cluster, 1.0)
    if first.node != FIRST:
        raise StandfastError(f"epoch 3 is {first.node}'s, not {FIRST}'s")
    since = tuple(line for line in cluster.ledger.lines() if line.epoch >= 2)
    content = _read(cluster[FIRST].config.paths.live / FILE)
    cluster.invariants.lines_kept(f"{FIRST}'s volume after the failback", missing(content, since))
    cluster.check()
    moved = sum(1 for line in since if line.epoch == 2)
    say(
        f"{FIRST} serves epoch 3; the client paused {times.failback_pause:.1f} s; "
        f"all {moved} lines written to {second} are there, byte for byte",
        mark="+",
    )


def last_look(cluster: Cluster) -> None:
    """Every line that was ever acknowledged is on some disk."""
    cluster.client.stop()
    cluster.client.join()
    lines = cluster.ledger.lines()
    lost: Sequence[Line] = lines
    for path in (path for node in _nodes(cluster) for path in node.copies_of(FILE)):
        left = set(missing(_read(path), lost))
        lost = [line for line in lost if line.number in left]
    cluster.invariants.lines_kept("any tree on any disk", missing(b"", lost))
    cluster.invariants.check()
    history = [
        f"epoch {entry.epoch} {entry.node} ({entry.reason})"
        for entry in cluster.invariants.history_entries()
    ]
    cluster.screen.say(f"history: {'; '.join(history)}")


# What is looked at


def _nodes(cluster: Cluster) -> Iterable[Node]:
    return cluster.nodes.values()


def _served_by_another(cluster: Cluster, old: str, *, epoch: int = 2) -> bool:
    last = cluster.ledger.last()
    return last is not None and last.epoch == epoch and last.node != old


def _command(cluster: Cluster, node: Node, *words: str) -> None:
    """An operator's command. StandfastError when it failed."""
    status = cluster.command(node, *words)
    if status != 0:
        raise StandfastError(f"`standfast {words[0]}` ended with status {status}")


def _refused_start(node: Node, active: Node) -> str:
    """The guard's words on a start of the NFS server; StandfastError when they are others.

    A refusal for want of time, on a machine that is too busy, is a refusal too; asked again.
    """
    words = REFUSAL.format(active=active.place.address, me=node.place.address)
    for left in reversed(range(GUARD_TRIES)):
        try:
            EmbeddedNfs(node.config, env=node.environment()).start(Deadline.after(10.0))
        except Refused as refusal:
            if str(refusal) == words:
                return words
            if refusal.reason not in (Reason.DEADLINE, Reason.CONSUL_TIMEOUT) or left == 0:
                raise StandfastError(f"the guard refused with other words: {refusal}") from refusal
        else:
            break
    raise StandfastError(f"the NFS server of {node.name} started while another one serves")


def _role(node: Node) -> str:
    status = node.status() or {}
    decided = status.get("decision", {}).get("reason")
    return str(status.get("role")) if decided == Reason.PRIMARY_ALIVE else "changing"


def _diverged(node: Node) -> list[Path]:
    live = node.config.paths.live
    kept = sorted(live.parent.glob(f"{live.name}.diverged-*"))
    return [path for path in kept if load_info(path) is not None]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _window(cluster: Cluster) -> str:
    history_entry = cluster.history_entry(2)
    return (
        "?"
        if history_entry is None or history_entry.lost_s is None
        else f"{history_entry.lost_s:.1f}"
    )


def _joined(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _pass_some_time(cluster: Cluster, seconds: float) -> None:
    """Lets the client write and the eyes look."""
    end = monotonic() + seconds
    cluster.wait_for("time passes", STEP_S, lambda: monotonic() >= end)
