"""What is wrong with a configuration: key, value, rule and way out, always on one line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from standfast.errors import ConfigError
from standfast.text import clean

MOST_SHOWN = 50
_BARE_KEY = re.compile(r"^[A-Za-z0-9_-]{1,64}$")


class Problem(Struct, frozen=True):
    """`key` is the dotted path; `others` are further keys that the rule is about."""

    key: str
    value: str
    rule: str
    way_out: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        subject = f"{self.key} = {self.value}" if self.value else self.key
        start = f"{subject}: " if subject else ""
        return clean(f"{start}{self.rule}; {self.way_out}")


class InvalidConfig(ConfigError):
    """Every problem of one file (or of several files together), one per line."""

    def __init__(self, source: Path, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        lines = [f"{clean(str(source))}: {problem}" for problem in self.problems[:MOST_SHOWN]]
        if len(self.problems) > MOST_SHOWN:
            lines.append(f"{clean(str(source))}: and {len(self.problems) - MOST_SHOWN} more")
        super().__init__("\n".join(lines))


def dotted(*parts: str) -> str:
    """Returns the path of a key as TOML writes it: parts that are not bare words are quoted."""
    return ".".join(part if _BARE_KEY.match(part) else shown(part) for part in parts)


def shown(value: Any) -> str:
    """Returns a value as TOML writes it, on one line and cut to 60 characters."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, float):
        text = f"{value:.12g}"
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
    elif isinstance(value, (str, Path)):
        text = json.dumps(str(value)[:80], ensure_ascii=False)
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(shown(item) for item in value[:8]) + "]"
    elif isinstance(value, dict):
        text = "a table"
    else:
        text = str(value)
    text = clean(text)
    return text if len(text) <= 60 else text[:57] + "..."
