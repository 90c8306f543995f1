"""A primary's status as the exporter gets it, and the values of what it exposes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from standfast.names import SnapshotName

NOW = 1_700_000_000.0


def name_of(age_s: float) -> str:
    return str(SnapshotName.at("services", NOW - age_s))


PRIMARY: Mapping[str, Any] = {
    "v": 1,
    "agent": True,
    "volume": "data-services",
    "node": "zippy",
    "role": "primary",
    "epoch": 7,
    "holder": "zippy",
    "state": "serving",
    "serving": "zippy",
    "busy": None,
    "lease_remaining_s": 6.5,
    "fence_flushes": 2,
    "sick": None,
    "trouble": None,
    "fence": {"in_place": True, "open_for_s": 6.5},
    "since": NOW - 3600,
    "began_by": "operator: zippy is repaired",
    "paused": None,
    "nomad": {
        "at": NOW - 5,
        "role": "primary",
        "reason": "nomad-follows",
        "settled": True,
        "jobs": [],
    },
    "failover": {"possible": True, "reason": None, "sentence": ""},
    "standbys": [{"node": "c1", "snapshot": name_of(42)}],
}


def values(text: str) -> dict[str, float]:
    """Of the volume; those of the node have a test of their own."""
    samples = {}
    for family in text_string_to_metric_families(text):
        assert family.samples, f"{family.name}: a name without a sample"
        for sample in family.samples:
            labels = dict(sample.labels)
            if sample.name in ("standfast_time_seconds", "standfast_build_info"):
                continue
            assert labels.pop("volume") == "data-services"
            samples[f"{sample.name}{{{','.join(labels[key] for key in sorted(labels))}}}"] = (
                sample.value
            )
    return samples
