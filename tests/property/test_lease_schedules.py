"""Random deeds at random moments: the invariants hold all along, and it settles afterwards.

The schedules are drawn anew in each run, from a seed that is printed; a failing one is shown
shortened, with its timeline and the command that repeats it.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.sim.search import search
from tests.support import figures
from tests.support.examples import times

CHUNKS = 8
IN_ALL = 720
"""Of `make test`: what fits into two minutes of one core."""
SEED = int(os.environ.get("STANDFAST_SEED") or random.SystemRandom().randrange(10**9))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=pytest.mark.xdist_group(f"schedules-{n}")) for n in range(CHUNKS)],
)
def test_no_schedule_of_deeds_breaks_an_invariant(number: int) -> None:
    count = IN_ALL * times() // CHUNKS
    first = SEED * 1_000 + number * count
    began_s = time.monotonic()
    done, violation = search(range(first, first + count))
    took_s = time.monotonic() - began_s
    figures.note(f"{done} random schedules from seed {first} in {took_s:.0f} s")
    assert violation is None, f"after {done} schedules: {violation and violation.text}"
