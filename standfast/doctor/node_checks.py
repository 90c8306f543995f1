"""What doctor says of this machine: units that failed or don't wait for the volume's disk, the
clock, its name in Consul, hooks that aren't run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from standfast.assembly.parts import parts
from standfast.btrfs.place import mount_point_of
from standfast.config.model import Config
from standfast.consul.gateway import PATIENT_S, ConsulGateway
from standfast.consul.node_name import misnamed
from standfast.doctor.finding import Finding
from standfast.errors import StandfastError
from standfast.events import hooks
from standfast.system.clock import Deadline
from standfast.system.files import read_foreign_text
from standfast.system.lines import fields_of, lines_of
from standfast.system.run import run

ASK_S = 10.0
MOUNTS = Path("/proc/self/mountinfo")
UNITS = ("standfast-*", "consul.service")
CYCLES = "standfast-replicate@"
"""Of these the last failure is told on the primary; a former one's last cycle fails by nature."""


def look(config: Config) -> list[Finding]:
    """Looks at this node; in the demo there is neither systemd nor a clock of its own."""
    findings = [*_units(), *_order(config), *_clock()] if parts().is_machine else []
    return [*findings, *_name(config), *_hooks(config)]


def _name(config: Config) -> Iterator[Finding]:
    if config.node not in config.nodes:
        return
    try:
        yield name(config.node, ConsulGateway.from_config(config, timeout_s=PATIENT_S).node_name())
    except StandfastError as error:
        fix = "bring the Consul agent of this node back; docs/consul-policy.hcl"
        yield Finding("name", False, f"not compared with Consul's: {error}", fix)


def name(node: str, named: str) -> Finding:
    """Judges what the Consul agent of this node (`named`) says that the node is called."""
    wrong = misnamed(node, named)
    if wrong is None:
        return Finding("name", True, f"{node}, in Consul as well")
    fix = f"`node_name` of the Consul agent, then restart it; `standfast config check` for {node}"
    return Finding("name", False, wrong, fix)


def _units() -> Iterator[Finding]:
    if shutil.which("systemctl") is None:
        return
    argv = ["systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--no-pager"]
    listing = run([*argv, *UNITS], deadline=Deadline.after(ASK_S), op="failed-units").stdout
    yield failed_units(listing)


def failed_units(listing: str) -> Finding:
    """Judges what `systemctl list-units --state=failed --plain --no-legend` says."""
    names = [fields[0] for line in lines_of(listing) if (fields := fields_of(line))]
    names = [name for name in names if not name.startswith(CYCLES)]
    if not names:
        return Finding("units", True, "none has failed")
    fix = f"journalctl -u {' -u '.join(names)}; then systemctl reset-failed, or start it"
    return Finding("units", False, f"failed: {', '.join(names)}", fix)


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
