"""What a client relies on in the mount table and what changes it.

Run on the kernel's mounts, on which two tmpfs stand for the exports of two NFS servers (see
tests/contract/client_scene.py), and on the tests' client in memory. An NFS mount, and a server that
is dead, need the kernel's NFS client: tests/labs/kernels/test_clients.py.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.clients.observation import Answer
from standfast.clients.ports import Mounts
from standfast.errors import StandfastError
from standfast.mounts.mounts import KernelMounts
from standfast.system.mountinfo import Mount, mounted_at, stack_at
from tests.contract.client_scene import A, B, MountsStandIn, build
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.client import FakeClient, fake_client
from tests.support.waiting import soon

PORTS = (Mounts,)
OPTIONS = "vers=4.2,hard"


@dataclass
class Scene:
    """A path with nothing mounted, and the servers A and B; each exports a directory `sub`."""

    mounts: Mounts
    path: Path
    other: Path
    """A directory beside it."""

    def mount(self, address: str) -> None:
        self.mounts.mount(f"{address}:/services", self.path, OPTIONS, soon(10))

    def top(self, path: Path | None = None) -> Mount | None:
        return mounted_at(list(self.mounts.here()), path or self.path)


@contextlib.contextmanager
def kernel(directory: Path) -> Iterator[Scene]:
    made = build(directory)
    path, other = made.config.paths.bind, directory / "other"
    path.mkdir(parents=True)
    other.mkdir()
    try:
        yield Scene(made.mounts, path, other)
    finally:
        for point in (other, path, *(directory / "servers").iterdir()):
            while subprocess.run(["umount", "-l", point], capture_output=True).returncode == 0:
                pass


@contextlib.contextmanager
def fake(directory: Path) -> Iterator[Scene]:
    client = fake_client(directory)
    client.trees = {A: 1, B: 2}
    yield Scene(client, client.path, directory / "other")


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts")
IMPLEMENTATIONS = (
    Implementation((KernelMounts, MountsStandIn), kernel, (ROOT,)),
    Implementation((FakeClient,), fake),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        yield made


def test_the_last_mount_is_what_is_seen_until_it_is_let_go_of(scene: Scene) -> None:
    assert scene.top() is None
    for address in (A, B):
        scene.mount(address)
        top = scene.top()
        assert top is not None
        assert (top.is_nfs, top.address) == (True, address)
    assert [mount.address for mount in stack_at(scene.mounts.here(), scene.path)] == [A, B]
    scene.mounts.let_go(scene.path, soon(10), wake=False)
    top = scene.top()
    assert top is not None and top.address == A
    scene.mounts.let_go(scene.path, soon(10), wake=False)
    assert scene.top() is None


def test_what_is_not_mounted_can_not_be_let_go_of(scene: Scene) -> None:
    with pytest.raises(StandfastError):
        scene.mounts.let_go(scene.path, soon(10), wake=False)


def test_a_server_that_lives_answers(scene: Scene) -> None:
    scene.mount(A)
    assert scene.mounts.probe(scene.path, soon(10)) == (Answer.ANSWERS, "")


def test_a_bind_mount_shows_a_part_of_the_same_file_system(scene: Scene) -> None:
    scene.mount(A)
    whole = scene.top()
    scene.mounts.bind(scene.path / "sub", scene.other, soon(10))
    part = scene.top(scene.other)
    assert whole is not None and part is not None
    assert (part.device, part.address, part.id == whole.id) == (whole.device, A, False)
    assert part.root.endswith("/sub")
    scene.mounts.let_go(scene.path, soon(10), wake=False)
    assert scene.top(scene.other) == part


def test_mount_tables_of_others_leave_this_one_out(scene: Scene) -> None:
    scene.mount(A)
    mine = scene.top()
    assert mine is not None
    for space in scene.mounts.namespaces():
        assert mine.id not in {mount.id for mount in space.mounts}
    assert dict(scene.mounts.wires()) == dict(scene.mounts.wires())


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("192.168.1.2", {"192.168.1.2"}),
        ("2001:0db8::1", {"2001:db8::1"}),
        ("--help", set()),
        ("nobody.invalid", set()),
    ],
)
def test_an_address_is_its_own_and_no_name_has_none(
    scene: Scene, name: str, addresses: set[str]
) -> None:
    assert scene.mounts.resolve(name, soon(10)) == addresses
