"""TOML document to structs: every problem is collected, nothing is guessed or adjusted.

A key with a problem keeps its default (or an empty value) so that the rest can still be checked;
the caller drops what the rules say about such keys.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from msgspec import Struct

from standfast.config.options import Option, options, tables
from standfast.config.problems import Problem, dotted, shown

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
_LABEL = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")
_ENDPOINT = re.compile(
    r"^(https?://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})/?$"
)
_TYPE_NAMES = {
    bool: "a boolean",
    int: "a whole number",
    float: "a decimal number",
    str: "a text",
    list: "a list",
    dict: "a table",
}


class _Bad(ValueError):
    """A value that breaks a rule: (rule, way out)."""

    def __init__(self, rule: str, way_out: str) -> None:
        super().__init__(rule, way_out)
        self.rule = rule
        self.way_out = way_out


def parse_table(cls: type[Struct], doc: Any, path: tuple[str, ...], problems: list[Problem]) -> Any:
    """Makes an instance of the struct `cls` from a TOML table; adds what is wrong to problems."""
    return cls(**parse_values(cls, doc, path, problems))


def parse_values(
    cls: type[Struct], doc: Any, path: tuple[str, ...], problems: list[Problem]
) -> dict[str, Any]:
    """Returns the constructor's arguments for `cls`; a table that isn't there is left to its
    default."""
    if not isinstance(doc, Mapping):
        heading = dotted(*path)
        problems.append(Problem(heading, shown(doc), f"must be a table, not {_type_name(doc)}",
                                f"write it as [{heading}]"))  # fmt: skip
        doc = {}
        # What is missing inside is no news now.
        return _blank(cls)
    _report_unknown(cls, doc, path, problems)
    values = {option.name: _value(option, doc, path, problems) for option in options(cls)}
    for name, inner, named in tables(cls):
        if not named and name not in doc:
            continue
        values[name] = _sub_table(inner, named, doc, (*path, name), problems)
    return values


def _sub_table(
    cls: type[Struct],
    named: bool,
    doc: Mapping[str, Any],
    path: tuple[str, ...],
    problems: list[Problem],
) -> Any:
    inner = doc.get(path[-1], {})
    if not named:
        return parse_table(cls, inner, path, problems)
    if not isinstance(inner, Mapping):
        problems.append(Problem(dotted(*path), shown(inner), "must be a table of named tables",
                                f"write [{dotted(*path)}.NAME]"))  # fmt: skip
        return {}
    for name in inner:
        if not _NAME.match(name):
            problems.append(Problem(dotted(*path, name), "", "a name has up to 128 letters, "
                                    "digits, dots, dashes and underscores, a letter or digit "
                                    "first", "use the node's name in Consul"))  # fmt: skip
    return {name: parse_table(cls, entry, (*path, name), problems)
            for name, entry in inner.items()}  # fmt: skip


def _report_unknown(
    cls: type[Struct], doc: Mapping[str, Any], path: tuple[str, ...], problems: list[Problem]
) -> None:
    known = [option.name for option in options(cls)] + [name for name, _, _ in tables(cls)]
    for key in doc:
        if key not in known:
            problems.append(Problem(dotted(*path, key), shown(doc[key]), "unknown key",
                                    _hint(key, known, path)))  # fmt: skip


FORMER = {
    "min_reign": "it is failover_cooldown now",
    "store": "take it out: storage is always btrfs",
    "client.mount_timeout": "take it out: it is 10 s",
    "client.probe_timeout": "take it out: it is 5 s",
    "hooks.enabled": "take it out; to run none, move the programs out of hooks.dir",
    "nfs.grace_time": "take it out: it is nfs.lease_time; raise that if clients need longer",
    "nomad.enabled": "take it out if it is true; where it is false, take out [nomad] as a whole",
    "nomad.meta_value": 'take it out: it is "primary"',
    "nomad.remount_concurrency": "take it out: it is 2",
    "nomad.region": "take it out: it is NOMAD_REGION, or that of the node's own agent",
    "nomad.remount_jitter": "take it out: it is 2 s",
    "nomad.request_timeout": "take it out: it is 5 s",
    "replication.stall_timeout": "take it out: it is 300 s",
}
"""Keys of earlier versions, and what to do with a file that has one."""


def _hint(key: str, known: list[str], path: tuple[str, ...]) -> str:
    if (former := FORMER.get(dotted(*path, key))) is not None:
        return former
    close = get_close_matches(key, known, 1, 0.6) if len(key) <= 64 else []
    if close:
        return f"did you mean {dotted(*path, close[0])}?"
    where = f"[{dotted(*path)}]" if path else "the top level"
    return f"{where} knows {', '.join(known)}"


def _value(
    option: Option, doc: Mapping[str, Any], path: tuple[str, ...], problems: list[Problem]
) -> Any:
    key = dotted(*path, option.name)
    if option.name not in doc:
        if option.required:
            problems.append(Problem(key, "", "missing, and it has no default",
                                    f"add {option.name} = {shown(option.example)} "
                                    f"({option.help.lower()})"))  # fmt: skip
            return _empty(option)
        return option.default
    raw = doc[option.name]
    try:
        return _check(option, _convert(option, raw))
    except _Bad as bad:
        problems.append(Problem(key, shown(raw), bad.rule, bad.way_out))
        return _empty(option) if option.required else option.default


def _convert(option: Option, raw: Any) -> Any:
    kind = option.kind
    if kind is float and type(raw) in (int, float):
        return _finite(raw)
    if kind is Path and isinstance(raw, str):
        return _absolute(raw)
    if kind is tuple and isinstance(raw, list):
        for item in raw:
            if not isinstance(item, str):
                raise _Bad(f"a list of texts can't hold {_type_name(item)}", "quote it")
        return tuple(raw)
    if kind in (str, int, bool) and type(raw) is kind:
        return raw
    way_out = "give" + (f" one like {shown(option.example)}" if option.example else
                        f" {_article(option.type_name)}")  # fmt: skip
    raise _Bad(f"must be {_article(option.type_name)}, not {_type_name(raw)}", way_out)


def _finite(raw: float) -> float:
    try:
        number = float(raw)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Bad("must be a finite number", "give a plain number")
    return number


def _absolute(raw: str) -> Path:
    if not raw.isprintable() or len(raw) > 4000:
        raise _Bad("a path has printable characters only, at most 4000", "choose another path")
    if not raw.startswith("/"):
        raise _Bad("must be an absolute path", "begin it with /")
    path = Path(raw)
    if ".." in path.parts:
        raise _Bad("must not contain ..", "write the path that it stands for")
    return Path("/", *path.parts[1:])  # //x is not /x to pathlib


def _check(option: Option, value: Any) -> Any:
    if option.least is not None and value < option.least:
        raise _Bad(f"must be at least {shown(option.least)}{_unit(option)}", "give a larger number")
    if option.most is not None and value > option.most:
        raise _Bad(f"must be at most {shown(option.most)}{_unit(option)}", "give a smaller number")
    if option.choices and value not in option.choices:
        raise _Bad(f"must be one of {', '.join(map(shown, option.choices))}", "choose one of them")
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str):
            _check_text(option, text)
    return value


def _check_text(option: Option, text: str) -> None:
    if not text.isprintable() or len(text) > 4000:
        raise _Bad("a text has printable characters only, at most 4000", "take them out")
    if option.form in _FORMS:
        fits, rule, way_out = _FORMS[option.form]
        if not fits(text):
            raise _Bad(rule, way_out)


def is_address(text: str) -> bool:
    """An IP address that a host can have, or a host name."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        labels = text.removesuffix(".").split(".")
        # A name whose last label is a number is a mistyped address.
        return (
            len(text) <= 253
            and not labels[-1].isdigit()
            and all(_LABEL.match(label) for label in labels)
        )
    return not (address.is_unspecified or address.is_multicast or "%" in text or "/" in text)


def _is_endpoint(text: str) -> bool:
    match = _ENDPOINT.match(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        return False
    host = match["host"]
    return is_address(host.strip("[]")) and host.startswith("[") == (":" in host)


_NAME_RULE = "a name has up to 128 letters, digits, dots, dashes, underscores"
_FORMS: Mapping[str, tuple[Callable[[str], bool], str, str]] = {
    "address": (
        is_address,
        "must be an IP address or a host name that a node can have",
        'give one like "192.168.1.2"',
    ),
    "address or empty": (
        lambda text: not text or is_address(text),
        "must be an IP address or a host name",
        'give one like "data-services.service.consul", or leave the key out',
    ),
    "path": (
        lambda text: text.startswith("/") and ".." not in text.split("/") and text != "/",
        "must be an absolute path without ..",
        'give one like "/srv/www"',
    ),
    "endpoint": (
        _is_endpoint,
        "must be HOST:PORT, with http:// or https:// before it if need be",
        'give one like "127.0.0.1:8500"',
    ),
    "endpoint or empty": (
        lambda text: not text or _is_endpoint(text),
        "must be HOST:PORT, with http:// or https:// before it if need be",
        'give one like "127.0.0.1:4646", or leave the key out',
    ),
    "name": (lambda text: bool(_NAME.match(text)), _NAME_RULE, "choose such a name"),
    "name or *": (
        lambda text: text == "*" or bool(_NAME.match(text)),
        f"{_NAME_RULE}, or is *",
        'choose such a name, or "*"',
    ),
    "name or empty": (
        lambda text: not text or bool(_NAME.match(text)),
        _NAME_RULE,
        "choose such a name, or leave the key out",
    ),
    "prefix": (
        lambda text: (
            all(_NAME.match(part) for part in text.split("/")) and not text.endswith("-clients")
        ),
        "must be names with single slashes between them, none at either end, and not end with "
        "-clients: beside each prefix that is where clients write",
        'give one like "standfast"',
    ),
    "unit": (
        lambda text: text.endswith(".service") and bool(re.match(r"^[\w@:.\\-]{9,255}$", text)),
        "must be the full name of a service unit",
        'give one like "nfs-server.service"',
    ),
    "word": (
        lambda text: bool(text) and not re.search(r"[\s()#\"'\\]", text),
        "must not be empty or hold blanks, quotes, brackets, # or \\: it becomes part of a line "
        "of /etc/exports",
        "take them out",
    ),
}


def _unit(option: Option) -> str:
    return f" {option.unit}" if option.unit else ""


def _article(noun: str) -> str:
    if noun == "true or false":
        return noun
    return f"an {noun}" if noun.startswith("a") else f"a {noun}"


def _type_name(value: Any) -> str:
    return _TYPE_NAMES.get(type(value), "a date or time")


def _empty(option: Option) -> Any:
    return option.kind()


def _blank(cls: type[Struct]) -> dict[str, Any]:
    """Returns defaults, and empty values where there is no default."""
    values = {
        option.name: _empty(option) if option.required else option.default
        for option in options(cls)
    }
    return values | {name: {} for name, _, named in tables(cls) if named}
