"""The exporter's routes and options, and the limits of its server."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.types import WSGIApplication
from wsgiref.util import setup_testing_defaults

import pytest
from msgspec.structs import replace

from standfast.config.load import load
from standfast.config.model import Config
from standfast.errors import StandfastError, Unreachable, UsageError
from standfast.exporter import server, textfile
from standfast.exporter.exporter import (
    address_of,
    is_primary,
    is_standby,
    role_route,
    routes,
    scrape_s,
    warnings,
)
from standfast.exporter.metrics import Readers, VolumeMetrics
from standfast.exporter.status_cache import StatusCache
from standfast.exporter.web import Request, Response, Routes, application, plain, query_of
from standfast.status.document import Status
from tests.support.checkout import CHECKOUT
from tests.support.pace import patient
from tests.support.status_documents import parsed
from tests.support.terminal import write_config
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("demo_parts")

AGENT: Mapping[str, Any] = {"volume": "data-services", "node": "n1", "agent": True}
PRIMARY: Mapping[str, Any] = {
    **AGENT,
    "role": "primary",
    "busy": None,
    "sick": None,
    "trouble": None,
}
STANDBY: Mapping[str, Any] = {**PRIMARY, "role": "standby"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"]))


# Requests


def echo(request: Request) -> Response:
    return plain(f"{request.path} {request.first('a')} {sorted(request.headers)}")


@dataclass(frozen=True)
class WsgiAnswer:
    """What a WSGI server was told to send."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(routes: Routes, target: str, method: str = "GET", **headers: str) -> WsgiAnswer:
    path, _, query = target.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
    }
    setup_testing_defaults(environ)
    told: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], *_: object) -> Any:
        told.append((status, headers))

    body = b"".join(application(routes)(environ, start))
    [(status, pairs)] = told
    return WsgiAnswer(int(status[:3]), dict(pairs), body)


def test_a_request_reaches_the_route_of_its_path() -> None:
    answer = ask({"/x ü": echo}, "/x%20%C3%BC?a=1&a=2&b", accept="*/*")
    assert answer.status == 200
    assert answer.body.decode() == "/x ü 1 ['accept', 'host']\n"


def test_head_has_the_headers_and_no_body_and_keeps_no_connection() -> None:
    answer = ask({"/": echo}, "/", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "Content-Length" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "X" * 9999])
def test_only_reading_is_allowed(method: str) -> None:
    answer = ask({"/": echo}, "/", method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert len(answer.body) < 100


@pytest.mark.parametrize("target", ["/..%2fetc", "//", "/x/", "*", "/%00", "/%ff"])
def test_any_other_path_is_not_there(target: str) -> None:
    assert ask({"/": echo, "/x": echo}, target).status == 404


def test_a_query_of_nonsense_is_no_error() -> None:
    assert query_of("&".join(["a=1"] * 1000)) == {}
    assert query_of("%ff=%ff&=&&") is not None


def test_a_route_that_fails_says_so_without_what_it_failed_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(request: Request) -> Response:
        raise ValueError("a secret")

    answer = ask({"/": fails}, "/?token=hidden")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert "a secret" in caplog.text
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(
    ("told", "expected"),
    [(None, 8), ("10.0", 8), ("5", 4.5), ("0.1", 0.5), ("-1", 8), ("soon", 8), ("nan", 8)],
)
def test_a_scrape_ends_before_prometheus_gives_up(told: str | None, expected: float) -> None:
    assert scrape_s(told) == expected


# Roles


def role(doc: Mapping[str, Any] | Exception, config: Config, query: str = "") -> tuple[int, int]:
    """Status of /primary and of /standby."""

    def look(config: Config) -> Status:
        if isinstance(doc, Exception):
            raise doc
        return parsed(doc)

    request = Request("/", query_of(query))
    both = [role_route([config], wanted, look)(request) for wanted in (is_primary, is_standby)]
    return both[0].status, both[1].status


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        (PRIMARY, (200, 503)),
        (STANDBY, (503, 200)),
        ({**PRIMARY, "sick": "the port is shut"}, (503, 503)),
        ({**PRIMARY, "agent": False}, (503, 503)),
        ({**STANDBY, "agent": False}, (503, 503)),
        ({**AGENT, "role": "starting"}, (503, 503)),
        ({**AGENT, "role": "primary"}, (503, 503)),
        ({}, (503, 503)),
        (Unreachable("no"), (503, 503)),
        (StandfastError("no"), (503, 503)),
    ],
)
def test_a_role_is_200_only_when_the_agent_says_so(
    doc: Mapping[str, Any] | Exception, expected: tuple[int, int], config: Config
) -> None:
    assert role(doc, config) == expected


def test_of_several_volumes_one_has_to_be_named(config: Config) -> None:
    other = replace(config, volume="media")
    route = role_route(
        [config, other],
        is_primary,
        lambda asked: parsed(PRIMARY if asked is config else STANDBY),
    )
    answer = route(Request("/primary"))
    assert answer.status == 400
    assert b"?volume=" in answer.body and b"media" in answer.body
    for volume, status in (("data-services", 200), ("media", 503), ("none", 404)):
        assert route(Request("/primary", query_of(f"volume={volume}"))).status == status
    assert role(PRIMARY, config, "volume=none") == (404, 404)


# The server


A_LITTLE = 16 << 10
"""Bytes of an answer, of which more is taken before waitress sends more: TCP waits for room."""


@contextlib.contextmanager
def serving(answers: WSGIApplication) -> Iterator[tuple[int, Any]]:
    """waitress with the exporter's limits, in a thread of this process: its port, and itself."""
    with server.listen("127.0.0.1", 0) as listener:
        running: Any = server.server_of(answers, listener)
        thread = threading.Thread(target=running.run, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], running
        finally:
            running.task_dispatcher.shutdown()
            running.close()
            thread.join(patient(20.0))


def test_one_packet_of_many_requests_gets_one_answer() -> None:
    asked: list[Request] = []

    def route(request: Request) -> Response:
        asked.append(request)
        return plain("here")

    with (
        serving(application({"/": route})) as (port, _),
        socket.create_connection(("127.0.0.1", port), patient(20.0)) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert (received.count(b"HTTP/1.1 200"), len(asked)) == (1, 1)


def test_who_takes_nothing_of_an_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE_S", 1)
    huge = Response(b"x" * server.MOST_ANSWER_BYTES)
    with (
        serving(application({"/": lambda _: huge})) as (port, running),
        socket.create_connection(("127.0.0.1", port), patient(20.0)) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(running.active_channels), 20.0, "the connection")
        wait_for(lambda: not running.active_channels, 20.0, "its end")


def test_who_takes_a_little_of_an_answer_now_and_then_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "TAKING_S", 1)
    huge = Response(b"x" * server.MOST_ANSWER_BYTES)
    with (
        serving(application({"/": lambda _: huge})) as (port, running),
        socket.create_connection(("127.0.0.1", port), patient(20.0)) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(running.active_channels), 20.0, "the connection")
        taken = 0

        def is_over() -> bool:
            nonlocal taken
            with contextlib.suppress(OSError):
                taken += len(client.recv(A_LITTLE))
            return not running.active_channels

        wait_for(is_over, 20.0, "its end")
        assert 0 < taken < server.MOST_ANSWER_BYTES / 2, "it had not taken all and gone"


def test_a_connection_that_is_kept_has_as_long_for_each_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ours keep none today (`web.application`): a route that told its length would."""

    large = b"x" * (16 << 20)  # what fits into the kernel's buffers is taken at once

    def here(_: object, start: Any) -> list[bytes]:
        start("200 OK", [("Content-Length", str(len(large)))])
        return [large]

    monkeypatch.setattr(server, "TAKING_S", 2.0)
    with (
        serving(here) as (port, _),
        contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=patient(20.0))) as client,
    ):
        client.connect()
        first = client.sock
        for pause_s in (2.1, 0.0):
            client.request("GET", "/")
            assert len(client.getresponse().read()) == len(large)
            assert client.sock is first, "it is the same one"
            time.sleep(pause_s)


# Options


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:9756", ("127.0.0.1", 9756)), ("[::1]:80", ("::1", 80)), ("host:1", ("host", 1))],
)
def test_an_address_is_read(text: str, expected: tuple[str, int]) -> None:
    assert address_of(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":9756", "9756", "127.0.0.1", "127.0.0.1:", "a:99999", "[]:1"]
)
def test_an_address_that_could_mean_every_interface_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="ADDRESS:PORT"):
        address_of(text)


def test_what_is_open_to_others_is_said_loudly() -> None:
    assert warnings("127.0.0.1") == warnings("::1") == ()
    for address in ("0.0.0.0", "192.168.1.2", "fe80::1%eth0"):
        assert "everybody" in warnings(address)[0]
        assert "docs/reverse-proxy.md" in warnings(address)[0]


# The file for node_exporter


def test_a_file_is_replaced_whole_and_readable_by_others(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "standfast.prom"
    path.write_text("before")
    still_open = path.open()
    before = os.umask(0o077)
    try:
        textfile.write([config], path, VolumeMetrics([config], Readers(utc=lambda: 5.0)))
    finally:
        os.umask(before)
    assert still_open.read() == "before"
    assert path.stat().st_mode & 0o777 == 0o644
    text = path.read_text()
    assert "standfast_time_seconds 5.0\n" in text
    assert "# EOF" not in text
    assert [path.name for path in tmp_path.glob("*standfast.prom*")] == ["standfast.prom"]


def test_a_file_that_node_exporter_would_pass_over_is_refused(
    config: Config, tmp_path: Path
) -> None:
    for path, words in ((tmp_path / "x.txt", r"\.prom"), (tmp_path / "no/x.prom", "no directory")):
        with pytest.raises(UsageError, match=words):
            textfile.write([config], path)


def test_the_page_names_every_path(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StatusCache, "start", lambda looks: None)  # no thread in this process
    page = (CHECKOUT / "docs/metrics.md").read_text()
    ours = {"/metrics", "/", "/api/v1/status", "/primary", "/standby", "/-/healthy"}
    assert ours <= routes([config]).keys()
    assert all(f"`{path}`" in page for path in ours)


def test_the_executable_holds_no_logic() -> None:
    lines = (CHECKOUT / "exporters/standfast-exporter").read_text().splitlines()
    assert len(lines) <= 15
