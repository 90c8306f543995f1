"""The steps that follow from a client's decision, as data: pure, in an order that is tested.

Invariants: the old mount goes only right before the new one is made; users are restarted only when
the new mount has answered; the note comes last, so that a plan cut anywhere is run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from standfast.clients.decide import Action, Decision
from standfast.clients.observation import Observed, Server, left_behind
from standfast.config.model import Config


class Do(StrEnum):
    """Every effect that a client's plan may have; `steps` has one function for each."""

    LIST_USERS = "list-users"
    BEFORE_CHANGE = "before-change"
    LET_GO = "let-go"
    MOUNT = "mount"
    END_MOUNTING = "end-mounting"
    VERIFY = "verify"
    NOTE = "note"
    REBIND = "rebind"
    RESTART = "restart"
    ON_CHANGE = "on-change"
    HOOKS = "hooks"


@dataclass(frozen=True, slots=True)
class Step:
    """One effect, and what it says about itself in progress and in `--dry-run`."""

    do: Do
    says: str
    target: str = ""
    """Of a REBIND: the mount point. Of a RESTART: unused, as they are found when it is done."""


def plan_for(decision: Decision, observed: Observed, config: Config) -> tuple[Step, ...]:
    """Returns the steps in their order; empty: there is nothing to do."""
    path, server = config.paths.bind, decision.server
    match decision.action:
        case Action.UNCOVER:
            return (Step(Do.LET_GO, f"take the NFS mount off {path}, lazily"),)
        case Action.ADOPT if server is None:
            note = Step(Do.NOTE, f"note the bind mount at {path}")
            return (*_after(decision, config), note)
        case Action.ADOPT:
            note = Step(Do.NOTE, f"note what is mounted at {path}")
            return (*_binds(observed, decision, config), *_after(decision, config), note)
        case Action.REBIND:
            return _binds(observed, decision, config)
        case Action.MOUNT | Action.REMOUNT if server is not None:
            return _mounting(decision, server, observed, config)
        case _:
            return ()


def _mounting(
    decision: Decision, server: Server, observed: Observed, config: Config
) -> tuple[Step, ...]:
    path = config.paths.bind
    steps = []
    if decision.action is Action.REMOUNT:
        steps += [
            Step(Do.LIST_USERS, f"list who has files of {path} open"),
            *_before(config),
            Step(Do.LET_GO, f"unmount {path}, lazily: who hangs in it keeps hanging there"),
        ]
    steps.append(Step(Do.MOUNT, f"mount {server.address}:{config.paths.live} at {path}"))
    if observed.tie.mounting:
        steps.append(Step(Do.END_MOUNTING, "end the attempt that hangs"))
    return (
        *steps,
        # Before the look, which takes longer: a mount that succeeded was answered once, and what
        # the bind mounts show until then answers to nobody.
        *_binds(observed, decision, config),
        Step(Do.VERIFY, "look whether it answers"),
        *_after(decision, config),
        Step(Do.NOTE, "note what is mounted"),
    )


def _before(config: Config) -> tuple[Step, ...]:
    commands = config.client.before_change
    says = f"run client.before_change ({len(commands)})"
    return (Step(Do.BEFORE_CHANGE, says),) if commands else ()


def _binds(observed: Observed, decision: Decision, config: Config) -> tuple[Step, ...]:
    """Returns the bind mounts to make again: after a remount all of them show the old one;
    otherwise those that were found to."""
    server, top = decision.server, observed.top
    stale = observed.elsewhere
    if server is not None and top is not None and decision.action is not Action.REMOUNT:
        stale = left_behind(observed, server, top)
    points = sorted({mount.point for mount in stale} & set(config.client.binds))
    return tuple(
        Step(Do.REBIND, f"make the bind mount at {point} again", point) for point in points
    )


def _after(decision: Decision, config: Config) -> tuple[Step, ...]:
    if not decision.moved:
        return ()
    client, path = config.client, config.paths.bind
    steps = []
    if client.restart_dependants or client.restart_units:
        steps.append(Step(Do.RESTART, f"restart the services that use {path}"))
    if client.on_change:
        steps.append(Step(Do.ON_CHANGE, f"run client.on_change ({len(client.on_change)})"))
    return (*steps, Step(Do.HOOKS, f"tell the others that use {path}"))
