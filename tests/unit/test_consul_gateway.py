"""The gateway against servers that answer wrongly, late or not at all: every outcome has a name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import consul
import pytest

from standfast.config.consul import ConsulAccess
from standfast.config.model import Config
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
from standfast.consul.values import Registration
from standfast.errors import (
    ConfigError,
    ConsulDenied,
    ConsulError,
    ConsulGarbled,
    ConsulLimited,
    ConsulNoQuorum,
    ConsulTimedOut,
    ConsulUnreachable,
)
from standfast.system import environment
from standfast.system.clock import Deadline, monotonic
from tests.fakes.rude_server import (
    Manner,
    RudeServer,
    drip,
    hang,
    hang_up,
    late,
    raw,
    refused_address,
    reply,
    reply_json,
    rude_server,
)
from tests.support.configs import config_of
from tests.support.pace import patient

TOKEN = "0ddba11-5ec2e7"
ENTRY = {"Key": "k", "Value": "djE=", "ModifyIndex": 7, "Flags": 0}
FOUND = reply_json([ENTRY])
WRITTEN = reply_json({"Results": [{"KV": {"Key": "k", "ModifyIndex": 9}}], "Errors": None})
NO_LEADER = reply(b"rpc error making call: No cluster leader", status="500 Oops")
HTML = reply(b"<html><body>It works!</body></html>")
SLACK_S = 0.4


class Field:
    """Servers by their manners, in the order of the addresses; `None` refuses connections."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.servers: list[RudeServer] = []

    def gateway(self, *manners: Manner | None, timeout_s: float = 2.0) -> ConsulGateway:
        addresses = []
        for manner in manners:
            if manner is None:
                addresses.append(self._stack.enter_context(refused_address()))
            else:
                server = self._stack.enter_context(rude_server(manner))
                self.servers.append(server)
                addresses.append(server.address)
        return ConsulGateway(addresses, token=TOKEN, timeout_s=timeout_s)

    @property
    def asked(self) -> list[int]:
        """How many requests each server got."""
        return [len(server.requests) for server in self.servers]


@pytest.fixture
def field() -> Iterator[Field]:
    with ExitStack() as stack:
        yield Field(stack)


def test_the_library_is_the_one_this_run_is_about() -> None:
    wanted = os.environ.get("STANDFAST_TEST_CONSUL_LIBRARY")
    if wanted:
        assert Path(consul.__file__).is_relative_to(wanted)


# One address, reads

# As Consul 1.8 and 1.22 word them: of the agent, of a server, of the leader alone.
LIMITED = (
    reply(b"", status="429 Too Many Requests"),
    reply(
        b"rate limit exceeded, try again later or against a different server",
        status="429 Too Many Requests",
    ),
    reply(
        b"rate limit exceeded for operation that can only be performed by the leader, try again "
        b"later",
        status="503 Service Unavailable",
    ),
)
DENIED = reply(b"Permission denied", status="403 Forbidden")
READ_OUTCOMES = [
    pytest.param(None, ConsulUnreachable, "refused", id="refused"),
    pytest.param(hang, ConsulTimedOut, r"no whole answer within 0\.\d s", id="hung"),
    pytest.param(
        drip(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        ConsulTimedOut,
        r"no whole answer within 0\.\d s",
        id="drip head",
    ),
    pytest.param(
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"["),
        ConsulTimedOut,
        r"no whole answer within 0\.\d s",
        id="drip body",
    ),
    pytest.param(hang_up, ConsulGarbled, "closed without an answer", id="closed"),
    pytest.param(NO_LEADER, ConsulNoQuorum, "500 .*No cluster leader", id="no leader"),
    pytest.param(reply(b"x", status="503 Busy"), ConsulNoQuorum, "503", id="503"),
    *(
        pytest.param(manner, ConsulLimited, "limits", id=f"limit {number}")
        for number, manner in enumerate(LIMITED)
    ),
    pytest.param(DENIED, ConsulDenied, "403 'Permission denied'.*policy", id="403"),
    pytest.param(HTML, ConsulGarbled, "not an answer of Consul", id="html"),
    pytest.param(
        reply(b"<html>", status="404 Not Found", headers={}),
        ConsulGarbled,
        "no X-Consul-Index",
        id="a 404 that is not Consul's",
    ),
    pytest.param(
        reply(json.dumps([ENTRY]).encode(), headers={}),
        ConsulGarbled,
        "no X-Consul-Index",
        id="no index header",
    ),
    pytest.param(
        reply(json.dumps([ENTRY]).encode(), headers={"X-Consul-Index": "seven"}),
        ConsulGarbled,
        "no X-Consul-Index",
        id="index not a number",
    ),
    pytest.param(
        reply(
            json.dumps([ENTRY]).encode(),
            headers={"X-Consul-Index": "7", "X-Consul-KnownLeader": "false"},
        ),
        ConsulNoQuorum,
        "without knowing a leader",
        id="leader not known",
    ),
    pytest.param(reply(b'[{"Key": "k", "Val'), ConsulGarbled, "not an answer", id="truncated"),
    pytest.param(reply(b"[" * 100_000), ConsulGarbled, "not an answer", id="nested"),
    pytest.param(reply(b"\xff\xfe"), ConsulGarbled, "not an answer", id="not UTF-8"),
    pytest.param(
        reply(status="302 Found", headers={"Location": "http://127.0.0.1:1/"}),
        ConsulGarbled,
        "unexpected 302",
        id="redirect",
    ),
    pytest.param(reply_json({"Key": "k"}), ConsulGarbled, "not an answer", id="an object"),
    pytest.param(reply_json("k"), ConsulGarbled, "not an answer", id="a text"),
    pytest.param(reply_json([7]), ConsulGarbled, "not an answer", id="a list of numbers"),
    pytest.param(reply_json([{"Key": "k"}]), ConsulGarbled, "not an answer", id="fields missing"),
    pytest.param(
        reply_json([{**ENTRY, "ModifyIndex": "7"}]), ConsulGarbled, "not an", id="index a text"
    ),
    pytest.param(
        reply_json([{**ENTRY, "ModifyIndex": 0}]), ConsulGarbled, "ModifyIndex", id="index 0"
    ),
    pytest.param(reply_json([{**ENTRY, "Value": 7}]), ConsulGarbled, "not an", id="value a number"),
    pytest.param(reply_json([{**ENTRY, "Key": "j"}]), ConsulGarbled, "the key 'j'", id="wrong key"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\n"), ConsulGarbled, "no whole|not an|no X", id="cut head"),
]


@pytest.mark.parametrize(("manner", "kind", "words"), READ_OUTCOMES)
def test_an_unusable_answer_to_a_read_has_a_name(
    field: Field, manner: Manner | None, kind: type[ConsulError], words: str
) -> None:
    gateway = field.gateway(manner, timeout_s=0.5)
    started = monotonic()
    with pytest.raises(kind, match=words) as caught:
        gateway.get("k")
    assert monotonic() - started < 0.5 + patient(SLACK_S)
    assert type(caught.value) is kind
    assert not caught.value.maybe_applied
    assert str(caught.value).startswith("Consul, reading the key k: 127.0.0.1:")


def test_a_key_that_exists_is_an_entry(field: Field) -> None:
    assert field.gateway(FOUND).get("k") == Entry("k", b"v1", 7)


def test_an_empty_value_is_null_in_consul_and_empty_here(field: Field) -> None:
    assert field.gateway(reply_json([{**ENTRY, "Value": None}])).get("k") == Entry("k", b"", 7)


def test_a_404_with_the_headers_of_consul_is_a_missing_key(field: Field) -> None:
    assert field.gateway(reply(status="404 Not Found")).get("k") is None


def test_keys_outside_the_prefix_are_not_believed(field: Field) -> None:
    with pytest.raises(ConsulGarbled, match="keys outside 'other/'"):
        field.gateway(FOUND).get_many("other/")


def trees(*names: str, **changes: Any) -> Manner:
    """The answer to a transaction that reads: it tells a leader, and no index."""
    results = [{"KV": {**ENTRY, "Key": name}} for name in names]
    document = {"Results": results, "Errors": None, "Index": 0, **changes}
    return reply(json.dumps(document).encode(), headers={"X-Consul-KnownLeader": "true"})


def test_several_keys_are_read_at_one_point_in_time_and_nothing_else(field: Field) -> None:
    manner = trees("s/v/epoch", "s/v/epoch-of-another", "s/v/history/", "s/v/history/7")
    gateway = field.gateway(manner)
    read = gateway.read(["s/v/epoch", "s/v/leader"], folders=["s/v/history/"])
    assert read == {
        "s/v/epoch": Entry("s/v/epoch", b"v1", 7),
        "s/v/leader": None,
        "s/v/history/7": Entry("s/v/history/7", b"v1", 7),
    }
    (request,) = field.servers[0].requests
    assert request.startswith(b"PUT /v1/txn?consistent=1 ")
    asked = json.loads(request.partition(b"\r\n\r\n")[2])
    names = ("s/v/epoch", "s/v/leader", "s/v/history/")
    assert asked == [{"KV": {"Verb": "get-tree", "Key": name}} for name in names]


@pytest.mark.parametrize(
    ("manner", "kind", "words"),
    [
        pytest.param(
            reply(b"{}", headers={}), ConsulGarbled, "no X-Consul-KnownLeader", id="not Consul's"
        ),
        pytest.param(trees("s/w"), ConsulGarbled, "keys outside", id="another key"),
        pytest.param(trees(Results=None), None, "", id="nothing found"),
        pytest.param(trees(Errors=[{"What": "x"}]), ConsulGarbled, "not an", id="with errors"),
        pytest.param(
            reply(
                b'{"Errors":[{"OpIndex":0,"What":"no such verb"}]}',
                status="409 Conflict",
                headers={"X-Consul-KnownLeader": "true"},
            ),
            ConsulGarbled,
            "no such verb",
            id="refused",
        ),
        pytest.param(
            reply(b"{}", headers={"X-Consul-KnownLeader": "false"}),
            ConsulNoQuorum,
            "without knowing a leader",
            id="no leader",
        ),
    ],
)
def test_an_unusable_answer_to_a_read_of_several_has_a_name(
    field: Field, manner: Manner, kind: type[ConsulError] | None, words: str
) -> None:
    gateway = field.gateway(manner)
    if kind is None:
        assert gateway.read(["s/v"]) == {"s/v": None}
        return
    with pytest.raises(kind, match=words) as caught:
        gateway.read(["s/v"])
    assert not caught.value.maybe_applied, "it was a read"


def test_a_read_of_several_goes_on_to_the_next_address(field: Field) -> None:
    """As any read: nothing can have been applied."""
    gateway = field.gateway(hang_up, trees("s/v"))
    assert gateway.read(["s/v"]) == {"s/v": Entry("s/v", b"v1", 7)}


@pytest.mark.parametrize("key", ["", "/k"])
def test_a_key_that_consul_would_read_as_another_is_refused(field: Field, key: str) -> None:
    gateway = field.gateway(FOUND)
    calls: list[Callable[[], object]] = [
        lambda: gateway.get(key),
        lambda: gateway.get_many(key),
        lambda: gateway.put(key, b""),
        lambda: gateway.delete(key),
        lambda: gateway.txn([Set(key, b"")]),
        lambda: gateway.wait(key, 1, wait_s=1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not a key"):
            call()
    assert field.asked == [0]


# The token


def test_the_token_goes_into_the_header_of_every_call_and_nowhere_else(field: Field) -> None:
    gateway = field.gateway(HTML)
    calls: list[Callable[[], object]] = [
        lambda: gateway.get("k"),
        lambda: gateway.txn([Set("k", b"")]),
        lambda: gateway.put("k", b""),
        lambda: gateway.delete("k"),
        lambda: gateway.instances("s"),
        lambda: gateway.node_health("n"),
        lambda: gateway.pass_check("c", "note"),
        gateway.local_services,
    ]
    for call in calls:
        try:
            call()
        except ConsulError as error:
            assert TOKEN not in str(error)
    requests = field.servers[0].requests
    assert len(requests) == len(calls)
    for request in requests:
        assert f"X-Consul-Token: {TOKEN}\r\n".encode() in request
        assert TOKEN.encode() not in request.split(b"\r\n")[0]


def test_a_server_that_echoes_the_token_does_not_get_it_into_a_message(field: Field) -> None:
    echo = reply(f"your token {TOKEN} is bad".encode(), status="403 Forbidden")
    with pytest.raises(ConsulDenied, match="your token <token> is bad"):
        field.gateway(echo).get("k")


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "gr\u00fc\u00df"])
def test_a_token_that_cannot_be_a_header_is_a_configuration_error(token: str) -> None:
    with pytest.raises(ConfigError, match="token") as caught:
        ConsulGateway(["127.0.0.1:8500"], token=token)
    assert token not in str(caught.value)


# Writes


def test_a_committed_transaction_tells_the_new_indexes(field: Field) -> None:
    gateway = field.gateway(WRITTEN)
    assert gateway.txn([CheckIndex("e", 3), Cas("k", 7, b"v2")]) == Committed({"k": 9})
    body = field.servers[0].requests[0].split(b"\r\n\r\n", 1)[1]
    assert json.loads(body) == [
        {"KV": {"Verb": "check-index", "Key": "e", "Index": 3}},
        {"KV": {"Verb": "cas", "Key": "k", "Index": 7, "Value": "djI="}},
    ]


def test_a_transaction_whose_condition_failed_is_a_conflict(field: Field) -> None:
    doc = {"Results": None, "Errors": [{"OpIndex": 0, "What": "index is stale"}]}
    outcome = field.gateway(reply_json(doc, status="409 Conflict")).txn([Set("k", b"")])
    assert outcome == Conflict(("operation 0: index is stale",))


def test_a_409_that_hides_a_denial_is_no_conflict(field: Field) -> None:
    doc = {"Results": None, "Errors": [{"OpIndex": 0, "What": "Permission denied"}]}
    with pytest.raises(ConsulDenied) as caught:
        field.gateway(reply_json(doc, status="409 Conflict")).txn([Set("k", b"")])
    assert not caught.value.maybe_applied


CUT = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{")
WRITE_OUTCOMES = [
    pytest.param(None, ConsulUnreachable, False, id="refused"),
    pytest.param(hang, ConsulTimedOut, True, id="hung"),
    pytest.param(hang_up, ConsulGarbled, True, id="reply lost"),
    pytest.param(CUT, ConsulGarbled, True, id="reply cut"),
    pytest.param(NO_LEADER, ConsulNoQuorum, False, id="no leader"),
    pytest.param(
        reply(b"leadership lost while committing log", status="500 Oops"),
        ConsulNoQuorum,
        True,
        id="leadership lost",
    ),
    pytest.param(reply(b"EOF", status="500 Oops"), ConsulNoQuorum, True, id="500 EOF"),
    pytest.param(reply(b"x", status="504 Gateway Timeout"), ConsulNoQuorum, True, id="504"),
    *(
        pytest.param(manner, ConsulLimited, False, id=f"limit {number}")
        for number, manner in enumerate(LIMITED)
    ),
    pytest.param(DENIED, ConsulDenied, False, id="403"),
    pytest.param(reply(b"no", status="404 Not Found"), ConsulGarbled, False, id="404"),
    pytest.param(reply(b"big", status="413 Too Large"), ConsulGarbled, False, id="413"),
    pytest.param(reply(status="302 Found"), ConsulGarbled, True, id="redirect"),
    pytest.param(HTML, ConsulGarbled, True, id="html"),
    pytest.param(reply(b"null"), ConsulGarbled, True, id="null"),
    pytest.param(reply(b"false"), ConsulGarbled, True, id="false"),
]


@pytest.mark.parametrize(("manner", "kind", "maybe_applied"), WRITE_OUTCOMES)
@pytest.mark.parametrize("write", ["txn", "put", "delete"])
def test_a_write_that_failed_tells_whether_it_may_have_been_applied(
    field: Field, manner: Manner | None, kind: type[ConsulError], maybe_applied: bool, write: str
) -> None:
    gateway = field.gateway(manner, timeout_s=0.4)
    calls: dict[str, Callable[[], object]] = {
        "txn": lambda: gateway.txn([Set("k", b"v")]),
        "put": lambda: gateway.put("k", b"v"),
        "delete": lambda: gateway.delete("k"),
    }
    with pytest.raises(kind) as caught:
        calls[write]()
    assert type(caught.value) is kind
    assert caught.value.maybe_applied is maybe_applied
    assert ("read it back" in str(caught.value)) is maybe_applied


@pytest.mark.parametrize(
    "doc",
    [
        {"Results": [], "Errors": None},
        {"Results": None, "Errors": None},
        {"Results": [{"KV": {"Key": "other", "ModifyIndex": 9}}], "Errors": None},
        {"Results": [{"KV": {"Key": "k", "ModifyIndex": "9"}}], "Errors": None},
        {"Results": [{"KV": {"Key": "k", "ModifyIndex": 9}}], "Errors": [{"What": "x"}]},
        {"Results": 7, "Errors": None},
        [],
        {},
    ],
)
def test_a_transaction_without_the_result_of_each_write_is_in_doubt(
    field: Field, doc: object
) -> None:
    with pytest.raises(ConsulGarbled) as caught:
        field.gateway(reply_json(doc)).txn([Set("k", b"")])
    assert caught.value.maybe_applied


@pytest.mark.parametrize("doc", [{"Errors": []}, {"Errors": None}, {}, [], {"Errors": ["x"]}])
def test_a_conflict_without_a_reason_is_in_doubt(field: Field, doc: object) -> None:
    with pytest.raises(ConsulGarbled) as caught:
        field.gateway(reply_json(doc, status="409 Conflict")).txn([Set("k", b"")])
    assert caught.value.maybe_applied


# Several addresses


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(None, id="refused"),
        pytest.param(hang, id="hung"),
        pytest.param(drip(b"HTTP/1.1 200 OK\r\nX: ", b"y"), id="drip"),
        pytest.param(NO_LEADER, id="no leader"),
        pytest.param(HTML, id="html"),
        pytest.param(DENIED, id="403"),
        pytest.param(hang_up, id="closed"),
    ],
)
def test_a_read_goes_on_to_the_next_address(field: Field, bad: Manner | None) -> None:
    assert field.gateway(bad, bad, FOUND).get("k") == Entry("k", b"v1", 7)


def test_the_first_address_is_asked_first(field: Field) -> None:
    gateway = field.gateway(FOUND, FOUND)
    gateway.get("k")
    assert field.asked == [1, 0]


def test_a_hung_address_is_asked_last_for_a_while(field: Field) -> None:
    gateway = field.gateway(hang, FOUND, timeout_s=1)
    for _ in range(3):
        gateway.get("k")
    assert field.asked == [1, 3]


def test_a_hung_address_costs_only_its_share(field: Field) -> None:
    gateway = field.gateway(hang, hang, FOUND)
    started = monotonic()
    gateway.get("k", deadline=Deadline.after(1.5))
    assert monotonic() - started < 1.0 + patient(SLACK_S)


def test_all_addresses_failing_is_told_of_each_and_named_after_the_best_answer(
    field: Field,
) -> None:
    gateway = field.gateway(None, hang, NO_LEADER, timeout_s=1)
    with pytest.raises(ConsulNoQuorum) as caught:
        gateway.get("k")
    text = str(caught.value)
    assert "refused" in text and "within" in text and "No cluster leader" in text
    assert "raft list-peers" in text


@pytest.mark.parametrize("write", ["txn", "put", "delete"])
def test_a_write_goes_on_only_while_nothing_can_have_been_applied(field: Field, write: str) -> None:
    done = WRITTEN if write == "txn" else reply(b"true")
    gateway = field.gateway(None, NO_LEADER, done)
    if write == "txn":
        assert gateway.txn([Set("k", b"")]) == Committed({"k": 9})
    elif write == "put":
        gateway.put("k", b"")
    else:
        gateway.delete("k")
    assert field.asked == [1, 1]


@pytest.mark.parametrize(
    "bad", [hang, hang_up, HTML, reply(b"EOF", status="500 Oops"), reply(status="302 Found")]
)
def test_a_write_that_may_have_been_applied_is_not_sent_to_another_address(
    field: Field, bad: Manner
) -> None:
    gateway = field.gateway(bad, WRITTEN, timeout_s=0.4)
    with pytest.raises(ConsulError) as caught:
        gateway.txn([Set("k", b"")])
    assert caught.value.maybe_applied
    assert field.asked == [1, 0]


def test_a_write_that_was_sent_gets_the_whole_deadline(field: Field) -> None:
    gateway = field.gateway(late(0.8, WRITTEN), WRITTEN, WRITTEN, timeout_s=2)
    assert gateway.txn([Set("k", b"")]) == Committed({"k": 9})
    assert field.asked == [1, 0, 0]


def test_after_a_hung_transaction_the_next_one_asks_another_address(field: Field) -> None:
    gateway = field.gateway(hang, WRITTEN, timeout_s=0.4)
    with pytest.raises(ConsulTimedOut):
        gateway.txn([Set("k", b"")])
    assert gateway.txn([Set("k", b"")]) == Committed({"k": 9})


def test_agent_local_calls_ask_the_first_address_alone(field: Field) -> None:
    gateway = field.gateway(reply(b"no", status="500 Oops"), reply(b"{}"))
    with pytest.raises(ConsulError):
        gateway.local_services()
    with pytest.raises(ConsulError):
        gateway.register(Registration("i", "n", "127.0.0.1", 2049, {}, 10, "check"))
    with pytest.raises(ConsulError):
        gateway.pass_check("c", "")
    assert field.asked == [3, 0]


def test_a_deadline_that_has_passed_asks_nobody(field: Field) -> None:
    gateway = field.gateway(FOUND)
    with pytest.raises(ConsulTimedOut, match="passed before it was asked") as caught:
        gateway.txn([Set("k", b"")], deadline=Deadline.after(-1))
    assert not caught.value.maybe_applied
    assert field.asked == [0]


# Waiting


def test_an_index_below_one_never_comes_back(field: Field) -> None:
    zero = reply(status="404 Not Found", headers={"X-Consul-Index": "0"})
    assert field.gateway(zero).wait("k", 0, wait_s=1) == (1, None)


def test_an_index_that_went_backwards_is_returned(field: Field) -> None:
    assert field.gateway(FOUND).wait("k", 1000, wait_s=1) == (7, Entry("k", b"v1", 7))


def test_a_wait_that_is_never_answered_ends(field: Field) -> None:
    gateway = field.gateway(hang, timeout_s=0.3)
    started = monotonic()
    with pytest.raises(ConsulTimedOut):
        gateway.wait("k", 7, wait_s=0.4)
    assert monotonic() - started < 0.4 * 17 / 16 + 0.3 + patient(SLACK_S)


def test_a_wait_asks_for_the_time_that_it_will_wait(field: Field) -> None:
    field.gateway(FOUND).wait("k", 5, wait_s=30)
    asked = re.search(rb"/v1/kv/k\?index=5&wait=([\d.]+)s ", field.servers[0].requests[0])
    # Less what passed since the call, on a busy machine.
    assert asked is not None and 25.0 < float(asked[1]) <= 30.0


# Services


def instance(**checks: str) -> dict[str, Any]:
    return {
        "Node": {"Node": "n1", "Address": "10.0.0.1"},
        "Service": {"ID": "s1", "Service": "s", "Address": "", "Port": 2049, "Meta": {"a": "b"}},
        "Checks": [
            {
                "CheckID": name,
                "Status": status,
                "ServiceID": "" if name == "serfHealth" else "s1",
            }
            for name, status in checks.items()
        ],
    }


@pytest.mark.parametrize(
    ("checks", "node_health", "worst"),
    [
        ({}, "unknown", "passing"),
        ({"serfHealth": "passing"}, "passing", "passing"),
        ({"serfHealth": "critical", "a": "passing"}, "critical", "passing"),
        ({"serfHealth": "passing", "a": "passing", "b": "warning"}, "passing", "warning"),
        ({"serfHealth": "passing", "a": "critical", "b": "warning"}, "passing", "critical"),
    ],
)
def test_an_instance_has_the_health_of_its_node_and_the_worst_of_its_checks(
    field: Field, checks: dict[str, str], node_health: str, worst: str
) -> None:
    (seen,) = field.gateway(reply_json([instance(**checks)])).instances("s")
    assert (seen.node_health, seen.checks) == (node_health, worst)
    assert (seen.service_id, seen.node, seen.address, seen.port) == ("s1", "n1", "10.0.0.1", 2049)
    assert seen.meta == {"a": "b"}


@pytest.mark.parametrize(
    "doc",
    [
        {},
        None,
        [7],
        [{}],
        [instance(serfHealth="fine")],
        [{**instance(), "Checks": None}],
        [{**instance(), "Service": {"ID": "s1", "Address": "", "Port": "2049", "Meta": {}}}],
        [{**instance(), "Node": {"Node": 7, "Address": "a"}}],
    ],
)
def test_a_health_answer_of_a_foreign_shape_is_garbled(field: Field, doc: object) -> None:
    gateway = field.gateway(reply_json(doc))
    with pytest.raises(ConsulGarbled):
        gateway.instances("s")


def test_health_is_read_consistently(field: Field) -> None:
    gateway = field.gateway(reply_json([]))
    gateway.instances("s")
    gateway.node_health("n")
    assert [b"?consistent=1 " in request for request in field.servers[0].requests] == [True, True]


@pytest.mark.parametrize(
    ("statuses", "health"),
    [(["passing"], "passing"), (["critical"], "critical"), ([], "absent")],
)
def test_the_health_of_a_node_is_what_gossip_says(
    field: Field, statuses: list[str], health: str
) -> None:
    checks = [{"CheckID": "serfHealth", "Status": status} for status in statuses]
    other = {"CheckID": "disk", "Status": "critical"}
    assert field.gateway(reply_json([other, *checks])).node_health("n") == health


@pytest.mark.parametrize("doc", [[], [instance(serfHealth="critical")], [instance(c="passing")]])
def test_a_token_that_sees_no_passing_server_is_blind(field: Field, doc: object) -> None:
    with pytest.raises(ConsulBlind, match="prove nothing"):
        field.gateway(reply_json(doc)).self_check()


def test_a_token_that_sees_a_passing_server_is_good(field: Field) -> None:
    field.gateway(reply_json([instance(serfHealth="passing")])).self_check()


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops"])
def test_deregistering_what_the_agent_does_not_know_is_done(field: Field, status: str) -> None:
    field.gateway(reply(b'Unknown service "x"', status=status)).deregister("x")


# Where the configuration comes from


def config(**access: Any) -> Config:
    return config_of(consul=ConsulAccess(**access))


def test_the_configuration_wins_over_the_environment(field: Field, tmp_path: Path) -> None:
    field.gateway(FOUND)
    token_file = tmp_path / "token"
    token_file.write_text("from-the-file\n")
    token_file.chmod(0o600)
    environ = {"CONSUL_HTTP_ADDR": "127.0.0.1:1", "CONSUL_HTTP_TOKEN": "from-the-environment"}
    gateway = ConsulGateway.from_config(
        config(addresses=(field.servers[0].address,), token_file=token_file), environ=environ
    )
    gateway.get("k")
    assert b"X-Consul-Token: from-the-file\r\n" in field.servers[0].requests[0]
    assert gateway.timeout_s == 2.0


def test_what_the_configuration_leaves_empty_comes_from_the_environment(field: Field) -> None:
    field.gateway(FOUND)
    environ = {
        "CONSUL_HTTP_ADDR": f"http://{field.servers[0].address}",
        "CONSUL_HTTP_TOKEN": "from-the-environment",
    }
    ConsulGateway.from_config(config(), timeout_s=1, environ=environ).get("k")
    assert b"X-Consul-Token: from-the-environment\r\n" in field.servers[0].requests[0]


@pytest.mark.parametrize("value", ["127.0.0.1:1", "https://127.0.0.1:1", "consul.example", "[::"])
def test_the_environment_never_overrules_explicit_addresses(
    field: Field, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", value)
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "leaked")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    monkeypatch.setenv("CONSUL_HTTP_SSL_VERIFY", "false")
    with patch.dict(environment.TAKEN):  # no program has taken it: the gateway does
        assert field.gateway(FOUND).get("k") == Entry("k", b"v1", 7)
    assert b"leaked" not in field.servers[0].requests[0]


def test_a_ca_certificate_makes_the_scheme_https(tmp_path: Path) -> None:
    ca_cert = tmp_path / "ca.pem"
    ca_cert.write_text("no certificate")
    with pytest.raises(ConfigError, match="ca_cert"):
        ConsulGateway.from_config(config(), environ={"CONSUL_CACERT": str(ca_cert)})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    token_file.chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}.*chmod 600") as caught:
        ConsulGateway.from_config(config(token_file=token_file), environ={})
    assert TOKEN not in str(caught.value)


def test_a_token_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    with pytest.raises(ConfigError, match=r"token_file.*can't be read"):
        ConsulGateway.from_config(config(token_file=token_file), environ={})
    token_file.touch(mode=0o600)
    with pytest.raises(ConfigError, match="is empty"):
        ConsulGateway.from_config(config(token_file=token_file), environ={})


def test_no_address_at_all_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"consul\.addresses is empty"):
        ConsulGateway([])
