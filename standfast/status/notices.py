"""What else is worth a look, beside the first line: each with its level and the next step. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from standfast.config.model import Config
from standfast.status.headline import Level
from standfast.text import duration

_SOURCES = {
    "agent": "The agent of this node can't be asked",
    "consul": "Consul can't be read",
    "keys": "History and clients can't be read from Consul",
    "replication": "This node's notes of its replications can't be read",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """`what` is a stable name, `text` for people."""

    level: Level
    what: str
    text: str
    next: str | None = None


def notices(doc: Mapping[str, Any], config: Config) -> list[Notice]:
    """The gravest first."""
    found = [
        *_troubles(doc),
        *_fence(doc),
        *_standbys(doc, config),
        *_clients(doc),
        *_nomad(doc),
        *_kept(doc),
        *_sources(doc),
    ]
    order = list(Level)
    return sorted(found, key=lambda one: order.index(one.level), reverse=True)


def _troubles(doc: Mapping[str, Any]) -> Iterator[Notice]:
    journal = f"`journalctl -u standfast-agent@{doc['volume']}` on {doc['node']}."
    if doc["sick"]:
        yield Notice(Level.ALARM, "sick", f"{doc['node']} can't serve: {doc['sick']}", journal)
    if doc["trouble"]:
        yield Notice(Level.ALARM, "trouble", f"{doc['node']} is stuck: {doc['trouble']}", journal)
    lease = doc["lease"]
    if lease is not None and lease["trouble"]:
        journal = f"`journalctl -u standfast-lease@{doc['volume']}` on {doc['node']}."
        yield Notice(Level.WARNING, "lease", f"Heartbeats fail: {lease['trouble']}", journal)
    if doc["busy"]:
        yield Notice(Level.NOTE, "busy", f"{doc['node']} is at work: {doc['busy']}")
    if doc["paused"]:
        pause = doc["paused"]
        text = f"Automatic failover is paused by {pause['by']}: {pause['reason']}"
        yield Notice(Level.WARNING, "paused", text, "`standfast resume` ends that.")


def _fence(doc: Mapping[str, Any]) -> Iterator[Notice]:
    fence = doc["fence"]
    if fence is None:
        return
    if not fence["in_place"]:
        yield Notice(
            Level.ALARM,
            "fence",
            f"The fence's firewall rules are missing on {doc['node']}",
            "They are put back within seconds; if not, "
            f"`journalctl -u standfast-lease@{doc['volume']}`.",
        )
    elif fence["open_for_s"] is None:
        yield Notice(
            Level.ALARM,
            "fence-open",
            f"The NFS port is open without end on {doc['node']}: somebody put that there by hand",
            "The next heartbeat ends that, or the agent while there is no lease; if not, "
            f"`journalctl -u standfast-lease@{doc['volume']}`.",
        )
    if fence["flushes"]:
        yield Notice(
            Level.WARNING,
            "firewall",
            f"The fence's rules were found gone {fence['flushes']} times in this epoch",
            "Find out what flushes the firewall: `nft flush ruleset`, a firewall's reload.",
        )


def _standbys(doc: Mapping[str, Any], config: Config) -> Iterator[Notice]:
    for one in doc["standbys"] or ():
        name, note = one["node"], one["replication"]
        if one["age_s"] is None:
            text, step = f"{name} has no complete snapshot", f"`standfast replicate {name}`."
            if one["snapshot"]:
                text = f"nobody here knows how old {name}'s newest snapshot is: this node's clock, "
                text += "or that of the node that told it, was wrong"
                step = f"`timedatectl` on both; `standfast snapshots` on {name}: its own count."
            yield Notice(Level.WARNING, "standby", text, step)
        elif one["level"] != Level.OK and one["candidate"]:
            text = (
                f"{name} is {duration(one['age_s'])} behind; a cycle is due every "
                f"{duration(config.replication.interval)}"
            )
            yield Notice(Level.WARNING, "standby", text, f"`standfast replicate {name}`.")
        elif not one["candidate"] and doc["holder"] is not None:
            text = f"{name} is not a candidate: it doesn't take over by itself"
            yield Notice(Level.WARNING, "standby", text, "Check `[nodes]` on all nodes.")
        if note is None:
            continue
        if note["failure"] is not None:
            failure = note["failure"]
            text = f"The last replication to {name} failed ({failure['reason']}): {failure['text']}"
            yield Notice(Level.WARNING, "replication", text, "`standfast doctor` on the primary.")
        if note["verified_ok"] is False:
            text = f"{name} differs from the primary: the last comparison found other content"
            yield Notice(Level.ALARM, "verify", text, "docs/reason-codes.md: content-differs.")


def _clients(doc: Mapping[str, Any]) -> Iterator[Notice]:
    # Nobody serves: that is what is wrong, and the clients wait for it.
    if doc["clients"] is None or not doc["serving"]:
        return
    away = [one["node"] for one in doc["clients"] if one["level"] == Level.WARNING]
    if away:
        text = f"{len(away)} of {len(doc['clients'])} clients are not well on {doc['serving']}: "
        yield Notice(Level.WARNING, "clients", text + _some(away), "`standfast doctor` on them.")
    silent = [one["node"] for one in doc["clients"] if one["level"] == Level.UNKNOWN]
    if silent:
        text = f"Nothing was heard for long of {_some(silent)}"
        yield Notice(Level.NOTE, "clients-silent", text)


def _nomad(doc: Mapping[str, Any]) -> Iterator[Notice]:
    for text in (doc["nomad"] or {}).get("failed", ()):
        yield Notice(Level.WARNING, "nomad", f"Nomad: {text}", "`standfast doctor`.")


def _kept(doc: Mapping[str, Any]) -> Iterator[Notice]:
    diverged = [path for path in doc["kept_aside"] or () if ".diverged-" in path]
    if diverged:
        text = f"{doc['node']} keeps data that the primary never had: {_some(diverged)}"
        step = "Get back from it what is needed, then `btrfs subvolume delete`."
        yield Notice(Level.NOTE, "diverged", text, step)


def _sources(doc: Mapping[str, Any]) -> Iterator[Notice]:
    told = set()
    for name, source in doc["sources"].items():
        if not source["ok"] and source["text"] not in told:  # one cause, one notice
            told.add(source["text"])
            text = f"{_SOURCES[name]}: {source['text']}"
            yield Notice(Level.UNKNOWN, f"source-{name}", text)


def _some(names: list[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
