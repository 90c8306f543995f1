"""What it means when a check of doctor is bad, in a sentence; by group and check."""

from __future__ import annotations

from collections.abc import Mapping

CAUSES: Mapping[tuple[str, str], str] = {
    ("service", "serving"): "Clients wait until somebody serves.",
    ("service", "agent"): "Without it this node neither takes over nor gives the role up.",
    ("service", "fence"): "Without the rules nothing cuts this node off at the end of its lease.",
    (
        "service",
        "firewall",
    ): "Without the rules the port is open, until the next heartbeat.",
    ("service", "failover"): "If the primary died now, nobody would take over by itself.",
    ("service", "trouble"): "What the agent or the lease process tried last didn't work.",
    (
        "service",
        "diverged",
    ): "Written here after another node took over, and nowhere else.",
    ("storage", "storage"): "Whether snapshots can be taken here is not known.",
    ("storage", "tools"): "Without these programs nothing can be sent or received.",
    ("storage", "disk"): "Snapshots and increments work only within one file system.",
    ("storage", "received"): "All snapshots of the tree would pass for one content.",
    ("storage", "nested"): "Data in there is in no snapshot: a failover loses it.",
    ("storage", "mounts"): "Increments would find no parent.",
    ("storage", "copies"): "The kernel may mount either of them.",
    ("storage", "options"): "The configuration asks for what this node can't do.",
    ("replication", "way"): "Nothing can be sent, and the standby's data grows old.",
    ("replication", "survey"): "The standby can't say whether it is able to receive.",
    ("replication", "age"): "So much of the newest data would be lost with the primary.",
    ("replication", "cycle"): "The last replication failed; the next is tried by itself.",
    ("replication", "full"): "Both sides have no snapshot in common any more.",
    ("replication", "verified"): "One of the two nodes has damaged data.",
    ("replication", "clock"): "Ages and the names of snapshots tell the wrong time.",
    ("replication", "space"): "The next snapshot doesn't fit on the standby.",
    ("replication", "store"): "The two nodes can't exchange snapshots.",
    ("replication", "options"): "One node is to send in a way that the other doesn't understand.",
    ("replication", "tools"): "Without these programs the standby can't receive.",
    ("replication", "disk"): "Snapshots and increments work only within one file system.",
    ("replication", "received"): "After a failover all its snapshots would pass for one content.",
    ("replication", "nested"): "After a failover data in there would be in no snapshot.",
    ("replication", "mounts"): "Increments find no parent there.",
    ("replication", "copies"): "After a reboot the standby may mount the wrong one.",
    ("clients", "mount"): "Programs on this node don't see the volume as it is served now.",
    ("clients", "nfs-tools"): "Nothing can be mounted without them.",
    ("clients", "server"): "A mount would wait for the server.",
    ("clients", "dns"): "The mount unit finds the server by its name.",
    ("clients", "options"): "A failover should look like a pause to programs.",
    ("clients", "binds"): "Who looks there sees a server that is gone.",
    ("clients", "containers"): "Who runs in there sees a server that is gone.",
    ("clients", "handles"): "These programs get errors for files they opened before.",
    ("clients", "hanging"): "These programs wait for a server.",
    ("nomad", "nomad"): "Jobs that are bound to the primary may not follow.",
    ("nomad", "meta"): "Nomad places jobs where the meta says that the primary is.",
    ("nomad", "quarantine"): "The node gets no jobs meanwhile.",
    ("nomad", "cut-off"): "Two copies of a job could write at once.",
    ("nomad", "heartbeat"): "Jobs of a dead node start late elsewhere.",
    ("nomad", "leaders"): "An election comes on top of a failover.",
    ("nomad", "following"): "The last round of following the role didn't go well.",
    ("node", "units"): "What these units do isn't done.",
    ("node", "order"): "Until the disk is there the agent can do nothing about its tree.",
    ("node", "clock"): "Names of snapshots and replication ages rest on it; the lease doesn't.",
    ("node", "hooks"): "They don't run at a change of role.",
}

_PAGE = """\
# doctor

`standfast doctor` makes all checks of this node and prints the results by group. For each check
that is bad it says what that means and how to fix it. The command changes nothing, needs no running
agent, and always ends, whatever hangs: a check that can't be made is a finding of its own (`look`).
It exits with 0 when every check is well, else with 1.

On the primary it also connects to each standby as a replication does, and checks ssh, the host key,
the replication key, what the key may do, versions, clocks and space.

`--json` prints one object; its names don't change:

    {"v": 1, "volume": ..., "node": ..., "ok": true or false, "findings": [
      {"group": ..., "check": ..., "subject": ..., "ok": true or false,
       "cause": ..., "evidence": ..., "fix": ...}
    ]}

`subject` is the standby's name in the group `replication`, else empty. `cause` and `fix` are empty
where the check is well. Checks that don't apply to a node are left out. `eligible` (group `nomad`)
only informs, and is never bad.

| group | check | when it is bad |
|---|---|---|
"""


def page() -> str:
    """docs/doctor.md."""
    rows = [f"| {group} | `{check}` | {text} |\n" for (group, check), text in CAUSES.items()]
    return _PAGE + "".join(rows)
