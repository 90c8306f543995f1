"""Shell scripts that stand in for programs: of the PATH, of hooks, of handlers."""

from __future__ import annotations

from pathlib import Path


def script(path: Path, text: str) -> Path:
    """Make an executable of /bin/sh with these lines, and the directory that it is in."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
