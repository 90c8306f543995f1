"""`standfast demo`: a failover and the way back, on this machine, without root.

Three nodes run the agent, lease, guard, replication and handlers as they are deployed; stand-ins
are an embedded Consul, a directory for btrfs and a small file server for NFS. Whatever breaks an
invariant, or doesn't happen in time, ends it with status 1 and the evidence.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from standfast.demo.cluster import Cluster
from standfast.demo.invariants import NAMES, Broken
from standfast.demo.nodes import LASTING
from standfast.demo.screen import Screen
from standfast.demo.stay.prompt import Ending, PromptScreen
from standfast.demo.stay.session import Session
from standfast.demo.story import Times, last_look, tell
from standfast.errors import StandfastError
from standfast.system.clock import monotonic

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def measured(times: Times) -> list[str]:
    return [
        "",
        "Measured (lease: fast profile, W = 4.1 s; the defaults are 12 s)",
        *(f"  {what:<63} {value}" for what, value in times.rows()),
    ]


def held(cluster: Cluster) -> list[str]:
    """What was judged, for the end."""
    watched = cluster.invariants
    return [
        "",
        "Invariants, checked all the time",
        *(f"  held: {name}" for name in NAMES),
        f"  ({watched.answers} answers of servers, {watched.looks} looks at Consul, "
        f"{len(cluster.ledger)} lines of the client checked one by one)",
        "",
        "What you saw was loopback processes: no kernel NFS, no btrfs, no systemd, one clock.",
        "`make lab` does it with real parts.",
    ]


def play(out: TextIO, *, keep: bool = False, live: bool | None = None) -> int:
    """The whole demo; 0 when everything went as it has to, else 1."""
    started = monotonic()
    cluster = Cluster(Screen(out, started, live=live), started, keep=keep)

    def act() -> tuple[int, list[str]]:
        times = tell(cluster)
        cluster.check()
        return 0, measured(times) + held(cluster)

    return _perform(cluster, out, act, keep=keep)


def stay(source: TextIO, out: TextIO, *, keep: bool = False) -> int:
    """The cluster until the input ends; 1 when an invariant broke, or a script's command failed."""
    started = monotonic()
    interactive = source.isatty() and out.isatty()
    screen = PromptScreen(out, started, interactive=interactive)
    cluster = Cluster(screen, started, keep=keep, pace=LASTING)

    def act() -> tuple[int, list[str]]:
        session = Session(cluster)
        session.begin()
        # Of a script Ctrl-C ends everything.
        with _handling({signal.SIGINT: signal.default_int_handler} if interactive else {}):
            failed = session.prompt(source, interactive=interactive)
        last_look(cluster)
        return int(failed), held(cluster)

    return _perform(cluster, out, act, keep=keep)


def _perform(
    cluster: Cluster, out: TextIO, act: Callable[[], tuple[int, list[str]]], *, keep: bool
) -> int:
    """The exit status; whatever happens, nothing is left, and no signal cuts the cleaning short."""
    try:
        result, report = act()
    except StandfastError as error:
        result, report = 1, failure(cluster, error)
    finally:
        with _handling(dict.fromkeys(ENDINGS, signal.SIG_IGN)):
            cluster.close()
    out.write("\n".join([*report, *([f"Kept: {cluster.base}"] if keep else [])]) + "\n")
    out.flush()
    return result


def failure(cluster: Cluster, error: StandfastError) -> list[str]:
    """What went wrong and what the processes said last."""
    parts = [f"--- {name}\n{text}" for name, text in cluster.logs().items() if text]
    parts.append(f"\nTHE DEMO FAILED: {error}")
    if not isinstance(error, Broken):
        parts.append("On a slow or busy machine try again; `standfast demo --keep` keeps the files")
    return parts


def run(args: argparse.Namespace) -> int:
    """`standfast demo`; Ctrl-C, SIGTERM and a closed terminal clean up as its end does."""
    for number in ENDINGS:
        signal.signal(number, _end)
    if args.stay:
        return stay(sys.stdin, sys.stdout, keep=args.keep)
    return play(sys.stdout, keep=args.keep)


def _end(*_: object) -> None:
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)  # the cleaning up is not interrupted again
    raise Ending


@contextlib.contextmanager
def _handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Handles these signals so for a while."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
