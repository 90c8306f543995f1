"""What a plan relies on in the service manager: the lease's unit is started, stopped and asked.

Run on the demo's process starter and on the simulation's service manager, which run the real lease
process, and on the tests' fake of that process. The real service manager is a machine's first
process: tests/labs/containers/test_ports.py runs this suite in a node of the container lab.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from standfast.consul.records import Holder, Leader, LeaderState
from standfast.demo.stand_ins.embedded import EmbeddedUnits
from standfast.errors import StandfastError
from standfast.lease.files import save_claim
from standfast.lease.protocol import Claim
from standfast.node.ports import Units
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.machine import FakeKeeper, fake_node
from tests.sim.one_node import give_the_lease, let_serve, on_a_node
from tests.sim.systemd import SimUnits
from tests.support.storage_node import EPOCH, embedded_primary
from tests.support.waiting import soon

PORTS = (Units,)
START_S = 30.0


@dataclass
class Scene:
    """A service manager that knows a unit which is not started."""

    units: Units
    unit: str
    spoil: Callable[[], object]
    """From now on a start of the unit fails."""
    mask: Callable[[], object] | None = None
    """Somebody masks the unit; None: there is no such thing here."""
    mask_what_it_requires: Callable[[], object] | None = None
    required: str = ""
    """The name of that."""


@contextlib.contextmanager
def demo(_directory: Path) -> Iterator[Scene]:
    with (
        tempfile.TemporaryDirectory(prefix="units-") as short,  # for the sockets below it
        embedded_primary(Path(short)) as (node, _consul),
    ):
        config = node.config
        units, unit = EmbeddedUnits(config), f"standfast-lease@{config.volume}.service"
        (config.run_dir / "lease.json").unlink()
        other = Leader(EPOCH, Holder("n2", "boot-2"), 3, LeaderState.SERVING, ())
        with patch.dict("os.environ", node.environment()):
            try:
                yield Scene(units, unit, lambda: node.publish(leader=other))
            finally:
                units.stop(unit, soon(START_S))


@contextlib.contextmanager
def fake(directory: Path) -> Iterator[Scene]:
    node = fake_node(directory)
    claim = Claim(4, None, float("-inf"), None, "a test", None, 0.0)
    save_claim(node.config.run_dir, claim)

    def spoil() -> None:
        (node.config.run_dir / "claim.json").unlink()

    def mask() -> None:
        node.keeper.masked = True

    yield Scene(node.keeper, node.machine.lease_unit, spoil, mask)


@contextlib.contextmanager
def simulated(directory: Path) -> Iterator[Scene]:
    with on_a_node(directory) as node:
        seat = node.seat
        let_serve(seat)
        (seat.config.run_dir / "lease.json").unlink()
        yield Scene(
            SimUnits(seat),
            f"standfast-lease@{seat.volume}.service",
            lambda: give_the_lease(seat, Holder("b", "boot-2")),
            lambda: setattr(seat.lease, "masked", True),
        )


IMPLEMENTATIONS = (
    Implementation((EmbeddedUnits,), demo),
    Implementation((FakeKeeper,), fake),
    Implementation((SimUnits,), simulated),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        yield made


def test_a_unit_is_active_from_its_start_to_its_stop(scene: Scene) -> None:
    units, unit = scene.units, scene.unit
    assert not units.is_active(unit)
    units.stop(unit, soon(START_S))
    for _ in range(2):
        for _ in range(2):
            units.start(unit, soon(START_S))
            assert units.is_active(unit)
        for _ in range(2):
            units.stop(unit, soon(START_S))
            assert not units.is_active(unit)


def test_a_unit_that_ends_at_its_start_is_an_error_and_not_active(scene: Scene) -> None:
    scene.spoil()
    with pytest.raises(StandfastError):
        scene.units.start(scene.unit, soon(START_S))
    assert not scene.units.is_active(scene.unit)


def test_a_unit_that_is_there_could_be_started(scene: Scene) -> None:
    assert scene.units.obstacle(scene.unit) is None


def test_a_unit_that_is_masked_is_foreseen_and_starts_nothing(scene: Scene) -> None:
    if scene.mask is None:
        pytest.skip("the demo's processes are no units that could be masked")
    scene.mask()
    assert scene.units.obstacle(scene.unit) == f"{scene.unit} is masked"
    with pytest.raises(StandfastError, match="masked"):
        scene.units.start(scene.unit, soon(START_S))
    assert not scene.units.is_active(scene.unit)


def test_what_a_unit_requires_is_foreseen_as_well(scene: Scene) -> None:
    if scene.mask_what_it_requires is None:
        pytest.skip("one unit is all that is modelled")
    scene.mask_what_it_requires()
    expected = f"{scene.unit} requires {scene.required}, which is masked"
    assert scene.units.obstacle(scene.unit) == expected
    with pytest.raises(StandfastError, match="masked"):
        scene.units.start(scene.unit, soon(START_S))
