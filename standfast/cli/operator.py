"""Tells who is at the keyboard, for the history."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping


def operator_name(environ: Mapping[str, str] = os.environ) -> str:
    """Returns the user behind sudo, else the process's own; never empty."""
    name = environ.get("SUDO_USER", "")
    if name and name.isprintable() and len(name) <= 100:
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
