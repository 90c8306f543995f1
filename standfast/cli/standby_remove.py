"""standby remove: forget a node that is no standby any more; what it has on disk stays there.

Invariant: only what this node remembers of it goes. Snapshots that were kept for it here become
ordinary ones, which retention looks after.
"""

from __future__ import annotations

import argparse

from standfast.cli.output import print_json
from standfast.cli.remote import elsewhere
from standfast.cli.steps import Report, node_name
from standfast.config.load import load_volume
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.consul.volume_keys import keys_of
from standfast.errors import Refused, StandfastError
from standfast.reasons import Reason
from standfast.replication import pins, state
from standfast.replication.reporting import leader_of
from standfast.replication.standby_step import Mark, Step
from standfast.replication.timers import ReplicationTimers, timer_of
from standfast.requests.record import Arguments, Verb
from standfast.system.systemd import SystemdUnits

LIMIT_S = 120.0
"""For another node that does it."""


def run(args: argparse.Namespace) -> int:
    """Runs `standfast standby remove NODE`."""
    node = node_name(args.node)
    if (code := _elsewhere(args, node)) is not None:
        return code
    config = load_volume(args.volume)
    gateway = ConsulGateway.from_config(config)
    _check(config, gateway, node)
    report = Report(quiet=args.json)
    report.add(_timer(config, node, args.dry_run))
    report.add(_pin(config, node, args.dry_run))
    report.add(_state(config, node, args.dry_run))
    report.add(_key(config, gateway, node, args.dry_run))
    stays = (
        f"{node} keeps what it has: {config.paths.standby} there, and its lines in authorized_keys"
    )
    others = ", ".join(config.standbys) or "there is none"
    last = f"the other storage nodes remember it, too ({others}): run this there as well"
    report.add(Step("stays", Mark.LEFT, stays))
    report.add(Step("others", Mark.LEFT, last))
    if args.json:
        doc = {
            "done": not args.dry_run,
            "dry_run": args.dry_run,
            "volume": config.volume,
            "node": node,
        }
        print_json({**doc, "steps": report.documents()})
    return 0


def _elsewhere(args: argparse.Namespace, node: str) -> int | None:
    """From a machine that is no storage node, the primary does it."""

    def arguments(_config: Config) -> Arguments:
        return Arguments(dry_run=args.dry_run, as_json=args.json, standby=node, timeout_s=LIMIT_S)

    return elsewhere(args, Verb.STANDBY_REMOVE, arguments)


def _check(config: Config, gateway: ConsulGateway, node: str) -> None:
    if node in config.nodes:
        others = ", ".join(config.nodes)
        raise Refused(
            Reason.STILL_CONFIGURED,
            f"{node} is in [nodes] of {config.source}: take [nodes.{node}] out of it on every "
            f"storage node ({others}), then on each, standbys first, the primary last: systemctl "
            f"restart standfast-agent@{config.volume}; on the primary also: systemctl restart "
            f"standfast-lease@{config.volume}. Then: standfast standby remove {node}",
        )
    leader = leader_of(config, gateway)
    if leader is not None and leader.holder.node == node:
        raise Refused(
            Reason.SERVING,
            f"{node} is the primary of {config.volume} according to Consul: move the role first "
            f"(there: standfast switchover)",
        )


def _timer(config: Config, node: str, dry_run: bool) -> Step:
    unit = timer_of(config, node)
    if dry_run:
        return Step("timer", Mark.LEFT, f"would stop {unit}")
    try:
        ReplicationTimers(config, SystemdUnits()).forget(node)
    except StandfastError as error:
        text = f"systemd doesn't report {unit} ({error}): it is gone at the next boot"
        return Step("timer", Mark.LEFT, text)
    return Step("timer", Mark.OK, f"{unit} is stopped")


def _pin(config: Config, node: str, dry_run: bool) -> Step:
    pin = pins.load(config).get(node)
    if pin is None:
        return Step("pin", Mark.OK, f"no snapshot is kept for {node}")
    if dry_run:
        return Step("pin", Mark.LEFT, f"would no longer keep {pin.name} for {node}")
    pins.drop(config, node)
    return Step("pin", Mark.OK, f"{pin.name} is no longer kept for {node}")


def _state(config: Config, node: str, dry_run: bool) -> Step:
    if node not in state.load(config).standbys:
        return Step("history", Mark.OK, "no replication of it is recorded")
    if dry_run:
        return Step("history", Mark.LEFT, "would forget its replications")
    state.forget(config, node)
    return Step("history", Mark.OK, "its replications are forgotten")


def _key(config: Config, gateway: ConsulGateway, node: str, dry_run: bool) -> Step:
    keys = [key for key in keys_of(config, node) if gateway.get(key, consistent=True) is not None]
    words = ", ".join(keys)
    if not keys:
        return Step("consul", Mark.OK, f"no key there is about {node}")
    if dry_run:
        return Step("consul", Mark.LEFT, f"would delete {words}")
    for key in keys:
        gateway.delete(key)
    return Step("consul", Mark.OK, f"{words}: deleted")
