"""What a test needs of the machine, and the words of its absence."""

from __future__ import annotations

import shutil

import pytest


def tool(program: str, package: str) -> pytest.MarkDecorator:
    """Leaves a test out where `program` is missing; `package` is Debian's name of what has it."""
    return pytest.mark.skipif(
        shutil.which(program) is None,
        reason=f"{program} is not installed (apt-get install {package})",
    )
