"""What the lab measured, for the end of the test run: a promise is kept in numbers."""

from __future__ import annotations

_lines: list[str] = []


def note(line: str) -> None:
    """Print this at the end of the run, also when every test passes."""
    _lines.append(line)


def noted() -> list[str]:
    return list(_lines)
