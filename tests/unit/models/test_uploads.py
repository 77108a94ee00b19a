"""Which files a model takes: by its configuration, its types, or the shapes of its tensors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshnode.errors import ModelError
from meshnode.models.execution import Execution, Interface
from meshnode.models.http_calls import json_tensors
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.repository.config import parse_config
from meshnode.models.uploads import Kind, Upload, read_uploads, uploads_of
from meshnode.types import DataType

U8, FP32, BYTES = DataType.UINT8, DataType.FP32, DataType.BYTES


def tensors(*specs: TensorSpec, said: str | None = None) -> Manifest:
    parameters = () if said is None else (("meshnode_upload", said),)
    execution = Execution(parameters=parameters)
    return Manifest("m", 1, "onnx", "onnx", specs, specs, 0, (), "", execution)


def documents(
    schema: Any = None, said: str | None = None, interface: Interface = Interface.JSON
) -> Manifest:
    inputs, outputs = json_tensors()
    text = "" if schema is None else json.dumps({"request": {"properties": schema}})
    parameters = () if said is None else (("meshnode_upload", said),)
    execution = Execution(interface=interface, schema=text, parameters=parameters)
    return Manifest("m", 1, "python", "python", inputs, outputs, 0, (), "", execution)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (TensorSpec("x", U8, (-1, 64, 64, 3)), Kind.PICTURE),
        (TensorSpec("x", FP32, (1, 3, -1, -1)), Kind.PICTURE),
        (TensorSpec("x", FP32, (-1, 8, 8)), Kind.PICTURE),
        (TensorSpec("x", BYTES, (-1,)), Kind.BYTES),
        (TensorSpec("x", BYTES, (1, 1)), Kind.BYTES),
        (TensorSpec("x", BYTES, (4,)), None),
        (TensorSpec("x", FP32, (-1, 4)), None),
        (TensorSpec("x", FP32, (2, 3, 8, 8)), None),
        (TensorSpec("x", FP32, (-1, 5, 8, 8)), None),
        (TensorSpec("x", DataType.INT64, (-1, 8, 8)), None),
        (TensorSpec("x", FP32, ()), None),
    ],
)
def test_a_tensor_takes_pictures_or_anything_by_its_shape_and_type(
    spec: TensorSpec, kind: Kind | None
) -> None:
    types = {Kind.PICTURE: ("image/*",), Kind.BYTES: ("*/*",)}
    expected = () if kind is None else (Upload("x", types[kind], kind),)
    assert uploads_of(tensors(spec)) == expected


def test_a_configuration_says_it_instead_and_of_no_input_that_cannot() -> None:
    specs = (TensorSpec("a", U8, (-1, 8, 8)), TensorSpec("b", FP32, (-1, 4)))
    assert uploads_of(tensors(*specs, said="a=image/png;b=image/png;c=text/csv")) == (
        Upload("a", ("image/png",), Kind.PICTURE),
    )
    assert uploads_of(tensors(*specs, said="")) == ()
    assert uploads_of(documents(said="a=image/png, audio/*")) == (
        Upload("a", ("image/png", "audio/*"), Kind.BASE64),
    )
    assert uploads_of(documents(said="nonsense from another version")) == ()


def test_members_of_a_typed_document_that_are_bytes_take_files() -> None:
    schema = {
        "image": {"type": "string", "contentMediaType": "image/png, image/jpeg"},
        "sound": {"type": "string", "format": "base64"},
        "mask": {"anyOf": [{"type": "string", "format": "binary"}, {"type": "null"}], "contentMediaType": "image/*"},
        "pages": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
        "text": {"type": "string"},
        "count": {"type": "integer", "contentMediaType": "image/png"},
        "odd": True,
        "odder": {"anyOf": [True]},
    }  # fmt: skip
    assert uploads_of(documents(schema)) == (
        Upload("image", ("image/png", "image/jpeg"), Kind.BASE64),
        Upload("sound", ("*/*",), Kind.BASE64),
        Upload("mask", ("image/*",), Kind.BASE64),
        Upload("pages", ("*/*",), Kind.BASE64, several=True),
    )


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", '{"request": 1}', '{"request": {"properties": []}}']
)
def test_a_schema_that_says_nothing_takes_no_files(text: str) -> None:
    inputs, outputs = json_tensors()
    execution = Execution(interface=Interface.JSON, schema=text)
    assert uploads_of(Manifest("m", 1, "p", "p", inputs, outputs, 0, (), "", execution)) == ()


def test_a_model_with_routes_of_its_own_reads_bodies_by_itself() -> None:
    assert uploads_of(documents(said="a=image/png", interface=Interface.HTTP)) == ()


@pytest.mark.parametrize(
    ("types", "kind", "takes"),
    [
        (("image/*",), "image/png", True),
        (("image/*",), "audio/wav", False),
        (("*/*",), "audio/wav", True),
        (("image/png",), "image/jpeg", False),
    ],
)
def test_media_types_may_be_families(types: tuple[str, ...], kind: str, takes: bool) -> None:
    assert Upload("a", types, Kind.BASE64).takes(kind) is takes


@pytest.mark.parametrize(
    "text",
    ["image", "=image/png", "a=", "a=png", "a=image/png;a=image/gif", "a=*/png", "a=image/p ng"],
)
def test_what_does_not_say_which_files_are_taken_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="does not say which files"):
        read_uploads(text)


def test_only_so_many_inputs_take_files() -> None:
    with pytest.raises(ModelError, match="at most 16"):
        read_uploads(";".join(f"i{number}=image/png" for number in range(17)))


def test_a_configuration_is_checked_when_it_is_read_and_stays_a_setting_of_the_model() -> None:
    text = 'parameters {{ key: "meshnode_upload" value {{ string_value: "{}" }} }}'
    config = parse_config(text.format("image=image/png"), "m")
    assert config.execution.parameters == (("meshnode_upload", "image=image/png"),)
    with pytest.raises(ModelError, match="does not say which files"):
        parse_config(text.format("image"), "m")
