"""What `journalctl -x` says below an event: what it means and what to do. Makes the catalog.

`python -m tools.documents` writes systemd/standfast.catalog from here.
"""

from __future__ import annotations

from collections.abc import Mapping

from standfast.events.events import Kind

# Kind -> subject, and the paragraphs below it; @FIELDS@ are replaced by journalctl.
TEXTS: Mapping[Kind, tuple[str, str]] = {
    Kind.LEASE_ACQUIRED: (
        "@STANDFAST_NODE@ holds the lease of @STANDFAST_VOLUME@",
        "A new epoch has begun. The node now makes its volume ready and starts the NFS server; "
        "the event `promoted` follows when clients are served.\n\n"
        "Nothing to do. Who had the role before: standfast history",
    ),
    Kind.FAILOVER_DECIDED: (
        "@STANDFAST_NODE@ takes over @STANDFAST_VOLUME@",
        "The primary has given no sign of life for longer than it may serve without one. What it "
        "had not replicated is kept on its disk and missing here: the message and "
        "`standfast history` say how much that can be.\n\n"
        "Find out why the old primary died. When it returns it becomes a standby by itself and "
        "keeps what it wrote as `diverged`: standfast doctor, there",
    ),
    Kind.PROMOTED: (
        "@STANDFAST_NODE@ is primary of @STANDFAST_VOLUME@",
        "The NFS server answers, and Consul names this node.\n\n"
        "Nothing to do. Is there a standby that could follow? standfast status",
    ),
    Kind.SERVING_AGAIN: (
        "@STANDFAST_NODE@ serves @STANDFAST_VOLUME@ again",
        "A promotion that had been cut was finished, a demotion was rolled back, or the server "
        "was started again. The role has not moved.\n\n"
        "If it repeats: journalctl -u 'standfast-*@@STANDFAST_VOLUME@' -u nfs-server",
    ),
    Kind.SWITCHOVER_BEGUN: (
        "@STANDFAST_NODE@ hands @STANDFAST_VOLUME@ over",
        "Somebody asked for it. Clients wait for a few seconds; nothing that was acknowledged is "
        "lost. `switchover-ended` or `role-change-failed` follows.",
    ),
    Kind.SWITCHOVER_ENDED: (
        "The switchover of @STANDFAST_VOLUME@ is over",
        "The other node serves, with everything that this one had.\n\nNothing to do.",
    ),
    Kind.DEMOTED: (
        "@STANDFAST_NODE@ is a standby of @STANDFAST_VOLUME@",
        "It serves no longer; its tree was set aside, nothing of it was deleted.\n\n"
        "After a takeover by another node, look at what only this one has: standfast doctor "
        "(`diverged`)",
    ),
    Kind.ROLE_CHANGE_FAILED: (
        "A change of role stopped half-way (@STANDFAST_VOLUME@)",
        "A step failed; the message names it. What can be undone was undone, and everything is "
        "tried again by itself, with growing pauses.\n\n"
        "Who serves now, and what is wrong: standfast status; standfast doctor",
    ),
    Kind.LEASE_LOST: (
        "@STANDFAST_NODE@ lost the lease of @STANDFAST_VOLUME@ for good",
        "Another node has taken over, or the lease was given up. The NFS port is shut and the "
        "server stopped; what was written here and not replicated is kept as `diverged`.\n\n"
        "Find out why Consul was out of reach: the network, `consul members`, this machine's load",
    ),
    Kind.SURRENDERED: (
        "@STANDFAST_NODE@ surrenders @STANDFAST_VOLUME@",
        "It held the lease and could not serve: the server doesn't start or answer, the file "
        "system is read-only, or the disk hangs. A standby that says it is ready takes over from "
        "its newest snapshot; what was written after that is kept here as `diverged`.\n\n"
        "Find out what is wrong here (the message, dmesg, journalctl -u nfs-server). The node "
        "becomes a standby when its disk lets it; what is lost: standfast history",
    ),
    Kind.FENCE_CLOSED: (
        "The NFS port of @STANDFAST_NODE@ is shut",
        "The lease ran out before a heartbeat reached Consul. Clients wait. If Consul comes back "
        "before a standby takes over, the port opens again: `fence-reopened`.\n\n"
        "Look at Consul: consul operator raft list-peers",
    ),
    Kind.FENCE_REOPENED: (
        "The NFS port of @STANDFAST_NODE@ is open again",
        "A heartbeat reached Consul, and nobody had taken over: for clients it was a pause.\n\n"
        "If it repeats, Consul is too slow for `lease.length`: standfast status shows the margin",
    ),
    Kind.PROMOTION_REFUSED: (
        "@STANDFAST_NODE@ is not promoted for @STANDFAST_VOLUME@",
        "It could not be done safely, or something is in its way; it has changed nothing here. The "
        "message begins with a reason code.\n\n"
        "What to do for that code: docs/reason-codes.md; standfast status",
    ),
    Kind.CLAIM_REFUSED: (
        "The lease process of @STANDFAST_NODE@ got no lease",
        "Another node has it, or the agent didn't ask for it. The NFS server stays down here.\n\n"
        "Who has it: standfast status. By hand: standfast promote",
    ),
    Kind.GUARD_REFUSED: (
        "The NFS server must not start on @STANDFAST_NODE@",
        "Another server is active, this node doesn't hold the lease, or it is not certain that it "
        "may serve: each doubt refuses. Two servers would split the data.\n\n"
        "Never work around it. The agent starts the server when the role is this node's: "
        "standfast status, then standfast switchover or promote",
    ),
    Kind.RECEIVE_REFUSED: (
        "@STANDFAST_NODE@ took no snapshot in for @STANDFAST_VOLUME@",
        "A sender was turned away; what this standby has is as it was. The message begins with a "
        "reason code.\n\n"
        "What to do for that code: docs/reason-codes.md, A standby refuses a snapshot; from the "
        "primary: standfast doctor",
    ),
    Kind.CYCLE_FAILED: (
        "A standby of @STANDFAST_VOLUME@ was not brought up to date",
        "The standby's data grows older with each failed cycle, and so does what a failover would "
        "lose. The next cycle is tried by itself; nothing partial is ever used.\n\n"
        "What is in the way: standfast doctor; how old it is: standfast standby list",
    ),
    Kind.HOOK_FAILED: (
        "A hook of @STANDFAST_VOLUME@ failed on @STANDFAST_NODE@",
        "A program in hooks.d was not run, was killed at its deadline, or ended badly. The role "
        "changed (or did not) without it.\n\n"
        "Run it by hand with its event as argument; who may own it: docs/events.md",
    ),
}

_HEAD = """\
# Made by `python -m tools.documents`. Install it as
# /usr/lib/systemd/catalog/standfast.catalog and run `journalctl --update-catalog`.
"""


def catalog() -> str:
    """systemd/standfast.catalog."""
    parts = [_HEAD]
    for kind in Kind:
        subject, text = TEXTS[kind]
        lines = [
            f"-- {kind.message_id}",
            f"Subject: {subject}",
            "Defined-By: Standfast",
            "Documentation: man:standfast(1)",
            "",
            text,
            "",
        ]
        parts.append("\n".join(lines))
    return "\n".join(parts)
