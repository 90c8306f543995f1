"""systemd's view of a mount point: its units, and the services that need it.

Questions have a deadline of their own. Without systemd as the service manager there is no unit,
and nobody depends on one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from standfast.clients.observation import Tie
from standfast.clients.units import unit_name
from standfast.system.clock import Deadline
from standfast.system.lines import fields_of, lines_of
from standfast.system.run import run
from standfast.system.systemd import ASK_S

# A unit file in such a state is meant to be mounted at boot.
WANTED = ("enabled", "enabled-runtime", "generated", "linked", "linked-runtime", "transient")
ACTIVE = ("active", "activating", "reloading")
# Who is stopped with a unit, as systemd lists them in its properties.
STOPPED_WITH = ("RequiredBy", "BoundBy", "ConsistsOf")
# Of fstab: for the service manager, for mount(8), or against what this program does itself.
NOT_FOR_MOUNT = re.compile(
    r"x-.*|_netdev|(no)?auto|nofail|(no)?user|users|owner|group|comment=.*|[bf]g|retry=.*"
    r"|addr=.*|clientaddr=.*"
)


class SystemdMountUnits:
    """Asks and tells systemd through systemctl."""

    def tie(self, path: Path) -> Tie:
        mount, automount = unit_name(path, "mount"), unit_name(path, "automount")
        wanted = ("Id", "FragmentPath", "ActiveState", "UnitFileState")
        shown = {unit.get("Id"): unit for unit in _show([mount, automount], wanted)}
        own, auto = shown.get(mount, {}), shown.get(automount, {})
        return Tie(
            unit=bool(own.get("FragmentPath")) and own.get("UnitFileState") in WANTED,
            automount=auto.get("ActiveState") == "active",
            mounting=own.get("ActiveState") == "activating",
        )

    def options(self, path: Path) -> str | None:
        argv = ["systemctl", "cat", "--", unit_name(path, "mount")]
        done = run(argv, deadline=Deadline.after(ASK_S), op="cat:mount", check=False)
        return unit_options(done.stdout) if done.returncode == 0 else None

    def dependants(self, path: Path) -> tuple[str, ...]:
        [mount] = _show([unit_name(path, "mount")], ("RequiredBy",)) or [{}]
        services = [u for u in fields_of(mount.get("RequiredBy", "")) if u.endswith(".service")]

        def requires(service: Mapping[str, str]) -> bool:
            words = fields_of(service.get("RequiresMountsFor", ""))
            return any(Path(word).is_relative_to(path) for word in words)

        return tuple(
            sorted(
                service["Id"]
                for service in _active(services, "RequiresMountsFor")
                if requires(service)
            )
        )

    def active(self, units: Sequence[str]) -> tuple[str, ...]:
        return tuple(unit["Id"] for unit in _active(units))

    def restart(self, units: Sequence[str], deadline: Deadline) -> None:
        run(["systemctl", "restart", "--", *units], deadline=deadline, op="restart:dependants")

    def end_mounting(self, path: Path, deadline: Deadline) -> None:
        argv = ["systemctl", "kill", "--", unit_name(path, "mount")]
        run(argv, deadline=deadline, op="kill:mount", check=False)


class NoMountUnits:
    """Stands in on a machine without systemd."""

    def tie(self, path: Path) -> Tie:  # noqa: ARG002
        return Tie()

    def options(self, path: Path) -> str | None:  # noqa: ARG002
        return None

    def dependants(self, path: Path) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def active(self, units: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def restart(self, units: Sequence[str], deadline: Deadline) -> None: ...

    def end_mounting(self, path: Path, deadline: Deadline) -> None: ...


def stopped_with(unit: str) -> Sequence[str]:
    """Returns the units that systemd stops when it stops this one, sorted; StandfastError.

    Of a unit with a backslash in its name it isn't asked who stops with it: how systemctl writes
    that is another thing in each version.
    """
    found, ask = {unit}, {unit}
    while ask:
        shown = _show(sorted(ask), STOPPED_WITH)
        names = {name for each in shown for value in each.values() for name in fields_of(value)}
        names = {name.strip('"').replace("\\\\", "\\") for name in names} - found
        found |= names
        ask = {name for name in names if "\\" not in name}
    return sorted(found - {unit})


def unit_options(text: str) -> str | None:
    """Returns the last Options= of a mount unit and its drop-ins, as far as mount(8) has to know
    them."""
    given = [line.strip() for line in re.findall(r"(?m)^Options[ \t]*=(.*)$", text)]
    if not given:
        return None
    words = [word for word in given[-1].split(",") if word and not NOT_FOR_MOUNT.fullmatch(word)]
    return ",".join(words) or None


def parse_show(text: str) -> list[Mapping[str, str]]:
    """Returns the properties of each unit, from the blocks of `systemctl show` for several
    units."""
    return [
        dict(line.split("=", 1) for line in lines_of(block) if "=" in line)
        for block in text.split("\n\n")
        if block.strip()
    ]


def _show(units: Sequence[str], properties: Sequence[str]) -> list[Mapping[str, str]]:
    argv = ["systemctl", "show", f"--property={','.join(properties)}", "--", *units]
    return parse_show(run(argv, deadline=Deadline.after(ASK_S), op="show:units").stdout)


def _active(units: Sequence[str], *more: str) -> list[Mapping[str, str]]:
    """Returns those that are active, with `more` of their properties."""
    shown = _show(units, ("Id", "ActiveState", *more)) if units else []
    return [unit for unit in shown if unit.get("ActiveState") in ACTIVE]


def mount_units() -> SystemdMountUnits | NoMountUnits:
    """Returns the mount units of this machine."""
    managed = Path("/run/systemd/system").is_dir()
    return SystemdMountUnits() if managed else NoMountUnits()
