"""What doctor says of the service: each check looks at the status document. Pure.

The other checks: `storage_checks`, `standby_checks`, `node_checks`, `client_checks` and
`nomad_checks`; none of these needs an agent. `run` makes one list of them all.
"""

from __future__ import annotations

from msgspec import UNSET

from standfast.doctor.finding import Finding
from standfast.status.advice import next_step
from standfast.status.document import Status
from standfast.status.text import unheard
from standfast.text import duration


def examine(status: Status) -> list[Finding]:
    """Makes every check on one status document, the gravest first."""
    return [
        *(_serving(status), _agent(status), *_fence(status)),
        *(_failover(status), _plan(status), _kept(status)),
    ]


def _serving(status: Status) -> Finding:
    consul = status.consul
    if status.serving and consul is not None:
        return Finding("serving", True, f"{status.serving} serves with epoch {consul.epoch}")
    if consul is None:
        failover = status.failover
        why = "the agent has just started" if failover is None else failover.sentence
        return Finding("serving", False, f"not known: {why}", "bring Consul back")
    if status.serving is UNSET and consul.holder and consul.last_heartbeat_seen_s is None:
        why = unheard(consul.holder, consul.epoch)
        return Finding("serving", False, f"not known: {why}", "`standfast status` listens again")
    return Finding(
        "serving",
        False,
        f"nobody; the last holder is {consul.holder or 'gone in order'}",
        "`standfast status` on each storage node says what it waits for",
    )


def _agent(status: Status) -> Finding:
    if status.agent:
        return Finding("agent", True, "it answers")
    return Finding(
        "agent",
        False,
        "none answers on this node",
        f"on a storage node: systemctl start standfast-agent@{status.volume}",
    )


def _fence(status: Status) -> list[Finding]:
    fence = status.fence
    if fence is None:
        return []
    flushes = 0 if status.files is None else status.files.fence_flushes
    return [
        Finding(
            "fence",
            fence.in_place,
            "the rules are in place" if fence.in_place else "the rules are missing",
            "" if fence.in_place else "they are put back within seconds; if not: the journal",
        ),
        Finding(
            "firewall",
            flushes == 0,
            f"the fence's rules were found gone {flushes} times in this epoch"
            if flushes
            else "nobody flushed the fence's rules",
            "find out what flushes the firewall (nft flush ruleset, a firewall service's reload)"
            if flushes
            else "",
        ),
    ]


def _failover(status: Status) -> Finding:
    failover = status.failover
    if failover is None:
        return Finding("failover", False, "not known", "`standfast doctor` again in a moment")
    ages = [
        f"{standby.node} {duration(standby.age_s)} behind"
        for standby in status.standbys
        if standby.age_s is not None
    ]
    fix = next_step(failover.reason) or "see the code in docs/reason-codes.md"
    return Finding(
        "failover",
        failover.possible,
        f"{failover.sentence} ({', '.join(ages)})" if ages else failover.sentence,
        "" if failover.possible else f"[{failover.reason}] {fix}",
    )


def _plan(status: Status) -> Finding:
    work, files = status.work, status.files
    wrong = None if work is None else work.trouble or work.sick or work.hidden
    if not wrong and files is not None:
        wrong = files.lease_trouble
    fix = f"journalctl -u standfast-agent@{status.volume} -u standfast-lease@{status.volume}"
    return Finding("trouble", not wrong, wrong or "none", fix if wrong else "")


def _kept(status: Status) -> Finding:
    diverged = [path for path in status.aside or () if ".diverged-" in path]
    if not diverged:
        return Finding("diverged", True, "no data that only this node has")
    return Finding(
        "diverged",
        False,
        f"kept aside: {', '.join(diverged)}",
        "get back from it what is needed, then `btrfs subvolume delete`",
    )
