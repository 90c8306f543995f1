"""The demo's stand-ins for systemd, the NFS server and the bind mount, for one node without root.

Invariant: they meet the protocols of `node.ports` as the real adapters do: a server is started only
after the guard said yes, in a process of its own; a process runs as long as it holds its lock, so a
dead one is never taken for a living one, nor its pid for another's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from standfast.config.model import Config
from standfast.demo.commands import STANDFAST, command, handler, run_module
from standfast.demo.stand_ins.file_calls import Session
from standfast.demo.stand_ins.file_server import export_file, lock_file, pid_file
from standfast.errors import CommandFailed, Refused, StandfastError, TimedOut
from standfast.nfs.unit import reason_in
from standfast.node.obstacle import Obstacle
from standfast.system.clock import Deadline, sleep
from standfast.system.files import write_atomically
from standfast.system.lines import lines_of
from standfast.system.locks import is_locked
from standfast.system.run import Child, run, start_detached

POLL_S = 0.02
# After SIGTERM, before SIGKILL.
PATIENCE_S = 3.0


def log_dir(config: Config) -> Path:
    """Where the stand-ins' processes write what would go to the journal; survives a power cut."""
    path = config.paths.state / "log"
    path.mkdir(parents=True, exist_ok=True)
    return path


def lease_pid_file(config: Config) -> Path:
    return config.run_dir / "lease.pid"


def read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def end(pid_path: Path, lock: Path, deadline: Deadline) -> None:
    """Ends the process that holds `lock`; TimedOut when it is still there at the deadline."""
    for signum, patience in (
        (signal.SIGTERM, deadline.within(PATIENCE_S)),
        (signal.SIGKILL, deadline),
    ):
        pid = read_pid(pid_path)
        if pid is not None and is_locked(lock):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        while is_locked(lock):
            if patience.expired:
                break
            sleep(POLL_S)
        else:
            return
    raise TimedOut(f"the process {read_pid(pid_path)} (lock {lock}) does not end")


def last_words(log: Path) -> str:
    """The last line that a process wrote."""
    try:
        lines = [line.strip() for line in lines_of(log.read_text(errors="replace"))]
    except OSError:
        lines = []
    return next((line for line in reversed(lines) if line), "it said nothing")


class EmbeddedNfs:
    """Starts, stops and asks the stand-in server (`demo.file_server`)."""

    def __init__(self, config: Config, *, env: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._env = env
        """For the processes started here, when it isn't this process's own."""

    def export(self, fsid: str) -> None:
        write_atomically(export_file(self._config), f'{{"v": 1, "fsid": "{fsid}"}}\n')

    def is_exported(self, fsid: str) -> bool:
        path = export_file(self._config)
        return self.is_running() and path.exists() and fsid in path.read_text()

    def would_export(self) -> bool:
        return export_file(self._config).exists()

    def obstacles(self) -> Sequence[Obstacle]:
        return ()  # it starts wherever the demo runs

    def unexport(self) -> None:
        export_file(self._config).unlink(missing_ok=True)

    def start(self, deadline: Deadline) -> None:
        """Refused with the guard's words when it refused."""
        if self.is_running():
            return
        config = self._config
        guard = run(
            command(handler("nfs-server-guard"), "--volume", config.volume),
            deadline=deadline,
            op="nfs:guard",
            check=False,
            env=self._env,
        )
        if guard.returncode != 0:
            said = guard.stderr.strip() or f"the guard ended with status {guard.returncode}"
            raise Refused(reason_in(said), said)
        pid_file(config).unlink(missing_ok=True)
        log = log_dir(config) / "nfs.log"
        argv = run_module("standfast.demo.stand_ins.file_server", config.volume)
        server = start_detached(argv, op="nfs:start", log_file=log, env=self._env)
        while not (pid_file(config).exists() and self.is_running()):
            _still_coming(server, "the stand-in server", log, deadline)

    def stop(self, deadline: Deadline) -> None:
        end(pid_file(self._config), lock_file(self._config), deadline)

    def is_running(self) -> bool:
        return is_locked(lock_file(self._config))

    def unfenced(self) -> str | None:
        return None  # it looks at the fence itself, before each answer

    def check(self, deadline: Deadline) -> str | None:
        """A real call over the network, as a client would make it."""
        if not self.is_running():
            return "the stand-in server does not run"
        try:
            with Session(self._config.me.address, self._config.nfs.port, deadline) as session:
                session.null(deadline)
        except StandfastError as error:
            return str(error)
        return None

    def mend(self, deadline: Deadline) -> str | None:  # noqa: ARG002
        return None  # it needs nobody


class EmbeddedUnits:
    """Runs `standfast lease V` where systemd would: the only unit that a plan starts."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = config.run_dir / "lease.lock"
        self._pid = lease_pid_file(config)

    def reset_failed(self, unit: str, deadline: Deadline) -> None:  # noqa: ARG002
        """Nothing counts starts here."""
        self._know(unit)

    def start(self, unit: str, deadline: Deadline) -> None:
        """Returns when the process says READY=1, as for Type=notify; CommandFailed if it ended."""
        self._know(unit)
        if is_locked(self._lock):
            return
        log = log_dir(self._config) / "lease.log"
        self._config.run_dir.mkdir(parents=True, exist_ok=True)
        path = self._config.run_dir / "notify.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as messages:
            messages.bind(str(path))
            messages.settimeout(POLL_S)
            process = start_detached(
                command(STANDFAST, "lease", self._config.volume),
                op=f"start:{unit}",
                log_file=log,
                env={"NOTIFY_SOCKET": str(path)},
            )
            write_atomically(self._pid, f"{process.pid}\n")
            while not _is_ready(messages):
                _still_coming(process, unit, log, deadline)

    def stop(self, unit: str, deadline: Deadline) -> None:
        self._know(unit)
        end(self._pid, self._lock, deadline)

    def is_active(self, unit: str) -> bool:
        self._know(unit)
        return is_locked(self._lock)

    def obstacle(self, unit: str) -> str | None:
        self._know(unit)
        return None

    def _know(self, unit: str) -> None:
        known = f"standfast-lease@{self._config.volume}.service"
        if unit != known:
            raise StandfastError(f"the demo has no unit {unit}, only {known}")


def _is_ready(messages: socket.socket) -> bool:
    try:
        return b"READY=1" in messages.recv(4096).split(b"\n")
    except TimeoutError:
        return False


def _still_coming(process: Child, what: str, log: Path, deadline: Deadline) -> None:
    """Waits a little for a process that is starting; CommandFailed when it ended instead."""
    status = process.poll()
    if status is not None:
        raise CommandFailed(
            f"{what} ended with status {status} at its start: {last_words(log)}", returncode=status
        )
    if deadline.expired:
        raise TimedOut(f"{what} (process {process.pid}) did not start in time; see {log}")
    sleep(POLL_S)


class EmbeddedBind:
    """The volume at `paths.bind`, as a symbolic link to the live tree."""

    def __init__(self, config: Config) -> None:
        self._live = config.paths.live
        self._bind = config.paths.bind

    def mount(self, deadline: Deadline) -> None:
        if self.is_mounted():
            return
        if (why := self.obstacle(deadline)) is not None:
            raise StandfastError(why)
        self._bind.parent.mkdir(parents=True, exist_ok=True)
        self._bind.symlink_to(self._live)

    def obstacle(self, deadline: Deadline) -> str | None:  # noqa: ARG002 - a link doesn't wait
        if self.is_mounted() or not os.path.lexists(self._bind):
            return None
        return f"{self._bind} is taken: move away what is there"

    def mounts_below(self, deadline: Deadline) -> Sequence[str]:  # noqa: ARG002 - as above
        return ()

    def stops(self, deadline: Deadline) -> Sequence[str]:  # noqa: ARG002 - as above
        return ()

    def unmount(self, deadline: Deadline) -> None:  # noqa: ARG002 - a link doesn't wait
        if self.is_mounted():
            self._bind.unlink()

    def is_mounted(self) -> bool:
        return self._bind.is_symlink() and self._bind.readlink() == self._live
