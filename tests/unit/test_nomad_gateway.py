"""The gateway on a real Nomad's recorded answers, and against servers that answer wrongly or not
at all: every outcome has a name."""

from __future__ import annotations

import json
import logging
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
from responses import matchers
from urllib3.exceptions import InsecureRequestWarning

from standfast.config.load import load
from standfast.config.nomad import NomadAccess
from standfast.errors import ConfigError, NomadError, NomadOutcome
from standfast.nomad.gateway import NomadAgent, Tls
from standfast.nomad.ports import NomadGateway
from standfast.system.clock import Deadline, monotonic
from tests.fakes.rude_server import (
    Manner,
    begin,
    hang,
    hang_up,
    late,
    raw,
    refused_address,
    reply,
    reply_json,
    rude_server,
)
from tests.support.checkout import CHECKOUT
from tests.support.pace import patient

ANSWERS = CHECKOUT / "tests/contract/nomad_answers"
ADDRESS = "http://nomad.test:4646"
TOKEN = "0ddba11-5ec2e7"
SLACK_S = 0.4
ALLOC = "5267eb28-2585-9d3d-cc7a-5fd9facf8306"
NODE = "6897741b-56f7-0084-de22-0d1c0db66d3d"
OTHER = "30285beb-f6bd-55f3-c4d2-fff94d480209"
NOBODY = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Recorded:
    method: str
    path: str
    body: Any
    status: int
    answer: Any


def recorded(name: str) -> Recorded:
    doc = json.loads((ANSWERS / f"{name}.json").read_text())
    request = doc["request"]
    return Recorded(
        request["method"], request["path"], request["body"], doc["status"], doc["answer"]
    )


def recorded_id(name: str, part: int = 3) -> str:
    return recorded(name).path.split("/")[part]


class Replay:
    """Nomad's recorded answers; each one that was put up has to be asked for."""

    def __init__(self, mock: responses.RequestsMock) -> None:
        self.mock = mock

    def put(self, name: str, **changes: Any) -> Any:
        """Answer the recorded request with the recorded answer, which is returned."""
        call = replace(recorded(name), **changes)
        options: dict[str, Any] = {"json": call.answer}
        if isinstance(call.answer, str) and call.status != 200:
            options = {"body": call.answer}
        match = []
        if call.body is not None:
            match = [matchers.json_params_matcher(call.body, strict_match=False)]
        path, _, _query = call.path.partition("?")
        self.mock.add(call.method, f"{ADDRESS}{path}", status=call.status, match=match, **options)
        return call.answer


@pytest.fixture
def replay() -> Iterator[Replay]:
    with responses.RequestsMock() as mock:
        yield Replay(mock)


@pytest.fixture
def nomad() -> NomadAgent:
    return NomadAgent(ADDRESS, token=TOKEN)


@pytest.mark.parametrize("opening", ["[", '{"a]":'])
def test_a_job_that_is_nested_too_deep_hides_no_other(
    replay: Replay, nomad: NomadAgent, opening: str
) -> None:
    """Whoever may submit one writes its configuration; Go's parser follows ten thousand levels."""
    good = recorded("node_allocations")
    deep = json.loads(json.dumps(good.answer))
    closing = "]" if opening == "[" else "}"
    text = opening * 9000 + "1" + closing * 9000
    [first, *_] = deep
    for group in first["Job"]["TaskGroups"]:
        for task in group["Tasks"]:
            task["Config"] = {"deep": "@", "args": ['a ] " } b']}
    body = json.dumps(deep).replace('"@"', text)
    for _ in range(2):
        replay.mock.add(good.method, f"{ADDRESS}{good.path.partition('?')[0]}", body=body)
    allocations = nomad.allocations(good.path.split("/")[3])
    assert len(allocations) == len(good.answer)
    [task] = [
        task
        for each in allocations
        if each.id == first["ID"]
        for group in each.job["TaskGroups"]
        for task in group["Tasks"][:1]
    ][:1]
    assert task["Config"]["args"] == ['a ] " } b']


def outcome_of(call: Callable[[], object]) -> tuple[NomadOutcome, str, bool]:
    with pytest.raises(NomadError) as caught:
        call()
    error = caught.value
    assert TOKEN not in str(error)
    return error.outcome, str(error), error.maybe_applied


# What a real one said


def test_it_is_the_gateway_that_following_the_role_needs(nomad: NomadAgent) -> None:
    gateway: NomadGateway = nomad  # mypy compares them
    assert gateway


def test_the_own_meta_is_read_as_the_agent_has_it(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("client_metadata_read")
    seen = nomad.local_meta()
    assert seen.dynamic == {"storage_role": "primary"}
    assert (seen.meta["storage_role"], seen.static["class_note"]) == ("primary", "x")
    assert "storage_role" not in seen.static


def test_no_dynamic_meta_is_none(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("client_metadata_read_empty")
    assert nomad.local_meta().dynamic == {}


def test_the_own_meta_is_set_through_the_own_agent(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("client_metadata_apply")
    assert nomad.set_meta("storage_role", "primary").meta["storage_role"] == "primary"


def test_a_meta_is_unset_with_null(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("client_metadata_unset")
    node_id = "30285beb-f6bd-55f3-c4d2-fff94d480209"
    assert "storage_role" not in nomad.set_meta("storage_role", None, node_id=node_id).meta
    replay.put("client_metadata_unset", body={"NodeID": "", "Meta": {"storage_role": None}})
    assert "storage_role" not in nomad.set_meta("storage_role", None).meta


def test_an_answer_that_shows_another_meta_is_not_believed(
    replay: Replay, nomad: NomadAgent
) -> None:
    answer = recorded("client_metadata_read_empty").answer
    replay.put("client_metadata_apply", answer=answer)
    assert outcome_of(lambda: nomad.set_meta("storage_role", "primary")) == (
        NomadOutcome.GARBLED,
        "Nomad at nomad.test:4646, setting this node's meta storage_role to primary: not an "
        "answer of Nomad (ValueError: storage_role is None after that). Whether it was applied is "
        "unknown: look before repeating it. Check that the address is a Nomad agent's HTTP API.",
        True,
    )


def test_the_own_agent_says_which_node_it_is(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("agent_self_client")
    agent = nomad.agent()
    assert (agent.region, agent.node_id, agent.server) == ("global", NODE, False)
    assert (agent.rpc_address, agent.failover_heartbeat_ttl_s) == ("", None)
    assert agent.version.startswith("2.0.6")


def test_a_server_says_how_long_a_change_of_leader_hides_a_dead_node(
    replay: Replay, nomad: NomadAgent
) -> None:
    replay.put("agent_self_server")
    agent = nomad.agent()
    assert (agent.server, agent.node_id) == (True, "")
    assert agent.rpc_address.startswith("127.0.0.1:")
    assert agent.failover_heartbeat_ttl_s == 300.0


def test_the_own_node_is_what_the_servers_know_of_it(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("agent_self_client")
    replay.put("node_read")
    node = nomad.own_node()
    assert (node.id, node.name, node.status, node.eligible) == (NODE, "node1", "ready", True)
    assert node.meta["storage_role"] == "primary"
    assert node.host_volumes == {"services": "/srv/nomad/vol1"}
    assert (node.datacenter, node.pool, node.node_class, node.draining) == (
        "dc1",
        "default",
        "",
        False,
    )
    assert node.attributes["kernel.name"] == "linux"


def test_an_agent_without_a_client_has_no_node(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("agent_self_server")
    outcome, text, _ = outcome_of(nomad.own_node)
    assert outcome is NomadOutcome.NOT_FOUND
    assert "runs no client" in text


def test_a_dead_node_keeps_its_meta(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("node_read_down")
    node = nomad.node(OTHER)
    assert (node.status, node.eligible, node.meta["storage_role"]) == ("down", False, "primary")


def test_nodes_are_read_one_by_one_for_the_list_has_no_meta(
    replay: Replay, nomad: NomadAgent
) -> None:
    replay.put("nodes_list")
    replay.put("node_read")
    replay.put("node_read_down")
    assert [node.name for node in nomad.nodes()] == ["node1", "node2"]


def test_only_the_named_nodes_are_read(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("nodes_list")
    replay.put("node_read")
    assert [node.id for node in nomad.nodes(["node1", "node9"])] == [NODE]


def test_allocations_come_with_their_job(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("node_allocations")
    allocations = nomad.allocations(NODE)
    assert [allocation.job_id for allocation in allocations] == ["db", "dbjob", "free"]
    first = allocations[0]
    assert (first.namespace, first.group, first.desired, first.client_status) == (
        "default",
        "g",
        "run",
        "running",
    )
    assert not first.over
    assert [(task.name, task.state, task.failed) for task in first.tasks] == [
        ("t", "running", False),
        ("u", "running", False),
    ]
    assert first.tasks[0].started_at.startswith("2026-11-22T")
    assert first.job["TaskGroups"][0]["Constraints"][0]["RTarget"] == "primary"
    assert first.next_id == ""


def test_allocations_of_other_namespaces_are_left_out(replay: Replay) -> None:
    replay.put("node_allocations")
    assert NomadAgent(ADDRESS, namespace="web").allocations(NODE) == ()


def test_one_allocation_is_read_whole(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("allocation_read")
    allocation = nomad.allocation(ALLOC)
    assert (allocation.id, allocation.node_id, allocation.job["ID"]) == (ALLOC, NODE, "free")


@pytest.mark.parametrize(
    ("client_status", "over"),
    [("complete", True), ("failed", True), ("lost", True), ("running", False), ("pending", False),
     ("unknown", False)],
)  # fmt: skip
def test_an_allocation_is_over_when_nothing_of_it_runs(
    replay: Replay, nomad: NomadAgent, client_status: str, over: bool
) -> None:
    answer = {**recorded("allocation_read").answer, "ClientStatus": client_status}
    replay.put("allocation_read", answer=answer)
    assert nomad.allocation(ALLOC).over is over


def test_the_leader_is_an_address(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("status_leader")
    assert nomad.leader() == "127.0.0.1:14647"


def test_a_blocked_evaluation_says_why(replay: Replay, nomad: NomadAgent) -> None:
    blocked, complete = recorded("job_evaluations_blocked").answer
    for doc in (blocked, complete):
        replay.mock.add("GET", f"{ADDRESS}/v1/evaluation/{doc['ID']}", json=doc)
    first = nomad.evaluation(complete["ID"])
    assert (first.status, first.blocked_id, first.job_id) == ("complete", blocked["ID"], "late")
    second = nomad.evaluation(first.blocked_id)
    assert (second.status, second.blocked_id) == ("blocked", "")
    assert second.unplaced == {"g": "of 2 nodes, 2 don't meet ${meta.storage_role} = primary"}


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ({"NodesEvaluated": 0}, "no node was eligible"),
        (
            {"NodesEvaluated": 3, "ConstraintFiltered": {"b": 1, "a": 1},
             "DimensionExhausted": {"memory": 1}},
            "of 3 nodes, 1 don't meet a, 1 don't meet b, 1 have no room for memory",
        ),
        ({"NodesEvaluated": 1, "QuotaExhausted": ["q"]}, "of 1 nodes, the quota q is used up"),
        ({"NodesEvaluated": 2, "ClassFiltered": None}, "of 2 nodes, none fits"),
    ],
)  # fmt: skip
def test_what_found_no_node_is_told_in_one_sentence(
    replay: Replay, nomad: NomadAgent, metric: dict[str, Any], said: str
) -> None:
    doc = {**recorded("job_evaluations_blocked").answer[0], "FailedTGAllocs": {"g": metric}}
    replay.mock.add("GET", f"{ADDRESS}/v1/evaluation/e", json=doc)
    assert nomad.evaluation("e").unplaced == {"g": said}


def test_jobs_are_listed_in_the_namespaces_that_are_looked_after(
    replay: Replay, nomad: NomadAgent
) -> None:
    rows = [
        {"ID": "b", "Namespace": "web", "Type": "service", "Status": "running", "Stop": False},
        {"ID": "a", "Type": "system", "Status": "dead", "Stop": True},
    ]
    match = [matchers.query_param_matcher({"namespace": "*"})]
    replay.mock.add("GET", f"{ADDRESS}/v1/jobs", json=rows, match=match)
    assert [(job.namespace, job.id, job.stopped) for job in nomad.jobs()] == [
        ("default", "a", True),
        ("web", "b", False),
    ]


def test_a_jobs_id_with_slashes_stays_one_part_of_the_path(
    replay: Replay, nomad: NomadAgent
) -> None:
    url = re.compile(rf"{ADDRESS}/v1/job/nightly%2Fperiodic-1(/allocations)?\?namespace=web$")
    replay.mock.add("GET", url, json={"ID": "nightly/periodic-1"})
    assert nomad.job("web", "nightly/periodic-1") == {"ID": "nightly/periodic-1"}
    stub = dict(recorded("allocation_read").answer)
    del stub["Job"]
    replay.mock.replace("GET", url, json=[stub])
    assert [
        allocation.job for allocation in nomad.job_allocations("web", "nightly/periodic-1")
    ] == [{}]


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_would_be_another_path_is_no_id(nomad: NomadAgent, name: str) -> None:
    with responses.RequestsMock():
        assert outcome_of(lambda: nomad.node(name))[0] is NomadOutcome.BAD_REQUEST


@pytest.mark.parametrize(
    ("name", "eligible"),
    [("node_eligibility_dead_node", False), ("node_eligibility_back", True)],
)
def test_a_node_becomes_what_it_was_told_to_be(
    replay: Replay, nomad: NomadAgent, name: str, eligible: bool
) -> None:
    replay.put(name, method="POST")  # as the library has it; Nomad takes either
    nomad.set_eligible(OTHER, eligible)


def test_stopping_gives_the_evaluation(replay: Replay, nomad: NomadAgent) -> None:
    answer = replay.put("allocation_stop", method="POST")
    alloc = recorded("allocation_stop").path.split("/")[3]
    assert nomad.stop(alloc) == answer["EvalID"]


def test_a_restart_is_one_of_all_tasks(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("allocation_restart_all")  # it matches {"AllTasks": true}
    nomad.restart(ALLOC)


def test_a_signal_goes_to_one_task_or_to_all(replay: Replay, nomad: NomadAgent) -> None:
    for task in ("t", ""):
        body = {"Signal": "SIGHUP", "Task": task}
        replay.put("allocation_signal", body=body, status=200, answer={"Index": 0})
    nomad.signal(ALLOC, "t", "SIGHUP")
    nomad.signal(ALLOC, None, "SIGHUP")


# What it refused


@pytest.mark.parametrize(
    ("name", "call", "outcome", "words", "maybe"),
    [
        ("acl_weak_client_metadata", lambda n: n.set_meta("storage_role", "primary"),
         NomadOutcome.DENIED, "403 'Permission denied'. Check the ACL token", False),
        ("acl_weak_eligibility", lambda n: n.set_eligible(OTHER, False),
         NomadOutcome.DENIED, "403", False),
        ("acl_weak_allocation_stop", lambda n: n.stop(recorded_id("acl_weak_allocation_stop")),
         NomadOutcome.DENIED, "403", False),
        ("acl_weak_allocation_restart",
         lambda n: n.restart(recorded_id("acl_weak_allocation_restart", 4)),
         NomadOutcome.DENIED, "403", False),
        ("node_unknown", lambda n: n.node(NOBODY),
         NomadOutcome.NOT_FOUND, "404 'node not found'", False),
        ("allocation_stop_unknown", lambda n: n.stop(NOBODY),
         NomadOutcome.NOT_FOUND, "404 'allocation not found'", False),
        ("allocation_restart_unknown", lambda n: n.restart(NOBODY),
         NomadOutcome.NOT_FOUND, "404 'Unknown allocation", False),
        ("client_metadata_own_node_on_server_agent", lambda n: n.set_meta("storage_role", None),
         NomadOutcome.BAD_REQUEST, "400 'No local Node and node_id not provided'", False),
        ("client_metadata_bad_key", lambda n: n.set_meta("bad key!", "x"),
         NomadOutcome.BAD_REQUEST, "must be valid dotted hcl identifiers", False),
        ("allocation_signal", lambda n: n.signal(ALLOC, "t", "SIGHUP"),
         NomadOutcome.SERVER_ERROR, "500 'Task not running'. Check", False),
    ],
)  # fmt: skip
def test_a_refusal_has_a_name_and_what_nomad_said(
    replay: Replay,
    nomad: NomadAgent,
    name: str,
    call: Callable[[NomadAgent], object],
    outcome: NomadOutcome,
    words: str,
    maybe: bool,
) -> None:
    method = "POST" if recorded(name).method == "PUT" else recorded(name).method
    replay.put(name, method=method)
    got, text, maybe_applied = outcome_of(lambda: call(nomad))
    assert (got, maybe_applied) == (outcome, maybe)
    assert re.search(words, text)
    assert text.startswith("Nomad at nomad.test:4646, ")


def test_a_token_that_sees_nothing_gets_an_empty_list(replay: Replay, nomad: NomadAgent) -> None:
    replay.put("acl_weak_node_allocations")
    assert nomad.allocations(OTHER) == ()


@pytest.mark.parametrize(
    ("status", "body", "outcome", "maybe"),
    [
        (500, "No cluster leader", NomadOutcome.SERVER_ERROR, False),
        (500, "rpc error: EOF", NomadOutcome.SERVER_ERROR, True),
        (
            500,
            "rpc error: failed to get conn: dial tcp 127.0.0.1:1: connect: connection refused",
            NomadOutcome.SERVER_ERROR,
            False,
        ),
        (500, "rpc error: node not found", NomadOutcome.NOT_FOUND, False),
        (500, "Task not found", NomadOutcome.NOT_FOUND, False),
        (500, f'rpc error: Unknown allocation "{NOBODY}"', NomadOutcome.NOT_FOUND, False),
        (
            500,
            "rpc error: restart of an alloc that should not run",
            NomadOutcome.SERVER_ERROR,
            False,
        ),
        (500, "it failed: file not found: x", NomadOutcome.SERVER_ERROR, True),
        (503, "", NomadOutcome.SERVER_ERROR, True),
        (429, "", NomadOutcome.SERVER_ERROR, False),
        (404, "No path to node", NomadOutcome.NOT_FOUND, False),
        (404, "404 page not found", NomadOutcome.GARBLED, False),
        (404, "<html>", NomadOutcome.GARBLED, False),
        (404, "", NomadOutcome.GARBLED, False),
        (405, "Invalid method", NomadOutcome.BAD_REQUEST, False),
        (401, "", NomadOutcome.DENIED, False),
        (409, "", NomadOutcome.BAD_REQUEST, False),
        (204, "", NomadOutcome.GARBLED, True),
        (202, "{}", NomadOutcome.GARBLED, True),
        (302, "", NomadOutcome.GARBLED, True),
    ],
)
def test_each_status_of_a_write_has_its_outcome(
    replay: Replay, nomad: NomadAgent, status: int, body: str, outcome: NomadOutcome, maybe: bool
) -> None:
    replay.mock.add(
        "POST",
        f"{ADDRESS}/v1/node/{NODE}/eligibility",
        body=body,
        status=status,
        headers={"Location": "http://elsewhere.test/"},
    )
    got, _, maybe_applied = outcome_of(lambda: nomad.set_eligible(NODE, False))
    assert (got, maybe_applied) == (outcome, maybe)


@pytest.mark.parametrize(
    ("error", "outcome", "maybe"),
    [
        (requests.ConnectionError("refused"), NomadOutcome.UNREACHABLE, True),
        (requests.ConnectTimeout("no connection"), NomadOutcome.TIMEOUT, False),
        (requests.ReadTimeout("no answer"), NomadOutcome.TIMEOUT, True),
        (requests.TooManyRedirects("round"), NomadOutcome.UNREACHABLE, True),
    ],
)
def test_what_the_library_could_raise_itself_has_an_outcome(
    replay: Replay, nomad: NomadAgent, error: Exception, outcome: NomadOutcome, maybe: bool
) -> None:
    replay.mock.add("POST", f"{ADDRESS}/v1/allocation/a/stop", body=error)
    got, _, maybe_applied = outcome_of(lambda: nomad.stop("a"))
    assert (got, maybe_applied) == (outcome, maybe)


GARBLED: list[Any] = [
    None,
    7,
    "x",
    [],
    [7],
    {},
    {"ID": 7},
    {"ID": ""},
    {"Dynamic": {}},
    {"Dynamic": {"a": 1}, "Meta": {}},
]


@pytest.mark.parametrize("answer", GARBLED, ids=repr)
def test_a_foreign_shape_is_never_an_answer(replay: Replay, nomad: NomadAgent, answer: Any) -> None:
    calls: list[tuple[str, str, Callable[[], object], Any]] = [
        ("GET", "/v1/agent/self", nomad.agent, ...),
        ("GET", "/v1/client/metadata", nomad.local_meta, ...),
        ("GET", "/v1/node/n", lambda: nomad.node("n"), ...),
        ("GET", "/v1/nodes", nomad.nodes, []),
        ("GET", "/v1/node/n/allocations", lambda: nomad.allocations("n"), []),
        ("GET", "/v1/allocation/a", lambda: nomad.allocation("a"), ...),
        ("GET", "/v1/jobs", nomad.jobs, []),
        ("GET", "/v1/job/j", lambda: nomad.job("d", "j"), ...),
        ("GET", "/v1/job/j/allocations", lambda: nomad.job_allocations("d", "j"), []),
        ("GET", "/v1/evaluation/e", lambda: nomad.evaluation("e"), ...),
        ("GET", "/v1/status/leader", nomad.leader, "x"),
        ("POST", "/v1/allocation/a/stop", lambda: nomad.stop("a"), ...),
    ]
    for method, path, call, fine in calls:
        replay.mock.add(method, f"{ADDRESS}{path}", json=answer)
        if answer == fine:
            call()
        else:
            assert outcome_of(call)[0] is NomadOutcome.GARBLED, path


# Servers that don't answer as they should


@pytest.mark.parametrize(
    ("manner", "outcome", "words"),
    [
        pytest.param(None, NomadOutcome.UNREACHABLE, "refused", id="refused"),
        pytest.param(hang, NomadOutcome.TIMEOUT, r"within 0\.[45] s", id="hung"),
        pytest.param(
            begin(b"HTTP/1.1 200 OK\r\nX: "), NomadOutcome.TIMEOUT, "within", id="hung in the head"
        ),
        pytest.param(
            begin(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n["),
            NomadOutcome.TIMEOUT,
            "within",
            id="hung in the body",
        ),
        pytest.param(
            raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n["),
            NomadOutcome.GARBLED,
            "no whole HTTP",
            id="cut off",
        ),
        pytest.param(hang_up, NomadOutcome.GARBLED, "closed without an answer", id="closed"),
        pytest.param(raw(b"SSH-2.0-x\r\n"), NomadOutcome.GARBLED, "no whole HTTP", id="ssh"),
        pytest.param(reply(b"<html>"), NomadOutcome.GARBLED, "not an answer", id="html"),
        pytest.param(reply(b"[" * 100_000), NomadOutcome.GARBLED, "not an answer", id="nested"),
        pytest.param(reply(b"\xff\xfe"), NomadOutcome.GARBLED, "not an answer", id="not UTF-8"),
    ],
)
def test_an_unusable_server_has_a_name_within_the_timeout(
    manner: Manner | None, outcome: NomadOutcome, words: str
) -> None:
    with ExitStack() as stack:
        if manner is None:
            address = stack.enter_context(refused_address())
        else:
            address = stack.enter_context(rude_server(manner)).address
        nomad = NomadAgent(address, token=TOKEN, timeout_s=0.5)
        started = monotonic()
        got, text, maybe = outcome_of(nomad.local_meta)
        assert monotonic() - started < 0.5 + patient(SLACK_S)
    assert (got, maybe) == (outcome, False)
    assert re.search(words, text)


def test_a_write_that_never_left_was_not_applied() -> None:
    with refused_address() as address:
        outcome, _, maybe = outcome_of(lambda: NomadAgent(address).stop("a"))
    assert (outcome, maybe) == (NomadOutcome.UNREACHABLE, False)


def test_a_hung_agent_costs_a_call_of_several_requests_one_timeout() -> None:
    with rude_server(hang) as server:
        nomad = NomadAgent(server.address, timeout_s=0.4)
        for call in (nomad.nodes, nomad.own_node):
            started = monotonic()
            assert outcome_of(call)[0] is NomadOutcome.TIMEOUT
            assert monotonic() - started < 0.4 + patient(SLACK_S)


def test_a_restart_that_takes_its_time_is_waited_for_until_its_deadline() -> None:
    with rude_server(late(0.6, reply_json({"Index": 0}))) as server:
        nomad = NomadAgent(server.address, timeout_s=0.2)
        nomad.restart("a", deadline=Deadline.after(patient(5.0)))
        outcome, _, maybe = outcome_of(lambda: nomad.restart("a"))
    assert (outcome, maybe) == (NomadOutcome.TIMEOUT, True)


def test_nothing_is_asked_after_the_deadline() -> None:
    with rude_server(reply_json("x")) as server:
        gone = Deadline.after(0)
        outcome, text, maybe = outcome_of(
            lambda: NomadAgent(server.address).restart("a", deadline=gone)
        )
        assert server.requests == []
    assert (outcome, maybe) == (NomadOutcome.TIMEOUT, False)
    assert "the deadline had passed before" in text


def test_region_and_token_go_with_every_request_and_nothing_of_the_environment_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "NOMAD_ADDR": "http://wrong.test:1",
        "NOMAD_TOKEN": "wrong-token",
        "NOMAD_REGION": "wrong-region",
        "NOMAD_NAMESPACE": "wrong-namespace",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    with rude_server(reply_json("127.0.0.1:4647")) as server:
        NomadAgent(server.address, token=TOKEN, region="east").leader()
        NomadAgent(server.address).leader()
        with_all, with_none = (request.decode() for request in server.requests)
    assert with_all.startswith("GET /v1/status/leader?region=east HTTP/1.1\r\n")
    assert f"X-Nomad-Token: {TOKEN}\r\n" in with_all
    assert with_none.startswith("GET /v1/status/leader HTTP/1.1\r\n")
    assert "wrong" not in with_all + with_none
    assert "X-Nomad-Token" not in with_none


def test_the_token_is_in_no_message_log_or_chained_exception(
    caplog: pytest.LogCaptureFixture,
) -> None:
    echo = reply(f"your token {TOKEN} is bad".encode(), status="403 Forbidden")
    caplog.set_level(logging.DEBUG)
    for manner in (echo, hang_up, reply(b"<html>" + TOKEN.encode())):
        with rude_server(manner) as server, pytest.raises(NomadError) as caught:
            NomadAgent(server.address, token=TOKEN).leader()
        assert TOKEN not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
    assert TOKEN not in caplog.text


def test_the_library_is_imported_by_who_asks_nomad_something_only() -> None:
    code = (
        "import sys; from standfast.nomad.gateway import NomadAgent; NomadAgent(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('nomad', 'requests')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr


# TLS and the configuration


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate for client.global.nomad, and its key."""
    where = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", where / "key.pem", "-out", where / "cert.pem", "-days", "2",
         "-subj", "/CN=x", "-addext", "subjectAltName=DNS:client.global.nomad"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return where


@contextmanager
def tls_server(authority: Path, *, client_certificates: bool = False) -> Iterator[str]:
    """A TLS server that answers every request with a leader; its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "cert.pem", authority / "key.pem")
    if client_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority / "cert.pem")
    body = b'"127.0.0.1:4647"'
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                plain.settimeout(5)
                with context.wrap_socket(plain, server_side=True) as link:
                    link.recv(65536)
                    link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n" + body)
            except OSError:
                plain.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


@pytest.fixture
def secure_address(authority: Path) -> Iterator[str]:
    with tls_server(authority) as address:
        yield address


def test_the_own_certificate_is_shown_where_nomad_asks_for_one(authority: Path) -> None:
    known = Tls(ca_cert=authority / "cert.pem", server_name="client.global.nomad")
    shown = replace(known, client_cert=authority / "cert.pem", client_key=authority / "key.pem")
    with tls_server(authority, client_certificates=True) as address:
        assert NomadAgent(address, tls=shown).leader() == "127.0.0.1:4647"
        outcome, _, _ = outcome_of(NomadAgent(address, tls=known).leader)
    assert outcome in (NomadOutcome.UNREACHABLE, NomadOutcome.GARBLED)


def test_no_other_authority_is_trusted_beside_the_configured_one(
    secure_address: str, authority: Path
) -> None:
    tls = Tls(ca_cert=authority / "cert.pem", server_name="client.global.nomad")
    nomad = NomadAgent(secure_address, tls=tls)
    assert nomad.leader() == "127.0.0.1:4647"
    context = nomad._access().tls
    assert context is not None
    assert len(context.get_ca_certs()) == 1


def test_a_certificate_of_nobody_known_is_refused(secure_address: str) -> None:
    outcome, text, _ = outcome_of(NomadAgent(secure_address).leader)
    assert outcome is NomadOutcome.UNREACHABLE
    assert "TLS handshake failed" in text


def test_a_certificate_for_another_name_is_refused(secure_address: str, authority: Path) -> None:
    tls = Tls(ca_cert=authority / "cert.pem")
    _, text, _ = outcome_of(NomadAgent(secure_address, tls=tls).leader)
    assert "TLS handshake failed" in text


def test_the_name_of_the_certificate_can_be_given(secure_address: str, authority: Path) -> None:
    tls = Tls(ca_cert=authority / "cert.pem", server_name="client.global.nomad")
    assert NomadAgent(secure_address, tls=tls).leader() == "127.0.0.1:4647"


@pytest.mark.parametrize("by", ["configuration", "variable"])
def test_the_name_of_the_certificate_is_the_configured_one(
    secure_address: str, authority: Path, tmp_path: Path, by: str
) -> None:
    lines = [f'address = "{secure_address}"', f'ca_cert = "{authority}/cert.pem"']
    environ = {"NOMAD_TLS_SERVER_NAME": "client.global.nomad"}
    if by == "configuration":
        lines.append('tls_server_name = "client.global.nomad"')
        environ = {"NOMAD_TLS_SERVER_NAME": "wrong.global.nomad"}
    config = load(_config(tmp_path, *lines))
    assert NomadAgent.from_config(config, environ=environ).leader() == "127.0.0.1:4647"


def test_only_nomads_own_variable_leaves_the_certificate_unverified(
    secure_address: str, tmp_path: Path
) -> None:
    config = load(_config(tmp_path, f'address = "{secure_address}"'))
    strict = NomadAgent.from_config(config, environ={"NOMAD_SKIP_VERIFY": "false"})
    assert outcome_of(strict.leader)[0] is NomadOutcome.UNREACHABLE
    lax = NomadAgent.from_config(config, environ={"NOMAD_SKIP_VERIFY": "true"})
    with pytest.warns(InsecureRequestWarning):
        assert lax.leader() == "127.0.0.1:4647"


def _config(directory: Path, *lines: str) -> Path:
    file = directory / "data-services.toml"
    head = 'cluster = "alo"\nnode = "z"\n[nodes.z]\naddress = "192.168.1.2"\n[nomad]\n'
    file.write_text(head + "\n".join(lines) + "\n")
    return file


def test_what_the_configuration_leaves_empty_comes_from_nomads_variables(tmp_path: Path) -> None:
    config = load(_config(tmp_path))
    with rude_server(reply_json("127.0.0.1:4647")) as server:
        environ = {
            "NOMAD_ADDR": f"http://{server.address}",
            "NOMAD_TOKEN": TOKEN,
            "NOMAD_REGION": "east",
        }
        NomadAgent.from_config(config, environ=environ).leader()
        (request,) = server.requests
    assert request.startswith(b"GET /v1/status/leader?region=east ")
    assert f"X-Nomad-Token: {TOKEN}\r\n".encode() in request


def test_the_configuration_goes_before_nomads_variables(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    token_file.chmod(0o600)
    environ = {
        "NOMAD_ADDR": "http://wrong.test:1",
        "NOMAD_TOKEN": "wrong",
    }
    with rude_server(reply_json("127.0.0.1:4647")) as server:
        lines = (f'address = "{server.address}"', f'token_file = "{token_file}"')
        NomadAgent.from_config(load(_config(tmp_path, *lines)), environ=environ).leader()
        (request,) = server.requests
    assert f"X-Nomad-Token: {TOKEN}\r\n".encode() in request


def test_the_defaults_are_the_own_agent_and_five_seconds(tmp_path: Path) -> None:
    config = load(_config(tmp_path))
    nomad = NomadAgent.from_config(config, environ={})
    assert nomad.timeout_s == NomadAccess().request_timeout == 5.0
    assert NomadAgent.from_config(config, timeout_s=9, environ={}).timeout_s == 9
    assert str(nomad._access().endpoint) == "127.0.0.1:4646"


@pytest.mark.parametrize(
    ("mode", "content", "said"),
    [
        (0o644, "t", "nomad.token_file = .* has mode 0644: others can read the token"),
        (0o600, " \n", "nomad.token_file = .* is empty"),
        (0o600, "a b", "The Nomad ACL token holds blanks"),
        (None, "", "nomad.token_file = .* can't be read.*set NOMAD_TOKEN"),
    ],
)
def test_an_unusable_token_file_is_refused(
    tmp_path: Path, mode: int | None, content: str, said: str
) -> None:
    token_file = tmp_path / "token"
    if mode is not None:
        token_file.write_text(content)
        token_file.chmod(mode)
    config = load(_config(tmp_path, f'token_file = "{token_file}"'))
    with pytest.raises(ConfigError, match=said):
        NomadAgent.from_config(config, environ={})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"NOMAD_ADDR": "unix:///run/nomad.sock"}, "Nomad address .*neither http nor https"),
        ({"NOMAD_ADDR": "nomad"}, "Nomad address 'nomad': the port is missing"),
        ({"NOMAD_CACERT": "/none.pem"}, r"nomad.ca_cert = '/none.pem' can't be used"),
        (
            {"NOMAD_ADDR": "http://u:p@h:1"},
            "Nomad address: user names.*token in nomad.token_file",
        ),
    ],
)
def test_unusable_variables_are_refused(tmp_path: Path, environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        NomadAgent.from_config(load(_config(tmp_path)), environ=environ)
