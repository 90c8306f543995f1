"""Whatever stands in Consul: no page, line, metric, event or hook carries a control character on,
and none of them fails for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins
from prometheus_client import CollectorRegistry, generate_latest

from standfast.agent.document import build
from standfast.agent.watcher import assemble
from standfast.clients.loop import server_of
from standfast.consul import records
from standfast.consul.blindness import Blind
from standfast.consul.record import Record
from standfast.consul.records import ClientRecord
from standfast.consul.values import Entry, parse_critical, parse_entry, parse_instance, parse_read
from standfast.errors import ForeignValue
from standfast.events.events import Kind, happened
from standfast.events.hooks import Occasion, environment
from standfast.events.journal import encode, entry
from standfast.exporter.metrics import Readers, Replica, VolumeMetrics
from standfast.exporter.status_cache import sort_keys, with_clients
from standfast.node.other_server import active_elsewhere, unasked, words
from standfast.reasons import Reason
from standfast.replication.state import ReplicationState
from standfast.role.decide import decide
from standfast.role.decision import Moment
from standfast.role.observation import Cluster, LastHeartbeat, Local
from standfast.status.overview import Seen, describe
from standfast.status.text import render
from standfast.system.clock import Deadline
from standfast.text import clean
from tests.fakes.client import FakeClient
from tests.property.kinds_of_records import KINDS
from tests.support.configs import config_of

CONFIG = config_of("a", "b", "c")
NOW = 1.7e9
ODD = st.text(
    st.sampled_from(
        "ab1/ \x00\x07\x1b[\n\r\t\x7f\x85\u2028\u202e\u2066\ud800\udcff\ufeff\U000e0001"
    ),
    min_size=1,
    max_size=6,
) | st.just("x" * 5000)


NOW_THERE: Mapping[type[Record], Mapping[str, Any]] = {
    records.Leader: {"epoch": 7, "state": "serving", "holder": {"node": "a", "instance": "a1"}},
    records.CandidateRecord: {
        **{"epoch": 7, "at": NOW, "because": "paused", "takes_over": False},
        **{"sentence": "somebody paused", "obstacles": ["space: 2 % are left"]},
    },
}
"""What makes a record one of this epoch, and of now."""


def odd_value(kind: type[Record], draw: st.DrawFn) -> bytes:
    """A record of which some texts are odd: of those for people, or of all."""

    def odd(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: odd(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [odd(inner) for inner in value]
        return draw(ODD) if isinstance(value, str) and draw(st.booleans()) else value

    doc = {**KINDS[kind], **NOW_THERE.get(kind, {})}
    names = {*kind.shown, *kind.lenient} if draw(st.integers(0, 3)) else set(doc)
    return json.dumps({k: odd(value) if k in names else value for k, value in doc.items()}).encode()


@st.composite
def keys(draw: st.DrawFn) -> Mapping[str, bytes]:
    """A volume's keys, by their names; each of ours may be missing, odd, or some bytes."""
    names = {"Leader": "leader", "Pause": "pause"}
    values = {"epoch": b'{"v": 1, "epoch": 7}'}
    for kind in KINDS:
        if kind is ClientRecord or not draw(st.booleans()):
            continue
        value = (
            draw(st.binary(max_size=9)) if draw(st.integers(0, 9)) == 0 else odd_value(kind, draw)
        )
        rest = {"history": "7"}.get(kind.default_key, "b")
        rest = draw(ODD) if draw(st.integers(0, 5)) == 0 else rest
        values[names.get(kind.__name__, f"{kind.default_key}/{rest}")] = value
    return values


def view_of(values: Mapping[str, bytes]) -> Cluster | Blind:
    entries = {name: Entry(CONFIG.key(name), raw, 7) for name, raw in values.items()}
    try:
        return assemble(CONFIG, entries, LastHeartbeat(None, 0, 0.0))
    except ForeignValue as error:
        return Blind(Reason.FOREIGN_VALUE, str(error))


def texts_in(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for name, inner in value.items():
                yield from texts_in(name)
                yield from texts_in(inner)
        case list() | tuple():
            for inner in value:
                yield from texts_in(inner)


def assert_harmless(*shown: object) -> None:
    for text in texts_in(shown):
        for line in text.split("\n"):
            assert line.isprintable(), text
        text.encode()


@st.composite
def clients(draw: st.DrawFn) -> Mapping[str, bytes]:
    return {
        draw(ODD | st.just("c")): odd_value(ClientRecord, draw),
        "raw": draw(st.binary(max_size=9)),
    }


@given(values=keys(), told=clients())
def test_nothing_odd_in_consul_is_shown(
    values: Mapping[str, bytes], told: Mapping[str, bytes]
) -> None:
    view = view_of(values)
    status = build(view, None, CONFIG, NOW)
    known = with_clients(sort_keys(values), told)
    page = to_builtins(describe(Seen(NOW, status, keys=known), CONFIG))
    assert_harmless(render(status), page, to_builtins(status))
    metrics = VolumeMetrics(
        [CONFIG],
        Readers(
            fetch=lambda _: status,
            from_consul=lambda _: status,
            replication=lambda _: ReplicationState(),
            replica=lambda _: Replica(None, 0),
            has_epoch=lambda _: False,
            utc=lambda: NOW,
        ),
    )
    registry: CollectorRegistry = metrics.registry(Deadline.after(60.0))
    assert_harmless(generate_latest(registry).decode())
    decision = decide(view, Local("a", "a1", 7), CONFIG, Moment(100.0, NOW))
    event = happened(CONFIG, Kind.PROMOTION_REFUSED, decision.sentence, reason=decision.reason)
    facts = {"reason": decision.reason, "message": decision.sentence}
    assert_harmless(event.fields(), environment(CONFIG, Occasion.PROMOTION_REFUSED, facts))
    encode(entry(event))


@st.composite
def health(draw: st.DrawFn) -> dict[str, Any]:
    """One item of /v1/health/service, as Consul sends it, with odd names."""
    service_id = draw(ODD | st.just(CONFIG.service_id))
    check = {"CheckID": draw(ODD), "ServiceID": service_id, "Status": "passing", "Name": draw(ODD)}
    return {
        "Node": {"Node": draw(ODD | st.just("b")), "Address": draw(ODD)},
        "Service": {
            "ID": service_id,
            "Address": draw(ODD | st.just("")),
            "Port": 2049,
            "Meta": draw(st.dictionaries(ODD | st.just("epoch"), ODD | st.just("8"), max_size=3)),
        },
        "Checks": [check],
    }


@given(raw=health(), critical=health())
def test_nothing_odd_of_an_instance_is_shown(raw: dict[str, Any], critical: dict[str, Any]) -> None:
    instance = parse_instance(raw)
    assert_harmless(to_builtins(instance), words(CONFIG, instance))
    many = [instance] * 20
    active_elsewhere(many, CONFIG, "a", 7, lambda doors, _deadline: doors, Deadline(0.0))
    assert_harmless(unasked(many, CONFIG, "a", 7) or "")
    client = FakeClient(CONFIG, instances_=[instance])
    client.hold("192.168.1.3", 8)
    assert_harmless(getattr(server_of(client.parts), "sentence", ""))
    checks = parse_critical([{**check, "Status": "critical"} for check in critical["Checks"]])
    assert_harmless(to_builtins(checks))


def test_a_long_text_is_cut_and_a_name_of_ours_is_not_changed() -> None:
    assert len(clean("x" * 5000, 100)) == 100
    for name in (*CONFIG.nodes, CONFIG.service_id, "192.168.1.2", "::1", "c1.lan"):
        assert clean(name, 255) == name


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "Node",
                    "Service",
                    "Checks",
                    "ID",
                    "Key",
                    "Value",
                    "ModifyIndex",
                    "Results",
                    "KV",
                    "Errors",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(doc=SHAPES)
def test_an_answer_of_any_shape_is_parsed_or_a_value_error(doc: Any) -> None:
    for parse in (parse_instance, parse_critical, parse_entry, lambda raw: parse_read(raw, ())):
        with suppress(ValueError):
            parse(doc)


@given(raw=st.binary(max_size=40))
def test_bytes_of_any_kind_are_no_record(raw: bytes) -> None:
    for kind in KINDS:
        try:
            kind.parse(raw)
        except ForeignValue as error:
            assert_harmless(str(error))
