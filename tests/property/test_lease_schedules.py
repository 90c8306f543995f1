"""Random faults at random moments: the invariants hold all along, and it settles afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, note
from hypothesis import strategies as st

from standfast.decision import Wish
from tests.sim.world import FAST, World
from tests.support.examples import examples

NAMES = ("a", "b", "c")
Deed = tuple[str, str, float, str]

node_names = st.sampled_from(NAMES)
lengths_s = st.floats(0.0, 25.0).map(lambda seconds: round(seconds, 2))
deeds: st.SearchStrategy[Deed] = st.tuples(
    st.sampled_from(
        [
            "power",
            "agent",
            "keeper",
            "freeze",
            "freeze-keeper",
            "pause-vm",
            "isolate",
            "isolate-consul",
            "deaf",
            "quorum",
            "delete",
            "switchover",
            "promote",
            "arm",
            "fault",
            "fault",
            "fault",
        ]
    ),
    node_names,
    lengths_s,
    st.sampled_from(
        [
            f"{kind}/{what}"
            for kind in ("heartbeat", "clean", "acquire")
            for what in ("lost", "late", "reply-lost", "freeze-before", "freeze-after")
        ]
    ),
)
schedules = st.lists(st.tuples(lengths_s, deeds), min_size=1, max_size=7)


def freeze_all(world: World, name: str, length_s: float, _: str) -> None:
    world[name].freeze_all(length_s)


def freeze_keeper(world: World, name: str, length_s: float, _: str) -> None:
    world[name].freeze(world[name].keeper_actor, length_s)


def power(world: World, name: str, length_s: float, _: str) -> None:
    world[name].power_cut()
    world.after(length_s, world[name].boot)


def agent(world: World, name: str, length_s: float, _: str) -> None:
    world[name].kill_agent()
    world.after(length_s, world[name].start_agent)


def keeper(world: World, name: str, length_s: float, _: str) -> None:
    world[name].kill_keeper()


def pause_vm(world: World, name: str, length_s: float, _: str) -> None:
    if world[name].powered:
        world[name].pause_vm(length_s, clock_stops=False)


def isolate(world: World, name: str, length_s: float, _: str) -> None:
    world.isolate(name)
    world.after(length_s, lambda: world.join(name))


def isolate_consul(world: World, name: str, length_s: float, _: str) -> None:
    world.isolate(name, standbys=False)
    world.after(length_s, lambda: world.join(name))


def deaf(world: World, name: str, length_s: float, _: str) -> None:
    world[name].client.replies_cut = True
    world.after(length_s, lambda: world.join(name))


def quorum(world: World, name: str, length_s: float, _: str) -> None:
    world.store.quorum = False
    world.after(length_s, lambda: setattr(world.store, "quorum", True))


def delete(world: World, name: str, length_s: float, _: str) -> None:
    world.store.delete(world.key("leader" if length_s < 15 else "epoch"))


def switchover(world: World, name: str, length_s: float, _: str) -> None:
    primary = world.primary()
    if primary is not None and primary.name != name:
        primary.hand_to = name


def promote(world: World, name: str, length_s: float, _: str) -> None:
    world[name].wish = Wish(promote=True)
    world.after(length_s, lambda: setattr(world[name], "wish", Wish()))


def arm(world: World, name: str, length_s: float, _: str) -> None:
    world[name].fence.freeze_in_arm_s = length_s


def fault(world: World, name: str, length_s: float, what: str) -> None:
    kind, _, how = what.partition("/")
    world.fault(name, kind, how, length_s)


DEEDS: dict[str, Callable[[World, str, float, str], None]] = {
    "power": power,
    "agent": agent,
    "keeper": keeper,
    "freeze": freeze_all,
    "freeze-keeper": freeze_keeper,
    "pause-vm": pause_vm,
    "isolate": isolate,
    "isolate-consul": isolate_consul,
    "deaf": deaf,
    "quorum": quorum,
    "delete": delete,
    "switchover": switchover,
    "promote": promote,
    "arm": arm,
    "fault": fault,
}


def perform(world: World, schedule: list[tuple[float, Deed]]) -> None:
    world.begin()
    for pause_s, (deed, name, length_s, what) in schedule:
        note(f"{world.now:.2f}: {deed} {name} {length_s} {what}")
        if deed in DEEDS:
            DEEDS[deed](world, name, length_s, what)
        world.run(pause_s)
    # The faults stop.
    world.store.quorum = True
    world.run(30.0)
    for name in NAMES:
        world[name].client.faults.clear()
        world.join(name)
        world[name].boot()
        world[name].start_agent()
    world.check_settled(300.0)
    world.check_nothing_deleted()


@examples(20)
@given(schedule=schedules)
def test_no_schedule_of_faults_breaks_an_invariant(schedule: list[tuple[float, Deed]]) -> None:
    with tempfile.TemporaryDirectory() as directory, World(Path(directory)) as world:
        perform(world, schedule)


@examples(20)
@given(
    schedule=schedules,
    rates=st.tuples(*[st.sampled_from([0.99, 1.0, 1.01])] * 3),
)
def test_no_schedule_breaks_an_invariant_of_the_fast_profile_with_drifting_clocks(
    schedule: list[tuple[float, Deed]], rates: tuple[float, ...]
) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        World(Path(directory), timing=FAST, rates=rates) as world,
    ):
        perform(world, schedule)
