"""The status document as a person reads it at 3 a.m.: the answer first, the details below."""

from __future__ import annotations

from msgspec import UNSET

from standfast.reasons import Reason
from standfast.status.document import Failover, Fence, GivenUp, NomadReport, Standby, Status
from standfast.system.clock import format_utc
from standfast.system.lines import lines_of
from standfast.text import duration


def render(status: Status) -> str:
    """Writes several lines of text for one status document."""
    lines, files = [_headline(status)], status.files
    if status.decision is not None:
        decision = status.decision
        lines.append(
            f"this node: {status.node}, {status.role}: {decision.sentence} [{decision.reason}]"
        )
    elif status.agent is False:
        lines.append(
            f"this node: {status.node}: no agent runs here (what follows is Consul's word)"
        )
    if files is not None and files.lease_remaining_s is not None:
        trouble = f"; {files.lease_trouble}" if files.lease_trouble else ""
        lines.append(f"lease:     {files.lease_remaining_s:.1f} s left{trouble}")
    if status.fence is not None:
        lines.append(f"fence:     {_fence(status.fence)}")
    lines += _standbys(status)
    lines += _nomad(status.nomad)
    lines.append(f"failover:  {_failover(status)}")
    if status.consul is not None and status.consul.paused is not None:
        pause = status.consul.paused
        end = "" if pause.until is None else f", until about {format_utc(pause.until)}"
        lines.append(f"paused:    by {pause.by} since {format_utc(pause.at)}{end}: {pause.reason}")
    if files is not None and files.not_surrendered:
        lines.append(f"surrender: NO ({files.not_surrendered})")
    lines += [f"kept:      {path}" for path in status.aside or ()]
    for obstacle in status.obstacles or ():
        label = "told:      " if obstacle.weight == "told" else "IN THE WAY:"
        lines.append(f"{label} of a promotion here: {obstacle.check}: {obstacle.evidence}")
        lines.append(f"            -> {obstacle.fix}")
    if status.work is not None:
        work = status.work
        told = (
            *(("doing:", work.busy), ("TROUBLE:", work.trouble)),
            *(("SICK:", work.sick), ("SICK:", work.hidden)),
        )
        lines += [f"{label:<10} {text}" for label, text in told if text]
    return "\n".join(lines)


def _failover(status: Status) -> str:
    failover = status.failover
    if failover is None:
        return "not known yet"
    if failover.possible:
        return f"yes: {failover.sentence}"
    # An agent sees whether they still speak; by Consul alone two nodes' clocks tell.
    by_clock = status.agent is False and failover.reason == Reason.NO_STANDBY_READY
    no = "NO by this node's clock" if by_clock else "NO"
    return f"{no} ({failover.reason}): {failover.sentence}"


def given_up(epoch: int | None, how: GivenUp | None) -> tuple[str, str]:
    """Says how the last epoch ended, where the state is `clean`, and what is to do."""
    promote = "`standfast promote` on the node of your choice."
    soon = "another one serves within seconds"
    if how is None:  # an older agent's document
        text = f"epoch {epoch} was given up"
        return text, f"In a switchover {soon}. After `standfast demote`: {promote}"
    to = "nobody" if how.to is None else how.to
    manner = "without a final snapshot" if how.surrendered else "in order"
    text = f"{how.by} gave epoch {epoch} up {manner}, to {to}"
    if how.to is None:
        return text, f"Nobody takes over by itself after `standfast demote`: {promote}"
    return text, f"{soon.capitalize()}; if none does: {promote}"


def unheard(holder: str | None, epoch: int | None) -> str:
    """Says why it is not known who serves, though Consul names a holder."""
    return (
        f"{holder} holds epoch {epoch}, and whether it still sends heartbeats is not known yet: "
        "none has come since this node began to listen. Look again in a few seconds"
    )


def _headline(status: Status) -> str:
    volume, consul, failover = status.volume, status.consul, status.failover
    if consul is None:  # that is no proof that nobody serves
        why = "the agent has just started" if failover is None else failover.sentence
        return f"{volume}: UNKNOWN WHO SERVES: {why}"
    holder, epoch = consul.holder, consul.epoch
    if holder and consul.unserved_s:
        return (
            f"{volume}: NOBODY SERVES: {holder} holds epoch {epoch} and has not "
            f"served for {duration(consul.unserved_s)}"
        )
    if holder and status.serving is UNSET and consul.last_heartbeat_seen_s is None:
        return f"{volume}: UNKNOWN WHO SERVES: {unheard(holder, epoch)}"
    if holder and status.serving is None:
        return (
            f"{volume}: NOBODY SERVES: {holder} holds epoch {epoch} ({consul.state}), its last "
            f"heartbeat was seen {duration(consul.last_heartbeat_seen_s)} ago"
        )
    if holder:
        since = f" since {format_utc(consul.since)}" if consul.since else ""
        return f"{volume}: {holder} is primary, epoch {epoch}{since}"
    if consul.state == "clean":
        text, what_now = given_up(epoch, consul.given_up)
        return f"{volume}: NOBODY SERVES: {text}. {what_now}"
    why = "for no known reason" if failover is None else failover.sentence
    return f"{volume}: NOBODY SERVES: {why}"


def _fence(fence: Fence) -> str:
    if not fence.in_place:
        return "RULES MISSING: somebody flushed the firewall"
    if fence.open_for_s is None:
        return "armed, the port is open WITHOUT END: put there by hand"
    if fence.open_for_s > 0:
        return f"armed, the port is open for {fence.open_for_s:.1f} s"
    return "armed, the port is shut"


def _nomad(nomad: NomadReport | None) -> list[str]:
    if nomad is None:
        return []
    lines = [f"nomad:     {nomad.sentence} [{nomad.reason}]"]
    lines += [f"           FAILED: {text}" for text in nomad.failed]
    for move in nomad.jobs:
        if move.down_s is not None:
            how = f"from {move.source} to {move.target}, {move.down_s:.1f} s down"
        else:
            why = f" ({move.why})" if move.why else ""
            how = f"stopped on {move.source}, runs nowhere yet{why}"
        lines.append(f"job:       {move.job}: {how}")
    return lines


def _standbys(status: Status) -> list[str]:
    lines = []
    for standby in status.standbys:
        age_s, snapshot = standby.age_s, standby.snapshot
        behind = "of unknown age" if age_s is None else f"{duration(age_s)} behind"
        what = f"{behind} ({snapshot})" if snapshot else "no snapshot yet"
        off = "" if standby.candidate else ", not a candidate"
        if standby.on_hold:
            hold = standby.on_hold
            off = f", ON HOLD by {hold.by} since {format_utc(hold.at)}: {hold.reason}"
        lines.append(f"standby:   {standby.node}: {what}{off}{_verified(standby)}")
        if standby.needs_full:
            lines.append(
                f"           NEEDS EVERYTHING SENT AGAIN: standfast replicate {standby.node} --full"
            )
        elif standby.failure:
            lines.append(f"           LAST CYCLE FAILED: {lines_of(standby.failure)[0]}")
        lines += [f"           {text}" for text in _word(standby, status.failover)]
    return lines


def _word(standby: Standby, failover: Failover | None) -> list[str]:
    """What it says of itself, but for what is said of all of them below."""
    word = standby.word
    if word is UNSET or standby.on_hold:
        return []
    if word is None:
        return ["SAYS NOTHING OF ITSELF: does its agent run?"] if standby.candidate else []
    # What bars it from nothing is among them, and whoever only reads the word can't tell.
    lines = [f"it tells: {_first_line(obstacle)}" for obstacle in word.obstacles]
    if not word.takes_over and (failover is None or failover.reason != word.reason):
        sentence = _first_line(word.sentence or "")
        lines.append(f"WOULD NOT TAKE OVER ({word.reason}): {sentence}")
    return lines


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _verified(standby: Standby) -> str:
    compared = standby.verified
    if not compared:
        return ""
    what = "all contents" if compared.full else "metadata"
    when = f"{compared.snapshot}, {what}, {format_utc(compared.at)}"
    return f", verified ({when})" if compared.ok else f", DIFFERS from this node ({when})"
