"""A set-uid program and a device node of the volume do nothing for another user of a storage node.

Root of a client can put both into the volume. On the live tree itself they work: its mode is data,
and its mount the operator's. So what is shown there is that these are such files.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.btrfs.store import BtrfsStore
from standfast.config.model import Paths
from standfast.doctor.exposure_checks import look
from standfast.mounts.bind import LiveBind
from standfast.names import SnapshotName
from standfast.system.clock import utc_now
from tests.support import needs
from tests.support.configs import config_of
from tests.support.volumes import BTRFS, btrfs_on_file, command
from tests.support.waiting import soon

pytestmark = [BTRFS, needs.tool("setpriv", "util-linux")]
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env")
"""With `env`, as setpriv itself comes to its program with what root may."""


@pytest.fixture
def paths() -> Iterator[Paths]:
    """A disk that every user can come to, which pytest's own directories are not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        top = Path(name)
        top.chmod(0o755)
        with btrfs_on_file(top / "image", top / "persist") as persist:
            live = persist / "services"
            command("btrfs", "subvolume", "create", live)
            shutil.copy(shutil.which("id") or "/usr/bin/id", live / "id")
            (live / "id").chmod(0o4755)
            command("mknod", "-m", "0666", live / "zero", "c", "1", "5")
            for path in (persist, live):
                path.chmod(0o755)
            yield Paths(
                live=live,
                snapshots=persist / "services-own",
                standby=persist / "services-standby",
                bind=top / "data",
            )


def user_of(program: Path) -> str:
    """As whom it runs where nobody starts it; empty: nobody can't."""
    argv = [*NOBODY, str(program), "-u"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def can_read(device: Path) -> bool:
    argv = [*NOBODY, "head", "-c1", str(device)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_the_files_are_such_files(paths: Paths) -> None:
    assert user_of(paths.live / "id") == "0"
    assert can_read(paths.live / "zero")


def test_nobody_comes_to_a_snapshot_of_either_side(paths: Paths) -> None:
    store = BtrfsStore(paths)
    own = store.take_snapshot(SnapshotName.at("services", utc_now())).path
    store.open_staging()
    received = paths.standby / own.name
    command("btrfs", "subvolume", "snapshot", "-r", own, received)
    for snapshot in (own, received):
        assert (snapshot / "id").stat().st_mode & stat.S_ISUID, "what is in it stays as it was"
        assert (snapshot.stat().st_mode & 0o777) == 0o755, "and so does its root"
        assert user_of(snapshot / "id") == ""
        assert not can_read(snapshot / "zero")


def test_what_is_seen_through_the_bind_mount_has_no_power(paths: Paths) -> None:
    bind = LiveBind(paths.live, paths.bind, None)
    bind.mount(soon(10))
    try:
        assert user_of(paths.bind / "id") == "65534"
        assert not can_read(paths.bind / "zero")
    finally:
        bind.unmount(soon(10))


def test_where_jobs_need_it_it_has_its_power(paths: Paths) -> None:
    bind = LiveBind(paths.live, paths.bind, None, options=())
    bind.mount(soon(10))
    try:
        assert user_of(paths.bind / "id") == "0"
        assert can_read(paths.bind / "zero")
    finally:
        bind.unmount(soon(10))


def test_doctor_names_what_is_from_before_and_its_own_lines_mend_it(paths: Paths) -> None:
    """An installation that was upgraded: its places keep their modes, its mount its options."""
    config = config_of(paths=paths)
    for place in (paths.standby, paths.snapshots):
        place.mkdir(mode=0o755)
    bind = LiveBind(paths.live, paths.bind, None, options=())
    bind.mount(soon(10))
    try:
        BtrfsStore(paths).open_staging()
        assert paths.standby.stat().st_mode & 0o777 == 0o755, "it may be shared on purpose"
        [found, _export] = look(config)
        assert not found.ok
        for path in (paths.standby, paths.snapshots, paths.bind):
            assert str(path) in found.evidence
        subprocess.run(["sh", "-ec", found.fix], check=True)
        [found, _export] = look(config)
        assert found.ok
        assert f"unless {paths.live.parent} is mounted with nosuid,nodev" in found.evidence
        assert user_of(paths.bind / "id") == "65534" and not can_read(paths.bind / "zero")
        (paths.snapshots / "of-others").touch()
        paths.snapshots.chmod(0o755)
        [found, _export] = look(config)
        assert found.ok and f"in {paths.snapshots}, unless" in found.evidence
        command("mount", "-o", "remount,nosuid,nodev", paths.live.parent)
        [found, _export] = look(config)
        assert found.evidence == "no set-uid program of the volume works on this machine"
        assert user_of(paths.live / "id") == "65534" and not can_read(paths.live / "zero")
    finally:
        bind.unmount(soon(10))
