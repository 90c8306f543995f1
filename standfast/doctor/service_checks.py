"""What doctor says of the service: each check looks at the status document. Pure.

The other checks: `storage_checks`, `standby_checks`, `node_checks`, `client_checks` and
`nomad_checks`; none of these needs an agent. `run` makes one list of them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from standfast.doctor.finding import Finding
from standfast.status.advice import next_step
from standfast.text import duration


def examine(doc: Mapping[str, Any]) -> list[Finding]:
    """Every check on one status document, the gravest first."""
    return [_serving(doc), _agent(doc), *_fence(doc), _failover(doc), _plan(doc), _kept(doc)]


def _serving(doc: Mapping[str, Any]) -> Finding:
    if doc.get("serving"):
        return Finding("serving", True, f"{doc['serving']} serves with epoch {doc['epoch']}")
    if "holder" not in doc:
        why = doc.get("failover", {}).get("sentence", "the agent has just started")
        return Finding("serving", False, f"not known: {why}", "bring Consul back")
    return Finding(
        "serving",
        False,
        f"nobody; the last holder is {doc['holder'] or 'gone in order'}",
        "`standfast status` on each storage node says what it waits for",
    )


def _agent(doc: Mapping[str, Any]) -> Finding:
    if doc.get("agent"):
        return Finding("agent", True, "it answers")
    return Finding(
        "agent",
        False,
        "none answers on this node",
        f"on a storage node: systemctl start standfast-agent@{doc['volume']}",
    )


def _fence(doc: Mapping[str, Any]) -> list[Finding]:
    fence = doc.get("fence")
    if fence is None:
        return []
    flushes = doc.get("fence_flushes", 0)
    return [
        Finding(
            "fence",
            bool(fence["in_place"]),
            "the rules are in place" if fence["in_place"] else "the rules are missing",
            "" if fence["in_place"] else "they are put back within seconds; if not: the journal",
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


def _failover(doc: Mapping[str, Any]) -> Finding:
    outlook = doc.get("failover", {})
    possible = bool(outlook.get("possible"))
    ages = [
        f"{one['node']} {duration(one['age_s'])} behind"
        for one in doc.get("standbys", ())
        if one["age_s"] is not None
    ]
    sentence = outlook.get("sentence", "not known")
    reason = str(outlook.get("reason"))
    fix = next_step(reason) or "see the code in docs/reason-codes.md"
    return Finding(
        "failover",
        possible,
        f"{sentence} ({', '.join(ages)})" if ages else sentence,
        "" if possible else f"[{reason}] {fix}",
    )


def _plan(doc: Mapping[str, Any]) -> Finding:
    wrong = doc.get("trouble") or doc.get("sick") or doc.get("lease_trouble")
    fix = f"journalctl -u standfast-agent@{doc['volume']} -u standfast-lease@{doc['volume']}"
    return Finding("trouble", not wrong, wrong or "none", fix if wrong else "")


def _kept(doc: Mapping[str, Any]) -> Finding:
    diverged = [path for path in doc.get("aside", ()) if ".diverged-" in path]
    if not diverged:
        return Finding("diverged", True, "no data that only this node has")
    return Finding(
        "diverged",
        False,
        f"kept aside: {', '.join(diverged)}",
        "get back from it what is needed, then `btrfs subvolume delete`",
    )
