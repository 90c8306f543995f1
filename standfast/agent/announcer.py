"""Says what a plan has reached: an event for the journal, and the hooks that run after the fact.

Invariant: nothing here changes or delays a plan. The same failure of a plan that is tried again and
again is told once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec

from standfast.config.model import Config
from standfast.errors import Refused, ours
from standfast.events.events import Kind, happened, tell
from standfast.events.hooks import Later, Occasion
from standfast.reasons import Reason
from standfast.replication.failures import reason_of
from standfast.role.decision import Decision
from standfast.role.plan import Do, Plan
from standfast.role.steps import Effects

log = logging.getLogger(__name__)
P = ParamSpec("P")


def _harmless(say: Callable[P, None]) -> Callable[P, None]:
    """Whatever keeps something from being told changes nothing of what is told of."""

    @functools.wraps(say)
    def safely(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            say(*args, **kwargs)
        except Exception as error:  # noqa: BLE001
            log.warning("an event was not told: %s", ours(error))

    return safely


@dataclass(slots=True)
class Announcer:
    """Tells what one agent does."""

    config: Config
    later: Later = field(init=False)
    last_failure: str | None = None

    def __post_init__(self) -> None:
        self.later = Later(self.config)

    def plan_report(self, plan: Plan, effects: Effects) -> PlanReport:
        """Returns what tells of one run of a plan; to be called before its first step."""
        facts: dict[str, object] = {}
        _harmless(lambda: facts.update(effects.facts()))()
        return PlanReport(self, plan, effects, facts)

    @_harmless
    def refused(self, reason: Reason, sentence: str) -> None:
        """Tells that this node is not promoted, by itself or though somebody asked."""
        tell(happened(self.config, Kind.PROMOTION_REFUSED, f"{reason}: {sentence}", reason=reason))
        facts: dict[str, object] = {"reason": reason, "message": sentence}
        self.later.add(Occasion.PROMOTION_REFUSED, facts)

    def blocked(self, decision: Decision) -> None:
        """Tells what keeps this node from taking over, when nobody else serves either."""
        self.refused(decision.reason, decision.sentence)


@dataclass(slots=True)
class PlanReport:
    """Tells how one run of a plan goes."""

    announcer: Announcer
    plan: Plan
    effects: Effects
    facts: dict[str, object]

    @_harmless
    def begun(self) -> None:
        node, volume = self.announcer.config.node, self.announcer.config.volume
        if self.plan.name == "switchover":
            text = f"{node} hands {volume} over to {self.effects.to}"
            self._tell(Kind.SWITCHOVER_BEGUN, text)
        elif self.plan.name == "promotion" and self.facts.get("reason") in (
            Reason.TAKEOVER,
            Reason.SURRENDERED,
        ):
            self._tell(Kind.FAILOVER_DECIDED, str(self.facts.get("message")))

    @_harmless
    def reached(self, do: Do) -> None:
        """Tells of a step that was done, of the plan or of its undoing."""
        node, volume = self.announcer.config.node, self.announcer.config.volume
        if do is Do.REGISTER:
            self.facts["epoch"] = self.effects.epoch()
        epoch = self.facts.get("epoch")
        if do is Do.REGISTER:
            kind = Kind.PROMOTED if self.plan.name == "promotion" else Kind.SERVING_AGAIN
            what = "is primary of" if kind is Kind.PROMOTED else "serves again:"
            self._tell(kind, f"{node} {what} {volume}, epoch {epoch} ({self.facts.get('reason')})")
            self.announcer.later.add(Occasion.POST_PROMOTE, self.facts)
        elif do is Do.FORGET:
            text = f"{node} is a standby of {volume}: its epoch {epoch} is over ({self.plan.name})"
            self._tell(Kind.DEMOTED, text)
            self.announcer.later.add(Occasion.POST_DEMOTE, self.facts)
        elif do is Do.AWAIT_SUCCESSOR:
            self._tell(Kind.SWITCHOVER_ENDED, f"{self.effects.to} serves {volume}")

    @_harmless
    def failed(self, error: Exception) -> None:
        text = str(error)
        if text == self.announcer.last_failure:
            log.info("%s failed again in the same way", self.plan.name)
            return
        self.announcer.last_failure = text
        reason = reason_of(error)
        if isinstance(error, Refused) and self.plan.name == "promotion":
            self.announcer.refused(reason, text)
        else:
            self._tell(Kind.ROLE_CHANGE_FAILED, text, reason)

    def ended(self) -> None:
        self.announcer.last_failure = None

    def _tell(self, kind: Kind, sentence: str, reason: Reason | None = None) -> None:
        epoch, known = self.facts.get("epoch"), self.facts.get("reason")
        more = {} if self.effects.to is None else {"STANDFAST_TO": self.effects.to}
        tell(
            happened(
                self.announcer.config,
                kind,
                sentence,
                epoch=epoch if isinstance(epoch, int) else None,
                reason=reason or (known if isinstance(known, Reason) else None),
                **more,
            )
        )
