"""What tests of setup and uninstall share: configurations, and a directory for a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.setup import given, shipped
from standfast.setup.observation import InConsul, Observed, Server
from standfast.setup.record import Installed
from standfast.setup.wanted import Wanted, wanted
from standfast.system.clock import Deadline
from tests.support.checkout import CHECKOUT

TEXT = """\
cluster = "test"
node = "zippy"
[nodes.zippy]
address = "192.168.1.2"
[nodes.c1]
address = "192.168.1.3"
"""
CLIENT = TEXT.replace('node = "zippy"\n', "")
SOURCE = Path("/etc/standfast/data-services.toml")


def config_of(text: str = TEXT, source: Path = SOURCE) -> Config:
    return given.take(text, source.stem, source, source)


def brought(**changes: Any) -> shipped.Shipped:
    """What a virtual environment of this checkout has."""
    directory = CHECKOUT / "systemd"
    units = {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    catalog = units.pop("standfast.catalog")
    pages = {Path("/usr/local/share/man/man1/standfast.1"): "the page\n"}
    programs = {name: Path("/opt/standfast/bin") / name for name in shipped.NAMES}
    fields: dict[str, Any] = {
        "units": units,
        "catalog": catalog,
        "by_package": frozenset(),
        "pages": pages,
        "programs": programs,
    }
    return shipped.Shipped(**fields | changes)


def goal_of(
    text: str = TEXT,
    *,
    token: str | None = None,
    disk: str = "/persist",
    mounts: bool = True,
    ships: shipped.Shipped | None = None,
) -> Wanted:
    return wanted(config_of(text), text, token, ships or brought(), Path(disk), mounts=mounts)


def bare(**changes: Any) -> Observed:
    """A machine on which nothing has been done, and nothing is in the way."""
    fields: dict[str, Any] = {
        "has_systemd": True,
        "kernel": (6, 1),
        "lacking": (),
        "consul": InConsul("zippy"),
        "server": Server("enabled"),
        "obstacles": (),
        "there": {},
        "leads": {},
        "modes": {},
        "token": None,
        "has_key": False,
        "running": frozenset(),
        "enabled": frozenset(),
        "answers": False,
        "installed": Installed(),
    }
    return Observed(**fields | changes)


def whole(goal: Wanted, **changes: Any) -> Observed:
    """The same machine when setup has been there."""
    units = frozenset((*goal.started, *goal.enabled))
    fields: dict[str, Any] = {
        "server": Server("disabled"),
        "there": goal.texts,
        "leads": {link: str(to) for link, to in goal.links.items()},
        "modes": {path: 0o040000 | mode for path, mode in goal.directories.items()},
        "token": goal.token,
        "has_key": True,
        "running": units,
        "enabled": units,
        "answers": True,
    }
    return bare(**fields | changes)


@dataclass
class Manager:
    """A service manager that notes what it is told."""

    told: list[str] = field(default_factory=list)
    fails: str = ""

    def _note(self, *words: str) -> None:
        text = " ".join(words)
        if self.fails and self.fails in text:
            raise StandfastError(f"{text} failed")
        self.told.append(text)

    def daemon_reload(self, deadline: Deadline) -> None:
        self._note("daemon-reload")

    def enable(self, units: Sequence[str], deadline: Deadline) -> None:
        self._note("enable", *units)

    def disable(self, units: Sequence[str], deadline: Deadline) -> None:
        self._note("disable", *units)

    def start(self, unit: str, deadline: Deadline) -> None:
        self._note("start", unit)

    def stop(self, unit: str, deadline: Deadline) -> None:
        self._note("stop", unit)

    def try_restart(self, unit: str, deadline: Deadline) -> None:
        self._note("try-restart", unit)

    def reset_failed(self, unit: str, deadline: Deadline) -> None: ...
