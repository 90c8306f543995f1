"""CONSUL_* and NOMAD_* are read once, and no child but `consul watch` finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from standfast.config.consul import ConsulAccess
from standfast.consul import watch
from standfast.system.environment import TAKEN, take
from standfast.system.run import run
from tests.support.configs import config_of
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


def test_no_child_of_ours_is_told_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in SECRETS.items():
        monkeypatch.setenv(name, text)
    take()
    told = run(["env"], op="a child", deadline=soon(20)).stdout
    assert "PATH=" in told and "secret" not in told


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
