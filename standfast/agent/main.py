"""The process `standfast-agent@V.service`: the loop in the main thread, the rest beside it."""

from __future__ import annotations

import faulthandler
import logging
import os
import secrets
import signal
from collections.abc import Callable

from standfast.agent import nomad_thread, upkeep
from standfast.agent.command import Command
from standfast.agent.commands import answer
from standfast.agent.loop import (
    TICK_S,
    Agent,
)
from standfast.agent.socket import Listener
from standfast.config.model import Config
from standfast.config.node_name import keep_name
from standfast.errors import ours
from standfast.fence.choice import settle
from standfast.requests.taking import Node, Taker
from standfast.requests.work import Work
from standfast.system.clock import Deadline, monotonic
from standfast.system.locks import exclusive
from standfast.system.sd_notify import notify, watchdog_s
from standfast.system.threads import any_in_the_kernel, start

log = logging.getLogger(__name__)

UPKEEP_EVERY_S = 5.0
FED_IN_A_LIMIT = 6
"""Not once does it find a thread in the kernel while the loop is overdue: only then it starves."""


def keep_up(agent: Agent) -> None:
    """Does the upkeep, in a thread of its own: a long copy must not let Consul's check expire."""
    try:
        while True:
            upkeep.keep_up(agent)
            if agent.stopping.wait(TICK_S if agent.seen is None else UPKEEP_EVERY_S):
                return
    except Exception:
        # Without upkeep the check expires while all is well: better a new agent at once.
        log.exception("upkeep ended unexpectedly: the agent starts again")
        os._exit(1)


def keep_fenced(agent: Agent) -> None:
    """Watches the fence in a thread of its own, which waits for no volume's disk, no server and no
    lease process."""
    while True:
        agent.fence.look()
        if agent.stopping.wait(agent.config.lease.heartbeat):
            return


def keep_inspected(agent: Agent) -> None:
    """Looks ahead in a thread of its own: each look may wait for a server or another node."""
    while True:
        if agent.busy is None:
            try:
                agent.inspector.turn()
            except Exception as error:  # noqa: BLE001  # without looks nobody here is promoted by hand
                log.warning("inspection: %s", ours(error))
        if agent.stopping.wait(TICK_S):
            return


def keep_taking(agent: Agent) -> None:
    """Takes what is asked of this node through Consul, in a thread of its own; what changes the
    role goes in by the door that the socket has."""

    def door(work: Work) -> None:
        agent.commands.put(Command(work, work.document(), work.begin))

    def concludes() -> str:
        return "it has not looked yet" if agent.seen is None else agent.seen.decision.sentence

    node = Node(secrets.token_hex(8), door, concludes, agent.program)
    taker = Taker(agent.config, agent.machine.consul, node)
    pause_s = 0.0
    while not agent.stopping.wait(pause_s):
        try:
            pause_s = taker.turn()
        except Exception as error:  # noqa: BLE001  # without requests the node serves all the same
            log.warning("requests: %s", ours(error))
            pause_s = UPKEEP_EVERY_S


def keep_fed(agent: Agent, every_s: float) -> None:
    """Tells the service manager that all is well for as long as the loop keeps its word; a frozen
    interpreter tells nothing.

    While a disk or a mount has hold of this process it is told as well: it could not be killed, the
    next agent would find its lock held or hang there too, and meanwhile upkeep, the fence and
    `status` would be without it. Upkeep says what hangs, and vouches for nothing.
    """
    said = ""
    while not agent.stopping.wait(every_s):
        late_s = monotonic() - agent.overdue_at()
        hangs = late_s > 0 and any_in_the_kernel()
        if late_s <= 0 or hangs:
            notify("WATCHDOG=1")
        doing = agent.busy or "look"
        word = f"{doing}: hangs in the kernel, on a disk or a mount: a new agent would hang as well"
        word = word if hangs else f"{doing}: long overdue: the service manager starts a new agent"
        if late_s > 0 and word != said:
            log.error("%s", word)
        said = word if late_s > 0 else ""


def serve(agent: Agent, beside: Callable[[str, Callable[[], None]], object] = start) -> None:
    """Looks, acts and answers commands until told to stop; `beside` runs what a thread runs."""
    # Before the first look: that may hang with the disk, which the lease process has to hear of.
    beside("upkeep", lambda: keep_up(agent))
    beside("fence", lambda: keep_fenced(agent))
    beside("inspection", lambda: keep_inspected(agent))
    beside("requests", lambda: keep_taking(agent))
    nomad_thread.begin(agent)
    if (limit_s := watchdog_s()) is not None:
        beside("watchdog", lambda: keep_fed(agent, limit_s / FED_IN_A_LIMIT))
    notify("READY=1")
    while not agent.stopping.is_set():
        go_on(agent)


def go_on(agent: Agent) -> None:
    """Makes one turn of the loop."""
    try:
        agent.step()
    except Exception as error:  # noqa: BLE001  # an agent that ends serves nobody
        # A file that can't be understood, a disk that can't be read: said, and looked at again.
        trouble = str(ours(error))
        if trouble != agent.trouble:
            log.error("%s", trouble)
        agent.trouble = trouble
        agent.stopping.wait(TICK_S)
    while not agent.commands.empty():
        answer(agent, agent.commands.get())


def main(config: Config, build: Callable[[Config], Agent]) -> int:
    """Runs `standfast agent VOLUME`; at most one per volume on a node.

    `build` is called with the lock held: settling the fence is the holder's alone.
    """
    # Where a watchdog's SIGABRT finds each thread goes to the journal, of a frozen interpreter too.
    faulthandler.enable()
    with exclusive(
        config.run_dir / "agent.lock", "another agent of this volume", Deadline.after(2)
    ):
        keep_name(config)
        agent = build(config)
        settle(config, agent.machine.fence, agent.machine.nfs)
        signal.signal(signal.SIGTERM, lambda *_: agent.stopping.set())
        signal.signal(signal.SIGINT, lambda *_: agent.stopping.set())
        with Listener(agent):
            serve(agent)
    return 0
