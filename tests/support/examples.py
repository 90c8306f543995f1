"""How many examples Hypothesis tries: few in `make test`, many in a search.

A test says with `@examples(n)` what `make test` can afford. It runs there twice: with a fixed
seed, so that everybody sees the same failure, and with a fresh one, which the run prints.
HYPOTHESIS_PROFILE=search (`make torture`) multiplies every such number by SEARCH.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SEARCH = 10
"""A round of a long search ends in minutes; new seeds find more than more examples."""
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "test")
_TIMES = {"test": 1, "search": SEARCH}


def times() -> int:
    """By how much this run's profile multiplies what a test asks for."""
    return _TIMES[PROFILE]


def examples(count: int) -> settings:
    """The decorator for a property that `make test` tries with `count` examples, twice."""
    return settings(max_examples=count * times())


def load_profile() -> None:
    """What every property has in common: no time limit for an example, nothing kept on disk."""
    if PROFILE not in _TIMES:
        raise ValueError(f"HYPOTHESIS_PROFILE={PROFILE}: only {' and '.join(_TIMES)} are known")
    settings.register_profile(
        PROFILE,
        max_examples=100 * times(),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile(PROFILE)
