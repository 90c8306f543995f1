"""The steps of a plan: what each does to the machine, in which order, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.consul.gateway import Instance
from standfast.consul.records import LeaderState
from standfast.errors import Refused, StandfastError, StepFailed, TimedOut
from standfast.lease.files import NOTHING_HELD, LeaseStatus, note_flush, note_outage
from standfast.lease.surrender import OUTAGE_LIMIT_S
from standfast.names import SnapshotName
from standfast.node.own_epoch import Intent, OwnEpoch, Stage
from standfast.node.ports import LiveTree, Snapshot
from standfast.reasons import Reason
from standfast.role import plan as plans
from standfast.role import steps as effects_module
from standfast.role.decision import Action, Decision
from standfast.role.execute import execute
from standfast.role.observation import Available, LastHeartbeat
from standfast.role.plan import Do, Names, Plan, Step
from standfast.role.steps import UNDO_S, Effects
from standfast.system.clock import Deadline, monotonic, utc_now
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeJobs, FakeNode, FakeStore, fake_node

NAMES = Names("/persist/services", "/data/services", "data-services")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: StoppedClock) -> FakeNode:
    """A standby with one snapshot; its lease process answers."""
    made = fake_node(tmp_path)
    name = SnapshotName.at("services", utc_now() - 60)
    made.store.taken.append(Snapshot(name, tmp_path / str(name), "c0ffee", received=True))
    made.successor_serves()
    monkeypatch.setattr(effects_module, "ask", made.keeper.ask)
    return made


def promoting(node: FakeNode) -> Effects:
    """To epoch 5, from the snapshot that is there."""
    base = Available(node.store.taken[0], 4)
    decision = Decision(Action.PROMOTE, Reason.TAKEOVER, "n1 takes over", base=base, epoch=4)
    return Effects(node.machine, decision, LastHeartbeat((4, "n9", "boot-9", 17), 100, 0.0))


def run(plan: Plan, effects: Effects) -> None:
    execute(plan, effects.table(), lambda _: None)


def promote(node: FakeNode) -> None:
    run(plans.promotion(NAMES, "a snapshot"), promoting(node))


def switch(node: FakeNode) -> None:
    run(plans.demotion(NAMES, "n2"), Effects(node.machine, to="n2"))


# The lease


def test_the_intent_is_on_disk_before_the_lease_is_asked_for(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease may be acquired by a process that is cut off before it can say so."""
    known: list[Intent | None] = []
    start = node.keeper.start

    def look_and_start(unit: str, deadline: Deadline) -> None:
        known.append(Intent.load(node.config.state_dir, 5))
        start(unit, deadline)

    monkeypatch.setattr(node.keeper, "start", look_and_start)
    promoting(node).claim_lease()
    base = node.store.taken[0]
    assert known == [Intent(5, str(base.name), "c0ffee", in_place=False)]


def test_a_promotion_ends_where_the_epoch_went_to_another_node(node: FakeNode) -> None:
    node.keeper.epoch = 7  # another claim of this node's was faster
    with pytest.raises(Refused, match="epoch 5 went to another node"):
        promote(node)
    assert node.store.tree is None and not node.serves


def status_of_the_lease(node: FakeNode, **changes: Any) -> None:
    until = monotonic() + 60
    good = LeaseStatus(5, "boot-1", 1, LeaderState.SERVING, True, until, until, 1, monotonic())
    structs.replace(good, **changes).save(node.config.run_dir)


def test_the_lease_of_an_earlier_boot_is_no_lease(node: FakeNode) -> None:
    status_of_the_lease(node)
    assert Effects(node.machine).epoch() == 5
    status_of_the_lease(node, instance="boot-0")
    with pytest.raises(Refused, match="holds nothing"):
        Effects(node.machine).epoch()


def asked_of_the_lease(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], bool] = lambda _: True
) -> list[Mapping[str, str | None]]:
    """What the lease process is asked from now on; it refuses where `answer` says so."""
    asked: list[Mapping[str, str | None]] = []

    def ask(
        path: Path, request: Mapping[str, str | None], deadline: Deadline
    ) -> Mapping[str, object]:
        asked.append(request)
        if not answer(str(request["cmd"])):
            return {"ok": False, "error": "the lease has no time left"}
        return node.keeper.ask(path, request, deadline)

    monkeypatch.setattr(effects_module, "ask", ask)
    return asked


def test_a_port_that_the_lease_process_does_not_open_ends_the_promotion(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of_the_lease(node, monkeypatch, lambda command: command != "serve")
    with pytest.raises(StepFailed, match="open-port: the lease has no time left"):
        promote(node)
    assert node.consul.local_services() == {}


def test_a_release_whose_reply_is_lost_is_asked_for_again(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(node)
    replies = iter([False, False, True])
    asked = asked_of_the_lease(
        node, monkeypatch, lambda command: command != "release" or next(replies)
    )
    switch(node)
    assert [request["cmd"] for request in asked] == ["drain", "release", "release", "release"]
    assert node.keeper.clean


def test_the_role_is_given_up_naming_the_snapshot_that_has_all_of_it(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has that one loses nothing, and whoever hasn't knows it."""
    promote(node)
    asked = asked_of_the_lease(node, monkeypatch)
    switch(node)
    final = node.store.taken[-1]
    assert node.sender.sent[-1] == final
    said = {"cmd": "release", "to": "n2", "note": None, "operator": None}
    assert asked[-1] == {**said, "final": str(final.name), "final_id": final.content_id}


def failed_at_the_final_copy(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> OwnEpoch:
    """It serves again, after a final snapshot that was not the last word."""
    promote(node)

    def fail(_self: Effects) -> None:
        raise StandfastError("n2 has no room")

    with monkeypatch.context() as patch:
        patch.setattr(Effects, "final_copy", fail)
        with pytest.raises(StepFailed):
            switch(node)
    assert node.serves
    own = OwnEpoch.load(node.config.state_dir)
    assert own is not None and own.stage is Stage.READY
    return own


def test_an_epoch_that_serves_again_has_no_final_snapshot(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = failed_at_the_final_copy(node, monkeypatch)
    assert (own.final, own.final_id) == (None, None)


def test_the_final_snapshot_is_forgotten_before_the_tree_takes_writes_again(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut between the two must not leave a tree that has more than its final snapshot."""
    known: list[str | None] = []
    real = FakeStore.set_live_writable

    def look(store: FakeStore, writable: bool) -> None:
        own = OwnEpoch.load(node.config.state_dir)
        assert own is not None
        if writable:
            known.append(own.final)
        real(store, writable)

    monkeypatch.setattr(FakeStore, "set_live_writable", look)
    failed_at_the_final_copy(node, monkeypatch)
    assert known == [None]


@pytest.mark.parametrize("lost", ["the file system is read-only", "the disk is gone"])
def test_a_final_snapshot_of_before_is_not_handed_over_as_everything(
    lost: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever left it in own-epoch.json: what was written since is in the tree alone."""
    own = failed_at_the_final_copy(node, monkeypatch)
    before = structs.replace(own, final="services.20261122T060000Z", final_id="c0ffee")
    before.save(node.config.state_dir)
    node.store.read_only = lost == "the file system is read-only"
    node.store.mounted = lost != "the disk is gone"
    effects = Effects(node.machine)
    asked = asked_of_the_lease(node, monkeypatch)
    effects.salvage_snapshot()
    effects.release()
    assert asked[-1]["final"] is None and asked[-1].get("surrendered")
    known = OwnEpoch.load(node.config.state_dir)
    assert known is not None and known.final is None


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("flushed", [False, True])
def test_what_is_given_up_without_having_served_is_what_it_began_with(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, in_place: bool, flushed: bool
) -> None:
    """Somebody else may have more of the epoch before than that. A tree that it went on in has
    more than its base, and one that a flush of the firewall opened may have."""
    promote(node)
    config = node.config
    own = OwnEpoch.load(config.state_dir)
    assert own is not None
    structs.replace(own, in_place=in_place).save(config.state_dir)
    node.keeper.opened = False
    if flushed:
        note_flush(config.run_dir)
    asked = asked_of_the_lease(node, monkeypatch)
    run(plans.surrender(NAMES), Effects(node.machine))
    [aside] = node.store.set_aside
    began_with = asked[-1]["final"] == own.base
    assert began_with is not (in_place or flushed)
    assert aside.name.startswith("services.diverged-5-") is began_with


def test_an_epoch_that_was_put_away_hands_no_snapshot_over(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it began with would be called its final one, by a successor that has more of it."""
    promote(node)
    switch(node)
    assert OwnEpoch.load(node.config.state_dir) is None
    node.keeper.epoch, node.keeper.clean = 5, False
    node.keeper.start("standfast-lease@data-services", Deadline.after(60))
    asked = asked_of_the_lease(node, monkeypatch)
    run(plans.surrender(NAMES), Effects(node.machine))
    assert asked[-1]["final"] is None and asked[-1].get("surrendered")


@pytest.mark.parametrize("in_place", [False, True])
def test_a_role_whose_epoch_is_not_known_any_more_is_given_up_without_a_final_snapshot(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    """What it began with is not all of it; a file that is missing doesn't say that it is."""
    if in_place:
        node.store.tree = LiveTree(node.config.paths.live, "mine", writable=True)
        decision = Decision(Action.PROMOTE, Reason.TAKEOVER, "on", in_place=True, epoch=4)
        last_heartbeat = LastHeartbeat((4, "n1", "boot-0", 17), 100, 0.0)
        run(plans.promotion(NAMES, "its tree"), Effects(node.machine, decision, last_heartbeat))
    else:
        promote(node)
    OwnEpoch.forget(node.config.state_dir)
    asked = asked_of_the_lease(node, monkeypatch)
    run(plans.surrender(NAMES), Effects(node.machine))
    assert asked[-1]["final"] is None and asked[-1].get("surrendered")
    [aside] = node.store.set_aside
    assert aside.name.startswith("services.diverged-5-")
    assert not node.nfs.running


def test_a_role_that_was_put_away_leaves_nothing_that_systemd_has_to_stop(node: FakeNode) -> None:
    """The lease process is told to stop, and doesn't know what becomes of its volume."""
    promote(node)
    mark = node.config.run_dir / NOTHING_HELD
    mark.unlink(missing_ok=True)
    run(plans.step_down(NAMES), Effects(node.machine))
    assert OwnEpoch.load(node.config.state_dir) is None
    assert mark.exists()


def test_the_epoch_is_noted_as_draining_before_its_port_is_shut(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on no replication cycle takes a snapshot that would be newer than the final one."""
    promote(node)
    stages: list[Stage] = []

    def note(command: str) -> bool:
        own = OwnEpoch.load(node.config.state_dir)
        assert own is not None
        stages.append(own.stage)
        return True

    asked_of_the_lease(node, monkeypatch, note)
    switch(node)
    assert stages == [Stage.DRAINING, Stage.RELEASED]


def test_a_lease_that_waits_for_a_word_is_told_to_go_on(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a release of unknown outcome it doesn't heartbeat by itself."""
    waiting = {"state": LeaderState.DRAINING, "serving": False, "valid_until": monotonic() - 1}
    asked: list[str] = []
    monkeypatch.setattr(node.keeper, "start", lambda *_: status_of_the_lease(node, **waiting))

    def ask(_path: Path, request: Mapping[str, str], _by: Deadline) -> Mapping[str, object]:
        asked.append(request["cmd"])
        status_of_the_lease(node)
        return {"ok": True}

    monkeypatch.setattr(effects_module, "ask", ask)
    Effects(node.machine).start_lease()
    assert asked == ["hold"]


def test_going_back_on_a_demotion_has_time_of_its_own(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, clock: StoppedClock
) -> None:
    """The copy that used up all of the plan's time is what failed."""
    left: list[float] = []

    def start(_unit: str, deadline: Deadline) -> None:
        left.append(deadline.remaining_s())
        status_of_the_lease(node)

    monkeypatch.setattr(node.keeper, "start", start)
    effects = Effects(node.machine, deadline=Deadline.after(10))
    clock.now += 11
    effects.start_lease()
    assert left == [15.0]
    assert effects.deadline.remaining_s() == UNDO_S


# The server


def test_the_volume_claims_the_port_before_it_is_exported(node: FakeNode) -> None:
    promote(node)
    log = node.world.log
    assert log.index("claim") < log.index("export") < log.index("lease:serve")


def test_a_server_that_does_not_answer_is_not_registered(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.nfs, "check", lambda _: "no answer to a NULL call")
    with pytest.raises(StepFailed, match=r"check-serving: .*no answer to a NULL call"):
        promote(node)
    assert node.consul.local_services() == {}


def another_volume(node: FakeNode, *, serving: bool = True, left_s: float = 60.0) -> None:
    """`music` is served by this node, too."""
    until = monotonic() + left_s
    LeaseStatus(
        9, "boot-1", 1, LeaderState.SERVING, serving, until, until, 1, monotonic()
    ).save(node.config.paths.run / "music")  # fmt: skip


def test_a_server_that_another_volume_needs_goes_on_without_this_one(node: FakeNode) -> None:
    promote(node)
    another_volume(node)
    node.world.log.clear()
    Effects(node.machine).stop_nfs()
    assert node.world.log == ["unexport", "release"]
    assert node.nfs.running


@pytest.mark.parametrize("over", [{"valid_until": 0.0}, {"epoch": 99}], ids=str)
def test_after_the_lease_the_server_goes_on_for_nobody(
    node: FakeNode, over: dict[str, Any]
) -> None:
    """What it was asked before the end would be answered beside a successor."""
    promote(node)
    another_volume(node)
    lease = LeaseStatus.load(node.config.run_dir)
    assert lease is not None
    structs.replace(lease, **over).save(node.config.run_dir)
    node.world.log.clear()
    Effects(node.machine).stop_nfs()
    assert node.world.log == ["stop-nfs", "unexport", "release"]
    node.nfs.running = True  # by another volume's agent
    node.world.log.clear()
    Effects(node.machine).stop_nfs()
    assert node.world.log == ["unexport", "release"], "that one was asked nothing for this volume"


def test_what_was_handed_over_in_order_ends_no_server_later(node: FakeNode) -> None:
    """It goes on for another volume; what it was asked for this one is with the successor."""
    promote(node)
    another_volume(node)
    switch(node)
    assert node.nfs.running
    node.world.log.clear()
    Effects(node.machine).stop_nfs()
    assert "stop-nfs" not in node.world.log


@pytest.mark.parametrize("other", [{"serving": False}, {"left_s": -1.0}], ids=str)
def test_a_server_that_no_other_volume_needs_is_stopped(
    node: FakeNode, other: dict[str, Any]
) -> None:
    promote(node)
    another_volume(node, **other)
    node.world.log.clear()
    Effects(node.machine).stop_nfs()
    assert node.world.log == ["stop-nfs", "unexport", "release"]


# Jobs


def test_jobs_never_keep_the_storage_from_moving(node: FakeNode) -> None:
    promote(node)
    machine = replace(node.machine, jobs=FakeJobs(ValueError("a bug")))
    run(plans.demotion(replace(NAMES, jobs=True), "n2"), Effects(machine, to="n2"))
    assert node.keeper.clean


# A handover


@pytest.mark.parametrize("left_s", [3600, 10])
def test_a_handover_has_a_limit_of_its_own_from_the_moment_clients_wait(
    left_s: float, node: FakeNode
) -> None:
    effects = Effects(node.machine, deadline=Deadline.after(left_s))
    effects.deregister()
    assert effects.deadline.remaining_s() == OUTAGE_LIMIT_S


def instances_one_by_one(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, *shown: tuple[str, str, str]
) -> list[tuple[str, str, str]]:
    """What Consul shows at each look, as (node, checks, epoch); what is left of it. Checks that end
    with "!" are on a node that is critical."""
    left = list(shown)

    def instances(_service: str) -> tuple[Instance, ...]:
        name, checks, epoch = left.pop(0) if len(left) > 1 else left[0]
        meta, own = {"epoch": epoch}, node.config.service_id
        health = "critical" if checks.endswith("!") else "passing"
        made = (own, name, "192.168.1.3", 2049, meta, health, checks.removesuffix("!"))
        return (Instance(*made, has_own_check=True),)

    monkeypatch.setattr(node.consul, "instances", instances)
    return left


def test_a_successor_serves_when_its_check_passes(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry by hand, or of the epoch before, is no successor's."""
    looks = [
        ("n3", "passing", "8"),
        ("n2", "critical", "8"),
        ("n2", "warning", "8"),
        ("n2", "passing!", "8"),
        ("n2", "passing", ""),
        ("n2", "passing", "7"),
        ("n2", "passing", "8"),
    ]
    left = instances_one_by_one(node, monkeypatch, *looks)
    Effects(node.machine, to="n2", gave_up=7).await_successor()
    assert left == looks[-1:]


def test_a_successor_whose_check_never_passes_is_told(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    instances_one_by_one(node, monkeypatch, ("n2", "critical", "8"))
    with pytest.raises(TimedOut, match="n2 doesn't serve yet"):
        Effects(node.machine, to="n2").await_successor()


# Running a plan


def some_plan(*steps: Do, undo: tuple[Do, ...] = ()) -> Plan:
    return Plan(
        "some", tuple(Step(do, do) for do in steps), tuple(Step(do, do) for do in undo)
    )  # fmt: skip


def failing(*broken: Do, error: StandfastError | None = None) -> dict[Do, Callable[[], None]]:
    def fail() -> None:
        raise error or StandfastError("it is broken")

    return {do: fail if do in broken else lambda: None for do in Do}


def test_a_step_is_told_when_it_was_done_and_not_before() -> None:
    reached: list[Do] = []
    with pytest.raises(StepFailed):
        execute(
            some_plan(Do.BIND, Do.EXPORT, Do.REGISTER, undo=(Do.UNEXPORT, Do.UNBIND)),
            failing(Do.EXPORT),
            lambda _: None,
            reached.append,
        )
    assert reached == [Do.BIND, Do.UNEXPORT, Do.UNBIND]


def test_a_refusal_keeps_its_reason() -> None:
    refused = Refused(Reason.OTHER_SERVER_ACTIVE, "n2 serves")
    for undo in ((), (Do.UNBIND,)):
        with pytest.raises(Refused) as caught:
            execute(
                some_plan(Do.START_NFS, undo=undo),
                failing(Do.START_NFS, error=refused),
                lambda _: None,
            )
        assert caught.value.reason is Reason.OTHER_SERVER_ACTIVE


def test_who_can_not_serve_again_does_not_claim_it() -> None:
    with pytest.raises(StepFailed, match="Serving again failed at unbind") as caught:
        execute(
            some_plan(Do.EXPORT, undo=(Do.UNBIND, Do.REGISTER)),
            failing(Do.EXPORT, Do.UNBIND),
            lambda _: None,
        )
    assert "This node serves again" not in str(caught.value)


def test_starts_are_given_back_after_an_outage_of_consul_and_not_after_crashes(
    node: FakeNode,
) -> None:
    node.keeper.epoch = 4
    LeaseStatus(
        4, "boot-1", 1, LeaderState.SERVING, True, monotonic() + 8, 0.0, 1, monotonic()
    ).save(node.config.run_dir)
    Effects(node.machine).start_lease()
    assert "reset-failed" not in node.world.log
    note_outage(node.config.run_dir)
    for _ in range(2):
        Effects(node.machine).start_lease()
    assert node.world.log.count("reset-failed") == 1
