"""A storage node for one volume: what its agent and its lease process are made of."""

from __future__ import annotations

import logging
import sys

from standfast.agent.local_view import LocalView
from standfast.agent.loop import Agent
from standfast.agent.watcher import Watcher
from standfast.assembly.parts import parts
from standfast.config.load import load_stored
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.errors import ConfigError
from standfast.lease import process
from standfast.lease.files import holder_of
from standfast.node.node import Machine
from standfast.nomad import reports
from standfast.nomad.gateway import NomadAgent
from standfast.nomad.loop import Follower, refuse_conflicts
from standfast.reasons import Reason
from standfast.replication.cycle import Sender

log = logging.getLogger(__name__)


def agent_of(config: Config) -> Agent:
    """Returns the agent, before its first look."""
    machine = machine_of(config)
    load_the_rest(config)
    watcher, view = Watcher(config, machine.consul), LocalView(machine)
    agent = Agent(machine, watcher, view, answering=parts().answering, volumes=load_stored)
    if parts().is_machine:
        agent.program = (sys.executable, "-I", "-m", "standfast")
    return agent


def load_the_rest(config: Config) -> None:
    """Loads what the agent's steps load when they need it.

    An upgrade replaces the files under a running agent, which goes on until it is restarted: a
    promotion must not end with half of the one version and half of the other.
    """
    from standfast.btrfs import writers  # noqa: F401
    from standfast.nfs import elsewhere  # noqa: F401

    if config.nomad.enabled:
        from standfast.nomad import client  # noqa: F401


def lease_parts(config: Config) -> process.Parts:
    """Returns what the lease process is made of; InvalidConfig when the fence was made for another
    port."""
    consul = ConsulGateway.from_config(config, timeout_s=config.lease.request_timeout)
    nfs = parts().nfs(config)
    return process.Parts(consul, parts().settled_fence(config, nfs), nfs)


def machine_of(config: Config) -> Machine:
    """This node, for one volume."""
    consul = ConsulGateway.from_config(config, timeout_s=config.lease.request_timeout)
    made = parts()
    store = made.store(config)
    return Machine(
        config=config,
        me=holder_of(config),
        consul=consul,
        store=store,
        nfs=made.nfs(config),
        fence=made.fence(config),
        bind=made.bind(config),
        units=made.units(config),
        sender=Sender(config, store, consul),
        schedule=made.schedule(config),
        jobs=jobs_of(config, consul),
    )


def jobs_of(config: Config, consul: ConsulGateway) -> Follower | None:
    """Nomad's jobs, where [nomad] is configured."""
    if not config.nomad.enabled:
        return None
    try:
        refuse_conflicts(config)
        return Follower(config, NomadAgent.from_config(config), consul)
    except ConfigError as error:
        # No reason for the storage to stay away.
        log.error("Nomad is not followed until the agent starts again: %s", error)
        reports.save(config, reports.none(str(error), Reason.CONFIG_INVALID))
        return None
