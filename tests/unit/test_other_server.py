"""Which entry of the service is the server's, and which keeps a node from serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from standfast.consul.values import Instance
from standfast.node.other_server import (
    MOST_ASKED,
    Door,
    active_elsewhere,
    deregistered,
    is_foreign,
    registered_by,
    unasked,
    words,
)
from standfast.system.clock import Deadline
from tests.fakes.client import fsid, instance
from tests.support.configs import config_of

CONFIG = config_of("n1", "n2", "n3")
N2 = instance("192.168.1.3", 8, fsid(1))
ELSEWHERE: dict[str, Any] = {"node": "web-1", "address": "192.168.1.77"}


def looked(
    entries: list[Instance], *, answer: bool = True
) -> tuple[tuple[Instance, ...], list[Door]]:
    """What n1 with epoch 7 finds active, and what was asked."""
    log: list[Door] = []

    def answering(doors: Sequence[Door], _deadline: Deadline) -> Sequence[Door]:
        log.extend(doors)
        return doors if answer else ()

    return active_elsewhere(entries, CONFIG, "n1", 7, answering, Deadline(0.0)), log


@pytest.mark.parametrize(
    ("changes", "ours"),
    [
        ({}, True),
        ({"checks": "critical"}, True),
        ({"meta": {"epoch": "9999"}}, True),
        ({"node": "web-1"}, False),
        ({"node": "n3"}, False),
        ({"address": "::FFFF:192.168.1.3"}, True),
        ({"address": "192.168.1.77"}, False),
        ({"service_id": "standfast-other"}, False),
        ({"has_own_check": False}, False),
    ],
    ids=str,
)
def test_an_entry_is_a_nodes_own_by_its_place_its_address_and_its_check(
    changes: dict[str, Any], ours: bool
) -> None:
    assert registered_by("n2", replace(N2, **changes), CONFIG) == ours


def test_who_is_no_storage_node_has_no_entry_of_its_own() -> None:
    assert not registered_by("web-1", replace(N2, **ELSEWHERE), CONFIG)


@pytest.mark.parametrize(
    ("changes", "asked", "active"),
    [
        # On a storage node an epoch that is not lower counts, whatever else it says.
        ({}, False, True),
        ({"meta": {"epoch": "9999"}}, False, True),
        ({"meta": {"epoch": "7"}}, False, True),
        ({"meta": {"epoch": "many"}}, False, True),
        ({"address": "192.168.1.77"}, False, True),
        ({"service_id": "by-hand"}, False, True),
        ({"checks": "critical"}, False, False),
        ({"meta": {"epoch": "6"}}, True, True),
        ({"meta": {}}, True, True),
        # Elsewhere its port is asked.
        (ELSEWHERE, True, True),
        ({**ELSEWHERE, "meta": {"epoch": "9999"}}, True, True),
        ({**ELSEWHERE, "address": "192.168.1.3"}, True, True),
        ({**ELSEWHERE, "checks": "critical"}, False, False),
        ({**ELSEWHERE, "meta": {}}, True, True),
    ],
    ids=str,
)
def test_an_entry_keeps_a_node_from_serving(
    changes: dict[str, Any], asked: bool, active: bool
) -> None:
    """`asked`: only where its server answers."""
    entry = replace(N2, **changes)
    found, doors = looked([entry])
    assert (bool(found), bool(doors)) == (active, asked)
    silent, _ = looked([entry], answer=False)
    assert bool(silent) == (active and not asked)


def test_a_node_that_this_file_does_not_have_yet_is_asked() -> None:
    """It was added to its own file first, and serves."""
    new = replace(N2, node="n4", address="192.168.1.5")
    assert looked([new])[0] == (new,)


@pytest.mark.parametrize(
    ("changes", "door"),
    [
        # Where nobody of ours made it: an NFS server, at the volume's port.
        ({**ELSEWHERE, "port": 53}, Door("192.168.1.77", 2049, nfs=True)),
        ({"meta": {}, "port": 53}, Door("192.168.1.3", 2049, nfs=True)),
        # The fence of a dead primary: its own port, and whoever is there.
        ({"meta": {"epoch": "6"}, "port": 2050}, Door("192.168.1.3", 2050, nfs=False)),
        ({**ELSEWHERE, "address": "2001:DB8:0::1"}, Door("2001:db8::1", 2049, nfs=True)),
        ({**ELSEWHERE, "address": "::ffff:10.0.0.1"}, Door("10.0.0.1", 2049, nfs=True)),
        ({**ELSEWHERE, "address": "NFS.lan"}, Door("nfs.lan", 2049, nfs=True)),
    ],
    ids=str,
)
def test_what_is_asked_is_not_the_choice_of_who_made_the_entry(
    changes: dict[str, Any], door: Door
) -> None:
    assert looked([replace(N2, **changes)])[1] == [door]


def test_of_entries_without_end_only_some_are_asked_those_at_our_addresses_first() -> None:
    many = [
        replace(N2, node="web-1", service_id=f"x{number}", address=f"10.0.1.{number}")
        for number in range(100)
    ]
    ours = replace(N2, node="web-1", address="192.168.1.4")
    found, doors = looked([*many, ours])
    assert len(doors) == MOST_ASKED and doors[0].address == "192.168.1.4" and ours in found
    told = unasked([*many, ours], CONFIG, "n1", 7)
    assert told is not None and told.startswith("85 entries") and "x15 on web-1" in told
    assert unasked(many[:MOST_ASKED], CONFIG, "n1", 7) is None


def test_entries_at_one_address_are_one_question() -> None:
    many = [replace(N2, node="web-1", service_id=f"x{number}") for number in range(100)]
    found, doors = looked(many)
    assert (len(found), len(doors)) == (100, 1)
    assert unasked(many, CONFIG, "n1", 7) is None


def test_of_an_entry_elsewhere_it_is_said_how_it_is_taken_away() -> None:
    entry = replace(N2, **ELSEWHERE)
    assert is_foreign(entry, CONFIG) and not is_foreign(N2, CONFIG)
    assert "on web-1: consul services deregister -id=standfast-data-services" in words(
        CONFIG, entry
    )
    assert "deregister" not in words(CONFIG, N2)


def test_a_line_for_a_shell_runs_nothing_of_what_an_entry_says() -> None:
    other = replace(N2, service_id="x; rm -rf $HOME")
    assert "deregister '-id=x; rm -rf $HOME'" in deregistered(other)
