"""Our export block on a real nfs-ganesha, in a network namespace of the test's own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.adapters.bind import LiveBind
from standfast.adapters.nfs_ganesha import GaneshaNfs
from standfast.adapters.systemd import JournalLine
from standfast.clock import Deadline, sleep
from standfast.config.model import Config, Nfs, Node, Paths
from standfast.errors import CommandFailed
from tests.support import needs
from tests.support.pace import patient
from tests.support.waiting import soon, wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts and serves a file system"),
    needs.tool("ganesha.nfsd", "nfs-ganesha nfs-ganesha-vfs"),
    needs.tool("nfs-cat", "libnfs-utils"),
    needs.tool("mkfs.btrfs", "btrfs-progs"),
    needs.tool("ip", "iproute2"),
    needs.tool("ss", "iproute2"),
]
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
SITE_CONFIG = """\
NFS_CORE_PARAM {{
  Protocols = 4;
  Enable_NLM = false;
  Enable_RQUOTA = false;
  Enable_UDP = false;
}}
NFSV4 {{
  Graceless = true;
  Minor_Versions = 0,1,2;
  RecoveryRoot = {run};
}}
%dir {exports}
"""


def command(*argv: str | Path) -> str:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=patient(30.0), check=True
    ).stdout


@pytest.fixture
def network() -> Iterator[None]:
    """A loopback of our own: the port is free, and no other server is in sight."""
    with Path("/proc/self/ns/net").open() as home:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            command("ip", "link", "set", "lo", "up")
            yield
        finally:
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    """A volume on btrfs."""
    image, persist = tmp_path / "image", tmp_path / "persist"
    with image.open("wb") as file:
        file.truncate(300 * 1024 * 1024)
    persist.mkdir()
    command("mkfs.btrfs", "-q", image)
    command("mount", "-o", "loop", image, persist)
    command("btrfs", "-q", "subvolume", "create", persist / "services")
    (persist / "services/file").write_text("hello")
    (tmp_path / "exports").mkdir()
    try:
        yield Config(
            volume="data",
            source=tmp_path / "data.toml",
            cluster="alo",
            node="n1",
            nodes={"n1": Node(address="127.0.0.1")},
            paths=Paths(live=persist / "services", bind=tmp_path / "data/services"),
            nfs=Nfs(
                server="ganesha", clients=("127.0.0.0/8",), ganesha_exports=tmp_path / "exports"
            ),
        )
    finally:
        command("umount", persist)


class DirectUnits:
    """Starts and stops ganesha itself, as a unit of systemd would."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        run = directory / "run"
        run.mkdir()
        text = SITE_CONFIG.format(run=run, exports=directory / "exports")
        (directory / "ganesha.conf").write_text(text)

    def reset_failed(self, unit: str, deadline: Deadline) -> None:
        """Nothing is remembered here."""

    def start(self, unit: str, deadline: Deadline) -> None:
        names = {"-f": "ganesha.conf", "-L": "ganesha.log", "-p": "run/pid"}
        files = [word for option in names for word in (option, self._directory / names[option])]
        self._process = subprocess.Popen(["ganesha.nfsd", "-F", *files])
        while not command("ss", "-Hltn", "sport = :2049"):
            deadline.check(f"start of ganesha, see {self._directory}/ganesha.log")
            if self._process.poll() is not None:
                raise CommandFailed("ganesha ended", returncode=self._process.returncode)
            sleep(0.05)

    def stop(self, unit: str, deadline: Deadline) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=deadline.remaining_s())

    def journal(self, unit: str, since_utc: float, deadline: Deadline) -> list[JournalLine]:
        return []


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
