"""When watches have to begin anew, and at which address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from standfast.config.consul import ConsulAccess
from standfast.consul.watch import Vantage, addresses, definitions, with_own_handler
from standfast.system.environment import TAKEN
from tests.support.configs import config_of

Seen = str | None


def looks(*seen: tuple[Seen, ...]) -> list[tuple[bool, int]]:
    """Whether to begin anew, and where, at each look after the first; what each address says."""
    current = seen[0]

    def asking(place: int) -> Callable[[], Seen]:
        return lambda: current[place]

    vantage = Vantage({str(place): asking(place) for place in range(len(current))})
    told = []
    for answers in seen[1:]:
        current = answers
        told.append((vantage.changed(), int(vantage.address)))
    return told


@pytest.mark.parametrize(
    ("seen", "anew"),
    [
        (["a", "a", "a"], [False, False]),
        (["a", "b", "b"], [True, False]),
        (["a", "", "a"], [False, False]),
        (["a", None, None, "a", "a"], [False, False, True, False]),
        (["a", None, "b"], [False, True]),
        ([None, "a"], [True]),
        (["", None, ""], [False, False]),
    ],
)
def test_watches_begin_anew_with_another_leader_and_when_consul_is_back(
    seen: list[Seen], anew: list[bool]
) -> None:
    assert looks(*((answer,) for answer in seen)) == [(is_new, 0) for is_new in anew]


def test_watches_move_on_when_their_address_stays_silent_and_another_does_not() -> None:
    assert looks(("a", "a"), (None, "a"), (None, "a"), (None, "a")) == [
        (False, 0),
        (True, 1),
        (False, 1),
    ]


def test_watches_do_not_go_back_for_nothing() -> None:
    down, up = (None, "a"), ("a", "a")
    assert looks(up, down, down, up, up)[1:] == [(True, 1), (False, 1), (False, 1)]
    assert looks(up, down, down, up, ("a", None), ("a", None))[-1] == (True, 0)


def test_watches_begin_where_somebody_answers() -> None:
    assert looks((None, "a"), (None, "a")) == [(False, 1)]


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ("127.0.0.1:8500", "https://127.0.0.1:8500"),
        ("http://127.0.0.1:8500", "http://127.0.0.1:8500"),
        ("https://[::1]:8501", "https://[::1]:8501"),
    ],
)
@pytest.mark.parametrize("source", ["configuration", "environment"])
def test_the_watch_asks_with_the_scheme_that_the_gateway_uses(
    told: str, asked: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`consul` takes an address without one for plain HTTP, and sends it the token."""
    authority = tmp_path / "ca.pem"
    monkeypatch.setattr("standfast.consul.keys.tls_context", lambda *_: None)
    monkeypatch.setitem(TAKEN, "CONSUL_CACERT", str(authority))
    access = ConsulAccess(addresses=(told,))
    if source == "environment":
        monkeypatch.setitem(TAKEN, "CONSUL_HTTP_ADDR", told)
        access = ConsulAccess()
    assert list(addresses(config_of("a", node="a", consul=access))) == [asked]


HANDLER = {"type": "key", "handler": ["storage-role-changed", "--volume", "v"]}


def test_a_watch_calls_the_handler_of_its_own_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "storage-role-changed"
    own.touch()
    monkeypatch.setattr("sys.argv", [str(tmp_path / "standfast"), "watch", "v"])
    assert with_own_handler(HANDLER)["handler"] == [str(own), "--volume", "v"]
    own.unlink()
    assert with_own_handler(HANDLER) == HANDLER


def test_a_watch_takes_nothing_of_the_directory_that_it_is_called_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -c`, say, has no path of a program."""
    (tmp_path / "storage-role-changed").touch()
    planted = tmp_path / "share/standfast/watches/volume.json"
    planted.parent.mkdir(parents=True)
    planted.write_text('{"watches": []}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["-c", "watch", "v"])
    assert with_own_handler(HANDLER) == HANDLER
    assert definitions(config_of()) != []


def test_the_definitions_of_the_own_installation_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "share/standfast/watches/volume.json"
    own.parent.mkdir(parents=True)
    own.write_text('{"watches": [{"key": "{prefix}/{volume}"}]}')
    monkeypatch.setattr("sys.argv", [str(tmp_path / "bin/standfast"), "watch", "v"])
    assert definitions(config_of()) == [{"key": "standfast/data-services"}]
