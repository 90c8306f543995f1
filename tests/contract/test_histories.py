"""Random histories of three nodes on real btrfs: a few in `make test`, a thousand in each round of
`make torture`.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import example, given, note
from hypothesis import strategies as st

from tests.contract.clocks import Clocks
from tests.contract.effects import EFFECTS_AT_LEAST, effects, some_or_every_effect
from tests.contract.histories import (
    Change,
    CutCycle,
    Failover,
    Ground,
    HandOver,
    Prune,
    Step,
    StepClock,
    WayBack,
    WholeCycle,
)
from tests.contract.images import quick_directory
from tests.contract.links import LinkFault, Links
from tests.contract.peers import NODES
from tests.contract.trees import KINDS, Mutation, differences, mutate, read_tree
from tests.support.examples import examples
from tests.support.volumes import btrfs_on_file, require_btrfs

MANY = 200
AT_LEAST = {"increments": 150, "failbacks": 20, "cycles cut": 60, "promotions": 100}
"""What so many histories have to come to, or they prove too little. Few come to each of it once."""

_numbers = st.integers(0, 60)
# Where btrfs-progs had its bugs, more often.
_kinds = [*sorted(KINDS), *("copy-and-delete", "reflink", "rename") * 4]
_mutations = st.builds(Mutation, st.sampled_from(_kinds), _numbers, _numbers)
_first_files = st.lists(
    st.builds(Mutation, st.sampled_from(["write", "mkdir"]), _numbers, _numbers),
    min_size=4,
    max_size=10,
)
_to = st.integers(0, 1)
_nodes = st.sampled_from(NODES)
_how = st.sampled_from(["cut", "kill-receiver"])
_faults = st.one_of(
    st.builds(lambda do, count: LinkFault(do, stream_bytes=count), _how, st.integers(0, 40_000)),
    st.builds(lambda number: LinkFault("kill-receiver", effect=number), st.integers(0, 30)),
)
_changes = st.builds(Change, st.lists(_mutations, min_size=1, max_size=6).map(tuple))
_OFTEN: dict[st.SearchStrategy[Step], int] = {
    _changes: 4,
    st.builds(WholeCycle, _to): 5,
    st.builds(CutCycle, _to, _faults): 2,
    st.builds(Failover, _to): 1,
    st.builds(HandOver, _to): 1,
    st.builds(WayBack, _to, st.booleans(), _changes): 2,
    st.builds(Prune, _nodes): 1,
    st.builds(StepClock, _nodes, st.sampled_from([-1.0, 1.0])): 1,
}
_steps = st.sampled_from(
    [strategy for strategy, times in _OFTEN.items() for _ in range(times)]
).flatmap(lambda strategy: strategy)
_numbering = itertools.count()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    require_btrfs()
    with ExitStack() as stack:
        fallback = tmp_path_factory.mktemp("histories")
        place = stack.enter_context(quick_directory(fallback))
        clocks = Clocks(NODES)
        clocks.rule(stack.enter_context(pytest.MonkeyPatch.context()))
        links = stack.enter_context(Links(place / "links", clocks.act_as).serve())
        for node in NODES:
            stack.enter_context(btrfs_on_file(place / f"{node}.img", place / node))
        ground = Ground(place, links, clocks)
        yield ground
        assert_they_prove_enough(ground.tally)


def assert_they_prove_enough(tally: Counter[str]) -> None:
    tried = tally["histories"]
    for what, of_many in AT_LEAST.items():
        least = of_many * tried // MANY if tried >= MANY else min(tried, 1)
        assert tally[what] >= least, f"{what}: {tried} histories prove too little: {dict(tally)}"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_comparison_sees_every_kind_of_change(ground: Ground, kind: str) -> None:
    root = ground.place / "a" / f"seen-{kind}"
    (root / "d").mkdir(parents=True)
    for number in range(5):
        path = root / "d" / f"file{number}"
        path.write_bytes(os.urandom(40_000))
        os.setxattr(path, "user.x0", b"old")
    for number in range(60):
        before = read_tree(root)
        mutate(root, Mutation(kind, number, number * 5 // 3))
        if differences(before, read_tree(root)):
            return
    raise AssertionError(f"{kind}: nothing changes, or nobody sees it")


@pytest.mark.timeout(1800)
@examples(20)
@example(
    first=[Mutation("write", 0, 2)],
    steps=[
        WholeCycle(1),
        WholeCycle(0),
        WholeCycle(1),
        WholeCycle(1),
        WayBack(0, True, Change(())),
    ],
)
@example(
    first=[Mutation("write", 0, 2)],
    steps=[WholeCycle(1), WholeCycle(1), HandOver(0), WholeCycle(0)],
)
@example(
    first=[Mutation("write", 0, 2)],
    steps=[CutCycle(1, LinkFault("cut", stream_bytes=100)), Failover(0)],
)
@given(first=_first_files, steps=st.lists(_steps, min_size=5, max_size=10))
def test_whatever_happened_what_is_published_is_what_was_sent(
    ground: Ground, first: list[Mutation], steps: list[Step]
) -> None:
    ground.tally["histories"] += 1
    with ground.world(next(_numbering)) as world:
        Change(tuple(first)).happen(world)
        for step in [WholeCycle(0), *steps]:
            note(f"epoch {world.epoch}, {world.primary}: {step}")
            world.pass_time()
            step.happen(world)
            world.check()


@some_or_every_effect
def test_a_receiver_killed_anywhere_keeps_what_it_shares_with_the_others(
    ground: Ground, stride: int
) -> None:
    """Even when old snapshots are deleted there before the next cycle."""
    for number in effects(stride):
        before = ground.tally["cycles cut"]
        with ground.world(next(_numbering)) as world:
            cut = CutCycle(0, LinkFault("kill-receiver", effect=number))
            for step in (WholeCycle(0), WholeCycle(1), cut, Prune("b"), WholeCycle(0)):
                world.pass_time()
                step.happen(world)
                world.check()
        if ground.tally["cycles cut"] == before:
            break
    assert number >= EFFECTS_AT_LEAST
