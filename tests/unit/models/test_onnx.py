from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper

from meshnode.errors import InferenceFailed, InvalidRequest, ModelError
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.onnx import OnnxRuntime, choose_providers
from meshnode.models.runtimes.onnx_session import OnnxModel, clean_reason
from meshnode.models.tensors import DTYPES, from_numpy, pack_strings, to_numpy
from meshnode.types import DataType, Tensor

from .conftest import add_and_subtract, external, identity, onnx_model, quotient

if TYPE_CHECKING:
    from pathlib import Path

Load = Callable[[bytes], OnnxModel]

ELEMENTS = {
    DataType.BOOL: TensorProto.BOOL,
    DataType.UINT8: TensorProto.UINT8,
    DataType.UINT16: TensorProto.UINT16,
    DataType.UINT32: TensorProto.UINT32,
    DataType.UINT64: TensorProto.UINT64,
    DataType.INT8: TensorProto.INT8,
    DataType.INT16: TensorProto.INT16,
    DataType.INT32: TensorProto.INT32,
    DataType.INT64: TensorProto.INT64,
    DataType.FP16: TensorProto.FLOAT16,
    DataType.FP32: TensorProto.FLOAT,
    DataType.FP64: TensorProto.DOUBLE,
    DataType.BYTES: TensorProto.STRING,
}


@pytest.fixture
def load(tmp_path: Path, runtime: OnnxRuntime) -> Load:
    def load(content: bytes) -> OnnxModel:
        (tmp_path / "model.onnx").write_bytes(content)
        return runtime.load(tmp_path, "model.onnx", threads=1)

    return load


@pytest.mark.parametrize("datatype", ELEMENTS)
def test_every_element_type_goes_through(load: Load, datatype: DataType) -> None:
    model = load(identity(ELEMENTS[datatype]))
    assert model.inputs == (TensorSpec("x", datatype, (-1, 2)),)
    assert model.outputs == (TensorSpec("y", datatype, (-1, 2)),)
    if datatype is DataType.BYTES:
        data = pack_strings(["a", "é", "", "b\0"])
    else:
        data = np.array([0, 1, 1, 0]).astype(DTYPES[datatype]).tobytes()
    [result] = model.run([Tensor("x", datatype, (2, 2), data)], ())
    assert (result.name, result.datatype, result.shape) == ("y", datatype, (2, 2))
    assert bytes(result.data) == data


def test_large_results_are_not_copied(load: Load) -> None:
    model = load(identity())
    [result] = model.run([from_numpy("x", np.ones((1000, 2), np.float32))], ())
    assert isinstance(result.data, memoryview)
    assert result.size_bytes == 8000
    assert to_numpy(result).sum() == 2000


def test_outputs_come_in_the_order_asked_for(load: Load) -> None:
    model = load(add_and_subtract())
    inputs = [from_numpy(name, np.array([[3, 4]], np.int32)) for name in ("b", "a")]
    assert [tensor.name for tensor in model.run(inputs, ())] == ["sum", "difference"]
    difference, total = model.run(inputs, ("difference", "sum"))
    assert to_numpy(difference).tolist() == [[0, 0]]
    assert to_numpy(total).tolist() == [[6, 8]]


def test_it_runs_in_several_threads_at_once(load: Load) -> None:
    model = load(identity())
    seen: dict[int, float] = {}

    def run(value: int) -> None:
        [result] = model.run([from_numpy("x", np.full((1, 2), value, np.float32))], ())
        seen[value] = to_numpy(result)[0, 0]

    threads = [threading.Thread(target=run, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {value: float(value) for value in range(8)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "No graph was found in the protobuf."),
        (b"garbage" * 10, "Protobuf parsing failed."),
        (identity()[:-20], "Protobuf parsing failed."),
    ],
)
def test_a_damaged_file_is_refused_in_one_clean_sentence(
    load: Load, content: bytes, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        load(content)
    assert str(caught.value) == f"'model.onnx' cannot be loaded: {reason}"
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_is_refused(tmp_path: Path, runtime: OnnxRuntime) -> None:
    with pytest.raises(ModelError, match=r"'model.onnx' is missing in"):
        runtime.load(tmp_path, "model.onnx", threads=1)


def test_bfloat16_and_non_tensors_are_refused_with_a_way_out(load: Load) -> None:
    with pytest.raises(ModelError, match=r"input 'x' is tensor\(bfloat16\).*cast it to FP32"):
        load(identity(TensorProto.BFLOAT16))
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=r"output 'y' is seq\(tensor\(float\)\).*plain tensors"):
        load(model.SerializeToString())


@pytest.mark.parametrize("kind", ["relative", "absolute", "link"])
def test_external_data_outside_the_folder_is_refused(
    tmp_path: Path, runtime: OnnxRuntime, kind: str
) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(8))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(secret)
    location = {"relative": "../secret.bin", "absolute": str(secret), "link": "link.bin"}[kind]
    (folder / "model.onnx").write_bytes(external(location))
    with pytest.raises(ModelError, match="External data path"):
        runtime.load(folder, "model.onnx", threads=1)


def test_external_data_beside_the_file_is_read(tmp_path: Path, runtime: OnnxRuntime) -> None:
    (tmp_path / "w.bin").write_bytes(np.array([1, 2], np.float32).tobytes())
    (tmp_path / "model.onnx").write_bytes(external("w.bin"))
    model = runtime.load(tmp_path, "model.onnx", threads=1)
    [result] = model.run([from_numpy("x", np.zeros((1, 2), np.float32))], ())
    assert to_numpy(result).tolist() == [[1, 2]]


def test_a_model_that_raises_fails_that_request_quietly(
    load: Load, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load(quotient())
    with pytest.raises(InferenceFailed, match=r"the model failed: .*division by zero"):
        model.run([from_numpy("x", np.zeros(2, np.int32))], ())
    [result] = model.run([from_numpy("x", np.ones(2, np.int32))], ())
    assert to_numpy(result).tolist() == [1, 1]
    assert capfd.readouterr() == ("", "")


def test_bytes_that_do_not_fit_are_the_callers_mistake(load: Load) -> None:
    with pytest.raises(InvalidRequest):
        load(identity()).run([Tensor("x", DataType.FP32, (1, 2), b"123")], ())


def test_a_closed_model_runs_nothing(load: Load) -> None:
    model = load(identity())
    assert repr(model) == "<OnnxModel ['y'] on CPUExecutionProvider>"
    model.close()
    assert repr(model) == "<OnnxModel ['y'] closed>"
    with pytest.raises(InferenceFailed):
        model.run([from_numpy("x", np.zeros((1, 2), np.float32))], ())


def test_shapes_without_a_rank_or_size_are_told_as_they_are(load: Load) -> None:
    assert load(identity(shape=None)).inputs[0].shape == ()
    assert load(identity(shape=(3, None, "w"))).inputs[0].shape == (3, -1, -1)


def test_accelerators_are_preferred_tensorrt_is_not_and_the_cpu_is_always_last(
    load: Load, runtime: OnnxRuntime
) -> None:
    available = [
        "TensorrtExecutionProvider",
        "DmlExecutionProvider",
        "CUDAExecutionProvider",
        "AzureExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert choose_providers(available) == (
        "CUDAExecutionProvider",
        "DmlExecutionProvider",
        "CPUExecutionProvider",
    )
    assert repr(runtime) == "<OnnxRuntime providers=None>"
    load(identity())
    assert runtime.providers is not None
    assert runtime.providers[-1] == "CPUExecutionProvider"


def test_without_onnx_runtime_it_says_so(
    tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="ONNX Runtime cannot be imported"):
        runtime.load(tmp_path, "model.onnx", threads=1)


def test_foreign_messages_are_shortened_to_a_line() -> None:
    assert clean_reason(RuntimeError("a\n  b")) == "a b"
    assert clean_reason(RuntimeError()) == "RuntimeError"
    assert len(clean_reason(RuntimeError("x" * 999))) == 300


def test_an_operator_that_is_unknown_is_refused(load: Load) -> None:
    spec = (TensorProto.FLOAT, ["n"])
    content = onnx_model([helper.make_node("Nope", ["x"], ["y"])], {"x": spec}, {"y": spec})
    with pytest.raises(ModelError, match="Nope"):
        load(content)
