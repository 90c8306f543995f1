"""What `status` says of a failover, compared with the failover: the primary dies right then.

`yes` means that somebody serves in time, `no` that nobody takes over for as long as it is said.
Deeds come before, and are over or there to stay when it is asked; what is known late by design has
been told by then:

- a look at what is in the way is up to a minute old (`inspector.EVERY_S`), though everybody looks
  once more when the primary is silent;
- the last word of a candidate that died counts for `surrender.FRESH_S`.

A server that fails at its start is left out, as nothing tells that beforehand, and a full disk: it
is better than nobody, and may be enough.

python -m tests.sim.outlook --count 500
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import sys
from collections.abc import Mapping
from dataclasses import replace

from msgspec import structs

from standfast.agent.document import document
from standfast.consul.records import CandidateRecord
from standfast.reasons import Reason
from standfast.status.document import Failover
from tests.sim.clockwork import Violation
from tests.sim.deeds import DEEDS, NAMES, Act, Deed, Schedule, schedule_of
from tests.sim.node import SimNode
from tests.sim.search import directory, world_of
from tests.sim.world import CRITICAL_AFTER_S, SimWorld

KINDS = (
    "mask", "mask", "power", "kill", "freeze-all", "isolate", "one-way", "consul-agent", "pause",
    "switchover", "switchover", "demote", "promote", "disk-read-only", "clock-step", "rename",
    "standby-added", "slow-copies", "manual", "agent", "old-word", "other-words",
)  # fmt: skip
FOR_GOOD_S = 3600.0
KNOWN_S = 80.0
BLIND = (Reason.CONSUL_UNREACHABLE, Reason.CONSUL_TIMEOUT, Reason.CONSUL_NO_QUORUM)
"""Whoever doesn't reach Consul says that, and nothing about the others."""
PROMOTED_S = 4.0


def outlook_of(seed: int) -> Schedule:
    """Some deeds of those that `status` should know of, often on all standbys."""
    rng = random.Random(seed)
    deeds = []
    for _ in range(rng.randint(1, 3)):
        length_s = round(rng.choice((1.0, 20.0, FOR_GOOD_S)) * (0.5 + rng.random() / 2), 2)
        kind, number = rng.choice(KINDS), rng.randrange(10_000)
        hit = NAMES[1:] if rng.random() < 0.5 else (rng.choice(NAMES),)
        for name in hit:
            pause_s = round(rng.choice((0.0, 1.0, 10.0)) * rng.random(), 2)
            deeds.append(Deed(pause_s, kind, name, length_s, number))
    known = schedule_of(seed)
    return replace(known, volumes=known.volumes[:1], deeds=tuple(deeds), lasting="")


def manual(world: SimWorld, deed: Deed) -> None:
    """Another mode on one node."""
    seat = world[deed.node].seat

    def become(mode: str) -> None:
        seat.configure(structs.replace(seat.config, mode=mode))

    become("manual")
    world.after(deed.length_s, lambda: become("auto"))


def agent(world: SimWorld, deed: Deed) -> None:
    """It is stopped: of this node nothing is heard any more."""
    world[deed.node].kill_agent()
    world.after(deed.length_s, world[deed.node].start_agent)


def old_word(world: SimWorld, deed: Deed) -> None:
    """As an older version writes it, which tells nothing of a dead primary."""
    key = world.key(f"candidates/{deed.node}")
    entry = world.store.get(key)
    if entry is not None:
        word = CandidateRecord.parse(entry.value)
        world.store.put(key, structs.replace(word, takes_over=None, because=None).dump())


def other_words(world: SimWorld, deed: Deed) -> None:
    """By hand: none, or of another epoch, of a node that isn't there, or no word at all."""
    key = world.key(f"candidates/{deed.node}")
    entry = world.store.get(key)
    if entry is None or deed.number % 4 == 0:
        world.store.delete(key)
        return
    if deed.number % 4 == 1:
        world.store.put(key, b"{}")
        return
    word = structs.replace(CandidateRecord.parse(entry.value), ready=True, takes_over=True)
    if deed.number % 4 == 2:
        world.store.put(key, structs.replace(word, epoch=word.epoch + 1).dump())
    else:
        gone = structs.replace(word, node="ghost")
        world.store.put(world.key("candidates/ghost"), gone.dump())


OWN: Mapping[str, Act] = {
    "manual": manual,
    "agent": agent,
    "old-word": old_word,
    "other-words": other_words,
}


def can_fail_over(world: SimWorld, node: SimNode) -> Failover | None:
    """What `standfast status` answers on that node; None: no agent is there, or it is blind."""
    agent, said = node.seat.agent, list[Failover | None]()
    process = node.seat.agent_service.process
    if agent is None or process is None or process.dead or not node.runs:
        return None
    if process.frozen_until > world.now:
        return None
    node.spawn("status", lambda: said.append(document(agent, fresh=True).failover))
    end = world.now + 5.0
    while not said and world.now < end:
        world.run(0.02)
    answer = said[0] if said else None
    return None if answer is None or answer.reason in BLIND else answer


def perform(schedule: Schedule, world: SimWorld) -> bool | None:
    """What was said, which came true, else Violation; None: nobody served, or nobody could say."""
    world.begin()
    for deed in schedule.deeds:
        world.run(deed.pause_s)
        world.log(f"* {deed}")
        (OWN.get(deed.name) or DEEDS[deed.name][1])(world, deed)
    world.run(KNOWN_S)
    primary = world.primary()
    said = {name: can_fail_over(world, node) for name, node in world.nodes.items()}
    asked = [world[name] for name, answer in said.items() if answer and world[name] is not primary]
    if primary is None or world.primary() is not primary or not asked:
        return None
    answers = {answer.possible for answer in said.values() if answer is not None}
    world.log(f"* status: {said}")
    if len(answers) > 1:
        raise Violation(f"nodes say yes and no of a failover: {said}\n{world.story()}")
    (yes,) = answers
    primary.power_cut()
    if yes:
        _follows(world, primary)
    else:
        _stays(world, asked[0])
    return yes


def _follows(world: SimWorld, primary: SimNode) -> None:
    """Somebody else serves in time; each better candidate that looks alive has a head start."""
    longest = max((seat.config.lease for seat in world.seats()), key=lambda lease: lease.wait)
    start_s = max(longest.wait * 1.02, CRITICAL_AFTER_S)
    limit_s = start_s + 2 * (longest.heartbeat + longest.request_timeout) + PROMOTED_S

    def followed() -> bool:
        return world.primary() not in (None, primary)

    world.wait_for("status said yes: somebody serves", followed, limit_s)


def _stays(world: SimWorld, asked: SimNode) -> None:
    """Nobody takes over while it is said that nobody would."""
    epoch, end = world.epoch(), world.now + 45.0
    while world.now < end:
        answer = can_fail_over(world, asked)
        if answer is not None and answer.possible:
            return
        world.run(1.0)
        if world.epoch() != epoch:
            raise Violation(f"status said no, and somebody took over: {answer}\n{world.story()}")


def run(seed: int) -> bool | None:
    """One schedule; see `perform`."""
    schedule = outlook_of(seed)
    gc.disable()
    try:
        with directory() as path, world_of(schedule, path) as world:
            try:
                return perform(schedule, world)
            except Violation as violation:
                raise Violation(f"seed {seed}: {violation}\n{schedule}") from violation
    finally:
        gc.enable()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Is what `status` says of a failover true?")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    args = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    said: dict[bool | None, int] = {True: 0, False: 0, None: 0}
    for seed in range(args.seed, args.seed + args.count):
        said[run(seed)] += 1
    print(f"from seed {args.seed}: {said[True]} yes, {said[False]} no, {said[None]} not asked")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
