"""Small files of our own: replaced as a whole, read with an error that says what to do.

Invariant: a reader sees the old content or the new one, never a part; also after a power cut where
the writer asked for that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from standfast.errors import StandfastError


def write_atomically(path: Path, text: str, *, durable: bool = False, mode: int = 0o644) -> None:
    """Replace `path`; with `durable` it has reached the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    temporary.replace(path)
    if durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def read_json(path: Path) -> Mapping[str, Any] | None:
    """The object in `path`, None when there is no such file; StandfastError when it is unusable."""
    try:
        doc = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StandfastError(
            f"{path} can't be read: {error}. Look at it; delete it if it is of no use"
        ) from error
    if not isinstance(doc, dict):
        raise StandfastError(
            f"{path} holds no JSON object. Look at it; delete it if it is of no use"
        )
    return doc
