"""A node: a container with real systemd that can be cut, frozen, partitioned and booted.

Invariant: what survives a power cut is what had reached the disk and the root's upper
layer; memory, /run, the network namespace with its firewall, and unsynced data don't.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.lab.disk import Disk
from tests.lab.image import DISK, Image
from tests.machines.client import Client
from tests.machines.host import LabError, LabTimeout, cgroups, freezer, kill_group, sh, wait_for
from tests.machines.network import Network
from tests.machines.spec import Spec

T = TypeVar("T")
POWEROFF = signal.SIGRTMIN + 4
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
# Joins the cgroups named before "--", then becomes the command after it.
_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'


@dataclass(frozen=True, slots=True)
class Place:
    """What a node shares with its lab."""

    tag: str
    directory: Path
    network: Network
    binds: Mapping[Path, str]
    """Read-only binds from the host: path on the host -> path in the node."""


class Node:
    """One machine of the lab; `name` and `address` are what the others know of it."""

    def __init__(self, spec: Spec, place: Place, disk_bytes: int) -> None:
        self.spec = spec
        self.name = spec.name
        self.address = spec.address
        self.place = place
        self.image = Image(place.directory / spec.name, spec)
        self.disk = Disk(disk_bytes)
        self.pid = 0
        """The container's init as the host sees it; 0 when the node is down."""
        self.netns = ""
        self._nspawn: subprocess.Popen[bytes] | None = None

    # -- life and death ----------------------------------------------------------------

    def create(self) -> None:
        """Build the root and a fresh btrfs; the node is down."""
        self.image.build()
        self.disk.attach()
        self.disk.format(self.name)

    def boot(self, timeout_s: float = 30.0) -> None:
        """Power on, and wait until systemd has reached multi-user.target."""
        if self.pid:
            raise LabError(f"{self.name} is already up")
        self.netns = self.place.network.plug(self.name, self.address)
        ready = self.image.directory / "ready"
        ready.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.bind(str(ready))
            self._nspawn = self._spawn(ready)
            self._await_ready(notify, time.monotonic() + timeout_s)

    def _spawn(self, ready: Path) -> subprocess.Popen[bytes]:
        groups = [group / self.name for group in cgroups(self.place.tag)]
        for group in groups:
            group.mkdir(parents=True, exist_ok=True)
        binds = [f"--bind-ro={host}:{inside}" for host, inside in self.place.binds.items()]
        argv = [
            *("/bin/sh", "-c", _ENTER, "sh", *(str(g / "cgroup.procs") for g in groups), "--"),
            *("systemd-nspawn", "-q", "-b", "-D", str(self.image.root), "--notify-ready=yes"),
            *("-M", f"sflab-{self.place.tag}-{self.name}", f"--hostname={self.name}"),
            *("--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off"),
            *("--link-journal=no", f"--network-namespace-path=/run/netns/{self.netns}"),
            *("--capability=all", "--system-call-filter=open_by_handle_at"),
            *(f"--bind={self.disk.device}:{DISK}", "--console=read-only", *binds),
        ]
        with (self.image.directory / "console").open("ab") as console:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=ENVIRONMENT | {"NOTIFY_SOCKET": str(ready)},
                start_new_session=True,
            )

    def _await_ready(self, notify: socket.socket, deadline: float) -> None:
        while True:
            notify.settimeout(max(0.01, min(0.5, deadline - time.monotonic())))
            try:
                message = notify.recv(4096).decode().splitlines()
            except TimeoutError:
                message = []
            for line in message:
                if line.startswith("X_NSPAWN_LEADER_PID="):
                    self.pid = int(line.partition("=")[2])
            if "READY=1" in message:
                return
            assert self._nspawn is not None
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                raise LabTimeout(f"{self.name} did not boot: {self.console()[-2000:]}")

    def power_cut(self) -> None:
        """Off at once: cable and disk first, then every process. Boot it again by boot()."""
        self.place.network.unplug(self.name)
        self.disk.cut()
        self._end()
        self.disk.repower()
        self.disk.attach()

    def shutdown(self, timeout_s: float = 60.0) -> None:
        """An orderly power-off: units are stopped, file systems unmounted and synced."""
        assert self._nspawn is not None
        os.kill(self.pid, POWEROFF)
        try:
            self._nspawn.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise LabTimeout(f"{self.name} did not shut down within {timeout_s} s") from error
        self.place.network.unplug(self.name)
        self._end()
        self.disk.attach()

    def _end(self) -> None:
        """No process is left, the disk's file system is gone from the kernel."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        # A SIGKILL to a frozen process waits for the thaw; nothing else runs in between.
        self.thaw()
        kill_group(self.place.tag, self.name)
        if self._nspawn is not None:
            self._nspawn.wait(10.0)
        self.pid, self._nspawn = 0, None
        self.place.network.discard(self.name)
        device = self.disk.device.name
        self.disk.detach()
        backing = Path(f"/sys/block/{device}/loop")
        wait_for(lambda: not backing.exists(), 10.0, f"{device} of {self.name} is free", 0.005)

    def freeze(self) -> None:
        """Stop every process of the node; the kernel's timers and its network go on."""
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
            wait_for(lambda: state.read_text().strip() == word, 5.0, f"{self.name} frozen", 0.005)
        elif freeze:
            events = state.parent / "cgroup.events"
            wait_for(lambda: "frozen 1" in events.read_text(), 5.0, f"{self.name} frozen", 0.005)

    def freeze_unit(self, unit: str) -> None:
        """SIGSTOP to every process of one unit."""
        self.run("systemctl", "kill", "--signal=STOP", unit)

    def thaw_unit(self, unit: str) -> None:
        """SIGCONT to every process of one unit."""
        self.run("systemctl", "kill", "--signal=CONT", unit)

    # -- network -----------------------------------------------------------------------

    def partition(self, from_: Sequence[str] | None = None, bidirectional: bool = True) -> None:
        """Cut this node off from others by name (None: all other nodes, not the clients).

        With bidirectional=False only what this node sends is lost, it still hears.
        """
        others = self._others() if from_ is None else list(from_)
        pairs = [(self.name, other) for other in others]
        if bidirectional:
            pairs += [(other, self.name) for other in others]
        self.place.network.cut(pairs)

    def isolate(self) -> None:
        """Cut this node off from everybody, the client included."""
        self.partition([*self._others(), "client"])

    def heal(self) -> None:
        """Undo every partition that names this node."""
        self.place.network.heal(self.name, [*self._others(), "client"])

    def _others(self) -> list[str]:
        return [name for name in self.spec.cluster if name != self.name]

    @property
    def client(self) -> Client:
        """An NFS client that sits on this node."""
        return Client(self.netns)

    # -- commands ----------------------------------------------------------------------

    def argv(self, *argv: str) -> list[str]:
        """The command as the host starts it inside this node."""
        if not self.pid:
            raise LabError(f"{self.name} is down: {' '.join(argv)}")
        return ["nsenter", "-t", str(self.pid), "-a", "--wd=/", *argv]

    def popen(self, *argv: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command and return; it dies with the node at the latest."""
        return subprocess.Popen(
            self.argv(*argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | dict(env or {}),
            start_new_session=True,
        )

    def run(
        self,
        *argv: str,
        timeout_s: float = 30.0,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node. LabTimeout kills it; check=True raises LabError."""
        process = self.popen(*argv, env=env)
        what = f"{self.name}: {' '.join(argv)}"
        try:
            out, err = process.communicate(input or "", timeout_s)
        except subprocess.TimeoutExpired as error:
            # nsenter has forked: only the whole group takes the command along.
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise LabTimeout(f"{what}: still running after {timeout_s} s: {out}{err}") from error
        if check and process.returncode != 0:
            raise LabError(f"{what}: exit {process.returncode}: {out}{err}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def sh(self, script: str, timeout_s: float = 30.0, check: bool = True) -> str:
        """The standard output of a shell script run in the node."""
        return self.run("/bin/bash", "-ec", script, timeout_s=timeout_s, check=check).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file; while the node is down only below its root, not on its disk."""
        if self.pid:
            self.run("install", "-D", "-m", f"{mode:o}", "/dev/stdin", path, input=text)
        else:
            self.image.write(path, text, mode)

    def read(self, path: str) -> str:
        """The text of a file; while the node is down only below its root."""
        if self.pid:
            return self.run("cat", path).stdout
        return (self.image.root / path.lstrip("/")).read_text()

    def is_active(self, unit: str) -> bool:
        return self.run("systemctl", "is-active", "-q", unit, check=False).returncode == 0

    def journal(self, unit: str | None = None, lines: int = 1000) -> str:
        """The last lines of a unit's journal (None: everything), also when it is down."""
        which = ("-u", unit) if unit else ()
        logs = self.image.upper / "var/log/journal"
        return sh(
            *("journalctl", "-D", logs, "--no-pager", "-q", "-o", "short-iso-precise"),
            *("-n", str(lines), *which),
            check=False,
        )

    def console(self) -> str:
        """What the node's systemd and nspawn said on the console."""
        return (self.image.directory / "console").read_text(errors="replace")

    def wait_for(self, predicate: Callable[[], T], timeout_s: float, what: str) -> T:
        """The first truthy answer; LabTimeout names the node and what was waited for."""
        return wait_for(predicate, timeout_s, f"{self.name}: {what}")

    # -- services ----------------------------------------------------------------------

    def consul(self, *argv: str, timeout_s: float = 10.0, check: bool = True) -> str:
        """Standard output of the consul CLI against the node's own agent."""
        return self.run("consul", *argv, timeout_s=timeout_s, check=check).stdout.strip()

    def consul_get(self, path: str, timeout_s: float = 5.0) -> Any:
        """The JSON that the node's own agent answers to GET /v1/PATH; LabError if it doesn't."""
        script = (
            "import sys, urllib.request as r; "
            "print(r.urlopen('http://127.0.0.1:8500/v1/' + sys.argv[1], "
            "timeout=float(sys.argv[2])).read().decode())"
        )
        argv = ("/usr/bin/python3", "-IS", "-c", script, path, str(timeout_s))
        return json.loads(self.run(*argv, timeout_s=timeout_s + 2).stdout)

    def consul_leader(self) -> str:
        """The Raft leader's address as this node's agent sees it; "" without one."""
        with contextlib.suppress(LabError):
            return str(self.consul_get("status/leader", timeout_s=2.0))
        return ""

    def authorize(self, key_of: Node, command: str | None = None) -> None:
        """Let root of another node log in here, with a forced command if one is given."""
        forced = f'restrict,command="{command}" ' if command else ""
        line = f"{forced}{key_of.image.public_key('root')} root@{key_of.name}\n"
        path = "/root/.ssh/authorized_keys"
        here = self.run("cat", path, check=False).stdout if self.pid else ""
        kept = [ln for ln in here.splitlines(True) if f" root@{key_of.name}" not in ln]
        self.write(path, "".join([*kept, line]), 0o600)

    def close(self) -> None:
        """Free the disk; the lab ends the processes."""
        self.disk.close()
        if self._nspawn is not None:
            self._nspawn.wait(10.0)
            self._nspawn = None
        self.pid = 0
