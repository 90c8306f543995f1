"""Who has to be told that the mount is another one: services, commands, and whoever adds a hook.

Invariant: nothing here fails the remount. What didn't work is a sentence in what is returned; the
mount is right already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from standfast.clients.ports import MountUnits
from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.system.clock import Deadline
from standfast.system.files import read_struct, write_struct
from standfast.system.run import run

log = logging.getLogger(__name__)

STOPPED = "stopped.json"


class Stopped(Struct, frozen=True):
    """Services that were stopped along with the primary's bind mount."""

    units: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What the path shows now."""

    volume: str
    path: Path
    address: str
    """Of the server; this node's own when it is the primary."""
    epoch: int


Hook = Callable[[Config, Change, Deadline], Sequence[str]]
"""Sees to one kind of users (allocations of a scheduler, say); returns what it did, in sentences.
StandfastError is logged like any other sentence."""


def note_stopped(run_dir: Path, units: Sequence[str]) -> None:
    """Notes services that are stopped along with the primary's bind mount; they are started again
    when the path shows the volume again."""
    known = {*stopped(run_dir), *units}
    if known:
        write_struct(run_dir / STOPPED, Stopped(tuple(sorted(known))))


def stopped(run_dir: Path) -> tuple[str, ...]:
    """Returns those; none when the file is unusable: starting services is no matter of safety."""
    try:
        return (read_struct(run_dir / STOPPED, Stopped) or Stopped()).units
    except StandfastError as error:
        log.warning("%s", error)
        return ()


def restart(config: Config, units: MountUnits) -> Sequence[str]:
    """Restarts those that depend on the path, and starts those that were stopped with it."""
    client, path = config.client, config.paths.bind
    before = stopped(config.run_dir)
    said = []
    try:
        requiring = units.dependants(path) if client.restart_dependants else ()
        active = units.active(client.restart_units)
        wanted = tuple(dict.fromkeys([*before, *requiring, *active]))
        if wanted:
            units.restart(wanted, Deadline.after(client.command_timeout))
            said.append(f"restarted {', '.join(wanted)}")
    except StandfastError as error:
        said.append(f"services that use {path} may not have been restarted: {error}")
    # Once tried, a service that doesn't start is the service manager's and its operator's.
    (config.run_dir / STOPPED).unlink(missing_ok=True)
    return said


def run_commands(
    config: Config, name: str, commands: Sequence[str], change: Change
) -> Sequence[str]:
    """Runs the shell commands of an option, one after the other; `change` is where it leads."""
    env = {
        "STANDFAST_VOLUME": change.volume,
        "STANDFAST_PATH": str(change.path),
        "STANDFAST_ADDRESS": change.address,
        "STANDFAST_EPOCH": str(change.epoch),
    }
    said = []
    for command in commands:
        deadline = Deadline.after(config.client.command_timeout)
        try:
            run(["sh", "-c", command], deadline=deadline, op=name, env=env)
            said.append(f"ran {command!r}")
        except StandfastError as error:
            said.append(f"{name} {command!r} failed: {error}")
    return said


def call_hooks(config: Config, hooks: Sequence[Hook], change: Change) -> Sequence[str]:
    """Calls the hooks and returns what each of them did; a failure is a sentence like any other."""
    said: list[str] = []
    for hook in hooks:
        try:
            said += hook(config, change, Deadline.after(config.client.command_timeout))
        except StandfastError as error:
            said.append(str(error))
    return said
