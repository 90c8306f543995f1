"""python-nomad over our transport: the only module that imports it.

Invariants: an answer that comes back has status 200; all else is a NomadError with its outcome,
which says whether a write may have been applied all the same. Certificates are verified, no
redirect is followed, and nothing is taken from the environment (the library would take address,
token, region, namespace and certificates from it, over explicit arguments left empty).
"""

from __future__ import annotations

import io
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, TypeVar

import requests
from nomad.api import exceptions
from nomad.api.base import Requester
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse

from standfast.consul.http import Endpoint, Failure, Request, TransportError, exchange
from standfast.errors import NomadError, NomadOutcome
from standfast.system.clock import Deadline

T = TypeVar("T")
_Untyped: Any = Requester
NEXT_STEP = {
    NomadOutcome.UNREACHABLE: "Check that the Nomad agent runs there and listens on this address.",
    NomadOutcome.TIMEOUT: "Check whether the Nomad agent hangs, and its way to the servers.",
    NomadOutcome.DENIED: "Check the ACL token and its policy (docs/nomad-policy.hcl is enough).",
    NomadOutcome.NOT_FOUND: "Check `nomad node status` and `nomad job status`.",
    NomadOutcome.BAD_REQUEST: "Check that the agent is Nomad 1.5 or later and runs a client.",
    NomadOutcome.SERVER_ERROR: "Check `nomad operator raft list-peers` and the agent's log.",
    NomadOutcome.GARBLED: "Check that the address is a Nomad agent's HTTP API.",
}
# 5xx texts after which nothing can have been done.
_NOTHING_APPLIED = (
    "No cluster leader",
    "No path to region",
    "failed to get conn",  # the agent finds no server
    "failed to resolve ACL token",
    "no servers",
    "Task not running",
    "should not run",
)
# An agent that passes a question on has 500 for what a server has 404 for; what a token may not
# read is unknown, too.
_NOT_FOUND = re.compile(r"^(rpc error: )?(Unknown (allocation|node|job)\b|[\w \"-]+ not found$)")


@dataclass(frozen=True, slots=True)
class Access:
    """Whom to ask, and as who."""

    endpoint: Endpoint
    token: str
    region: str
    tls: ssl.SSLContext | None


@dataclass(frozen=True, slots=True)
class Question:
    """One call of the gateway. `what` is how messages name it."""

    what: str
    deadline: Deadline
    write: bool = False


class _Line:
    """Stands in for a pool of connections: one request over our transport, by the deadline."""

    def __init__(self, access: Access, deadline: Deadline) -> None:
        self._access = access
        self._deadline = deadline

    def urlopen(self, *, method: str, url: str, body: Any, headers: Any, **_: Any) -> HTTPResponse:
        data = body.encode() if isinstance(body, str) else body
        answer = exchange(
            self._access.endpoint,
            Request(method, url, dict(headers), data),
            self._deadline,
            tls=self._access.tls,
        )
        return HTTPResponse(
            io.BytesIO(answer.body),
            headers={"Content-Type": answer.headers.get("Content-Type", "")},
            status=answer.status,
            preload_content=False,
        )


class _Adapter(HTTPAdapter):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line

    def get_connection_with_tls_context(self, *_args: Any, **_options: Any) -> Any:
        return self._line

    def cert_verify(self, *_args: Any, **_options: Any) -> None:
        """The transport's TLS context does."""


class _Session(requests.Session):
    """What the library sends its requests through."""

    def __init__(self, line: _Line) -> None:
        super().__init__()
        self.trust_env = False
        self.headers.update({"Accept-Encoding": "identity", "Connection": "close"})
        self.mount("http://", _Adapter(line))
        self.mount("https://", _Adapter(line))

    def request(self, *args: Any, **options: Any) -> requests.Response:
        options["allow_redirects"] = False  # the library follows them on PUT and DELETE
        answer = super().request(*args, **options)
        if answer.ok and answer.status_code != 200:
            raise ValueError(f"unexpected status {answer.status_code}")
        return answer


class _ClientMetadata(_Untyped):  # type: ignore[misc]
    """A node's dynamic meta, which the library doesn't know."""

    ENDPOINT = "client/metadata"

    def read(self) -> Any:
        return self.request(method="get").json()

    def apply(self, key: str, value: str | None, node_id: str) -> Any:
        """`node_id` empty: of the agent's own client."""
        body = {"NodeID": node_id, "Meta": {key: value}}
        return self.request(json=body, method="post").json()


class _ClientAllocation(_Untyped):  # type: ignore[misc]
    """The library's restart leaves out the tasks that are done."""

    ENDPOINT = "client/allocation"

    def restart_all(self, alloc_id: str) -> Any:
        return self.request(alloc_id, "restart", json={"AllTasks": True}, method="post").json()

    def signal(self, alloc_id: str, task: str, signal: str) -> Any:
        body = {"Signal": signal, "Task": task}
        return self.request(alloc_id, "signal", json=body, method="post").json()


class _Evaluation(_Untyped):  # type: ignore[misc]
    """The library asks in the default namespace alone."""

    ENDPOINT = "evaluation"

    def read(self, eval_id: str, namespace: str) -> Any:
        return self.request(eval_id, params={"namespace": namespace}, method="get").json()


class Library:
    """The library's endpoints for one call. Its own client class would read the environment."""

    def __init__(self, access: Access, deadline: Deadline) -> None:
        endpoint = access.endpoint
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        self._settings: dict[str, Any] = {
            "address": f"{endpoint.scheme}://{host}:{endpoint.port}",
            "token": access.token or None,
            "region": access.region or None,
            "timeout": deadline.remaining_s(),
            "verify": True,
            "session": _Session(_Line(access, deadline)),
        }
        self.metadata = _ClientMetadata(**self._settings)
        self.client_allocation = _ClientAllocation(**self._settings)
        self.evaluation = _Evaluation(**self._settings)

    @cached_property
    def agent(self) -> Any:
        return self._endpoint("agent", "Agent")

    @cached_property
    def allocation(self) -> Any:
        return self._endpoint("allocation", "Allocation")

    @cached_property
    def job(self) -> Any:
        return self._endpoint("job", "Job")

    @cached_property
    def jobs(self) -> Any:
        return self._endpoint("jobs", "Jobs")

    @cached_property
    def node(self) -> Any:
        return self._endpoint("node", "Node")

    @cached_property
    def nodes(self) -> Any:
        return self._endpoint("nodes", "Nodes")

    @cached_property
    def status(self) -> Any:
        return self._endpoint("status", "Status")

    def _endpoint(self, module: str, name: str) -> Any:
        return getattr(import_module(f"nomad.api.{module}"), name)(**self._settings)


def ask(access: Access, question: Question, call: Callable[[Library], T]) -> T:
    """The answer by the question's deadline; NomadError when there is none."""
    if question.deadline.expired:
        raise _error(access, question, NomadOutcome.TIMEOUT, "the deadline had passed before")
    try:
        return call(Library(access, question.deadline))
    except TransportError as error:
        outcome = {
            Failure.UNREACHABLE: NomadOutcome.UNREACHABLE,
            Failure.TIMEOUT: NomadOutcome.TIMEOUT,
            Failure.BROKEN: NomadOutcome.GARBLED,
        }[error.kind]
        # The text alone: what is chained could hold the request with its headers.
        text, sent = str(error), error.sent
        raise _error(access, question, outcome, text, maybe_applied=sent) from None
    except exceptions.BaseNomadException as error:
        raise _refused(access, question, error.nomad_resp) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        text = f"not an answer of Nomad ({type(error).__name__}: {str(error)[:200]})"
        raise _error(access, question, NomadOutcome.GARBLED, text, maybe_applied=True) from None


def _refused(access: Access, question: Question, reason: Any) -> NomadError:
    """`reason` is the library's: a response, or what came instead of one."""
    if isinstance(reason, requests.Response):
        text = reason.text[:200].strip()
        outcome = _outcome(reason.status_code, text)
        definite = outcome is NomadOutcome.NOT_FOUND or any(one in text for one in _NOTHING_APPLIED)
        maybe = reason.status_code >= 500 and not definite
        said = f"{reason.status_code} {text!r}"
        return _error(access, question, outcome, said, maybe_applied=maybe)
    outcome = NomadOutcome.UNREACHABLE
    if isinstance(reason, requests.Timeout):
        outcome = NomadOutcome.TIMEOUT
    never_sent = isinstance(reason, requests.ConnectTimeout)
    return _error(access, question, outcome, str(reason)[:200], maybe_applied=not never_sent)


def _outcome(status: int, text: str) -> NomadOutcome:
    if status in (401, 403):
        return NomadOutcome.DENIED
    if status == 404:
        # Something else than Nomad, or a Nomad that lacks the whole endpoint.
        foreign = not text or text.startswith(("<", "404 page"))
        return NomadOutcome.GARBLED if foreign else NomadOutcome.NOT_FOUND
    if status == 500 and _NOT_FOUND.match(text):
        return NomadOutcome.NOT_FOUND
    if 500 <= status < 600 or status == 429:
        return NomadOutcome.SERVER_ERROR
    return NomadOutcome.BAD_REQUEST


def _error(
    access: Access,
    question: Question,
    outcome: NomadOutcome,
    text: str,
    *,
    maybe_applied: bool = False,
) -> NomadError:
    maybe = maybe_applied and question.write
    whether = " Whether it was applied is unknown: look before repeating it." if maybe else ""
    message = f"Nomad at {access.endpoint}, {question.what}: {text}.{whether} {NEXT_STEP[outcome]}"
    if access.token:
        message = message.replace(access.token, "<token>")
    return NomadError(message, outcome, maybe_applied=maybe)
