"""The volume at the path where every node sees it: a bind mount on the primary.

Invariant: nobody goes on writing into a tree that is given away in order. Unmounting is lazy only
when nobody can write through what is left: no file is open for writing, or the epoch is over and
the tree read-only already. Otherwise what can't be let go of stays, and its writers are named.
An NFS mount that is in the way, of a primary that may be dead, is let go of lazily. Where a systemd
mount unit owns the path (an NFS mount, on a node that is a client at other times), a runtime
drop-in turns it into a bind mount; the next boot starts from the unit as it was written. Stopping
that unit stops the services that require it: they are noted, and started again by whoever mounts
the volume there next.

By default a set-uid program or a device node of the volume does nothing where it is mounted: root
of a client may have put it there. A mount that is there already stays as it is.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from standfast.clients.dependants import note_stopped
from standfast.clients.ports import Use
from standfast.config.client import INERT
from standfast.config.model import Config
from standfast.errors import CommandFailed, StandfastError
from standfast.mounts.mounts import let_go
from standfast.mounts.processes import ProcProcesses, hangs, pids_in
from standfast.mounts.units import mount_units, stopped_with
from standfast.node.ports import BindMount
from standfast.system.clock import Deadline, sleep
from standfast.system.files import read_foreign_text
from standfast.system.mountinfo import Mount, around, mounted_at, parse_mountinfo, root_of, stack_at
from standfast.system.run import run
from standfast.system.systemd import SystemdUnits

log = logging.getLogger(__name__)

DROP_IN = "standfast-bind"
MAX_NAMED = 5
POLL_S = 0.05
CANCELED = "canceled"
"""What systemctl says of a job that another one took the place of."""


class LiveBind:
    """Mounts live at bind, with more options of mount(8). `proc` can be another directory for a
    test; `stopping` is called before the services that require the path are stopped with it;
    `stopped_with` tells which units stop with one."""

    def __init__(
        self,
        live: Path,
        bind: Path,
        units: SystemdUnits | None,
        *,
        options: Sequence[str] = INERT,
        proc: Path = Path("/proc"),
        stopping: Callable[[], None] = lambda: None,
        stopped_with: Callable[[str], Sequence[str]] = lambda _unit: (),
    ) -> None:
        self._live = live
        self._bind = bind
        self._units = units
        self._options = ("bind", *options)
        self._proc = proc
        self._stopping = stopping
        self._stopped_with = stopped_with

    def _mounts(self) -> list[Mount]:
        return parse_mountinfo(read_foreign_text(self._proc / "self/mountinfo"))

    def is_mounted(self) -> bool:
        """Tells whether the live subvolume, and not something else, is what is seen there."""
        mounts = self._mounts()
        seen = mounted_at(mounts, self._bind)
        return seen is not None and (seen.device, seen.root) == root_of(mounts, self._live)

    def mount(self, deadline: Deadline) -> None:
        if self.is_mounted():
            return
        self._let_go_of_dead_nfs(deadline)
        unit = self._unit(deadline)
        if (why := self._taken(unit)) is not None:
            raise StandfastError(why)
        if unit is not None and self._units is not None:
            # Before, not after: with an automount the next access mounts what the unit says then.
            self._turn_into_bind(unit, deadline)
            self._stop(unit, deadline)
            self._units.start(unit, deadline)
        else:
            self._bind.mkdir(parents=True, exist_ok=True)
            options = ",".join(self._options)
            argv = ["mount", "-o", options, "--", str(self._live), str(self._bind)]
            run(argv, deadline=deadline, op="mount:bind")
        if not self.is_mounted():
            raise StandfastError(
                f"{self._live} was mounted at {self._bind}, but isn't what is seen there"
            )

    def obstacle(self, deadline: Deadline) -> str | None:
        if self.is_mounted():
            return None
        unit = self._unit(deadline)
        masked = unit and self._units and self._units.obstacle(unit)
        return masked or self._taken(unit)

    def mounts_below(self, deadline: Deadline) -> Sequence[str]:
        if not self.is_mounted() or self._active_unit(deadline) is not None:
            return ()  # systemd unmounts what is below a unit's path with it
        points = {mount.point for mount in self._mounts()} - {str(self._bind)}
        return sorted(point for point in points if Path(point).is_relative_to(self._bind))

    def stops(self, deadline: Deadline) -> Sequence[str]:
        unit = self._active_unit(deadline) if self.is_mounted() else None
        return () if unit is None else self._stopped_with(unit)

    def _active_unit(self, deadline: Deadline) -> str | None:
        """Returns the mount unit that `unmount` stops; None: it unmounts by itself."""
        unit = self._unit(deadline)
        active = unit is not None and self._units is not None and self._units.is_active(unit)
        return unit if active else None

    def _taken(self, unit: str | None) -> str | None:
        """Says why the path can't be had, whatever NFS mount is let go of there; None: it can.

        Never touches a path that something is mounted at: who looks at a dead one hangs.
        """
        there = stack_at(self._mounts(), self._bind)
        if not there:
            return _unusable(self._bind)
        foreign = next((mount for mount in reversed(there) if not mount.is_nfs), None)
        if unit is not None or foreign is None:
            return None
        return (
            f"{self._bind} is taken: {foreign.kind} {foreign.root} is mounted there; unmount "
            f"it, or give it a systemd mount unit, which is then turned into the bind mount"
        )

    def _let_go_of_dead_nfs(self, deadline: Deadline) -> None:
        """An NFS mount of the previous primary: its users hang for ever, and so would umount."""
        mounts = self._mounts()
        while (seen := mounted_at(mounts, self._bind)) and seen.is_nfs:
            let_go(self._bind, deadline, self._proc)
            mounts = self._mounts()

    def unmount(self, deadline: Deadline) -> None:
        """Takes the bind mount away. Mounts of others at the path are left alone; a busy one names
        its writers."""
        unit = self._unit(deadline)
        # Before, not after: with an automount the next access mounts what the unit says then.
        self._turn_back(unit, deadline)
        try:
            while self._ours() is not None:
                try:
                    self._unmount_once(unit, deadline)
                except CommandFailed as error:
                    self._unmount_lazily(error, deadline)
        except BaseException:
            if self.is_mounted():
                self._turn_into_bind(unit, deadline)
            raise

    def _turn_into_bind(self, unit: str | None, deadline: Deadline) -> None:
        if unit is not None and self._units is not None:
            text = drop_in(self._live, self._options)
            self._units.write_drop_in(unit, DROP_IN, text, deadline)

    def _turn_back(self, unit: str | None, deadline: Deadline) -> None:
        if unit is not None and self._units is not None:
            self._units.remove_drop_in(unit, DROP_IN, deadline)

    def _stop(self, unit: str, deadline: Deadline) -> None:
        """Again when an access at that moment had the automount start it instead."""
        assert self._units is not None
        while True:
            try:
                self._units.stop(unit, deadline)
                return
            except CommandFailed as error:
                if CANCELED not in str(error) or deadline.expired:
                    raise
            sleep(POLL_S)

    def _unmount_once(self, unit: str | None, deadline: Deadline) -> None:
        if unit is not None and self._units is not None and self._units.is_active(unit):
            self._stopping()
            self._stop(unit, deadline)
        if self._ours() is not None:
            run(["umount", "--", str(self._bind)], deadline=deadline, op="umount:bind")

    def _unmount_lazily(self, busy: CommandFailed, deadline: Deadline) -> None:
        users = self._users()
        writers = [use for use in users if use.writes]
        # Where nobody is to be seen, somebody is where we can't look: they may be writing.
        if not self._is_frozen() and (writers or not users):
            raise CommandFailed(
                f"{self._bind} is in use by {named(writers)}: end them and try again ({busy})",
                returncode=busy.returncode,
                stderr=busy.stderr,
            ) from busy
        log.warning(
            "%s is unmounted lazily while it is in use by %s: restart them",
            self._bind,
            named(users),
        )
        run(["umount", "-l", "--", str(self._bind)], deadline=deadline, op="umount:bind-lazily")

    def _is_frozen(self) -> bool:
        """Tells whether the live tree is read-only: nothing new can be written into it."""
        # Root is refused by nothing but a read-only subvolume, or file system.
        return self._live.is_dir() and not os.access(self._live, os.W_OK)

    def _ours(self) -> Mount | None:
        """Returns the mount to take away: the live subvolume's, or what is left of a moved one."""
        mounts = self._mounts()
        seen = mounted_at(mounts, self._bind)
        live = around(mounts, self._live)
        return (
            seen if seen is not None and live is not None and seen.device == live.device else None
        )

    def _unit(self, deadline: Deadline) -> str | None:
        """Returns the mount unit that somebody wrote for the path, if there is one."""
        if self._units is None:
            return None
        argv = ["systemd-escape", "--path", "--suffix=mount", str(self._bind)]
        unit = run(argv, deadline=deadline, op="escape:bind").stdout.strip()
        # A mount made by hand has a unit too, but no file.
        fragment = run(
            ["systemctl", "show", "--property=FragmentPath", "--value", "--", unit],
            deadline=deadline,
            op="show:bind",
        ).stdout.strip()
        return unit if fragment else None

    def _users(self) -> Sequence[Use]:
        """Processes that have something open or their directory in the mount, or map it to
        write: never one of a hung mount, as this one is of a disk."""
        ids = {mount.id for mount in self._mounts() if mount.point == str(self._bind)}
        uses = {use.pid: use for use in ProcProcesses(self._proc).users(self._bind, ids)}
        for pid in pids_in(self._proc):
            if (use := self._mapping(self._proc / str(pid))) is not None:
                known = uses.get(pid)
                uses[pid] = known if known is not None and known.writes else use
        return [uses[pid] for pid in sorted(uses)]

    def _mapping(self, process: Path) -> Use | None:
        if hangs(process):  # who reads its maps may hang with it
            return None
        try:
            maps = read_foreign_text(process / "maps")
            name = read_foreign_text(process / "comm").strip()
        except OSError:
            return None  # it has ended, or is a kernel thread
        for permissions, path in re.findall(r"(?m)^\S+ (\S+) .*? (/.*)$", maps):
            if Path(path).is_relative_to(self._bind):
                writes = permissions[1] + permissions[3] == "ws"
                return Use(int(process.name), name, path, "", writes=writes, hangs=False)
        return None


def _unusable(path: Path) -> str | None:
    """Says why nothing can be mounted at a path where nothing is; None: it can."""
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not there.is_dir():
        return f"{path} is taken: {there} is no directory; move it away"
    if (real := there.resolve()) != there:  # where a mount would be listed
        return f"{path} is taken: {there} leads to {real} by a symbolic link; make it a directory"
    if there != path and not os.access(there, os.W_OK):
        return f"{path} is not there, and nothing can be made in {there}"
    return None


def named(users: Sequence[Use]) -> str:
    """Returns the users for a message."""
    text = ", ".join(f"{use.name} (pid {use.pid}: {use.target})" for use in users[:MAX_NAMED])
    if len(users) > MAX_NAMED:
        text += f" and {len(users) - MAX_NAMED} more"
    return text or "processes that can't be seen (a mount below it, or another mount namespace)"


def drop_in(live: Path, options: Sequence[str]) -> str:
    """Returns a drop-in that turns a mount unit, whatever it mounts, into a bind mount of the live
    subvolume."""
    what = str(live).replace("%", "%%")
    return f"[Mount]\nWhat={what}\nType=none\nOptions={','.join(options)}\n"


def bind_from(config: Config) -> BindMount:
    """Returns the bind mount; without systemd as the service manager, plain mounts only."""
    managed = Path("/run/systemd/system").is_dir()
    path = config.paths.bind

    def stopping() -> None:
        try:
            note_stopped(config.run_dir, mount_units().dependants(path))
        except (StandfastError, OSError) as error:  # not to be taken for a busy mount
            log.warning("services stopped with %s may not be started again: %s", path, error)

    return LiveBind(
        config.paths.live,
        path,
        SystemdUnits() if managed else None,
        options=config.client.inert,
        stopping=stopping,
        stopped_with=stopped_with,
    )
