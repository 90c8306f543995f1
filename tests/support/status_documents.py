"""Status documents for tests of the status page: as an agent sends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from standfast.consul.records import (
    ClientRecord,
    HistoryEntry,
    Holder,
    Leader,
    LeaderState,
    StandbyRecord,
)
from standfast.exporter.status_cache import sort_keys, with_clients
from standfast.names import SnapshotName
from standfast.status.document import Status
from standfast.status.overview import Keys

# 2026-11-22 14:06:40 UTC
NOW = 1_795_356_400.0


def snapshot(age_s: float, utc: float = NOW) -> str:
    return str(SnapshotName.at("services", utc - age_s))


def parsed(doc: Mapping[str, Any]) -> Status:
    """As a program has it that asked the agent."""
    return Status.parse(doc)


def standby(name: str, age_s: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "node": name,
        "age_s": age_s,
        "snapshot": None if age_s is None else snapshot(age_s),
        "epoch": 7,
        "candidate": True,
        "word": {"takes_over": True, "reason": "takeover", "sentence": None, "obstacles": []},
        "on_hold": None,
        **changes,
    }


def served(by: str = "n1", here: str = "n1", **changes: Any) -> dict[str, Any]:
    """`by` serves; the agent of `here` says so."""
    is_holder = by == here
    return {
        "v": 1,
        "agent": True,
        "volume": "data-services",
        "node": here,
        "role": "primary" if is_holder else "standby",
        "serving": by,
        "holder": by,
        "is_holder": is_holder,
        "state": "serving",
        "epoch": 7,
        "highest_epoch": 7,
        "since": NOW - 7200,
        "began_by": "takeover",
        "lost_s": 3.0,
        "last_heartbeat_seen_s": 0.8,
        "lease_remaining_s": 6.8 if is_holder else None,
        "lease_trouble": None,
        "not_surrendered": None,
        "fence": {"in_place": True, "open_for_s": 6.8 if is_holder else 0.0},
        "fence_flushes": 0,
        "failover": {
            "possible": True,
            "reason": None,
            "sentence": "n2 would lose 4 s of data at most",
            "to": "n2",
        },
        "paused": None,
        "decision": {
            "action": "nothing",
            "reason": "serving" if is_holder else "standing-by",
            "sentence": f"{here} holds the lease and serves" if is_holder else f"{by} serves",
        },
        "standbys": [standby(name, 4.0) for name in ("n1", "n2", "n3") if name != by],
        "aside": [],
        "busy": None,
        "trouble": None,
        "sick": None,
        "newest_snapshot": snapshot(4),
        **changes,
    }


def dead(here: str = "n2", **changes: Any) -> dict[str, Any]:
    """n1 held the lease and is silent."""
    silent = {
        "serving": None,
        "role": "standby",
        "lease_remaining_s": None,
        "fence": {"in_place": True, "open_for_s": 0.0},
        "last_heartbeat_seen_s": 14.2,
        "decision": {
            "action": "wait",
            "reason": "waiting-for-evidence",
            "sentence": "n1 is silent and its machine answers; it is waited for another 46 s",
        },
    }
    return served("n1", here, **{**silent, **changes})


def blind(here: str = "n1", **changes: Any) -> dict[str, Any]:
    """Consul has no leader."""
    known = {
        *("v", "agent", "volume", "node", "role", "decision", "busy", "trouble", "sick", "aside"),
        *("lease_remaining_s", "lease_trouble", "not_surrendered", "fence", "fence_flushes"),
    }
    sentence = "Consul at 127.0.0.1:8500 has no leader"
    doc = {key: value for key, value in served("n1", here).items() if key in known}
    failover = {"possible": False, "reason": "consul-no-quorum", "sentence": sentence}
    return {**doc, "serving": None, "failover": failover, **changes}


def keys(utc: float = NOW) -> Mapping[str, bytes]:
    """What Consul holds for the volume, without the prefix."""
    leader = Leader(7, Holder("n1", "boot-1"), 9, LeaderState.SERVING, ("n2", "n3"))
    history_entries = [
        HistoryEntry(5, "n1", None, "first-primary", "ann", None, utc - 90000),
        HistoryEntry(6, "n2", snapshot(80000, utc), "clean-handover", "ann", 0.0, utc - 80000),
        HistoryEntry(7, "n1", snapshot(7203, utc), "takeover", None, 3.0, utc - 7200),
    ]
    standbys = [
        StandbyRecord(name, 7, snapshot(age_s, utc), "c0ffee", utc - age_s)
        for name, age_s in (("n1", 9000.0), ("n2", 4.0), ("n3", 65.0))
    ]
    return {
        "epoch": b'{"v":1,"epoch":7}',
        "leader": leader.dump(),
        **{f"history/{entry.epoch}": entry.dump() for entry in history_entries},
        **{f"standbys/{record.node}": record.dump() for record in standbys},
    }


def clients(utc: float = NOW) -> Mapping[str, bytes]:
    """What the clients say there, by their names."""
    records = [
        ClientRecord("web-1", "n1", 7, "mount-current", utc - 60),
        ClientRecord("web-2", "n1", 7, "mount-current", utc - 40),
    ]
    return {record.node: record.dump() for record in records}


def known_keys() -> Keys:
    """The same, as a page has it."""
    return with_clients(sort_keys(keys()), clients())
