"""A configuration and a model's file, reconciled: who decides, and who is told of a disagreement."""

from __future__ import annotations

import pytest

from meshnode.errors import ModelError
from meshnode.models.manifest import TensorSpec
from meshnode.models.repository.config import ModelConfig, parse_config
from meshnode.models.repository.signatures import Signature, reconcile
from meshnode.types import DataType

FP32, INT64 = DataType.FP32, DataType.INT64

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


def test_a_reshape_is_compared_with_the_file_and_clients_see_the_dims() -> None:
    config = parse_config(
        """
        max_batch_size: 8
        input { name: "a" data_type: TYPE_FP32 dims: 1 reshape { shape: [ ] } }
        output { name: "b" data_type: TYPE_FP32 dims: [ 2, 2 ] reshape { shape: [ 4 ] } }
        """,
        "m",
    )
    file = Signature((TensorSpec("a", FP32, (-1,)),), (TensorSpec("b", FP32, (-1, 4)),))
    assert reconcile(config, file) == Signature(config.inputs, config.outputs, 8)
    wrong = Signature((TensorSpec("a", FP32, (-1, 1)),), file.outputs)
    with pytest.raises(
        ModelError, match=r"shape \[-1\] by the reshape of config.pbtxt, but \[-1, 1\]"
    ):
        reconcile(config, wrong)


SEQUENCES = """
sequence_batching {
  control_input { name: "start" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
  state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: 1 }
}
max_batch_size: 2
"""


def test_what_the_node_fills_in_for_sequences_is_no_part_of_what_clients_see() -> None:
    batch = (-1, 1)
    inputs = {"x": FP32, "start": DataType.INT32, "id": DataType.UINT64, "s": FP32}
    specs = tuple(TensorSpec(name, datatype, batch) for name, datatype in inputs.items())
    outputs = (TensorSpec("y", FP32, batch), TensorSpec("t", FP32, batch))
    config = parse_config(SEQUENCES, "m")
    assert reconcile(config, Signature(specs, outputs)) == Signature(specs[:1], outputs[:1], 2)
    with pytest.raises(
        ModelError, match=r"config\.pbtxt has control input 'start', the file has 'x'"
    ):
        reconcile(config, Signature(specs[:1], outputs))
    other = (TensorSpec("x", FP32, batch), TensorSpec("start", FP32, batch), *specs[2:])
    with pytest.raises(
        ModelError, match=r"'start' is INT32 in config\.pbtxt, but FP32 in the file"
    ):
        reconcile(config, Signature(other, outputs))
    with pytest.raises(ModelError, match="state output 't', the file has 'y'"):
        reconcile(config, Signature(specs, outputs[:1]))
