"""Whether a standby's newest snapshot is what this node's is: asked, computed and compared.

Invariant: nothing is changed on either side, and "equal" is said only when both ends looked at
every entry of the same snapshot and came to the same fingerprint. Not being able to look is an
error, never an answer.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

from standfast.config.model import Config
from standfast.errors import Refused
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import state, wire
from standfast.replication.differences import Difference, differences
from standfast.replication.fingerprint import Fingerprint, counted, manifest
from standfast.replication.parents import newest_of
from standfast.replication.ports import ReplicaStore
from standfast.replication.session import ANSWER_S, end, greet, say
from standfast.system.clock import Deadline, monotonic
from standfast.system.streams import Conversation

METADATA_LIMIT_S = 3600.0
FULL_LIMIT_S = 48 * 3600.0
REPORTED = 10
"""So many differences are named."""
_LOOK_UP_S = 1.0
"""How often a refusal of the other side is looked for while this side reads its files."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it; `differences` are the first ones, `more` says whether there are others."""

    standby: str
    snapshot: str
    content_id: str
    full: bool
    ours: Fingerprint
    theirs: Fingerprint
    seconds: float
    read_bytes: int
    differences: tuple[Difference, ...] = ()
    more: bool = False

    @property
    def is_equal(self) -> bool:
        return self.ours == self.theirs


@dataclass(slots=True)
class Progress:
    """How far this side is."""

    entries: int = 0
    read_bytes: int = 0


@dataclass(slots=True)
class _Spool:
    """A manifest that was computed and is kept on disk, to be looked at again."""

    fingerprint: Fingerprint
    _file: IO[bytes]

    def lines(self) -> Iterator[str]:
        self._file.seek(0)
        return (line[:-1].decode("ascii") for line in self._file)


def limit(full: bool) -> Deadline:
    """Returns how long a comparison may take, on both sides."""
    return Deadline.after(FULL_LIMIT_S if full else METADATA_LIMIT_S)


# The side that is asked


def answer(config: Config, store: ReplicaStore, request: wire.Digest) -> Iterator[str]:
    """Yields the lines of the answer, without their ends: a `digested`, then the listing if wanted.

    It has a limit of its own: reading everything may take longer than a replication may. Refused
    (unknown-snapshot) for what isn't complete here, (content-differs) for a damaged disk.
    """
    snapshot = newest_of(store.snapshots(), {request.content_id})
    if snapshot is None:
        raise Refused(
            Reason.UNKNOWN_SNAPSHOT,
            f"{config.node} has no complete snapshot {request.content_id} (any more)",
        )
    with _spooled(config, _manifest(config, snapshot, request.full, limit(request.full))) as spool:
        fingerprint = spool.fingerprint
        yield wire.dump(wire.Digested(fingerprint.digest, fingerprint.entries))
        if request.listing:
            yield from spool.lines()


# The side that asks


def compare(
    config: Config,
    store: ReplicaStore,
    standby: str,
    *,
    full: bool,
    deadline: Deadline,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Comparison:
    """Compares the newest snapshot that both have; the outcome is noted for status and metrics.

    `progress` is called about once a second. Raises Refused (needs-full) without a common
    snapshot, (content-differs) when one side can't read its files any more, Unreachable, TimedOut.
    """
    look = _Look(config, store, standby, full, deadline, progress)
    try:
        comparison = look.run()
    except Refused as refusal:
        if refusal.reason is Reason.CONTENT_DIFFERS and look.snapshot is not None:
            state.note_verified(config, standby, str(look.snapshot.name), ok=False, full=full)
        raise
    state.note_verified(config, standby, comparison.snapshot, ok=comparison.is_equal, full=full)
    return comparison


@dataclass(slots=True)
class _Look:
    config: Config
    store: ReplicaStore
    standby: str
    full: bool
    deadline: Deadline
    progress: Callable[[Progress], None]
    snapshot: Snapshot | None = None
    _done: Progress = field(default_factory=Progress)
    _next_look: Deadline = field(default_factory=lambda: Deadline.after(_LOOK_UP_S))

    def run(self) -> Comparison:
        started = monotonic()
        with contextlib.ExitStack() as stack:
            with greet(self.config, self.standby, self.deadline, wire.Purpose.ASK) as (
                conversation,
                welcome,
            ):
                self.snapshot = self._common(welcome)
                ours, theirs = self._both(conversation, self.snapshot, stack)
                end(conversation, self.deadline)
            first: list[Difference] = []
            if ours.fingerprint != theirs:
                first = self._first_differences(self.snapshot, ours)
            return Comparison(
                standby=self.standby,
                snapshot=str(self.snapshot.name),
                content_id=self.snapshot.content_id,
                full=self.full,
                ours=ours.fingerprint,
                theirs=theirs,
                seconds=monotonic() - started,
                read_bytes=self._done.read_bytes,
                differences=tuple(first[:REPORTED]),
                more=len(first) > REPORTED,
            )

    def _common(self, welcome: wire.Welcome) -> Snapshot:
        there = {offer.content_id for offer in welcome.snapshots}
        snapshot = newest_of(self.store.snapshots(), there)
        if snapshot is None:
            raise Refused(
                Reason.NEEDS_FULL,
                f"{self.standby} has no snapshot in common with {self.config.node}: there is "
                f"nothing to compare before `standfast replicate {self.standby} --full`",
            )
        return snapshot

    def _both(
        self, conversation: Conversation, snapshot: Snapshot, stack: contextlib.ExitStack
    ) -> tuple[_Spool, Fingerprint]:
        """Makes both fingerprints; the other side works while this one does."""
        self._ask(conversation, snapshot, listing=False)
        theirs: wire.Digested | None = None

        def look_up(read_bytes: int = 0) -> None:
            nonlocal theirs
            self._done.read_bytes += read_bytes
            if not self._next_look.expired:
                return
            if (
                theirs is None and conversation.has_answer()
            ):  # maybe a refusal: no need to go on then
                theirs = wire.parse(conversation.read_line(self.deadline), wire.Digested)
            self.progress(self._done)
            self._next_look = Deadline.after(_LOOK_UP_S)

        def lines() -> Iterator[str]:
            for line in _manifest(self.config, snapshot, self.full, self.deadline, look_up):
                self._done.entries += 1
                look_up()
                yield line

        ours = stack.enter_context(_spooled(self.config, lines()))
        if theirs is None:
            theirs = wire.parse(conversation.read_line(self.deadline), wire.Digested)
        return ours, Fingerprint(theirs.digest, theirs.entries)

    def _ask(self, conversation: Conversation, snapshot: Snapshot, *, listing: bool) -> None:
        request = wire.Digest(snapshot.content_id, self.full, listing)
        say(conversation, request, self.deadline.within(ANSWER_S))

    def _first_differences(self, snapshot: Snapshot, ours: _Spool) -> list[Difference]:
        """Asked again: a listing is made and sent only where it is of use."""
        with greet(self.config, self.standby, self.deadline, wire.Purpose.ASK) as (conversation, _):
            self._ask(conversation, snapshot, listing=True)
            theirs = wire.parse(conversation.read_line(self.deadline), wire.Digested)
            lines = (conversation.read_line(self.deadline) for _ in range(theirs.entries))
            first = list(islice(differences(ours.lines(), lines), REPORTED + 1))
            if len(first) <= REPORTED:  # else the rest is not waited for
                end(conversation, self.deadline)
            return first


def _manifest(
    config: Config,
    snapshot: Snapshot,
    full: bool,
    deadline: Deadline,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[str]:
    try:
        yield from manifest(snapshot.path, full=full, deadline=deadline, on_bytes=on_bytes)
    except Refused as damage:
        raise Refused(damage.reason, f"on {config.node}: {damage}") from damage


@contextlib.contextmanager
def _spooled(config: Config, lines: Iterator[str]) -> Iterator[_Spool]:
    """On disk, not under /tmp, which may be memory; gone at the end, whatever happens."""
    directory: Path = config.state_dir
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
        yield _Spool(counted(lines, file.write), file)
