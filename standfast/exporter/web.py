"""The web server's requests, responses and routes, as plain values.

Invariant: a route is a function from a request to a response. It knows nothing of sockets, threads
or passwords, and it only reads: no request ever changes anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

METHODS = ("GET", "HEAD")

# What a response that says nothing else gets: the state of a cluster is never from yesterday.
NO_STORE = ("Cache-Control", "no-store")


@dataclass(frozen=True, slots=True)
class Request:
    """What a route may know of a request."""

    path: str
    """Decoded, beginning with a slash, without the query."""
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case. Never `authorization`: that is over before a route is called."""

    def first(self, name: str) -> str | None:
        """The first value of that name in the query; None: it isn't there."""
        return next(iter(self.query.get(name, ())), None)


@dataclass(frozen=True, slots=True)
class Response:
    """What a route answers; the server adds length and security headers, and cuts the body for
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
"""Path, exactly as asked for, to the route that answers it."""


def query_of(text: str) -> Mapping[str, Sequence[str]]:
    """The query string's names and values; what can't be understood is left out."""
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=32)
    except ValueError:
        return {}


def plain(text: str, status: int = HTTPStatus.OK) -> Response:
    """One line for people and load balancers."""
    return Response(f"{text}\n".encode(errors="backslashreplace"), status=status)


def as_json(document: Any, status: int = HTTPStatus.OK) -> Response:
    """A document for programs."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return Response(text.encode(), "application/json; charset=utf-8", status)


def dispatch(routes: Routes, method: str, request: Request) -> Response:
    """The one route with this path; 404 and 405 say what there is."""
    if method not in METHODS:
        refused = plain(f"{method[:20]} is not allowed here: only GET and HEAD are", 405)
        return Response(refused.body, status=405, headers=(NO_STORE, ("Allow", ", ".join(METHODS))))
    route = routes.get(request.path)
    if route is None:
        return plain(f"there is nothing here; there is {' '.join(sorted(routes))}", 404)
    return route(request)
