"""Texts of the machine's: names in them may be any bytes, and break neither a look nor a line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from standfast.btrfs import place as btrfs_place
from standfast.clients.units import unit_name
from standfast.events.journal import encode
from standfast.exporter.web import plain
from standfast.mounts.bind import LiveBind
from standfast.mounts.mounts import KernelMounts
from standfast.mounts.processes import ProcProcesses, unit_of
from standfast.nfs.kernel import KernelNfs
from standfast.system.clock import Deadline
from standfast.system.mountinfo import parse_mountinfo
from standfast.system.run import run
from tests.support.configs import config_in

ODD = b"/mnt/caf\xe9"
ODD_NAME = os.fsdecode(ODD)
LIVE = Path("/persist/services")
LINES = b"\n".join(
    [
        b"24 1 0:20 / / rw - ext4 /dev/sda1 rw",
        b"25 24 0:21 / " + ODD + b" rw - btrfs /dev/caf\xe9 rw",
        # Blanks and line ends of Unicode's that are none of the kernel's.
        "26 24 0:23 / /mnt/a\u2028b\u00a0c\x85d rw - btrfs /dev/b\u3000c rw".encode(),
        b"27 24 0:22 / /persist rw - btrfs /dev/sdb rw",
        b"28 24 0:22 /services /data/services rw - btrfs /dev/sdb rw",
        b"",
    ]
)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    for name in ("self", "47"):
        (proc / name / "fdinfo").mkdir(parents=True)
        (proc / name / "fd").mkdir()
        (proc / name / "mountinfo").write_bytes(LINES)
    process = proc / "47"
    (process / "cgroup").write_bytes(b"0::/system.slice/caf\xe9/db.service\n")
    (process / "comm").write_bytes(b"caf\xe9\n")
    (process / "stat").write_bytes(b"47 (caf\xe9) S 1 1\n")
    (process / "maps").write_bytes(b"")
    (process / "fd" / "3").symlink_to(ODD_NAME + "/db")
    (process / "fdinfo" / "3").write_bytes(b"flags:\t0100002\nmnt_id:\t25\n")
    return proc


def test_a_mount_point_of_any_bytes_hides_no_other(proc: Path) -> None:
    for mounts in (
        KernelMounts(proc, proc=proc).here(),
        parse_mountinfo(os.fsdecode(LINES)),
    ):
        points = [mount.point for mount in mounts]
        assert points == ["/", ODD_NAME, "/mnt/a\u2028b\u00a0c\x85d", "/persist", "/data/services"]


def test_the_volume_is_seen_to_be_mounted_beside_it(proc: Path) -> None:
    bind = LiveBind(LIVE, Path("/data/services"), None, proc=proc)
    assert bind.is_mounted()


def test_who_uses_a_path_of_any_bytes_is_found(proc: Path) -> None:
    [use] = ProcProcesses(proc).users(Path(ODD_NAME), ())
    assert (use.pid, os.fsencode(use.name), use.unit) == (47, b"caf\xe9", "db.service")
    assert use.writes


def test_the_unit_of_a_process_in_a_group_of_any_bytes(proc: Path) -> None:
    assert unit_of(proc / "47") == "db.service"
    (proc / "47" / "cgroup").write_bytes(b"0::/system.slice/a:b.service\n")
    assert unit_of(proc / "47") == "a:b.service"


def test_the_mount_of_a_path_beside_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btrfs_place, "nearest", lambda path: path)
    assert btrfs_place.mount_point_of(LIVE, os.fsdecode(LINES)) == Path("/persist")


def served(tmp_path: Path, live: Path, table: bytes) -> KernelNfs:
    """A server that runs, whose table of exports is this one."""
    (tmp_path / "etab").write_bytes(table)
    exports, nfsd = tmp_path / "exports.d", tmp_path / "nfsd"
    for directory in (exports, nfsd):
        directory.mkdir(exist_ok=True)
    written = f"{live} *(rw,fsid=c0ffee-1)"
    (exports / "standfast-data-services.exports").write_bytes(os.fsencode(written))
    (nfsd / "threads").write_text("8\n")
    config = config_in(tmp_path)
    config = replace(config, paths=replace(config.paths, live=live))
    return KernelNfs(config, cast(Any, None), etc=tmp_path, exported=tmp_path / "etab", nfsd=nfsd)


def test_an_export_of_any_bytes_hides_no_other(tmp_path: Path) -> None:
    table = ODD + b"\t*(rw)\n/persist/services\t*(rw,fsid=c0ffee-1)\n"
    assert served(tmp_path, LIVE, table).is_exported("c0ffee-1")


# As exportfs of nfs-utils 2.6.2 wrote it: bytes that it doesn't take for blanks stand as they are.
OPTIONS = (
    b"\t192.168.1.0/24(rw,sync,wdelay,hide,nocrossmnt,secure,no_root_squash,no_all_squash,"
    b"no_subtree_check,secure_locks,acl,no_pnfs,fsid=c0ffee-1,anonuid=65534,anongid=65534,sec=sys,"
    b"rw,no_root_squash,no_all_squash)\n"
)
ETAB = {
    "/e/ord": b"/e/ord",
    "/e/r\rv\x0bf\x0c\x1c": rb"/e/r\015v\013f\014\034",
    "/e/x\x85y\u2028z\xa0": "/e/x\x85y\u2028z\xa0".encode(),
    os.fsdecode(b"/e/caf\xe9"): b"/e/caf\xe9",
    "/e/a b": rb"/e/a\040b",
}


@pytest.mark.parametrize("live", ETAB)
def test_the_volumes_own_export_is_found_whatever_its_name(tmp_path: Path, live: str) -> None:
    nfs = served(tmp_path, Path(live), b"".join(name + OPTIONS for name in ETAB.values()))
    assert nfs.is_exported("c0ffee-1")
    nfs = served(tmp_path, Path("/e/r"), b"".join(name + OPTIONS for name in ETAB.values()))
    assert not nfs.is_exported("c0ffee-1")


def test_what_a_command_prints_keeps_its_bytes() -> None:
    done = run(["printf", "%s", ODD_NAME], deadline=Deadline.after(10), op="print", input=ODD_NAME)
    assert os.fsencode(done.stdout) == ODD


@pytest.mark.parametrize(
    "show",
    [
        lambda text: encode({"MESSAGE": text}),
        plain,
        lambda text: unit_name(Path(text), "mount"),
    ],
    ids=["the journal", "a page", "a unit's name"],
)
def test_a_name_of_any_bytes_can_be_shown_in(show: Callable[[str], Any]) -> None:
    assert show(ODD_NAME)
