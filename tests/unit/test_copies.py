"""What is copied while clients are still served, so that they don't wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standfast.errors import StepFailed, TimedOut
from standfast.lease.surrender import OUTAGE_LIMIT_S
from standfast.node.ports import Snapshot
from standfast.role import plan as plans
from standfast.role.copies import LONGEST_S, MOST_ROUNDS, SHORT_S, Next, next_after
from standfast.role.execute import execute
from standfast.role.plan import Do
from standfast.role.steps import Effects
from standfast.system.clock import Deadline, monotonic
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeJobs, FakeNode
from tests.support.plans import NAMES, is_primary, made, promote

HOUR_S = 3600.0


@dataclass
class SlowSender:
    """Takes as long for each replication as is told, the last time again and again."""

    node: FakeNode
    clock: StoppedClock
    takes_s: Sequence[float]
    begun_at: list[float] = field(default_factory=list)
    given_s: list[float] = field(default_factory=list)
    sent: list[Snapshot] = field(default_factory=list)

    def replicate(
        self,
        standby: str,
        snapshot: Snapshot,
        epoch: int,
        deadline: Deadline,
        _give_up: Callable[[], str | None] = lambda: None,
    ) -> None:
        left_s = deadline.remaining_s()
        self.begun_at.append(monotonic())
        self.given_s.append(left_s)
        takes_s = self.takes_s[min(len(self.sent), len(self.takes_s) - 1)]
        self.clock.sleep(min(takes_s, left_s))
        if takes_s > left_s:
            raise TimedOut("no answer before the deadline")
        self.sent.append(snapshot)
        self.node.world.effect(f"replicate:{standby}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: StoppedClock) -> FakeNode:
    """A primary."""
    node = made(tmp_path, monkeypatch)
    promote(node)
    node.world.log.clear()
    return node


@pytest.fixture
def slow(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SlowSender]:
    def takes(*seconds: float) -> SlowSender:
        sender = SlowSender(node, clock, seconds)
        monkeypatch.setattr(node.sender, "replicate", sender.replicate)
        return sender

    return takes


def switch(node: FakeNode, told: list[str] | None = None) -> Effects:
    effects = Effects(node.machine, to="n2", deadline=Deadline.after(HOUR_S))
    if told is not None:
        effects.say = told.append
    execute(plans.demotion(NAMES, "n2"), effects.table(), lambda _: None)
    return effects


@pytest.mark.parametrize(
    ("rounds", "last_s", "then"),
    [
        (1, 0.2, Next.GO_ON),
        (1, SHORT_S, Next.GO_ON),
        (1, SHORT_S + 0.1, Next.AGAIN),
        (1, 3000.0, Next.AGAIN),
        (4, 3000.0, Next.AGAIN),
        (5, 1.0, Next.GO_ON),
        (5, 20.0, Next.GO_ON),
        (5, OUTAGE_LIMIT_S / 2, Next.GO_ON),
        (5, OUTAGE_LIMIT_S / 2 + 0.1, Next.GIVE_UP),
    ],
)
def test_it_is_copied_again_until_a_round_was_short(rounds: int, last_s: float, then: Next) -> None:
    assert next_after(rounds, last_s) is then


@given(st.lists(st.floats(0, 4000), min_size=MOST_ROUNDS, max_size=MOST_ROUNDS))
def test_the_rounds_end_and_clients_never_wait_for_more_than_a_handover_has(
    lengths: list[float],
) -> None:
    rounds = 1
    while (then := next_after(rounds, lengths[rounds - 1])) is Next.AGAIN:
        rounds += 1
    last_s = lengths[rounds - 1]
    assert (then is Next.GO_ON) == (last_s <= LONGEST_S)
    assert rounds == MOST_ROUNDS or last_s <= SHORT_S


def test_what_was_written_during_a_long_copy_is_sent_while_clients_are_served(
    node: FakeNode, slow: Callable[..., SlowSender]
) -> None:
    """The first one waits for 50 minutes for a full replication that runs."""
    sender, told = slow(3000.0, 200.0, 5.0), list[str]()
    switch(node, told)
    log = [name for name in node.world.log if name in ("snapshot", "replicate:n2", "deregister")]
    one = ["snapshot", "replicate:n2"]
    assert log == [*one, *one, *one, "deregister", *one], "each round sends what is new"
    assert len({snapshot.name for snapshot in sender.sent}) == 4
    assert told == [
        "replicate to n2 once more while still serving: that took 3000 s",
        "replicate to n2 once more while still serving: that took 200 s",
    ]


def test_a_short_copy_is_not_made_again(node: FakeNode, slow: Callable[..., SlowSender]) -> None:
    sender, told = slow(2.0), list[str]()
    switch(node, told)
    assert len(sender.sent) == 2 and not told


def test_a_busy_volume_can_be_moved(node: FakeNode, slow: Callable[..., SlowSender]) -> None:
    sender = slow(20.0)
    switch(node)
    assert len(sender.sent) == MOST_ROUNDS + 1
    assert node.keeper.clean


def test_a_volume_that_is_written_faster_than_it_is_replicated_is_not_moved(
    node: FakeNode, slow: Callable[..., SlowSender]
) -> None:
    sender = slow(90.0)
    with pytest.raises(
        StepFailed, match=r"pre-copy.* written faster than .* n2(.|\n)*90 s(.|\n)*serves again"
    ):
        switch(node)
    assert len(sender.sent) == MOST_ROUNDS
    assert not {"deregister", "stop-nfs", "lease:drain"} & set(node.world.log), "clients waited"
    is_primary(node)


def test_all_rounds_have_the_one_deadline(node: FakeNode, slow: Callable[..., SlowSender]) -> None:
    slow(3000.0, 700.0)
    with pytest.raises(StepFailed, match=r"pre-copy(.|\n)*before the deadline"):
        switch(node)
    assert "deregister" not in node.world.log


def test_a_long_copy_takes_nothing_of_the_time_in_which_clients_wait(
    node: FakeNode, slow: Callable[..., SlowSender]
) -> None:
    """It was over ten seconds before its deadline."""
    sender = slow(3580.0, 10.0, 60.0)
    switch(node)
    assert sender.given_s[-1] == OUTAGE_LIMIT_S
    assert node.keeper.clean


def test_a_long_copy_takes_nothing_of_the_time_that_jobs_have_to_end(
    node: FakeNode, slow: Callable[..., SlowSender]
) -> None:
    slow(3580.0, 10.0)
    jobs = FakeJobs()
    machine = replace(node.machine, jobs=jobs)
    effects = Effects(machine, to="n2", deadline=Deadline.after(HOUR_S))
    for step in (Do.PRE_COPY, Do.RELEASE_JOBS):
        effects.table()[step]()
    assert jobs.asked_s == jobs.release_limit_s()
