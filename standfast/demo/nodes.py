"""One node of the demo: a directory with its configuration and disk, and its processes.

Invariant: a power cut kills everything that the node runs, by pid and at once, and takes away what
a reboot would (its run directory); its disk stays as it is. While it is off nothing runs as it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from standfast.config.load import load
from standfast.config.model import FAST_PROFILE, Config
from standfast.demo.commands import STANDFAST, command, handler
from standfast.demo.consul.server import EmbeddedConsul
from standfast.demo.stand_ins.directory import initialise, load_info
from standfast.demo.stand_ins.embedded import last_words, log_dir
from standfast.errors import StandfastError, TimedOut
from standfast.system.clock import Deadline, sleep
from standfast.system.local_socket import ask
from standfast.system.run import Child, Completed, kill_group, run, start_detached

VOLUME = "data-services"
INTERVAL_S = 1.5
"""replication.interval: a snapshot may be shared by cycles for half of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is on the network of the demo."""

    name: str
    address: str
    consul: str
    """`HOST:PORT` of its Consul agent."""


def config_text(me: Place, places: Sequence[Place], root: Path, port: int) -> str:
    """The node's data-services.toml."""
    disk = root / me.name
    receive = command(STANDFAST, "receive", "{volume}", "--from", me.name)
    reach = ["env", f"STANDFAST_CONFIG_DIR={root}/{{node}}/etc", *receive]
    others = [place.consul for place in places if place != me]
    return as_toml(
        {
            "": {"cluster": "demo", "node": me.name, "preferred": places[0].name},
            **{f"nodes.{place.name}": {"address": place.address} for place in places},
            "paths": paths_on(disk),
            "hooks": {"dir": f"{disk}/hooks.d"},  # this machine's hooks are none of the demo's
            "lease": asdict(FAST_PROFILE),
            "consul": {"addresses": [me.consul, *others]},
            "nfs": {"port": port},
            "replication": {"interval": INTERVAL_S, "timeout": 60.0, "command": reach},
        }
    )


def paths_on(disk: Path) -> dict[str, str]:
    """The table [paths] of a node whose disk is this directory."""
    return {
        "live": f"{disk}/persist/services",
        "snapshots": f"{disk}/persist",
        "standby": f"{disk}/persist/services-standby",
        "bind": f"{disk}/data/services",
        "state": f"{disk}/var",
        "run": f"{disk}/run",
    }


def as_toml(*layers: Mapping[str, Mapping[str, Any]]) -> str:
    """A configuration by its tables, "" being the top level; the keys of later layers win."""
    lines = []
    for table in dict.fromkeys(name for layer in layers for name in layer):
        lines += [f"[{table}]"] if table else []
        values = {key: value for layer in layers for key, value in layer.get(table, {}).items()}
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]  # TOML's form
    return "\n".join(lines) + "\n"


@dataclass(slots=True)
class Node:
    """A node that can be switched on and off."""

    place: Place
    root: Path
    consul: EmbeddedConsul
    config: Config
    is_on: bool = False
    _agent: Child | None = None
    _children: set[Child] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def make(
        cls, place: Place, places: Sequence[Place], base: Path, port: int, consul: EmbeddedConsul
    ) -> Node:
        """Its disk and configuration; everything is still off."""
        root = base / place.name
        for name in ("etc.off", "persist/services-standby", "data", "var"):
            (root / name).mkdir(parents=True)
        path = root / "etc.off" / f"{VOLUME}.toml"
        path.write_text(config_text(place, places, base, port))
        return cls(place, root, consul, load(path))

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def log(self) -> Path:
        return log_dir(self.config) / "agent.log"

    def environment(self) -> dict[str, str]:
        return {
            "STANDFAST_CONFIG_DIR": str(self.root / "etc"),
            "STANDFAST_JOURNAL": "",  # what happens here is no news of this machine
            "PYTHONUNBUFFERED": "1",
        }

    def create_volume(self, files: Mapping[str, str]) -> None:
        """What the operator has before Standfast: a subvolume with data."""
        initialise(self.config.paths.live)
        for name, text in files.items():
            (self.config.paths.live / name).write_text(text)

    # Power

    def boot(self) -> None:
        """The machine and its Consul agent; `start_agent` starts what is ours."""
        with self._lock:
            (self.root / "etc.off").rename(self.root / "etc")
            self.is_on = True

    def start_agent(self) -> None:
        with self._lock:
            self._agent = self._start(["agent", VOLUME], self.log)

    def _start(self, arguments: Sequence[str], log: Path) -> Child:
        op = f"{arguments[0]}:{self.name}"
        argv = command(STANDFAST, *arguments)
        return start_detached(argv, op=op, log_file=log, env=self.environment())

    def cut_power(self) -> tuple[int, ...]:
        """Kills all of it; returns the pids that were killed."""
        with self._lock:
            self.is_on = False
            pids = kill_processes(self.environment())
            self.consul.stop_agent(self.name)
            for child in (*self._children, *([self._agent] if self._agent else [])):
                kill_group(child)
            self._agent = None
            (self.root / "etc").rename(self.root / "etc.off")
            shutil.rmtree(self.config.paths.run, ignore_errors=True)
            self.config.paths.bind.unlink(missing_ok=True)
        return pids

    def end(self) -> None:
        """Cleans up, whatever state it is in."""
        with self._lock:
            if self.is_on:
                self.cut_power()

    def check_agent(self) -> None:
        """StandfastError when the agent ended by itself."""
        agent = self._agent
        if self.is_on and agent is not None and agent.poll() is not None:
            raise StandfastError(
                f"the agent of {self.name} ended with status {agent.returncode}: "
                f"{last_words(self.log)}"
            )

    # What runs on it

    def standfast(
        self,
        *arguments: str,
        limit_s: float = 60.0,
        progress: Callable[[str], None] | None = None,
    ) -> Completed:
        """A command of the operator's, or of a timer, on this node; `progress` gets its lines."""
        log = log_dir(self.config) / f"{arguments[0]}.{threading.get_ident()}.out"
        log.unlink(missing_ok=True)
        with self._lock:
            if not self.is_on:
                raise StandfastError(f"{self.name} is off")
            child = self._start(arguments, log)
            self._children.add(child)
        deadline = Deadline.after(limit_s)
        told = 0
        try:
            while child.poll() is None:
                told += _tell(log, told, progress)
                if deadline.expired:
                    raise TimedOut(f"`standfast {' '.join(arguments)}` took over {limit_s:g} s")
                sleep(0.02)
        finally:
            with self._lock:
                kill_group(child)
                self._children.discard(child)
        _tell(log, told, progress)
        said = log.read_text(errors="replace")
        log.unlink(missing_ok=True)
        return Completed(said, said, child.returncode)

    def call_handler(self, name: str, stdin: str) -> Completed:
        """As `consul watch` calls it."""
        return run(
            command(handler(name), "--volume", VOLUME),
            deadline=Deadline.after(10.0),
            op=f"{name}:{self.name}",
            input=stdin,
            check=False,
            env=self.environment(),
        )

    def status(self) -> Mapping[str, Any] | None:
        """The agent's own status document; None when it doesn't answer."""
        if not self.is_on:
            return None
        path = self.config.run_dir / "agent.sock"
        try:
            reply = ask(path, {"v": 1, "command": "status"}, Deadline.after(1.0))
        except StandfastError:
            return None
        status = reply.get("status")
        return status if isinstance(status, dict) else None

    # Its disk

    def trees(self) -> dict[str, Path]:
        """The live tree and those kept aside, by identity: none of them is ever deleted."""
        trees = {}
        for path in sorted(self.config.paths.snapshots.glob(f"{self.config.base}*")):
            info = None if "@" in path.name else load_info(path)
            if info is not None:
                trees[f"{self.name}:{info.uuid}"] = path
        return trees

    def copies_of(self, name: str) -> list[Path]:
        """The file `name` in every complete tree and snapshot on its disk."""
        paths = self.config.paths
        copies = [*paths.snapshots.glob(f"{self.config.base}*/{name}")]
        copies += paths.standby.glob(f"{self.config.base}@*/{name}")
        return [path for path in sorted(copies) if load_info(path.parent) is not None]


def _tell(log: Path, told: int, progress: Callable[[str], None] | None) -> int:
    """Hands on the whole lines of `log` after the first `told`; returns how many that were."""
    if progress is None:
        return 0
    lines = log.read_text(errors="replace").split("\n")[told:-1]
    for line in lines:
        progress(line)
    return len(lines)


def kill_processes(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Kills every process that was started with this environment, and what those start meanwhile.

    A node's environment names its own directory, so nobody else's process has it. TimedOut.
    """
    wanted = {f"{name}={value}".encode() for name, value in environment.items()}
    killed: list[int] = []
    deadline = Deadline.after(5.0)
    while pids := [pid for pid in _own_pids() if _carries(pid, wanted)]:
        deadline.check(f"the death of processes {pids}")
        for pid in pids:
            _kill(pid, wanted)
        killed += [pid for pid in pids if pid not in killed]
        sleep(0.01)
    return tuple(killed)


def _own_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]  # noqa: PTH208


def _carries(pid: int, wanted: set[bytes]) -> bool:
    """Whether the process has these variables; not when it is dead, or another user's."""
    try:
        return wanted <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return False


def _kill(pid: int, wanted: set[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if _carries(pid, wanted):  # still the same process
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
