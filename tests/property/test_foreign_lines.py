"""Lines of a replication that others damaged: refused, or a message that is written the same."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standfast.errors import Refused
from standfast.node.space import Space
from standfast.reasons import Reason
from standfast.replication import wire
from standfast.replication.storage_facts import Facts
from tests.support.examples import examples

NAME = "services@20270115T080000Z"
FACTS = Facts(
    "n1", "btrfs", 1.5, 2**40, ("zstd",), ("zstd",), "6.1", None,
    {"live": "/p/s", "snapshots": "/p", "standby": "/p/t"},
    {"live": "u", "snapshots": None, "standby": "u"}, ("a b",), None, "/m", (),
    Space(size=2**40, data=2**30, metadata=1, reserve=5), ("+i f",), 2**30, {"1/0": 2**20},
)  # fmt: skip
MESSAGES: list[Any] = [
    wire.Hello("alo", "v", "a", wire.Purpose.ASK),
    wire.Welcome((wire.Offer(NAME, "id", True),), 5, (".staging",), ("zstd",), ages=(1.5,)),
    wire.Welcome((), 5),
    wire.Begin("alo", "v", "a", 7, NAME, "id", "id-1", {"c": "id-0"}, 2**40, age_s=3.5),
    wire.Ready(),
    wire.Published(NAME, "id"),
    wire.Survey(),
    wire.Surveyed({"kernel": "6.1"}),
    wire.Digest("id", True, False),
    wire.Digested("sha256:0", 12),
]
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 2**53, 2**63 - 1, 2**63, 10**400, float("nan"),
    float("inf"), 1e300, "", "x", "x" * 255, "x" * 256, "x" * 4097, "a\nb", "\x1b[2J", "\ud800",
    "\u2028", "\N{GRINNING FACE}", [], {}, ["x"], ["x"] * 201, [None], ["\n"], [[]], {"a": "b"},
    {"a": None}, {"": "x"}, {"a\n": "x"}, {"live": "a"}, [["a", "b", 1]], [["a", "b", True, 4]],
    "send", "zstd", "lzma", NAME, "services@20270231T080000Z", "refusal",
]  # fmt: skip


@examples(1000)
@given(st.sampled_from(MESSAGES), st.randoms(use_true_random=False))
def test_a_damaged_line_is_refused_or_a_message_that_is_read_back(
    message: Any, chance: random.Random
) -> None:
    line = json.dumps(damaged(json.loads(wire.dump(message)), chance))
    try:
        read = wire.parse(line, type(message))
    except Refused as refusal:
        assert str(refusal).isprintable()
        assert refusal.reason is Reason.PROTOCOL or '"refusal"' in line
        return
    written = wire.dump(read)
    assert wire.dump(wire.parse(written, type(message))) == written
    check(read)


@examples(1000)
@given(st.randoms(use_true_random=False))
def test_damaged_facts_are_refused_or_facts_that_are_read_back(chance: random.Random) -> None:
    try:
        read = Facts.parse(damaged(json.loads(json.dumps(FACTS.document())), chance))
    except Refused as refusal:
        assert str(refusal).isprintable() and refusal.reason is Reason.PROTOCOL
        return
    assert Facts.parse(json.loads(json.dumps(read.document()))) == read
    check(read)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_field_but_the_later_ones_is_needed(message: Any) -> None:
    doc = json.loads(wire.dump(message))
    assert wire.parse(json.dumps({**doc, "of a newer version": "\n"}), type(message)) == message
    for field in doc.keys() - {"purpose", "age_s", "ages"}:
        lacking = {name: value for name, value in doc.items() if name != field}
        with pytest.raises(Refused) as refusal:
            wire.parse(json.dumps(lacking), type(message))
        assert refusal.value.reason is Reason.PROTOCOL


def damaged(doc: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """With some of its values, or of theirs, replaced or gone."""
    for _ in range(chance.randint(0, 2)):
        name = chance.choice([*doc, "later"])
        value = doc.get(name)
        if isinstance(value, list) and value and chance.random() < 0.5:
            value[chance.randrange(len(value))] = copy.deepcopy(chance.choice(ODD))
        elif isinstance(value, dict) and value and chance.random() < 0.5:
            doc[name] = damaged(dict(value), chance)
        elif chance.random() < 0.2:
            doc.pop(name, None)
        else:
            doc[name] = copy.deepcopy(chance.choice(ODD))
    return doc


def check(read: Any) -> None:
    """No text would do anything to a terminal, no number is one that nothing was declared for."""
    for name, value in msgspec.to_builtins(read).items():
        if name not in ("unfinished", "facts"):
            check_value(value)


def check_value(value: Any) -> None:
    match value:
        case str():
            assert value.isprintable() and len(value) <= 4096
        case int() | float():
            assert 0 <= value < 2**63
        case dict():
            check_value([*value, *value.values()])
        case list() | tuple():
            for item in value:
                check_value(item)
