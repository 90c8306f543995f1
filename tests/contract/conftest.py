"""What the tests on both stores share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.images import quick_directory
from tests.support.volumes import require_btrfs


@pytest.fixture(params=["btrfs", "directory"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the store; btrfs skips where it can't be used, and says why."""
    if request.param == "btrfs":
        require_btrfs()
    return str(request.param)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """For disk images: in memory where there is room, with a path short enough for a socket."""
    with quick_directory(tmp_path) as directory:
        yield directory
