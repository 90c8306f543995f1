"""What a promotion would meet, found before anything stops: the looks, and who asks for them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import structs

from standfast.agent import inspector as inspector_module
from standfast.agent import main as agent_main
from standfast.agent.inspector import AGAIN_S, EVERY_S, REST_S, Inspector
from standfast.agent.loop import Agent
from standfast.assembly.node import agent_of
from standfast.assembly.parts import Parts, use
from standfast.config.model import Config
from standfast.consul.blindness import Blind
from standfast.consul.records import Hold, Holder, Leader, LeaderState, StandbyRecord
from standfast.consul.values import Instance
from standfast.demo.parts import DemoParts
from standfast.errors import ConfigError, ConsulDenied, StandfastError, TimedOut
from standfast.names import SnapshotName
from standfast.node.obstacle import CHECKS, Obstacle, Weight
from standfast.node.other_server import MOST_ASKED, Door
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.node.space import Space
from standfast.reasons import Reason
from standfast.role.ahead.inspection import Scene, inspect
from standfast.role.decision import Moment
from standfast.role.observation import Available, Cluster, LastHeartbeat, Local
from standfast.system.clock import Deadline
from tests.fakes.clock import StoppedClock, stop_the_clock
from tests.fakes.machine import FakeNode, fake_node
from tests.fakes.nfs_server import FakeNfsServer, serve
from tests.support.configs import config_in
from tests.support.scripts import script
from tests.support.waiting import wait_for

NOW = Moment(1000.0, 1_795_000_000.0)
LEADER = Leader(4, Holder("n2", "boot-2"), 9, LeaderState.SERVING, ("n1", "n3"))


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return fake_node(tmp_path)


def mine(epoch: int = 4) -> Available:
    name = SnapshotName.at("services", NOW.utc - 10)
    return Available(Snapshot(name, Path(str(name)), "c0ffee", received=True), epoch)


def scene(node: FakeNode, **changes: Any) -> Scene:
    """A standby n1 that could take over from n2."""
    record = StandbyRecord("n1", 4, str(mine().snapshot.name), "c0ffee", NOW.utc)
    view = Cluster(
        4, LEADER, LastHeartbeat(LEADER.identity, 9, NOW.monotonic), standbys={"n1": record}
    )
    local = Local("n1", "boot-1", 4, snapshots=(mine(),))
    made = Scene(node.machine, view, local, NOW)
    return replace(made, **changes)


def checks(obstacles: tuple[Obstacle, ...]) -> dict[str, Weight]:
    return {obstacle.check: obstacle.weight for obstacle in obstacles}


def test_nothing_is_in_the_way_of_a_standby_that_is_well(node: FakeNode) -> None:
    before = list(node.world.log)
    assert inspect(scene(node)) == ()
    assert node.world.log == before, "a look changes nothing"


def no_snapshot(scene: Scene) -> Scene:
    return replace(scene, local=replace(scene.local, snapshots=()))


def blind(scene: Scene) -> Scene:
    return replace(scene, view=Blind(Reason.CONSUL_TIMEOUT, "Consul hangs"))


def read_only(scene: Scene) -> Scene:
    return replace(scene, local=replace(scene.local, read_only=True))


@pytest.mark.parametrize(
    ("spoil", "check", "weight", "words"),
    [
        (no_snapshot, "snapshot", Weight.REFUSES, "has no published snapshot"),
        (read_only, "snapshot", Weight.REFUSES, "takes no writes"),
        (blind, "consul", Weight.REFUSES, "Consul hangs"),
    ],
)
def test_what_the_decision_would_be_is_told_ahead(
    node: FakeNode, spoil: Callable[[Scene], Scene], check: str, weight: Weight, words: str
) -> None:
    [obstacle] = inspect(spoil(scene(node)))
    assert (obstacle.check, obstacle.weight) == (check, weight)
    assert words in obstacle.evidence


@pytest.mark.parametrize("age_s", [10.0, 1e6])
def test_a_pause_and_an_old_snapshot_are_in_the_way_of_no_handover(
    node: FakeNode, age_s: float
) -> None:
    """Somebody asks for it, and it comes with a final snapshot."""
    old = replace(mine(), taken_at=NOW.utc - age_s)
    made = scene(node)
    assert inspect(replace(made, local=replace(made.local, snapshots=(old,)))) == ()


def test_a_disk_that_is_nearly_full_is_told(node: FakeNode) -> None:
    node.store.room = Space(size=1 << 40, data=1 << 40, metadata=1 << 20, reserve=1 << 29)
    assert checks(inspect(scene(node))) == {"space": Weight.REFUSES}


def test_what_no_live_tree_could_be_made_beside_bars_a_promotion(node: FakeNode) -> None:
    node.store.in_the_way = "/persist/services is a mount point"
    [obstacle] = inspect(scene(node))
    assert (obstacle.check, obstacle.weight) == ("disk", Weight.BARS)


def test_a_token_that_the_guard_would_not_believe_bars_a_promotion(node: FakeNode) -> None:
    node.consul.sees_all = False
    [obstacle] = inspect(scene(node))
    assert (obstacle.check, obstacle.weight) == ("consul", Weight.BARS)
    assert "sees 0 instances" in obstacle.evidence
    assert checks(inspect(blind(scene(node)))) == {"consul": Weight.REFUSES}, "it is told once"


def no_volumes() -> tuple[Config, ...]:
    raise ConfigError("/etc/standfast/media.toml: not TOML")


def test_the_file_of_another_volume_bars_a_promotion_where_the_guard_could_not_read_it(
    node: FakeNode,
) -> None:
    [obstacle] = inspect(scene(node, volumes=no_volumes))
    assert (obstacle.check, obstacle.weight) == ("volumes", Weight.BARS)
    assert "media.toml" in obstacle.evidence


@pytest.mark.parametrize("epoch", ["", "{"])
def test_another_volume_whose_own_epoch_can_not_be_read_bars_a_promotion(
    node: FakeNode, epoch: str
) -> None:
    """The guard can't tell whether the server would export it."""
    media = structs.replace(node.config, volume="media")
    media.state_dir.mkdir(parents=True)
    if epoch:
        (media.state_dir / "own-epoch.json").write_text(epoch)
    made = inspect(scene(node, volumes=lambda: (node.config, media)))
    assert checks(made) == ({"volumes": Weight.BARS} if epoch else {})
    assert all("of the volume media, " in obstacle.evidence for obstacle in made)


def misnamed(scene: Scene) -> Scene:
    assert isinstance(scene.view, Cluster)
    return replace(scene, view=replace(scene.view, named="n1.lan"))


def test_a_node_that_consul_calls_otherwise_is_told_by_that_name(node: FakeNode) -> None:
    assert checks(inspect(misnamed(scene(node)))) == {"name": Weight.BARS}


def test_a_consul_agent_that_was_renamed_since_the_last_look_is_told(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.consul, "node_name", lambda: "N1")
    [obstacle] = inspect(scene(node))
    assert (obstacle.check, obstacle.weight) == ("name", Weight.BARS)
    assert "is called N1" in obstacle.evidence


def test_a_consul_agent_that_does_not_tell_its_name_is_in_nobodys_way(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> str:
        raise ConsulDenied("permission denied")

    monkeypatch.setattr(node.consul, "node_name", refused)
    assert inspect(scene(node)) == ()


def test_a_node_that_consul_hides_is_told(node: FakeNode) -> None:
    node.consul.maintain("n1")
    [obstacle] = inspect(scene(node))
    assert (obstacle.check, obstacle.weight) == ("hidden", Weight.REFUSES)
    assert "'Node Maintenance Mode'" in obstacle.evidence and "maint -disable" in obstacle.fix


def test_a_node_on_hold_is_told_and_its_role_is_moved_there_by_no_mistake(node: FakeNode) -> None:
    looked = scene(node)
    assert isinstance(looked.view, Cluster)
    hold = Hold("n1", "ann", "a new disk", 1e9)
    held = replace(looked, view=replace(looked.view, holds={"n1": hold, "n2": hold}))
    [obstacle] = inspect(held)
    assert (obstacle.check, obstacle.weight) == ("hold", Weight.REFUSES)
    assert "a new disk" in obstacle.evidence and "standby release n1" in obstacle.fix
    assert inspect(replace(looked, view=replace(looked.view, holds={"n2": hold}))) == ()


def test_what_the_server_finds_is_told(node: FakeNode) -> None:
    node.nfs.in_the_way = [Obstacle("exports", "unknown keyword", "mend it")]
    assert checks(inspect(scene(node))) == {"exports": Weight.BARS}


def test_a_disk_that_is_not_mounted_is_told(node: FakeNode) -> None:
    node.store.mounted = False
    assert checks(inspect(scene(node)))["disk"] is Weight.BARS


def test_a_path_that_the_volume_could_not_be_shown_at_bars_a_promotion(node: FakeNode) -> None:
    node.bind.foreign = "tmpfs"
    [obstacle] = inspect(scene(node))
    assert (obstacle.check, obstacle.weight) == ("bind", Weight.BARS)
    assert "is taken: tmpfs" in obstacle.evidence


def test_a_lease_unit_that_can_not_be_started_is_told(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.keeper, "obstacle", lambda unit: f"{unit} is masked")
    assert checks(inspect(scene(node))) == {"lease": Weight.BARS}


def test_a_fence_that_can_not_be_asked_is_told(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> None:
        raise StandfastError("nft: not found")

    monkeypatch.setattr(node.fence, "state", state)
    [obstacle] = inspect(scene(node))
    assert (obstacle.check, obstacle.weight) == ("fence", Weight.BARS)
    assert "nft: not found" in obstacle.evidence


def test_a_fence_that_is_not_up_yet_lets_nobody_move_the_role_here(node: FakeNode) -> None:
    """Just after boot. Where nobody serves, the lease process puts it up, or acquires nothing."""
    node.fence.in_place = False
    assert checks(inspect(scene(node))) == {"fence": Weight.REFUSES}


def test_a_fence_that_could_not_be_put_up_bars_a_promotion(node: FakeNode) -> None:
    """On a kernel without ipset every look says that no rules are in place, and nothing else."""
    made = scene(node, unshut="ipset: Kernel error received: No such file or directory")
    assert inspect(made) == (), "they are there by now"
    node.fence.in_place = False
    [obstacle] = inspect(made)
    assert (obstacle.check, obstacle.weight) == ("fence", Weight.BARS)
    assert "Kernel error received" in obstacle.evidence and "fence.backend" in obstacle.fix


@pytest.mark.parametrize("failure", ["veto", "go-on"])
@pytest.mark.parametrize("mode", [0o755, 0o644, 0o777])
def test_a_hook_that_would_be_a_veto_by_not_being_run_bars_a_promotion(
    node: FakeNode, tmp_path: Path, failure: str, mode: int
) -> None:
    place = tmp_path / "hooks.d"
    script(place / "pre-promote/10-disk", f"touch {tmp_path}/ran").chmod(mode)
    script(place / "post-promote/10-mail", "").chmod(0o644)
    set_up = structs.replace(node.config.hooks, dir=place, pre_promote_failure=failure)
    node.config = structs.replace(node.config, hooks=set_up)
    seen = inspect(scene(node))
    is_wrong = failure == "veto" and mode != 0o755
    assert checks(seen) == ({"hooks": Weight.BARS} if is_wrong else {})
    assert all("pre-promote/10-disk would be a veto" in each.evidence for each in seen)
    assert not (tmp_path / "ran").exists(), "a look runs nobody's program"


def test_without_a_way_back_no_switchover_is_begun(node: FakeNode) -> None:
    node.sender.broken = True
    assert checks(inspect(scene(node))) == {"way-back": Weight.REFUSES}


def test_a_primary_that_is_silent_is_not_asked_for_a_way_back(node: FakeNode) -> None:
    """It may be dead, and an answer would be waited for while nobody serves."""
    node.sender.broken = True
    made = scene(node)
    later = replace(NOW, monotonic=NOW.monotonic + node.config.lease.wait + 1)
    assert inspect(replace(made, now=later)) == ()


def test_a_look_that_fails_is_an_obstacle_and_ends_no_other(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(node.nfs, "obstacles", fails)
    node.sender.broken = True
    made = inspect(scene(node))
    assert checks(made) == {"server": Weight.REFUSES, "way-back": Weight.REFUSES}
    assert set(checks(made)) <= set(CHECKS)


def entry(
    name: str = "n9", address: str = "10.0.0.9", meta: dict[str, str] | None = None
) -> Instance:
    return Instance("by-hand", name, address, 2049, meta or {}, "passing", "passing")


def critical(instance: Instance) -> Instance:
    return structs.replace(instance, checks="critical")


@pytest.mark.parametrize(
    ("instance", "answers", "weight"),
    [
        (entry(), True, Weight.BARS),
        (entry(), False, Weight.TOLD),
        # The primary's own server answers there, and this node's with another volume.
        (entry("n2"), True, Weight.TOLD),
        (entry(address="192.168.1.3"), True, Weight.TOLD),
        (entry(address="::FFFF:192.168.1.3"), True, Weight.TOLD),
        (entry("n1"), True, Weight.TOLD),
        (critical(entry()), True, None),
        (structs.replace(entry(), node_health="critical"), True, None),
        # Of a dead primary: its fence has failed where its port answers. This node would get 5.
        (entry("n3", meta={"epoch": "4"}), True, Weight.BARS),
        (critical(entry("n3", meta={"epoch": "3"})), True, Weight.BARS),
        (entry("n3", meta={"epoch": "4"}), False, None),
        (entry("n2", meta={"epoch": "3"}), True, None),
        (entry("n1", meta={"epoch": "9"}), True, None),
        # Of one that this node's epoch isn't above.
        (entry("n3", meta={"epoch": "5"}), False, Weight.BARS),
        (entry("n2", meta={"epoch": "9"}), False, Weight.BARS),
        (entry("n3", meta={"epoch": "x"}), False, Weight.BARS),
        (critical(entry("n3", meta={"epoch": "5"})), True, None),
        # On no storage node an epoch says nothing.
        (entry(meta={"epoch": "9"}), True, Weight.BARS),
        (entry(meta={"epoch": "9"}), False, Weight.TOLD),
    ],
)
def test_an_entry_of_another_bars_a_promotion_where_the_guard_would_refuse_it(
    node: FakeNode,
    monkeypatch: pytest.MonkeyPatch,
    instance: Instance,
    answers: bool,
    weight: Weight | None,
) -> None:
    monkeypatch.setattr(node.consul, "instances", lambda _service: (instance,))
    made = inspect(scene(node, answering=lambda doors, _deadline: doors if answers else ()))
    assert checks(made) == ({} if weight is None else {"service": weight})
    for obstacle in made:
        deregister = f"on {instance.node}: consul services deregister -id=by-hand"
        by_hand = deregister in obstacle.evidence + obstacle.fix
        assert by_hand == ("epoch" not in instance.meta or instance.node == "n9")
        assert (weight is Weight.BARS) == ("Another NFS server" in obstacle.evidence)


def test_of_entries_without_end_some_are_asked_and_the_others_told_of_in_one_line(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple(
        structs.replace(entry(address=f"10.0.1.{number}"), service_id=f"x{number}")
        for number in range(100)
    )
    asked: list[Door] = []

    def answering(doors: Sequence[Door], _deadline: Deadline) -> tuple[Door, ...]:
        asked.extend(doors)
        return ()

    monkeypatch.setattr(node.consul, "instances", lambda _service: many)
    made = inspect(scene(node, answering=answering))
    assert len(asked) == MOST_ASKED
    assert checks(made) == {"service": Weight.TOLD} and len(made) == MOST_ASKED + 1
    assert "84 entries" in made[-1].evidence and "x16 on n9" in made[-1].evidence


def test_the_agent_asks_the_machines_themselves(tmp_path: Path) -> None:
    use(DemoParts())
    try:
        made = agent_of(config_in(tmp_path, "n1", "n2"))
        with serve(FakeNfsServer()) as server:
            door = Door("127.0.0.1", server.port, nfs=True)
            assert made.answering([door], Deadline.after(5.0)) == {door}
    finally:
        use(Parts())


@pytest.mark.parametrize("epoch", ["4", "9"])
def test_the_entry_of_the_present_primary_is_in_nobodys_way(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, epoch: str
) -> None:
    """Until it has given the role up: then the entry is to be gone."""
    its = structs.replace(entry("n2", meta={"epoch": epoch}), service_id=node.config.service_id)
    monkeypatch.setattr(node.consul, "instances", lambda _service: (its,))
    made = scene(node, answering=lambda doors, _deadline: doors)
    assert inspect(made) == ()
    assert isinstance(made.view, Cluster)
    gone = structs.replace(LEADER, state=LeaderState.CLEAN)
    assert "service" in checks(inspect(replace(made, view=replace(made.view, leader=gone))))


# Who looks, and when


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return stop_the_clock(monkeypatch)


def test_a_standby_looks_each_minute_and_sooner_while_something_is_in_the_way(
    node: FakeNode, clock: StoppedClock
) -> None:
    inspector = Inspector(lambda: scene(node))
    inspector.turn()
    assert inspector.last is not None and inspector.last.at == clock.now
    node.nfs.in_the_way = [Obstacle("unit", "masked", "unmask it")]
    clock.now += EVERY_S - 1
    inspector.turn()
    assert inspector.last.obstacles == () and inspector.barring == ()
    clock.now += 1
    inspector.turn()
    assert list(map(str, inspector.barring)) == ["unit: masked"]
    node.nfs.in_the_way = []
    clock.now += AGAIN_S
    inspector.turn()
    assert inspector.barring == ()


@pytest.mark.parametrize("leads", ["another", "this node before it went down", "this node"])
def test_one_that_comes_back_looks_again_at_what_was_in_its_way(
    node: FakeNode, clock: StoppedClock, leads: str
) -> None:
    """It may have the newest tree of all; held for longer than it is so, or forgotten while it is
    so, an obstacle would cost data, or the lease without a server."""
    of = {"another": ("n2", "boot-2"), "this node": ("n1", "boot-1")}.get(leads, ("n1", "boot-0"))
    made = scene(node)
    assert isinstance(made.view, Cluster)
    view = replace(made.view, leader=structs.replace(LEADER, holder=Holder(*of)))
    own = OwnEpoch(3, Stage.READY, "fsid", None, in_place=False, live_uuid="live")
    back = replace(made, view=view, local=replace(made.local, own=own))
    inspector = Inspector(lambda: back)
    inspector.turn()
    assert inspector.last is None, "nobody asks"
    node.nfs.in_the_way = [Obstacle("unit", "masked", "unmask it")]
    inspector.want()
    for _ in range(12):
        clock.now += AGAIN_S
        inspector.turn()
    if leads == "this node":
        assert inspector.last is None, "it is no candidate"
        return
    assert list(map(str, inspector.barring)) == ["unit: masked"]
    node.nfs.in_the_way = []
    clock.now += AGAIN_S
    inspector.turn()
    assert inspector.barring == ()


def test_who_asks_gets_a_look_of_now(node: FakeNode, clock: StoppedClock) -> None:
    inspector = Inspector(lambda: scene(node))
    inspector.turn()
    node.nfs.in_the_way = [Obstacle("unit", "masked", "unmask it")]
    clock.now += 1
    at = inspector.want()
    assert inspector.since(at) is None
    inspector.turn()
    since = inspector.since(at)
    assert since is not None and [obstacle.check for obstacle in since.obstacles] == ["unit"]
    node.nfs.in_the_way = []
    clock.now += 1
    assert inspector.look() == ()


def test_who_asks_again_and_again_has_it_look_once_a_second_at_most(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def counted(seen: Scene) -> tuple[Obstacle, ...]:
        looks.append(clock.now)
        return inspect(seen)

    monkeypatch.setattr(inspector_module, "inspect", counted)
    inspector = Inspector(lambda: scene(node))
    assert inspector.asked() == () and clock.slept == 0
    node.nfs.in_the_way = [Obstacle("unit", "masked", "unmask it")]
    for _ in range(5):
        assert [seen.check for seen in inspector.asked()] == ["unit"], "it is a look of now"
    assert len(looks) == 6
    pauses = [later - before for before, later in itertools.pairwise(looks)]
    assert min(pauses) >= REST_S


def test_all_who_ask_at_once_share_a_look(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def slow(seen: Scene) -> tuple[Obstacle, ...]:
        looks.append(1)
        time.sleep(0.3)
        return inspect(seen)

    monkeypatch.setattr(inspector_module, "inspect", slow)
    inspector = Inspector(lambda: scene(node))
    inspector.asked()
    threads = [threading.Thread(target=inspector.asked) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(looks) == 2


def test_all_who_ask_at_once_share_a_look_that_fails(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    failures: list[str] = []

    def fails(_: Scene) -> tuple[Obstacle, ...]:
        looks.append(1)
        time.sleep(0.3)
        raise RuntimeError("a bug")

    def asks() -> None:
        try:
            inspector.asked()
        except RuntimeError as error:
            failures.append(str(error))

    monkeypatch.setattr(inspector_module, "inspect", fails)
    inspector = Inspector(lambda: scene(node))
    asks()
    threads = [threading.Thread(target=asks) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(looks), failures) == (2, ["a bug"] * 9)


def test_who_asks_during_a_look_gets_another_one_and_not_at_once(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []
    ended: list[float] = []

    def slow(seen: Scene) -> tuple[Obstacle, ...]:
        begun.append(time.monotonic())
        time.sleep(0.3)
        ended.append(time.monotonic())
        return inspect(seen)

    monkeypatch.setattr(inspector_module, "inspect", slow)
    inspector = Inspector(lambda: scene(node))
    first = threading.Thread(target=inspector.asked)
    first.start()
    wait_for(lambda: begun, 10.0, "the first look has begun")
    inspector.asked()
    first.join()
    assert len(begun) == 2 and begun[1] - ended[0] >= REST_S


def serving(standby: Scene) -> Scene:
    """The same node when it has taken over."""
    assert isinstance(standby.view, Cluster)
    view = replace(standby.view, leader=structs.replace(LEADER, holder=Holder("n1", "boot-1")))
    own = OwnEpoch(4, Stage.READY, "fsid", None, in_place=True)
    return replace(standby, view=view, local=replace(standby.local, own=own))


def test_a_node_that_has_the_role_is_no_candidate(node: FakeNode, clock: StoppedClock) -> None:
    standby = scene(node)
    now = [standby]
    inspector = Inspector(lambda: now[0])
    node.nfs.in_the_way = [Obstacle("unit", "masked", "unmask it")]
    inspector.turn()
    assert inspector.barring
    now[0] = serving(standby)
    inspector.turn()
    assert inspector.last is None and inspector.barring == ()


def test_after_a_promotion_that_asked_nobody_looks_any_more(
    node: FakeNode, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    standby = scene(node)
    now, looks = [standby], []

    def counted(seen: Scene) -> tuple[Obstacle, ...]:
        looks.append(clock.now)
        return inspect(seen)

    monkeypatch.setattr(inspector_module, "inspect", counted)
    inspector = Inspector(lambda: now[0])
    at = inspector.want()
    inspector.turn()
    own = OwnEpoch(5, Stage.READY, "fsid", None, True)
    now[0] = replace(standby, local=replace(standby.local, own=own))
    for _ in range(5):
        clock.now += 1
        inspector.turn()
    assert inspector.since(at) is not None, "whoever asked may come for it"
    for _ in range(100):
        clock.now += 1
        inspector.turn()
    assert len(looks) == 1 and inspector.last is None


def test_an_agent_that_has_not_looked_yet_does_not_say_that_nothing_is_in_the_way() -> None:
    """A switchover would be begun to a node of which nothing is known."""
    with pytest.raises(StandfastError, match="has not looked at Consul yet"):
        Inspector(lambda: None).look()


def test_a_look_that_does_not_end_ends_none_that_follows(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    made = agent_of_looks()

    def turn(_inspector: Inspector) -> None:
        turns.append(1)
        if len(turns) == 3:
            made.stopping.set()
        raise TimedOut("the look before doesn't end")

    monkeypatch.setattr(Inspector, "turn", turn)
    monkeypatch.setattr(agent_main, "TICK_S", 0.0)
    agent_main.keep_inspected(cast(Agent, made))
    assert len(turns) == 3


def agent_of_looks() -> Any:
    return SimpleNamespace(busy=None, stopping=threading.Event(), inspector=Inspector(lambda: None))
