"""The tree stays one in which a stranger finds the room: few modules in the root, small folders and
modules. What a room may import is import-linter's (`make check`)."""

from __future__ import annotations

from pathlib import Path

import pytest

PRODUCT = Path(__file__).parents[2] / "standfast"
MODULES = sorted(PRODUCT.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})
MOST_IN_ROOT, MOST_IN_FOLDER, MOST_LINES = 8, 15, 400
LARGE = {"cli", "replication"}
"""A command each, and the two ends of a transfer: a reader opens one of them by its name."""


def test_the_root_has_few_modules() -> None:
    there = [path.name for path in PRODUCT.glob("*.py") if path.name != "__init__.py"]
    assert len(there) <= MOST_IN_ROOT, there


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_folder_is_read_at_a_glance(folder: Path) -> None:
    files = [path.name for path in folder.glob("*.py")]
    assert len(files) <= MOST_IN_FOLDER or folder.name in LARGE, files


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PRODUCT)))
def test_a_module_is_short(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= MOST_LINES
