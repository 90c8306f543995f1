"""What the tests on both stores share."""

from __future__ import annotations

import pytest

from tests.contract.volumes import require_btrfs


@pytest.fixture(params=["btrfs", "directory"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the store; btrfs skips where it can't be used, and says why."""
    if request.param == "btrfs":
        require_btrfs()
    return str(request.param)
