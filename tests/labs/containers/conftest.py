"""Fixtures of the container lab; without root or its tools they skip and say why.

One cluster serves all files that ask for `cluster`, so a test leaves no more behind than `repair`
undoes: nodes may be off, frozen or cut off, any of them may be primary, and trees lie aside. Files,
units, keys and rules that a test changed, it puts back, also when it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.labs.containers.cluster import FAST
from tests.labs.containers.lab import NEEDS, Lab
from tests.labs.containers.nomad import WithNomad, with_nomad
from tests.labs.shared.host import why_not
from tests.labs.shared.reporting import register
from tests.support.commands import LabError

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    register(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test below this directory is of the lab, or its smoke test; one message says why it is
    skipped."""
    reason = why_not(NEEDS)
    for item in items:
        if HERE in item.path.parents:
            if item.get_closest_marker("smoke") is None:
                item.add_marker(pytest.mark.lab)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def lab_factory() -> Iterator[Callable[..., Lab]]:
    """Makes running labs: lab_factory(nodes=..., consul_config=...); all end with the session."""
    with ExitStack() as stack:

        def make(**options: Any) -> Lab:
            lab = Lab(**options)
            stack.callback(lab.close)
            lab.start()
            return lab

        yield make


@pytest.fixture(scope="package")
def shared(lab_factory: Callable[..., Lab]) -> Iterator[WithNomad]:
    """Three nodes that replicate every 3 s; each failover may follow the last at once."""
    lab = lab_factory()
    with with_nomad(lab, FAST, "failover_cooldown = 0\nfailover_after = 6") as made:
        yield made
    lab.close()


@pytest.fixture
def cluster(shared: WithNomad) -> WithNomad:
    """The shared cluster, whole and healthy whatever the last test did.

    One that can't be made healthy again is the same error for every test behind it, so that it is
    waited for once and told once (tests/labs/shared/reporting.py).
    """
    if shared.beyond_repair is not None:
        raise shared.beyond_repair
    try:
        shared.repair()
    except (LabError, pytest.fail.Exception) as error:  # pytest-timeout's, too
        shared.beyond_repair = LabError(f"the shared cluster can't be repaired: {error}")
        raise shared.beyond_repair from error
    return shared


@pytest.fixture(scope="module")
def lab(lab_factory: Callable[..., Lab]) -> Iterator[Lab]:
    """Three nodes with a Consul leader, shared by the tests of a module."""
    made = lab_factory()
    yield made
    made.close()
