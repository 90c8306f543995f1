"""What happens to the client and to the judged invariants while somebody is at the prompt."""

from __future__ import annotations

import itertools

from standfast.demo.cluster import Cluster
from standfast.demo.nodes import AgentEnded
from standfast.errors import StandfastError
from standfast.system.clock import monotonic

# So long without an acknowledgement is worth a line, seconds.
SILENT_S = 1.0


class News:
    """`tell` is called again and again, and tells each thing once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._last = cluster.ledger.last()
        self._waits = False
        self._told: set[str] = set()

    def tell(self) -> None:
        self._tell_of_the_client()
        try:
            self._cluster.check()
        except AgentEnded as ended:
            self._say_once(f"{ended}; `start {ended.node}` starts it again")
        except StandfastError as error:
            self._say_once(str(error))

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._cluster.screen.say(text, mark="!")

    def _tell_of_the_client(self) -> None:
        before, last = self._last, self._cluster.ledger.last()
        self._last = last
        if last is None or before is None:
            return
        if last.epoch != before.epoch:
            lines = self._cluster.ledger.lines()[before.number :]
            old, new = next(
                pair for pair in itertools.pairwise(lines) if pair[1].epoch != before.epoch
            )
            self._cluster.screen.say(
                f"the client's next line is on {new.node}, epoch {new.epoch}: "
                f"{new.at - old.at:.1f} s after the last one on {old.node}",
                mark="+",
            )
        waits = monotonic() - last.at > SILENT_S
        if waits and not self._waits:
            why = self._cluster.client.trouble or "no answer"
            self._cluster.screen.say(f"the client waits: {why}", mark="!")
        self._waits = waits
