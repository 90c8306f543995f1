"""Each problem that doctor names, made on a real btrfs, seen to do harm, and mended by its fix."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from msgspec import structs

from standfast.btrfs import info as btrfs_info
from standfast.btrfs import quota
from standfast.btrfs.store import BtrfsStore
from standfast.config.advice import is_mount_point
from standfast.config.model import Config
from standfast.doctor.storage_checks import look
from standfast.errors import CommandFailed, Refused
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.replication.preflight import Problem, problems
from standfast.replication.storage_facts import Facts, facts_here
from standfast.system.clock import utc_now
from tests.support import needs
from tests.support.scripts import script
from tests.support.volumes import btrfs_on_file, command, config_for, require_btrfs

MIB = 2**20
FOREIGN = "11111111-2222-4333-8444-555555555555"


@dataclass
class BtrfsNode:
    """A node with a btrfs of its own, `image`, mounted at `root`."""

    image: Path
    root: Path
    config: Config

    @property
    def store(self) -> BtrfsStore:
        return BtrfsStore(self.config.paths)

    @property
    def live(self) -> Path:
        return self.config.paths.live

    def facts(self) -> Facts:
        return facts_here(self.config, self.store)

    def problems(self) -> list[Problem]:
        return problems(self.facts())

    def the_problem(self) -> Problem:
        [problem] = self.problems()
        return problem

    def with_paths(self, **paths: Path) -> BtrfsNode:
        return replace(
            self,
            config=structs.replace(self.config, paths=structs.replace(self.config.paths, **paths)),
        )

    def take(self) -> Snapshot:
        return self.store.take_snapshot(SnapshotName.at("services", utc_now()))

    def receive(
        self, source: BtrfsNode, snapshot: Snapshot, parent: Snapshot | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        argv = source.store.send_argv(snapshot, parent)
        sent = subprocess.run(argv, capture_output=True, check=True).stdout
        staging = self.store.open_staging()
        if parent is not None:
            self.store.prepare_parent(parent.content_id)
        argv = self.store.receive_argv(staging)
        return subprocess.run(argv, input=sent, capture_output=True)


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[[str], BtrfsNode]]:
    require_btrfs()
    with contextlib.ExitStack() as stack:

        def make(name: str) -> BtrfsNode:
            root, image = tmp_path / name, tmp_path / f"{name}.img"
            stack.enter_context(btrfs_on_file(image, root))
            command("btrfs", "subvolume", "create", root / "services")
            (root / "services" / "f").write_text("one")
            config = config_for(root, name, nodes=("n1", "n2"))
            return BtrfsNode(image, root, config)

        yield make


@pytest.fixture
def node(make_node: Callable[[str], BtrfsNode]) -> BtrfsNode:
    return make_node("n1")


def sh(script: str) -> None:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_fresh_volume_is_well_before_and_after_the_first_receive(node: BtrfsNode) -> None:
    facts = node.facts()
    assert node.problems() == [] and facts.progs is not None and facts.free_bytes > 0
    assert set(facts.file_systems.values()) == {facts.file_systems["live"]} != {None}
    node.store.open_staging()
    assert node.problems() == []
    assert all(finding.ok for finding in look(node.config))


def test_the_standby_directory_is_made_a_subvolume_and_a_plain_one_will_do(node: BtrfsNode) -> None:
    standby = node.config.paths.standby
    node.store.open_staging()
    assert btrfs_info.read(standby) is not None
    plain = node.with_paths(standby=node.root / "plain")
    (node.root / "plain").mkdir()
    snapshot = node.take()
    assert plain.receive(node, snapshot).returncode == 0
    assert plain.store.publish(snapshot.name).content_id == snapshot.content_id
    assert plain.problems() == []


def test_to_mountd_a_subvolume_is_a_mount_point(node: BtrfsNode) -> None:
    """So the export option `mp` without a path is in nobody's way."""
    assert is_mount_point(str(node.live)) and is_mount_point(str(node.root))
    (node.live / "app").mkdir()
    assert not is_mount_point(str(node.live / "app"))


def test_nested_subvolumes_are_named_and_the_fix_turns_them_into_directories(
    node: BtrfsNode,
) -> None:
    nested = node.live / "db"
    command("btrfs", "subvolume", "create", nested)
    (nested / "rows").write_text("all")
    problem = node.the_problem()
    assert problem.check == "nested" and problem.grave and "services/db" in problem.evidence
    with pytest.raises(Refused):
        node.take()
    [steps] = [problem.fix.removeprefix("for each: ").partition(" (or")[0]]
    sh(f"cd {node.live}; {steps.replace('SUB', 'db')}")
    assert node.problems() == []
    assert (node.take().path / "db" / "rows").read_text() == "all"


def test_a_live_tree_with_a_received_uuid_is_found_and_the_fix_leaves_its_identity(
    node: BtrfsNode,
) -> None:
    before = btrfs_info.read(node.live)
    assert before is not None
    btrfs_info.mark_received(node.live, FOREIGN)
    problem = node.the_problem()
    assert problem.check == "received" and problem.grave and FOREIGN in problem.evidence
    inherited = node.root / "inherited"
    command("btrfs", "subvolume", "snapshot", "-r", node.live, inherited)
    info = btrfs_info.read(inherited)
    assert info is not None and info.content_id == FOREIGN  # the harm
    with pytest.raises(Refused, match="doctor"):
        node.take()
    sh(problem.fix.removeprefix("when nobody writes: ").partition(" (")[0])
    assert node.problems() == []
    assert btrfs_info.read(node.live) == before
    assert node.take().content_id != FOREIGN


def test_a_bind_mount_of_a_mere_directory_hides_parents_and_the_fix_shows_them(
    make_node: Callable[[str], BtrfsNode], tmp_path: Path
) -> None:
    a, b = make_node("n1"), make_node("n2")
    seen = tmp_path / "seen"
    hidden = b.root / "services-standby"
    hidden.mkdir()
    seen.mkdir()
    there = b.with_paths(standby=seen)
    first = a.take()
    second = a.take()
    with mounted("--bind", hidden, seen):
        assert there.receive(a, first).returncode == 0
        there.store.publish(first.name)
        problem = there.the_problem()
        assert problem.check == "mounts" and str(seen) in problem.evidence
        done = there.receive(a, second, first)
        assert done.returncode != 0 and b"default subvolume" in done.stderr  # the harm
    as_subvolume(hidden)
    with mounted("--bind", hidden, seen):
        assert there.problems() == []
        assert there.receive(a, second, first).returncode == 0
        assert there.store.publish(second.name).content_id == second.content_id


@contextlib.contextmanager
def mounted(*argv: str | Path) -> Iterator[None]:
    command("mount", *argv)
    try:
        yield
    finally:
        command("umount", argv[-1])


def as_subvolume(directory: Path) -> None:
    """Make a directory of snapshots a subvolume: they can't be moved, so it is received anew."""
    for snapshot in directory.glob("*@*"):
        inside = directory.with_name(f"{directory.name}.new")
        command("btrfs", "subvolume", "create", inside)
        command("btrfs", "subvolume", "snapshot", "-r", snapshot, inside / snapshot.name)
        command("btrfs", "subvolume", "delete", snapshot)
        shutil.rmtree(directory)
        inside.rename(directory)


def test_a_standby_directory_on_a_mount_of_its_own_takes_a_failback(
    make_node: Callable[[str], BtrfsNode], tmp_path: Path
) -> None:
    a, b = make_node("n1"), make_node("n2")
    first = a.take()
    assert b.receive(a, first).returncode == 0
    base = b.store.publish(first.name)
    command("btrfs", "subvolume", "delete", b.live)
    b.store.create_live_from(base)
    (b.live / "f").write_text("two")
    second = b.take()
    command("btrfs", "subvolume", "create", a.root / "received")
    device = command("findmnt", "-no", "SOURCE", a.root).strip()
    mount = tmp_path / "own"
    mount.mkdir()
    with mounted("-o", "subvol=received", device, mount):
        apart = a.with_paths(standby=mount)
        assert apart.problems() == []
        # Its parent lies outside of the mount: `btrfs receive` alone would not reach it.
        done = apart.receive(b, second, base)
        assert done.returncode == 0, done.stderr
        assert (apart.store.publish(second.name).path / "f").read_text() == "two"


def test_paths_on_another_file_system_or_on_none_are_found(
    make_node: Callable[[str], BtrfsNode], tmp_path: Path
) -> None:
    a, b = make_node("n1"), make_node("n2")
    two = a.with_paths(standby=b.root / "services-standby")
    assert two.the_problem().check == "disk" and "different" in two.the_problem().evidence
    missing = tmp_path / "unmounted" / "services"
    missing.parent.mkdir()
    none = a.with_paths(live=missing, snapshots=missing.parent)
    assert "no btrfs at" in none.the_problem().evidence


@needs.tool("blkid", "util-linux")
def test_a_copy_of_the_disk_is_found_and_the_fix_makes_it_another_file_system(
    node: BtrfsNode, tmp_path: Path
) -> None:
    command("sync", "-f", node.root)
    copy = tmp_path / "copy.img"
    shutil.copyfile(node.image, copy)
    device = command("losetup", "-f", "--show", copy).strip()  # attached, never mounted
    try:
        problem = node.the_problem()
        assert problem.check == "copies" and device in problem.evidence
        command("btrfstune", "-f", "-u", device)
        assert node.problems() == []
    finally:
        command("losetup", "-d", device)


def test_what_only_root_may_ask_is_said_not_to_be_known(
    node: BtrfsNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = "[ $1 = --version ] && echo btrfs-progs v6.2 && exit; echo not permitted >&2; exit 1"
    tool = script(tmp_path / "bin" / "btrfs", refuses)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    [finding] = look(node.config)
    assert not finding.ok and "not known" in finding.evidence and finding.fix


def test_without_btrfs_progs_that_is_the_finding_and_all_else_is_looked_at(
    node: BtrfsNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    bad, *others = look(node.config)
    assert bad.check == "tools" and "no program `btrfs`" in bad.evidence
    assert bad.fix == "install btrfs-progs"
    assert others and all(finding.ok for finding in others)


def test_what_no_snapshot_carries_is_told_with_its_paths(node: BtrfsNode) -> None:
    sh(f"cd {node.live}; mkdir db; chattr +C db; touch f; chattr +i f; sync")
    problem = node.the_problem()
    assert problem.check == "flags" and "+i f, +C db" in problem.evidence
    sh(f"cd {node.live}; chattr -C db; chattr -i f; sync")
    assert node.problems() == []
    sh(f"btrfs quota enable {node.live}; btrfs qgroup limit 100M {node.live}")
    problem = node.the_problem()
    assert problem.check == "limit" and "100 MiB" in problem.evidence
    sh(problem.fix.partition("end it: ")[2])
    assert node.problems() == []


@pytest.mark.parametrize("kind", ["", "-e"], ids=["referenced", "exclusive"])
def test_a_limit_is_told_with_what_ends_it_also_one_of_a_group_around_the_groups(
    node: BtrfsNode, kind: str
) -> None:
    number = command("btrfs", "inspect-internal", "rootid", node.live).strip()
    sh(
        f"cd {node.live}; btrfs quota enable .; btrfs qgroup limit {kind} 90M ."
        f"; for group in 1/0 1/1 2/7 2/6; do btrfs qgroup create $group .; done"
        f"; btrfs qgroup assign 0/{number} 1/0 .; btrfs qgroup assign 1/0 2/7 ."
        f"; btrfs qgroup assign 1/1 2/7 .; btrfs qgroup assign 1/0 2/6 ."
        f"; btrfs qgroup limit {kind} 50M 1/1 .; btrfs qgroup limit {kind} 60M 2/7 ."
    )
    assert quota.group_limits(node.live) == {"2/7": 60 * MIB}
    sh(f"cd {node.live}; btrfs qgroup limit {kind} 70M 1/0 .")
    problem = node.the_problem()
    assert problem.check == "limit" and not problem.grave
    for told in (f"{node.live} on n1 to 90 MiB", "group 1/0 of ", "to 70 MiB", "group 2/7 of "):
        assert told in problem.evidence
    assert "1/1" not in problem.evidence and "2/6" not in problem.evidence
    node.store.create_live_from(moved_away(node))
    assert quota.group_limits(node.live) == {}, "the harm: a promotion's tree is in no group"
    sh(f"btrfs subvolume delete {node.live}; mv {node.live}.old {node.live}")
    sh(problem.fix.partition("end it: ")[2])
    assert node.problems() == []


def moved_away(node: BtrfsNode) -> Snapshot:
    """A snapshot of the live tree, which isn't at its place any more."""
    snapshot = node.take()
    node.live.rename(f"{node.live}.old")
    return snapshot


def test_a_live_tree_that_is_immutable_itself_is_told_as_grave(node: BtrfsNode) -> None:
    sh(f"chattr +i {node.live}; sync")
    snapshot = node.take()
    problem = node.the_problem()
    assert problem.check == "flags" and problem.grave
    with pytest.raises(CommandFailed, match="not permitted"):
        node.store.delete([snapshot])
    with pytest.raises(PermissionError):
        node.store.keep_aside("services.retired-1-20270115T080000Z")
    sh(
        problem.fix.replace("then for each snapshot that is to go: ", "").replace(
            "SNAPSHOT", str(snapshot.path)
        )
    )
    sh(f"sync {node.root}")
    assert node.problems() == [] and list(node.store.snapshots()) == []
