"""The compare-and-set lease, as pure functions over what Consul holds and one monotonic clock.

Invariants:
- A lease is valid until `t_s + L`, where `t_s` was read before a heartbeat was sent that is known
  to have committed. A heartbeat sent before the lease was voided never makes it valid again.
- What a heartbeat tells as `wait` covers what the kernel still permits by an earlier one.
- A lease that had lapsed when Consul's keys turn out to be older than what is known of them, or
  written by another, gives no time for a whole wait: a successor that Consul has forgotten may
  serve for the rest of its own lease.
- Nothing here compares two machines' clocks.
- Two keys decide: `epoch` changes only at an acquisition, `leader` with each heartbeat. Whatever a
  node does, it does by one transaction that fails as a whole when either has moved.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from standfast.consul.records import Handover, Holder, Leader, LeaderState, longest_wait_s

NEVER = float("-inf")
NO_HANDOVER = Handover()
# Attempts of unknown outcome that are remembered; an older one that commits brings no time.
MOST_ATTEMPTS = 32


class Versioned(Struct, frozen=True):
    """What Consul holds of the two keys, read at one point in time; None: the key is not there."""

    epoch: int | None
    epoch_index: int
    leader: Leader | None
    leader_index: int
    highest: int = 0
    """The highest epoch that any of the volume's keys speaks of."""
    paused: bool = False
    on_hold: bool = False
    """The node that reads it."""


class Memory(Struct, frozen=True):
    """What an earlier process of this boot left behind of its lease; times are monotonic s."""

    epoch: int = 0
    instance: str = ""
    leader_index: int = 0
    """Where its last heartbeat stood that is known to have committed."""
    valid_until: float = NEVER
    voided_at: float = NEVER
    epoch_index: int = 0
    """Where the epoch stood; 0: an older version's process, which didn't tell."""
    committed_seq: int = 0
    """The sequence number of that heartbeat."""


NO_MEMORY = Memory()


class HeldLease(Struct, frozen=True):
    """What the holder knows of its own lease."""

    epoch: int
    holder: Holder
    epoch_index: int
    leader_index: int
    seq: int
    """Highest sequence number used in an attempt, committed or not."""
    valid_until: float = NEVER
    """Monotonic seconds."""
    voided_at: float = NEVER
    """Attempts sent before this moment never make the lease valid."""
    attempts: Mapping[int, float] = field(default_factory=dict)
    """Sequence number -> monotonic time before sending, of attempts whose outcome is unknown."""
    committed_seq: int = 0
    """Of the last heartbeat that is known to have committed."""
    earlier_wait_s: float = 0.0
    """The wait that was told when this lease was taken up: by another configuration, perhaps."""
    earlier_until: float = NEVER
    """By then whatever that heartbeat permitted is over for certain, monotonic seconds."""

    def remaining_s(self, now: float) -> float:
        return max(0.0, self.valid_until - now)

    def wait_s(self, own_s: float, now: float) -> float:
        """Returns what a heartbeat sent at `now` has to tell, with our own W `own_s`.

        A shorter `[lease]` counts for candidates at once, and for the kernel's permit only when the
        longer one has run out.
        """
        return max(own_s, self.earlier_wait_s) if now < self.earlier_until else own_s


class Attempt(Struct, frozen=True):
    """A heartbeat to be sent: one transaction {check epoch's index, cas leader}."""

    leader: Leader
    epoch_index: int
    leader_index: int


class Verdict(Struct, frozen=True):
    """What a read-back means for the holder."""


class StillMine(Verdict, frozen=True):
    """Nobody took over; `held_lease` carries the indexes to go on with."""

    held_lease: HeldLease


class Lost(Verdict, frozen=True):
    """Somebody else has a later epoch, or a heartbeat of theirs stands in ours: it is over."""

    why: str
    epoch: int = 0
    """The later epoch's, where that is known."""


class Repair(Verdict, frozen=True):
    """A key of ours was deleted by hand and has to be written again, perhaps the epoch's too."""

    held_lease: HeldLease
    missing_epoch: bool


class Halted(Verdict, frozen=True):
    """Consul holds an older epoch than ours (a restored backup): nothing is done without a word."""

    why: str


def next_attempt(
    held_lease: HeldLease,
    state: LeaderState,
    candidates: tuple[str, ...],
    handover: Handover = NO_HANDOVER,
    wait_s: float = 0.0,
) -> Attempt:
    """Returns the next heartbeat; each attempt has a sequence number of its own. `wait_s`: what it
    tells, see HeldLease.wait_s."""
    leader = Leader(
        epoch=held_lease.epoch,
        holder=held_lease.holder,
        seq=held_lease.seq + 1,
        state=state,
        candidates=candidates,
        wait=wait_s,
        **asdict(handover),
    )
    return Attempt(leader, held_lease.epoch_index, held_lease.leader_index)


def sent(held_lease: HeldLease, attempt: Attempt, t_s: float) -> HeldLease:
    """Returns the held lease once `attempt` is on its way: `t_s` was read before sending."""
    return replace(
        held_lease,
        seq=attempt.leader.seq,
        attempts=dict([*held_lease.attempts.items(), (attempt.leader.seq, t_s)][-MOST_ATTEMPTS:]),
    )


def committed(held_lease: HeldLease, seq: int, leader_index: int, length_s: float) -> HeldLease:
    """Returns the held lease once the attempt `seq` is known to have committed at
    `leader_index`."""
    t_s = held_lease.attempts.get(seq, NEVER)
    valid_until = held_lease.valid_until
    if t_s > held_lease.voided_at:
        valid_until = max(valid_until, t_s + length_s)
    return replace(
        held_lease,
        leader_index=leader_index,
        committed_seq=seq,
        valid_until=valid_until,
        attempts={},
    )


def voided(held_lease: HeldLease, now: float) -> HeldLease:
    """Returns the lease given up on purpose: the fence is closed and this is set before `clean` is
    sent."""
    return replace(held_lease, valid_until=NEVER, voided_at=now)


def read_back(
    held_lease: HeldLease, held: Versioned, now: float, length_s: float, wait_s: float = 0.0
) -> Verdict:
    """Returns what Consul's content, read after `now`, says after an attempt that failed or whose
    reply was lost."""
    if held.epoch is not None and held.epoch > held_lease.epoch:
        who = held.leader.holder.node if held.leader else "somebody"
        why = f"{who} took over with epoch {held.epoch}; epoch {held_lease.epoch} is over"
        return Lost(why, held.epoch)
    if held.epoch is not None and held.epoch < held_lease.epoch:
        return Halted(
            f"Consul holds epoch {held.epoch}, this node {held_lease.epoch}: Consul was restored "
            f"from a backup? Serving ends with the lease. Check who has the newest data, then run "
            f"`standfast accept-epoch` on each storage node"
        )
    leader = held.leader
    lapsed = held_lease.remaining_s(now) <= 0
    if lapsed and held.highest > held_lease.epoch:
        return Halted(
            f"Consul holds epoch {held_lease.epoch}, which is this node's, and other keys of the "
            f"volume tell of epoch {held.highest}: was a backup imported? Check who has the newest "
            f"data, then run `standfast accept-epoch` on each storage node"
        )
    leader_is_ours = leader is not None and (leader.epoch, leader.holder) == (
        held_lease.epoch,
        held_lease.holder,
    )
    if lapsed and not (leader_is_ours and _unbroken(held_lease, held)):
        # Restored from a backup, or another's heartbeat stood here (`accept-epoch` ended that
        # epoch): whoever it was may serve for the rest of a lease.
        wait_s = longest_wait_s(leader, wait_s)
        held_lease = replace(held_lease, voided_at=max(held_lease.voided_at, now + wait_s))
    if held.epoch is None:
        if leader is not None and not leader_is_ours:
            return Lost("the epoch key is gone and the leader key is another node's")
        if leader is None and lapsed:
            # Within the lease nobody else can have been primary; later, the keys that are gone may
            # have been a successor's, who is still serving.
            return Halted(
                f"the keys of the lease are gone from Consul, and the lease of epoch "
                f"{held_lease.epoch} ran out before: another may have served since. Check who has "
                f"the newest data, then run `standfast accept-epoch` on each storage node"
            )
        return Repair(replace(held_lease, leader_index=held.leader_index), missing_epoch=True)
    held_lease = replace(held_lease, epoch_index=held.epoch_index)
    if leader is None or leader.epoch < held_lease.epoch:
        return Repair(replace(held_lease, leader_index=held.leader_index), missing_epoch=False)
    if leader.epoch > held_lease.epoch or leader.holder != held_lease.holder:
        why = f"epoch {leader.epoch} is held by {leader.holder.node} in another boot or place"
        return Lost(why, leader.epoch)
    held_lease = replace(held_lease, seq=max(held_lease.seq, leader.seq))
    if leader.is_clean:
        # A clean of ours that committed after all: the way on is a heartbeat upon it, whose
        # commit proves that nobody had acquired. It gives no time of its own.
        return StillMine(replace(held_lease, leader_index=held.leader_index, attempts={}))
    return StillMine(committed(held_lease, leader.seq, held.leader_index, length_s))


def _unbroken(known: HeldLease | Memory, held: Versioned) -> bool:
    """Tells whether the keys are as this boot's epoch `known` left them, or it has gone on from
    there.

    A backup that was restored has an older heartbeat at its old index; one that was imported key by
    key has it at a new one, and the epoch's key, too.
    """
    leader = held.leader
    return (
        leader is not None
        and held.leader_index >= known.leader_index
        and leader.seq >= known.committed_seq
        and known.epoch_index in (0, held.epoch_index)
    )


def taken_up(
    held: Versioned, me: Holder, memory: Memory, now: float, wait_s: float
) -> HeldLease | None:
    """Takes up the lease of a process of this boot that ended without giving it up; None: there is
    none.

    It has the time that the earlier process had, and no more until a heartbeat commits. `held` was
    read before `now`; the sequence number is the last one in Consul, to be jumped ahead of.
    """
    leader = held.leader
    if leader is None or held.epoch != leader.epoch or leader.holder != me or leader.is_clean:
        return None
    if (memory.epoch, memory.instance) != (leader.epoch, me.instance):
        memory = NO_MEMORY
    held_lease = HeldLease(
        epoch=leader.epoch,
        holder=me,
        epoch_index=held.epoch_index,
        leader_index=held.leader_index,
        seq=leader.seq,
        committed_seq=leader.seq,
        valid_until=memory.valid_until,
        voided_at=memory.voided_at,
        earlier_wait_s=leader.wait,
        earlier_until=now + leader.wait,
    )
    if held_lease.remaining_s(now) <= 0 and not _unbroken(memory, held):
        void_s = longest_wait_s(leader, wait_s)
        held_lease = replace(held_lease, voided_at=max(held_lease.voided_at, now + void_s))
    return held_lease


class Claim(Struct, frozen=True):
    """A candidate's case: what it saw, since when, and what it takes over from."""

    epoch: int
    """The epoch it saw; the claim is for the next one. 0: there is none yet."""
    seen: tuple[int, str, str, int] | None
    """The identity of the last heartbeat, None when there is no leader key."""
    first_seen: float
    """When this node first saw it, on its own monotonic clock."""
    base: str | None
    reason: str
    operator: str | None
    lost_s: float | None
    follows: int | None = None
    """See HistoryEntry.follows."""
    witnessed: bool = False
    """See LastHeartbeat.witnessed."""
    unless_paused: bool = False
    """By itself, not by an operator's word: a pause, or a hold on this node, that is set meanwhile
    wins."""


def objection(claim: Claim, held: Versioned, now: float, wait_s: float) -> str | None:
    """Says why the claim may not be made good now, by what a consistent read shows; None: it
    may."""
    if (held.epoch or 0) != claim.epoch:
        return f"the epoch is {held.epoch or 0} now, the claim was made on {claim.epoch}"
    identity = held.leader.identity if held.leader else None
    if identity != claim.seen:
        return f"the last heartbeat is {identity} now, the claim was made on {claim.seen}"
    if held.highest > claim.epoch:
        return (
            f"other keys of the volume tell of epoch {held.highest}, the claim was made on "
            f"{claim.epoch}: check who has the newest data, then run `standfast accept-epoch` on "
            f"each storage node"
        )
    if claim.witnessed and held.leader is not None and held.leader.gives_up(held.epoch):
        return None
    # Keys that are not there say nothing about who serves: they may have been deleted under a
    # holder, so the wait counts from when this node first saw them gone.
    waited, needed = now - claim.first_seen, longest_wait_s(held.leader, wait_s)
    if waited < needed:
        return f"the last heartbeat was first seen {waited:.1f} s ago, {needed:g} s are needed"
    return None


def acquired(held: Versioned, sent: Leader, t_s: float, length_s: float) -> HeldLease | None:
    """Returns the held lease if Consul shows that our acquisition, `sent` at `t_s`, committed.

    An earlier attempt of this node's for the same epoch, which came late, is ours too: it is known
    by another sequence number, and it gives no time, as nobody knows when it was sent.
    """
    leader = held.leader
    if leader is None or held.epoch != sent.epoch:
        return None
    if (leader.epoch, leader.holder) != (sent.epoch, sent.holder) or leader.is_clean:
        return None
    return HeldLease(
        epoch=sent.epoch,
        holder=sent.holder,
        epoch_index=held.epoch_index,
        leader_index=held.leader_index,
        seq=max(sent.seq, leader.seq),
        committed_seq=leader.seq,
        valid_until=t_s + length_s if leader.seq == sent.seq else NEVER,
    )
