"""What else is worth a look, beside the first line: each with its level and the next step. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from standfast.config.model import Config
from standfast.status.volume import Level, Notice, Standby, Volume
from standfast.system.clock import format_utc
from standfast.text import duration, some

_SOURCES = {
    "agent": "The agent of this node can't be asked",
    "consul": "Consul can't be read",
    "keys": "The volume's keys can't be read from Consul",
    "clients": "What the clients say can't be read from Consul",
    "replication": "This node's notes of its replications can't be read",
}


def notices(volume: Volume, config: Config) -> list[Notice]:
    """Returns them all, the gravest first."""
    unsorted = [
        *_troubles(volume),
        *_fence(volume),
        *_standbys(volume, config),
        *_clients(volume),
        *_nomad(volume),
        *_kept(volume),
        *_sources(volume),
    ]
    order = list(Level)
    return sorted(unsorted, key=lambda notice: order.index(notice.level), reverse=True)


def _troubles(volume: Volume) -> Iterator[Notice]:
    node, lease, pause = volume.node, volume.lease, volume.paused
    journal = f"`journalctl -u standfast-agent@{volume.volume}` on {node}."
    if volume.sick:
        yield Notice(Level.ALARM, "sick", f"{node} can't serve: {volume.sick}", journal)
    if volume.hidden:
        step = f"`consul maint -disable` on {node}, or mend what the check is about."
        yield Notice(Level.ALARM, "hidden", f"{node} can't be found: {volume.hidden}", step)
    if volume.trouble:
        yield Notice(Level.ALARM, "trouble", f"{node} is stuck: {volume.trouble}", journal)
    if lease is not None and lease.trouble:
        journal = f"`journalctl -u standfast-lease@{volume.volume}` on {node}."
        yield Notice(Level.WARNING, "lease", f"Heartbeats fail: {lease.trouble}", journal)
    if volume.busy:
        yield Notice(Level.NOTE, "busy", f"{node} is at work: {volume.busy}")
    if pause is not None:
        end = "" if pause.until is None else f" until about {format_utc(pause.until)}"
        text = f"Automatic failover is paused{end} by {pause.by}: {pause.reason}"
        yield Notice(Level.WARNING, "paused", text, "`standfast resume` ends that.")


def _fence(volume: Volume) -> Iterator[Notice]:
    fence = volume.fence
    if fence is None:
        return
    if not fence.in_place:
        yield Notice(
            Level.ALARM,
            "fence",
            f"The fence's firewall rules are missing on {volume.node}",
            "They are put back within seconds; if not, "
            f"`journalctl -u standfast-lease@{volume.volume}`.",
        )
    elif fence.open_for_s is None:
        yield Notice(
            Level.ALARM,
            "fence-open",
            f"The NFS port is open without end on {volume.node}: somebody put that there by hand",
            "The next heartbeat ends that, or the agent while there is no lease; if not, "
            f"`journalctl -u standfast-lease@{volume.volume}`.",
        )
    if fence.flushes:
        yield Notice(
            Level.WARNING,
            "firewall",
            f"The fence's rules were found gone {fence.flushes} times in this epoch",
            "Find out what flushes the firewall: `nft flush ruleset`, a firewall's reload.",
        )


def _standbys(volume: Volume, config: Config) -> Iterator[Notice]:
    for standby in volume.standbys or ():
        name, noted = standby.node, standby.replication
        if standby.age_s is None:
            text, step = f"{name} has no complete snapshot", f"`standfast replicate {name}`."
            if standby.snapshot:
                text = f"nobody here knows how old {name}'s newest snapshot is: this node's clock, "
                text += "or that of the node that told it, was wrong"
                step = f"`timedatectl` on both; `standfast snapshots` on {name}: its own count."
            yield Notice(Level.WARNING, "standby", text, step)
        elif standby.candidate and standby.age_s > 2 * config.replication.interval:
            text = (
                f"{name} is {duration(standby.age_s)} behind; a cycle is due every "
                f"{duration(config.replication.interval)}"
            )
            yield Notice(Level.WARNING, "standby", text, f"`standfast replicate {name}`.")
        elif not standby.candidate and volume.holder is not None and not standby.on_hold:
            text = f"{name} is not a candidate: it doesn't take over by itself"
            yield Notice(Level.WARNING, "standby", text, "Check `[nodes]` on all nodes.")
        if standby.on_hold:
            text = f"{name} is on hold by {standby.on_hold.by}: {standby.on_hold.reason}"
            step = f"`standfast standby release {name}` when it is fit to serve again."
            yield Notice(Level.WARNING, "on-hold", text, step)
        yield from _word(standby, volume)
        if noted is None:
            continue
        if noted.failure is not None:
            failure = noted.failure
            text = f"The last replication to {name} failed ({failure.reason}): {failure.text}"
            yield Notice(Level.WARNING, "replication", text, "`standfast doctor` on the primary.")
        if noted.verified_ok is False:
            text = f"{name} differs from the primary: the last comparison found other content"
            yield Notice(Level.ALARM, "verify", text, "docs/reason-codes.md: content-differs.")


def _word(standby: Standby, volume: Volume) -> Iterator[Notice]:
    """What it says of itself, but for what the first line says of all of them."""
    word, name = standby.word, standby.node
    step = f"`standfast doctor` on {name}."
    if standby.on_hold:
        return
    if word is None:
        if standby.candidate:
            text = f"{name} says nothing of itself: it may be off, or its agent not run"
            yield Notice(Level.WARNING, "standby", text, step)
        return
    if word is UNSET:
        return
    if not word.takes_over and word.reason != volume.failover.reason:
        text = (
            f"{name} would not take over ({word.reason}): {word.sentence or 'it gives no reason'}"
        )
        yield Notice(Level.WARNING, "standby", text, step)
    for obstacle in word.obstacles:
        yield Notice(Level.WARNING, "takeover", f"{name} tells: {obstacle}", step)


def _clients(volume: Volume) -> Iterator[Notice]:
    # Nobody serves: that is what is wrong, and the clients wait for it.
    if volume.clients is None or not volume.serving:
        return
    away = [client.node for client in volume.clients if client.level == Level.WARNING]
    if away:
        text = f"{len(away)} of {len(volume.clients)} clients are not well on {volume.serving}: "
        yield Notice(Level.WARNING, "clients", text + some(away), "`standfast doctor` on them.")
    silent = [client.node for client in volume.clients if client.level == Level.UNKNOWN]
    if silent:
        text = f"Nothing was heard for long of {some(silent)}"
        yield Notice(Level.NOTE, "clients-silent", text)


def _nomad(volume: Volume) -> Iterator[Notice]:
    for text in () if volume.nomad is None else volume.nomad.failed:
        yield Notice(Level.WARNING, "nomad", f"Nomad: {text}", "`standfast doctor`.")


def _kept(volume: Volume) -> Iterator[Notice]:
    diverged = [path for path in volume.kept_aside or () if ".diverged-" in path]
    if diverged:
        text = f"{volume.node} keeps data that the primary never had: {some(diverged)}"
        step = "Get back from it what is needed, then `btrfs subvolume delete`."
        yield Notice(Level.NOTE, "diverged", text, step)


def _sources(volume: Volume) -> Iterator[Notice]:
    told = set()
    for name, source in volume.sources.items():
        if not source.ok and source.text not in told:  # one cause, one notice
            told.add(source.text)
            text = f"{_SOURCES[name]}: {source.text}"
            # What a client wrote may not have the volume look any worse.
            level = Level.NOTE if name == "clients" else Level.UNKNOWN
            yield Notice(level, f"source-{name}", text)
