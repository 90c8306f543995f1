"""What Standfast relies on in Consul, by the calls of the gateway.

Run on the gateway before a real Consul and before the demo's embedded one, on the tests' Consul in
memory and on the simulation's; as far as keys go, on the one that processes share through a file,
and, as far as a client asks, on the tests' client in memory. What passes over the wire, and the
library and the `consul` command, are in tests/contract/test_consul_server.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from standfast.clients import ports as clients
from standfast.consul import ports as consul
from standfast.consul.gateway import (
    Cas,
    CheckIndex,
    CheckNotExists,
    Committed,
    Conflict,
    ConsulGateway,
    Delete,
    Entry,
    Set,
)
from standfast.demo.consul.server import EmbeddedConsul
from standfast.errors import ConsulError, ConsulGarbled
from standfast.lease import holding
from standfast.node import node as machine
from standfast.replication.ports import ReplicaGateway
from standfast.requests import taking
from standfast.system.clock import Deadline, monotonic
from tests.contract import consul_scene
from tests.contract.consul_scene import (
    HANG_S,
    SYNC_S,
    SYNCED,
    Gateway,
    after,
    listed,
    numbers,
    register,
)
from tests.contract.peers import FileGateway
from tests.contract.ports.implementations import Implementation, each
from tests.fakes.client import FakeClient, fake_client
from tests.fakes.consul import MemoryConsul
from tests.sim.model_consul import SimConsul
from tests.sim.one_node import on_a_node
from tests.support.consul_clusters import NODE, embedded_cluster, real_cluster
from tests.support.pace import patient
from tests.support.waiting import wait_for

pytestmark = SYNCED
PORTS = (
    machine.Consul,
    holding.Consul,
    consul.Keys,
    clients.Consul,
    ReplicaGateway,
    taking.Consul,
)
Keys = Gateway
"""Of which only the calls about keys are made."""


@contextmanager
def real(directory: Path) -> Iterator[Gateway]:
    with real_cluster(directory) as cluster:
        yield cluster.gateway()


@contextmanager
def embedded(_directory: Path) -> Iterator[Gateway]:
    with embedded_cluster() as cluster:
        yield cluster.gateway()


@contextmanager
def in_memory(_directory: Path) -> Iterator[Gateway]:
    yield MemoryConsul(NODE)


@contextmanager
def simulated(directory: Path) -> Iterator[Gateway]:
    with on_a_node(directory, names=(NODE,)) as node:

        def timer(seconds: float, act: Callable[[], object]) -> SimpleNamespace:
            return SimpleNamespace(
                start=lambda: node.after(seconds, lambda: node.spawn("later", act)),
                join=lambda: None,
            )

        with patch.object(consul_scene, "Timer", timer):
            yield node.seat.client(5.0)


@contextmanager
def in_a_file(directory: Path) -> Iterator[Gateway]:
    yield FileGateway(directory / "keys")


@contextmanager
def of_a_client(directory: Path) -> Iterator[FakeClient]:
    yield fake_client(directory)


IMPLEMENTATIONS = (
    Implementation((ConsulGateway,), real, name="real"),
    Implementation((ConsulGateway, EmbeddedConsul), embedded, name="embedded"),
    Implementation((MemoryConsul,), in_memory),
    Implementation((SimConsul,), simulated, name="simulated"),
)
OF_CLIENTS = (Implementation((FakeClient,), of_a_client),)
OF_KEYS = (Implementation((FileGateway,), in_a_file),)


WHO: Mapping[str, Sequence[Implementation[Any]]] = {
    "gateway": IMPLEMENTATIONS,
    "keys": (*IMPLEMENTATIONS, *OF_KEYS),
    "told": (*IMPLEMENTATIONS, *OF_CLIENTS),
}
"""By the fixture that a test asks for."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, implementations in WHO.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize("made", each(implementations), indirect=True)


@pytest.fixture(scope="module")
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[object]:
    """One at a time, whoever asks for it: beside the simulated one there is no real time."""
    with request.param.make(tmp_path_factory.mktemp("consul")) as made:
        yield made


@pytest.fixture
def gateway(made: Gateway) -> Gateway:
    return made


@pytest.fixture
def keys(made: Keys) -> Keys:
    return made


@pytest.fixture
def told(made: clients.Consul) -> clients.Consul:
    return made


@pytest.fixture
def prefix() -> str:
    """Keys of this test alone."""
    return f"t{next(numbers)}/"


@pytest.fixture
def service(gateway: Gateway) -> Iterator[str]:
    """The name of a service of this test alone; its id is `<name>-id`."""
    name = f"s{next(numbers)}"
    yield name
    gateway.deregister(f"{name}-id")


# Keys


def test_a_missing_key_is_none(keys: Keys, prefix: str) -> None:
    assert keys.get(prefix + "k") is None
    assert keys.get(prefix + "k", consistent=True) is None
    assert keys.get_many(prefix) == ()
    assert keys.read([prefix + "a", prefix + "b"]) == {prefix + "a": None, prefix + "b": None}


@pytest.mark.parametrize("value", [b"v", b"", bytes(range(256)), b"x" * 100_000])
@pytest.mark.parametrize("name", ["k", "with blank", "gr\u00fc\u00df/\u20ac", "a?b#c%2Fd&e=f+g"])
def test_a_value_comes_back_as_it_was_written(
    keys: Keys, prefix: str, name: str, value: bytes
) -> None:
    keys.put(prefix + name, value)
    by_put = keys.get(prefix + name, consistent=True)
    assert by_put is not None
    assert (by_put.key, by_put.value) == (prefix + name, value)
    keys.delete(prefix + name)
    assert keys.get(prefix + name) is None
    assert isinstance(keys.txn([Set(prefix + name, value)]), Committed)
    by_txn = keys.get(prefix + name)
    assert by_txn is not None and by_txn.value == value


def test_deleting_a_missing_key_is_fine(keys: Keys, prefix: str) -> None:
    keys.delete(prefix + "k")
    assert keys.txn([Delete(prefix + "k")]) == Committed({})


def test_keys_under_a_prefix_come_sorted(keys: Keys, prefix: str) -> None:
    for name in ("b", "a/x", "c"):
        keys.put(prefix + name, name.encode())
    entries = keys.get_many(prefix)
    assert [(entry.key, entry.value) for entry in entries] == [
        (prefix + "a/x", b"a/x"),
        (prefix + "b", b"b"),
        (prefix + "c", b"c"),
    ]


def test_a_folder_that_a_person_made_is_no_entry(keys: Keys, prefix: str) -> None:
    """Consul's own web interface makes one as a key that ends with a slash, without a value."""
    for name in ("", "history/", "standbys/c1/", "standbys/c1/x"):
        keys.put(prefix + name, b"")
    keys.put(prefix + "history/1", b"1")
    names = [entry.key.removeprefix(prefix) for entry in keys.get_many(prefix, consistent=True)]
    assert names == ["history/1", "standbys/c1/x"]


# Transactions


def test_cas_0_creates_and_only_once(keys: Keys, prefix: str) -> None:
    key = prefix + "k"
    first = keys.txn([Cas(key, 0, b"1")])
    assert isinstance(first, Committed)
    assert keys.get(key) == Entry(key, b"1", first.indexes[key])
    stale = f'operation 0: failed to set key "{key}", index is stale'
    assert keys.txn([Cas(key, 0, b"2")]) == Conflict((stale,))
    keys.delete(key)
    assert isinstance(keys.txn([Cas(key, 0, b"3")]), Committed)


def test_cas_needs_the_very_index(keys: Keys, prefix: str) -> None:
    key = prefix + "k"
    first = keys.txn([Set(key, b"1")])
    assert isinstance(first, Committed)
    index = first.indexes[key]
    assert isinstance(keys.txn([Cas(key, index - 1, b"2")]), Conflict)
    assert isinstance(keys.txn([Cas(key, index + 1, b"2")]), Conflict)
    second = keys.txn([Cas(key, index, b"2")])
    assert isinstance(second, Committed) and second.indexes[key] > index
    assert isinstance(keys.txn([Cas(key, index, b"3")]), Conflict)


def test_a_transaction_is_all_or_nothing_and_tells_each_failed_condition(
    keys: Keys, prefix: str
) -> None:
    a, b, none = prefix + "a", prefix + "b", prefix + "none"
    made = keys.txn([Set(a, b"1")])
    assert isinstance(made, Committed)
    index = made.indexes[a]
    outcome = keys.txn(
        [
            Set(b, b"never"),
            CheckIndex(a, index + 1),
            CheckIndex(none, 5),
            CheckNotExists(a),
            CheckIndex(a, index),
            Delete(a),
        ]
    )
    assert outcome == Conflict(
        (
            f'operation 1: failed index check for key "{a}", '
            f"current modify index {index} != {index + 1}",
            f'operation 2: failed to check index, key "{none}" doesn\'t exist',
            f'operation 3: key "{a}" exists',
        )
    )
    assert keys.read([a, b]) == {a: Entry(a, b"1", index), b: None}


def test_a_read_of_several_has_these_keys_and_folders_and_nothing_else(
    keys: Keys, prefix: str
) -> None:
    there = ("a", "a/1", "ab", "b/", "b/1", "b/2", "c/1")
    for name in there:
        keys.put(prefix + name, name.encode())
    names = {prefix + name for name in ("a", "missing", "b/1", "b/2")}
    found = keys.read([prefix + "a", prefix + "missing"], folders=[prefix + "b/", prefix + "none/"])
    assert set(found) == names
    assert found[prefix + "missing"] is None
    one = found[prefix + "b/1"]
    assert one is not None and one == keys.get(prefix + "b/1")


def test_the_lease_transactions_work_as_designed(keys: Keys, prefix: str) -> None:
    epoch, leader, history = prefix + "epoch", prefix + "leader", prefix + "history/1"
    taken = keys.txn([Cas(epoch, 0, b"1"), Cas(leader, 0, b"seq1"), Set(history, b"h")])
    assert isinstance(taken, Committed)
    assert set(taken.indexes) == {epoch, leader, history}
    e, l1 = taken.indexes[epoch], taken.indexes[leader]
    beat = keys.txn([CheckIndex(epoch, e), Cas(leader, l1, b"seq2")])
    assert isinstance(beat, Committed) and set(beat.indexes) == {leader}
    # a candidate that saw the first heartbeat only
    late = keys.txn([Cas(epoch, e, b"2"), Cas(leader, l1, b"mine")])
    assert isinstance(late, Conflict)
    won = keys.txn([Cas(epoch, e, b"2"), Cas(leader, beat.indexes[leader], b"mine")])
    assert isinstance(won, Committed)
    # the old primary goes on
    old = keys.txn([CheckIndex(epoch, e), Cas(leader, beat.indexes[leader], b"seq3")])
    assert isinstance(old, Conflict)


def test_operations_see_what_earlier_ones_in_the_transaction_did(keys: Keys, prefix: str) -> None:
    key = prefix + "k"
    assert isinstance(keys.txn([Set(key, b"1"), CheckNotExists(key)]), Conflict)
    assert keys.get(key) is None
    both = keys.txn([Set(key, b"1"), Delete(key), CheckNotExists(key), Cas(key, 0, b"2")])
    assert isinstance(both, Committed)
    assert keys.get(key) == Entry(key, b"2", both.indexes[key])


def test_too_large_a_transaction_is_turned_down_unapplied(keys: Keys, prefix: str) -> None:
    with pytest.raises(ConsulGarbled, match=r"413.*too many operations") as caught:
        keys.txn([Set(f"{prefix}{number}", b"") for number in range(65)])
    assert not caught.value.maybe_applied
    assert keys.get_many(prefix) == ()


# Indexes and waiting


def test_writing_the_same_value_moves_no_index(keys: Keys, prefix: str) -> None:
    key = prefix + "k"
    keys.put(key, b"1")
    before = keys.get(key)
    keys.put(key, b"1")
    assert keys.get(key) == before
    assert before is not None
    again = keys.txn([Cas(key, before.modify_index, b"1")])
    assert again == Committed({key: before.modify_index})


def test_a_wait_ends_with_the_change(gateway: Gateway, prefix: str) -> None:
    key = prefix + "k"
    gateway.put(key, b"1")
    index, _ = gateway.wait(key, 0, wait_s=1)
    started = monotonic()
    with after(0.3, lambda: gateway.put(key, b"2")):
        new_index, entry = gateway.wait(key, index, wait_s=HANG_S)
    assert 0.2 < monotonic() - started < HANG_S
    assert entry == Entry(key, b"2", new_index)
    assert new_index > index


def test_a_wait_for_a_missing_key_ends_with_its_creation(gateway: Gateway, prefix: str) -> None:
    key = prefix + "k"
    gateway.put(prefix + "seed", b"1")
    index, nothing = gateway.wait(key, 0, wait_s=1)
    assert nothing is None
    started = monotonic()
    with after(0.3, lambda: gateway.txn([Cas(key, 0, b"1")])):
        new_index, entry = gateway.wait(key, index, wait_s=HANG_S)
    assert monotonic() - started < HANG_S
    assert new_index > index and entry is not None and entry.value == b"1"


def test_a_wait_ends_with_the_deletion(gateway: Gateway, prefix: str) -> None:
    key = prefix + "k"
    gateway.put(key, b"1")
    index, _ = gateway.wait(key, 0, wait_s=1)
    started = monotonic()
    with after(0.3, lambda: gateway.delete(key)):
        new_index, entry = gateway.wait(key, index, wait_s=HANG_S)
    assert monotonic() - started < HANG_S
    assert new_index > index and entry is None


def test_a_wait_without_a_change_ends_with_the_same_index(gateway: Gateway, prefix: str) -> None:
    key = prefix + "k"
    gateway.put(key, b"1")
    before = gateway.wait(key, 0, wait_s=1)
    started = monotonic()
    assert gateway.wait(key, before[0], wait_s=0.5) == before
    assert monotonic() - started > 0.4


def test_an_old_index_is_answered_at_once(gateway: Gateway, prefix: str) -> None:
    gateway.put(prefix + "k", b"1")
    started = monotonic()
    gateway.wait(prefix + "k", 1, wait_s=HANG_S)
    assert monotonic() - started < HANG_S


def test_an_index_that_is_still_to_come_is_waited_for(gateway: Gateway, prefix: str) -> None:
    """As after a restore, which took the indexes back: whoever waited before it is answered."""
    key = prefix + "k"
    gateway.put(key, b"1")
    before = gateway.wait(key, 0, wait_s=1)
    started = monotonic()
    assert gateway.wait(key, before[0] + 1000, wait_s=0.5) == before
    assert monotonic() - started > 0.4


# Services


def test_a_service_is_critical_until_it_passes_and_again_when_its_ttl_ends(
    gateway: Gateway, service: str
) -> None:
    assert gateway.instances(service) == ()
    register(gateway, service, ttl_s=patient(1.0), epoch="7")
    listed(gateway, service)
    (instance,) = gateway.instances(service)
    assert (instance.service_id, instance.node, instance.address, instance.port) == (
        f"{service}-id",
        NODE,
        "10.1.2.3",
        2049,
    )
    assert (instance.meta, instance.node_health, instance.checks) == (
        {"epoch": "7"},
        "passing",
        "critical",
    )
    gateway.pass_check(f"service:{service}-id", "fine & d\u00e4ndy")
    listed(gateway, service, "passing")
    listed(gateway, service, "critical")


def test_a_failed_check_is_critical_at_once(gateway: Gateway, service: str) -> None:
    register(gateway, service)
    gateway.pass_check(f"service:{service}-id", "")
    listed(gateway, service, "passing")
    gateway.fail_check(f"service:{service}-id", "no threads")
    listed(gateway, service, "critical")


def test_registering_again_changes_the_meta_and_keeps_the_check(
    gateway: Gateway, service: str
) -> None:
    register(gateway, service)
    gateway.pass_check(f"service:{service}-id", "")
    listed(gateway, service, "passing")
    register(gateway, service, epoch="2")
    wait_for(
        lambda: gateway.instances(service)[0].meta == {"epoch": "2"},
        SYNC_S,
        "the new meta is there",
    )
    assert gateway.instances(service)[0].checks == "passing"


def test_the_agent_knows_its_own_services(gateway: Gateway, service: str) -> None:
    register(gateway, service)
    assert gateway.local_services()[f"{service}-id"] == {"epoch": "1"}
    gateway.deregister(f"{service}-id")
    gateway.deregister(f"{service}-id")
    assert f"{service}-id" not in gateway.local_services()
    wait_for(lambda: gateway.instances(service) == (), SYNC_S, "it is gone from the catalog")


def test_gossip_knows_the_node_and_no_other(gateway: Gateway) -> None:
    assert gateway.node_health(NODE) == "passing"
    assert gateway.node_health("nobody") == "absent"


def test_the_critical_on_of_a_node_are_told_with_their_service(
    gateway: Gateway, service: str
) -> None:
    def mine() -> list[tuple[str, str]]:
        checks = gateway.critical_on(NODE)
        return [(c.check_id, c.service_id) for c in checks if c.service_id == f"{service}-id"]

    register(gateway, service)
    listed(gateway, service, "critical")
    assert mine() == [(f"service:{service}-id", f"{service}-id")]
    gateway.pass_check(f"service:{service}-id", "")
    listed(gateway, service, "passing")
    assert mine() == []
    assert gateway.critical_on("nobody") == ()


def test_the_agent_tells_its_name_which_is_that_of_what_it_registers(
    gateway: Gateway, service: str
) -> None:
    register(gateway, service)
    listed(gateway, service)
    assert gateway.node_name() == gateway.instances(service)[0].node == NODE


def test_a_server_alone_leads_and_its_version_can_not_hand_that_over(gateway: Gateway) -> None:
    assert gateway.is_leader()
    with pytest.raises(ConsulError, match=r"before 1\.15 it can't transfer its leadership"):
        gateway.transfer_leadership()
    assert gateway.is_leader()


@pytest.mark.parametrize("key", ["", "/k"])
def test_what_is_no_key_is_not_sent(keys: Keys, key: str) -> None:
    for call in (
        lambda: keys.get(key),
        lambda: keys.get_many(key),
        lambda: keys.put(key, b""),
        lambda: keys.delete(key),
        lambda: keys.txn([CheckNotExists("k"), Set(key, b"")]),
    ):
        with pytest.raises(ValueError, match="is not a key"):
            call()


def test_a_check_that_the_agent_does_not_know_can_not_pass(gateway: Gateway) -> None:
    for call in (gateway.pass_check, gateway.fail_check):
        with pytest.raises(ConsulError, match="does not have associated TTL"):
            call("service:nobody", "")


# What a client asks


def test_what_nobody_registered_has_no_instances(told: clients.Consul) -> None:
    assert told.instances("nobody") == ()


def test_a_client_may_write_what_it_is_again_and_again(told: clients.Consul) -> None:
    for value in (b"1", b"1", b"2"):
        told.put("standfast/clients/a", value, deadline=Deadline.after(1.0))
