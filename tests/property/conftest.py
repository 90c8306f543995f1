"""How hard Hypothesis looks: the same examples each time, or `HYPOTHESIS_PROFILE=search`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("repeatable", derandomize=True, **_COMMON)  # type: ignore[arg-type]
settings.register_profile("search", max_examples=2000, **_COMMON)  # type: ignore[arg-type]
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
