"""What this client mounts, told to the others in Consul (`Config.client_key`), for people to look
at.

Invariant: it comes last, after the mount was seen to and its lock let go of, has a short deadline,
and fails without a consequence: the next run of the timer tries again.
"""

from __future__ import annotations

import logging

from msgspec.structs import replace

from standfast.clients import notes
from standfast.clients.decide import Decision
from standfast.clients.observation import Note
from standfast.clients.ports import Consul
from standfast.config.model import Config
from standfast.consul.records import ClientRecord
from standfast.errors import StandfastError
from standfast.reasons import Reason
from standfast.system.clock import Deadline, utc_now
from standfast.system.files import write_struct
from standfast.system.mountinfo import canonical

log = logging.getLogger(__name__)

WRITTEN = "client-record.json"
WRITE_S = 2.0
# Written again after this long, so that a record that grows old tells of a client that is gone.
RENEW_S = 600.0
_MOUNTED = (Reason.MOUNT_CURRENT, Reason.BINDS_LEFT)
_NOT_MOUNTED = (Reason.NOT_A_CLIENT, Reason.AUTOMOUNT_IDLE, Reason.NOT_MOUNTED, Reason.PATH_TAKEN)


def record_of(decision: Decision, note: Note | None, config: Config, utc: float) -> ClientRecord:
    """Returns what the last decision of a run says; the server by its node's name where that is
    known."""
    server, epoch = None, None
    if decision.reason in _MOUNTED and decision.server is not None:
        server, epoch = decision.server.node, decision.server.epoch
    elif decision.reason is Reason.ROLE_IS_HERE:
        server = config.node
    elif decision.reason not in _NOT_MOUNTED and note is not None and note.kind == "nfs":
        server, epoch = _named(note.address, config), note.epoch
    return ClientRecord(config.node, server, epoch, str(decision.reason), utc)


def report(config: Config, consul: Consul, decision: Decision) -> None:
    """Writes the record if it says something new, or is due again; at most WRITE_S seconds."""
    if decision.reason.startswith("consul-"):
        return
    now = utc_now()
    record = record_of(decision, notes.load(config.run_dir), config, now)
    before = _written(config)
    if before is None and decision.reason is Reason.NOT_A_CLIENT:
        return  # it never was one
    if before is not None and replace(before, at=now) == record and 0 <= now - before.at < RENEW_S:
        return
    try:
        consul.put(config.client_key(config.node), record.dump(), deadline=Deadline.after(WRITE_S))
        write_struct(config.run_dir / WRITTEN, record)
    except (StandfastError, OSError) as error:
        log.info("what is mounted here was not told to the others: %s", error)


def _written(config: Config) -> ClientRecord | None:
    """Returns what was written last in this boot; None: nothing, or nothing that can be
    understood."""
    try:
        return ClientRecord.parse((config.run_dir / WRITTEN).read_bytes(), config.node)
    except (OSError, StandfastError):
        return None


def _named(address: str, config: Config) -> str:
    same = canonical(address)
    return next(
        (name for name, node in config.nodes.items() if canonical(node.address) == same), address
    )
