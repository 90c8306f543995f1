"""`standfast uninstall`: who forbids it, what goes in which order, and what stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from standfast.config.model import Config
from standfast.errors import Refused, StandfastError, UsageError
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.replication.authorized import Bound, authorized_line, without_lines
from standfast.replication.keys import PublicKey
from standfast.setup import removal_look, removal_steps
from standfast.setup.execute import Ended, Outcome, execute
from standfast.setup.record import NAME, Installed
from standfast.setup.removal import Ask, Do, InConsul, Leaving, check, is_done, plan
from standfast.setup.removal_look import Look
from standfast.setup.removal_steps import Effects
from standfast.setup.shipped import Places
from standfast.setup.steps import Effects as SetupEffects
from standfast.system.locks import exclusive
from tests.unit.setups import SOURCE, TEXT, Manager, bare, brought, config_of, goal_of

UNITS = Path("/etc/systemd/system")
RECORD = Path("/var/lib/standfast") / NAME
ALONE = TEXT.replace('[nodes.c1]\naddress = "192.168.1.3"\n', "")
KEY = PublicKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43 + "A=", "standfast-test-c1")


def leaving(**changes: Any) -> Leaving:
    """A standby with everything."""
    seen = Leaving(
        config_of(),
        last=True,
        consul=InConsul(own=("standfast/data-services/candidates/zippy",), keys=4),
        units=("standfast-agent@data-services.service", "standfast-exporter.service"),
        fenced=True,
        files=(UNITS / "standfast-agent@.service",),
        was_enabled=("nfs-server.service",),
        lines=1,
        keys=(Path("/etc/standfast/replication_key"),),
        run=(Path("/run/standfast/data-services"),),
        state=(Path("/var/lib/standfast/data-services"), SOURCE),
    )
    return replace(seen, **changes)


def pending(seen: Leaving, ask: Ask) -> list[str]:
    return [step.do for step in plan(seen, ask) if step.pending]


# Who forbids it


def refusal(seen: Leaving, ask: Ask) -> tuple[Reason, str]:
    with pytest.raises(Refused) as refused:
        check(seen, ask)
    return refused.value.reason, str(refused.value)


PRIMARY = leaving(role="epoch 3, ready", fsid="f-s-i-d")


def test_a_standby_may_go_whoever_serves() -> None:
    check(leaving(consul=InConsul(others=("c1",), holder="c1")), Ask())
    check(leaving(consul=InConsul(trouble="no answer")), Ask())
    check(leaving(), Ask(package=True))


@pytest.mark.parametrize("ask", [Ask(), Ask(cluster=True), Ask(package=True)])
def test_the_primary_hands_the_role_over_first(ask: Ask) -> None:
    reason, text = refusal(PRIMARY, ask)
    assert reason is Reason.SERVING
    assert "standfast switchover" in text and "demote" in text


def test_only_the_last_storage_node_goes_on_serving() -> None:
    check(PRIMARY, Ask(keep_serving=True))
    left = replace(PRIMARY, consul=InConsul(others=("c1",)))
    reason, text = refusal(left, Ask(keep_serving=True))
    assert reason is Reason.STILL_IN_USE and "c1" in text
    assert "consul kv delete" in text and "standfast/data-services/standbys/c1" in text
    unknown = replace(PRIMARY, consul=InConsul(trouble="no answer"))
    assert refusal(unknown, Ask(keep_serving=True))[0] is Reason.STILL_IN_USE
    assert refusal(leaving(), Ask(keep_serving=True))[0] is Reason.NOT_PRIMARY
    drains = replace(PRIMARY, fsid=None)
    assert refusal(drains, Ask(keep_serving=True))[0] is Reason.NOT_PRIMARY
    ganesha = config_of(TEXT + '[nfs]\nserver = "ganesha"\n')
    with pytest.raises(UsageError, match="ganesha"):
        check(replace(PRIMARY, config=ganesha), Ask(keep_serving=True))


def test_a_node_that_has_more_than_this_volume_does_not_go_on_serving_it_so() -> None:
    """The fence shuts the port for all of them when the lease of one is over."""
    reason, text = refusal(replace(PRIMARY, last=False), Ask(keep_serving=True))
    assert reason is Reason.STILL_IN_USE and "other volumes" in text


def test_the_guard_of_a_package_would_refuse_the_plain_server() -> None:
    with pytest.raises(UsageError, match="apt purge"):
        check(replace(PRIMARY, by_package=True), Ask(keep_serving=True))


def test_a_file_of_exports_that_is_somebodys_is_not_written_over() -> None:
    taken = replace(PRIMARY, export_taken=Path("/etc/exports.d/data-services.exports"))
    reason, text = refusal(taken, Ask(keep_serving=True))
    assert reason is Reason.STILL_IN_USE and "/etc/exports.d/data-services.exports" in text


def test_consul_is_emptied_only_when_nobody_is_left_who_uses_it() -> None:
    check(leaving(), Ask(cluster=True))
    held = leaving(consul=InConsul(holder="c1"))
    assert "c1 holds the lease" in refusal(held, Ask(cluster=True))[1]
    used = leaving(consul=InConsul(others=("c1", "c2")))
    reason, text = refusal(used, Ask(cluster=True))
    assert reason is Reason.STILL_IN_USE and "c1, c2" in text
    unknown = leaving(consul=InConsul(trouble="no answer"))
    assert refusal(unknown, Ask(cluster=True))[0] is Reason.STILL_IN_USE


# The steps


def test_what_would_start_something_goes_before_the_rules_and_the_state_last() -> None:
    assert pending(leaving(mounted="bind", exported=True), Ask()) == [
        Do.STOP,
        Do.UNMOUNT,
        Do.FENCE,
        Do.UNEXPORT,
        Do.FILES,
        Do.NFS_SERVER,
        Do.LINES,
        Do.KEYS,
        Do.CONSUL,
        Do.RUN,
        Do.STATE,
    ]


def test_a_plain_export_is_there_before_ours_goes_and_nothing_is_unmounted() -> None:
    steps = pending(replace(PRIMARY, exported=True, mounted="bind"), Ask(keep_serving=True))
    assert steps.index(Do.PLAIN_EXPORT) < steps.index(Do.STOP) < steps.index(Do.FENCE)
    assert steps.index(Do.FENCE) < steps.index(Do.UNEXPORT) < steps.index(Do.NFS_SERVER)
    assert Do.UNMOUNT not in steps
    assert steps.index(Do.FILES) < steps.index(Do.BIND)


def test_a_package_keeps_its_own_files_and_the_state() -> None:
    steps = pending(leaving(), Ask(package=True))
    assert Do.STATE not in steps and Do.KEYS not in steps
    assert {Do.STOP, Do.FENCE, Do.LINES, Do.RUN} <= set(steps)


def test_state_and_keys_stay_when_that_was_the_answer() -> None:
    steps = pending(leaving(), Ask(forget=False))
    assert Do.STATE not in steps and Do.KEYS not in steps


def test_what_other_volumes_need_stays() -> None:
    steps = pending(leaving(last=False), Ask())
    assert Do.FENCE not in steps and Do.NFS_SERVER not in steps


def test_a_second_run_has_nothing_to_do() -> None:
    assert is_done(plan(Leaving(config_of(), last=True), Ask()))
    assert not is_done(plan(leaving(), Ask()))


# Whose a file is


def at(places: Places, path: Path, text: str) -> Path:
    target = places.at(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    return target


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(root=tmp_path, prefix=tmp_path / "opt/standfast")


def set_up(places: Places, text: str = ALONE) -> None:
    goal = goal_of(text)
    effects = SetupEffects(goal, bare(), places, Manager(), lambda _config: True)
    for do in (effects.config, effects.programs, effects.unit_files, effects.directories):
        do()


def seen_files(places: Places, *, last: bool = True) -> tuple[list[Path], list[Path]]:
    look = Look(config_of(ALONE), last, brought(), places)
    return look._files(look._goal(), Installed.load(places.at(RECORD)))


def test_what_setup_put_here_goes_and_what_was_changed_since_stays(places: Places) -> None:
    set_up(places)
    mine = at(places, UNITS / "standfast-watch@.service", "# changed\n")
    at(places, UNITS / "other.service", "[Unit]\n")
    files, altered = seen_files(places)
    assert altered == [UNITS / "standfast-watch@.service"] and mine.exists()
    assert UNITS / "standfast-agent@.service" in files
    assert UNITS / "nfs-server.service.d/standfast.conf" in files
    assert Path("/usr/local/bin/standfast") in files
    assert UNITS / "other.service" not in files
    assert SOURCE not in files, "it is told apart from files that anybody may have"


def test_units_that_were_copied_by_hand_are_known_by_what_they_say(places: Places) -> None:
    for name, text in brought().units.items():
        at(places, UNITS / name, text)
    at(places, UNITS / "standfast-agent@.service", "# an older version\n")
    files, altered = seen_files(places)
    assert UNITS / "standfast-lease@.service" in files
    assert altered == [UNITS / "standfast-agent@.service"]


def test_of_several_volumes_the_last_one_takes_the_shared_files_along(places: Places) -> None:
    set_up(places)
    files, _ = seen_files(places, last=False)
    assert files == []


def test_drop_ins_in_run_go_too_but_for_those_of_another_mount(places: Places) -> None:
    runtime = Path("/run/systemd/system")
    timer = runtime / "standfast-replicate@data-services:c1.timer.d/interval.conf"
    bind = runtime / "data-services.mount.d/standfast-bind.conf"
    for path in (timer, bind, runtime / "srv-other.mount.d/standfast-bind.conf"):
        at(places, path, "[Mount]\n")
    files, _ = seen_files(places)
    assert files == [bind, timer]


def test_settings_of_the_server_go_only_where_they_are_ours(places: Places) -> None:
    path = Path("/etc/nfs.conf.d/standfast.conf")
    at(places, path, "# Written by Standfast before each start of the server\n[nfsd]\n")
    assert seen_files(places)[0] == [path]
    at(places, path, "# by me\n")
    assert seen_files(places)[0] == []


def test_a_replication_key_that_an_operator_made_stays(places: Places) -> None:
    key = Path("/etc/standfast/replication_key")
    at(places, key, "private\n")
    public = at(places, key.with_name(f"{key.name}.pub"), "ssh-ed25519 AAAA root@zippy\n")
    look = Look(config_of(), True, brought(), places)
    assert list(look._keys()) == []
    public.write_text("ssh-ed25519 AAAA standfast-test-zippy\n")
    assert list(look._keys()) == [key, key.with_name(f"{key.name}.pub")]


# The lines of other nodes' keys


def test_only_lines_that_let_a_key_receive_are_taken_out() -> None:
    ours = f"{authorized_line('data-services', Bound('c1', '192.168.1.3'), KEY)}\n".encode()
    media = f"{authorized_line('media', Bound('c1', None), KEY)}\n".encode()
    every = f"{authorized_line(None, Bound('c1', None), KEY)}\n".encode()
    mine = f'# a comment\nssh-ed25519 AAAAB3 me@home\ncommand="backup" {KEY}\n'.encode()
    text = mine + ours + media + every + b"\xff\xfe no key"
    assert without_lines(text, "data-services") == (mine + media + every + b"\xff\xfe no key", 1)
    assert without_lines(text, None) == (mine + b"\xff\xfe no key", 3)
    assert without_lines(b"", None) == (b"", 0)


# Effects


class Gateway:
    """A Consul with a few keys."""

    def __init__(self) -> None:
        self.keys = {"standfast/data-services/epoch", "standfast-clients/data-services/web"}
        self.deregistered: list[str] = []

    def deregister(self, service_id: str) -> None:
        self.deregistered.append(service_id)

    def get_many(self, prefix: str) -> Sequence[object]:
        class Entry:
            def __init__(self, key: str) -> None:
                self.key = key

        return [Entry(key) for key in sorted(self.keys) if key.startswith(prefix)]

    def delete(self, key: str) -> None:
        self.keys.discard(key)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    made = Gateway()

    class Maker:
        @staticmethod
        def from_config(*_: object, **__: object) -> Gateway:
            return made

    monkeypatch.setattr(removal_steps, "ConsulGateway", Maker)
    return made


def effects(seen: Leaving, places: Places, units: Manager | None = None) -> Effects:
    return Effects(seen, places, units or Manager())  # type: ignore[arg-type]


def test_the_keys_of_a_volume_go_and_those_of_others_stay(places: Places, gateway: Gateway) -> None:
    gateway.keys |= {"standfast/data-services-2/epoch", "standfast/media/epoch"}
    effects(leaving(), places).cluster()
    assert gateway.keys == {"standfast/data-services-2/epoch", "standfast/media/epoch"}


def test_a_node_takes_back_what_it_said_of_itself(places: Places, gateway: Gateway) -> None:
    own = "standfast/data-services/candidates/zippy"
    gateway.keys.add(own)
    effects(leaving(), places).consul()
    assert gateway.deregistered == ["standfast-data-services"]
    assert own not in gateway.keys and len(gateway.keys) == 2
    with pytest.raises(StandfastError, match="no answer"):
        effects(leaving(consul=InConsul("no answer")), places).consul()


def test_the_plain_export_is_the_same_line_with_the_same_handles(places: Places) -> None:
    fsid = "0f1e2d3c-0000-4000-8000-123456789abc"
    effects(replace(PRIMARY, fsid=fsid), places).plain_export()
    text = places.at(Path("/etc/exports.d/data-services.exports")).read_text()
    assert text.startswith('"/persist/services"') or text.startswith("/persist/services")
    assert f"fsid={fsid}" in text and "no_root_squash" in text


def test_the_mount_of_a_dead_server_is_not_waited_for(places: Places) -> None:
    manager = Manager()
    units = ("standfast-watch@data-services.service", "data-services.mount")
    effects(leaving(units=units), places, manager).stop()
    assert "disable data-services.mount" in manager.told
    assert "stop data-services.mount" not in manager.told
    assert "stop standfast-watch@data-services.service" in manager.told


def here(tmp_path: Path, text: str = TEXT) -> Config:
    paths = f'[paths]\nstate = "{tmp_path}/state"\nrun = "{tmp_path}/run"\n'
    return config_of(text + paths)


def test_a_node_that_takes_over_meanwhile_keeps_its_agent(tmp_path: Path, places: Places) -> None:
    config, manager = here(tmp_path), Manager()
    made = effects(leaving(config=config), places, manager)
    OwnEpoch(4, Stage.READY, "fsid", None, in_place=False).save(config.state_dir)
    with pytest.raises(Refused, match="epoch 4"):
        made.stop()
    agent = "standfast-agent@data-services.service"
    assert manager.told == [f"stop {agent}", f"start {agent}"]
    OwnEpoch.forget(config.state_dir)
    with exclusive(config.run_dir / "lease.lock", "a lease process"), pytest.raises(Refused):
        made.stop()
    made.stop()
    assert manager.told[-1] == "stop standfast-exporter.service"


def test_nothing_goes_while_it_is_not_known_what_runs() -> None:
    blind = leaving(blind="the units: no answer in time")
    assert refusal(blind, Ask())[0] is Reason.STILL_IN_USE
    assert refusal(blind, Ask(package=True))[0] is Reason.STILL_IN_USE


def test_files_go_with_their_empty_directories_and_data_stays(places: Places) -> None:
    set_up(places)
    data = at(places, Path("/persist/services-standby/services@20261122T101500Z/file"), "data")
    files, _ = seen_files(places)
    state = (Path("/var/lib/standfast/data-services"), SOURCE, RECORD)
    at(places, state[0] / "epoch", "3\n")
    made = effects(leaving(files=tuple(files), state=state), places)
    made.files()
    made.state()
    left = [str(path) for path in places.root.rglob("*") if not path.is_dir()]
    assert left == [str(data)]
    assert not places.at(Path("/data/services")).exists(), "setup made it, and it is empty"
    assert not places.at(Path("/var/lib/standfast")).exists()
    assert not places.at(UNITS / "nfs-server.service.d").exists()


def test_a_configuration_that_setup_did_not_write_is_kept_beside(places: Places) -> None:
    at(places, SOURCE, "# by hand\n")
    effects(leaving(state=(SOURCE,)), places).state()
    [kept] = places.at(SOURCE).parent.iterdir()
    assert kept.read_text() == "# by hand\n" and kept.suffix != ".toml"


def test_a_removal_that_was_cut_is_made_again_from_what_is_left(
    places: Places, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal_steps, "revoke", lambda *_: 0)
    monkeypatch.setattr(removal_steps, "authorized_keys_of", lambda _: Path("/none"))
    monkeypatch.setattr(removal_steps, "take_away", lambda *_: None)
    set_up(places)
    files, _ = seen_files(places)
    state = (SOURCE, RECORD)
    seen = leaving(files=tuple(files), state=state, run=())
    fails = Manager(fails="enable nfs-server")
    ended: list[Ended] = []
    assert not execute(plan(seen, Ask()), effects(seen, places, fails).acts(), ended.append)
    assert ended[-1].do == Do.NFS_SERVER and ended[-1].outcome is Outcome.FAILED
    assert places.at(RECORD).exists() and places.at(SOURCE).exists()
    assert seen_files(places) == ([], [])
    again = replace(seen, files=(), units=())
    assert execute(plan(again, Ask()), effects(again, places).acts(), ended.append)
    assert not places.at(RECORD).exists() and not places.at(SOURCE).exists()


def test_the_heartbeats_of_another_holder_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from standfast.consul.records import Holder, Leader, LeaderState

    def beat(seq: int, node: str = "c1", state: LeaderState = LeaderState.SERVING) -> Leader:
        return Leader(3, Holder(node, "boot"), seq, state, (), wait=0.01)

    def holder(*beats: Leader) -> str | None:
        left = list(beats)
        monkeypatch.setattr(
            removal_look, "leader_of", lambda *_: left.pop(0) if len(left) > 1 else left[0]
        )
        monkeypatch.setattr(removal_look, "sleep", lambda _: None)
        config = config_of(TEXT + "[lease]\nheartbeat = 0.5\nrequest_timeout = 0.5\nlength = 2.0\n"
                           "fence = 1.0\nwait = 4.1\n")  # fmt: skip
        quick = Deadlines()
        monkeypatch.setattr(removal_look, "Deadline", quick)
        return removal_look._holder(object(), config)  # type: ignore[arg-type]

    class Deadlines:
        """Over after three looks."""

        left = 3

        def after(self, _seconds: float) -> Deadlines:
            return self

        @property
        def expired(self) -> bool:
            self.left -= 1
            return self.left < 0

    assert holder(beat(1), beat(1), beat(2)) == "c1"
    assert holder(beat(1)) is None
    assert holder(beat(1, state=LeaderState.CLEAN)) is None
    assert holder(beat(1, "zippy"), beat(2, "zippy")) is None
