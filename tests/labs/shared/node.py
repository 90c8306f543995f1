"""A node, whatever it is made of: a machine that can be frozen, partitioned and told commands.

Invariant: every command, question and wait has a deadline; `pid` is 0 exactly while the machine
has no power. What makes a machine, and what a power cut leaves of it, is its lab's own.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tests.labs.shared.host import cgroups, freezer, kill_group
from tests.labs.shared.network import CLIENT, Network
from tests.labs.shared.spec import Spec
from tests.support import pace
from tests.support.commands import Finished, LabError, Process, wait_for, words

T = TypeVar("T")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
# Joins the cgroups named before "--", then becomes the command after it.
_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'
_ASK_CONSUL = (
    "import sys, urllib.request as r; "
    "print(r.urlopen('http://127.0.0.1:8500/v1/' + sys.argv[1], "
    "timeout=float(sys.argv[2])).read().decode())"
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a lab waits for its kind of machine where a test doesn't say, seconds."""

    command_s: float
    """For a command in a node."""
    consul_s: float
    """For an answer of the node's own Consul agent."""
    leader_s: float
    """For its answer to who the leader is."""
    election_s: float
    """Until every agent knows one leader."""
    product_s: float
    """For the product's own command, and for what it is expected to do."""
    poll_s: float
    """Between two looks; `pause_s` at what the product takes its time for."""
    pause_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """What a node shares with its lab."""

    tag: str
    directory: Path
    network: Network


class Machine(ABC):
    """One machine of a lab; `name` and `address` are what the others know of it."""

    pace: ClassVar[Pace]

    def __init__(self, spec: Spec, place: Place) -> None:
        self.spec = spec
        self.name = spec.name
        self.address = spec.address
        self.place = place
        self.directory = place.directory / spec.name
        self.pid = 0
        """The machine's first process as the host sees it; 0 when the node is down."""
        self._process: Process | None = None

    # -- life and death ----------------------------------------------------------------

    @abstractmethod
    def create(self) -> None:
        """Lay out its disks and keys; the node is down."""

    @abstractmethod
    def boot(self) -> None:
        """Power on, and wait until systemd has reached multi-user.target."""

    @abstractmethod
    def power_cut(self) -> None:
        """Off at once: cables first, then every process. Boot it again by boot()."""

    def _spawn(self, argv: Sequence[str], env: Mapping[str, str]) -> Process:
        """Start the machine in its cgroups, with the console as its output."""
        groups = [group / self.name for group in cgroups(self.place.tag)]
        for group in groups:
            group.mkdir(parents=True, exist_ok=True)
        enter = ("/bin/sh", "-c", _ENTER, "sh", *(str(g / "cgroup.procs") for g in groups), "--")
        with (self.directory / "console").open("ab") as console:
            self._process = Process(
                [*enter, *argv],
                what=f"{self.name}: {argv[0]}",
                out=console,
                env=ENVIRONMENT | dict(env),
            )
        return self._process

    def _check_alive(self) -> None:
        """LabError when the machine that boots has ended by itself."""
        if self._process is None or not self._process.alive():
            raise LabError(f"{self.name}: boot: the machine has ended")

    def _wait_for_end(self, timeout_s: float) -> None:
        assert self._process is not None
        self._process.wait(timeout_s)

    def _kill(self) -> None:
        """No process is left."""
        # A SIGKILL to a frozen process waits for the thaw; the cables are out by then.
        self.thaw()
        kill_group(self.place.tag, self.name)
        if self._process is not None:
            self._process.wait(60.0)
        self.pid, self._process = 0, None

    def freeze(self) -> None:
        """Stop the machine and all in it: its timers stand still, the clock goes on."""
        self._freezer(freeze=True)

    def thaw(self) -> None:
        """Let a frozen node go on; no error when it isn't frozen."""
        self._freezer(freeze=False)

    def _freezer(self, freeze: bool) -> None:
        state, frozen, thawed = freezer(self.place.tag, self.name)
        if not state.exists():
            return
        word = frozen if freeze else thawed
        state.write_text(word)
        if freeze and state.name == "freezer.state":
            wait_for(lambda: state.read_text().strip() == word, 30.0, f"{self.name} frozen", 0.005)
        elif freeze:
            events = state.parent / "cgroup.events"
            wait_for(lambda: "frozen 1" in events.read_text(), 30.0, f"{self.name} frozen", 0.005)

    def freeze_unit(self, unit: str) -> None:
        """SIGSTOP to every process of one unit: the kernel and its timers go on."""
        self.run("systemctl", "kill", "--signal=STOP", unit)

    def thaw_unit(self, unit: str) -> None:
        """SIGCONT to every process of one unit."""
        self.run("systemctl", "kill", "--signal=CONT", unit)

    # -- network -----------------------------------------------------------------------

    def partition(self, from_: Iterable[str] | None = None, bidirectional: bool = True) -> None:
        """Cut this node off from others by name (None: from those of `_others`).

        With bidirectional=False only what this node sends is lost, it still hears.
        """
        others = self._others() if from_ is None else list(from_)
        pairs = [(self.name, other) for other in others]
        if bidirectional:
            pairs += [(other, self.name) for other in others]
        self.place.network.cut(pairs)

    def isolate(self) -> None:
        """Cut this node off from everybody, the client included."""
        self.partition(self._everybody())

    def heal(self) -> None:
        """Undo every partition that names this node."""
        self.place.network.heal(self.name, self._everybody())

    def _others(self) -> list[str]:
        """The other nodes, not the client."""
        return [name for name in self.spec.cluster if name != self.name]

    def _everybody(self) -> list[str]:
        return [*(name for name in self.spec.cluster if name != self.name), CLIENT]

    # -- commands ----------------------------------------------------------------------

    @abstractmethod
    def _run(
        self, argv: Sequence[str], timeout_s: float, data: bytes, env: Mapping[str, str]
    ) -> Finished:
        """Run a command and wait; `env` is added to ENVIRONMENT. LabTimeout kills it."""

    def run(
        self,
        *argv: str,
        timeout_s: float | None = None,
        check: bool = True,
        input: str | bytes = "",
        env: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run a command in the node. LabTimeout kills it; check=True raises LabError."""
        if not self.pid:
            raise LabError(f"{self.name} is down: {words(argv)}")
        data = input.encode() if isinstance(input, str) else input
        within_s = pace.patient(self.pace.command_s if timeout_s is None else timeout_s)
        done = self._run(argv, within_s, data, env or {})
        return done.checked() if check else done

    def sh(self, script: str, timeout_s: float | None = None, check: bool = True) -> str:
        """The standard output of a shell script run in the node."""
        return self.run("/bin/bash", "-ec", script, timeout_s=timeout_s, check=check).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file; while the node is down it is there at the next boot, not on its disk."""
        if self.pid:
            self.run("install", "-D", "-m", f"{mode:o}", "/dev/stdin", path, input=text)
        else:
            self._write_down(path, text, mode)

    @abstractmethod
    def _write_down(self, path: str, text: str, mode: int) -> None:
        """Write a file of a node that is down."""

    def read(self, path: str) -> str:
        """The text of a file."""
        return self.run("cat", path).stdout

    def is_active(self, unit: str) -> bool:
        return self.run("systemctl", "is-active", "-q", unit, check=False).returncode == 0

    @abstractmethod
    def journal(self, unit: str | None = None, lines: int = 1000) -> str:
        """The last lines of a unit's journal (None: everything), also when it is down."""

    def console(self) -> str:
        """What the machine said on its console, of all boots."""
        try:
            return (self.directory / "console").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def trouble(self) -> str:
        """What seems to be wrong with the node, in a few words; "" if nothing does."""
        argv = ("systemctl", "list-units", "--plain", "--no-legend", "--state=failed,activating")
        with suppress(LabError):
            if self.pid:
                units = self.run(*argv, timeout_s=10.0).stdout.splitlines()
                return ", ".join(f"{u.split()[0]} is {u.split()[2]}" for u in units)
        last = self.console().strip().splitlines()[-1:]
        return f"its console ends with: {last[0]}" if last else ""

    def wait_for(
        self,
        predicate: Callable[[], T],
        timeout_s: float,
        what: str,
        interval_s: float | None = None,
    ) -> T:
        """The first truthy answer; LabTimeout names the node and what was waited for."""
        pause_s = self.pace.poll_s if interval_s is None else interval_s
        return wait_for(predicate, timeout_s, f"{self.name}: {what}", pause_s)

    # -- Consul ------------------------------------------------------------------------

    def consul_get(self, path: str, timeout_s: float | None = None) -> Any:
        """The JSON that the node's own agent answers to GET /v1/PATH; LabError if it doesn't."""
        within_s = self.pace.consul_s if timeout_s is None else timeout_s
        argv = ("/usr/bin/python3", "-IS", "-c", _ASK_CONSUL, path, str(within_s))
        return json.loads(self.run(*argv, timeout_s=within_s + 5.0).stdout)

    def consul_leader(self) -> str:
        """The Raft leader's address as this node's agent sees it; "" without one."""
        with suppress(LabError):
            return str(self.consul_get("status/leader", timeout_s=self.pace.leader_s))
        return ""
