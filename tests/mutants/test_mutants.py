"""Every mutant is caught by its test: in a copy of the project, which passes without the fault."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import ROOT, Mutant, load, tracked_files
from tests.support import pace

MUTANTS = load()
FAILED = 1
"""pytest's exit status when tests ran and some failed: not an error of the copy's own."""
LIMIT_S = 300.0
pytestmark = [pytest.mark.torture, pytest.mark.timeout(LIMIT_S * 2)]


def run_there(copy: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """These tests, with the copy's program and no other."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "STANDFAST_TEST_PACE": str(pace.factor()),
        "HYPOTHESIS_PROFILE": "test",
    }
    # A summary of the copy's own tests is no part of this run's.
    environment.pop("STANDFAST_LEFT_OUT", None)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=pace.patient(LIMIT_S),
    )


def copied_to(directory: Path) -> Path:
    """The tracked files; a new directory each time, so that no compiled file is an older one's."""
    copy = directory / "copy"
    for name in tracked_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    return copy


def in_groups_of_workers() -> list[object]:
    """One by one, on whichever worker is free."""
    return [
        pytest.param(mutant, id=str(mutant), marks=pytest.mark.xdist_group(f"mutant-{number}"))
        for number, mutant in enumerate(MUTANTS)
    ]


def test_without_a_fault_all_of_these_tests_pass(tmp_path: Path) -> None:
    done = run_there(copied_to(tmp_path), *sorted({mutant.caught_by for mutant in MUTANTS}))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("mutant", in_groups_of_workers())
def test_a_mutant_is_caught(tmp_path: Path, mutant: Mutant) -> None:
    copy = copied_to(tmp_path)
    target = copy / mutant.file
    target.write_text(mutant.applied(target.read_text()))
    done = run_there(copy, mutant.caught_by)
    assert done.returncode == FAILED, (
        f"SURVIVES: {mutant.kind}: {mutant.caught_by} ended with {done.returncode} though "
        f"{mutant.file} was changed\n{done.stdout}"
    )
