"""Two hundred random histories of three nodes on real btrfs.

HYPOTHESIS_PROFILE=search looks for other ones, many more.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, Phase, example, given, note, settings
from hypothesis import strategies as st

from tests.contract.clocks import Clocks
from tests.contract.histories import (
    Change,
    Cut,
    Cycle,
    Failover,
    Ground,
    HandOver,
    Prune,
    Step,
    StepClock,
    WayBack,
)
from tests.contract.images import quick_directory
from tests.contract.links import Fault, Links
from tests.contract.peers import NODES
from tests.contract.trees import KINDS, Mutation, differences, mutate, read_tree
from tests.contract.volumes import btrfs_on_file, require_btrfs

SEARCHING = os.environ.get("HYPOTHESIS_PROFILE") == "search"
HISTORIES = 3_000 if SEARCHING else 200
NEEDED_BYTES = 2 * 2**30
AT_LEAST = {"increments": 150, "failbacks": 20, "cycles cut": 60, "promotions": 100}

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
    st.builds(lambda do, count: Fault(do, stream_bytes=count), _how, st.integers(0, 40_000)),
    st.builds(lambda number: Fault("kill-receiver", effect=number), st.integers(0, 30)),
)
_changes = st.builds(Change, st.lists(_mutations, min_size=1, max_size=6).map(tuple))
_OFTEN: dict[st.SearchStrategy[Step], int] = {
    _changes: 4,
    st.builds(Cycle, _to): 5,
    st.builds(Cut, _to, _faults): 2,
    st.builds(Failover, _to): 1,
    st.builds(HandOver, _to): 1,
    st.builds(WayBack, _to, st.booleans(), _changes): 2,
    st.builds(Prune, _nodes): 1,
    st.builds(StepClock, _nodes, st.sampled_from([-1.0, 1.0])): 1,
}
_steps = st.sampled_from([one for one, times in _OFTEN.items() for _ in range(times)]).flatmap(
    lambda one: one
)
_numbering = itertools.count()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    require_btrfs()
    with ExitStack() as stack:
        fallback = tmp_path_factory.mktemp("histories")
        place = stack.enter_context(quick_directory(fallback, NEEDED_BYTES))
        clocks = Clocks(NODES)
        clocks.rule(stack.enter_context(pytest.MonkeyPatch.context()))
        links = stack.enter_context(Links(place / "links", clocks.act_as).serve())
        for node in NODES:
            stack.enter_context(btrfs_on_file(place / f"{node}.img", place / node))
        yield Ground(place, links, clocks)


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


@settings(
    max_examples=HISTORIES,
    derandomize=not SEARCHING,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@example(
    first=[Mutation("write", 0, 2)],
    steps=[Cycle(1), Cycle(0), Cycle(1), Cycle(1), WayBack(0, True, Change(()))],
)
@example(first=[Mutation("write", 0, 2)], steps=[Cycle(1), Cycle(1), HandOver(0), Cycle(0)])
@given(first=_first_files, steps=st.lists(_steps, min_size=5, max_size=10))
def happens(ground: Ground, first: list[Mutation], steps: list[Step]) -> None:
    with ground.world(next(_numbering)) as world:
        Change(tuple(first)).happen(world)
        for step in [Cycle(0), *steps]:
            note(f"epoch {world.epoch}, {world.primary}: {step}")
            world.pass_time()
            step.happen(world)
            world.check()


@pytest.mark.timeout(1800)
def test_whatever_happened_what_is_published_is_what_was_sent(ground: Ground) -> None:
    happens(ground)
    print(dict(ground.tally))
    for what, least in AT_LEAST.items():
        assert ground.tally[what] >= least, f"{what}: these histories prove too little"


def test_a_receiver_killed_anywhere_keeps_what_it_shares_with_the_others(ground: Ground) -> None:
    """Even when old snapshots are deleted there before the next cycle."""
    for number in itertools.count():
        with ground.world(next(_numbering)) as world:
            cut = Cut(0, Fault("kill-receiver", effect=number))
            for step in (Cycle(0), Cycle(1), cut, Prune("b"), Cycle(0)):
                world.pass_time()
                step.happen(world)
                world.check()
            if not world.ground.tally.pop("cycles cut", 0):
                break
    assert number >= 12
