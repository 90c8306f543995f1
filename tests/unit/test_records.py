"""The values in Consul: written in one way, and refused with a message in any other."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from standfast.ages import UNKNOWN
from standfast.consul.records import HistoryEntry, Holder, Leader, LeaderState, StandbyRecord
from standfast.errors import ForeignValue

LEADER = Leader(5, Holder("a", "a1"), 7, LeaderState.CLEAN, ("b", "c"), "b")


def test_a_heartbeat_is_written_in_one_way() -> None:
    assert LEADER.dump() == (
        b'{"v":1,"epoch":5,"holder":{"node":"a","instance":"a1"},"seq":7,"state":"clean",'
        b'"candidates":["b","c"],"to":"b"}'
    )


def test_what_a_candidate_waits_for_is_the_number_of_one_boot_in_one_epoch() -> None:
    assert LEADER.identity == (5, "a", "a1", 7)
    assert LEADER.is_clean


WRONG: dict[str, list[object]] = {
    "holder": ["a", None, {"node": "a"}, {"node": "", "instance": "x"}, {"node": 1, "instance": 2}],
    "seq": [-1, 1.5, "7", None, True],
    "state": ["glad", None, [], {}],
    "candidates": ["b", None, [""], [1], {"b": 1}],
    "to": ["", 5, []],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_heartbeat_with_a_wrong_field_is_foreign(field: str, value: object) -> None:
    doc = {**json.loads(LEADER.dump()), field: value}
    with pytest.raises(ForeignValue, match="leader in Consul"):
        Leader.parse(json.dumps(doc).encode())


@pytest.mark.parametrize("field", ["epoch", "holder", "seq", "state", "candidates", "v"])
def test_a_heartbeat_with_a_missing_field_is_foreign(field: str) -> None:
    doc = json.loads(LEADER.dump())
    del doc[field]
    with pytest.raises(ForeignValue):
        Leader.parse(json.dumps(doc).encode())


def test_the_final_snapshot_is_named_with_its_content_and_an_older_version_named_it_alone() -> None:
    final = replace(LEADER, final="services@20261122T101500Z", final_id="c0ffee")
    assert Leader.parse(final.dump()) == final
    doc = json.loads(final.dump())
    del doc["final_id"]
    assert Leader.parse(json.dumps(doc).encode()) == replace(final, final_id=None)


RECORD = StandbyRecord("b", 5, "services@20261122T101500Z", "c0ffee", 1_795_342_600.0)
NAMED_AT = 1_795_342_500.0


def test_a_record_tells_when_its_snapshot_was_taken_and_an_older_version_only_named_it() -> None:
    told = replace(RECORD, taken_at=NAMED_AT - 60)
    assert StandbyRecord.parse(told.dump()) == told
    assert told.time == NAMED_AT - 60
    assert b"taken_at" not in RECORD.dump()
    assert StandbyRecord.parse(RECORD.dump()).time == NAMED_AT
    assert replace(RECORD, taken_at=NAMED_AT + 60).time == NAMED_AT
    assert replace(RECORD, snapshot="yesterday's").time is None


def test_a_record_of_a_clock_that_was_ahead_tells_no_time() -> None:
    """What it says of two hours ago may be of three, or of one that comes yet."""
    record = replace(RECORD, taken_at=NAMED_AT - 60, by="a")
    assert StandbyRecord.parse(record.dump()) == record
    assert record.believed_time(record.at + 30) == NAMED_AT - 60
    assert record.believed_time(record.at - 30) == UNKNOWN
    assert replace(record, taken_at=None, at=NAMED_AT - 30).believed_time(NAMED_AT + 30) == UNKNOWN
    assert replace(record, snapshot="yesterday's").believed_time(record.at) is None


EPOCH = HistoryEntry(7, "b", "services@20261122T101500Z", "takeover", None, 60.0, 1_795_342_600.0)


def test_an_epoch_follows_the_one_before_it_unless_it_says_another() -> None:
    """An older version says none, and leaves out what it doesn't know."""
    told = replace(EPOCH, follows=5)
    assert (HistoryEntry.parse(told.dump()), told.before) == (told, 5)
    assert (HistoryEntry.parse(EPOCH.dump()), EPOCH.before) == (EPOCH, 6)
    assert b"follows" not in EPOCH.dump()


@pytest.mark.parametrize("follows", [7, 8, -1, "6", True, 1.5])
def test_an_epoch_that_follows_none_before_it_is_foreign(follows: object) -> None:
    doc = {**json.loads(EPOCH.dump()), "follows": follows}
    with pytest.raises(ForeignValue):
        HistoryEntry.parse(json.dumps(doc).encode())


def test_who_wrote_a_record_is_only_shown() -> None:
    odd = RECORD.dump().replace(b"{", b'{"by": 7, ', 1)
    assert StandbyRecord.parse(odd) == RECORD


@pytest.mark.parametrize("taken_at", ["now", -1, True, [], 1e300])
def test_a_time_that_is_none_is_unknown_and_makes_no_record_foreign(taken_at: object) -> None:
    """It is only shown: an agent that can't read the record could not take over."""
    doc = {**json.loads(RECORD.dump()), "taken_at": taken_at}
    assert StandbyRecord.parse(json.dumps(doc).encode()) == RECORD


def test_an_unknown_field_is_room_for_later() -> None:
    doc = {**json.loads(LEADER.dump()), "later": 1}
    assert Leader.parse(json.dumps(doc).encode()) == LEADER


def test_the_message_shows_the_key_the_value_and_the_way_on() -> None:
    with pytest.raises(ForeignValue) as caught:
        HistoryEntry.parse(b"hello", "standfast/data/history/5")
    text = str(caught.value)
    assert text.startswith("standfast/data/history/5 in Consul holds a value that")
    assert "'hello'" in text
    assert "Nothing was changed. Look at it with `consul kv get`" in text


def test_a_long_foreign_value_is_shown_in_part() -> None:
    with pytest.raises(ForeignValue) as caught:
        Leader.parse(b"x" * 10_000_000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("odd", ["a\x1b[2J", "a\x00", "a\udcff", "a\u202eb", "a\nb"])
def test_what_is_shown_is_made_printable_and_what_is_compared_is_foreign(odd: str) -> None:
    whole = HistoryEntry(7, "n2", "services@20261122T101500Z", odd, odd, None, 5.0)
    read = HistoryEntry.parse(whole.dump(), "history/7")
    assert read.reason == read.operator == "".join(c if c.isprintable() else "?" for c in odd)
    for changes in ({"node": odd}, {"base": odd}):
        with pytest.raises(ForeignValue, match="not a printable text"):
            HistoryEntry.parse(replace(whole, **changes).dump(), "history/7")


def test_a_long_text_is_cut_and_a_long_name_is_foreign() -> None:
    whole = HistoryEntry(7, "n2", None, "x" * 5000, None, None, 5.0)
    assert len(HistoryEntry.parse(whole.dump()).reason) == 1000
    with pytest.raises(ForeignValue):
        HistoryEntry.parse(replace(whole, node="n" * 300).dump())
