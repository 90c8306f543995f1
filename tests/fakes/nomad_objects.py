"""What the stand-in for Nomad keeps account of: nodes, allocations, their tasks."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from tests.fakes.nomad_jobs import Doc

STATIC_META = {"connect.log_level": "info", "class_note": "x"}
LIVE = ("pending", "running")


class Refusal(Exception):
    """What Nomad answers instead: a status and a text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class NomadNode:
    """`dynamic` is the client's, `seen` what the servers know of all its meta."""

    name: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "ready"
    eligible: bool = True
    dynamic: dict[str, str | None] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=lambda: dict(STATIC_META))
    volumes: dict[str, str] = field(default_factory=dict)
    alive: bool = True
    frozen: bool = False
    life: int = 0
    """Goes up with each death and return: what was due in another life doesn't happen."""
    post: int = 0
    """Goes up with each change of the dynamic meta."""

    @property
    def meta(self) -> dict[str, str]:
        whole = {**STATIC_META, **self.dynamic}
        return {key: value for key, value in whole.items() if value is not None}

    @property
    def facts(self) -> dict[str, str]:
        """What the scheduler can compare with."""
        seen = {f"meta.{key}": value for key, value in self.seen.items()}
        return {**seen, "node.unique.name": self.name, "node.unique.id": self.id,
                "node.datacenter": "dc1"}  # fmt: skip

    @property
    def beats(self) -> bool:
        return self.alive and not self.frozen


@dataclass
class NomadTask:
    name: str
    state: str = "pending"
    restarts: int = 0
    started_at: str = ""
    finished_at: str = ""


@dataclass
class Alloc:
    id: str
    job: Doc
    group: str
    node: NomadNode
    eval_id: str
    previous: str
    tasks: dict[str, NomadTask]
    desired: str = "run"
    client_status: str = "pending"
    next_id: str = ""
    index: int = 0

    @property
    def live(self) -> bool:
        return self.client_status in LIVE
