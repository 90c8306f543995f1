"""The files of the page: small, complete, and nothing in them that its policy would refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from standfast.exporter.page import POLICY, STATUS, application_routes, page_routes, status_route
from standfast.exporter.status_cache import StatusCache
from standfast.exporter.web import Request, dispatch
from tests.support.configs import config_in

MOST_BYTES = 100_000


def text_of(path: str) -> str:
    return dispatch(page_routes(), "GET", Request(path)).body.decode()


def test_the_page_and_its_document_are_there(tmp_path: Path) -> None:
    routes = application_routes([])
    assert set(routes) == {"/", "/page.css", "/page.js", "/icon.svg", STATUS}
    for path in routes:
        answer = dispatch(routes, "GET", Request(path))
        assert answer.status == 200 and answer.body
        assert ("Cache-Control", "no-store") in answer.headers
    assert json.loads(routes[STATUS](Request(STATUS)).body)["volumes"] == []
    nobody = status_route(StatusCache([config_in(tmp_path)]))(Request(STATUS))
    [volume] = json.loads(nobody.body)["volumes"]
    assert (nobody.status, volume["level"]) == (200, "unknown")


def test_all_files_together_are_small() -> None:
    routes = page_routes()
    assert sum(len(routes[path](Request(path)).body) for path in routes) < MOST_BYTES // 2


def test_the_page_names_only_files_that_are_served() -> None:
    routes = page_routes()
    named = set(re.findall(r'(?:href|src)="([^"]+)"', text_of("/")))
    elsewhere = {"metrics", "api/v1/status"}  # the exporter's, and the document
    assert {f"/{name}" for name in named - elsewhere} == set(routes) - {"/"}


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/icon.svg"])
def test_nothing_is_inline_and_nothing_is_from_elsewhere(path: str) -> None:
    text = text_of(path).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\(|<style|\son\w+=|\sstyle=|javascript:", text)
    assert not re.search(r"<script(?![^>]*\ssrc=)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_the_policy_allows_nothing_inline() -> None:
    assert "unsafe" not in POLICY and POLICY.startswith("default-src 'none'")
    answer = dispatch(page_routes(), "GET", Request("/"))
    assert ("Content-Security-Policy", POLICY) in answer.headers
