"""The exporter's routes, passwords and options, without a socket."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from standfast.config.load import load
from standfast.config.model import Config
from standfast.errors import StandfastError, TimedOut, Unreachable, UsageError
from standfast.exporter import passwords, samples, textfile
from standfast.exporter.exporter import (
    Options,
    address_of,
    is_standby,
    role_route,
    routes,
    scrape_s,
    site_of,
    warnings,
)
from standfast.exporter.metrics import Readers, VolumeMetrics
from standfast.exporter.status_cache import Looks
from standfast.exporter.web import Request, Response, plain, query_of
from standfast.exporter.web_server import Reader, Site, answer
from standfast.system.clock import Deadline, sleep
from tests.unit.cli_helpers import write_config

ROOT = Path(__file__).parents[2]
PRIMARY: Mapping[str, Any] = {"agent": True, "role": "primary", "sick": None}
STANDBY: Mapping[str, Any] = {"agent": True, "role": "standby", "sick": None}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"]))


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"# who may ask\nann:{hashed('right')}\n\nbob:{hashed('other')}\n")
    path.chmod(0o640)
    return path


# Requests


def echo(request: Request) -> Response:
    return plain(f"{request.path} {request.first('a')} {sorted(request.headers)}")


def ask(site: Site, target: str, method: str = "GET", **headers: str) -> Response:
    return answer(site, method, target, headers)


def test_a_request_reaches_the_route_of_its_path_without_its_password() -> None:
    found = ask(Site({"/x y": echo}), "/x%20y?a=1&a=2&b", accept="*/*", authorization="secret")
    assert (found.status, found.body) == (200, b"/x y 1 ['accept']\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "X" * 9999])
def test_only_reading_is_allowed(method: str) -> None:
    found = ask(Site({"/": echo}), "/", method)
    assert found.status == 405
    assert ("Allow", "GET, HEAD") in found.headers
    assert len(found.body) < 100


@pytest.mark.parametrize("target", ["/..%2fetc", "//", "/x/", "", "*", "http://[", "/%00"])
def test_any_other_path_is_not_there(target: str) -> None:
    found = ask(Site({"/": echo, "/x": echo}), target)
    assert found.status in (400, 404)


def test_a_query_of_nonsense_is_no_error() -> None:
    assert query_of("&".join(["a=1"] * 1000)) == {}
    assert query_of("%ff=%ff&=&&") is not None


def test_a_route_that_fails_says_so_without_what_it_failed_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(request: Request) -> Response:
        raise ValueError("a secret")

    found = ask(Site({"/": fails}), "/?token=hidden")
    assert found.status == 500
    assert b"secret" not in found.body
    assert "a secret" in caplog.text
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(
    ("told", "expected"),
    [(None, 8), ("10.0", 8), ("5", 4.5), ("0.1", 0.5), ("-1", 8), ("soon", 8), ("nan", 8)],
)
def test_a_scrape_ends_before_prometheus_gives_up(told: str | None, expected: float) -> None:
    assert scrape_s(told) == expected


def test_a_request_that_drips_has_one_deadline_as_a_whole() -> None:
    ours, theirs = socket.socketpair()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while True:
                theirs.sendall(b"x")
                sleep(0.01)

    dripping = threading.Thread(target=drip)
    with ours, theirs:
        dripping.start()
        reader = Reader(ours, Deadline.after(0.3))
        with pytest.raises((TimedOut, TimeoutError)):
            while True:
                reader.readinto(bytearray(100))
        ours.close()
        dripping.join(60)


# Roles


def role(doc: Mapping[str, Any] | Exception, config: Config, query: str = "") -> tuple[int, int]:
    """Status of /primary and of /standby."""

    def look(config: Config) -> Mapping[str, Any]:
        if isinstance(doc, Exception):
            raise doc
        return doc

    request = Request("/", query_of(query))
    both = [
        role_route([config], wanted, look)(request) for wanted in (samples.is_serving, is_standby)
    ]
    return both[0].status, both[1].status


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        (PRIMARY, (200, 503)),
        (STANDBY, (503, 200)),
        ({**PRIMARY, "sick": "the port is shut"}, (503, 503)),
        ({**PRIMARY, "agent": False}, (503, 503)),
        ({**STANDBY, "agent": False}, (503, 503)),
        ({"agent": True, "role": "starting"}, (503, 503)),
        ({"agent": True, "role": "primary"}, (503, 503)),
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
        samples.is_serving,
        lambda one: PRIMARY if one is config else STANDBY,
    )
    found = route(Request("/primary"))
    assert found.status == 400
    assert b"?volume=" in found.body and b"media" in found.body
    for volume, status in (("data-services", 200), ("media", 503), ("none", 404)):
        assert route(Request("/primary", query_of(f"volume={volume}"))).status == status
    assert role(PRIMARY, config, "volume=none") == (404, 404)


# Passwords


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (basic("ann", "right"), True),
        (basic("bob", "other"), True),
        (basic("ann", "right").replace("Basic", "bAsIc"), True),
        (basic("ann", "other"), False),
        (basic("ann", ""), False),
        (basic("carl", "right"), False),
        (basic("ann", "right" + "x" * 100), False),
        (basic("ann", "right\0"), False),
        (basic("", ""), False),
        ("Bearer right", False),
        ("Basic", False),
        ("Basic !!!", False),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), False),
        (None, False),
    ],
)
def test_only_a_name_with_its_own_password_is_let_in(
    header: str | None, expected: bool, users_file: Path
) -> None:
    users = passwords.Users(users_file)
    assert [users.admits(header) for _ in range(2)] == [expected] * 2


def test_a_password_beyond_what_bcrypt_reads_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(f"ann:{hashed('x' * 72)}\n")
    path.chmod(0o600)
    users = passwords.Users(path)
    assert users.admits(basic("ann", "x" * 72))
    assert not users.admits(basic("ann", "x" * 73))


def test_a_wrong_name_costs_as_much_as_a_wrong_password_and_a_right_one_is_remembered(
    users_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    check = bcrypt.checkpw

    def counted(password: bytes, against: bytes) -> bool:
        checked.append(against)
        return check(password, against)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    users = passwords.Users(users_file)
    for name, times in (("ann", 2), ("carl", 2)):
        checked.clear()
        for _ in range(2):
            users.admits(basic(name, "wrong"))
        assert len(checked) == times
    checked.clear()
    for _ in range(5):
        assert users.admits(basic("ann", "right"))
    assert len(checked) == 1
    assert "right" not in repr(users._right)


def test_a_changed_file_counts_at_once_and_a_broken_one_changes_nothing(
    users_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    users = passwords.Users(users_file)
    assert users.admits(basic("ann", "right"))
    users_file.write_text("ann:oops\n")
    os.utime(users_file, ns=(2, 2))
    assert [users.admits(basic("ann", "right")) for _ in range(3)] == [True] * 3
    assert caplog.text.count("line 1") == 1
    assert "oops" not in caplog.text
    users_file.write_text(f"ann:{hashed('new')}\n")
    os.utime(users_file, ns=(1, 1))
    assert not users.admits(basic("ann", "right"))
    assert users.admits(basic("ann", "new"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nobody\n",
        "ann\n",
        "ann:plain\n",
        "ann:$apr1$zzz$abc\n",
        ":" + "$2b$04$" + "a" * 53,
        "ann:$2b$31$" + "a" * 53,
        "ann:$2b$04$" + "a" * 53 + "\nann:$2b$04$" + "b" * 53,
    ],
)
def test_a_file_of_anything_but_bcrypt_is_refused_without_its_text(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "users"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="users") as caught:
        passwords.Users(path)
    assert "plain" not in str(caught.value)
    assert "$" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_a_file_that_everybody_may_read_is_refused(mode: int, users_file: Path) -> None:
    users_file.chmod(mode)
    with pytest.raises(UsageError, match="chmod o="):
        passwords.Users(users_file)


def test_without_a_right_password_only_health_answers(users_file: Path, config: Config) -> None:
    site = site_of({"/": echo, "/-/healthy": echo}, Options(users=users_file))
    assert ask(site, "/-/healthy").status == 200
    for path in ("/", "/nothing", "/-/healthy/../", "//-/healthy", "/?/-/healthy"):
        refused = ask(site, path, authorization=basic("ann", "wrong"))
        assert refused.status == 401
        assert "WWW-Authenticate" in dict(refused.headers)
    assert ask(site, "/", "POST").status == 401
    assert ask(site, "/", authorization=basic("ann", "right")).status == 200


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


def test_what_is_open_to_others_is_said_loudly(users_file: Path) -> None:
    in_clear = site_of({}, Options(users=users_file))
    safe = replace(in_clear, tls=ssl.create_default_context)
    assert warnings("127.0.0.1", Site({})) == warnings("::1", Site({})) == ()
    assert "everybody" in warnings("0.0.0.0", Site({}))[0]
    assert "everybody" in warnings("fe80::1%eth0", Site({}))[0]
    assert "in clear" in warnings("192.168.1.2", in_clear)[0]
    assert warnings("192.168.1.2", safe) == ()


def test_half_a_certificate_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    for options, words in (
        (Options(tls_cert=nothing), "belong together"),
        (Options(tls_key=nothing), "belong together"),
        (Options(tls_cert=nothing, tls_key=nothing), "no certificate"),
    ):
        with pytest.raises(UsageError, match=words):
            site_of({}, options)
    nothing.write_text("no key")
    nothing.chmod(0o600)
    with pytest.raises(UsageError, match="no certificate"):
        site_of({}, Options(tls_cert=nothing, tls_key=nothing))
    nothing.chmod(0o644)
    with pytest.raises(UsageError, match="chmod o="):
        site_of({}, Options(tls_cert=nothing, tls_key=nothing))


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
    assert [one.name for one in tmp_path.glob("*standfast.prom*")] == ["standfast.prom"]


def test_a_file_that_node_exporter_would_pass_over_is_refused(
    config: Config, tmp_path: Path
) -> None:
    for path, words in ((tmp_path / "x.txt", r"\.prom"), (tmp_path / "no/x.prom", "no directory")):
        with pytest.raises(UsageError, match=words):
            textfile.write([config], path)


def test_the_page_names_every_path(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Looks, "start", lambda looks: None)  # no thread in this process
    page = (ROOT / "docs/metrics.md").read_text()
    ours = {"/metrics", "/", "/api/v1/status", "/primary", "/standby", "/-/healthy"}
    assert ours <= routes([config]).keys()
    assert all(f"`{path}`" in page for path in ours)


def test_the_executable_holds_no_logic() -> None:
    lines = (ROOT / "exporters/standfast-exporter").read_text().splitlines()
    assert len(lines) <= 15
