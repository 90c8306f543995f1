"""What the tests of Consul share, whatever stands for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

import pytest

from standfast.consul.gateway import ConsulGateway
from standfast.consul.values import Registration
from tests.fakes.consul import MemoryConsul
from tests.sim.model_consul import SimConsul
from tests.support.waiting import wait_for

Gateway = ConsulGateway | MemoryConsul | SimConsul
SYNC_S = 150.0
"""From an agent's word until the catalog has it: mostly milliseconds.

An agent whose periodic full sync falls into a registration carries nothing to the catalog for 15 to
30 s (agent/ae/ae.go of Consul, `retryFullSync`; seen with 1.8.7: six services 25 s late, once in
1,300 changes), and a change that could not be carried waits for the next full sync, up to 120 s.
"""
SYNCED = pytest.mark.timeout(3 * SYNC_S)
"""For tests that wait for the catalog."""
HANG_S = 100.0
"""A blocking query that takes so long was not ended by what should end it."""
numbers = itertools.count(1)


def listed(gateway: Gateway, name: str, checks: str | None = None) -> None:
    """Wait until the catalog has the service once, with these checks."""

    def as_it_should() -> bool:
        instances = gateway.instances(name)
        return len(instances) == 1 and checks in (None, instances[0].checks)

    wait_for(as_it_should, SYNC_S, f"{name} is listed, {checks or 'with any checks'}")


@contextmanager
def after(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    timer = Timer(seconds, act)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def register(gateway: Gateway, name: str, ttl_s: float = 60, epoch: str = "1") -> None:
    gateway.register(
        Registration(f"{name}-id", name, "10.1.2.3", 2049, {"epoch": epoch}, ttl_s, "answers NFS")
    )
