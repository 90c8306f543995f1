from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from standfast.config.load import load
from standfast.config.model import Config
from standfast.config.options import options, sections, tables
from standfast.config.parse import parse_values
from standfast.config.problems import Problem
from standfast.config.rules import check
from standfast.consul.http import Endpoint
from standfast.errors import ConfigError
from tests.support.examples import examples

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    TEXTS,
    st.datetimes(),
    st.sampled_from(["/", "/a", "/a/b", "auto", "c1", "127.0.0.1:8500", "::1"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
NAMES = [option.name for section in sections() for option in section.options]
TABLES = [name for name, _, _ in tables(Config)]
KEYS = st.one_of(st.sampled_from(NAMES + TABLES), TEXTS)
SECTIONS = st.dictionaries(KEYS, VALUES, max_size=4)
DOCUMENTS = st.dictionaries(
    KEYS, st.one_of(VALUES, SECTIONS, st.dictionaries(KEYS, SECTIONS, max_size=2)), max_size=6
)


@examples(75)
@given(DOCUMENTS)
@example({"nodes": {"0": False, "\x1f": False}})
def test_any_document_is_either_problems_or_a_configuration_that_obeys_the_rules(
    doc: dict[str, Any],
) -> None:
    problems: list[Problem] = []
    values = parse_values(Config, doc, (), problems)
    config = Config(volume="v", source=Path("/v.toml"), **values)
    problems += check(config)
    for problem in problems:
        assert str(problem).isprintable()
        assert problem.rule
        assert problem.way_out


@examples(75)
@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbfcluster = 1")
@example(b"a.b.c = 1\na.b.c.d = 2")
@example(b"nodes = {x = {address = 1}}\r\n")
def test_any_bytes_raise_nothing_but_a_config_error(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "v.toml"
        path.write_bytes(raw)
        try:
            load(path)
        except ConfigError as error:
            assert all(line.isprintable() for line in str(error).splitlines())


@examples(75)
@given(st.sampled_from(NAMES), st.sampled_from(["", *TABLES, "nodes.c1"]), TEXTS)
def test_any_text_at_any_key_raises_nothing_but_a_config_error(
    key: str, table: str, text: str
) -> None:
    heading = f"[{table}]\n" if table else ""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "v.toml"
        quoted = json.dumps(text).replace("\x7f", "\\u007f")
        path.write_bytes(f"{heading}{key} = {quoted}\n".encode())
        try:
            load(path)
        except ConfigError as error:
            assert str(path) in str(error)


@examples(150)
@given(
    st.from_regex(
        r"(https?://)?(\[[0-9a-f:]{2,9}\]|[a-z0-9.-]{1,12})(:[0-9]{1,6})?/?", fullmatch=True
    )
)
@example("[::1]:8500")
@example("https://consul.example.net")
def test_every_accepted_consul_address_is_one_for_the_transport(text: str) -> None:
    doc = {"addresses": [text]}
    problems: list[Problem] = []
    consul = next(cls for name, cls, _ in tables(Config) if name == "consul")
    values = parse_values(consul, doc, ("consul",), problems)
    assert {option.name for option in options(consul)} <= set(values)
    if not problems:
        Endpoint.parse(text, default_scheme="http")
