"""The kernel's mounts: tables are read from /proc, everything else is done by child processes.

Invariant: this process touches no path that may lie on a dead mount. A child that hangs is killed
at its deadline, or left behind where the kernel doesn't let it die; only one probe of a path is
ever left behind, as the next one asks for it first.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from standfast.clients.observation import Answer
from standfast.clients.ports import Namespace
from standfast.config.parse import is_address
from standfast.errors import CommandFailed, StandfastError, TimedOut
from standfast.mounts.processes import pids_in, unit_of
from standfast.system.clock import Deadline
from standfast.system.files import read_foreign_text
from standfast.system.lines import clean, fields_of, lines_of
from standfast.system.mountinfo import Mount, canonical, mounted_at, parse_mountinfo, parse_volumes
from standfast.system.run import run

log = logging.getLogger(__name__)

MAX_NAMED = 5
# For one umount of a living server, or of a dead one with users.
PATIENCE_S = 2.0
# Its own pid first, where the next probe finds it. statvfs always asks the server; stat and a
# directory may come from the client's cache. Its status is the errno, which fits.
PROBE = """
import os, sys
path, mark = sys.argv[1:]
flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
with open(os.open(mark, flags, 0o644), "w") as file:
    file.write(str(os.getpid()))
try:
    os.statvfs(path)
    os.stat(path)
    with os.scandir(path) as entries:
        next(entries, None)
except OSError as error:
    sys.exit(error.errno)
finally:
    os.unlink(mark)
"""


class KernelMounts:
    """Looks at this machine's mounts and changes them. `run_dir` is where a probe leaves its
    mark."""

    def __init__(self, run_dir: Path, *, proc: Path = Path("/proc")) -> None:
        self._mark = run_dir / "probe.pid"
        self._proc = proc

    def here(self) -> Sequence[Mount]:
        return parse_mountinfo(read_foreign_text(self._proc / "self/mountinfo"))

    def is_private(self) -> bool:
        """Tells whether this process has a mount namespace of its own: nobody sees what it
        mounts."""
        try:
            return (self._proc / "self/ns/mnt").readlink() != (self._proc / "1/ns/mnt").readlink()
        except OSError:
            return False

    def namespaces(self) -> Sequence[Namespace]:
        mine = str((self._proc / "self/ns/mnt").readlink())
        members: dict[str, list[int]] = {}
        for pid in pids_in(self._proc):
            try:
                name = str((self._proc / str(pid) / "ns/mnt").readlink())
            except OSError:
                continue  # it has ended, or is a zombie
            if name != mine:
                members.setdefault(name, []).append(pid)
        return [space for name, pids in members.items() if (space := self._namespace(name, pids))]

    def _namespace(self, name: str, pids: list[int]) -> Namespace | None:
        for pid in pids:
            try:
                text = read_foreign_text(self._proc / str(pid) / "mountinfo")
            except OSError:
                continue
            units = {unit for member in pids if (unit := unit_of(self._proc / str(member)))}
            mounts = tuple(parse_mountinfo(text))
            return Namespace(name, tuple(pids[:MAX_NAMED]), tuple(sorted(units)), mounts)
        return None

    def wires(self) -> Mapping[str, str]:
        try:
            return parse_volumes(read_foreign_text(self._proc / "fs/nfsfs/volumes"))
        except OSError:
            return {}  # the NFS client's module isn't loaded

    def mount(self, source: str, path: Path, options: str, deadline: Deadline) -> None:
        argv = ["mount", "-t", "nfs4", "-o", options, "--", source, str(path)]
        run(argv, deadline=deadline, op="mount:nfs")

    def bind(self, source: Path, path: Path, deadline: Deadline) -> None:
        argv = ["mount", "--bind", "--", str(source), str(path)]
        run(argv, deadline=deadline, op="mount:rebind")

    def let_go(self, path: Path, deadline: Deadline, *, wake: bool = True) -> None:
        let_go(path, deadline, self._proc, wake=wake)

    def probe(self, path: Path, deadline: Deadline) -> tuple[Answer, str]:
        if self._still_hangs(path):
            return Answer.HANGS, "an earlier look at it has not come back yet"
        self._mark.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        argv = [sys.executable, "-I", "-S", "-c", PROBE, str(path), str(self._mark)]
        try:
            done = run(argv, deadline=deadline, op="probe", check=False)
        except TimedOut as error:
            return Answer.HANGS, str(error)
        if done.returncode == 0:
            return Answer.ANSWERS, ""
        if done.returncode == errno.ESTALE:
            return Answer.STALE, "stale file handle"
        if done.returncode < 0:
            return Answer.HANGS, f"the look at it was killed by signal {-done.returncode}"
        name = errno.errorcode.get(done.returncode, str(done.returncode))
        return Answer.FAILS, f"{name} {clean(done.stderr.strip()[-200:])}".strip()

    def _still_hangs(self, path: Path) -> bool:
        """Tells whether the last probe of this path is still there: another one would stay, too."""
        try:
            pid = int(self._mark.read_text())
            words = (self._proc / str(pid) / "cmdline").read_bytes().split(b"\0")
            stat = read_foreign_text(self._proc / str(pid) / "stat")
            state = fields_of(stat.rpartition(")")[2])[0]
        except (OSError, ValueError, IndexError):
            return False
        return state != "Z" and {os.fsencode(path), os.fsencode(self._mark)} <= set(words)

    def resolve(self, name: str, deadline: Deadline) -> frozenset[str]:
        if re.fullmatch(r"[0-9.]+", name) or (":" in name and re.fullmatch("[0-9A-Fa-f:.]+", name)):
            return frozenset({canonical(name)})
        if not is_address(name):
            return frozenset()
        try:
            done = run(["getent", "ahosts", "--", name], deadline=deadline, op="resolve")
        except (CommandFailed, TimedOut):
            return frozenset()
        return frozenset(
            canonical(fields[0]) for line in lines_of(done.stdout) if (fields := fields_of(line))
        )


def let_go(
    path: Path, deadline: Deadline, proc: Path = Path("/proc"), *, wake: bool = True
) -> None:
    """Takes the mount that is seen at `path` away lazily; TimedOut, CommandFailed.

    With `wake`, those who wait for its server get an error. Of a mount that nobody uses the kernel
    takes leave of the server before umount returns, which takes minutes when that one is dead; what
    counts is that the mount is gone from the table.
    """

    def seen() -> int | None:
        table = read_foreign_text(proc / "self/mountinfo")
        mount = mounted_at(parse_mountinfo(table), path)
        return None if mount is None else mount.id

    before = seen()
    if wake:
        _wake(path, deadline)
    # No helper and no look at the path: both would ask the server, too.
    argv = ["umount", "-l", "-i", "-c", "--", str(path)]
    while True:
        try:
            run(argv, deadline=deadline.within(PATIENCE_S), op="umount:lazy")
        except TimedOut:
            if seen() == before:
                if deadline.expired:
                    raise
                continue
            log.warning("%s is unmounted; umount still waits for a server, and is ended", path)
        return


# The mount lives on in a mount namespace of its own for these seconds. There it is unmounted by
# force again and again, each time in a copy: with no success needed, as that alone makes what waits
# for the server fail.
# The shell ends, and its group with it, only when the other one is in a session of its own.
WAKE = """
: "$(setsid -f sh -c 'exec >/dev/null 2>&1
for s in 0.2 0.5 1 2 4; do sleep $s; unshare -m umount -f -i -c -- "$1"; done' sh "$1" </dev/null)"
"""


def _wake(path: Path, deadline: Deadline) -> None:
    """Programs that wait for the server of a mount that is about to go get an error, rather than
    hang for ever: one that opens a path each time goes on with the new mount then. Once isn't
    enough, since closing a file asks the server, too. Best effort."""
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", WAKE, "sh", str(path)]
    try:
        run(argv, deadline=deadline.within(PATIENCE_S), op="umount:wake")
    except (CommandFailed, TimedOut) as error:
        log.warning("programs that wait for the server of %s still hang: %s", path, error)


def mounts_from(run_dir: Path) -> KernelMounts:
    """Returns this machine's mounts; StandfastError where there is no /proc."""
    if not Path("/proc/self/mountinfo").exists():
        raise StandfastError("/proc is not mounted: mounts can't be looked at")
    return KernelMounts(run_dir)
