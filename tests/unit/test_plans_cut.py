"""Every plan is cut before each of its effects and run again: it ends right each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from standfast.consul.gateway import Instance
from standfast.errors import ConsulNoQuorum, Refused, StandfastError, StepFailed
from standfast.node.ports import Writer
from standfast.reasons import Reason
from standfast.role import plan as plans
from standfast.role import steps as effects_module
from standfast.role import volume
from standfast.role.execute import execute
from standfast.role.plan import Do
from standfast.role.steps import Effects
from tests.fakes.machine import Cut, FakeNode
from tests.support.plans import (
    MANY,
    NAMES,
    is_primary,
    is_standby,
    made,
    promote,
    promotion,
    run,
    step_down,
    surrender,
    switch,
)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    return made(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("start", "plan", "end"),
    [
        pytest.param([], promote, is_primary, id="promotion"),
        pytest.param([promote], switch, is_standby, id="switchover"),
        pytest.param([promote], step_down, is_standby, id="step-down"),
        pytest.param([promote], surrender, is_standby, id="surrender"),
    ],
)
def test_a_plan_cut_before_any_effect_ends_right_when_it_is_run_again(
    start: list[Callable[[FakeNode], None]],
    plan: Callable[[FakeNode], None],
    end: Callable[[FakeNode], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuts = 0
    for number in range(MANY):
        node = made(tmp_path / str(number), monkeypatch)
        for before in start:
            before(node)
        trees = 0 if node.store.tree is None else 1
        node.world.cut_after = number
        try:
            plan(node)
        except Cut:
            cuts += 1
        node.world.cut_after = None
        if cuts == number + 1:
            plan(node)
        end(node)
        # Nothing is ever deleted: each tree is live or aside.
        kept = len(node.store.set_aside) + (0 if node.store.tree is None else 1)
        assert kept >= trees
        if cuts <= number:
            assert cuts > 5, "the plan has hardly any effects: is it run at all?"
            return
    pytest.fail(f"more than {MANY} effects")


def test_a_promotion_cut_while_creating_makes_one_tree_and_puts_none_of_its_own_aside(
    node: FakeNode,
) -> None:
    promote(node)
    assert node.world.log.count("create") == 1
    assert node.store.set_aside == []


def test_what_lay_at_the_live_path_is_kept_aside_before_a_promotion(node: FakeNode) -> None:
    from standfast.node.ports import LiveTree

    node.store.tree = LiveTree(node.config.paths.live, "somebody's", writable=True)
    promote(node)
    is_primary(node)
    [aside] = node.store.set_aside
    assert aside.name.startswith("services.diverged-0-")


def test_a_demotion_deregisters_before_anything_else_and_sends_clean_after_everything(
    node: FakeNode,
) -> None:
    promote(node)
    node.world.log.clear()
    run(plans.demotion(NAMES, "n2"), Effects(node.machine, to="n2"))
    log = [name for name in node.world.log if name != "pass-check"]
    assert log.index("deregister") < log.index("lease:drain") < log.index("stop-nfs")
    final = len(log) - 1 - log[::-1].index("snapshot")
    assert log.index("writable=False") < final < log.index("lease:release")
    assert log[final + 1] == "replicate:n2"
    assert log.index("lease:release") < log.index("aside")


def test_a_switchover_whose_target_is_gone_serves_again(node: FakeNode) -> None:
    promote(node)
    node.sender.broken = True
    with pytest.raises(
        StepFailed, match=r"stopped at the step pre-copy(.|\n)*This node serves again"
    ):
        run(plans.demotion(NAMES, "n2"), Effects(node.machine, to="n2"))
    is_primary(node)


def test_a_switchover_whose_last_copy_fails_is_rolled_back(node: FakeNode) -> None:
    promote(node)
    effects = Effects(node.machine, to="n2")
    table = dict(effects.table())

    def fail() -> None:
        raise Refused(Reason.REPLICATION_FAILED, "n2 died")

    table[Do.FINAL_COPY] = fail
    with pytest.raises(Refused, match="n2 died\nThis node serves again"):
        execute(plans.demotion(NAMES, "n2"), table, lambda _: None)
    is_primary(node)
    assert not node.keeper.clean


def test_who_still_writes_is_named_before_the_final_snapshot_and_the_node_serves_again(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "LAST_WRITES_S", 0.0)
    promote(node)
    node.store.writing = [Writer(47, "mysqld", "/persist/services/db")]
    with pytest.raises(StepFailed, match=r"mysqld \(pid 47: /persist/services/db\)(.|\n)*again"):
        run(plans.demotion(NAMES, "n2"), Effects(node.machine, to="n2"))
    is_primary(node)
    node.store.writing = []
    run(plans.demotion(NAMES, "n2"), Effects(node.machine, to="n2"))
    assert node.keeper.clean


def test_a_release_that_fails_is_not_undone(node: FakeNode) -> None:
    promote(node)
    table: dict[Do, Callable[[], None]] = dict(Effects(node.machine, to="n2").table())

    def fail() -> None:
        raise StandfastError("whether the lease is given up is not known")

    table[Do.RELEASE] = fail
    with pytest.raises(StepFailed, match="stopped at the step release"):
        execute(plans.demotion(NAMES, "n2"), table, lambda _: None)
    assert not node.serves


def test_an_epoch_without_a_final_snapshot_is_kept_as_diverged_whatever_the_plan(
    node: FakeNode,
) -> None:
    promote(node)
    run(plans.put_away(NAMES), Effects(node.machine))
    is_standby(node)
    [aside] = node.store.set_aside
    assert aside.name.startswith("services.diverged-5-")


def test_a_role_that_never_got_data_is_given_up_naming_what_it_started_from(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    [base] = node.store.taken
    effects = promotion(node)
    effects.claim_lease()
    asked: list[Mapping[str, str | None]] = []

    def ask(path: Path, request: Mapping[str, str | None], deadline: Any) -> Mapping[str, object]:
        asked.append(request)
        return node.keeper.ask(path, request, deadline)

    monkeypatch.setattr(effects_module, "ask", ask)
    surrender(node)
    said = {"cmd": "release", "to": None, "note": None, "operator": None}
    assert asked[-1] == {**said, "final": str(base.name), "final_id": base.content_id}
    assert node.keeper.clean
    assert node.store.taken == [base]


def test_a_demoted_volume_leaves_no_claim_on_the_port_behind(node: FakeNode) -> None:
    promote(node)
    node.world.log.clear()
    switch(node)
    assert node.world.log.index("stop-nfs") < node.world.log.index("release")


def test_every_step_has_a_function_and_every_function_a_step(node: FakeNode) -> None:
    table: Mapping[Do, Any] = Effects(node.machine).table()
    assert set(table) == set(Do)


def test_a_switchover_waits_on_for_its_successor_while_consul_elects_a_leader(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = node.consul.instances(node.config.service)
    answers: list[Any] = [ConsulNoQuorum("leadership lost"), (), registered]

    def instances(_service: str) -> tuple[Instance, ...]:
        answer = answers.pop(0)
        if isinstance(answer, ConsulNoQuorum):
            raise answer
        return tuple(answer)

    monkeypatch.setattr(node.consul, "instances", instances)
    Effects(node.machine, to="n2").await_successor()
    assert answers == []
