"""What somebody who has a replication key can do to a standby on btrfs, and what not."""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from standfast.btrfs.store import BtrfsStore
from standfast.config.model import Config, KeepPublished
from standfast.consul.records import StandbyRecord
from standfast.errors import Refused
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.replication import receive as receiving
from standfast.replication import wire
from standfast.replication.receive import receive
from standfast.system.clock import utc_now
from standfast.system.landlock import confined
from standfast.system.locks import exclusive
from standfast.system.run import run
from tests.fakes.replication import LeaseKeys
from tests.support import btrfs_streams as made
from tests.support import needs
from tests.support.configs import config_in
from tests.support.volumes import btrfs_on_file, command, files, require_btrfs
from tests.support.waiting import soon, wait_for

EPOCH = 4
SECRET = os.urandom(8192)
OTHERS = uuid.UUID(int=99)
"""The content of another volume's snapshot on the same file system."""
IDENTITY = uuid.UUID(int=7)
EARLIER_ID = uuid.UUID(int=6)
NAME = SnapshotName.at("services", 1_800_000_000.0)


@dataclass
class Standby:
    """`b`, and the volume of `a`, which is primary of EPOCH."""

    config: Config
    store: BtrfsStore
    primary: BtrfsStore
    keys: LeaseKeys = field(default_factory=lambda: LeaseKeys("a", EPOCH))

    def another_waits(self) -> None:
        """From when a part of the stream is there, for a while."""
        staged = self.config.paths.standby / ".staging" / str(NAME)
        wait_for(staged.exists, 30, "something is staged")
        with exclusive(self.config.run_dir / "receive.next", "another sender"):
            wait_for(lambda: not staged.exists(), 30, "what was staged is gone")

    def hear(
        self, snapshot: tuple[SnapshotName, str], stream: bytes, *, ends: bool = True, **begin: Any
    ) -> dict[str, Any]:
        """The last thing that it says; `ends`: the sender closes the stream."""
        name, content_id = snapshot
        told = wire.Begin(
            self.config.cluster, self.config.volume, "a", EPOCH, str(name), content_id,
            **{"parent_content_id": None, "commons": {}, **begin},
        )  # fmt: skip
        hello = wire.Hello(told.cluster, told.volume, "a")
        said = io.StringIO()
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as pipe:
            assert pipe.stdin is not None and pipe.stdout is not None
            pipe.stdin.write(f"{wire.dump(hello)}\n{wire.dump(told)}\n".encode() + stream)
            pipe.stdin.flush()
            if ends:
                pipe.stdin.close()
            receive(self.config, self.store, self.keys, pipe.stdout.fileno(), said, environ={})
        answer: dict[str, Any] = json.loads(said.getvalue().splitlines()[-1])
        return answer

    def replicate(self, parent: Snapshot | None = None) -> Snapshot:
        """By the primary, which tells Consul of it."""
        snapshot = self.primary.take_snapshot(SnapshotName.at("services", utc_now()))
        argv = self.primary.send_argv(snapshot, parent)
        stream = subprocess.run(argv, capture_output=True, check=True).stdout
        above = None if parent is None else parent.content_id
        said = self.hear((snapshot.name, snapshot.content_id), stream, parent_content_id=above)
        assert said["message_type"] == "published", said
        record = StandbyRecord("b", EPOCH, str(snapshot.name), snapshot.content_id, utc_now())
        self.keys.put(self.config.key("standbys/b"), record.dump())
        return snapshot


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[Standby]:
    require_btrfs()
    root = tmp_path / "disk"
    with btrfs_on_file(tmp_path / "disk.img", root):
        for place in ("a", "b"):
            (root / place).mkdir()
        config = replace(config_in(root / "b", "a", "b", "c"), node="b")
        keep = KeepPublished(keep_last=3, hourly=0, daily=0, weekly=0, monthly=0)
        paths = replace(config.paths, state=tmp_path / "state", run=tmp_path / "run")
        config = replace(config, paths=paths, retention_published=keep)
        primary = BtrfsStore(config_in(root / "a", "a").paths)
        command("btrfs", "subvolume", "create", root / "a" / "services")
        yield Standby(config, BtrfsStore(config.paths), primary)


def stream_of(name: SnapshotName, identity: uuid.UUID, *commands: bytes) -> bytes:
    first = made.subvolume(str(name), identity)
    return made.header() + first + b"".join(commands) + made.end()


def test_forged_snapshots_push_nothing_out_that_the_primarys_next_increment_builds_on(
    standby: Standby,
) -> None:
    live = standby.primary.live()
    assert live is not None
    (live.path / "f").write_bytes(os.urandom(100_000))
    standby.replicate()
    genuine = standby.replicate(standby.primary.snapshots()[-1])
    forged = []
    for number in range(1, 9):
        identity = uuid.UUID(int=1000 + number)
        name = SnapshotName.at("services", genuine.name.stamp + number)
        commons = {"b": str(identity), "c": str(identity), "a": str(identity)}
        stream = stream_of(name, identity, made.file("f", b"forged"))
        said = standby.hear((name, str(identity)), stream, commons=commons)
        assert said["message_type"] == "published", said
        forged.append(name)
    published = [own for own in standby.store.snapshots() if own.received]
    assert genuine.content_id in {own.content_id for own in published}
    assert len(published) == 1 + 3, "what is old goes all the same"

    (live.path / "f").write_bytes(os.urandom(100_000))
    command("sleep", str(max(0.0, forged[-1].stamp + 1 - utc_now())))
    standby.replicate(genuine)
    newest = [own for own in standby.store.snapshots() if own.received][-1]
    assert files(newest.path) == files(live.path)


# What a stream takes from elsewhere


def other_volume(root: Path) -> Path:
    place = root / "media-standby"
    command("btrfs", "subvolume", "create", place)
    stream = stream_of(NAME, OTHERS, made.file("secret", SECRET))
    argv = ["btrfs", "-q", "receive", str(place)]
    subprocess.run(argv, input=stream, check=True)
    return place / str(NAME)


AWAY = f"../../../media-standby/{NAME}"
WAYS = {
    "its snapshot": made.reflink("copy", OTHERS, "secret", 8192),
    "a path from one of our own": made.reflink("copy", EARLIER_ID, f"{AWAY}/secret", 8192),
    "a link in one of our own": made.reflink("copy", EARLIER_ID, "way/secret", 8192),
}


@needs.landlock()
@pytest.mark.parametrize("way", WAYS)
def test_a_stream_takes_no_data_from_another_volume_of_the_same_disk_by(
    standby: Standby, tmp_path: Path, way: str
) -> None:
    other_volume(tmp_path / "disk")
    earlier = SnapshotName.at("services", NAME.stamp - 10)
    stream = stream_of(earlier, EARLIER_ID, made.symlink("way", AWAY))
    assert standby.hear((earlier, str(EARLIER_ID)), stream)["message_type"] == "published"
    before = standby.store.snapshots()
    stream = stream_of(NAME, IDENTITY, WAYS[way])
    staging = standby.store.open_staging()
    bare = subprocess.run(standby.store.receive_argv(staging), input=stream, capture_output=True)
    assert (staging / str(NAME) / "copy").read_bytes() == SECRET, bare.stderr
    said = standby.hear((NAME, str(IDENTITY)), stream)
    assert (said["message_type"], said["reason"]) == ("refusal", "incomplete")
    assert "Permission denied" in said["message"]
    assert standby.store.snapshots() == before and standby.store.unfinished() == ()


@needs.landlock()
def test_what_takes_the_stream_in_writes_in_its_own_places_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else it opens is there to be read."""
    for name in ("ours", "programs", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("before")
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{tmp_path}/programs")
    tries = "for d in ours programs elsewhere; do cat $d/f; echo after >$d/f; done; echo >/dev/null"
    with confined([tmp_path / "ours"]):
        done = run(["sh", "-c", f"cd {tmp_path}; {tries}"], deadline=soon(20), op="try")
    assert done.stdout == "before" * 2, done.stderr
    now = {name: (tmp_path / name / "f").read_text() for name in ("ours", "programs", "elsewhere")}
    assert now == {"ours": "after\n", "programs": "before", "elsewhere": "before"}
    assert "/dev/null" not in done.stderr


def test_only_what_takes_the_stream_in_is_confined(
    standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it looks at locks elsewhere meanwhile."""
    monkeypatch.setattr(receiving, "STANDSTILL_S", 0.2)
    waits = threading.Thread(target=standby.another_waits, daemon=True)
    waits.start()
    stream = stream_of(NAME, IDENTITY, made.file("f", b"x"))[:-1]
    said = standby.hear((NAME, str(IDENTITY)), stream, ends=False)
    assert "another sender waits" in said["message"], said
    waits.join()


def test_a_stream_shares_data_within_itself_and_with_its_parent(standby: Standby) -> None:
    live = standby.primary.live()
    assert live is not None
    (live.path / "f").write_bytes(SECRET)
    command("cp", "--reflink=always", live.path / "f", live.path / "twin")
    first = standby.replicate()
    command("cp", "--reflink=always", live.path / "f", live.path / "third")
    (live.path / "f").unlink()
    standby.replicate(first)
    newest = [own for own in standby.store.snapshots() if own.received][-1]
    assert files(newest.path) == {"twin": SECRET, "third": SECRET}


@pytest.mark.parametrize("announced", ["none", "its own"])
def test_a_snapshot_that_builds_on_another_one_than_announced_is_not_published(
    standby: Standby, tmp_path: Path, announced: str
) -> None:
    other_volume(tmp_path / "disk")
    parent = None
    if announced == "its own":
        parent = standby.replicate().content_id
    before = standby.store.snapshots()
    name = SnapshotName.at("services", NAME.stamp + 10)
    stream = made.header() + made.increment(str(name), IDENTITY, OTHERS) + made.end()
    said = standby.hear((name, str(IDENTITY)), stream, parent_content_id=parent)
    assert (said["message_type"], said["reason"]) == ("refusal", "incomplete")
    assert "built on another snapshot than announced" in said["message"]
    assert standby.store.snapshots() == before


def test_a_copy_of_the_parent_elsewhere_is_as_good(standby: Standby, tmp_path: Path) -> None:
    """btrfs takes whichever of several with that content it finds first."""
    identity, copy = uuid.UUID(int=55), tmp_path / "disk" / "backup"
    copy.mkdir()
    parent = SnapshotName.at("services", NAME.stamp)
    subprocess.run(
        ["btrfs", "-q", "receive", str(copy)],
        input=stream_of(parent, identity, made.file("f", b"x")),
        check=True,
    )
    staging = standby.store.open_staging()
    command("btrfs", "subvolume", "snapshot", "-r", copy / str(parent), staging.parent)
    name = SnapshotName.at("services", NAME.stamp + 10)
    stream = made.header() + made.increment(str(name), IDENTITY, identity) + made.end()
    subprocess.run(standby.store.receive_argv(staging), input=stream, check=True)
    standby.store.verify_staged(name, str(IDENTITY), str(identity))
    with pytest.raises(Refused, match="than announced"):
        standby.store.verify_staged(name, str(IDENTITY), str(OTHERS))
