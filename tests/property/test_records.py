"""Documents of any shape: a value in Consul is read in one way or refused, and never half-read."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standfast.consul import records
from standfast.consul.record import Record
from standfast.errors import ForeignValue
from standfast.requests.record import Outcome, Request
from tests.property.kinds_of_records import KINDS

OPTIONAL = {"to", "note", "final", "final_id", "wait", "surrendered", "unserved", "idle"} | {
    "operator",
    "follows",
    "taken_at",
    "by",
    "firm",
    "ahead",
}
"""Fields that may be missing: of an older version, or not said."""
NEEDED: dict[type[Record], set[str]] = {
    records.Pause: {"by"},
    records.NomadNote: {"by"},
    records.HistoryEntry: {"operator"},
    Request: {"by"},
}
"""Where some are none of them."""
MORE: dict[type[Record], set[str]] = {
    records.Pause: {"lasts"},
    Request: {"arguments", "taken"},
    Outcome: {"beat", "first", "progress", "ended", "exit_code", "text", "error", "reason"}
    | {"document"},
}
"""Where there are others."""
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.text(max_size=2) | st.integers()),
    st.dictionaries(st.sampled_from(["node", "instance", "more"]), st.text(max_size=2)),
)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))


def parsed(kind: type[Record], doc: object) -> Record | None:
    """None: it is foreign. Any other error fails the test."""
    try:
        return kind.parse(json.dumps(doc).encode())
    except ForeignValue:
        return None


@kinds
def test_a_whole_document_is_written_as_it_was_read(kind: type[Record]) -> None:
    record = parsed(kind, KINDS[kind])
    assert record is not None
    assert json.loads(record.dump()) == KINDS[kind]


@kinds
def test_what_has_to_be_there_is_missed(kind: type[Record]) -> None:
    optional = (OPTIONAL - NEEDED.get(kind, set())) | MORE.get(kind, set())
    for name in KINDS[kind]:
        rest = {field: value for field, value in KINDS[kind].items() if field != name}
        assert (parsed(kind, rest) is None) == (name not in optional), name


@kinds
@given(data=st.data())
def test_what_is_read_is_written_as_something_that_is_read_alike(
    kind: type[Record], data: st.DataObject
) -> None:
    names = st.sampled_from([*KINDS[kind], "later"])
    doc = KINDS[kind] | data.draw(st.dictionaries(names, ODD, min_size=1, max_size=2))
    record = parsed(kind, doc)
    # Of `unserved` only tenths are written.
    if record is not None and round(unserved := getattr(record, "unserved", 0.0), 1) == unserved:
        assert kind.parse(record.dump()) == record


@kinds
@given(data=st.data())
def test_damaged_bytes_are_foreign_or_another_document_of_ours(
    kind: type[Record], data: st.DataObject
) -> None:
    raw = bytearray(json.dumps(KINDS[kind]).encode())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=3)):
        raw[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789-.e"[]{}:,ntf'))
    try:
        record = kind.parse(bytes(raw))
    except ForeignValue as error:
        assert "Nothing was changed" in str(error)
    else:
        kind.parse(record.dump())


@kinds
@pytest.mark.parametrize("value", [True, "7", -1, -0.5, math.nan, math.inf, -math.inf, 10**400])
def test_what_is_no_number_is_foreign(kind: type[Record], value: object) -> None:
    """Those that are only shown are no times then, and make nothing foreign."""
    for name, good in KINDS[kind].items():
        if type(good) in (int, float) and name != "taken_at":
            assert parsed(kind, {**KINDS[kind], name: value}) is None, name
