"""What Nomad should look like next, from what was seen of it and this node's role: pure.

Invariants: jobs are stopped on a node only where they can't be placed again (it is ineligible, or
the servers don't show the meta on it); a node's eligibility is given back only where a note of ours
says that we took it, and only when the servers don't show the meta on it, or it is the primary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from standfast.nomad.observation import Constrained, Noted, Observed, Role
from standfast.nomad.ports import READY, Node
from standfast.reasons import Reason


class Do(StrEnum):
    """Every effect that following may have; `steps` has one function for each."""

    QUARANTINE = "quarantine"
    """Write the note, then make the node ineligible."""
    LIFT = "lift"
    """Make the node eligible, then delete the note."""
    DROP_NOTE = "drop-note"
    """Somebody else changed the eligibility: it is theirs."""
    SET_META = "set-meta"
    UNSET_META = "unset-meta"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Step:
    """One effect on a node or an allocation."""

    do: Do
    says: str
    node: Node | None = None
    allocation: Constrained | None = None
    noted: Noted | None = None
    """The note that it ends."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The steps in their order, and the state in one sentence."""

    reason: Reason
    sentence: str
    steps: tuple[Step, ...] = ()

    @property
    def settled(self) -> bool:
        """Tells whether there is nothing to do and nothing to wait for."""
        return not self.steps and self.reason in (Reason.NOMAD_FOLLOWS, Reason.NOMAD_NOT_ELIGIBLE)


CHANGING = Decision(Reason.NOMAD_ROLE_CHANGING, "the role is changing: Nomad is left as it is")


def decide(seen: Observed) -> Decision:
    """Returns what one round has to do."""
    match seen.role:
        case Role.PRIMARY:
            return _as_primary(seen)
        case Role.STANDBY:
            return _as_standby(seen)
        case _:
            return CHANGING


def _as_primary(seen: Observed) -> Decision:
    marked = [node for node in seen.others if seen.shows(node)]
    held = list(_unsafe(seen))
    steps = [_quarantine(node, "it shows the primary's meta") for node in marked if node.eligible]
    if not held:
        steps += _own_eligibility(seen)
        if not seen.local:
            steps.append(Step(Do.SET_META, f"set {_pair(seen)} on this node"))
    ready = seen.shows(seen.own)
    for node in seen.others:
        for allocation in seen.on(node):
            # Its node is ineligible by now, or doesn't show the meta: it can't come back there.
            if allocation.wanted and (ready or allocation.on_every_node):
                steps.append(_stop(allocation, node))
    return _told(seen, tuple(steps), held)


def _unsafe(seen: Observed) -> Iterator[Constrained]:
    """Yields what would run twice if this node took jobs now: Nomad doesn't wait for its end.

    It does for the end of what it stops and places in one go; not for that of a system job on
    another node, nor of what was stopped while no node could take it.
    """
    for node in (seen.own, *seen.others):
        for allocation in seen.on(node) if node.status == READY else ():
            if not allocation.wanted or (allocation.on_every_node and node is not seen.own):
                yield allocation


def _told(seen: Observed, steps: tuple[Step, ...], held: list[Constrained]) -> Decision:
    pair, own = _pair(seen), seen.own
    left = [allocation for node in seen.others for allocation in seen.on(node)]
    if held and not (seen.local and own.eligible):
        names = ", ".join(sorted({allocation.job for allocation in held}))
        return Decision(Reason.NOMAD_MOVING, f"{names} has to end before jobs are placed here: it "
                        "would run twice", steps)  # fmt: skip
    if not seen.shows(own):
        return Decision(
            Reason.NOMAD_META_ON_ITS_WAY, f"the servers don't show {pair} on {own.name} yet", steps
        )
    if not own.eligible and own.id not in seen.notes:
        why = "is draining" if own.draining else "is ineligible"
        sentence = (
            f"{own.name} {why} by an operator's choice: jobs of the primary can't come here. "
            f"nomad node eligibility -enable {own.id}"
        )
        return Decision(Reason.NOMAD_NOT_ELIGIBLE, sentence, steps)
    if left:
        names = ", ".join(sorted({allocation.job for allocation in left}))
        return Decision(Reason.NOMAD_MOVING, f"still on other nodes: {names}", steps)
    if steps:
        return Decision(Reason.NOMAD_MOVING, "; ".join(step.says for step in steps), steps)
    return Decision(Reason.NOMAD_FOLLOWS, f"{own.name} shows {pair}, and no job is left behind")


def _as_standby(seen: Observed) -> Decision:
    own, pair = seen.own, _pair(seen)
    shown = seen.shows(own)
    noted = seen.notes.get(own.id)
    if noted is not None and noted.firm and own.draining:
        # At once: when the drain is over, nothing tells it from our own doing.
        sentence = f"{own.name} is being drained by an operator: it stays ineligible"
        return Decision(Reason.NOMAD_QUARANTINED, sentence, tuple(_own_eligibility(seen)))
    if noted is not None and noted.ahead and not own.eligible:
        sentence = f"{own.name} is to be the primary: it shows {pair}, and takes no jobs yet"
        return Decision(Reason.NOMAD_META_AHEAD, sentence)
    steps = []
    if (shown or seen.local) and own.eligible:
        # At once, while the servers hear of an unset meta 5-10 s later.
        steps.append(_quarantine(own, "it has the primary's meta and is a standby"))
    if seen.local:
        steps.append(Step(Do.UNSET_META, f"unset {pair} on this node"))
    steps += [_stop(allocation, own) for allocation in seen.on(own) if allocation.wanted]
    if shown:
        sentence = f"the servers still show {pair} on {own.name}: no job is placed here until then"
        return Decision(Reason.NOMAD_QUARANTINED, sentence, tuple(steps))
    if not seen.local:
        steps += _own_eligibility(seen)
    if steps:
        sentence = "; ".join(step.says for step in steps)
        return Decision(Reason.NOMAD_QUARANTINED, sentence, tuple(steps))
    if own.id in seen.notes:
        sentence = f"{own.name} is just being made ineligible by {seen.notes[own.id].note.by}"
        return Decision(Reason.NOMAD_QUARANTINED, sentence)
    ending = sorted({allocation.job for allocation in seen.on(own)})
    if ending:
        return Decision(Reason.NOMAD_MOVING, f"ending here: {', '.join(ending)}")
    return Decision(Reason.NOMAD_FOLLOWS, f"{own.name} is a standby and doesn't show {pair}")


def _own_eligibility(seen: Observed) -> Iterator[Step]:
    """Makes the node eligible again where a note says that we took that; a drain stays."""
    own = seen.own
    noted = seen.notes.get(own.id)
    if noted is None or not noted.firm:
        return
    if own.eligible or own.draining:
        said = f"forget the quarantine of {own.name}: it is over"
        yield Step(Do.DROP_NOTE, said, own, noted=noted)
    else:
        yield Step(Do.LIFT, f"make {own.name} eligible again", own, noted=noted)


def _quarantine(node: Node, why: str) -> Step:
    return Step(Do.QUARANTINE, f"make {node.name} ineligible: {why}", node)


def _stop(allocation: Constrained, node: Node) -> Step:
    return Step(Do.STOP, f"stop {allocation.job} on {node.name}", node, allocation)


def _pair(seen: Observed) -> str:
    return f"{seen.meta.key}={seen.meta.value}"
