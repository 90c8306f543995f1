"""`standfast setup` and `uninstall` as they are typed: what is asked, and what isn't begun."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from standfast.cli import setup, setup_questions, uninstall
from standfast.cli.main import main
from standfast.setup import given
from standfast.setup.observation import InConsul
from standfast.setup.record import Installed
from standfast.setup.removal_look import Look
from standfast.setup.shipped import Places
from tests.unit.setups import TEXT, bare, brought, config_of, goal_of


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))


@pytest.mark.parametrize("command", ["setup", "uninstall"])
def test_nothing_is_begun_without_root(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main([command, "--yes"]) == 3


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["setup"], "--yes does it without"),
        (["setup", "--yes"], "give one with --config"),
        (["setup", "--yes", "--config", "/tmp/volume.conf"], "is no VOLUME.toml"),
        (["setup", "--yes", "--config", "/nowhere/a.toml"], "can't be read"),
        (["uninstall"], "--yes does it without"),
        (["uninstall", "--package", "--cluster"], "run time alone"),
        (["uninstall", "--package", "--keep-serving"], "run time alone"),
    ],
)
def test_what_can_not_be_meant_is_said(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert says in capsys.readouterr().err


def test_a_token_comes_from_a_file_or_stdin_and_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text("0123-4567\n")
    assert setup._token(str(path)) == "0123-4567"
    monkeypatch.setattr("sys.stdin", io.StringIO("89ab\n"))
    assert setup._token("-") == "89ab"
    assert setup._token(None) is None
    path.write_text("\n")
    with pytest.raises(Exception, match="there is no token"):
        setup._token(str(path))
    path.write_text("two words")
    with pytest.raises(Exception, match="characters that no token has"):
        setup._token(str(path))


def typed(*answers: str) -> Callable[[str], str]:
    left = list(answers)
    return lambda _text: left.pop(0)


def test_a_few_answers_make_a_configuration() -> None:
    ask = typed("", "", "zippy 192.168.1.2", "nonsense", "c1=192.168.1.3", "", "192.168.1.9", "n")
    volume, answers = setup_questions.answers(ask)
    config = config_of(given.new_text(volume, answers))
    assert (volume, config.cluster, list(config.nodes)) == (
        "data-services",
        "home",
        ["zippy", "c1"],
    )
    assert config.nfs.clients == ("192.168.1.9",) and config.consul.token_file is None


@pytest.mark.parametrize(
    ("answer", "means"), [("y", True), ("Yes", True), ("", False), ("n", False)]
)
def test_only_a_yes_is_one(answer: str, means: bool) -> None:
    assert setup_questions.agree("Do it?", typed(answer)) is means


def test_what_comes_next_depends_on_whether_anybody_is_primary() -> None:
    goal = goal_of(TEXT)
    first = setup.next_commands(goal, bare())
    assert first[0] == "standfast standby add c1" and "promote" in first[-1]
    seen = bare(consul=InConsul("zippy", None, "c1"))
    assert setup.next_commands(goal, seen) == ("standfast standby add c1",)


def test_a_node_without_a_configuration_is_cleaned_of_what_is_shared(
    tmp_path: Path,
) -> None:
    [config], is_configured = uninstall._configs(None)
    assert not is_configured
    places = Places(root=tmp_path / "root", prefix=tmp_path / "opt")
    path = places.at(Path("/etc/systemd/system/nfs-server.service.d/standfast.conf"))
    path.parent.mkdir(parents=True)
    path.write_text(brought().units["nfs-server.service.d/standfast.conf"])
    look = Look(config, True, brought(), places, asks_consul=False)
    assert look._files(look._goal(), Installed())[0] == [
        Path("/etc/systemd/system/nfs-server.service.d/standfast.conf")
    ]


def test_a_role_whose_configuration_is_gone_is_not_taken_for_none(tmp_path: Path) -> None:
    places = Places(root=tmp_path, prefix=tmp_path / "opt")
    look = Look(config_of(), True, brought(), places, asks_consul=False)
    assert look._role(None) is None
    state = places.at(Path("/var/lib/standfast/media/own-epoch.json"))
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    assert "put its configuration back" in str(look._role(None))
