"""The kernel's NFS server and this volume's export in /etc/exports.d.

"Active" in systemd proves nothing here: running means that threads exist, whoever started them;
serving means threads, the export with this epoch's fsid, and that a client gets there, for which
daemons beside the kernel have to answer as well (`as_client`). A server that listens where the
fence doesn't shut it has nothing exported to it, and doesn't count as serving.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from standfast.config.model import Config
from standfast.errors import StandfastError, TimedOut
from standfast.nfs import ahead, conf_ahead
from standfast.nfs.as_client import (
    MOUNTD,
    LooksUp,
    MountdSilent,
    ask_mountd,
    asks_for_names,
)
from standfast.nfs.foreign_exports import (
    ETC,
    Relation,
    exports_problem,
    files_of_others,
    foreign_here,
    own_file,
    way_out,
)
from standfast.nfs.state import (
    CLIENTS,
    SETTINGS,
    ClientRecords,
    exports_anything,
    kernel_threads,
    unfenced,
    write_settings,
)
from standfast.nfs.unit import ServerUnits, start_server, unit_obstacle
from standfast.node.obstacle import Obstacle, Weight
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.files import read_foreign_text, write_atomically
from standfast.system.lines import fields_of, lines_of, unescaped
from standfast.system.run import failure, run
from standfast.system.threads import SingleFlight

log = logging.getLogger(__name__)

EXPORTED = Path("/var/lib/nfs/etab")
PROC = Path("/proc")
NFSD = PROC / "fs/nfsd"
FSID = re.compile(r"fsid=([0-9a-fA-F-]+)")
COMMAND_S = 10.0
LOOK_S = 0.5
"""For the kernel's list of listeners."""
POLL_S = 0.05
DAEMONS = (MOUNTD, "nfsdcld.service")
"""What nfsd needs beside itself. nfsdcld writes down who may reclaim after a restart, and without
it each new client waits for half a minute; idmapd has nothing to do with sec=sys."""
STUCK_S = 10.0
"""A mountd that lives and has said nothing for so long is killed: it has nothing to lose, and it is
to run again before the role is surrendered."""


FOREIGN_WEIGHT = {
    Relation.SAME: Weight.BARS,  # it has another fsid than the epoch's
    Relation.ABOVE: Weight.REFUSES,  # its clients, which may be no others, don't come to the volume
    Relation.ROOT: Weight.REFUSES,
    Relation.BELOW: Weight.TOLD,
}


class KernelNfs:
    """nfsd. The paths can be others for a test."""

    def __init__(
        self,
        config: Config,
        units: ServerUnits,
        *,
        etc: Path = ETC,
        exported: Path = EXPORTED,
        nfsd: Path = NFSD,
        settings: Path = SETTINGS,
        clients: Path = CLIENTS,
        proc: Path = PROC,
    ) -> None:
        self._config = config
        self._proc = proc
        self._units = units
        self._etc = etc
        self._file = own_file(config, etc)
        self._exported = exported
        self._nfsd = nfsd
        self._settings = settings
        self._records = ClientRecords(config, clients)
        self._flights = SingleFlight()
        self._elsewhere: str | None = None
        self._silent_since: float | None = None
        self._looks_up = LooksUp(config)

    def export(self, fsid: str) -> None:
        config = self._config
        self._refuse_unfenced()
        write_atomically(self._file, export_line(config, config.paths.live, fsid), durable=True)
        if self.is_running():
            said = self._refresh()
            problem = self._export_problem()
            if problem is not None:
                raise StandfastError(f"{problem}. {said}")

    def obstacles(self) -> Iterator[Obstacle]:
        config, running = self._config, self.is_running()
        yield from ahead.missing_programs()
        if not running:
            yield from ahead.missing_kernel_part()
        yield from unit_obstacle(self._units, config.nfs.unit)
        yield from ahead.taken_port(config, running=running)
        yield from conf_ahead.obstacles(config)
        if (problem := self.unfenced()) is not None:
            yield Obstacle("port", problem, "as said there")
        if "fsid=" in config.nfs.options:
            text = f"nfs.options = {config.nfs.options!r} has an fsid; each epoch has its own"
            yield Obstacle("exports", text, "take it out of nfs.options, on every node")
        for foreign in foreign_here(config, self._etc):
            weight = FOREIGN_WEIGHT[foreign.relation]
            yield Obstacle("exports", str(foreign), way_out(config), weight)
        yield from ahead.exports_trial(config, export_line)
        yield from ahead.unresolved(config.nfs.clients)

    def is_exported(self, fsid: str) -> bool:
        # The table outlives a power cut.
        return self._own_fsid() == fsid and self._export_problem() is None and self.is_running()

    def would_export(self) -> bool:
        return self._file.exists() or self._may_be_listed()

    def exports_problem(self) -> str | None:
        return exports_problem(self._config, self._etc)

    def unexport(self) -> None:
        """Takes the export away, and from the kernel what it still holds of the file system."""
        self._file.unlink(missing_ok=True)
        running = self.is_running()
        # After a power cut the table is still there, and a server started by hand, without
        # the unit's `exportfs -r`, would export by it.
        if running or self._may_be_listed():
            said = self._refresh(flush=running)
            if self._may_be_listed():
                raise StandfastError(
                    f"{self._config.paths.live} may still be exported, it is listed in "
                    f"{self._exported} or that can't be read. {self._named()}{said}"
                )
        if running:
            self._release_file_system()

    def _may_be_listed(self) -> bool:
        try:
            return bool(self._listed())
        except OSError:
            return True

    def _listed(self) -> list[str]:
        """Returns the volume's lines in the table of exports; none when there is no table."""
        live = str(self._config.paths.live)
        try:
            lines = lines_of(read_foreign_text(self._exported))
        except FileNotFoundError:
            return []
        return [line for line in lines if list(map(unescaped, fields_of(line)[:1])) == [live]]

    def _refresh(self, *, flush: bool = True) -> str:
        """Makes the table follow the files, and the kernel the table; returns what exportfs said.

        Look at the table then: exportfs ends with an error for whatever is wrong in anybody's
        file, and has done the rest.
        """
        op, argv = "exportfs:refresh", ["exportfs", "-r"]
        done = run(argv, deadline=Deadline.after(COMMAND_S), op=op, check=False)
        said = "`exportfs -r` named no error"
        if done.returncode != 0:
            said = str(failure(op, "exportfs", done.returncode, done.stderr))
            log.warning("mend the exports that are named: %s", said)
        if flush:
            run(["exportfs", "-f"], deadline=Deadline.after(COMMAND_S), op="exportfs:flush")
        return said

    def _release_file_system(self) -> None:
        """Drop the clients' locks and opens, which would keep the volume busy."""
        try:
            (self._nfsd / "unlock_filesystem").write_text(f"{self._config.paths.live}\n")
        except FileNotFoundError:
            return  # nothing is at that path any more
        except OSError as error:
            raise StandfastError(
                f"the kernel does not let go of {self._config.paths.live}: {error.strerror}"
            ) from error

    def start(self, deadline: Deadline) -> None:
        """Starts the server; Refused with the guard's words when it refused, CommandFailed for
        other failures."""
        if not self.is_running():
            # The unit is a oneshot: "active" with no threads left, a start would do nothing.
            self._units.stop(self._config.nfs.unit, deadline)
            self._prepare()
        start_server(self._units, self._config.nfs.unit, deadline)
        if not self.is_running():
            raise StandfastError(
                f"{self._config.nfs.unit} is started, but nfsd has no threads: "
                f"see `journalctl -u {self._config.nfs.unit}`"
            )
        self._refuse_unfenced()

    def _refuse_unfenced(self) -> None:
        """Of a server that isn't there yet nothing is known: `start` looks again."""
        problem = self.unfenced()
        if problem is not None:
            raise StandfastError(problem)

    def _prepare(self) -> None:
        """What has to be in place before there is a thread."""
        write_settings(self._config, self._settings)
        fsid = self._own_fsid()
        if fsid is not None:
            others = files_of_others(self._etc, self._file)
            self._records.start_for(fsid, exports_anything(*others))

    def _own_fsid(self) -> str | None:
        """Returns the fsid in the volume's file; None when there is none."""
        try:
            match = FSID.search(read_foreign_text(self._file))
        except FileNotFoundError:
            return None
        return None if match is None else match[1]

    def stop(self, deadline: Deadline) -> None:
        close_sessions(self._config.nfs.port)
        self._units.stop(self._config.nfs.unit, deadline)
        if self.is_running():  # started by hand, outside of the unit
            run(["rpc.nfsd", "0"], deadline=deadline, op="rpc.nfsd:stop")
        while self.is_running():
            if deadline.expired:
                raise StandfastError(
                    f"{self.threads()} nfsd threads are left though {self._config.nfs.unit} is "
                    f"stopped: the volume is still served; look at {self._nfsd}/threads"
                )
            sleep(POLL_S)

    def threads(self) -> int:
        """Returns the number of nfsd's threads."""
        try:
            return int((self._nfsd / "threads").read_text())
        except FileNotFoundError:  # there are none, or that file system isn't mounted here
            return kernel_threads("nfsd", self._proc)
        except (OSError, ValueError) as error:
            raise StandfastError(f"{self._nfsd}/threads can't be read: {error}") from error

    def is_running(self) -> bool:
        return self.threads() > 0

    def unfenced(self) -> str | None:
        """Returns where the server listens beside the fence, or what was known last. The kernel
        says nothing while a server starts or stops, and a stop may hang with a disk; nobody has the
        server listen elsewhere meanwhile, so that the role can be given up all the same."""
        with contextlib.suppress(TimedOut):
            self._elsewhere = self._flights.look("portlist", self._listens, Deadline.after(LOOK_S))
        return self._elsewhere

    def _listens(self) -> str | None:
        problem = unfenced(self._nfsd, self._config.nfs.port)
        return problem if problem is not None and self.is_running() else None

    def check(self, deadline: Deadline) -> str | None:
        if not self.is_running():
            return "nfsd has no threads"
        problem = self.unfenced() or self._export_problem()
        return problem or self._unserved(deadline)

    def _unserved(self, deadline: Deadline) -> str | None:
        """Says why a client wouldn't be served by what looks well from here."""
        try:
            fresh = not asks_for_names(read_foreign_text(self._exported))
            ask_mountd(self._config.nfs.port, deadline, fresh=fresh)
        except MountdSilent as error:
            self._silent_since = monotonic() if self._silent_since is None else self._silent_since
            return str(error)
        except (OSError, StandfastError) as error:
            return str(error)
        self._silent_since = None
        fsid = self._own_fsid()
        problem = None if fsid is None else self._looks_up.problem(fsid, deadline)
        named = None if problem is None else self.exports_problem()
        return problem if named is None else f"{problem}: {named}"

    def mend(self, deadline: Deadline) -> str | None:
        if not self.is_running():
            return None  # systemd would start it with its daemon
        ended = [unit for unit in DAEMONS if self._has_ended(unit)]
        if MOUNTD not in ended and self._is_stuck():
            # A restart would stop nfsd as well, which requires it.
            self._units.kill(MOUNTD, deadline)
            while not self._units.has_ended(MOUNTD):
                deadline.check(f"kill {MOUNTD}")
                sleep(POLL_S)
            ended.append(MOUNTD)
        if MOUNTD in ended:
            self._silent_since = None  # one that has just begun gets its time
        for unit in ended:
            self._units.start(unit, deadline)
        return f"{' and '.join(ended)} had ended: started again" if ended else None

    def _has_ended(self, unit: str) -> bool:
        """mountd is missing only where the kernel misses it: exportd can be there in its place."""
        return (unit != MOUNTD or self._silent_since is not None) and self._units.has_ended(unit)

    def _is_stuck(self) -> bool:
        return self._silent_since is not None and monotonic() - self._silent_since >= STUCK_S

    def _export_problem(self) -> str | None:
        live = self._config.paths.live
        try:
            wanted = self._own_fsid()
            lines = self._listed()
        except OSError as error:
            return f"the exports can't be read: {error}"
        if not lines:
            return f"{live} is not exported (`exportfs -v` doesn't list it)"
        if wanted is None or not all(f"fsid={wanted}" in line for line in lines):
            named = self.exports_problem() or f"no file in {self._etc} says so: run `exportfs -ra`"
            return f"{live} is exported with another fsid than this epoch's: {named}"
        return None

    def _named(self) -> str:
        problem = self.exports_problem()
        return "" if problem is None else f"{problem}. "


def close_sessions(port: int) -> None:
    """Ends the clients' connections while nfsd has them; best effort.

    What it leaves behind for clients that don't answer the kernel keeps for minutes, and one that
    comes back by the same port (NFS clients do) would meet it at the next epoch here.
    """
    argv = ["ss", "-K", "-t", "-n", "-H", "state", "connected", "sport", "=", f":{port}"]
    try:
        run(argv, deadline=Deadline.after(COMMAND_S), op="close-sessions")
    except StandfastError as error:
        log.warning("connections of clients may be left behind: %s", error)


def export_line(config: Config, path: Path, fsid: str) -> str:
    """Returns the line of exports(5) that exports `path` as the configuration says."""
    options = f"{config.nfs.options},fsid={fsid}"
    clients = " ".join(f"{client}({options})" for client in config.nfs.clients)
    return f"{escaped(path)} {clients}\n"


def escaped(path: Path) -> str:
    """Returns a path as exports(5) wants it: blanks and the like in octal."""
    return re.sub(r"(?a)[\s\"#\\]", lambda match: f"\\{ord(match[0]):03o}", str(path))
