"""The lines of a replication: what is written is read back, anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from standfast.errors import Refused
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import wire

NAME = SnapshotName.parse("services@20270115T080000Z")
BEGIN = wire.Begin(
    "alo", "data-services", "a", 7, str(NAME), "id-2", "id-1", {"c": "id-0"}, 2**40,
    wire.Compression.ZSTD, "sha256:0",
)  # fmt: skip
OFFER = wire.Offer(str(NAME), "id", True)
PARSERS: list[Callable[[str], object]] = [
    partial(wire.parse, kind=wire.Hello),
    partial(wire.parse, kind=wire.Welcome),
    partial(wire.parse, kind=wire.Begin),
    partial(wire.parse, kind=wire.Ready),
    partial(wire.parse, kind=wire.Published),
    wire.parse_request,
    partial(wire.parse, kind=wire.Surveyed),
    partial(wire.parse, kind=wire.Digested),
]


@pytest.mark.parametrize(
    ("message", "parse"),
    [
        (wire.Hello("alo", "data-services", "a"), partial(wire.parse, kind=wire.Hello)),
        (
            wire.Hello("alo", "data-services", "a", wire.Purpose.ASK),
            partial(wire.parse, kind=wire.Hello),
        ),
        (
            wire.Welcome((), 0, (".staging",), ("compressed-data",)),
            partial(wire.parse, kind=wire.Welcome),
        ),
        (BEGIN, wire.parse_request),
        (wire.Survey(), wire.parse_request),
        (wire.Surveyed({"kernel": "6.1", "nested": []}), partial(wire.parse, kind=wire.Surveyed)),
        (wire.Digest("id", True, False), wire.parse_request),
        (wire.Digested("sha256:0", 12), partial(wire.parse, kind=wire.Digested)),
        (wire.Welcome((), 0), partial(wire.parse, kind=wire.Welcome)),
        (
            wire.Welcome((wire.Offer(str(NAME), "id", True),), 2**40),
            partial(wire.parse, kind=wire.Welcome),
        ),
        (
            wire.Welcome((OFFER, OFFER), 2**40, ages=(93.5, None)),
            partial(wire.parse, kind=wire.Welcome),
        ),
        (wire.Welcome((OFFER,), 2**40, ages=(None,)), partial(wire.parse, kind=wire.Welcome)),
        (BEGIN, partial(wire.parse, kind=wire.Begin)),
        (
            wire.Begin("alo", "v", "a", 0, str(NAME), "id", None),
            partial(wire.parse, kind=wire.Begin),
        ),
        (wire.Ready(), partial(wire.parse, kind=wire.Ready)),
        (wire.Published(str(NAME), "id"), partial(wire.parse, kind=wire.Published)),
    ],
)
def test_a_message_is_read_back_as_it_was_written(
    message: wire.Message, parse: Callable[[str], object]
) -> None:
    line = wire.dump(message)
    assert "\n" not in line
    assert parse(line) == message


def test_an_older_senders_header_has_no_age_and_is_understood() -> None:
    doc = json.loads(wire.dump(replace(BEGIN, age_s=12.5)))
    assert wire.parse(json.dumps(doc), wire.Begin).age_s == 12.5
    del doc["age_s"]
    assert wire.parse(json.dumps(doc), wire.Begin) == BEGIN


def test_what_a_newer_sender_says_beyond_that_is_passed_over() -> None:
    """As this version's age is by an older standby."""
    doc = {**json.loads(wire.dump(BEGIN)), "later": 1}
    assert wire.parse(json.dumps(doc), wire.Begin) == BEGIN


@pytest.mark.parametrize("age", ["-1", "true", '"1"', "NaN", "Infinity", "1e300", "[]"])
def test_an_age_that_is_none_is_foreign(age: str) -> None:
    line = wire.dump(replace(BEGIN, age_s=7.0)).replace('"age_s":7.0', f'"age_s":{age}')
    assert f'"age_s":{age}' in line
    with pytest.raises(Refused):
        wire.parse(line, wire.Begin)


@pytest.mark.parametrize("parse", PARSERS)
def test_a_refusal_instead_of_any_answer_is_raised_with_its_reason(
    parse: Callable[[str], object],
) -> None:
    line = wire.dump(wire.Refusal(Reason.NO_SPACE, "b has 3 MiB left"))
    with pytest.raises(Refused, match="b has 3 MiB left") as refusal:
        parse(line)
    assert refusal.value.reason is Reason.NO_SPACE


def test_a_refusal_for_a_reason_of_a_newer_version_keeps_its_message() -> None:
    line = json.dumps({"v": 1, "message_type": "refusal", "reason": "new", "message": "no\x1b[2J"})
    with pytest.raises(Refused, match=r"^no\?\[2J$") as refusal:
        wire.parse(line, wire.Ready)
    assert refusal.value.reason is Reason.REPLICATION_FAILED


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "line",
    [
        "",
        "Welcome to Debian",
        "null",
        "[]",
        "{}",
        "[" * 5000,
        '{"v": 2, "message_type": "ready"}',
        '{"v": 1, "message_type": "something"}',
        '{"v": 1, "message_type": "refusal"}',
    ],
)
def test_a_foreign_line_is_refused(parse: Callable[[str], object], line: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse(line)
    assert refusal.value.reason is Reason.PROTOCOL


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cluster", ""),
        ("volume", "a\nb"),
        ("sender", None),
        ("epoch", -1),
        ("epoch", True),
        ("epoch", "7"),
        ("name", "services@yesterday"),
        ("name", "../services@20270115T080000Z"),
        ("content_id", "x" * 256),
        ("parent_content_id", 5),
        ("commons", "id"),
        ("commons", ["id"]),
        ("commons", {"c": None}),
        ("size_bytes", -1),
        ("compression", "lzma"),
        ("fingerprint", 5),
        ("patience_s", 0.5),
        ("protocol", 1.5),
    ],
)
def test_a_header_with_a_bad_field_is_refused(field: str, value: object) -> None:
    doc = json.loads(wire.dump(BEGIN))
    with pytest.raises(Refused):
        wire.parse(json.dumps({**doc, field: value}), wire.Begin)
    del doc[field]
    with pytest.raises(Refused):
        wire.parse(json.dumps(doc), wire.Begin)


@given(st.text())
def test_no_text_at_all_gets_past_the_parsers(line: str) -> None:
    for parse in PARSERS:
        with pytest.raises(Refused):
            parse(line)


@pytest.mark.parametrize("ages", [[], [1.0, 2.0], [-1.0], ["1"], [float("nan")], 7])
def test_ages_that_do_not_fit_what_is_offered_are_refused(ages: Any) -> None:
    doc = json.loads(wire.dump(wire.Welcome((OFFER,), 0, ages=(93.5,))))
    assert wire.parse(json.dumps(doc), wire.Welcome).snapshots == (OFFER,)
    with pytest.raises(Refused):
        wire.parse(json.dumps({**doc, "ages": ages}), wire.Welcome)
    del doc["ages"]
    assert wire.parse(json.dumps(doc), wire.Welcome) == wire.Welcome((OFFER,), 0)


def test_offers_of_very_many_snapshots_are_the_newest_and_fit_a_line() -> None:
    many = [
        Snapshot(SnapshotName.at("services", 1e9 + second), Path("/p"), "i" * 36, True)
        for second in range(2000)
    ]
    offered = wire.offers(many)
    assert offered[-1].name == str(many[-1].name)
    welcome = wire.Welcome(offered, 0, ages=(1_000_000_000.3,) * len(offered))
    assert len(wire.dump(welcome)) < wire.MAX_LINE_BYTES
