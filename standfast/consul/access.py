"""What both gateways take from files and variables: tokens that nobody else can read, and paths."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from standfast.errors import ConfigError


def env_path(environ: Mapping[str, str], name: str) -> Path | None:
    """Returns the path in a variable; None where it is empty or not set."""
    value = environ.get(name)
    return Path(value) if value else None


def check_token(token: str, whose: str) -> None:
    """Raises ConfigError when a header could not carry the token."""
    if not all("!" <= char <= "~" for char in token):
        raise ConfigError(
            f"The {whose} ACL token holds blanks or characters that no token has. "
            "Put the token alone into the file or variable."
        )


def read_token(path: Path, key: str, variable: str) -> str:
    """Returns the token in a file of mode 0600; `key` and `variable` are named in the
    ConfigError."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key} = {str(path)!r} can't be read ({error}). Give a readable file "
            f"with the token alone, or leave it empty and set {variable}."
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"{key} = {str(path)!r} has mode {mode:04o}: others can read the token. "
            f"Run: chmod 600 {path}"
        )
    if not token:
        raise ConfigError(f"{key} = {str(path)!r} is empty. Put the token into it.")
    return token
