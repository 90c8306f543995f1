"""What the simulated kernel must not do, wherever a process stands still."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

from standfast.errors import StandfastError
from standfast.system.clock import monotonic
from tests.sim.one_node import on_a_node
from tests.support.fences import claimed


def test_whoever_stands_still_while_it_opens_the_port_opens_nothing_after_it(
    tmp_path: Path,
) -> None:
    with on_a_node(tmp_path) as node:
        fence, current = claimed(node.seat.fence()), node.world.clockwork.current
        assert current is not None
        for look in itertools.count():
            fence.ensure_closed()
            now = monotonic()
            current.process.stall_in, current.process.stall_s = look, 5.0
            with contextlib.suppress(StandfastError):
                fence.arm(now + 20, now + 1)
            assert node.rules.open_until <= now + 20 + 1, f"it stood still at look {look}"
            if current.process.stall_in >= 0:
                break  # there are fewer looks
        assert look > 3
        current.process.stall_in = -1
