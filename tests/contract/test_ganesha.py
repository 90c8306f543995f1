"""Our export block on a real nfs-ganesha, in a network namespace of the test's own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.config.model import Config
from standfast.mounts.bind import LiveBind
from standfast.nfs.ganesha import GaneshaNfs
from tests.contract.ganesha import NEEDS, DirectUnits, volume
from tests.contract.own_network import own_network
from tests.support import needs
from tests.support.pace import patient
from tests.support.waiting import soon, wait_for

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
