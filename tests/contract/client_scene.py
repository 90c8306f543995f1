"""A client in a mount namespace of its own, with the kernel's real mounts; run by test_clients.

Two tmpfs stand in for the exports of two NFS servers: what this program sees of them is what an
NFS mount would show (kind, source, addr=), all else is real: lazy unmounts, bind mounts, tables of
other namespaces, open files of mounts that are gone. Prints what it found as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from standfast.clients import notes
from standfast.clients.loop import Outcome, Parts, Remount
from standfast.clients.ports import Namespace
from standfast.config.client import Client
from standfast.config.model import Config
from standfast.consul.gateway import Entry, Instance
from standfast.mounts import mounts as mounts_module
from standfast.mounts.mounts import KernelMounts
from standfast.mounts.processes import ProcProcesses
from standfast.mounts.units import NoMountUnits
from standfast.system.clock import Deadline, monotonic
from standfast.system.mountinfo import Mount
from tests.fakes.client import fsid, instance, keys_of
from tests.support.configs import config_in
from tests.support.waiting import soon, wait_for

HUNG_S = 600.0
"""So long a look at a mount that hangs takes."""
A, B = "192.168.1.2", "192.168.1.3"


def as_nfs(mount: Mount) -> Mount:
    """A stand-in's tmpfs as the NFS mount that it stands for."""
    if mount.kind != "tmpfs" or ":/" not in mount.source:
        return mount
    address = mount.source.partition(":")[0]
    return replace(mount, kind="nfs4", options=f"{mount.options},vers=4.2,hard,addr={address}")


class MountsStandIn(KernelMounts):
    """`servers` is where the exports lie; they show up in mount tables, too, and don't count."""

    def __init__(self, run_dir: Path, servers: Path) -> None:
        super().__init__(run_dir)
        self._servers = servers

    def _shown(self, mounts: Sequence[Mount]) -> tuple[Mount, ...]:
        outside = [m for m in mounts if not Path(m.point).is_relative_to(self._servers)]
        return tuple(map(as_nfs, outside))

    def here(self) -> Sequence[Mount]:
        return self._shown(super().here())

    def namespaces(self) -> Sequence[Namespace]:
        spaces = super().namespaces()
        return [replace(space, mounts=self._shown(space.mounts)) for space in spaces]

    def mount(self, source: str, path: Path, options: str, deadline: Deadline) -> None:
        super().bind(self._servers / source.partition(":")[0], path, deadline)


@dataclass
class Catalog:
    """Consul's answer."""

    listed: tuple[Instance, ...] = ()
    keys: dict[str, bytes] = field(default_factory=dict)

    def instances(
        self, service: str, *, consistent: bool = True, deadline: Deadline | None = None
    ) -> tuple[Instance, ...]:
        return self.listed

    def get(
        self, key: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> Entry | None:
        return Entry(key, self.keys[key], 1)

    def put(self, key: str, value: bytes, *, deadline: Deadline | None = None) -> None:
        """What a client tells of itself is read by nobody here."""


@dataclass
class Scene:
    root: Path
    config: Config
    catalog: Catalog
    mounts: MountsStandIn

    def run(self) -> Outcome:
        parts = Parts(self.config, self.catalog, self.mounts, NoMountUnits(), ProcProcesses())
        return Remount(parts, limit=soon(10.0)).run()

    def serve(self, address: str, epoch: int) -> None:
        self.catalog.listed = (instance(address, epoch, fsid(epoch)),)
        self.catalog.keys = keys_of(self.config, address, epoch)

    def shown(self, path: Path | None = None) -> str:
        return ((path or self.config.paths.bind) / "who").read_text()


def build(root: Path) -> Scene:
    config = structs.replace(
        config_in(root),
        node="client",
        client=Client(spread=0.0, manage="always", binds=(f"{root}/www",)),
    )
    for address in (A, B):
        export = root / "servers" / address
        export.mkdir(parents=True)
        source = f"{address}:{config.paths.live}"
        subprocess.run(["mount", "-t", "tmpfs", source, export], check=True, timeout=10)
        (export / "sub").mkdir()
        for directory in (export, export / "sub"):
            (directory / "who").write_text(address)
    return Scene(root, config, Catalog(), MountsStandIn(config.run_dir, root / "servers"))


def main(root: Path) -> dict[str, Any]:
    scene = build(root)
    path, www, other = scene.config.paths.bind, root / "www", root / "other"
    told: dict[str, Any] = {}
    scene.serve(A, 1)
    scene.run()
    told["first"] = scene.shown()
    for target in (www, other):
        target.mkdir()
        subprocess.run(["mount", "--bind", path / "sub", target], check=True, timeout=10)
    with ExitStack() as stack:
        file = stack.enter_context((path / "who").open())
        user = stack.enter_context(subprocess.Popen(["sleep", "60"], stdin=file))
        stack.callback(user.kill)
        boxed = stack.enter_context(subprocess.Popen(["unshare", "-m", "sleep", "60"]))
        stack.callback(boxed.kill)
        mine = Path("/proc/self/ns/mnt").readlink()
        wait_for(lambda: Path(f"/proc/{boxed.pid}/ns/mnt").readlink() != mine, 10.0, "a namespace")
        scene.serve(B, 2)
        outcome = scene.run()
        told |= {
            "said": outcome.said,
            "user": user.pid,
            "boxed": boxed.pid,
            "then": scene.shown(),
            "www": scene.shown(www),
            "other": scene.shown(other),
            "old_file": os.pread(file.fileno(), 99, 0).decode(),
            "layers": len([m for m in scene.mounts.here() if m.point in (str(path), str(www))]),
        }
        gone = notes.let_go(scene.config.run_dir)
        told["holders"] = [holder.pid for holder in ProcProcesses().holders(gone)]
        told["again"] = [step.do for step in scene.run().steps]
        told["hung_s"] = hung(scene)
        told["last"] = scene.shown()
    return told


def hung(scene: Scene) -> float:
    """The mounted server hangs, and another one serves: how long the way there takes, seconds.

    The mount's stand-in for hanging is a look that never ends, of any path of the old server.
    """
    hangs = (
        "import os, sys, time\nreal = os.statvfs\n"
        f"def look(p): open(p + '/who').read() == {B!r} and time.sleep({HUNG_S}); return real(p)\n"
        "os.statvfs = look\n"
    )
    real = mounts_module.PROBE
    mounts_module.PROBE = hangs + real
    try:
        waits = scene.run()
        assert waits.decision.reason == "server-away", waits
        begun = monotonic()
        scene.serve(A, 3)
        scene.run()
        return monotonic() - begun
    finally:
        mounts_module.PROBE = real


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
