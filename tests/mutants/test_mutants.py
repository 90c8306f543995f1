"""Every mutant is caught by its test: in a copy of the project, which passes without the fault."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants import Mutant, load, tracked_files
from tests.support import pace
from tests.support.checkout import CHECKOUT

MUTANTS = load()
FAILED = 1
"""pytest's exit status when tests ran and some failed: not an error of the copy's own."""
LIMIT_S = 300.0
# The fixed seed of `make test`: a mutant is caught there, or it is not.
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--basetemp=.t")
pytestmark = [pytest.mark.torture, pytest.mark.timeout(LIMIT_S * 2)]


def run_there(copy: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """These tests, with the copy's program and no other."""
    # Neither the summary nor the workers of this run are the copy's.
    ours = ("STANDFAST_LEFT_OUT", "PYTEST_")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "PYTHONPATH": str(copy),
        "STANDFAST_TEST_PACE": str(pace.factor()),
        "HYPOTHESIS_PROFILE": "test",
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=pace.patient(LIMIT_S),
    )


@pytest.fixture
def copy() -> Iterator[Path]:
    """The tracked files; a new directory each time, so that no compiled file is an older one's.

    Its path is short, as sockets below it have to be named.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        for name in tracked_files():
            (Path(directory) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, Path(directory) / name)
        yield Path(directory)


def each_on_any_worker() -> list[object]:
    """One by one, on whichever worker is free."""
    return [
        pytest.param(mutant, id=str(mutant), marks=pytest.mark.xdist_group(f"mutant-{number}"))
        for number, mutant in enumerate(MUTANTS)
    ]


def test_without_a_fault_all_of_these_tests_pass(copy: Path) -> None:
    done = run_there(copy, *sorted({mutant.caught_by for mutant in MUTANTS}))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("mutant", each_on_any_worker())
def test_a_mutant_is_caught(copy: Path, mutant: Mutant) -> None:
    target = copy / mutant.file
    target.write_text(mutant.applied(target.read_text()))
    done = run_there(copy, mutant.caught_by)
    if done.returncode == 0 and " passed" not in done.stdout:
        last = (done.stdout.splitlines() or ["no output"])[-1]
        pytest.skip(f"{mutant.caught_by} is left out here: {last}")
    assert done.returncode == FAILED, (
        f"SURVIVES: {mutant.kind}: {mutant.caught_by} ended with {done.returncode} though "
        f"{mutant.file} was changed\n{done.stdout}"
    )
