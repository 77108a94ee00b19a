"""A node and the releases of its mesh: as their steward, as a gateway, and as an operator's node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import InvalidRequest, ModelNotFound
from meshnode.events import TimerFired
from meshnode.node_events import ReplicaChanged
from meshnode.rollout import CellWord, Evidence, evidence_key
from meshnode.state.deployment import release_id
from meshnode.state.release import END_PREFIX, ORDER_PREFIX, STOP_PREFIX, Ending, Release, Step
from meshnode.state.steward import StewardWord, steward_key
from meshnode.stewardship import StewardDue
from meshnode.types import ReplicaState
from tests.unit.node.test_node import WALL_S, Stage, emitted, manifest

if TYPE_CHECKING:
    from meshnode.effects import Effect
    from meshnode.releases import ReleaseView
    from meshnode.rollout import Progress
    from meshnode.state.release import Verb

OLD, NEW = manifest(), manifest(version=2, content="newer.onnx")
PLAN = Release("canary", 1, 2, (Step(0.5, hold_s=0.0, wait=True),), keep_s=0.0, min_requests=1)


def serves(stage: Stage, what: Any, state: ReplicaState = ReplicaState.READY) -> None:
    stage.tell(ReplicaChanged(what, state, deployed=True))


def look(stage: Stage, after_s: float = 1.0) -> list[Effect]:
    """Let a second pass, after which the steward looks."""
    stage.now += after_s
    return stage.tell(TimerFired(StewardDue()))


def begun(plan: Release = PLAN) -> Stage:
    """Return a node that serves version 1 alone, and has just deployed a second one beside it."""
    stage = Stage()
    stage.deploy(OLD)
    serves(stage, OLD)
    stage.deploy(OLD, NEW, release=plan)
    look(stage)
    return stage


def view(stage: Stage) -> ReleaseView:
    seen = stage.node.release_view("digits")
    assert seen is not None
    return seen


def said(stage: Stage) -> Progress | None:
    """Return what this node says of the release, as its steward."""
    value = stage.node.owners.get(stage.node.me, steward_key("digits"))
    return None if value is None else StewardWord.decode(value).release


def order(stage: Stage, verb: Verb) -> list[Effect]:
    wall_s = WALL_S + stage.now
    return stage.write(stage.node.release_order("digits", verb, wall_s, by="ada", reason="lunch"))


def put(stage: Stage, key: str, value: bytes) -> list[Effect]:
    return stage.write(stage.node.desired.draft({key: value}, WALL_S + stage.now))


def test_the_steward_prepares_and_then_takes_the_first_step() -> None:
    stage = begun()
    assert (view(stage).progress.phase, view(stage).candidate_ready) == ("preparing", 0)
    assert said(stage) == view(stage).progress
    assert stage.node.router.resolve("digits", None) == 1
    serves(stage, NEW)
    effects = look(stage)
    assert emitted(effects, "release.step")
    assert (view(stage).progress.phase, view(stage).progress.step) == ("running", 0)
    assert view(stage).steward == stage.node.me
    live = stage.node.router.releases.of("digits")
    assert live is not None
    assert live.progress == view(stage).progress
    assert stage.node.router.resolve("digits", None) == 1  # of requests that no gateway splits


def test_a_gateway_tells_once_a_second_what_it_saw_and_withdraws_it_at_the_end() -> None:
    stage = begun()
    serves(stage, NEW)
    look(stage)
    live = stage.node.router.releases.of("digits")
    assert live is not None
    live.book.answered(2, "cpu", 3.0, failed=False)
    look(stage)
    value = stage.node.owners.get(stage.node.me, evidence_key("digits"))
    assert value is not None
    (cell,) = Evidence.decode(value).cells
    assert (cell.version, cell.requests) == (2, 1)
    look(stage)
    assert view(stage).cells[2, "cpu"].requests == 1
    order(stage, "abort")
    look(stage)
    assert stage.node.owners.get(stage.node.me, evidence_key("digits")) is None


def test_what_other_gateways_saw_counts_and_garbage_does_not() -> None:
    stage = begun()
    stage.peer_joins()
    serves(stage, NEW)
    look(stage)
    revision = view(stage).revision
    evidence = Evidence(revision, 0, cells=(CellWord(2, "gpu", 9, 1),))
    stage.peer_says((evidence_key("digits"), evidence.encode()))
    assert view(stage).cells[2, "gpu"].errors == 1
    assert view(stage).judgement is not None
    stage.peer_says((evidence_key("digits"), b"\xc1"))
    assert view(stage).cells == {}
    older = Evidence((1, 1), 0, cells=(CellWord(2, "gpu", 9, 1),))
    stage.peer_says((evidence_key("digits"), older.encode()))
    assert view(stage).cells == {}


def test_an_order_is_obeyed_at_once_and_the_ending_is_written() -> None:
    stage = begun()
    serves(stage, NEW)
    look(stage)
    effects = order(stage, "abort")
    (back,) = emitted(effects, "release.rolled_back")
    assert back.detail == "abort by ada: lunch"
    ending = view(stage).ending
    assert ending is not None
    assert (ending.outcome, ending.revision) == ("rolled_back", view(stage).revision)
    assert said(stage) is None
    assert stage.node.router.releases.of("digits") is None
    assert stage.node.router.resolve("digits", None) == 1
    assert stage.node.owners.get(stage.node.me, steward_key("digits")) is None


def test_a_promoted_version_takes_the_old_ones_place() -> None:
    stage = begun()
    serves(stage, NEW)
    look(stage)
    effects = order(stage, "promote")
    assert emitted(effects, "release.promoted")
    assert stage.node.router.resolve("digits", None) == 2
    effects = look(stage)
    assert emitted(effects, "release.done")
    assert view(stage).ending is not None
    known = stage.node.deployment("digits")
    assert known is not None
    assert [[*part.versions] for part in stage.node.parts("digits")] == [[2]]


@pytest.mark.parametrize(
    ("outcome", "verb", "advice"),
    [
        ("rolled_back", "promote", "begin another one with: meshnode apply"),
        ("promoted", "undo", "meshnode rollback digits"),
        ("promoted", "promote", "nothing left to promote"),
    ],
)
def test_a_release_that_is_over_takes_no_orders(outcome: str, verb: Verb, advice: str) -> None:
    stage = begun()
    ending = Ending(view(stage).revision, outcome, "so it was", 1)  # type: ignore[arg-type]
    put(stage, END_PREFIX + "digits", ending.encode())
    with pytest.raises(InvalidRequest, match=advice):
        order(stage, verb)


def test_what_has_no_release_takes_no_orders() -> None:
    stage = Stage()
    with pytest.raises(ModelNotFound, match="nothing is deployed"):
        order(stage, "pause")
    stage.deploy(OLD)
    with pytest.raises(InvalidRequest, match="no release of 'digits' is under way"):
        order(stage, "pause")
    assert stage.node.release_view("digits") is None
    assert stage.node.release_view("letters") is None


@pytest.mark.parametrize("prefix", [END_PREFIX, ORDER_PREFIX, STOP_PREFIX])
def test_garbage_about_a_release_says_nothing(prefix: str) -> None:
    stage = begun()
    put(stage, prefix + "digits", b"\xc1")
    look(stage)
    assert view(stage).progress.phase == "preparing"
    assert view(stage).ending is None
    serves(stage, NEW)
    look(stage)
    order(stage, "abort")  # and is written over
    look(stage)
    assert view(stage).progress.phase == "rolled_back"


def test_the_ending_of_another_release_says_nothing() -> None:
    stage = begun()
    ending = Ending((7, 7), "promoted", "of another one", 1)
    put(stage, END_PREFIX + "digits", ending.encode())
    assert view(stage).ending is None
    assert view(stage).progress.phase == "preparing"


def test_what_was_said_of_a_release_goes_with_its_deployment() -> None:
    stage = begun()
    order(stage, "pause")
    order(stage, "abort")
    stage.undeploy("digits", WALL_S + stage.now + 1)
    desired = stage.node.desired
    keys = [prefix + "digits" for prefix in (END_PREFIX, ORDER_PREFIX, STOP_PREFIX)]
    assert [desired.get(key) for key in keys] == [None] * 3
    assert stage.node.release_view("digits") is None


def test_a_change_that_drops_the_release_serves_what_it_says() -> None:
    stage = begun()
    serves(stage, NEW)
    look(stage)
    stage.deploy(OLD, NEW)
    assert stage.node.release_view("digits") is None
    assert stage.node.router.resolve("digits", None) == 2
    assert said(stage) is None


def test_the_same_plan_asked_for_again_is_another_release() -> None:
    stage = begun()
    order(stage, "abort")
    stage.now += 1.0
    stage.deploy(OLD, NEW, release=PLAN)
    look(stage)
    assert view(stage).progress.phase == "preparing"
    deployment = stage.node.deployment("digits")
    assert deployment is not None
    assert view(stage).revision == release_id(deployment)


def test_a_version_that_no_node_could_load_is_in_trouble() -> None:
    stage = begun()
    for _ in range(4):
        stage.tell(ReplicaChanged(NEW, ReplicaState.FAILED, deployed=True, reason="a bad operator"))
        stage.run_to(stage.now + 20.0)
    look(stage)
    assert "a bad operator" in view(stage).waits
    for _ in range(40):  # a second each: a node that stood still would not trust what it saw
        look(stage)
    assert view(stage).progress.phase == "rolled_back"
    assert "a bad operator" in view(stage).progress.reason
