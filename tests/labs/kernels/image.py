"""The nodes' base image: Debian, its user-mode kernel's modules, Consul; cached by its recipe.

Invariant: an image under its final name is whole, and two images with one name have one recipe;
nothing of the product is in it. Nodes never write to it, each has a copy-on-write layer of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.labs.shared.spec import CONSUL_UNIT, JOURNALD, MASKED, SSH_CONFIG, SSHD_CONFIG
from tests.support.checkout import CHECKOUT
from tests.support.commands import LabError, sh

CACHE = CHECKOUT / ".cache/kernel_lab"
GUEST = Path(__file__).with_name("guest")
KERNEL = Path("/usr/bin/linux.uml")
MODULES = Path("/usr/lib/uml/modules")
SUITE = "bookworm"
SIZE_BYTES = 2 << 30
KEEP_S = 86400.0
DISK = "/dev/ubdb"
AGENT_PORT = 7
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "kmod", "procps", "iproute2", "mount"),
    *("nfs-kernel-server", "nfs-common", "rpcbind", "btrfs-progs", "ipset", "iptables", "nftables"),
    *("openssh-server", "openssh-client", "python3", "ca-certificates", "util-linux", "zstd"),
)
# Other than in the container lab, rpcbind and the modules' loading are needed here.
NEEDED = ("rpcbind.service", "rpcbind.socket", "kmod-static-nodes.service", "nfs-common.service")
ALSO_MASKED = (
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "nfs-blkmap.service",
    "rpc-statd-notify.service",
    "rpc-statd.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-timesyncd.service",
    "systemd-update-done.service",
)
AGENT_UNIT = f"""\
[Unit]
Description=Runs commands for the lab
DefaultDependencies=no
After=systemd-remount-fs.service

[Service]
ExecStart=/usr/bin/python3 -I /usr/local/lib/lab/agent.py 0.0.0.0 {AGENT_PORT}
Restart=always
RestartSec=100ms
KillMode=process
OOMScoreAdjust=-1000
LimitNOFILE=65536
"""
PERSIST_MOUNT = f"""\
[Unit]
Description=The node's btrfs disk

[Mount]
What={DISK}
Where=/persist
Type=btrfs
"""
# Devices of every other kind cost seconds here and are used by nobody.
COLDPLUG = """\
[Service]
ExecStart=
ExecStart=udevadm trigger --action=add --subsystem-match=block --subsystem-match=net
"""
RESOLV_CONF = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
FILES: Mapping[str, tuple[str, int]] = {
    "/lab/init": ((GUEST / "init.sh").read_text(), 0o755),
    "/etc/systemd/system/lab-agent.service": (AGENT_UNIT, 0o644),
    "/etc/systemd/system/consul.service": (CONSUL_UNIT, 0o644),
    "/etc/systemd/system/persist.mount": (PERSIST_MOUNT, 0o644),
    "/etc/systemd/system/systemd-udev-trigger.service.d/lab.conf": (COLDPLUG, 0o644),
    "/etc/systemd/journald.conf.d/lab.conf": (
        f"{JOURNALD}ForwardToConsole=yes\nMaxLevelConsole=info\n",
        0o644,
    ),
    "/etc/ssh/sshd_config": (SSHD_CONFIG, 0o644),
    "/etc/ssh/ssh_config": (SSH_CONFIG, 0o644),
    "/etc/resolv.conf": (RESOLV_CONF, 0o644),
    "/etc/fstab": ("", 0o644),
}
LINKS: Mapping[str, str] = {
    "/etc/systemd/system/default.target": "/lib/systemd/system/multi-user.target",
    "/etc/systemd/system/sysinit.target.wants/lab-agent.service": "../lab-agent.service",
    "/etc/systemd/system/multi-user.target.wants/consul.service": "../consul.service",
    **{
        f"/etc/systemd/system/{unit}": "/dev/null"
        for unit in (*MASKED, *ALSO_MASKED)
        if unit not in NEEDED
    },
    **{
        f"/etc/systemd/system-generators/{name}": "/dev/null"
        for name in ("systemd-getty-generator", "systemd-gpt-auto-generator")
    },
}
# The role's server is started by the product, never by the boot.
GONE = (
    "etc/systemd/system/multi-user.target.wants/nfs-server.service",
    "etc/systemd/system/timers.target.wants",
    "etc/systemd/system/getty.target.wants",
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "etc/machine-id",
)


def consul_binary() -> Path:
    """The consul binary of the lab, fetched when the machine has none."""
    return Path(sh(CHECKOUT / "tests/tools/consul", timeout_s=180.0).split()[-1]).resolve()


def base_image() -> Path:
    """The image for this recipe, built at the first call (a minute or two)."""
    consul = consul_binary()
    recipe = {
        "suite": SUITE,
        "packages": PACKAGES,
        "files": FILES,
        "links": LINKS,
        "gone": GONE,
        "kernel": sh("dpkg-query", "-W", "-f", "${Version}", "user-mode-linux"),
        "consul": [consul.stat().st_size, consul.stat().st_mtime_ns],
        "size_bytes": SIZE_BYTES,
        "version": 2,
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    image = CACHE / f"base-{digest}.ext4"
    with _alone():
        if not image.exists():
            _build(image, consul)
        # Not the image itself: the nodes' layers refuse a base whose time has changed.
        image.with_suffix(".used").touch()
    return image


def preload() -> Path:
    """The library without which the user-mode kernel dies on newer processors: see xstate.c."""
    source = Path(__file__).with_name("xstate.c")
    library = CACHE / f"xstate-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    with _alone():
        if not library.exists():
            made = library.with_suffix(".new")
            sh("gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", made, source)
            made.rename(library)
    return library


@contextmanager
def _alone() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(image: Path, consul: Path) -> None:
    for used in CACHE.glob("base-*.used"):
        # A run that goes on may boot from it; nobody does after a day.
        if time.time() - used.stat().st_mtime > KEEP_S:
            used.with_suffix(".ext4").unlink(missing_ok=True)
            used.unlink()
    debs = CACHE / "debs"
    debs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build.", dir=CACHE) as directory:
        root, whole = Path(directory) / "root", Path(directory) / "image"
        sh(
            *("debootstrap", "--variant=minbase", f"--cache-dir={debs}"),
            *(f"--include={','.join(PACKAGES)}", SUITE, root, _mirror()),
            timeout_s=900.0,
        )
        _furnish(root, consul)
        sh("mkfs.ext4", "-q", "-d", root, whole, f"{SIZE_BYTES >> 10}k", timeout_s=300.0)
        whole.rename(image)


def _mirror() -> str:
    """The mirror from which this machine gets its own packages."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for path in (path for path in sources if path.is_file()):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] == ["URIs:"] or words[:1] == ["deb"]:
                for word in words[1:]:
                    if word.rstrip("/").endswith("/debian"):
                        return word
    raise LabError("no Debian mirror in /etc/apt/sources.list*: the kernel lab's image needs one")


def _furnish(root: Path, consul: Path) -> None:
    for gone in GONE:
        path = root / gone
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name, to in LINKS.items():
        link = root / name.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(to)
    for name, (text, mode) in FILES.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)
    for directory in ("persist", "data", "etc/consul.d", "etc/exports.d", "etc/standfast"):
        (root / directory).mkdir(exist_ok=True)
    shutil.copy2(consul, root / "usr/local/bin/consul")
    shutil.copytree(MODULES, root / "lib/modules", dirs_exist_ok=True, symlinks=True)
    # A locked root account would make sshd refuse the key.
    shadow = (root / "etc/shadow").read_text()
    (root / "etc/shadow").write_text(shadow.replace("root:*:", "root::", 1))
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
