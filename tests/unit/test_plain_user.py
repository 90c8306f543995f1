"""What somebody who isn't root is told: one sentence with the next step, and nothing that is wrong.

Root becomes nobody for the time of a command, which ran before: what it imports may be root's.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.cli.main import main
from standfast.config.load import load
from standfast.config.model import Config
from tests.support.terminal import write_config

NOBODY = 65534
AS_ROOT = "This needs root: run it with sudo"


@contextmanager
def nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def close(path: Path) -> None:
    """As root's own, which to its owner is closed only without any permission."""
    path.chmod(0o700 if os.geteuid() == 0 else 0)


@dataclass(frozen=True)
class Plain:
    config: Config
    capsys: pytest.CaptureFixture[str]

    def run(self, *words: str) -> tuple[int, str, str]:
        main(list(words))
        self.capsys.readouterr()
        with self.behind_closed_doors(), nobody():
            code = main(list(words))
        return code, *self.capsys.readouterr()

    @contextmanager
    def behind_closed_doors(self) -> Iterator[None]:
        """An agent listens for root alone, and its state is root's."""
        config = self.config
        state = config.state_dir
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(config.run_dir / "agent.sock"))
            listening.listen()
            close(config.run_dir / "agent.sock")
            close(state)
            try:
                yield
            finally:
                state.chmod(0o755)
                (config.run_dir / "agent.sock").unlink()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Plain]:
    root = Path(tempfile.mkdtemp(prefix="plain-"))  # pytest's own directory is closed to others
    try:
        root.chmod(0o755)
        config = load(write_config(root / "etc", root, ["127.0.0.1:1"]))
        config.run_dir.mkdir(parents=True)
        config.state_dir.mkdir(parents=True)
        config.paths.live.parent.mkdir()
        monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(root / "etc"))
        yield Plain(config, capsys)
    finally:
        shutil.rmtree(root)


def test_status_says_whose_word_it_has_and_not_that_no_agent_runs(plain: Plain) -> None:
    code, out, err = plain.run("status")
    assert code == 3 and "no agent runs here" not in out
    assert "agent.sock answers only root: `sudo standfast status`" in err


def test_status_without_an_agent_says_so_to_everybody(plain: Plain) -> None:
    assert main(["status"]) == 3
    out, err = plain.capsys.readouterr()
    assert "no agent runs here" in out and err == ""


@pytest.mark.usefixtures("demo_parts")
def test_doctor_looks_at_nothing_that_it_would_misjudge(plain: Plain) -> None:
    code, out, err = plain.run("doctor")
    assert (code, out) == (3, "")
    assert err.startswith("standfast: ") and err.endswith(f" {AS_ROOT}\n") and err.count("\n") == 1


@pytest.mark.parametrize("words", ["accept-epoch", "promote"])
def test_what_is_closed_is_said_with_the_next_step(plain: Plain, words: str) -> None:
    _, out, err = plain.run(*words.split())
    assert out == "" and AS_ROOT in err and "delete it" not in err


def test_a_note_that_only_root_may_read_is_not_said_to_be_of_no_use(plain: Plain) -> None:
    (plain.config.state_dir / "pins.json").write_text("{}")
    _, _, err = plain.run("snapshots")
    assert f"pins.json can't be read: Permission denied. {AS_ROOT}" in err
    assert "delete it" not in err


@pytest.mark.parametrize("words", ["status", "doctor", "config check"])
def test_a_configuration_that_only_root_may_read_is_no_riddle(plain: Plain, words: str) -> None:
    plain.config.source.chmod(0o600 if os.geteuid() == 0 else 0)
    with nobody():
        assert main(words.split()) == 2
    out, err = plain.capsys.readouterr()
    assert "can't be read: Permission denied; run it with sudo" in out + err


def test_config_check_does_not_take_a_file_of_roots_for_a_missing_one(plain: Plain) -> None:
    token = plain.config.state_dir / "token"
    token.touch()
    text = plain.config.source.read_text()
    plain.config.source.write_text(text.replace("[consul]", f'[consul]\ntoken_file = "{token}"'))
    code, out, _ = plain.run("config", "check")
    assert code == 0
    assert "warning: consul.token_file" in out and "as this user; check it with sudo" in out
