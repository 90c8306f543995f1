from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from standfast import __version__
from standfast.cli import config as config_command
from standfast.cli import direct
from standfast.cli.commands import COMMANDS
from standfast.cli.main import main
from standfast.cli.parser import build
from standfast.errors import CommandFailed, Refused, StandfastError, StepFailed, TimedOut
from standfast.reasons import Reason
from tests.support.terminal import write_config

Captured = pytest.CaptureFixture[str]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def body(_args: object) -> NoReturn:
        raise error

    monkeypatch.setattr(config_command, "example", body)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Refused(Reason.TOO_OLD, "it is old"), 1, "standfast: too-old: it is old\n"),
        (TimedOut("late"), 3, "standfast: late\n"),
        (StepFailed("step 3"), 4, "standfast: step 3\n"),
        (CommandFailed("exit 5", returncode=5), 4, "standfast: exit 5\n"),
        (StandfastError("one\ntwo"), 4, "standfast: one\nstandfast: two\n"),
        (PermissionError(13, "Permission denied", "/x"), 3, "standfast: [Errno 13] Permission "
         "denied: '/x'. This needs root: run it with sudo\n"),
        (KeyError("a\nb"), 4, "standfast: unexpected: KeyError: 'a\\nb'; this is a bug, please "
         "report it with what STANDFAST_DEBUG=1 shows\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
    ],
)  # fmt: skip
def test_each_error_has_its_message_and_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, error: BaseException, code: int, said: str
) -> None:
    failing(monkeypatch, error)
    assert main(["config", "example"]) == code
    assert capsys.readouterr() == ("", said)


def test_the_text_of_the_runbook_is_printed_to_the_letter(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    text = "ERROR: Another NFS server is already active at 192.168.1.3\nTo fix:\n  1. x"
    failing(monkeypatch, Refused(Reason.OTHER_SERVER_ACTIVE, text))
    assert main(["config", "example"]) == 1
    assert capsys.readouterr().err == f"{text}\nstandfast: other-server-active\n"


def test_a_traceback_is_shown_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    failing(monkeypatch, ValueError("x"))
    main(["config", "example"])
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("STANDFAST_DEBUG", "1")
    main(["config", "example"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bogus"], "invalid choice: 'bogus' (choose from status, doctor, "),
        (["sttaus"], "invalid choice: 'sttaus' (did you mean status?); see "),
        (["standby", "ad", "c1"], "invalid choice: 'ad' (did you mean add?)"),
        (["config"], "required: COMMAND"),
        (["status", "--bogus"], "unrecognized arguments: --bogus"),
        (["switchover", "--to"], "expected one argument"),
        (["promote", "--accept"], "unrecognized arguments: --accept"),
        (["promote", "--timeout", "nan"], "'nan' is not a number of seconds above 0"),
        (["promote", "--timeout", "0"], "'0' is not a number of seconds above 0"),
        (["pause", "--reason", "a\nb"], "is not a text of 1 to 500 printable characters"),
        (["completion", "csh"], "invalid choice: 'csh'"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(
    capsys: Captured, words: list[str], said: str
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("standfast: ")
    assert said in err
    assert main([*words, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["exit_code"], document["reason"]) == (2, None)


def test_no_command_of_units_and_handlers_is_offered_to_people(capsys: Captured) -> None:
    for words in (["bogus"], ["reconcil"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "reconcile" not in said and "nomad-boot" not in said


def test_without_a_command_the_help_is_a_usage_error(capsys: Captured) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "switchover" in err


def test_help_and_version_are_no_errors(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"standfast {__version__}\n"
    assert main(["switchover", "--help"]) == 0
    assert "--to NODE" in capsys.readouterr().out


def test_the_commands_of_the_interface_exist() -> None:
    parser = build()
    for words in (
        "status --json --watch", "promote --accept-data-loss --dry-run --reason x",
        "switchover --to c1", "failback --dry-run", "demote --json", "pause", "resume",
        "history --json", "replicate c1", "replicate --instance v:c1", "standby list",
        "snapshots --json --all", "prune --dry-run", "accept-epoch --dry-run", "guard",
        "receive data-services",
        "config check --json", "config example", "demo", "agent v", "lease v", "fence v",
        "watch v", "reconcile --event epoch --volume v", "completion bash",
        "remount --json --dry-run", "remount --event service --volume v", "client units --install",
    ):  # fmt: skip
        assert parser.parse_args(words.split()).entry


@pytest.mark.parametrize("words", [["receive"], ["receive", "data-services"]])
def test_what_begins_without_the_parser_is_what_the_parser_says(words: list[str]) -> None:
    entry, args = direct.recognise(words) or pytest.fail("not recognised")
    parsed = build(words).parse_args(words)
    assert (entry, args.volume) == (parsed.entry, parsed.volume)


@pytest.mark.parametrize(
    "words",
    [
        [], ["status"], ["receive", "--help"], ["receive", "-x"], ["receive", ""],
        ["receive", "a/b"], ["receive", "../x"], ["receive", "a", "b"], ["--version"],
    ],
)  # fmt: skip
def test_everything_else_is_left_to_the_parser(words: list[str]) -> None:
    assert direct.recognise(words) is None


def test_commands_without_a_volume_get_none() -> None:
    parser = build()
    assert parser.parse_args(["status"]).volume is None
    assert parser.parse_args(["status", "--volume", "media"]).volume == "media"
    assert parser.parse_args(["agent", "media"]).volume == "media"


def test_commands_that_change_something_have_a_dry_run() -> None:
    changing = {"promote", "switchover", "failback", "demote", "pause", "resume", "replicate",
                "accept-epoch", "prune", "standby add", "standby authorize",
                "standby hold", "standby release", "standby remove",
                "remount", "client units", "setup", "uninstall"}  # fmt: skip
    with_dry_run = {
        command.name
        for command in COMMANDS
        if any(arg.name == "--dry-run" for arg in command.arguments)
    }
    assert with_dry_run == changing


def run_python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environ},
    )  # fmt: skip


def test_version_and_help_import_nothing_heavy() -> None:
    heavy = ("requests", "consul", "tomllib", "json", "logging", "socket",
             "standfast.config.model")  # fmt: skip
    done = run_python(
        "import sys; from standfast.cli.main import main; main(['--version']); main(['--help']);"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    assert done.stdout.endswith("[]\n"), done.stdout


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
SHORT_AND_LONG = pytest.mark.parametrize("words", [["--version"], ["config", "example"]])


@SHORT_AND_LONG
def test_a_reader_that_leaves_early_gets_no_message(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "standfast", *words],
            stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, env=BUFFERED,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@SHORT_AND_LONG
def test_a_full_disk_is_an_error(words: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "standfast", *words],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=BUFFERED,
        )  # fmt: skip
    assert done.returncode == 4
    assert "No space left on device" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_an_odd_locale_does_not_break_the_output(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "data-services.toml"
    write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    path.write_text(path.read_text() + '[guard]\nstandby_hintt = "\u2603"\n')
    done = run_python(
        "import sys; from standfast.cli.main import main; sys.exit(main(['config', 'check']))",
        PYTHONIOENCODING="ascii",
        STANDFAST_CONFIG_DIR=str(tmp_path / "etc"),
    )
    assert done.returncode == 2
    assert 'standby_hintt = "\\u2603"' in done.stdout


# config check, config example


def test_config_check_prints_every_problem_of_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    etc = tmp_path / "etc"
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(etc))
    good = write_config(etc, tmp_path, ["127.0.0.1:1"])
    assert main(["config", "check"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{good}: ok: volume data-services, zippy is a storage node, with c1"
    )
    bad = etc / "media.toml"
    bad.write_text("x = 1\ny = 2\n")
    assert main(["config", "check"]) == 2
    out = capsys.readouterr().out
    assert out.startswith(f"{good}: ok: ")
    assert [line.split(" = ")[0] for line in out.splitlines()[2:4]] == [f"{bad}: x", f"{bad}: y"]
    assert main(["config", "check", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert [(file["file"], file["ok"]) for file in document["files"]] == [
        (str(good), True),
        (str(bad), False),
    ]
    assert document["files"][1]["problems"][0]["key"] == "x"
    assert main(["config", "check", "--volume", "data-services"]) == 0
    assert main(["config", "check", str(good)]) == 0
    assert main(["config", "check", str(bad)]) == 2


def test_config_check_finds_conflicts_between_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    good = write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    (tmp_path / "etc" / "media.toml").write_text(good.read_text())
    assert main(["config", "check"]) == 2
    out = capsys.readouterr().out
    assert f"{good}: ok" in out
    assert "media.toml: paths.live = " in out


def test_config_check_of_a_client_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    path = write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    path.write_text(path.read_text().replace('node = "zippy"', ""))
    monkeypatch.setattr("socket.gethostname", lambda: "laptop")
    assert main(["config", "check"]) == 0
    assert "laptop is a client (not in [nodes]: c1, zippy)" in capsys.readouterr().out


def test_config_check_without_any_file_tells_how_to_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path))
    assert main(["config", "check"]) == 2
    assert "standfast config example > " in capsys.readouterr().out
    assert main(["history", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["reason"] == "config-invalid"


def test_the_example_on_stdout_passes_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path))
    assert main(["config", "example", "--volume", "media"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Standfast: volume media.")
    (tmp_path / "media.toml").write_text(text)
    assert main(["config", "check"]) == 0


@pytest.mark.parametrize("command", ["agent", "lease", "fence", "receive"])
def test_services_refuse_a_host_that_is_no_storage_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    path = write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    path.write_text(path.read_text().replace('node = "zippy"', ""))
    monkeypatch.setattr("socket.gethostname", lambda: "laptop")
    assert main([command, "data-services"]) == 2


def test_the_guard_refuses_with_a_broken_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path))
    (tmp_path / "data-services.toml").write_text("x = 1")
    assert main(["guard"]) == 1
    assert "config-invalid" in capsys.readouterr().err


def test_reconcile_is_harmless_without_an_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    assert main(["reconcile"]) == 0
    assert main(["reconcile", "--volume", "data-services"]) == 0
