"""Real mounts and mappings with a name that has every byte that a name may have."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from standfast.btrfs import writers_look
from standfast.mounts.mounts import KernelMounts
from standfast.mounts.processes import ProcProcesses
from standfast.system.clock import started_at
from standfast.system.mountinfo import parse_mountinfo
from tests.support.waiting import wait_for

NAME = bytes(byte for byte in range(1, 256) if byte != ord("/"))
"""254 of the 255 that a name may have."""
LATER = " \u2028\x85\u00a0\u3000".encode() + b"\xe9"


@pytest.fixture
def points(tmp_path: Path) -> Iterator[list[Path]]:
    """Three mounts, the last of which has an ordinary name."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts")
    points = [tmp_path / os.fsdecode(name) for name in (NAME, LATER, b"plain")]
    for point in points:
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "standfast-test", point], check=True)
    yield points
    for point in points:
        subprocess.run(["umount", point], check=True)


def test_each_mount_is_seen_and_none_is_made_up(tmp_path: Path, points: list[Path]) -> None:
    wanted = list(map(str, points))
    here = [mount.point for mount in KernelMounts(tmp_path).here() if mount.point in wanted]
    assert here == wanted
    table = Path("/proc/self/mountinfo").read_bytes()
    assert len(parse_mountinfo(os.fsdecode(table))) == table.count(b"\n")


def test_who_maps_a_file_or_has_it_open_is_seen(points: list[Path]) -> None:
    for point in points:
        path = point / os.fsdecode(NAME)
        path.write_bytes(b"x")
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 1) as area:
            assert area[:1] == b"x"
            process, device = Path("/proc/self"), path.stat().st_dev
            number = f"{os.major(device)}:{os.minor(device)}"
            told = str(path).replace("\n", "\\012")
            assert list(writers_look.mapped(process, device, number)) == [told]
            ids = {mount.id for mount in KernelMounts(point).here()}
            opened = writers_look.opened(process, device, set(map(str, ids)), set())
            assert next(opened) == str(path)


def runs_as(proc: Path, name: bytes) -> bool:
    return name.startswith((proc / "comm").read_bytes().removesuffix(b"\n"))


def test_a_process_with_such_a_name_is_seen(points: list[Path]) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    for point in points:
        program = point / os.fsdecode(LATER)
        program.symlink_to(sleep)
        with subprocess.Popen([program, "60"], cwd=point) as process:
            proc = Path(f"/proc/{process.pid}")
            try:
                wait_for(partial(runs_as, proc, LATER), 10, "it runs")
                [use] = ProcProcesses().users(point, ())
                assert (use.pid, use.target, use.hangs) == (process.pid, str(point), False)
                assert started_at(proc / "stat") > started_at(Path("/proc/self/stat"))
            finally:
                process.kill()
