"""Stories of releases in a whole mesh: how far they come, who decides, and what survives whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.sim.mesh import SimMesh
from meshnode.sim.model_behaviour import ModelBehaviour
from meshnode.sim.serving import sim_manifest
from meshnode.state.constraints import Resources
from meshnode.state.release import Ending, Gate, Release, Step
from meshnode.state.scaling import Scaling

if TYPE_CHECKING:
    from typing import Any

    from meshnode.releases import ReleaseView
    from meshnode.sim.mesh import Load
    from meshnode.sim.trace import Record
    from meshnode.state.deployment import Deployment
    from meshnode.state.release import Verb

OLD, NEW = sim_manifest("digits"), sim_manifest("digits", 2, "newer")
NAMES = [f"box-{number}" for number in range(6)]
GIB = 1024**3
HAND_OVER_S = 10.0

STEPS = (Step(0.2, hold_s=8.0), Step(0.5, hold_s=8.0))
CANARY = Release(
    "canary", 1, 2, STEPS, (Gate("errors", 0.01),), min_requests=40, max_wait_s=30.0, keep_s=10.0
)
BLUE_GREEN = Release("blue_green", 1, 2, (Step(0.0, hold_s=0.0, wait=True),), keep_s=600.0)


def deployed(new: ModelBehaviour | None = None, *, seed: int = 1, memory_bytes: int = 0) -> SimMesh:
    """Return a mesh of six alike nodes that serves version 1, which runs 10 ms."""
    mesh = SimMesh(seed)
    for name in NAMES:
        mesh.add(name, "eu", memory_bytes=memory_bytes)
    mesh.run_for(8.0)
    old = ModelBehaviour(0.01, fetch_s=0.3, load_s=0.5)
    mesh.behave(OLD, old)
    mesh.behave(NEW, new or old)
    mesh.deploy(NAMES[0], OLD, replicas=3)
    mesh.run_for(6.0)
    assert len(mesh.serving("digits", 1)) == 3
    return mesh


def release(mesh: SimMesh, plan: Release, by: str = NAMES[0], **fields: Any) -> Deployment:
    deployment = mesh.deploy(by, OLD, NEW, **{"replicas": 3, "release": plan, **fields})
    mesh.run_for(0.5)  # until every node has it
    return deployment


def view(mesh: SimMesh, name: str = "") -> ReleaseView:
    """Return what a running node shows of the release."""
    seen = mesh.node(name or next(iter(mesh.world.running()))).release_view("digits")
    assert seen is not None
    return seen


def steward(mesh: SimMesh, name: str = "") -> str:
    return mesh.name_of(view(mesh, name).steward)


def phases(mesh: SimMesh) -> set[str]:
    """Return where the release stands, as the running nodes know."""
    return {view(mesh, name).progress.phase for name in mesh.world.running()}


def told(mesh: SimMesh, *kinds: str) -> list[Record]:
    return [record for kind in kinds for record in mesh.world.trace.find(f"release.{kind}")]


def order(mesh: SimMesh, verb: Verb, by: str = NAMES[5]) -> None:
    mesh.write(
        by, lambda _drafts, wall_s: mesh.node(by).release_order("digits", verb, wall_s, by="ada")
    )


def load(mesh: SimMesh, seconds: float, per_s: float = 35.0) -> Load:
    return mesh.load([*mesh.world.running()], "digits", rate_per_s=per_s, duration_s=seconds)


def versions(load: Load) -> dict[int | None, int]:
    served = [each.served_version for each in load.requests if each.outcome is not None]
    return {version: served.count(version) for version in {*served}}


# The course


def test_a_canary_goes_through_its_steps_and_the_old_version_goes_at_the_end() -> None:
    mesh = deployed()
    release(mesh, CANARY)
    sent = load(mesh, 70.0)
    mesh.run_for(80.0)
    kinds = [each.kind for each in told(mesh, "began", "step", "promoted", "done")]
    assert kinds == [
        "release.began",
        "release.step",
        "release.step",
        "release.promoted",
        "release.done",
    ]
    assert phases(mesh) == {"done"}
    assert mesh.serving("digits", 1) == []
    assert len(mesh.serving("digits", 2)) == 3
    assert sent.failed == []
    assert {*versions(sent)} == {1, 2}
    assert view(mesh).ending is not None
    assert all(mesh.node(name).release_view("digits").steward is None for name in NAMES[1:])  # type: ignore[union-attr]


def test_a_step_sends_its_share_to_the_new_version_at_every_gateway() -> None:
    mesh = deployed()
    release(mesh, CANARY)
    mesh.run_until(lambda: {view(mesh, name).progress.step for name in NAMES} == {0}, 10.0)
    sent = load(mesh, 6.0, per_s=150.0)
    mesh.run_for(6.5)
    counts = versions(sent)
    assert counts[2] / len(sent.requests) == pytest.approx(0.2, abs=0.05)


def test_a_request_that_names_a_version_gets_that_one() -> None:
    mesh = deployed()
    release(mesh, CANARY)
    mesh.run_until(lambda: view(mesh).progress.step == 0, 10.0)
    asked = [mesh.request(NAMES[n % 6], "digits", version=1 + n % 2) for n in range(40)]
    mesh.run_for(2.0)
    assert [each.served_version for each in asked] == [1, 2] * 20


def test_a_new_version_that_errs_is_rolled_back_and_no_client_sees_an_error() -> None:
    mesh = deployed(ModelBehaviour(0.01, fetch_s=0.3, load_s=0.5, fail_share=0.1))
    release(mesh, CANARY)
    sent = load(mesh, 40.0)
    mesh.run_for(45.0)
    (back,) = told(mesh, "rolled_back")
    assert "errors" in back.detail
    assert phases(mesh) == {"rolled_back"}
    assert sent.failed == []
    assert mesh.serving("digits", 2) == []
    assert len(mesh.serving("digits", 1)) == 3
    # Every gateway is back within two seconds of the decision.
    late = [
        each
        for each in sent.requests
        if each.served_version == 2 and each.made_at > back.time_s + 2.0
    ]
    assert late == []


def test_a_new_version_that_cannot_be_loaded_is_given_up() -> None:
    mesh = deployed(ModelBehaviour(0.01, load_error="no such operator"))
    release(mesh, CANARY)
    mesh.run_for(150.0)
    (back,) = told(mesh, "rolled_back")
    assert "no such operator" in back.detail
    assert len(mesh.serving("digits", 1)) == 3


def test_a_new_version_without_room_waits_and_says_why() -> None:
    mesh = deployed(memory_bytes=8 * GIB)
    tight = Resources(memory_bytes=5 * GIB)
    mesh.deploy(NAMES[0], OLD, replicas=6, resources=tight)
    mesh.run_for(8.0)
    before = mesh.serving("digits", 1)
    release(mesh, CANARY, resources=tight, replicas=6)
    mesh.run_for(15.0)
    assert phases(mesh) == {"preparing"}
    assert "not promised to other deployments" in view(mesh).progress.reason
    assert view(mesh).waits.startswith(view(mesh).progress.reason.removesuffix("…"))
    assert mesh.serving("digits", 1) == before
    mesh.run_for(30.0)
    assert phases(mesh) == {"paused"}
    (told_of,) = told(mesh, "inconclusive")
    assert "not promised to other deployments" in told_of.detail


def test_a_model_that_sleeps_stays_awake_while_a_new_version_is_tried() -> None:
    mesh = deployed()
    sleepy = Scaling(0, 4, concurrency=2, idle_s=10.0, down_delay_s=2.0, panic_window_s=4.0)
    mesh.deploy(NAMES[0], OLD, scaling=sleepy)
    mesh.run_for(100.0)
    assert mesh.serving("digits") == []
    mesh.deploy(NAMES[0], OLD, NEW, scaling=sleepy, release=BLUE_GREEN)
    mesh.run_for(30.0)
    assert phases(mesh) == {"paused"}
    assert (len(mesh.serving("digits", 1)), len(mesh.serving("digits", 2))) == (1, 1)
    order(mesh, "abort")
    mesh.run_for(100.0)
    assert mesh.serving("digits") == []


def test_without_requests_a_release_pauses_and_is_never_promoted() -> None:
    mesh = deployed()
    release(mesh, CANARY)
    mesh.run_for(60.0)
    assert phases(mesh) == {"paused"}
    assert told(mesh, "inconclusive")
    assert told(mesh, "promoted") == []


def test_a_blue_green_switch_reaches_every_gateway_within_a_second_and_back() -> None:
    mesh = deployed()
    release(mesh, BLUE_GREEN)
    mesh.run_until(lambda: phases(mesh) == {"paused"}, 15.0)
    for verb, version in (("promote", 2), ("undo", 1)):
        order(mesh, verb)  # type: ignore[arg-type]
        mesh.run_for(1.0)
        sent = [mesh.request(name, "digits") for name in NAMES for _ in range(5)]
        mesh.run_for(0.5)
        assert {each.served_version for each in sent} == {version}
    assert phases(mesh) == {"rolled_back"}


# Orders


def test_an_operators_abort_reaches_the_steward_and_every_gateway() -> None:
    mesh = deployed()
    release(mesh, CANARY)
    mesh.run_until(lambda: view(mesh).progress.step == 0, 10.0)
    order(mesh, "abort", by=next(name for name in NAMES if name != steward(mesh)))
    mesh.run_for(1.0)
    assert phases(mesh) == {"rolled_back"}
    (back,) = told(mesh, "rolled_back")
    assert "abort by ada" in back.detail
    mesh.run_for(10.0)
    assert mesh.serving("digits", 2) == []


@pytest.mark.parametrize("stops_first", [True, False])
def test_of_two_operators_who_order_at_once_the_one_who_aborts_is_obeyed(
    *, stops_first: bool
) -> None:
    mesh = deployed()
    release(mesh, BLUE_GREEN)
    mesh.run_until(lambda: phases(mesh) == {"paused"}, 15.0)
    verbs: list[tuple[Verb, str]] = [("abort", NAMES[1]), ("promote", NAMES[4])]
    for verb, by in verbs if stops_first else verbs[::-1]:
        order(mesh, verb, by=by)
    mesh.run_for(3.0)
    assert phases(mesh) == {"rolled_back"}


def test_a_paused_release_goes_on_when_it_is_told_to() -> None:
    mesh = deployed()
    release(mesh, CANARY)
    load(mesh, 60.0)
    mesh.run_until(lambda: view(mesh).progress.step == 0, 10.0)
    order(mesh, "pause")
    mesh.run_for(20.0)
    assert (phases(mesh), view(mesh).progress.step) == ({"paused"}, 0)
    order(mesh, "resume")
    mesh.run_for(12.0)
    assert view(mesh).progress.step == 1


# Stewards that are lost


@pytest.mark.parametrize("how", ["crash", "freeze", "leave"])
def test_the_steward_that_takes_over_goes_on_at_the_same_step(how: str) -> None:
    mesh = deployed()
    release(mesh, CANARY)
    mesh.run_until(lambda: view(mesh).progress.step == 0, 10.0)
    gone = steward(mesh)
    others = [name for name in NAMES if name != gone]
    before = view(mesh)
    sent = mesh.load(others, "digits", rate_per_s=35.0, duration_s=80.0)
    if how == "freeze":
        mesh.world.freeze(gone)
    else:
        getattr(mesh, how)(gone)
    mesh.run_for(HAND_OVER_S)
    after = view(mesh, others[0])
    assert after.steward != before.steward
    assert after.epoch == before.epoch + 1
    assert after.progress.step in (0, 1)
    mesh.run_for(75.0)
    assert {view(mesh, name).progress.phase for name in others} == {"done"}
    steps = [each.detail.partition(":")[0] for each in told(mesh, "step")]
    assert steps == ["step 1 of 2", "step 2 of 2"]
    assert len(told(mesh, "promoted")) == 1
    assert len([each for each in sent.failed if each.outcome != "gateway_lost"]) == 0


# What lasts


def test_a_mesh_that_is_started_anew_after_an_ending_begins_nothing_again() -> None:
    mesh = deployed()
    release(mesh, BLUE_GREEN)
    mesh.run_until(lambda: phases(mesh) == {"paused"}, 15.0)
    order(mesh, "abort")
    mesh.run_for(5.0)
    for name in NAMES:
        mesh.crash(name)
    mesh.run_for(2.0)
    began = len(told(mesh, "began"))
    for name in NAMES:
        mesh.world.restart(name)
    mesh.run_for(30.0)
    assert phases(mesh) == {"rolled_back"}
    assert len(told(mesh, "began")) == began
    assert mesh.serving("digits", 2) == []
    assert len(mesh.serving("digits", 1)) == 3


def restart_all(mesh: SimMesh) -> None:
    for name in NAMES:
        mesh.crash(name)
    mesh.run_for(2.0)
    for name in NAMES:
        mesh.world.restart(name)
    mesh.run_for(30.0)


def test_a_mesh_that_is_started_anew_after_the_switch_stays_at_the_new_version() -> None:
    mesh = deployed()
    release(mesh, BLUE_GREEN)
    mesh.run_until(lambda: phases(mesh) == {"paused"}, 15.0)
    order(mesh, "promote")
    mesh.run_until(lambda: phases(mesh) == {"keeping"}, 5.0)
    since_ms = view(mesh).progress.since_ms
    mesh.run_for(3.0)
    restart_all(mesh)
    assert phases(mesh) == {"keeping"}
    assert {view(mesh, name).progress.since_ms for name in NAMES} == {since_ms}
    assert len(told(mesh, "began")) == 1
    order(mesh, "undo")
    mesh.run_for(1.0)
    assert phases(mesh) == {"rolled_back"}


def test_a_mesh_that_is_started_anew_in_mid_release_goes_on_at_its_step_and_obeys_no_order_twice() -> (
    None
):
    mesh = deployed()
    plan = Release("canary", 1, 2, (Step(0.2, hold_s=0.0, wait=True),) * 3, keep_s=600.0)
    release(mesh, plan)
    mesh.run_until(lambda: view(mesh).progress.waits, 15.0)
    order(mesh, "promote")
    mesh.run_until(lambda: view(mesh).progress.step == 1 and view(mesh).progress.waits, 10.0)
    mesh.run_for(3.0)
    restart_all(mesh)
    assert {view(mesh, name).progress.step for name in NAMES} == {1}
    assert len(told(mesh, "began")) == 1


def test_another_number_of_replicas_does_not_begin_a_release_again() -> None:
    mesh = deployed()
    release(mesh, CANARY)
    mesh.run_until(lambda: view(mesh).progress.step == 0, 10.0)
    current = mesh.node(NAMES[0]).deployment("digits")
    assert current is not None
    assert current.release is not None
    mesh.deploy(NAMES[3], OLD, NEW, replicas=4, release=current.release)
    mesh.run_for(6.0)
    assert view(mesh).progress.step == 0
    assert len(told(mesh, "began")) == 1
    assert len(mesh.serving("digits", 2)) == 4


def test_a_new_plan_takes_the_place_of_the_one_that_is_under_way() -> None:
    mesh = deployed()
    release(mesh, CANARY)
    mesh.run_until(lambda: view(mesh).progress.step == 0, 10.0)
    newer = sim_manifest("digits", 3, "newest")
    plan = Release("canary", 1, 3, STEPS, keep_s=10.0)
    mesh.deploy(NAMES[2], OLD, newer, replicas=3, release=plan)
    mesh.run_for(8.0)
    assert view(mesh).release.candidate == 3
    assert len(mesh.serving("digits", 3)) == 3
    mesh.run_for(10.0)
    assert mesh.serving("digits", 2) == []


# Parted meshes


def test_both_sides_of_a_partition_go_on_and_agree_when_they_meet() -> None:
    mesh = deployed()
    release(mesh, BLUE_GREEN)
    mesh.run_until(lambda: phases(mesh) == {"paused"}, 15.0)
    left = [steward(mesh), *[name for name in NAMES if name != steward(mesh)][:2]]
    right = [name for name in NAMES if name not in left]
    mesh.world.partition(left, right)
    mesh.run_for(15.0)
    assert steward(mesh, right[0]) in right
    order(mesh, "abort", by=right[0])
    mesh.run_for(5.0)
    assert view(mesh, right[0]).progress.phase == "rolled_back"
    assert view(mesh, left[0]).progress.phase == "paused"
    mesh.world.heal()
    mesh.run_for(30.0)
    assert phases(mesh) == {"rolled_back"}
    assert {view(mesh, name).ending for name in NAMES} == {view(mesh).ending}
    assert isinstance(view(mesh).ending, Ending)
