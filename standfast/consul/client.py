"""The library's client over our transport, and the addresses asked in turn.

Invariants: an answer has the status and the headers that Consul gives it; all else is a Failed,
which says whether a write may have been applied all the same. After such a write no other address
is asked.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPMessage
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypeVar

from standfast.consul.http import (
    MAX_BODY_BYTES,
    Endpoint,
    Failure,
    Request,
    TransportError,
    exchange,
)
from standfast.errors import (
    ConsulDenied,
    ConsulError,
    ConsulGarbled,
    ConsulLimited,
    ConsulNoQuorum,
    ConsulTimedOut,
    ConsulUnreachable,
)
from standfast.system import environment
from standfast.system.clock import Deadline, monotonic
from standfast.system.lines import number

T = TypeVar("T")
# An address that gave no answer goes to the end of the row for this long: a hung local agent
# costs one request its time, not every heartbeat.
SHUN_S = 10.0
# The most informative first: an answer says more than none.
NEXT_STEP: dict[type[ConsulError], str] = {
    ConsulDenied: "Check the ACL token and its policy (share/standfast/consul-policy.hcl is "
    "enough, and for a node that only mounts consul-policy-client.hcl).",
    ConsulLimited: "Raise `limits` of the Consul agent, or find out what asks it so often.",
    ConsulNoQuorum: "Check `consul operator raft list-peers`: a majority of servers must be up.",
    ConsulError: "Look at the Consul agent's log.",
    ConsulGarbled: "Check that the address is a Consul agent's HTTP API and not something else.",
    ConsulTimedOut: "Check whether the Consul agent hangs, and the network to it.",
    ConsulUnreachable: "Check that the Consul agent runs there and listens on this address.",
}


def _library() -> Any:
    """Returns `consul.base` of python-consul2 or py-consul: neither has types that hold.

    It is loaded by its file, under a name of ours: the package would load an HTTP client of its
    own, with `requests`, that is never used (see `_Http`): 60 ms of the guard's start. (py-consul's
    file loads its package all the same.)
    """
    package = find_spec("consul")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("no module named 'consul'; python-consul2 has it", name="consul")
    file = Path(package.submodule_search_locations[0], "base.py")
    spec = spec_from_file_location("standfast_consul_base", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


base: Any = _library()
# 5xx texts after which Consul's source shows that a write never reached the log of Raft.
_NOTHING_APPLIED = ("No cluster leader", "No known Consul servers")
# Of the request itself, by the agent (429) or the servers (429, and 503 where only the leader could
# do it; with `request_limits`, from 1.15 on): agent/consul/rate/handler.go, agent/http.go.
_LIMIT = "limit exceeded"
DENIED = ("Permission denied", "ACL not found")
TRANSFER = "/v1/operator/raft/transfer-leader"
TXN = "/v1/txn"


@dataclass(frozen=True, slots=True)
class Question:
    """One call of the gateway. `what` is how messages name it."""

    what: str
    deadline: Deadline
    write: bool = False
    patient: bool = False
    """Once connected, an address may use the whole deadline: nothing can be tried after it."""
    local: bool = False
    """Meant for the node's own agent, the first address."""
    next_step: str | None = None
    """For an answer of Consul's own that says no; None: by the kind of error."""
    most_bytes: int = MAX_BODY_BYTES
    """Of the answer: one of what others write is several times in memory while it is read."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A question to one address, with that address's share of the deadline."""

    question: Question
    endpoint: Endpoint
    deadline: Deadline
    connect_by: Deadline
    headers: Mapping[str, str]
    tls: ssl.SSLContext | None


class Failed(Exception):
    """One address gave no usable answer; `silent` when it gave none at all."""

    def __init__(
        self,
        kind: type[ConsulError],
        text: str,
        *,
        maybe_applied: bool = False,
        silent: bool = False,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.maybe_applied = maybe_applied
        self.silent = silent


class _Http(base.HTTPClient):  # type: ignore[misc]
    """The library's HTTP client over our transport; unusable answers don't come back from it."""

    def __init__(self, attempt: Attempt) -> None:
        endpoint = attempt.endpoint
        super().__init__(endpoint.host, endpoint.port, endpoint.scheme)
        self._attempt = attempt

    def get(
        self, callback: Any, path: str, params: Any = None, headers: Any = None, **_: Any
    ) -> Any:
        return callback(self._ask("GET", path, params, headers))

    def put(
        self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None
    ) -> Any:
        return callback(self._ask("PUT", path, params, headers, data))

    def delete(
        self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None
    ) -> Any:
        return callback(self._ask("DELETE", path, params, headers, data))

    def post(
        self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None
    ) -> Any:
        return callback(self._ask("POST", path, params, headers, data))

    def close(self) -> None:
        """Every request has its own connection."""

    def _ask(self, method: str, path: str, params: Any, headers: Any, data: Any = None) -> Any:
        attempt, write = self._attempt, self._attempt.question.write
        all_headers = {**(headers or {}), **attempt.headers}
        body = data.encode() if isinstance(data, str) else data
        target = self.uri(path, params)[len(self.base_uri) :]
        try:
            answer = exchange(
                attempt.endpoint,
                Request(method, target, all_headers, body),
                attempt.deadline,
                connect_by=attempt.connect_by,
                tls=attempt.tls,
                most_bytes=attempt.question.most_bytes,
            )
        except TransportError as error:
            raise _no_answer(error, write=write) from error
        text = answer.body.decode("utf-8", "strict" if answer.status == 200 else "replace")
        _check_status(path, answer.status, answer.headers, text, write=write)
        fields = {
            "code": answer.status,
            "headers": answer.headers,
            "body": text,
            "content": answer.body,
        }
        return base.Response(**{name: fields[name] for name in base.Response._fields})


class Client(base.Consul):  # type: ignore[misc]
    """The library's client for one attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        endpoint = attempt.endpoint
        environment.take()  # the library would send that token, where a program left it there
        super().__init__(host=endpoint.host, port=endpoint.port, scheme=endpoint.scheme)

    def http_connect(self, *_args: Any, **_options: Any) -> _Http:
        return _Http(self.attempt)


class Addresses:
    """The configured addresses, asked in turn."""

    def __init__(
        self, endpoints: Sequence[Endpoint], token: str, tls: ssl.SSLContext | None
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._token = token
        self._headers = {"X-Consul-Token": token} if token else {}
        self._tls = tls
        self._shunned_until: dict[Endpoint, float] = {}

    def ask(self, question: Question, call: Callable[[Client], T]) -> T:
        """Returns the first usable answer by the question's deadline; ConsulError when there is
        none."""
        failures: list[tuple[Endpoint, Failed]] = []
        for attempt in self._attempts(question):
            try:
                result = _call_library(attempt, call)
            except Failed as failed:
                failures.append((attempt.endpoint, failed))
                if failed.silent:
                    self._shunned_until[attempt.endpoint] = monotonic() + SHUN_S
                if failed.maybe_applied:
                    break
            else:
                self._shunned_until.pop(attempt.endpoint, None)
                return result
        raise self._error(question, failures)

    def _attempts(self, question: Question) -> Iterator[Attempt]:
        """Yields each address with a fair share of what is left when its turn comes."""
        row = self._endpoints[:1] if question.local else self._row()
        for position, endpoint in enumerate(row):
            if question.deadline.expired:
                return
            share_s = question.deadline.remaining_s() / (len(row) - position)
            share = question.deadline.within(share_s)
            deadline = question.deadline if question.patient else share
            yield Attempt(question, endpoint, deadline, share, self._headers, self._tls)

    def _row(self) -> list[Endpoint]:
        """Returns the configured order, those that lately gave no answer last."""
        now = monotonic()
        return sorted(
            self._endpoints,
            key=lambda endpoint: max(0.0, self._shunned_until.get(endpoint, 0.0) - now),
        )

    def _error(
        self, question: Question, failures: Sequence[tuple[Endpoint, Failed]]
    ) -> ConsulError:
        maybe_applied = any(failed.maybe_applied for _, failed in failures)
        if failures:
            kinds = {failed.kind for _, failed in failures}
            kind = next(kind for kind in NEXT_STEP if kind in kinds)
            came = "; ".join(f"{endpoint}: {failed}" for endpoint, failed in failures)
        else:
            kind, came = ConsulTimedOut, "the deadline had passed before it was asked"
        answered = kind in (ConsulError, ConsulNoQuorum)
        step = question.next_step if answered and question.next_step else NEXT_STEP[kind]
        whether = " Whether it was applied is unknown: read it back." if maybe_applied else ""
        text = f"Consul, {question.what}: {came}.{whether} {step}"
        if self._token:
            text = text.replace(self._token, "<token>")
        return kind(text, maybe_applied=maybe_applied)


def _call_library(attempt: Attempt, call: Callable[[Client], T]) -> T:
    write = attempt.question.write
    try:
        return call(Client(attempt))
    except base.ConsulException as error:
        raise Failed(
            ConsulGarbled, f"not an answer of Consul ({str(error)[:200]})", maybe_applied=write
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        detail = f"{type(error).__name__}: {str(error)[:200]}"
        raise Failed(
            ConsulGarbled, f"not an answer of Consul ({detail})", maybe_applied=write
        ) from error


def _no_answer(error: TransportError, *, write: bool) -> Failed:
    kind = {
        Failure.UNREACHABLE: ConsulUnreachable,
        Failure.TIMEOUT: ConsulTimedOut,
        Failure.BROKEN: ConsulGarbled,
    }[error.kind]
    return Failed(kind, str(error), maybe_applied=write and error.sent, silent=True)


def _check_status(path: str, status: int, headers: HTTPMessage, text: str, *, write: bool) -> None:
    """Lets through 200, a missing key, a failed txn and a transfer that it doesn't know; Failed for
    anything else."""
    said = f"{status} {text[:160].strip()!r}"
    agent_local = path.startswith("/v1/agent/")
    if status == 200 or (status == 404 and not write and path.startswith("/v1/kv/")):
        if not write and not agent_local and not path.startswith("/v1/status/"):
            _check_read_headers(path, headers, said)
    elif (status, path) in ((409, TXN), (404, TRANSFER)):
        return
    elif status in (401, 403):
        raise Failed(ConsulDenied, said)
    elif status == 429 or (status == 503 and _LIMIT in text):
        raise Failed(ConsulLimited, said)
    elif 500 <= status < 600:
        definite = any(word in text for word in _NOTHING_APPLIED)
        kind = ConsulError if agent_local else ConsulNoQuorum
        raise Failed(kind, said, maybe_applied=write and not definite)
    else:  # 4xx: turned down before anything was done; a redirect is not followed
        raise Failed(
            ConsulGarbled, f"unexpected {said}", maybe_applied=write and not 400 <= status < 500
        )


def _check_read_headers(path: str, headers: HTTPMessage, said: str) -> None:
    """A read without Consul's own headers was answered by something else (or has no leader)."""
    leader = headers.get("X-Consul-KnownLeader")
    if path == TXN and leader is None:  # an index is not told there
        raise Failed(ConsulGarbled, f"no X-Consul-KnownLeader with {said}")
    if path != TXN and number(headers.get("X-Consul-Index") or "") is None:
        raise Failed(ConsulGarbled, f"no X-Consul-Index with {said}")
    if leader == "false":
        raise Failed(ConsulNoQuorum, "it answered without knowing a leader")
