"""tests/tools/run-tests: which failures get a second try, and that none is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools/run-tests"
FAILS_ONCE = """
import pathlib, pytest

@pytest.mark.{mark}
def test_that_fails_once():
    seen = pathlib.Path("{mark}.seen")
    first = not seen.exists()
    seen.touch()
    assert not first
"""
FAILS = """
import pytest

@pytest.mark.parametrize("n", range({count}))
@pytest.mark.{mark}
def test_that_fails(n):
    assert False
"""
PASSES = """
import pytest

@pytest.mark.{mark}
def test_that_passes():
    pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """One with the script and a passing test in each lane."""
    (tmp_path / "tests/tools").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "tests/tools")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  lab\n  kernel_lab\n  plain\n")
    tools = tmp_path / ".venv/bin"
    tools.mkdir(parents=True)
    for name, argv in (("python", ""), ("pytest", "-m pytest -p no:hypothesispytest")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {argv} "$@"\n')
        (tools / name).chmod(0o755)
    for mark in ("lab", "plain"):
        (tmp_path / f"tests/test_{mark}.py").write_text(PASSES.format(mark=mark))
    return tmp_path


def run(project: Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        ["tests/tools/run-tests"],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_what_passes_passes_at_once(project: Path) -> None:
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "second try" not in done.stdout


def test_what_failed_once_is_tried_alone_and_named(project: Path) -> None:
    for mark in ("lab", "plain"):
        (project / f"tests/test_once_{mark}.py").write_text(FAILS_ONCE.format(mark=mark))
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("run-tests:")]
    assert [line.rpartition(": ")[2] for line in said] == [
        "tests/test_once_lab.py::test_that_fails_once",
        "tests/test_once_plain.py::test_that_fails_once",
    ]


@pytest.mark.parametrize("mark", ["lab", "plain"])
@pytest.mark.parametrize(("count", "tries"), [(1, 2), (6, 1)])
def test_what_fails_twice_or_fails_with_many_others_fails_the_run(
    project: Path, mark: str, count: int, tries: int
) -> None:
    (project / "tests/test_bad.py").write_text(FAILS.format(mark=mark, count=count))
    done = run(project)
    assert done.returncode != 0
    assert done.stdout.count("second try") == tries - 1
    assert "passed alone" not in done.stdout


def test_a_suite_that_can_not_be_collected_fails_the_run(project: Path) -> None:
    (project / "tests/test_bad.py").write_text("import nothing_of_that_name\n")
    done = run(project)
    assert done.returncode not in (0, 1)
    assert "second try" not in done.stdout
