"""A node that is to be emptied: what keeps it, what it tells, and who takes over."""

from __future__ import annotations

import msgspec
import pytest

from meshnode.draining import WITHDRAWN, Course, Kept, Work
from meshnode.effects import Persist
from meshnode.errors import Forbidden, NoReplica
from meshnode.limits import DRAIN_HAND_OVER_S, MAX_OWNER_VALUE_BYTES, MAX_REASON_BYTES
from meshnode.node_events import DrainReported, ReplicaChanged, ReplicaGone
from meshnode.reconcile import HANDOVER_S
from meshnode.state.drain import REPORT_KEY, Drain, DrainReport, DrainState
from meshnode.types import NodeId, ReplicaState, Role
from tests.unit.node.test_node import DIGITS, READY, WALL_S, Stage, models

DRAIN = Drain(1_750_000_000, wait_s=60)
WAITING = Kept("digits", 1, "digits version 1 is not ready on peer yet")
BLOCKED = Kept("digits", 1, "nobody can take over digits version 1", is_blocked=True)


def drain(stage: Stage, node: NodeId | None = None, what: Drain | None = DRAIN) -> list[object]:
    draft = stage.node.drafts.drain(node or stage.node.me, what, WALL_S + stage.now)
    return [*stage.write(draft)]


def whys(stage: Stage) -> list[tuple[str, bool]]:
    return [(each.why, each.is_blocked) for each in stage.node.kept_replicas()]


# The course of a drain


def test_a_node_without_work_is_drained_at_the_first_look() -> None:
    course = Course(DRAIN, 0.0)
    step = course.look([], Work(), 0.0)
    assert step.report == DrainReport(DrainState.DRAINED, DRAIN.since_s)
    assert step.is_withdrawn
    assert "withdrawn" in repr(course)


def test_replicas_serve_until_others_do_and_what_runs_is_finished_after_that() -> None:
    course = Course(DRAIN, 0.0)
    handing_over = course.look([WAITING], Work(for_peers=2), 1.0)
    assert not handing_over.is_withdrawn
    assert handing_over.report.waits_for == (WAITING.why, "2 request(s) of other nodes' callers")
    finishing = course.look([], Work(for_peers=1, for_callers=1, jobs=1), 2.0)
    assert finishing.is_withdrawn
    assert finishing.report.state is DrainState.DRAINING
    assert (finishing.report.requests, finishing.report.jobs) == (2, 1)
    assert course.look([], Work(), 3.0).report.state is DrainState.DRAINED


def test_what_comes_through_the_gateway_of_a_drained_node_changes_nothing() -> None:
    course = Course(DRAIN, 0.0)
    drained = course.look([], Work(), 0.0).report
    assert course.look([], Work(for_callers=5), 1.0).report == drained


def test_sequences_go_on_until_they_end_or_their_time_is_over() -> None:
    course = Course(DRAIN, 0.0)
    assert not course.look([], Work(sequences=2), 59.0).is_withdrawn
    step = course.look([], Work(sequences=2), 60.0)
    assert step.is_withdrawn
    assert (step.report.state, step.report.ended) == (DrainState.DRAINED, 2)


def test_a_node_is_not_drained_while_somebody_elses_request_runs_on_it() -> None:
    course = Course(DRAIN, 0.0)
    late = course.look([], Work(for_peers=1), 60.0)
    assert (late.is_withdrawn, late.is_overdue) == (True, True), "now it is ended"
    assert late.report.state is DrainState.DRAINING
    assert course.look([], Work(for_callers=3), 60.1).report.state is DrainState.DRAINED


def test_what_takes_too_long_is_ended_and_jobs_have_a_while_to_reach_others() -> None:
    course = Course(DRAIN, 0.0)
    assert not course.look([], Work(jobs=1), 59.0).is_overdue
    late = course.look([], Work(for_peers=1, jobs=1), 60.0)
    assert late.is_overdue
    assert late.report.state is DrainState.DRAINING
    over = course.look([], Work(for_peers=1, jobs=1), 60.0 + DRAIN_HAND_OVER_S)
    assert over.report.state is DrainState.DRAINED


def test_what_nobody_else_can_take_over_blocks_a_drain_unless_it_is_forced() -> None:
    step = Course(DRAIN, 0.0).look([BLOCKED], Work(), 3600.0)
    assert not step.is_withdrawn
    assert step.report.blocked_by == (BLOCKED.why,)
    assert (step.report.waits_for, step.report.replicas) == ((), 1)
    forced = Course(Drain(1, force=True), 0.0).look([BLOCKED], Work(), 0.0)
    assert forced.is_withdrawn
    assert forced.report.state is DrainState.DRAINED


def test_a_report_stays_within_its_limits_and_survives_its_encoding() -> None:
    long = [
        Kept(f"m{number}", 1, "\u00e9" * MAX_REASON_BYTES, is_blocked=number % 2 == 0)
        for number in range(100)
    ]
    report = Course(DRAIN, 0.0).look(long, Work(), 0.0).report
    assert DrainReport.decode(report.encode()) == report
    assert min(len(report.waits_for), len(report.blocked_by)) > 10
    assert len(report.encode()) <= MAX_OWNER_VALUE_BYTES


def test_what_never_comes_elsewhere_is_given_up_by_force_once_its_time_is_over() -> None:
    patient = Course(DRAIN, 0.0)
    assert patient.look([WAITING], Work(), 3600.0).report.waits_for == (WAITING.why,)
    forced = Course(Drain(1, force=True, wait_s=60), 0.0)
    assert not forced.look([WAITING], Work(), 59.0).is_withdrawn
    assert forced.look([WAITING], Work(), 60.0).report.state is DrainState.DRAINED


def test_a_node_whose_own_folder_was_not_looked_through_yet_is_not_drained() -> None:
    course = Course(DRAIN, 0.0)
    starting = course.look([], Work(is_settled=False), 3600.0)
    assert not starting.is_withdrawn
    assert "own model folder" in starting.report.waits_for[0]
    assert course.look([BLOCKED], Work(), 3601.0).report.state is DrainState.DRAINING
    forced = Course(Drain(1, force=True, wait_s=60), 0.0)
    assert not forced.look([], Work(is_settled=False), 59.0).is_withdrawn
    assert forced.look([], Work(is_settled=False), 60.0).report.state is DrainState.DRAINED


def test_a_node_serves_again_if_who_took_over_is_gone_before_it_is_drained() -> None:
    course = Course(DRAIN, 0.0)
    assert course.look([], Work(for_peers=1), 1.0).is_withdrawn
    step = course.look([BLOCKED], Work(), 2.0)
    assert not step.is_withdrawn
    assert (step.report.state, step.report.blocked_by) == (DrainState.DRAINING, (BLOCKED.why,))
    again = course.look([], Work(), 3.0)
    assert again.is_withdrawn
    assert again.report.state is DrainState.DRAINED


# The node


def test_a_deployed_model_is_loaded_elsewhere_and_goes_only_then() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.deploy(DIGITS, replicas=2)
    stage.tell(ReplicaChanged(DIGITS, READY))
    assert stage.ready_at() == ["me"]
    drain(stage)
    assert whys(stage) == [("digits version 1 is not ready on peer yet", False)]
    assert stage.ready_at() == ["me"]
    stage.run_to(stage.now + 60.0)
    assert stage.node.own["digits", 1].state is READY
    stage.peer_serves(DIGITS)
    assert whys(stage) == [
        ("digits version 1 is ready elsewhere, and goes as soon as gateways know", False)
    ]
    effects = stage.run_to(stage.now + HANDOVER_S)
    assert [type(each).__name__ for each in models(effects)] == ["UnloadModel"]
    assert whys(stage) == [("digits version 1 is unloading", False)]
    stage.tell(ReplicaGone("digits", 1))
    assert whys(stage) == []


def test_a_node_that_is_drained_gets_nothing_new_until_that_is_taken_back() -> None:
    stage = Stage()
    stage.peer_joins()
    drain(stage)
    assert models(stage.deploy(DIGITS, replicas=2)) == []
    assert [type(each).__name__ for each in models(drain(stage, what=None))] == ["LoadModel"]  # type: ignore[arg-type]


def test_routing_prefers_others_to_a_node_that_is_drained_and_knows_when_that_is_over() -> None:
    stage = Stage()
    stage.peer_joins()
    drain(stage, stage.peer_id)
    assert stage.node.router.table.conditions(stage.peer_id).draining
    drain(stage, stage.peer_id, None)
    assert not stage.node.router.table.conditions(stage.peer_id).draining


def test_a_model_pinned_to_the_node_blocks_its_drain_and_says_what_to_do() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.deploy(DIGITS, on=(stage.node.me,))
    stage.tell(ReplicaChanged(DIGITS, READY))
    drain(stage)
    ((why, is_blocked),) = whys(stage)
    assert is_blocked
    assert "nobody can take over digits version 1" in why
    assert "me: it is being drained" in why
    assert "--force" in why


def test_a_model_that_others_cannot_load_blocks_a_drain_and_says_why() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.deploy(DIGITS, replicas=2)
    stage.tell(ReplicaChanged(DIGITS, READY))
    drain(stage)
    stage.peer_serves(DIGITS, ReplicaState.FAILED, reason="no such operator")
    ((why, is_blocked),) = whys(stage)
    assert is_blocked
    assert "cannot be loaded on peer" in why
    assert "--force (no such operator)" in why
    stage.peer_serves(DIGITS, ReplicaState.LOADING)  # it tries again
    assert whys(stage) == [("digits version 1 is not ready on peer yet", False)]


def test_a_model_of_ones_own_folder_is_kept_unless_another_node_serves_it() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.tell(ReplicaChanged(DIGITS, READY, deployed=False))
    drain(stage)
    ((why, is_blocked),) = whys(stage)
    assert is_blocked
    assert "own model folder" in why
    stage.peer_serves(DIGITS)
    assert whys(stage) == []
    drain(stage, stage.peer_id)  # which does not help if that is drained as well
    assert whys(stage) == [(why, True)]


def test_a_replica_that_failed_or_is_deployed_no_more_does_not_keep_a_node_for_ever() -> None:
    stage = Stage()
    drain(stage)
    stage.tell(ReplicaChanged(DIGITS, ReplicaState.FAILED, "no such operator", deployed=False))
    assert whys(stage) == []


def test_withdrawn_replicas_are_told_to_be_paused_and_are_ready_again_when_it_is_taken_back() -> (
    None
):
    stage = Stage()
    stage.tell(ReplicaChanged(DIGITS, READY, deployed=False))
    drain(stage)
    report = DrainReport(DrainState.DRAINED, DRAIN.since_s)
    stage.tell(DrainReported(report, WITHDRAWN))
    with pytest.raises(NoReplica, match="me: paused: it is drained"):
        stage.node.router.resolve("digits", None)
    assert stage.node.owners.get(stage.node.me, REPORT_KEY) == report.encode()
    drain(stage, what=None)
    assert stage.ready_at() == ["me"]
    assert stage.node.owners.get(stage.node.me, REPORT_KEY) is None
    stage.tell(DrainReported(report, WITHDRAWN))  # on its way when it was taken back
    assert stage.ready_at() == ["me"]


def test_a_node_stays_drained_when_it_is_started_again() -> None:
    before = Stage()
    before.deploy(DIGITS)
    stored = [each.value for each in drain(before) if isinstance(each, Persist)]
    again = Stage(stored_desired=stored[-1])
    assert again.node.me in again.node.drains
    assert models(again.effects) == []
    assert again.node.router.table.conditions(again.node.me).draining


def test_only_an_operators_node_may_drain() -> None:
    stage = Stage(Role.MEMBER)
    with pytest.raises(Forbidden):
        drain(stage)


def test_a_value_that_is_no_drain_empties_nobody() -> None:
    stage = Stage()
    key, value = f"drain/{stage.node.me}", msgspec.msgpack.encode(["soon"])
    stage.write(stage.node.desired.draft({key: value}, WALL_S))
    assert stage.node.me not in stage.node.drains
