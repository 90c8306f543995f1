"""A failback after `cp --reflink big big.bak && rm big`: btrfs-progs before 6.10.1 fail on it."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.btrfs import info as btrfs_info
from standfast.btrfs.store import BtrfsStore
from standfast.errors import Refused
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from tests.support.volumes import btrfs_on_file, command, files, paths_below, require_btrfs

NOW = 1_800_000_000.0
BIG = bytes(range(256)) * 4096 * 8  # 8 MiB
FIXED_IN = (6, 10, 1)


def store_at(root: Path, at_s: float) -> BtrfsStore:
    return BtrfsStore(paths_below(root))


@dataclass
class Failback:
    """`b` was promoted and changed since; `common` is what `a` wrote, `back` what returns to it."""

    a: BtrfsStore
    a_root: Path
    common: Snapshot
    stream: bytes
    back: Snapshot

    def receive(self, *, prepared: bool) -> subprocess.CompletedProcess[bytes]:
        staging = self.a.open_staging()
        if prepared:
            self.a.prepare_parent(self.common.content_id)
        argv = self.a.receive_argv(staging)
        return subprocess.run(argv, input=self.stream, capture_output=True)


def hand_over(source: BtrfsStore, target: BtrfsStore, snapshot: Snapshot) -> Snapshot:
    sent = subprocess.run(source.send_argv(snapshot, None), capture_output=True, check=True)
    argv = target.receive_argv(target.open_staging())
    subprocess.run(argv, input=sent.stdout, capture_output=True, check=True)
    target.verify_staged(snapshot.name, snapshot.content_id)
    return target.publish(snapshot.name)


@pytest.fixture
def failback(tmp_path: Path) -> Iterator[Failback]:
    require_btrfs()
    with contextlib.ExitStack() as stack:
        roots = {}
        for node in "ab":
            roots[node] = tmp_path / node
            stack.enter_context(btrfs_on_file(tmp_path / f"{node}.img", roots[node]))
        a, b = store_at(roots["a"], 600), store_at(roots["b"], 600)
        command("btrfs", "subvolume", "create", roots["a"] / "services")
        (roots["a"] / "services" / "big").write_bytes(BIG)
        common = a.take_snapshot(SnapshotName.at("services", NOW))
        base = hand_over(a, b, common)
        live = b.create_live_from(base).path
        command("cp", "--reflink=always", live / "big", live / "big.bak")
        (live / "big").unlink()
        back = b.take_snapshot(SnapshotName.at("services", NOW + 300))
        sent = subprocess.run(b.send_argv(back, base), capture_output=True, check=True)
        yield Failback(a, roots["a"], common, sent.stdout, back)


def test_the_bare_pipe_fails_on_old_btrfs_progs(failback: Failback) -> None:
    match = re.search(r"v(\d+)\.(\d+)(?:\.(\d+))?", command("btrfs", "--version"))
    assert match is not None
    version = tuple(int(part or 0) for part in match.groups())
    if version >= FIXED_IN:
        pytest.skip(f"btrfs-progs {version} have no such bug: it was in those before {FIXED_IN}")
    done = failback.receive(prepared=False)
    assert done.returncode != 0 and b"did not find source subvol" in done.stderr


def test_a_prepared_parent_takes_the_reflinks_in(failback: Failback) -> None:
    done = failback.receive(prepared=True)
    assert done.returncode == 0, done.stderr
    assert len(failback.stream) < 16_000
    store, back = failback.a, failback.back
    store.verify_staged(back.name, back.content_id, failback.common.content_id)
    published = store.publish(back.name)
    assert files(published.path) == {"big.bak": BIG}
    assert published.content_id == back.content_id
    assert [snapshot.content_id for snapshot in store.snapshots()] == [
        failback.common.content_id,
        back.content_id,
    ]


def test_the_stand_in_never_counts_and_is_gone_with_what_was_staged(failback: Failback) -> None:
    store, back = failback.a, failback.back
    failback.receive(prepared=True)
    assert list(store.open_staging().iterdir()) == []  # what an interrupted receive left
    failback.receive(prepared=True)
    [stand_in] = (failback.a_root / "services-standby" / ".staging").glob(".*")
    info = btrfs_info.read(stand_in)
    assert info is not None and info.read_only
    assert info.received_uuid == failback.common.content_id
    assert store.snapshots() == (failback.common,)
    assert [path.name for path in store.unfinished()] == [str(back.name)]
    store.publish(back.name)
    store.clear_staging()
    assert command("btrfs", "subvolume", "list", failback.a_root).count("\n") == 4
    assert failback.common == store.snapshots()[0]


def test_a_received_parent_needs_no_stand_in_and_an_unknown_one_is_refused(
    failback: Failback,
) -> None:
    store = failback.a
    failback.receive(prepared=True)
    published = store.publish(failback.back.name)
    staging = store.open_staging()
    store.prepare_parent(published.content_id)
    assert list(staging.iterdir()) == []
    with pytest.raises(Refused, match="to build on") as refusal:
        store.prepare_parent("00000000-0000-4000-8000-000000000000")
    assert refusal.value.reason is Reason.UNKNOWN_PARENT
