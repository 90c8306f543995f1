"""After a client's remount: the allocations on this node that use the path get the new mount.

Invariants: the mount is right before this begins, and nothing here changes it. What is due is
written down first (`nomad-restart.json`, of this boot) and struck off when it is done, so that a
Nomad that is away is asked again by the next run; an allocation that began after the change has
the new mount already and is left alone.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from standfast.config.model import Config
from standfast.config.problems import shown
from standfast.errors import NomadError, NomadOutcome, StandfastError
from standfast.nomad.constraints import text_of
from standfast.nomad.gateway import NomadAgent
from standfast.nomad.path_use import Shown, Way, csi_ids, uses
from standfast.nomad.ports import RUN, Allocation, CsiVolume, Node, NomadGateway
from standfast.system.clock import Deadline, parse_rfc3339, sleep, utc_now
from standfast.system.files import read_struct, write_struct
from standfast.system.locks import exclusive

log = logging.getLogger(__name__)

PENDING = "nomad-restart.json"
LOCK = "nomad-restart.lock"
POLICY_KEY = "standfast_on_remount"
POLICIES = ("restart", "signal", "none")
SIGNAL = "SIGHUP"
RUNNING = "running"
CONCURRENCY = 2
"""So many allocations of a node are restarted at once."""
JITTER_S = 2.0
"""Nodes begin restarting within this time, each at its own point of it."""


class Pending(Struct, frozen=True):
    """What is left to be done after a change of the mount."""

    at: float
    """When the mount changed, wall-clock seconds of this machine."""
    done: tuple[str, ...] = ()
    """Ids of the allocations that were seen to."""


@dataclass(frozen=True, slots=True)
class User:
    """An allocation that uses the path, and what is done about it."""

    allocation: Allocation
    tasks: Mapping[str, Way]
    """Task -> how it uses the volume."""
    policy: str

    @property
    def name(self) -> str:
        allocation = self.allocation
        space = "" if allocation.namespace == "default" else f"{allocation.namespace}/"
        return f"{space}{allocation.job_id}.{allocation.group} ({allocation.id[:8]})"

    @property
    def needs_another(self) -> bool:
        """Tells whether only another allocation in its place would have the new mount."""
        return any(way.of_allocation for way in self.tasks.values())

    @property
    def treated(self) -> str:
        if self.policy == "signal":
            return f"sent {SIGNAL} to"
        return "had another placed for" if self.needs_another else "restarted"

    @property
    def how(self) -> str:
        return ", ".join(f"{task}: {how}" for task, how in self.tasks.items())


def after(config: Config, deadline: Deadline, nomad: NomadGateway | None = None) -> Sequence[str]:
    """Restarts or signals them; returns what was done, in sentences. StandfastError: try again."""
    path = config.run_dir / PENDING
    with _alone(config, deadline):
        write_struct(path, Pending(utc_now()))
        return _see_to(config, deadline, nomad)


def retry(config: Config, deadline: Deadline, nomad: NomadGateway | None = None) -> Sequence[str]:
    """Does what an earlier run could not do, if anything is left.

    Refused (busy) after the deadline, while another run is at it.
    """
    path = config.run_dir / PENDING
    if not path.exists():
        return ()
    with _alone(config, deadline):
        return _see_to(config, deadline, nomad) if path.exists() else ()


def _alone(config: Config, deadline: Deadline) -> AbstractContextManager[object]:
    """Keeps an event and the timer from restarting the same allocation at once."""
    return exclusive(config.run_dir / LOCK, "a restart of allocations", deadline)


def _see_to(config: Config, deadline: Deadline, nomad: NomadGateway | None) -> Sequence[str]:
    path = config.run_dir / PENDING
    pending = _pending(path)
    if nomad is None:
        nomad = NomadAgent.from_config(config)
    try:
        those = users_on(nomad, nomad.own_node(), config, pending.at)
    except NomadError as error:
        raise StandfastError(
            f"allocations that use {config.paths.bind} are restarted once Nomad answers: {error}"
        ) from error
    due = [
        user for user in those if user.allocation.id not in pending.done and user.policy != "none"
    ]
    if due and not pending.done:
        # Whole clusters remount at once: not all of them shall start their jobs at once.
        jitter_s = random.uniform(0.0, JITTER_S)
        sleep(min(jitter_s, deadline.remaining_s() / 2))
    done, said, failed = list(pending.done), [], []
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        for user, wrong in zip(
            due, pool.map(lambda user: _treat(nomad, user, deadline), due), strict=True
        ):
            if wrong is None:
                done.append(user.allocation.id)
                said.append(f"{user.treated} {user.name}: {user.how}")
            else:
                failed.append(f"{user.name} uses the old mount ({user.how}): {wrong}")
    if failed:
        write_struct(path, Pending(pending.at, tuple(done)))
    else:
        path.unlink(missing_ok=True)
    left = [f"left {user.name} alone: {user.how}" for user in those if user.policy == "none"]
    return (*said, *left, *failed)


def users_on(nomad: NomadGateway, node: Node, config: Config, since: float) -> list[User]:
    """Asks for the allocations of `node` that `users` picks; NomadError."""
    allocations = nomad.allocations(node.id)
    return users(allocations, node, config, since, _csi_volumes(nomad, allocations))


def _csi_volumes(
    nomad: NomadGateway, allocations: Sequence[Allocation]
) -> Mapping[str, Mapping[str, CsiVolume]]:
    """Returns by namespace and id the CSI volumes of the running ones; without those that are gone
    or that the token may not read. NomadError."""
    known: dict[str, dict[str, CsiVolume]] = {}
    ids = sorted(
        {
            (allocation.namespace, volume_id)
            for allocation in allocations
            if _runs(allocation)
            for volume_id in csi_ids(allocation.job, allocation.group, _index(allocation))
        }
    )
    for namespace, volume_id in ids:
        try:
            known.setdefault(namespace, {})[volume_id] = nomad.csi_volume(namespace, volume_id)
        except NomadError as error:
            if error.outcome not in (NomadOutcome.NOT_FOUND, NomadOutcome.DENIED):
                raise
            log.warning("whether it mounts this volume is not known: %s", error)
    return known


def _index(allocation: Allocation) -> str:
    """Returns `[0]` of `job.group[0]`."""
    _, bracket, index = allocation.name.rpartition("[")
    return f"{bracket}{index}" if bracket else ""


def _runs(allocation: Allocation) -> bool:
    return allocation.desired == RUN and allocation.client_status == RUNNING


def users(
    allocations: Sequence[Allocation],
    node: Node,
    config: Config,
    since: float,
    csi_volumes: Mapping[str, Mapping[str, CsiVolume]],
) -> list[User]:
    """Returns those that run, began before `since` (wall-clock seconds of this machine) and use
    the volume: pure. `csi_volumes` are by namespace and id."""
    those = []
    for allocation in allocations:
        if not _runs(allocation) or not _older(allocation, since):
            continue
        shown = Shown(
            str(config.paths.bind),
            config.server_name,
            str(config.paths.live),
            node.host_volumes,
            csi_volumes.get(allocation.namespace, {}),
        )
        tasks = uses(allocation.job, allocation.group, shown, _index(allocation))
        if tasks:
            policy = policy_of(allocation.job, config.nomad.on_remount)
            those.append(User(allocation, tasks, policy))
    return those


def policy_of(job: Mapping[str, Any], default: str) -> str:
    """Returns the policy that the job's meta names, else the default."""
    meta = job.get("Meta")
    said = text_of(meta, POLICY_KEY) if isinstance(meta, dict) else ""
    if not said or said in POLICIES:
        return said or default
    log.warning("job %s: %s = %s is none of %s: %s", text_of(job, "ID"), POLICY_KEY,
                shown(said), ", ".join(POLICIES), default)  # fmt: skip
    return default


def _older(allocation: Allocation, since: float) -> bool:
    """Tells whether any of its tasks began before; an unreadable time counts as old."""
    for task in allocation.tasks:
        if not task.started_at:
            continue
        try:
            if parse_rfc3339(task.started_at) < since:
                return True
        except ValueError:
            return True
    return not allocation.tasks


def _treat(nomad: NomadGateway, user: User, deadline: Deadline) -> StandfastError | None:
    try:
        if user.policy == "signal":
            for task in user.tasks:
                nomad.signal(user.allocation.id, task, SIGNAL, deadline=deadline)
        elif user.needs_another:
            nomad.stop(user.allocation.id)
        else:
            nomad.restart(user.allocation.id, deadline=deadline)
    except StandfastError as error:
        return error
    return None


def _pending(path: Path) -> Pending:
    """Returns what is written down; for an unreadable file all are due, from now on."""
    try:
        pending = read_struct(path, Pending)
    except StandfastError as error:
        log.warning("%s", error)
        pending = None
    return pending or Pending(utc_now())
