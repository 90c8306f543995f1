"""A whole document of each kind of record, as it stands in Consul."""

from __future__ import annotations

from typing import Any

from standfast.consul import records
from standfast.consul.record import Record
from standfast.requests.record import Bell, Outcome, Request

KINDS: dict[type[Record], dict[str, Any]] = {
    records.Leader: {
        "v": 1,
        "epoch": 5,
        "holder": {"node": "a", "instance": "a1"},
        "seq": 7,
        "state": "clean",
        "candidates": ["b"],
        "to": "b",
        "note": "disks",
        "final": "services@20261122T101500Z",
        "final_id": "c0ffee",
        "wait": 12.5,
        "surrendered": True,
        "unserved": 2.5,
        "idle": True,
        "operator": "ann",
    },
    records.HistoryEntry: {
        "v": 1,
        "epoch": 7,
        "node": "b",
        "base": None,
        "reason": "takeover",
        "operator": "ann",
        "lost_s": 60.0,
        "at": 1.7e9,
        "follows": 5,
    },
    records.StandbyRecord: {
        "v": 1,
        "node": "b",
        "epoch": 5,
        "snapshot": "services@20261122T101500Z",
        "content_id": "c0ffee",
        "at": 1.7e9,
        "taken_at": 1.6e9,
        "by": "a",
    },
    records.Pause: {"v": 1, "by": "ann", "reason": "disks", "at": 1.0, "lasts": 7200.0},
    records.CandidateRecord: {
        "v": 1,
        "node": "b",
        "epoch": 4,
        "ready": True,
        "reason": "ready",
        "snapshot": None,
        "snapshot_epoch": 4,
        "at": 5.0,
    },
    records.ClientRecord: {
        "v": 1,
        "node": "c",
        "server": "a",
        "epoch": None,
        "state": "mounted",
        "at": 6.5,
    },
    Request: {
        "v": 1,
        "id": "0f" * 16,
        "verb": "switchover",
        "node": "a",
        "by": "ann@desk",
        "beat": 3,
        "arguments": {"to": "b", "reason": "disks"},
        "taken": "c0ffee",
    },
    Outcome: {
        "v": 1,
        "id": "0f" * 16,
        "node": "a",
        "run": "c0ffee",
        "beat": 2,
        "first": 1,
        "progress": ["one", "two"],
        "ended": True,
        "exit_code": 1,
        "text": "done",
        "error": "no",
        "reason": "busy",
        "document": "{}",
    },
    Bell: {"v": 1, "id": "0f" * 16},
    records.NomadNote: {
        "v": 1,
        "node": "b",
        "by": "a",
        "epoch": 5,
        "at": 7.5,
        "firm": False,
        "ahead": True,
    },
}
