"""A node: a machine with a kernel of its own that can be cut, frozen, partitioned and booted.

Invariant: what survives a power cut is what its kernel had written to its two disks (the root's
layer and the data's btrfs); memory, page cache, network and unsynced data don't.
"""

from __future__ import annotations

import io
import tarfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.labs.kernels.control import Control
from tests.labs.kernels.image import GUEST, KERNEL
from tests.labs.kernels.network import KernelNetwork, control_address
from tests.labs.shared import node
from tests.labs.shared.network import PREFIX, mac
from tests.labs.shared.node import Machine, Pace
from tests.labs.shared.spec import Spec
from tests.support.commands import Finished, LabError, sh, wait_for

PACE = Pace(
    command_s=60.0,
    consul_s=10.0,
    leader_s=5.0,
    election_s=90.0,
    product_s=120.0,
    poll_s=0.2,
    pause_s=1.0,
)


@dataclass(frozen=True, slots=True)
class VirtualMachinePlace(node.Place):
    """What a node shares with its lab."""

    network: KernelNetwork
    base: Path
    preload: Path
    memory_mib: int


class VirtualMachine(Machine):
    """A virtual machine."""

    pace = PACE
    place: VirtualMachinePlace

    def __init__(self, spec: Spec, place: VirtualMachinePlace, disk_bytes: int = 0) -> None:
        """disk_bytes: size of the data disk (btrfs, /persist); 0: none."""
        super().__init__(spec, place)
        self.control = Control(place.network, spec.name, spec.address)
        self._disk_bytes = disk_bytes
        self._pending: dict[str, tuple[bytes, int]] = {}
        self._trees: list[Path] = []
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

    def boot(self, timeout_s: float = 180.0) -> None:
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
        vectors = [
            f"vec{i}:transport=tap,ifname={port},mac={mac(address)},gro=1"
            for i, (port, address) in enumerate(zip(ports, addresses, strict=True))
        ]
        disk = [f"ubd1={self._disk}"] if self._disk_bytes else []
        argv = [
            *("nsenter", f"--net=/run/netns/{self.place.network.bridge}", "--"),
            *("env", f"LD_PRELOAD={self.place.preload}"),
            *(str(KERNEL), f"mem={self.place.memory_mib}M", "root=/dev/ubda", "rw"),
            *(f"ubd0={self.directory}/root.cow,{self.place.base}", *disk, *vectors),
            *("init=/lab/init", f"lab={self.directory}", "random.trust_bootloader=1", "quiet"),
            *("con=null", "con0=null,fd:1", "ssl=null", "console=tty0", "panic=1"),
            *("systemd.show_status=0", f"uml_dir={self.directory}/uml/", f"umid={self.name}"),
        ]
        # Its memory is a file below TMPDIR: on the lab's own tmpfs.
        self.pid = self._spawn(argv, {"TMPDIR": str(self.directory)}).pid

    def wait_until_booted(self, timeout_s: float = 180.0) -> None:
        """multi-user.target is reached."""

        def booted() -> bool:
            self._check_alive()
            with suppress(LabError):
                return self._is_booted()
            return False

        wait_for(booted, timeout_s, f"{self.name}: boot: multi-user.target is reached", 0.2)
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

    def shutdown(self, timeout_s: float = 180.0) -> None:
        """An orderly power-off: units are stopped, file systems unmounted and synced."""
        with suppress(LabError):  # the answer may be lost with the network
            self.run("systemctl", "poweroff", "--no-block", timeout_s=10.0)
        self._wait_for_end(timeout_s)
        self.place.network.unplug_kernel(self.name)
        self._end()

    def _end(self) -> None:
        self._kill()
        for memory in self.directory.glob("vm_file-*"):
            memory.unlink(missing_ok=True)

    def _others(self) -> list[str]:
        """The other nodes and the client: whoever is on the bridge."""
        return self._everybody()

    # -- commands ----------------------------------------------------------------------

    def _run(
        self, argv: Sequence[str], timeout_s: float, data: bytes, env: Mapping[str, str]
    ) -> Finished:
        return self.control.run(argv, timeout_s, data, env)

    def _write_down(self, path: str, text: str, mode: int) -> None:
        self._pending[path] = (text.encode(), mode)

    def add_tree(self, tree: Path) -> None:
        """What lies below a directory of the host is below / after the next boot."""
        self._trees.append(tree)

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

    def authorized_keys(self, others: Sequence[VirtualMachine], command: str) -> None:
        """Let root of other nodes log in here, with one forced command, in which {} is the node's
        name, and only from its address."""
        lines = [
            f'restrict,from="{other.address}",command="{command.format(other.name)}" '
            f"{other.public_key('root')} root@{other.name}\n"
            for other in others
        ]
        self.write("/root/.ssh/authorized_keys", "".join(lines), 0o600)


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
