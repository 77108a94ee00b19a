"""How models are offered: what configurations and deployments may say, and which of them counts."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from meshnode.errors import ModelError
from meshnode.limits import MAX_TASK_TEXT_LENGTH, MAX_TASKS
from meshnode.models.execution import Execution, SequenceBatching
from meshnode.models.exposure import (
    NO_CHANGE,
    NO_EXPOSURE,
    Exposure,
    ExposureChange,
    Task,
    TaskMapping,
    check_exposure,
    exposed_path,
)
from meshnode.models.manifest import Manifest, TensorSpec, check_manifest
from meshnode.models.repository.config import parse_config
from meshnode.state.deployment import Deployment, offered
from meshnode.types import DataType

CHAT = TaskMapping(Task.CHAT)
SPEC = TensorSpec("x", DataType.FP32, (-1, 4))


def manifest(version: int = 1, variant: str = "", exposure: Exposure = NO_EXPOSURE) -> Manifest:
    return Manifest(
        "m",
        version,
        "onnx",
        "onnx",
        (SPEC,),
        (SPEC,),
        0,
        (),
        "",
        variant=variant,
        exposure=exposure,
    )


@pytest.mark.parametrize("text", ["/count-cars", "/count-cars/", "/cars/v1.2/count_~x"])
def test_a_path_is_kept_without_the_slash_at_its_end(text: str) -> None:
    assert exposed_path(text) == text.rstrip("/")


def test_no_path_is_none() -> None:
    assert exposed_path("") == ""


@pytest.mark.parametrize(
    "text",
    [
        "cars",
        "/",
        "//cars",
        "/a//b",
        "/a/../b",
        "/./a",
        "/{a}",
        "/a b",
        "/a?b",
        "/ä",
        f"/{'a' * 200}",
    ],
)
def test_what_is_no_plain_path_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ModelError, match="for example /count-cars"):
        exposed_path(text)


@pytest.mark.parametrize("text", ["/v2", "/v2/models/m", "/mesh/v1/x", "/metrics/", "/v1/chat"])
def test_a_path_at_which_the_mesh_answers_itself_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="the mesh itself answers"):
        exposed_path(text)


def test_what_a_deployment_does_not_say_is_as_the_configuration_says() -> None:
    said = Exposure("/a", (CHAT,), True)
    assert NO_CHANGE.applied_to(said) == said
    assert ExposureChange(path="/b/").applied_to(said) == Exposure("/b", (CHAT,), True)
    assert ExposureChange("", (), False).applied_to(said) == Exposure("", (), False)


@pytest.mark.parametrize(
    ("exposure", "words"),
    [
        (Exposure("no/slash"), "is not a path"),
        (Exposure("/" + "a" * 200), "is not a path"),
        (Exposure(tasks=(CHAT,) * (MAX_TASKS + 1)), "at most 8"),
        (Exposure(tasks=(TaskMapping(Task.CHAT, "a" * MAX_TASK_TEXT_LENGTH, "b"),)), "characters"),
        (
            Exposure(tasks=(TaskMapping(Task.CHAT, options=(("t", "a" * MAX_TASK_TEXT_LENGTH),)),)),
            "characters",
        ),
    ],
)
def test_an_exposure_from_elsewhere_that_is_out_of_bounds_is_refused(
    exposure: Exposure, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        check_manifest(manifest(exposure=exposure))


def test_a_path_that_a_later_version_takes_for_itself_is_no_reason_to_refuse_a_manifest() -> None:
    assert check_exposure(Exposure("/mesh/v9/new")).path == "/mesh/v9/new"


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        (Execution(decoupled=True), "decoupled"),
        (Execution(sequences=SequenceBatching()), "sequence_batching"),
    ],
)
def test_answers_are_not_kept_where_they_cannot_be(execution: Execution, words: str) -> None:
    offer = Exposure(cache=True)
    with pytest.raises(ModelError, match=words):
        check_manifest(replace(manifest(exposure=offer), execution=execution))
    check_manifest(replace(manifest(exposure=Exposure(cache=False)), execution=execution))


def test_how_a_model_is_offered_is_no_part_of_what_it_is() -> None:
    assert manifest(exposure=Exposure("/a", (CHAT,))).digest == manifest().digest


def test_a_configuration_offers_its_model_by_two_parameters() -> None:
    config = parse_config(
        """
        parameters { key: "meshnode_path" value { string_value: "/count-cars/" } }
        parameters { key: "meshnode_task" value { string_value: "chat;embedding:output=y" } }
        parameters { key: "other" value { string_value: "stays" } }
        """,
        "m",
    )
    embedding = TaskMapping(Task.EMBEDDING, output="y")
    assert config.exposure == Exposure("/count-cars", (CHAT, embedding))
    assert config.execution.parameters == (("other", "stays"),)
    assert parse_config("", "m").exposure == NO_EXPOSURE


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "meshnode_path",
            "/v2/x",
            "config.pbtxt of 'm': parameter 'meshnode_path': the mesh itself",
        ),
        (
            "meshnode_task",
            "paint",
            "config.pbtxt of 'm': parameter 'meshnode_task': 'paint' is not",
        ),
        ("meshnode_pth", "/x", "meshnode_path"),
    ],
)
def test_a_parameter_without_meaning_is_named(key: str, value: str, words: str) -> None:
    text = f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
    with pytest.raises(ModelError, match=words):
        parse_config(text, "m")


def test_all_forms_of_a_version_are_offered_as_the_version_itself() -> None:
    first, second = Exposure("/a"), Exposure("/b")
    deployment = Deployment(
        "m",
        (manifest(1, "int8", second), manifest(1, exposure=first), manifest(2, exposure=second)),
    )
    assert [each.exposure for each in offered(deployment, NO_CHANGE).manifests] == [
        first,
        first,
        second,
    ]
    changed = offered(deployment, ExposureChange(cache=True))
    assert [each.exposure.cache for each in changed.manifests] == [True] * 3
