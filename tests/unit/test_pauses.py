"""A pause for a time ends by itself, on a node's own clock, and never early."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from standfast.consul.records import Pause
from standfast.consul.values import Set
from standfast.errors import ConsulTimedOut, ForeignValue
from standfast.lease.pauses import PauseWatch
from tests.fakes.consul import MemoryConsul
from tests.support.configs import config_of

CONFIG = config_of("n1", "n2")
KEY = CONFIG.key("pause")
FOR_2H = Pause("ann", "disks", 1e9, 7200.0)


@pytest.fixture
def consul() -> MemoryConsul:
    made = MemoryConsul("n1", "n2")
    made.put(KEY, FOR_2H.dump())
    return made


def test_it_ends_when_it_was_seen_for_the_whole_time(consul: MemoryConsul) -> None:
    watch = PauseWatch(CONFIG, consul)
    for now in (50.0, 5000.0, 7249.9):
        assert watch.look(FOR_2H, now) is None
    assert consul.get(KEY) is not None
    said = watch.look(FOR_2H, 7250.0)
    assert said == ("the pause of ann for 2.0 h is over: automatic failover is enabled again")
    assert consul.get(KEY) is None
    assert watch.look(None, 7251.0) is None


def test_a_node_that_starts_anew_counts_anew(consul: MemoryConsul) -> None:
    assert PauseWatch(CONFIG, consul).look(FOR_2H, 90_000.0) is None
    assert consul.get(KEY) is not None


@pytest.mark.parametrize("lasts", [None, 7200.0])
def test_another_pause_counts_from_its_own_beginning(
    consul: MemoryConsul, lasts: float | None
) -> None:
    watch = PauseWatch(CONFIG, consul)
    watch.look(FOR_2H, 0.0)
    later = replace(FOR_2H, at=1e9 + 7000, lasts=lasts)
    consul.put(KEY, later.dump())
    assert watch.look(later, 7000.0) is None
    assert watch.look(later, 7201.0) is None
    assert (watch.look(later, 14_200.0) is None) == (lasts is None)
    assert (consul.get(KEY) is None) == (lasts is not None)


def test_what_was_set_meanwhile_is_not_ended(consul: MemoryConsul) -> None:
    """What a node saw may be some seconds old."""
    watch = PauseWatch(CONFIG, consul)
    watch.look(FOR_2H, 0.0)
    other = replace(FOR_2H, by="bob", lasts=None)
    consul.put(KEY, other.dump())
    assert watch.look(FOR_2H, 7200.0) is None
    consul.put(KEY, b"somebody's")
    with pytest.raises(ForeignValue):
        watch.look(FOR_2H, 7200.0)
    assert consul.get(KEY) is not None
    consul.put(KEY, FOR_2H.dump())

    def sets(effect: str) -> None:
        consul.effect = lambda _: None
        consul.put(KEY, other.dump())

    consul.effect = sets
    assert watch.look(FOR_2H, 7200.0) is None
    entry = consul.get(KEY)
    assert entry is not None and Pause.parse(entry.value) == other


def test_without_consul_it_goes_on_and_ends_later(consul: MemoryConsul) -> None:
    watch = PauseWatch(CONFIG, consul)
    watch.look(FOR_2H, 0.0)
    consul.error = ConsulTimedOut("hangs")
    with pytest.raises(ConsulTimedOut):
        watch.look(FOR_2H, 7200.0)
    consul.error = None
    assert watch.look(FOR_2H, 7300.0) is not None


def test_of_two_nodes_one_ends_it(consul: MemoryConsul) -> None:
    both = [PauseWatch(CONFIG, consul.at(name)) for name in ("n1", "n2")]
    assert [watch.look(FOR_2H, 0.0) for watch in both] == [None, None]
    said = [watch.look(FOR_2H, 7200.0) for watch in both]
    assert [each is None for each in said] == [False, True]
    consul.txn([Set(KEY, FOR_2H.dump())])
