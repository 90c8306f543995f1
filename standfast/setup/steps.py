"""One function for each step of a setup. Each can be repeated; each has a deadline.

Invariant: nothing here decides. What is to be written, and whether, was decided before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from standfast.config.advice import advice
from standfast.config.load import load
from standfast.config.model import Config
from standfast.config.problems import InvalidConfig
from standfast.errors import StandfastError
from standfast.replication.keys import ensure_key, public_path
from standfast.setup.execute import Act
from standfast.setup.observation import Observed
from standfast.setup.plan import DISABLED, Do
from standfast.setup.record import NAME, Installed
from standfast.setup.shipped import Places
from standfast.setup.wanted import Wanted
from standfast.system.clock import Deadline, format_stamp, sleep, utc_now
from standfast.system.files import write_atomically
from standfast.system.run import run

START_S = 60.0
COMMAND_S = 30.0
ANSWER_S = 60.0
POLL_S = 0.2
LEASE = "standfast-lease@{}.service"


class Manager(Protocol):
    """What setup needs of the service manager."""

    def daemon_reload(self, deadline: Deadline) -> None: ...

    def enable(self, units: Sequence[str], deadline: Deadline) -> None: ...

    def disable(self, units: Sequence[str], deadline: Deadline) -> None: ...

    def start(self, unit: str, deadline: Deadline) -> None: ...

    def stop(self, unit: str, deadline: Deadline) -> None: ...

    def try_restart(self, unit: str, deadline: Deadline) -> None: ...

    def reset_failed(self, unit: str, deadline: Deadline) -> None: ...


@dataclass(slots=True)
class Effects:
    """The steps on one machine. `answers` tells whether what was started is there."""

    wanted: Wanted
    seen: Observed
    places: Places
    units: Manager
    answers: Callable[[Config], bool]
    noted: Installed = field(init=False)

    def __post_init__(self) -> None:
        self.noted = self.seen.installed

    def acts(self) -> Mapping[str, Act]:
        return {
            Do.CONFIG: self.config,
            Do.TOKEN: self.token,
            Do.PROGRAMS: self.programs,
            Do.PAGES: lambda: self._write(self.wanted.pages),
            Do.UNITS: self.unit_files,
            Do.CATALOG: self.catalog,
            Do.DIRECTORIES: self.directories,
            Do.NFS_SERVER: self.server,
            Do.CHECK: self.check,
            Do.KEY: self.key,
            Do.RESTART: self.restart,
            Do.ENABLE: self.enable,
            Do.WAIT: self.wait,
        }

    def _note(self, noted: Installed) -> None:
        if noted != self.noted:
            noted.save(self.places.at(self.wanted.config.paths.state / NAME))
            self.noted = noted

    def _write(self, texts: Mapping[Path, str], mode: int = 0o644) -> None:
        """Writes what isn't there as it should be."""
        self._note(self.noted.with_files(texts))
        for path, text in texts.items():
            if self.places.text(path) != text:
                write_atomically(self.places.at(path), text, durable=True, mode=mode)

    # Configuration

    def config(self) -> str:
        source = self.wanted.config.source
        before = self.places.text(source)
        self._note(replace(self.noted, restart=True))
        kept = ""
        if before is not None and before != self.wanted.text:
            # Not *.toml: that would be another volume.
            beside = source.with_name(f"{source.name}.before-{format_stamp(utc_now())}")
            write_atomically(self.places.at(beside), before, durable=True)
            kept = f"; the one before is {beside}"
        self._write({source: self.wanted.text})
        return f"{source}: volume {self.wanted.config.volume}{kept}"

    def token(self) -> None:
        path, token = self.wanted.config.consul.token_file, self.wanted.token
        assert path is not None and token is not None, "planned only with both"
        self._note(replace(self.noted.with_files({path: f"{token}\n"}), restart=True))
        write_atomically(self.places.at(path), f"{token}\n", durable=True, mode=0o600)

    def check(self) -> str:
        """As root's processes will load it, and as `config check` does."""
        config = load(self.places.at(self.wanted.config.source), require_storage=False)
        wrong, words = advice(config, here=True)
        if wrong:
            raise InvalidConfig(config.source, wrong)
        told = f"; worth a look: {'; '.join(map(str, words))}" if words else ""
        return f"{config.source} can be used by root's processes{told}"

    # Files

    def programs(self) -> None:
        links = {str(link): str(to) for link, to in self.wanted.links.items()}
        self._note(replace(self.noted, links=self.noted.links | links))
        for link, to in self.wanted.links.items():
            at = self.places.at(link)
            at.parent.mkdir(parents=True, exist_ok=True)
            if at.is_symlink() and at.readlink() != to:
                at.unlink()
            if not at.is_symlink():
                at.symlink_to(to)

    def unit_files(self) -> None:
        self._note(replace(self.noted, restart=True))
        self._write(self.wanted.units)

    def catalog(self) -> None:
        self._write(self.wanted.catalog)
        argv = ["journalctl", "--update-catalog"]
        run(argv, deadline=Deadline.after(COMMAND_S), op="update-catalog")

    def directories(self) -> None:
        for path, mode in self.wanted.directories.items():
            there = self.seen.modes.get(path)
            if there is None:
                self._note(replace(self.noted, directories=(*self.noted.directories, str(path))))
                self.places.at(path).mkdir(parents=True, exist_ok=True, mode=mode)
            elif mode == 0o700 and there & 0o077:
                self.places.at(path).chmod(mode)

    # Units

    def server(self) -> str:
        """The guard is in place: systemd has to know of it before the next start."""
        unit, server = self.wanted.config.nfs.unit, self.seen.server
        self.units.daemon_reload(Deadline.after(COMMAND_S))
        said = []
        if server.enablement not in DISABLED:
            was = tuple(dict.fromkeys((*self.noted.was_enabled, unit)))
            self._note(replace(self.noted, was_enabled=was))
            self.units.disable([unit], Deadline.after(COMMAND_S))
            said.append("isn't started at boot any more: the agent starts it on the primary")
        if server.active and not server.ours and not server.exports_others:
            self.units.stop(unit, Deadline.after(START_S))
            said.append("was stopped, as it served nothing")
        elif server.active and not server.ours:
            said.append("runs on, as it serves something else")
        return f"{unit} {'; it '.join(said)}"

    def key(self) -> None:
        config = self.wanted.config
        if ensure_key(config, Deadline.after(COMMAND_S)):
            paths = (config.replication.ssh_key, public_path(config.replication.ssh_key))
            texts = {path: self.places.text(path) or "" for path in paths}
            self._note(self.noted.with_files(texts))

    def restart(self) -> None:
        """The lease process first: its fence has the form that a new agent looks for."""
        config = self.wanted.config
        self.units.daemon_reload(Deadline.after(COMMAND_S))
        names = [LEASE.format(config.volume)] if self.wanted.is_storage else []
        names += [unit for unit in self.wanted.started if unit in self.seen.running]
        for name in names:
            if not name.endswith((".timer", ".automount")):
                # A socket whose service runs can't be restarted before that is stopped.
                unit = name.replace("receive.socket", "receive.service")
                self.units.try_restart(unit, Deadline.after(START_S))
        self._note(replace(self.noted, restart=False))

    def enable(self) -> None:
        on = [*self.wanted.started, *self.wanted.enabled]
        self.units.daemon_reload(Deadline.after(COMMAND_S))
        self.units.enable(on, Deadline.after(COMMAND_S))
        for unit in self.wanted.started:
            with contextlib.suppress(StandfastError):
                self.units.reset_failed(unit, Deadline.after(COMMAND_S))
            self.units.start(unit, Deadline.after(START_S))
        self._note(replace(self.noted, restart=False))

    def wait(self) -> None:
        deadline = Deadline.after(ANSWER_S)
        config = self.wanted.config
        while not self.answers(config):
            if deadline.expired:
                unit = self.wanted.started[1 if self.wanted.is_storage else -2]
                raise StandfastError(
                    f"no answer within {ANSWER_S:.0f} s: journalctl -u {unit}; then run this again"
                )
            sleep(POLL_S)
