"""The process `standfast-lease@V.service`: from the claim to the end, by heartbeats and commands.

Invariants: a lease that an earlier process of this boot held is taken up as it was, and nothing is
shut on the way; a new one is acquired behind a fence that is up and shut.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from standfast.config.model import Config
from standfast.config.node_name import keep_name
from standfast.consul.records import Handover
from standfast.errors import ConsulError, Refused, StandfastError, ours
from standfast.events.events import Kind, happened, tell
from standfast.lease import protocol
from standfast.lease.epochs import EpochFile
from standfast.lease.files import (
    LeaseStatus,
    forget_flush,
    forget_vouch,
    holder_of,
    note_end,
    note_flush,
    note_outage,
    note_start,
    take_claim,
)
from standfast.lease.holding import Consul, LeaseKeys
from standfast.lease.inbox import Inbox, listening
from standfast.lease.keeper import FENCE_MARGIN_S, Keeper
from standfast.lease.protocol import NO_MEMORY, HeldLease
from standfast.lease.surrender import Spell
from standfast.node.ports import Fence, NfsServer
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from standfast.system.locks import exclusive
from standfast.system.sd_notify import notify

log = logging.getLogger(__name__)

RETRY_S = 0.5
"""Between heartbeats that fail."""


class Turn:
    """The parts of a turn of the loop: what one of them raises keeps the others from nothing."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._failures: dict[str, str] = {}
        """What each part failed with last, so that it is said once."""

    def do(self, part: Callable[[], None]) -> None:
        """Runs the part; whatever it raises is logged once.

        A lease that is lost and a server that could not be stopped end the process all the same:
        that is for the service manager then (`OnFailure=`).
        """
        try:
            part()
        except Exception as error:
            if self._keeper.over:
                raise
            failure = str(ours(error))
            if failure != self._failures.get(part.__name__):
                log.error("%s: %s", part.__name__, failure)
            self._failures[part.__name__] = failure
        else:
            self._failures.pop(part.__name__, None)


def answer(keeper: Keeper, request: Mapping[str, Any]) -> dict[str, Any]:
    """Carries out one command of the agent's."""
    command = request.get("cmd")
    words = {name: request.get(name) for name in ("to", "note", "final", "final_id", "operator")}
    try:
        if command == "serve":
            keeper.serve()
        elif command == "hold":
            keeper.hold()
        elif command == "drain":
            keeper.drain()
        elif command in ("release", "surrender") and all(
            isinstance(word, str | None) for word in words.values()
        ):
            lost = request.get("surrendered") is True or command == "surrender"
            handover = Handover(**words, surrendered=lost)  # type: ignore[arg-type]
            (keeper.surrender if command == "surrender" else keeper.release)(handover)
        elif command != "status":
            return {"ok": False, "error": f"unknown command {command!r}"}
    except Exception as error:  # noqa: BLE001  # told to who asked; the heartbeats go on
        return {"ok": False, "error": str(ours(error))}
    return {"ok": True, "epoch": keeper.held_lease.epoch, "over": keeper.over}


def hold(keeper: Keeper, inbox: Inbox) -> None:
    """Sends heartbeats and answers commands until the lease is over or the inbox says to end."""
    timing = keeper.config.lease
    next_beat = monotonic()
    turn = Turn(keeper)

    def reply(request: Mapping[str, Any]) -> dict[str, Any]:
        said = answer(keeper, request)
        if not keeper.over:
            turn.do(keeper.save)
        return said

    while True:
        now = monotonic()
        keeper.heard = False
        if now >= next_beat and not keeper.holding_back:
            turn.do(keeper.beat)
            next_beat = now + (timing.heartbeat if keeper.trouble is None else RETRY_S)
        turn.do(keeper.check_end)
        turn.do(keeper.see_to_serving)
        if keeper.over:
            return
        turn.do(keeper.save)
        notify("WATCHDOG=1")
        pause = min(max(next_beat - monotonic(), 0.0), timing.heartbeat)
        end = keeper.held_lease.remaining_s(monotonic())
        if keeper.serving and end > 0:
            pause = min(pause, end + FENCE_MARGIN_S)
        if not inbox.wait(pause if not keeper.holding_back else timing.heartbeat, reply):
            log.info("asked to end: the lease stays valid until its time is over")
            return


def obtain(
    config: Config, keys: LeaseKeys, fence: Fence, earlier: LeaseStatus | None = None
) -> HeldLease:
    """Takes up the lease of this boot again, or shuts the port and makes a claim of the agent's
    good.

    Refused; StandfastError where the fence can't be put up: nothing is acquired then.
    """
    highest = EpochFile(config.state_dir / "epoch")
    try:
        held_lease = keys.take_up(NO_MEMORY if earlier is None else earlier.memory)
    except ConsulError:
        note_outage(config.run_dir)
        raise
    if held_lease is not None:
        _refuse_older(held_lease.epoch, highest.read())
    else:
        claim = take_claim(config.run_dir)
        if claim is None:
            raise Refused(
                Reason.LEASE_NOT_HELD,
                "this node doesn't hold the lease and the agent made no claim to it; "
                f"see `standfast status`, or ask with `standfast promote --volume {config.volume}`",
            )
        _refuse_older(claim.epoch, highest.read())
        # Before: who finds out with the lease in its hands that nothing cuts this node off can't
        # serve, and has the others wait once more.
        fence.ensure_closed()
        held_lease = keys.acquire(claim)
        text = f"epoch {held_lease.epoch} begins on {config.node} ({claim.reason})"
        tell(happened(config, Kind.LEASE_ACQUIRED, text, epoch=held_lease.epoch))
    highest.raise_to(held_lease.epoch)
    return held_lease


def _refuse_older(epoch: int, highest: int) -> None:
    """Refuses an epoch that this node has seen the end of: none is taken up or gone on from."""
    if epoch < highest:
        raise Refused(
            Reason.EPOCH_WENT_BACK,
            f"Consul holds epoch {epoch}, this node has seen {highest}: Consul was restored from a "
            f"backup? Nothing is served; check who has the newest data, then run "
            f"`standfast accept-epoch` on each storage node",
        )


def previous_status(run_dir: Path) -> LeaseStatus | None:
    """Returns what an earlier keeper said last; one of another boot or epoch is not gone on
    from."""
    try:
        return LeaseStatus.load(run_dir)
    except StandfastError:
        return None


def build(config: Config, keys: LeaseKeys, fence: Fence, nfs: NfsServer) -> Keeper:
    """Builds a keeper with the lease in its hand."""
    earlier = previous_status(config.run_dir)
    held_lease = obtain(config, keys, fence, earlier)
    keeper = Keeper(config, keys, fence, nfs, held_lease, since=monotonic())
    now_held = (held_lease.epoch, held_lease.holder.instance)
    if earlier is None or (earlier.epoch, earlier.instance) != now_held:
        # Of one that is taken up nobody knows whether it has served: then it has.
        taken_up = held_lease.earlier_until != protocol.NEVER
        if taken_up:
            fence.ensure_closed()
        forget_flush(config.run_dir)
        forget_vouch(config.run_dir)
        keeper.service.spell = Spell(monotonic(), served=taken_up, opened=taken_up)
    else:
        # Taken up: the kernel's timer goes on by itself, nothing is shut on the way.
        keeper.since = earlier.since
        keeper.service.spell = Spell(
            monotonic(), earlier.unserved_s, served=earlier.served, opened=earlier.opened
        )
        keeper.serving = earlier.serving
        keeper.state = earlier.state
        keeper.flushes = earlier.flushes
        keeper.armed_until = earlier.armed_until
        keeper.in_doubt = not earlier.serving and earlier.armed_until > monotonic()
        keeper.longest_s = max(0.0, earlier.valid_until - monotonic())
        if not fence.state().in_place:
            fence.ensure_closed()
            note_flush(config.run_dir)
    return keeper


def run(
    config: Config,
    keys: LeaseKeys,
    fence: Fence,
    nfs: NfsServer,
    inbox: contextlib.AbstractContextManager[Inbox],
) -> int:
    """Runs the process, from the claim to the end. Exit 0: told to end, released or lost."""
    note_start(config)
    keeper = build(config, keys, fence, nfs)
    with inbox as requests:
        keeper.save()
        notify(f"READY=1\nSTATUS=epoch {keeper.held_lease.epoch}")
        hold(keeper, requests)
    keeper.say_last()
    if keeper.unended is not None:
        raise keeper.unended  # whoever asked may have been told; the service manager has to be
    keeper.end_surrender()
    keeper.sign_off()  # only now: nobody is served from here
    if keeper.over:
        note_end(config)
        keeper.remember_successor()  # last: the disk may hang
    return 0


class Parts(NamedTuple):
    """What this process is made of, apart from its own files."""

    consul: Consul
    fence: Fence
    nfs: NfsServer


def main(config: Config, make: Callable[[Config], Parts]) -> int:
    """Runs `standfast lease VOLUME`; at most one per volume on a node.

    `make` is called with the lock held: settling the fence is the holder's alone.
    """
    stop_reader, stop_writer = socket.socketpair()
    stop_writer.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: stop_writer.send(b"x"))
    signal.signal(signal.SIGINT, lambda *_: stop_writer.send(b"x"))
    inbox = listening(config.run_dir / "lease.sock", stop_reader)
    # The agent's look at the lock (`is_locked`) holds it for an instant: worth a second try.
    lock = config.run_dir / "lease.lock"
    with exclusive(lock, "another lease process of this volume", Deadline.after(2.0)):
        keep_name(config)
        parts = make(config)
        keys = LeaseKeys(config, parts.consul, holder_of(config))
        return run(config, keys, parts.fence, parts.nfs, inbox)
