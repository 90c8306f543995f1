"""The small files under /run: whole or absent, and never guessed at."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from msgspec import structs
from msgspec.structs import asdict

from standfast.config.fields import MOST_S
from standfast.config.model import Config, Paths
from standfast.consul.records import LeaderState
from standfast.errors import StandfastError
from standfast.lease.files import (
    NOTHING_HELD,
    LeaseStatus,
    boot_instance,
    note_end,
    note_start,
    others_serving,
    save_claim,
    take_claim,
)
from standfast.lease.protocol import NEVER, Claim, Memory
from standfast.system.clock import monotonic
from standfast.system.files import read_json, write_atomically
from tests.fakes.clock import stop_the_clock
from tests.support.checkout import CHECKOUT
from tests.support.configs import config_in

STATUS = LeaseStatus(5, "a1", 7, LeaderState.SERVING, True, 108.0, 107.5, 12, 3.0, 1, "trouble")
CLAIM = Claim(5, (5, "a", "a1", 7), 100.0, "services@20261122T101500Z", "takeover", None, 60.0)


def test_a_status_survives_the_file(tmp_path: Path) -> None:
    STATUS.save(tmp_path)
    assert LeaseStatus.load(tmp_path) == STATUS


def test_a_lease_without_time_survives_the_file(tmp_path: Path) -> None:
    void = LeaseStatus(5, "a1", 7, LeaderState.DRAINING, False, NEVER, NEVER, 12, 3.0)
    void.save(tmp_path)
    loaded = LeaseStatus.load(tmp_path)
    assert loaded == void
    assert loaded is not None
    assert loaded.remaining_s(0.0) == 0.0


def test_no_status_is_no_lease(tmp_path: Path) -> None:
    assert LeaseStatus.load(tmp_path) is None


@pytest.mark.parametrize(("valid_s", "armed_s"), [(8.5, 7.5), (7.5, 8.5), (7.5, 7.5)])
def test_a_lease_longer_than_any_permits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valid_s: float, armed_s: float
) -> None:
    """The file is of before a reboot, when the clock began anew, or somebody wrote it."""
    clock = stop_the_clock(monkeypatch)
    valid_until, armed_until = clock.now + valid_s, clock.now + armed_s
    status = structs.replace(
        STATUS, longest_s=8.0, valid_until=valid_until, armed_until=armed_until
    )
    status.save(tmp_path)
    assert (LeaseStatus.load(tmp_path) is None) == (max(valid_s, armed_s) > 8.0)


@pytest.mark.parametrize("longest_s", [MOST_S + 2.0, 1e18, math.inf, math.nan])
def test_no_file_makes_a_lease_longer_than_the_longest_that_can_be_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longest_s: float
) -> None:
    clock = stop_the_clock(monkeypatch)
    until = clock.now + MOST_S + 1.0
    structs.replace(STATUS, longest_s=longest_s, valid_until=until, armed_until=until).save(
        tmp_path
    )
    assert LeaseStatus.load(tmp_path) is None


def test_what_an_older_version_did_not_say_has_its_default(tmp_path: Path) -> None:
    STATUS.save(tmp_path)
    doc = json.loads((tmp_path / "lease.json").read_text())
    for name in ("leader_index", "voided_at", "longest_s"):
        del doc[name]
    (tmp_path / "lease.json").write_text(json.dumps(doc))
    assert LeaseStatus.load(tmp_path) == STATUS


def test_the_next_process_is_told_what_it_has_to_know(tmp_path: Path) -> None:
    structs.replace(STATUS, leader_index=61, voided_at=90.0).save(tmp_path)
    loaded = LeaseStatus.load(tmp_path)
    assert loaded is not None
    assert loaded.memory == Memory(5, "a1", 61, 108.0, 90.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        '{"v": 1}',
        json.dumps({**asdict(STATUS), "state": "glad"}),
        "\x00",
        json.dumps({**asdict(STATUS), "valid_until": "soon"}),
    ],
)
def test_an_unusable_status_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "lease.json").write_text(text)
    with pytest.raises(StandfastError, match=r"lease\.json"):
        LeaseStatus.load(tmp_path)


def test_a_claim_can_be_made_good_once(tmp_path: Path) -> None:
    save_claim(tmp_path, CLAIM)
    assert take_claim(tmp_path) == CLAIM
    assert take_claim(tmp_path) is None


def test_a_claim_on_nothing_survives_the_file(tmp_path: Path) -> None:
    first = Claim(0, None, 100.0, None, "first-primary", "op", 0.0)
    save_claim(tmp_path, first)
    assert take_claim(tmp_path) == first


def test_an_unreadable_file_of_a_neighbour_may_be_of_one_that_serves(
    tmp_path: Path,
) -> None:
    """It is no reason to fail: it may be of a volume that is long gone."""
    config = config_in(tmp_path)
    now = monotonic()
    for name in ("ours", "damaged", "over", "serves"):
        (config.paths.run / name).mkdir(parents=True)
    config = structs.replace(config, volume="ours")
    for name, until in (("ours", now + 60), ("over", now - 1), ("serves", now + 60)):
        status = structs.replace(STATUS, valid_until=until, armed_until=until)
        status.save(config.paths.run / name)
    (config.paths.run / "damaged" / "lease.json").write_text('{"v": 1}')
    assert others_serving(config) == ("damaged", "serves")


def test_a_claim_of_an_older_version_is_made_good(tmp_path: Path) -> None:
    """The agent that asked may not be restarted yet."""
    save_claim(tmp_path, CLAIM)
    doc = json.loads((tmp_path / "claim.json").read_text())
    del doc["unless_paused"], doc["follows"]
    (tmp_path / "claim.json").write_text(json.dumps(doc))
    assert take_claim(tmp_path) == CLAIM


def test_a_claim_of_a_wrong_shape_is_an_error_and_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "claim.json").write_text('{"v": 1, "epoch": 5}')
    with pytest.raises(StandfastError, match="is not a claim"):
        take_claim(tmp_path)
    assert take_claim(tmp_path) is None


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, "one", durable=True)
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none") is None
    with pytest.raises(StandfastError, match="can't be read"):
        read_json(tmp_path)


def test_a_boot_has_one_name_for_all_who_ask(tmp_path: Path) -> None:
    name = boot_instance(tmp_path / "run")
    assert name == boot_instance(tmp_path / "run")
    assert name != boot_instance(tmp_path / "after-a-reboot")
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["instance"]


# Whether the failure of a lease process can leave anything


def may_leave_something(config: Config) -> bool:
    return not (config.run_dir / NOTHING_HELD).exists()


def test_where_nothing_was_ever_held_nothing_can_be_left(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    assert may_leave_something(config), "nobody has looked"
    for _ in range(2):
        note_start(config)
        assert not may_leave_something(config)


def test_from_the_first_word_of_a_keeper_to_its_end_in_order_something_may_be_left(
    tmp_path: Path,
) -> None:
    config = config_in(tmp_path)
    note_start(config)
    structs.replace(STATUS, serving=False, valid_until=NEVER, armed_until=NEVER).save(
        config.run_dir
    )
    assert may_leave_something(config)
    note_start(config)
    assert may_leave_something(config), "it was killed"
    note_end(config)
    note_start(config)
    assert not may_leave_something(config)


def test_an_epoch_that_is_not_put_away_is_something(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    note_end(config)
    write_atomically(config.state_dir / "own-epoch.json", "damaged")
    note_start(config)
    assert may_leave_something(config)


@pytest.mark.parametrize("where", ["state", "run"])
def test_what_can_not_be_found_out_may_be_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = config_in(tmp_path)
    note_end(config)
    unseen = {"state": config.state_dir / "own-epoch.json", "run": config.run_dir / "lease.json"}
    look = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if path == unseen[where]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return look(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    note_start(config)
    assert may_leave_something(config)


def test_the_unit_that_stops_the_server_looks_for_the_very_file() -> None:
    unit = (CHECKOUT / "systemd/standfast-ended@.service").read_text()
    path = Paths().run / "%i" / NOTHING_HELD
    assert f"\nConditionPathExists=!{path}\n" in unit
