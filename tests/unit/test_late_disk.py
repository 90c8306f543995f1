"""A disk that is mounted late, another one in its place, a tree that is gone: nothing is taken for
done, made anew or forgotten, and what ends serving is done all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.errors import StandfastError, StepFailed
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import LiveTree
from standfast.reasons import Reason
from standfast.role import plan as plans
from standfast.role import steps as effects_module
from standfast.role import volume
from standfast.role.decision import Action, Decision
from standfast.role.execute import execute
from standfast.role.observation import LastHeartbeat
from standfast.role.plan import Names, Plan
from standfast.role.steps import Effects
from standfast.system.clock import monotonic
from tests.fakes.machine import FakeNode, fake_node

NAMES = Names("/persist/services", "/data/services", "data-services")
OWN = OwnEpoch(
    4, Stage.READY, "fsid-4", None, in_place=False, live_uuid="tree-4", file_system="disk-1"
)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """It was primary with epoch 4, and its server runs still."""
    made = fake_node(tmp_path)
    OWN.save(made.config.state_dir)
    made.store.tree = LiveTree(made.config.paths.live, "tree-4", writable=True)
    made.nfs.running, made.nfs.fsid = True, "fsid-4"
    made.fence.open_until = monotonic() + 60
    monkeypatch.setattr(effects_module, "ask", made.keeper.ask)
    return made


def run(plan: Plan, effects: Effects) -> None:
    execute(plan, effects.table(), lambda _: None)


def late(node: FakeNode) -> None:
    node.store.mounted = False


def another(node: FakeNode) -> None:
    """With a tree of its own, of the same name."""
    node.store.disk = "disk-2"
    node.store.tree = LiveTree(node.config.paths.live, "somebody's", writable=True)


def gone(node: FakeNode) -> None:
    node.store.tree = None


def as_before(node: FakeNode) -> None:
    node.store.mounted, node.store.disk = True, "disk-1"
    node.store.tree = LiveTree(node.config.paths.live, "tree-4", writable=True)


@pytest.mark.parametrize("plan", [plans.step_down, plans.put_away])
@pytest.mark.parametrize(
    ("what", "said"), [(late, "not mounted"), (another, "not mounted"), (gone, "nor set aside")]
)
def test_an_epoch_that_is_over_is_put_away_when_its_tree_is_there_and_not_before(
    node: FakeNode, what: Callable[[FakeNode], None], said: str, plan: Callable[[Names], Plan]
) -> None:
    what(node)
    for _ in range(2):
        with pytest.raises(StepFailed, match=rf"step read-only: .*{said}(.|\n)*nothing was touch"):
            run(plan(NAMES), Effects(node.machine))
        assert not node.nfs.running, "what ends serving needs no disk"
        assert node.fence.state().open_for_s == 0
        assert OwnEpoch.load(node.config.state_dir) is not None
        assert node.store.set_aside == []
        assert node.store.tree is None or node.store.tree.writable
    as_before(node)
    run(plan(NAMES), Effects(node.machine))
    assert OwnEpoch.load(node.config.state_dir) is None
    [aside] = node.store.set_aside
    assert aside.name.startswith("services.diverged-4-")


@pytest.mark.parametrize("what", [late, another])
def test_no_lease_is_taken_for_a_tree_that_is_not_there(
    node: FakeNode, what: Callable[[FakeNode], None]
) -> None:
    """Another candidate would wait for a holder that can't serve."""
    what(node)
    decision = Decision(Action.PROMOTE, Reason.TAKEOVER, "n1 goes on", in_place=True, epoch=4)
    effects = Effects(node.machine, decision, LastHeartbeat((4, "n1", "boot-0", 17), 100, 0.0))
    with pytest.raises(StepFailed, match=r"step claim-lease: .*not mounted"):
        run(plans.promotion(NAMES, "its own tree"), effects)
    assert node.keeper.epoch is None


def test_a_disk_that_goes_while_the_role_is_held_stops_the_promotion_before_it_makes_anything(
    node: FakeNode,
) -> None:
    node.keeper.epoch = 4
    late(node)
    with pytest.raises(StepFailed, match=r"step prepare-volume: .*not mounted"):
        run(plans.go_on(NAMES), Effects(node.machine))
    assert "create" not in node.world.log
    assert "bind" not in node.world.log


@pytest.mark.parametrize("what", [late, another, gone])
def test_a_role_is_given_up_without_its_tree_and_the_tree_put_away_when_it_is_back(
    node: FakeNode, what: Callable[[FakeNode], None]
) -> None:
    """It keeps nobody from the role; what was written is kept all the same."""
    node.keeper.epoch = 4
    what(node)
    with pytest.raises(StepFailed, match="step retire-tree"):
        run(plans.surrender(NAMES), Effects(node.machine))
    assert node.keeper.clean
    own = OwnEpoch.load(node.config.state_dir)
    assert own is not None and own.stage is Stage.RELEASED
    as_before(node)
    run(plans.put_away(NAMES), Effects(node.machine))
    [aside] = node.store.set_aside
    assert aside.name.startswith("services.diverged-4-")


def test_a_role_that_never_had_a_tree_is_given_up_without_a_disk(node: FakeNode) -> None:
    OwnEpoch.forget(node.config.state_dir)
    node.keeper.epoch = 4
    late(node)
    run(plans.surrender(NAMES), Effects(node.machine))
    assert node.keeper.clean and OwnEpoch.load(node.config.state_dir) is None


def test_another_disk_at_the_path_is_not_taken_for_the_one_with_the_tree(node: FakeNode) -> None:
    """The steps that put it away look where they are, whatever was before them."""
    as_before(node)
    volume.freeze(node.machine)
    node.store.disk = "disk-2"
    with pytest.raises(StandfastError, match=r"nothing was touched\. Mount it"):
        volume.set_aside(node.machine, diverged=True)
    replace(OWN, live_uuid=None).save(node.config.state_dir)
    with pytest.raises(StandfastError, match=r"nothing was touched\. Mount it"):
        volume.forget(node.machine)
    assert node.store.set_aside == [] and OwnEpoch.load(node.config.state_dir) is not None


def test_a_tree_that_has_its_new_name_is_set_aside_and_one_that_has_not_gets_that_one(
    node: FakeNode,
) -> None:
    volume.freeze(node.machine)
    noted = replace(OWN, aside="services.diverged-4-20261122T101500Z")
    noted.save(node.config.state_dir)
    volume.set_aside(node.machine, diverged=True)
    assert [path.name for path in node.store.set_aside] == [noted.aside]
    volume.set_aside(node.machine, diverged=True)
    volume.freeze(node.machine)
    volume.forget(node.machine)
    assert len(node.store.set_aside) == 1


def test_what_appears_at_the_path_of_a_tree_that_is_aside_gets_a_name_of_its_own(
    node: FakeNode,
) -> None:
    volume.freeze(node.machine)
    noted = replace(OWN, aside="services.diverged-4-20261122T101500Z")
    noted.save(node.config.state_dir)
    volume.set_aside(node.machine, diverged=True)
    node.store.tree = LiveTree(node.config.paths.live, "made by hand", writable=False)
    volume.set_aside(node.machine, diverged=True)
    assert len({path.name for path in node.store.set_aside}) == 2


def test_an_epoch_whose_tree_is_at_its_place_is_not_forgotten(node: FakeNode) -> None:
    with pytest.raises(StandfastError, match="not set aside: epoch 4 is not forgotten"):
        volume.forget(node.machine)
    assert OwnEpoch.load(node.config.state_dir) == OWN


def test_an_epoch_that_never_had_a_tree_leaves_none(node: FakeNode) -> None:
    replace(OWN, stage=Stage.CREATING, live_uuid=None).save(node.config.state_dir)
    node.store.tree = None
    run(plans.step_down(NAMES), Effects(node.machine))
    assert OwnEpoch.load(node.config.state_dir) is None


def test_the_file_of_an_older_version_is_read_and_the_disk_learnt_when_it_is_there(
    node: FakeNode,
) -> None:
    path = node.config.state_dir / "own-epoch.json"
    doc = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in doc.items() if k not in ("file_system", "aside")}))
    assert OwnEpoch.load(node.config.state_dir) == replace(OWN, file_system=None)
    late(node)
    with pytest.raises(StandfastError, match="not mounted"):
        volume.check_place(node.machine)
    as_before(node)
    volume.check_place(node.machine)
    assert volume.prepare(node.machine, 4, None).file_system == "disk-1"
    another(node)
    with pytest.raises(StandfastError, match=r"disk-2 is there(.|\n)*delete \S*/own-epoch\.json"):
        volume.check_place(node.machine)
