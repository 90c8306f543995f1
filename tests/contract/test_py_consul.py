"""The gateway on py-consul, the maintained library with the same import name."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT
from tests.support.pace import patient

REQUIREMENT = "py-consul==1.8.0"


@pytest.fixture(scope="module")
def py_consul() -> Path:
    """A directory with py-consul alone, kept in the cache; what it needs is installed anyway."""
    target = CHECKOUT / ".cache" / REQUIREMENT.replace("==", "-")
    if target.is_dir():  # it appears whole; a user can't open the lock where root has fetched it
        return target
    target.parent.mkdir(exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            # Filled aside and renamed whole: an interrupted run leaves no half of it.
            with tempfile.TemporaryDirectory(dir=target.parent) as made:
                fetch(Path(made) / target.name)
                (Path(made) / target.name).rename(target)
    return target


def fetch(target: Path) -> None:
    uv = Path(sys.executable).with_name("uv")  # `make venv` put it there
    program = str(uv) if uv.exists() else shutil.which("uv")
    assert program, f"uv is neither beside {sys.executable} nor on PATH to fetch {REQUIREMENT}"
    install = subprocess.run(
        [program, "pip", "install", "-q", "--no-deps", "--target", target, REQUIREMENT],
        capture_output=True,
        text=True,
        timeout=patient(100.0),
    )
    assert install.returncode == 0, f"{REQUIREMENT} can't be fetched: {install.stderr[-2000:]}"


GATEWAY = "tests/unit/test_consul_gateway.py"
CONTRACT = "tests/contract/ports/test_consul.py", "tests/contract/test_consul_server.py"
# Each of the gateway's calls, and those of the library that the exporters of others would make.
SOME = (
    "embedded and (comes_back_as_it_was_written or lease_transactions or prefix_come_sorted"
    " or wait_ends or critical_until_it_passes or knows_its_own or gossip or library)"
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("tests", "which"),
    [
        pytest.param(CONTRACT, SOME, id="some"),
        pytest.param((GATEWAY,), "library_is_the_one", id="library"),
        pytest.param(CONTRACT, "", id="contract", marks=pytest.mark.torture),
        pytest.param((GATEWAY,), "", id="gateway", marks=pytest.mark.torture),
    ],
)
def test_the_gateway_works_on_py_consul_too(
    py_consul: Path, tests: tuple[str, ...], which: str
) -> None:
    # Neither the summary nor the workers of this run are the other's.
    ours = ("STANDFAST_LEFT_OUT", "PYTEST_")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", which],
        cwd=CHECKOUT,
        env={
            **environment,
            "PYTHONPATH": str(py_consul),
            "STANDFAST_TEST_CONSUL_LIBRARY": str(py_consul),
        },
        capture_output=True,
        text=True,
        timeout=patient(280.0),
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert " passed" in run.stdout
