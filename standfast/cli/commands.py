"""Every command in one table: parser, completion, man page and docs/cli.md derive from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Argument:
    """An option (its name begins with --) or a positional."""

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


VOLUME = Argument("--volume", "which volume (default: the only one configured)", "VOLUME")
JSON = Argument("--json", "print JSON")
DRY_RUN = Argument("--dry-run", "print what would be done, do nothing")
REASON = Argument("--reason", "why; noted for others to read", "TEXT")
QUIET = Argument("--quiet", "say nothing of how far it is")
TIMEOUT = Argument(
    "--timeout",
    "give up waiting for the agent after this many seconds (what it began, it finishes)",
    "SECONDS",
    kind="seconds",
    default=900.0,
)
_CHANGE = (VOLUME, DRY_RUN, JSON)
_ROLE = (*_CHANGE, REASON, TIMEOUT)
_GIVE_UP = (
    *_ROLE,
    Argument(
        "--accept-data-loss",
        "without the final snapshot, where the disk takes no writes, hangs or is gone",
    ),
)
_SERVICE_VOLUME = Argument("volume", "the volume", "VOLUME")

COMMANDS: tuple[Command, ...] = (
    Command(
        "status",
        "who serves, how old the standbys' data is, whether a failover is possible now",
        "standfast.agent.document:run",
        (
            VOLUME,
            JSON,
            Argument(
                "--watch",
                "show it again and again, in place on a terminal, until ^C",
                "SECONDS",
                kind="maybe seconds",
                default=1.0,
            ),
        ),
        "Exits 0 when a node serves and 1 when none does. With --json and --watch each look is one "
        "line.",
    ),
    Command(
        "doctor",
        "what is wrong on this node: cause, evidence and fix, check by check",
        "standfast.doctor.run:run",
        (VOLUME, JSON),
        "Exits 0 when every check is well and 1 when one isn't. On the primary it goes the way to "
        "each standby, too.",
    ),
    Command(
        "promote",
        "make this node the primary",
        "standfast.cli.role:promote",
        (
            *_ROLE,
            Argument("--accept-data-loss", "promote a snapshot that is older than max_data_loss"),
        ),
        "Waits until the last lease is over for certain. Refused while another node serves.",
    ),
    Command(
        "switchover",
        "move the role from this node to a standby, without losing anything",
        "standfast.cli.role:switchover",
        (
            *_GIVE_UP,
            Argument("--to", "the standby (default: the one with the newest data)", "NODE"),
        ),
    ),
    Command(
        "failback",
        "move the role from this node to the preferred one",
        "standfast.cli.role:failback",
        _GIVE_UP,
    ),
    Command(
        "demote",
        "stop serving in order; nobody is told to take over",
        "standfast.cli.role:demote",
        _GIVE_UP,
        "On a node that has the role and can't serve: gives it up as far as its disk allows. Then "
        "`standfast promote` on the node that is to have it.",
    ),
    Command(
        "pause",
        "keep every node from taking over by itself",
        "standfast.cli.pause:pause",
        (*_CHANGE, REASON),
        "Renewing the lease goes on, and so does replication. Ends with `standfast resume`.",
    ),
    Command("resume", "end a pause", "standfast.cli.pause:resume", _CHANGE),
    Command(
        "history",
        "who was primary from when, why, and what was lost",
        "standfast.cli.history:run",
        (VOLUME, JSON),
        "LOST AT MOST: so much was written after BASE, the snapshot that the reign started from, "
        "to the end of the last primary's lease. `goes on from epoch N`: the reigns between never "
        "served, and nothing of epoch N is cut off by them.",
    ),
    Command(
        "replicate",
        "one replication cycle to a standby, or to all of them at once",
        "standfast.cli.replicate:run",
        (
            *_CHANGE,
            Argument("--full", "send everything, whatever both sides have in common"),
            QUIET,
            Argument("--instance", "volume and standby in one, for unit files", "VOLUME:STANDBY"),
            Argument("standby", "which one (default: all)", "STANDBY", required=False),
        ),
        "Shows a bar on a terminal and writes a line every 10 s elsewhere, both to stderr. With "
        "--dry-run the standby is asked what would be sent.",
    ),
    Command(
        "standby add",
        "bring a storage node to where it has everything: key, door, both sides' state, first send",
        "standfast.cli.standby_add:run",
        (
            *_CHANGE,
            QUIET,
            Argument("--install-key", "put our key in there by your own ssh, if it isn't yet"),
            Argument(
                "--timeout",
                "give up after this many seconds; the standby's own limit is its "
                "replication.timeout",
                "SECONDS",
                kind="seconds",
                default=86400.0,
            ),
            Argument("node", "one of [nodes]", "NODE"),
        ),
        "Every step has a line, and can be repeated: what is done is found done. On a node that "
        "isn't primary it makes the way ready for the day on which it is.",
    ),
    Command(
        "standby authorize",
        "on a standby: let another node's replication key receive the volume, and nothing else",
        "standfast.cli.standby_authorize:run",
        (
            *_CHANGE,
            Argument(
                "--file",
                "instead of .ssh/authorized_keys of replication.ssh_user, where sshd looks "
                "elsewhere",
                "FILE",
            ),
            Argument("key", "the public key, in quotes: 'ssh-ed25519 AAAA... comment'", "KEY"),
        ),
        "Every other line of the file stays as it is. `standfast standby add` prints the command.",
    ),
    Command(
        "standby remove",
        "forget a node that is no storage node any more; its data stays there",
        "standfast.cli.standby_remove:run",
        (*_CHANGE, Argument("node", "one that is not in [nodes] any more", "NODE")),
        "Ends its timer, and no longer keeps a snapshot for it. Run it on every storage node.",
    ),
    Command(
        "standby list",
        "the standbys and the newest snapshot that each has on disk",
        "standfast.cli.standby:run",
        (VOLUME, JSON),
    ),
    Command(
        "snapshots",
        "what snapshots this node has, which are pinned for whom, and what lies beside them",
        "standfast.cli.snapshots:run",
        (VOLUME, JSON, Argument("--all", "ask every other storage node for its own, too")),
        "A partial one is what a replication left half done; it is never used.",
    ),
    Command(
        "prune",
        "delete the snapshots of this node that nothing speaks for",
        "standfast.cli.prune:run",
        _CHANGE,
        "Each replication does the same afterwards. With --dry-run it says why each one is kept.",
    ),
    Command(
        "verify",
        "is what a standby has what this node has? compared entry by entry, nothing is changed",
        "standfast.cli.verify:run",
        (
            VOLUME,
            JSON,
            Argument("--full", "read what is in the files, too (sha256), not only their metadata"),
            Argument("--if-primary", "do nothing on a node that isn't the primary: for timers"),
            Argument("standby", "which one (default: each in turn)", "STANDBY", required=False),
        ),
        "Compares the newest snapshot that both have. Exits 0 when all are equal, 1 with "
        "`content-differs` and the first differences when one isn't, 3 when it can't be reached.",
    ),
    Command(
        "accept-epoch",
        "after Consul was restored from a backup: raise its epoch to the highest known",
        "standfast.cli.accept_epoch:run",
        _CHANGE,
        "The highest that this node has seen or that any key of the volume tells of; never lowers "
        "anything. Run it on each storage node: the highest one wins.",
    ),
    Command(
        "guard",
        "may this node serve now? what the NFS server asks before it starts",
        "standfast.cli.services:guard",
        (VOLUME,),
    ),
    Command(
        "receive",
        "take in one snapshot from stdin: the only command of the replication key",
        "standfast.cli.receive:receive",
        (Argument("volume", "the volume", "VOLUME", required=False),),
    ),
    Command(
        "remount",
        "bring this node's mount of the volume to the server that serves now",
        "standfast.cli.clients:remount",
        (
            *_CHANGE,
            Argument("--event", "called by a handler or the timer: log, and never fail", "EVENT"),
        ),
        "Without --volume: every volume of this node. Handlers and a timer do it by themselves. A "
        "mount of the right server is never taken away; on the primary nothing is done.",
    ),
    Command(
        "client units",
        "print the systemd units that mount the volume on a client, or install them",
        "standfast.cli.clients:units",
        (
            VOLUME,
            DRY_RUN,
            Argument("--install", "write them to /etc/systemd/system"),
            Argument("--dir", "write them there instead", "DIR"),
        ),
    ),
    Command(
        "config check",
        "check the configuration of every volume, or the given files",
        "standfast.cli.config:check",
        (VOLUME, JSON, Argument("files", "check these files", "FILE", kind="words")),
        "Every problem is printed with its key, the value, the rule and the way out.",
    ),
    Command(
        "config example",
        "print a commented configuration file with all keys",
        "standfast.cli.config:example",
        (VOLUME,),
    ),
    Command(
        "completion",
        "print the completion script of a shell",
        "standfast.cli.completion:run",
        (Argument("shell", "which shell", "SHELL", choices=("bash", "zsh", "fish")),),
        'For bash: eval "$(standfast completion bash)".',
    ),
    Command(
        "demo",
        "a cluster of three nodes on this machine: failover and the way back, without root",
        "standfast.demo.main:run",
        (Argument("--keep", "keep the directory with the nodes' disks, configurations and logs"),),
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
        "take over what `standfast receive` is asked for, loaded already: started by its socket",
        "standfast.cli.receiver:main",
        hidden=True,
    ),
    Command(
        "nomad-boot",
        "before Nomad starts: have its servers place no jobs here by an old meta",
        "standfast.cli.nomad_boot:run",
        (_SERVICE_VOLUME,),
        hidden=True,
    ),
    Command(
        "lease",
        "hold the lease: heartbeats, and feeding the fence",
        "standfast.cli.services:lease",
        (_SERVICE_VOLUME,),
        hidden=True,
    ),
    Command(
        "fence",
        "the lease is lost for good: shut the port and stop the NFS server",
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
        "make this node's agents look again",
        "standfast.cli.services:reconcile",
        (VOLUME, Argument("--event", "what happened", "EVENT")),
        hidden=True,
    ),
)

# Exit status, and what it means: an interface.
EXIT_CODES: tuple[tuple[int, str], ...] = (
    (0, "done"),
    (1, "refused: the message begins with a reason code (docs/reason-codes.md)"),
    (2, "the command line or the configuration is wrong"),
    (3, "something is unreachable, or a deadline passed"),
    (4, "a step failed half-way: the message says which, and the command that goes on"),
    (130, "interrupted"),
)

ENVIRONMENT: tuple[tuple[str, str], ...] = (
    ("STANDFAST_CONFIG_DIR", "where the configuration files are, instead of /etc/standfast"),
    ("STANDFAST_DEBUG", "1: show the traceback of an unexpected error"),
    ("STANDFAST_JOURNAL", "the journal's socket, for events; empty: none (docs/events.md)"),
    (
        "CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_CACERT, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY",
        "used where [consul] of the configuration leaves a value empty",
    ),
)


def visible() -> Sequence[Command]:
    """What people run."""
    return [command for command in COMMANDS if not command.hidden]
