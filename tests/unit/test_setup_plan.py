"""`standfast setup`: what is in the way, and which steps follow in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace as with_fields

from standfast.errors import UsageError
from standfast.node.obstacle import Obstacle, Weight
from standfast.setup import given
from standfast.setup.observation import InConsul, Observed, Server
from standfast.setup.plan import Do, is_done, plan
from standfast.setup.readiness import Problem, problems
from standfast.setup.record import Installed
from standfast.setup.wanted import Wanted, drop_ins
from tests.unit.setups import (
    CLIENT,
    SOURCE,
    TEXT,
    bare,
    brought,
    config_of,
    goal_of,
    whole,
)

UNITS = Path("/etc/systemd/system")


def pending(seen: Observed, goal: Wanted) -> list[str]:
    return [step.do for step in plan(seen, goal) if step.pending]


def found(seen: Observed, goal: Wanted, *, yes: bool = False) -> list[Problem]:
    return problems(seen, goal, replace_config=yes)


# The steps


def test_a_storage_node_gets_everything_from_nothing_and_the_guard_before_the_server() -> None:
    goal = goal_of()
    order = pending(bare(), goal)
    assert order == [
        Do.CONFIG,
        Do.PROGRAMS,
        Do.PAGES,
        Do.UNITS,
        Do.CATALOG,
        Do.DIRECTORIES,
        Do.NFS_SERVER,
        Do.CHECK,
        Do.KEY,
        Do.ENABLE,
        Do.WAIT,
    ]
    assert UNITS / "nfs-server.service.d/standfast.conf" in goal.units
    assert goal.started[:2] == (
        "standfast-receive.socket",
        "standfast-agent@data-services.service",
    )


@pytest.mark.parametrize("text", [TEXT, CLIENT.replace("zippy", "elsewhere")])
def test_a_second_run_finds_that_everything_is_done(text: str) -> None:
    goal = goal_of(text)
    assert is_done(plan(whole(goal), goal))
    assert found(whole(goal), goal) == []


def test_a_client_gets_its_mount_units_and_no_guard() -> None:
    goal = goal_of(CLIENT)
    assert not goal.is_storage
    names = {path.name for path in goal.units}
    assert names == {
        "standfast-watch@.service",
        "standfast-resync.service",
        "standfast-resync.timer",
        "data-services.mount",
        "data-services.automount",
    }
    assert goal.started == (
        "data-services.automount",
        "standfast-watch@data-services.service",
        "standfast-resync.timer",
    )
    assert Do.NFS_SERVER not in pending(bare(), goal)
    assert Do.KEY not in pending(bare(), goal)


def test_a_client_that_mounts_by_a_unit_of_its_own_keeps_that() -> None:
    goal = goal_of(CLIENT, mounts=False)
    assert all(path.suffix not in (".mount", ".automount") for path in goal.units)
    assert goal.started[0] == "standfast-watch@data-services.service"
    [told] = found(bare(foreign_mount="/etc/fstab"), goal)
    assert not told.grave and "/etc/fstab" in told.evidence


def test_what_a_package_has_put_in_place_is_not_copied_again() -> None:
    ships = brought(by_package=frozenset(brought().units), pages={}, programs={})
    goal = goal_of(ships=ships)
    assert not goal.units and not goal.catalog and not goal.links
    shadowing = bare(shadowed=(UNITS / "standfast-agent@.service",))
    [problem] = found(shadowing, goal)
    assert problem.fix.startswith("rm /etc/systemd/system/standfast-agent@.service")


def test_the_package_of_a_client_is_too_little_for_a_storage_node() -> None:
    ships = brought(units={"standfast-watch@.service": ""})
    [problem] = found(bare(), goal_of(ships=ships))
    assert problem.check == "units" and "`standfast`" in problem.fix
    assert found(bare(), goal_of(CLIENT, ships=ships)) == []


def test_what_runs_reads_a_changed_file_the_lease_before_its_agent() -> None:
    goal = goal_of()
    seen = whole(goal, there=dict(goal.texts) | {SOURCE: TEXT + "# before\n"})
    assert pending(seen, goal) == [Do.CONFIG, Do.CHECK, Do.RESTART, Do.WAIT]


def test_what_runs_reads_a_file_that_was_edited_in_its_place() -> None:
    goal = goal_of()
    installed = Installed().with_files({SOURCE: TEXT + "# before\n"})
    assert pending(whole(goal, installed=installed), goal) == [
        Do.CONFIG,
        Do.CHECK,
        Do.RESTART,
        Do.WAIT,
    ]
    noted = Installed().with_files({SOURCE: goal.text})
    assert is_done(plan(whole(goal, installed=noted), goal))


def test_a_restart_that_was_cut_off_is_made_up_for() -> None:
    goal = goal_of()
    seen = whole(goal, installed=Installed(restart=True))
    assert pending(seen, goal) == [Do.CHECK, Do.RESTART]


@pytest.mark.parametrize(
    ("server", "is_pending", "says"),
    [
        (Server("disabled"), False, "isn't started at boot"),
        (Server("enabled"), True, "isn't started at boot"),
        (Server("disabled", active=True), True, "stop it now"),
        (Server("enabled", active=True, exports_others=True), True, "it runs on"),
        (Server("disabled", active=True, exports_others=True), False, "it runs on"),
        (Server("disabled", active=True, ours=True), False, "isn't started at boot"),
        (Server(""), False, "isn't started at boot"),
    ],
)
def test_a_server_that_serves_something_is_not_stopped(
    server: Server, is_pending: bool, says: str
) -> None:
    goal = goal_of()
    [step] = [step for step in plan(whole(goal, server=server), goal) if step.do == Do.NFS_SERVER]
    assert step.pending is is_pending
    assert says in step.says
    assert ("stop it now" in step.says) is (says == "stop it now")


def test_copies_that_everybody_may_enter_are_shut() -> None:
    goal = goal_of()
    standby = goal.config.paths.standby
    seen = whole(goal)
    seen = whole(goal, modes=dict(seen.modes) | {standby: 0o040755})
    assert pending(seen, goal) == [Do.DIRECTORIES, Do.CHECK]


# Drop-ins


def test_units_wait_for_a_disk_that_is_mounted_elsewhere() -> None:
    names = dict(drop_ins(config_of(), brought(), Path("/srv/my-data")))
    agent = names["standfast-agent@data-services.service.d/standfast-disk.conf"]
    assert "Wants=srv-my\\x2ddata.mount\nAfter=srv-my\\x2ddata.mount\n" in agent
    one = names["standfast-replicate@.service.d/standfast-data-services.conf"]
    assert "RequiresMountsFor=/srv/my-data\n" in one
    assert dict(drop_ins(config_of(), brought(), Path("/persist"))) == {}
    assert dict(drop_ins(config_of(), brought(), Path("/"))) == {}


def test_ganesha_gets_the_guard_without_exportfs_and_stops_with_a_lost_lease() -> None:
    config = config_of(TEXT + '[nfs]\nserver = "ganesha"\nunit = "nfs-ganesha.service"\n')
    names = dict(drop_ins(config, brought(), Path("/persist")))
    guard = names["nfs-ganesha.service.d/standfast.conf"]
    assert "ExecStartPre=nfs-server-guard\n" in guard and "exportfs" not in guard
    lost = names["standfast-lost@data-services.service.d/standfast-server.conf"]
    assert "Conflicts=nfs-ganesha.service\n" in lost
    goal = goal_of(TEXT + '[nfs]\nserver = "ganesha"\nunit = "nfs-ganesha.service"\n')
    assert Path("/etc/ganesha/exports.d") in goal.directories


def test_units_may_write_where_the_configuration_says() -> None:
    config = config_of(TEXT + '[paths]\nstate = "/srv/state"\nrun = "/run/other"\n')
    names = dict(drop_ins(config, brought(), Path("/persist")))
    lease = names["standfast-lease@data-services.service.d/standfast-paths.conf"]
    assert "ReadWritePaths=-/srv/state -/run/other\n" in lease
    ended = names["standfast-ended@data-services.service.d/standfast-run.conf"]
    assert "ConditionPathExists=!/run/other/data-services/nothing-held\n" in ended


# What is in the way


def test_every_problem_is_told_at_once_with_its_fix_and_the_gravest_first() -> None:
    seen = bare(
        has_systemd=False,
        lacking=("btrfs", "nft"),
        kernel=(5, 10),
        consul=InConsul(trouble="no answer at 127.0.0.1:8500"),
        obstacles=(
            Obstacle("exports", "/etc/exports:1 exports it, too", "take it out"),
            Obstacle("flags", "some files have +C", "a hook", Weight.TOLD),
        ),
    )
    told = found(seen, goal_of())
    assert [problem.check for problem in told if problem.grave] == [
        "systemd",
        "programs",
        "programs",
        "consul",
        "exports",
    ]
    assert {problem.check for problem in told if not problem.grave} == {"kernel", "flags"}
    assert [problem.grave for problem in told] == sorted(
        (problem.grave for problem in told), reverse=True
    )
    assert all(problem.fix for problem in told)


def test_a_node_that_consul_calls_otherwise_is_refused() -> None:
    [problem] = found(bare(consul=InConsul("zippy2")), goal_of())
    assert problem.check == "name" and problem.grave


def test_another_configuration_is_replaced_only_when_that_was_said() -> None:
    goal = goal_of()
    seen = bare(there={SOURCE: "cluster = 'other'\n"})
    [problem] = found(seen, goal)
    assert problem.check == "config" and problem.grave
    assert found(seen, goal, yes=True) == []


def test_a_token_is_asked_for_and_has_a_place() -> None:
    with_place = TEXT + '[consul]\ntoken_file = "/etc/standfast/token"\n'
    [problem] = found(bare(), goal_of(with_place))
    assert problem.check == "token" and "--token" in problem.fix
    assert found(bare(token="0123"), goal_of(with_place)) == []
    assert found(bare(), goal_of(with_place, token="0123")) == []
    [problem] = found(bare(), goal_of(token="0123"))
    assert 'token_file = "/etc/standfast/token"' in problem.fix


def test_a_mount_unit_of_somebody_else_is_not_replaced() -> None:
    goal = goal_of(CLIENT)
    path = UNITS / "data-services.mount"
    [problem] = found(bare(there={path: "[Mount]\nWhat=elsewhere:/\n"}), goal)
    assert problem.check == "units" and str(path) in problem.evidence
    assert found(bare(there={path: "# Standfast's, of an earlier version\n"}), goal) == []


# The configuration


def test_the_nodes_name_is_the_first_key_and_there_once() -> None:
    text = '# ours\ncluster = "a"\nnode = "b"\n[nodes.b]\naddress = "192.168.1.9"\n'
    changed = given.with_node(text, "c")
    assert changed.startswith('node = "c"\n# ours\ncluster = "a"\n[nodes.b]\n')
    assert given.with_node(changed, "c") == changed


def test_a_name_is_written_only_where_nothing_else_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box.example")
    assert given.own_name(TEXT, None, "zippy") is None
    assert given.own_name(CLIENT, None, "zippy") == "zippy"
    assert given.own_name(CLIENT, None, "") is None
    assert given.own_name(CLIENT, None, "a-client") is None
    assert given.own_name(TEXT, "c1", "") == "c1"
    assert given.own_name(CLIENT, "box", "") is None
    with pytest.raises(UsageError, match="none of the storage nodes"):
        given.own_name(TEXT, "c7", "")


def test_a_new_configuration_obeys_every_rule_and_says_what_was_answered() -> None:
    answers = given.Answers(
        "home", {"a": "192.168.1.2", "b.lan": "192.168.1.3"}, ["192.168.1.0/24"], "/etc/t"
    )
    config = config_of(given.new_text("data-services", answers))
    assert list(config.nodes) == ["a", "b.lan"]
    assert config.nodes["b.lan"].address == "192.168.1.3"
    assert (config.cluster, str(config.consul.token_file)) == ("home", "/etc/t")
    assert config == with_fields(config, source=SOURCE)
