"""The commented example: generated from the table, so that it can't disagree with the parser.

As it stands it holds the required keys only. Every default follows as `#key = value`, without a
blank after the #: taking such a # away changes nothing.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from standfast.config.fields import MOST_S
from standfast.config.model import FAST_PROFILE
from standfast.config.options import Option, Section, sections
from standfast.config.rules import least_wait_s

WIDTH = 96
NODES = (("zippy", "192.168.1.2"), ("c1", "192.168.1.3"))


def example(volume: str) -> str:
    """Returns a configuration for two nodes, to be saved as `<volume>.toml`."""
    head = (
        f"# Standfast: volume {volume}. Save it as /etc/standfast/{volume}.toml on every node.\n"
        "# What is commented out without a blank after the # is the default. Unknown keys are\n"
        f"# errors: `standfast config check --volume {volume}` finds everything that is wrong.\n"
    )
    parts = [head, *(_section(section) for section in sections())]
    return "\n".join(parts)


def toml_value(value: Any) -> str:
    """Returns a default or example as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value:.12g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False)
    raise TypeError(f"no TOML for {value!r}")


def remark(option: Option) -> str:
    """Returns help, unit and limits of a key in one sentence."""
    facts = []
    if option.unit:
        facts.append({"s": "seconds"}.get(option.unit, option.unit))
    facts += limits(option)
    if option.choices:
        facts.append("one of " + ", ".join(map(toml_value, option.choices)))
    if option.optional:
        facts.append("default: none")
    return f"{option.help} ({'; '.join(facts)})" if facts else option.help


def limits(option: Option) -> list[str]:
    """Least and most, as far as they tell a person something."""
    said = [] if option.least is None else [f"at least {toml_value(option.least)}"]
    if option.most is not None and option.most != MOST_S:
        said.append(f"at most {toml_value(option.most)}")
    return said


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith(".") else f"{text}."


def _section(section: Section) -> str:
    if section.title == "nodes.NAME":
        return _nodes(section)
    lines: list[str] = []
    if section.absent:
        lines += _comment(f"{sentence(section.doc)} Take the # away from [{section.title}] first:")
        lines.append(f"# [{section.title}]")
    elif section.title:
        lines += [f"[{section.title}]", *_comment(sentence(section.doc))]
    if section.title == "lease":
        lines += _fast_profile(section)
    for option in section.options:
        line = _line(option)
        if section.absent and not line.startswith("# "):
            line = f"# {line.removeprefix('#')}"  # it would land in the table before
        lines += [*_comment(remark(option)), line]
    return "\n".join(lines) + "\n"


def _nodes(section: Section) -> str:
    lines = [*_comment(sentence(section.doc))]
    for number, (name, address) in enumerate(NODES):
        lines.append(f"[nodes.{name}]")
        for option in section.options:
            lines += _comment(remark(option)) if number == 0 else []
            given = address if option.name == "address" else None
            lines.append(_line(option) if given is None else f"address = {toml_value(given)}")
        lines.append("")
    return "\n".join(lines)


def _line(option: Option) -> str:
    if option.required:
        return f"{option.name} = {toml_value(option.example)}"
    if option.optional:
        return f"# {option.name} = {toml_value(option.example or '/path/to/file')}"
    return f"#{option.name} = {toml_value(option.default)}"


def _fast_profile(section: Section) -> Iterator[str]:
    yield from _comment(
        "Fast profile: an unplanned failover waits about a third as long, at the price of a short "
        "pause at each Consul election. For Consul servers with raft_multiplier 1:"
    )
    for option in section.options:
        value = getattr(FAST_PROFILE, option.name)
        if value != option.default:
            yield f"#   {option.name} = {toml_value(value)}"
    yield from _comment(f"({least_wait_s(FAST_PROFILE):g} is the least wait for these.)")


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH - 2)]
