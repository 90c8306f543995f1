"""What a running agent has of its program in memory: an upgrade replaces the files under it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import standfast
from tests.support.checkout import CHECKOUT
from tests.support.pace import patient

NEVER = {
    # The other kind of server: the configuration chooses at the start.
    "standfast.nfs.ganesha",
    # A bar on a terminal, which an agent has not.
    "tqdm.std",
}
PROGRAM = """
import sys
from pathlib import Path
from standfast.assembly import node
from standfast.config.model import Fencing
from standfast.config.nomad import NomadAccess
from tests.support.configs import config_in

config = config_in(
    Path(sys.argv[1]),
    nomad=NomadAccess(enabled=True),
    fence=Fencing(backend="nftables"),
)
import standfast.agent.main, standfast.cli.services
node.agent_of(config)
print(*sys.modules, sep="\\n")
"""


def inner_imports(path: Path) -> Iterator[str]:
    """The modules that a file's functions import when they are called, and what of them."""

    def walk(node: ast.AST, inside: bool) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if inside and isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif inside and isinstance(child, ast.ImportFrom):
                assert child.module is not None and child.level == 0
                inner = [f"{child.module}.{alias.name}" for alias in child.names]
                modules = [name for name in inner if is_module(name)]
                yield from modules or [child.module]
            yield from walk(child, inside or isinstance(child, ast.FunctionDef))

    return walk(ast.parse(path.read_text()), False)


def file_of(module: str) -> Path | None:
    base = Path(standfast.__file__).parents[1] / module.replace(".", "/")
    files = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in files if path.is_file()), None)


def is_module(name: str) -> bool:
    return file_of(name) is not None


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What an agent has loaded before its first look."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("node"))],
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=patient(30.0),
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_an_agent_has_loaded_whatever_its_steps_may_need(loaded: set[str]) -> None:
    ours = {name for name in loaded if name.partition(".")[0] == "standfast"}
    # What hands over to the agent, and is over then.
    ours = {name for name in ours if not name.startswith("standfast.cli")}
    assert "standfast.role.steps" in ours
    later = {
        (module, wanted)
        for module in ours
        if (path := file_of(module)) is not None
        for wanted in inner_imports(path)
        if wanted not in loaded and wanted not in NEVER
    }
    assert later == set()
