"""`standfast demo --stay`, for real: what its prompt says is done, and nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.demo.stay.prompt import PROMPT
from standfast.system.clock import Deadline
from tests.contract.demo_scene import UNPROMOTED, processes_of, program, scratch_base
from tests.support.checkout import CHECKOUT
from tests.support.pace import patient


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the demo makes its directory; afterwards nothing of it is left."""
    with scratch_base(monkeypatch) as base:
        yield base


def environment(scratch: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(scratch), "TERM": "xterm", "INPUTRC": "/dev/null"}


def test_a_script_kills_the_primary_and_starts_it_again(scratch: Path) -> None:
    with subprocess.Popen(
        program("--stay"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env=environment(scratch),
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        told = ""
        for line in process.stdout:
            told += line
            if "Ctrl-D ends the demo and leaves nothing" in line:
                break
        page = re.search(r"http://127\.0\.0\.3:[0-9]+/", told)
        assert page is not None, told
        with urllib.request.urlopen(f"{page[0]}api/v1/status", timeout=patient(20.0)) as answer:
            assert json.load(answer)["volumes"][0]["serving"] == "zippy"
        # As in another terminal.
        elsewhere = next(scratch.glob("*/c1/standfast"))
        assert f"{elsewhere} status" in told
        status = [str(elsewhere), "status"]
        done = subprocess.run(status, capture_output=True, text=True, timeout=patient(20.0))
        assert done.stdout.startswith("data-services: zippy is primary"), done
        script = "kill zippy\nkill zippy\nwait\nhistory\nstart zippy\nwait\nwrite\nc3 status\n"
        said, _ = process.communicate(script, timeout=patient(120.0))
        assert process.returncode == 1, said  # of the line `c3 status`
    parts = said.split(PROMPT)
    assert [part.splitlines()[0] for part in parts[1:]] == script.splitlines()
    _, kill, again, wait, history, start, calm, write, unknown = parts
    assert "SIGKILL to all of zippy" in kill
    assert "zippy is off already: `start zippy`" in again
    assert re.search(r"c[12] primary \(serves\)", said)
    assert "the client writes, and each sound node knows its role" in wait
    assert "the client's next line is on c" in said
    assert re.search(r"\| 2 .* c[12] .* takeover", history)
    assert "zippy knows its role" in start
    assert "zippy standby" in start + calm + write + unknown
    assert "lines acknowledged, the last" in write
    assert "no command 'c3'" in unknown and "held: no data is deleted" in unknown


class Terminal:
    """The demo on a terminal of its own, which it is the first process of."""

    def __init__(self, scratch: Path) -> None:
        self._master, slave = os.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *program("--stay", UNPROMOTED)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=CHECKOUT,
            env=environment(scratch),
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, *texts: str) -> str:
        """What comes, until all of these have."""
        deadline = Deadline.after(patient(30.0))
        told = ""
        while not all(text in told for text in texts):
            if not select.select([self._master], [], [], deadline.remaining_s())[0]:
                raise AssertionError(f"{texts} didn't come, but {told!r}")
            told += os.read(self._master, 1).decode("latin-1")
        return told

    def close(self) -> None:
        os.close(self._master)


@pytest.mark.parametrize("end", ["Ctrl-D", "the terminal is closed"])
def test_a_terminal_has_a_prompt_and_its_end_leaves_nothing(end: str, scratch: Path) -> None:
    terminal = Terminal(scratch)
    try:
        terminal.read_until("Ctrl-D ends the demo and leaves nothing")
        terminal.read_until(PROMPT)
        assert len(processes_of(scratch)) >= 3
        terminal.type("ki\tc1\n")
        # The second one comes by itself.
        assert "kill c1" in terminal.read_until("SIGKILL to all of c1", "c1 OFF")
        terminal.type("wait 60\n")
        terminal.read_until("wait 60")
        terminal.type("\x03")
        terminal.read_until("Ctrl-D ends the demo")
        terminal.type("freeze c2 agent\n")
        terminal.read_until("SIGSTOP to the process `agent` of c2")
        if end == "Ctrl-D":
            terminal.read_until(PROMPT)
            terminal.type("\x04")
            terminal.read_until("held: no data is deleted")
            assert terminal.process.wait(patient(20.0)) == 0
    finally:
        terminal.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            terminal.process.wait(patient(20.0))
        assert terminal.process.returncode is not None
