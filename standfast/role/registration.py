"""This node's entry in Consul's catalog, what its check says, and what hides the entry.

The check is fed by the agent and expires by itself; it asks the NFS server, and it fails while the
fence is shut, though a call over loopback would succeed then. The entry's meta tells clients what
they mount: the epoch, and the `fsid` of the export, which changes exactly when the tree does.
"""

from __future__ import annotations

from collections.abc import Mapping

from standfast.config.model import Config
from standfast.consul.values import Instance, Registration, check_id_of
from standfast.errors import ConsulError, TimedOut, ours
from standfast.lease.files import LeaseStatus
from standfast.node.node import Machine
from standfast.node.other_server import epoch_of, is_well, registered_by
from standfast.node.own_epoch import OwnEpoch
from standfast.system.clock import Deadline, monotonic, sleep

CHECK_TTL_S = 15.0
CHECK_TIMEOUT_S = 2.0
POLL_S = 0.2


def check_id(machine: Machine) -> str:
    return check_id_of(machine.config.service_id)


def register(machine: Machine, epoch: int) -> None:
    """Registers with the local agent, passing from the start: it was checked just before."""
    config = machine.config
    machine.consul.register(
        Registration(
            config.service_id,
            config.service,
            config.me.address,
            config.nfs.port,
            meta(machine, epoch),
            CHECK_TTL_S,
            "NFS answers and its port is open",
        )
    )
    feed(machine, ailment(machine))


def meta(machine: Machine, epoch: int) -> Mapping[str, str]:
    """Returns what the entry says beyond the address."""
    own = OwnEpoch.load(machine.config.state_dir)
    told = {"epoch": str(epoch), "node": machine.config.node}
    # Of another epoch it would be a lie; without one, clients go by their mount's answer.
    return {**told, "fsid": own.fsid} if own is not None and own.epoch == epoch else told


def deregister(machine: Machine) -> None:
    """Removes the entry; nothing happens when there is none."""
    machine.consul.deregister(machine.config.service_id)


def is_registered(machine: Machine, epoch: int) -> bool:
    """Tells whether the entry is there and says all that it should (an older version said less)."""
    told = machine.consul.local_services().get(machine.config.service_id)
    return told is not None and dict(told) == dict(meta(machine, epoch))


def ailment(machine: Machine) -> str | None:
    """Says why this node doesn't really serve; None: it does."""
    try:
        fence = machine.fence.state()
        if not fence.in_place:
            return "the fence's rules are not in place"
        if fence.open_for_s <= 0:
            return _why_shut(machine)
        if (sick := machine.nfs.check(Deadline.after(CHECK_TIMEOUT_S))) is not None:
            return sick
        ailment = machine.store.ailment(Deadline.after(CHECK_TIMEOUT_S))
        return None if ailment is None else str(ailment)
    except Exception as error:  # noqa: BLE001  # what can't be looked at isn't vouched for
        return str(ours(error))


def _why_shut(machine: Machine) -> str:
    lease = LeaseStatus.load(machine.config.run_dir)
    if lease is None or lease.remaining_s(monotonic()) <= 0:
        return "the NFS port is shut: the lease has run out"
    return f"the NFS port is shut, though the lease lasts: {lease.trouble or 'nothing is known'}"


def feed(machine: Machine, sick: str | None) -> None:
    """Tells Consul how the server is.

    The notes are constant: each new text would wake every watch in the cluster.
    """
    if sick is None:
        machine.consul.pass_check(check_id(machine), "NFS answers and its port is open")
    else:
        machine.consul.fail_check(check_id(machine), "not serving: see `standfast status`")


def await_successor(machine: Machine, to: str, epoch: int, deadline: Deadline) -> None:
    """Waits until `to` serves an epoch after `epoch`; any other entry of that node's proves
    nothing. TimedOut."""
    blind = ""
    while not deadline.expired:
        try:
            instances = machine.consul.instances(machine.config.service)
            blind = ""
        except ConsulError as error:  # it elects a leader, say: the role is given up already
            instances, blind = (), f" ({error})"
        if any(_is_successor(instance, machine.config, to, epoch) for instance in instances):
            return
        sleep(POLL_S)
    raise TimedOut(
        f"the role was given up in order, and {to} doesn't serve yet{blind}: see `standfast "
        f"status`. If {to} stays away: `standfast promote` on another node; without mode = "
        f'"manual" or a pause that happens by itself'
    )


def _is_successor(instance: Instance, config: Config, to: str, epoch: int) -> bool:
    later = (epoch_of(instance) or 0) > epoch
    return later and is_well(instance) and registered_by(to, instance, config)


def hidden(machine: Machine, node: str | None = None) -> str | None:
    """Says why nobody who asks Consul for the service would be told of this node, or of `node`:
    neither by DNS nor as passing, however well its server is; None: nothing is seen. ConsulError.

    That is so with any critical check of the node, and in maintenance (`consul maint`), which is
    one. It is no ailment: who has mounted the volume is served.
    """
    config, name = machine.config, node or machine.config.node
    own = check_id(machine)  # of that `ailment` tells
    names = [
        check.name
        for check in machine.consul.critical_on(name)
        if check.service_id in ("", config.service_id) and check.check_id != own
    ]
    if not names:
        return None
    return (
        f"in Consul {', '.join(map(repr, names))} of {name} is critical: its service is in no "
        f"answer of DNS, and who hasn't mounted it yet can't find it"
    )
