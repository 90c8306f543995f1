"""The live subvolume through an epoch: made, made read-only, set aside; never deleted.

Each stage is on disk (`own-epoch.json`) before its work begins, so this can be called again after a
cut at any point and goes on where it was.
"""

from __future__ import annotations

import logging
import uuid

from msgspec.structs import replace

from standfast.errors import StandfastError, ours
from standfast.lease.files import LeaseStatus
from standfast.names import diverged_name, retired_name
from standfast.node.node import Machine
from standfast.node.own_epoch import Intent, OwnEpoch, Stage, snapshot_lock
from standfast.node.ports import Snapshot
from standfast.replication.published import take
from standfast.system.clock import Deadline, sleep, utc_now

log = logging.getLogger(__name__)

LAST_WRITES_S = 2.0
"""For a program that is just ending."""
LOOK_S = 10.0
POLL_S = 0.1
SNAPSHOT_LOCK_S = 30.0
"""For a snapshot that a replication cycle is just taking."""


def prepare(machine: Machine, epoch: int, recorded_base: str | None) -> OwnEpoch:
    """Makes a writable live subvolume for `epoch`, or goes on with it.

    `recorded_base` is the history's word, for the case that this node's own intent is gone.
    """
    state_dir = machine.config.state_dir
    own = OwnEpoch.load(state_dir)
    if own is None or own.epoch != epoch:
        own = _begin(machine, epoch, recorded_base, own)
    if own.stage is Stage.CLEARING:
        live = machine.store.live()
        if live is not None:
            aside = diverged_name(machine.config.base, own.displaced_epoch, utc_now())
            machine.store.keep_aside(aside)
        own = own.at(Stage.CREATING)
        own.save(state_dir)
    if own.stage is Stage.CREATING:
        _note_begun(machine, own)
        tree = machine.store.live() or machine.store.create_live_from(_find(machine, own))
        own = replace(own, stage=Stage.READY, live_uuid=tree.uuid)
        own.save(state_dir)
    return _ready(machine, own)


def check_place(machine: Machine) -> None:
    """Raises StandfastError unless the file system of this node's epoch is mounted where it
    belongs.

    A disk that is mounted late leaves an empty directory there: nothing is to be looked for in it,
    made in it, or taken for put away.
    """
    own = OwnEpoch.load(machine.config.state_dir)
    path = machine.config.state_dir / "own-epoch.json"
    there = machine.store.file_system()
    if own is not None and own.file_system not in (None, there):
        raise StandfastError(
            f"the disk of epoch {own.epoch} (file system {own.file_system}) is not mounted at "
            f"{machine.config.paths.live.parent}: {there} is there; nothing was touched. Mount it. "
            f"If it is the same disk with a new UUID, write that as file_system in {path}; if it "
            f"is gone for good, end the role with `standfast demote` where this node still has it, "
            f"then delete {path}"
        )


def _begin(
    machine: Machine, epoch: int, recorded_base: str | None, before: OwnEpoch | None
) -> OwnEpoch:
    intent = Intent.load(machine.config.state_dir, epoch)
    if intent is None:
        intent = Intent(epoch, recorded_base, None, in_place=False)
    if intent.put_away:
        raise StandfastError(
            f"epoch {epoch} was given up here before, and its tree set aside: was Consul restored "
            f"to a heartbeat of it? Nothing was made: begun again it would lack all that was "
            f"written in it. Run `standfast demote` on this node, then `standfast promote` where "
            f"the newest snapshot is (`standfast snapshots`)"
        )
    if not intent.in_place and has_begun(machine, epoch):
        raise StandfastError(
            f"{machine.config.state_dir}/own-epoch.json says nothing of epoch {epoch}, which had "
            f"its tree already: nothing was touched, as a new one would lack what is in that; "
            f"meanwhile it is not replicated and not registered. Put the file back, or run "
            f"`standfast demote` on this node: {machine.config.paths.live} is kept aside then"
        )
    if intent.in_place:
        # The same tree with the same inodes: the clients' handles stay good, so the id stays.
        fsid = before.fsid if before is not None else str(uuid.uuid4())
        live = machine.store.live()
        if live is None or (before and before.live_uuid not in (None, live.uuid)):
            there = "gone" if live is None else f"another one ({live.uuid})"
            had = f", epoch {before.epoch} had {before.live_uuid}" if before else ""
            raise StandfastError(
                f"the live subvolume {machine.config.paths.live} that epoch {epoch} was to go on "
                f"with is {there}{had}: nothing is served. Put the right one back, or run "
                f"`standfast demote` on this node"
            )
        own = OwnEpoch(epoch, Stage.READY, fsid, intent.base, in_place=True, live_uuid=live.uuid)
        _note_begun(machine, own)
    else:
        displaced = before.epoch if before is not None else 0
        own = OwnEpoch(
            epoch,
            Stage.CLEARING,
            str(uuid.uuid4()),
            intent.base,
            in_place=False,
            displaced_epoch=displaced,
            base_content_id=intent.base_content_id,
        )
    own = replace(own, file_system=machine.store.file_system())
    own.save(machine.config.state_dir)
    return own


def has_begun(machine: Machine, epoch: int) -> bool:
    """Tells whether `epoch` has, or may have, a tree here, by what tells of it besides
    `own-epoch.json`.

    An epoch is never gone on with after a reboot, so there is the lease's own file where the whole
    state directory is gone.
    """
    intent = Intent.load(machine.config.state_dir, epoch)
    if intent is not None and intent.begun is not None:
        return intent.begun
    lease = LeaseStatus.load(machine.config.run_dir)
    # Of one that was given up, or lost, an older version noted nothing.
    held = lease is not None and lease.epoch == epoch and lease.valid_until > 0
    return held and lease is not None and lease.opened


def _note_begun(machine: Machine, own: OwnEpoch) -> None:
    intent = Intent(own.epoch, own.base, own.base_content_id, own.in_place, begun=True)
    intent.save(machine.config.state_dir)


def _note_put_away(machine: Machine, own: OwnEpoch) -> None:
    """Notes that what comes to the live path later is not of it. One that was cut off before its
    tree was made may be begun yet."""
    intent = Intent(
        own.epoch,
        own.base,
        own.base_content_id,
        own.in_place,
        begun=False,
        put_away=own.stage not in (Stage.CLEARING, Stage.CREATING),
    )
    intent.save(machine.config.state_dir)


def _find(machine: Machine, own: OwnEpoch) -> Snapshot:
    named = [s for s in machine.store.snapshots() if str(s.name) == own.base]
    exact = [s for s in named if s.content_id == own.base_content_id]
    for snapshot in exact or named:
        return snapshot
    raise StandfastError(
        f"the snapshot {own.base} that epoch {own.epoch} starts from is not on this node any more; "
        f"nothing was made. Run `standfast demote`, then promote the node that has it"
    )


def _ready(machine: Machine, own: OwnEpoch) -> OwnEpoch:
    live = machine.store.live()
    if live is None or (own.live_uuid is not None and live.uuid != own.live_uuid):
        what = "missing" if live is None else f"another subvolume ({live.uuid})"
        raise StandfastError(
            f"{machine.config.paths.live} is {what}, epoch {own.epoch} had {own.live_uuid}: not "
            f"served. Put the right one back, or run `standfast demote` on this node"
        )
    own = without_final(machine, own)
    if not live.writable:
        machine.store.set_live_writable(True)
    ready = replace(own, stage=Stage.READY, file_system=machine.store.file_system())
    if ready != own:
        ready.save(machine.config.state_dir)
    return ready


def freeze(machine: Machine) -> None:
    """Makes the live tree read-only from now on. StandfastError when the epoch's tree is nowhere to
    be found.

    A whole file system that takes no writes is as good.
    """
    live = machine.store.live()
    if live is None:
        _check_set_aside(machine, OwnEpoch.load(machine.config.state_dir))
    elif live.writable:
        try:
            machine.store.set_live_writable(False)
        except Exception as error:
            if not machine.store.is_read_only():
                raise
            log.warning("%s is read-only with its whole file system: %s", live.path, ours(error))


def freeze_if_there(machine: Machine) -> None:
    """Does the same for a role that has to be given up, whatever became of its tree; when that
    comes back, it is put away."""
    if is_there(machine):
        freeze(machine)


def is_there(machine: Machine) -> bool:
    """Tells whether there is a tree where this node's epoch has its own."""
    try:
        check_place(machine)
        return machine.store.live() is not None
    except (StandfastError, OSError) as error:
        log.warning("%s", error)
        return False


def check_no_writers(machine: Machine, deadline: Deadline) -> None:
    """Raises StandfastError that names the writers, when they don't end at once: the final snapshot
    would lack what they write from then on."""
    patience = deadline.within(LAST_WRITES_S)
    while writers := machine.store.writers(deadline.within(LOOK_S)):
        if patience.expired:
            named = ", ".join(str(writer) for writer in writers[:5])
            raise StandfastError(
                f"{machine.config.paths.live} is open for writing by another way than its export "
                f"and {machine.config.paths.bind}: {named}. End what writes (a container? a job? a "
                f"mounted image?) and try again"
            )
        sleep(POLL_S)


def take_final_snapshot(machine: Machine, own: OwnEpoch) -> Snapshot:
    """Takes the snapshot that has all of this epoch's data; the tree is read-only by now.

    It is the newest of its epoch: a replication cycle that takes one at the same time is before it,
    and none comes after it, as the stage says that this node is draining.
    """
    with snapshot_lock(machine.config, Deadline.after(SNAPSHOT_LOCK_S)):
        snapshot = snapshot_of_epoch(machine, own.epoch)
    own = replace(own, final=str(snapshot.name), final_id=snapshot.content_id)
    own.save(machine.config.state_dir)
    return snapshot


def without_final(machine: Machine, own: OwnEpoch) -> OwnEpoch:
    """Notes the epoch as having no final snapshot: from now on the tree may have more than that."""
    if own.final is None and own.final_id is None:
        return own
    own = replace(own, final=None, final_id=None)
    own.save(machine.config.state_dir)
    return own


def snapshot_of_epoch(machine: Machine, epoch: int) -> Snapshot:
    """Takes a snapshot of the live tree that this node may be promoted from later, known as
    `epoch`'s."""
    return take(machine.config, machine.store, epoch, reserved=True)


def find_final(machine: Machine, own: OwnEpoch) -> Snapshot:
    for snapshot in machine.store.snapshots():
        if own.final_id not in (None, snapshot.content_id) or snapshot.received:
            continue
        if str(snapshot.name) == own.final:
            return snapshot
    raise StandfastError(f"the final snapshot {own.final} of epoch {own.epoch} is not there")


def set_aside(machine: Machine, *, diverged: bool) -> None:
    """Renames the live subvolume of an epoch that is over; its new name is noted before."""
    own = own_epoch(machine)
    if own is None:
        return
    check_place(machine)
    live = machine.store.live()
    if live is None:
        _check_set_aside(machine, own)
        return
    if live.writable:
        raise StandfastError(f"{live.path} is still writable: not set aside")
    if own.aside is None or _is_aside(machine, own):
        # Nobody else has what is in it unless the epoch was handed over with a final snapshot,
        # whatever the plan was called: one that wasn't is of a handover that didn't end.
        handed = own.final is not None and own.stage is Stage.RELEASED
        name = retired_name if handed and not diverged else diverged_name
        own = replace(own, aside=name(machine.config.base, own.epoch, utc_now()))
        own.save(machine.config.state_dir)
    assert own.aside is not None
    machine.store.keep_aside(own.aside)


def own_epoch(machine: Machine) -> OwnEpoch | None:
    """Returns this node's epoch; where `own-epoch.json` doesn't tell whose tree is at the live
    path, one that nothing more is known of: its tree is only to be set aside."""
    own = OwnEpoch.load(machine.config.state_dir)
    lease = LeaseStatus.load(machine.config.run_dir)
    later = lease is not None and (own is None or own.epoch < lease.epoch)
    lost = lease is not None and later and has_begun(machine, lease.epoch)
    if lease is not None and lost and machine.store.live() is not None:
        return OwnEpoch(lease.epoch, Stage.CREATING, "", None, in_place=False)
    return own


def forget(machine: Machine) -> None:
    """Makes this node a plain standby. StandfastError while the epoch's tree isn't set aside."""
    own = OwnEpoch.load(machine.config.state_dir)
    if own is None:
        return
    check_place(machine)
    live = machine.store.live()
    if live is not None and live.uuid == own.live_uuid:
        raise StandfastError(f"{live.path} is not set aside: epoch {own.epoch} is not forgotten")
    _check_set_aside(machine, own)
    _note_put_away(machine, own)
    OwnEpoch.forget(machine.config.state_dir)


def _is_aside(machine: Machine, own: OwnEpoch) -> bool:
    return any(path.name == own.aside for path in machine.store.aside())


def _check_set_aside(machine: Machine, own: OwnEpoch | None) -> None:
    """Raises StandfastError where the tree is gone: one that an epoch had doesn't end by not being
    there."""
    if own is None or own.live_uuid is None or _is_aside(machine, own):
        return
    path = machine.config.paths.live
    raise StandfastError(
        f"the tree of epoch {own.epoch} ({own.live_uuid}) is neither at {path} nor set aside: "
        f"nothing was touched. Put it back there. If it is gone for good, end the role with "
        f"`standfast demote` where this node still has it, then delete "
        f"{machine.config.state_dir}/own-epoch.json"
    )
