from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from standfast.cli.agent_client import AgentFailed, Request, ask_agent
from standfast.cli.main import main
from standfast.config.load import load
from standfast.config.model import Config
from standfast.errors import Refused, TimedOut, Unreachable
from standfast.reasons import Reason
from tests.support.terminal import write_config


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    monkeypatch.setenv("SUDO_USER", "alice")
    made = load(write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"]))
    made.run_dir.mkdir(parents=True)
    return made


@contextmanager
def an_agent(config: Config, *pieces: bytes, drips: int = 0) -> Iterator[list[Any]]:
    """Answers one request with these pieces, then a byte every 0.1 s; yields what it got."""
    got: list[Any] = []
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(config.run_dir / "agent.sock"))
        server.listen(1)
        server.settimeout(10)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                got.append(json.loads(connection.makefile("rb").readline()))
                for piece in pieces:
                    connection.sendall(piece)
                with contextlib.suppress(BrokenPipeError):  # the client has had enough
                    for _ in range(drips):
                        connection.sendall(b" ")
                        if done.wait(0.1):
                            break

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield got
        finally:
            done.set()
            thread.join(15)
            assert not thread.is_alive()


def ask(config: Config, timeout_s: float = 10.0) -> tuple[list[str], Any]:
    progress: list[str] = []
    answer = ask_agent(config, Request("promote"), timeout_s=timeout_s, on_progress=progress.append)
    return progress, answer


def test_progress_comes_line_by_line_however_it_is_cut(config: Config) -> None:
    stream = b'{"progress": "one"}\n{"progress": "two"}\n{"done": true, "text": "three"}\n'
    with an_agent(config, stream[:25], stream[25:27], stream[27:]):
        assert ask(config) == (["one", "two"], {"done": True, "text": "three"})


def test_the_request_says_what_is_wanted(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    with an_agent(config, b'{"progress": "a"}\n{"done": true, "text": "b"}\n') as got:
        assert main(["switchover", "--to", "c1", "--reason", "rack", "--dry-run"]) == 0
    assert got == [
        {
            "v": 1,
            "command": "switchover",
            "args": {
                "reason": "rack",
                "operator": "alice",
                "to": "c1",
                "accept_data_loss": False,
                "despite": None,
                "timeout_s": 895.0,
            },
            "dry_run": True,
        }
    ]
    assert capsys.readouterr() == ("a\nb\n", "")


def test_promote_passes_the_accepted_loss_on(config: Config) -> None:
    for words, accepted in ((["--accept-data-loss"], True), ([], False)):
        with an_agent(config, b'{"done": true}\n') as got:
            assert main(["promote", *words]) == 0
        assert got[0]["args"]["accept_data_loss"] is accepted
        (config.run_dir / "agent.sock").unlink()


def test_a_dry_run_has_done_nothing_and_lists_its_steps(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [{"do": "bind", "says": "show it"}]
    for told, shown in (({"steps": steps}, steps), ({}, [])):  # an older agent tells none
        line = json.dumps({"done": True, "text": "plan", **told}).encode()
        with an_agent(config, line + b"\n"):
            assert main(["demote", "--json", "--dry-run"]) == 0
        doc = json.loads(capsys.readouterr().out)
        assert doc == {"done": False, "dry_run": True, "text": "plan", "steps": shown}
        (config.run_dir / "agent.sock").unlink()


def test_with_json_progress_goes_to_stderr(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    with an_agent(config, b'{"progress": "a"}\n{"done": true, "text": "b"}\n'):
        assert main(["demote", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"done": True, "text": "b", "dry_run": False}
    assert err == "a\n"


def test_a_refusal_keeps_its_reason(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    answer = b'{"error": "too old", "reason": "too-old", "exit_code": 1}\n'
    with an_agent(config, answer), pytest.raises(Refused) as caught:
        ask(config)
    assert caught.value.reason is Reason.TOO_OLD
    (config.run_dir / "agent.sock").unlink()
    with an_agent(config, answer):
        assert main(["promote", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "too old", "reason": "too-old", "exit_code": 1}
    assert err == "standfast: too-old: too old\n"


@pytest.mark.parametrize(
    ("code", "expected"), [(4, 4), (3, 3), (0, 4), (77, 4), ("1", 4), (True, 4), (None, 4)]
)
def test_a_failure_keeps_its_exit_code_if_it_is_one(
    config: Config, code: object, expected: int
) -> None:
    line = json.dumps({"error": "step 3 failed", "reason": "new-code", "exit_code": code})
    with an_agent(config, line.encode() + b"\n"), pytest.raises(AgentFailed) as caught:
        ask(config)
    assert (caught.value.exit_code, str(caught.value)) == (expected, "step 3 failed")


def test_a_failure_with_a_known_reason_is_no_refusal(config: Config) -> None:
    line = b'{"error": "x", "reason": "too-old", "exit_code": 3}\n'
    with an_agent(config, line), pytest.raises(AgentFailed) as caught:
        ask(config)
    assert (caught.value.exit_code, caught.value.reason) == (3, "too-old")


def test_no_agent_is_unreachable_with_the_command_that_starts_it(config: Config) -> None:
    with pytest.raises(Unreachable, match="systemctl start standfast-agent@data-services"):
        ask(config)
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(config.run_dir / "agent.sock"))
    with pytest.raises(Unreachable, match=r"Connection refused.*systemctl start standfast-agent@"):
        ask(config)


@pytest.mark.parametrize("pieces", [[], [b'{"progress": "a"}\n'], [b'{"done": tr']])
def test_an_agent_that_ends_half_way_leaves_the_outcome_unknown(
    config: Config, pieces: list[bytes]
) -> None:
    with (
        an_agent(config, *pieces),
        pytest.raises(Unreachable, match="whether it was done is not known"),
    ):
        ask(config)


def test_an_agent_that_drips_bytes_times_out(config: Config) -> None:
    # It ends before it said anything: without a total deadline, that would be the error.
    with (
        an_agent(config, b'{"progress": "a"}\n', drips=20),
        pytest.raises(TimedOut, match=r"within 0\.3 s; what it began goes on"),
    ):
        ask(config, timeout_s=0.3)


@pytest.mark.parametrize("answer", [b"nonsense\n", b"[]\n", b"\n", b"\xff\n", b"x" * (1 << 21)])
def test_garbage_from_the_socket_is_a_clear_failure(config: Config, answer: bytes) -> None:
    with an_agent(config), pytest.raises((AgentFailed, Unreachable)):
        ask(config)
    (config.run_dir / "agent.sock").unlink()
    with an_agent_that_may_be_left(config, answer), pytest.raises(AgentFailed, match="agent's"):
        ask(config)


@contextmanager
def an_agent_that_may_be_left(config: Config, answer: bytes) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(config.run_dir / "agent.sock"))
        server.listen(1)
        server.settimeout(10)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(answer)
                    connection.recv(65536)
                except OSError:
                    pass  # the client has had enough

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(15)


def test_an_answer_of_another_kind_is_not_success(config: Config) -> None:
    with an_agent(config, b'{"done": 1}\n'), pytest.raises(Unreachable, match="of one version"):
        ask(config)


def test_escape_sequences_of_the_agent_do_not_reach_the_terminal(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.dumps({"progress": "\x1b[2Ja"}).encode()
    with an_agent(config, line + b'\n{"done": true, "text": "b\\u001b[2J\\nc"}\n'):
        assert main(["promote"]) == 0
    assert capsys.readouterr().out == "?[2Ja\nb?[2J\nc\n"


def test_a_broken_volume_does_not_keep_the_others_from_being_woken(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.source.parent / "a-broken-one.toml").write_text("x = 1\n")
    with an_agent(config, b'{"done": true}\n') as got:
        assert main(["reconcile"]) == 2
    assert [request["command"] for request in got] == ["wake"]
    assert "a-broken-one.toml: x = 1: unknown key" in capsys.readouterr().err
