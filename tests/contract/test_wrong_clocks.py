"""Clocks that are an hour ahead (RTC in local time, no NTP yet) and set right later: what is handed
over and what a failover starts from, with both stores, real streams and receivers of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from standfast.agent.local_view import LocalView
from standfast.consul.records import HistoryEntry, Holder, Leader, LeaderState
from standfast.node.node import Machine
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.role import volume
from standfast.role.decide import decide
from standfast.role.decision import Action, Decision, Moment
from standfast.role.observation import Cluster, LastHeartbeat, newest
from standfast.system.clock import Deadline, utc_now
from tests.contract.clocks import Clocks
from tests.contract.links import Links
from tests.contract.pairs import node
from tests.contract.peers import Peer, lead
from tests.support.volumes import make_live

HOUR_S = 3600.0
SILENT_S = 13.0
WHOSE = pytest.mark.parametrize("whose", ["a", "b", "ab"])


@dataclass
class Scene:
    """a, primary of epoch 1, and b, its standby; each has a clock of its own."""

    a: Peer
    b: Peer
    clocks: Clocks

    def cycle(self, text: str) -> None:
        """What a has by then, on b; five minutes later."""
        self.clocks.act_as("a")
        self.a.live("f").write_text(text)
        self.a.sender.cycle("b")
        self.clocks.advance(300)

    def ahead_and_set_right(self, whose: str) -> None:
        """Half an hour with clocks that are ahead, twenty minutes with right ones."""
        for name in whose:
            self.clocks.step(name, HOUR_S)
        for number in range(6):
            self.cycle(f"ahead {number}")
        for name in whose:
            self.clocks.step(name, -HOUR_S)
        for number in range(4):
            self.cycle(f"right {number}")

    @property
    def over_s(self) -> float:
        """For how long the lease is over when b decides: nothing is lost from then on."""
        return SILENT_S - self.b.config.lease.wait

    def decide_on_b(self, leader: Leader, silent_s: float) -> Decision:
        self.clocks.act_as("b")
        now, seen = (
            Moment(1000.0, utc_now()),
            LastHeartbeat(leader.identity, 5, 1000.0 - silent_s, witnessed=True),
        )
        view = Cluster(1, leader, seen, holder_health="critical")
        return decide(view, LocalView(machine(self.b)).look(), self.b.config, now)


def machine(peer: Peer) -> Machine:
    parts: Any = SimpleNamespace(config=peer.config, store=peer.store, me=Holder("x", "boot-1"))
    parts.nfs = SimpleNamespace(is_running=lambda: False)
    return cast("Machine", parts)


@pytest.fixture
def scene(
    kind: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    where = place if kind == "btrfs" else tmp_path
    clocks = Clocks("ab")
    clocks.rule(monkeypatch)
    with ExitStack() as stack:
        a, b = (stack.enter_context(node(where, name, kind)) for name in "ab")
        a.links = b.links = stack.enter_context(Links(where / "links", clocks.act_as).serve())
        make_live(a.config.paths.live, kind)
        lead(a, 1)
        OwnEpoch(1, Stage.READY, "fsid", None, in_place=True).save(a.config.state_dir)
        yield Scene(a.talk_to(b), b.talk_to(a), clocks)


@WHOSE
def test_a_switchover_after_clocks_were_set_right_hands_everything_over(
    scene: Scene, whose: str
) -> None:
    scene.ahead_and_set_right(whose)
    a = scene.a
    scene.clocks.act_as("a")
    a.live("f").write_text("the last word")
    a.store.set_live_writable(False)
    own = OwnEpoch.load(a.config.state_dir)
    assert own is not None
    final = volume.take_final_snapshot(machine(a), own.at(Stage.DRAINING))
    lead(a, 1, LeaderState.DRAINING)
    a.sender.replicate("b", final, 1, Deadline.after(60))
    told = OwnEpoch.load(a.config.state_dir)
    assert told is not None and told.final_id == final.content_id
    holder = Holder("a", "boot-1")
    leader = Leader(1, holder, 9, LeaderState.CLEAN, ("b",), "b", None, told.final)
    for clean in (leader, Leader(**{**fields(leader), "final_id": told.final_id})):
        decision = scene.decide_on_b(clean, 0.0)
        assert (decision.action, decision.reason) == (Action.PROMOTE, Reason.CLEAN_HANDOVER)
        assert decision.lost_s == 0.0
        assert decision.base is not None and decision.base.snapshot.content_id == final.content_id
        assert (decision.base.snapshot.path / "f").read_text() == "the last word"


def fields(leader: Leader) -> dict[str, Any]:
    return {name: getattr(leader, name) for name in Leader.__struct_fields__}


@WHOSE
def test_a_failover_after_clocks_were_set_right_loses_what_it_says(
    scene: Scene, whose: str
) -> None:
    scene.ahead_and_set_right(whose)
    serving = Leader(1, Holder("a", "boot-1"), 9, LeaderState.SERVING, ("b",))
    decision = scene.decide_on_b(serving, SILENT_S)
    assert (decision.action, decision.reason) == (Action.PROMOTE, Reason.TAKEOVER)
    assert decision.base is not None
    assert (decision.base.snapshot.path / "f").read_text() == "right 3"
    assert decision.lost_s == pytest.approx(300 - scene.over_s, abs=5)


@WHOSE
def test_a_replication_that_stopped_before_clocks_were_set_right_is_told_as_old(
    scene: Scene, whose: str
) -> None:
    """At no moment, however the clock goes on to what it said then, does the data look young."""
    for name in whose:
        scene.clocks.step(name, HOUR_S)
    scene.cycle("the last that arrived")
    for name in whose:
        scene.clocks.step(name, -HOUR_S)
    serving = Leader(1, Holder("a", "boot-1"), 9, LeaderState.SERVING, ("b",))
    for minutes in range(5, 120, 15):
        decision = scene.decide_on_b(serving, SILENT_S)
        if minutes * 60 <= scene.b.config.max_data_loss:
            assert decision.action is Action.PROMOTE
            assert decision.lost_s == pytest.approx(minutes * 60 - scene.over_s, abs=5)
        else:
            assert (decision.action, decision.reason) == (Action.BLOCKED, Reason.TOO_OLD)
        scene.clocks.advance(900)


def test_a_new_primary_whose_clock_is_behind_goes_on_above_what_it_started_from(
    scene: Scene,
) -> None:
    a, b = scene.a, scene.b
    scene.cycle("before")
    a.store.set_live_writable(False)
    scene.clocks.step("b", -HOUR_S)
    scene.clocks.act_as("b")
    [base] = b.store.snapshots()
    lead(b, 2)
    name = str(base.name)
    OwnEpoch(2, Stage.READY, "fsid", name, in_place=False).save(b.config.state_dir)
    b.store.create_live_from(base)
    b.live("f").write_text("after")
    taken = b.sender.cycle("a").snapshot
    assert taken > base.name
    scene.clocks.act_as("a")
    history = {2: HistoryEntry(2, "b", name, "takeover", None, None, 0.0)}
    view = Cluster(2, None, LastHeartbeat(None, 1, 0.0), history=history)
    available = newest(LocalView(machine(a)).look(), view)
    assert available is not None
    assert (available.snapshot.path / "f").read_text() == "after"
    assert available.age_s(utc_now()) == pytest.approx(0, abs=5), "whatever its name says"
