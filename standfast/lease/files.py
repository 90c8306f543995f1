"""What the keeper and the agent tell each other and the guard, as small files under /run.

Every file is replaced atomically; a file that can't be read counts as absent for "may I serve" and
is an error for "is there something to lose".
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from pathlib import Path

from msgspec import Struct, ValidationError, convert

from standfast.config.fields import MOST_S
from standfast.config.model import Config
from standfast.consul.records import Holder, LeaderState
from standfast.errors import StandfastError, ours
from standfast.lease.protocol import NEVER, Claim, Memory
from standfast.node.own_epoch import OwnEpoch
from standfast.system.clock import monotonic
from standfast.system.files import (
    beside,
    read_foreign_text,
    read_json,
    read_struct,
    write_atomically,
    write_new,
    write_struct,
)

log = logging.getLogger(__name__)

UNTOLD_LENGTH_S = 3600.0
NOTHING_HELD = "nothing-held"
"""In the run directory; `systemd/standfast-ended@.service` has its path."""


def boot_instance(run: Path) -> str:
    """Returns this boot's name, made at the first call after it: /run is new then, in containers
    too."""
    path = run / "instance"
    while True:
        try:
            text = read_foreign_text(path).strip()
        except FileNotFoundError:
            text = ""
        if text:
            return text
        run.mkdir(parents=True, exist_ok=True, mode=0o755)
        temporary = beside(path)
        write_new(temporary, uuid.uuid4().hex)
        try:
            os.link(temporary, path)  # the first one wins, and never half-written
        except FileExistsError:
            pass
        finally:
            temporary.unlink()


def holder_of(config: Config) -> Holder:
    """Returns this node in this boot."""
    return Holder(config.node, boot_instance(config.paths.run))


class LeaseStatus(Struct, frozen=True):
    """The keeper's last word, in `lease.json`; times are this boot's monotonic seconds."""

    epoch: int
    instance: str
    pid: int
    state: LeaderState
    serving: bool
    valid_until: float
    armed_until: float
    seq: int
    since: float
    flushes: int = 0
    """How often the fence's rules were found missing and put back."""
    trouble: str | None = None
    leader_index: int = 0
    """Where the last heartbeat stands in Consul that is known to have committed."""
    epoch_index: int = 0
    """Where the epoch stands there; 0: not told."""
    committed_seq: int = 0
    """The sequence number of that heartbeat."""
    voided_at: float = NEVER
    """Heartbeats sent before that make nothing valid."""
    longest_s: float = UNTOLD_LENGTH_S
    """No lease of this keeper's is longer: `length`, or that of whom it took the lease up from."""
    unserved_s: float = 0.0
    """For how long it has not served, within its lease."""
    served: bool = True
    """It has served in this epoch, or may have."""
    opened: bool = True
    """The port was opened in this epoch, or may have been."""
    not_surrendered: str | None = None
    """Reason code: why it keeps the role, though it has not served for `surrender_after`."""

    def remaining_s(self, now: float) -> float:
        return max(0.0, self.valid_until - now)

    def serves(self, now: float) -> bool:
        """Tells whether the node serves by it at `now`, monotonic seconds."""
        return self.serving and self.remaining_s(now) > 0

    @property
    def memory(self) -> Memory:
        """Returns what the next process of this boot has to know of it."""
        return Memory(
            self.epoch,
            self.instance,
            self.leader_index,
            self.valid_until,
            self.voided_at,
            self.epoch_index,
            self.committed_seq,
        )

    def save(self, run_dir: Path) -> None:
        # First: a keeper that serves must at no moment be taken for one that held nothing.
        (run_dir / NOTHING_HELD).unlink(missing_ok=True)
        write_struct(run_dir / "lease.json", self)

    @classmethod
    def load(cls, run_dir: Path) -> LeaseStatus | None:
        """Returns None when there is no keeper's word of this boot.

        A lease that lasts longer than any keeper could have made it (the file is of before a
        reboot, or was written by hand) permits nothing; nor does one that says so of itself and is
        longer than any that can be configured.
        """
        status = read_struct(run_dir / "lease.json", cls)
        if status is None:
            return None
        latest = monotonic() + min(status.longest_s, MOST_S)
        sane = status.valid_until <= latest and status.armed_until <= latest
        return status if sane else None


def forget_status(run_dir: Path) -> None:
    """Forgets the file: nobody knows of any lease in this boot."""
    (run_dir / "lease.json").unlink(missing_ok=True)


def note_start(config: Config) -> None:
    """Notes, before a lease process asks for anything, whether its failure can leave something
    of the volume here.

    Where it can't, systemd stops no server for it (`standfast-ended@`), as that serves other
    volumes: there is no epoch of the volume on this node, served or not put away yet, and each
    keeper of this boot ended in order, if there was one. What can't be found out counts as held.
    """
    mark = config.run_dir / NOTHING_HELD
    try:
        if any(map(_is_there, OwnEpoch.paths(config.state_dir))):
            mark.unlink(missing_ok=True)
        elif not _is_there(config.run_dir / "lease.json"):
            write_atomically(mark, "")
    except Exception as error:  # noqa: BLE001  # in doubt the server stops
        log.warning("whether anything is held here can't be told: %s", ours(error))
        mark.unlink(missing_ok=True)


def note_end(config: Config) -> None:
    """Notes that the lease is over, and nobody is served by it. Not known after a failure, or a
    kill."""
    try:
        write_atomically(config.run_dir / NOTHING_HELD, "")
    except Exception as error:  # noqa: BLE001  # then it counts as held
        log.warning("that nothing is held here can't be told: %s", ours(error))


def _is_there(path: Path) -> bool:
    """Tells whether the path is there. Not `Path.exists`, to which much that can't be looked at is
    absent."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


class Vouch(Struct, frozen=True):
    """The agent's last word on this node's serving, in `vouch.json`."""

    at: float
    """When it looked, monotonic seconds of this boot."""
    why: str | None
    """Why it doesn't serve; None: it does."""

    def save(self, run_dir: Path) -> None:
        write_struct(run_dir / "vouch.json", self)

    @classmethod
    def load(cls, run_dir: Path) -> Vouch | None:
        """Returns None when there is none that can be understood: nobody vouches then."""
        with contextlib.suppress(StandfastError):
            return read_struct(run_dir / "vouch.json", cls)
        return None


def note_outage(run_dir: Path) -> None:
    """Notes that the lease process ended because Consul didn't answer: no fault of its own."""
    write_atomically(run_dir / "outage", "")


def take_outage(run_dir: Path) -> bool:
    """Tells whether it did, since this was asked last."""
    try:
        (run_dir / "outage").unlink()
    except FileNotFoundError:
        return False
    return True


def forget_vouch(run_dir: Path) -> None:
    """Forgets the word as a new epoch begins: what was said of the last one says nothing of it."""
    (run_dir / "vouch.json").unlink(missing_ok=True)


def others_serving(config: Config) -> tuple[str, ...]:
    """Returns other volumes that this node serves at the moment, or may: a file that can't be
    understood, perhaps of one that is long gone, stops no server that others need, nor a change of
    this role."""
    serving = []
    for path in sorted(config.paths.run.glob("*/lease.json")):
        if path.parent == config.run_dir:
            continue
        try:
            status = LeaseStatus.load(path.parent)
        except StandfastError as error:
            log.debug("taken for served: %s", error)
            serving.append(path.parent.name)
            continue
        if status is not None and status.serves(monotonic()):
            serving.append(path.parent.name)
    return tuple(serving)


def note_flush(run_dir: Path) -> None:
    """Notes that the fence's rules were gone: whatever the lease process was told, the port may
    have been open."""
    write_atomically(run_dir / "flushed", "")


def was_flushed(run_dir: Path) -> bool:
    """Tells whether they were, in the epoch that this node holds."""
    return (run_dir / "flushed").exists()


def forget_flush(run_dir: Path) -> None:
    """Forgets that as a new epoch begins."""
    (run_dir / "flushed").unlink(missing_ok=True)


def was_never_open(run_dir: Path) -> bool:
    """Tells whether no client was served in the epoch that this node holds; in doubt one was."""
    status = LeaseStatus.load(run_dir)
    return status is not None and not status.opened and not was_flushed(run_dir)


def save_claim(run_dir: Path, claim: Claim) -> None:
    write_struct(run_dir / "claim.json", claim)


def take_claim(run_dir: Path) -> Claim | None:
    """Takes the agent's claim; it is removed, so that it is made good at most once."""
    path = run_dir / "claim.json"
    doc = read_json(path)
    if doc is None:
        return None
    path.unlink(missing_ok=True)
    try:
        return convert(doc, Claim)
    except ValidationError as error:
        raise StandfastError(f"{path} is not a claim: {error}") from error
