"""What doctor says of this machine: units that failed, that restart again and again, or that don't
wait for the volume's disk, the clock, its name in Consul, hooks that aren't run."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from standfast.assembly.parts import parts
from standfast.btrfs.place import mount_point_of
from standfast.config.advice import in_the_clear
from standfast.config.model import Config
from standfast.config.problems import Problem
from standfast.consul.gateway import PATIENT_S, ConsulGateway
from standfast.consul.node_name import misnamed
from standfast.doctor.finding import Finding
from standfast.errors import StandfastError
from standfast.events import hooks
from standfast.replication.preflight import CLOCK_FIX, clock_was_set
from standfast.replication.published import clock_set_ago
from standfast.system.clock import Deadline, instant
from standfast.system.files import read_foreign_text
from standfast.system.lines import fields_of, lines_of, number
from standfast.system.run import run
from standfast.text import duration

ASK_S = 10.0
MOUNTS = Path("/proc/self/mountinfo")
UNITS = ("standfast-*", "consul.service")
RESTARTS = 3
RESTARTS_MIN = 3
"""So many restarts within so many minutes are no accident. Less is none: what a unit restarted for
in a month, or at a restart of Consul, is over."""
RESTART_SCHEDULED = "5eb03494b6584870a536b337290809b3"
"""The journal's MESSAGE_ID of an automatic restart (sd-messages.h); UNIT tells of which unit."""
CYCLES = "standfast-replicate@"
"""Of these the last failure is told on the primary; a former one's last cycle fails by nature."""


def look(config: Config) -> list[Finding]:
    """Looks at this node; in the demo there is neither systemd nor a clock of its own."""
    findings = [*_units(), *_order(config), *_clock(), *_set(config)] if parts().is_machine else []
    findings += [*_name(config), *_elections(config), *_hooks(config)]
    return [*findings, *map(_token, in_the_clear(config))]


def _token(problem: Problem) -> Finding:
    return Finding(
        "token", False, f"{problem.key} = {problem.value} {problem.rule}", problem.way_out
    )


def _name(config: Config) -> Iterator[Finding]:
    if config.node not in config.nodes:
        return
    try:
        yield name(config.node, ConsulGateway.from_config(config, timeout_s=PATIENT_S).node_name())
    except StandfastError as error:
        fix = "bring the Consul agent of this node back; share/standfast/consul-policy.hcl"
        yield Finding("name", False, f"not compared with Consul's: {error}", fix)


def name(node: str, named: str) -> Finding:
    """Judges what the Consul agent of this node (`named`) says that the node is called."""
    wrong = misnamed(node, named)
    if wrong is None:
        return Finding("name", True, f"{node}, in Consul as well")
    fix = f"`node_name` of the Consul agent, then restart it; `standfast config check` for {node}"
    return Finding("name", False, wrong, fix)


def _elections(config: Config) -> Iterator[Finding]:
    if config.node not in config.nodes:
        return
    with contextlib.suppress(StandfastError):  # `name` says that it doesn't answer
        consul = ConsulGateway.from_config(config, timeout_s=PATIENT_S)
        timeout_s = consul.election_timeout_s()
        if timeout_s is not None:
            yield elections(timeout_s, config.lease.wait, is_leader=consul.is_leader())


def elections(timeout_s: float, wait_s: float, *, is_leader: bool) -> Finding:
    """Says what Raft's timing of this node's Consul agent makes of a failover; never bad.

    An election takes up to about 3.5 timeouts from the leader's death (measured on Consul 1.8.7,
    three servers, a write through a survivor: 13.9-16.5 s with 5 s, 2.1-3.6 s with 1 s).
    """
    longest_s = 3.5 * timeout_s
    then = "no more" if longest_s <= wait_s / 2 else f"{duration(wait_s)} (W) after it"
    return Finding(
        "elections",
        True,
        f"Raft's election timeout is {timeout_s:g} s: where the primary's machine leads Consul, a "
        f"failover waits for an election of up to about {duration(longest_s)}, and {then}; this "
        f"machine {'leads' if is_leader else 'does not lead'} Consul",
    )


def _units() -> Iterator[Finding]:
    if shutil.which("systemctl") is None:
        return
    argv = ["systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--no-pager"]
    listing = run([*argv, *UNITS], deadline=Deadline.after(ASK_S), op="failed-units").stdout
    yield failed_units(listing)
    argv = ["systemctl", "show", "--property=Id,SubState,NRestarts", "--", *UNITS]
    states = run(argv, deadline=Deadline.after(ASK_S), op="restarts").stdout
    restarts = "" if shutil.which("journalctl") is None else _restarts()
    yield restarting(states, restarts)


def _restarts() -> str:
    argv = ["journalctl", "--no-pager", "--quiet", "--output=json", "--output-fields=UNIT"]
    argv += [f"--since=-{RESTARTS_MIN}min", f"MESSAGE_ID={RESTART_SCHEDULED}"]
    return run(argv, deadline=Deadline.after(ASK_S), op="restarts", check=False).stdout


def failed_units(listing: str) -> Finding:
    """Judges what `systemctl list-units --state=failed --plain --no-legend` says."""
    names = [fields[0] for line in lines_of(listing) if (fields := fields_of(line))]
    names = [name for name in names if not name.startswith(CYCLES)]
    if not names:
        return Finding("units", True, "none has failed")
    fix = f"journalctl -u {' -u '.join(names)}; then systemctl reset-failed, or start it"
    return Finding("units", False, f"failed: {', '.join(names)}", fix)


def restarting(states: str, restarts: str) -> Finding:
    """Judges what `systemctl show` says of our units, and what the journal has of restarts lately.

    A unit that is always started again never fails, however often it ends. Without a journal only
    one is seen that waits for its next start at this moment.
    """
    counts = Counter(_units_in(restarts))
    often = {
        name: f"{name} ({count} times in {RESTARTS_MIN} minutes)"
        for name, count in counts.items()
        if count >= RESTARTS and any(fnmatch(name, pattern) for pattern in UNITS)
    }
    for block in states.split("\n\n"):
        shown = dict(line.split("=", 1) for line in lines_of(block) if "=" in line)
        count = shown.get("NRestarts", "")
        waits = shown.get("SubState", "").startswith("auto-restart")
        if waits and (number(count) or 0) >= RESTARTS:
            often.setdefault(shown["Id"], f"{shown['Id']} ({count} times since it was started)")
    if not often:
        return Finding("restarts", True, "none restarts again and again")
    fix = f"journalctl -u {' -u '.join(sorted(often))}: why does it end?"
    evidence = f"restarted again and again: {', '.join(often[name] for name in sorted(often))}"
    return Finding("restarts", False, evidence, fix)


def _units_in(journal: str) -> Iterator[str]:
    for line in lines_of(journal):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("UNIT"), str):
                yield entry["UNIT"]


def _order(config: Config) -> Iterator[Finding]:
    if config.node not in config.nodes or shutil.which("systemctl") is None:
        return
    point = mount_point_of(config.paths.live.parent, read_foreign_text(MOUNTS))
    agent = f"standfast-agent@{config.volume}.service"
    ask = ["systemd-escape", "--path", "--suffix=mount", str(point)]
    unit = run(ask, deadline=Deadline.after(ASK_S), op="escape").stdout.strip()
    show = ["systemctl", "show", "--property=After", "--value", "--", agent]
    after = run(show, deadline=Deadline.after(ASK_S), op="order", check=False).stdout
    yield waits_for_disk(point, unit, agent, fields_of(after.strip()))


def waits_for_disk(point: Path, unit: str, agent: str, after: Sequence[str]) -> Finding:
    """Judges what `systemctl show --property=After` says; the root file system is there before all
    units."""
    if point == Path("/") or unit in after:
        return Finding("order", True, f"{agent} starts after {point} is mounted")
    fix = (
        f"systemctl edit {agent}, with [Unit], Wants={unit} and After={unit}; and "
        f"RequiresMountsFor={point} for standfast-replicate@ and standfast-verify@ "
        f"(docs/operators-guide.md)"
    )
    return Finding("order", False, f"{agent} doesn't wait for {unit}", fix)


def _clock() -> Iterator[Finding]:
    if shutil.which("timedatectl") is None:
        return
    argv = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    answer = run(argv, deadline=Deadline.after(ASK_S), op="clock", check=False).stdout.strip()
    if answer == "yes":
        yield Finding("clock", True, "it is synchronised")
    elif answer == "no":
        fix = "timedatectl set-ntp true, or chrony; then `timedatectl` shows it within minutes"
        yield Finding("clock", False, "nothing synchronises it", fix)


def _set(config: Config) -> Iterator[Finding]:
    if config.node in config.nodes:
        yield clock_set(clock_set_ago(config, instant()))


def clock_set(ago_s: float | None) -> Finding:
    """Judges when the wall clock was last set (seconds ago; None: not since NTP had its time)."""
    text = clock_was_set(ago_s)
    if text is None:
        return Finding("clock-set", True, "nothing has set it lately")
    return Finding("clock-set", False, f"the {text}", CLOCK_FIX)


def _hooks(config: Config) -> Iterator[Finding]:
    all_of_them = [hook for occasion in hooks.Occasion for hook in hooks.programs(config, occasion)]
    wrong = [hook for hook in all_of_them if hook.wrong is not None]
    strange = hooks.strangers(config)
    evidence = [f"{hook.name}: {hook.wrong}" for hook in wrong]
    evidence += [f"{config.hooks.dir / name} is no event's directory" for name in strange]
    if evidence:
        names = ", ".join(hooks.Occasion)
        fix = f"as said there; the events are {names} (docs/events.md)"
        yield Finding("hooks", False, "; ".join(evidence), fix)
    elif all_of_them:
        yield Finding("hooks", True, f"{', '.join(hook.name for hook in all_of_them)} can run")
