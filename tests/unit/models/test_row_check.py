"""Joined rows against rows alone, tried on real models before they serve."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from meshnode.errors import InferenceFailed
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.runtimes.onnx_session import OnnxModel
from meshnode.models.serving.row_check import why_not_joined, why_not_joined_process
from meshnode.types import DataType, ResponsePart

from .conftest import TensorType, onnx_model
from .replica_models import Process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.errors import MeshError
    from meshnode.types import InferRequest, Tensor


def checked(
    nodes: Sequence[object],
    x: TensorType,
    y: TensorType,
    initializers: Sequence[object] = (),
) -> str:
    content = onnx_model(nodes, {"x": x}, {"y": y}, initializers)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    model = OnnxModel(session, "cpu", works_by_values=False)
    return why_not_joined(manifest(model.inputs, model.outputs), model)


def manifest(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Manifest:
    return Manifest("m", 1, "onnx", "p", inputs, outputs, 0, (), "f")


ROWS: TensorType = (TensorProto.FLOAT, ["n", 4])


def test_a_model_whose_rows_are_apart_may_be_joined() -> None:
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    assert checked([helper.make_node("MatMul", ["x", "w"], ["y"])], ROWS, ROWS, [weights]) == ""


@pytest.mark.parametrize(
    ("node", "constant"),
    [
        (helper.make_node("Softmax", ["x"], ["y"], axis=0), None),
        (
            helper.make_node("CumSum", ["x", "axis"], ["y"]),
            helper.make_tensor("axis", TensorProto.INT64, [], [0]),
        ),
        (
            helper.make_node("Expand", ["x", "shape"], ["y"]),
            helper.make_tensor("shape", TensorProto.INT64, [3], [3, 1, 1]),
        ),
    ],
    ids=["softmax", "sums of rows", "no rows"],
)
def test_a_model_whose_rows_depend_on_one_another_may_not(node: object, constant: object) -> None:
    anything: TensorType = (TensorProto.FLOAT, None)
    reason = checked([node], ROWS, anything, [] if constant is None else [constant])
    assert reason.startswith("output 'y'")


def test_quantising_over_the_whole_batch_is_found() -> None:
    """The scale is that of all rows, so that small rows lose what they have alone."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    assert checked(nodes, ROWS, ROWS) == (
        "output 'y' of a row depends on the rows that are joined with it"
    )


def test_free_sizes_are_tried_until_the_model_takes_one() -> None:
    weights = numpy_helper.from_array(np.ones((1, 1, 5, 5), np.float32), "w")
    picture: TensorType = (TensorProto.FLOAT, ["n", 1, "h", "w"])
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    assert checked([node], picture, picture, [weights]) == ""


def test_indices_and_strings_are_tried_with_values_that_exist() -> None:
    table = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "t")
    ids: TensorType = (TensorProto.INT64, ["n", 2])
    looked_up: TensorType = (TensorProto.FLOAT, ["n", 2, 3])
    assert checked([helper.make_node("Gather", ["t", "x"], ["y"])], ids, looked_up, [table]) == ""
    words: TensorType = (TensorProto.STRING, ["n", 1])
    numbers: TensorType = (TensorProto.FLOAT, ["n", 1])
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    assert checked([cast], words, numbers) == ""
    assert checked([helper.make_node("Identity", ["x"], ["y"])], words, words) == ""


def test_what_cannot_be_tried_is_not_joined() -> None:
    ids: TensorType = (TensorProto.INT64, ["n", 1])
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [7])
    assert checked([node], ids, ids, [shape]).startswith("it could not be tried (")
    huge = (TensorSpec("x", DataType.FP32, (-1, 2**30)),)
    model = Process()
    assert why_not_joined(manifest(huge, huge), model) == (  # type: ignore[arg-type]
        "its inputs are too large to try it"
    )


class Answering(Process):
    """Answers at once: with all of its inputs, or with an error."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__(joins_rows=True)
        self.fails = fails

    async def execute(
        self, requests: Sequence[InferRequest]
    ) -> list[tuple[Tensor, ...] | ResponsePart | MeshError]:
        return [InferenceFailed("no") if self.fails else ResponsePart(requests[0].inputs)]


async def test_a_model_in_a_process_is_tried_there() -> None:
    specs: tuple[TensorSpec, ...] = ()
    for datatype in (DataType.FP16, DataType.BF16, DataType.FP64, DataType.BOOL):
        specs = (TensorSpec("x", datatype, (-1, 2)),)
        assert await why_not_joined_process(manifest(specs, specs), Answering()) == ""
    failing = await why_not_joined_process(manifest(specs, specs), Answering(fails=True))
    assert failing == "it could not be tried (no)"


def test_a_window_over_neighbouring_rows_is_found_behind_a_threshold() -> None:
    """Energy per frame, its maximum over three frames, and whether that is above a threshold.

    Small random rows are all below it, so that what leaks from row to row does not show.
    """
    frames = numpy_helper.from_array(np.array([1, 1, -1], np.int64), "line")
    column = numpy_helper.from_array(np.array([-1, 1], np.int64), "column")
    limit = numpy_helper.from_array(np.array([500], np.float32), "limit")
    nodes = [
        helper.make_node("ReduceSumSquare", ["x"], ["energy"], axes=[1], keepdims=1),
        helper.make_node("Reshape", ["energy", "line"], ["in_line"]),
        helper.make_node("MaxPool", ["in_line"], ["most"], kernel_shape=[3], pads=[1, 1]),
        helper.make_node("Reshape", ["most", "column"], ["back"]),
        helper.make_node("Greater", ["back", "limit"], ["y"]),
    ]
    loud: TensorType = (TensorProto.BOOL, ["n", 1])
    assert checked(nodes, ROWS, loud, [frames, column, limit]) == (
        "output 'y' of a row depends on the rows that are joined with it"
    )


@pytest.mark.parametrize("limit", [-1.0, 1e30])
def test_an_output_that_does_not_change_shows_nothing(limit: float) -> None:
    """Whether the rows are apart cannot be told, so they stay apart."""
    above = numpy_helper.from_array(np.array([limit], np.float32), "limit")
    nodes = [
        helper.make_node("ReduceSumSquare", ["x"], ["energy"], axes=[1], keepdims=1),
        helper.make_node("Greater", ["energy", "limit"], ["y"]),
    ]
    answer: TensorType = (TensorProto.BOOL, ["n", 1])
    assert checked(nodes, ROWS, answer, [above]).startswith("output 'y' hardly changed")


def test_a_threshold_that_some_rows_pass_may_be_joined() -> None:
    limit = numpy_helper.from_array(np.array([500], np.float32), "limit")
    nodes = [
        helper.make_node("ReduceSumSquare", ["x"], ["energy"], axes=[1], keepdims=1),
        helper.make_node("Greater", ["energy", "limit"], ["y"]),
    ]
    assert checked(nodes, ROWS, (TensorProto.BOOL, ["n", 1]), [limit]) == ""


def test_the_place_of_a_row_in_its_batch_must_not_matter() -> None:
    """Two requests of one row are alike alone and together up to the fourth row: only long ones tell."""
    bound = numpy_helper.from_array(np.array(4, np.int64), "bound")
    one = numpy_helper.from_array(np.array(1, np.int64), "one")
    zero = numpy_helper.from_array(np.array(0, np.int64), "zero")
    row = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("Shape", ["x"], ["whole"], end=1),
        helper.make_node("Squeeze", ["whole"], ["rows"]),
        helper.make_node("Range", ["zero", "rows", "one"], ["places"]),
        helper.make_node("Less", ["places", "bound"], ["early"]),
        helper.make_node("Unsqueeze", ["early", "axes"], ["column"]),
        helper.make_node("Cast", ["column"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "factor"], ["y"]),
    ]
    assert checked(nodes, ROWS, ROWS, [bound, one, zero, row]).startswith("output 'y' of a row")


def test_trials_end_in_time_but_never_before_the_first() -> None:
    content = onnx_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ROWS}, {"y": ROWS})
    model = Counting(
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]),
        "cpu",
        works_by_values=False,
    )
    told = manifest(model.inputs, model.outputs)
    assert why_not_joined(told, model, timer=itertools.count(step=100).__next__) == ""
    assert Counting.runs == 6


class Counting(OnnxModel):
    """Counts what is run on it."""

    runs = 0

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        Counting.runs += 1
        return super().run(inputs, outputs)
