"""A request to an agent of the embedded cluster and the reply to it, apart from any endpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from standfast.demo.consul.agents import Agent, BadRegistration, parse_duration

DEFAULT_WAIT_S = 300.0
LONGEST_WAIT_S = 600.0


class NoLeader(Exception):
    """Consul's 500 while the servers have no quorum."""


class BadRequest(Exception):
    """A status and Consul's plain text for it."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """One request to one agent."""

    agent: Agent
    method: str
    path: str
    query: Mapping[str, str]
    body: bytes

    @classmethod
    def parse(cls, agent: Agent, method: str, target: str, body: bytes) -> Call:
        parts = urlsplit(target)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        if "filter" in query:
            raise BadRequest("filter is not offered by the embedded server")
        return cls(agent, method, parts.path, query, body)

    @property
    def min_index(self) -> int:
        return self.number("index", BadRequest("Invalid index"))

    @property
    def wait_s(self) -> float:
        try:
            asked_s = parse_duration(self.query["wait"]) if "wait" in self.query else 0.0
        except BadRegistration as error:
            raise BadRequest("Invalid wait time") from error
        return min(asked_s, LONGEST_WAIT_S) if asked_s > 0 else DEFAULT_WAIT_S

    @property
    def stale(self) -> bool:
        if "stale" in self.query and "consistent" in self.query:
            raise BadRequest("Cannot specify ?stale with ?consistent, conflicting semantics.")
        return "stale" in self.query

    def number(self, name: str, otherwise: BadRequest | None = None) -> int:
        text = self.query.get(name, "0")
        if not re.fullmatch(r"[0-9]{1,20}", text):
            raise otherwise or BadRequest(
                f'strconv.ParseUint: parsing "{text}": invalid syntax', 500
            )
        return int(text)

    def rest(self, prefix: str) -> str:
        return unquote(self.path[len(prefix) :])

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise BadRequest(f"Failed to parse body: {error}") from error


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
