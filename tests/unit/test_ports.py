"""A fake is a promise: whoever stands behind a port is held to it by the port's suite.

Looked for are the Protocols, and the classes of the program, the demo, the tests and the benchmarks
that have the methods of one. Each is in the list of the port's suite, or below with the reason why
it isn't. Not found is what takes a port's place by a cast or by a method that is exchanged.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

import pytest

from tests.contract.ports.implementations import Implementation
from tests.support.checkout import CHECKOUT

SUITES = "tests.contract.ports"
NO_PORTS = {
    "standfast.nfs.unit.ServerUnits": "what the servers' adapters use of the one for systemd",
    "standfast.setup.steps.Manager": "what setup uses of the one for systemd",
    "standfast.demo.consul.http.Cluster": "a part of the demo's Consul, whose suite is test_consul",
    "standfast.agent.command.Connection": "a socket, or what passes an answer on to Consul",
    "standfast.system.local_socket.Receives": "the same, to speak to",
    "standfast.cli.nomad_boot.Servers": "two calls of NomadGateway",
    "standfast.replication.progress.Progress": "says how far a replication is, and does nothing",
    "tests.support.nomad_clusters.NomadMachines": "a part of the tests' clusters",
}
SYSTEMD = "needs systemd: tests/labs/containers/test_ports.py"

ELSEWHERE = {
    "standfast.consul.keys.KeyGateway": "a part of the ConsulGateway",
    "standfast.fence.kernel.KernelFence": "what both backends of the kernel share",
    "standfast.mounts.units.SystemdMountUnits": SYSTEMD,
    "standfast.btrfs.names_and_places.Store": "what both stores share",
    "standfast.system.systemd.SystemdUnits": SYSTEMD,
    "standfast.replication.timers.ReplicationTimers": SYSTEMD,
    "standfast.demo.ledger.Client": "alike by chance",
    "standfast.demo.ledger.Every": "alike by chance",
    "standfast.exporter.status_cache.StatusCache": "alike by chance",
    "tests.contract.client_scene.Catalog": "one answer, which the test writes down",
    "tests.contract.test_lease_on_consul.Held": "a gateway that is held up on purpose",
    "tests.contract.test_lease_on_consul.Paused": "a gateway that is held up on purpose",
    "tests.contract.test_lease_on_consul.Racer": "a gateway that is held up on purpose",
    "tests.contract.test_lease_on_consul.Racing": "a gateway that is held up on purpose",
    "tests.contract.test_lease_on_consul.Stalled": "a gateway that is held up on purpose",
    "tests.fakes.replication.LeaseKeys": "a MemoryConsul with a lease in it",
    "tests.sim.model_consul.ConsulStore": "the servers behind its SimConsul, which is the gateway",
    "tests.unit.test_fence_made.Rules": "a KernelFence over the note of which rules there are",
    "tests.unit.keepers.Fence": "a FakeFence that notes what it is asked",
    "tests.unit.test_keeper.Script": "an inbox that says what the test writes down",
    "tests.unit.receiving.Arriving": "a DirectoryStore in which something arrives",
    "tests.unit.test_shipment.Sends": "a DirectoryStore that sends what a test says",
    "tests.unit.test_requests.Keys": "a MemoryConsul that waits for no time",
    "tests.unit.test_without_agent.Keys": "a MemoryConsul that waits for no time",
    "tests.unit.test_watcher.Keys": "a MemoryConsul that notes what is read",
}
"""Why a class that implements a port isn't in its suite's list; `CLASS as PORT`: of this port."""
Methods = Mapping[str, tuple[str, ...]]
"""Name -> its positional parameters."""


@dataclass(frozen=True)
class ClassInModule:
    """A class as it stands in its module."""

    own: Methods
    bases: tuple[str, ...]
    """Full names, as far as the module's imports tell them."""


def classes_of(module: str, tree: ast.Module) -> Iterator[tuple[str, ClassInModule]]:
    nodes = list(ast.walk(tree))
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            own = {
                method.name: tuple(arg.arg.lstrip("_") for arg in method.args.args[1:])
                for method in node.body
                if isinstance(method, ast.FunctionDef)
                and not method.name.startswith("_")
                and "property" not in map(ast.unparse, method.decorator_list)
            }
            names = [ast.unparse(base).partition("[")[0] for base in node.bases]
            bases = tuple(imported.get(name, f"{module}.{name}") for name in names)
            yield f"{module}.{node.name}", ClassInModule(own, bases)


@cache
def classes() -> Mapping[str, ClassInModule]:
    files = (
        path
        for top in ("standfast", "tests", "benchmarks")
        for path in CHECKOUT.glob(f"{top}/**/*.py")
    )
    by_name: dict[str, ClassInModule] = {}
    for path in files:
        module = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
        by_name |= classes_of(module, ast.parse(path.read_text()))
    return by_name


@cache
def methods(name: str) -> Methods:
    """With those of its bases."""
    class_ = classes().get(name)
    if class_ is None:
        return {}
    inherited: dict[str, tuple[str, ...]] = {}
    for base in reversed(class_.bases):
        inherited |= methods(base)
    return {**inherited, **class_.own}


def protocols() -> list[str]:
    """But those of values, which do nothing."""
    names = (name for name, class_ in classes().items() if "typing.Protocol" in class_.bases)
    return sorted(name for name in names if methods(name))


def implementers(port: str) -> list[str]:
    wanted = methods(port)
    return sorted(
        name
        for name in classes()
        if name not in protocols()
        and not name.startswith(f"{SUITES}.")
        and wanted.items() <= methods(name).items()
    )


@cache
def suites() -> Mapping[str, ModuleType]:
    names = sorted(path.stem for path in CHECKOUT.joinpath(*SUITES.split(".")).glob("test_*.py"))
    return {name: import_module(f"{SUITES}.{name}") for name in names}


def full_name(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


def lists(suite: ModuleType) -> Iterator[Implementation[object]]:
    for value in vars(suite).values():
        if isinstance(value, tuple):
            yield from (entry for entry in value if isinstance(entry, Implementation))


def listed(port: str) -> set[str]:
    """Who is in the lists of the port's suites."""
    return {
        full_name(part)
        for suite in suites().values()
        if port in {full_name(port) for port in suite.PORTS}
        for implementation in lists(suite)
        for part in implementation.parts
    }


def elsewhere(port: str) -> set[str]:
    """Who need not be in the lists of this port's suites."""
    pairs = (key.partition(" as ") for key in ELSEWHERE)
    return {name for name, _, of in pairs if of in ("", port)}


def test_every_port_has_a_suite_on_everybody_who_implements_it() -> None:
    by_port = {port: listed(port) for port in protocols() if port not in NO_PORTS}
    without = sorted(port for port, held in by_port.items() if not held)
    assert not without, f"no suite in {SUITES} is the contract of {without}; see NO_PORTS"
    missing = {
        port: left
        for port, held in by_port.items()
        if (left := sorted(set(implementers(port)) - held - elsewhere(port)))
    }
    assert not missing, (
        f"no suite holds these to the port that they implement: {missing}. Add them to "
        f"IMPLEMENTATIONS of the port's suite in {SUITES}, or say in ELSEWHERE why not"
    )


def test_what_is_said_to_be_elsewhere_is_there() -> None:
    assert set(NO_PORTS) <= set(protocols())
    for key in ELSEWHERE:
        name, _, of = key.partition(" as ")
        ports = [of] if of else protocols()
        assert any(name in implementers(port) for port in ports), f"{key}: there is none"
        assert not any(name in listed(port) for port in ports), f"{key} is in a list after all"


def test_a_new_fake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "class New:\n" + "".join(
        f"    def {name}(self{''.join(f', {argument}' for argument in given)}): ...\n"
        for name, given in methods("standfast.node.ports.Fence").items()
    )
    more = {**classes(), **dict(classes_of("tests.new", ast.parse(text)))}
    monkeypatch.setattr(f"{__name__}.classes", lambda: more)
    assert "tests.new.New" in implementers("standfast.node.ports.Fence")
