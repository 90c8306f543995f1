"""CONSUL_* and NOMAD_* are read once, and no child but `consul watch` finds them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from standfast.config.consul import ConsulAccess
from standfast.config.model import Hooks
from standfast.consul import watch
from standfast.events import hooks
from standfast.system import run as system_run
from standfast.system import streams
from standfast.system.clock import monotonic
from standfast.system.environment import _NAMES, TAKEN, take
from standfast.system.run import exec_before, run, spawn, start_detached
from standfast.system.streams import Conversation, pipeline
from tests.support.configs import config_in, config_of
from tests.support.examples import examples
from tests.support.pace import patient
from tests.support.scripts import script
from tests.support.waiting import soon

SECRETS = {"CONSUL_HTTP_TOKEN": "consul-secret", "NOMAD_TOKEN": "nomad-secret"}
PLACES = {"CONSUL_HTTP_ADDR": "127.0.0.1:1", "NOMAD_ADDR": "http://127.0.0.1:2"}


@pytest.fixture(autouse=True)
def nothing_taken() -> Iterator[None]:
    """Before each test, as before a program's start."""
    with patch.dict(TAKEN, clear=True):
        yield


def test_what_is_taken_is_gone_and_all_else_stays() -> None:
    environ = {**SECRETS, **PLACES, "PATH": "/bin", "NOMAD_ALLOC_ID": "a", "CONSULT": "b"}
    take(environ)
    assert environ == {"PATH": "/bin", "NOMAD_ALLOC_ID": "a", "CONSULT": "b"}
    assert TAKEN == {**SECRETS, **PLACES}
    take(environ)
    assert TAKEN == {**SECRETS, **PLACES}, "what is read once is not read again"


def through_run(tmp_path: Path) -> str:
    return run(["env"], op="a child", deadline=soon(20)).stdout


def through_exec_before(tmp_path: Path) -> str:
    return exec_before(monotonic() + patient(20.0), ["env"], op="a child").stdout


def through_spawn(tmp_path: Path) -> str:
    with (tmp_path / "out").open("wb") as out:
        child = spawn("a child", ["env"], stdin=subprocess.DEVNULL, stdout=out, stderr=2)
        child.wait(patient(20.0))
    return (tmp_path / "out").read_text()


def through_start_detached(tmp_path: Path) -> str:
    start_detached(["env"], op="a child", log_file=tmp_path / "out").wait(patient(20.0))
    return (tmp_path / "out").read_text()


def through_a_pipeline(tmp_path: Path) -> str:
    with (tmp_path / "out").open("wb") as out:
        pipeline([["env"], ["cat"]], op="a child", deadline=soon(20), stdout=out.fileno())
    return (tmp_path / "out").read_text()


def through_a_conversation(tmp_path: Path) -> str:
    with Conversation(["env"], op="a child") as child:
        return child.finish(soon(20)).stdout


def through_a_hook(tmp_path: Path) -> str:
    config = replace(config_in(tmp_path), hooks=Hooks(dir=tmp_path / "hooks.d"))
    script(tmp_path / "hooks.d/post-promote/10-env", f"env > {tmp_path}/out")
    hooks.announce(config, hooks.Occasion.POST_PROMOTE, dict)
    return (tmp_path / "out").read_text()


DOORS = (through_run, through_exec_before, through_spawn, through_start_detached,
         through_a_pipeline, through_a_conversation, through_a_hook)  # fmt: skip


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_through_no_door_a_child_is_told_a_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, door: Callable[[Path], str]
) -> None:
    for name, text in SECRETS.items():
        monkeypatch.setenv(name, text)
    take()
    told = door(tmp_path)
    assert "PATH=" in told and "secret" not in told


def test_these_are_all_doors() -> None:
    """Whatever starts a program is one of run.py's or streams.py's, which the linter holds."""
    known = {door.__name__.removeprefix("through_").removeprefix("a_") for door in DOORS}
    for module in (system_run, streams):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        for each in tree.body:
            text = ast.unparse(each)
            starts = any(word in text for word in ("Popen(", "os.exec", "spawn(", "os.fork("))
            name = getattr(each, "name", "").lower()
            if starts and not name.startswith("_"):
                assert name in known, f"{module.__name__}: {name}"


@examples(100)
@given(st.dictionaries(st.text(min_size=1), st.text()), st.sets(st.sampled_from(sorted(_NAMES))))
def test_of_any_environment_only_those_are_taken(others: dict[str, str], ours: set[str]) -> None:
    environ = {**others, **dict.fromkeys(ours, "secret")}
    with patch.dict(TAKEN, clear=True):
        take(environ)
        assert set(TAKEN) == _NAMES & (set(others) | ours)
    assert environ == {name: text for name, text in others.items() if name not in _NAMES}


def test_every_command_takes_them_first() -> None:
    code = (
        "import os; from standfast.cli.main import main; main(['config', 'example']); "
        "print([name for name in os.environ if name.startswith(('CONSUL_', 'NOMAD_'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **SECRETS, **PLACES},
    )
    assert done.stdout.endswith("[]\n"), done


def test_the_watch_and_its_handlers_are_given_what_they_need(tmp_path: Path) -> None:
    take({**SECRETS, **PLACES, "CONSUL_HTTP_SSL": "true"})
    of_the_environment = config_of("a", node="a", consul=ConsulAccess(addresses=("h:1",)))
    assert watch.environment(of_the_environment) == {**SECRETS, **PLACES}, "the address says how"
    file = tmp_path / "token"
    by_file = config_of("a", node="a", consul=ConsulAccess(token_file=file))
    told = watch.environment(by_file)
    assert "CONSUL_HTTP_TOKEN" not in told
    assert told["CONSUL_HTTP_TOKEN_FILE"] == str(file)
