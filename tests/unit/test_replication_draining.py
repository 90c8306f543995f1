"""The final snapshot of a demotion is the newest of its epoch: the successor has all of it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from msgspec import structs

from standfast.config.load import load
from standfast.config.model import Config
from standfast.demo.nodes import VOLUME, Place, config_text
from standfast.demo.stand_ins.directory import DirectoryStore, initialise
from standfast.errors import Refused, StandfastError
from standfast.node.own_epoch import OwnEpoch, Stage, snapshot_lock
from standfast.reasons import Reason
from standfast.replication.cycle import Sender
from standfast.system import locks
from standfast.system.clock import Deadline, sleep
from tests.fakes.replication import LeaseKeys
from tests.support.pace import patient

PLACES = (
    Place("zippy", "127.0.0.1", "http://127.0.0.1:1"),
    Place("c1", "127.0.0.2", "http://127.0.0.1:1"),
)
OWN = OwnEpoch(2, Stage.READY, "f", None, in_place=True)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / f"{VOLUME}.toml"
    path.write_text(config_text(PLACES[0], PLACES, tmp_path, 20490))
    made = load(path)
    initialise(made.paths.live)
    # A transport that ends at once: what counts here happens before it is used.
    replication = structs.replace(made.replication, command=("false",))
    return structs.replace(made, replication=replication)


@pytest.mark.parametrize("stage", [Stage.DRAINING, Stage.RELEASED])
def test_a_cycle_takes_no_snapshot_once_the_demotion_has_begun(
    config: Config, stage: Stage
) -> None:
    OWN.at(stage).save(config.state_dir)
    store = DirectoryStore(config.paths)
    with pytest.raises(Refused, match="its final snapshot is the last one") as caught:
        Sender(config, store, LeaseKeys("zippy")).cycle("c1")
    assert caught.value.reason is Reason.NOT_PRIMARY
    assert store.snapshots() == ()


def test_a_cycle_of_a_serving_primary_takes_one(config: Config) -> None:
    OWN.save(config.state_dir)
    store = DirectoryStore(config.paths)
    with pytest.raises(StandfastError):
        Sender(config, store, LeaseKeys("zippy")).cycle("c1")
    assert len(store.snapshots()) == 1


def test_a_cycle_that_waited_while_the_final_snapshot_was_taken_comes_too_late(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    OWN.save(config.state_dir)
    store = DirectoryStore(config.paths)
    errors: list[BaseException] = []
    waits = threading.Event()

    def wait(seconds: float) -> None:
        waits.set()
        sleep(seconds)

    monkeypatch.setattr(locks, "sleep", wait)

    def cycle() -> None:
        try:
            Sender(config, store, LeaseKeys("zippy")).cycle("c1")
        except StandfastError as error:
            errors.append(error)

    thread = threading.Thread(target=cycle)
    with snapshot_lock(config, Deadline.after(1.0)):
        thread.start()
        assert waits.wait(patient(30)), "it has asked Consul, and waits for the lock"
        OWN.at(Stage.DRAINING).save(config.state_dir)
    thread.join(patient(30))
    assert [type(error) for error in errors] == [Refused]
    assert store.snapshots() == ()
