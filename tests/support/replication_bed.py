"""Storage nodes on this machine, each with a btrfs in a file, for benchmark and soak (root).

Invariant: leaving the bed ends every process that it started, by id, and unmounts every disk. The
cycles are the product's: `standfast replicate` as a timer starts it, and `standfast receive` as
the replication key does, only without ssh between them; each node's `standfast receiver` is started
by its socket, as by systemd.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standfast.cli.receive import VARIABLE
from standfast.config.load import load
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import Holder, Leader, LeaderState, dump_epoch
from standfast.demo.consul.server import EmbeddedConsul
from standfast.demo.nodes import as_toml
from tests.support.commands import sh, wait_for
from tests.support.volumes import why_no_btrfs

VOLUME = "data-services"
STANDFAST = Path(sys.executable).parent / "standfast"
COMMAND_S = 600.0
MIB = 1 << 20
GIB = 1 << 30


def command(*argv: str | Path) -> str:
    """Standard output; LabError with what it said when it fails."""
    return sh(*argv, timeout_s=COMMAND_S)


@dataclass
class SparseDisk:
    """A btrfs in a sparse file."""

    image: Path
    mount: Path
    size_bytes: int

    def attach(self) -> None:
        """A fresh file system, mounted."""
        self.detach()
        self.image.unlink(missing_ok=True)
        self.mount.mkdir(exist_ok=True)
        with self.image.open("wb") as image:
            image.truncate(self.size_bytes)
        command("mkfs.btrfs", "-q", "-f", "-m", "single", self.image)
        command("mount", "-o", "loop", self.image, self.mount)

    def detach(self) -> None:
        if self.mount.is_mount():
            command("umount", self.mount)

    def sync(self) -> None:
        command("btrfs", "filesystem", "sync", self.mount)

    def written_bytes(self) -> int:
        """What its loop device was given to write since it was attached."""
        source = command("findmnt", "-no", "SOURCE", self.mount).strip()
        fields = Path(f"/sys/block/{Path(source).name}/stat").read_text().split()
        return int(fields[6]) * 512


@dataclass(frozen=True)
class MeasuredCycle:
    """One `standfast replicate` as a process; `peaks_mib` are its and its children's, by role."""

    seconds: float
    cpu_s: float
    sent_bytes: int
    full: bool
    peaks_mib: Mapping[str, float]


class CycleFailed(Exception):
    """A cycle ended in an error; the message is what it said."""


@dataclass
class Bed:
    """Nodes "a", "b", ... with their disks, configurations and a Consul of their own."""

    root: Path
    consul: EmbeddedConsul
    disks: dict[str, SparseDisk]
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """More configuration, by table; for every node."""

    # -- nodes -------------------------------------------------------------------------------

    @property
    def gateway(self) -> ConsulGateway:
        return ConsulGateway([self.consul.address("a")], timeout_s=5)

    def mount(self, node: str) -> Path:
        return self.disks[node].mount

    def live(self, node: str) -> Path:
        return self.mount(node) / "services"

    def directory(self, node: str, variant: str = "") -> Path:
        return self.root / "etc" / f"{node}{variant}"

    def config(self, node: str, variant: str = "") -> Config:
        return load(self.directory(node, variant) / f"{VOLUME}.toml")

    def environment(self, node: str, variant: str = "") -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if "CONSUL" not in key}
        return {**kept, "STANDFAST_CONFIG_DIR": str(self.directory(node, variant))}

    def configure(self, node: str, variant: str = "", **tables: Mapping[str, Any]) -> None:
        """Write a node's configuration; a variant has its own state, but the same trees."""
        disk, state = self.mount(node), self.root / "state" / f"{node}{variant}"
        receive = [
            *("env", f"STANDFAST_CONFIG_DIR={self.root}/etc/{{node}}"),
            f"{VARIABLE}={self.receiver_socket('{node}')}",
            *(str(STANDFAST), "receive", "{volume}"),
        ]
        base: dict[str, dict[str, Any]] = {
            "": {"cluster": "bed", "node": node},
            **{
                f"nodes.{name}": {"address": f"127.0.0.{number}"}
                for number, name in enumerate(self.disks, 1)
            },
            "paths": {
                "live": f"{disk}/services",
                "snapshots": f"{disk}",
                "standby": f"{disk}/services-standby",
                "bind": f"{state}/bind",
                "state": f"{state}/var",
                "run": f"{state}/run",
            },
            "consul": {"addresses": [self.consul.address(node)]},
            "replication": {"interval": 1, "command": receive},
        }
        directory = self.directory(node, variant)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{VOLUME}.toml").write_text(as_toml(base, self.tables, tables))

    def reset(self, *nodes: str) -> None:
        """These nodes' disks are new and empty, and they remember nothing."""
        for node in nodes:
            self.disks[node].attach()
            (self.mount(node) / "services-standby").mkdir()
        self.forget(*nodes)

    def forget(self, *nodes: str) -> None:
        """Their states are new, and their snapshots gone; the live trees stay."""
        for node in nodes:
            for path in self.mount(node).glob("services@*"):
                command("btrfs", "subvolume", "delete", "-c", path)
            for state in (self.root / "state").glob(f"{node}*"):
                shutil.rmtree(state)

    def lead(self, node: str, epoch: int) -> None:
        """Consul says that this node is primary."""
        config = self.config(node)
        leader = Leader(
            epoch, Holder(node, "boot-1"), 1, LeaderState.SERVING, tuple(sorted(self.disks))
        )
        self.gateway.put(config.key("epoch"), dump_epoch(epoch))
        self.gateway.put(config.key("leader"), leader.dump())

    def settle(self) -> None:
        """Nothing is left to be written, so that nobody pays for another's writes."""
        for disk in self.disks.values():
            if disk.mount.is_mount():
                disk.sync()
        os.sync()

    def receiver_socket(self, node: str) -> str:
        return f"{self.root}/{node}.sock"

    @contextlib.contextmanager
    def receiver(self, node: str) -> Iterator[int]:
        """What the socket unit and its service are for a node; the process's id."""
        path = self.receiver_socket(node)
        activate = ["systemd-socket-activate", "--seqpacket", "-l", path]
        activate += [f"--setenv=STANDFAST_CONFIG_DIR={self.directory(node)}"]
        activate += ["--setenv=JOURNAL_STREAM=8:15"]  # as a service's log goes to the journal
        with subprocess.Popen(
            [*activate, str(STANDFAST), "receiver"], stderr=subprocess.DEVNULL
        ) as process:
            try:
                wait_for(Path(path).exists, 10.0, f"{' '.join(activate)} listens", 0.01)
                yield process.pid
            finally:
                process.kill()

    # -- cycles ------------------------------------------------------------------------------

    def replicate(
        self, node: str, standby: str, *, full: bool = False, variant: str = ""
    ) -> MeasuredCycle:
        """Run one cycle to its end; CycleFailed with its words when it fails."""
        return self.start(node, standby, full=full, variant=variant)()

    def start(
        self, node: str, standby: str, *, full: bool = False, variant: str = ""
    ) -> Callable[[], MeasuredCycle]:
        """Start a cycle; call the result to wait for its end."""
        argv = [STANDFAST, "replicate", "--json", "--instance", f"{VOLUME}:{standby}"]
        argv += ["--full"] if full else []
        out, said = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        began = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=said,
            env=self.environment(node, variant),
        )
        watching = PeakMemory(process.pid)

        def wait() -> MeasuredCycle:
            with out, said:
                _, status, usage = os.wait4(process.pid, 0)
                seconds = time.monotonic() - began
                process.returncode = os.waitstatus_to_exitcode(status)
                peaks_mib = watching.stop()
                out.seek(0)
                said.seek(0)
                if process.returncode != 0:
                    raise CycleFailed(said.read().decode(errors="replace")[-2000:])
                [done] = json.loads(out.read())["replicated"]
            cpu_s = usage.ru_utime + usage.ru_stime
            return MeasuredCycle(seconds, cpu_s, done["sent_bytes"], done["full"], peaks_mib)

        return wait


class PeakMemory:
    """The largest resident size that each process below one ever had, sampled until `stop`."""

    SAMPLE_S = 0.05
    ROLES = ("replicate", "receive", "send")

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peaks_kib: dict[str, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> Mapping[str, float]:
        self._done.set()
        self._thread.join()
        return {role: kib / 1024 for role, kib in self._peaks_kib.items()}

    def _watch(self) -> None:
        while not self._done.wait(self.SAMPLE_S):
            self._look(self._pid)

    def _look(self, pid: int) -> None:
        with contextlib.suppress(OSError, StopIteration):
            proc = Path(f"/proc/{pid}")
            role = self._role(proc)
            status = (proc / "status").read_text().splitlines()
            peak = int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
            self._peaks_kib[role] = max(peak, self._peaks_kib.get(role, 0))
            for child in (proc / f"task/{pid}/children").read_text().split():
                self._look(int(child))

    def _role(self, proc: Path) -> str:
        words = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")
        kind = "btrfs" if words[0] == "btrfs" else "standfast"
        return " ".join([kind, *(word for word in words if word in self.ROLES)])


@contextlib.contextmanager
def bed(nodes: Mapping[str, int], tables: dict[str, dict[str, Any]] | None = None) -> Iterator[Bed]:
    """A bed whose nodes have disks of so many bytes each; "a" leads epoch 1. Needs root."""
    reason = why_no_btrfs()
    if reason is not None:
        raise SystemExit(f"LEFT OUT: {reason}")
    with ExitStack() as stack:
        root = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="standfast-", dir="/var/tmp"))
        )
        consul = stack.enter_context(EmbeddedConsul())
        disks = {}
        for number, (name, size_bytes) in enumerate(nodes.items(), 1):
            consul.add_agent(name, f"127.0.0.{number}")
            disks[name] = SparseDisk(root / f"{name}.img", root / name, size_bytes)
            stack.callback(disks[name].detach)
        made = Bed(root, consul, disks, tables or {})
        for name in nodes:
            made.configure(name)
            made.reset(name)
            stack.enter_context(made.receiver(name))
        made.lead("a", 1)
        yield made


# -- trees -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratedTree:
    """What is replicated: `size_bytes` in so many files of equal size, incompressible."""

    name: str
    files: int
    size_bytes: int = GIB
    seed: int = 1

    def build(self, root: Path) -> None:
        """Make it as a subvolume."""
        command("btrfs", "subvolume", "create", root)
        source = random.Random(self.seed)
        for number in range(self.files):
            path = self._path(root, number)
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as file:
                left = self.size_bytes // self.files
                while left > 0:
                    left -= file.write(source.randbytes(min(left, MIB)))

    def change(self, root: Path, share: float, seed: int) -> int:
        """Write so much of it anew, elsewhere each time; the bytes written."""
        source = random.Random(seed)
        each = self.size_bytes // self.files
        if self.files > 1:
            chosen = source.sample(range(self.files), round(self.files * share))
            for number in chosen:
                with self._path(root, number).open("r+b") as file:
                    file.write(source.randbytes(each))
            return each * len(chosen)
        block, count = 64 * 1024, round(each * share / (64 * 1024))
        with self._path(root, 0).open("r+b") as file:
            for number in source.sample(range(each // block), count):
                file.seek(number * block)
                file.write(source.randbytes(block))
        return block * count

    def _path(self, root: Path, number: int) -> Path:
        return root / f"{number // 200:03d}" / f"file-{number:05d}"
