"""python-nomad with a session of ours: the only module that imports it.

Invariants: an answer that comes back has status 200; all else is a NomadError with its outcome,
which says whether a write may have been applied all the same. Certificates are verified by the
configured CA alone, no redirect is followed, and nothing is taken from the environment: the
endpoints get every setting, where the library's own `Nomad` would look for NOMAD_* variables.
"""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
from nomad import api
from nomad.api.base import Requester
from nomad.api.exceptions import BaseNomadException
from requests.adapters import HTTPAdapter
from urllib3 import Timeout
from urllib3.exceptions import NewConnectionError, ReadTimeoutError

from standfast.consul.http import Endpoint
from standfast.errors import NomadError, NomadOutcome

T = TypeVar("T")
# The library has no types.
_Requester: Any = Requester
_API: Any = api
NEXT_STEP = {
    NomadOutcome.UNREACHABLE: "Check that the Nomad agent runs there and listens on this address.",
    NomadOutcome.TIMEOUT: "Check whether the Nomad agent hangs, and its way to the servers.",
    NomadOutcome.DENIED: "Check the ACL token and its policy (share/standfast/nomad-policy.hcl "
    "is enough, and for a node that only mounts nomad-policy-client.hcl).",
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
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
"""Of JSON: a text, or where an object or a list begins or ends."""
MOST_DEEP = 100
_NOT_FOUND = re.compile(r"^(rpc error: )?(Unknown (allocation|node|job)\b|[\w \"-]+ not found$)")


@dataclass(frozen=True, slots=True)
class Access:
    """The agent that is asked, and the identity it is asked with."""

    endpoint: Endpoint
    token: str
    region: str
    tls: ssl.SSLContext | None
    """None: the endpoint is plain HTTP."""


@dataclass(frozen=True, slots=True)
class Question:
    """Describes one call of the gateway; messages name it by `what`."""

    what: str
    timeout_s: float
    """Of each request: connecting and the wait for its answer together, then each wait for more
    of the answer."""
    write: bool = False


class _TlsAdapter(HTTPAdapter):
    """Connects by our own TLS context, whose CA is the only one that is trusted."""

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._tls: dict[str, Any] = {"ssl_context": context, "server_hostname": server_name}
        super().__init__()

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **options: Any
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **options, **self._tls)

    def cert_verify(self, *_args: Any, **_options: Any) -> None:
        """The context verifies; requests would add the CAs of certifi to it."""


class _ClientMetadata(_Requester):  # type: ignore[misc]
    """Reads and writes a node's dynamic meta, which the library doesn't know."""

    ENDPOINT = "client/metadata"

    def read(self) -> Any:
        return self.request(method="get").json()

    def apply(self, key: str, value: str | None, node_id: str) -> Any:
        """Sets one key, or removes it with None; `node_id` empty: on the agent's own client."""
        body = {"NodeID": node_id, "Meta": {key: value}}
        return self.request(json=body, method="post").json()


class _ClientAllocation(_Requester):  # type: ignore[misc]
    """Restarts every task; the library's restart leaves out those that are done."""

    ENDPOINT = "client/allocation"

    def restart_all(self, alloc_id: str) -> Any:
        return self.request(alloc_id, "restart", json={"AllTasks": True}, method="post").json()

    def signal(self, alloc_id: str, task: str, signal: str) -> Any:
        body = {"Signal": signal, "Task": task}
        return self.request(alloc_id, "signal", json=body, method="post").json()


class _Evaluation(_Requester):  # type: ignore[misc]
    """Reads an evaluation of any namespace; the library knows only the default one."""

    ENDPOINT = "evaluation"

    def read(self, eval_id: str, namespace: str) -> Any:
        return self.request(eval_id, params={"namespace": namespace}, method="get").json()


class _CsiVolume(_Requester):  # type: ignore[misc]
    """Reads a CSI volume, which the library doesn't know."""

    ENDPOINT = "volume/csi"

    def read(self, volume_id: str, namespace: str) -> Any:
        return self.request(volume_id, params={"namespace": namespace}, method="get").json()


class Library:
    """Holds the library's endpoints, and those that it lacks, over one session."""

    def __init__(self, access: Access, timeout_s: float, session: requests.Session) -> None:
        endpoint = access.endpoint
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        settings: dict[str, Any] = {
            "address": f"{endpoint.scheme}://{host}:{endpoint.port}",
            "token": access.token or None,
            "region": access.region or None,
            "timeout": Timeout(total=timeout_s),
            "verify": access.tls is None or access.tls.verify_mode is not ssl.CERT_NONE,
            "session": session,
        }
        self.agent = _API.Agent(**settings)
        self.allocation = _API.Allocation(**settings)
        self.job = _API.Job(**settings)
        self.jobs = _API.Jobs(**settings)
        self.node = _API.Node(**settings)
        self.nodes = _API.Nodes(**settings)
        self.status = _API.Status(**settings)
        self.metadata = _ClientMetadata(**settings)
        self.client_allocation = _ClientAllocation(**settings)
        self.evaluation = _Evaluation(**settings)
        self.csi_volume = _CsiVolume(**settings)


def ask(access: Access, question: Question, call: Callable[[Library], T]) -> T:
    """Returns the answer; NomadError when there is none."""
    try:
        try:
            return _asked(access, question, call)
        except RecursionError:
            if question.write:
                raise
            return _asked(access, question, call, _leave_out_what_is_deep)
    except BaseNomadException as error:
        raise _refused(access, question, error.nomad_resp) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        text = f"not an answer of Nomad ({type(error).__name__}: {str(error)[:200]})"
        raise _error(access, question, NomadOutcome.GARBLED, text, maybe_applied=True) from None


def _asked(
    access: Access,
    question: Question,
    call: Callable[[Library], T],
    *more: Callable[..., None],
) -> T:
    """Returns the answer, after `more` has seen the response."""
    with _session(access) as session:
        session.hooks["response"] += more
        return call(Library(access, question.timeout_s, session))


def _leave_out_what_is_deep(response: requests.Response, **_options: Any) -> None:
    """Nulls what is nested deeper than anything that we look for: one job whose configuration no
    parser here can follow would hide all others."""
    body, depth, kept, start = response.content, 0, [], 0
    for token in _TOKEN.finditer(body):
        if token[0] in (b"[", b"{"):
            depth += 1
            if depth == MOST_DEEP:
                kept += [body[start : token.start()], b"null"]
        elif token[0] in (b"]", b"}"):
            if depth == MOST_DEEP:
                start = token.end()
            depth -= 1
    response._content = b"".join([*kept, body[start:]])


def _session(access: Access) -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxy, no .netrc, no CA of a variable
    session.headers["Connection"] = "close"
    session.hooks["response"].append(_check_status)
    if access.tls is not None:
        name = access.endpoint.server_name or access.endpoint.host
        session.mount("https://", _TlsAdapter(access.tls, name))
    return session


def _check_status(response: requests.Response, **_options: Any) -> None:
    """Raises ValueError for a redirect or no content, which the library takes for an answer."""
    if response.ok and response.status_code != 200:
        raise ValueError(f"unexpected status {response.status_code}")


def _refused(access: Access, question: Question, reason: Any) -> NomadError:
    """`reason` is the library's: a response, or the error that came instead of one."""
    if not isinstance(reason, requests.Response):
        return _unanswered(access, question, reason)
    text = reason.text[:200].strip()
    outcome = _outcome(reason.status_code, text)
    definite = outcome is NomadOutcome.NOT_FOUND or any(mark in text for mark in _NOTHING_APPLIED)
    maybe = reason.status_code >= 500 and not definite
    said = f"{reason.status_code} {text!r}"
    return _error(access, question, outcome, said, maybe_applied=maybe)


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


def _unanswered(access: Access, question: Question, error: Exception) -> NomadError:
    cause = _cause_of(error)
    if isinstance(error, requests.Timeout) or isinstance(cause, ReadTimeoutError):
        never_sent = isinstance(error, requests.ConnectTimeout)
        text = f"no {'connection' if never_sent else 'answer'} within {question.timeout_s:.1f} s"
        return _error(access, question, NomadOutcome.TIMEOUT, text, maybe_applied=not never_sent)
    if isinstance(cause, (http.client.HTTPException, ConnectionError)):
        closed = isinstance(cause, http.client.RemoteDisconnected)
        why = "the connection was closed without an answer" if closed else str(cause)[:200]
        text = f"no whole HTTP answer: {why}"
        return _error(access, question, NomadOutcome.GARBLED, text, maybe_applied=True)
    never_sent = isinstance(cause, (NewConnectionError, ssl.SSLCertVerificationError))
    kind = "the TLS handshake failed: " if isinstance(cause, ssl.SSLError) else ""
    text = kind + str(cause)[:200]
    return _error(access, question, NomadOutcome.UNREACHABLE, text, maybe_applied=not never_sent)


def _cause_of(error: BaseException) -> BaseException:
    """Returns the innermost error of those that requests and urllib3 have wrapped."""
    inner = [getattr(error, "reason", None), *error.args]
    for wrapped in inner:
        if isinstance(wrapped, BaseException):
            return _cause_of(wrapped)
    return error


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
