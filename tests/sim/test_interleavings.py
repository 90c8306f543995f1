"""The whole state space of one holder, one candidate and their Consul; and that it finds faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from standfast.lease import protocol
from standfast.lease.protocol import HeldLease
from tests.sim.clockwork import Violation
from tests.sim.interleavings import Bounds, search

SMALL = Bounds(most_requests=2, crashes=0)


@pytest.mark.parametrize(
    ("bounds", "at_least"),
    [(Bounds(most_requests=3, crashes=0), 100_000), (Bounds(most_requests=2, crashes=1), 30_000)],
    ids=["three requests", "two requests and a killed keeper"],
)
def test_no_interleaving_puts_two_servers_up(bounds: Bounds, at_least: int) -> None:
    assert search(bounds) > at_least


@pytest.mark.parametrize(
    "broken",
    [
        replace(SMALL, wait_s=3),
        replace(SMALL, keeps_latest=False),
        replace(SMALL, clean_has_cas=False),
        replace(SMALL, crashes=1, jump=0),
    ],
    ids=["wait below the rule", "late opening", "clean without cas", "numbers used twice"],
)
def test_a_broken_rule_is_found(broken: Bounds) -> None:
    with pytest.raises(Violation, match="a and b serve at one time: "):
        search(broken)


def test_time_counted_from_the_reply_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = protocol.committed

    def from_the_reply(held_lease: HeldLease, seq: int, index: int, length_s: float) -> HeldLease:
        return real(structs.replace(held_lease, attempts={seq: 0.0}), seq, index, length_s)

    monkeypatch.setattr(protocol, "committed", from_the_reply)
    with pytest.raises(Violation, match="a and b serve"):
        search(SMALL)


def test_a_void_lease_that_an_older_heartbeat_revives_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unmarked(held_lease: HeldLease, now: float) -> HeldLease:
        return structs.replace(held_lease, valid_until=protocol.NEVER)

    monkeypatch.setattr(protocol, "voided", unmarked)
    with pytest.raises(Violation, match="sent before the lease was voided"):
        search(SMALL)
