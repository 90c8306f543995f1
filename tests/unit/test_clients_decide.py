"""What a client decides, case by case, and what it then does in which order."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.clients import dependants, notes
from standfast.clients.decide import PATIENCE_S, Action, decide, turn_s
from standfast.clients.loop import Remount, look, role_of, server_of
from standfast.clients.observation import (
    Answer,
    NoServer,
    Note,
    Observed,
    Role,
    Server,
    Tie,
    Unreadable,
)
from standfast.clients.plan import Do
from standfast.clients.ports import Namespace, Use
from standfast.config.client import Client
from standfast.consul.records import Leader, LeaderState
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from standfast.system.locks import exclusive
from standfast.system.mountinfo import Mount
from tests.fakes.client import FakeClient, fake_client, fsid, instance
from tests.support.configs import config_in

A, B = "192.168.1.2", "192.168.1.3"
CONFIG = structs.replace(config_in(Path("/x")), node="client", client=Client(spread=4.0))


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    monkeypatch.setattr("standfast.clients.loop.sleep", lambda _: None)
    return fake_client(tmp_path)


def nfs(address: str, number: int = 30) -> Mount:
    path, live = str(CONFIG.paths.bind), str(CONFIG.paths.live)
    return Mount("0:50", "/", path, "nfs4", number, f"name:{live}", f"rw,addr={address}")


def server(address: str, epoch: int, tree: int) -> Server:
    return Server("n", address, frozenset({address}), epoch, fsid(tree))


# Which server


def test_the_entry_of_the_holder_of_the_epoch_serves(client: FakeClient) -> None:
    client.hold(B, 7)
    client.instances_ = [
        instance("10.0.0.1", 9999, fsid(9)),
        instance(A, 8, fsid(8)),
        instance(A, 7, fsid(3)),
        instance(B, 6, fsid(6)),
        instance(B, 7, fsid(7)),
    ]
    chosen = server_of(client.parts)
    assert isinstance(chosen, Server)
    assert (chosen.address, chosen.epoch, chosen.fsid) == (B, 7, fsid(7))
    assert chosen.strangers == ()


def test_a_node_that_may_serve_next_and_would_not_be_followed_is_known(client: FakeClient) -> None:
    client.hold(B, 7, candidates=("n1", "n9"))
    client.instances_ = [instance(B, 7, fsid(7))]
    chosen = server_of(client.parts)
    assert isinstance(chosen, Server) and chosen.strangers == ("n9",)


@pytest.mark.parametrize(
    "changes",
    [
        {"checks": "critical"},
        {"checks": "warning"},
        {"node_health": "critical"},
        {"has_own_check": False},
        {"service_id": "by-hand"},
        {"address": "10.0.0.9"},
        {"node": "n3"},
        {"meta": {}},
        {"meta": {"epoch": "many"}},
        {"meta": {"epoch": "6"}},
        {"meta": {"epoch": "8"}},
    ],
    ids=str,
)
def test_no_other_entry_is_followed(client: FakeClient, changes: dict[str, Any]) -> None:
    """The mount stays, though what was mounted is no better: nobody says where to go."""
    client.mounted(A, 1)
    client.hold(B, 7)
    client.instances_ = [structs.replace(instance(B, 7, fsid(7)), **changes)]
    service = server_of(client.parts)
    assert isinstance(service, NoServer) and "n2, at 192.168.1.3, holds epoch 7" in service.sentence
    client.run()
    assert client.log == []


def test_an_address_in_another_spelling_is_the_same(client: FakeClient) -> None:
    client.hold(B, 7)
    client.instances_ = [structs.replace(instance(B, 7, fsid(7)), address=f"::ffff:{B}")]
    assert isinstance(server_of(client.parts), Server)


@pytest.mark.parametrize("lacks", ["epoch", "leader"])
def test_without_a_key_nobody_is_followed(client: FakeClient, lacks: str) -> None:
    client.serve(B, 7, 7)
    del client.keys[client.config.key(lacks)]
    assert isinstance(server_of(client.parts), NoServer)


@pytest.mark.parametrize("name", ["epoch", "leader"])
def test_a_foreign_key_is_told(client: FakeClient, name: str) -> None:
    client.serve(B, 7, 7)
    client.keys[client.config.key(name)] = b"7"
    service = server_of(client.parts)
    assert isinstance(service, Unreadable) and service.reason is Reason.FOREIGN_VALUE


def test_who_gave_the_role_up_is_not_followed_any_more(client: FakeClient) -> None:
    """Its entry may be in the catalogue for a while yet."""
    client.serve(B, 7, 7)
    leader = Leader.parse(client.keys[client.config.key("leader")])
    clean = structs.replace(leader, state=LeaderState.CLEAN)
    client.keys[client.config.key("leader")] = clean.dump()
    assert isinstance(server_of(client.parts), NoServer)


def test_a_failover_is_followed_once_its_primary_is_registered_and_never_back(
    client: FakeClient,
) -> None:
    client.serve(A, 7, 7)
    client.run()
    seen = []
    old, new = instance(A, 7, fsid(7)), instance(B, 8, fsid(8))
    client.trees[B] = 8
    for listed in ([old], [old, new], [new], [old, new]):
        client.hold(B, 8)
        client.instances_ = listed
        client.run()
        assert client.top is not None
        seen.append(client.top.address)
    assert seen == [A, B, B, B]
    assert sum(entry.startswith("mount:") for entry in client.log) == 2, "it doesn't flap"


def test_nobody_healthy_is_no_server_and_never_a_reason_to_unmount(client: FakeClient) -> None:
    client.mounted(A, 1)
    client.instances_ = [instance(A, 1, fsid(1), checks="critical")]
    assert isinstance(server_of(client.parts), NoServer)
    client.run()
    assert client.log == []


def test_a_name_that_does_not_resolve_changes_nothing() -> None:
    unresolved = replace(server("n2.lan", 2, 2), addresses=frozenset())
    decision = decide(Observed(unresolved, (nfs(A),), answer=Answer.HANGS), CONFIG)
    assert (decision.action, decision.reason) == (Action.WAIT, Reason.NO_SERVER)
    assert "can't be resolved" in decision.sentence


@pytest.mark.parametrize(
    "service", [NoServer("none"), Unreadable(Reason.CONSUL_TIMEOUT, "it hangs"), server(A, 7, 2)]
)
def test_a_node_that_mounts_nothing_is_no_client_whoever_serves(service: Any) -> None:
    """Doctor has nothing to say of its mount then, least of all that it is missing."""
    assert decide(Observed(service, ()), CONFIG).reason is Reason.NOT_A_CLIENT
    tied = Observed(service, (), tie=Tie(unit=True))
    assert decide(tied, CONFIG).reason is not Reason.NOT_A_CLIENT


# Turns


def test_a_thousand_clients_are_spread_evenly_and_each_always_has_the_same_turn() -> None:
    turns = [turn_s(structs.replace(CONFIG, node=f"client-{n}"), 7) for n in range(1000)]
    assert turns == [turn_s(structs.replace(CONFIG, node=f"client-{n}"), 7) for n in range(1000)]
    assert min(turns) >= 0 and max(turns) < 4.0
    tenths = [sum(1 for turn in turns if n * 0.4 <= turn < (n + 1) * 0.4) for n in range(10)]
    assert min(tenths) > 60 and max(tenths) < 140
    later = [turn_s(structs.replace(CONFIG, node=f"client-{n}"), 8) for n in range(1000)]
    assert abs(statistics.correlation(turns, later)) < 0.2, "the last one isn't always the last"


def test_a_storage_node_goes_first() -> None:
    assert turn_s(structs.replace(CONFIG, node="n2"), 7) == 0.0


def test_what_was_waited_counts_and_a_mount_that_needs_no_change_never_waits() -> None:
    observed = Observed(server(B, 7, 2), (nfs(A),))
    turn = turn_s(CONFIG, 7)
    assert decide(observed, CONFIG).later_s == turn > 0
    assert decide(replace(observed, waited_s=turn), CONFIG).later_s == 0
    well = Observed(server(A, 7, 2), (nfs(A),), answer=Answer.ANSWERS)
    assert decide(well, CONFIG).later_s == 0


def test_an_attempt_of_the_automount_itself_gets_a_moment() -> None:
    autofs = Mount("0:9", "/", str(CONFIG.paths.bind), "autofs")
    tie = Tie(automount=True, mounting=True)
    config = structs.replace(CONFIG, client=Client(spread=0.0))
    observed = Observed(server(B, 7, 2), (autofs,), tie=tie)
    assert decide(observed, config).later_s == PATIENCE_S
    assert decide(replace(observed, waited_s=PATIENCE_S), config).action is Action.MOUNT


# What the note is worth


def test_a_note_of_a_mount_with_the_same_number_does_not_condemn_a_healthy_one(
    client: FakeClient,
) -> None:
    """Expired and mounted again by an access, while the server was promoted anew."""
    client.tie_ = Tie(automount=True)
    for kernel in (True, False):
        client.kernel = kernel
        client.serve(A, 1, 1)
        before = client.mounted(A, 1)
        client.run()
        noted = notes.load(client.config.run_dir)
        assert noted is not None and noted.mount_id == before.id
        client.pop()
        client.serve(A, 2, 2)
        again = client.mounted(A, 2)
        assert (again.id, again.device) == (before.id, before.device)
        client.run()
        assert client.sins == []
        assert not [entry for entry in client.log if entry.startswith("let-go")]
        client.pop()
        (client.config.run_dir / "mounted.json").unlink()


def test_an_older_epoch_than_was_mounted_is_not_followed(client: FakeClient) -> None:
    client.serve(B, 5, 5)
    client.run()
    client.serve(A, 4, 4)
    client.run()
    assert client.top is not None and client.top.address == B


def test_a_note_of_an_epoch_that_no_key_confirmed_holds_nobody(client: FakeClient) -> None:
    """An older version mounted whatever was registered, with whatever epoch."""
    client.serve(B, 5, 5)
    client.run()
    noted = notes.load(client.config.run_dir)
    assert noted is not None and noted.confirmed
    forged = structs.replace(noted, epoch=9999, confirmed=False)
    notes.save(client.config.run_dir, forged)
    client.serve(A, 6, 6)
    client.run()
    assert client.top is not None and client.top.address == A


def test_a_note_that_can_not_be_read_counts_as_none(client: FakeClient) -> None:
    client.serve(A, 1, 1)
    path = client.config.run_dir / "mounted.json"
    path.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"v": 1}', '{"v":1,"kind":1,"address":[],"fsid":0,"epoch":"x"}'):
        path.write_text(text)
        assert notes.load(client.config.run_dir) is None
    client.run()
    assert client.is_right()


# Steps, in their order


def test_a_remount_lists_lets_go_mounts_binds_verifies_and_then_sees_to_the_users(
    client: FakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.config = structs.replace(
        client.config,
        client=Client(spread=0.0, binds=("/srv/a",), restart_units=("web.service",)),
    )
    client.dependants_, client.running = ("db.service",), ("web.service",)
    client.uses = (Use(41, "vi", f"{client.path}/x", "user@0.service", writes=True, hangs=True),)
    client.serve(A, 1, 1)
    old = client.mounted(A, 1)
    client.bound(old, Path("/srv/a"), "/sub/dir")
    client.bound(old, Path("/srv/b"))
    client.others = (Namespace("mnt:[7]", (77,), ("box.service",), (old,)),)
    client.run()
    assert client.log == ["probe"], "an adopted mount of a first look restarts nobody"
    client.log.clear()
    client.serve(B, 2, 2)
    remount = client.run()
    path, live = client.path, client.config.paths.live
    assert client.log == [
        "users",
        f"let-go:{path}",
        f"mount:{B}:{live}:nosuid,nodev,vers=4.2,hard,retry=0",
        "let-go:/srv/a",
        f"bind:{path}/sub/dir:/srv/a",
        "probe",
        "restart:db.service,web.service",
        "probe",
    ]
    assert client.woken == [path], "one mount of a server wakes those who wait at another, too"
    said = "\n".join(remount.said)
    assert f"vi (pid 41, user@0.service) has {client.path}/x of the old mount open" in said
    assert "box.service keeps the old mount at" in said
    assert "the bind mount at /srv/b stays on the old server" in said
    assert client.sins == []


def test_a_server_that_rebooted_in_place_is_only_noted(client: FakeClient) -> None:
    client.serve(A, 1, 1)
    client.run()
    client.log.clear()
    client.serve(A, 2, 1)
    client.run()
    assert client.log == ["probe"]
    noted = notes.load(client.config.run_dir)
    assert noted is not None and noted.epoch == 2


def test_a_stale_mount_of_the_right_server_is_replaced(client: FakeClient) -> None:
    """Promoted anew at the same address, without a word of its fsid in the catalog."""
    client.serve(A, 1, 1)
    client.run()
    client.serve(A, 2, 2)
    client.instances_[0] = structs.replace(client.instances_[0], meta={"epoch": "2"})
    client.run()
    top = client.top
    assert top is not None and client.really[top.id] == (A, 2)


def test_a_mount_that_hangs_while_its_server_is_still_named_is_waited_for(
    client: FakeClient,
) -> None:
    client.serve(A, 1, 1)
    client.run()
    client.trees[A] = None
    client.log.clear()
    decision = client.run().decide()[1]
    assert client.log == ["probe"] * 2, "one look each"
    assert (decision.action, decision.reason) == (Action.WAIT, Reason.SERVER_AWAY)


def test_a_mount_made_by_hand_is_mounted_again_after_an_attempt_that_failed(
    client: FakeClient,
) -> None:
    """Nothing else says then that this node is a client."""
    client.tie_ = Tie()
    client.serve(A, 1, 1)
    client.mounted(A, 1)
    client.run()
    client.serve(B, 2, 2)
    client.fail = "mount"
    client.run()
    assert client.top is None
    client.run()
    assert client.is_right()
    client.pop()
    client.run()
    assert client.top is None, "who unmounts it by hand means it"


def test_users_are_seen_to_even_when_a_run_is_cut_off_between_mount_and_note(
    client: FakeClient,
) -> None:
    client.dependants_ = ("db.service",)
    client.serve(A, 1, 1)
    client.run()
    client.serve(B, 2, 2)

    def cut(*_: object) -> object:
        raise KeyboardInterrupt

    client.dependants, kept = cut, client.dependants  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        client.run()
    client.dependants = kept  # type: ignore[method-assign]
    assert client.is_right()
    client.run()
    assert "restart:db.service" in client.log


def test_a_service_that_can_not_be_restarted_does_not_undo_the_mount(client: FakeClient) -> None:
    client.dependants_ = ("db.service",)
    client.serve(A, 1, 1)
    client.run()
    client.serve(B, 2, 2)
    client.fail = "restart"
    remount = client.run()
    assert client.is_right()
    assert any("may not have been restarted" in text for text in remount.said)


def test_the_options_of_the_unit_are_used_and_retries_are_our_own(client: FakeClient) -> None:
    client.unit_options = "vers=4.1,hard,noatime"
    client.serve(A, 1, 1)
    client.run()
    assert client.log[0].endswith(":vers=4.1,hard,noatime,retry=0")


def test_a_hanging_attempt_of_the_automount_is_ended_after_the_right_one_is_mounted(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standfast.clients.decide.PATIENCE_S", 0.0)
    client.push("autofs", source="systemd-1")
    client.tie_ = Tie(automount=True, mounting=True)
    client.serve(B, 2, 2)
    client.run()
    assert [entry.split(":")[0] for entry in client.log[:3]] == ["mount", "end-mounting", "probe"]


def test_the_timer_does_not_keep_an_automounted_mount_from_expiring(client: FakeClient) -> None:
    client.tie_ = Tie(automount=True)
    client.push("autofs", source="systemd-1")
    client.serve(A, 1, 1)
    client.mounted(A, 1)
    client.run()
    client.log.clear()
    client.run(thorough=False)
    assert client.log == []
    client.run(thorough=True)
    assert client.log == ["probe"]


def test_a_mount_that_is_never_right_is_made_once_in_a_run(client: FakeClient) -> None:
    """It answers when it was just mounted, and is stale at the next look."""
    client.serve(A, 1, 1)
    client.mounted(A, 1)
    answers = itertools.cycle([(Answer.STALE, ""), (Answer.ANSWERS, "")])
    client.probe = lambda *_: next(answers)  # type: ignore[method-assign]
    remount = Remount(client.parts, limit=Deadline.after(5))
    outcome = remount.run()
    assert [entry.split(":")[0] for entry in client.log].count("mount") == 1
    assert outcome.trouble is not None and "left to the next run" in outcome.trouble


# On a storage node


def primary(client: FakeClient, stage: Stage = Stage.READY) -> None:
    client.config = structs.replace(client.config, node="n1")
    OwnEpoch(3, stage, fsid(3), None, False).save(client.config.state_dir)


def bind_mount(client: FakeClient) -> Mount:
    return client.push("btrfs", source="/dev/vdb", root="/services")


def test_the_path_of_the_primary_is_left_to_the_agent(client: FakeClient) -> None:
    primary(client)
    client.serve(B, 9, 9)
    client.run()
    client.mounted(A, 1)
    client.run()
    assert client.log == []


def test_an_nfs_mount_over_the_bind_mount_is_taken_away(client: FakeClient) -> None:
    primary(client)
    bind_mount(client)
    client.mounted(A, 1)
    client.run()
    assert client.log == [f"let-go:{client.path}"]


def test_users_of_the_nfs_mount_are_restarted_once_on_a_node_that_became_primary(
    client: FakeClient,
) -> None:
    client.dependants_ = ("db.service",)
    client.serve(A, 1, 1)
    client.run()
    client.pop()
    primary(client)
    bind_mount(client)
    client.log.clear()
    client.run()
    client.run()
    assert client.log == ["restart:db.service"]


def test_services_stopped_with_the_bind_mount_are_started_on_the_nfs_mount_of_a_demoted_node(
    client: FakeClient,
) -> None:
    primary(client)
    bind_mount(client)
    client.run()
    dependants.note_stopped(client.config.run_dir, ["db.service"])
    client.pop()
    OwnEpoch.forget(client.config.state_dir)
    client.serve(B, 4, 4)
    client.run()
    assert client.is_right()
    assert "restart:db.service" in client.log
    client.log.clear()
    client.run()
    assert client.log == ["probe"]


def test_while_the_agent_is_at_work_nothing_is_restarted(client: FakeClient) -> None:
    primary(client)
    bind_mount(client)
    dependants.note_stopped(client.config.run_dir, ["db.service"])
    with exclusive(client.config.run_dir / "plan.lock", "the agent"):
        assert role_of(client.config) is Role.CHANGING
        client.run()
    primary(client, Stage.DRAINING)
    client.run()
    assert client.log == []
    primary(client)
    client.run()
    assert client.log == ["restart:db.service"]


def test_a_promotion_that_comes_in_between_gets_its_path_back(client: FakeClient) -> None:
    client.serve(A, 1, 1)
    real = client.mount

    def mount(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        OwnEpoch(2, Stage.CLEARING, fsid(2), None, False).save(client.config.state_dir)

    client.mount = mount  # type: ignore[method-assign, assignment]
    client.run()
    assert client.top is None


def test_a_damaged_epoch_is_a_role(client: FakeClient) -> None:
    path = client.config.state_dir / "own-epoch.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    client.serve(A, 1, 1)
    assert look(client.parts).role is Role.CHANGING
    client.run()
    assert client.log == []


def test_never_means_never(client: FakeClient) -> None:
    client.config = structs.replace(client.config, client=Client(manage="never"))
    client.mounted(A, 1)
    client.serve(B, 2, 2)
    decision = client.run().decide()[1]
    assert client.log == []
    assert decision.reason is Reason.NOT_A_CLIENT, "nothing is wrong there, for doctor neither"


def test_a_note_speaks_of_a_mount_only_with_its_address() -> None:
    note = Note("nfs", A, fsid(1), 1, 30, "0:50")
    assert note.is_of(nfs(A))
    assert not note.is_of(nfs(B)) and not note.is_of(nfs(A, 31))
    assert not structs.replace(note, kind="bind").is_of(nfs(A))


def test_who_uses_the_old_mount_is_stopped_before_it_goes_if_so_configured(
    client: FakeClient, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    before = f'echo "$STANDFAST_PATH $STANDFAST_ADDRESS" > {seen}'
    client.config = structs.replace(
        client.config, client=Client(spread=0.0, before_change=(before,))
    )
    client.serve(A, 1, 1)
    client.mounted(A, 1)
    client.run()
    assert not seen.exists(), "nothing changes"
    client.serve(B, 2, 2)
    done = [step.do for step in client.run().done]
    assert done.index(Do.BEFORE_CHANGE) < done.index(Do.LET_GO)
    assert seen.read_text() == f"{client.path} {B}\n"
