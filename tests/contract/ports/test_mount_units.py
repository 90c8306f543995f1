"""What a client relies on in the service manager, for a path that has no unit.

Run on the adapter for a machine without systemd and on the tests' client in memory. The real
service manager, with units and without, is asked in a node of the container lab:
tests/labs/containers/test_ports.py runs this suite there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.clients.observation import Tie
from standfast.clients.ports import MountUnits
from standfast.mounts.units import NoMountUnits
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.client import FakeClient, fake_client
from tests.support.waiting import soon

PORTS = (MountUnits,)
NOBODY = "nobody-knows-it.service"


@dataclass
class Scene:
    """A path that no unit mounts and no service requires."""

    units: MountUnits
    path: Path


@contextlib.contextmanager
def without_systemd(directory: Path) -> Iterator[Scene]:
    yield Scene(NoMountUnits(), directory)


@contextlib.contextmanager
def fake(directory: Path) -> Iterator[Scene]:
    client = fake_client(directory)
    client.tie_ = Tie()
    yield Scene(client, client.path)


IMPLEMENTATIONS = (
    Implementation((NoMountUnits,), without_systemd),
    Implementation((FakeClient,), fake),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        yield made


def test_where_there_is_no_unit_none_is_told(scene: Scene) -> None:
    assert scene.units.tie(scene.path) == Tie()
    assert scene.units.options(scene.path) is None
    assert scene.units.dependants(scene.path) == ()


def test_what_does_not_run_is_not_active(scene: Scene) -> None:
    assert scene.units.active([]) == ()
    assert scene.units.active([NOBODY]) == ()


def test_an_attempt_that_is_not_under_way_can_be_ended(scene: Scene) -> None:
    scene.units.end_mounting(scene.path, soon(10))
