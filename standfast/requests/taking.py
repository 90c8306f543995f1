"""A node's side: looks for requests that are for this node, takes them, and tells how far they are.

Invariants: a request for another node is never touched, but for one of nobody's any more, an hour
after its last change by this node's own clock. What was taken is begun once, by the process that
took it, and soon; an earlier process's is ended with what is known of it. Nothing here delays the
role: it has a thread of its own, and commands go in by the door that the agent's socket has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from standfast.config.model import Config
from standfast.consul.ports import Keys
from standfast.consul.values import Entry
from standfast.errors import ConsulError, ForeignValue, ours
from standfast.reasons import Reason
from standfast.requests import programs
from standfast.requests.decide import Look, Sighting, Traces, follow, is_in_time, to_take
from standfast.requests.folder import Folder, Found
from standfast.requests.record import OUTCOMES, REQUESTS, ROLE, Outcome, Request
from standfast.requests.work import Work
from standfast.system.clock import up

log = logging.getLogger(__name__)

MOST_AT_ONCE = 4
BUSY_S = 0.25
"""Between two looks while there is something to look after."""
IDLE_S = 5.0
"""For so long a change of the bell is waited for."""
NO_BELL_S = 2.0
"""Between two looks before anybody ever asked for anything."""
TROUBLE_S = 1.0
TIDY_EVERY_S = 600.0
FORGOTTEN_S = 3600.0


class Consul(Keys, Protocol):
    """What this needs of the gateway."""

    def wait(self, key: str, index: int, *, wait_s: float) -> tuple[int, Entry | None]: ...


@dataclass(frozen=True, slots=True)
class Node:
    """What this needs of the agent."""

    run: str
    """Names this process."""
    door: Callable[[Work], None]
    """Has the agent carry out a command, later and in its own thread."""
    concludes: Callable[[], str]
    """What the node concludes from its last look, for people."""
    program: Sequence[str] = ()
    """What starts `standfast`; empty: no programs are started here."""


class Taker:
    """Takes the requests of one volume for one node; used by one thread."""

    def __init__(self, config: Config, consul: Consul, node: Node) -> None:
        self._config = config
        self._consul = consul
        self._folder = Folder(config, consul)
        self._node = node
        self._traces = Traces()
        self._bell = 0
        self._is_idle = False
        self._tried: dict[str, float] = {}
        """When the requester of each that we meant to take was there."""
        self._begun: set[str] = set()
        self._work: dict[str, Work] = {}
        self._unchanged: dict[str, tuple[int, float]] = {}
        self._tidied_at = up()
        self._trouble = ""

    def turn(self) -> float:
        """Does what is due; returns after how many seconds to come again."""
        try:
            return self._turn()
        except ConsulError as error:
            self._bell = 0
            if str(error) != self._trouble:
                log.debug("%s", error)
            self._trouble = str(error)
            return TROUBLE_S

    def _turn(self) -> float:
        if self._is_idle:
            index, bell = self._consul.wait(self._folder.bell, self._bell, wait_s=IDLE_S)
            # A wait for a key that doesn't exist ends with every change of any key.
            self._bell = 0 if bell is None else index
        began = up()
        found = self._folder.look()
        mine = {name: each for name, each in found.items() if self._is_mine(each.request)}
        open_ones = {name: each for name, each in mine.items() if each.request.taken is None}
        sightings = {
            name: Sighting(each.request.beat, each.index) for name, each in open_ones.items()
        }
        self._traces = follow(self._traces, Look(began, up(), sightings))
        self._begin_what_was_taken(mine)
        for name in to_take(self._traces, up()):
            if len(self._work) < MOST_AT_ONCE and name in open_ones:
                self._take(open_ones[name])
        self._tell()
        self._tidy()
        alive = [name for name in open_ones if not self._traces.by_id[name].dead]
        self._is_idle = not (self._work or alive)
        if self._is_idle:
            return 0.0 if self._bell else NO_BELL_S
        return BUSY_S

    def _is_mine(self, request: Request) -> bool:
        return request.node == self._config.node

    # Taking

    def _take(self, found: Found) -> None:
        request = found.request
        self._tried[request.id] = self._traces.by_id[request.id].alive_at
        if self._folder.take(found, self._node.run):
            self._begin(request)

    def _begin_what_was_taken(self, mine: Mapping[str, Found]) -> None:
        """Those of which the answer was lost; and ends those of an earlier process."""
        for name, found in mine.items():
            if found.request.taken is None or name in self._begun:
                continue
            if found.request.taken == self._node.run:
                self._begin(found.request)
            else:
                self._end_interrupted(found.request)
                self._begun.add(name)

    def _begin(self, request: Request) -> None:
        self._begun.add(request.id)
        work = self._looked_after(request)
        if not is_in_time(self._tried.pop(request.id, float("-inf")), up()):
            text = "not carried out: Consul's answer took too long; run it again"
            work.end(3, error=text, reason=str(Reason.NOT_TAKEN))
            return
        log.info("%s asks for `%s` (request %s)", request.by, request.verb, request.id)
        if request.verb in ROLE:
            self._node.door(work)
        else:
            programs.begin(self._node.program, self._config.volume, work)

    def _end_interrupted(self, request: Request) -> None:
        try:
            _, outcome = self._folder.both(request.id)
        except ForeignValue as error:
            log.warning("%s", error)
            return
        if outcome is not None and outcome.ended:
            return
        goes_on = (
            f"the next one goes on with what was begun (now: {self._node.concludes()}). Look with "
            "`standfast status`"
        )
        text = (
            f"the agent of {request.node} ended in the middle of `standfast {request.verb}`; "
            f"{goes_on if request.verb in ROLE else 'run it again'}"
        )
        work = self._looked_after(request)
        if outcome is not None:
            for line in outcome.progress:
                work.say(line)
        work.end(4, error=text, reason=str(Reason.INTERRUPTED))

    def _looked_after(self, request: Request) -> Work:
        work = self._work[request.id] = Work(request, self._node.run)
        return work

    # Telling

    def _tell(self) -> None:
        for work in self._work.values():
            work.expire()
        trouble: ConsulError | None = None
        for name, work in list(self._work.items()):
            outcome = work.due(up())
            try:
                if outcome is not None:
                    self._folder.tell(outcome)
                    work.told(outcome, up())
            except ConsulError as error:  # what can't be told of one is told of the others
                trouble = error
            if work.is_over:
                del self._work[name]
        if trouble is not None:
            raise trouble

    # Tidying

    def _tidy(self) -> None:
        """What nobody changes any more; a failure is no reason to leave the rest."""
        now = up()
        if now - self._tidied_at < TIDY_EVERY_S:
            return
        self._tidied_at = now
        there = {entry.key: entry for entry in self._folder.entries(REQUESTS, OUTCOMES)}
        self._unchanged = {
            key: was
            if (was := self._unchanged.get(key)) is not None and was[0] == entry.modify_index
            else (entry.modify_index, now)
            for key, entry in there.items()
        }
        for key, (index, since) in self._unchanged.items():
            if now - since < FORGOTTEN_S or not _is_ours(there[key]):
                continue
            # What is taken doesn't change any more: it is at work for as long as its outcome does.
            told = self._unchanged.get(key.replace(f"/{REQUESTS}", f"/{OUTCOMES}"))
            if told is not None and now - told[1] < FORGOTTEN_S:
                continue
            try:
                self._folder.remove(key, index)
            except ConsulError as error:
                log.info("%s", ours(error))


def _is_ours(entry: Entry) -> bool:
    """What somebody else wrote stays: it may be anything."""
    kind = Outcome if f"/{OUTCOMES}" in entry.key else Request
    try:
        kind.parse(entry.value, entry.key)
    except ForeignValue:
        return False
    return True
