"""A tiny notation for observations: `cluster("e5 a/a1 #7 serving ->b", silent=13)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from standfast.config.model import Config
from standfast.config.model import Node as NodeConfig
from standfast.consul.records import HistoryEntry, Holder, Leader, LeaderState, StandbyRecord
from standfast.lease.files import LeaseStatus
from standfast.names import SnapshotName
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.role.observation import Available, Cluster, LastHeartbeat, Local

NOW_S = 1000.0
UTC = 1_795_342_500.0
NODES = ("a", "b", "c")


def config(node: str = "b", **changes: Any) -> Config:
    """The node's configuration in a cluster of a, b and c, with the default timings."""
    return Config(
        volume="data",
        source=Path("data.toml"),
        cluster="test",
        node=node,
        nodes={name: NodeConfig(address=f"10.0.0.{n}") for n, name in enumerate(NODES, 1)},
        **changes,
    )


def leader(text: str) -> Leader:
    """`e5 a/a1 #7 clean ->b final:60`: epoch, holder, number, state, whom it is handed to, and the
    age of the final snapshot; `surrendered`: there is none, for want of a disk; `idle`: nobody was
    served in that epoch."""
    epoch, holder, seq, state, *rest = text.split()
    node, _, instance = holder.partition("/")
    to = next((word[2:] for word in rest if word.startswith("->")), None)
    finals = [word[6:] for word in rest if word.startswith("final:")]
    return Leader(
        int(epoch[1:]),
        Holder(node, instance),
        int(seq[1:]),
        LeaderState(state),
        tuple(name for name in NODES if name != node),
        to,
        final=str(SnapshotName.at("services", UTC - float(finals[0]))) if finals else None,
        surrendered="surrendered" in rest,
        idle="idle" in rest,
    )


def cluster(text: str | None, *, silent: float = 0.0, **changes: Any) -> Cluster:
    """Consul with this heartbeat, seen to arrive `silent` seconds ago, and a history that fits."""
    now = None if text is None else leader(text)
    epoch = changes.pop("epoch", None if now is None else now.epoch)
    identity = None if now is None else now.identity
    witnessed = changes.pop("witnessed", now is not None)
    view = Cluster(epoch, now, LastHeartbeat(identity, 10, NOW_S - silent, witnessed=witnessed))
    return replace(view, **changes)


def snap(ago_s: float, epoch: int = 5) -> Available:
    """A published snapshot of that age and epoch."""
    name = SnapshotName.at("services", UTC - ago_s)
    return Available(Snapshot(name, Path("/x") / str(name), f"id-{ago_s:g}", True), epoch)


def record(node: str, ago_s: float, epoch: int = 5) -> dict[str, StandbyRecord]:
    name = str(SnapshotName.at("services", UTC - ago_s))
    return {node: StandbyRecord(node, epoch, name, f"id-{ago_s:g}", UTC)}


def history_entry(
    epoch: int,
    base_ago_s: float | None,
    reason: str = "operator",
    age_s: float = 9e4,
    follows: int | None = None,
) -> HistoryEntry:
    base = None if base_ago_s is None else str(SnapshotName.at("services", UTC - base_ago_s))
    return HistoryEntry(epoch, "a", base, reason, None, 0.0, UTC - age_s, follows)


def local(
    node: str = "b", snapshots: Sequence[Available] = (), *, highest: int = 5, **changes: Any
) -> Local:
    return replace(
        Local(node, f"{node}1", highest, snapshots=tuple(snapshots)),
        **changes,
    )


def own(epoch: int = 5, stage: Stage = Stage.READY) -> OwnEpoch:
    return OwnEpoch(epoch, stage, "fsid", "services@20261122T101500Z", in_place=False)


def lease(epoch: int = 5, *, serving: bool = True) -> LeaseStatus:
    state = LeaderState.SERVING if serving else LeaderState.STARTING
    return LeaseStatus(epoch, "a1", 7, state, serving, NOW_S + 5, NOW_S + 5, 7, NOW_S - 100)
