"""What a test needs of the machine, and the words of its absence.

`package` is always Debian's name of what has the program.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping

import pytest

from standfast.system.landlock import is_there


def why_no(program: str, package: str) -> str | None:
    """The reason for a skip, or None when `program` is here."""
    if shutil.which(program):
        return None
    return f"{program} is not installed (apt-get install {package})"


def tool(program: str, package: str) -> pytest.MarkDecorator:
    """Leaves a test out where `program` is missing."""
    reason = why_no(program, package)
    return pytest.mark.skipif(reason is not None, reason=reason or "")


def landlock() -> pytest.MarkDecorator:
    """Leaves a test out where the kernel can't confine a program."""
    reason = "this kernel has no Landlock (Linux 5.19, CONFIG_SECURITY_LANDLOCK, lsm=)"
    return pytest.mark.skipif(not is_there(), reason=reason)


def require(programs: Mapping[str, str]) -> None:
    """Leaves out the test that is running, or asks for this fixture; program -> package."""
    for program, package in programs.items():
        if reason := why_no(program, package):
            pytest.skip(reason)
