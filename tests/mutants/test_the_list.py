"""The list of mutants fits the program: each has its one place, and a fast test to catch it."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache

import pytest

from tests.mutants import Mutant, load
from tests.support.checkout import CHECKOUT

MUTANTS = load()
AT_LEAST = 160
SLOW = {"lab", "kernel_lab", "torture"}
LABS = ("tests/labs/containers/", "tests/labs/kernels/")
each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=str)


def test_there_are_many_and_each_stands_in_the_list_once() -> None:
    assert len(MUTANTS) >= AT_LEAST
    twice = [key for key, n in Counter((m.file, m.old, m.new) for m in MUTANTS).items() if n > 1]
    assert not twice


@each_mutant
def test_a_mutant_has_one_place_and_is_another_program_that_compiles(mutant: Mutant) -> None:
    before = (CHECKOUT / mutant.file).read_text()
    after = mutant.applied(before)
    assert after != before
    if mutant.file.endswith(".py") or before.startswith("#!/usr/bin/env python3"):
        assert ast.dump(ast.parse(after)) != dumped(mutant.file), "only words differ"


@each_mutant
def test_a_mutant_is_caught_by_a_test_of_the_fast_tier(mutant: Mutant) -> None:
    file, _, name = mutant.caught_by.partition("::")
    assert not file.startswith(LABS), f"{file} is a lab's"
    tree = parsed(file)
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert len(tests) == 1, f"{file} has no test {name}"
    assert not SLOW & (_marks(tests[0].decorator_list) | _marks_of_all(tree))


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((CHECKOUT / file).read_text())


@cache
def dumped(file: str) -> str:
    return ast.dump(parsed(file))


def _marks(expressions: list[ast.expr]) -> set[str]:
    """The names after `pytest.mark.` (or any other dot) in these expressions."""
    nodes = [node for expression in expressions for node in ast.walk(expression)]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def _marks_of_all(tree: ast.Module) -> set[str]:
    """The same of the module's `pytestmark`."""
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(
            isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets
        )
    ]
    return _marks(values)
