"""What a client relies on when it asks who uses a path.

Run on this machine's /proc and on the tests' client in memory. Who uses a mount that has been let
go of is in tests/contract/test_clients.py, who hangs in one in the kernel lab.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.clients.ports import Processes, Use
from standfast.mounts.processes import ProcProcesses
from tests.contract.ports.holders import holder
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.client import FakeClient, fake_client

PORTS = (Processes,)


@dataclass
class Scene:
    """A path with a file `file`."""

    processes: Processes
    path: Path
    hold: Callable[[str], AbstractContextManager[object]]
    """Another process has the file open to `read` or to `write`."""
    enter: Callable[[], AbstractContextManager[object]]
    """Another process has its directory there."""


@contextlib.contextmanager
def proc(directory: Path) -> Iterator[Scene]:
    (directory / "file").touch()

    @contextlib.contextmanager
    def enter() -> Iterator[None]:
        argv = [sys.executable, "-c", "print('in', flush=True); input()"]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, cwd=directory) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"in\n"
            yield
            process.communicate(b"\n")

    yield Scene(ProcProcesses(), directory, lambda how: holder(directory / "file", how), enter)


@contextlib.contextmanager
def fake(directory: Path) -> Iterator[Scene]:
    client = fake_client(directory)

    @contextlib.contextmanager
    def use(target: Path, writes: bool) -> Iterator[None]:
        client.uses = (Use(42, "python3", str(target), "", writes=writes, hangs=False),)
        yield
        client.uses = ()

    yield Scene(
        client,
        client.path,
        lambda how: use(client.path / "file", how == "write"),
        lambda: use(client.path, False),
    )


IMPLEMENTATIONS = (
    Implementation((ProcProcesses,), proc),
    Implementation((FakeClient,), fake),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path) as made:
        yield made


@pytest.mark.parametrize("how", ["read", "write"])
def test_who_has_a_file_open_is_named_as_long_as_it_has(scene: Scene, how: str) -> None:
    assert list(scene.processes.users(scene.path, [])) == []
    with scene.hold(how):
        [use] = scene.processes.users(scene.path, [])
        assert use.pid > 0 and use.name.startswith("python")
        assert (use.target, use.writes, use.hangs) == (
            str(scene.path / "file"), how == "write", False
        )  # fmt: skip
    assert list(scene.processes.users(scene.path, [])) == []


def test_who_has_its_directory_there_uses_it_too(scene: Scene) -> None:
    with scene.enter():
        [use] = scene.processes.users(scene.path, [])
        assert (use.target, use.writes) == (str(scene.path), False)


def test_who_uses_another_path_is_not_named(scene: Scene) -> None:
    with scene.hold("write"):
        assert list(scene.processes.users(scene.path / "else", [])) == []
        assert list(scene.processes.users(Path(f"{scene.path}-else"), [])) == []
