"""Other entries of the volume's service in Consul: who counts as a server that is active elsewhere.

An entry without an epoch was made by no version of this program: by hand, as people do who fail
over by a runbook, or by another tool. Where its port answers, somebody serves; where not, it is a
leftover, which keeps nobody from serving but sends clients the wrong way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from standfast.config.model import Config
from standfast.consul.values import Instance

WORDS = """ERROR: Another NFS server is already active at {address}
This host ({me}) is configured as NFS server but should be standby.
To fix:
  1. If this is intentional (failback), first demote the other server
  2. Update this host's config to use {hint} instead
  3. Sync data from active server before promoting this host"""


def is_foreign(instance: Instance) -> bool:
    """Tells whether no version of this program made the entry."""
    return "epoch" not in instance.meta


def is_listed(instance: Instance) -> bool:
    """Tells whether Consul's DNS sends clients there, as far as the entry's checks go."""
    return "critical" not in (instance.checks, instance.node_health)


def active_elsewhere(
    instances: Sequence[Instance], node: str, epoch: int, answers: Callable[[str, int], bool]
) -> Instance | None:
    """Returns another node's instance that counts as active, given the epoch of the lease held
    here.

    One with a lower epoch is the leftover of a dead primary, and counts if its port answers this
    node: then the fence over there has failed. One with this or a higher epoch counts when it
    passes; a foreign one when it passes and its port answers.
    """
    for instance in instances:
        if instance.node == node:
            continue
        text = instance.meta.get("epoch", "")
        lower = text.isascii() and text.isdigit() and int(text) < epoch
        if not lower and not is_listed(instance):
            continue
        asked = lower or is_foreign(instance)
        if not asked or answers(instance.address, instance.port):
            return instance
    return None


def words(config: Config, other: Instance) -> str:
    """Returns what is said where `other` keeps this node from serving, as the runbook has it; of a
    foreign one also how it is taken away."""
    text = WORDS.format(address=other.address, me=config.me.address, hint=config.guard.standby_hint)
    return f"{text}\n{taken_away(other)}" if is_foreign(other) else text


def taken_away(other: Instance) -> str:
    """Says how a foreign entry is taken away."""
    return (
        f"The entry was made by hand or by another program. If nothing is to serve there, stop "
        f"that server, and {deregistered(other)}"
    )


def deregistered(other: Instance) -> str:
    """Says how an entry is taken away where the server goes on."""
    return f"on {other.node}: consul services deregister -id={other.service_id}"
