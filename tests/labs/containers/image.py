"""A node's root: an overlay over the host's own, with a small system of its own on top.

Invariant: nothing that the host enabled, configured or keeps as state runs or shows in a
node; the directories named in `OWN` hold only what is written here or by a test.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from tests.labs.shared.spec import (
    CONSUL_UNIT,
    JOURNALD,
    MASKED,
    SSH_CONFIG,
    SSHD_CONFIG,
    Spec,
    consul_config,
)
from tests.support.commands import sh

OWN = (
    "etc/systemd/system",
    "etc/systemd/system-generators",
    "etc/ssh",
    "etc/ganesha",
    "etc/exports.d",
    "etc/consul.d",
    "etc/standfast",
    "root/.ssh",
    "usr/local/bin",
    "var/lib/consul",
    "var/lib/nfs",
    "var/lib/standfast",
    "var/lib/systemd",
    "var/log",
)
DISK = "/dev/lab-disk"

# ganesha.nfsd does not say when it is ready: the start waits until the port listens, so
# "active" here means what it means for the kernel's server.
NFS_UNIT = """\
[Unit]
Description=NFS server (lab: nfs-ganesha)
After=network.target local-fs.target

[Service]
RuntimeDirectory=ganesha
ExecStart=/usr/bin/ganesha.nfsd -F -L STDERR -f /etc/ganesha/ganesha.conf -p /run/ganesha/ganesha.pid
ExecStartPost=/bin/sh -c 'until ss -Hltn "sport = :2049" | grep -q .; do sleep 0.02; done'
ExecReload=/bin/kill -HUP $MAINPID
TimeoutStartSec=15
TimeoutStopSec=5

[Install]
WantedBy=multi-user.target
"""  # noqa: E501
GANESHA_CONF = """\
# Exports: one file per volume in exports.d. An empty directory is no error; a missing one
# or a file with a syntax error keeps the server from starting.
NFS_CORE_PARAM {
  Protocols = 4;
  Enable_NLM = false;
  Enable_RQUOTA = false;
  Enable_UDP = false;
}
NFSV4 {
  Graceless = true;
  Minor_Versions = 0,1,2;
}
%dir /etc/ganesha/exports.d
"""
PERSIST_MOUNT = f"""\
[Unit]
Description=The node's btrfs disk

[Mount]
What={DISK}
Where=/persist
Type=btrfs
Options=nosuid,nodev

[Install]
WantedBy=local-fs.target
"""


class Image:
    """The layers of one node below a directory of the lab."""

    def __init__(self, directory: Path, spec: Spec) -> None:
        self.directory = directory
        self.spec = spec
        self.upper = directory / "upper"
        self.root = directory / "root"

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of the image; only before `mount`, or while the node is down."""
        base = self.root if os.path.ismount(self.root) else self.upper
        target = base / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def link(self, path: str, to: str) -> None:
        target = self.upper / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(to)

    def build(self) -> None:
        """Fill the upper layer and mount the overlay."""
        work = self.directory / "work"
        for path in (self.upper, work, self.root):
            path.mkdir(parents=True)
        for own in OWN:
            path = self.upper / own
            path.mkdir(parents=True, exist_ok=True)
            os.setxattr(path, "trusted.overlay.opaque", b"y")
        for directory in ("var/tmp", "persist", "data"):
            (self.upper / directory).mkdir(parents=True, exist_ok=True)
        (self.upper / "root").chmod(0o700)
        (self.upper / "root/.ssh").chmod(0o700)
        (self.upper / "var/tmp").chmod(0o1777)
        self._identity()
        self._units()
        self._services()
        layers = f"lowerdir=/,upperdir={self.upper},workdir={work}"
        sh("mount", "-t", "overlay", "standfast-lab", "-o", layers, self.root)

    def _identity(self) -> None:
        spec = self.spec
        hosts = "".join(f"{address} {name}\n" for name, address in spec.cluster.items())
        self.write("etc/hosts", f"127.0.0.1 localhost\n{hosts}")
        self.write("etc/hostname", f"{spec.name}\n")
        self.write("etc/machine-id", f"{uuid.uuid4().hex}\n")
        self.write("etc/fstab", "")
        self.write("etc/resolv.conf", "")
        self.write("etc/environment", "")
        self.write("etc/systemd/journald.conf.d/lab.conf", JOURNALD)
        # The shell runs these before a forced command, and the host's (pyenv's, say) may wait for
        # a lock that a killed session left behind.
        for name in (".bashrc", ".bash_profile", ".bash_login", ".profile"):
            self.write(f"root/{name}", "")
        # A locked root account would make sshd refuse the key.
        shadow = Path("/etc/shadow").read_text().splitlines()
        lines = ["root:*:19000:0:99999:7:::", *(ln for ln in shadow if ln.split(":")[0] != "root")]
        self.write("etc/shadow", "\n".join(lines) + "\n", 0o640)

    def _units(self) -> None:
        for unit in MASKED:
            self.link(f"etc/systemd/system/{unit}", "/dev/null")
        # The host's generators would bring back what its fstab, rc.d and databases enable.
        for directory in ("/lib/systemd/system-generators", "/usr/lib/systemd/system-generators"):
            for generator in sorted(Path(directory).glob("*")):
                target = self.upper / "etc/systemd/system-generators" / generator.name
                if not target.is_symlink():
                    target.symlink_to("/dev/null")
        self.link("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target")
        self.write("etc/systemd/system/consul.service", CONSUL_UNIT)
        self.write("etc/systemd/system/nfs-server.service", NFS_UNIT)
        self.write("etc/systemd/system/persist.mount", PERSIST_MOUNT)
        self._enable("multi-user.target", "/etc/systemd/system/consul.service")
        self._enable("multi-user.target", "/lib/systemd/system/ssh.service")
        self._enable("local-fs.target", "/etc/systemd/system/persist.mount")

    def _enable(self, target: str, unit: str) -> None:
        self.link(f"etc/systemd/system/{target}.wants/{Path(unit).name}", unit)

    def _services(self) -> None:
        self.write("etc/consul.d/lab.json", json.dumps(consul_config(self.spec), indent=1))
        self.write("etc/ganesha/ganesha.conf", GANESHA_CONF)
        (self.upper / "etc/ganesha/exports.d").mkdir()
        (self.upper / "var/lib/nfs/ganesha").mkdir()
        self.write("etc/ssh/sshd_config", SSHD_CONFIG)
        self.write("etc/ssh/ssh_config", SSH_CONFIG)
        for key in ("etc/ssh/ssh_host_ed25519_key", "root/.ssh/id_ed25519"):
            comment = f"root@{self.spec.name}"
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", self.upper / key)

    def public_key(self, kind: str) -> str:
        """The public half of the node's "host" or "root" key, without the comment."""
        path = {"host": "etc/ssh/ssh_host_ed25519_key.pub", "root": "root/.ssh/id_ed25519.pub"}
        return " ".join((self.upper / path[kind]).read_text().split()[:2])


def exchange_host_keys(images: Iterable[Image]) -> None:
    """Every node knows every node's ssh host key, by name and by address."""
    images = list(images)
    known = "".join(
        f"{image.spec.name},{image.spec.address} {image.public_key('host')}\n" for image in images
    )
    for image in images:
        image.write("etc/ssh/ssh_known_hosts", known)
