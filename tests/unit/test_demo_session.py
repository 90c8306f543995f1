"""What the commands of `standfast demo --stay` do, and refuse, on a cluster that is only told."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from standfast.demo.cluster import ADDRESSES, Cluster
from standfast.demo.ledger import Ledger, Line, line_text
from standfast.demo.stay.commands import parse
from standfast.demo.stay.prompt import PromptScreen
from standfast.demo.stay.session import DEEDS, Session
from standfast.errors import StandfastError, TimedOut, UsageError
from standfast.reasons import Reason
from standfast.system.clock import monotonic

FOLLOWS = {"role": "standby", "decision": {"reason": str(Reason.PRIMARY_ALIVE)}}


@dataclass
class FakeNode:
    name: str
    is_on: bool = True
    is_cut_off: bool = False
    stopped: tuple[str, ...] = ()
    told: dict[str, Any] | None = None
    place: Any = field(default_factory=lambda: SimpleNamespace(address="127.0.0.1"))

    def status(self) -> dict[str, Any] | None:
        return self.told if self.is_on else None

    def cut_power(self) -> tuple[int, ...]:
        was_on, self.is_on = self.is_on, False
        return (7, 8) if was_on else ()

    def cut_off(self) -> None:
        self.is_cut_off = True

    def reconnect(self) -> None:
        self.is_cut_off = False

    def freeze(self, what: str) -> int:
        self.stopped = (what,)
        return 9

    def thaw(self) -> tuple[str, ...]:
        stopped, self.stopped = self.stopped, ()
        return stopped

    def frozen(self) -> tuple[str, ...]:
        return self.stopped


class FakeCluster:
    """zippy serves."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        self.screen = PromptScreen(self.out, monotonic(), interactive=False)
        self.nodes = {name: FakeNode(name, told=FOLLOWS) for name in ADDRESSES}
        self.nodes["zippy"].told = {"role": "primary"}
        self.serves: str | None = "zippy"
        self.ledger = Ledger()
        self.client = SimpleNamespace(trouble=None)
        self.replicated = {"c1": (monotonic() - 2.0, "services@1"), "zippy": (0.0, "older")}
        self.ran: list[tuple[str, ...]] = []
        self.exit_status = 0
        self.quorum = True
        self.consul = SimpleNamespace(
            has_quorum=lambda: self.quorum, set_quorum=lambda to: setattr(self, "quorum", to)
        )

    def __getitem__(self, name: str) -> FakeNode:
        return self.nodes[name]

    def primary(self) -> FakeNode | None:
        return None if self.serves is None else self[self.serves]

    def command(self, node: FakeNode, *words: str) -> int:
        self.ran.append((node.name, *words))
        return self.exit_status

    def wait_for(self, what: str, limit_s: float, happened: Any) -> float:
        if self.client.trouble is None:
            self.acknowledge("zippy")
        if not happened():
            raise TimedOut(what)
        return 1.0

    def acknowledge(self, node: str) -> None:
        number = len(self.ledger)
        self.ledger.add(Line(number, line_text(number, 0), 1, node, monotonic()))


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


def do(cluster: FakeCluster, line: str) -> str:
    """What is shown of it."""
    begun = len(cluster.out.getvalue())
    asked = parse(line, tuple(ADDRESSES))
    assert asked is not None
    DEEDS[asked.name](Session(cast(Cluster, cluster)), asked)
    return cluster.out.getvalue()[begun:]


@pytest.mark.parametrize(
    ("line", "ran"),
    [
        ("status", ("zippy", "status")),
        ("status c1", ("c1", "status")),
        ("history", ("zippy", "history")),
        ("doctor c2", ("c2", "doctor")),
        ("switchover", ("zippy", "switchover")),
        ("switchover c1", ("zippy", "switchover", "--to", "c1")),
        ("failback", ("zippy", "failback")),
        ("promote c2", ("c2", "promote")),
        ("c1 verify --full c2", ("c1", "verify", "--full", "c2")),
    ],
)
def test_a_command_runs_where_it_belongs(
    cluster: FakeCluster, line: str, ran: tuple[str, ...]
) -> None:
    do(cluster, line)
    (words,) = cluster.ran
    assert words[: len(ran)] == ran
    assert words[len(ran) :] in ((), ("--reason", "asked at the prompt of the demo"))


def test_a_command_that_fails_is_told(cluster: FakeCluster) -> None:
    cluster.exit_status = 3
    with pytest.raises(StandfastError, match="`standfast status` on c1 ended with status 3"):
        do(cluster, "status c1")


def test_faults_are_the_primarys_unless_a_node_is_named(cluster: FakeCluster) -> None:
    do(cluster, "cut consul")
    do(cluster, "freeze lease")
    do(cluster, "freeze c1 agent")
    assert cluster["zippy"].is_cut_off and cluster["zippy"].stopped == ("lease",)
    assert cluster["c1"].stopped == ("agent",)
    assert "`agent` of c1" in do(cluster, "thaw c1")
    assert cluster["zippy"].stopped == ("lease",)
    assert "`lease` of zippy" in do(cluster, "thaw")
    cluster.serves = None
    with pytest.raises(UsageError, match="no node serves now"):
        do(cluster, "freeze lease")


def test_what_cannot_be_done_is_refused_with_the_next_step(cluster: FakeCluster) -> None:
    do(cluster, "kill c2")
    do(cluster, "cut zippy consul")
    for line, said in (
        ("kill c2", "c2 is off already: `start c2`"),
        ("c2 status", "c2 is off: `start c2`"),
        ("freeze c2 agent", "c2 is off: `start c2`"),
        ("cut c2 consul", "c2 is off: `start c2`"),
        ("cut zippy consul", "cut off already: `heal`"),
        ("heal c1", "nothing is cut off there"),
        ("thaw", "nothing is frozen there"),
    ):
        with pytest.raises(UsageError) as caught:
            do(cluster, line)
        assert said in str(caught.value), line
    for name in ADDRESSES:
        cluster[name].is_on = False
    cluster.serves = None
    with pytest.raises(UsageError, match="every node is off: `start zippy`"):
        do(cluster, "status")
    assert "every node is off" in do(cluster, "page")


def test_only_what_is_named_is_connected_again(cluster: FakeCluster) -> None:
    do(cluster, "cut all consul")
    do(cluster, "cut c1 consul")
    do(cluster, "cut c2 consul")
    assert "answers c1 again" in do(cluster, "heal c1")
    assert (cluster.quorum, cluster["c2"].is_cut_off) == (False, True)
    do(cluster, "heal")
    assert (cluster.quorum, cluster["c2"].is_cut_off) == (True, False)
    do(cluster, "cut all consul")
    assert "answers everybody again" in do(cluster, "heal")


@pytest.mark.parametrize(
    ("change", "calm"),
    [
        ({}, True),
        ({"c1": {"is_on": False}}, True),
        ({"c1": {"is_cut_off": True, "told": {"role": "changing"}}}, True),
        ({"c1": {"stopped": ("agent",), "told": None}}, True),
        ({"zippy": {"stopped": ("agent",), "told": None}}, True),
        ({"c1": {"told": {"role": "changing"}}}, False),
        ({"c1": {"told": None}}, False),
        ({"c1": {"told": {"role": "primary"}}}, False),
        ({"zippy": {"stopped": ("lease",)}}, False),
        ({"zippy": {"is_cut_off": True}}, False),
    ],
)
def test_it_waits_until_the_client_writes_and_all_that_can_have_their_roles(
    cluster: FakeCluster, change: dict[str, dict[str, Any]], calm: bool
) -> None:
    for name, values in change.items():
        for key, value in values.items():
            setattr(cluster[name], key, value)
    if calm:
        assert "after 1.0 s" in do(cluster, "wait")
    else:
        with pytest.raises(TimedOut, match="see `status`"):
            do(cluster, "wait")


def test_what_the_client_wrote_before_is_not_enough(cluster: FakeCluster) -> None:
    cluster.acknowledge("zippy")
    cluster.client.trouble = "nobody answers"
    with pytest.raises(TimedOut):
        do(cluster, "wait")


def test_the_clients_progress_is_told(cluster: FakeCluster) -> None:
    cluster.acknowledge("zippy")
    cluster.client.trouble = "nobody answers"
    said = do(cluster, "write")
    assert "1 lines acknowledged, the last 0.0 s ago on zippy, epoch 1" in said
    assert "it waits: nobody answers" in said
    assert "c1 lacks the last 2.0 s at most (services@1)" in said and "older" not in said
