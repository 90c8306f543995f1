"""`ExecStartPre` of the NFS server: refuses to start where another server is active, or in doubt.

Invariants: fail closed (an error, a timeout and a doubt all refuse); one deadline for everything,
set before the imports by `handlers/nfs-server-guard`; one message for each refusal. Where no volume
is configured and none ever was, the server isn't Standfast's: it starts (`is_foreign`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from standfast.assembly.parts import parts
from standfast.config.load import DEFAULT_DIR
from standfast.consul.blindness import blindness
from standfast.consul.gateway import ConsulBlind, ConsulGateway
from standfast.consul.records import Leader, parse_epoch
from standfast.errors import (
    ConfigError,
    ConsulError,
    ForeignValue,
    Refused,
    StandfastError,
    TimedOut,
)
from standfast.events import journal
from standfast.events.events import Kind, happened
from standfast.fence.choice import check_settled
from standfast.lease.epochs import EpochFile
from standfast.lease.files import LeaseStatus, boot_instance
from standfast.node.other_server import DOORS_S, Answering, active_elsewhere, unasked
from standfast.node.other_server import words as words_of
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.threads import start

if TYPE_CHECKING:
    from standfast.config.model import Config
    from standfast.node.ports import Fence, FenceState, NfsServer, VolumeStore

STATE = Path("/var/lib/standfast")
"""Which the agent's unit makes at its first start (StateDirectory=), wherever `paths.state` is."""
# Of the lease, needed so that the server can be up before it ends; seconds as a share of L.
ENOUGH_SHARE = 0.25
# Of what is left of the deadline, for the doors of others: each volume has its time all the same.
TO_ASK_SHARE = 0.25
# Of the deadline, kept back for the refusal's own words, seconds.
TO_SAY_WHY_S = 0.2


@dataclass(frozen=True, slots=True)
class Question:
    """What the guard asks with; `answering` tells where another server answers."""

    config: Config
    consul: ConsulGateway
    store: VolumeStore
    fence: Fence
    nfs: NfsServer
    answering: Answering
    deadline: Deadline


def check(question: Question) -> None:
    """Returns when this node may serve the volume now; Refused says why it may not."""
    config, limit = question.config, question.deadline
    question.consul.self_check(deadline=limit)
    epoch_key, leader_key = config.key("epoch"), config.key("leader")
    entries = question.consul.read([epoch_key, leader_key], deadline=limit)
    instances = question.consul.instances(config.service, deadline=limit)
    lease = LeaseStatus.load(config.run_dir)
    instance = boot_instance(config.paths.run)
    held = lease if lease is not None and lease.instance == instance else None
    held_epoch = 0 if held is None else held.epoch
    ask_by = limit.within(min(DOORS_S, limit.remaining_s() * TO_ASK_SHARE))
    others = active_elsewhere(
        instances, config, config.node, held_epoch, question.answering, ask_by
    )
    if others:
        raise Refused(Reason.OTHER_SERVER_ACTIVE, words_of(config, others[0]))
    if told := unasked(instances, config, config.node, held_epoch):
        sys.stderr.write(f"guard: {told}\n")
    epoch_entry, leader_entry = entries[epoch_key], entries[leader_key]
    epoch = None if epoch_entry is None else parse_epoch(epoch_entry.value, epoch_key)
    leader = None if leader_entry is None else Leader.parse(leader_entry.value, leader_key)
    _check_lease(config, held, epoch, leader)
    assert held is not None
    _check_volume(config, held.epoch, question.store)
    check_fence(config, question.fence.state())


def check_fence(config: Config, fence: FenceState) -> None:
    """Raises Refused when the port would be open to clients for longer than the lease lasts."""
    if not fence.in_place:
        raise Refused(
            Reason.FENCE_NOT_ARMED,
            f"the rules that fence port {config.nfs.port} are not in place: "
            f"restart standfast-lease@{config.volume}.service, which puts them there",
        )
    if not fence.claimed:
        # It may be exported all the same, since before a power cut: another volume's lease alone
        # would keep the port open for it.
        raise Refused(
            Reason.FENCE_NOT_ARMED,
            f"the promotion of {config.volume} has not come to its export, and port "
            f"{config.nfs.port} would not be shut at the end of its lease: the agent goes on with "
            f"it by itself; see `standfast status`",
        )


def _check_lease(
    config: Config, held: LeaseStatus | None, epoch: int | None, leader: Leader | None
) -> None:
    highest = EpochFile(config.state_dir / "epoch").read()
    if epoch is None and highest == 0:
        raise Refused(
            Reason.NOT_INITIALISED,
            "there has been no primary yet: run `standfast promote` on the node with the data",
        )
    if epoch is None or epoch < highest:
        raise Refused(
            Reason.EPOCH_WENT_BACK,
            f"Consul holds epoch {epoch}, this node has seen {highest}: Consul was restored from a "
            f"backup or emptied; check who has the newest data, then run "
            f"`standfast accept-epoch` on each storage node",
        )
    mine = leader is not None and leader.holder.node == config.node and not leader.is_clean
    if held is None or leader is None or not mine or leader.holder.instance != held.instance:
        who = "nobody" if leader is None else leader.holder.node
        raise Refused(
            Reason.LEASE_NOT_HELD,
            f"the lease of {config.volume} is held by {who}, not by this boot of {config.node}: "
            f"the agent starts the NFS server by itself when the role is this node's; "
            f"see `standfast status`",
        )
    if epoch != held.epoch or leader.epoch != held.epoch:
        raise Refused(
            Reason.WRONG_EPOCH,
            f"Consul holds epoch {epoch}, the lease here is of epoch {held.epoch}: it is over",
        )
    remaining_s = held.remaining_s(monotonic())
    enough_s = ENOUGH_SHARE * config.lease.length
    if remaining_s < enough_s:
        raise Refused(
            Reason.LEASE_TOO_SHORT,
            f"the lease has {remaining_s:.1f} s left, {enough_s:.1f} s are needed to start: "
            f"heartbeats don't reach Consul? ({held.trouble or 'no error noted'})",
        )


def _check_volume(config: Config, epoch: int, store: VolumeStore) -> None:
    own = OwnEpoch.load(config.state_dir)
    if own is None or own.epoch != epoch:
        raise Refused(
            Reason.NOT_PROMOTED_HERE,
            f"{config.paths.live} was not promoted for epoch {epoch}: start it with "
            f"`standfast promote`, not by hand",
        )
    if own.stage is not Stage.READY:
        raise Refused(
            Reason.VOLUME_QUARANTINED,
            f"{config.paths.live} is being {own.stage}: it is not served in that state",
        )
    live = store.live()
    if live is None or live.uuid != own.live_uuid:
        raise Refused(
            Reason.VOLUME_MISSING,
            f"{config.paths.live} is not the subvolume that epoch {epoch} was given "
            f"({own.live_uuid}); see `standfast snapshots`",
        )
    if not live.writable:
        raise Refused(
            Reason.VOLUME_READ_ONLY, f"{config.paths.live} is read-only: a demotion left it so"
        )


def refusal(error: BaseException) -> Refused:
    """Turns any way of not getting a yes into a refusal with its reason."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ConsulBlind):
        return Refused(Reason.CONSUL_BLIND_TOKEN, str(error))
    if isinstance(error, ConsulError):
        return Refused(blindness(error).reason, str(error))
    if isinstance(error, ForeignValue):
        return Refused(Reason.FOREIGN_VALUE, str(error))
    if isinstance(error, ConfigError):
        return Refused(Reason.CONFIG_INVALID, str(error))
    if isinstance(error, TimedOut):
        return Refused(Reason.DEADLINE, str(error))
    if isinstance(error, StandfastError):
        return Refused(Reason.UNEXPECTED, str(error))
    return Refused(Reason.UNEXPECTED, f"unexpected: {error!r}")


def asked_here(config: Config, deadline: Deadline) -> Question:
    """Returns the question with this machine's real parts."""
    made = parts()
    fence = made.fence(config)
    check_settled(config, fence)
    return Question(
        config,
        ConsulGateway.from_config(config, timeout_s=config.lease.request_timeout),
        made.store(config),
        fence,
        made.nfs(config),
        made.answering,
        deadline,
    )


Ask = Callable[["Config", Deadline], Question]


def judge(config: Config, deadline: Deadline, ask: Ask = asked_here) -> None:
    """Asks the guard's question for one volume; it raises Refused, nothing else."""
    try:
        check(ask(config, deadline))
    except Refused:
        raise
    except Exception as error:
        raise refusal(error) from error


def node_verdict(configs: Sequence[Config], deadline: Deadline, ask: Ask = asked_here) -> str:
    """Returns the volumes that the node's one NFS server may serve; Refused when there is none.

    A volume that it may not serve must not be exported. Its epoch may be there still: what is left
    to put away may wait for a disk that is gone, and the others don't.
    """
    refused: list[Refused] = []
    allowed = []
    for config in configs:
        try:
            judge(config, deadline, ask)
            allowed.append(config.volume)
        except Refused as error:
            if _may_be_served(config, deadline, ask):
                raise
            refused.append(error)
    if not allowed:
        raise refused[0] if refused else Refused(Reason.CONFIG_INVALID, "no volume is configured")
    return ", ".join(allowed)


def _may_be_served(config: Config, deadline: Deadline, ask: Ask) -> bool:
    try:
        OwnEpoch.load(config.state_dir)
        return ask(config, deadline).nfs.would_export()
    except Exception:  # noqa: BLE001  # what can't be found out may be
        return True


def words(error: Refused) -> str:
    """Returns the refusal as it stands in the journal; the runbook's text stands alone, as it
    is."""
    if error.reason is Reason.OTHER_SERVER_ACTIVE:
        return str(error)
    return f"refused [{error.reason}]: {error}"


def announce(config: Config, error: Refused) -> None:
    """Makes an entry in the journal, and on stderr unless that is the journal, too."""
    event = happened(
        config,
        Kind.GUARD_REFUSED,
        words(error),
        reason=error.reason,
        # It is found with the server's own lines, also when this process is gone by then.
        OBJECT_SYSTEMD_UNIT=config.nfs.unit,
    )
    if not (journal.deliver(event) and journal.is_stderr()):
        os.write(2, f"{words(error)}\n".encode(errors="backslashreplace"))


def is_foreign(directory: Path, default: Path = DEFAULT_DIR, state: Path = STATE) -> bool:
    """Tells whether the NFS server of this node is none of Standfast's: there is no configuration
    where units look for it, and never was an agent.

    A configuration that is gone, or can't be read, is another thing: then there is a doubt. So is
    a directory that somebody named.
    """
    if directory != default:
        return False
    try:
        if any(path.name.endswith(".toml") for path in directory.iterdir()):
            return False
    except FileNotFoundError:
        if directory.is_symlink():
            return False
    except OSError:
        return False
    return not os.path.lexists(state)


def die_at(deadline: Deadline, config: Config) -> None:
    """Ends this process with a refusal when the deadline passes, whatever it is waiting for."""

    def end() -> None:
        sleep(deadline.remaining_s())
        error = Refused(Reason.DEADLINE, "no answer in time; Consul hangs, or this machine does")
        announce(config, error)
        os._exit(1)

    start("guard-deadline", end)


def main(configs: Sequence[Config], deadline: Deadline) -> int:
    """Runs `standfast guard`: 0 the server may start, 1 it may not; one message either way."""
    die_at(deadline, configs[0])
    try:
        # A little earlier, so that what didn't answer is named.
        volumes = node_verdict(configs, Deadline(deadline.at - TO_SAY_WHY_S))
    except Refused as error:
        announce(configs[0], error)
        return 1
    sys.stderr.write(f"guard: {configs[0].node} may serve {volumes}\n")
    return 0
