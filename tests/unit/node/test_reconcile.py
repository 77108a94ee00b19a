"""The reconciler's table, row by row, and what it remembers between plans."""

from __future__ import annotations

import dataclasses

import pytest

from meshnode.models.manifest import FileEntry, Manifest
from meshnode.reconcile import (
    CRASH_WINDOW_S,
    CRASHES,
    GIVE_UP_AFTER,
    GIVE_UP_ENDS_S,
    GIVE_UP_FIRST_S,
    HANDOVER_S,
    RETRY_FIRST_S,
    RETRY_MAX_S,
    OwnReplica,
    Plan,
    Reconciler,
    Wanted,
)
from meshnode.types import NodeId, ReplicaState

ME, B, C = NodeId("me"), NodeId("b"), NodeId("c")
READY, FAILED = ReplicaState.READY, ReplicaState.FAILED
UNDER_WAY = [ReplicaState.FETCHING, ReplicaState.LOADING, ReplicaState.UNLOADING]


def manifest(version: int = 1, content: str = "weights") -> Manifest:
    files = (FileEntry(content, 1, bytes(32)),)
    return Manifest("m", version, "onnx", "onnxruntime_onnx", (), (), 0, files, content)


def own(
    state: ReplicaState, version: int = 1, content: str = "weights", *, deployed: bool = True
) -> dict[int, OwnReplica]:
    return {version: OwnReplica(manifest(version, content), state, deployed)}


def wanted(
    *nodes: NodeId,
    ready: tuple[NodeId, ...] = (),
    version: int = 1,
    content: str = "weights",
) -> dict[int, Wanted]:
    return {version: Wanted(manifest(version, content).digest, nodes, ready)}


@pytest.fixture
def reconciler() -> Reconciler:
    return Reconciler(ME)


def plan_after_handover(
    reconciler: Reconciler, target: dict[int, Wanted], here: dict[int, OwnReplica]
) -> Plan:
    """Plan at second 0, when nothing may go yet, and again once a handover has had its time."""
    first = reconciler.plan("m", target, here, 0.0)
    assert first == Plan(look_again_at=HANDOVER_S)
    return reconciler.plan("m", target, here, HANDOVER_S)


# Placed here.


def test_what_is_absent_is_loaded(reconciler: Reconciler) -> None:
    assert reconciler.plan("m", wanted(ME), {}, 0.0) == Plan(load=(1,))


def test_what_failed_is_loaded_again_after_a_back_off_that_doubles(reconciler: Reconciler) -> None:
    now = 100.0
    waits: list[float] = []
    for _ in range(9):
        reconciler.failed(manifest(), manifest().digest, now)
        plan = reconciler.plan("m", wanted(ME), own(FAILED), now)
        assert plan.load == ()
        assert plan.look_again_at is not None
        waits.append(plan.look_again_at - now)
        now = plan.look_again_at
        assert reconciler.plan("m", wanted(ME), own(FAILED), now) == Plan(load=(1,))
    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]
    assert (waits[0], waits[-1]) == (RETRY_FIRST_S, RETRY_MAX_S)


def test_the_back_off_has_no_end(reconciler: Reconciler) -> None:
    for _ in range(2000):
        reconciler.failed(manifest(), manifest().digest, 0.0)
    plan = reconciler.plan("m", wanted(ME), own(FAILED), 0.0)
    assert plan.look_again_at == RETRY_MAX_S


def test_other_files_than_those_that_failed_are_loaded_at_once(reconciler: Reconciler) -> None:
    reconciler.failed(manifest(), manifest().digest, 0.0)
    assert reconciler.plan("m", wanted(ME, content="new"), own(FAILED), 0.0) == Plan(load=(1,))
    assert repr(reconciler) == "<Reconciler of me, 0 failures remembered>"


def test_a_success_and_an_end_of_the_deployment_forget_failures(reconciler: Reconciler) -> None:
    for target, here in ((wanted(ME), own(READY)), ({}, {})):
        reconciler.failed(manifest(), manifest().digest, 0.0)
        assert repr(reconciler) == "<Reconciler of me, 1 failures remembered>"
        reconciler.plan("m", target, here, 0.0)
        assert repr(reconciler) == "<Reconciler of me, 0 failures remembered>"


def test_a_failure_is_remembered_while_it_is_placed_elsewhere(reconciler: Reconciler) -> None:
    """Else a placement that goes to and fro would try a broken model again and again."""
    reconciler.failed(manifest(), manifest().digest, 0.0)
    assert reconciler.plan("m", wanted(B), own(FAILED), 0.0) == Plan(unload=(1,))
    assert reconciler.plan("m", wanted(B), {}, 1.0) == Plan()
    assert repr(reconciler) == "<Reconciler of me, 1 failures remembered>"


@pytest.mark.parametrize("state", [*UNDER_WAY, READY])
def test_what_is_here_or_under_way_is_left_alone(
    reconciler: Reconciler, state: ReplicaState
) -> None:
    assert reconciler.plan("m", wanted(ME, B), own(state), 0.0) == Plan()
    assert reconciler.plan("m", wanted(ME, B), own(state), 1000.0) == Plan()


def test_other_files_are_exchanged_best_placed_first(reconciler: Reconciler) -> None:
    """They are loaded beside those that serve."""
    target = wanted(ME, B, content="new")
    assert plan_after_handover(reconciler, target, own(READY)) == Plan(load=(1,))


def test_nothing_is_done_about_a_replica_while_its_other_files_are_on_their_way(
    reconciler: Reconciler,
) -> None:
    here = own(READY)
    here[1].begins(manifest(content="new"), ReplicaState.FETCHING)
    assert here[1].to_load == manifest(content="new")
    for target in (wanted(ME, content="new"), wanted(B, ready=(B,)), {}):
        for now in (0.0, 100.0):
            assert reconciler.plan("m", target, here, now) == Plan()


def test_other_files_that_failed_are_tried_again_after_the_back_off(
    reconciler: Reconciler,
) -> None:
    target, new = wanted(ME, content="new"), manifest(content="new")
    here = own(READY)
    assert plan_after_handover(reconciler, target, here) == Plan(load=(1,))
    now = HANDOVER_S
    here[1].begins(new, ReplicaState.LOADING)
    here[1].failed_to_replace(new.digest, "damaged")
    reconciler.failed(new, new.digest, now)
    assert reconciler.plan("m", target, here, now) == Plan(look_again_at=now + RETRY_FIRST_S)
    now += RETRY_FIRST_S
    assert reconciler.plan("m", target, here, now) == Plan(look_again_at=now + HANDOVER_S)
    assert reconciler.plan("m", target, here, now + HANDOVER_S) == Plan(load=(1,))


def test_other_files_wait_for_the_nodes_before(reconciler: Reconciler) -> None:
    waiting = wanted(B, ME, C, ready=(C,), content="new")
    assert reconciler.plan("m", waiting, own(READY), 0.0) == Plan()
    turn = wanted(B, ME, C, ready=(B,), content="new")
    assert plan_after_handover(reconciler, turn, own(READY)) == Plan(load=(1,))


@pytest.mark.parametrize("state", UNDER_WAY)
def test_other_files_wait_for_what_is_under_way(
    reconciler: Reconciler, state: ReplicaState
) -> None:
    assert reconciler.plan("m", wanted(ME, content="new"), own(state), 0.0) == Plan()


# Not placed here.


def test_a_replica_goes_when_it_has_been_handed_over_for_a_while(reconciler: Reconciler) -> None:
    target = wanted(B, C, ready=(B, C, ME))
    assert plan_after_handover(reconciler, target, own(READY)) == Plan(unload=(1,))


def test_what_is_wanted_no_more_does_not_wait_for_what_a_release_brings(
    reconciler: Reconciler,
) -> None:
    target = wanted(ME, ready=(ME,))
    brought = wanted(ME, version=3)[3]
    target[3] = dataclasses.replace(brought, is_candidate=True)
    here = own(READY) | own(READY, 2) | own(ReplicaState.FETCHING, 3)
    assert plan_after_handover(reconciler, target, here) == Plan(unload=(2,))


@pytest.mark.parametrize("ready", [(), (B,), (ME,)])
def test_a_replica_stays_while_a_placed_node_is_not_ready(
    reconciler: Reconciler, ready: tuple[NodeId, ...]
) -> None:
    assert reconciler.plan("m", wanted(B, C, ready=ready), own(READY), 0.0) == Plan()


def test_a_replica_stays_while_it_is_placed_nowhere(reconciler: Reconciler) -> None:
    assert reconciler.plan("m", wanted(), own(READY), 0.0) == Plan()


def test_a_handover_that_was_broken_begins_anew(reconciler: Reconciler) -> None:
    done, broken = wanted(B, ready=(B,)), wanted(B)
    assert reconciler.plan("m", done, own(READY), 0.0).look_again_at == HANDOVER_S
    assert reconciler.plan("m", broken, own(READY), 1.0) == Plan()
    assert reconciler.plan("m", done, own(READY), 2.0).look_again_at == 2.0 + HANDOVER_S
    assert reconciler.plan("m", done, own(READY), HANDOVER_S).unload == ()
    assert reconciler.plan("m", done, own(READY), 2.0 + HANDOVER_S) == Plan(unload=(1,))


@pytest.mark.parametrize("state", UNDER_WAY)
def test_what_is_under_way_ends_before_it_is_handed_over(
    reconciler: Reconciler, state: ReplicaState
) -> None:
    assert reconciler.plan("m", wanted(B, ready=(B,)), own(state), 0.0) == Plan()


# Other versions.


def test_an_old_version_goes_when_the_new_ones_are_served(reconciler: Reconciler) -> None:
    target = wanted(ME, B, ready=(ME, B), version=2)
    both = own(READY) | own(READY, version=2)
    assert plan_after_handover(reconciler, target, both) == Plan(unload=(1,))


def test_an_old_version_stays_while_a_new_one_is_not_served(reconciler: Reconciler) -> None:
    target = wanted(ME, B, ready=(ME, B), version=2) | wanted(ME, B, ready=(ME,), version=3)
    here = own(READY) | own(READY, version=2) | own(READY, version=3)
    assert reconciler.plan("m", target, here, 0.0) == Plan()


def test_an_old_version_that_failed_goes_at_once(reconciler: Reconciler) -> None:
    assert reconciler.plan("m", wanted(ME, version=2), own(FAILED), 0.0) == Plan((2,), (1,))


# No deployment.


@pytest.mark.parametrize("state", [READY, FAILED])
def test_what_nobody_wants_goes_at_once(reconciler: Reconciler, state: ReplicaState) -> None:
    assert reconciler.plan("m", {}, own(state), 0.0) == Plan(unload=(1,))


@pytest.mark.parametrize("state", UNDER_WAY)
def test_what_nobody_wants_ends_what_is_under_way_first(
    reconciler: Reconciler, state: ReplicaState
) -> None:
    assert reconciler.plan("m", {}, own(state), 0.0) == Plan()


@pytest.mark.parametrize("state", list(ReplicaState))
def test_a_replica_of_the_nodes_own_folder_is_never_touched(
    reconciler: Reconciler, state: ReplicaState
) -> None:
    mine = own(state, deployed=False)
    for target in ({}, wanted(ME), wanted(B, ready=(B,)), wanted(ME, content="new")):
        for now in (0.0, 100.0):
            assert reconciler.plan("m", target, mine, now) == Plan()


# Standby, and none wanted.


def test_a_replica_on_standby_is_loaded_and_kept_as_any_other(reconciler: Reconciler) -> None:
    target = {1: Wanted(manifest().digest, (B,), (B,), standby=(ME,))}
    assert reconciler.plan("m", target, {}, 0.0) == Plan(load=(1,))
    assert reconciler.plan("m", target, own(READY), 0.0) == Plan()


def test_nobody_waits_for_a_standby(reconciler: Reconciler) -> None:
    """A replica elsewhere goes once those that are asked serve, though the standby still loads."""
    target = {1: Wanted(manifest().digest, (B,), (B,), standby=(C,))}
    assert plan_after_handover(reconciler, target, own(READY)) == Plan(unload=(1,))


def test_standbys_exchange_their_files_last(reconciler: Reconciler) -> None:
    digest = manifest(content="new").digest
    early = {1: Wanted(digest, (B,), (), standby=(ME,))}
    assert reconciler.plan("m", early, own(READY), 0.0) == Plan()
    target = {1: Wanted(digest, (B,), (B,), standby=(ME,))}
    assert plan_after_handover(reconciler, target, own(READY)) == Plan(load=(1,))


def test_what_is_scaled_to_zero_goes_once_all_know(reconciler: Reconciler) -> None:
    target = {1: Wanted(manifest().digest, (), (), is_unasked=True)}
    assert plan_after_handover(reconciler, target, own(READY)) == Plan(unload=(1,))


# Giving up.


def fail(reconciler: Reconciler, now: float, times: int = 1, why: str = "no") -> None:
    for _ in range(times):
        reconciler.failed(manifest(), manifest().digest, now, why)


GIVEN_UP = [("m", 1, manifest().digest, "no")]


def test_a_version_that_fails_a_few_times_in_a_row_is_given_up_for_a_while(
    reconciler: Reconciler,
) -> None:
    fail(reconciler, 0.0, GIVE_UP_AFTER - 1)
    assert reconciler.failing(0.0) == []
    fail(reconciler, 20.0)
    assert reconciler.failing(20.0) == GIVEN_UP
    # It is placed elsewhere now; the plan says when the node is willing again.
    there = wanted(B)
    assert reconciler.plan("m", there, own(FAILED), 20.0) == Plan(
        unload=(1,), look_again_at=20.0 + GIVE_UP_FIRST_S
    )
    assert reconciler.failing(20.0 + GIVE_UP_FIRST_S) == []
    assert reconciler.plan("m", wanted(ME), {}, 400.0) == Plan(load=(1,))


def test_a_version_that_fails_again_after_that_is_given_up_at_once_and_for_longer(
    reconciler: Reconciler,
) -> None:
    fail(reconciler, 0.0, GIVE_UP_AFTER)
    now, waits = 0.0, []
    for _ in range(6):
        plan = reconciler.plan("m", wanted(B), {}, now)
        assert plan.look_again_at is not None
        waits.append(plan.look_again_at - now)
        now = plan.look_again_at
        fail(reconciler, now)
    assert waits == [GIVE_UP_FIRST_S * 2**number for number in range(4)] + [GIVE_UP_ENDS_S] * 2


def test_other_files_and_an_end_of_the_deployment_take_the_giving_up_back(
    reconciler: Reconciler,
) -> None:
    fail(reconciler, 0.0, GIVE_UP_AFTER)
    reconciler.plan("m", wanted(ME, content="mended"), {}, 1.0)
    assert reconciler.failing(1.0) == []
    fail(reconciler, 2.0, GIVE_UP_AFTER)
    reconciler.plan("m", {}, {}, 3.0)  # paused, or deleted
    assert reconciler.failing(3.0) == []


def test_files_that_fail_to_replace_others_are_never_given_up(reconciler: Reconciler) -> None:
    """The node serves on with the old ones, and the others wait: the files are to blame, not the node."""
    fail(reconciler, 0.0, 20, why="")
    assert reconciler.failing(0.0) == []


def crash(reconciler: Reconciler, now: float) -> None:
    reconciler.crashed(manifest(), manifest().digest, now, "its process ended with exit code 1")


def test_a_replica_whose_processes_end_again_and_again_is_given_up(reconciler: Reconciler) -> None:
    for number in range(CRASHES):
        assert reconciler.failing(10.0 * number) == []
        crash(reconciler, 10.0 * number)
        reconciler.plan("m", wanted(ME), own(READY), 10.0 * number + 1)  # it is up in between
    ((*_, why),) = reconciler.failing(60.0)
    assert why == "its process ended with exit code 1"
    # It serves until another does.
    assert reconciler.plan("m", wanted(B), own(READY), 60.0).unload == ()
    served = wanted(B, ready=(B,))
    reconciler.plan("m", served, own(READY), 61.0)
    assert reconciler.plan("m", served, own(READY), 61.0 + HANDOVER_S).unload == (1,)


def test_processes_that_end_now_and_then_are_no_reason_to_give_up(reconciler: Reconciler) -> None:
    for number in range(3 * CRASHES):
        now = number * CRASH_WINDOW_S / (CRASHES - 1)
        crash(reconciler, now)
        reconciler.plan("m", wanted(ME), own(READY), now)
        assert reconciler.failing(now) == []
