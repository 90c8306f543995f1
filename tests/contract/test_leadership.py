"""Consul's leadership is kept away from the node that serves: on a stand-in for 1.15 and later.
What an older Consul says of it is in the contract of the gateway, on a real one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from standfast.agent.upkeep import keep_up
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.consul.leadership import AGAIN_S, LOOK_EVERY_S, Leadership
from standfast.errors import ConsulDenied, ConsulError, StandfastError
from standfast.system.clock import Deadline
from tests.fakes.clock import stop_the_clock
from tests.fakes.consul_servers import ConsulServers, consul_servers
from tests.fakes.machine import FakeNode, fake_node
from tests.unit.test_upkeep import OWN, agent_that_saw


class Asked:
    """A node whose Consul agent leads, and can hand that over."""

    def __init__(self, config: Config, node: FakeNode) -> None:
        self.config, self.transfers = config, 0
        self.consul = node.consul.at("n1")
        self.consul.transfer_leadership = self._transfer  # type: ignore[method-assign]

    def _transfer(self, *, deadline: Deadline | None = None) -> None:
        self.transfers += 1


def gateway(servers: ConsulServers, node: str, token: str | None = None) -> ConsulGateway:
    others = [address for name, address in servers.addresses.items() if name != node]
    return ConsulGateway([servers.addresses[node], *others], token=token)


def test_the_node_that_serves_hands_the_leadership_over_and_no_other_does(tmp_path: Path) -> None:
    with consul_servers(operator_tokens=["t"]) as servers:
        for name in ("n2", "n3"):
            Leadership().give_away(gateway(servers, name, "t"))
        assert (servers.leader, servers.transfers) == ("n1", 0)
        Leadership().give_away(gateway(servers, "n1", "t"))
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
                leadership.give_away(consul)
            clock.sleep(LOOK_EVERY_S)
        servers.knows_transfer, servers.operator_tokens, servers.has_peers = True, [""], True
        clock.sleep(AGAIN_S)
        leadership.give_away(consul)
        assert servers.leader == "n2"
        leadership.give_away(consul)


def test_servers_that_give_it_back_are_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = stop_the_clock(monkeypatch)
    leadership = Leadership()
    with consul_servers() as servers:
        for _ in range(int(AGAIN_S / LOOK_EVERY_S)):
            servers.leader = "n1"
            leadership.give_away(gateway(servers, "n1"))
            clock.sleep(LOOK_EVERY_S)
        assert servers.transfers == 1
        leadership.give_away(gateway(servers, "n1"))
        assert servers.transfers == 2


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("serves", [True, False])
def test_only_a_node_that_serves_does_it_and_only_where_that_is_wanted(
    tmp_path: Path, wanted: bool, serves: bool
) -> None:
    node = fake_node(tmp_path)
    OWN.save(node.config.state_dir)
    agent = agent_that_saw(node, OWN if serves else None)
    access = structs.replace(node.config.consul, transfer_leadership=wanted)
    asked = Asked(structs.replace(node.config, consul=access), node)
    agent.machine = replace(agent.machine, config=asked.config, consul=asked.consul)
    keep_up(agent)
    assert asked.transfers == (1 if wanted and serves else 0)
    assert agent.unkept is None
