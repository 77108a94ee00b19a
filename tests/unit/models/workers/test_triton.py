"""Models written for Triton's Python backend, run as they are."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
import pytest

from meshnode.errors import InferenceFailed, ModelError, ModelNotFound
from meshnode.models.execution import Execution, Spelling
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.processes import describe_worker
from meshnode.models.workers import triton_python_backend_utils as pb_utils
from meshnode.models.workers.adaptor import Answer, WorkerRequest
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart, Tensor
from tests.unit.models.workers.conftest import QUICK, array_of, load, request, values

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.models.runtimes.base import Opening

DECOUPLED = Execution(decoupled=True)

COUNTER = """
import json, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.thread = threading.get_ident()
        self.sent = 0

    def execute(self, requests):
        assert threading.get_ident() == self.thread
        for request in requests:
            told = json.loads(request.parameters())
            sender = request.get_response_sender()
            if told.get("fails_after") == 0:
                raise RuntimeError("broken")
            work = lambda: self.count(sender, told)
            threading.Thread(target=work).start() if told.get("later") else work()

    def count(self, sender, told):
        for number in range(told["parts"]):
            if sender.is_cancelled():
                break
            time.sleep(told.get("pause_ms", 0) / 1000 if number else 0)
            x = np.full((1, told.get("columns", 2)), number, np.float32)
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)],
                                                   parameters={"sent": self.sent}))
            self.sent += 1
            if told.get("fails_after") == number + 1:
                raise RuntimeError("broken")
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


async def collected(model: object, asked: InferRequest) -> list[float]:
    return [float(array_of(part.outputs[0])[0, 0]) async for part in model.stream(asked)]  # type: ignore[attr-defined]


async def test_a_decoupled_model_answers_with_any_number_of_parts_from_any_thread(
    opening: Callable[..., Opening],
) -> None:
    model = await asyncio.to_thread(load, opening(COUNTER, DECOUPLED))
    try:
        assert await collected(model, request(parts=40)) == list(range(40))
        assert await collected(model, request(parts=3, later=True)) == [0, 1, 2]
        assert await collected(model, request(parts=0)) == []
        assert await collected(model, request(parts=3, columns=20_000)) == [0, 1, 2]
        (single, several) = (
            await model.execute([request(parts=1)]),
            await model.execute([request(parts=2)]),
        )
        assert isinstance(single[0], ResponsePart)
        with pytest.raises(InferenceFailed, match="2 responses; ask it as a stream"):
            raise several[0]  # type: ignore[misc]
        with pytest.raises(InferenceFailed, match="RuntimeError: broken"):
            await collected(model, request(parts=3, fails_after=0))
        broken = aiter(model.stream(request(parts=3, fails_after=2)))
        assert len([await anext(broken), await anext(broken)]) == 2
        with pytest.raises(InferenceFailed, match="broken"):
            await anext(broken)
    finally:
        await model.close()


def test_what_a_model_sent_before_it_raised_is_sent_however_quickly_it_raised() -> None:
    """It sends and raises while its first part is on its way."""
    sender = pb_utils.InferenceResponseSender(pb_utils.InferenceRequest())
    executing: Future[None] = Future()
    parts = [pb_utils.InferenceResponse([]) for _ in range(3)]
    told = sender.responses(executing, lambda: False)
    sender.send(parts[0])
    assert next(told) is parts[0]
    sender.send(parts[1])
    sender.send(parts[2])
    executing.set_exception(RuntimeError("broken"))
    assert [next(told), next(told)] == parts[1:]
    with pytest.raises(RuntimeError, match="broken"):
        next(told)


async def test_a_stream_may_pause_for_longer_than_its_first_part_may_take(
    opening: Callable[..., Opening],
) -> None:
    model = await asyncio.to_thread(load, opening(COUNTER, DECOUPLED))
    try:
        asked = request(parts=3, pause_ms=1000, timeout_s=0.5)
        assert await collected(model, asked) == [0, 1, 2]
    finally:
        await model.close()


async def test_a_slow_reader_holds_a_stream_back_and_leaving_it_frees_the_slot(
    opening: Callable[..., Opening],
) -> None:
    model = await asyncio.to_thread(load, opening(COUNTER, DECOUPLED))
    try:
        stream = model.stream(request(parts=100_000))
        sent = 0
        async for part in stream:
            sent = int(part.parameters["sent"])
            await asyncio.sleep(0.05)
            break
        await stream.aclose()
        assert sent == 0
        async for part in model.stream(request(parts=1)):
            sent = int(part.parameters["sent"])
        assert 1 < sent < 200  # what was on its way, not all
        assert model.restarts == 0
        assert model._life is not None
        assert model._life._arena.lent_bytes == 0
    finally:
        await model.close()


PLAIN = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "text", "data_type": "TYPE_STRING", "dims": [-1]})
        config.add_input({"name": "hint", "data_type": "TYPE_INT32", "dims": [1], "optional": True})
        config.add_output({"name": "told", "data_type": "TYPE_STRING", "dims": [-1]})
        config.set_max_batch_size(16)
        config.set_dynamic_batching()
        return config

    def initialize(self, args):
        self.args = args
        config = json.loads(args["model_config"])
        self.type = pb_utils.triton_string_to_numpy(
            pb_utils.get_output_config_by_name(config, "told")["data_type"])
        pb_utils.Logger.log_info("initialised " + config["name"])

    def execute(self, requests):
        return [self.one(each) for each in requests]

    def one(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        facts = {
            "first": text.ravel()[0].decode(), "flags": request.flags(),
            "sequence": request.correlation_id(), "id": request.request_id(),
            "wanted": list(request.requested_output_names()), "timeout": request.timeout(),
            "parameters": json.loads(request.parameters()), "args": self.args,
            "hint": pb_utils.get_input_tensor_by_name(request, "hint") is None,
        }
        told = np.array([json.dumps(facts)] * text.size, dtype=self.type).reshape(text.shape)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("told", told)])

    def finalize(self):
        print("finalised")
"""


async def test_a_model_completes_its_configuration_and_sees_requests_as_triton_shows_them(
    opening: Callable[..., Opening], caplog: pytest.LogCaptureFixture
) -> None:
    made = opening(
        PLAIN,
        Execution(parameters=(("threshold", "0.5"),)),
        inputs=(),
        outputs=(),
        max_batch_size=0,
    )
    described = await asyncio.to_thread(describe_worker, "python", Spelling.TRITON, made, QUICK)
    assert described.inputs == (
        TensorSpec("text", DataType.BYTES, (-1, -1)),
        TensorSpec("hint", DataType.INT32, (-1, 1)),
    )
    assert described.outputs == (TensorSpec("told", DataType.BYTES, (-1, -1)),)
    assert described.max_batch_size == 16
    assert described.execution.optional_inputs == ("hint",)
    assert described.execution.batching is not None

    with caplog.at_level("INFO"):
        model = await asyncio.to_thread(load, made)
        text = Tensor("text", DataType.BYTES, (1, 2), b"\x03\0\0\0\xc3\xa9!\x01\0\0\0b")
        asked = InferRequest(
            "m", (text,), outputs=("told",), request_id="r1",
            parameters={"sequence_id": 7, "sequence_start": True, "timeout": 5, "k": "v"},
        )  # fmt: skip
        (outcome,) = await model.execute([asked])
        await model.close()
    assert isinstance(outcome, tuple)
    data = bytes(outcome[0].data)
    facts = json.loads(data[4 : 4 + int.from_bytes(data[:4], "little")])
    args = facts.pop("args")
    assert facts == {
        "first": "é!", "flags": 1, "sequence": 7, "id": "r1", "wanted": ["told"], "timeout": 5,
        "parameters": {"k": "v"}, "hint": True,
    }  # fmt: skip
    assert all(isinstance(value, str) for value in args.values())
    assert args["model_name"] == "m"
    assert args["model_repository"] == str(made.folder.parent)
    config = json.loads(args["model_config"])
    assert config["parameters"] == {"threshold": {"string_value": "0.5"}}
    assert config["input"][0] == {"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}
    said = [record.getMessage() for record in caplog.records]
    assert "INFO model: initialised m" in said
    assert "finalised" in said


CALLER = """
import asyncio, json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    async def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x")
            asked = [pb_utils.InferenceRequest(model_name=name, requested_output_names=["y"], inputs=[x])
                     for name in ("double", "double", "missing")]
            one, two, missing = await asyncio.gather(*(each.async_exec() for each in asked))
            assert missing.has_error() and "no model" in missing.error().message(), missing
            y = sum(pb_utils.get_output_tensor_by_name(each, "y").as_numpy() for each in (one, two))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses
"""


async def test_a_model_asks_other_models_of_the_mesh(opening: Callable[..., Opening]) -> None:
    asked = []

    async def infer(one: InferRequest) -> InferResponse:
        asked.append(one.model)
        if one.model != "double":
            raise ModelNotFound(f"no model {one.model}")
        doubled = array_of(one.inputs[0]) * 2
        tensor = Tensor("y", DataType.FP32, doubled.shape, doubled.tobytes())
        return InferResponse("double", 1, ResponsePart((tensor,)))

    model = await asyncio.to_thread(load, opening(CALLER), QUICK, infer)
    try:
        for columns in (4, 50_000):
            (outcome,) = await model.execute([request(1, columns)])
            expected = np.arange(columns, dtype=np.float32) * 4
            np.testing.assert_array_equal(values(outcome)[0], expected)
        assert sorted(asked) == ["double"] * 4 + ["missing"] * 2
    finally:
        await model.close()


WRONG = """
import json

class TritonPythonModel:
    def execute(self, requests):
        return {"none": None, "few": [], "texts": ["x", "y"]}[json.loads(requests[0].parameters())["gives"]]
"""


async def test_a_batch_that_is_answered_wrongly_fails_with_what_was_expected(
    opening: Callable[..., Opening],
) -> None:
    model = await asyncio.to_thread(load, opening(WRONG))
    expected = {
        "few": "returned 0 responses to 2 requests; it must return one for each",
        "none": "returned NoneType; it must return a list",
        "texts": "returned str for a request; it must be an InferenceResponse",
    }
    try:
        for gives, said in expected.items():
            for outcome in await model.execute([request(gives=gives), request()]):
                assert isinstance(outcome, InferenceFailed)
                assert said in str(outcome)
    finally:
        await model.close()


def test_a_model_without_outputs_is_told_where_to_name_them(
    opening: Callable[..., Opening],
) -> None:
    made = opening(
        "class TritonPythonModel:\n    def execute(self, requests): return []", outputs=()
    )
    with pytest.raises(ModelError, match=r"names no outputs: write them into its config\.pbtxt"):
        load(made)


# The stand-in module, in this process


def test_types_have_tritons_names_and_numbers() -> None:
    assert pb_utils.triton_string_to_numpy("TYPE_FP16") is np.float16
    assert pb_utils.triton_string_to_numpy("TYPE_STRING") is np.object_
    assert pb_utils.triton_to_numpy_type(11) is np.float32
    assert pb_utils.numpy_to_triton_type(np.int64) == 9
    assert pb_utils.numpy_to_triton_type(np.dtype("S3")) == 13
    with pytest.raises(pb_utils.TritonModelException):
        pb_utils.triton_string_to_numpy("TYPE_BF16")
    with pytest.raises(pb_utils.TritonModelException):
        pb_utils.numpy_to_triton_type(np.complex64)


def test_a_configuration_refuses_what_contradicts_it_and_names_both_sides() -> None:
    config = pb_utils.ModelConfig(
        {"max_batch_size": 8, "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}], "output": []}
    )  # fmt: skip
    config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [4]})
    with pytest.raises(ValueError, match=r"dims is \[4\]; the model's is \[5\]"):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [5]})
    with pytest.raises(ValueError, match="max_batch_size is 8; the model allows 4"):
        config.set_max_batch_size(4)
    with pytest.raises(ValueError, match="dims"):
        config.add_output({"name": "y"})
    with pytest.raises(ValueError, match="decoupled"):
        config.set_model_transaction_policy({"coupled": True})
    config.set_model_transaction_policy({"decoupled": True})
    assert pb_utils.using_decoupled_model_transaction_policy(config.as_dict())
    assert len(config.as_dict()["input"]) == 1


def test_strings_are_serialised_as_triton_does() -> None:
    strings = np.array([b"ab", "é"], dtype=object)
    data = pb_utils.serialize_byte_tensor(strings)
    assert data.tobytes() == b"\x02\0\0\0ab\x02\0\0\0\xc3\xa9"
    assert pb_utils.deserialize_bytes_tensor(data).tolist() == [b"ab", "é".encode()]


def test_tensors_go_to_other_libraries_and_back_without_a_copy() -> None:
    tensor = pb_utils.Tensor("x", np.arange(3.0))
    again = pb_utils.Tensor.from_dlpack("y", tensor)
    assert again.as_numpy().tolist() == [0, 1, 2]
    assert again.is_cpu()
    assert np.shares_memory(again.as_numpy(), tensor.as_numpy())
    with pytest.raises(TypeError, match="must be a NumPy array, not list"):
        pb_utils.Tensor("x", [1])  # type: ignore[arg-type]


def test_what_has_no_meaning_here_says_so() -> None:
    for refused in (pb_utils.load_model, pb_utils.unload_model):
        with pytest.raises(pb_utils.TritonModelException, match="deploy it"):
            refused("m")
    family = pb_utils.MetricFamily("n", "d", pb_utils.MetricFamily.COUNTER)
    metric = family.Metric(labels={"a": "b"})
    metric.increment(2)
    assert metric.value() == 2


def test_a_request_without_a_sequence_has_no_flags() -> None:
    made = pb_utils.InferenceRequest.from_worker(WorkerRequest({"x": np.zeros(1)}))
    assert (made.flags(), made.correlation_id(), made.is_cancelled()) == (0, 0, False)
    response = pb_utils.InferenceResponse([pb_utils.Tensor("y", np.ones(1))], parameters='{"a": 1}')
    outcome = response.outcome()
    assert isinstance(outcome, Answer)
    assert outcome.parameters == {"a": 1}


async def test_a_model_of_a_folder_imports_what_lies_beside_it(
    opening: Callable[..., Opening],
) -> None:
    source = """
        import numpy as np
        import triton_python_backend_utils as pb_utils
        from beside import factor
        from shared_code import offset

        class TritonPythonModel:
            def execute(self, requests):
                return [pb_utils.InferenceResponse([pb_utils.Tensor("y",
                        each.inputs()[0].as_numpy() * factor + offset)]) for each in requests]
    """
    made = opening(source)
    (made.folder / "beside.py").write_text("factor = 3")
    (made.folder.parent / "shared_code.py").write_text("offset = 1")
    model = await asyncio.to_thread(load, made)
    try:
        (outcome,) = await model.execute([request()])
        assert isinstance(outcome, tuple)
        assert array_of(outcome[0]).tolist() == [[1, 4, 7, 10]]
    finally:
        await model.close()
