"""A node: a container with real systemd that can be cut, frozen, partitioned and booted.

Invariant: what survives a power cut is what had reached the disk and the root's upper
layer; memory, /run, the network namespace with its firewall, and unsynced data don't.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.labs.containers.disk import LoopDisk
from tests.labs.containers.image import DISK, Image
from tests.labs.shared import node
from tests.labs.shared.client import Client
from tests.labs.shared.node import ENVIRONMENT, Machine, Pace
from tests.labs.shared.spec import Spec
from tests.support.commands import Finished, LabError, Output, Process, sh, wait_for, words

# What a machine allows and nspawn doesn't by itself.
CALLS = (
    "open_by_handle_at",
    *(f"landlock_{call}" for call in ("create_ruleset", "add_rule", "restrict_self")),
)
POWEROFF = signal.SIGRTMIN + 4
PACE = Pace(
    command_s=30.0,
    consul_s=5.0,
    leader_s=2.0,
    election_s=30.0,
    product_s=60.0,
    poll_s=0.05,
    pause_s=0.3,
)


@dataclass(frozen=True, slots=True)
class ContainerPlace(node.Place):
    """What a node shares with its lab."""

    binds: Mapping[Path, str]
    """Read-only binds from the host: path on the host -> path in the node."""


class Container(Machine):
    """A container."""

    pace = PACE
    place: ContainerPlace

    def __init__(self, spec: Spec, place: ContainerPlace, disk_bytes: int) -> None:
        super().__init__(spec, place)
        self.image = Image(self.directory, spec)
        self.disk = LoopDisk(disk_bytes)
        self.netns = ""

    # -- life and death ----------------------------------------------------------------

    def create(self) -> None:
        """Build the root and a fresh btrfs; the node is down."""
        self.image.build()
        self.disk.attach()
        self.disk.format(self.name)

    def boot(self, timeout_s: float = 60.0) -> None:
        """Power on, and wait until systemd has reached multi-user.target."""
        if self.pid:
            raise LabError(f"{self.name} is already up")
        self.netns = self.place.network.plug(self.name, self.address)
        ready = self.image.directory / "ready"
        ready.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.bind(str(ready))
            notify.setblocking(False)
            self._spawn(self._nspawn(), {"NOTIFY_SOCKET": str(ready)})
            booted = f"{self.name}: boot: multi-user.target is reached"
            wait_for(lambda: self._is_ready(notify), timeout_s, booted, 0.01)

    def _nspawn(self) -> list[str]:
        return [
            *("systemd-nspawn", "-q", "-b", "-D", str(self.image.root), "--notify-ready=yes"),
            *("-M", f"sflab-{self.place.tag}-{self.name}", f"--hostname={self.name}"),
            *("--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off"),
            *("--link-journal=no", f"--network-namespace-path=/run/netns/{self.netns}"),
            *("--capability=all", f"--system-call-filter={' '.join(CALLS)}"),
            *(f"--bind={self.disk.device}:{DISK}", "--console=read-only"),
            *(f"--bind-ro={host}:{inside}" for host, inside in self.place.binds.items()),
        ]

    def _is_ready(self, notify: socket.socket) -> bool:
        """Whether nspawn says so; it also says the process id of the container's systemd."""
        try:
            message = notify.recv(4096).decode().splitlines()
        except BlockingIOError:
            self._check_alive()
            return False
        for line in message:
            if line.startswith("X_NSPAWN_LEADER_PID="):
                self.pid = int(line.partition("=")[2])
        return "READY=1" in message

    def power_cut(self) -> None:
        """Off at once: cable and disk first, then every process. Boot it again by boot()."""
        self.place.network.unplug(self.name)
        self.disk.cut()
        self._end()
        self.disk.repower()
        self.disk.attach()

    def shutdown(self, timeout_s: float = 60.0) -> None:
        """An orderly power-off: units are stopped, file systems unmounted and synced."""
        os.kill(self.pid, POWEROFF)
        self._wait_for_end(timeout_s)
        self.place.network.unplug(self.name)
        self._end()
        self.disk.attach()

    def _end(self) -> None:
        """No process is left, the disk's file system is gone from the kernel."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._kill()
        self.place.network.discard(self.name)
        device = self.disk.device.name
        self.disk.detach()
        backing = Path(f"/sys/block/{device}/loop")
        wait_for(lambda: not backing.exists(), 60.0, f"{device} of {self.name} is free", 0.005)

    def close(self) -> None:
        """Free the disk; the lab ends the processes."""
        self.disk.close()
        if self._process is not None:
            self._process.wait(60.0)
            self._process = None
        self.pid = 0

    @property
    def client(self) -> Client:
        """An NFS client that sits on this node."""
        return Client(self.netns)

    # -- commands ----------------------------------------------------------------------

    def start(
        self,
        *argv: str,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        out: Output | None = None,
    ) -> Process:
        """Start a command and return; it dies with the node at the latest."""
        if not self.pid:
            raise LabError(f"{self.name} is down: {words(argv)}")
        enter = ("nsenter", "-t", str(self.pid), "-a", "--wdns=/")
        return Process(
            [*enter, *argv],
            what=words(argv, self.name),
            stdin=input,
            out=out,
            env=ENVIRONMENT | dict(env or {}),
        )

    def _run(
        self, argv: Sequence[str], timeout_s: float, data: bytes, env: Mapping[str, str]
    ) -> Finished:
        return self.start(*argv, input=data, env=env).finish(timeout_s)

    def _write_down(self, path: str, text: str, mode: int) -> None:
        self.image.write(path, text, mode)

    def read(self, path: str) -> str:
        """The text of a file; while the node is down only below its root."""
        if self.pid:
            return self.run("cat", path).stdout
        return (self.image.root / path.lstrip("/")).read_text()

    def journal(self, unit: str | None = None, lines: int = 1000) -> str:
        """The last lines of a unit's journal (None: everything), also when it is down."""
        which = ("-u", unit) if unit else ()
        logs = self.image.upper / "var/log/journal"
        return sh(
            *("journalctl", "-D", logs, "--no-pager", "-q", "-o", "short-iso-precise"),
            *("-n", str(lines), *which),
            check=False,
        )

    def consul(self, *argv: str, timeout_s: float = 30.0, check: bool = True) -> str:
        """Standard output of the consul CLI against the node's own agent."""
        return self.run("consul", *argv, timeout_s=timeout_s, check=check).stdout.strip()

    def authorize(self, key_of: Container, command: str | None = None) -> None:
        """Let root of another node log in here, with a forced command if one is given; only from
        its address then."""
        forced = f'restrict,from="{key_of.address}",command="{command}" ' if command else ""
        line = f"{forced}{key_of.image.public_key('root')} root@{key_of.name}\n"
        path = "/root/.ssh/authorized_keys"
        here = self.run("cat", path, check=False).stdout if self.pid else ""
        kept = [ln for ln in here.splitlines(True) if f" root@{key_of.name}" not in ln]
        self.write(path, "".join([*kept, line]), 0o600)
