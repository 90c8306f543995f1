"""Which entry of the service is the server's, and which keeps a node from serving."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from standfast.node.other_server import (
    active_elsewhere,
    deregistered,
    is_foreign,
    registered_by,
    words,
)
from tests.fakes.client import fsid, instance
from tests.support.configs import config_of

CONFIG = config_of("n1", "n2", "n3")
N2 = instance("192.168.1.3", 8, fsid(1))
ELSEWHERE: dict[str, Any] = {"node": "web-1", "address": "192.168.1.77"}


@pytest.mark.parametrize(
    ("changes", "ours"),
    [
        ({}, True),
        ({"checks": "critical"}, True),
        ({"meta": {"epoch": "9999"}}, True),
        ({"node": "web-1"}, False),
        ({"node": "n3"}, False),
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
    """`asked`: only where its port answers."""
    entry, log = replace(N2, **changes), []

    def answers(address: str, port: int) -> bool:
        log.append((address, port))
        return True

    found = active_elsewhere([entry], CONFIG, "n1", 7, answers)
    assert (found is not None, bool(log)) == (active, asked)
    silent = active_elsewhere([entry], CONFIG, "n1", 7, lambda *_: False)
    assert (silent is not None) == (active and not asked)


def test_a_node_that_this_file_does_not_have_yet_is_asked() -> None:
    """It was added to its own file first, and serves."""
    new = replace(N2, node="n4", address="192.168.1.5")
    assert active_elsewhere([new], CONFIG, "n1", 7, lambda *_: True) == new


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
