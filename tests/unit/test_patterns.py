"""No text that others write holds an interpreter up: a pattern that tries its way back keeps the
lock of all threads meanwhile, for seconds."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import thread_time
from typing import Any

import pytest

from tests.support.checkout import CHECKOUT
from tests.support.pace import patient

MOST_S = 0.1
LENGTH = 16_000
"""A name in a file system has 255 bytes, a path 4096; a line of a foreign program has no limit."""
ALL = frozenset({"match", "fullmatch", "search"})
ASKED = {"compile": "", "match": "match", "fullmatch": "fullmatch"} | dict.fromkeys(
    ("search", "findall", "finditer", "split", "sub"), "search"
)
"""Which question it comes to: whether a text begins so, is so, or has it somewhere."""
FLAGS = {
    "I": re.I,
    "M": re.M,
    "S": re.S,
    "A": re.A,
    "ASCII": re.A,
    "DOTALL": re.S,
    "MULTILINE": re.M,
}
BUILT = {"fence/ipset.py", "nomad/path_use.py"}
"""These put an escaped text between pieces that have no repetition but of digits."""
MATCHED = {"nfs/exports_file.py"}
"""These hand their patterns to a function, which asks for nothing but a beginning."""
PUMPS = (" ", "\t", "\n", "\\", "a", "A", "0", ".", "-", "_", ",", ":", ";", "=", '"', "/", "[",
         "]", "(", "{", "}", "#", "@", "a ", "a.", "0.", "a=", "a\n", ", ")  # fmt: skip
"""What is repeated, until the pattern can't but fail."""


def patterns() -> Iterator[tuple[str, str | bytes, int, frozenset[str]]]:
    """Where each pattern of the product is, the pattern, its flags, how it is asked."""
    for path in sorted((CHECKOUT / "standfast").rglob("*.py")):
        yield from patterns_of(path)


def pattern_of(call: ast.Call, path: Path, names: Mapping[str, str]) -> str | bytes | None:
    """The pattern itself, or what the module has under its name; None: see BUILT."""
    written = call.args[0]
    if isinstance(written, ast.Constant) and isinstance(written.value, str | bytes):
        return written.value
    inside = path.relative_to(CHECKOUT).with_suffix("")
    module = importlib.import_module(".".join(inside.parts))
    name = written.id if isinstance(written, ast.Name) else names.get(ast.unparse(call))
    value = None if name is None else getattr(module, name, None)
    pattern = value.pattern if isinstance(value, re.Pattern) else value
    if isinstance(pattern, str | bytes):
        return pattern
    assert str(path.relative_to(CHECKOUT / "standfast")) in BUILT, ast.unparse(call)
    return None


def patterns_of(path: Path) -> Iterator[tuple[str, str | bytes, int, frozenset[str]]]:
    tree = ast.parse(path.read_text())
    names = {
        ast.unparse(node.value): ast.unparse(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
    }
    uses = {(ast.unparse(node.value), node.attr) for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)}  # fmt: skip
    for call in ast.walk(tree):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and ast.unparse(call.func.value) == "re"
            and call.func.attr in ASKED
            and call.args
            and (pattern := pattern_of(call, path, names)) is not None
        ):
            words = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
            flags = sum(
                FLAGS[node.attr]
                for word in words
                for node in ast.walk(word)
                if isinstance(node, ast.Attribute) and node.attr in FLAGS
            )
            asked = {ASKED[call.func.attr]}
            if call.func.attr == "compile":
                name = names.get(ast.unparse(call))
                asked = {ASKED[how] for of, how in uses if of == name and how in ASKED}
            where = f"{path.relative_to(CHECKOUT / 'standfast')}:{call.lineno}"
            if where.partition(":")[0] in MATCHED and not asked - {""}:
                asked = {"match"}
            yield where, pattern, int(flags), frozenset(asked - {""}) or ALL


def beginnings(pattern: str) -> list[str]:
    """Texts by which an attack may come far into the pattern: its own letters, more and more."""
    pieces = [""]

    def walk(parsed: Any) -> None:
        for kind, value in parsed:
            if str(kind) == "LITERAL":
                pieces[-1] += chr(value)
                continue
            pieces.append("")
            for part in value if isinstance(value, tuple | list) else ():
                for inner in part if isinstance(part, list) else [part]:
                    if hasattr(inner, "getwidth"):
                        walk(inner)
            pieces.append("")

    walk(importlib.import_module("re._parser").parse(pattern))
    pieces = [piece for piece in pieces if piece]
    return ["", *("".join(pieces[:end]) for end in range(1, min(len(pieces), 4) + 1))]


def longest_s(
    compiled: re.Pattern[str],
    beginning: str,
    pump: str,
    asked: frozenset[str] = frozenset({"search"}),
) -> float:
    """How long it takes at worst with a text that grows until it takes long."""
    longest, length = 0.0, 125
    while length <= LENGTH and longest <= patient(MOST_S):
        text = beginning + pump * (length // len(pump)) + "\0"
        for how in asked:
            started = thread_time()
            getattr(compiled, how)(text)
            longest = max(longest, thread_time() - started)
        length *= 2
    return longest


@pytest.mark.parametrize(
    ("pattern", "flags", "asked"),
    [pytest.param(*rest, id=where) for where, *rest in patterns()],
)
def test_a_pattern_ends_soon_whatever_the_text(
    pattern: str | bytes, flags: int, asked: frozenset[str]
) -> None:
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    compiled = re.compile(text, flags)
    for beginning in beginnings(text):
        for pump in PUMPS:
            took_s = longest_s(compiled, beginning, pump, asked)
            assert took_s <= patient(MOST_S), (beginning, pump, took_s)


def test_the_test_finds_what_it_is_for() -> None:
    """Of a Nomad job's interpolation, as it once was read; and of a path's."""
    for bad in (r"^\$\{\s*(?P<name>[^}]*?)\s*\}$", r"lsetxattr .* b=.*: Invalid$"):
        assert any(
            longest_s(re.compile(bad), beginning, pump) > patient(MOST_S)
            for beginning in beginnings(bad)
            for pump in (*PUMPS, "lsetxattr  b=")
        ), bad
