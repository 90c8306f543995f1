"""What the lab does to the machine it runs on, and how every trace of it is found again.

Invariant: everything a lab makes (directories, mounts, cgroups, network namespaces)
carries its tag, and a lock held by the process that made it; whatever carries a tag whose
lock nobody holds is a leftover and may be destroyed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import sh, wait_for

LABS = Path("/run/standfast-labs")
CGROUPS = Path("/sys/fs/cgroup")
MODULES = ("overlay", "loop", "btrfs", "veth", "bridge", "nf_tables", "ip_set", "x_tables")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a lab asks of the machine it runs on."""

    lab: str
    root: str
    """What it needs root for."""
    tools: Mapping[str, str]
    """Program -> Debian package."""
    device: Path
    device_for: str


def why_not(needs: Needs) -> str | None:
    """The reason why this machine can't run a lab, or None."""
    if os.geteuid() != 0:
        return f"{needs.lab} needs root: {needs.root}"
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if "/" not in (line.split()[4] for line in mounts):
        return f"{needs.lab} can't run in a directory that is no mount point (a plain chroot)"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = {pkg for tool, pkg in needs.tools.items() if not shutil.which(tool, path=path)}
    if absent:
        return f"{needs.lab} lacks {', '.join(sorted(absent))}: run tests/tools/lab-packages"
    if not needs.device.exists():
        return f"{needs.lab} needs {needs.device_for}: {needs.device} is missing"
    return None


def _hierarchies() -> list[Path]:
    """The cgroup hierarchies to which a node's processes are bound: one, or v1's several."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [h for name in ("systemd", "unified", "freezer") if (h := CGROUPS / name).is_dir()]


def cgroups(tag: str) -> list[Path]:
    """Where this lab's cgroups are, one per hierarchy; the nodes' are below."""
    return [hierarchy / f"standfast-lab-{tag}" for hierarchy in _hierarchies()]


def freezer(tag: str, node: str) -> tuple[Path, str, str]:
    """File, word to freeze and word to thaw of a node's cgroup."""
    old = CGROUPS / "freezer" / f"standfast-lab-{tag}" / node
    if old.is_dir():
        return old / "freezer.state", "FROZEN", "THAWED"
    return cgroups(tag)[0] / node / "cgroup.freeze", "1", "0"


def processes(group: Path) -> set[int]:
    """Every process below a cgroup (host ids)."""
    pids: set[int] = set()
    for procs in group.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            pids.update(int(pid) for pid in procs.read_text().split())
    return pids - {0}


def kill_group(tag: str, node: str) -> None:
    """SIGKILL to every process of a node (or of all nodes for "."), and wait until gone."""
    groups = [group / node for group in cgroups(tag)]

    def gone() -> bool:
        alive = set().union(*(processes(group) for group in groups))
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not alive

    wait_for(gone, 60.0, f"the processes of {tag}/{node} are gone", interval_s=0.01)


def mounts_below(directory: Path) -> list[str]:
    """Mount points at or below a directory, the innermost first."""
    points = [
        line.split()[4].encode().decode("unicode_escape")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    inside = [p for p in points if p == str(directory) or p.startswith(f"{directory}/")]
    return inside[::-1]


def namespace(tag: str, name: str) -> str:
    """The name of a network namespace of this lab."""
    return f"sflab-{tag}-{name}"


def destroy(tag: str) -> None:
    """Undo everything that carries the tag; each step can find nothing to do."""
    for group in cgroups(tag):
        for state in group.rglob("freezer.state"):
            with contextlib.suppress(OSError):
                state.write_text("THAWED")
        for freeze in group.glob("*/cgroup.freeze"):
            with contextlib.suppress(OSError):
                freeze.write_text("0")
    kill_group(tag, ".")
    directory = LABS / tag
    wait_for(lambda: _unmounted(directory), 60.0, f"nothing is mounted below {directory}")
    for netns in Path("/run/netns").glob(namespace(tag, "*")):
        sh("ip", "netns", "del", netns.name, check=False)
    for group in cgroups(tag):
        for path in sorted(group.rglob("*"), reverse=True):
            if path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()
        with contextlib.suppress(OSError):
            group.rmdir()
    for leftover in Path("/run/systemd/nspawn").glob(f"*/sflab-{tag}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def _unmounted(directory: Path) -> bool:
    for point in mounts_below(directory):
        sh("umount", point, check=False)
    return not mounts_below(directory)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Nobody else makes or sweeps labs meanwhile."""
    LABS.mkdir(parents=True, exist_ok=True)
    with (LABS / ".sweep").open("w") as sweep:
        fcntl.flock(sweep, fcntl.LOCK_EX)
        yield


class Claim:
    """A tag of this process, with its lock and a directory on a tmpfs of its own."""

    _made = 0

    def __init__(self) -> None:
        Claim._made += 1
        self.tag = f"{os.getpid()}x{Claim._made}"
        self.directory = LABS / self.tag
        with _alone():
            self._sweep()
            self._lock = (LABS / f"{self.tag}.lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.directory.mkdir()
            sh("mount", "-t", "tmpfs", "-o", "mode=755,size=4g", "standfast-lab", self.directory)

    @staticmethod
    def _sweep() -> None:
        for tag in {path.name.removesuffix(".lock") for path in LABS.glob("[0-9]*")}:
            path = LABS / f"{tag}.lock"
            with path.open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                destroy(tag)
                path.unlink()

    def release(self) -> None:
        """Undo everything; may be called again."""
        destroy(self.tag)
        (LABS / f"{self.tag}.lock").unlink(missing_ok=True)
        self._lock.close()


def load_modules() -> None:
    """What a container can't load itself; built-in or already there is as good."""
    if modprobe := shutil.which("modprobe", path="/usr/sbin:/sbin"):
        for module in MODULES:
            sh(modprobe, "-q", module, check=False)
