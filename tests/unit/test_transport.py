"""The transport against servers that misbehave: it is over by its deadline, and says why."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from standfast.consul import http as transport
from standfast.consul.http import Endpoint, Failure, Request, TransportError, exchange, tls_context
from standfast.errors import ConfigError
from standfast.system.clock import Deadline, monotonic
from tests.fakes.rude_server import (
    Manner,
    drip,
    flood,
    hang,
    hang_up,
    raw,
    refused_address,
    reply,
    rude_server,
)
from tests.support.pace import patient

OK = b"HTTP/1.1 200 OK\r\n"
DEADLINE_S = 0.5
SLACK_S = 0.4


def ask(address: str, *, within_s: float = DEADLINE_S) -> transport.Answer:
    return exchange(Endpoint.parse(address), Request("GET", "/x"), Deadline.after(within_s))


def failure_of(manner: Manner, *, within_s: float = DEADLINE_S) -> TransportError:
    with rude_server(manner) as server:
        started = monotonic()
        with pytest.raises(TransportError) as caught:
            ask(server.address, within_s=within_s)
        assert monotonic() - started < within_s + patient(SLACK_S)
        return caught.value


def test_a_whole_answer_comes_back_as_it_is() -> None:
    with rude_server(reply(b"\x00\xff", status="418 Teapot", headers={"X-Y": "z"})) as server:
        answer = ask(server.address)
    assert (answer.status, answer.body, answer.headers["x-y"]) == (418, b"\x00\xff", "z")


def test_a_chunked_answer_comes_back_whole() -> None:
    body = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    with rude_server(raw(OK + body)) as server:
        assert ask(server.address).body == b"abcde"


def test_the_request_carries_method_target_headers_and_body() -> None:
    request = Request("PUT", "/v1/kv/a%20b?cas=0", {"X-Consul-Token": "t"}, b"value")
    with rude_server(reply()) as server:
        exchange(Endpoint.parse(server.address), request, Deadline.after(2))
        sent = server.requests[0]
    assert sent.startswith(b"PUT /v1/kv/a%20b?cas=0 HTTP/1.1\r\n")
    assert b"X-Consul-Token: t\r\n" in sent and sent.endswith(b"\r\n\r\nvalue")


@pytest.mark.parametrize(
    "manner",
    [
        pytest.param(hang, id="hung"),
        pytest.param(drip(b"", b"H"), id="dripping status line"),
        pytest.param(drip(OK + b"X-A: ", b"a"), id="dripping header"),
        pytest.param(drip(OK, b"X-A: b\r\n"), id="endless headers"),
        pytest.param(drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), id="endless 100s"),
        pytest.param(drip(OK + b"Content-Length: 999\r\n\r\n", b"x"), id="dripping body"),
        pytest.param(
            drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), id="dripping chunks"
        ),
        pytest.param(drip(OK + b"\r\n", b"x"), id="dripping body without a length"),
    ],
)
def test_no_server_holds_a_request_beyond_its_deadline(manner: Manner) -> None:
    failure = failure_of(manner)
    assert failure.sent
    # http.client gives up on the hundredth header by itself
    assert failure.kind in (Failure.TIMEOUT, Failure.BROKEN)


def test_a_dripping_body_is_a_timeout_and_not_a_broken_answer() -> None:
    failure = failure_of(drip(OK + b"Content-Length: 999\r\n\r\n", b"x"))
    assert failure.kind is Failure.TIMEOUT


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        pytest.param(hang_up, "closed without an answer", id="no answer"),
        pytest.param(raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "SSH-2.0", id="not HTTP"),
        pytest.param(raw(OK + b"Content-Length: 10\r\n\r\nabc"), "7 bytes are missing", id="cut"),
        pytest.param(
            raw(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"), "no whole", id="chunk cut"
        ),
        pytest.param(
            raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), "no whole", id="no chunk size"
        ),
    ],
)
def test_anything_but_a_whole_answer_is_broken(manner: Manner, words: str) -> None:
    failure = failure_of(manner, within_s=5)
    assert (failure.kind, failure.sent) == (Failure.BROKEN, True)
    assert words in str(failure)


def test_a_body_larger_than_the_cap_is_not_read_to_its_end() -> None:
    with rude_server(flood(OK + b"\r\n", 20_000_000)) as server:
        endpoint = Endpoint.parse(server.address)
        with pytest.raises(TransportError, match="larger than 3000000 bytes") as caught:
            exchange(endpoint, Request("GET", "/x"), Deadline.after(10), most_bytes=3_000_000)
    assert caught.value.kind is Failure.BROKEN


def test_a_redirect_is_an_answer_like_any_other_and_not_followed() -> None:
    with rude_server(reply()) as elsewhere:
        there = {"Location": f"http://{elsewhere.address}/"}
        with rude_server(reply(status="302 Found", headers=there)) as server:
            assert ask(server.address).status == 302
        assert elsewhere.requests == []


def test_a_refused_connection_sent_nothing() -> None:
    with refused_address() as address, pytest.raises(TransportError, match="refused") as caught:
        ask(address)
    assert (caught.value.kind, caught.value.sent) == (Failure.UNREACHABLE, False)


def test_a_connection_that_is_never_accepted_ends_at_its_own_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        started = monotonic()
        with pytest.raises(TransportError) as caught:
            exchange(
                Endpoint("http", *address),
                Request("GET", "/"),
                Deadline.after(5),
                connect_by=Deadline.after(0.3),
            )
        assert monotonic() - started < 0.3 + patient(SLACK_S)
        for filler in fillers:
            filler.close()
    assert (caught.value.kind, caught.value.sent) == (Failure.TIMEOUT, False)


def test_a_large_request_to_a_server_that_does_not_read_ends_at_the_deadline() -> None:
    with rude_server(hang) as server, pytest.raises(TransportError) as caught:
        request = Request("PUT", "/", {}, b"x" * 20_000_000)
        exchange(Endpoint.parse(server.address), request, Deadline.after(DEADLINE_S))
    assert (caught.value.kind, caught.value.sent) == (Failure.TIMEOUT, True)


def test_a_resolver_that_hangs_does_not_hold_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    released, real = threading.Event(), socket.getaddrinfo

    def slow(host: str, *args: object, flags: int = 0, **options: object) -> object:
        if not flags:
            released.wait(10)
        return real(host, *args, flags=flags, **options)  # type: ignore[misc,arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    started = monotonic()
    with pytest.raises(TransportError) as caught:
        ask("consul.invalid:8500", within_s=0.3)
    released.set()
    assert monotonic() - started < 0.3 + patient(SLACK_S)
    assert (caught.value.kind, caught.value.sent) == (Failure.TIMEOUT, False)


def test_proxy_variables_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused_address() as proxy, rude_server(reply(b"direct")) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy}")
        assert ask(server.address).body == b"direct"


def test_plain_http_behind_an_https_address_is_unreachable_and_gets_no_request() -> None:
    with rude_server(reply()) as server:
        started = monotonic()
        with pytest.raises(TransportError, match="TLS handshake") as caught:
            ask(f"https://{server.address}", within_s=2)
        assert monotonic() - started < 2 + patient(SLACK_S)
        assert not any(b"GET" in request for request in server.requests)
    assert (caught.value.kind, caught.value.sent) == (Failure.UNREACHABLE, False)


def test_a_tls_handshake_that_hangs_ends_at_the_deadline() -> None:
    with rude_server(hang) as server, pytest.raises(TransportError) as caught:
        ask(f"https://{server.address}")
    assert (caught.value.kind, caught.value.sent) == (Failure.TIMEOUT, False)


def test_the_tls_context_verifies_certificate_and_name() -> None:
    context = tls_context()
    assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED


def test_certificates_that_cannot_be_used_are_configuration_errors(tmp_path: Path) -> None:
    garbage = tmp_path / "ca.pem"
    garbage.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"consul\.ca_cert .*PEM"):
        tls_context(garbage)
    with pytest.raises(ConfigError, match=r"consul\.ca_cert"):
        tls_context(tmp_path / "none.pem")
    with pytest.raises(ConfigError, match=r"consul\.client_cert"):
        tls_context(None, garbage, garbage)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:8500", "127.0.0.1:8500"),
        ("http://consul.lan:80/", "consul.lan:80"),
        ("https://consul.lan:8501", "https://consul.lan:8501"),
        ("[::1]:8500", "[::1]:8500"),
    ],
)
def test_an_address_is_shown_as_it_is_written(text: str, shown: str) -> None:
    assert str(Endpoint.parse(text)) == shown


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "host name"),
        ("consul.lan", "port is missing"),
        ("consul.lan:0", "port is missing"),
        ("consul.lan:99999", "ort"),
        ("consul.lan:abc", "ort"),
        (":8500", "host name"),
        ("unix:///run/consul.sock", "neither http nor https"),
        ("http://h:1/path", "nothing may follow"),
        ("h\r\nX-Evil:1:8500", "Consul address"),
        ("[::1:8500", "Consul address"),
    ],
)
def test_an_address_that_cannot_be_used_is_a_configuration_error(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Endpoint.parse(text)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="not supported") as caught:
        Endpoint.parse("http://root:s3cret@h:8500")
    assert "s3cret" not in str(caught.value)
