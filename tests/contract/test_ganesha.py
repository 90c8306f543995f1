"""Our export block on a real nfs-ganesha, in a network namespace of the test's own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.mounts.bind import LiveBind
from standfast.nfs.as_client import look_up
from standfast.nfs.ganesha import GaneshaNfs
from standfast.system.clock import Deadline
from tests.contract.ganesha import NEEDS, DirectUnits, volume
from tests.contract.own_network import own_network
from tests.support import needs
from tests.support.pace import patient
from tests.support.waiting import soon, wait_for

FSID = str(uuid.uuid4())
pytestmark = [*NEEDS, needs.tool("nfs-cat", "libnfs-utils")]


@pytest.fixture
def network() -> Iterator[None]:
    with own_network():
        yield


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    with volume(tmp_path) as config:
        yield config


def read(config: Config) -> str | None:
    """What a client gets; None when the export isn't there."""
    url = f"nfs://127.0.0.1{config.paths.live}/file?version=4"
    done = subprocess.run(["nfs-cat", url], capture_output=True, text=True, timeout=patient(30.0))
    return done.stdout if done.returncode == 0 else None


def test_the_export_serves_goes_away_and_comes_back_with_a_new_epoch(
    network: None, config: Config, tmp_path: Path
) -> None:
    bind = LiveBind(config.paths.live, config.paths.bind, None)
    nfs = GaneshaNfs(config, DirectUnits(tmp_path))
    assert not nfs.is_running()
    bind.mount(soon(30.0))
    try:
        nfs.export(str(uuid.uuid4()))
        assert nfs.check(soon(30.0)) == "there is no ganesha.nfsd"
        nfs.start(soon(30.0))
        assert nfs.check(soon(30.0)) is None
        assert read(config) == "hello"
        nfs.unexport()
        wait_for(lambda: read(config) is None, 30.0, "the export is gone", 0.1)
        assert "is not exported" in (nfs.check(soon(30.0)) or "")
        nfs.export(str(uuid.uuid4()))
        wait_for(lambda: read(config) == "hello", 30.0, "the export is back", 0.1)
        nfs.stop(soon(30.0))
        assert not nfs.is_running()
        bind.unmount(soon(30.0))
        assert not bind.is_mounted()
    finally:
        with contextlib.suppress(Exception):
            nfs.stop(soon(30.0))
        subprocess.run(["umount", "-l", config.paths.bind], capture_output=True, timeout=10)


@pytest.fixture
def exported(network: None, config: Config, tmp_path: Path) -> Iterator[GaneshaNfs]:
    """A ganesha that serves FSID."""
    bind = LiveBind(config.paths.live, config.paths.bind, None)
    nfs = GaneshaNfs(config, DirectUnits(tmp_path))
    bind.mount(soon(30.0))
    try:
        nfs.export(FSID)
        nfs.start(soon(30.0))
        yield nfs
    finally:
        with contextlib.suppress(Exception):
            nfs.stop(soon(30.0))
        subprocess.run(["umount", "-l", config.paths.bind], capture_output=True, timeout=10)


def is_stopped(pid: int) -> bool:
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def test_the_check_asks_as_a_client_does_and_leaves_nothing_behind(
    exported: GaneshaNfs, config: Config, tmp_path: Path
) -> None:
    for _ in range(3):
        assert look_up(config, FSID, soon(30.0)) is None
        assert exported.check(soon(30.0)) is None
    assert "another tree" in (look_up(config, str(uuid.uuid4()), soon(30.0)) or "")
    kept = [path for path in (tmp_path / "run").rglob("*") if "recov" in str(path)]
    assert [path.name for path in kept] == ["v4recov", "node0"], "no client's record"
    for pid in exported.pids():
        os.kill(pid, signal.SIGSTOP)
    # Its threads stop one after the other, when each comes to it.
    wait_for(lambda: all(map(is_stopped, exported.pids())), 10.0, "all its threads stand still")
    try:
        assert "in time" in (look_up(config, FSID, Deadline.after(0.5)) or "")
    finally:
        for pid in exported.pids():
            os.kill(pid, signal.SIGCONT)


def test_another_epochs_export_is_served_when_it_is_said_to_be(
    exported: GaneshaNfs, config: Config
) -> None:
    """Told once, ganesha drops the old export and doesn't take the new one in: same path."""
    for _ in range(2):
        fsid = str(uuid.uuid4())
        exported.export(fsid)
        assert look_up(config, fsid, soon(30.0)) is None
        assert read(config) == "hello"


def test_an_export_that_ganesha_does_not_read_is_not_served(
    exported: GaneshaNfs, config: Config, tmp_path: Path
) -> None:
    """Its own configuration has to include the directory."""
    site = tmp_path / "ganesha.conf"
    site.write_text(site.read_text().replace("%dir", "#"))
    with pytest.raises(StandfastError, match=r"doesn't take the export in .*NFS4ERR_NOENT"):
        exported.export(str(uuid.uuid4()))
    assert "NFS4ERR_NOENT" in (exported.check(soon(30.0)) or "")


def test_a_ganesha_started_by_hand_is_seen_and_ended(
    network: None, config: Config, tmp_path: Path
) -> None:
    by_hand = DirectUnits(tmp_path)
    (tmp_path / "other").mkdir()
    nfs = GaneshaNfs(config, DirectUnits(tmp_path / "other"))
    by_hand.start("", soon(30.0))
    try:
        assert nfs.is_running()
        nfs.stop(soon(30.0))
        assert not nfs.is_running()
    finally:
        by_hand.stop("", soon(30.0))
    assert by_hand._process is not None
    assert by_hand._process.returncode == -signal.SIGKILL
