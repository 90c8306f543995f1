"""Three bare nodes and a client by `standfast setup`, a failover, and back to nothing.

The nodes have the wheel in a virtual environment, as the guide installs it, and nothing else. The
kernel's NFS client isn't there in a container: the client here has its mount in fstab.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.labs.containers.cluster import AGENT, FAST, LEASE, VOLUME, ContainerCluster
from tests.labs.containers.lab import Lab
from tests.labs.containers.node import Container
from tests.support.checkout import CHECKOUT
from tests.support.figures import note
from tests.support.pace import patient

STORAGE = ("n1", "n2", "n3")
CLIENT = "n4"
CONFIG = f"/etc/standfast/{VOLUME}.toml"
GIVEN = f"/root/{VOLUME}.toml"
SERVER = "nfs-server.service"
FSTAB = f"{VOLUME}.service.consul:/persist/services /data/services nfs4 noauto,vers=4.2,hard 0 0\n"
KEPT = "/etc /usr/local /usr/lib/systemd /var/lib /root/.ssh"
OURS = ("*standfast*", "*nfs-server-guard", "*/data-services*", "*/replication_key*")


def files_on(node: Container, places: str) -> str:
    """What has a name of ours below these places, a line each; no empty directories."""
    names = " -o ".join(f"-path '{pattern}'" for pattern in OURS)
    return node.sh(f"find {places} -xdev -not -type d '(' {names} ')' 2>/dev/null || true")


@pytest.fixture(scope="module")
def prefix() -> Iterator[Path]:
    """A virtual environment with the wheel, below the checkout, which the nodes see; the packages
    that it needs come from the one that runs the tests."""
    uv = Path(sys.executable).parent / "uv"
    base = CHECKOUT / ".cache/setup-lab"
    shutil.rmtree(base, ignore_errors=True)
    venv = base / "venv"
    locked = ("--no-build-isolation", "--python", sys.executable)

    def call(*argv: str | Path) -> None:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=patient(100.0))
        assert done.returncode == 0, done.stderr

    call(uv, "build", "-q", "--wheel", *locked, "--out-dir", base / "dist", CHECKOUT)
    [wheel] = (base / "dist").glob("*.whl")
    call(uv, "venv", "-q", "--python", sys.executable, venv)
    call(uv, "pip", "install", "-q", "--no-deps", "--compile-bytecode",
         "--python", venv / "bin/python", wheel)  # fmt: skip
    [here] = Path(sys.executable).parents[1].glob("lib/python*/site-packages")
    [there] = venv.glob("lib/python*/site-packages")
    for path in here.iterdir():
        known = "standfast" in path.name or path.suffix == ".pth" or (there / path.name).exists()
        if not known:
            (there / path.name).symlink_to(path)
    yield venv
    shutil.rmtree(base, ignore_errors=True)


class SetUp(ContainerCluster):
    """A cluster on which nothing is installed but a program that isn't on PATH."""

    def __init__(self, lab: Lab, prefix: Path) -> None:
        super().__init__(lab, FAST, "failover_cooldown = 0\nfailover_after = 6")
        self.program = str(prefix / "bin/standfast")

    @property
    def storage(self) -> list[Container]:
        return [self.lab[name] for name in STORAGE]

    def text(self) -> str:
        """The same file for every node, which is told by its host's name."""
        own = f'node = "{STORAGE[0]}"\n'
        text = self.configuration(self.lab[STORAGE[0]]).replace(own, "")
        return text.replace('ssh_key = "/root/.ssh/id_ed25519"\n', "")

    def setup(self, name: str, *argv: str, check: bool = True) -> tuple[int, str]:
        """Runs it by its path, as nothing leads to it yet."""
        done = self.lab[name].run(
            self.program, "setup", "--yes", *argv, timeout_s=patient(120.0), check=check
        )
        return done.returncode, done.stdout + done.stderr

    def uninstall(self, name: str, *argv: str, check: bool = True) -> tuple[int, str]:
        done = self.lab[name].run(
            self.program, "uninstall", *argv, timeout_s=patient(120.0), check=check
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def bare(lab_factory: Callable[..., Lab], prefix: Path) -> Iterator[SetUp]:
    """Four nodes; the NFS server of the storage nodes is enabled, as its package leaves it."""
    lab = lab_factory(nodes=(*STORAGE, CLIENT))
    made = SetUp(lab, prefix)
    for node in lab:
        node.write(GIVEN, made.text())
        for other in lab:
            if other is not node:
                node.authorize(other)  # the operator's own way from node to node
    for node in made.storage:
        node.run("systemctl", "enable", "-q", SERVER)
    lab[CLIENT].write("/etc/fstab", FSTAB)
    yield made
    lab.close()


@pytest.fixture(scope="module")
def running(bare: SetUp) -> SetUp:
    """Set up on every node, the keys exchanged, n1 the first primary."""
    for name in (*STORAGE, CLIENT):
        code, said = bare.setup(name, "--config", GIVEN)
        assert code == 0, f"{name}: {said}"
    for name in STORAGE:
        for other in STORAGE:
            if other != name:
                argv = ("standby", "add", other, "--install-key")
                bare.standfast(name, *argv, check=False)  # nobody is primary yet
    bare.promote_first()
    bare.wait_until_replicated("n1")
    return bare


def left_on(node: Container) -> str:
    """Everything of Standfast on a node, a line each."""
    units = node.sh("systemctl list-units --all --plain --no-legend 'standfast-*'")
    rules = node.sh("nft list ruleset | grep -i standfast || true")
    lines = node.sh("grep -h standfast /root/.ssh/authorized_keys || true")
    return files_on(node, f"{KEPT} /run") + units + rules + lines


# The order matters: each test goes on from where the one before left the cluster.


@pytest.mark.timeout(300)
def test_what_is_in_the_way_is_said_before_anything_is_changed(bare: SetUp) -> None:
    node = bare.lab["n2"]
    node.run("systemctl", "stop", "consul")
    node.write("/persist/services", "not a subvolume\n")
    try:
        code, said = bare.setup("n2", "--config", GIVEN, check=False)
        assert code == 1 and "setup-not-possible" in said
        assert "BAD      consul" in said and "is no btrfs subvolume" in said
        assert "-> " in said
        untouched = files_on(node, KEPT)
        assert untouched == "", untouched
        assert node.run("systemctl", "is-enabled", SERVER).stdout.strip() == "enabled"
    finally:
        node.run("rm", "/persist/services")
        node.run("systemctl", "start", "consul")
    bare.lab.wait_for_leader()
    bare.wait_for_voters()


@pytest.mark.timeout(300)
def test_one_command_sets_up_each_node_and_a_second_run_finds_all_done(bare: SetUp) -> None:
    for name in (*STORAGE, CLIENT):
        code, said = bare.setup(name, "--config", GIVEN)
        assert code == 0, f"{name}: {said}"
        node = bare.lab[name]
        assert node.read(CONFIG) == bare.text()
        assert node.is_active(f"standfast-watch@{VOLUME}")
        again = bare.setup(name)[1]
        assert "everything is done already" in again, again
        assert "done     " not in again.replace("done     check", ""), again
    for name in STORAGE:
        node = bare.lab[name]
        assert node.is_active(AGENT)
        assert node.run("systemctl", "is-enabled", SERVER, check=False).stdout.strip() == "disabled"
        assert "nfs-server-guard" in node.run("systemctl", "cat", SERVER).stdout
        assert node.sh("command -v standfast").strip() == "/usr/local/bin/standfast"
        assert node.sh("stat -c %a /persist/services-standby").strip() == "700"
        refused = node.run("systemctl", "start", SERVER, check=False)
        assert refused.returncode != 0, "the guard refuses while nobody has the role"
    client = bare.lab[CLIENT]
    assert not client.is_active(AGENT)
    assert "data-services.mount" not in client.sh("ls /etc/systemd/system")


@pytest.mark.timeout(300)
def test_a_node_that_was_set_up_so_serves_and_takes_over(running: SetUp) -> None:
    lab = running.lab
    lab.nfs_write(lab["n1"].address, "before", b"written before\n")
    running.wait_until_replicated("n1")
    lab["n1"].power_cut()
    new = lab.wait_for(running.primary, patient(60.0), "another node has taken over")
    assert new in ("n2", "n3")
    assert lab.nfs_read(lab[new].address, "before", patient(30.0)) == b"written before\n"
    lab.boot([lab["n1"]])
    running.wait_for_role("n1", "standby")
    assert "everything is done already" in running.setup("n1")[1]
    assert "everything is done already" in running.setup(new)[1]
    running.wait_for_role(new, "primary")


@pytest.mark.timeout(600)
def test_uninstall_takes_each_node_back_and_leaves_the_data(running: SetUp) -> None:
    lab = running.lab
    running.wait_for_voters()
    primary = running.primary()
    standbys = [name for name in STORAGE if name != primary]

    code, said = running.uninstall(primary, "--yes", check=False)
    assert code == 1 and "serving: this node is the primary" in said
    assert running.uninstall(primary, "--package", check=False)[0] == 1
    code, said = running.uninstall(standbys[0], "--yes", "--cluster", check=False)
    assert code == 1 and "still-in-use" in said

    dry = running.uninstall(standbys[0], "--dry-run")[1]
    assert "would    stop" in dry and lab[standbys[0]].is_active(AGENT)
    # As the removal of a package does it; then the rest.
    running.uninstall(standbys[0], "--package")
    node = lab[standbys[0]]
    assert not node.is_active(AGENT)
    assert node.read(CONFIG), "what is a package's own to delete stays"
    for name in (CLIENT, *standbys):
        code, said = running.uninstall(name, "--yes")
        assert code == 0, said
        assert left_on(lab[name]).split() == [], f"{name}: {left_on(lab[name])}"
    running.wait_for_role(primary, "primary")
    assert lab.nfs_read(lab[primary].address, "before", patient(30.0)) == b"written before\n"

    running.standfast(primary, "demote", "--reason", "the end", timeout_s=patient(60.0))
    code, said = running.uninstall(primary, "--yes", "--cluster")
    assert code == 0, said
    assert "retired" in said and "btrfs subvolume delete" in said
    assert left_on(lab[primary]).split() == [], left_on(lab[primary])
    assert not lab[primary].is_active(LEASE)

    for name in STORAGE:
        node = lab[name]
        assert node.sh("ls -d /persist/services-standby/services@* /persist/services* || true")
        assert node.run("systemctl", "is-enabled", SERVER).stdout.strip() == "enabled"
        node.run("systemctl", "start", SERVER)  # nobody is asked any more
        assert node.is_active(SERVER)
        node.run("systemctl", "stop", SERVER)
    keys = lab["n1"].consul("kv", "get", "-recurse", "-keys", "standfast", check=False)
    assert keys == "", keys
    services = json.dumps(lab["n1"].consul_get("catalog/services"))
    assert VOLUME not in services, services
    again = running.uninstall(primary, "--yes")[1]
    assert "nothing of Standfast is left here" in again, again
    note("a wheel, one `standfast setup` a node, and back to nothing")
