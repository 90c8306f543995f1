"""The demo's cluster for tests, at the pace of the machine.

The demo's leases are of 2 s, so that nobody waits long for a failover. On a machine that is too
busy for them it ends in order, and says so; the tests of what it does stretch its times instead.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pkgutil import resolve_name

import pytest
from msgspec.structs import asdict, replace

from standfast.config.model import FAST_PROFILE
from standfast.demo.cluster import GOSSIP_S, Cluster
from standfast.demo.screen import Screen
from standfast.demo.story import STEP_S
from standfast.system.clock import monotonic
from tests.support.pace import factor

LEASE_TIMES = ("heartbeat", "request_timeout", "length", "fence", "wait")


def stretched(by: float) -> Mapping[str, object]:
    """Where the demo's times stand, and what they are on a machine that is slower by this."""
    told = asdict(FAST_PROFILE)
    return {
        "standfast.demo.nodes.FAST_PROFILE": replace(
            FAST_PROFILE, **{name: told[name] * by for name in LEASE_TIMES}
        ),
        "standfast.demo.cluster.GOSSIP_S": GOSSIP_S * by,
        "standfast.demo.story.STEP_S": STEP_S * by,
    }


def needed() -> float:
    """By how much to stretch here: as they are, the times do for a machine of half the speed."""
    return max(1.0, factor() / 2)


def keep_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stretched(needed()).items():
        monkeypatch.setattr(name, value)


def quiet_cluster() -> Cluster:
    """Nothing of it is shown."""
    started = monotonic()
    return Cluster(Screen(io.StringIO(), started), started)


if __name__ == "__main__":  # `standfast demo`; the factor is the argument
    from standfast.cli.main import main

    for name, value in stretched(float(sys.argv[1])).items():
        module, _, variable = name.rpartition(".")
        setattr(resolve_name(module), variable, value)
    sys.exit(main(["demo"]))
