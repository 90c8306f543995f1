"""Lines and fields of tables, and that nothing else takes a text apart by more than they do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import standfast
from standfast.system.lines import fields_of, lines_of, number, unescaped

SOURCES = sorted(Path(standfast.__file__).parent.rglob("*.py"))
NO_ENDS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""`str.splitlines` would end a line at each of them."""
NO_BLANKS = f"{NO_ENDS}\x1f\xa0\u2003\u3000"
"""A bare `str.split` would end a field at each of them."""


def parts_too_much(source: str) -> list[int]:
    """The lines that take a text apart by all that Unicode has."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and (
            call.func.attr == "splitlines"
            or (call.func.attr in ("split", "rsplit") and parts_at_any_blank(call))
        )
    ]


def parts_at_any_blank(call: ast.Call) -> bool:
    given = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "sep")]
    return all(isinstance(value, ast.Constant) and value.value is None for value in given)


@pytest.mark.parametrize(
    "source",
    [
        "x.splitlines()",
        "x.split()",
        "f(x).rsplit(None, 1)",
        "x.split(maxsplit=1)",
        "x.split(sep=None)",
    ],
)
def test_what_parts_too_much_is_seen(source: str) -> None:
    assert parts_too_much(f"y = 1\nx = {source}") == [2]
    assert parts_too_much("x.split('\\n'); x.split(sep=' '); x.rsplit(y, 1)") == []


def test_nothing_parts_a_text_by_all_that_unicode_has() -> None:
    assert len(SOURCES) > 100
    places = [(str(path), parts_too_much(path.read_text())) for path in SOURCES]
    assert [place for place in places if place[1]] == [], "system/lines.py has what parts tables"


@pytest.mark.parametrize("odd", NO_BLANKS)
def test_only_line_feeds_end_a_line_and_only_blanks_and_tabs_a_field(odd: str) -> None:
    name = f"a{odd}b"
    assert lines_of(f"{name}\nc\n") == [name, "c"]
    assert fields_of(f" {name}\t c ") == [name, "c"]


def test_lines_are_what_is_between_their_ends() -> None:
    assert list(lines_of("")) == []
    assert list(lines_of("\n")) == [""]
    assert list(lines_of("a\n\nb")) == ["a", "", "b"]
    assert list(lines_of("a\n\n")) == ["a", ""]
    assert fields_of(" \t") == []


def test_octal_stands_for_bytes() -> None:
    assert unescaped(r"a\040b\134040") == r"a b\040"
    assert unescaped(r"caf\303\251 \351") == "café \udce9"
    assert unescaped(r"\777 \09") == r"\777 \09"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("0", 0), ("36", 36), ("9" * 20, int("9" * 20))),
        *((text, None) for text in ("", "-1", "1 ", "1_0", "²", "٣", "9" * 21, "1" * 5000)),
    ],
)
def test_a_number_is_a_few_digits_and_nothing_else(field: str, value: int | None) -> None:
    assert number(field) == value
