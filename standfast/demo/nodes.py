"""One node of the demo: a directory with its configuration and disk, and its processes.

Invariant: a power cut kills everything that the node runs, by pid and at once, and takes away what
a reboot would (its run directory); its disk stays as it is. While it is off nothing runs as it.
"""

from __future__ import annotations

import json
import shlex
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
from standfast.demo.processes import carries, kill_processes, send_signal
from standfast.demo.stand_ins.directory import initialise, load_info
from standfast.demo.stand_ins.embedded import last_words, lease_pid_file, log_dir, read_pid
from standfast.errors import StandfastError, TimedOut
from standfast.system.clock import Deadline, sleep
from standfast.system.local_socket import ask
from standfast.system.run import Child, Completed, kill_group, run, start_detached

VOLUME = "data-services"
# Nobody waits a minute, or ten, for what can be shown in seconds; 0: as often as you like.
PATIENCE = {"failover_after": 15.0, "surrender_after": 15.0, "failover_cooldown": 0.0}
FREEZABLE = ("lease", "agent")
PROGRAM = """#!/bin/sh
# `standfast` on {name} of the demo: whatever this starts ends with the node.
if ! [ -d {etc} ]; then
  echo '{name} is off: `start {name}` at the prompt of the demo' >&2
  exit 3
fi
export {environment}
exec {command} "$@"
"""


class AgentEnded(StandfastError):
    """By itself, or by somebody's hand; nobody starts it again, as there is no systemd."""

    def __init__(self, node: str, text: str) -> None:
        super().__init__(text)
        self.node = node


@dataclass(frozen=True, slots=True)
class Pace:
    """How much goes on in the cluster."""

    interval_s: float = 1.5
    """replication.interval: a snapshot may be shared by cycles for half of it."""
    line_s: float = 0.04
    """Between two lines of the client."""
    keep_last: int = 24
    """Snapshots, which are copies here."""


LIVELY = Pace()
# For hours: the client's file grows, and each cycle starts processes.
LASTING = Pace(interval_s=3.0, line_s=0.2, keep_last=6)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is on the network of the demo."""

    name: str
    address: str
    consul: str
    """`HOST:PORT` of its Consul agent."""


def config_text(
    me: Place, places: Sequence[Place], root: Path, port: int, pace: Pace = LIVELY
) -> str:
    """The node's data-services.toml."""
    disk = root / me.name
    receive = command(STANDFAST, "receive", "{volume}", "--from", me.name)
    reach = ["env", f"STANDFAST_CONFIG_DIR={root}/{{node}}/etc", *receive]
    return as_toml(
        {
            "": {"cluster": "demo", "node": me.name, "preferred": places[0].name, **PATIENCE},
            **{f"nodes.{place.name}": {"address": place.address} for place in places},
            "paths": paths_on(disk),
            "hooks": {"dir": f"{disk}/hooks.d"},  # this machine's hooks are none of the demo's
            "lease": asdict(FAST_PROFILE),
            "consul": {"addresses": [me.consul]},
            "nfs": {"port": port},
            "retention_own": {"keep_last": pace.keep_last},
            "retention_published": {"keep_last": pace.keep_last},
            "replication": {"interval": pace.interval_s, "timeout": 60.0, "command": reach},
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
    is_cut_off: bool = False
    """From Consul, and from gossip with it."""
    has_answered: bool = False
    """Its agent, since it was booted."""
    _services: dict[str, Child] = field(default_factory=dict)
    """What runs until the power is cut."""
    _children: set[Child] = field(default_factory=set)
    _frozen: dict[str, int] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def make(cls, place: Place, root: Path, text: str, consul: EmbeddedConsul) -> Node:
        """Its disk, with this configuration; everything is still off."""
        for name in ("etc.off", "persist/services-standby", "data", "var"):
            (root / name).mkdir(parents=True)
        path = root / "etc.off" / f"{VOLUME}.toml"
        path.write_text(text)
        node = cls(place, root, consul, load(path))
        node.program.write_text(node.program_text())
        node.program.chmod(0o755)
        return node

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def program(self) -> Path:
        """Runs `standfast` on this node, from any terminal."""
        return self.root / STANDFAST

    def program_text(self) -> str:
        environment = [f"{name}={shlex.quote(to)}" for name, to in self.environment().items()]
        return PROGRAM.format(
            name=self.name,
            etc=shlex.quote(str(self.root / "etc")),
            environment=" ".join(environment),
            command=shlex.join(command(STANDFAST)),
        )

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
            off = self.root / "etc.off"
            if off.exists():
                off.rename(self.root / "etc")
            self.reconnect()
            self.is_on = True

    def start_agent(self) -> None:
        self._serve("agent", VOLUME)

    def start_exporter(self, port: int) -> None:
        """Its status page is at the node's address and this port."""
        self._serve("exporter", "--listen", f"{self.place.address}:{port}")

    def _serve(self, name: str, *arguments: str) -> None:
        """Starts a service; nothing while it runs."""
        with self._lock:
            running = self._services.get(name)
            if running is None or running.poll() is not None:
                log = log_dir(self.config) / f"{name}.log"
                self._services[name] = self._start([name, *arguments], log)

    def _start(self, arguments: Sequence[str], log: Path) -> Child:
        op = f"{arguments[0]}:{self.name}"
        argv = command(STANDFAST, *arguments)
        return start_detached(argv, op=op, log_file=log, env=self.environment())

    def cut_power(self) -> tuple[int, ...]:
        """Kills all of it; returns the pids that were killed. One that was cut short is finished
        by the next."""
        with self._lock:
            self.is_on = self.has_answered = False
            pids = kill_processes(self.environment())
            self.consul.stop_agent(self.name)
            for child in (*self._children, *self._services.values()):
                kill_group(child)
            self._services.clear()
            self._frozen.clear()
            etc = self.root / "etc"
            if etc.exists():
                etc.rename(self.root / "etc.off")
            shutil.rmtree(self.config.paths.run, ignore_errors=True)
            self.config.paths.bind.unlink(missing_ok=True)
        return pids

    # Faults

    def cut_off(self) -> None:
        """From Consul and its gossip, until `reconnect`."""
        with self._lock:
            self.is_cut_off = True
            self.consul.stop_agent(self.name)

    def reconnect(self) -> None:
        with self._lock:
            self.consul.start_agent(self.name)
            self.is_cut_off = False

    def freeze(self, what: str) -> int:
        """Stops the process `what` of FREEZABLE; returns its pid. StandfastError without one."""
        with self._lock:
            if what == "agent":
                agent = self._services.get("agent")
                pid = None if agent is None else agent.pid
            else:
                pid = read_pid(lease_pid_file(self.config))
            if pid is None or not send_signal(pid, signal.SIGSTOP, self.environment()):
                raise StandfastError(f"no process `{what}` runs on {self.name}")
            self._frozen[what] = pid
            return pid

    def thaw(self) -> tuple[str, ...]:
        """What goes on again."""
        with self._lock:
            frozen, self._frozen = self._frozen, {}
            return tuple(
                what
                for what, pid in frozen.items()
                if send_signal(pid, signal.SIGCONT, self.environment())
            )

    def frozen(self) -> tuple[str, ...]:
        """The processes that were frozen and still are: a frozen one may have been killed."""
        environment = self.environment()
        with self._lock:
            return tuple(w for w, pid in self._frozen.items() if carries(pid, environment))

    def check_agent(self) -> None:
        """AgentEnded when it did."""
        agent = self._services.get("agent")
        if self.is_on and agent is not None and agent.poll() is not None:
            said = last_words(log_dir(self.config) / "agent.log")
            text = f"the agent of {self.name} ended with status {agent.returncode}: {said}"
            raise AgentEnded(self.name, text)

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
        self.has_answered = True
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
