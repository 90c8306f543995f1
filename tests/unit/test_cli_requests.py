"""Commands for another node: where they go, and what whoever asks sees. Another node's agent takes
them in a thread, by the embedded Consul."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from standfast.cli import remote
from standfast.config.load import load
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import HistoryEntry, Holder, Leader, LeaderState, dump_epoch
from standfast.requests import asking, taking
from standfast.requests.asking import new_request
from standfast.requests.folder import Folder
from standfast.requests.record import Arguments, Outcome, Verb
from standfast.requests.taking import Node, Taker
from standfast.requests.work import Work
from standfast.system import clock
from tests.support.configs import config_of
from tests.support.terminal import PREFIX, Desk, a_desk, write_node

PROGRAM = """
import json, sys
words = " ".join(sys.argv[1:])
if "--json" in words:
    print(json.dumps({"v": 1, "node": "there", "ok": True, "words": words}))
else:
    print(words)
if "remove" in words:
    print("standfast: still-configured: c9 is in [nodes]", file=sys.stderr)
    sys.exit(1)
"""
DONE = {"done": True, "text": "c1 is primary (0.4 s)"}


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """At zippy, which runs no agent."""
    monkeypatch.setenv("SUDO_USER", "alice")
    for module, name, seconds in (
        (asking, "BEAT_S", 0.1),
        (asking, "WATCH_S", 0.1),
        (taking, "BUSY_S", 0.05),
        (taking, "IDLE_S", 0.3),
    ):
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(remote, "ACCEPT_S", 3.0)
    with a_desk(tmp_path, monkeypatch, capsys) as made:
        yield made


@pytest.fixture
def workstation(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """With a configuration, a way to Consul and nothing else; its name is no node's."""
    address = desk.consul.address("zippy")
    more = f'[consul]\naddresses = ["{address}"]\n'
    directory = tmp_path / "ws"
    path = write_node(directory, tmp_path / "nothing", "zippy", more)
    path.write_text(path.read_text().replace('node = "zippy"\n', ""))
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(directory))
    monkeypatch.setattr("socket.gethostname", lambda: "ws1")
    config = load(path, require_storage=False)
    assert config.node == "ws1"
    return Desk(config, desk.captured, desk.consul, desk.gateway)


@dataclass
class Other:
    """Another node's agent."""

    works: list[Work] = field(default_factory=list)

    @property
    def asked(self) -> list[tuple[str, dict[str, Any]]]:
        docs = [work.document() for work in self.works]
        return [(doc["command"], {**doc["args"], "dry_run": doc["dry_run"]}) for doc in docs]


@contextmanager
def an_agent(desk: Desk, name: str, *lines: dict[str, Any]) -> Iterator[Other]:
    """Answers each request with these lines; with none it works on for ever."""
    others = {"zippy", "c1"} - {name}
    config = config_of(name, *others)
    other, stop = Other(), threading.Event()

    def door(work: Work) -> None:
        other.works.append(work)
        assert work.begin()
        for line in lines:
            work.sendall(json.dumps(line).encode() + b"\n")

    taker = Taker(
        config,
        ConsulGateway([desk.consul.address("zippy")]),
        Node("run", door, lambda: "well", (sys.executable, "-c", PROGRAM)),
    )

    def turns() -> None:
        while not stop.wait(0.05):
            taker.turn()

    thread = threading.Thread(target=turns)
    thread.start()
    try:
        yield other
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def holds(desk: Desk, node: str, state: LeaderState = LeaderState.SERVING) -> None:
    desk.put("epoch", dump_epoch(7))
    desk.put("leader", Leader(7, Holder(node, "boot"), 3, state, ()).dump())


def left(desk: Desk) -> list[str]:
    names = [entry.key.removeprefix(f"{PREFIX}/") for entry in desk.gateway.get_many(PREFIX)]
    return [name for name in names if name.startswith(("requests/", "outcomes/"))]


def test_promote_on_another_node_goes_through_consul(desk: Desk) -> None:
    with an_agent(desk, "c1", {"progress": "1/9 lease"}, DONE) as other:
        code, out, err = desk.run("promote", "--on", "c1", "--reason", "rack", "--despite", "x")
    assert (code, out, err) == (0, "1/9 lease\nc1 is primary (0.4 s)\n", "")
    [(command, args)] = other.asked
    assert command == "promote"
    assert args["operator"].startswith("alice@") and args["timeout_s"] == 895.0
    assert (args["reason"], args["despite"], args["dry_run"]) == ("rack", "x", False)
    assert left(desk) == []


def test_from_a_workstation_the_holder_is_asked(workstation: Desk) -> None:
    holds(workstation, "zippy")
    with an_agent(workstation, "zippy", DONE) as other:
        code, out, _ = workstation.run("switchover", "--to", "c1")
        assert (code, out) == (0, "c1 is primary (0.4 s)\n")
        assert workstation.run("failback")[0] == workstation.run("demote")[0] == 0
    assert [command for command, _ in other.asked] == ["switchover", "failback", "demote"]
    assert other.asked[0][1]["to"] == "c1"
    assert other.asked[0][1]["operator"] == "alice@ws1"


def test_a_dry_run_and_json_go_through(workstation: Desk) -> None:
    holds(workstation, "c1")
    steps = [{"do": "bind", "says": "show it"}]
    plan = {"done": True, "text": "plan", "steps": steps}
    with an_agent(workstation, "c1", {"progress": "a"}, plan) as other:
        code, out, err = workstation.run("demote", "--dry-run", "--json")
    assert (code, err) == (0, "a\n")
    assert json.loads(out) == {"done": False, "text": "plan", "dry_run": True, "steps": steps}
    assert other.asked[0][1]["dry_run"] is True


def test_a_standby_sends_what_is_the_holders_there(desk: Desk) -> None:
    """Its own agent says that it isn't primary, or isn't there."""
    holds(desk, "c1")
    with an_agent(desk, "c1", DONE):
        code, out, err = desk.run("switchover", "--to", "zippy")
    assert (code, out) == (0, "c1 is primary (0.4 s)\n")
    assert err == "c1 has the role: asking it through Consul\n"


@pytest.mark.parametrize("words", [["switchover"], ["demote"]])
def test_what_takes_the_role_away_without_saying_where_to_stays_on_its_node(
    desk: Desk, words: list[str]
) -> None:
    """A script on a node that lost the role already means that node."""
    holds(desk, "c1")
    code, _, err = desk.run(*words)
    assert code == 3 and "Is the agent running?" in err
    assert desk.key("requests") is None
    with an_agent(desk, "c1", DONE):
        assert desk.run(*words, "--on", "c1")[0] == 0


def test_on_the_holder_itself_nothing_goes_through_consul(desk: Desk) -> None:
    holds(desk, "zippy")
    code, _, err = desk.run("switchover", "--to", "c1")
    assert code == 3 and "Is the agent running? systemctl start standfast-agent@" in err
    code, _, err = desk.run("promote")
    assert code == 3 and "Is the agent running?" in err
    assert desk.key("requests") is None


def test_a_refusal_comes_back_as_the_nodes_own(workstation: Desk) -> None:
    refusal = {"error": "c1: too old", "reason": "too-old", "exit_code": 1}
    with an_agent(workstation, "c1", refusal):
        code, out, err = workstation.run("promote", "--on", "c1", "--json")
    assert (code, err) == (1, "standfast: too-old: c1: too old\n")
    assert json.loads(out) == {"error": "c1: too old", "reason": "too-old", "exit_code": 1}


def test_a_node_that_does_not_take_it_is_told_and_nothing_is_left(workstation: Desk) -> None:
    code, out, err = workstation.run("promote", "--on", "c1", "--json")
    assert code == 3 and json.loads(out)["reason"] == "not-taken"
    assert "c1 didn't take the request within 3 s; nothing was done, and nothing will be" in err
    assert left(workstation) == []


@pytest.mark.parametrize("words", [["promote"], ["failback"]])
def test_an_unknown_node_is_refused_with_those_that_are(desk: Desk, words: list[str]) -> None:
    code, _, err = desk.run(*words, "--on", "c11")
    assert code == 1
    told = "c11 is no storage node of data-services: c1, zippy (did you mean c1?)"
    assert f"unknown-node: {told}" in err


@pytest.mark.parametrize("state", [None, LeaderState.CLEAN])
def test_where_nobody_has_the_role_nobody_is_asked(
    workstation: Desk, state: LeaderState | None
) -> None:
    if state is not None:
        holds(workstation, "c1", state)
    code, _, err = workstation.run("demote")
    assert code == 1 and "nobody has the role of data-services" in err


def test_promote_without_a_node_needs_a_storage_node(workstation: Desk) -> None:
    assert workstation.run("promote")[0] == 2


def interrupt_after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep, slept = clock.sleep, [0.0]

    def interrupted(length_s: float) -> None:
        slept[0] += length_s
        if slept[0] > seconds:
            slept[0] = -1e9
            raise KeyboardInterrupt
        sleep(length_s)

    monkeypatch.setattr(asking, "sleep", interrupted)


def test_ctrl_c_before_it_is_taken_withdraws(
    workstation: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(1.0, monkeypatch)
    code, out, err = workstation.run("promote", "--on", "c1")
    assert (code, out) == (130, "")
    assert err == "`promote` is withdrawn: c1 had not taken it, and nothing was done\n"
    assert left(workstation) == []


def test_ctrl_c_afterwards_leaves_it_running_and_it_can_be_looked_at(
    workstation: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with an_agent(workstation, "c1", {"progress": "1/9 lease"}) as other:
        with monkeypatch.context() as patched:
            taken = asking.Asker.watch

            def watch(self: asking.Asker, *args: Any) -> Outcome:
                interrupt_after(1.0, patched)
                return taken(self, *args)

            patched.setattr(asking.Asker, "watch", watch)
            code, _, err = workstation.run("promote", "--on", "c1", "--reason", "rack")
        [work] = other.works
        name = work.request.id
        assert code == 130
        assert err.endswith(
            f"c1 goes on with `promote`: look at it with `standfast requests {name} --follow`\n"
        )
        table = workstation.run("requests")[1].splitlines()
        assert table[1].split() == [
            name[:8],
            *["promote", "c1", "alice@ws1", "at", "work", "1/9", "lease"],
        ]
        one = workstation.run_json("requests", name[:8])
        assert (one["state"], one["why"], one["progress"]) == ("at work", "rack", ["1/9 lease"])
        assert "why:      rack\n" in workstation.run("requests", name)[1]
        work.sendall(json.dumps(DONE).encode() + b"\n")
        code, out, _ = workstation.run("requests", name[:8], "--follow")
        assert (code, out) == (0, "1/9 lease\nc1 is primary (0.4 s)\n")
        assert "ended (0)" in workstation.run("requests")[1]


def test_requests_says_when_there_are_none_and_names_no_wrong_one(desk: Desk) -> None:
    assert desk.run("requests")[1] == "nothing is asked of a node of data-services through Consul\n"
    assert desk.run_json("requests") == {"volume": "data-services", "requests": []}
    assert desk.run("requests", "0f0f")[0] == 2
    assert desk.run("requests", "--follow")[0] == 2
    folder = Folder(desk.config, desk.gateway)
    for _ in range(2):
        made = new_request(Verb.DEMOTE, "c1", "ann", Arguments())
        folder.create(made)
    desk.put(f"requests/{'f' * 32}", b'{"hello": "\x1b[31mworld"}')
    assert len(desk.run_json("requests")["requests"]) == 2
    code, out, _ = desk.run("requests")
    assert code == 0 and "\x1b" not in out and "open" in out


def test_what_consul_tells_is_told_on_a_workstation_too(workstation: Desk) -> None:
    holds(workstation, "c1")
    entry = HistoryEntry(7, "c1", None, "takeover", None, 0.0, 1e9)
    workstation.put("history/7", entry.dump())
    assert workstation.run("pause", "--for", "2h")[0] == 0
    code, out, _ = workstation.run("status")
    assert code == 1 and "c1 holds epoch 7" in out and "paused:    by alice since" in out
    assert workstation.run("resume")[0] == 0
    code, out, err = workstation.run("history")
    assert (code, err) == (0, "") and "c1" in out


# Programs


def test_replicate_and_standby_go_to_the_holder_from_a_workstation(workstation: Desk) -> None:
    holds(workstation, "zippy")
    asked = "zippy has the role: asking it through Consul"
    with an_agent(workstation, "zippy"):
        code, out, err = workstation.run("replicate", "c1", "--dry-run")
        words = "replicate --volume data-services --dry-run --quiet c1"
        assert (code, out) == (0, f"{words}\n") and err.startswith(asked)
        code, out, err = workstation.run("standby", "add", "c9", "--timeout", "60")
        assert out == "standby add --volume data-services --quiet --timeout 60 c9\n"
        code, out, err = workstation.run("standby", "remove", "c9")
        assert (code, out) == (1, "standby remove --volume data-services c9\n")
        assert err.endswith("standfast: still-configured: c9 is in [nodes]\n")
        code, out, _ = workstation.run("replicate", "--json")
        assert code == 0 and json.loads(out)["words"].endswith(
            "replicate --volume data-services --json --quiet"
        )


def test_a_standby_has_the_primary_replicate_and_its_timer_does_not(desk: Desk) -> None:
    holds(desk, "c1")
    with an_agent(desk, "c1"):
        code, out, _ = desk.run("replicate", "zippy")
        assert (code, out) == (0, "replicate --volume data-services --quiet zippy\n")
    code, _, err = desk.run("replicate", "--instance", "data-services:c1")
    assert code == 1 and "not-primary" in err
    assert len(left(desk)) == 0


def test_standby_add_on_a_storage_node_prepares_that_node(desk: Desk) -> None:
    holds(desk, "c1")
    assert "key" in desk.run("standby", "add", "c1", "--dry-run")[1]
    assert desk.key("requests") is None
    code, _, err = desk.run("standby", "add", "c1", "--on", "c1", "--install-key")
    assert code == 2 and "--install-key uses your own ssh" in err


def test_doctor_asks_another_node(workstation: Desk) -> None:
    with an_agent(workstation, "c1"):
        code, out, err = workstation.run("doctor", "--on", "c1")
        assert (code, out, err) == (0, "doctor --volume data-services\n", "")
        doc = json.loads(workstation.run("doctor", "--on", "c1", "--json")[1])
    assert (doc["node"], doc["words"]) == ("c1", "doctor --volume data-services --json")


def test_doctor_asks_all_nodes_and_tells_which_does_not_answer(workstation: Desk) -> None:
    with an_agent(workstation, "c1"):
        code, out, err = workstation.run("doctor", "--all")
        assert code == 3
        assert out == "node c1\ndoctor --volume data-services\n\nnode zippy\n"
        assert err.startswith("zippy: not-taken: zippy didn't take the request within 3 s;")
        code, out, _ = workstation.run("doctor", "--all", "--json")
    answers = json.loads(out)
    assert [(each["node"], "error" in each) for each in answers] == [("c1", False), ("zippy", True)]
    assert (code, answers[1]["reason"]) == (3, "not-taken")
    assert workstation.run("doctor", "--all", "--on", "c1")[0] == 2
