"""How old each standby's newest snapshot was in the last hour, for a page that is opened later.

Invariant: memory is bounded: one float for each bucket and standby, whatever happens. A bucket
holds the highest age that was seen in it; nothing seen is NaN, never a number.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Mapping, Sequence

SPAN_S = 3600.0
STEP_S = 30.0
BUCKETS = int(SPAN_S / STEP_S)
MOST_STANDBYS = 2000


class Trend:
    """Keeps the ages of one volume's standbys; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rings: dict[str, array[float]] = {}
        self._last = -1
        """Number of the newest bucket."""

    def note(self, ages: Mapping[str, float | None], now: float) -> None:
        """Notes what was seen at `now` (monotonic seconds): ages in seconds; None: no snapshot, or
        one of unknown age."""
        with self._lock:
            bucket = self._advance(now)
            for name, age_s in ages.items():
                if name not in self._rings and len(self._rings) >= MOST_STANDBYS:
                    continue
                ring = self._rings.setdefault(name, array("f", [math.nan]) * BUCKETS)
                if age_s is not None:
                    before = ring[bucket]
                    ring[bucket] = age_s if math.isnan(before) else max(before, age_s)

    def ages(self, now: float) -> Mapping[str, Sequence[float | None]]:
        """Returns each standby's, the oldest bucket first, as long as anything is known of it."""
        with self._lock:
            newest = self._advance(now)
            order = [(newest + 1 + number) % BUCKETS for number in range(BUCKETS)]
            ages = {}
            for name, ring in self._rings.items():
                values = [None if math.isnan(ring[at]) else ring[at] for at in order]
                first = next((n for n, value in enumerate(values) if value is not None), BUCKETS)
                ages[name] = values[first:]
            return ages

    def _advance(self, now: float) -> int:
        """Returns the index of the bucket of `now`; those that were skipped since the last call are
        empty."""
        number = int(now / STEP_S)
        if self._last >= 0:
            for passed in range(self._last + 1, min(number, self._last + BUCKETS) + 1):
                for ring in self._rings.values():
                    ring[passed % BUCKETS] = math.nan
        # A standby that nothing was seen of for the whole hour is forgotten.
        self._rings = {
            name: ring
            for name, ring in self._rings.items()
            if number == self._last or not all(math.isnan(age_s) for age_s in ring)
        }
        self._last = max(self._last, number)
        return self._last % BUCKETS
