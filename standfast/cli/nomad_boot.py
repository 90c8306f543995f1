"""`standfast nomad-boot VOLUME`: before this node's Nomad starts, have its old meta do no harm.

A node that was the primary when it died comes back with the primary's meta, which its Nomad client
keeps on its disk where nothing but Nomad can change it. Invariant: the client isn't running yet, so
nothing is asked of it: the *servers* are told that this node takes no jobs. Never an error and
never longer than LIMIT_S: what could not be done here is done by the agent, some seconds later.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

from msgspec.structs import replace

from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.consul.ports import Keys
from standfast.errors import StandfastError, TimedOut
from standfast.events.log import set_up_log
from standfast.lease.files import LeaseStatus
from standfast.nomad.constraints import PRIMARY, Meta
from standfast.nomad.gateway import NomadAgent
from standfast.nomad.notes import Notes
from standfast.nomad.ports import Node
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.lines import number

log = logging.getLogger(__name__)

# Consul's agent may only just have joined.
LIMIT_S = 10.0
AGAIN_S = 0.5
SERVICE = "nomad"
PORT = 4646


class Servers(Protocol):
    """What this command needs of one of Nomad's other agents."""

    def nodes(self, names: Sequence[str] | None = None) -> Sequence[Node]: ...

    def set_eligible(self, node_id: str, eligible: bool) -> None: ...


def quarantine_own(config: Config, servers: Servers, consul: Keys) -> Sequence[str]:
    """Returns what was done, in sentences; StandfastError: try the next server."""
    meta = Meta(config.nomad.meta_key, PRIMARY)
    said = []
    for node in servers.nodes([config.node]):
        if node.meta.get(meta.key) == meta.value and node.eligible:
            Notes(config, consul).write(node, 0)
            servers.set_eligible(node.id, False)
            said.append(f"{node.name} has the primary's meta of before: it takes no jobs until "
                        "that is gone")  # fmt: skip
    return said


def serves(config: Config) -> bool:
    """Tells whether this node serves: then Nomad was only restarted, and the meta is right."""
    status = LeaseStatus.load(config.run_dir)
    return status is not None and status.serves(monotonic())


def addresses(config: Config, consul: ConsulGateway) -> Iterator[str]:
    """Yields the addresses of Nomad's other agents, from Consul's catalog."""
    scheme = "https://" if config.nomad.address.startswith("https://") else ""
    _, _, port = config.nomad.address.rpartition(":")
    wanted = number(port) or PORT
    for instance in consul.instances(SERVICE, consistent=False):
        if instance.node != config.node and instance.port == wanted:
            host = f"[{instance.address}]" if ":" in instance.address else instance.address
            yield f"{scheme}{host}:{wanted}"


def attempt(config: Config) -> Sequence[str]:
    """Asks one server after the other; StandfastError when none answered."""
    error: StandfastError = TimedOut(f"Consul knows no other agent of the service {SERVICE} yet")
    consul = ConsulGateway.from_config(config, timeout_s=2.0)
    for address in addresses(config, consul):
        there = replace(config, nomad=replace(config.nomad, address=address))
        try:
            return quarantine_own(config, NomadAgent.from_config(there, timeout_s=3.0), consul)
        except StandfastError as failed:
            error = failed
    raise error


def run(args: argparse.Namespace) -> int:
    """Returns 0 always: Nomad's start never waits for this to succeed."""

    set_up_log()
    config = load_volume(args.volume, require_storage=False)
    if not config.nomad.enabled or config.node not in config.nodes or serves(config):
        return 0
    limit = Deadline.after(LIMIT_S)
    while True:
        try:
            for text in attempt(config):
                log.info("%s", text)
            return 0
        except (StandfastError, OSError) as error:
            if limit.expired:
                log.warning("left to the agent, once Nomad runs: %s", error)
                return 0
        sleep(AGAIN_S)
