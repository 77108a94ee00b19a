from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from meshnode.errors import InferenceFailed, InvalidRequest, ModelError
from meshnode.models.execution import Execution
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.base import Opening
from meshnode.models.runtimes.onnx import OnnxRuntime, session_options
from meshnode.models.runtimes.onnx_file import external_files
from meshnode.models.runtimes.onnx_session import OnnxModel
from meshnode.models.runtimes.reasons import clean_reason
from meshnode.models.tensors import DTYPES, from_numpy, pack_strings, to_numpy
from meshnode.types import DataType, Tensor

from .conftest import add_and_subtract, external, identity, onnx_model, quotient

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
        return runtime.load(Opening(folder=tmp_path, entry="model.onnx"))

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
        runtime.load(Opening(folder=tmp_path, entry="model.onnx"))


def test_what_is_no_tensor_is_refused_with_a_way_out(load: Load) -> None:
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
        runtime.load(Opening(folder=folder, entry="model.onnx"))


def test_external_data_beside_the_file_is_read(tmp_path: Path, runtime: OnnxRuntime) -> None:
    (tmp_path / "w.bin").write_bytes(np.array([1, 2], np.float32).tobytes())
    (tmp_path / "model.onnx").write_bytes(external("w.bin"))
    model = runtime.load(Opening(folder=tmp_path, entry="model.onnx"))
    [result] = model.run([from_numpy("x", np.zeros((1, 2), np.float32))], ())
    assert to_numpy(result).tolist() == [[1, 2]]


@pytest.mark.parametrize("location", ["w.bin", "./w.bin"])
def test_external_data_that_is_overwritten_or_cut_short_serves_on_as_it_was(
    tmp_path: Path, runtime: OnnxRuntime, location: str
) -> None:
    """`cp` writes into the file that serves: mapped, it would end the process or give other answers."""
    weights = tmp_path / "w.bin"
    weights.write_bytes(np.array([1, 2], np.float32).tobytes())
    (tmp_path / "model.onnx").write_bytes(external(location))
    model = runtime.load(Opening(folder=tmp_path, entry="model.onnx"))
    asked = [from_numpy("x", np.zeros((1, 2), np.float32))]
    with weights.open("r+b") as stream:
        stream.write(np.array([7, 7], np.float32).tobytes())
    assert to_numpy(model.run(asked, ())[0]).tolist() == [[1, 2]]
    with weights.open("r+b") as stream:
        stream.truncate(0)
    assert to_numpy(model.run(asked, ())[0]).tolist() == [[1, 2]]


def test_external_data_is_found_in_branches_too(tmp_path: Path) -> None:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="deep.bin")
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])
    branch = helper.make_graph([], "b", [], [output], [weights])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    flag, answer = (TensorProto.BOOL, [1]), (TensorProto.FLOAT, [2])
    content = onnx_model([node], {"c": flag}, {"y": answer})
    assert external_files(BytesIO(content)) == {"deep.bin"}
    for end in range(1, len(content), 7):
        with suppress(ModelError):
            external_files(BytesIO(content[:end]))
    with pytest.raises(ModelError, match="no ONNX file"):
        external_files(BytesIO(b"\xff" * 30))


def test_the_nodes_own_copies_may_be_mapped(
    tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.bin").write_bytes(np.array([1, 2], np.float32).tobytes())
    (tmp_path / "model.onnx").write_bytes(external("w.bin"))
    monkeypatch.setattr("meshnode.models.runtimes.onnx.external_files", lambda _: 1 / 0)
    runtime.load(Opening(folder=tmp_path, entry="model.onnx", files_stay=True))


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
    assert repr(model) == "<OnnxModel ['y'] on cpu>"
    model.close()
    assert repr(model) == "<OnnxModel ['y'] closed>"
    with pytest.raises(InferenceFailed):
        model.run([from_numpy("x", np.zeros((1, 2), np.float32))], ())


def test_shapes_without_a_rank_or_size_are_told_as_they_are(load: Load) -> None:
    assert load(identity(shape=None)).inputs[0].shape == ()
    assert load(identity(shape=(3, None, "w"))).inputs[0].shape == (3, -1, -1)


def test_bfloat16_goes_through_bit_by_bit(load: Load) -> None:
    model = load(identity(TensorProto.BFLOAT16))
    assert model.inputs == (TensorSpec("x", DataType.BF16, (-1, 2)),)
    data = bytes.fromhex("803f 0040 c07f ffff")  # 1, 2 and two kinds of NaN
    (answer,) = model.run([Tensor("x", DataType.BF16, (2, 2), data)], ())
    assert (answer.datatype, answer.shape, bytes(answer.data)) == (DataType.BF16, (2, 2), data)


def test_settings_reach_the_session(runtime: OnnxRuntime) -> None:
    parameters = (
        ("intra_op_thread_count", "3"),
        ("inter_op_thread_count", "2"),
        ("execution_mode", "1"),
        ("enable_mem_arena", "0"),
        ("enable_mem_pattern", "0"),
        ("session.set_denormal_as_zero", "1"),
        ("session.model_external_initializers_file_folder_path", "/"),
    )
    runtime.capability()
    opening = Opening(
        folder=Path(), entry="", execution=Execution(parameters=parameters, graph_level=-1)
    )
    options = session_options(onnxruntime, opening)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    levels = onnxruntime.GraphOptimizationLevel
    assert options.graph_optimization_level == levels.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    with pytest.raises(RuntimeError):  # it would read files from elsewhere: never set
        options.get_session_config_entry("session.model_external_initializers_file_folder_path")
    extended = replace(opening, threads=2, execution=Execution(graph_level=1))
    options = session_options(onnxruntime, extended)
    assert options.intra_op_num_threads == 2
    assert options.graph_optimization_level == levels.ORT_ENABLE_EXTENDED
    wrong = replace(opening, execution=Execution(parameters=(("inter_op_thread_count", "two"),)))
    with pytest.raises(ModelError, match="'inter_op_thread_count' is 'two'"):
        session_options(onnxruntime, wrong)


def test_a_provider_that_does_not_start_is_passed_over_with_its_reason(
    load: Load,
    runtime: OnnxRuntime,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of two that this build claims, one raises and one is left out silently; the CPU takes the model."""
    real = onnxruntime.InferenceSession
    claimed = ["CUDAExecutionProvider", "DmlExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: claimed)

    def open_session(
        path: str, options: object = None, *, providers: list[Any], **rest: Any
    ) -> Any:
        first = providers[0]
        name = first if isinstance(first, str) else first[0]
        if name == "CUDAExecutionProvider":
            raise RuntimeError("the driver is too old")
        return real(path, options, providers=["CPUExecutionProvider"], **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    model = load(identity())
    assert model.device == "cpu"
    assert "cuda:0 (CUDAExecutionProvider) and goes to the next device: the driver is too old" in (
        caplog.text
    )
    assert "directml:0 (DmlExecutionProvider) and goes to the next device: it did not start" in (
        caplog.text
    )
    assert runtime.capability().devices == ("cpu",)


def test_without_onnx_runtime_it_says_so(
    tmp_path: Path, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="ONNX Runtime cannot be imported"):
        runtime.load(Opening(folder=tmp_path, entry="model.onnx"))


def test_foreign_messages_are_shortened_to_a_line() -> None:
    assert clean_reason(RuntimeError("a\n  b")) == "a b"
    assert clean_reason(RuntimeError()) == "RuntimeError"
    assert len(clean_reason(RuntimeError("x" * 999))) == 300


def test_an_operator_that_is_unknown_is_refused(load: Load) -> None:
    spec = (TensorProto.FLOAT, ["n"])
    content = onnx_model([helper.make_node("Nope", ["x"], ["y"])], {"x": spec}, {"y": spec})
    with pytest.raises(ModelError, match="Nope"):
        load(content)
