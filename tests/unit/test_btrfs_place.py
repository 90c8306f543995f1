"""Which mount shows a path, and which devices are copies, from texts as the system prints them."""

from __future__ import annotations

from pathlib import Path

import pytest

from standfast.btrfs import versions as btrfs_versions
from standfast.btrfs.place import copies_of, file_system, mount_point_of, parse_copies
from standfast.system.mountinfo import mounted_at, parse_mountinfo

MOUNTINFO = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 22 0:33 / {root}/persist rw - btrfs /dev/sdb rw,subvol=/
41 40 0:33 /services {root}/data\040dir rw - btrfs /dev/sdb rw,subvol=/
42 22 0:40 /old {root}/twice rw - btrfs /dev/sdb rw
43 22 0:41 /new {root}/twice rw - btrfs /dev/sdb rw
"""
BLKID = """DEVNAME=/dev/none1
UUID=aa
UUID_SUB=1
TYPE=btrfs

DEVNAME=/dev/none2
LABEL=two=words
UUID=aa
UUID_SUB=2
TYPE=btrfs

DEVNAME=/dev/none3
UUID=bb
UUID_SUB=3
TYPE=btrfs

DEVNAME=/dev/none5
UUID=bb
UUID_SUB=3
TYPE=btrfs
"""


def test_the_longest_mount_point_above_a_path_shows_it(tmp_path: Path) -> None:
    for name in ("persist/services", "persist2", "data dir/x", "twice"):
        (tmp_path / name).mkdir(parents=True)
    text = MOUNTINFO.format(root=tmp_path)

    def shown(path: str) -> tuple[str, str]:
        point = mount_point_of(tmp_path / path, text)
        seen = mounted_at(parse_mountinfo(text), point)
        assert seen is not None
        return str(point).removeprefix(str(tmp_path)), seen.root

    assert shown("persist/services") == ("/persist", "/")
    assert shown("persist/not/there/yet") == ("/persist", "/")
    assert shown("persist2") == ("/", "/")
    assert shown("data dir/x") == ("/data dir", "/services")
    assert shown("twice") == ("/twice", "/new")


def test_devices_of_one_file_system_are_no_copies_of_each_other() -> None:
    assert parse_copies(BLKID, "aa") == ()
    assert parse_copies(BLKID, "bb") == ("/dev/none3", "/dev/none5")
    assert parse_copies("", "aa") == ()


def test_without_blkid_no_copy_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert copies_of("aa") == ()


def test_what_is_no_btrfs_has_no_such_uuid() -> None:
    assert file_system(Path("/proc")) is None
    assert file_system(Path("/proc/not/there")) is None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("6.1.0-37-amd64", (6, 1, 0)),
        ("btrfs-progs v6.2\n", (6, 2)),
        ("btrfs-progs v6.10.1 \n+EXPERIMENTAL", (6, 10, 1)),
        ("", ()),
    ],
)
def test_versions_are_read_from_what_programs_print(text: str, version: tuple[int, ...]) -> None:
    assert btrfs_versions.parse(text) == version


@pytest.mark.parametrize(
    ("kernel", "progs", "trusted"),
    [
        ("6.14.0", "6.2", True),
        ("6.18.44-x", "6.14.1", True),
        ("6.13.12", "6.14", False),
        ("6.1.0-37-amd64", "6.2", False),
        ("6.18", "6.1.3", False),
        ("6.18", None, False),
        ("", "6.2", False),
    ],
)
def test_compressed_data_only_where_both_versions_are_known_good(
    kernel: str, progs: str | None, trusted: bool
) -> None:
    assert btrfs_versions.moves_compressed_data(kernel, progs) is trusted
