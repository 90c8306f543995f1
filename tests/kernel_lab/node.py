"""A node: a machine with a kernel of its own that can be cut, frozen, partitioned and booted.

Invariant: what survives a power cut is what its kernel had written to its two disks (the root's
layer and the data's btrfs); memory, page cache, network and unsynced data don't.
"""

from __future__ import annotations

import io
import shlex
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.kernel_lab.control import ENVIRONMENT, Control
from tests.kernel_lab.image import GUEST, KERNEL
from tests.kernel_lab.network import KernelNetwork, control_address, mac
from tests.machines.host import LabError, LabTimeout, cgroups, freezer, kill_group, sh, wait_for
from tests.machines.network import PREFIX
from tests.machines.spec import Spec

T = TypeVar("T")
# Joins the cgroups named before "--", then becomes the command after it.
_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'
_ASK_CONSUL = (
    "import sys, urllib.request as r; "
    "print(r.urlopen('http://127.0.0.1:8500/v1/' + sys.argv[1], "
    "timeout=float(sys.argv[2])).read().decode())"
)
Files = Mapping[str, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Place:
    """What a node shares with its lab."""

    tag: str
    directory: Path
    network: KernelNetwork
    base: Path
    preload: Path
    memory_mib: int


class Node:
    """One machine of the lab; `name` and `address` are what the others know of it."""

    def __init__(self, spec: Spec, place: Place, disk_bytes: int = 0) -> None:
        """disk_bytes: size of the data disk (btrfs, /persist); 0: none."""
        self.spec = spec
        self.name = spec.name
        self.address = spec.address
        self.place = place
        self.directory = place.directory / spec.name
        self.control = Control(place.network, spec.name, spec.address)
        self.pid = 0
        """The kernel's process as the host sees it; 0 when the node is down."""
        self._disk_bytes = disk_bytes
        self._pending: dict[str, tuple[bytes, int]] = {}
        self._trees: list[Path] = []
        self._kernel: subprocess.Popen[bytes] | None = None
        self._boot_offset_s = 0.0

    # -- life and death ----------------------------------------------------------------

    def create(self) -> None:
        """Lay out its disks and keys; the node is down."""
        self.directory.mkdir()
        for kind, path in (
            ("host", "/etc/ssh/ssh_host_ed25519_key"),
            ("root", "/root/.ssh/id_ed25519"),
        ):
            key = self.directory / f"{kind}.key"
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{self.name}", "-f", key)
            self.write(path, key.read_text(), 0o600)
        if self._disk_bytes:
            with self._disk.open("wb") as disk:
                disk.truncate(self._disk_bytes)
            sh("mkfs.btrfs", "-q", "-L", self.name, self._disk)
        self.write("/usr/local/lib/lab/agent.py", (GUEST / "agent.py").read_text())
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/machine-id", f"{uuid.uuid4().hex}\n")
        hosts = "".join(f"{address} {name}\n" for name, address in self.spec.cluster.items())
        self.write("/etc/hosts", f"127.0.0.1 localhost\n{hosts}")

    @property
    def _disk(self) -> Path:
        return self.directory / "persist.btrfs"

    def public_key(self, kind: str) -> str:
        """The public half of the node's "host" or "root" key, without the comment."""
        return " ".join((self.directory / f"{kind}.key.pub").read_text().split()[:2])

    def boot(self, timeout_s: float = 90.0) -> None:
        """Power on, and wait until systemd has reached multi-user.target."""
        self.power_on()
        self.wait_until_booted(timeout_s)

    def power_on(self) -> None:
        """Start the kernel, without waiting for anything."""
        if self.pid:
            raise LabError(f"{self.name} is already up")
        ports = self.place.network.plug_kernel(self.name)
        addresses = (self.address, control_address(self.address))
        (self.directory / "network").write_text(
            "link set lo up\n"
            + "".join(
                f"address add {address}/{PREFIX} dev vec{i}\nlink set vec{i} up\n"
                for i, address in enumerate(addresses)
            )
        )
        self._pack()
        groups = [group / self.name for group in cgroups(self.place.tag)]
        for group in groups:
            group.mkdir(parents=True, exist_ok=True)
        vectors = [
            f"vec{i}:transport=tap,ifname={port},mac={mac(address)},gro=1"
            for i, (port, address) in enumerate(zip(ports, addresses, strict=True))
        ]
        disk = [f"ubd1={self._disk}"] if self._disk_bytes else []
        argv = [
            *("/bin/sh", "-c", _ENTER, "sh", *(str(g / "cgroup.procs") for g in groups), "--"),
            *("nsenter", f"--net=/run/netns/{self.place.network.bridge}", "--"),
            *("env", f"LD_PRELOAD={self.place.preload}"),
            *(str(KERNEL), f"mem={self.place.memory_mib}M", "root=/dev/ubda", "rw"),
            *(f"ubd0={self.directory}/root.cow,{self.place.base}", *disk, *vectors),
            *("init=/lab/init", f"lab={self.directory}", "random.trust_bootloader=1", "quiet"),
            *("con=null", "con0=null,fd:1", "ssl=null", "console=tty0", "panic=1"),
            *("systemd.show_status=0", f"uml_dir={self.directory}/uml/", f"umid={self.name}"),
        ]
        with (self.directory / "console").open("ab") as console:
            self._kernel = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                # Its memory is a file below TMPDIR: on the lab's own tmpfs.
                env=ENVIRONMENT | {"TMPDIR": str(self.directory)},
                start_new_session=True,
            )
        self.pid = self._kernel.pid

    def wait_until_booted(self, timeout_s: float = 90.0) -> None:
        """multi-user.target is reached; LabTimeout with the end of the console."""

        def booted() -> bool:
            if self._kernel is None or self._kernel.poll() is not None:
                raise LabError(f"{self.name} has died: {self.console()[-2000:]}")
            with suppress(LabError):
                return self._is_booted()
            return False

        try:
            wait_for(booted, timeout_s, f"{self.name} is booted", interval_s=0.2)
        except LabTimeout as error:
            raise LabTimeout(f"{error}: {self.console()[-2000:]}") from error
        self._measure_clock()

    def _is_booted(self) -> bool:
        argv = ("systemctl", "is-active", "-q", "multi-user.target")
        return self.control.run(argv, 3.0).returncode == 0

    def _measure_clock(self) -> None:
        """What to add to the node's boot clock to get the host's monotonic one."""
        before = time.monotonic()
        boot, _ = self.control.clocks()
        self._boot_offset_s = (before + time.monotonic()) / 2 - boot

    def host_time_s(self, boot_s: float) -> float:
        """The node's CLOCK_BOOTTIME (of this boot) as the host's time.monotonic()."""
        return boot_s + self._boot_offset_s

    def _pack(self) -> None:
        """What was written while the node was down goes in at this boot."""
        with tarfile.open(self.directory / "files.tar", "w") as tar:
            for tree in self._trees:
                tar.add(tree, arcname=".", filter=_as_root)
            for path, (data, mode) in self._pending.items():
                entry = tarfile.TarInfo(path.lstrip("/"))
                entry.size, entry.mode, entry.mtime = len(data), mode, int(time.time())
                tar.addfile(entry, io.BytesIO(data))
        self._pending.clear()
        self._trees.clear()

    def power_cut(self) -> None:
        """Off at once: cables first, then every process. Boot it again by boot()."""
        self.place.network.unplug_kernel(self.name)
        self._end()

    def shutdown(self, timeout_s: float = 90.0) -> None:
        """An orderly power-off: units are stopped, file systems unmounted and synced."""
        assert self._kernel is not None
        with suppress(LabError):  # the answer may be lost with the network
            self.run("systemctl", "poweroff", "--no-block", timeout_s=10.0)
        try:
            self._kernel.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise LabTimeout(f"{self.name} did not shut down within {timeout_s} s") from error
        self.place.network.unplug_kernel(self.name)
        self._end()

    def _end(self) -> None:
        # A SIGKILL to a frozen process waits for the thaw; the cables are out by then.
        self.thaw()
        kill_group(self.place.tag, self.name)
        if self._kernel is not None:
            self._kernel.wait(10.0)
        self.pid, self._kernel = 0, None
        for memory in self.directory.glob("vm_file-*"):
            memory.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop the machine, kernel included: its timers stand still, its clock goes on."""
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
        """SIGSTOP to every process of one unit: the kernel and its timers go on."""
        self.run("systemctl", "kill", "--signal=STOP", unit)

    def thaw_unit(self, unit: str) -> None:
        """SIGCONT to every process of one unit."""
        self.run("systemctl", "kill", "--signal=CONT", unit)

    # -- network -----------------------------------------------------------------------

    def partition(self, from_: Iterable[str] | None = None, bidirectional: bool = True) -> None:
        """Cut this node off from others by name (None: all other nodes and the host "client").

        With bidirectional=False only what this node sends is lost, it still hears.
        """
        others = self._others() if from_ is None else list(from_)
        pairs = [(self.name, other) for other in others]
        if bidirectional:
            pairs += [(other, self.name) for other in others]
        self.place.network.cut(pairs)

    def heal(self) -> None:
        """Undo every partition that names this node."""
        self.place.network.heal(self.name, self._others())

    def _others(self) -> list[str]:
        return [*(name for name in self.spec.cluster if name != self.name), "client"]

    # -- commands ----------------------------------------------------------------------

    def run(
        self,
        *argv: str,
        timeout_s: float = 60.0,
        check: bool = True,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node. LabTimeout kills it; check=True raises LabError."""
        if not self.pid:
            raise LabError(f"{self.name} is down: {shlex.join(argv)}")
        data = input.encode() if isinstance(input, str) else input or b""
        done = self.control.run(argv, timeout_s, data, env)
        if check and done.returncode != 0:
            raise LabError(
                f"{self.name}: {shlex.join(argv)}: exit {done.returncode}: "
                f"{done.stdout}{done.stderr}"
            )
        return done

    def sh(self, script: str, timeout_s: float = 60.0, check: bool = True) -> str:
        """The standard output of a shell script run in the node."""
        return self.run("/bin/bash", "-ec", script, timeout_s=timeout_s, check=check).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file; while the node is down it is there at the next boot, not on /persist."""
        if self.pid:
            self.run("install", "-D", "-m", f"{mode:o}", "/dev/stdin", path, input=text)
        else:
            self._pending[path] = (text.encode(), mode)

    def write_all(self, files: Files) -> None:
        """Several files at once; as `write`."""
        for path, (text, mode) in files.items():
            self._pending[path] = (text.encode(), mode)
        if self.pid:
            self._pack()
            data = (self.directory / "files.tar").read_bytes()
            self.run("tar", "-C", "/", "-xf", "-", input=data)

    def add_tree(self, tree: Path) -> None:
        """What lies below a directory of the host is below / after the next boot."""
        self._trees.append(tree)

    def read(self, path: str) -> str:
        """The text of a file."""
        return self.run("cat", path).stdout

    def is_active(self, unit: str) -> bool:
        return self.run("systemctl", "is-active", "-q", unit, check=False).returncode == 0

    def nfsd_threads(self) -> int:
        """Threads of the kernel's NFS server, as the kernel itself says."""
        script = "cat /proc/fs/nfsd/threads 2>/dev/null || echo 0"
        return int(self.sh(script).split()[0])

    def journal(self, unit: str | None = None, lines: int = 1000) -> str:
        """The last lines of a unit's journal (None: everything); of a node that is down or
        frozen what it forwarded to its console, of all units."""
        which = ("-u", unit) if unit else ()
        argv = ("journalctl", "--no-pager", "-q", "-o", "short-iso-precise", "-n", str(lines))
        with suppress(LabError):
            return self.run(*argv, *which, timeout_s=20.0, check=False).stdout
        return "\n".join(self.console().splitlines()[-lines:])

    def console(self) -> str:
        """What its kernel and journal said on the console, of all boots."""
        try:
            return (self.directory / "console").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for(
        self, predicate: Callable[[], T], timeout_s: float, what: str, interval_s: float = 0.2
    ) -> T:
        """The first truthy answer; LabTimeout names the node and what was waited for."""
        return wait_for(predicate, timeout_s, f"{self.name}: {what}", interval_s)

    # -- services ----------------------------------------------------------------------

    def consul_get(self, path: str, timeout_s: float = 10.0) -> Any:
        """The JSON that the node's own agent answers to GET /v1/PATH; LabError if it doesn't."""
        import json

        argv = ("/usr/bin/python3", "-IS", "-c", _ASK_CONSUL, path, str(timeout_s))
        return json.loads(self.run(*argv, timeout_s=timeout_s + 5).stdout)

    def consul_leader(self) -> str:
        """The Raft leader's address as this node's agent sees it; "" without one."""
        with suppress(LabError):
            return str(self.consul_get("status/leader", timeout_s=5.0))
        return ""

    def authorized_keys(self, others: Sequence[Node], command: str) -> None:
        """Let root of other nodes log in here, with one forced command."""
        lines = [
            f'restrict,command="{command}" {other.public_key("root")} root@{other.name}\n'
            for other in others
        ]
        self.write("/root/.ssh/authorized_keys", "".join(lines), 0o600)


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
