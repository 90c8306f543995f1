"""What doctor says of Nomad: facts that are read once, and findings that follow (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.doctor.finding import Finding
from standfast.errors import StandfastError
from standfast.nomad import reports
from standfast.nomad.constraints import PRIMARY, Meta, Tie, dicts, placement, text_of
from standfast.nomad.gateway import NomadAgent
from standfast.nomad.notes import Notes
from standfast.nomad.observation import Noted
from standfast.nomad.ports import READY, Node, NomadGateway
from standfast.nomad.remounted import User, users_on
from standfast.reasons import Reason
from standfast.system.clock import utc_now
from standfast.text import duration

# Nomad's own default, which holds while it elects a leader.
LONG_TTL_S = 300.0
# A node that is well is no longer in quarantine by then.
FORGOTTEN_S = 600.0
MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class Facts:
    """Holds what was read; names are Nomad's."""

    config: Config
    own: Node
    nodes: Sequence[Node] = ()
    """The storage nodes, this one among them if it is one."""
    notes: Mapping[str, Noted] = field(default_factory=dict)
    unguarded: Sequence[str] = ()
    """Groups that are constrained to the primary and run on when their node is cut off."""
    constrained: int = 0
    """Groups that are constrained to the primary."""
    ttl_s: float | None = None
    """`failover_heartbeat_ttl` of the own agent; None: it is no server, or doesn't say."""
    serving: str | None = None
    """The primary's name."""
    leads_nomad: bool = False
    """The primary's machine is where Nomad's leader is."""
    leads_consul: bool = False
    now: float = 0.0
    users: Sequence[User] = ()
    """Allocations of this node that are seen to after a remount."""


def examine(facts: Facts) -> list[Finding]:
    """Makes every check, also those that are well."""
    return [
        _name(facts),
        _marked(facts),
        *_quarantine(facts),
        _guarded(facts),
        *_ttl(facts),
        _leaders(facts),
        *_users(facts),
    ]


def _shown(facts: Facts) -> list[Node]:
    nomad = facts.config.nomad
    return [node for node in facts.nodes if node.meta.get(nomad.meta_key) == PRIMARY]


def _name(facts: Facts) -> Finding:
    config, own = facts.config, facts.own
    if config.node in config.nodes and own.name != config.node:
        return Finding(
            "nomad",
            False,
            f"this node is {own.name} in Nomad and {config.node} in Consul: other nodes don't "
            "find it",
            "give both agents the same name (`name` in Nomad's configuration)",
        )
    state = "eligible" if own.eligible else "draining" if own.draining else "ineligible"
    return Finding("nomad", True, f"it answers; {own.name} is {own.status} and {state}")


def _marked(facts: Facts) -> Finding:
    nomad = facts.config.nomad
    pair = f"{nomad.meta_key}={PRIMARY}"
    shown = _shown(facts)
    attracting = [node.name for node in shown if node.eligible]
    if len(attracting) > 1:
        return Finding(
            "meta",
            False,
            f"{pair} is on several nodes that take jobs: {', '.join(attracting)}",
            "the agents see to it within a minute; if not: `standfast status` on each of them",
        )
    wrong = [name for name in attracting if facts.serving is not None and name != facts.serving]
    if wrong:
        return Finding(
            "meta",
            False,
            f"{pair} is on {wrong[0]}, and {facts.serving} serves",
            f"it is moved within a minute; if not: `standfast status` on {facts.serving}",
        )
    names = ", ".join(node.name for node in shown) or "no node"
    return Finding("meta", True, f"{pair} is on {names}")


def _quarantine(facts: Facts) -> Iterator[Finding]:
    for node in facts.nodes:
        noted = facts.notes.get(node.id)
        if noted is None:
            if not node.eligible:
                yield Finding(
                    "eligible",
                    True,
                    f"{node.name} is ineligible or draining by an operator's choice: it stays so",
                )
            continue
        age_s = facts.now - noted.note.at
        by = f"{node.name} was made ineligible by {noted.note.by} {duration(age_s)} ago"
        if node.status != READY:
            yield Finding("quarantine", True, f"{by}, and is {node.status}: until it is back")
        elif age_s < FORGOTTEN_S:
            yield Finding("quarantine", True, f"{by}: until it doesn't show the meta any more")
        else:
            yield Finding(
                "quarantine",
                False,
                f"{by}, is back, and still in quarantine",
                f"start the agent on {node.name}; without one: nomad node meta apply -node-id "
                f"{node.id} -unset {facts.config.nomad.meta_key}, wait until `nomad node status "
                f"-verbose` doesn't show it, then nomad node eligibility -enable {node.id} and "
                f"consul kv delete {facts.config.key(f'nomad/{node.id}')}",
            )


def _guarded(facts: Facts) -> Finding:
    if facts.unguarded:
        return Finding(
            "cut-off",
            False,
            "they run on for ever on a node that is cut off, beside their successors: "
            + ", ".join(facts.unguarded),
            'give their groups disconnect { stop_on_client_after = "25s" } (docs/nomad.md)',
        )
    return Finding(
        "cut-off",
        True,
        f"{facts.constrained} groups are constrained to the primary, and all end on a node that is "
        "cut off"
        if facts.constrained
        else "no running job is constrained to the primary, or the token sees none",
    )


def _ttl(facts: Facts) -> Iterator[Finding]:
    if facts.ttl_s is None:
        return
    well = facts.ttl_s < LONG_TTL_S
    yield Finding(
        "heartbeat",
        well,
        f"failover_heartbeat_ttl is {facts.ttl_s:g} s: after Nomad's leader died, dead nodes are "
        "taken for living ones for so long",
        "" if well else 'set failover_heartbeat_ttl = "30s" in the servers\' configuration',
    )


def _leaders(facts: Facts) -> Finding:
    who = [
        name
        for name, leads in (("Nomad", facts.leads_nomad), ("Consul", facts.leads_consul))
        if leads
    ]
    if not who:
        return Finding("leaders", True, "the primary is leader of neither Nomad nor Consul")
    return Finding(
        "leaders",
        False,
        f"{facts.serving} is primary and leader of {' and '.join(who)}: if it dies, an election "
        "comes first",
        "nomad operator raft transfer-leadership, consul operator raft transfer-leader, or keep "
        "the servers off the storage nodes",
    )


def _users(facts: Facts) -> Iterator[Finding]:
    """Only for information."""
    told = [f"{user.name}: {user.how} [{user.policy}]" for user in facts.users[:MAX_NAMED]]
    if told:
        more = len(facts.users) - len(told)
        text = f"after a remount these are seen to: {'; '.join(told)}"
        yield Finding("users", True, f"{text} and {more} more" if more else text)


# Reading


def look(config: Config, serving: str | None) -> list[Finding]:
    """Looks from this node and judges it; nothing where [nomad] isn't configured."""
    if not config.nomad.enabled:
        return []
    findings = [_last_round(config)] if config.node in config.nodes else []
    try:
        return [*findings, *examine(facts_here(config, serving))]
    except (StandfastError, OSError) as error:
        fix = "systemctl status nomad; docs/reason-codes.md, Nomad"
        return [*findings, Finding("nomad", False, f"not known: {error}", fix)]


_WELL = (
    Reason.NOMAD_FOLLOWS,
    Reason.NOMAD_ROLE_CHANGING,
    Reason.NOMAD_META_AHEAD,
    Reason.NOMAD_META_ON_ITS_WAY,
    Reason.NOMAD_MOVING,
    Reason.NOMAD_QUARANTINED,
)


def _last_round(config: Config) -> Finding:
    report = reports.load(config)
    wrong = list(report.failed)
    if report.reason in _BAD:
        wrong.append(report.sentence)
    fix = f"docs/reason-codes.md, Nomad; journalctl -u standfast-agent@{config.volume}"
    return Finding(
        "following", not wrong, "; ".join(wrong) or report.sentence, fix if wrong else ""
    )


_BAD = frozenset(
    reason
    for reason in Reason
    if reason is Reason.CONFIG_INVALID or (reason.startswith("nomad-") and reason not in _WELL)
)


def facts_here(config: Config, serving: str | None) -> Facts:
    """Asks Nomad and Consul; StandfastError when one of them can't be asked."""
    nomad = NomadAgent.from_config(config)
    consul = ConsulGateway.from_config(config, timeout_s=config.lease.request_timeout)
    own, agent = nomad.own_node(), nomad.agent()
    address = config.nodes[serving].address if serving in config.nodes else ""
    constrained, unguarded = constrained_groups(config, nomad, own)
    return Facts(
        config,
        own,
        tuple(nomad.nodes(list(config.nodes))),
        Notes(config, consul).load(),
        unguarded,
        constrained,
        agent.failover_heartbeat_ttl_s,
        serving,
        _host(nomad.leader()) == address != "",
        _host(consul.leader()) == address != "",
        utc_now(),
        users_on(nomad, own, config, utc_now()),
    )


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")


def constrained_groups(
    config: Config, nomad: NomadGateway, own: Node
) -> tuple[int, tuple[str, ...]]:
    """Returns how many groups are constrained to the primary, and which of them run on when cut
    off."""
    meta = Meta(config.nomad.meta_key, PRIMARY)
    count, unguarded = 0, []
    for line in nomad.jobs():
        if line.stopped or line.status == "dead":
            continue
        job = nomad.job(line.namespace, line.id)
        for group in dicts(job.get("TaskGroups")):
            name = text_of(group, "Name")
            if placement(job, name, meta, own).tie is Tie.PRIMARY:
                count += 1
                if not stops_when_cut_off(group):
                    unguarded.append(f"{line.id}.{name}")
    return count, tuple(unguarded)


def stops_when_cut_off(group: Mapping[str, Any]) -> bool:
    """Reads it from the block of today, or from the field of before."""
    block = group.get("Disconnect")
    now = block.get("StopOnClientAfter") if isinstance(block, dict) else None
    return bool(now or group.get("StopAfterClientDisconnect"))
