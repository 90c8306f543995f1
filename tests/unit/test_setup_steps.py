"""The steps of `standfast setup` on a directory that stands for the machine: cut anywhere, and run
again."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from standfast.setup import look, steps
from standfast.setup.execute import Act, Ended, Outcome, Step, execute
from standfast.setup.observation import Observed, Server
from standfast.setup.plan import Do, plan
from standfast.setup.record import NAME, Installed
from standfast.setup.shipped import Places
from standfast.setup.steps import Effects
from standfast.setup.wanted import Wanted
from tests.unit.setups import SOURCE, TEXT, Manager, bare, goal_of, whole

WITH_TOKEN = (
    TEXT + '[consul]\ntoken_file = "/etc/standfast/token"\n[replication]\ncommand = ["x"]\n'
)
RECORD = Path("/var/lib/standfast") / NAME


@pytest.fixture(autouse=True)
def catalog_updates(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Commands that were run."""
    ran: list[Sequence[str]] = []
    monkeypatch.setattr(steps, "run", lambda argv, **_: ran.append(argv))
    return ran


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(root=tmp_path, prefix=tmp_path / "opt/standfast")


def effects_of(goal: Wanted, seen: Observed, places: Places, units: Manager) -> Effects:
    return Effects(goal, seen, places, units, lambda _config: True)


def acts_of(effects: Effects) -> Mapping[str, Act]:
    """Without a look at whose files they are: those of a test are its user's."""
    return {**effects.acts(), Do.CHECK: lambda: None}


def again(goal: Wanted, places: Places) -> Observed:
    """What is there by now, as far as files tell it."""
    return bare(
        server=Server("disabled"),
        there={p: text for p in goal.texts if (text := places.text(p)) is not None},
        leads=dict(look._leads(goal, places)),
        modes=dict(look._modes(goal, places)),
        token=(places.text(Path("/etc/standfast/token")) or "").strip() or None,
        installed=Installed.load(places.at(RECORD)),
    )


def carry_out(goal: Wanted, seen: Observed, places: Places, units: Manager) -> list[Ended]:
    ended: list[Ended] = []
    execute(plan(seen, goal), acts_of(effects_of(goal, seen, places, units)), ended.append)
    return ended


def test_everything_is_where_the_machine_looks_for_it(places: Places) -> None:
    goal, units = goal_of(WITH_TOKEN, token="s3cret"), Manager()
    ended = carry_out(goal, bare(), places, units)
    assert {each.outcome for each in ended} == {Outcome.DONE}
    assert {path: places.text(path) for path in goal.texts} == dict(goal.texts)
    token = places.at(Path("/etc/standfast/token"))
    assert token.read_text() == "s3cret\n" and stat.S_IMODE(token.stat().st_mode) == 0o600
    assert places.at(Path("/usr/local/bin/standfast")).readlink() == Path(
        "/opt/standfast/bin/standfast"
    )
    standby = places.at(Path("/persist/services-standby"))
    assert stat.S_IMODE(standby.stat().st_mode) == 0o700
    assert places.at(Path("/data/services")).is_dir()
    disabled = units.told.index("disable nfs-server.service")
    assert "daemon-reload" in units.told[:disabled]
    assert units.told[-1] == "start standfast-exporter.service"
    assert "s3cret" not in str(ended)


def test_what_was_written_is_noted_and_no_restart_is_left_over(places: Places) -> None:
    goal = goal_of(WITH_TOKEN, token="s3cret")
    carry_out(goal, bare(), places, Manager())
    noted = Installed.load(places.at(RECORD))
    assert all(noted.wrote(path, text) for path, text in goal.texts.items())
    assert noted.wrote(Path("/etc/standfast/token"), "s3cret\n")
    assert "s3cret" not in places.at(RECORD).read_text()
    assert noted.was_enabled == ("nfs-server.service",)
    assert "/data/services" in noted.directories
    assert not noted.restart


@pytest.mark.parametrize("cut", range(9))
def test_a_setup_that_was_cut_goes_on_where_it_was(places: Places, cut: int) -> None:
    goal = goal_of(WITH_TOKEN, token="s3cret")
    first = plan(bare(), goal)[:cut]
    execute(first, acts_of(effects_of(goal, bare(), places, Manager())), lambda _: None)
    seen = again(goal, places)
    units = Manager()
    ended = carry_out(goal, seen, places, units)
    assert {each.outcome for each in ended} <= {Outcome.DONE, Outcome.ALREADY}
    assert [each.do for each in ended[:cut] if each.outcome is Outcome.DONE] == []
    assert {path: places.text(path) for path in goal.texts} == dict(goal.texts)
    noted = Installed.load(places.at(RECORD))
    assert all(noted.wrote(path, text) for path, text in goal.texts.items())


def test_a_replaced_configuration_is_kept_beside_the_new_one(places: Places) -> None:
    goal = goal_of(TEXT)
    at = places.at(SOURCE)
    at.parent.mkdir(parents=True)
    at.write_text("# another\n")
    effects_of(goal, whole(goal), places, Manager()).config()
    assert at.read_text() == TEXT
    [kept] = [path for path in at.parent.iterdir() if path != at]
    assert kept.read_text() == "# another\n" and kept.suffix != ".toml"


def test_what_runs_is_restarted_the_lease_first_and_the_socket_never(places: Places) -> None:
    goal, units = goal_of(), Manager()
    effects_of(goal, whole(goal, installed=Installed(restart=True)), places, units).restart()
    restarts = [told for told in units.told if told.startswith("try-restart")]
    assert restarts[:3] == [
        "try-restart standfast-lease@data-services.service",
        "try-restart standfast-receive.service",
        "try-restart standfast-agent@data-services.service",
    ]
    assert not any(".socket" in told or ".timer" in told for told in restarts)
    assert not Installed.load(places.at(RECORD)).restart


@pytest.mark.parametrize(
    ("server", "told"),
    [
        (Server("enabled"), ["daemon-reload", "disable nfs-server.service"]),
        (Server("disabled", active=True), ["daemon-reload", "stop nfs-server.service"]),
        (
            Server("enabled", active=True, exports_others=True),
            ["daemon-reload", "disable nfs-server.service"],
        ),
        (
            Server("enabled", active=True, ours=True),
            ["daemon-reload", "disable nfs-server.service"],
        ),
    ],
)
def test_only_a_server_that_serves_nothing_is_stopped(
    places: Places, server: Server, told: list[str]
) -> None:
    goal, units = goal_of(), Manager()
    effects_of(goal, bare(server=server), places, units).server()
    assert units.told == told


def test_a_failure_ends_it_but_for_what_may_be_left_out() -> None:
    def fails() -> None:
        raise OSError(28, "No space left on device")

    ended: list[Ended] = []
    steps_ = [Step("a", "first", may_fail=True), Step("b", "second"), Step("c", "third")]
    well = execute(steps_, {"a": fails, "b": fails, "c": fails}, ended.append)
    assert not well
    assert [(each.do, each.outcome) for each in ended] == [("a", "failed"), ("b", "failed")]
    assert "No space left" in ended[0].text


def test_a_unit_that_does_not_start_is_told_and_tried_again(places: Places) -> None:
    goal = goal_of(WITH_TOKEN, token="s3cret")
    ended = carry_out(goal, bare(), places, Manager(fails="start standfast-agent@"))
    assert ended[-1].outcome is Outcome.FAILED and ended[-1].do == Do.ENABLE
    ended = carry_out(goal, again(goal, places), places, Manager())
    assert [each.do for each in ended if each.outcome is Outcome.DONE] == [
        Do.CHECK,
        Do.ENABLE,
        Do.WAIT,
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others' files are refused")
def test_the_check_is_the_look_that_processes_of_root_take(tmp_path: Path) -> None:
    places = Places(root=tmp_path)
    goal = goal_of(TEXT + '[replication]\ncommand = ["x"]\n')
    effects = effects_of(goal, bare(), places, Manager())
    effects.config()
    assert "can be used" in effects.check()
    places.at(SOURCE).chmod(0o666)
    with pytest.raises(Exception, match="chmod go-w"):
        effects.check()
