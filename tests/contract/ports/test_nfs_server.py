"""What callers rely on in the NFS server.

Run on a real nfs-ganesha (started without systemd, by what stands for its unit and the guard in
front of it), on the adapter of the kernel's server with files and scripts for the kernel and its
programs, on the demo's and the simulation's server behind the real guard, and on the tests' fake.
The kernel's server itself needs a kernel of its own: promoted and demoted it is in
tests/labs/kernels/test_kernel_lab_itself.py, with clients in test_clients.py beside that.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from standfast.consul.records import Holder, Leader, LeaderState
from standfast.demo.stand_ins.embedded import EmbeddedNfs
from standfast.errors import CommandFailed, Refused, StandfastError
from standfast.mounts.bind import LiveBind
from standfast.nfs import kernel as nfs_module
from standfast.nfs.as_client import LooksUp
from standfast.nfs.ganesha import GaneshaNfs
from standfast.nfs.kernel import KernelNfs
from standfast.node.ports import NfsServer
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from standfast.system.systemd import JournalLine
from tests.contract import ganesha
from tests.contract.own_network import own_network
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.machine import FakeNfs, World
from tests.sim.machine import SimNfs
from tests.sim.one_node import give_the_lease, let_serve, on_a_node
from tests.support.configs import config_in
from tests.support.scripts import script as write_script
from tests.support.storage_node import EPOCH, embedded_primary
from tests.support.volumes import command
from tests.support.waiting import soon

PORTS = (NfsServer,)
FSID, OTHER = str(uuid.uuid4()), str(uuid.uuid4())
START_S = 30.0
GUARD_S_NO = "refused [lease-not-held]: a test says so"


@dataclass
class Scene:
    """A node whose guard says yes and whose port is open."""

    nfs: NfsServer
    again: NfsServer
    """The same, as another process has it."""
    forbid: Callable[[], object]
    """From now on the guard says no: the lease is not held here."""


@contextlib.contextmanager
def real_ganesha(directory: Path) -> Iterator[Scene]:
    with own_network(), ganesha.volume(directory) as config:
        bind = LiveBind(config.paths.live, config.paths.bind, None)
        bind.mount(soon(START_S))
        units = ganesha.DirectUnits(directory)

        def forbid() -> None:
            units.guard_says = GUARD_S_NO

        nfs = GaneshaNfs(config, units)
        try:
            yield Scene(nfs, GaneshaNfs(config, units), forbid)
        finally:
            nfs.stop(soon(START_S))
            bind.unmount(soon(START_S))


class NfsdUnit:
    """nfs-server.service, with files for what the kernel says and scripts for the programs."""

    def __init__(self, directory: Path) -> None:
        self.guard_says = ""
        self._threads = directory / "nfsd/threads"
        self._table = directory / "etab"
        scripts = {
            "exportfs": f"cat {directory}/exports.d/*.exports > {self._table} 2>/dev/null; exit 0",
            "rpc.nfsd": f"echo $1 > {self._threads}",
            "ss": "",
        }
        for name, script in scripts.items():
            write_script(directory / "bin" / name, script)
        self._threads.parent.mkdir()
        self._threads.write_text("0\n")

    def reset_failed(self, unit: str, deadline: Deadline) -> None:
        """Nothing is remembered here."""

    def start(self, unit: str, deadline: Deadline) -> None:
        if self._threads.read_text() != "0\n":
            return  # the unit is active
        if self.guard_says:
            raise CommandFailed(f"Job for {unit} failed", returncode=1)
        command("exportfs", "-r")
        command("rpc.nfsd", "8")

    def stop(self, unit: str, deadline: Deadline) -> None:
        command("rpc.nfsd", "0")
        self._table.write_text("")

    def obstacle(self, unit: str) -> str | None:
        return None

    def has_ended(self, unit: str) -> bool:
        return False

    def kill(self, unit: str, deadline: Deadline) -> None:
        raise AssertionError(unit)

    def journal(self, unit: str, since_utc: float, deadline: Deadline) -> list[JournalLine]:
        return [JournalLine("nfs-server-guard", self.guard_says)] if self.guard_says else []


@contextlib.contextmanager
def kernel_of_files(directory: Path) -> Iterator[Scene]:
    unit = NfsdUnit(directory)

    def server() -> KernelNfs:
        return KernelNfs(
            config_in(directory),
            unit,
            etc=directory,
            exported=directory / "etab",
            nfsd=directory / "nfsd",
            settings=directory / "nfs.conf.d/standfast.conf",
            clients=directory / "main.sqlite",
        )

    def forbid() -> None:
        unit.guard_says = GUARD_S_NO

    path = {"PATH": f"{directory}/bin:{os.environ['PATH']}"}
    mountd = patch.object(nfs_module, "ask_mountd", lambda *_, **__: None)
    client = patch.object(LooksUp, "problem", lambda *_: None)
    with patch.dict(os.environ, path), mountd, client:
        yield Scene(server(), server(), forbid)


@contextlib.contextmanager
def demo(directory: Path) -> Iterator[Scene]:
    with embedded_primary(directory) as (node, _consul):
        now = monotonic()
        node.fence().arm(now + 600, now + 60)
        nfs = EmbeddedNfs(node.config, env=node.environment())
        leader = Leader(EPOCH, Holder("n2", "boot-2"), 3, LeaderState.SERVING, ())
        try:
            yield Scene(nfs, EmbeddedNfs(node.config), lambda: node.publish(leader=leader))
        finally:
            nfs.stop(soon(START_S))


@contextlib.contextmanager
def fake(_directory: Path) -> Iterator[Scene]:
    nfs = FakeNfs(World())

    def refuse() -> None:
        raise Refused(Reason.LEASE_NOT_HELD, "a test says so")

    def forbid() -> None:
        nfs.guard = refuse

    yield Scene(nfs, nfs, forbid)


@contextlib.contextmanager
def simulated(directory: Path) -> Iterator[Scene]:
    with on_a_node(directory) as node:
        seat = node.seat
        let_serve(seat)
        yield Scene(seat.nfs(), seat.nfs(), lambda: give_the_lease(seat, Holder("b", "boot-2")))


IMPLEMENTATIONS = (
    Implementation((GaneshaNfs,), real_ganesha, ganesha.NEEDS),
    Implementation((KernelNfs,), kernel_of_files),
    Implementation((EmbeddedNfs,), demo),
    Implementation((FakeNfs,), fake),
    Implementation((SimNfs,), simulated),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        yield made


def serves(scene: Scene, fsid: str) -> bool:
    """By every word that there is, and the same for whoever asks."""
    nfs, again = scene.nfs, scene.again
    sick = nfs.check(soon(START_S))
    said = {sick is None, nfs.is_running() and nfs.is_exported(fsid)}
    said |= {again.check(soon(START_S)) is None, again.is_running() and again.is_exported(fsid)}
    assert len(said) == 1, (said, sick)
    return said == {True}


def test_nothing_runs_and_nothing_is_exported_at_first(scene: Scene) -> None:
    assert not scene.nfs.is_running()
    assert not scene.nfs.is_exported(FSID)
    assert scene.nfs.check(soon(START_S)), "it says why it doesn't serve"
    scene.nfs.unexport()
    scene.nfs.stop(soon(START_S))
    assert not scene.nfs.is_running()


def test_an_export_is_one_of_a_running_server(scene: Scene) -> None:
    nfs = scene.nfs
    nfs.export(FSID)
    assert not nfs.is_running() and not nfs.is_exported(FSID), "nobody serves it yet"
    for _ in range(2):
        nfs.start(soon(START_S))
        assert serves(scene, FSID)
    assert nfs.mend(soon(START_S)) is None, "nothing is missing"
    assert not nfs.is_exported(OTHER)
    nfs.stop(soon(START_S))
    assert not nfs.is_running() and not nfs.is_exported(FSID)
    assert not serves(scene, FSID)
    nfs.start(soon(START_S))
    assert serves(scene, FSID), "a restart has it, too"


def test_what_a_start_would_export_is_known_before(scene: Scene) -> None:
    nfs = scene.nfs
    assert not nfs.would_export()
    nfs.export(FSID)
    assert nfs.would_export() and scene.again.would_export()
    nfs.start(soon(START_S))
    assert nfs.would_export()
    nfs.unexport()
    assert not nfs.would_export()
    nfs.stop(soon(START_S))
    assert not scene.again.would_export()


def test_a_running_server_is_told_of_an_export_and_of_its_end(scene: Scene) -> None:
    nfs = scene.nfs
    nfs.start(soon(START_S))
    assert nfs.is_running() and not serves(scene, FSID)
    nfs.export(FSID)
    assert serves(scene, FSID)
    nfs.export(OTHER)
    assert serves(scene, OTHER) and not nfs.is_exported(FSID)
    for _ in range(2):
        nfs.unexport()
        assert nfs.is_running() and not nfs.is_exported(OTHER)
        assert "exported" in (nfs.check(soon(START_S)) or "")


def test_without_a_yes_of_the_guard_nothing_starts(scene: Scene) -> None:
    scene.nfs.export(FSID)
    scene.forbid()
    with pytest.raises(Refused) as refused:
        scene.nfs.start(soon(START_S))
    assert refused.value.reason is Reason.LEASE_NOT_HELD
    assert not scene.nfs.is_running() and not scene.nfs.is_exported(FSID)


def test_what_runs_goes_on_when_the_guard_would_say_no(scene: Scene) -> None:
    scene.nfs.export(FSID)
    scene.nfs.start(soon(START_S))
    scene.forbid()
    with contextlib.suppress(StandfastError):
        scene.nfs.start(soon(START_S))
    assert serves(scene, FSID)
