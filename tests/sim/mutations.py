"""Safety rules taken away, by name: what the simulation has to notice."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from msgspec import structs

import standfast
from standfast.agent import fence
from standfast.config.model import LeaseTiming
from standfast.consul.gateway import Committed, Conflict
from standfast.consul.values import Cas, Op, Set
from standfast.errors import Refused, StandfastError
from standfast.lease import holding, keeper, protocol, unserved
from standfast.lease.epochs import EpochFile
from standfast.lease.protocol import NEVER, HeldLease
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.replication import receive_checks
from standfast.role import observation
from standfast.system import clock
from tests.sim import deeds
from tests.sim.machine import PacketFilter
from tests.sim.model_consul import SimConsul, kind_of

Mutation = Callable[[], AbstractContextManager[object]]


@contextmanager
def forced(kind: str, key: str) -> Iterator[None]:
    """Transactions of a kind set this key whatever it holds."""
    real = SimConsul.txn

    def txn(client: SimConsul, ops: Sequence[Op], **rest: Any) -> Committed | Conflict:
        if kind_of(ops) == kind:
            ops = [
                Set(op.key, op.value) if isinstance(op, Cas) and op.key.endswith(key) else op
                for op in ops
                if isinstance(op, (Cas, Set)) or kind != "clean"
            ]
        return real(client, ops, **rest)

    with patch.object(SimConsul, "txn", txn):
        yield


@contextmanager
def counted_from_the_reply() -> Iterator[None]:
    real = protocol.committed

    def committed(held_lease: HeldLease, seq: int, index: int, length_s: float) -> HeldLease:
        now = clock.monotonic()
        return real(structs.replace(held_lease, attempts={seq: now}), seq, index, length_s)

    with patch.object(protocol, "committed", committed):
        yield


@contextmanager
def taken_for_valid() -> Iterator[None]:
    real = protocol.read_back

    def read_back(
        held_lease: HeldLease,
        held: protocol.Versioned,
        _now: float,
        length_s: float,
        wait_s: float = 0.0,
    ) -> protocol.Verdict:
        return real(held_lease, held, NEVER, length_s, wait_s)

    with patch.object(protocol, "read_back", read_back):
        yield


@contextmanager
def a_flush_is_not_noticed() -> Iterator[None]:
    """Once the port has been shut nobody looks at the rules any more."""
    real = keeper.Keeper.check_end

    def check_end(self: keeper.Keeper) -> None:
        if not self.cut_off:
            real(self)

    with (
        patch.object(keeper.Keeper, "check_end", check_end),
        patch.object(fence.FenceWatch, "look", lambda _self: None),
    ):
        yield


@contextmanager
def no_second_look() -> Iterator[None]:
    """The receiver asks who holds the lease before the stream, and not before it publishes."""
    real = receive_checks.Lease.check
    asked: set[int] = set()

    def check(lease: receive_checks.Lease, begin: Any) -> None:
        if id(begin) not in asked:
            asked.add(id(begin))
            real(lease, begin)

    with patch.object(receive_checks.Lease, "check", check):
        yield


@contextmanager
def no_look_at_the_epoch() -> Iterator[None]:
    class Nothing:
        def __init__(self, _path: object) -> None: ...

        def read(self) -> int:
            return 0

        def raise_to(self, _epoch: int) -> None: ...

    with patch.object(receive_checks, "EpochFile", Nothing):
        yield


@contextmanager
def no_look_at_the_holder() -> Iterator[None]:
    def check(lease: receive_checks.Lease, begin: Any) -> None:
        epochs = EpochFile(lease.config.state_dir / "epoch")
        if begin.epoch < epochs.read():
            raise Refused(Reason.STALE_LINEAGE, f"epoch {begin.epoch} is over")
        epochs.raise_to(begin.epoch)

    with (
        patch.object(receive_checks.Lease, "check", check),
        patch.object(receive_checks.Lease, "check_holder", lambda _lease, _hello: None),
    ):
        yield


@contextmanager
def only_our_own_exceptions_are_states() -> Iterator[None]:
    """What a step raises beyond them ends the program."""

    def ours(error: Exception) -> StandfastError:
        if isinstance(error, StandfastError):
            return error
        raise error

    with ExitStack() as stack:
        for info in pkgutil.walk_packages(standfast.__path__, "standfast."):
            if info.name.startswith(("standfast.demo", "standfast.__main__")):
                continue
            module = importlib.import_module(info.name)
            if "ours" in vars(module):
                stack.enter_context(patch.object(module, "ours", ours))
        yield


@contextmanager
def order_by_the_clock() -> Iterator[None]:
    """A name is the wall clock's time, whatever names there are; only a second name of it moves."""

    def after(name: SnapshotName, others: Iterable[SnapshotName]) -> SnapshotName:
        used = {other.stamp for other in others}
        stamp = name.stamp
        while stamp in used:
            stamp += 1.0
        return SnapshotName(stamp, name.base)

    with patch.object(SnapshotName, "after", after):
        yield


@contextmanager
def a_shorter_wait(by_s: float = 1.0) -> Iterator[None]:
    """Every `wait` is so much below what the timing rule asks for."""
    shorter = {name: _least(timing, by_s) for name, timing in deeds.TIMINGS.items()}
    with patch.dict(deeds.TIMINGS, shorter):
        yield


def _least(timing: LeaseTiming, by_s: float) -> LeaseTiming:
    needed = ((timing.length + timing.fence) * (1 + timing.drift) + 1) / (1 - timing.drift)
    return structs.replace(timing, wait=round(needed - by_s, 2))


@contextmanager
def found_and_taken_at_once() -> Iterator[None]:
    real = protocol.objection

    def objection(
        claim: protocol.Claim, held: protocol.Versioned, now: float, wait_s: float
    ) -> str | None:
        return real(structs.replace(claim, witnessed=True), held, now, wait_s)

    given_up = property(lambda view: view.given_up)
    with (
        patch.object(protocol, "objection", objection),
        patch.object(observation.Cluster, "nobody_serves", given_up),
    ):
        yield


MUTATIONS: dict[str, Mutation] = {
    "acquire-without-cas": lambda: forced("acquire", "/leader"),
    "clean-found-taken-at-once": found_and_taken_at_once,
    "clean-without-cas": lambda: forced("clean", "/leader"),
    "counted-from-the-reply": counted_from_the_reply,
    "taken-for-valid": taken_for_valid,
    "number-used-twice": lambda: patch.object(holding, "SEQ_JUMP", (0, 1)),
    "any-lineage": lambda: patch.object(observation, "in_lineage", lambda available, cluster: True),
    "check-end-off": lambda: patch.object(keeper.Keeper, "check_end", lambda _self: None),
    "flush-not-noticed": a_flush_is_not_noticed,
    "answers-not-fenced": lambda: patch.object(PacketFilter, "lets_out", lambda _self, now: True),
    "told-wait-too-short": lambda: patch.object(
        HeldLease, "wait_s", lambda _self, own_s, now: own_s
    ),
    "receiver-without-epoch": no_look_at_the_epoch,
    "receiver-without-holder": no_look_at_the_holder,
    "receiver-without-second-look": no_second_look,
    "order-by-the-clock": order_by_the_clock,
    "errors-not-caught": only_our_own_exceptions_are_states,
    "no-surrender": lambda: patch.object(unserved, "successor", lambda *_: None),
    "wait-too-short": a_shorter_wait,
}
