"""What the other tests lean on: waiting, the machine's pace, numbers of examples, the summary."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import examples, pace
from tests.support.checkout import CHECKOUT
from tests.support.waiting import NotInTime, wait_for


def test_the_first_true_answer_ends_a_wait() -> None:
    answers = iter(["", "", "here"])
    assert wait_for(lambda: next(answers), 5.0, "an answer", 0.0) == "here"


def test_a_wait_that_is_over_says_for_what_and_the_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STANDFAST_TEST_PACE", "1")
    with pytest.raises(NotInTime, match=r"not within 0\.0 s: the server is up \(last answer: 0\)"):
        wait_for(lambda: 0, 0.0, "the server is up")


def test_a_machine_that_has_become_busy_gets_a_longer_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "factor", lambda: 1.0)
    monkeypatch.setattr(pace, "measure", lambda: 1e6)
    looks = iter([False] * 50 + [True])
    assert wait_for(lambda: next(looks), 0.0001, "the 51st look", 0.0001)


def test_the_pace_is_measured_and_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STANDFAST_TEST_PACE", raising=False)
    for taken_s, expected in ((pace.QUIET_S / 2, 1.0), (pace.QUIET_S * 3, 3.0), (1e9, pace.MOST)):
        monkeypatch.setattr(pace, "_measured", [])
        monkeypatch.setattr(pace, "_piece_of_work", lambda taken_s=taken_s: taken_s)
        assert pace.factor() == pytest.approx(expected)
        assert pace.patient(10.0) == pytest.approx(10.0 * expected)


def in_profile(profile: str) -> subprocess.CompletedProcess[str]:
    script = (
        "from tests.support.examples import examples, load_profile\n"
        "from hypothesis import given, strategies as st\n"
        "load_profile()\n"
        "tried = []\n"
        "@examples(20)\n@given(st.integers())\ndef look(number): tried.append(number)\n"
        "look()\n"
        "print(len(tried))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=CHECKOUT,
        env={**os.environ, "HYPOTHESIS_PROFILE": profile},
        capture_output=True,
        text=True,
        timeout=pace.patient(60.0),
    )


def test_the_search_profile_multiplies_what_a_test_asks_for() -> None:
    assert int(in_profile("test").stdout) == 20
    assert int(in_profile("search").stdout) == 20 * examples.SEARCH
    misspelt = in_profile("serach")
    assert misspelt.returncode != 0 and "only test and search are known" in misspelt.stderr


def test_no_test_sets_a_number_of_examples_that_a_profile_can_not_multiply() -> None:
    for path in (CHECKOUT / "tests").rglob("*.py"):
        if path.name not in ("examples.py", "test_support.py"):
            assert "max_examples" not in path.read_text(), path
    assert settings.default is not None and settings.default.database is None


def run_apart(directory: Path, workers: int, **environment: str) -> str:
    """What pytest says of the tests in a directory, with this project's conftest."""
    (directory / "pytest.ini").write_text("[pytest]\nmarkers = smoke\n")
    # The workers of this run are not the other's.
    around = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider",
         "-n", str(workers), "--dist", "loadgroup", "--rootdir", directory, directory],
        cwd=CHECKOUT,
        env={**around, "PYTHONPATH": str(CHECKOUT), **environment},
        capture_output=True,
        text=True,
        timeout=pace.patient(60.0),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_a_file_share_a_worker(tmp_path: Path) -> None:
    """Else each worker boots the lab that a file's tests share."""
    lines = "import os\nfrom pathlib import Path\n" + "".join(
        f"def test_{n}(): Path({str(tmp_path)!r}, f'{{__name__}} {{os.getpid()}}').touch()\n"
        for n in range(20)
    )
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text(lines)
    run_apart(tmp_path, 2)
    assert [path.name.split()[0] for path in sorted(tmp_path.glob("test_* *"))] == [
        "test_a",
        "test_b",
    ]


A_RUN = """
import pytest
from tests.support.figures import note

def test_it_measures():
    note("power cut -> first write: 5.1 s")

@pytest.mark.skip(reason="no nomad on PATH (NOMAD_BINARY=... adds it)")
def test_on_nomad(): ...

@pytest.mark.skip(reason="no nomad on PATH (NOMAD_BINARY=... adds it)")
def test_more_on_nomad(): ...
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_the_summary_names_what_was_left_out_and_what_was_measured(
    tmp_path: Path, workers: int
) -> None:
    (tmp_path / "test_it.py").write_text(A_RUN)
    left_out = tmp_path / "left-out"
    said = run_apart(tmp_path, workers, STANDFAST_LEFT_OUT=str(left_out))
    line = "2 tests of test_it.py: no nomad on PATH (NOMAD_BINARY=... adds it)"
    assert line in said
    assert left_out.read_text() == line + "\n"
    assert "power cut -> first write: 5.1 s" in said
