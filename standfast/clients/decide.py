"""What a client does about its mount, from what it knows: pure, total, a sentence for each answer.

Invariants: a mount of the server that Consul names, with the tree that it has now, is never taken
away; without a server to go to, nothing is; what is not an NFS mount of the volume is never
touched. Whatever the order of events, the next look ends at the right mount.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

from standfast.clients.observation import (
    Answer,
    NoServer,
    Observed,
    Role,
    Server,
    Tree,
    Unreadable,
    left_behind,
    tree_of,
)
from standfast.config.model import Config
from standfast.reasons import Reason
from standfast.system.mountinfo import Mount, canonical


class Action(StrEnum):
    NOTHING = "nothing"
    WAIT = "wait"
    """Nothing now; it is looked at again."""
    ADOPT = "adopt"
    """The mount is right and somebody else made it: note it, and see to who used the old one."""
    MOUNT = "mount"
    REMOUNT = "remount"
    REBIND = "rebind"
    UNCOVER = "uncover"
    """Take an NFS mount off the primary's bind mount."""


CHANGES = (Action.MOUNT, Action.REMOUNT)
# For an attempt of the service manager's to succeed, before it is done without it.
PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Decision:
    """The server is the one to mount, or that is mounted; `later_s` is left of the spread."""

    action: Action
    reason: Reason
    sentence: str
    server: Server | None = None
    later_s: float = 0.0
    moved: bool = False
    """Users of an earlier mount hold handles of another tree."""


def decide(observed: Observed, config: Config) -> Decision:
    """Returns the one decision that follows from what is known."""
    if observed.role is not Role.NONE:
        return _on_primary(observed, config)
    if config.client.manage == "never":
        return _nothing(Reason.NOT_A_CLIENT, 'client.manage = "never": nothing is done here')
    if not _is_client(observed, config):
        return _nothing(Reason.NOT_A_CLIENT, f"nothing on this node mounts {config.paths.bind}")
    service = observed.service
    if isinstance(service, Unreadable):
        return _wait(service.reason, f"{service.sentence}: the mount stays as it is")
    if isinstance(service, NoServer):
        return _wait(Reason.NO_SERVER, f"{service.sentence}: the mount stays as it is")
    note = observed.note
    if note is not None and note.confirmed and service.epoch < note.epoch:
        return _wait(
            Reason.OLDER_EPOCH,
            f"Consul names {service.node} with epoch {service.epoch}, and epoch {note.epoch} was "
            f"mounted here before: the mount stays as it is",
        )
    decision = _of_what_is_mounted(observed, service, config)
    return _in_its_turn(decision, observed, config)


def _is_client(observed: Observed, config: Config) -> bool:
    """Tells it whoever serves, or nobody: a node without a mount misses none."""
    tie = observed.tie
    let_go = observed.note is not None and observed.note.let_go
    shown = observed.top is not None or tie.unit or tie.automount
    return bool(shown or let_go or config.client.manage == "always")


def _on_primary(observed: Observed, config: Config) -> Decision:
    top, path = observed.top, config.paths.bind
    if top is not None and top.is_nfs and any(map(_is_bind, observed.stack)):
        return Decision(
            Action.UNCOVER,
            Reason.BIND_COVERED,
            f"an NFS mount of {top.source} lies over the primary's bind mount at {path}",
        )
    sentence = f"{config.node} is primary, or was just now: {path} is the agent's"
    note = observed.note
    settled = observed.role is Role.PRIMARY and top is not None and _is_bind(top)
    if settled and (note is None or note.kind != "bind" or observed.stopped):
        moved = note is not None or bool(observed.stopped)
        return Decision(Action.ADOPT, Reason.ROLE_IS_HERE, sentence, moved=moved)
    return _nothing(Reason.ROLE_IS_HERE, sentence)


def _is_bind(mount: Mount) -> bool:
    return not mount.is_nfs and not mount.is_autofs


def _of_what_is_mounted(observed: Observed, server: Server, config: Config) -> Decision:
    top = observed.top
    if top is None or top.is_autofs:
        return _of_no_mount(observed, server, config)
    if not top.is_nfs or top.export != str(config.paths.live):
        return _wait(
            Reason.PATH_TAKEN,
            f"{top.kind} {top.source or top.root} is mounted at {top.point}, which is no NFS mount "
            f"of {config.paths.live}: not touched; unmount it by hand",
        )
    if not server.addresses:
        return _wait(
            Reason.NO_SERVER,
            f"{server.node} is registered as {server.address!r}, and that name can't be resolved "
            f"here: the mount stays as it is",
        )
    if top.address is None or canonical(top.address) not in server.addresses:
        return Decision(
            Action.REMOUNT,
            Reason.SERVER_MOVED,
            f"{top.point} is of {top.address or top.source}, and {_named(server)} serves",
            server,
            moved=True,
        )
    return _of_the_right_server(observed, server, top, config)


def _of_no_mount(observed: Observed, server: Server, config: Config) -> Decision:
    path, tie = config.paths.bind, observed.tie
    if observed.top is not None and not tie.mounting:
        return _nothing(
            Reason.AUTOMOUNT_IDLE,
            f"nobody uses {path}: the next access mounts from {_named(server)}",
        )
    what = "is being mounted from another server" if tie.mounting else "is not mounted"
    return Decision(
        Action.MOUNT,
        Reason.NOT_MOUNTED,
        f"{path} {what}, and {_named(server)} serves",
        server,
        moved=_has_moved(observed, server),
    )


def _of_the_right_server(
    observed: Observed, server: Server, top: Mount, config: Config
) -> Decision:
    tree = tree_of(observed, server, top)
    if tree is Tree.OTHER:
        return Decision(
            Action.REMOUNT,
            Reason.TREE_REPLACED,
            f"{_named(server)} has another tree than {top.point} was mounted from",
            server,
            moved=True,
        )
    match observed.answer:
        case Answer.STALE:
            return Decision(
                Action.REMOUNT,
                Reason.STALE_MOUNT,
                f"{top.point} of {_named(server)} answers with a stale file handle",
                server,
                moved=True,
            )
        case Answer.HANGS:
            return _wait(
                Reason.SERVER_AWAY,
                f"{top.point} hangs, and {_named(server)} is still the one that serves: it goes on "
                f"by itself when that one answers",
            )
        case Answer.FAILS:
            return _wait(
                Reason.MOUNT_FAILS,
                f"{top.point} of {_named(server)} answers with an error ({observed.detail}): a new "
                f"mount would get the same",
            )
        case Answer.NOT_ASKED if tree is Tree.UNKNOWN:
            return _wait(
                Reason.MOUNT_UNKNOWN, f"{top.point} is of {_named(server)}; it was not asked yet"
            )
        case _:
            return _healthy(observed, server, top, config)


def _healthy(observed: Observed, server: Server, top: Mount, config: Config) -> Decision:
    note = observed.note
    sentence = f"{top.point} is of {_named(server)}"
    noted = (
        note is not None
        and note.is_of(top)
        and not observed.stopped
        and (note.fsid, note.epoch, note.let_go) == (server.fsid, server.epoch, False)
        and note.confirmed
    )
    if not noted:
        moved = _has_moved(observed, server)
        return Decision(Action.ADOPT, Reason.MOUNT_UNKNOWN, sentence, server, moved=moved)
    left = sorted({mount.point for mount in left_behind(observed, server, top)})
    if left:
        ours = any(point in config.client.binds for point in left)
        sentence += f"; an earlier mount is still seen at {', '.join(left)}"
        if not ours:
            sentence += ", which client.binds doesn't name"
        action = Action.REBIND if ours else Action.NOTHING
        return Decision(action, Reason.BINDS_LEFT, sentence, server)
    return Decision(Action.NOTHING, Reason.MOUNT_CURRENT, sentence, server)


def _in_its_turn(decision: Decision, observed: Observed, config: Config) -> Decision:
    if decision.action not in CHANGES or decision.server is None:
        return decision
    turn = turn_s(config, decision.server.epoch)
    # An attempt of the automount that began just now mostly succeeds.
    left_s = max(turn, PATIENCE_S if observed.tie.mounting else 0.0) - observed.waited_s
    if left_s <= 0:
        return decision
    return replace(decision, later_s=left_s)


def turn_s(config: Config, epoch: int) -> float:
    """Returns this node's point within client.spread: always the same for one epoch, so that a
    handler called again waits no longer; another one for the next, so that nobody is always last.

    Storage nodes don't wait: they are few, and the next primary is one of them. Seconds.
    """
    if config.node in config.nodes:
        return 0.0
    name = f"{config.volume}/{config.node}/{epoch}".encode()
    point = int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "big")
    return config.client.spread * point / 2**32


def _has_moved(observed: Observed, server: Server) -> bool:
    """Tells whether users of what was noted hold handles that are of no use with this server."""
    note = observed.note
    if note is None:
        return bool(observed.stopped)
    if observed.stopped:
        return True
    if note.kind != "nfs" or note.let_go or canonical(note.address) not in server.addresses:
        return True
    return None not in (note.fsid, server.fsid) and note.fsid != server.fsid


def _named(server: Server) -> str:
    return f"{server.node} ({server.address}, epoch {server.epoch})"


def _nothing(reason: Reason, sentence: str) -> Decision:
    return Decision(Action.NOTHING, reason, sentence)


def _wait(reason: Reason, sentence: str) -> Decision:
    return Decision(Action.WAIT, reason, sentence)
