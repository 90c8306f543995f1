"""Fixtures of the kernel lab; without root or its tools they skip and say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.labs.kernels.cluster import KernelCluster
from tests.labs.kernels.lab import NEEDS, KernelLab
from tests.labs.shared.host import why_not
from tests.labs.shared.reporting import register

HERE = Path(__file__).parent
START_S = 600.0
"""For a test that is the first one: it may have to build the image."""


def pytest_configure(config: pytest.Config) -> None:
    register(config)


@pytest.hookimpl(
    tryfirst=True
)  # before tests/conftest.py takes one without a time-out for a fast test
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test below this directory is a kernel lab test; one message says why it is skipped."""
    reason = why_not(NEEDS)
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kernel_lab)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(START_S))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def kernel_labs() -> Iterator[Callable[..., KernelLab]]:
    """Makes running bare labs: kernel_labs(storage=..., clients=...); all end with the module."""
    with ExitStack() as stack:

        def make(**options: Any) -> KernelLab:
            lab = KernelLab(**options)
            stack.callback(lab.close)
            lab.start()
            return lab

        yield make


@pytest.fixture(scope="module")
def cluster_factory() -> Iterator[Callable[..., KernelCluster]]:
    """Makes clusters with a first primary: cluster_factory(timing=...); they end with the module.

    Keywords are Cluster's; `lab` those of KernelLab.
    """
    with ExitStack() as stack:

        def make(lab: dict[str, Any] | None = None, **options: Any) -> KernelCluster:
            cluster = KernelCluster(KernelLab(**(lab or {})), **options)
            stack.callback(cluster.lab.close)
            cluster.create()
            cluster.start()
            cluster.begin()
            return cluster

        yield make


@pytest.fixture(scope="module")
def cluster(cluster_factory: Callable[..., KernelCluster]) -> KernelCluster:
    """Three machines, n1 primary, n2 standby, c1 client; shared by the tests of a module."""
    return cluster_factory()
