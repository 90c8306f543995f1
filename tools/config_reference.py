"""docs/config.md: the table and the rules as a page; a test ties the file to this."""

from __future__ import annotations

import inspect

from standfast.config.example import limits, sentence, toml_value
from standfast.config.options import Option, Section, sections
from standfast.config.rules import RULES

INTRODUCTION = """\
# Configuration

One file for each volume: `/etc/standfast/<volume>.toml`, the same on every node (`node` defaults to
the host's name; a host that is not one of `[nodes]` is a client). `$STANDFAST_CONFIG_DIR` names
another directory. Unknown keys, wrong types and broken rules are errors, all of them reported at
once, each with its key, the value, the rule and the way out; nothing is ever adjusted.

`standfast config example` prints a commented file, `standfast config check` checks what is there.

This page is generated from the table that the parser uses.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    return "\n".join([INTRODUCTION, *map(_section, sections()), _rules()])


def _section(section: Section) -> str:
    heading = f"## `[{section.title}]`" if section.title else "## Top level"
    lines = [heading, ""]
    if section.title and section.doc:
        lines += [_escaped(sentence(section.doc)), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [_row(option) for option in section.options]
    return "\n".join(lines) + "\n"


def _row(option: Option) -> str:
    if option.required:
        default = "required"
    elif option.optional:
        default = "none"
    else:
        default = f"`{toml_value(option.default)}`"
    facts = limits(option)
    if option.choices:
        facts.append("one of " + ", ".join(f"`{choice}`" for choice in option.choices))
    if option.required or option.example is not None:
        facts.append(f"for example `{toml_value(option.example)}`")
    kind = option.type_name + (f" ({option.unit})" if option.unit else "")
    text = _escaped("; ".join([option.help, *facts]))
    return f"| `{option.name}` | {kind} | {default} | {text} |"


def _rules() -> str:
    lines = ["## What must hold between keys", ""]
    for rule in RULES:
        text = " ".join((inspect.getdoc(rule) or "").split())
        lines.append(f"- {text}")
    lines += [
        "- Volumes of one node have services of their own, directories that don't overlap, and the "
        "same `nfs.port` and `fence.backend`: it has one NFS server and one fence.",
        "- To root: the file, and what `replication.ssh_key` and an absolute `replication.command` "
        "name, belong to root and can be written by nobody else, nor can the directories above "
        "them (a sticky one may). Tokens and certificates may belong to any one user.",
        "- `consul.prefix` doesn't end with `-clients`: clients write to PREFIX-clients.",
        "",
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
