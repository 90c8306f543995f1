"""What a test measured, for the summary at the end of the run. Nothing passes or fails by it."""

from __future__ import annotations

_lines: list[str] = []


def note(line: str) -> None:
    """Print this at the end of the run, also when every test passes."""
    _lines.append(line)


def taken() -> list[str]:
    """What was noted since the last call."""
    lines = _lines.copy()
    _lines.clear()
    return lines
