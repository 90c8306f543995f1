"""Whose key it is that speaks to a standby: what each may say, what it hears, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from standfast.btrfs.names_and_places import TreeInfo
from standfast.config.model import KeepPublished
from standfast.consul.records import LeaderState, StandbyRecord
from standfast.demo.stand_ins.directory import save_info
from standfast.errors import ConsulNoQuorum
from standfast.events import journal
from standfast.events.events import Event
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.replication import pins, receive, wire
from standfast.system.locks import exclusive
from tests.fakes.replication import storage_node
from tests.support.examples import examples
from tests.support.origins import note_epoch
from tests.unit.receiving import EPOCH, NAME, Arriving, Standby


@pytest.fixture
def standby(tmp_path: Path) -> Standby:
    return standby_in(tmp_path)


def standby_in(place: Path) -> Standby:
    config = storage_node(place, "b")
    keep = KeepPublished(keep_last=1, hourly=0, daily=0, weekly=0, monthly=0)
    config = structs.replace(config, retention_published=keep)
    return Standby(config, Arriving(config.paths))


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What this node's journal has of it."""
    made: list[str] = []

    def deliver(event: Event) -> bool:
        made.append(event.sentence)
        return True

    monkeypatch.setattr(journal, "deliver", deliver)
    yield made


# Who may say to be whom


def test_a_key_speaks_for_its_own_node(standby: Standby) -> None:
    standby.bound = "a"
    assert standby.hear()[-1]["message_type"] == "published"


@pytest.mark.parametrize("purpose", wire.Purpose)
def test_a_key_speaks_for_no_other_node_and_hears_nothing_but_that(
    standby: Standby,
    entries: list[str],
    capfd: pytest.CaptureFixture[str],
    purpose: wire.Purpose,
) -> None:
    standby.bound, standby.by_ssh, standby.purpose = "c", True, purpose
    [refusal] = standby.hear()
    assert refusal["reason"] == Reason.UNKNOWN_NODE
    assert refusal["message"] == "the journal of b says more"
    [entry] = entries
    assert "'a' speaks with the key of c" in entry and "(to 192.168.1.9)" in entry
    assert "key of c" not in capfd.readouterr().err, "its sender reads that, too"


def test_what_is_announced_is_said_by_the_same_node(standby: Standby) -> None:
    standby.bound = "a"
    standby.begin = structs.replace(standby.begin, sender="c")
    standby.keys.lead("a")
    standby.says_hello_as = "a"
    assert standby.refusal() is Reason.UNKNOWN_NODE


def test_a_key_of_no_storage_node_takes_nothing_in(standby: Standby) -> None:
    standby.bound = "former"
    assert standby.refusal() is Reason.UNKNOWN_NODE


@pytest.mark.parametrize(
    ("holder", "state"), [("c", LeaderState.SERVING), ("a", LeaderState.CLEAN)]
)
def test_who_does_not_hold_the_lease_gets_no_turn_and_hears_not_what_is_here(
    standby: Standby, holder: str, state: LeaderState
) -> None:
    standby.bound = "a"
    standby.keys.lead(holder, state=state)
    with exclusive(standby.config.run_dir / "receive.next", "another sender"):
        said = standby.hear()
    assert [message["reason"] for message in said] == [Reason.NOT_THE_LEASE_HOLDER]
    assert f"{holder}, {state}" in said[0]["message"], "its own key says who it is"


def test_with_a_line_of_an_older_version_it_replicates_and_hears_reason_codes(
    standby: Standby, entries: list[str]
) -> None:
    standby.by_ssh = True
    assert standby.hear()[-1]["message_type"] == "published"
    standby.keys.lead("c")
    [refusal] = standby.hear()
    assert refusal["reason"] == Reason.NOT_THE_LEASE_HOLDER
    assert "the journal of b says more" in refusal["message"]
    assert "epoch" not in refusal["message"] and "standby add b" in refusal["message"]
    assert "the lease says: epoch 4, c" in entries[-1]


def test_who_says_nothing_is_not_waited_for(
    standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "HELLO_S", 0.2)
    standby.silent = True
    standby.bound = "a"
    [refusal] = standby.hear(ends=False)
    assert refusal["reason"] == Reason.DEADLINE


# What a sender that is none can have deleted


def published_before(standby: Standby, content_id: str, age_s: float) -> None:
    name = SnapshotName.at("services", NAME.stamp - age_s)
    path = standby.config.paths.standby / str(name)
    path.mkdir(parents=True)
    save_info(path, TreeInfo(f"local-{content_id}", content_id, read_only=True))
    note_epoch(standby.config, content_id, EPOCH, standby.store.snapshots)


def told_to_consul(standby: Standby, node: str, content_id: str, age_s: float) -> None:
    """As the primary does after the acknowledgement."""
    name = SnapshotName.at("services", NAME.stamp - age_s)
    record = StandbyRecord(node, EPOCH, str(name), content_id, NAME.stamp, by="a")
    standby.keys.put(standby.config.key(f"standbys/{node}"), record.dump())


def ids(standby: Standby) -> set[str]:
    return {snapshot.content_id for snapshot in standby.store.snapshots()}


def forge(standby: Standby, number: int, commons: dict[str, str] | None) -> None:
    """One more conversation of somebody who has only the key."""
    name = SnapshotName.at("services", NAME.stamp + number)
    standby.store.name, standby.store.arrives = name, f"forged-{number}"
    standby.begin = structs.replace(
        standby.begin, snapshot=str(name), content_id=f"forged-{number}", commons=commons
    )
    assert standby.hear()[-1]["message_type"] == "published"


@examples(20)
@given(data=st.data())
def test_whatever_only_the_key_vouches_for_the_increments_of_all_nodes_have_their_parents(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """`common` is what b and c have in common, `newest` what b acknowledged last."""
    standby = standby_in(tmp_path_factory.mktemp("b"))
    published_before(standby, "common", 120)
    published_before(standby, "newest", 60)
    told_to_consul(standby, "b", "newest", 60)
    told_to_consul(standby, "c", "common", 120)
    snapshots = standby.store.snapshots()
    epochs = {"common": EPOCH, "newest": EPOCH}
    pins.learn(standby.config, {"a": "newest", "c": "common"}, snapshots, epochs)
    contents = st.sampled_from(["newest", "nothing", *(f"forged-{number}" for number in range(4))])
    words = st.dictionaries(st.sampled_from("abc"), contents, max_size=3)
    for number in range(4):
        forge(standby, number, data.draw(words))
        assert {"common", "newest"} <= ids(standby)
    forge(standby, 4, {})
    assert ids(standby) == {"common", "newest", "forged-4"}, "what is old goes all the same"


def test_what_the_primary_acknowledged_later_takes_the_place_of_what_was_kept(
    standby: Standby,
) -> None:
    published_before(standby, "newest", 60)
    told_to_consul(standby, "b", "newest", 60)
    forge(standby, 1, {})
    told_to_consul(standby, "b", "forged-1", -1)
    forge(standby, 2, {})
    assert ids(standby) == {"forged-1", "forged-2"}


def test_while_consul_does_not_say_what_the_primary_counts_on_nothing_is_deleted(
    standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_before(standby, "newest", 60)
    get = standby.keys.get

    def without_records(key: str, **how: Any) -> Any:
        if "standbys/" in key:
            raise ConsulNoQuorum("there is no leader")
        return get(key, **how)

    monkeypatch.setattr(standby.keys, "get", without_records)
    forge(standby, 1, {"c": "forged-1"})
    assert ids(standby) == {"newest", "forged-1"}
    assert set(pins.load(standby.config)) == {"a"}


def test_a_refusal_says_to_whom_the_line_binds_the_key(standby: Standby) -> None:
    standby.bound, standby.asked = "a", "id"
    [refusal] = standby.hear()
    assert refusal["bound"] == "a" and "asked was 'id'" in refusal["message"]
    assert json.loads(wire.dump(wire.Refusal("busy", "x")))["bound"] is None
