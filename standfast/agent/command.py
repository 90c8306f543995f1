"""A request of an operator to the agent, with its connection, and the answer to a dry run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from standfast.errors import UsageError
from standfast.role.plan import Plan
from standfast.system.clock import Deadline
from standfast.system.local_socket import Receives, send

WAITS_S = 120.0


class Connection(Receives, Protocol):
    """What waits for the end of a command."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class Command:
    """Holds a request and the connection that waits for its end."""

    connection: Connection
    request: Mapping[str, Any]
    may_begin: Callable[[], bool] = lambda: True
    """Asked right before it is carried out: whoever waits may have been told that it isn't."""

    @property
    def dry_run(self) -> bool:
        return self.request.get("dry_run") is True

    def argument(self, name: str) -> Any:
        arguments = self.request.get("args")
        return arguments.get(name) if isinstance(arguments, Mapping) else None

    def text(self, name: str) -> str | None:
        value = self.argument(name)
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name} is a text, not {value!r}")
        return value or None

    def limit(self) -> Deadline:
        """Returns until when whoever asked waits; an older version's command doesn't tell."""
        told = self.argument("timeout_s")
        return Deadline.after(told if isinstance(told, int | float) and told > 0 else WAITS_S)

    def progress(self, text: str) -> None:
        # The operator may have gone; what was begun is finished all the same.
        with contextlib.suppress(OSError):
            send(self.connection, {"progress": text})


@dataclass(frozen=True, slots=True)
class Planned:
    """What `--dry-run` tells of a plan; as a text it is what people are shown."""

    plan: Plan
    why: str = ""

    def __str__(self) -> str:
        lines = [f"{number}. {step.says}" for number, step in enumerate(self.plan.steps, 1)]
        why = [self.why] if self.why else []
        return "\n".join([*why, f"{self.plan.name}, nothing is done now:", *lines])
