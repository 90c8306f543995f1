"""The status document as a person reads it at 3 a.m.: the answer first, the details below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from standfast.reasons import Reason
from standfast.system.clock import format_utc
from standfast.text import duration


def render(doc: Mapping[str, Any]) -> str:
    """Several lines of text for one status document."""
    lines = [_headline(doc)]
    decision = doc.get("decision")
    if decision:
        lines.append(
            f"this node: {doc['node']}, {doc['role']}: {decision['sentence']} "
            f"[{decision['reason']}]"
        )
    elif doc.get("agent") is False:
        lines.append(
            f"this node: {doc['node']}: no agent runs here (what follows is Consul's word)"
        )
    if doc.get("lease_remaining_s") is not None:
        trouble = f"; {doc['lease_trouble']}" if doc.get("lease_trouble") else ""
        lines.append(f"lease:     {doc['lease_remaining_s']:.1f} s left{trouble}")
    fence = doc.get("fence")
    if fence:
        lines.append(f"fence:     {_fence(fence)}")
    lines += _standbys(doc)
    lines += _nomad(doc.get("nomad"))
    outlook = doc.get("failover", {})
    lines.append(f"failover:  {_answer(doc, outlook)}: {outlook.get('sentence', '')}")
    if doc.get("paused"):
        pause = doc["paused"]
        lines.append(
            f"paused:    by {pause['by']} since {format_utc(pause['at'])}: {pause['reason']}"
        )
    if doc.get("not_surrendered"):
        lines.append(f"surrender: NO ({doc['not_surrendered']})")
    lines += [f"kept:      {path}" for path in doc.get("aside", ())]
    lines += [
        f"{label:<10} {doc[key]}"
        for key, label in (("busy", "doing:"), ("trouble", "TROUBLE:"), ("sick", "SICK:"))
        if doc.get(key)
    ]
    return "\n".join(lines)


def _answer(doc: Mapping[str, Any], outlook: Mapping[str, Any]) -> str:
    if outlook.get("possible"):
        return "yes"
    reason = outlook.get("reason")
    # The standby counts itself; what Consul alone tells of an age goes by two nodes' clocks.
    by_clock = doc.get("agent") is False and reason == Reason.TOO_OLD
    no = "NO by this node's clock" if by_clock else "NO"
    return f"{no} ({reason})"


def given_up(doc: Mapping[str, Any]) -> tuple[str, str]:
    """How the last epoch ended, of a status document whose state is `clean`, and what is to do."""
    how, promote = doc.get("given_up"), "`standfast promote` on the node of your choice."
    soon = "another one serves within seconds"
    if how is None:  # an older agent's document
        text = f"epoch {doc['epoch']} was given up"
        return text, f"In a switchover {soon}. After `standfast demote`: {promote}"
    to = "nobody" if how["to"] is None else how["to"]
    manner = "without a final snapshot" if how["surrendered"] else "in order"
    text = f"{how['by']} gave epoch {doc['epoch']} up {manner}, to {to}"
    if how["to"] is None:
        return text, f"Nobody takes over by itself after `standfast demote`: {promote}"
    return text, f"{soon.capitalize()}; if none does: {promote}"


def _headline(doc: Mapping[str, Any]) -> str:
    volume = doc["volume"]
    if doc.get("holder") and doc.get("unserved_s"):
        return (
            f"{volume}: NOBODY SERVES: {doc['holder']} holds epoch {doc['epoch']} and has not "
            f"served for {duration(doc['unserved_s'])}"
        )
    if doc.get("holder") and not doc.get("serving", True):
        return (
            f"{volume}: NOBODY SERVES: {doc['holder']} holds epoch {doc['epoch']} "
            f"({doc['state']}), its last heartbeat was seen "
            f"{duration(doc.get('last_heartbeat_seen_s'))} ago"
        )
    if doc.get("holder"):
        since = f" since {format_utc(doc['since'])}" if doc.get("since") else ""
        return f"{volume}: {doc['holder']} is primary, epoch {doc['epoch']}{since}"
    if doc.get("state") == "clean":
        text, what_now = given_up(doc)
        return f"{volume}: NOBODY SERVES: {text}. {what_now}"
    if "holder" not in doc:  # Consul could not be read: that is no proof that nobody does
        why = doc.get("failover", {}).get("sentence", "the agent has just started")
        return f"{volume}: UNKNOWN WHO SERVES: {why}"
    return (
        f"{volume}: NOBODY SERVES: {doc.get('failover', {}).get('sentence', 'for no known reason')}"
    )


def _fence(fence: Mapping[str, Any]) -> str:
    if not fence["in_place"]:
        return "RULES MISSING: somebody flushed the firewall"
    if fence["open_for_s"] is None:
        return "armed, the port is open WITHOUT END: put there by hand"
    if fence["open_for_s"] > 0:
        return f"armed, the port is open for {fence['open_for_s']:.1f} s"
    return "armed, the port is shut"


def _nomad(nomad: Mapping[str, Any] | None) -> list[str]:
    if nomad is None:
        return []
    lines = [f"nomad:     {nomad['sentence']} [{nomad['reason']}]"]
    lines += [f"           FAILED: {text}" for text in nomad["failed"]]
    for move in nomad["jobs"]:
        if move["down_s"] is not None:
            how = f"from {move['source']} to {move['target']}, {move['down_s']:.1f} s down"
        else:
            why = f" ({move['why']})" if move["why"] else ""
            how = f"stopped on {move['source']}, runs nowhere yet{why}"
        lines.append(f"job:       {move['job']}: {how}")
    return lines


def _standbys(doc: Mapping[str, Any]) -> list[str]:
    lines = []
    for standby in doc.get("standbys", ()):
        age_s, snapshot = standby["age_s"], standby["snapshot"]
        behind = "of unknown age" if age_s is None else f"{duration(age_s)} behind"
        what = f"{behind} ({snapshot})" if snapshot else "no snapshot yet"
        off = "" if standby["candidate"] else ", not a candidate"
        lines.append(f"standby:   {standby['node']}: {what}{off}{_verified(standby)}")
        if standby.get("needs_full"):
            lines.append(
                "           NEEDS EVERYTHING SENT AGAIN: "
                f"standfast replicate {standby['node']} --full"
            )
        elif standby.get("failure"):
            lines.append(f"           LAST CYCLE FAILED: {standby['failure'].splitlines()[0]}")
    return lines


def _verified(standby: Mapping[str, Any]) -> str:
    found = standby.get("verified")
    if not found:
        return ""
    what = "all contents" if found["full"] else "metadata"
    when = f"{found['snapshot']}, {what}, {format_utc(found['at'])}"
    return f", verified ({when})" if found["ok"] else f", DIFFERS from this node ({when})"
