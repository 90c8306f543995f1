"""The commands that units and handlers run, not people."""

from __future__ import annotations

from standfast.cli.command import SERVICE_VOLUME, Argument, Command

OF_UNITS: tuple[Command, ...] = (
    Command(
        "agent",
        "watch Consul, decide, promote and demote",
        "standfast.cli.services:agent",
        (SERVICE_VOLUME,),
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
        (SERVICE_VOLUME,),
        hidden=True,
    ),
    Command(
        "lease",
        "hold the lease: send heartbeats and extend the fence",
        "standfast.cli.services:lease",
        (SERVICE_VOLUME,),
        hidden=True,
    ),
    Command(
        "fence",
        "after the lease is lost for good: close the port and stop the NFS server",
        "standfast.cli.services:fence",
        (SERVICE_VOLUME,),
        hidden=True,
    ),
    Command(
        "watch",
        "run the Consul watches with their handlers",
        "standfast.cli.services:watch",
        (SERVICE_VOLUME,),
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
        (
            Argument("--volume", "the volume (default: the only configured one)", "VOLUME"),
            Argument("--event", "what happened", "EVENT"),
        ),
        hidden=True,
    ),
)
