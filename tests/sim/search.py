"""Random schedules: one run of one, how a failing one gets short, and many of them.

python -m tests.sim.search --minutes 10         fresh seeds on all cores
python -m tests.sim.search --count 500 --without A1
python -m tests.sim.replay SEED                 one of them, with its timeline
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tests.sim.clockwork import Violation
from tests.sim.deeds import DEEDS, TIMINGS, Schedule, schedule_of
from tests.sim.world import SimWorld

SHM = Path("/dev/shm")
SETTLE_S = 260.0
"""A surrender may wait for an orderly handover that was begun."""
REPLICATES_S = 120.0
"""Two intervals, and a cycle that was begun into a fault and ends at its time-out of 60 s."""
CHUNK = 20
TELL_EVERY = 1000


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """In memory, where there is such a place."""
    path = Path(tempfile.mkdtemp(prefix="sf-sim-", dir=SHM if SHM.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def world_of(schedule: Schedule, path: Path) -> SimWorld:
    world = SimWorld(
        path,
        volumes=schedule.volumes,
        timing=TIMINGS[schedule.timing],
        rates=schedule.rates,
        failover_cooldown_s=schedule.failover_cooldown_s,
        seed=schedule.seed,
    )
    world.be_random(schedule.quick)
    return world


def perform(schedule: Schedule, world: SimWorld) -> None:
    """Violation, with the timeline."""
    world.begin()
    world.lasting = schedule.lasting
    for deed in schedule.deeds:
        world.run(deed.pause_s)
        world.log(f"* {deed}")
        DEEDS[deed.name][1](world, deed)
    longest_s = max((deed.length_s for deed in schedule.deeds), default=0.0)
    world.run(min(longest_s, 30.0))
    world.log("* the faults stop")
    world.repair()
    world.settle(SETTLE_S)
    world.check_replicates(REPLICATES_S)
    world.check_nothing_deleted()
    world.check_no_bug()


def run(schedule: Schedule) -> tuple[SimWorld, Violation | None]:
    """The world after one run, and what it found."""
    gc.disable()  # tasks that ended are unwound at the world's end, not at some moment
    try:
        with directory() as path, world_of(schedule, path) as world:
            try:
                perform(schedule, world)
            except Violation as violation:
                return world, violation
            return world, None
    finally:
        gc.enable()


def kind_of(violation: Violation) -> str:
    """What was broken, without numbers and names: the same fault for the shrinking."""
    first = str(violation).splitlines()[0]
    return " ".join(word for word in first.split() if word.isalpha() and len(word) > 1)[:60]


def shrunk(schedule: Schedule, violation: Violation) -> tuple[Schedule, Violation]:
    """Deeds are left out one by one for as long as the same thing is broken."""
    again = True
    while again:
        again = False
        for number in range(len(schedule.deeds)):
            deeds = schedule.deeds
            rest = deeds[:number] + deeds[number + 1 :]
            if number + 1 < len(deeds):  # what follows stays at its time
                after = deeds[number + 1]
                moved = replace(after, pause_s=after.pause_s + deeds[number].pause_s)
                rest = (*deeds[:number], moved, *deeds[number + 2 :])
            shorter = replace(schedule, deeds=rest)
            _, broken = run(shorter)
            if broken is not None and kind_of(broken) == kind_of(violation):
                schedule, violation, again = shorter, broken, True
                break
    return schedule, violation


@dataclass(frozen=True, slots=True)
class FoundViolation:
    """A violation, ready to be read."""

    seed: int
    text: str


def report(schedule: Schedule, violation: Violation) -> FoundViolation:
    short, last = shrunk(schedule, violation)
    command = f".venv/bin/python -m tests.sim.replay {schedule.seed}"
    text = f"{command}\nshrunk to\n{short}\n{last}"
    return FoundViolation(schedule.seed, text)


def search(
    seeds: Iterable[int], enough: Callable[[int], bool] = lambda _done: False, *, only: str = ""
) -> tuple[int, FoundViolation | None]:
    """How many schedules ran, and the first violation."""
    logging.disable(logging.CRITICAL)
    done = 0
    try:
        for seed in seeds:
            if enough(done):
                break
            schedule = schedule_of(seed, only=only)
            _, violation = run(schedule)
            done += 1
            if violation is not None:
                return done, report(schedule, violation)
    finally:
        logging.disable(logging.NOTSET)
    return done, None


def _some(seed: int) -> tuple[int, FoundViolation | None]:
    return search(range(seed, seed + CHUNK))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Random schedules on all cores.")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(arguments)
    started = time.monotonic()
    end = started + args.minutes * 60 if args.minutes else float("inf")
    print(f"random schedules from seed {args.seed}", flush=True)
    done = 0
    with ProcessPoolExecutor(args.workers) as pool:
        waiting: set[Future[tuple[int, FoundViolation | None]]] = set()
        seed = args.seed
        while waiting or (not args.count or seed - args.seed < args.count):
            while len(waiting) < 2 * args.workers and time.monotonic() < end:
                if args.count and seed - args.seed >= args.count:
                    break
                waiting.add(pool.submit(_some, seed))
                seed += CHUNK
            if not waiting:
                break
            ready = [future for future in waiting if future.done()] or [next(iter(waiting))]
            for future in ready:
                waiting.discard(future)
                count, violation = future.result()
                if (done + count) // TELL_EVERY > done // TELL_EVERY:
                    print(f"{done + count} schedules", flush=True)
                done += count
                if violation is not None:
                    print(f"after {done} schedules:\n{violation.text}")
                    pool.shutdown(cancel_futures=True)
                    return 1
    minutes = (time.monotonic() - started) / 60
    print(f"{done} random schedules in {minutes:.1f} min, no violation")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
