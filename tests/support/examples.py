"""How many examples Hypothesis tries: few in `make test`, many in a search.

A test says with `@examples(n)` what `make test` can afford. It runs there twice: with a fixed
seed, so that a failure is everybody's, and with a fresh one, which the run prints.
HYPOTHESIS_PROFILE=search (`make torture`) multiplies every such number by SEARCH.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SEARCH = 50
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "test")
_TIMES = {"test": 1, "search": SEARCH}


def examples(count: int) -> settings:
    """The decorator for a property that `make test` tries with `count` examples, twice."""
    return settings(max_examples=count * _TIMES[PROFILE])


def load_profile() -> None:
    """What every property has in common: no time limit for an example, nothing kept on disk."""
    if PROFILE not in _TIMES:
        raise ValueError(f"HYPOTHESIS_PROFILE={PROFILE}: only {' and '.join(_TIMES)} are known")
    settings.register_profile(
        PROFILE,
        max_examples=100 * _TIMES[PROFILE],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile(PROFILE)
