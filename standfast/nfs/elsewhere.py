"""Who answers at the addresses that entries of the service name: all are asked at once.

Whoever may write the service's name chose those addresses. So nothing here takes longer than the
deadline, whether packets are dropped or a name server hangs; what it doesn't reach doesn't answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from standfast.nfs.rpc_null import null_call
from standfast.node.other_server import Door
from standfast.system.clock import Deadline
from standfast.system.probe import lets_in
from standfast.system.threads import all_at_once


def answering(doors: Sequence[Door], deadline: Deadline) -> frozenset[Door]:
    """Returns those that answer by the deadline."""
    answers = all_at_once("ask", [partial(_answers, door, deadline) for door in doors])
    return frozenset(door for door, answer in zip(doors, answers, strict=True) if answer)


def _answers(door: Door, deadline: Deadline) -> bool:
    if door.nfs:
        return null_call(door.address, door.port, deadline) is None
    return lets_in(door.address, door.port, deadline)
