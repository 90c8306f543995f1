"""nfs-ganesha as the NFS server: one export block per volume, in a directory its config includes.

Exported is the bind mount (ganesha wants a mount point for each file system), under the name of the
live path. What is global (protocols, grace, minor versions) belongs in the site's ganesha.conf.

So does its port (NFS_Port), of which it tells nobody: that it is `nfs.port` shows in the call which
has to be answered there, and that it listens nowhere else (NFS_RDMA_Port) is not checked.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.nfs.ahead import taken_port, unresolved
from standfast.nfs.as_client import LooksUp, look_up
from standfast.nfs.rpc_null import null_call
from standfast.nfs.unit import ServerUnits, start_server, unit_obstacle
from standfast.node.obstacle import Obstacle
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.files import read_foreign_text, write_atomically

PROGRAM = "ganesha.nfsd"
POLL_S = 0.05
EXPORT_S = 5.0
"""For a running server to take an export in."""
ASK_S = 2.0
AGAIN_S = 0.5
"""Between two words to it: it drops an export with the path of one that it still has."""
FILE_SYSTEM = re.compile(r"Filesystem_Id = ([0-9]+)\.([0-9]+);")


class GaneshaNfs:
    """ganesha.nfsd, whoever started it. `proc` can be another directory for a test."""

    def __init__(self, config: Config, units: ServerUnits, *, proc: Path = Path("/proc")) -> None:
        self._config = config
        self._units = units
        self._proc = proc
        self._known: int | None = None
        self._looks_up = LooksUp(config)
        self._file = config.nfs.ganesha_exports / f"{config.volume}.conf"

    def export(self, fsid: str) -> None:
        """Writes the export; a server that runs has taken it in when this returns, as far as this
        node may mount it. StandfastError: it has not."""
        write_atomically(self._file, export_block(self._config, UUID(fsid)), durable=True)
        limit, told_at = Deadline.after(EXPORT_S), -AGAIN_S
        while self.is_running():
            if monotonic() - told_at >= AGAIN_S:
                self._reload()
                told_at = monotonic()
            problem = look_up(self._config, fsid, Deadline.after(ASK_S))
            if problem is None:
                return
            if limit.expired:
                raise StandfastError(
                    f"{PROGRAM} doesn't take the export in {self._file}: {problem}"
                )
            sleep(POLL_S)

    def is_exported(self, fsid: str) -> bool:
        try:
            written = read_foreign_text(self._file) == export_block(self._config, UUID(fsid))
        except FileNotFoundError:
            return False
        return written and self.is_running()

    def obstacles(self) -> Iterator[Obstacle]:
        """Where it would listen is told by its own configuration, which isn't read."""
        yield from unit_obstacle(self._units, self._config.nfs.unit)
        yield from taken_port(self._config, running=self.is_running())
        yield from unresolved(self._config.nfs.clients)

    def would_export(self) -> bool:
        return self._file.exists()

    def unexport(self) -> None:
        self._file.unlink(missing_ok=True)
        self._reload()

    def _reload(self) -> None:
        """Running servers read their exports again at SIGHUP."""
        for pid in self.pids():
            self._signal(pid, signal.SIGHUP)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise StandfastError(f"{PROGRAM} (pid {pid}) can't be signalled: {error}") from error

    def start(self, deadline: Deadline) -> None:
        """Starts the server; Refused with the guard's words when it refused, CommandFailed for
        other failures."""
        start_server(self._units, self._config.nfs.unit, deadline)
        if not self.is_running():
            raise StandfastError(
                f"{self._config.nfs.unit} is started, but there is no {PROGRAM}: "
                f"see `journalctl -u {self._config.nfs.unit}`"
            )

    def stop(self, deadline: Deadline) -> None:
        self._units.stop(self._config.nfs.unit, deadline)
        for pid in self.pids():  # started by hand, outside of the unit
            self._signal(pid, signal.SIGKILL)
        while pids := self.pids():
            if deadline.expired:
                raise StandfastError(
                    f"{PROGRAM} still runs (pid {pids}) though {self._config.nfs.unit} is stopped: "
                    f"the volume may still be served"
                )
            sleep(POLL_S)

    def pids(self) -> list[int]:
        """Returns the living processes of the server; one in another network (a container's) is not
        ours. StandfastError where that can't be told: it needs CAP_SYS_PTRACE."""
        entries = (entry for entry in self._proc.iterdir() if entry.name.isdigit())
        return sorted(int(entry.name) for entry in entries if self._is_server(entry))

    def _is_server(self, entry: Path) -> bool:
        try:
            name, _, rest = read_foreign_text(entry / "stat").partition("(")[2].rpartition(")")
            if name != PROGRAM or rest.startswith(" Z "):
                return False
            return (entry / "ns/net").readlink() == (self._proc / "self/ns/net").readlink()
        except PermissionError as error:  # a server that can't be told is no server that is gone
            raise StandfastError(
                f"whether {PROGRAM} (pid {entry.name}) is in this network can't be told: {error}"
            ) from error
        except OSError:
            return False

    def is_running(self) -> bool:
        # Asked every second: looking through all processes only when the known one is gone.
        if self._known is None or not self._is_server(self._proc / str(self._known)):
            self._known = next(iter(self.pids()), None)
        return self._known is not None

    def unfenced(self) -> str | None:
        return None  # it isn't known where it listens

    def check(self, deadline: Deadline) -> str | None:
        if not self.is_running():
            return f"there is no {PROGRAM}"
        if not self._file.exists():
            return f"{self._config.paths.live} is not exported ({self._file} is missing)"
        no_answer = null_call("127.0.0.1", self._config.nfs.port, deadline)
        return no_answer or self._looks_up.problem(self._own_fsid(), deadline)

    def mend(self, deadline: Deadline) -> str | None:  # noqa: ARG002
        return None  # it needs nobody

    def _own_fsid(self) -> str:
        """Returns the fsid in the volume's file. StandfastError: it isn't ours."""
        match = FILE_SYSTEM.search(read_foreign_text(self._file))
        if match is None:
            raise StandfastError(f"{self._file} has no Filesystem_Id: somebody else has written it")
        return str(UUID(int=(int(match[1]) << 64) + int(match[2])))


def export_block(config: Config, fsid: UUID) -> str:
    """Returns the export; its ids follow from the fsid, so handles of another epoch are stale."""
    major, minor = fsid.int >> 64, fsid.int & (2**64 - 1)
    clients = ", ".join(config.nfs.clients)
    return f"""\
EXPORT {{
  Export_Id = {fsid.int % 65534 + 1};
  Path = "{config.paths.bind}";
  Pseudo = "{config.paths.live}";
  Filesystem_Id = {major}.{minor};
  Protocols = 4;
  Transports = TCP;
  SecType = sys;
  Squash = No_Root_Squash;
  Access_Type = None;
  CLIENT {{
    Clients = {clients};
    Access_Type = RW;
  }}
  FSAL {{ Name = VFS; }}
}}
"""
