"""The gateway on py-consul, the maintained library with the same import name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.consul_clusters import CHECKOUT

REQUIREMENT = "py-consul==1.8.0"


@pytest.fixture(scope="module")
def py_consul() -> Path:
    """A directory with py-consul alone, kept in the cache; what it needs is installed anyway."""
    target = CHECKOUT / ".cache" / REQUIREMENT.replace("==", "-")
    if not (target / "consul").is_dir():
        uv = Path(sys.executable).with_name("uv")
        found = str(uv) if uv.exists() else shutil.which("uv")
        if not found:
            pytest.skip(f"uv is neither beside {sys.executable} nor on PATH to fetch {REQUIREMENT}")
        install = subprocess.run(
            [found, "pip", "install", "-q", "--no-deps", "--target", target, REQUIREMENT],
            capture_output=True,
            text=True,
            timeout=100,
        )
        if install.returncode:
            pytest.skip(f"{REQUIREMENT} can't be fetched: {install.stderr.strip()[-300:]}")
    return target


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "tests", ["tests/unit/test_consul_gateway.py", "tests/contract/test_consul_contract.py"]
)
def test_the_gateway_works_on_py_consul_too(py_consul: Path, tests: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests],
        cwd=CHECKOUT,
        env={
            **os.environ,
            "PYTHONPATH": str(py_consul),
            "STANDFAST_TEST_CONSUL_LIBRARY": str(py_consul),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert " passed" in run.stdout
