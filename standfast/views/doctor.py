"""`standfast doctor`: what is wrong on this node, with the evidence and the fix.

Pure but for `run`: each check looks at the status document and says what it found. Those of the
storage are in `storage_checks`, those of a client's mount in `clients.checks`, Nomad's in
`nomad.checks`; none of these needs an agent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from standfast.views.text import duration


@dataclass(frozen=True, slots=True)
class Finding:
    """One check; `fix` is empty when all is well."""

    check: str
    ok: bool
    evidence: str
    fix: str = ""


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
            f"the fence's rules were found gone {flushes} times in this reign"
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
    return Finding(
        "failover",
        possible,
        f"{sentence} ({', '.join(ages)})" if ages else sentence,
        "" if possible else f"docs/reason-codes.md: {outlook.get('reason')}",
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


def render(findings: list[Finding]) -> str:
    """One line a check, and the fix below those that are not well."""
    lines = []
    for one in findings:
        lines.append(f"{'ok ' if one.ok else 'BAD'}  {one.check:<9} {one.evidence}")
        if one.fix:
            lines.append(f"               -> {one.fix}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """`standfast doctor`: exit 0 when every check is well, else 1."""
    from standfast.clients.checks import look as look_at_mounts
    from standfast.config.load import load_volume
    from standfast.nomad.checks import look as look_at_nomad
    from standfast.views.status import fetch
    from standfast.views.storage_checks import look

    config = load_volume(args.volume, require_storage=False)
    doc = fetch(config)
    findings = [
        *examine(doc),
        *look(config),
        *look_at_mounts(config),
        *look_at_nomad(config, doc.get("serving")),
    ]
    if args.json:
        print(json.dumps([asdict(one) for one in findings], indent=2), file=sys.stdout)
    else:
        print(render(findings))
    return 0 if all(one.ok for one in findings) else 1
