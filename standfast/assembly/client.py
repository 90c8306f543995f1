"""A client of one volume: what its look at its mounts is made of."""

from __future__ import annotations

import logging

from standfast.clients.loop import Parts
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.mounts.mounts import mounts_from
from standfast.mounts.processes import ProcProcesses
from standfast.mounts.units import mount_units

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
    return Parts(config, gateway, mounts, mount_units(), ProcProcesses())
