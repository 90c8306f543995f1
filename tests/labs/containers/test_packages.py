"""The Debian packages on real nodes: built here twice, installed, upgraded under a writer, taken
away and installed again.

The tests of each of the two labs run in this order; nothing else is done to these labs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from tests.labs.containers.cluster import AGENT, FAST, LEASE, PRIMARY, VOLUME, ContainerCluster
from tests.labs.containers.drills import Writers
from tests.labs.containers.lab import Lab
from tests.labs.containers.node import Container
from tests.labs.shared.cluster import RECEIVER, UNITS
from tests.support.checkout import CHECKOUT
from tests.support.commands import Finished, sh
from tests.support.figures import note

pytestmark = pytest.mark.timeout(600)
OLD, NEW = "0.1.0~lab1", "0.1.0~lab2"
NAMES = ("standfast-client", "standfast")
DPKG_S = 180.0
EXPORTER = "standfast-exporter"
NFS = "nfs-server.service"
# What dpkg itself notes, what a node writes anyway, and directories, which may have been there.
NOT_OURS = (
    "var/lib/dpkg/",
    "var/lib/consul/",
    "var/lib/systemd/",
    "var/log/",
    "var/cache/",
    "tmp/",
)
OTHER_UNIT = """\
[Unit]
Description=A plain NFS server (lab: it only says that it runs)
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
[Install]
WantedBy=multi-user.target
"""
# As debhelper makes them for nfs-kernel-server.
OTHER_POSTINST = """\
#!/bin/sh
set -e
if deb-systemd-helper --quiet was-enabled nfs-server.service; then
  deb-systemd-helper enable nfs-server.service >/dev/null || true
fi
systemctl --system daemon-reload >/dev/null || true
deb-systemd-invoke start nfs-server.service >/dev/null || true
"""


@dataclass(frozen=True)
class Built:
    """Where the packages are, on the host and in the nodes."""

    old: tuple[str, ...]
    new: tuple[str, ...]


@pytest.fixture(scope="module")
def built() -> Built:
    """Both versions, of the checkout as it is."""
    sh("make", "--silent", "-C", CHECKOUT, "wheel", timeout_s=300.0)

    def build(version: str) -> tuple[str, ...]:
        said = sh(CHECKOUT / "tests/tools/deb", version, timeout_s=600.0).splitlines()
        files = [str(CHECKOUT / line) for line in said if line.startswith("dist/")]
        assert len(files) == len(NAMES), said
        return tuple(files)

    return Built(build(OLD), build(NEW))


def dpkg(node: Container, *words: str, check: bool = True) -> Finished:
    argv = ("dpkg", "--force-unsafe-io", *words)
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    return node.run(*argv, timeout_s=DPKG_S, check=check, env=env)


def state(node: Container, name: str) -> str:
    """As dpkg has it: `installed 0.1.0`, `config-files 0.1.0`, or empty."""
    what = "--showformat=${db:Status-Status} ${Version}"
    return node.run("dpkg-query", "--show", what, name, check=False).stdout.strip()


def units(node: Container, *options: str) -> set[str]:
    listing = node.sh(f"systemctl list-units --plain --no-legend {' '.join(options)} 'standfast*'")
    return {line.split()[0] for line in listing.splitlines()}


def left(node: Container) -> set[str]:
    """The files of the node's own layer, as paths below /."""
    upper = node.image.upper
    paths = (path for path in upper.rglob("*") if path.is_symlink() or not path.is_dir())
    names = {str(path.relative_to(upper)) for path in paths}
    return {name for name in names if not name.startswith(NOT_OURS)}


def ours(node: Container) -> str:
    """What is there of Standfast beside the volume's own data."""
    return node.sh(
        "find /etc /run /usr /var -xdev -name '*standfast*' -not -path '*/lib/dpkg/*' "
        "-not -path '/var/log/*' -not -path '/run/systemd/propagate/*'; "
        "nft list tables; systemctl list-unit-files --no-legend 'standfast*'",
        check=False,
    )


def as_a_machine(node: Container) -> None:
    """The host may be a container itself, whose packages may neither start nor stop anything."""
    node.run("rm", "-f", "/usr/sbin/policy-rc.d")


def pid(node: Container, unit: str) -> str:
    return node.sh(f"systemctl show --property=MainPID --value {unit}").strip()


# A node that serves by a plain NFS server of its own


@pytest.fixture(scope="module")
def plain(lab_factory: Callable[..., Lab]) -> Iterator[Container]:
    lab = lab_factory(nodes=("n1",))
    # The image has them, as the state outlives a boot; no agent ever ran here.
    as_a_machine(lab["n1"])
    lab["n1"].run("rmdir", "/var/lib/standfast", "/etc/standfast")
    yield lab["n1"]
    lab.close()


def test_an_installation_starts_nothing_and_a_plain_nfs_server_goes_on(
    plain: Container, built: Built
) -> None:
    plain.run("systemctl", "start", NFS)
    before = pid(plain, NFS)
    dpkg(plain, "--install", *built.old)
    assert (pid(plain, NFS), plain.is_active(NFS)) == (before, True)
    assert units(plain) == set()
    enabled = "systemctl list-unit-files --no-legend --state=enabled 'standfast*'"
    assert plain.sh(enabled, check=False) == ""
    # The guard is asked by now, and says that this server is none of its own.
    plain.run("systemctl", "restart", NFS)
    assert pid(plain, NFS) != before
    assert "no volume is configured on this node" in plain.journal(NFS)


def test_every_file_belongs_to_a_package_and_every_program_runs(plain: Container) -> None:
    for path in (
        "/usr/bin/standfast",
        "/usr/bin/nfs-server-guard",
        "/usr/lib/standfast/bin/python",
    ):
        assert plain.run("dpkg", "--search", path).stdout.startswith("standfast"), path
    found = plain.sh("find /usr/lib/standfast -type f | head -n 100000").split()
    listed = plain.sh(f"dpkg --listfiles {' '.join(NAMES)}").split()
    assert set(found) <= set(listed), "a program compiled, or wrote, something beside its package"
    assert not any("/pip" in path or "/ensurepip" in path for path in found)
    for program in ("standfast", "data-services-remount", "nfs-server-guard", EXPORTER):
        assert plain.run(program, "--help").stdout
    assert "epoch" in plain.sh("standfast config example")
    assert plain.sh("standfast completion zsh").startswith("#compdef")
    files = [f"/usr/lib/systemd/system/standfast-{name}@.service" for name in ("agent", "lease")]
    plain.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *files)


def test_with_a_configuration_the_guard_refuses_what_it_let_start_before(plain: Container) -> None:
    plain.run("systemctl", "stop", NFS)
    plain.sh("mkdir /etc/standfast; standfast config example >/etc/standfast/data-services.toml")
    assert plain.run("systemctl", "start", NFS, check=False).returncode != 0
    plain.sh(f"rm /etc/standfast/data-services.toml; systemctl reset-failed {NFS}")
    plain.run("systemctl", "start", NFS)
    # A configuration that is gone where an agent once ran is a doubt.
    plain.sh(f"mkdir /var/lib/standfast; systemctl stop {NFS}")
    assert plain.run("systemctl", "start", NFS, check=False).returncode != 0
    plain.sh(f"rmdir /var/lib/standfast; systemctl reset-failed {NFS}")


def test_a_purge_leaves_nothing_and_the_nfs_server_starts_as_before(plain: Container) -> None:
    dpkg(plain, "--purge", *reversed(NAMES))
    assert ours(plain) == ""
    assert [name for name in left(plain) if "standfast" in name] == []
    assert [state(plain, name) for name in NAMES] == ["", ""]
    plain.run("systemctl", "start", NFS)
    assert "ExecStartPre=" not in plain.sh(f"systemctl cat {NFS}")


def test_a_second_installation_is_as_the_first_and_leaves_as_little(
    plain: Container, built: Built
) -> None:
    before = left(plain)
    dpkg(plain, "--install", *built.new)
    assert state(plain, "standfast") == f"installed {NEW}"
    dpkg(plain, "--purge", *reversed(NAMES))
    assert left(plain) == before


def test_an_nfs_server_that_comes_with_the_packages_stays_down(
    plain: Container, built: Built
) -> None:
    """Its package, as debhelper makes it, is unpacked and configured in the same run."""
    plain.sh(f"systemctl stop {NFS}; rm /etc/systemd/system/{NFS}; systemctl daemon-reload")
    root = "/root/nfs-kernel-server"
    control = "Package: nfs-kernel-server\nVersion: 1:9\nArchitecture: all\nMaintainer: lab <l@l>\n"
    plain.write(f"{root}/DEBIAN/control", f"{control}Description: a stand-in\n")
    plain.write(f"{root}/DEBIAN/postinst", OTHER_POSTINST, 0o755)
    plain.write(f"{root}/lib/systemd/system/{NFS}", OTHER_UNIT)
    plain.run("dpkg-deb", "--build", "--root-owner-group", root)
    dpkg(plain, "--install", f"{root}.deb", *built.new)
    assert state(plain, "nfs-kernel-server") == "installed 1:9"
    assert not plain.is_active(NFS)
    assert plain.run("systemctl", "is-enabled", NFS, check=False).stdout.strip() == "disabled"
    dpkg(plain, "--purge", "nfs-kernel-server", *reversed(NAMES))


# A cluster that was installed by them


class Packaged(ContainerCluster):
    """A cluster whose nodes have the packages and nothing of the checkout."""

    built: Built

    def install(self) -> None:
        for node in self.lab:
            self.install_on(node)
        self.lab.together(self._start, self.lab)

    def install_on(self, node: Container) -> None:
        """As the guide says: the packages, the configuration, the keys' lines, directories."""
        as_a_machine(node)
        dpkg(node, "--install", *self.built.old)
        self.configure(node)
        for other in self.lab:
            if other is not node:
                node.authorize(other, f"standfast receive {VOLUME} --from {other.name}")
        node.sh("install -d -m 0700 /persist/services-standby; mkdir -p /data/services")

    def start_again(self, node: Container) -> None:
        self._start(node)

    def _start(self, node: Container) -> None:
        self.start_units(node, f"{AGENT} {RECEIVER} {UNITS} {EXPORTER}")


@pytest.fixture(scope="module")
def packaged(lab_factory: Callable[..., Lab], built: Built) -> Iterator[Packaged]:
    lab = lab_factory()
    cluster = Packaged(lab, FAST, "failover_cooldown = 0\nfailover_after = 60")
    cluster.built = built
    cluster.install()
    cluster.begin()
    yield cluster
    lab.close()


def test_a_cluster_of_packages_serves_and_runs_nothing_of_the_checkout(packaged: Packaged) -> None:
    node = packaged[PRIMARY]
    assert packaged.primary() == PRIMARY
    for unit in (AGENT, LEASE):
        link = node.sh(f"tr '\\0' ' ' </proc/{pid(node, unit)}/cmdline")
        assert link.startswith("/usr/lib/standfast/bin/python "), link
        assert str(CHECKOUT) not in node.sh(f"cat /proc/{pid(node, unit)}/maps")


def test_an_upgrade_restarts_everything_and_the_primary_serves_on(packaged: Packaged) -> None:
    epoch = packaged.epoch(PRIMARY)
    others = [node for node in packaged.lab if node.name != PRIMARY]
    with Writers(packaged.lab, "upgraded") as writers:
        writers.wait_for_ack(PRIMARY)
        for node in [*others, packaged[PRIMARY]]:
            running = [AGENT, EXPORTER, *([LEASE] if node.name == PRIMARY else [])]
            before = [pid(node, unit) for unit in running]
            dpkg(node, "--install", *packaged.built.new)
            assert state(node, "standfast") == f"installed {NEW}"
            node.wait_for(partial(node.is_active, AGENT), 60.0, "its agent is back")
            after = [pid(node, unit) for unit in running]
            assert not set(before) & set(after), "one was not restarted"
            writers.wait_for_ack(PRIMARY, after_s=time.monotonic())
        packaged.wait_for_role(PRIMARY, "primary")
    assert writers.served() == [PRIMARY]
    assert writers.missing(PRIMARY, [PRIMARY]) == []
    assert packaged.epoch(PRIMARY) == epoch
    note(f"upgrade of three nodes by packages: longest pause {writers.longest_pause_s():.1f} s")
    packaged.wait_until_replicated(PRIMARY)


def test_an_upgrade_to_what_refuses_the_configuration_restarts_nothing(packaged: Packaged) -> None:
    """As where a key was renamed: the old processes go on, and nobody's service ends."""
    node = packaged[PRIMARY]
    before = [pid(node, unit) for unit in (AGENT, LEASE)]
    node.sh(f"echo 'nobody_knows = 1' | cat - /etc/standfast/{VOLUME}.toml >/root/wrong; "
            f"cp /root/wrong /etc/standfast/{VOLUME}.toml")  # fmt: skip
    try:
        done = dpkg(node, "--install", *packaged.built.new)
        assert "NOTHING WAS RESTARTED" in done.stderr
        assert [pid(node, unit) for unit in (AGENT, LEASE)] == before
        assert packaged.lab.client.port_answers(node.address)
    finally:
        packaged.configure(node)
    dpkg(node, "--install", *packaged.built.new)
    assert not {pid(node, unit) for unit in (AGENT, LEASE)} & set(before)
    packaged.wait_for_role(PRIMARY, "primary")


def test_a_removal_from_the_primary_hands_the_role_over_and_leaves_a_plain_node(
    packaged: Packaged,
) -> None:
    node = packaged[PRIMARY]
    epoch = packaged.epoch(PRIMARY)
    packaged.wait_until_replicated(PRIMARY)
    with Writers(packaged.lab, "removed") as writers:
        writers.wait_for_ack(PRIMARY)
        dpkg(node, "--remove", "standfast")
        new = writers.wait_for_successor(PRIMARY)
        writers.wait_for_ack(new, after_s=time.monotonic())
    assert writers.served() == [PRIMARY, new]
    assert writers.missing(new, [PRIMARY, new]) == []
    assert packaged.epoch(new) == epoch + 1
    assert state(node, "standfast") == f"config-files {NEW}"
    # Of the client's package that is still there: its watch and its timer.
    assert units(node, "--state=active") == {
        f"standfast-watch@{VOLUME}.service",
        "standfast-resync.timer",
    }
    assert "standfast" not in node.sh("nft list tables")
    assert node.run("test", "-e", "/etc/nfs.conf.d/standfast.conf", check=False).returncode == 1
    node.run("systemctl", "start", NFS)
    node.run("systemctl", "stop", NFS)
    assert node.run("test", "-e", f"/var/lib/standfast/{VOLUME}/epoch", check=False).returncode == 0
    note(f"removal from the primary: longest pause {writers.longest_pause_s():.1f} s")


def test_a_removal_is_refused_where_nobody_can_take_the_role(packaged: Packaged) -> None:
    name = packaged.primary()
    [other] = [node for node in packaged.lab if node.name not in (PRIMARY, name)]
    other.run("systemctl", "stop", AGENT)  # Consul keeps its quorum
    try:
        with Writers(packaged.lab, "refused") as writers:
            writers.wait_for_ack(name)
            done = dpkg(packaged[name], "--remove", "standfast", check=False)
            writers.wait_for_ack(name, after_s=time.monotonic())
        assert done.returncode != 0
        assert "NOT REMOVED" in done.stderr and "standfast demote" in done.stderr
        assert state(packaged[name], "standfast") == f"installed {NEW}"
        assert writers.served() == [name]
    finally:
        other.run("systemctl", "start", AGENT)
    packaged.wait_for_role(name, "primary")


def test_a_purge_keeps_the_data_and_a_second_installation_is_a_standby_again(
    packaged: Packaged,
) -> None:
    node, primary = packaged[PRIMARY], packaged.primary()
    trees = node.sh("ls /persist").split()
    assert trees
    dpkg(node, "--purge", *reversed(NAMES))
    assert ours(node) == ""
    assert "standfast receive" not in node.read("/root/.ssh/authorized_keys")
    assert node.sh("ls /persist").split() == trees
    packaged.install_on(node)
    packaged.start_again(node)
    packaged.wait_for_role(PRIMARY, "standby")
    packaged.wait_until_replicated(primary)
