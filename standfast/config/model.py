"""The configuration as frozen structs: the one table behind parser, defaults, help, reference.

Each field's factory carries its help text, and for numbers the unit and the least value. Nothing
here reads a file; `load` does, and `rules` holds what must be true between fields.
"""

# No `from __future__ import annotations`: as texts they would be compiled anew at each start.
from pathlib import Path

from msgspec import Struct

from standfast.config.client import Client
from standfast.config.consul import ConsulAccess
from standfast.config.fields import option, required
from standfast.config.nomad import NomadAccess


class Node(Struct, frozen=True, kw_only=True):
    """[nodes.NAME]: a storage node, named as in Consul."""

    address: str = required(
        "Address at which clients and other nodes reach it",
        example="192.168.1.2",
        form="address",
    )
    priority: int = option(
        100,
        "Higher goes first among candidates with equally new data; raise it for a better server",
        least=0,
        most=1_000_000,
    )
    probe_port: int = option(
        8301,
        "TCP port that answers while the node's Consul agent lives; change it with Consul's "
        "serf_lan port",
        least=1,
        most=65535,
    )


class Paths(Struct, frozen=True, kw_only=True):
    """[paths]: set them to match the nodes' disks"""

    live: Path = option(Path("/persist/services"), "The exported subvolume")
    snapshots: Path = option(
        Path("/persist"), "Directory of the primary's own snapshots, named after the live subvolume"
    )
    standby: Path = option(
        Path("/persist/services-standby"), "Directory of received, published snapshots"
    )
    bind: Path = option(
        Path("/data/services"), "Where the volume is seen on every node: bind mount or NFS mount"
    )
    state: Path = option(
        Path("/var/lib/standfast"),
        "Durable state, a directory per volume below it; change it if /var/lib doesn't survive a "
        "reboot",
    )
    run: Path = option(
        Path("/run/standfast"),
        "Sockets and locks, gone at reboot, a directory per volume below it; change it if several "
        "nodes share a machine, as in a test",
    )


class LeaseTiming(Struct, frozen=True, kw_only=True):
    """[lease]: seconds, checked against the timing rule and refused when they break it. \
Shorter times make a failover quicker, longer ones tolerate a slower Consul."""

    heartbeat: float = option(2.0, "Time between heartbeats", unit="s", least=0.1)
    request_timeout: float = option(2.0, "Deadline of one heartbeat's request", unit="s", least=0.1)
    length: float = option(
        8.0, "L: serving is allowed this long after a heartbeat", unit="s", least=0.5
    )
    fence: float = option(
        2.0, "F: by then after the end of the lease nothing is served", unit="s", least=0.5
    )
    wait: float = option(
        12.0, "W: how long a candidate must have seen no heartbeat", unit="s", least=1.0
    )
    drift: float = option(
        0.01,
        "rho: by how much two clocks' rates may differ; raise it for poor clocks",
        least=0.0,
        most=0.2,
    )


FAST_PROFILE = LeaseTiming(heartbeat=0.5, request_timeout=0.5, length=2.0, fence=1.0, wait=4.1)


class Nfs(Struct, frozen=True, kw_only=True):
    """[nfs]"""

    server: str = option("kernel", "The NFS server's kind", choices=("kernel", "ganesha"))
    unit: str = option(
        "nfs-server.service",
        "systemd unit of the NFS server; distributions differ",
        form="unit",
    )
    clients: tuple[str, ...] = option(
        ("192.168.1.0/24",), "Networks or hosts that may mount the volume", form="word"
    )
    options: str = option(
        "rw,sync,no_subtree_check,no_root_squash",
        "Export options of the kernel server, as in exports(5)",
        form="word",
    )
    port: int = option(
        2049,
        "TCP port at which the server listens",
        least=1,
        most=65535,
    )
    ganesha_exports: Path = option(
        Path("/etc/ganesha/exports.d"),
        "Where the export block is written for nfs-ganesha; its configuration must include this "
        "directory",
    )
    start_timeout: float = option(
        30.0,
        "Deadline for starting or stopping the server; raise it if yours takes longer",
        unit="s",
        least=1.0,
    )
    lease_time: float = option(
        10.0,
        "A client that the kernel server hasn't heard of for this long may lose its opens and "
        "locks; after a start clients have this long to reclaim theirs, while new opens wait. "
        "Raise it if clients are often cut off; whole seconds, rounded up",
        unit="s",
        least=1.0,
        most=3600.0,
    )


class Fencing(Struct, frozen=True, kw_only=True):
    """[fence]"""

    backend: str = option(
        "auto",
        "Kernel-timed fence on the NFS port; auto: what the node has",
        choices=("auto", "nftables", "ipset"),
    )
    reboot: str = option(
        "never",
        "Last resort when the fence can't be confirmed; sysrq: the node reboots at once",
        choices=("never", "sysrq"),
    )


class Guarding(Struct, frozen=True, kw_only=True):
    """[guard]"""

    deadline: float = option(
        3.0,
        "For everything the guard asks; lower it to be refused sooner. nfs-server-guard ends after "
        "3 s, whatever this says",
        unit="s",
        least=0.5,
    )
    standby_hint: str = option(
        "nfs-services-standby.nix",
        "Name of your own configuration file; the refusal tells people to use it on this host "
        "instead",
    )


class Replication(Struct, frozen=True, kw_only=True):
    """[replication]"""

    interval: float = option(
        300.0, "Time between cycles; lower it to lose less in a failover", unit="s", least=1.0
    )
    timeout: float = option(
        3600.0,
        "Deadline of one cycle; raise it if the first copy takes longer",
        unit="s",
        least=1.0,
    )
    stall_timeout: float = 300.0
    """A stream in which nothing moves for this long is given up, seconds. Not in the file."""
    ssh_key: Path = option(
        Path("/etc/standfast/replication_key"),
        "Private key for replication",
    )
    ssh_user: str = option(
        "root", "User on the standby; change it if root may not log in", form="name"
    )
    command: tuple[str, ...] = option(
        (), "Transport instead of ssh; {node}, {address} and {volume} are replaced"
    )
    allow_full: bool = option(
        False,
        "Send everything by itself to a standby that has nothing in common with the primary; "
        "otherwise that waits for --full",
    )
    drop_pin_after: float = option(
        14 * 86400.0,
        "A standby that took nothing in for this long loses its pinned snapshot, if another is up "
        "to date, and needs everything sent again; lower it if the disk is small",
        unit="s",
        least=60.0,
    )
    bandwidth_limit: int = option(
        0, "Bytes a second to one standby; 0: no limit", least=0, most=2**40
    )
    compression: str = option(
        "none",
        "Of the stream; for slow networks. zstd needs the program on both sides",
        choices=("none", "zstd"),
    )
    compressed_data: bool = option(
        False, "Send compressed extents as they are, where both kernels and btrfs-progs can"
    )
    verify: str = option(
        "none",
        "metadata: each cycle compares every name, mode, owner, size, time and xattr of both "
        "sides before it publishes; for hardware that you don't trust",
        choices=("none", "metadata"),
    )


class KeepOwn(Struct, frozen=True, kw_only=True):
    """[retention_own]: the primary's own snapshots; pinned ones stay whatever this says. Keeping \
more takes more space."""

    keep_last: int = option(24, "So many of the newest", least=1, most=100_000)
    hourly: int = option(0, "The last one of each of so many hours", least=0, most=100_000)
    daily: int = option(0, "The last one of each of so many days", least=0, most=100_000)
    weekly: int = option(0, "The last one of each of so many weeks", least=0, most=100_000)
    monthly: int = option(0, "The last one of each of so many months", least=0, most=100_000)


class KeepPublished(Struct, frozen=True, kw_only=True):
    """[retention_published]: received snapshots; the newest and pinned ones stay in any case. \
Keeping more takes more space."""

    keep_last: int = option(48, "So many of the newest", least=1, most=100_000)
    hourly: int = option(24, "The last one of each of so many hours", least=0, most=100_000)
    daily: int = option(7, "The last one of each of so many days", least=0, most=100_000)
    weekly: int = option(4, "The last one of each of so many weeks", least=0, most=100_000)
    monthly: int = option(0, "The last one of each of so many months", least=0, most=100_000)


Keep = KeepOwn | KeepPublished


class Hooks(Struct, frozen=True, kw_only=True):
    """[hooks]: programs of your own that run at a change of role (docs/events.md)"""

    dir: Path = option(
        Path("/etc/standfast/hooks.d"),
        "A directory for each event, such as pre-promote, with the programs in it; change "
        "it if /etc is read-only",
    )
    timeout: float = option(
        15.0,
        "Deadline of an event's programs together; raise it if they stop something slow",
        unit="s",
        least=0.1,
        most=600.0,
    )
    pre_promote_failure: str = option(
        "go-on",
        "What a program of pre-promote means by hanging, crashing, or any status but 0 and 75 "
        "(which is a veto); go-on: nothing, a broken one keeps nobody from taking over",
        choices=("go-on", "veto"),
    )


class Config(Struct, frozen=True, kw_only=True):
    """/etc/standfast/<volume>.toml; `volume` is the file's name."""

    volume: str
    source: Path
    cluster: str = required(
        "Name of the cluster; a receiver refuses another cluster's data",
        example="alo",
        form="name",
    )
    node: str = option("", "This node's name in Consul; empty: the host name", form="name or empty")
    preferred: str = option("", "Node that failback moves the role to", form="name or empty")
    mode: str = option("auto", "manual never promotes by itself", choices=("auto", "manual"))
    max_data_loss: float = option(
        600.0,
        "Older snapshots are not promoted without --accept-data-loss; raise it if "
        "serving old data is better than not serving",
        unit="s",
        least=1.0,
    )
    failover_after: float = option(
        60.0,
        "Silence after which a primary without other signs of death is replaced; raise it if "
        "the network is often cut",
        unit="s",
        least=1.0,
    )
    surrender_after: float = option(
        60.0,
        "A primary that holds the lease and has not served for this long gives the role up by "
        "itself to a standby that says it is ready; what was not replicated is lost to that one, "
        "and kept here. Seconds without service are summed: four seconds of service take one off "
        "again, 30 of them in a row all. Longer than the server's start may take; 0: never",
        unit="s",
        least=0.0,
    )
    failover_cooldown: float = option(
        600.0,
        "At most one automatic failover or surrender in this time. An epoch that began so and has "
        "never served is surrendered before that, to a node that hasn't had the role since it was "
        "last given by an operator or in order. A standby counts from when it saw the epoch begin; "
        "one that started later, or couldn't read Consul then, goes by both nodes' clocks, too",
        unit="s",
        least=0.0,
    )
    nodes: dict[str, Node] = required("The storage nodes, by their names in Consul")
    paths: Paths = Paths()
    lease: LeaseTiming = LeaseTiming()
    consul: ConsulAccess = ConsulAccess()
    nfs: Nfs = Nfs()
    fence: Fencing = Fencing()
    guard: Guarding = Guarding()
    replication: Replication = Replication()
    retention_own: KeepOwn = KeepOwn()
    retention_published: KeepPublished = KeepPublished()
    client: Client = Client()
    hooks: Hooks = Hooks()
    nomad: NomadAccess = NomadAccess(enabled=False)

    @property
    def service(self) -> str:
        return self.consul.service or self.volume

    @property
    def server_name(self) -> str:
        """Returns what clients mount from: Consul's DNS gives whoever serves."""
        return self.client.name or f"{self.service}.service.consul"

    @property
    def me(self) -> Node:
        return self.nodes[self.node]

    @property
    def standbys(self) -> tuple[str, ...]:
        """Returns the other storage nodes, sorted by name."""
        return tuple(sorted(name for name in self.nodes if name != self.node))

    @property
    def base(self) -> str:
        """Returns the base of the snapshots' names: `services` of /persist/services."""
        return self.paths.live.name

    @property
    def state_dir(self) -> Path:
        return self.paths.state / self.volume

    @property
    def run_dir(self) -> Path:
        return self.paths.run / self.volume

    @property
    def service_id(self) -> str:
        """Of this node's entry in Consul: one per volume, so that a second one replaces it."""
        return f"standfast-{self.volume}"

    def key(self, name: str) -> str:
        """Returns the full name of one of the volume's keys in Consul."""
        return f"{self.consul.prefix}/{self.volume}/{name}"

    def client_key(self, node: str) -> str:
        """Returns the full name of the key where a client says what it mounts; with no node, of all
        clients' folder. It lies beside the volume's keys: a client's token may write there, and
        nothing else."""
        return f"{self.consul.prefix}-clients/{self.volume}/{node}"
