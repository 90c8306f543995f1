"""The agent's thread that has Nomad follow the role; nothing waits for it.

Invariant: the role is this node's own files', read right before each round: a primary is one that
serves now, with a lease of this boot; a standby is one without an epoch. In between, nothing is
done.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from standfast.errors import StandfastError
from standfast.lease.files import LeaseStatus
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.nomad import reports
from standfast.nomad.loop import Follower
from standfast.nomad.observation import Role
from standfast.system.clock import monotonic, utc_now
from standfast.system.threads import start

if TYPE_CHECKING:
    from standfast.agent.loop import Agent

log = logging.getLogger(__name__)

TICK_S = 0.5
SAVE_EVERY_S = 60.0
TROUBLE_PAUSE_S = 10.0


def role_of(agent: Agent) -> tuple[Role, int]:
    """Returns this node's part and its epoch, 0 for a standby's."""
    config = agent.config
    try:
        own = OwnEpoch.load(config.state_dir)
        lease = LeaseStatus.load(config.run_dir)
    except (StandfastError, OSError):
        return Role.CHANGING, 0  # said by the agent's own look
    if own is None:
        # Until the first look it is not known whether the files are of this boot.
        return (Role.CHANGING if agent.seen is None else Role.STANDBY), 0
    serves = (
        own.stage is Stage.READY
        and lease is not None
        and lease.instance == agent.machine.me.instance
        and lease.epoch == own.epoch
        and lease.serves(monotonic())
    )
    return (Role.PRIMARY, own.epoch) if serves else (Role.CHANGING, own.epoch)


def _has(agent: Agent, role: tuple[Role, int]) -> bool:
    return role_of(agent) == role


def begin(agent: Agent) -> None:
    """Starts the thread, where Nomad is followed at all."""
    follower = agent.machine.jobs
    if isinstance(follower, Follower):
        start("nomad", partial(keep_following, agent, follower))


def keep_following(agent: Agent, follower: Follower) -> None:
    """Makes a round when the role changes, or when one is due, until the agent ends."""
    last: tuple[Role, int] | None = None
    due = saved_at = float("-inf")
    said: reports.Report | None = None
    while not agent.stopping.wait(TICK_S):
        role = role_of(agent)
        if role == last and monotonic() < due:
            continue
        last = role
        try:
            report = follower.round(*role, still=partial(_has, agent, role))
            if report != said:
                log.info("%s: %s", report.reason, report.sentence)
            if report != said or monotonic() - saved_at > SAVE_EVERY_S:
                reports.save(agent.config, replace(report, at=utc_now()))
                said, saved_at = report, monotonic()
            due = monotonic() + follower.pause_s(report)
        except Exception:
            # Not worth the agent: its storage goes on, and this is tried again.
            log.exception("following Nomad failed unexpectedly")
            due = monotonic() + TROUBLE_PAUSE_S
