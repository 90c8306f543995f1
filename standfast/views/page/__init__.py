"""The status page: four files without a build step, and the document that they show.

Invariant: nothing is loaded from anywhere else, and nothing in the page is code but page.js; the
policy below has the browser refuse the rest. It only reads: no route changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STATUS = "/api/v1/status"


@dataclass(frozen=True, slots=True)
class File:
    """A file of the page as it is served."""

    kind: str
    """Content-Type"""
    body: bytes


_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def page_files() -> Mapping[str, File]:
    """By their paths; read once, at the start."""
    folder = files(__name__)
    return {
        path: File(kind, folder.joinpath(name).read_bytes())
        for path, (name, kind) in _FILES.items()
    }
