"""The status page: four files without a build step, and the document that they show.

Invariant: nothing is loaded from anywhere else, and nothing in the page is code but page.js; the
policy below has the browser refuse the rest. It only reads: no route changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from standfast.config.model import Config
from standfast.exporter.status_cache import StatusCache
from standfast.exporter.web import NO_STORE, Request, Response, Route, Routes

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STATUS = "/api/v1/status"

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def application_routes(configs: Sequence[Config]) -> Routes:
    """Returns the page and its document; the ages of the standbys are noted from now on, in a
    thread."""
    looks = StatusCache(configs)
    looks.start()
    return {**page_routes(), STATUS: status_route(looks)}


def page_routes() -> Routes:
    """Returns the files, read once."""
    folder = files(__name__)
    return {
        path: _constant(folder.joinpath(name).read_bytes(), kind)
        for path, (name, kind) in _FILES.items()
    }


def status_route(looks: StatusCache) -> Route:
    """Always 200: what is wrong stands in the document."""
    kind = "application/json; charset=utf-8"
    return lambda _request: Response(looks.body(), kind)


def _constant(body: bytes, kind: str) -> Route:
    response = Response(body, kind, headers=(NO_STORE, ("Content-Security-Policy", POLICY)))

    def route(_request: Request) -> Response:
        return response

    return route
