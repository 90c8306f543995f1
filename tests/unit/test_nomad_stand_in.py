"""What the stand-in for Nomad adds to the contract that it shares with a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from standfast.consul.http import Endpoint, Request, exchange
from standfast.errors import NomadError, NomadOutcome
from standfast.nomad.gateway import NomadAgent
from standfast.system.clock import Deadline, monotonic, sleep
from tests.fakes.nomad import NomadStandIn
from tests.fakes.nomad_api import Manner
from tests.fakes.nomad_state import NomadState
from tests.support.checkout import CHECKOUT
from tests.support.consul_clusters import free_ports
from tests.support.nomad_clusters import job
from tests.support.pace import patient

ANSWERS = CHECKOUT / "tests/contract/nomad_answers"


def recorded(name: str) -> Any:
    return json.loads((ANSWERS / f"{name}.json").read_text())


def outcome_of(call: Callable[[], object]) -> NomadOutcome:
    with pytest.raises(NomadError) as caught:
        call()
    return caught.value.outcome


@pytest.fixture
def stand_in() -> Iterator[NomadStandIn]:
    with NomadStandIn(volumes={"services": "/data/services"}) as made:
        yield made


def test_without_acls_no_token_is_needed(stand_in: NomadStandIn) -> None:
    nomad = NomadAgent(stand_in.address("node1"))
    assert nomad.own_node().host_volumes == {"services": "/data/services"}
    assert stand_in.requests[0] == ("node1", "GET", "/v1/agent/self")


@pytest.mark.parametrize(
    ("manner", "outcome"),
    [
        (Manner.ERROR, NomadOutcome.SERVER_ERROR),
        (Manner.HANG, NomadOutcome.TIMEOUT),
        (Manner.DENY, NomadOutcome.DENIED),
        (Manner.NO_LEADER, NomadOutcome.SERVER_ERROR),
    ],
)
def test_it_misbehaves_until_it_is_told_to_stop(
    stand_in: NomadStandIn, manner: Manner, outcome: NomadOutcome
) -> None:
    nomad = NomadAgent(stand_in.address("node2"), timeout_s=0.3)
    stand_in.misbehave(manner)
    assert outcome_of(nomad.nodes) is outcome
    assert outcome_of(lambda: nomad.set_eligible("x", True)) is outcome
    stand_in.misbehave(Manner.NORMAL)
    assert [node.name for node in nomad.nodes()] == ["node1", "node2"]


def test_a_client_without_servers_still_answers_for_itself(stand_in: NomadStandIn) -> None:
    nomad = NomadAgent(stand_in.address("node1"))
    stand_in.misbehave(Manner.NO_LEADER)
    assert nomad.set_meta("storage_role", "primary").meta["storage_role"] == "primary"
    assert nomad.agent().name == "node1"


def test_a_csi_volume_is_of_its_namespace(stand_in: NomadStandIn) -> None:
    """Kept to Nomad's source (command/agent/csi_endpoint.go): a real one takes no volume in without
    a plugin."""
    endpoint = Endpoint.parse(stand_in.address("server"))
    context = {"server": "data-services.service.consul", "share": "/persist/services"}
    doc = {"ID": "shard[0]", "PluginID": "nfs", "Context": context, "Parameters": None}
    body = json.dumps({"Volumes": [doc]}).encode()
    target = "/v1/volume/csi/shard%5B0%5D?namespace=web"
    exchange(endpoint, Request("PUT", target, {}, body), Deadline.after(patient(10.0)))
    nomad = NomadAgent(stand_in.address("node1"))
    volume = nomad.csi_volume("web", "shard[0]")
    assert (volume.id, volume.context, volume.parameters) == ("shard[0]", context, {})
    assert outcome_of(lambda: nomad.csi_volume("default", "shard[0]")) is NomadOutcome.NOT_FOUND


# Against the recorded answers of a real one


def replay(stand_in: NomadStandIn, name: str, node_id: str = "") -> tuple[int, str]:
    """Put the recorded request to the agent that it was put to."""
    doc = recorded(name)
    request, agent = doc["request"], "node1" if doc["at"] == "client agent" else "server"
    body = request["body"]
    if node_id:
        body = {**body, "NodeID": node_id}
    answer = exchange(
        Endpoint.parse(stand_in.address(agent)),
        Request(request["method"], request["path"], {}, json.dumps(body).encode()),
        Deadline.after(5),
    )
    return answer.status, answer.body.decode()


@pytest.mark.parametrize(
    "name",
    [
        "client_metadata_no_meta",
        "client_metadata_put_not_allowed",
        "client_metadata_bad_key",
        "client_metadata_own_node_on_server_agent",
        "node_unknown",
        "allocation_stop_unknown",
        "allocation_restart_unknown",
    ],
)
def test_it_refuses_as_a_real_one_did(stand_in: NomadStandIn, name: str) -> None:
    doc = recorded(name)
    assert replay(stand_in, name) == (doc["status"], doc["answer"])


def test_the_meta_of_a_dead_node_can_not_be_unset(stand_in: NomadStandIn) -> None:
    node = stand_in.state.nodes["node2"]
    stand_in.state.down_after_s = 0.2
    stand_in.kill("node2")
    just_died, down = recorded("client_metadata_frozen_node"), recorded("client_metadata_node_down")
    said = replay(stand_in, "client_metadata_frozen_node", node.id)
    assert said == (just_died["status"], just_died["answer"])
    deadline = Deadline.after(5)
    while replay(stand_in, "client_metadata_node_down", node.id)[0] == 500:
        deadline.check("the node is not down")
        sleep(0.05)
    said = replay(stand_in, "client_metadata_node_down", node.id)
    assert said == (down["status"], down["answer"])


def test_its_documents_have_the_keys_of_real_ones_and_no_others(stand_in: NomadStandIn) -> None:
    stand_in.state.start_s = 0.0
    stand_in.state.register(job("db"))
    node_id = stand_in.state.nodes["node1"].id

    def ask(path: str) -> Any:
        endpoint = Endpoint.parse(stand_in.address("node1"))
        return json.loads(exchange(endpoint, Request("GET", path), Deadline.after(5)).body)

    mine = ask(f"/v1/node/{node_id}/allocations")[0]
    real = recorded("node_allocations")["answer"][0]
    pairs = [
        (ask(f"/v1/node/{node_id}"), recorded("node_read")["answer"]),
        (ask("/v1/nodes")[0], recorded("nodes_list")["answer"][0]),
        (ask("/v1/client/metadata"), recorded("client_metadata_read")["answer"]),
        (mine["TaskStates"]["t"], real["TaskStates"]["t"]),
        (mine["Job"]["TaskGroups"][0], real["Job"]["TaskGroups"][0]),
        (mine["Job"]["TaskGroups"][0]["Tasks"][0], real["Job"]["TaskGroups"][0]["Tasks"][0]),
        (mine["Job"], real["Job"]),
        (ask("/v1/agent/self"), recorded("agent_self_client")["answer"]),
    ]
    for made, recorded_one in pairs:
        assert set(made) <= set(recorded_one), set(made) - set(recorded_one)
    # Real ones leave these two out when there is nothing in them.
    assert set(mine) - set(real) <= {"NextAllocation", "PreviousAllocation"}


def test_closing_it_lets_go_who_waits_for_an_answer() -> None:
    with NomadStandIn() as stand_in:
        stand_in.freeze("node1")
        nomad = NomadAgent(stand_in.address("node1"), timeout_s=0.2)
        assert outcome_of(nomad.local_meta) is NomadOutcome.TIMEOUT
        started = monotonic()
    assert monotonic() - started < patient(5)


def test_a_meta_takes_five_to_ten_seconds_unless_told_otherwise() -> None:
    now = [100.0]
    for _ in range(20):
        state = NomadState(("node1",), now=lambda: now[0])
        node = state.nodes["node1"]
        start = now[0]
        state.set_meta(node, {"k": "v"})
        while "k" not in node.seen:
            now[0] += 0.05
            state.advance()
        assert 5.0 <= now[0] - start <= 10.1


def test_of_two_metas_on_their_way_the_last_one_counts() -> None:
    now = [0.0]
    state = NomadState(("node1",), now=lambda: now[0])
    node = state.nodes["node1"]
    state.set_meta(node, {"k": "v"})
    now[0] = 1.0
    state.set_meta(node, {"k": None})
    for now[0] in (2.0, 6.0, 9.0, 12.0):
        state.advance()
        assert "k" not in node.seen


def test_a_node_that_returns_before_anybody_noticed_has_lost_nothing() -> None:
    now = [0.0]
    state = NomadState(("node1",), down_after_s=20.0, now=lambda: now[0])
    state.kill("node1")
    now[0] = 19.0
    state.advance()
    state.start("node1")
    now[0] = 60.0
    state.advance()
    assert state.nodes["node1"].status == "ready"
    state.kill("node1")
    now[0] = 81.0
    state.advance()
    assert state.nodes["node1"].status == "down"


@contextmanager
def program(*args: str) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.fakes.nomad", *args]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


def test_as_a_program_it_is_steered_from_outside() -> None:
    server, node = (f"127.0.0.1:{port}" for port in free_ports(2))

    def steer(what: str) -> None:
        request = Request("POST", f"/stand-in/{what}")
        assert exchange(Endpoint.parse(server), request, Deadline.after(5)).status == 200

    with program(f"server={server}", f"zippy={node}", "--meta-delay", "0", "0"):
        nomad = NomadAgent(node, timeout_s=5)
        nomad.set_meta("storage_role", "primary")
        assert nomad.own_node().meta["storage_role"] == "primary"
        steer("manner/error")
        assert outcome_of(nomad.leader) is NomadOutcome.SERVER_ERROR
        steer("manner/normal")
        steer("kill/zippy")
        assert outcome_of(nomad.leader) is NomadOutcome.UNREACHABLE
        steer("start/zippy")
        assert nomad.leader() == "127.0.0.1:4647"
