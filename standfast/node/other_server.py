"""Entries of the volume's service in Consul: which is the server's, and which is in its way.

Whoever may write the service's name in Consul can make one that says anything. So clients go by the
volume's keys, which their tokens can't write: to the entry that the holder of the current epoch
made at its own address (`registered_by`). A node that is to serve looks for the opposite, and in
doubt it may not; but an entry made elsewhere must not keep everybody from serving: of what is none
of ours, the port is asked. Where it answers, somebody serves; where not, it is a leftover.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from standfast.config.model import Config
from standfast.consul.records import is_epoch
from standfast.consul.values import Instance
from standfast.system.mountinfo import canonical

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


def active_elsewhere(
    instances: Sequence[Instance],
    config: Config,
    node: str,
    epoch: int,
    answers: Callable[[str, int], bool],
) -> Instance | None:
    """Returns an instance that counts as active elsewhere than on `node`, given the epoch of the
    lease held there.

    One with a lower epoch is the leftover of a dead primary, and counts if its port answers this
    node: then the fence over there has failed. One with this or a higher epoch counts when it
    passes, whatever the keys say (they may have been deleted, or restored); a foreign one when it
    passes and its port answers.
    """
    for instance in instances:
        if instance.node == node:
            continue
        told = epoch_of(instance)
        lower = told is not None and told < epoch
        if not lower and not is_listed(instance):
            continue
        asked = lower or is_foreign(instance, config)
        if not asked or answers(instance.address, instance.port):
            return instance
    return None


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
