"""Which snapshot each other node has in common with this one, and what is in use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from standfast.config.model import Config
from standfast.errors import Refused, StandfastError
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.replication import pins
from standfast.replication.pins import Pin
from standfast.system.clock import Deadline, utc_now
from tests.support.configs import config_in

DAY_S = 86400.0


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path, "a", "b", "c")


def name(second: int) -> SnapshotName:
    return SnapshotName.at("services", 1e9 + second)


def pin(second: int, epoch: int = 1, at: float = 1e9) -> Pin:
    return Pin(str(name(second)), f"id-{second}", epoch, at)


def snapshot(second: int) -> Snapshot:
    return Snapshot(name(second), Path("/p") / str(name(second)), f"id-{second}", received=True)


def content(config: Config) -> dict[str, str]:
    return {node: pin.content_id for node, pin in pins.load(config).items()}


# What is noted


def test_no_pins_are_none(config: Config) -> None:
    assert pins.load(config) == {}


def test_each_node_has_its_newest_common_snapshot(config: Config) -> None:
    pins.note(config, "b", pin(1))
    pins.note(config, "c", pin(2))
    pins.note(config, "b", pin(3))
    assert pins.load(config) == {"b": pin(3), "c": pin(2)}
    pins.drop(config, "b")
    pins.drop(config, "b")
    assert pins.load(config) == {"c": pin(2)}


def test_the_same_snapshot_again_does_not_make_a_pin_younger(config: Config) -> None:
    pins.note(config, "b", pin(1, at=1e9))
    pins.note(config, "b", pin(1, at=2e9))
    assert pins.load(config)["b"].at == 1e9


def test_a_pin_is_on_disk_when_it_is_noted(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deleted on its word is gone for good, a power cut may come right after."""
    synced: list[str] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    pins.note(config, "b", pin(1))
    content, directory = synced
    assert content.startswith(f"{config.state_dir}/.pins.json")
    assert directory == str(config.state_dir)


def test_many_at_once_lose_nothing(config: Config) -> None:
    nodes = [f"n{number}" for number in range(20)]
    threads = [threading.Thread(target=pins.note, args=(config, node, pin(1))) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pins.load(config)) == sorted(nodes)


GOOD = {"name": str(name(1)), "content_id": "id-1", "epoch": 1, "at": 1e9}


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"v": 1}', '{"v": 2, "pins": {}}', '{"v": 1, "pins": []}',
        '{"v": 1, "pins": {"b": 1}}', '{"v": 1, "pins": {"b": {}}}',
        *(
            json.dumps({"v": 1, "pins": {"b": {**GOOD, **wrong}}})
            for wrong in (
                {"epoch": -1}, {"epoch": True}, {"epoch": "1"}, {"content_id": 1},
                {"content_id": ""}, {"name": "x"}, {"name": 1}, {"at": None}, {"more": 1},
            )
        ),
    ],
)  # fmt: skip
def test_what_is_no_pins_file_is_said_to_be_none(config: Config, text: str) -> None:
    config.state_dir.mkdir(parents=True)
    (config.state_dir / "pins.json").write_text(text)
    with pytest.raises(StandfastError, match=r"pins\.json"):
        pins.load(config)
    with pytest.raises(StandfastError):
        pins.note(config, "c", pin(1))
    assert (config.state_dir / "pins.json").read_text() == text


def test_a_good_pins_file_is_read(config: Config) -> None:
    config.state_dir.mkdir(parents=True)
    (config.state_dir / "pins.json").write_text(json.dumps({"v": 1, "pins": {"b": GOOD}}))
    assert pins.load(config) == {"b": pin(1)}


# What a standby learns of the others


def learn(config: Config, commons: dict[str, str], *seconds: int) -> None:
    here = [snapshot(second) for second in seconds]
    pins.learn(config, commons, here, {snapshot.content_id: 1 for snapshot in here})


def test_a_standby_pins_what_others_have_as_far_as_it_has_that_too(config: Config) -> None:
    learn(config, {"b": "id-1"}, 1)
    assert content(config) == {"b": "id-1"}
    learn(config, {"b": "id-2", "c": "id-2"}, 1, 2)
    assert content(config) == {"b": "id-2", "c": "id-2"}


def test_a_standby_never_pins_for_itself_nor_what_standfast_did_not_make(config: Config) -> None:
    learn(config, {"a": "id-1"}, 1)
    pins.learn(config, {"b": "id-1"}, [snapshot(1)], {})
    assert content(config) == {}


def test_an_older_word_does_not_replace_a_newer_pin(config: Config) -> None:
    learn(config, {"b": "id-2"}, 1, 2)
    learn(config, {"b": "id-1"}, 1, 2)
    assert content(config) == {"b": "id-2"}


def test_a_node_that_the_primary_names_no_more_loses_an_old_pin_only(config: Config) -> None:
    pins.note(config, "b", pin(1, at=utc_now() - 15 * DAY_S))
    pins.note(config, "c", pin(1, at=utc_now() - 13 * DAY_S))
    learn(config, {"b": "id-9", "c": "id-9"}, 1)
    assert content(config) == {"b": "id-1", "c": "id-1"}
    learn(config, {}, 1)
    assert content(config) == {"c": "id-1"}


# What a primary tells them of each other


def test_a_standby_is_told_what_it_has_in_common_with_the_others(config: Config) -> None:
    for node, second in (("b", 1), ("c", 1), ("b", 2), ("c", 2), ("c", 3)):
        pins.note(config, node, pin(second))
    known = pins.load(config)
    assert pins.to_tell(known, "b", "id-4") == {"b": "id-2", "c": "id-2"}
    assert pins.to_tell(known, "b", "id-3") == {"b": "id-2", "c": "id-3"}, "it is to get that now"
    assert pins.to_tell(known, "c", "id-4") == {"b": "id-2", "c": "id-3"}
    assert pins.to_tell(known, "d", "id-4") == {"b": "id-2", "c": "id-3"}


def test_what_is_only_likely_is_told_to_nobody(config: Config) -> None:
    pins.expect(config, "b", pin(1), ())
    pins.note(config, "c", pin(1))
    known = pins.load(config)
    assert pins.to_tell(known, "c", "id-2") == {"c": "id-1"} and known["c"].both == {}
    pins.note(config, "b", pin(1))
    assert pins.load(config)["c"].both == {"b": "id-1"}


# What is on its way


def test_what_is_expected_is_pinned_unless_there_is_better(config: Config) -> None:
    pins.expect(config, "b", pin(1), ())
    assert content(config) == {"b": "id-1"} and not pins.load(config)["b"].sure
    pins.expect(config, "b", pin(2), ())  # the first one did not arrive, as it turned out
    assert content(config) == {"b": "id-2"}
    pins.note(config, "b", pin(2))
    pins.expect(config, "b", pin(3), ("id-2",))
    assert content(config) == {"b": "id-2"} and pins.load(config)["b"].sure
    pins.expect(config, "b", pin(3), ("id-1",))
    assert content(config) == {"b": "id-3"} and not pins.load(config)["b"].sure


# What is in use


def in_use(config: Config) -> frozenset[str]:
    with pins.locked(config):
        return pins.all_in_use(config)


def test_what_is_in_use_is_so_as_long_as_the_block_lasts(config: Config) -> None:
    assert in_use(config) == frozenset()
    with pins.in_use(config, ["x", "y"]), pins.in_use(config, ["y", "z"]):
        assert in_use(config) == {"x", "y", "z"}
    assert list((config.run_dir / "in-use").iterdir()) == []
    assert in_use(config) == frozenset()


CHILD = """
import sys
from pathlib import Path
from standfast.replication import pins
from tests.support.configs import config_in
config = config_in(Path(sys.argv[1]), "a", "b", "c")
with pins.in_use(config, ["x"]):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_uses_nothing_any_more(config: Config) -> None:
    root = config.paths.run.parent
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        assert in_use(config) == {"x"}
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        assert in_use(config) == frozenset()
    assert list((config.run_dir / "in-use").iterdir()) == []


def test_nothing_begins_to_be_used_while_snapshots_are_being_deleted(config: Config) -> None:
    began = threading.Event()

    def use() -> None:
        with pins.in_use(config, ["x"]):
            began.set()

    with pins.locked(config):
        thread = threading.Thread(target=use)
        thread.start()
        assert not began.wait(0.3)
    assert began.wait(10)
    thread.join()


def test_a_lock_that_is_not_freed_is_waited_for_only_so_long(config: Config) -> None:
    with pins.locked(config), pytest.raises(Refused), pins.locked(config, Deadline.after(0.1)):
        pass
