"""A client of one volume: what its look at its mounts is made of."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from standfast.clients.dependants import Change
from standfast.clients.loop import Parts
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.errors import StandfastError
from standfast.mounts.mounts import mounts_from
from standfast.mounts.processes import ProcProcesses
from standfast.mounts.units import mount_units
from standfast.system.clock import Deadline

log = logging.getLogger(__name__)


def parts_of(config: Config) -> Parts:
    """This machine's."""
    mounts = mounts_from(config.run_dir)
    if mounts.is_private():
        log.warning(
            "this process has a mount namespace of its own: nobody sees what it mounts. Take "
            "ProtectSystem=, ProtectHome=, PrivateTmp= and the like out of its unit"
        )
    gateway = ConsulGateway.from_config(config, timeout_s=config.lease.request_timeout)
    return Parts(config, gateway, mounts, mount_units(), ProcProcesses(), (restart_allocations,))


def restart_allocations(config: Config, change: Change, deadline: Deadline) -> Sequence[str]:
    """Nomad's, where [nomad] is configured."""
    if not config.nomad.enabled:
        return ()
    from standfast.nomad import remounted

    log.info("looking for allocations that use %s", change.path)
    return remounted.after(config, deadline)


def restart_late(config: Config) -> None:
    """Restarts what uses the path and could not be restarted while Nomad was away."""
    if not config.nomad.enabled:
        return
    from standfast.nomad import remounted

    try:
        for text in remounted.retry(config, Deadline.after(config.client.command_timeout)):
            log.info("%s", text)
    except StandfastError as error:
        log.warning("%s", error)
