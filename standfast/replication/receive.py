"""The receiving end: what the replication key may run on a standby, and nothing else.

Invariant: a snapshot becomes visible only after its sender was seen to hold the lease, its
lineage was checked, the whole stream arrived, it was verified and is on disk; and it is
acknowledged only after that again is on disk. Whatever fails before that leaves nothing behind.
Why it failed hears only the node whose key it is, by the key's line; who came with a key that is
bound to none, or says to be another one, hears the reason code, and this node's journal the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from msgspec import UNSET, UnsetType, ValidationError, convert

from standfast.ages import Origin, age_of
from standfast.config.model import Config
from standfast.consul.records import StandbyRecord
from standfast.errors import CommandFailed, Refused, StandfastError, TimedOut, ours
from standfast.events import journal
from standfast.events.events import Kind, happened, tell
from standfast.node.obstacle import Obstacle
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import pins, receive_checks, storage_facts, verify, wire
from standfast.replication.failures import reason_of
from standfast.replication.fingerprint import digest_of
from standfast.replication.parents import taken_here
from standfast.replication.ports import ReplicaGateway, ReplicaStore
from standfast.replication.pruning import prune
from standfast.replication.published import epochs_of_snapshots, note_origin, origins_of_snapshots
from standfast.replication.stream_failures import why_not_taken_in
from standfast.system.clock import Deadline, instant, monotonic, utc_now
from standfast.system.landlock import confined
from standfast.system.local_socket import ask
from standfast.system.locks import exclusive, is_locked
from standfast.system.run import inheriting
from standfast.system.streams import pipeline

log = logging.getLogger(__name__)

HELLO_S = 30.0
"""To say who it is, which a sender does at once."""
LINE_TIMEOUT_S = 60.0
"""For the question of who wants to ask one."""
STANDSTILL_S = 3.0
"""A sender of whom nothing came for this long gives way to another one."""
TURN_S = STANDSTILL_S + 3.0
"""So long another sender waits for that, and for what the first one leaves to clean up."""
LOOK_UP_S = 1.0
INSPECTION_S = 40.0
"""For all that this node's agent looks at; each look has a limit of its own."""
UNZSTD = ("zstd", "-q", "-d", "-c")


@dataclass(frozen=True, slots=True)
class _Announced:
    """What is coming in, and since when (monotonic)."""

    begin: wire.Begin
    at: float

    def origin(self) -> Origin:
        """By this node's clock as it is now, however long the stream took."""
        if self.begin.age_s is None:
            return Origin(self.begin.epoch)
        age_s = self.begin.age_s + monotonic() - self.at
        return Origin(self.begin.epoch, utc_now() - age_s)


def receive(
    config: Config,
    store: ReplicaStore,
    gateway: ReplicaGateway,
    stdin_fd: int,
    stdout: TextIO,
    *,
    bound: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Holds one conversation and returns the exit status. Every refusal is answered with its
    reason.

    `bound` is the node whose key it is, by the key's line (`--from`); None: an older line's, or
    another transport than ssh.
    """
    by_ssh = environ.get("SSH_CONNECTION", "")
    receiver = _Receiver(config, store, gateway, stdin_fd, stdout, bound)
    receiver.stranger = bound is None and bool(by_ssh)
    try:
        receive_checks.check_original_command(config, environ)
        receive_checks.check_bound(config, bound)
        config.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        receiver.run()
    except Exception as failure:  # noqa: BLE001  # each refusal is answered, whatever it comes from
        error = ours(failure)
        refusal = wire.Refusal(reason_of(error), str(error), bound)
        where = f" (to {by_ssh.split(' ')[0]})" if by_ssh else ""
        text = f"refused{where}: {refusal.reason}: {refusal.message}"
        event = happened(config, Kind.RECEIVE_REFUSED, text, reason=refusal.reason)
        if receiver.stranger:  # who reads what is said on stderr, too
            journal.deliver(event)
            refusal = wire.in_short(refusal, config.node)
        else:
            tell(event)
        with contextlib.suppress(OSError):
            receiver.say(refusal)
        return 1
    return 0


@dataclass(slots=True)
class _Receiver:
    config: Config
    store: ReplicaStore
    gateway: ReplicaGateway
    stdin_fd: int
    stdout: TextIO
    bound: str | None
    stranger: bool = False
    """Nothing says that it is the node that it says to be."""
    vouched: Mapping[str, StandbyRecord] | None = None
    """See `Lease.vouched_for`; None: Consul didn't say."""

    def say(self, message: wire.Message) -> None:
        self.stdout.write(wire.dump(message) + "\n")
        self.stdout.flush()

    def run(self) -> None:
        deadline = Deadline.after(self.config.replication.timeout)
        # The version that has no `--from` in its lines says hello after its snapshot.
        hello_s = HELLO_S if self.bound is not None else self.config.replication.timeout
        line = _read_line(self.stdin_fd, deadline.within(hello_s))
        if line is None:
            raise Refused(
                Reason.PROTOCOL, "the sender closed the connection before it said anything"
            )
        hello = wire.parse(line, wire.Hello)
        self._check_peer(hello)
        if hello.purpose is wire.Purpose.ASK:
            self._answer(deadline)
            return
        lease = receive_checks.Lease(self.config, self.gateway)
        lease.check_holder(hello)
        with self._turn():
            self._take_one(deadline, lease)

    def _check_peer(self, peer: wire.Hello | wire.Begin) -> None:
        if self.bound is not None:
            self.stranger = peer.sender != self.bound
        receive_checks.check_sender(self.config, self.bound, peer)
        receive_checks.check_peer(self.config, peer)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One receive at a time; Refused (busy) while another one's stream moves.

        One whose stream stands still, or who says nothing, gives way to whoever waits: that one
        was just seen to hold the lease, and a sender holds a lock of its own, so the other one's
        is dead or not primary any more, which nobody told its connection.
        What a killed one started may still fill the staging directory, and is waited for.
        """
        what = f"another receive of {self.config.volume}"
        with contextlib.ExitStack() as stack:
            with exclusive(self._waiting, what, Deadline.after(TURN_S)):
                lock = self.config.run_dir / "receive.lock"
                turn = stack.enter_context(exclusive(lock, what, Deadline.after(TURN_S)))
            stack.enter_context(inheriting(turn))
            yield

    @property
    def _waiting(self) -> Path:
        return self.config.run_dir / "receive.next"

    def _give_way(self, idle_s: float) -> str | None:
        if idle_s < STANDSTILL_S:
            return None
        if not is_locked(self._waiting):
            return None
        return f"nothing came for {idle_s:.0f} s, and another sender waits"

    # Questions

    def _answer(self, deadline: Deadline) -> None:
        """Reads only, so it doesn't wait for a snapshot that is coming in."""
        # Not needed for taking a snapshot in, whose start-up is waited for in every cycle.
        snapshots = self.store.snapshots()
        offered = wire.offers(snapshots)
        ages = self._ages(snapshots)
        told = tuple(ages[offer.content_id] for offer in offered)
        request = self._request(offered, deadline.within(LINE_TIMEOUT_S), told)
        match request:
            case wire.Survey():
                facts = storage_facts.facts_here(self.config, self.store)
                self.say(wire.Surveyed(facts.document()))
            case wire.Inspect():
                self.say(wire.Inspected(_obstacles(self.config)))
            case wire.Digest():
                for line in verify.answer(self.config, self.store, request):
                    self.stdout.write(line + "\n")
                self.stdout.flush()
            case wire.Begin():
                raise Refused(Reason.PROTOCOL, "a snapshot was announced in a mere question")

    def _ages(self, snapshots: Sequence[Snapshot]) -> Mapping[str, float | None]:
        """Seconds, by content id, of what is noted here: who asks has another clock."""
        now, ages = instant(), dict.fromkeys(snapshot.content_id for snapshot in snapshots)
        with contextlib.suppress(StandfastError):
            origins = origins_of_snapshots(self.config, now)
            for snapshot in snapshots:
                if (origin := origins.get(snapshot.content_id)) is not None:
                    age_s = age_of(origin.time(snapshot.name), now.utc)
                    ages[snapshot.content_id] = None if age_s is None else round(age_s, 1)
        return ages

    def _request(
        self,
        offered: tuple[wire.Offer, ...],
        deadline: Deadline,
        ages: tuple[float | None, ...] | UnsetType = UNSET,
    ) -> wire.Request | None:
        """Returns what the sender wants, after it was told what is here; None: nothing any more."""
        unfinished = tuple(path.name for path in self.store.unfinished())[: wire.MAX_UNFINISHED]
        free, able = self.store.free_bytes(), tuple(self.store.abilities())
        self.say(wire.Welcome(offered, free, unfinished, able, ages))
        line = _read_line(self.stdin_fd, deadline, self._give_way)
        return None if line is None else wire.parse_request(line)

    # One snapshot

    def _take_one(self, deadline: Deadline, lease: receive_checks.Lease) -> None:
        staging = self.store.open_staging()
        # The sender takes its snapshot meanwhile, and maybe reads all of it.
        begin = self._request(wire.offers(self.store.snapshots()), deadline)
        if begin is None:
            return  # it has seen that there is nothing to send
        if not isinstance(begin, wire.Begin):
            raise Refused(Reason.PROTOCOL, "a question in a conversation that is for sending")
        announced = _Announced(begin, monotonic())
        # A first send may take a day, as its sender knows; nothing here has to be set for it.
        deadline = Deadline.after(min(begin.patience_s, wire.MOST_PATIENCE_S))
        self._check_peer(begin)
        lease.check(begin)
        snapshots = self.store.snapshots()
        receive_checks.check_lineage(self.config, begin, snapshots)
        receive_checks.check_space(self.config, self.store.free_bytes(), begin)
        receive_checks.check_decompressor(self.config, begin)
        parent = begin.parent_content_id
        with pins.in_use(self.config, () if parent is None else (parent,)):
            try:
                if parent is not None:
                    self.store.prepare_parent(parent)
                # Before anything newer is here, for which older ones may be deleted.
                self._ask_who_vouches(lease)
                self._learn(begin, snapshots)
                self.say(wire.Ready())
                self._take_in(staging, begin, deadline, taken_here(snapshots, parent))
                published = self._publish(staging, announced, lease, deadline)
                self._pin(begin, published)
                # Nobody has to wait for what is only tidied up.
                self.say(wire.Published(str(published.name), published.content_id))
            finally:
                self.store.clear_staging()
        self._prune(begin)

    def _take_in(
        self, staging: Path, begin: wire.Begin, deadline: Deadline, own_parent: Snapshot | None
    ) -> None:
        grow = [UNZSTD] if begin.compression is wire.Compression.ZSTD else []
        stages = [*grow, self.store.receive_argv(staging)]
        places = self.store.within(begin.parent_content_id)
        try:
            with confined(places):
                pipeline(
                    stages,
                    deadline=deadline,
                    op="receive",
                    stdin=self.stdin_fd,
                    stall_s=self.config.replication.stall_timeout,
                    give_up=self._give_way,
                )
        except CommandFailed as error:
            node, free = self.config.node, self.store.free_bytes()
            raise why_not_taken_in(error, node, own_parent, free) from error

    def _publish(
        self, staging: Path, announced: _Announced, lease: receive_checks.Lease, deadline: Deadline
    ) -> Snapshot:
        begin = announced.begin
        self.store.verify_staged(begin.name, begin.content_id, begin.parent_content_id)
        if begin.fingerprint is not None:
            fingerprint = digest_of(staging / str(begin.name), deadline)
            if fingerprint != begin.fingerprint:
                raise Refused(
                    Reason.INCOMPLETE,
                    f"{begin.name} arrived with other metadata than {begin.sender} has "
                    f"(fingerprint {fingerprint[:12]}, there {begin.fingerprint[:12]}): "
                    f"not published",
                )
        lease.check(begin)  # it may have moved on while the stream came in
        note_origin(self.config, begin, announced.origin(), self.store.snapshots)
        return self.store.publish(begin.name)

    # What is remembered

    def _ask_who_vouches(self, lease: receive_checks.Lease) -> None:
        """A failure costs space and an increment later, not this snapshot: it is only logged."""
        try:
            self.vouched = lease.vouched_for()
        except StandfastError as error:
            log.warning("nothing is deleted or pinned by the sender's word alone: %s", error)

    def _learn(self, begin: wire.Begin, snapshots: Sequence[Snapshot]) -> None:
        """What other nodes have of what is here, should this node become primary.

        A failure costs an increment later, not this snapshot: it is only logged.
        """
        if begin.commons is None or self.vouched is None:
            return
        try:
            epochs = epochs_of_snapshots(self.config)
            commons = receive_checks.believed(begin.commons, self.vouched, snapshots, epochs)
            pins.learn(self.config, commons, snapshots, epochs)
        except (StandfastError, OSError) as error:
            log.warning("what other nodes have is not pinned: %s", error)

    def _pin(self, begin: wire.Begin, published: Snapshot) -> None:
        """What the sender and this node have in common now, and so perhaps others."""
        try:
            pins.note(self.config, begin.sender, pins.Pin.of(published, begin.epoch))
            self._learn(begin, self.store.snapshots())
        except (StandfastError, OSError) as error:
            log.warning("%s is published, but not pinned: %s", published.name, error)

    def _prune(self, begin: wire.Begin) -> None:
        """What is old goes; a failure here changes nothing of what was acknowledged.

        The newest snapshot of which the primary told Consul stays, however many others came since:
        each one that came in over the replication key is the newest of its epoch, and moves the
        pin. They may all be somebody's who has only the key, and then this one is all that the
        primary's next increment can build on. That one, acknowledged and told to Consul, takes its
        place: so it is one snapshot, and an old one only where nobody replicates any more. Of the
        epochs before, the newest one stays anyhow (`retention`).
        """
        if begin.commons is None or self.vouched is None:
            return
        ours = [
            record.content_id for node, record in self.vouched.items() if node == self.config.node
        ]
        also = (begin.content_id, *begin.commons.values(), *ours)
        prune(self.config, self.store, also=also)


def _obstacles(config: Config) -> tuple[Obstacle, ...]:
    """What this node's agent finds: what it would do, it alone knows."""
    path = config.run_dir / "agent.sock"
    try:
        reply = ask(path, {"v": 1, "command": "inspect"}, Deadline.after(INSPECTION_S))
        return convert(reply.get("obstacles"), tuple[Obstacle, ...])
    except (StandfastError, ValidationError) as error:
        raise Refused(
            Reason.NOT_READY,
            f"the agent of {config.node} doesn't say what a promotion there would meet: {error}. "
            f"There: systemctl status standfast-agent@{config.volume}",
        ) from error


def _read_line(
    descriptor: int, deadline: Deadline, give_up: Callable[[float], str | None] | None = None
) -> str | None:
    """Returns the next line; None at the end of input.

    Byte by byte: what follows the line belongs to the stream. `give_up` is asked each second,
    with the seconds waited so far: a text is the reason to wait no longer.
    """
    line = bytearray()
    since = monotonic()
    while not line.endswith(b"\n"):
        if not select.select([descriptor], [], [], min(LOOK_UP_S, deadline.remaining_s()))[0]:
            deadline.check("the sender said nothing in time")
            if give_up is not None and (why := give_up(monotonic() - since)):
                raise TimedOut(why)
            continue
        byte = os.read(descriptor, 1)
        if not byte:
            if line:
                raise Refused(Reason.PROTOCOL, "the sender left in the middle of a line")
            return None
        line += byte
        if len(line) > wire.MAX_LINE_BYTES:
            raise Refused(Reason.PROTOCOL, f"a line of more than {wire.MAX_LINE_BYTES} bytes")
    return line[:-1].decode("utf-8", "replace")
