"""Every command in one table, from which parser, completion, man page and docs/cli.md are made."""

from __future__ import annotations

from collections.abc import Sequence

from standfast.cli.command import (
    DESPITE,
    DRY_RUN,
    JSON,
    ON,
    ON_HERE,
    QUIET,
    REASON,
    TIMEOUT,
    VOLUME,
    VOLUMES,
    Argument,
    Command,
)
from standfast.cli.unit_commands import OF_UNITS

__all__ = ["COMMANDS", "Argument", "Command", "visible"]

_CHANGE = (VOLUME, DRY_RUN, JSON)
_ROLE = (*_CHANGE, REASON, TIMEOUT)
_GIVE_UP = (
    *_ROLE,
    ON,
    Argument(
        "--accept-data-loss",
        "go on without the final snapshot when the disk is read-only, hangs or is gone",
    ),
)

COMMANDS: tuple[Command, ...] = (
    Command(
        "status",
        "show who serves, how old the data of the standbys is and whether a failover is possible",
        "standfast.cli.status:run",
        (
            VOLUMES,
            JSON,
            Argument(
                "--watch",
                "repeat until ^C; on a terminal, in place",
                "SECONDS",
                kind="maybe seconds",
                default=1.0,
            ),
        ),
        "Exits 0 when a node serves, 1 when none does and 3 when that is not known. Where no "
        "agent runs it waits for the primary's next heartbeat, for lease.length at most. With "
        "--json and --watch each look at a volume is one line.",
    ),
    Command(
        "doctor",
        "check this node; print the cause, the evidence and the fix of each problem",
        "standfast.cli.doctor:run",
        (VOLUMES, JSON, ON_HERE, Argument("--all", "ask every storage node, all at once")),
        "Exits 0 when every check passes and 1 when one fails. On the primary it also checks the "
        "connection to each standby. With --all --json it prints a list, an object for each node; "
        "one that doesn't answer has `error` and `reason`.",
    ),
    Command(
        "promote",
        "make this node the primary",
        "standfast.cli.role:run",
        (
            *_ROLE,
            ON_HERE,
            Argument("--accept-data-loss", "promote a snapshot that is older than max_data_loss"),
            DESPITE,
        ),
        "Waits until the last lease has certainly expired. Refused while another node serves.",
    ),
    Command(
        "switchover",
        "move the role from this node to a standby without data loss",
        "standfast.cli.role:switchover",
        (
            *_GIVE_UP,
            Argument(
                "--to",
                "the standby that takes over (default: the one with the newest data)",
                "NODE",
            ),
            DESPITE,
        ),
    ),
    Command(
        "failback",
        "move the role from this node to the preferred node",
        "standfast.cli.role:run",
        (*_GIVE_UP, DESPITE),
    ),
    Command(
        "demote",
        "stop cleanly, with no successor",
        "standfast.cli.role:run",
        _GIVE_UP,
        "A node that has the role but can't serve gives it up as far as its disk allows. Then run "
        "`standfast promote` on the node that is to serve.",
    ),
    Command(
        "requests",
        "list what was asked of nodes through Consul, or show one request",
        "standfast.cli.requests:run",
        (
            VOLUMES,
            JSON,
            Argument("--follow", "pass on what the node says until the request ends"),
            Argument("id", "the request, or the beginning of its id", "ID", required=False),
        ),
        "Commands for another node (`--on`, or from a machine that is none) are requests in Consul."
        " Who asked deletes a request when it has read what came of it; the nodes delete "
        "what nobody changed for an hour. With --follow it exits as the request does.",
    ),
    Command(
        "pause",
        "disable automatic failover",
        "standfast.cli.pause:pause",
        (
            *_CHANGE,
            REASON,
            Argument("--for", "end it by itself after this time: 90m, 2h", "TIME", kind="time"),
        ),
        "The lease is still renewed and replication goes on. `standfast resume` ends the pause. A "
        "storage node that has seen it for the time of --for, on its own clock, ends it; one whose "
        "agent starts anew counts anew.",
    ),
    Command("resume", "enable automatic failover again", "standfast.cli.pause:resume", _CHANGE),
    Command(
        "history",
        "list the primaries: since when, why, and what was lost",
        "standfast.cli.history:run",
        (VOLUMES, JSON),
        "LOST AT MOST is the time between BASE, the snapshot that the epoch started from, and the "
        "end of the previous primary's lease. `goes on from epoch N` means that the epochs in "
        "between never served, and that nothing of epoch N was lost by them.",
    ),
    Command(
        "replicate",
        "run one replication cycle to a standby, or to all standbys at once",
        "standfast.cli.replicate:run",
        (
            *_CHANGE,
            Argument("--full", "send everything, even if both sides have a common snapshot"),
            QUIET,
            Argument(
                "--instance", "volume and standby in one argument, for unit files", "VOLUME:STANDBY"
            ),
            ON,
            Argument("standby", "the standby (default: all)", "STANDBY", required=False),
        ),
        "Prints progress to stderr: a bar on a terminal, else a line every 10 s. With --dry-run it "
        "asks the standby and prints what it would send.",
    ),
    Command(
        "standby add",
        "set up a standby: replication key, permission to send, both sides' state, first copy",
        "standfast.cli.standby_add:run",
        (
            *_CHANGE,
            QUIET,
            Argument("--install-key", "install this node's key there, over your own ssh"),
            Argument(
                "--timeout",
                "give up after this many seconds; the standby's own limit is its "
                "replication.timeout",
                "SECONDS",
                kind="seconds",
                default=86400.0,
            ),
            ON,
            Argument("node", "a node of [nodes]", "NODE"),
        ),
        "Prints a line for each step. Every step can be repeated: a step that is done already is "
        "skipped. On a node that isn't primary it prepares replication for when it is.",
    ),
    Command(
        "standby authorize",
        "on a standby: allow another node's replication key to send the volume, and nothing else",
        "standfast.cli.standby_authorize:run",
        (
            *_CHANGE,
            Argument("--file", "instead of .ssh/authorized_keys of replication.ssh_user", "FILE"),
            Argument("--from", "whose key it is (default: as the key's comment says)", "NODE"),
            Argument("key", "the public key, in quotes: 'ssh-ed25519 AAAA... comment'", "KEY"),
        ),
        "It speaks for that node alone, and only from its address in [nodes], unless that is a "
        "host name; a `from=` that is there stays. An older version's line of the key gets what it "
        "lacks; other lines stay unchanged. `standfast standby add` prints this command.",
    ),
    Command(
        "standby remove",
        "forget a node that is no longer a storage node; its data stays there",
        "standfast.cli.standby_remove:run",
        (*_CHANGE, ON, Argument("node", "a node that is no longer in [nodes]", "FORMER-NODE")),
        "Stops its timer and releases the snapshots kept for it. Run it on every storage node.",
    ),
    Command(
        "standby hold",
        "take a node out of those that take over by themselves, for maintenance say",
        "standfast.cli.standby_hold:hold",
        (*_CHANGE, REASON, Argument("node", "a standby", "NODE")),
        "Replication to it goes on, nobody waits for it, and a switchover goes elsewhere; "
        "`--despite hold` moves the role there all the same. `standfast standby release` ends "
        "that.",
    ),
    Command(
        "standby release",
        "end `standfast standby hold`",
        "standfast.cli.standby_hold:release",
        (*_CHANGE, Argument("node", "the node that is on hold", "NODE")),
    ),
    Command(
        "standby list",
        "list the standbys and the newest snapshot that each has on disk",
        "standfast.cli.standby:run",
        (VOLUMES, JSON),
    ),
    Command(
        "snapshots",
        "list this node's snapshots, their pins, and other trees beside them",
        "standfast.cli.snapshots:run",
        (VOLUMES, JSON, Argument("--all", "also ask the other storage nodes for theirs")),
        "A partial snapshot is left from an interrupted replication; it is never used.",
    ),
    Command(
        "prune",
        "delete snapshots of this node that no pin or retention rule keeps",
        "standfast.cli.prune:run",
        _CHANGE,
        "Each replication does this at its end. --dry-run prints why each snapshot is kept.",
    ),
    Command(
        "verify",
        "compare a standby's data with this node's, entry by entry; nothing is changed",
        "standfast.cli.verify:run",
        (
            VOLUME,
            JSON,
            Argument(
                "--full", "compare the contents of files (sha256), too, not only their metadata"
            ),
            Argument("--if-primary", "do nothing on a node that isn't primary; for timers"),
            Argument("standby", "the standby (default: each in turn)", "STANDBY", required=False),
        ),
        "Compares the newest snapshot that both have. Exits 0 when all are equal, 1 with "
        "`content-differs` and the first differences when one isn't, 3 when a standby can't be "
        "reached.",
    ),
    Command(
        "accept-epoch",
        "after Consul was restored from a backup: raise its epoch to the highest known one",
        "standfast.cli.accept_epoch:run",
        _CHANGE,
        "That is the highest epoch that this node has seen or that a key of the volume names. The "
        "epoch is never lowered. Run it on each storage node: the highest one wins.",
    ),
    Command(
        "guard",
        "check whether this node may serve now; the NFS server's unit runs it before each start",
        "standfast.cli.services:guard",
        (VOLUME,),
    ),
    Command(
        "receive",
        "receive one snapshot from stdin; the only command that the replication key may run",
        "standfast.cli.receive:receive",
        (
            Argument("--from", "the node whose key it is: it speaks for no other one", "NODE"),
            Argument("volume", "the volume", "VOLUME", required=False),
        ),
    ),
    Command(
        "remount",
        "move this node's mount of the volume to the node that serves now",
        "standfast.cli.clients:remount",
        (
            *_CHANGE,
            Argument(
                "--event",
                "for handlers and the timer: log instead of printing, and never fail",
                "EVENT",
            ),
        ),
        "Without --volume it does so for every volume of this node. Handlers and a timer run it "
        "automatically. It never unmounts the right server, and does nothing on the primary.",
    ),
    Command(
        "client units",
        "print the systemd units that mount the volume on a client, or install them",
        "standfast.cli.clients:units",
        (
            VOLUME,
            DRY_RUN,
            Argument("--install", "write them to /etc/systemd/system"),
            Argument("--dir", "with --install: write them to this directory instead", "DIR"),
        ),
    ),
    Command(
        "setup",
        "set this node up, a storage node or a client: everything from nothing to running",
        "standfast.cli.setup:run",
        (
            Argument(
                "--config", "the cluster's file, VOLUME.toml (default: that of this node)", "FILE"
            ),
            Argument(
                "--node", "this node's name in [nodes] (default: the host's, or Consul's)", "NODE"
            ),
            Argument("--token", "a file with the ACL token for Consul; - for stdin", "FILE"),
            Argument("--yes", "ask nothing, and replace a configuration that differs"),
            DRY_RUN,
            JSON,
        ),
        "Asks everything that it needs before it changes anything, and says what is in the way "
        "with its fix. Each step can be repeated: what is done already is found done. On a "
        "terminal without --yes it shows its plan and asks.",
    ),
    Command(
        "uninstall",
        "take Standfast off this node; never the volume's data, snapshots or trees kept aside",
        "standfast.cli.uninstall:run",
        (
            VOLUMES,
            Argument("--cluster", "also what Consul has of the volume; for the last node"),
            Argument("--keep-serving", "the last storage node: go on as a plain NFS server"),
            Argument(
                "--package",
                "for a package's removal: ask nothing, and leave its files, /etc/standfast and "
                "the state",
            ),
            Argument("--yes", "ask nothing"),
            DRY_RUN,
            JSON,
        ),
        "Refused on the primary (`standfast switchover` or `demote` first), unless it is the last "
        "storage node and keeps serving. What others changed, and what may be data, stays, and is "
        "told with the command that deletes it.",
    ),
    Command(
        "config check",
        "check the configuration of every volume, or of the given files",
        "standfast.cli.config:check",
        (VOLUME, JSON, Argument("files", "the files to check", "FILE", kind="words")),
        "Says which node this host is, and prints each problem with its key, the value, the rule "
        "and the fix. A warning is only worth a look. Whether the files that are named exist here "
        "is asked only without FILE. On a storage node it compares the node's name with that of "
        "Consul's agent, or says that it couldn't.",
    ),
    Command(
        "config example",
        "print a configuration file with all keys and comments",
        "standfast.cli.config:example",
        (VOLUME,),
    ),
    Command(
        "completion",
        "print the completion script of a shell",
        "standfast.cli.completion:run",
        (Argument("shell", "the shell", "SHELL", choices=("bash", "zsh", "fish")),),
        'For bash: eval "$(standfast completion bash)". The wheel installs the scripts, too.',
    ),
    Command(
        "demo",
        "run three nodes on this machine, with a failover and a failback, without root",
        "standfast.demo.main:run",
        (
            Argument(
                "--keep", "keep the directory with the disks, configurations and logs of the nodes"
            ),
            Argument(
                "--stay",
                "let the nodes run until Ctrl-D instead, with status pages and a prompt to kill, "
                "freeze and cut off nodes (docs/demo.md)",
            ),
        ),
    ),
    *OF_UNITS,
)


def visible() -> Sequence[Command]:
    """Returns the commands that people run."""
    return [command for command in COMMANDS if not command.hidden]
