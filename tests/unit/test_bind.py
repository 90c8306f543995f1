from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from standfast.config.client import Client
from standfast.errors import CommandFailed, StandfastError
from standfast.mounts.bind import LiveBind, bind_from, drop_in
from standfast.system.clock import Deadline
from standfast.system.mountinfo import mounted_at, parse_mountinfo, root_of
from standfast.system.systemd import SystemdUnits
from tests.support.configs import config_in
from tests.support.scripts import script
from tests.support.waiting import soon

MOUNTINFO = """\
22 1 0:21 /root / rw,relatime shared:1 - btrfs /dev/vda rw,subvol=/root
40 22 0:44 /data /persist rw,noatime shared:7 master:2 - btrfs /dev/vdb rw,subvol=/data
41 22 0:50 / /data/my\\040files rw - nfs4 192.168.1.2:/persist/services rw
42 22 0:44 /data/services /data/services rw - btrfs /dev/vdb rw
43 42 0:60 / /data/services rw - tmpfs tmpfs rw
garbage
"""


def test_mountinfo_is_understood() -> None:
    mounts = parse_mountinfo(MOUNTINFO)
    assert len(mounts) == 5
    assert mounts[2].point == "/data/my files"
    assert mounts[2].kind == "nfs4"
    assert mounts[1].root == "/data"


def test_the_last_mount_hides_the_others() -> None:
    mount = mounted_at(parse_mountinfo(MOUNTINFO), Path("/data/services"))
    assert mount is not None
    assert mount.kind == "tmpfs"
    assert mounted_at(parse_mountinfo(MOUNTINFO), Path("/data")) is None


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/persist/services", ("0:44", "/data/services")),
        ("/persist", ("0:44", "/data")),
        ("/var/lib", ("0:21", "/root/var/lib")),
        ("/persistent", ("0:21", "/root/persistent")),
    ],
)
def test_the_place_of_a_directory_in_its_file_system_is_known(
    path: str, root: tuple[str, str]
) -> None:
    assert root_of(parse_mountinfo(MOUNTINFO), Path(path)) == root


def bind_with(mountinfo: str, tmp_path: Path) -> LiveBind:
    (tmp_path / "self").mkdir(exist_ok=True)
    (tmp_path / "self/mountinfo").write_text(mountinfo)
    return LiveBind(Path("/persist/services"), Path("/data/services"), None, proc=tmp_path)


def test_only_the_live_subvolume_counts_as_mounted(tmp_path: Path) -> None:
    without_tmpfs = "\n".join(MOUNTINFO.splitlines()[:-2])
    assert bind_with(without_tmpfs, tmp_path).is_mounted()
    assert not bind_with(MOUNTINFO, tmp_path).is_mounted()
    moved = without_tmpfs.replace("/data/services /data", "/data/services.diverged-3 /data")
    assert not bind_with(moved, tmp_path).is_mounted()


def test_what_somebody_else_mounted_there_is_not_touched(tmp_path: Path) -> None:
    bind = bind_with(MOUNTINFO, tmp_path)
    with pytest.raises(StandfastError, match="is taken: tmpfs / is mounted there"):
        bind.mount(soon(10))
    bind.unmount(soon(10))


def on_disk(bind: Path, tmp_path: Path) -> LiveBind:
    """Nothing is mounted there."""
    (tmp_path / "self").mkdir(exist_ok=True)
    (tmp_path / "self/mountinfo").write_text(MOUNTINFO)
    return LiveBind(Path("/persist/services"), bind, None, proc=tmp_path)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda place: place.touch(), "is no directory"),
        (lambda place: place.symlink_to(place.parent), "by a symbolic link"),
        (lambda place: place.symlink_to("/nowhere"), "is no directory"),
        (lambda place: place.mkdir(), None),
        (lambda _place: None, None),
    ],
)
@pytest.mark.parametrize("below", ["", "deeper"])
def test_what_lies_at_the_path_or_above_it_is_foreseen(
    tmp_path: Path, plant: Callable[[Path], object], words: str | None, below: str
) -> None:
    place = tmp_path / "data"
    plant(place)
    bind = on_disk(place / below, tmp_path)
    foreseen = bind.obstacle(soon(10))
    assert (foreseen is None) == (words is None), foreseen
    if words is not None:
        assert words in str(foreseen)
        with pytest.raises(StandfastError, match=words):
            bind.mount(soon(10))


NFS_THERE = "44 43 0:70 / /data/services rw - nfs4 192.168.1.2:/persist/services rw\n"


def test_an_nfs_mount_is_let_go_of_and_what_is_below_it_is_judged(tmp_path: Path) -> None:
    """That of the primary, on a standby that is a client: nobody looks into it."""
    without = MOUNTINFO.replace("43 42 0:60 / /data/services rw - tmpfs tmpfs rw\n", "")
    without = without.replace("42 22 0:44 /data/services /data/services", "42 22 0:44 /x /y")
    assert bind_with(without + NFS_THERE, tmp_path).obstacle(soon(10)) is None
    foreseen = bind_with(MOUNTINFO + NFS_THERE, tmp_path).obstacle(soon(10))
    assert "is taken: tmpfs" in str(foreseen)


def test_the_drop_in_makes_any_mount_unit_a_bind_mount() -> None:
    assert drop_in(Path("/persist/50%"), ("bind", "nosuid", "nodev")) == (
        "[Mount]\nWhat=/persist/50%%\nType=none\nOptions=bind,nosuid,nodev\n"
    )


@pytest.mark.parametrize(
    ("client", "options"), [(Client(), "bind,nosuid,nodev"), (Client(nosuid=False), "bind")]
)
def test_the_configuration_says_whether_set_uid_programs_work_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Client, options: str
) -> None:
    script(tmp_path / "bin/mount", f'echo "$*" >> {tmp_path}/calls')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr("standfast.mounts.bind.SystemdUnits", lambda: None)
    config = replace(config_in(tmp_path), client=client)
    with pytest.raises(StandfastError, match="isn't what is seen there"):
        bind_from(config).mount(soon(10))
    paths = config.paths
    assert (tmp_path / "calls").read_text() == f"-o {options} -- {paths.live} {paths.bind}\n"


FAKE_MOUNT = """\
[ "$(basename "$0")" = unshare ] && set -- "$1"
echo "$(basename "$0") $*" >> {log}
case "$(basename "$0") $1" in
"umount -l") grep -v nfs4 {info} > {info}.new; mv {info}.new {info}; {then};;
"mount -o") echo '50 22 0:44 /data/services /data/services rw - btrfs /dev/vdb rw' >> {info};;
esac
"""


# With no user left, the kernel says goodbye to the dead server for minutes, the mount gone already.
@pytest.mark.parametrize("then", ["true", "exec sleep 60"])
def test_the_nfs_mount_of_a_dead_primary_is_let_go_of_lazily(
    then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standfast.mounts.mounts.PATIENCE_S", 0.5)
    info = "\n".join(MOUNTINFO.splitlines()[:2])
    info += "\n41 22 0:50 / /data/services rw - nfs4 192.168.1.2:/persist/services rw\n"
    bind = bind_with(info, tmp_path)
    for name in ("mount", "umount", "unshare"):
        text = FAKE_MOUNT.format(
            log=tmp_path / "calls", info=tmp_path / "self/mountinfo", then=then
        )
        script(tmp_path / "bin" / name, text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: None)
    bind.mount(soon(10))
    assert (tmp_path / "calls").read_text().splitlines() == [
        "unshare -m",
        "umount -l -i -c -- /data/services",
        "mount -o bind,nosuid,nodev -- /persist/services /data/services",
    ]


class Units:
    """The service manager of a node whose path has a mount unit."""

    def __init__(self, mountinfo: Path, busy: bool, canceled: int = 0) -> None:
        """`canceled`: stops that another job takes the place of, before the mount has gone."""
        self.calls: list[str] = []
        self._mountinfo = mountinfo
        self._busy = busy
        self._canceled = canceled

    def is_active(self, unit: str) -> bool:
        return not self._busy

    def stop(self, unit: str, deadline: Deadline) -> None:
        self.calls.append("stop")
        if self._canceled:
            self._canceled -= 1
            raise CommandFailed(f"Job for {unit} canceled.", returncode=1)
        lines = self._mountinfo.read_text().splitlines()
        kept = [line for line in lines if " /data/services " not in line]
        self._mountinfo.write_text("\n".join(kept) + "\n")

    def write_drop_in(self, unit: str, name: str, text: str, deadline: Deadline) -> None:
        self.calls.append("write-drop-in")

    def remove_drop_in(self, unit: str, name: str, deadline: Deadline) -> None:
        self.calls.append("remove-drop-in")


@pytest.mark.parametrize(
    ("busy", "canceled", "calls"),
    [
        (False, 0, ["remove-drop-in", "stop"]),
        (False, 2, ["remove-drop-in", "stop", "stop", "stop"]),
        (True, 0, ["remove-drop-in", "write-drop-in"]),
    ],
    ids=["at rest", "with an access at that moment", "busy"],
)
def test_an_automount_finds_the_unit_turned_back_before_the_mount_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool, canceled: int, calls: list[str]
) -> None:
    """An access right after it would show the tree that is given away, for good."""
    bind_with("\n".join(MOUNTINFO.splitlines()[:-2]), tmp_path)
    units = Units(tmp_path / "self/mountinfo", busy, canceled)
    tools = tmp_path / "bin"
    for name, text in {
        "systemd-escape": "echo data-services.mount",
        "systemctl": "echo /etc/systemd/system/data-services.mount",
        "umount": "echo target is busy >&2; exit 32",
    }.items():
        script(tools / name, text)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    bind = LiveBind(
        Path("/persist/services"),
        Path("/data/services"),
        cast("SystemdUnits", units),
        proc=tmp_path,
    )
    if busy:
        with pytest.raises(CommandFailed, match="is in use"):
            bind.unmount(soon(10))
    else:
        bind.unmount(soon(10))
    assert units.calls == calls


def test_the_maps_of_a_process_that_hangs_are_not_waited_for(tmp_path: Path) -> None:
    """Reading these, a pipe that nobody writes to, would take for ever."""
    for pid, state in ((41, "S"), (42, "D")):
        process = tmp_path / str(pid)
        process.mkdir()
        (process / "stat").write_text(f"{pid} (mysqld) {state} 1 2\n")
        (process / "comm").write_text("mysqld\n")
    (tmp_path / "41/maps").write_text("7f00-7f01 rw-s 00000000 00:2c 257 /data/services/db\n")
    os.mkfifo(tmp_path / "42/maps")
    bind = bind_with("\n".join(MOUNTINFO.splitlines()[:-2]), tmp_path)
    assert [use.pid for use in bind._users()] == [41]


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts")


@pytest.fixture
def bind(tmp_path: Path) -> Iterator[LiveBind]:
    persist = tmp_path / "persist"
    persist.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "standfast-test", persist], check=True, timeout=10)
    (persist / "my services").mkdir()
    (persist / "my services/file").write_text("x")
    target = tmp_path / "data/services"
    try:
        yield LiveBind(persist / "my services", target, None)
    finally:
        while subprocess.run(["umount", target], capture_output=True, timeout=10).returncode == 0:
            pass
        subprocess.run(["umount", persist], check=True, timeout=10)


@root_only
def test_mounting_and_unmounting_can_be_repeated(bind: LiveBind, tmp_path: Path) -> None:
    assert not bind.is_mounted()
    for _ in range(2):
        bind.mount(soon(10))
        assert bind.is_mounted()
        assert (tmp_path / "data/services/file").read_text() == "x"
    for _ in range(2):
        bind.unmount(soon(10))
        assert not bind.is_mounted()
    assert not (tmp_path / "data/services/file").exists()


@root_only
@pytest.mark.parametrize("how", ["a file", "a mapping"])
def test_a_mount_that_is_written_to_stays_and_the_writer_is_named(
    bind: LiveBind, tmp_path: Path, how: str
) -> None:
    bind.mount(soon(10))
    program = "import sys; f = open(sys.argv[1], 'r+b')\n"
    if how == "a mapping":
        program += "import mmap; m = mmap.mmap(f.fileno(), 1); f.close()\n"
    program += "print(flush=True); input()"
    argv: list[str | Path] = [sys.executable, "-c", program, tmp_path / "data/services/file"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        try:
            assert user.stdout is not None
            user.stdout.readline()
            with pytest.raises(CommandFailed, match=rf"in use by python\S* \(pid {user.pid}: "):
                bind.unmount(soon(10))
            assert bind.is_mounted()
        finally:
            user.kill()
    bind.unmount(soon(10))
    assert not bind.is_mounted()


@root_only
def test_who_only_reads_does_not_keep_the_mount(bind: LiveBind, tmp_path: Path) -> None:
    bind.mount(soon(10))
    path = tmp_path / "data/services"
    with (path / "file").open(), subprocess.Popen(["sleep", "60"], cwd=path) as user:
        try:
            bind.unmount(soon(10))
            assert not bind.is_mounted()
            assert list(path.iterdir()) == []
        finally:
            user.kill()


@root_only
def test_a_tree_that_is_read_only_is_let_go_of_whoever_had_it_open_to_write(
    bind: LiveBind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of an epoch that another node has taken over."""
    bind.mount(soon(10))
    monkeypatch.setattr(LiveBind, "_is_frozen", lambda _: True)
    argv = [sys.executable, "-c", "f = open(__import__('sys').argv[1], 'r+b'); print(); input()"]
    with subprocess.Popen(
        [*argv, tmp_path / "data/services/file"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as user:
        try:
            assert user.stdout is not None
            user.stdout.readline()
            bind.unmount(soon(10))
            assert not bind.is_mounted()
        finally:
            user.kill()


@root_only
def test_a_mount_of_a_tree_that_was_moved_away_is_taken_away_too(
    bind: LiveBind, tmp_path: Path
) -> None:
    bind.mount(soon(10))
    live = tmp_path / "persist/my services"
    live.rename(tmp_path / "persist/aside")
    live.mkdir()
    assert not bind.is_mounted()
    bind.unmount(soon(10))
    bind.mount(soon(10))
    assert bind.is_mounted()
