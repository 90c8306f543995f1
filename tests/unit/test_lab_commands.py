"""The labs' commands: a deadline for each, nothing left behind, errors that say what was said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import LabError, LabTimeout, Process, sh, words
from tests.support.waiting import wait_for
from tests.unit.processes import wait_until_gone


def test_a_command_that_passes_its_deadline_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "echo begun; sleep 4711 & echo $! >child; wait"
    hangs = Process(["sh", "-c", script], what="n1: hangs", cwd=tmp_path)
    child = tmp_path / "child"
    wait_for(lambda: child.exists() and child.read_text(), 30.0, "it has a child")
    with pytest.raises(LabTimeout, match=r"n1: hangs: still running after 0\.1 s: begun"):
        hangs.finish(0.1)
    assert not hangs.alive()
    wait_until_gone(int(child.read_text()))


def test_a_child_that_outlives_its_parent_and_holds_the_output_is_killed(tmp_path: Path) -> None:
    script = "sleep 4711 & echo $! >child; echo begun"
    left = Process(["sh", "-c", script], what="n1: leaves one", cwd=tmp_path)
    wait_for(lambda: not left.alive(), 30.0, "its parent has ended")
    with pytest.raises(LabTimeout, match=r"n1: leaves one: still running after 0\.1 s: begun"):
        left.finish(0.1)
    wait_until_gone(int((tmp_path / "child").read_text()))


def test_a_command_that_fails_names_itself_its_status_and_what_it_said() -> None:
    with pytest.raises(LabError, match="sh -c 'echo out; echo bad >&2; exit 3': exit 3: out\nbad"):
        sh("sh", "-c", "echo out; echo bad >&2; exit 3")
    with pytest.raises(LabError, match="no-such-program --now: there is no program"):
        sh("no-such-program", "--now")
    assert words(["cat", "a b"], node="n2") == "n2: cat 'a b'"


def test_a_command_gets_its_input_and_gives_all_of_its_output() -> None:
    data = "".join(f"{number}\n" for number in range(100_000))
    assert sh("cat", input_text=data) == data
    assert sh("sh", "-c", "echo some; exit 3", check=False) == "some\n"


def test_every_line_of_a_process_that_is_killed_has_been_handed_over() -> None:
    lines: list[str] = []
    process = Process(["sh", "-c", "seq 5000; echo error >&2; exec sleep 4711"], out=lines.append)
    wait_for(lambda: len(lines) == 5001, 30.0, "every line is there")
    assert process.alive()
    process.kill()
    assert process.wait(30.0) == -9
    process.kill()
    assert lines == [*(f"{number}\n" for number in range(1, 5001)), "error\n"]
