"""Who may import whom among the tests: what several folders use is in tests/support or tests/fakes.

So whoever reads a test goes down to its helpers, and never over to another test.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT

TESTS = CHECKOUT / "tests"
HELPERS = {"tests.support", "tests.fakes"}
MAY_USE: Mapping[str, set[str]] = {
    "tests.conftest": HELPERS,
    "tests.support": HELPERS,
    "tests.fakes": HELPERS,
    "tests.mutants": HELPERS,
    "tests.sim": HELPERS,
    "tests.property": HELPERS | {"tests.sim"},
    "tests.contract": HELPERS | {"tests.sim"},
    "tests.unit": HELPERS | {"tests.labs.shared", "benchmarks", "tools"},
    "tests.labs.shared": HELPERS,
    "tests.labs.containers": HELPERS | {"tests.labs.shared"},
    "tests.labs.kernels": HELPERS | {"tests.labs.shared"},
    "benchmarks": HELPERS | {"tests.labs.shared", "tests.labs.containers"},
    "tools": set(),
}
"""Each folder, and the others that its modules may import."""
SUITES = "tests.contract.ports"
EXCEPTIONS = {
    "tests.unit.test_ports": {f"{SUITES}.implementations"},
    "tests.labs.containers.test_ports": {
        f"{SUITES}.test_mount_units",
        f"{SUITES}.test_schedule",
        f"{SUITES}.test_units",
    },
}
"""What is about the ports' suites: one compares their lists, one runs them on a real systemd."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")


def files() -> list[Path]:
    return sorted(
        path for top in ("tests", "benchmarks", "tools") for path in (CHECKOUT / top).rglob("*.py")
    )


MODULES = {module_of(path): path for path in files()}


def room_of(module: str) -> str:
    """The folder of MAY_USE in which a module is."""
    [room] = [room for room in MAY_USE if f"{module}.".startswith(f"{room}.")] or [""]
    return room


def imports(text: str) -> Iterator[str]:
    """The modules of MODULES that this one imports, wherever in its text."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from sorted(inner & MODULES.keys())
            if node.module in MODULES and not inner <= MODULES.keys():
                yield node.module


def wrong_imports(module: str, text: str) -> list[str]:
    """What a module with this text must not import: another folder's, or a test module."""
    room = room_of(module)
    allowed = MAY_USE[room] | {room}
    return [
        used
        for used in imports(text)
        if used not in EXCEPTIONS.get(module, ())
        and (used.split(".")[-1].startswith(("test_", "conftest")) or room_of(used) not in allowed)
    ]


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name not in ("tests", "tests.labs")]
)
def test_a_module_imports_from_its_own_folder_and_those_below(module: str) -> None:
    wrong = wrong_imports(module, MODULES[module].read_text())
    assert not wrong, (
        f"{module} imports {wrong}: move what both use to tests/support or tests/fakes, or out of "
        "the test module that it is in"
    )


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tests.contract.test_clients", "from tests.unit import keepers"),
        ("tests.unit.test_clock", "from tests.contract.trees import read_tree"),
        ("tests.unit.test_clock", "from tests.unit.test_docs import rows"),
        ("tests.support.waiting", "import tests.sim.world"),
        ("benchmarks.page", "def late():\n    from tests.contract.histories import World"),
    ],
)
def test_an_import_out_of_another_tests_folder_is_wrong(module: str, line: str) -> None:
    assert len(wrong_imports(module, line)) == 1


def test_every_exception_is_used() -> None:
    for module, used in EXCEPTIONS.items():
        assert used <= set(imports(MODULES[module].read_text())), module


def test_nothing_lies_loose_among_the_folders_of_tests() -> None:
    loose = {path.name for path in TESTS.iterdir() if path.is_file()}
    assert loose == {"__init__.py", "conftest.py"}


def test_a_helper_of_all_is_no_single_folders_scene() -> None:
    """Whatever is in tests/support is used by two folders at least, or by what is there itself."""
    users: dict[str, set[str]] = {
        name: set() for name in MODULES if name.startswith("tests.support.")
    }
    for module, path in MODULES.items():
        for used in imports(path.read_text()):
            if used in users and used != module:
                users[used].add(room_of(module))
    lonely = {
        name: rooms
        for name, rooms in users.items()
        if len(rooms) < 2 and "tests.support" not in rooms
    }
    assert not lonely, f"these belong into the one folder that uses them: {lonely}"


def test_no_name_of_a_test_has_what_is_left_of_an_apostrophe() -> None:
    names = {
        node.name
        for module, path in MODULES.items()
        if module.split(".")[-1].startswith("test_")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert len(names) > 1000
    left = sorted(name for name in names if re.search(r"_(s|t|re|ll|ve)(_|$)", name))
    assert not left, "say it in words: the_fence_of_a_node, can_not"
