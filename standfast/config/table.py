"""Walks the dataclasses of `model`; parser, example, reference and help read it through here."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from standfast.config.model import Config

MISSING = dataclasses.MISSING
_TYPE_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    bool: "true or false",
    float: "number",
    Path: "absolute path",
    tuple: "list of texts",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One key of a section."""

    name: str
    kind: Any
    """str, int, bool, float, Path, tuple (of texts) or a dataclass; `dict` for named sub-tables."""
    optional: bool
    """The default is to have no value at all."""
    default: Any
    help: str
    unit: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    form: str = ""
    example: Any = None

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def type_name(self) -> str:
        """The type as the messages and the reference call it."""
        return _TYPE_NAMES.get(self.kind, "table")


@dataclass(frozen=True, slots=True)
class Section:
    """One TOML table; `entry` stands for a name of the user's in `[nodes.NAME]`."""

    title: str
    doc: str
    options: tuple[Option, ...]
    absent: bool = False
    """Leaving the table out is not the same as leaving it empty."""


@cache
def options(cls: type) -> tuple[Option, ...]:
    """The plain keys of a dataclass, in the order of its definition."""
    return tuple(option for option in _all(cls) if not _is_table(option))


@cache
def tables(cls: type) -> tuple[tuple[str, type, bool], ...]:
    """Sub-tables of a dataclass: (key, dataclass, whether it is a table of named ones)."""
    hints = get_type_hints(cls)
    found = []
    for option in _all(cls):
        if _is_table(option):
            named = option.kind is dict
            inner = get_args(hints[option.name])[1] if named else option.kind
            found.append((option.name, inner, named))
    return tuple(found)


def sections() -> Iterator[Section]:
    """The whole configuration, top level first."""
    yield Section("", inspect.getdoc(Config) or "", options(Config))
    for name, cls, named in tables(Config):
        title = f"{name}.NAME" if named else name
        # The part after the heading, where the docstring has one.
        doc = (inspect.getdoc(cls) or "").partition("]")[2].lstrip(": ")
        yield Section(title, doc, options(cls), not named and _default(name) != cls())


def _default(table: str) -> Any:
    item = next(item for item in dataclasses.fields(Config) if item.name == table)
    return None if item.default_factory is MISSING else item.default_factory()


def _all(cls: type) -> Iterator[Option]:
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if item.default_factory is MISSING and "help" not in item.metadata:
            continue  # volume and source come from the file's name
        kind, optional = _kind(hints[item.name])
        meta = {key: value for key, value in item.metadata.items() if key != "required"}
        meta.setdefault("help", "")
        yield Option(item.name, kind, optional, item.default, **meta)


def _kind(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return _kind(inner)[0], True
    return get_origin(hint) or hint, False


def _is_table(option: Option) -> bool:
    return option.kind is dict or dataclasses.is_dataclass(option.kind)
