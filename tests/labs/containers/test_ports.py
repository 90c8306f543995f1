"""The ports' suites on a real service manager: the adapters run here, their `systemctl` in a node.

What is in the suites' own lists runs in tests/contract/ports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from standfast.clients.observation import Tie
from standfast.lease.files import NOTHING_HELD
from standfast.mounts.units import SystemdMountUnits
from standfast.replication.timers import ReplicationTimers, timer_of
from standfast.system.systemd import SystemdUnits
from tests.contract.ports import test_mount_units, test_schedule, test_units
from tests.labs.containers.lab import Lab
from tests.labs.containers.node import Container
from tests.support.checkout import CHECKOUT
from tests.support.configs import config_in
from tests.support.scripts import script
from tests.support.waiting import soon

UNITS = "/run/systemd/system"
UNIT = "held-to-the-contract@a-volume.service"
"""Of a template: systemd puts it into a slice whose name has backslashes, and requires that."""
REQUIRED = "required-by-it.service"


def held_to(suite: ModuleType) -> Callable[[type], type]:
    """The suite's tests, on the `scene` of the class."""

    def add(made: type) -> type:
        for name, value in vars(suite).items():
            if name.startswith("test_") and callable(value):
                setattr(made, name, staticmethod(value))
        return made

    return add


@pytest.fixture(scope="module")
def lab_node(lab_factory: Callable[..., Lab]) -> Iterator[Container]:
    lab = lab_factory(nodes=("n1",))
    yield lab["n1"]
    lab.close()


@pytest.fixture
def node(lab_node: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Container:
    """Its `systemctl` is the first on the path."""
    entered = f'exec nsenter -t {lab_node.pid} -a --wdns=/ systemctl "$@"'
    tool = script(tmp_path / "bin" / "systemctl", entered)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    return lab_node


def units_of(node: Container) -> SystemdUnits:
    return SystemdUnits(Path(f"/proc/{node.pid}/root{UNITS}"))


def unit(node: Container, name: str, text: str) -> None:
    node.write(f"{UNITS}/{name}", text)
    node.run("systemctl", "daemon-reload")


@held_to(test_units)
class TestUnits:
    @pytest.fixture
    def scene(self, node: Container) -> Iterator[test_units.Scene]:
        unit(node, REQUIRED, "[Service]\nExecStart=/bin/sleep infinity\n")
        text = f"[Unit]\nRequires={REQUIRED}\n[Service]\nExecStart=/bin/sleep infinity\n"
        unit(node, UNIT, text)

        def mask(name: str) -> None:
            node.sh(f"rm {UNITS}/{name} && systemctl mask --runtime -q {name}")

        yield test_units.Scene(
            units_of(node),
            UNIT,
            lambda: unit(node, UNIT, "[Service]\nType=oneshot\nExecStart=/bin/false\n"),
            lambda: mask(UNIT),
            lambda: mask(REQUIRED),
            REQUIRED,
        )
        names = f"{UNIT} {REQUIRED}"
        node.sh(f"systemctl stop {names} || true; systemctl reset-failed {names} || true")
        node.sh(f"systemctl unmask --runtime -q {names}; cd {UNITS}; rm -f {names}")
        node.run("systemctl", "daemon-reload")


@held_to(test_schedule)
class TestSchedule:
    @pytest.fixture
    def scene(self, node: Container, tmp_path: Path) -> Iterator[test_schedule.Scene]:
        config = config_in(tmp_path)
        name = "standfast-replicate@.timer"
        unit(node, name, (CHECKOUT / "systemd" / name).read_text())
        unit(node, name.replace("timer", "service"), "[Service]\nExecStart=/bin/true\n")
        units = units_of(node)
        timers = [timer_of(config, standby) for standby in config.standbys]

        def runs() -> bool:
            active = {units.is_active(timer) for timer in timers}
            assert len(active) == 1, "all of them or none"
            return active == {True}

        schedule = ReplicationTimers(config, units)
        yield test_schedule.Scene(schedule, runs)
        schedule.stop()


@held_to(test_mount_units)
class TestMountUnits:
    @pytest.fixture
    def scene(self, node: Container) -> test_mount_units.Scene:
        return test_mount_units.Scene(SystemdMountUnits(), Path("/nowhere/at/all"))


LIMITS = re.compile(
    r"(?m)^(?:Capability|Lock|Memory|NoNew|Private|Protect|Read|Restrict|SystemCall)\w*=.*\n"
)
AS_IN_A_REMOUNT = """set -e
mkdir /run/tried; mount -t tmpfs none /run/tried; mkdir /run/tried/a /run/tried/b
mount -o bind,nosuid,nodev -- /run/tried/a /run/tried/b
unshare -m --propagation private umount -l -i -c -- /run/tried/b
ls -l /proc/1/fd >/dev/null; getent ahosts localhost; systemctl show -P Id -- -.mount
chown 65534 /run/tried/a; su -s /bin/sh nobody -c "touch /run/tried/a/x"
"""
AS_THE_AGENT = """unshare --net --mount --propagation private mount -t tmpfs none /mnt
ss -K -tn state connected sport = :2049; nft list tables
"""


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("standfast-resync.service", ""),
        ("standfast-watch@.service", ""),
        ("standfast-agent@.service", AS_THE_AGENT),
    ],
)
def test_what_a_unit_mounts_within_its_limits_appears_on_the_host(
    node: Container, name: str, more: str
) -> None:
    """The containers have no NFS client: what a remount does beside the mount itself."""
    limits = "".join(LIMITS.findall((CHECKOUT / "systemd" / name).read_text()))
    assert limits.count("\n") > 8
    node.write("/run/tried.sh", AS_IN_A_REMOUNT + more)
    unit(node, UNIT, f"[Service]\nType=oneshot\n{limits}ExecStart=/bin/sh /run/tried.sh\n")
    try:
        node.run("systemctl", "start", UNIT)
        assert "nosuid,nodev" in node.sh("findmnt -n -o VFS-OPTIONS /run/tried/b")
        assert node.sh("stat -c %U /run/tried/a/x") == "nobody\n"
    finally:
        node.sh("umount -lR /run/tried || true; rm -r /run/tried")


AS_THE_LEASE_PROCESS = """set -e
readlink /proc/1/ns/net; kill $(systemctl show -P MainPID by-hand)
nft add table inet tried; nft delete table inet tried; ss -K -tn state connected sport = :2049
touch /run/tried
"""


@pytest.mark.parametrize("name", ["standfast-lease@.service", "standfast-lost@.service"])
def test_who_ends_the_server_sees_it_within_its_limits_and_can(node: Container, name: str) -> None:
    """Whose server it is its network tells, to those who may trace it; its user may be another."""
    limits = "".join(LIMITS.findall((CHECKOUT / "systemd" / name).read_text()))
    node.run("systemd-run", "-q", "--unit=by-hand", "--uid=nobody", "sleep", "999")
    node.write("/run/tried.sh", AS_THE_LEASE_PROCESS)
    unit(node, UNIT, f"[Service]\nType=oneshot\n{limits}ExecStart=/bin/sh /run/tried.sh\n")
    try:
        node.run("systemctl", "start", UNIT)
        node.wait_for(lambda: not node.is_active("by-hand"), 20.0, "it was ended")
    finally:
        node.sh("systemctl stop by-hand || true; systemctl reset-failed; rm -f /run/tried")


def test_the_unit_of_a_path_and_who_requires_it_are_known(node: Container) -> None:
    path, mount, units = Path("/mnt/contract"), "mnt-contract.mount", SystemdMountUnits()
    unit(
        node,
        mount,
        f"[Mount]\nWhat=tmpfs\nType=tmpfs\nWhere={path}\nOptions=noatime,x-systemd.automount\n"
        "[Install]\nWantedBy=multi-user.target\n",
    )
    unit(node, UNIT, f"[Unit]\nRequiresMountsFor={path}\n[Service]\nExecStart=/bin/sleep 999\n")
    try:
        assert units.dependants(path) == ()
        node.run("systemctl", "start", UNIT)
        assert units.options(path) == "noatime"
        assert units.dependants(path) == (UNIT,)
        assert units.active([UNIT, mount]) == (UNIT, mount)
        before = units_of(node).show(UNIT, "MainPID")
        units.restart([UNIT], soon(20.0))
        assert units_of(node).show(UNIT, "MainPID") != before
        assert units.tie(path) == Tie(unit=False), "it isn't enabled: nobody wants it at boot"
        node.run("systemctl", "enable", "--runtime", mount)
        assert units.tie(path) == Tie(unit=True)
    finally:
        node.sh(f"systemctl stop {UNIT} {mount}; systemctl disable --runtime {mount} || true")


LEASE_OF_A = "standfast-lease@a.service"
STAND_IN = """\
#!/bin/sh
case $1 in
  lease) . /run/lease-does ;;
  fence) touch /run/fenced ;;
esac
"""
"""For the product: `lease VOLUME` ends as /run/lease-does says."""


@pytest.fixture
def two_volumes(node: Container) -> Iterator[Container]:
    """The NFS server runs, for another volume than `a`, whose lease unit is the shipped one."""
    names = [f"standfast-{name}@.service" for name in ("lease", "ended", "lost")]
    node.write("/usr/local/bin/standfast", STAND_IN, 0o755)
    for name in names:
        unit(node, name, (CHECKOUT / "systemd" / name).read_text())
    node.run("systemctl", "start", "nfs-server")
    node.sh("rm -rf /run/fenced /run/standfast/a; mkdir -p /run/standfast/a")
    yield node
    node.sh(f"systemctl stop {LEASE_OF_A} nfs-server; systemctl reset-failed")
    node.sh(f"rm /usr/local/bin/standfast; cd {UNITS}; rm {' '.join(names)}")
    node.run("systemctl", "daemon-reload")


def fail_the_lease(node: Container, does: str) -> None:
    node.write("/run/lease-does", f"{does}\n")
    node.run("systemctl", "start", LEASE_OF_A, check=False)
    failed = ("systemctl", "is-failed", "-q", LEASE_OF_A)
    node.wait_for(lambda: node.run(*failed, check=False).returncode == 0, 30.0, "it has failed")
    node.wait_for(
        lambda: not node.sh("systemctl list-jobs --no-legend").strip(), 30.0, "what follows"
    )


HELD_NOTHING = f"touch /run/standfast/a/{NOTHING_HELD}"


@pytest.mark.parametrize("ends", ["exit 1", "exit 3", "kill -9 $$"])
def test_a_lease_process_that_held_nothing_stops_no_server_when_it_fails(
    two_volumes: Container, ends: str
) -> None:
    """Refused; without Consul, or killed, until systemd starts it no more."""
    fail_the_lease(two_volumes, f"{HELD_NOTHING}; {ends}")
    assert two_volumes.is_active("nfs-server")
    assert two_volumes.run("test", "-e", "/run/fenced", check=False).returncode != 0


@pytest.mark.parametrize(
    "ends",
    [
        "exit 1",
        "exit 3",
        "kill -9 $$",
        f"{HELD_NOTHING}; rm /run/standfast/a/{NOTHING_HELD}; systemd-notify --ready; exit 1",
    ],
)
def test_a_lease_process_that_fails_stops_the_server_unless_nothing_was_held(
    two_volumes: Container, ends: str
) -> None:
    fail_the_lease(two_volumes, ends)
    assert not two_volumes.is_active("nfs-server")
    two_volumes.run("test", "-e", "/run/fenced")
    left = two_volumes.sh("systemctl list-units --failed --no-legend --plain 'standfast-*'")
    assert [line.split()[0] for line in left.splitlines()] == [LEASE_OF_A]


def test_the_server_stops_though_nothing_can_be_run_for_it(two_volumes: Container) -> None:
    two_volumes.run("mv", "/bin/false", "/bin/false.away")
    try:
        fail_the_lease(two_volumes, "rm /usr/local/bin/standfast; kill -9 $$")
        assert not two_volumes.is_active("nfs-server")
    finally:
        two_volumes.run("mv", "/bin/false.away", "/bin/false")
        two_volumes.write("/usr/local/bin/standfast", STAND_IN, 0o755)
