"""Walks the structs of `model`; parser, example, reference and help read it through here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo, asdict, fields

from standfast.config.fields import Key
from standfast.config.model import Config

_TYPE_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    bool: "true or false",
    float: "number",
    Path: "absolute path",
    tuple: "list of texts",
}


class Option(Key, frozen=True, kw_only=True):
    """One key of a section."""

    name: str
    kind: Any
    """str, int, bool, float, Path or tuple (of texts)."""
    optional: bool
    """The default is to have no value at all."""

    @property
    def required(self) -> bool:
        return self.default is NODEFAULT

    @property
    def type_name(self) -> str:
        """Returns the type as the messages and the reference call it."""
        return _TYPE_NAMES[self.kind]


class Section(Struct, frozen=True):
    """One TOML table; `NAME` stands for a name of the user's in `[nodes.NAME]`."""

    title: str
    doc: str
    options: tuple[Option, ...]
    absent: bool = False
    """Leaving the table out is not the same as leaving it empty."""


@cache
def options(cls: type[Struct]) -> tuple[Option, ...]:
    """Returns the plain keys of a struct, in the order of its definition."""
    return tuple(
        _option(field, field.default_factory)
        for field in fields(cls)
        if isinstance(field.default_factory, Key) and _sub_table(field) is None
    )


@cache
def tables(cls: type[Struct]) -> tuple[tuple[str, type[Struct], bool], ...]:
    """Sub-tables of a struct: (key, struct, whether it is a table of named ones)."""
    return tuple(
        (field.name, inner, get_origin(field.type) is dict)
        for field in fields(cls)
        if (inner := _sub_table(field)) is not None
    )


def sections() -> Iterator[Section]:
    """Yields the whole configuration, top level first."""
    yield Section("", Config.__doc__ or "", options(Config))
    left_out = {field.name: field.default for field in fields(Config)}
    for name, cls, named in tables(Config):
        title = f"{name}.NAME" if named else name
        # The part after the heading, where the docstring has one.
        doc = (cls.__doc__ or "").partition("]")[2].lstrip(": ")
        yield Section(title, doc, options(cls), not named and left_out[name] != cls())


def _option(field: FieldInfo, key: Key) -> Option:
    optional = get_origin(field.type) is UnionType
    hint = get_args(field.type)[0] if optional else field.type
    kind = get_origin(hint) or hint
    return Option(name=field.name, kind=kind, optional=optional, **asdict(key))


def _sub_table(field: FieldInfo) -> type[Struct] | None:
    inner = get_args(field.type)[1] if get_origin(field.type) is dict else field.type
    return inner if isinstance(inner, type) and issubclass(inner, Struct) else None
