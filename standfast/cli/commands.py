"""Every command in one table, from which parser, completion, man page and docs/cli.md are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Argument:
    """An option (its name begins with --) or a positional argument."""

    name: str
    help: str
    metavar: str = ""
    """Empty for an option without a value."""
    choices: tuple[str, ...] = ()
    kind: str = "text"
    """text, seconds (a positive number), maybe seconds (the default without one) or words (any
    number of them)."""
    default: float | None = None
    required: bool = True
    """Of a positional only."""

    @property
    def is_option(self) -> bool:
        return self.name.startswith("--")

    @property
    def dest(self) -> str:
        return self.name.lstrip("-").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Command:
    """`entry` is MODULE:FUNCTION, imported only when the command runs; it takes the namespace."""

    name: str
    help: str
    entry: str
    arguments: tuple[Argument, ...] = ()
    more: str = ""
    hidden: bool = False
    """Run by units and handlers, not by people."""


VOLUME = Argument("--volume", "the volume (default: the only configured one)", "VOLUME")
VOLUMES = Argument("--volume", "the volume (default: each configured one)", "VOLUME")
JSON = Argument("--json", "print JSON")
DRY_RUN = Argument("--dry-run", "print what the command would do, and change nothing")
REASON = Argument("--reason", "why; recorded for other operators", "TEXT")
QUIET = Argument("--quiet", "no progress output")
TIMEOUT = Argument(
    "--timeout",
    "stop waiting for the agent after this many seconds; it finishes what it began",
    "SECONDS",
    kind="seconds",
    default=900.0,
)
_KNOWN = "go on though these checks of the next primary (`standfast doctor`) fail: X,Y"
DESPITE = Argument("--despite", _KNOWN, "CHECKS")
_CHANGE = (VOLUME, DRY_RUN, JSON)
_ROLE = (*_CHANGE, REASON, TIMEOUT)
_GIVE_UP = (
    *_ROLE,
    Argument(
        "--accept-data-loss",
        "go on without the final snapshot when the disk is read-only, hangs or is gone",
    ),
)
_SERVICE_VOLUME = Argument("volume", "the volume", "VOLUME")

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
        (VOLUMES, JSON),
        "Exits 0 when every check passes and 1 when one fails. On the primary it also checks the "
        "connection to each standby.",
    ),
    Command(
        "promote",
        "make this node the primary",
        "standfast.cli.role:run",
        (
            *_ROLE,
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
        "pause",
        "disable automatic failover",
        "standfast.cli.pause:pause",
        (*_CHANGE, REASON),
        "The lease is still renewed and replication goes on. `standfast resume` ends the pause.",
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
        (*_CHANGE, Argument("node", "a node that is no longer in [nodes]", "FORMER-NODE")),
        "Stops its timer and releases the snapshots kept for it. Run it on every storage node.",
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
    Command(
        "agent",
        "watch Consul, decide, promote and demote",
        "standfast.cli.services:agent",
        (_SERVICE_VOLUME,),
        hidden=True,
    ),
    Command(
        "receiver",
        "serve `standfast receive` from a process that is loaded already; its socket starts it",
        "standfast.cli.receiver:main",
        hidden=True,
    ),
    Command(
        "nomad-boot",
        "before Nomad starts: make this node ineligible if it still has the primary's meta",
        "standfast.cli.nomad_boot:run",
        (_SERVICE_VOLUME,),
        hidden=True,
    ),
    Command(
        "lease",
        "hold the lease: send heartbeats and extend the fence",
        "standfast.cli.services:lease",
        (_SERVICE_VOLUME,),
        hidden=True,
    ),
    Command(
        "fence",
        "after the lease is lost for good: close the port and stop the NFS server",
        "standfast.cli.services:fence",
        (_SERVICE_VOLUME,),
        hidden=True,
    ),
    Command(
        "watch",
        "run the Consul watches with their handlers",
        "standfast.cli.services:watch",
        (_SERVICE_VOLUME,),
        hidden=True,
    ),
    Command(
        "exporter",
        "answer Prometheus, browsers and health checks about this node's volumes",
        "standfast.cli.services:exporter",
        (
            Argument("--listen", "where (default: 127.0.0.1:9756)", "ADDRESS:PORT"),
            Argument("--textfile", "write once for node_exporter instead", "FILE.prom"),
        ),
        hidden=True,
    ),
    Command(
        "reconcile",
        "make this node's agents check the cluster now",
        "standfast.cli.services:reconcile",
        (VOLUME, Argument("--event", "what happened", "EVENT")),
        hidden=True,
    ),
)


def visible() -> Sequence[Command]:
    """Returns the commands that people run."""
    return [command for command in COMMANDS if not command.hidden]
