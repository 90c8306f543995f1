"""A cluster of nodes on this machine, made in seconds and gone without a trace.

Invariant: leaving the context undoes everything, after a failure too; what a killed run
left behind is undone by the next lab.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.labs.containers.image import exchange_host_keys
from tests.labs.containers.node import PACE, Container, ContainerPlace
from tests.labs.shared.client import EXPORT
from tests.labs.shared.host import Claim, Needs
from tests.labs.shared.lab import Machines, addresses
from tests.labs.shared.network import Network
from tests.labs.shared.spec import Spec
from tests.support.checkout import CHECKOUT
from tests.support.commands import sh

NEEDS = Needs(
    lab="the container lab",
    root="overlay mounts, loop devices, network namespaces and systemd-nspawn (sudo make lab)",
    tools={
        "btrfs": "btrfs-progs",
        "ganesha.nfsd": "nfs-ganesha",
        "ip": "iproute2",
        "ipset": "ipset",
        "mkfs.btrfs": "btrfs-progs",
        "nfs-cat": "libnfs-utils",
        "nft": "nftables",
        "sshd": "openssh-server",
        "systemd-nspawn": "systemd-container",
    },
    device=Path("/dev/loop-control"),
    device_for="loop devices",
)


class Lab(Machines[Container]):
    """Nodes n1, n2, ... at 192.168.1.2, .3, ...; a client at 192.168.1.100."""

    pace = PACE

    def __init__(
        self,
        nodes: Sequence[str] = ("n1", "n2", "n3"),
        consul_config: Mapping[str, Any] | None = None,
        disk_bytes: int = 1 << 30,
    ) -> None:
        """consul_config is merged over the lab's own (see spec.consul_config)."""
        super().__init__(storage=nodes)
        self._consul_config = dict(consul_config or {})
        self._disk_bytes = disk_bytes

    def _build(self, claim: Claim) -> None:
        consul = Path(sh(CHECKOUT / "tests/tools/consul", timeout_s=180.0).split()[-1])
        network = Network(claim.tag)
        self._connect(network)
        # The checkout is bound even where the overlay shows it: edits during a run are safe,
        # and it may lie on another file system or below /tmp.
        binds = {CHECKOUT: str(CHECKOUT), consul.resolve(): "/usr/local/bin/consul"}
        place = ContainerPlace(claim.tag, claim.directory, network, binds)
        cluster = addresses(self.storage)
        for name, address in cluster.items():
            spec = Spec(name, address, cluster, self._consul_config)
            self.nodes[name] = Container(spec, place, self._disk_bytes)
        self.together(Container.create, self)
        exchange_host_keys(node.image for node in self)

    def _undo(self, claim: Claim) -> None:
        claim.release()
        for node in self:
            node.close()

    def servers(self) -> list[str]:
        """The addresses of the nodes, as a client's list of servers."""
        return [node.address for node in self]

    # -- NFS without the product ---------------------------------------------------------

    def nfs_write(self, server: str, path: str, data: bytes, timeout_s: float = 5.0) -> None:
        """Write a file from the client's host; see Client.nfs_write."""
        self.client.nfs_write(server, path, data, timeout_s)

    def nfs_read(self, server: str, path: str, timeout_s: float = 5.0) -> bytes:
        """Read a file from the client's host; see Client.nfs_read."""
        return self.client.nfs_read(server, path, timeout_s)

    # -- the product ---------------------------------------------------------------------

    def install(self, source: Path = CHECKOUT) -> None:
        """Put the product into every node, as its package would.

        source is a checkout with its `.venv`, or the prefix of a virtual environment into
        which a wheel was installed (bound into the nodes already if it lies in the checkout).
        """
        if (source / "pyproject.toml").exists():
            files = _from_checkout(source)
        else:
            files = _from_prefix(source)
        for node in self:
            for path, (text, mode) in files.items():
                node.write(path, text, mode)
            if node.pid:
                node.run("systemctl", "daemon-reload")


def _script(path: Path, interpreter: Path) -> str:
    """A deployed executable, which looks for its interpreter beside itself, as a node has it."""
    return path.read_text().replace('exec "$python"', f"exec {interpreter}")


def _files(directory: Path, to: str, mode: int = 0o644) -> dict[str, tuple[str, int]]:
    return {
        f"{to}/{path.relative_to(directory)}": (path.read_text(), mode)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _from_checkout(source: Path) -> dict[str, tuple[str, int]]:
    interpreter = source / ".venv/bin/python"
    # The nodes see the checkout read-only: without compiled files each start pays for it.
    argv = (interpreter, "-m", "compileall", "-q", source / "standfast")
    sh(*argv, check=False, timeout_s=120.0)
    scripts = [
        path
        for pattern in ("bin/*", "handlers/*", "exporters/*")
        for path in sorted(source.glob(pattern))
        if path.is_file() and path.read_bytes()[:2] == b"#!"
    ]
    files = {f"/usr/local/bin/{p.name}": (_script(p, interpreter), 0o755) for p in scripts}
    files |= _files(source / "systemd", "/etc/systemd/system")
    return files | _files(source / "watches", "/usr/share/standfast/watches")


def _from_prefix(prefix: Path) -> dict[str, tuple[str, int]]:
    share = prefix / "share/standfast"
    foreign = {"python", "python3", "pip", "pip3", "activate", "activate.csh", "activate.fish"}
    scripts = [
        path
        for path in sorted((prefix / "bin").iterdir())
        if path.is_file() and path.name not in foreign and path.read_bytes()[:2] == b"#!"
    ]
    interpreter = prefix / "bin/python"
    files = {f"/usr/local/bin/{p.name}": (_script(p, interpreter), 0o755) for p in scripts}
    files |= _files(share / "systemd", "/etc/systemd/system")
    return files | _files(share / "watches", "/usr/share/standfast/watches")


def ganesha_export(export_id: int, path: str = EXPORT, fsid: str = "1.1") -> str:
    """An export of nfs-ganesha that works on btrfs; path has to be a mount point.

    fsid is "major.minor" of two 64-bit numbers. It can't be changed by a reload: ganesha
    then drops the export.
    """
    return f"""\
EXPORT {{
  Export_Id = {export_id};
  Path = {path};
  Pseudo = {path};
  Filesystem_Id = {fsid};
  Protocols = 4;
  Access_Type = RW;
  Squash = No_Root_Squash;
  SecType = sys;
  FSAL {{ Name = VFS; }}
}}
"""


if sys.platform != "linux":
    raise ImportError("the lab runs on Linux only")
