"""The exporter's requests, responses and routes, and the WSGI application that joins them.

Invariant: a route is a function from a request to a response. It knows nothing of sockets or
threads, and it only reads: no request ever changes anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

METHODS = ("GET", "HEAD")

# What a response that says nothing else gets: the state of a cluster is never from yesterday.
NO_STORE = ("Cache-Control", "no-store")
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class Request:
    """Holds what a route may know of a request."""

    path: str
    """Decoded, beginning with a slash, without the query."""
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""

    def first(self, name: str) -> str | None:
        """Returns the first value of that name in the query; None: it isn't there."""
        return next(iter(self.query.get(name, ())), None)


@dataclass(frozen=True, slots=True)
class Response:
    """Holds what a route answers; the application adds the security headers, and cuts the body for
    HEAD."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = HTTPStatus.OK
    headers: tuple[tuple[str, str], ...] = (NO_STORE,)

    @property
    def status_line(self) -> str:
        return f"{int(self.status)} {HTTPStatus(self.status).phrase}"


Route = Callable[[Request], Response]
Routes = Mapping[str, Route]
"""Path to the route that answers it; waitress folds leading slashes."""


def application(routes: Routes) -> WSGIApplication:
    """Returns what a WSGI server calls for each request; an error of a route is a 500 without its
    text, which the log has."""

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        method, request = environ["REQUEST_METHOD"], request_of(environ)
        try:
            response = dispatch(routes, method, request)
        except Exception:
            log.exception("the answer to %s failed", request.path)
            response = plain("failed; the journal of standfast-exporter says why", 500)
        headers = {
            **_SECURITY,
            "Content-Type": response.content_type,
            **dict(response.headers),
        }
        start(response.status_line, list(headers.items()))
        # An iterator has no length, and waitress ends a connection after such an answer: nobody
        # keeps a place between two requests, or queues a hundred of them in one packet. So HEAD
        # tells no length either.
        return iter([] if method == "HEAD" else [response.body])

    return answer


def request_of(environ: WSGIEnvironment) -> Request:
    """Reads a request out of WSGI's variables, whose texts are bytes in the guise of latin-1."""
    path = environ.get("PATH_INFO", "").encode("latin-1").decode(errors="replace")
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    return Request(path, query_of(environ.get("QUERY_STRING", "")), headers)


def query_of(text: str) -> Mapping[str, Sequence[str]]:
    """Reads the query string's names and values; what can't be understood is left out."""
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=32)
    except ValueError:
        return {}


def plain(text: str, status: int = HTTPStatus.OK) -> Response:
    """Answers one line, for people and load balancers."""
    return Response(f"{text}\n".encode(errors="backslashreplace"), status=status)


def dispatch(routes: Routes, method: str, request: Request) -> Response:
    """Calls the one route with this path; 404 and 405 say what there is."""
    if method not in METHODS:
        refused = plain(f"{method[:20]} is not allowed here: only GET and HEAD are", 405)
        return Response(refused.body, status=405, headers=(NO_STORE, ("Allow", ", ".join(METHODS))))
    route = routes.get(request.path)
    if route is None:
        return plain(f"there is nothing here; there is {' '.join(sorted(routes))}", 404)
    return route(request)
