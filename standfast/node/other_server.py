"""Entries of the volume's service in Consul: which is the server's, and which is in its way.

Whoever may write the service's name in Consul can make one that says anything. So clients go by the
volume's keys, which their tokens can't write: to the entry that the holder of the current epoch
made at its own address (`registered_by`). A node that is to serve looks for the opposite, and in
doubt it may not; but an entry made elsewhere must not keep everybody from serving: of what is none
of ours, the machine is asked. Where an NFS server answers, somebody serves; where none does in
time, it is a leftover. Its port is the volume's, not what the entry says, which may be anything.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from standfast.config.model import Config
from standfast.consul.records import is_epoch
from standfast.consul.values import Instance
from standfast.system.clock import Deadline
from standfast.system.mountinfo import canonical

DOORS_S = 0.4
"""For the answers of all doors. What is slower is taken for a leftover: in doubt
whoever may write an entry could keep everybody from serving."""
MOST_ASKED = 16
"""Machines of foreign entries, which are asked at once; in a cluster there are none, or one."""
MOST_NAMED = 4

WORDS = """ERROR: Another NFS server is already active at {address}
This host ({me}) is configured as NFS server but should be standby.
To fix:
  1. If this is intentional (failback), first demote the other server
  2. Update this host's config to use {hint} instead
  3. Sync data from active server before promoting this host"""


def epoch_of(instance: Instance) -> int | None:
    """Returns the epoch that an entry tells, whoever made it; None: none, or no number."""
    told = instance.meta.get("epoch", "")
    return int(told) if is_epoch(told) else None


def registered_by(node: str, instance: Instance, config: Config) -> bool:
    """Tells whether an entry is the one that this program makes on that storage node: in its place,
    of its address, and with the check that goes with it."""
    known = config.nodes.get(node)
    return (
        known is not None
        and instance.node == node
        and instance.service_id == config.service_id
        and instance.has_own_check
        and canonical(instance.address) == canonical(known.address)
    )


def is_well(instance: Instance) -> bool:
    """Tells whether its node lives and each of its checks passes."""
    return instance.checks == "passing" and instance.node_health != "critical"


def is_foreign(instance: Instance, config: Config) -> bool:
    """Tells whether no version of this program made the entry: it tells no epoch, or is on none of
    the storage nodes.

    On one of these any epoch counts, at whatever address: an agent there made it, or somebody who
    may write the catalogue itself; its file may know an address that ours doesn't.
    """
    return "epoch" not in instance.meta or instance.node not in config.nodes


def is_listed(instance: Instance) -> bool:
    """Tells whether Consul's DNS sends clients there, as far as the entry's checks go."""
    return "critical" not in (instance.checks, instance.node_health)


@dataclass(frozen=True, slots=True)
class Door:
    """What is asked where an entry may be another server's."""

    address: str
    port: int
    nfs: bool
    """An NFS server has to answer there; otherwise the port need only let this node in: also a
    server that is stuck must not be served beside."""


Answering = Callable[[Sequence[Door], Deadline], Collection[Door]]
"""Returns those that answer by the deadline."""


def nobody(_doors: Sequence[Door], _deadline: Deadline) -> Collection[Door]:
    """Where no machine is to be asked."""
    return ()


def active_elsewhere(
    instances: Sequence[Instance],
    config: Config,
    node: str,
    epoch: int,
    answering: Answering,
    deadline: Deadline,
) -> tuple[Instance, ...]:
    """Returns the instances that count as active elsewhere than on `node`, given the epoch of the
    lease held there; all that have to be asked are asked at once.

    One of a storage node with a lower epoch is the leftover of a dead primary, and counts if its
    port lets this node in: then the fence over there has failed. One with this or a higher epoch
    counts when it passes, whatever the keys say (they may have been deleted, or restored). A
    foreign one counts when it passes, or tells a lower epoch, and an NFS server answers at its
    address. Of more foreign ones than can be asked the rest are leftovers, see `unasked`.
    """
    sure, own, foreign = _parted(instances, config, node, epoch)
    doors = [*_doors(own), *_doors(foreign)[:MOST_ASKED]]
    answered = answering(doors, deadline) if doors else ()
    return (*sure, *(instance for instance, door in (*own, *foreign) if door in answered))


def unasked(instances: Sequence[Instance], config: Config, node: str, epoch: int) -> str | None:
    """Says of which foreign entries nobody is asked, as there are too many; None: of none."""
    _, _, foreign = _parted(instances, config, node, epoch)
    left = set(_doors(foreign)[MOST_ASKED:])
    over = [instance for instance, door in foreign if door in left]
    if not over:
        return None
    names = ", ".join(f"{each.service_id} on {each.node}" for each in over[:MOST_NAMED])
    more = "" if len(over) <= MOST_NAMED else ", ..."
    return (
        f"{len(over)} entries of {config.service} that none of the storage nodes made are taken "
        f"for leftovers unasked, as {MOST_ASKED} others were asked: {names}{more}"
    )


_Asked = list[tuple[Instance, Door]]


def _parted(
    instances: Sequence[Instance], config: Config, node: str, epoch: int
) -> tuple[list[Instance], _Asked, _Asked]:
    """Returns what counts without a question; what a storage node may have made, and what is
    foreign, each with whom to ask: foreign ones at a storage node's address first."""
    sure: list[Instance] = []
    own: _Asked = []
    foreign: _Asked = []
    for instance in instances:
        if instance.node == node:
            continue
        told = epoch_of(instance)
        lower = told is not None and told < epoch
        if not lower and not is_listed(instance):
            continue
        address = canonical(instance.address)
        if is_foreign(instance, config):
            foreign.append((instance, Door(address, config.nfs.port, nfs=True)))
        elif lower:
            own.append((instance, Door(address, instance.port, nfs=False)))
        else:
            sure.append(instance)
    known = {canonical(each.address) for each in config.nodes.values()}
    foreign.sort(key=lambda asked: asked[1].address not in known)
    return sure, own, foreign


def _doors(asked: _Asked) -> list[Door]:
    return list(dict.fromkeys(door for _, door in asked))


def words(config: Config, other: Instance) -> str:
    """Returns what is said where `other` keeps this node from serving, as the runbook has it; of a
    foreign one also how it is taken away."""
    text = WORDS.format(address=other.address, me=config.me.address, hint=config.guard.standby_hint)
    return f"{text}\n{taken_away(other)}" if is_foreign(other, config) else text


def taken_away(other: Instance) -> str:
    """Says how a foreign entry is taken away."""
    return (
        f"The entry was made by hand or by another program. If nothing is to serve there, stop "
        f"that server, and {deregistered(other)}"
    )


def deregistered(other: Instance) -> str:
    """Says how an entry is taken away where the server goes on. Its id is anybody's text, and this
    line is for a shell."""
    return f"on {other.node}: consul services deregister {shlex.quote(f'-id={other.service_id}')}"
