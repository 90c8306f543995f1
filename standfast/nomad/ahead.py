"""The next primary shows the meta before the role goes to it.

The servers hear of a meta 5-10 s late, and jobs that were stopped on the old one would wait for it.

Invariant: the node takes no jobs from before it has the meta until it is primary (`decide` gives
that back then), so neither a system job nor a waiting one starts there early. When the role doesn't
come, the node itself takes the meta away again (`notes.AHEAD_S`).
"""

from __future__ import annotations

import logging

from standfast.errors import NomadError, NomadOutcome, Refused
from standfast.nomad.constraints import Meta
from standfast.nomad.notes import Notes
from standfast.nomad.ports import READY, Node, NomadGateway
from standfast.nomad.release import bound_on
from standfast.system.clock import Deadline, sleep

log = logging.getLogger(__name__)

POLL_S = 0.25
# Servers hear of a new meta 5-10 s later (measured on 2.0.6); past this the storage goes anyway.
SHOWN_S = 15.0


def prepare(
    nomad: NomadGateway, notes: Notes, meta: Meta, name: str, epoch: int, deadline: Deadline
) -> str:
    """Have node `name` show the meta, for the primary of `epoch`; returns what came of it.

    NomadError, ConsulError, or Refused when the epoch is over; a part may be done then, which the
    node undoes by itself.
    """
    if not bound_on(nomad, nomad.own_node(), meta):
        return "no job here is bound to the primary"
    node = _named(nomad, name)
    if node.status != READY:
        return f"{name} is {node.status} in Nomad"
    noted = notes.load().get(node.id)
    again = noted is not None and noted.note.ahead and not node.draining
    if not node.eligible and not again:
        why = "by somebody's word" if noted is None else "yet: it was made ineligible before"
        return f"{name} takes no jobs {why}"
    notes.write(node, epoch, firm=False, ahead=True)
    nomad.set_eligible(node.id, False)
    try:
        notes.write(node, epoch, ahead=True)
    except Refused:
        if node.eligible and node.id not in notes.load():
            nomad.set_eligible(node.id, True)  # the reign is over, and its note is gone already
        raise
    nomad.set_meta(meta.key, meta.value, node_id=node.id)
    limit = deadline.within(SHOWN_S)
    while not limit.expired:
        if nomad.node(node.id).meta.get(meta.key) == meta.value:
            return f"{name} shows {meta.key}={meta.value}, and takes no jobs until it is primary"
        sleep(POLL_S)
    return f"the servers don't show {meta.key}={meta.value} on {name} yet"


def _named(nomad: NomadGateway, name: str) -> Node:
    """The node that is there; of those with its name the others are left from before."""
    found = nomad.nodes([name])
    for node in found:
        if node.status == READY:
            return node
    if found:
        return found[0]
    raise NomadError(f"Nomad knows no node {name}", NomadOutcome.NOT_FOUND)
