"""Consul's leadership is kept away from the node that serves: on a stand-in for 1.15 and later.
What an older Consul says of it is in the contract of the gateway, on a real one.
"""

from __future__ import annotations

import pytest

from standfast.consul.gateway import ConsulGateway
from standfast.consul.leadership import AGAIN_S, LOOK_EVERY_S, Leadership
from standfast.errors import ConsulDenied, ConsulError, StandfastError
from tests.fakes.clock import stop_the_clock
from tests.fakes.consul_servers import ConsulServers, consul_servers


def gateway(servers: ConsulServers, node: str, token: str | None = None) -> ConsulGateway:
    others = [address for name, address in servers.addresses.items() if name != node]
    return ConsulGateway([servers.addresses[node], *others], token=token)


def give_away(leadership: Leadership, consul: ConsulGateway) -> None:
    leadership.give_away(consul.is_leader, consul.transfer_leadership)


def test_the_node_that_serves_hands_the_leadership_over_and_no_other_does() -> None:
    with consul_servers(operator_tokens=["t"]) as servers:
        for name in ("n2", "n3"):
            give_away(Leadership(), gateway(servers, name, "t"))
        assert (servers.leader, servers.transfers) == ("n1", 0)
        give_away(Leadership(), gateway(servers, "n1", "t"))
        assert (servers.leader, servers.transfers) == ("n2", 1)


@pytest.mark.parametrize(
    ("manners", "kind", "words"),
    [
        ({"knows_transfer": False}, ConsulError, "before 1.15 it can't transfer its leadership"),
        ({"operator_tokens": []}, ConsulDenied, "Permission denied"),
        ({"has_peers": False}, ConsulError, "cannot find peer"),
    ],
)
def test_why_it_can_not_is_told_until_it_is_tried_again(
    manners: dict[str, object],
    kind: type[StandfastError],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = stop_the_clock(monkeypatch)
    leadership = Leadership()
    with consul_servers(**manners) as servers:
        consul = gateway(servers, "n1")
        for _ in range(3):
            with pytest.raises(kind, match=words):
                give_away(leadership, consul)
            clock.sleep(LOOK_EVERY_S)
        servers.knows_transfer, servers.operator_tokens, servers.has_peers = True, [""], True
        clock.sleep(AGAIN_S)
        give_away(leadership, consul)
        assert servers.leader == "n2"
        give_away(leadership, consul)


def test_a_transfer_that_was_done_all_the_same_is_no_trouble_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answer came too late, say."""
    clock = stop_the_clock(monkeypatch)
    leadership = Leadership()
    with consul_servers(has_peers=False) as servers:
        with pytest.raises(ConsulError, match="another server that votes"):
            give_away(leadership, gateway(servers, "n1"))
        servers.leader = "n2"
        clock.sleep(LOOK_EVERY_S)
        give_away(leadership, gateway(servers, "n1"))


def test_servers_that_give_it_back_are_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = stop_the_clock(monkeypatch)
    leadership = Leadership()
    with consul_servers() as servers:
        for _ in range(int(AGAIN_S / LOOK_EVERY_S)):
            servers.leader = "n1"
            give_away(leadership, gateway(servers, "n1"))
            clock.sleep(LOOK_EVERY_S)
        assert servers.transfers == 1
        give_away(leadership, gateway(servers, "n1"))
        assert servers.transfers == 2
