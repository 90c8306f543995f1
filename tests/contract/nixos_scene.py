"""The NixOS module, evaluated by Nix itself with nixpkgs' `lib` and a stand-in for the rest.

What a host's configuration comes to is a value, and its units, drop-ins and TOML can be written as
files. Nothing is built, and there is no store.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.checkout import CHECKOUT
from tests.support.needs import why_no
from tests.support.pace import patient

FILES = CHECKOUT / "nixos"
HERE = CHECKOUT / "tests/contract/nixos"
STORE = "/nix/store"
NIX = "nix-instantiate"
PATH = r"(?m)^Environment=PATH=.*$"
SECTIONS = ("Unit", "Service", "Timer", "Socket", "Mount", "Automount")


def why_not_evaluated() -> str | None:
    """The reason for a skip, or None where the module can be evaluated here."""
    if reason := why_no(NIX, "nix-bin"):
        return reason
    if not os.environ.get("NIXPKGS_LIB"):
        return (
            "NIXPKGS_LIB names no checkout of nixpkgs' lib "
            "(git clone https://github.com/nix-community/nixpkgs.lib; NIXPKGS_LIB=.../lib)"
        )
    return None


def nix(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Nix without a store, a daemon, or anything of the user's."""
    return subprocess.run(
        [NIX, "--store", "dummy://", *words],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "NIX_CONF_DIR": "/nonexistent"},
        timeout=patient(60.0),
    )


def evaluated(file: Path, **arguments: str | Path) -> Any:
    """What the function in `file` returns; a Path becomes a path of Nix."""
    words: list[str | Path] = ["--eval", "--strict", "--json", file]
    for name, value in {"nixpkgsLib": Path(os.environ["NIXPKGS_LIB"]), **arguments}.items():
        kind = "--arg" if isinstance(value, Path) else "--argstr"
        words += [kind, name, str(value)]
    done = nix(*words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Host:
    """What one host's configuration comes to."""

    seen: Mapping[str, Any]

    @classmethod
    def of(cls, file: Path, store: str = STORE) -> Host:
        return cls(evaluated(HERE / "evaluate.nix", store=store, host=file))

    @property
    def toml(self) -> dict[str, str]:
        """The volumes' files, by name."""
        return {
            name.removeprefix("standfast/"): "\n".join(toml_lines(file["toml"])) + "\n"
            for name, file in self.seen["etc"].items()
        }

    @property
    def units(self) -> dict[str, str]:
        """Standfast's own unit files, by name."""
        return {Path(name).name: text for name, text in self.seen["packages"].items()}

    @property
    def drop_ins(self) -> dict[str, str]:
        """What NixOS puts beside those and its own, and the units of mounts; by the unit's name."""
        return {name: "\n".join(unit_lines(unit)) for name, unit in self.seen["units"].items()}

    @property
    def wanted(self) -> list[str]:
        return sorted(
            f"{target} wants {name}"
            for name, unit in self.seen["units"].items()
            for target in unit["wantedBy"]
        )

    def write_units(self, directory: Path) -> None:
        """As below /etc/systemd/system; of an instance with a drop-in there is a file as well."""
        for name, text in self.units.items():
            (directory / name).write_text(text)
        for name, text in self.drop_ins.items():
            path = directory / name
            template = directory / f"{name.partition('@')[0]}@.{name.rpartition('.')[2]}"
            if not path.exists() and "@" in name:
                path.write_text(template.read_text())
            if not path.exists():
                path.write_text(text)
                continue
            drop_in = directory / f"{name}.d/overrides.conf"
            drop_in.parent.mkdir()
            drop_in.write_text(text)


def unit_lines(unit: Mapping[str, Any]) -> Iterator[str]:
    """A unit as NixOS writes it."""
    for section in SECTIONS:
        if section in unit:
            yield f"[{section}]"
        for key, value in unit.get(section, {}).items():
            joined = key in ("After", "Wants", "X-Restart-Triggers")
            values = value if isinstance(value, list) and not joined else [value]
            for one in values:
                yield f"{key}={' '.join(one) if joined else one}"


def toml_lines(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """A TOML file: plain values first, then the tables."""
    if path:
        yield f"[{'.'.join(path)}]"
    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{key} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from toml_lines(value, (*path, key))


def shown(host: Host) -> str:
    """All of it, for a golden file; of our own unit files the lines that differ from systemd/."""
    return "\n".join(_parts(host)) + "\n"


def _parts(host: Host) -> Iterator[str]:
    for name, text in host.toml.items():
        yield f"== /etc/standfast/{name}\n{text}"
    for name, text in host.units.items():
        before = (CHECKOUT / "systemd" / name).read_text().splitlines()
        changed = [f"  {line}" for line in text.splitlines() if line not in before]
        yield "\n".join((f"== systemd/{name}, but:", *changed))
    paths = {line for text in host.drop_ins.values() for line in re.findall(PATH, text)}
    assert len(paths) == 1, "every unit has the same"
    for name, text in host.drop_ins.items():
        yield f"== {name} or its drop-in\n{re.sub(PATH, 'Environment=PATH=...', text)}"
    yield "\n".join(("== PATH of each", *paths.pop().partition("=PATH=")[2].split(":")))
    yield "\n".join(("== started at boot", *host.wanted))
    for title in ("keys", "ports", "tmpfiles", "fileSystems", "programs", "warnings"):
        yield "\n".join((f"== {title}", *map(str, host.seen[title])))
