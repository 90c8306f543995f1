"""What only the embedded cluster can do: several nodes, deaths, lost quorum, lost replies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from standfast.consul.gateway import (
    Cas,
    CheckIndex,
    Committed,
    Conflict,
    ConsulBlind,
    ConsulGateway,
    Entry,
    Set,
)
from standfast.consul.http import Endpoint, Request, exchange
from standfast.consul.values import Registration
from standfast.demo.consul.calls import Call
from standfast.demo.consul.server import EmbeddedConsul
from standfast.errors import (
    ConsulError,
    ConsulGarbled,
    ConsulNoQuorum,
    ConsulTimedOut,
    ConsulUnreachable,
)
from standfast.system.clock import Deadline, monotonic
from tests.support.pace import patient
from tests.support.waiting import soon, wait_for

HANG_S = 100.0
"""A wait that ends by its own time, and not by what ends it, has hung."""


@pytest.fixture
def cluster() -> Iterator[EmbeddedConsul]:
    with EmbeddedConsul(no_leader_after_s=0.2, alive_timeout_s=0.3) as consul:
        for number in (1, 2, 3):
            consul.add_agent(f"n{number}", f"10.0.0.{number}")
        yield consul


def gateway(cluster: EmbeddedConsul, *nodes: str, timeout_s: float = 5.0) -> ConsulGateway:
    return ConsulGateway([cluster.address(node) for node in nodes or ("n1",)], timeout_s=timeout_s)


def serve_on(cluster: EmbeddedConsul, node: str, ttl_s: float = 60, *, service: str = "ds") -> None:
    consul = gateway(cluster, node)
    consul.register(Registration(service, service, "", 2049, {"node": node}, ttl_s, "check"))
    consul.pass_check(f"service:{service}", "fine")


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a query waits for a change."""
    waits, read = threading.Event(), EmbeddedConsul.read

    def noted(self: EmbeddedConsul, call: Call, compute: Any) -> Any:
        if call.min_index > 0:
            waits.set()
        return read(self, call, compute)

    monkeypatch.setattr(EmbeddedConsul, "read", noted)
    return waits


def is_txn(method: str, path: str) -> bool:
    return (method, path) == ("PUT", "/v1/txn")


# Nodes


def test_all_agents_show_the_same_keys(cluster: EmbeddedConsul) -> None:
    gateway(cluster, "n1").put("k", b"v")
    seen = {node: gateway(cluster, node).get("k") for node in ("n1", "n2", "n3")}
    assert len(set(seen.values())) == 1 and seen["n3"] is not None


def test_a_service_belongs_to_the_agent_that_registered_it(cluster: EmbeddedConsul) -> None:
    serve_on(cluster, "n2")
    (instance,) = gateway(cluster, "n1").instances("ds")
    assert (instance.node, instance.address, instance.checks) == ("n2", "10.0.0.2", "passing")
    assert gateway(cluster, "n1").local_services() == {}
    assert gateway(cluster, "n2").local_services() == {"ds": {"node": "n2"}}


def test_a_dead_node_keeps_its_service_passing_and_its_health_critical(
    cluster: EmbeddedConsul,
) -> None:
    serve_on(cluster, "n2", ttl_s=0.2)
    cluster.set_node_health("n2", "critical")
    serve_on(cluster, "n1", ttl_s=0.2, service="later")
    wait_for(
        lambda: gateway(cluster).instances("later")[0].checks == "critical",
        10.0,
        "a time to live that began later is over",
    )
    (instance,) = gateway(cluster).instances("ds")
    assert (instance.node_health, instance.checks) == ("critical", "passing")
    assert gateway(cluster).node_health("n2") == "critical"


def test_a_reaped_node_takes_its_service_along_and_brings_it_back(
    cluster: EmbeddedConsul,
) -> None:
    serve_on(cluster, "n2")
    cluster.set_node_health("n2", "absent")
    assert gateway(cluster).instances("ds") == ()
    assert gateway(cluster).node_health("n2") == "absent"
    cluster.set_node_health("n2", "passing")
    assert [instance.node_health for instance in gateway(cluster).instances("ds")] == ["passing"]


def test_a_wait_for_a_service_ends_with_the_death_of_its_node(cluster: EmbeddedConsul) -> None:
    serve_on(cluster, "n2")
    timer = threading.Timer(0.2, cluster.set_node_health, ("n2", "critical"))
    index, _ = cluster.state.services("ds")
    timer.start()
    wait_for(
        lambda: gateway(cluster).instances("ds")[0].node_health == "critical",
        10.0,
        "the death of its node is seen",
    )
    assert cluster.state.services("ds")[0] > index
    timer.join()


def test_a_node_whose_signs_of_life_stop_becomes_critical(cluster: EmbeddedConsul) -> None:
    cluster.node_alive("n2")
    assert gateway(cluster).node_health("n2") == "passing"
    wait_for(lambda: gateway(cluster).node_health("n2") == "critical", 10.0, "n2 counts as dead")
    cluster.node_alive("n2")
    assert gateway(cluster).node_health("n2") == "passing"
    assert gateway(cluster).node_health("n3") == "passing"


def test_without_a_living_server_the_token_check_fails(cluster: EmbeddedConsul) -> None:
    for node in ("n1", "n2", "n3"):
        gateway(cluster).self_check()
        cluster.set_node_health(node, "critical")
    with pytest.raises(ConsulBlind):
        gateway(cluster).self_check()


def test_a_stopped_agent_refuses_and_the_next_address_answers(cluster: EmbeddedConsul) -> None:
    gateway(cluster).put("k", b"v")
    cluster.stop_agent("n1")
    with pytest.raises(ConsulUnreachable):
        gateway(cluster, "n1").get("k")
    both = gateway(cluster, "n1", "n2")
    assert both.get("k") is not None
    assert isinstance(both.txn([Set("k", b"w")]), Committed)
    cluster.start_agent("n1")
    assert gateway(cluster, "n1").get("k") is not None


def test_stopping_an_agent_ends_the_waits_on_it(
    cluster: EmbeddedConsul, blocked: threading.Event
) -> None:
    gateway(cluster).put("k", b"v")
    index, _ = gateway(cluster).wait("k", 0, wait_s=1)
    failed: list[ConsulError] = []

    def wait() -> None:
        try:
            gateway(cluster).wait("k", index, wait_s=HANG_S)
        except ConsulError as error:
            failed.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert blocked.wait(patient(20.0))
    cluster.stop_agent("n1")
    waiter.join(patient(20.0))
    assert [type(error) for error in failed] == [ConsulGarbled]


# Quorum


def test_without_a_quorum_nothing_is_read_or_written(cluster: EmbeddedConsul) -> None:
    consul = gateway(cluster)
    consul.put("k", b"1")
    cluster.set_quorum(False)
    calls: list[Callable[[], object]] = [
        lambda: consul.get("k"),
        lambda: consul.get("k", consistent=True),
        lambda: consul.txn([Set("k", b"2")]),
        lambda: consul.put("k", b"2"),
        lambda: consul.instances("consul"),
    ]
    for call in calls:
        with pytest.raises(ConsulNoQuorum, match="No cluster leader") as caught:
            call()
        assert not caught.value.maybe_applied
    cluster.set_quorum(True)
    entry = consul.get("k")
    assert entry is not None and entry.value == b"1"


def test_what_an_agent_is_told_without_a_quorum_reaches_the_catalog_afterwards(
    cluster: EmbeddedConsul,
) -> None:
    cluster.set_quorum(False)
    serve_on(cluster, "n2")
    assert "ds" in gateway(cluster, "n2").local_services()
    cluster.set_quorum(True)
    assert [instance.checks for instance in gateway(cluster).instances("ds")] == ["passing"]


def test_a_quorum_that_comes_back_in_time_answers_who_waits(cluster: EmbeddedConsul) -> None:
    cluster.set_quorum(False)
    timer = threading.Timer(0.1, cluster.set_quorum, (True,))
    timer.start()
    assert gateway(cluster).get("k") is None
    timer.join()


# Replies and requests


def test_a_lost_reply_leaves_the_write_committed(cluster: EmbeddedConsul) -> None:
    consul = gateway(cluster)
    cluster.drop_next_reply()
    with pytest.raises(ConsulGarbled, match="closed without an answer") as caught:
        consul.txn([Cas("k", 0, b"mine")])
    assert caught.value.maybe_applied
    entry = consul.get("k")
    assert entry is not None and entry.value == b"mine"
    assert isinstance(consul.txn([Set("k", b"again")]), Committed)


def test_only_the_chosen_request_loses_its_reply(cluster: EmbeddedConsul) -> None:
    cluster.drop_next_reply(lambda method, path: path == "/v1/txn")
    gateway(cluster).put("k", b"1")
    with pytest.raises(ConsulGarbled):
        gateway(cluster).txn([Set("k", b"2")])


def test_a_delayed_write_is_carried_out_late(cluster: EmbeddedConsul) -> None:
    consul, hasty = gateway(cluster), gateway(cluster, timeout_s=patient(0.3))
    assert isinstance(consul.txn([Set("k", b"old")]), Committed)
    held = cluster.hold_next(is_txn)
    with pytest.raises(ConsulTimedOut) as caught:
        hasty.txn([Set("k", b"late")])
    assert caught.value.maybe_applied
    before = consul.get("k")
    assert before is not None and before.value == b"old"
    assert cluster.let_go(held, soon(20.0)).status == 200
    after = consul.get("k")
    assert after is not None and after.value == b"late"


def test_a_late_write_with_a_condition_is_refused_once_the_key_has_moved(
    cluster: EmbeddedConsul,
) -> None:
    consul, hasty = gateway(cluster), gateway(cluster, timeout_s=patient(0.3))
    made = consul.txn([Set("k", b"1")])
    assert isinstance(made, Committed)
    held = cluster.hold_next(is_txn)
    with pytest.raises(ConsulTimedOut):
        hasty.txn([Cas("k", made.indexes["k"], b"clean")])
    assert isinstance(consul.txn([Cas("k", made.indexes["k"], b"2")]), Committed)
    assert cluster.let_go(held, soon(20.0)).status == 409
    entry = consul.get("k")
    assert entry is not None and entry.value == b"2"


# Backups


def test_a_restore_takes_values_and_indexes_back(cluster: EmbeddedConsul) -> None:
    consul = gateway(cluster)
    consul.put("k", b"1")
    backup, before = cluster.snapshot(), consul.get("k")
    consul.put("k", b"2")
    consul.put("new", b"2")
    after = consul.get("k")
    assert before is not None and after is not None
    cluster.restore(backup)
    assert consul.get("k") == before
    assert consul.get("new") is None
    assert consul.wait("k", after.modify_index, wait_s=0.2) == (before.modify_index, before)
    assert isinstance(consul.txn([CheckIndex("k", after.modify_index)]), Conflict)


def test_a_restore_sends_waiting_queries_home(cluster: EmbeddedConsul) -> None:
    consul = gateway(cluster)
    consul.put("k", b"1")
    backup = cluster.snapshot()
    index, _ = consul.wait("k", 0, wait_s=1)
    timer = threading.Timer(0.2, cluster.restore, (backup,))
    timer.start()
    started = monotonic()
    assert consul.wait("k", index, wait_s=HANG_S) == (index, Entry("k", b"1", index))
    assert monotonic() - started < HANG_S
    timer.join()


def test_services_survive_a_restore_because_their_agents_know_them(
    cluster: EmbeddedConsul,
) -> None:
    backup = cluster.snapshot()
    serve_on(cluster, "n2")
    cluster.restore(backup)
    assert [instance.checks for instance in gateway(cluster).instances("ds")] == ["passing"]


# Ending


def test_closing_ends_waits_delays_and_threads(blocked: threading.Event) -> None:
    before = set(threading.enumerate())
    with EmbeddedConsul() as consul:
        consul.add_agent("n1")
        gateway = ConsulGateway([consul.address("n1")], timeout_s=5)
        gateway.put("k", b"v")
        index, _ = gateway.wait("k", 0, wait_s=1)
        held = consul.hold_next(lambda method, path: method == "PUT")

        def quietly(call: Callable[[], object]) -> None:
            try:
                call()
            except ConsulError:
                return

        clients = [
            threading.Thread(
                target=quietly, args=(lambda: gateway.wait("k", index, wait_s=HANG_S),)
            ),
            threading.Thread(target=quietly, args=(lambda: gateway.put("k", b"late"),)),
        ]
        for client in clients:
            client.start()
        assert blocked.wait(patient(20.0))
        wait_for(lambda: held.arrived, 20.0, "a write is held up")
        started = monotonic()
    assert monotonic() - started < HANG_S
    for client in clients:
        client.join(patient(20.0))
    assert set(threading.enumerate()) <= before


def test_many_writers_at_once_lose_nothing(cluster: EmbeddedConsul) -> None:
    def count(node: str) -> None:
        consul = gateway(cluster, node)
        for _ in range(10):
            while True:
                entry = consul.get("counter")
                index, value = (entry.modify_index, int(entry.value)) if entry else (0, 0)
                if isinstance(consul.txn([Cas("counter", index, b"%d" % (value + 1))]), Committed):
                    break

    writers = [threading.Thread(target=count, args=(f"n{n}",)) for n in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(patient(60.0))
    final = gateway(cluster).get("counter")
    assert final is not None and final.value == b"30"


@pytest.mark.parametrize(
    ("method", "target", "body", "text"),
    [
        ("PUT", "/v1/kv/k?acquire=x", b"", b"sessions are not offered"),
        ("GET", "/v1/agent/services?filter=x", b"", b"filter is not offered"),
        ("PUT", "/v1/agent/service/register", b'{"Name":"a","Check":{"http":"x"}}', b"TTL"),
        ("PUT", "/v1/agent/service/register", b"[]", b"an object was expected"),
        ("PUT", "/v1/agent/service/register", b"{}", b"Missing service name"),
        ("PUT", "/v1/txn", b"{}", b"a list"),
        ("PUT", "/v1/txn", b'[{"KV":{"Verb":"set"}}]', b"Key and Verb"),
        ("PUT", "/v1/txn", b'[{"KV":{"Verb":"set","Key":"k","Value":"!"}}]', b"parse body"),
    ],
)
def test_what_is_not_offered_is_refused_in_words(
    cluster: EmbeddedConsul, method: str, target: str, body: bytes, text: bytes
) -> None:
    where = Endpoint.parse(cluster.address("n1"))
    answer = exchange(where, Request(method, target, {}, body), Deadline.after(5))
    assert answer.status == 400
    assert text in answer.body
    assert gateway(cluster).get("k") is None
