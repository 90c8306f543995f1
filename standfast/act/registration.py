"""This node's entry in Consul's catalog, and what its check says.

The check is fed by the agent and expires by itself; it asks the NFS server, and it fails while the
fence is shut, though a call over loopback would succeed then.
"""

from __future__ import annotations

from standfast.act.machine import Machine
from standfast.clock import Deadline
from standfast.errors import StandfastError

CHECK_TTL_S = 15.0
CHECK_TIMEOUT_S = 2.0


def service_id(machine: Machine) -> str:
    """One id per volume, so that a second registration replaces the first."""
    return f"standfast-{machine.config.volume}"


def check_id(machine: Machine) -> str:
    return f"service:{service_id(machine)}"


def register(machine: Machine, epoch: int) -> None:
    """Register with the local agent, passing from the start: it was checked just before."""
    config = machine.config
    machine.consul.register(
        service_id(machine),
        config.service,
        config.me.address,
        config.nfs.port,
        {"epoch": str(epoch), "node": config.node},
        CHECK_TTL_S,
        "NFS answers and its port is open",
    )
    feed(machine)


def deregister(machine: Machine) -> None:
    """Remove the entry; nothing happens when there is none."""
    machine.consul.deregister(service_id(machine))


def is_registered(machine: Machine, epoch: int) -> bool:
    meta = machine.consul.local_services().get(service_id(machine))
    return meta is not None and meta.get("epoch") == str(epoch)


def ailment(machine: Machine) -> str | None:
    """Why this node doesn't really serve; None: it does."""
    try:
        fence = machine.fence.state()
        if not fence.in_place:
            return "the fence's rules are not in place"
        if fence.open_for_s <= 0:
            return "the NFS port is shut: the lease has run out"
        return machine.nfs.check(Deadline.after(CHECK_TIMEOUT_S))
    except StandfastError as error:
        return str(error)


def feed(machine: Machine) -> str | None:
    """Tell Consul how the server is; returns the ailment.

    The notes are constant: each new text would wake every watch in the cluster.
    """
    sick = ailment(machine)
    if sick is None:
        machine.consul.pass_check(check_id(machine), "NFS answers and its port is open")
    else:
        machine.consul.fail_check(check_id(machine), "not serving: see `standfast status`")
    return sick
