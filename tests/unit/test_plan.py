"""The order of each plan's steps: what must come before what, and what is undone."""

from __future__ import annotations

import pytest

from standfast.role import plan as plans
from standfast.role.plan import Do, Names, Plan

NAMES = Names("/persist/services", "/data/services", "data-services")
PROMOTION = plans.promotion(NAMES, "services@20261122T101500Z")
GO_ON = plans.go_on(NAMES)
SWITCHOVER = plans.demotion(NAMES, "b")
DEMOTION = plans.demotion(NAMES, None)
PUT_AWAY = plans.put_away(NAMES)
STEP_DOWN = plans.step_down(NAMES)
ALL = (PROMOTION, GO_ON, SWITCHOVER, DEMOTION, PUT_AWAY, STEP_DOWN)
SERVING = (PROMOTION, GO_ON)
ENDING = (SWITCHOVER, DEMOTION, PUT_AWAY, STEP_DOWN)


def order(plan: Plan) -> list[Do]:
    return [step.do for step in plan.steps]


def assert_order(plan: Plan, *steps: Do) -> None:
    places = [order(plan).index(step) for step in steps]
    assert places == sorted(places), f"{plan.name}: {order(plan)}"


@pytest.mark.parametrize("plan", ALL, ids=lambda plan: plan.name)
def test_every_step_comes_once_and_says_what_it_does(plan: Plan) -> None:
    assert len(set(order(plan))) == len(plan.steps)
    assert all(step.says for step in plan.steps)


@pytest.mark.parametrize("plan", SERVING, ids=lambda plan: plan.name)
def test_serving_begins_with_the_lease_and_ends_with_the_registration(plan: Plan) -> None:
    asked = [Do.ASK_HOOKS] if plan is PROMOTION else []
    assert order(plan)[: len(asked) + 1] in ([*asked, Do.CLAIM_LEASE], [Do.START_LEASE])
    assert order(plan)[-1] is Do.REGISTER
    assert_order(plan, Do.PREPARE_VOLUME, Do.EXPORT, Do.START_NFS, Do.OPEN_PORT, Do.CHECK_SERVING)
    assert_order(plan, Do.BIND, Do.START_NFS)


@pytest.mark.parametrize("plan", (SWITCHOVER, DEMOTION), ids=lambda plan: plan.name)
def test_a_demotion_deregisters_first_and_releases_only_what_is_shut_and_complete(
    plan: Plan,
) -> None:
    before = [Do.PRE_COPY, Do.TELL_HOOKS] if plan is SWITCHOVER else [Do.TELL_HOOKS]
    assert order(plan)[: len(before) + 1] == [*before, Do.DEREGISTER]
    assert_order(
        plan, Do.DEREGISTER, Do.CLOSE_PORT, Do.STOP_NFS, Do.READ_ONLY, Do.FINAL_SNAPSHOT, Do.RELEASE
    )
    assert_order(plan, Do.UNBIND, Do.READ_ONLY, Do.NO_WRITERS, Do.FINAL_SNAPSHOT)
    assert_order(plan, Do.RELEASE, Do.STOP_LEASE, Do.RETIRE_TREE, Do.FORGET)


def test_a_switchover_copies_before_and_after_and_waits_at_its_end() -> None:
    assert_order(SWITCHOVER, Do.PRE_COPY, Do.CLOSE_PORT)
    assert_order(SWITCHOVER, Do.FINAL_SNAPSHOT, Do.FINAL_COPY, Do.RELEASE, Do.AWAIT_SUCCESSOR)
    assert order(SWITCHOVER)[-1] is Do.AWAIT_SUCCESSOR


def test_a_plain_demotion_copies_to_nobody_and_waits_for_nobody() -> None:
    assert not {Do.PRE_COPY, Do.FINAL_COPY, Do.AWAIT_SUCCESSOR} & set(order(DEMOTION))


@pytest.mark.parametrize("plan", (PUT_AWAY, STEP_DOWN), ids=lambda plan: plan.name)
def test_whoever_has_no_lease_shuts_the_fence_before_anything_else(plan: Plan) -> None:
    assert order(plan)[0] is Do.SHUT_FENCE
    assert_order(plan, Do.STOP_NFS, Do.READ_ONLY)


def test_a_primary_that_was_replaced_keeps_its_tree_as_diverged_and_never_releases() -> None:
    assert Do.KEEP_DIVERGED in order(STEP_DOWN)
    assert Do.RETIRE_TREE not in order(STEP_DOWN)
    assert Do.RELEASE not in order(STEP_DOWN)


@pytest.mark.parametrize("plan", ENDING, ids=lambda plan: plan.name)
def test_the_epoch_is_forgotten_after_the_tree_is_set_aside(plan: Plan) -> None:
    aside = Do.KEEP_DIVERGED if plan is STEP_DOWN else Do.RETIRE_TREE
    assert_order(plan, Do.READ_ONLY, aside, Do.FORGET)


def test_a_demotion_is_undone_up_to_the_release_and_not_from_there_on() -> None:
    for plan in (SWITCHOVER, DEMOTION):
        assert plan.no_return is Do.RELEASE
        assert plan.undo == GO_ON.steps
        steps = order(plan)
        release = steps.index(Do.RELEASE)
        assert plan.undoable_at == frozenset(steps[:release])


@pytest.mark.parametrize("plan", (PROMOTION, GO_ON, PUT_AWAY, STEP_DOWN), ids=lambda p: p.name)
def test_the_other_plans_only_go_forward(plan: Plan) -> None:
    assert plan.undo == ()


def test_nothing_in_any_plan_deletes() -> None:
    assert not [do for do in Do if "delete" in do or "remove" in do]
