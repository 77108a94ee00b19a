from __future__ import annotations

import re
import sys
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import ModelError
from meshnode.models import config
from meshnode.models.config import (
    ModelConfig,
    Signature,
    VersionPolicy,
    parse_config,
    reconcile,
)
from meshnode.models.manifest import TensorSpec
from meshnode.types import DataType

FP32, INT64 = DataType.FP32, DataType.INT64


def refused(text: str, folder: str = "m") -> str:
    with pytest.raises(ModelError) as caught:
        parse_config(text, folder)
    return str(caught.value)


def test_everything_that_is_honoured_is_read() -> None:
    text = """
    name: "m"  # a comment
    platform: "onnxruntime_onnx"
    backend: "onnxruntime"
    max_batch_size: 8
    input [ { name: "a" data_type: TYPE_FP32 dims: [ 3, -1 ] }, { name: "s" data_type: TYPE_STRING dims: 1 } ]
    output { name: "b" data_type: TYPE_BF16 dims: [ 10 ] }
    version_policy { latest { num_versions: 2 } }
    default_model_filename: "net.onnx"
    """
    assert parse_config(text, "m") == ModelConfig(
        name="m",
        max_batch_size=8,
        inputs=(
            TensorSpec("a", FP32, (-1, 3, -1)),
            TensorSpec("s", DataType.BYTES, (-1, 1)),
        ),
        outputs=(TensorSpec("b", DataType.BF16, (-1, 10)),),
        version_policy=VersionPolicy(latest=2),
        default_model_filename="net.onnx",
    )


def test_an_empty_configuration_means_the_defaults() -> None:
    assert parse_config("", "m") == ModelConfig()


def test_parsing_imports_neither_grpc_nor_tritonclient() -> None:
    parse_config("", "m")
    assert "grpc" not in sys.modules


@pytest.mark.parametrize("missing", ["find_spec", "spec_from_file_location"])
def test_without_tritonclient_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    config._messages.cache_clear()
    monkeypatch.setattr(f"importlib.util.{missing}", lambda *_: None)
    assert "pip install tritonclient" in refused("")


def test_without_a_batch_dims_are_the_full_shape() -> None:
    parsed = parse_config('input { name: "a" data_type: TYPE_BOOL dims: [ 2, 2 ] }', "m")
    assert parsed.inputs == (TensorSpec("a", DataType.BOOL, (2, 2)),)


@pytest.mark.parametrize("name", [name for name in DataType if name is not DataType.BYTES])
def test_every_element_type_has_its_triton_name(name: DataType) -> None:
    text = f'output {{ name: "a" data_type: TYPE_{name} dims: 1 }}'
    assert parse_config(text, "m").outputs[0].datatype is name


def test_fields_without_effect_are_named_not_dropped() -> None:
    text = """
    dynamic_batching { }
    instance_group [ { count: 2 } ]
    parameters { key: "k" value { string_value: "v" } }
    input { name: "a" data_type: TYPE_FP32 dims: 1 format: FORMAT_NCHW optional: true }
    output { name: "b" data_type: TYPE_FP32 dims: 1 label_filename: "labels.txt" }
    """
    assert set(parse_config(text, "m").warnings) == {
        "dynamic_batching is set, but has no effect",
        "instance_group is set, but has no effect",
        "parameters is set, but has no effect",
        "format of input 'a' is set, but has no effect",
        "optional of input 'a' is set, but has no effect",
        "label_filename of output 'b' is set, but has no effect",
    }


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('name: "m"\nmax_batch: 3', "line 2, column 1: "),
        ('max_batch_size: "x"', "line 1, column 17: "),
        ("input [ { dims: [1,] } ]", "line 1, column 20: "),
    ],
)
def test_a_typing_error_is_reported_with_its_place(text: str, where: str) -> None:
    assert refused(text).startswith(f"config.pbtxt of 'm': {where}")


def test_a_parser_error_without_a_place_is_still_a_sentence() -> None:
    from google.protobuf.text_format import ParseError

    from meshnode.models.config import _parser_sentence

    assert _parser_sentence(ParseError("odd")) == "odd"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('name: "other"', "name is 'other', but the folder is 'm'"),
        ('platform: "pytorch_libtorch"', "platform 'pytorch_libtorch' is not supported"),
        ('platform: "ensemble"', "platform 'ensemble' is not supported"),
        ('backend: "python"', "backend 'python' is not supported"),
        ('default_model_filename: "model.pt"', "'model.pt' is no ONNX file"),
        ('default_model_filename: "../m.onnx"', "not a plain relative path"),
        ("max_batch_size: -1", "max_batch_size is -1"),
        ("input { data_type: TYPE_FP32 dims: 1 }", "an input has no name"),
        ('input { name: "a" dims: 1 }', "input 'a' has no data_type"),
        ('input { name: "a" data_type: TYPE_FP32 dims: 0 }', "dimension 0"),
        ('input { name: "a" data_type: TYPE_FP32 dims: -2 }', "dimension -2"),
        ('output { name: "a" data_type: TYPE_FP32 dims: 1 reshape { } }', "has a reshape"),
        ("version_policy { latest { } }", "num_versions must be 1 or more"),
        ("version_policy { specific { } }", "versions of 1 or more"),
        ("version_policy { specific { versions: 0 } }", "versions of 1 or more"),
    ],
)
def test_what_cannot_be_honoured_is_refused(text: str, reason: str) -> None:
    assert reason in refused(text)


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", (7,)),
        ("version_policy { latest { num_versions: 2 } }", (3, 7)),
        ("version_policy { latest { num_versions: 9 } }", (1, 3, 7)),
        ("version_policy { all { } }", (1, 3, 7)),
        ("version_policy { specific { versions: [ 3, 1, 3 ] } }", (1, 3)),
    ],
)
def test_the_version_policy_selects(text: str, selected: tuple[int, ...]) -> None:
    assert parse_config(text, "m").version_policy.select((7, 1, 3)) == selected


@pytest.mark.parametrize(("present", "text"), [((1, 2), "the folder has 1, 2"), ((), "has none")])
def test_a_specific_version_must_exist(present: tuple[int, ...], text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(text)):
        VersionPolicy(0, (5,)).select(present)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_model_error(text: str) -> None:
    with suppress(ModelError):
        assert isinstance(parse_config(text, "m"), ModelConfig)


FILE = Signature(
    (TensorSpec("a", FP32, (-1, 3)),),
    (TensorSpec("b", FP32, (-1, 10)), TensorSpec("c", INT64, (-1,))),
)


def test_without_a_configuration_the_file_decides_and_nothing_limits_the_batch() -> None:
    assert reconcile(None, FILE) == FILE


def test_a_configuration_without_tensors_takes_them_from_the_file() -> None:
    assert reconcile(ModelConfig(max_batch_size=4), FILE) == Signature(FILE.inputs, FILE.outputs, 4)


def test_outputs_may_be_a_subset_and_dynamic_dimensions_may_be_fixed() -> None:
    config = ModelConfig(
        inputs=(TensorSpec("a", FP32, (5, 3)),), outputs=(TensorSpec("c", INT64, (5,)),)
    )
    assert reconcile(config, FILE) == Signature(config.inputs, config.outputs)


def test_a_shape_that_the_file_does_not_state_is_the_configured_one() -> None:
    config = ModelConfig(max_batch_size=2, inputs=(TensorSpec("a", FP32, (-1, 7)),))
    unknown = Signature((TensorSpec("a", FP32, ()),), FILE.outputs)
    assert reconcile(config, unknown).inputs == config.inputs


@pytest.mark.parametrize(
    ("config", "both_sides"),
    [
        (ModelConfig(inputs=(TensorSpec("z", FP32, (-1, 3)),)), ("input 'z'", "the file has 'a'")),
        (ModelConfig(outputs=(TensorSpec("z", FP32, (-1,)),)), ("'z'", "the file has 'b', 'c'")),
        (ModelConfig(inputs=(TensorSpec("a", INT64, (-1, 3)),)), ("is INT64", "FP32 in the file")),
        (ModelConfig(inputs=(TensorSpec("a", FP32, (-1, 4)),)), ("[-1, 4]", "[-1, 3] in the file")),
        (ModelConfig(inputs=(TensorSpec("a", FP32, (3,)),)), ("[3]", "[-1, 3] in the file")),
        (ModelConfig(inputs=(TensorSpec("a", FP32, (-1, -1)),)), ("[-1, -1]", "[-1, 3]")),
        (ModelConfig(inputs=(FILE.inputs[0], FILE.inputs[0])), ("twice", "'a', 'a'")),
    ],
)
def test_a_disagreement_names_both_sides(config: ModelConfig, both_sides: tuple[str, str]) -> None:
    with pytest.raises(ModelError) as caught:
        reconcile(config, FILE)
    for side in both_sides:
        assert side in str(caught.value)


def test_all_inputs_of_the_file_must_be_configured() -> None:
    two = Signature((*FILE.inputs, TensorSpec("d", FP32, (-1,))), FILE.outputs)
    with pytest.raises(ModelError, match=r"has 1 inputs \('a'\), the file has 2 \('a', 'd'\)"):
        reconcile(ModelConfig(inputs=FILE.inputs), two)


def test_batching_needs_a_dynamic_first_dimension() -> None:
    fixed = Signature((TensorSpec("a", FP32, (1, 3)),), FILE.outputs)
    with pytest.raises(ModelError, match=r"max_batch_size 8, but the first dimension of 'a'"):
        reconcile(ModelConfig(max_batch_size=8), fixed)
