"""What becomes of a release when a definition is written over a deployment, and of revisions that are restored."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from meshnode.deployment_changes import changes, described, spec_of_deployment, summary
from meshnode.deployment_writing import document_of
from meshnode.errors import InvalidRequest
from meshnode.models.execution import Execution, SequenceBatching
from meshnode.models.manifest import FileEntry, Manifest, TensorSpec
from meshnode.release_edits import (
    NO_RELEASE,
    Standing,
    released,
    restored,
    serving_version,
    with_whole_release,
)
from meshnode.release_file import plan_of
from meshnode.state.deployment import Deployment, Origin
from meshnode.state.release import Ending, Release, Step
from meshnode.types import DataType
from tests.unit.state.test_deployment import manifest

PLAN = Release("canary", 0, 0, (Step(0.05), Step(0.5)))
OTHER_PLAN = Release("canary", 0, 0, (Step(0.1),))
RUNNING = Standing()
KEEPING = Standing(is_new_serving=True)
PROMOTED = Standing(is_new_serving=True, is_over=True)
UNDONE = Standing(is_over=True, reason="errors: 5 %")


def version(number: int, **fields: Any) -> Manifest:
    entries = (FileEntry("f0.onnx", 10, bytes([number]) * 32),)
    made = msgspec.structs.replace(manifest(version=number), files=entries)
    return msgspec.structs.replace(made, **fields)


ONE, TWO, THREE = (version(number) for number in (1, 2, 3))
PLAIN = Deployment("digits", (ONE,))
MOVING = Deployment(
    "digits",
    (ONE, TWO),
    release=msgspec.structs.replace(PLAN, baseline=1, candidate=2, begun_ms=77),
)


def pair(release: Release | None) -> tuple[int, int, int] | None:
    return None if release is None else (release.baseline, release.candidate, release.begun_ms)


def test_a_new_version_is_released_from_the_one_that_serves() -> None:
    made = released(PLAN, [TWO], PLAIN)
    assert (made.manifests, pair(made.release)) == ((ONE, TWO), (1, 2, 0))
    several = Deployment("digits", (ONE, TWO))
    assert pair(released(PLAN, [THREE], several).release) == (2, 3, 0)


def test_without_a_version_before_it_a_version_is_deployed_directly() -> None:
    made = released(PLAN, [ONE], None)
    assert (made.manifests, made.release) == ((ONE,), None)
    assert "no version before it" in made.notes[0]
    assert released(None, [TWO], PLAIN).release is None


def test_what_is_served_already_is_not_released() -> None:
    assert released(PLAN, [ONE], PLAIN).release is None


@pytest.mark.parametrize("standing", [RUNNING, KEEPING, PROMOTED, UNDONE])
def test_the_same_definition_again_changes_nothing(standing: Standing) -> None:
    made = released(PLAN, [TWO], MOVING, standing)
    assert (made.manifests, pair(made.release)) == ((ONE, TWO), (1, 2, 77))
    assert not made.is_again
    assert bool(made.notes) == (standing is UNDONE), "what was rolled back is told"


def test_what_was_rolled_back_is_tried_again_only_if_that_is_asked_for() -> None:
    made = released(PLAN, [TWO], MOVING, UNDONE, again=True)
    assert made.is_again
    assert pair(made.release) == (1, 2, 0)
    assert not released(PLAN, [TWO], MOVING, PROMOTED, again=True).is_again
    assert not released(PLAN, [TWO], MOVING, RUNNING, again=True).is_again


@pytest.mark.parametrize(
    ("standing", "baseline"), [(RUNNING, 1), (UNDONE, 1), (KEEPING, 2), (PROMOTED, 2)]
)
def test_the_next_release_begins_from_the_version_that_stays(
    standing: Standing, baseline: int
) -> None:
    made = released(PLAN, [THREE], MOVING, standing)
    assert pair(made.release) == (baseline, 3, 0)
    assert [each.version for each in made.manifests] == [baseline, 3]
    assert serving_version(MOVING, standing) == baseline
    assert bool(made.notes) == (standing is RUNNING), "that it ends before its time is told"


def test_another_plan_for_the_same_version_begins_anew() -> None:
    assert pair(released(OTHER_PLAN, [TWO], MOVING, RUNNING).release) == (1, 2, 0)
    assert pair(released(OTHER_PLAN, [TWO], MOVING, UNDONE).release) == (1, 2, 0)
    assert released(OTHER_PLAN, [TWO], MOVING, PROMOTED) == ((TWO,), None, False, ())


def test_going_back_to_the_old_version_ends_the_release_unless_the_new_one_had_taken_over() -> None:
    made = released(PLAN, [ONE], MOVING, RUNNING)
    assert (made.manifests, made.release) == ((ONE,), None)
    assert pair(released(PLAN, [ONE], MOVING, PROMOTED).release) == (2, 1, 0)


def test_a_definition_without_a_plan_deploys_its_version_directly() -> None:
    assert released(None, [TWO], MOVING, RUNNING)[:2] == ((TWO,), None)


SEQUENCES = Execution(sequences=SequenceBatching("direct"))


@pytest.mark.parametrize(
    ("plan", "asked", "said"),
    [
        (PLAN, [TWO, THREE], "versions 2, 3, and a release leads to one"),
        (PLAN, [version(1, entry="f1.onnx", files=(FileEntry("f1.onnx", 9, bytes(32)),))], "number of its own"),
        (PLAN, [version(2, execution=SEQUENCES)], 'use strategy = "blue_green"'),
        (
            Release("blue_green", 0, 0, (Step(0.0, 1.0),)),
            [version(2, execution=Execution(decoupled=True))],
            "leave out mirror",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_released_so_is_refused(
    plan: Release, asked: list[Manifest], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        released(plan, asked, PLAIN)


def test_sequences_are_released_blue_and_green() -> None:
    blue_green = Release("blue_green", 0, 0, (Step(0.0),))
    made = released(blue_green, [version(2, execution=SEQUENCES)], PLAIN)
    assert pair(made.release) == (1, 2, 0)


def test_a_version_with_other_inputs_or_outputs_is_told() -> None:
    pic = TensorSpec("pic", DataType.FP32, (-1, 64))
    (note,) = released(PLAN, [version(2, inputs=(pic,))], PLAIN).notes
    assert note.startswith(
        "version 2 takes pic (FP32[-1, 64]), version 1 x (FP32[-1, 64]): a request"
    )
    flat = TensorSpec("x", DataType.FP32, (-1, 8, 8))
    assert "version 2 gives x" in released(PLAN, [version(2, outputs=(flat,))], PLAIN).notes[0]
    whole = TensorSpec("x", DataType.INT64, (-1, 64))
    many = tuple(msgspec.structs.replace(whole, name=f"x{at}") for at in range(6))
    assert "and 2 more, version 1" in released(PLAN, [version(2, inputs=many)], PLAIN).notes[0]
    wider = TensorSpec("x", DataType.FP32, (-1, 128))
    assert "version 2 takes x" in released(PLAN, [version(2, inputs=(wider,))], PLAIN).notes[0]
    any_width = TensorSpec("x", DataType.FP32, (1, -1))
    assert released(PLAN, [version(2, inputs=(any_width,))], PLAIN).notes == ()
    assert released(PLAN, [TWO], PLAIN).notes == ()


def test_a_release_of_a_version_that_is_taken_out_of_service_is_over() -> None:
    assert with_whole_release(MOVING) is MOVING
    assert with_whole_release(PLAIN) is PLAIN
    left = msgspec.structs.replace(MOVING, manifests=(ONE,))
    assert with_whole_release(left).release is None


ENDED = Ending((77, 5), "promoted", "all steps passed", 99)


def test_an_earlier_revision_is_restored_with_the_version_that_served_in_the_end() -> None:
    assert restored(PLAIN, MOVING, [], (0, 0)) is PLAIN
    back = restored(MOVING, None, [ENDED], (77, 5))
    assert (back.manifests, back.release) == ((TWO,), None)
    back = restored(MOVING, None, [ENDED], (77, 6))
    assert back.manifests == (ONE,), "nothing says that the new version had proven itself"
    undone = msgspec.structs.replace(ENDED, outcome="rolled_back")
    assert restored(MOVING, None, [undone], (77, 5)).manifests == (ONE,)


def test_a_restored_old_version_does_not_say_that_it_was_made_from_the_new_ones_files() -> None:
    made = msgspec.structs.replace(MOVING, origin=Origin(source="files of two"))
    assert restored(made, None, [ENDED], (77, 5)).origin.source == "files of two"
    assert restored(made, None, [], (77, 5)).origin.source == ""


def test_the_next_release_tells_which_version_had_stayed() -> None:
    later = released(PLAN, [THREE], MOVING, PROMOTED)
    following = Deployment("digits", later.manifests, release=later.release)
    assert restored(MOVING, following, [], (77, 5)).manifests == (TWO,)
    later = released(PLAN, [THREE], MOVING, UNDONE)
    following = Deployment("digits", later.manifests, release=later.release)
    assert restored(MOVING, following, [], (77, 5)).manifests == (ONE,)


def test_people_are_told_what_is_released_and_a_definition_is_about_the_new_version() -> None:
    found = changes(PLAIN, MOVING, str)
    assert summary(found, PLAIN, MOVING) == "release of version 2 from 1, canary"
    more = msgspec.structs.replace(MOVING, replicas=2)
    assert summary(changes(PLAIN, more, str), PLAIN, more).endswith("canary; 1 more change")
    assert summary(changes(MOVING, more, str), MOVING, more) == "replicas 1 → 2"
    said = described(MOVING, str)
    assert (said["release.from"], said["release.to"], said["release.strategy"]) == (1, 2, "canary")
    spec = spec_of_deployment(MOVING, str)
    assert (spec.versions, spec.release) == ((2,), plan_of(PLAN))
    assert document_of(spec)["release"] == {"strategy": "canary", "steps": [5, 50], "gates": {}}
    assert serving_version(PLAIN, NO_RELEASE) == 1
