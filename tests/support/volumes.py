"""Volumes for tests: on btrfs in a file (root), or in plain directories."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.config.model import Config, Node, Paths
from standfast.demo.stand_ins.directory import initialise
from tests.support import needs
from tests.support.configs import config_of
from tests.support.waiting import wait_for

SIZE = "384M"


def why_no_btrfs() -> str | None:
    """The reason for a skip, or None when btrfs can be used here."""
    if os.geteuid() != 0:
        return "needs root: mounts a btrfs file system from a file"
    if reason := needs.why_no("mkfs.btrfs", "btrfs-progs"):
        return reason
    if not Path("/dev/loop-control").exists():
        return "needs loop devices: there is no /dev/loop-control"
    return None


def require_btrfs() -> None:
    reason = why_no_btrfs()
    if reason is not None:
        pytest.skip(reason)


_REASON = why_no_btrfs()
BTRFS = pytest.mark.skipif(_REASON is not None, reason=_REASON or "")
"""Leaves a test out where btrfs can't be used."""


def command(*argv: str | Path, check: bool = True) -> str:
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{argv} ended with {done.returncode}: {done.stderr}")
    return done.stdout


@contextlib.contextmanager
def btrfs_on_file(image: Path, mount: Path, *, make: bool = True) -> Iterator[Path]:
    """A btrfs in the file `image`, mounted at `mount`; unmounted again at the end."""
    mount.mkdir(parents=True, exist_ok=True)
    if make:
        make_btrfs(image)
    mount_image(image, mount)
    try:
        yield mount
    finally:
        unmount(mount)


def make_btrfs(image: Path) -> None:
    command("truncate", "-s", SIZE, image)
    command("mkfs.btrfs", "-q", "-f", "-m", "single", image)


def mount_image(image: Path, mount: Path) -> None:
    # Without discards: they would change the file behind a copy's back.
    command("mount", "-o", "loop,nodiscard", image, mount)


def unmount(mount: Path) -> None:
    """When the last process that works on it, of a replication that was cut, has let go of it.

    The file system is gone then. A mount namespace that was made meanwhile (of a container of the
    lab beside) has a copy of this mount, and what is mounted twice under one UUID is neither: with
    the mount point the kernel removes that copy, too.
    """
    backing = Path("/sys/block") / source_of(mount).name / "loop/backing_file"
    image = backing.read_text()

    def unmounted() -> bool:
        return subprocess.run(["umount", mount], capture_output=True).returncode == 0

    def is_gone() -> bool:
        try:
            return backing.read_text() != image
        except OSError:
            return True

    wait_for(unmounted, 30, f"{mount} can be unmounted")
    mount.rmdir()
    mount.mkdir()
    wait_for(is_gone, 30, f"{image.strip()} is free", 0.005)


def source_of(mount: Path) -> Path:
    """The device that is mounted there."""
    return Path(command("findmnt", "-n", "-o", "SOURCE", "--mountpoint", mount).strip())


def make_live(live: Path, store: str) -> None:
    """An empty live tree."""
    if store == "btrfs":
        command("btrfs", "subvolume", "create", live)
    else:
        initialise(live)


def paths_below(root: Path, state: Path | None = None) -> Paths:
    """The runbook's layout below `root`; the state beside it, or where told."""
    return Paths(
        live=root / "services",
        snapshots=root,
        standby=root / "services-standby",
        bind=root / "bind",
        state=state or root / ".." / f"{root.name}-state",
        run=root / ".." / f"{root.name}-run",
    )


def config_for(
    root: Path, node: str, *, nodes: tuple[str, ...], state: Path | None = None
) -> Config:
    return config_of(
        source=root / "data-services.toml",
        node=node,
        nodes={name: Node(address="127.0.0.1") for name in nodes},
        paths=paths_below(root, state),
    )


def files(root: Path) -> dict[str, bytes]:
    """Every file below `root` with its content."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
