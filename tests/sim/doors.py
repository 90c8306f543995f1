"""Where the shipped program meets the simulation: time, small files, and what leaves a process.

One list of what is replaced while a World is entered; everything else is the program's own code.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from msgspec import to_builtins

from standfast import names
from standfast.agent import local_view, loop, main, watcher
from standfast.btrfs import names_and_places as store
from standfast.cli import accept_epoch
from standfast.config.model import Config
from standfast.errors import Unreachable
from standfast.lease import process
from standfast.replication import receive, session, shipment
from standfast.role import isolated
from standfast.role import steps as effects
from standfast.role.execute import execute
from standfast.role.plan import Do, Plan
from standfast.system import clock, files
from standfast.system.clock import Deadline
from tests.fakes.clock import at_the_kernels_start
from tests.sim import streams
from tests.sim.clockwork import Exited, SimTime
from tests.sim.disk import entries

if TYPE_CHECKING:
    from tests.sim.node import Seat, SimNode
    from tests.sim.world import SimWorld

FSYNC_S = 0.001
PARSED = lru_cache(4096)(clock.parse_stamp)
"""The same few names are read again and again."""


class FilesOs:
    """`os` as `standfast.system.files` sees it: a state directory's disk may be full, or slow."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        clockwork = self._world.clockwork
        clockwork.door()
        if flags & os.O_WRONLY and clockwork.current is not None:
            node: SimNode = clockwork.current.process.owner  # type: ignore[assignment]
            # What is there already has its room.
            hit = node.var_error and (flags & os.O_CREAT or node.var_error != errno.ENOSPC)
            if hit and Path(path).is_relative_to(node.directory / "state"):
                raise OSError(node.var_error, os.strerror(node.var_error), str(path))
        return os.open(path, flags, mode)

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        """Its size, and none of this machine's memory."""
        os.ftruncate(descriptor, offset + length)

    def fsync(self, descriptor: int) -> None:
        if self._world.clockwork.current is not None:
            self._world.clockwork.take(FSYNC_S)

    def getpid(self) -> int:
        task = self._world.clockwork.current
        return 0 if task is None else task.process.pid


class AgentOs:
    """`os` as `standfast.agent.loop` sees it: it may end its process."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _exit(self, status: int) -> None:
        raise Exited(status)


# What follows changes nothing but the time that a run takes.


def quick_read_text(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
    """Path.read_text without a stream."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, 1 << 24)
    finally:
        os.close(descriptor)
    return data.decode(encoding or "utf-8", errors or "strict")


below = lru_cache(256)(Path.__truediv__)
QUICK: Sequence[tuple[object, str, object]] = (
    (Path, "read_text", quick_read_text),
    (names, "parse_stamp", PARSED),
    (Config, "run_dir", property(lambda config: below(config.paths.run, config.volume))),
    (Config, "state_dir", property(lambda config: below(config.paths.state, config.volume))),
)


@contextmanager
def entered(world: SimWorld) -> Iterator[None]:
    """The program on virtual time, in this world."""
    clockwork = world.clockwork

    def here() -> tuple[SimNode, Seat]:
        """Whose process runs: of a world with several volumes the first one's seat."""
        assert clockwork.current is not None
        node: SimNode = clockwork.current.process.owner  # type: ignore[assignment]
        return node, node.seat

    def answers(address: str, port: int) -> bool:
        return world.answers(here()[0], address)

    def ask(path: Path, request: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        node, _ = here()
        return node.seats[path.parent.name].inbox.ask(request, deadline)

    def ask_agent(path: Path, _request: Mapping[str, Any], _limit: Deadline) -> Mapping[str, Any]:
        node, _ = here()
        agent = node.seats[path.parent.name].agent
        if agent is None:
            raise Unreachable("nobody answers at agent.sock")
        return {"done": True, "obstacles": to_builtins(agent.inspector.look())}

    def notify(message: str) -> None:
        assert clockwork.current is not None
        for seat in here()[0].seats.values():
            service = seat.lease
            if service.process is clockwork.current.process:
                service.watched_at = world.now
                if message.startswith("READY=1"):
                    service.ready = True
                    service.changed.set()

    def run_plan(
        plan: Plan,
        table: Mapping[Do, Callable[[], None]],
        progress: Callable[[str], None],
        reached: Callable[[Do], None] = lambda _: None,
    ) -> None:
        assert clockwork.current is not None
        node = here()[0]
        seat = next(
            seat
            for seat in node.seats.values()
            if clockwork.current.process is seat.agent_service.process
        )
        execute(plan, WatchedEffects(seat, plan, table), progress, reached)

    class Gateway:
        """Of the node whose operator asks. Several may at once: nothing is replaced for one."""

        @staticmethod
        def from_config(config: object) -> object:
            seats = (seat for node in world.nodes.values() for seat in node.seats.values())
            return next(seat for seat in seats if seat.config is config).client(5.0)

    def print_done(_json: bool, text: str, **_: object) -> None:
        world.log(f"{here()[0].name}: accept-epoch: {text}")

    replaced: Sequence[tuple[object, str, object]] = (
        (accept_epoch, "load_volume", lambda seat: seat.config),
        (accept_epoch, "ConsulGateway", Gateway),
        (accept_epoch, "print_done", print_done),
        (clock, "time", SimTime(clockwork)),
        (clock, "started_at", at_the_kernels_start),
        (files, "os", FilesOs(world)),
        (main, "os", AgentOs()),
        (loop, "execute", run_plan),
        (effects, "ask", ask),
        (isolated, "ask", ask),
        (process, "notify", notify),
        (local_view, "changed_at", world.changed_at),
        (watcher, "answers", answers),
        (store, "_entries", partial(entries, [node.disk for node in world.nodes.values()])),
        (session, "reach", streams.reach(world)),
        (receive, "ask", ask_agent),
        (shipment, "pipeline", streams.Pipeline(world)),
        (receive, "pipeline", streams.Pipeline(world)),
        (receive, "_read_line", streams.read_line),
        *QUICK,
    )
    patches = [patch.object(module, name, new) for module, name, new in replaced]
    for replacement in patches:
        replacement.start()
    try:
        yield
    finally:
        for replacement in reversed(patches):
            replacement.stop()


class WatchedEffects(Mapping[Do, Callable[[], None]]):
    """A plan's effects; the world sees each step, and may cut the power before or after it."""

    def __init__(self, seat: Seat, plan: Plan, table: Mapping[Do, Callable[[], None]]) -> None:
        self._seat = seat
        self._plan = plan
        self._table = table

    def __iter__(self) -> Iterator[Do]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, do: Do) -> Callable[[], None]:
        seat, effect = self._seat, self._table[do]
        node, world = seat.node, seat.node.world

        def run() -> None:
            if do is Do.CLAIM_LEASE:
                seat.claimed_at = world.now
            if seat.cut_before is do:
                seat.cut_before = None
                node.power_cut()
            world.clockwork.take(0.01)
            world.log(f"{node.name}: {self._plan.name}: {do}", detail=do is not Do.CLAIM_LEASE)
            try:
                effect()
            except Exception as error:
                seat.note(f"{self._plan.name} {do}: {error}")
                raise
            if do is Do.PREPARE_VOLUME:
                world.epoch_prepared(seat)
            if seat.cut_after is do:
                seat.cut_after = None
                node.power_cut()
                world.clockwork.check()

        return run


def run_accept_epoch(seat: Seat) -> None:
    """`standfast accept-epoch`, as an operator runs it on the node."""
    asked = SimpleNamespace(volume=seat, json=False, dry_run=False)
    accept_epoch.run(asked)  # type: ignore[arg-type]
