"""What callers rely on in the bind mount of the volume.

Run on the kernel's mounts (on a tmpfs) without systemd, and with a mount unit that owns the path,
for which a script stands that mounts as systemd would; on the demo's symbolic link, on the tests'
fake and on the simulation's mounts. Systemd itself and its automounts are in the kernel lab, whose
storage nodes are clients, too (tests/labs/kernels/test_clients.py: a switchover). A link holds
nobody: who has a file open keeps it, and the tree is read-only by then.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pytest

from standfast.config.model import Config
from standfast.demo.stand_ins.embedded import EmbeddedBind
from standfast.errors import StandfastError
from standfast.mounts.bind import LiveBind
from standfast.node.ports import BindMount, LiveTree
from standfast.system.systemd import SystemdUnits
from tests.contract.ports.holders import holder
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.machine import FakeBind, fake_node
from tests.sim.machine import SimBind
from tests.sim.one_node import make_live, on_a_node
from tests.support.configs import config_in
from tests.support.scripts import script
from tests.support.volumes import command
from tests.support.waiting import soon, wait_for

PORTS = (BindMount,)
SYSTEMCTL = """\
# One mount unit: it mounts a tmpfs of its own, or what the drop-in says.
what=$(sed -n 's/^What=//p' {drop_in} 2>/dev/null)
case "$*" in
  *FragmentPath*) echo /etc/systemd/system/{unit} ;;
  *LoadState*) echo LoadState=loaded ;;
  *ActiveState*) mountpoint -q {bind} && echo active || echo inactive ;;
  start*)
    mkdir -p {bind}
    mountpoint -q {bind} || mount ${{what:+--bind}} ${{what:--t tmpfs unit}} {bind} ;;
  stop*) ! mountpoint -q {bind} || umount {bind} ;;
esac
"""


@dataclass
class Scene:
    """A live tree with the file `file`, and the path where every node sees it."""

    bind: BindMount
    again: BindMount
    """The same, as another process has it."""
    shows: Callable[[], bool]
    """Whether the live tree is what is seen there."""
    take_the_path: Callable[[], object] | None
    """Somebody else puts something there; None: what is there is the volume's to replace."""
    is_theirs: Callable[[], bool]
    """It is still there."""
    freeze: Callable[[], object]
    """The live tree is read-only from now on."""
    hold: Callable[[str], AbstractContextManager[object]] | None = None
    """A process has the file open to read or to write; None: that keeps nothing there."""
    mount_below: Callable[[], AbstractContextManager[Path]] | None = None
    """Somebody mounts something below the path; None: that keeps nothing there."""
    require: Callable[[str], object] | None = None
    """A service requires the path from now on; None: none that would be stopped with it can."""


def at(config: Config) -> tuple[Path, Path]:
    live, bind = config.paths.live, config.paths.bind
    live.mkdir(parents=True)
    (live / "file").write_text("x")
    return live, bind


@contextlib.contextmanager
def of_a_unit(directory: Path) -> Iterator[Scene]:
    tools = directory.with_name("bin")
    runtime, unit = directory.with_name("units"), "the.mount"
    systemctl = SYSTEMCTL.format(
        drop_in=runtime / f"{unit}.d/standfast-bind.conf",
        unit=unit,
        bind=config_in(directory).paths.bind,
    )
    script(tools / "systemd-escape", f"echo {unit}")
    script(tools / "systemctl", systemctl)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    with patch.dict(os.environ, path), kernel(directory, SystemdUnits(runtime)) as scene:
        # What is mounted below a unit's path is unmounted by systemd with it.
        yield replace(scene, take_the_path=None, mount_below=None)


@contextlib.contextmanager
def kernel(directory: Path, units: SystemdUnits | None = None) -> Iterator[Scene]:
    directory.mkdir()
    command("mount", "-t", "tmpfs", "standfast-test", directory)
    live, bind = at(config_in(directory))

    def take() -> None:
        bind.mkdir()
        command("mount", "-t", "tmpfs", "somebody", bind)

    @contextlib.contextmanager
    def mount_below() -> Iterator[Path]:
        (bind / "cache").mkdir()
        command("mount", "-t", "tmpfs", "somebody", bind / "cache")
        yield bind / "cache"
        command("umount", bind / "cache")

    services: list[str] = []

    def stopped_with(_unit: str) -> list[str]:
        return services

    try:
        yield Scene(
            LiveBind(live, bind, units, stopped_with=stopped_with),
            LiveBind(live, bind, units, stopped_with=stopped_with),
            (bind / "file").exists,
            take,
            lambda: "somebody" in command("findmnt", "-n", "-o", "SOURCE", bind),
            lambda: command("mount", "-o", "remount,bind,ro", directory),
            lambda how: holder(bind / "file", how),
            mount_below,
            None if units is None else services.append,
        )
    finally:
        while subprocess.run(["umount", bind], capture_output=True).returncode == 0:
            pass
        wait_for(
            lambda: subprocess.run(["umount", directory], capture_output=True).returncode == 0,
            20.0,
            f"{directory} can be unmounted",
        )


@contextlib.contextmanager
def demo(directory: Path) -> Iterator[Scene]:
    config = config_in(directory)
    _live, bind = at(config)
    theirs = bind / "theirs"

    def take() -> None:
        bind.mkdir()
        theirs.touch()

    yield Scene(
        EmbeddedBind(config),
        EmbeddedBind(config),
        (bind / "file").exists,
        take,
        theirs.exists,
        lambda: None,
    )


@contextlib.contextmanager
def fake(directory: Path) -> Iterator[Scene]:
    node = fake_node(directory)
    node.store.tree = LiveTree(node.config.paths.live, "uuid", writable=True)
    bind = node.bind

    def freeze() -> None:
        assert node.store.tree is not None
        node.store.tree = replace(node.store.tree, writable=False)

    def take() -> None:
        bind.foreign = "tmpfs"

    @contextlib.contextmanager
    def hold(how: str) -> Iterator[None]:
        bind.writer = "python3 (pid 42)" if how == "write" else ""
        yield
        bind.writer = ""

    @contextlib.contextmanager
    def mount_below() -> Iterator[Path]:
        below = node.config.paths.bind / "cache"
        bind.below = [str(below)]
        yield below
        bind.below = []

    def require(service: str) -> None:
        bind.services = [service]

    yield Scene(
        bind,
        bind,
        lambda: bind.mounted,
        take,
        lambda: bool(bind.foreign),
        freeze,
        hold,
        mount_below,
        require,
    )


@contextlib.contextmanager
def simulated(directory: Path) -> Iterator[Scene]:
    with on_a_node(directory) as node:
        volume, live = node.seat.volume, make_live(node.seat)

        def freeze() -> None:
            live.read_only = True

        @contextlib.contextmanager
        def hold(how: str) -> Iterator[None]:
            node.busy = how == "write"
            yield
            node.busy = False

        yield Scene(
            SimBind(node, volume),
            SimBind(node, volume),
            lambda: volume in node.binds,
            lambda: node.taken.add(volume),
            lambda: volume in node.taken,
            freeze,
            hold,
        )


LINK = "a link holds nobody: who has a file open keeps the file"
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts")
IMPLEMENTATIONS = (
    Implementation((LiveBind,), kernel, (ROOT,)),
    Implementation((LiveBind,), of_a_unit, (ROOT,), name="LiveBind-of-a-unit"),
    Implementation((EmbeddedBind,), demo),
    Implementation((FakeBind,), fake),
    Implementation((SimBind,), simulated),
)


@pytest.fixture(params=each(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with request.param.make(tmp_path / "disk") as made:
        yield made


def test_the_volume_is_seen_at_its_path_until_it_is_unmounted(scene: Scene) -> None:
    assert not scene.bind.is_mounted()
    for _ in range(2):
        assert scene.bind.obstacle(soon(10)) is None
        scene.bind.mount(soon(10))
        assert scene.bind.is_mounted() and scene.again.is_mounted()
        assert scene.shows()
    for _ in range(2):
        scene.bind.unmount(soon(10))
        assert not scene.bind.is_mounted() and not scene.again.is_mounted()
        assert not scene.shows()


def test_what_somebody_else_put_there_is_not_taken_for_the_volume_and_stays(scene: Scene) -> None:
    if scene.take_the_path is None:
        pytest.skip("a mount unit's path is given to the volume, whatever the unit mounted there")
    scene.take_the_path()
    assert not scene.bind.is_mounted()
    foreseen = scene.bind.obstacle(soon(10))
    with pytest.raises(StandfastError, match="is taken") as refused:
        scene.bind.mount(soon(10))
    assert foreseen == str(refused.value)
    assert not scene.bind.is_mounted()
    scene.bind.unmount(soon(10))
    assert scene.is_theirs()


def test_who_can_still_write_keeps_it_mounted_and_is_named(scene: Scene) -> None:
    if scene.hold is None:
        pytest.skip(LINK)
    scene.bind.mount(soon(10))
    with scene.hold("write"):
        with pytest.raises(StandfastError, match=r"is in use by \S*python\S* \(pid \d+"):
            scene.bind.unmount(soon(10))
        assert scene.bind.is_mounted() and scene.shows()
    scene.bind.unmount(soon(10))
    assert not scene.bind.is_mounted()


def test_who_only_reads_does_not_keep_it(scene: Scene) -> None:
    if scene.hold is None:
        pytest.skip(LINK)
    scene.bind.mount(soon(10))
    with scene.hold("read"):
        scene.bind.unmount(soon(10))
        assert not scene.bind.is_mounted() and not scene.shows()


def test_nobody_keeps_what_can_not_be_written_any_more(scene: Scene) -> None:
    scene.bind.mount(soon(10))
    with scene.hold("write") if scene.hold is not None else contextlib.nullcontext():
        scene.freeze()
        scene.bind.unmount(soon(10))
        assert not scene.bind.is_mounted() and not scene.shows()


def test_what_is_mounted_below_it_keeps_it_and_is_told_ahead(scene: Scene) -> None:
    assert list(scene.bind.mounts_below(soon(10))) == []
    scene.bind.mount(soon(10))
    assert list(scene.bind.mounts_below(soon(10))) == []
    if scene.mount_below is None:
        pytest.skip("nothing there keeps it, or systemd unmounts it with the unit")
    with scene.mount_below() as below:
        assert list(scene.bind.mounts_below(soon(10))) == [str(below)]
        with pytest.raises(StandfastError, match="in use by"):
            scene.bind.unmount(soon(10))
        assert scene.bind.is_mounted()
    assert list(scene.bind.mounts_below(soon(10))) == []
    scene.bind.unmount(soon(10))


def test_who_is_stopped_with_it_is_told_ahead(scene: Scene) -> None:
    if scene.require is not None:
        scene.require("db.service")
    assert list(scene.bind.stops(soon(10))) == []
    scene.bind.mount(soon(10))
    assert list(scene.bind.stops(soon(10))) == ([] if scene.require is None else ["db.service"])
    scene.bind.unmount(soon(10))
    assert list(scene.bind.stops(soon(10))) == []
