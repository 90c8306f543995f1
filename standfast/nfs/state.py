"""What the kernel's NFS server knows before it starts: its times, its versions, its old clients;
and where it listens then.

Invariants: a server that goes on with the same tree keeps its clients' records, so they get their
opens and locks back; one with a new tree starts without, as nobody could reclaim anything in it,
and every record of a client that never returns would cost a whole grace period. Nothing here may
keep a server from starting: it makes the start quicker, not right.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
from pathlib import Path

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.nfs.exports_file import entries
from standfast.system.files import read_foreign_text, read_json, write_atomically
from standfast.system.lines import fields_of, lines_of

log = logging.getLogger(__name__)

SETTINGS = Path("/etc/nfs.conf.d/standfast.conf")
CLIENTS = Path("/var/lib/nfs/nfsdcld/main.sqlite")
KTHREADD = 2
"""Its process id, on every Linux."""
BUSY_S = 2.0
"""How long another writer of the database is waited for."""


def write_settings(config: Config, path: Path = SETTINGS) -> None:
    """Writes times and versions, which every later start of nfsd reads, also one by hand."""
    text = settings(config)
    try:
        if path.exists() and read_foreign_text(path) == text:
            return
        write_atomically(path, text, durable=True)
    except (OSError, StandfastError) as error:
        log.warning("%s can't be written (%s): nfsd keeps its own grace and lease times",
                    path, error)  # fmt: skip


def settings(config: Config) -> str:
    """Returns the drop-in for nfs.conf. NFS 4.0 clients can't say that they have reclaimed
    everything."""
    lease_s = math.ceil(config.nfs.lease_time)
    return (
        "# Written by Standfast before each start of the server; the last volume's times count.\n"
        "[nfsd]\n"
        f"grace-time={lease_s}\n"
        f"lease-time={lease_s}\n"
        "vers3=n\n"
        "vers4.0=n\n"
        "rdma=n\n"  # which passes no firewall
    )


def unfenced(nfsd: Path, port: int) -> str | None:
    """Says where nfsd listens that the fence of `port` doesn't shut, by its own word; None:
    nowhere.

    RDMA passes no firewall, whatever its port. Where the kernel has no list (an nfsd file system
    that isn't mounted) this is not checked: the call that has to be answered at `port` shows then
    that a server listens there, and not that it does nowhere else.
    """
    path = nfsd / "portlist"
    try:
        listeners = lines_of(read_foreign_text(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"where nfsd listens can't be read ({path}: {error.strerror})"
    fenced = (["tcp", str(port)], ["udp", str(port)])
    others = [listener for listener in listeners if fields_of(listener) not in fenced]
    if not others:
        return None
    return (
        f"nfsd listens at {', '.join(dict.fromkeys(others))} ({path}), and the fence shuts tcp and "
        f"udp {port} alone (nfs.port): have both the same port ([nfsd] in /etc/nfs.conf: port, and "
        f"rdma off), and restart the server"
    )


class ClientRecords:
    """nfsdcld's database, and whose tree its records are of."""

    def __init__(self, config: Config, database: Path = CLIENTS) -> None:
        self._database = database
        self._note = config.state_dir / "nfs-clients.json"

    def are_of_another(self, fsid: str) -> bool:
        """Tells whether this node's last server is known to have had another tree.

        Without a note nothing is known: dropping the records of clients that have files open would
        cost them their locks, keeping worthless ones costs new opens the grace period.
        """
        with contextlib.suppress(StandfastError):
            noted = (read_json(self._note) or {}).get("fsid")
            return noted is not None and noted != fsid
        return False

    def start_for(self, fsid: str, others: bool) -> None:
        """Drops the records of another tree; called before the server starts.

        With `others` (more is exported here than the volume) they stay, as they may be the others'.
        """
        try:
            if not self.are_of_another(fsid):
                log.info("the records of earlier clients stay: the tree is the same, or the first")
            elif others:
                log.warning(
                    "other exports of this node may have clients that reclaim: their records stay, "
                    "and new opens may wait for the grace period"
                )
            else:
                log.info("a new tree: %d records of earlier clients dropped", self._drop())
            write_atomically(self._note, f'{{"v": 1, "fsid": "{fsid}"}}\n', durable=True)
        except (OSError, StandfastError, sqlite3.Error) as error:
            log.warning(
                "the records of earlier clients in %s can't be dropped (%s): new opens may wait "
                "for the grace period",
                self._database,
                error,
            )

    def _drop(self) -> int:
        """Deletes the clients' rows. nfsdcld may run, it reads them when nfsd starts."""
        if not self._database.exists():
            return 0
        with contextlib.closing(
            sqlite3.connect(f"{self._database.as_uri()}?mode=rw", uri=True, timeout=BUSY_S)
        ) as database:
            tables = database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'rec-%'"
            ).fetchall()
            # The names come from the database itself, and none has a quotation mark.
            statements = [f'DELETE FROM "{name}"' for (name,) in tables]  # noqa: S608
            with database:
                return sum(database.execute(statement).rowcount for statement in statements)


def exports_anything(*files: Path) -> bool:
    """Tells whether one of the files (exports(5)) has an export; unreadable ones may have."""
    for path in files:
        try:
            text = read_foreign_text(path)
        except FileNotFoundError:
            continue
        except OSError:
            return True
        if next(entries(text), None) is not None:
            return True
    return False


def kernel_threads(name: str, proc: Path) -> int:
    """Returns how many threads of the kernel have this name. A program can take the name, but it is
    no child of kthreadd's."""
    count = 0
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            head, _, rest = read_foreign_text(process / "stat").rpartition(") ")
            _state, parent, *_more = rest.split(" ", 2)
            count += head.endswith(f" ({name}") and int(parent) == KTHREADD
    return count
