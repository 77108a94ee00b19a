from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import ModelError
from meshnode.models.execution import Execution
from meshnode.models.manifest import TensorSpec
from meshnode.models.repository import config_fields, config_messages
from meshnode.models.repository.config import ModelConfig, VersionPolicy, parse_config
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
        runtime="onnx",
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
    """In a process of its own: other tests import both."""
    program = """if True:
        import sys
        from meshnode.models.repository.config import parse_config
        parse_config("max_batch_size: 1", "m")
        sys.exit("grpc" in sys.modules or "tritonclient" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("missing", ["find_spec", "spec_from_file_location"])
def test_without_tritonclient_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    config_messages.messages.cache_clear()
    monkeypatch.setattr(f"importlib.util.{missing}", lambda *_: None)
    assert "pip install tritonclient" in refused("")


def test_without_a_batch_dims_are_the_full_shape() -> None:
    parsed = parse_config('input { name: "a" data_type: TYPE_BOOL dims: [ 2, 2 ] }', "m")
    assert parsed.inputs == (TensorSpec("a", DataType.BOOL, (2, 2)),)


@pytest.mark.parametrize("name", [name for name in DataType if name is not DataType.BYTES])
def test_every_element_type_has_its_triton_name(name: DataType) -> None:
    text = f'output {{ name: "a" data_type: TYPE_{name} dims: 1 }}'
    assert parse_config(text, "m").outputs[0].datatype is name


def test_fields_without_effect_are_named_with_their_paths() -> None:
    text = """
    runtime: "libx.so"
    instance_group [ { count: 2 }, { name: "b" rate_limiter { priority: 2 } secondary_devices { device_id: 1 } } ]
    optimization { cuda { graphs: true } graph { level: 1 } input_pinned_memory { enable: true } }
    input { name: "a" data_type: TYPE_FP32 dims: [ 3, 4, 4 ] format: FORMAT_NCHW allow_ragged_batch: true }
    output { name: "b" data_type: TYPE_FP32 dims: 1 label_filename: "labels.txt" }
    batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32 source_input: "a" }
    cc_model_filenames { key: "8.0" value: "x" }
    metric_tags { key: "a" value: "b" }
    model_operations { op_library_filename: "x" }
    model_repository_agents { agents { name: "checksum" } }
    sequence_batching { iterative_sequence: true oldest { max_candidate_sequences: 4 preserve_ordering: true } }
    max_batch_size: 4
    """
    assert set(parse_config(text, "m").warnings) == {
        f"{path} is set, but has no effect"
        for path in (
            "runtime", "instance_group[1].name", "instance_group[1].rate_limiter",
            "instance_group[1].secondary_devices", "optimization.cuda", "optimization.input_pinned_memory",
            "input[0].format", "input[0].allow_ragged_batch", "output[0].label_filename", "batch_input",
            "cc_model_filenames", "metric_tags", "model_operations", "model_repository_agents",
            "sequence_batching.iterative_sequence", "sequence_batching.oldest.preserve_ordering",
        )
    }  # fmt: skip


def test_every_field_of_triton_is_honoured_or_named() -> None:
    """A field that a later release of the messages brings is named, too: nothing is dropped silently."""
    known = config_messages.messages().ModelConfig
    silent = {"name", "platform", "backend", "max_batch_size", "version_policy"}
    silent |= {"default_model_filename", "parameters", "response_cache"}
    for field in known.DESCRIPTOR.fields:
        message = known()
        if (
            field.is_repeated
            and field.message_type
            and not field.message_type.GetOptions().map_entry
        ):
            getattr(message, field.name).add()
        elif field.message_type and not field.is_repeated:
            getattr(message, field.name).SetInParent()
        elif field.message_type:
            continue  # maps are in the test above
        else:
            setattr(message, field.name, "x" if field.cpp_type == field.CPPTYPE_STRING else 1)
        named = list(config_fields.without_effect(message))
        honoured = field.name in silent or config_fields.is_honoured(field.name)
        assert named == ([] if honoured else [field.name])


def test_batching_without_a_batch_is_told() -> None:
    parsed = parse_config("dynamic_batching { }", "m")
    assert parsed.warnings == (
        "dynamic_batching is set, but max_batch_size is 0: no requests are joined",
    )
    assert parsed.execution.batching is not None  # its queue policies count


def test_named_tensors_without_a_batch_size_keep_requests_apart() -> None:
    """As in Triton, where max_batch_size 0 says that the first dimension is no batch."""
    tensors = 'input { name: "a" data_type: TYPE_FP32 dims: -1 }'
    assert not parse_config(tensors, "m").execution.adaptive
    assert parse_config("", "m").execution == Execution()
    assert parse_config(tensors + " max_batch_size: 2", "m").execution.adaptive


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

    from meshnode.models.repository.config import _parser_sentence

    assert _parser_sentence(ParseError("odd")) == "odd"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('name: "other"', "name is 'other', but the folder is 'm'"),
        (
            'platform: "tensorrt_plan"',
            "not supported; give the ONNX file that the plan was built from",
        ),
        ('platform: "tensorflow_savedmodel"', "not supported; convert it: meshnode convert"),
        ('backend: "dali"', "not supported; write the preprocessing as a Python model"),
        ('backend: "mine"', "supported are 'onnxruntime_onnx', 'onnxruntime', 'pytorch_libtorch'"),
        (
            'platform: "onnxruntime_onnx" backend: "python"',
            "platform is 'onnxruntime_onnx', but backend is",
        ),
        ('platform: "ensemble"', "but ensemble_scheduling has no step"),
        ('ensemble_scheduling { } platform: "python"', "platform is 'python', not 'ensemble'"),
        ('input { name: "a" data_type: TYPE_FP32 dims: 1 format: FORMAT_NCHW }', "a picture has 3"),
        ('default_model_filename: "../m.onnx"', "not a plain relative path"),
        ("max_batch_size: -1", "max_batch_size is -1"),
        ("input { data_type: TYPE_FP32 dims: 1 }", "an input has no name"),
        ('input { name: "a" dims: 1 }', "input 'a' has no data_type"),
        ('input { name: "a" data_type: TYPE_FP32 dims: 0 }', "dimension 0"),
        ('input { name: "a" data_type: TYPE_FP32 dims: -2 }', "dimension -2"),
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


def test_of_specific_versions_those_that_exist_are_served() -> None:
    policy = VersionPolicy(0, (5, 1))
    assert (policy.select((1, 2)), policy.missing((1, 2))) == ((1,), (5,))


@pytest.mark.parametrize(("present", "text"), [((1, 2), "the folder has 1, 2"), ((), "has none")])
def test_one_specific_version_must_exist(present: tuple[int, ...], text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(text)):
        VersionPolicy(0, (5,)).select(present)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_model_error(text: str) -> None:
    with suppress(ModelError):
        assert isinstance(parse_config(text, "m"), ModelConfig)
