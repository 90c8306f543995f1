"""decide() answers anything that can be observed; records and names survive any bytes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from standfast.consul.blindness import Blind
from standfast.consul.records import (
    HistoryEntry,
    Hold,
    Holder,
    Leader,
    LeaderState,
    Pause,
    StandbyRecord,
    dump_epoch,
    longest_wait_s,
    parse_epoch,
)
from standfast.errors import ForeignValue
from standfast.lease.files import LeaseStatus
from standfast.names import SnapshotName
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.role.decide import decide
from standfast.role.decision import Action, Moment, Request
from standfast.role.observation import (
    Available,
    Beginning,
    Cluster,
    LastHeartbeat,
    Local,
    heartbeat_seen,
    in_lineage,
    is_beyond,
)
from standfast.text import clean
from tests.support.configs import config_of
from tests.support.examples import examples

NODES = ("a", "b", "c")
UTC = 1_795_342_500.0

nodes = st.sampled_from((*NODES, "stranger"))
epochs = st.integers(0, 5)
times = st.floats(0, 253_402_300_799, allow_nan=False)
texts = st.text(min_size=1, max_size=8).map(clean)
# By the fields' names: by position, a field that moves gives another's values to its neighbours.
holders = st.builds(Holder, node=nodes, instance=st.sampled_from(["1", "2"]))
names = st.builds(
    SnapshotName,
    stamp=st.integers(-2000, 100).map(lambda ago: UTC + ago),
    base=st.just("services"),
)
leaders = st.builds(
    Leader,
    epoch=epochs,
    holder=holders,
    seq=st.integers(0, 9),
    state=st.sampled_from(LeaderState),
    candidates=st.lists(nodes, max_size=3).map(tuple),
    to=st.none() | nodes,
    note=st.none() | texts,
    final=st.none() | names.map(str),
    wait=st.floats(0, 100),
    final_id=st.none() | names.map(str),
    surrendered=st.booleans(),
    unserved=st.integers(0, 999).map(lambda tenths: tenths / 10),
    idle=st.booleans(),
    operator=st.none() | texts,
)
history_entries = st.builds(
    HistoryEntry,
    epoch=epochs,
    node=nodes,
    base=st.none() | texts | names.map(str),
    reason=st.sampled_from(["takeover", "operator: x"]) | texts,
    operator=st.none() | texts,
    lost_s=st.none() | times,
    at=times,
    follows=st.none() | epochs,
).map(
    lambda history_entry: (
        history_entry
        if history_entry.before < history_entry.epoch
        else replace(history_entry, follows=None)
    )
)
records = st.builds(
    StandbyRecord,
    node=nodes,
    epoch=epochs,
    snapshot=texts | names.map(str),
    content_id=texts,
    at=times,
    taken_at=st.none() | times,
)
pauses = st.builds(Pause, by=texts, reason=texts, at=times)
holds = st.builds(Hold, node=nodes, by=texts, reason=texts, at=times)
last_heartbeats = st.builds(
    LastHeartbeat,
    identity=st.none() | leaders.map(lambda leader: leader.identity),
    index=epochs,
    first_seen=st.floats(0, 200),
    unchanged_since=st.none() | st.floats(0, 200),
    witnessed=st.booleans(),
)
clusters = st.builds(
    Cluster,
    epoch=st.none() | epochs,
    leader=st.none() | leaders,
    last_heartbeat=last_heartbeats,
    pause=st.none() | pauses,
    holds=st.lists(holds, max_size=1).map(lambda all_: {hold.node: hold for hold in all_}),
    history=st.lists(history_entries, max_size=5).map(
        lambda entries: {entry.epoch: entry for entry in entries}
    ),
    standbys=st.lists(records, max_size=3).map(
        lambda standbys: {record.node: record for record in standbys}
    ),
    highest_epoch=epochs,
    readable_since=st.just(-math.inf) | st.floats(0, 200),
    holder_health=st.sampled_from(["passing", "critical", "absent", "unknown"]),
    holder_unanswered_s=st.floats(0, 100),
    alive=st.frozensets(nodes),
    beginning=st.none()
    | st.builds(
        Beginning,
        epoch=st.none() | epochs,
        first_seen=st.floats(0, 200),
        witnessed=st.booleans(),
    ),
)
available = st.builds(
    Available,
    snapshot=names.map(lambda name: Snapshot(name, Path("/persist") / str(name), str(name), True)),
    epoch=epochs,
    taken_at=st.none() | st.integers(-2000, 100).map(lambda ago: UTC + ago),
    ahead=st.booleans(),
)
own_epochs = st.builds(
    OwnEpoch,
    epoch=epochs,
    stage=st.sampled_from(Stage),
    fsid=st.just("fsid"),
    base=st.none() | texts,
    in_place=st.booleans(),
    displaced_epoch=epochs,
    final=st.none() | names.map(str),
)
leases = st.builds(
    LeaseStatus,
    epoch=epochs,
    instance=st.sampled_from(["1", "2"]),
    pid=st.just(1),
    state=st.sampled_from(LeaderState),
    serving=st.booleans(),
    valid_until=st.floats(allow_nan=False),
    armed_until=st.floats(allow_nan=False),
    seq=st.integers(0, 9),
    since=st.floats(0, 100),
    trouble=st.none() | texts,
    served=st.booleans(),
    opened=st.booleans(),
)
locals_ = st.builds(
    Local,
    node=st.sampled_from(NODES),
    instance=st.sampled_from(["1", "2"]),
    highest_epoch=epochs,
    own=st.none() | own_epochs,
    lease=st.none() | leases,
    lease_alive=st.booleans(),
    snapshots=st.lists(available, max_size=4).map(tuple),
    has_live=st.booleans(),
    live_is_empty=st.booleans(),
    copies=st.lists(names.map(lambda name: Path("/persist/standby") / str(name)), max_size=2).map(
        tuple
    ),
    nfs_running=st.booleans(),
    read_only=st.booleans(),
    unread=st.none() | texts,
)
views = clusters | st.builds(Blind, reason=st.sampled_from(Reason), sentence=texts)
requests = st.builds(Request, promote=st.booleans(), accept_data_loss=st.booleans())


@st.composite
def of_one_past(draw: st.DrawFn) -> tuple[Cluster, Local]:
    """Keys that one past can have written, and a standby of it: many of these may take over."""
    local, epoch = draw(locals_), draw(st.integers(1, 5))
    leader = replace(
        draw(leaders),
        epoch=epoch,
        holder=Holder(draw(st.sampled_from([*NODES, "stranger"])), "1"),
        state=draw(st.sampled_from([*LeaderState, LeaderState.CLEAN])),
        candidates=NODES,
        to=draw(st.sampled_from([None, "c", local.node, local.node])),
        wait=draw(st.sampled_from([0.0, 12.0, 30.0])),
    )
    snapshots = tuple(
        dataclasses.replace(
            snapshot, epoch=draw(st.sampled_from([epoch, epoch, epoch - 1, snapshot.epoch]))
        )
        for snapshot in local.snapshots
    )
    return dataclasses.replace(
        draw(clusters),
        epoch=epoch,
        leader=leader,
        highest_epoch=draw(st.integers(0, epoch)),
    ), dataclasses.replace(
        local,
        highest_epoch=draw(st.integers(0, epoch)),
        own=draw(st.none() | st.none() | own_epochs),
        snapshots=snapshots,
        read_only=draw(st.sampled_from([False, False, False, True])),
    )


def answer(
    view: Cluster | Blind, local: Local, now_s: float, request: Request, *, manual: bool
) -> Action:
    """What `decide` says, which has a sentence and, whoever is promoted, breaks no rule."""
    settings_ = config_of(*NODES, node=local.node, mode="manual" if manual else "auto")
    decision = decide(view, local, settings_, Moment(now_s, UTC), request)
    assert decision.sentence
    if decision.action is not Action.PROMOTE:
        return decision.action
    assert isinstance(view, Cluster)
    assert view.epoch is None or view.epoch >= local.highest_epoch
    silent_s = now_s - view.last_heartbeat.first_seen
    wait_s = longest_wait_s(view.leader, settings_.lease.wait)
    assert silent_s >= wait_s or view.nobody_serves
    assert decision.in_place == (decision.base is None)
    if view.epoch is None:
        begins_with_nothing = local.live_is_empty or not local.has_live
        assert not (begins_with_nothing and (local.copies or view.standbys))
    if decision.base is not None:
        assert in_lineage(decision.base, view) or is_beyond(decision.base, view)
        assert view.epoch is not None
        assert decision.follows is None or decision.base.epoch <= decision.follows < view.epoch
    held = local.node in view.holds
    if (view.pause is not None or manual or held) and not request.promote:
        assert view.leader is not None and view.leader.is_clean
        assert view.leader.to == local.node
    return decision.action


@examples(750)
@given(view=views, local=locals_, now_s=st.floats(0, 300), request=requests, manual=st.booleans())
def test_every_observation_gets_a_safe_answer_with_a_sentence(
    view: Cluster | Blind, local: Local, now_s: float, request: Request, manual: bool
) -> None:
    answer(view, local, now_s, request, manual=manual)


@examples(150)
@given(view=clusters, local=locals_, now_s=st.floats(0, 300))
def test_no_first_epoch_and_no_hint_begins_empty_where_a_copy_lies(
    view: Cluster, local: Local, now_s: float
) -> None:
    before = dataclasses.replace(view, epoch=None, leader=None, highest_epoch=0)
    local = dataclasses.replace(local, own=None, highest_epoch=0)
    settings_ = config_of(*NODES, node=local.node)
    decision = decide(before, local, settings_, Moment(now_s, UTC), Request(promote=True))
    if not (local.copies or view.standbys):
        return
    assert "subvolume create" not in decision.sentence
    if local.live_is_empty or not local.has_live:
        assert decision.action is Action.BLOCKED


def test_a_promotion_breaks_no_rule() -> None:
    """Of all that can be observed few may take over: these are more, and enough of them."""
    promoted: Counter[str] = Counter()

    @examples(750)
    @given(both=of_one_past(), now_s=st.floats(0, 300), request=requests, manual=st.booleans())
    def check(both: tuple[Cluster, Local], now_s: float, request: Request, manual: bool) -> None:
        view, local = both
        if answer(view, local, now_s, request, manual=manual) is Action.PROMOTE:
            assert view.leader is not None
            promoted["in all"] += 1
            promoted["handed over"] += view.leader.is_clean
            promoted["while paused"] += view.pause is not None
            promoted["on hold"] += local.node in view.holds

    check()
    assert promoted["in all"] >= 10, promoted  # 35 to 85 with twelve seeds
    assert promoted["handed over"] and promoted["while paused"] and promoted["on hold"], promoted


@examples(150)
@given(leader=leaders, history_entry=history_entries, record=records, pause=pauses, epoch=epochs)
def test_records_survive_the_way_to_consul_and_back(
    leader: Leader, history_entry: HistoryEntry, record: StandbyRecord, pause: Pause, epoch: int
) -> None:
    assert Leader.parse(leader.dump()) == leader
    assert HistoryEntry.parse(history_entry.dump()) == history_entry
    assert StandbyRecord.parse(record.dump()) == record
    assert Pause.parse(pause.dump()) == pause
    assert parse_epoch(dump_epoch(epoch)) == epoch


PARSERS = (Leader.parse, HistoryEntry.parse, StandbyRecord.parse, Pause.parse, parse_epoch)
FIELDS = [
    "v",
    "epoch",
    "holder",
    "node",
    "instance",
    "seq",
    "state",
    "candidates",
    "to",
    "base",
    "reason",
    "operator",
    "lost_s",
    "at",
    "snapshot",
    "content_id",
    "by",
]
odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just(10**400)
    | st.just(1),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=8,
)
documents = st.dictionaries(st.sampled_from(FIELDS), odd).map(lambda doc: {"v": 1, **doc})


def parse_all(raw: bytes) -> None:
    for parse in PARSERS:
        try:
            value = parse(raw)
        except ForeignValue as error:
            assert "Nothing was changed" in str(error)
            continue
        for name in ("at", "lost_s"):
            number = getattr(value, name, None)
            assert number is None or math.isfinite(number)


@examples(150)
@given(raw=st.binary(max_size=60) | odd.map(json.dumps).map(str.encode))
def test_any_bytes_are_a_record_or_foreign(raw: bytes) -> None:
    parse_all(raw)


@examples(250)
@given(doc=documents)
def test_any_document_is_a_record_or_foreign(doc: dict[str, object]) -> None:
    parse_all(json.dumps(doc).encode())


@examples(150)
@given(
    base=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    seconds=st.integers(0, 253_402_300_799),
)
def test_snapshot_names_survive_being_written(base: str, seconds: int) -> None:
    name = SnapshotName.at(base, seconds)
    assert SnapshotName.parse(str(name)) == name


@examples(150)
@given(text=st.text() | st.from_regex(r"[a-z]+@[0-9]{8}T[0-9]{6}Z\n?", fullmatch=True))
def test_any_text_is_a_snapshot_name_as_written_or_none(text: str) -> None:
    try:
        name = SnapshotName.parse(text)
    except ValueError:
        return
    assert str(name) == text


@examples(150)
@given(
    looks=st.lists(
        st.tuples(
            st.none() | st.sampled_from([(1, "a", "1", 1), (1, "a", "1", 2)]), st.integers(1, 9)
        )
    )
)
def test_a_last_heartbeat_is_as_old_as_the_unbroken_row_of_equal_looks(
    looks: list[tuple[tuple[int, str, str, int] | None, int]],
) -> None:
    seen: LastHeartbeat | None = None
    since = 0
    for at, (identity, index) in enumerate(looks):
        if seen is None or seen.identity != identity or index < seen.index:
            since = at
        seen = heartbeat_seen(seen, identity, index, float(at))
        assert seen.first_seen == since


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"v": 2, "epoch": 7}',
        b'{"v": true, "epoch": 7}',
        b'{"v": 1, "epoch": NaN}',
        b'{"v": 1, "epoch": -1}',
        b'{"v": 1, "epoch": 7.0}',
        b'{"v": 1, "epoch": true}',
        b'{"v": 1, "epoch": 9007199254740992}',
        b'{"v": 1, "epoch": ' + b"9" * 5000 + b"}",
        b'{"v": 1, "epoch": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xff\xfe",
        b'{"v": 1, "epoch": 7',
        b'{"v": 1, "epoch": 7, "epoch": "x"}',
    ],
    ids=range(17),
)
def test_a_foreign_epoch_is_refused(raw: bytes) -> None:
    with pytest.raises(ForeignValue, match="Standfast did not write"):
        parse_epoch(raw)


@pytest.mark.parametrize("at", ["NaN", "Infinity", "-1", "1e300", '"5"', "true", "null", "1" * 400])
def test_a_time_that_cannot_be_one_is_refused(at: str) -> None:
    with pytest.raises(ForeignValue):
        Pause.parse(f'{{"v": 1, "by": "op", "reason": "r", "at": {at}}}'.encode())
